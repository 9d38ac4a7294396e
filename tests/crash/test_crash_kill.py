"""A real `tsw` process, killed: at random moments from start to end, and at every call around every write.

What it leaves under the final name is the old file or the new one. An unfinished file may stay under its temporary name:
later runs neither need nor touch it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_disk import Disk
from crash_jobs import BYSTANDER, Inputs, check_readable, materialize, unfinished, visible
from safetensors.numpy import save_file

SEED = 20261120
FEW, MANY = 20, 200


class Worker:
    """The process that runs commands and kills them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("killed_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # no threads before it forks
        )

    def run(self, *arguments: object, **how: float) -> tuple[int, float]:
        """Exit status, or minus the signal, and seconds."""
        request: dict[str, Any] = {"arguments": [str(argument) for argument in arguments], **how}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["status"], answer["seconds"]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an expert that take some tenths of a second to pack, nearly all of it written."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    base = {f"{number}.weight": rng.standard_normal((512, 1024), np.float32) for number in range(12)}
    expert = {name: array + rng.standard_normal(array.shape, np.float32) for name, array in base.items()}
    save_file(base, folder / "base.safetensors")
    save_file(expert, folder / "expert.safetensors")
    return folder


def check_kills(count: int, worker: Worker, models: Path, folder: Path) -> None:
    pack = ("pack", models / "base.safetensors", models / "expert.safetensors", "--quiet", "--density", 0.2, "--out")
    old, new = folder / "old.tsw", folder / "new.tsw"
    assert worker.run(*pack, old, "--task", "old")[0] == 0
    usual = [worker.run(*pack, new) for _ in range(3)]
    assert {status for status, _ in usual} == {0}
    times = [seconds for _, seconds in usual]  # of runs that were not killed; those of late count
    for path in (old, new):
        check_readable(path)
    contents = {"old": old.read_bytes(), "new": new.read_bytes()}
    work = folder / "work"
    work.mkdir()
    out = work / "out.tsw"
    rng = random.Random(SEED)
    seen = {"old": 0, "new": 0, "absent": 0}
    killed = 0
    for number in range(count):
        overwriting = rng.random() < 0.5
        out.write_bytes(contents["old"]) if overwriting else out.unlink(missing_ok=True)
        # Three of four anywhere; one of four around the end, where the file becomes visible.
        low, high = (0.85, 1.1) if number % 4 == 3 else (0.0, 1.05)
        share = low + (high - low) * (number + rng.random()) / count
        usual_time = statistics.median(times[-5:])
        status, seconds = worker.run(*pack, out, after=share * usual_time)
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        if status == 0:
            times.append(seconds)
        content = out.read_bytes() if out.exists() else None
        found = next((name for name, expected in contents.items() if content == expected), "other")
        found = "absent" if content is None else found
        where = f"seed {SEED}, kill {number} at {share:.3f} of {usual_time:.3f} s: {found}"
        assert found in (("new", "old") if overwriting else ("new", "absent")), where
        assert found == "new" or status != 0, where
        seen[found] += 1
    left = unfinished(work)
    print(
        f"{killed} of {count} killed, in runs of {min(times):.3f} to {max(times):.3f} s; found {seen}; left {len(left)}"
    )
    assert killed >= count // 4
    assert left, "no kill came while a file was being written"
    assert sorted(path.name for path in work.iterdir() if path.name not in left) in (["out.tsw"], [])
    before = {name: (work / name).stat() for name in left}
    assert worker.run(*pack, out)[0] == 0
    assert out.read_bytes() == contents["new"]
    assert unfinished(work) == left  # a later run leaves them alone: their owners may be alive
    assert {name: (work / name).stat().st_mtime_ns for name in left} == {n: s.st_mtime_ns for n, s in before.items()}


def test_a_killed_pack_leaves_the_old_file_or_the_new(worker: Worker, models: Path, tmp_path: Path) -> None:
    check_kills(FEW, worker, models, tmp_path)


@pytest.mark.slow
def test_a_killed_pack_leaves_the_old_file_or_the_new_many_times(worker: Worker, models: Path, tmp_path: Path) -> None:
    check_kills(MANY, worker, models, tmp_path)


COMMANDS = {
    "pack": ("pack", "{base}", "{expert}", "--on-mismatch", "dense"),
    "bundle": ("bundle", "{one}", "{two}"),
    "extract": ("extract", "{both}", "--task", "one"),
    "repack": ("repack", "{one}", "--profile", "mapped"),
    "restore a file": ("restore", "{base}", "{one}"),
    "restore a folder": ("restore", "{shards}", "{one}"),
}


def check_each_call(name: str, old: bool, reruns: int, worker: Worker, inputs: Inputs, folder: Path) -> None:
    """Kill a command at each call in turn; after every so many of these, run it again to the end."""
    command = [part.format_map(vars(inputs)) for part in COMMANDS[name]]
    command += ["--quiet"]
    out_name = {"restore a file": "out.safetensors", "restore a folder": "out"}.get(name, "out.tsw")
    before: dict[str, bytes | None] = {BYSTANDER: b"untouched"}
    if old:
        before[out_name] = None if name == "restore a folder" else inputs.two.read_bytes()
    root = folder / "undisturbed"
    materialize(before, root)
    assert worker.run(*command, "--out", root / out_name)[0] == 0
    check_readable(root / out_name)
    after = Disk.read(root).tree()
    assert after != before
    seen = []
    for moment in range(1000):
        root = folder / f"{moment}"
        materialize(before, root)
        status, _ = worker.run(*command, "--out", root / out_name, call=moment)
        tree = visible(Disk.read(root).tree())
        assert tree in (before, after), f"{name}, moment {moment}: {sorted(tree)}"
        seen.append(tree == after)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if moment % reruns == 0 and (tree == before or name != "restore a folder"):  # a full folder is not written into
            assert worker.run(*command, "--out", root / out_name)[0] == 0  # whatever was left
            assert visible(Disk.read(root).tree()) == after
    print(f"{name}: died at {moment} moments of its calls, {seen.count(True) - 1} of them after the rename")
    # Once it is there, it is there: from the moment after the rename on.
    assert seen == sorted(seen)
    assert seen[-1]
    assert moment >= 14
    assert seen.count(True) >= 8  # after the rename: opening, syncing and closing the folder, twice each, and the end


@pytest.mark.parametrize("name", ["pack", "restore a folder"])
def test_a_process_that_dies_at_any_call(name: str, worker: Worker, inputs: Inputs, tmp_path: Path) -> None:
    check_each_call(name, True, 9, worker, inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_any_command_that_dies_at_any_call(
    name: str, old: bool, worker: Worker, inputs: Inputs, tmp_path: Path
) -> None:
    check_each_call(name, old, 1, worker, inputs, tmp_path)
