"""Every call of the system that writing makes fails in turn: the old file stays, nothing partial is left, one error says it."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_disk import Disk
from crash_jobs import JOBS, Inputs, Outcome, unfinished
from crash_recorder import Call, Recorder

from tswitch_format.atomic import AtomicFile, AtomicFolder, output_errors
from tswitch_format.errors import OutputError

pytestmark = pytest.mark.usefixtures("small_writes")

ERRORS = {
    "open": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EINTR),
    "mkdir": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EINTR),
    "pwrite": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EINTR),
    "fsync": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINVAL, errno.EINTR),
    "open folder": (errno.EIO, errno.EACCES, errno.EMFILE, errno.EINTR),
    "fsync folder": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR),
    "close": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR),
    "close folder": (errno.EIO, errno.EINTR),
    "rename": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EINTR),
}
QUIET = ("unlink", "rmdir")  # of an abort: nothing is there to be said of them after a run that went well


@dataclass(frozen=True)
class Failing:
    """One call fails; or, as on a disk that is just full, one write comes short and the next call fails."""

    number: int
    error: int
    shift: int = 0

    def __call__(self, call: Call) -> int | None:
        if call.number == self.number + self.shift:
            raise OSError(self.error, os.strerror(self.error))
        return call.length // 2 if call.number == self.number else None


def calls_of(name: str, inputs: Inputs, root: Path) -> tuple[list[Call], int]:
    """The calls of a run that goes well, and the number of the one after which the result is visible."""
    job = JOBS[name]
    out = job.prepare(inputs, root)
    with Recorder(root) as recorder:
        job.write(inputs, out)
    kinds = [call.kind for call in recorder.calls]
    rename = kinds.index("rename")
    while kinds[-1] in QUIET:
        kinds.pop()
    assert kinds[rename:] == ["rename", "open folder", "fsync folder", "close folder"]
    assert {"open", "pwrite", "fsync", "close"} <= {*kinds[:rename]}
    assert kinds.count("pwrite") >= 2
    return recorder.calls[: len(kinds)], rename


@pytest.mark.parametrize(
    "name",
    [
        "pack over an old file",
        "restore into an empty folder",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("pack", "bundle", "extract", "restore over an old file")
        ),
    ],
)
def test_each_call_fails_in_turn(name: str, inputs: Inputs, tmp_path: Path) -> None:
    job = JOBS[name]
    outcome = Outcome.of(job, inputs, tmp_path / "undisturbed")
    calls, rename = calls_of(name, inputs, tmp_path / "well")
    cases = [(call, error, Failing(call.number, error)) for call in calls for error in ERRORS[call.kind]]
    cases += [(c, e, Failing(c.number, e, 1)) for c in calls if c.kind == "pwrite" for e in ERRORS["pwrite"]]
    print(f"{name}: {len(calls)} calls, {len(cases)} failures")
    for number, (call, error, interfere) in enumerate(cases):
        root = tmp_path / f"{number}"
        out = job.prepare(inputs, root)
        with Recorder(root, interfere) as recorder, pytest.raises(OutputError) as caught:
            job.write(inputs, out)
        where = f"{name}: {call} fails with {errno.errorcode[error]}"
        found = Disk.read(root).tree()
        if call.number <= rename:
            assert found == outcome.before, where
            expected = f"{out}: could not be written: {os.strerror(error)}; what was there before is unchanged; "
        else:
            assert found == outcome.after, where
            expected = f"{out}: written whole and in place, but its folder could not be synced: {os.strerror(error)}; "
        assert str(caught.value).startswith(expected), where
        assert re.fullmatch(r"(free|name|check|raise) [\w ,]+", str(caught.value).removeprefix(expected)), str(
            caught.value
        )
        assert "\n" not in str(caught.value)
        assert recorder.left_open == 0, where
        # Nothing is tried again: what an fsync could not write is gone for good, and a second one would say otherwise.
        failed = call.number + interfere.shift
        later = {later.kind for later in recorder.calls[failed + 1 :]}
        assert not later & {"open", "pwrite", "fsync", "fsync folder", "rename"}, where


@pytest.mark.parametrize("name", ["pack over an old file", "bundle", "restore a folder"])
@pytest.mark.parametrize("most", [1, 7, 511])
def test_short_writes_are_continued_wherever_they_come(name: str, most: int, inputs: Inputs, tmp_path: Path) -> None:
    job = JOBS[name]
    outcome = Outcome.of(job, inputs, tmp_path / "undisturbed")
    out = job.prepare(inputs, tmp_path / "short")
    real = os.pwrite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:most], offset))
        job.write(inputs, out)
    assert Disk.read(out.parent).tree() == outcome.after


def test_a_write_of_nothing_is_an_error_and_no_endless_loop(inputs: Inputs, tmp_path: Path) -> None:
    job = JOBS["pack over an old file"]
    out = job.prepare(inputs, tmp_path / "zero")
    old = out.read_bytes()
    writes: Iterator[int] = iter(range(1000))

    def interfere(call: Call) -> int | None:
        if call.kind == "pwrite":
            next(writes)
            return 0
        return None

    with Recorder(out.parent, interfere), pytest.raises(OutputError, match="wrote none of the bytes"):
        job.write(inputs, out)
    assert next(writes) == 1
    assert out.read_bytes() == old
    assert not unfinished(out.parent)


def test_signals_do_not_disturb_writing(inputs: Inputs, tmp_path: Path) -> None:
    """Real EINTR: a handler runs every half millisecond, and the system's calls go on."""
    job = JOBS["restore a folder"]
    outcome = Outcome.of(job, inputs, tmp_path / "undisturbed")
    rings: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for number in range(5):
            out = job.prepare(inputs, tmp_path / f"{number}")
            job.write(inputs, out)
            assert Disk.read(out.parent).tree() == outcome.after
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rings) > 5


def fail_fsync_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    results = iter([True])

    def fsync(fd: int) -> None:
        if next(results, False):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is dropped by the system: the next fsync succeeds, and the data is lost."""
    fail_fsync_once(monkeypatch)
    file = AtomicFile(tmp_path / "out")
    file.write(b"data")
    with pytest.raises(OutputError, match="Input/output error"):
        file.commit()
    with pytest.raises(OutputError, match="already committed or aborted"):
        file.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_fsync_of_a_file_in_a_folder_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_fsync_once(monkeypatch)
    folder = AtomicFolder(tmp_path / "out")
    folder.open("a").write_at(0, b"data")
    with pytest.raises(OutputError, match="Input/output error"):
        folder.commit()
    with pytest.raises(OutputError):
        folder.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pack over an old file", "restore a folder"])
def test_where_folders_cannot_be_synced_at_all_writing_goes_on(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """EINVAL of an fsync says that the file system has no such operation for folders; for a file it stays an error."""

    def interfere(call: Call) -> None:
        if call.kind == "fsync folder":
            raise OSError(errno.EINVAL, "Invalid argument")

    job = JOBS[name]
    outcome = Outcome.of(job, inputs, tmp_path / "undisturbed")
    out = job.prepare(inputs, tmp_path / "here")
    with Recorder(out.parent, interfere) as recorder:
        job.write(inputs, out)
    assert Disk.read(out.parent).tree() == outcome.after
    assert recorder.left_open == 0


@pytest.mark.parametrize("name", ["pack over an old file", "restore into an empty folder"])
def test_what_cannot_be_taken_away_does_not_hide_the_cause(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """A disk that turns read-only in the middle: the error is that of the write, and the old file stays."""
    job = JOBS[name]
    outcome = Outcome.of(job, inputs, tmp_path / "undisturbed")
    out = job.prepare(inputs, tmp_path / "here")

    def interfere(call: Call) -> None:
        if call.kind in ("fsync", "unlink", "rmdir"):
            raise OSError(errno.EROFS, "Read-only file system")

    with Recorder(out.parent, interfere), pytest.raises(OutputError) as caught:
        job.write(inputs, out)
    assert str(caught.value).startswith(f"{out}: could not be written: Read-only file system; ")
    assert "partial" not in str(caught.value)  # one is left, under its temporary name
    assert len(unfinished(out.parent)) == 1
    assert outcome.problem(Disk.read(out.parent).tree(), returned=False) is None


@pytest.mark.parametrize("kind", [AtomicFile, AtomicFolder])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "x" * 256,
            "could not be written: File name too long; what was there before is unchanged; name another output",
        ),
        ("a\0b", "expected a path, found a zero byte in it; name another output"),
        ("none/out", "the folder .*none does not exist; make it first"),
        ("file/out", "the folder .*file does not exist; make it first"),
    ],
)
def test_names_that_cannot_be_are_refused_at_once(
    kind: type[AtomicFile] | type[AtomicFolder], name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=message):
        kind(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_without_a_name_is_refused_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(OutputError, match="expected the name of a folder, found a way to one; give its name"):
        AtomicFolder(Path(name))
    assert list(Path().iterdir()) == []


def test_every_error_of_the_system_gets_an_advice(tmp_path: Path) -> None:
    for number in errno.errorcode:
        with pytest.raises(OutputError) as caught, output_errors(tmp_path / "out"):
            raise OSError(number, os.strerror(number))
        message = (
            f"{tmp_path / 'out'}: could not be written: {os.strerror(number)}; what was there before is unchanged; "
        )
        assert str(caught.value).startswith(message)
        assert re.fullmatch(r"(free|name|check|raise) [\w ,]+", str(caught.value).removeprefix(message))
