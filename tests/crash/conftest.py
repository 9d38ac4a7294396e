"""Inputs that all tests of this folder read, and writing in pieces of a few hundred bytes, so that small files take many."""

from __future__ import annotations

import pytest
from crash_jobs import Inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tswitch_format.container.writer._BUFFER", 64)
