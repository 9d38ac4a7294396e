"""Links and swaps while something is published, and files that change under their readers.

What is stated here: a symbolic link under the final name is replaced, never followed; nothing is written through a link
under the temporary name; a folder that is exchanged meanwhile gets nothing; readers of a replaced file keep what they have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crash_disk import Disk
from crash_jobs import JOBS, Inputs, unfinished

import tswitch_format as tsw
from tswitch_format import atomic
from tswitch_format.atomic import AtomicFile, AtomicFolder
from tswitch_format.errors import OutputError, TruncatedError


def publish(path: Path, content: bytes = b"new") -> None:
    with AtomicFile(path) as file:
        file.write(content)
        file.commit()


def publish_folder(path: Path) -> None:
    folder = AtomicFolder(path)
    try:
        folder.open("a").write_at(0, b"new")
        folder.commit()
    finally:
        folder.abort()


def test_a_link_to_a_file_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "out").symlink_to("target")
    publish(tmp_path / "out")
    assert not (tmp_path / "out").is_symlink()
    assert Disk.read(tmp_path).tree() == {"out": b"new", "target": b"target"}


def test_a_dangling_link_is_replaced_and_its_target_not_made(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    publish(tmp_path / "out")
    assert not (tmp_path / "out").is_symlink()
    assert Disk.read(tmp_path).tree() == {"out": b"new"}


def test_a_link_to_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("out")
    publish(tmp_path / "out")
    assert Disk.read(tmp_path).tree() == {"out": b"new"}


def test_a_second_name_of_the_old_file_keeps_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    os.link(tmp_path / "out", tmp_path / "other")
    publish(tmp_path / "out")
    assert Disk.read(tmp_path).tree() == {"other": b"old", "out": b"new"}


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to("folder")
    with pytest.raises(OutputError, match="expected the name of a file to write, found a folder"):
        publish(tmp_path / "out")
    assert Disk.read(tmp_path / "folder").tree() == {}
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("target", ["folder", "nowhere", "out"])
def test_a_folder_is_not_put_in_the_place_of_a_link_and_that_is_said_at_once(target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to(target)
    with pytest.raises(OutputError, match="found a symbolic link; name the folder it points to"):
        AtomicFolder(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out"]


@pytest.mark.parametrize("kind", [AtomicFile, AtomicFolder])
@pytest.mark.parametrize("planted", ["link to a file", "dangling link", "link to a folder", "file"])
def test_nothing_is_written_through_what_was_planted_under_the_temporary_name(
    kind: type[AtomicFile] | type[AtomicFolder], planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name cannot be guessed; were it, O_EXCL and mkdir would refuse it."""
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "victim").write_bytes(b"victim")
    (tmp_path / "folder").mkdir()
    place = tmp_path / ".out.000000000000.tmp"
    if planted == "file":
        place.write_bytes(b"planted")
    else:
        place.symlink_to(
            {"link to a file": "victim", "dangling link": "nowhere", "link to a folder": "folder"}[planted]
        )
    before = sorted(os.scandir(tmp_path), key=lambda entry: entry.name)
    with pytest.raises(OutputError, match=r"out: could not be written: File exists"):
        kind(tmp_path / "out")
    after = sorted(os.scandir(tmp_path), key=lambda entry: entry.name)
    assert [entry.name for entry in after] == [entry.name for entry in before]
    assert (tmp_path / "victim").read_bytes() == b"victim"
    assert list((tmp_path / "folder").iterdir()) == []


def test_temporary_names_cannot_be_guessed(tmp_path: Path) -> None:
    names = {atomic._temporary(tmp_path / "out").name for _ in range(100)}
    assert len(names) == 100
    assert all(len(name.split(".")[2]) == 12 for name in names)  # 48 bits from the system's generator


@pytest.mark.parametrize("late", ["file", "folder", "link"])
def test_what_takes_the_final_name_meanwhile(late: str, tmp_path: Path) -> None:
    """A file or link is replaced, by the last commit as ever; a folder is not."""
    out = tmp_path / "out"
    with AtomicFile(out) as file:
        file.write(b"new")
        if late == "file":
            out.write_bytes(b"other")
        elif late == "link":
            (tmp_path / "target").write_bytes(b"target")
            out.symlink_to("target")
        else:
            out.mkdir()
        if late == "folder":
            with pytest.raises(OutputError, match="Is a directory; what was there before is unchanged; name another"):
                file.commit()
            assert list(tmp_path.iterdir()) == [out]
            assert list(out.iterdir()) == []
            return
        file.commit()
    assert not out.is_symlink()
    assert out.read_bytes() == b"new"
    assert late != "link" or (tmp_path / "target").read_bytes() == b"target"
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("late", ["file", "full folder", "link"])
def test_a_folder_is_put_in_no_place_that_was_taken_meanwhile(late: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = AtomicFolder(out)
    folder.open("a").write_at(0, b"new")
    if late == "file":
        out.write_bytes(b"other")
    elif late == "link":
        out.symlink_to(".")
    else:
        out.mkdir()
        (out / "b").write_bytes(b"other")
    with pytest.raises(OutputError, match="what was there before is unchanged; name another output"):
        folder.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (out / "a").exists()


def test_the_parent_folder_is_exchanged_meanwhile(tmp_path: Path) -> None:
    """Its successor gets nothing; the temporary file stays where it was moved to."""
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "out").write_bytes(b"old")
    with AtomicFile(parent / "out") as file:
        file.write(b"new")
        parent.rename(tmp_path / "moved")
        parent.mkdir()
        (parent / "out").write_bytes(b"other")
        with pytest.raises(OutputError, match="No such file or directory"):
            file.commit()
    assert Disk.read(parent).tree() == {"out": b"other"}
    assert (tmp_path / "moved" / "out").read_bytes() == b"old"
    assert len(unfinished(tmp_path / "moved")) == 1


def test_the_parent_is_a_link_that_is_turned_meanwhile(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "out").write_bytes(name.encode())
    parent = tmp_path / "parent"
    parent.symlink_to("a")
    with AtomicFile(parent / "out") as file:
        file.write(b"new")
        parent.unlink()
        parent.symlink_to("b")
        with pytest.raises(OutputError, match="No such file or directory"):
            file.commit()
    assert (tmp_path / "a" / "out").read_bytes() == b"a"
    assert Disk.read(tmp_path / "b").tree() == {"out": b"b"}


@pytest.mark.parametrize("profile", ["archive", "mapped"])
@pytest.mark.parametrize("backend", ["auto", "pread", "mmap"])
def test_readers_of_a_replaced_file_keep_the_old_content(
    profile: str, backend: str, inputs: Inputs, tmp_path: Path
) -> None:
    out = tmp_path / "out.tsw"
    tsw.repack(inputs.one, out, profile=profile)
    names = ["a.weight", "b.weight", "c.bias"]
    with tsw.open(out) as file:
        before = [file.switch(name).delta().copy() for name in names]
    with tsw.open(out, backend=backend) as file:  # type: ignore[arg-type]
        file.switch(names[0])
        tsw.repack(inputs.two, out, profile=profile)
        after = [file.switch(name).delta() for name in names]
        assert file.tasks == ["one"]
    for old, new in zip(before, after, strict=True):
        assert old.tobytes() == new.tobytes()
    with tsw.open(out) as file:
        assert file.tasks == ["two"]


READ = """
import sys
from pathlib import Path
import tswitch_format as tsw
path, backend = Path(sys.argv[1]), sys.argv[2]
with tsw.open(path, backend=backend) as file:
    with path.open("r+b") as other:
        other.truncate(64)
    print("truncated", flush=True)
    for name in file.keys():
        switch = file.switch(name)
        switch.data() if switch.kind == "dense" else switch.delta()
"""


def read_truncated(path: Path, backend: str) -> subprocess.CompletedProcess[str]:
    """Read a file, in a process of its own, that is cut after it was opened."""
    found = subprocess.run([sys.executable, "-c", READ, path, backend], capture_output=True, text=True, check=False)
    assert found.stdout == "truncated\n", found.stderr
    return found


@pytest.mark.parametrize(
    ("profile", "backend"),
    [(profile, backend) for profile in ("archive", "mapped") for backend in ("auto", "pread", "mmap")],
)
def test_a_file_that_is_cut_under_its_reader_gives_an_error(
    profile: str, backend: str, inputs: Inputs, tmp_path: Path
) -> None:
    out = tmp_path / "out.tsw"
    tsw.repack(inputs.one, out, profile=profile)
    found = read_truncated(out, backend)
    assert found.returncode == 1
    last = found.stderr.splitlines()[-1]
    assert TruncatedError.__name__ in last
    assert str(out) in last
    assert "[TSW-105]" in last


HOLD = """
import sys
from pathlib import Path
from tswitch_format.container.reader import Container
path = Path(sys.argv[1])
plane = Container(path, backend="mmap").entry(0, 0).mask_packed(0)
with path.open("r+b") as other:
    other.truncate(64)
print("truncated", flush=True)
plane.sum()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what happens is up to the system")
def test_a_mapped_plane_that_is_cut_while_it_is_held_may_end_the_process(tmp_path: Path) -> None:
    """Documented: files are published by rename and never changed, and whoever cuts one pulls away what is mapped."""
    out = tmp_path / "out.tsw"
    tuned = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    tsw.pack({"w": np.zeros_like(tuned)}, {"w": tuned}, out, profile="mapped", threads=1)
    found = subprocess.run([sys.executable, "-c", HOLD, out], capture_output=True, text=True, check=False)
    assert found.stdout == "truncated\n", found.stderr
    assert found.returncode == -signal.SIGBUS


def test_archives_are_read_without_a_mapping(inputs: Inputs, tmp_path: Path) -> None:
    tsw.repack(inputs.one, tmp_path / "mapped.tsw", profile="mapped")
    for path, backend in ((inputs.one, "pread"), (tmp_path / "mapped.tsw", "mmap")):
        with tsw.open(path) as file:
            assert file.container.backend == backend


def test_jobs_write_to_links_as_files_do(inputs: Inputs, tmp_path: Path) -> None:
    job = JOBS["pack"]
    out = job.prepare(inputs, tmp_path / "here")
    (tmp_path / "target").write_bytes(b"target")
    out.symlink_to(tmp_path / "target")
    job.write(inputs, out)
    assert not out.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"target"
    assert tsw.validate(out).ok
