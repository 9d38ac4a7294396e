"""The conformance suite's own programs as modules, and its manifest."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"


def _module(name: str, path: Path) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def runner() -> ModuleType:
    """spec/vectors/run.py."""
    return _module("vectors_run", FOLDER / "run.py")


@pytest.fixture(scope="session")
def library() -> ModuleType:
    """spec/vectors/decoders/library.py."""
    return _module("vectors_decoder_library", FOLDER / "decoders" / "library.py")


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """spec/vectors/make_vectors.py, which imports the package `making` beside it."""
    sys.path.insert(0, str(FOLDER))
    try:
        return _module("make_vectors", FOLDER / "make_vectors.py")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="session")
def records(runner: ModuleType) -> Sequence[dict[str, Any]]:
    """The manifest."""
    return runner.load()
