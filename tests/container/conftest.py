"""Files that many tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from container_files import make, make_tiny, make_wide


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def archive(folder: Path) -> Path:
    return make(folder / "archive.tsw", task="one", base_id="some/base", base_revision="1", metadata={"a": "b"})


@pytest.fixture(scope="session")
def mapped(folder: Path) -> Path:
    return make(folder / "mapped.tsw", task="one", profile="mapped")


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Path:
    return make_tiny(folder / "tiny.tsw")


@pytest.fixture(scope="session")
def wide(folder: Path) -> Path:
    return make_wide(folder / "wide.tsw")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.tsw"
