"""Power loss at any moment: whatever the disk then keeps of what was not synced, the output is the old or the new, whole.

Every prefix of the changes that a writer makes is replayed with everything that POSIX leaves open (`crash_disk`). That the
replay can find a missing fsync is shown by leaving out each of them in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from crash_disk import PAGE, SECTOR, Change, Rename, Sync, SyncFile, SyncFolder, Tree, crashes
from crash_jobs import JOBS, Inputs, Outcome, check_readable, materialize, visible
from crash_recorder import Recorder

pytestmark = pytest.mark.usefixtures("small_writes")

FINE, COARSE = 3, PAGE  # data is torn at every so many bytes: in the full tests, and where any loss is enough


def record(name: str, inputs: Inputs, folder: Path) -> tuple[Recorder, Outcome]:
    """Run a job twice: undisturbed, and recorded."""
    job = JOBS[name]
    outcome = Outcome.of(job, inputs, folder / "undisturbed")
    out = job.prepare(inputs, folder / "recorded")
    with Recorder(folder / "recorded") as recorder:
        job.write(inputs, out)
    assert recorder.disk.tree() == outcome.after
    assert recorder.left_open == 0
    return recorder, outcome


def replay(
    recorder: Recorder, log: Sequence[Change], outcome: Outcome, grain: int
) -> tuple[list[str], dict[str, Tree], int]:
    """Problems, the different states that were seen, and how many states were looked at, over all prefixes of a log."""
    problems, seen, count = [], {}, 0
    for length in range(len(log) + 1):
        returned = length == len(log)
        for what, tree in crashes(recorder.before, log[:length], grain=grain):
            count += 1
            problem = outcome.problem(tree, returned=returned)
            if problem:
                problems.append(f"after {length} of {len(log)} changes; {what}: {problem}")
            else:
                state = visible(tree)
                seen["old" if state == outcome.before else "new"] = tree
    return problems, seen, count


def check_all_prefixes(name: str, inputs: Inputs, folder: Path, grain: int, least: int) -> None:
    recorder, outcome = record(name, inputs, folder)
    problems, seen, count = replay(recorder, recorder.log, outcome, grain)
    assert not problems, "\n".join(problems[:20])
    print(f"{name}: {len(recorder.log) + 1} prefixes, {count} states")
    assert sorted(seen) == ["new", "old"]
    assert count >= least
    for state, tree in seen.items():
        materialize(tree, folder / state)
        check_readable(folder / state / JOBS[name].out)


@pytest.mark.parametrize("name", JOBS)
def test_after_power_loss_the_output_is_old_or_new(name: str, inputs: Inputs, tmp_path: Path) -> None:
    check_all_prefixes(name, inputs, tmp_path, SECTOR, 500)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_after_power_loss_the_output_is_old_or_new_torn_anywhere(name: str, inputs: Inputs, tmp_path: Path) -> None:
    check_all_prefixes(name, inputs, tmp_path, FINE, 5000)


@pytest.mark.parametrize("name", JOBS)
def test_without_any_one_fsync_the_output_may_be_lost(name: str, inputs: Inputs, tmp_path: Path) -> None:
    recorder, outcome = record(name, inputs, tmp_path)
    syncs = [number for number, change in enumerate(recorder.log) if isinstance(change, Sync)]
    kinds = tuple("fsync" if isinstance(recorder.log[number], SyncFile) else "fsync folder" for number in syncs)
    assert kinds == JOBS[name].syncs
    for number in syncs:
        mutilated = recorder.log[:number] + recorder.log[number + 1 :]
        problems, _, _ = replay(recorder, mutilated, outcome, COARSE)
        assert problems, f"{name}: nothing is lost without {recorder.log[number]}, change {number}"


@pytest.mark.parametrize("name", ["pack over an old file", "restore over an old file", "restore into an empty folder"])
def test_an_fsync_that_does_nothing_is_found(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """The same with the call itself taken away, under the recorder's eyes."""
    job = JOBS[name]
    outcome = Outcome.of(job, inputs, tmp_path / "undisturbed")
    for skipped in range(len(job.syncs)):
        out = job.prepare(inputs, tmp_path / f"{skipped}")
        with Recorder(tmp_path / f"{skipped}") as recorder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", without(os.fsync, skipped))
            job.write(inputs, out)
        assert sum(isinstance(change, Sync) for change in recorder.log) == len(job.syncs) - 1
        problems, _, _ = replay(recorder, recorder.log, outcome, COARSE)
        assert problems, f"{name}: fsync {skipped} can go"


def without(real: Callable[[int], None], skipped: int) -> Callable[[int], None]:
    calls = iter(range(1000))
    return lambda fd: None if next(calls) == skipped else real(fd)


@pytest.mark.parametrize("name", ["pack over an old file", "restore over an old file", "restore a folder"])
@pytest.mark.parametrize("kind", [SyncFile, SyncFolder])
def test_an_fsync_on_the_wrong_side_of_the_rename_is_found(
    name: str, kind: type[Sync], inputs: Inputs, tmp_path: Path
) -> None:
    recorder, outcome = record(name, inputs, tmp_path)
    log = list(recorder.log)
    rename = next(number for number, change in enumerate(log) if isinstance(change, Rename))
    if kind is SyncFile:  # one of the files is synced only after its name is there
        moved = max(number for number, change in enumerate(log) if isinstance(change, SyncFile))
        log.insert(rename, log.pop(moved))
    else:  # the folder around is synced only before
        log.insert(rename, log.pop())
    problems, _, _ = replay(recorder, log, outcome, COARSE)
    assert problems


def test_the_replay_knows_what_a_crash_does(inputs: Inputs, tmp_path: Path) -> None:
    """A file written in place is found torn, zero, garbage, cut, short, and whole."""
    root = tmp_path / "folder"
    root.mkdir()
    (root / "out").write_bytes(b"old" * 300)
    with Recorder(root) as recorder:
        fd = os.open(root / "out", os.O_WRONLY | os.O_TRUNC)
        os.pwrite(fd, b"1" * 600, 0)
        os.pwrite(fd, b"2" * 600, 600)
        os.close(fd)
    states = {tree["out"] for _, tree in crashes(recorder.before, recorder.log)}
    old, new = b"old" * 300, b"1" * 600 + b"2" * 600
    assert {
        b"",
        old,
        new,
        new[:600],
        bytes(600) + b"2" * 600,
        new[:300],
        old[:512] + new[512:1024] + bytes(176),
    } <= states
    assert any(isinstance(state, bytes) and len(state) == 1200 and len(set(state)) > 50 for state in states)


def test_what_is_changed_behind_the_recorder_is_found(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    root.mkdir()
    with pytest.raises(AssertionError, match=r"changed without being recorded: \['sly'\]"), Recorder(root):
        (root / "sly").write_bytes(b"x")
    with pytest.raises(AssertionError, match=r"os\.truncate was called"), Recorder(root):
        os.truncate(root / "sly", 0)
    with pytest.raises(AssertionError, match="opened for writing outside"), Recorder(root):
        os.close(os.open(tmp_path / "elsewhere", os.O_WRONLY | os.O_CREAT))
