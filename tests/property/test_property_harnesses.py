"""Every harness of fuzz/ for a short while, and all that once made one fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import campaign, child, limits
from fuzz.limits import BrokenPromiseError, limited, promise
from fuzz.targets import TARGETS

RUNS = 150
REGRESSIONS = sorted(path for path in child.REGRESSIONS.iterdir() if path.name != "README.md")


@pytest.mark.parametrize("name", TARGETS)
def test_harness(name: str) -> None:
    slow = name in ("chunks", "roundtrip", "payloads")
    counted = child.run_random(TARGETS[name], RUNS // 5 if slow else RUNS, None, seed=20261120)
    assert counted["executions"] == (RUNS // 5 if slow else RUNS)


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.name)
def test_regression(path: Path) -> None:
    TARGETS[path.name.split("-")[0]].run(path.read_bytes())


def test_limits_are_kept_watch_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.01)
    with pytest.raises(BrokenPromiseError, match="took"), limits.limited():
        for _ in range(2_000_000):
            pass
    with pytest.raises(BrokenPromiseError):
        promise(False, "never")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux limits the address space exactly")
def test_memory_is_kept_watch_over() -> None:
    with pytest.raises(BrokenPromiseError, match="asked for more"), limited():
        bytearray(400 << 20)
    bytearray(400 << 20)


def test_failures_are_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise BrokenPromiseError("on purpose")

    one = TARGETS["runs"]
    monkeypatch.setattr(child, "CRASHES", tmp_path)
    monkeypatch.setattr(child, "HERE", tmp_path / "fuzz")
    with pytest.raises(BrokenPromiseError):
        child.run_once(type(one)("runs", broken, one.seeds, one.mutate, 1), b"x")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x"]


def test_results_become_a_table() -> None:
    document = {
        "date": "2026-01-01",
        "engine": "random",
        "jobs": 1,
        "machine": "m",
        "versions": {"numpy": "2"},
        "harnesses": {
            "open": {"executions": 2000, "seconds": 2.0, "edges": 0, "inputs": 3, "failed": False},
        },
    }
    assert "| open | 2,000 | 1,000 | - | 3 | 0 |" in campaign.table(document)
