"""The conformance suite's own programs as modules, and its manifest."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fuzz.modules import load

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"


@pytest.fixture(scope="session")
def runner() -> ModuleType:
    """spec/vectors/run.py."""
    return load("spec/vectors/run.py")


@pytest.fixture(scope="session")
def library() -> ModuleType:
    """spec/vectors/decoders/library.py."""
    return load("spec/vectors/decoders/library.py")


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """spec/vectors/make_vectors.py, which imports the package `making` beside it."""
    sys.path.insert(0, str(FOLDER))
    try:
        return load("spec/vectors/make_vectors.py")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="session")
def records(runner: ModuleType) -> Sequence[dict[str, Any]]:
    """The manifest."""
    return runner.load()
