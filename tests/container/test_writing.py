"""Writing: whole or not at all whatever fails, the same bytes every time, and nothing that a reader would refuse."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import Edited, checkpoints, make, make_tiny, make_wide

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.errors import OptionError, OutputError, TswError

OLD = b"what was there before"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A file that is there already; after the test nothing else is."""
    path = tmp_path / "folder" / "out.tsw"
    path.parent.mkdir()
    path.write_bytes(OLD)
    yield path
    assert names_in(path.parent) == ["out.tsw"]


class Failing:
    """A function of `os` that fails when it is called for the n-th time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException | None, nth: int = -1) -> None:
        self.calls = 0
        self._real = getattr(os, name)
        self._error = error
        self._nth = nth
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self._error is not None and self.calls == self._nth:
            raise self._error
        return self._real(*args, **options)


def writers(tiny: Path, wide: Path) -> dict[str, Callable[[Path], object]]:
    return {
        "pack": make_tiny,
        "pack mapped": lambda path: make_wide(path, rows=9, profile="mapped"),  # more than a buffer
        "bundle": lambda path: tsw.bundle([tiny], path),
        "extract": lambda path: tsw.extract(tiny, "task", path),
        "repack": lambda path: tsw.repack(wide, path, profile="mapped", threads=2),
    }


WRITERS = ["pack", "pack mapped", "bundle", "extract", "repack"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace"])
@pytest.mark.parametrize("writer", WRITERS)
def test_any_failure_leaves_what_was_there(
    writer: str, name: str, number: int, place: Path, tiny: Path, wide: Path, tmp_path: Path
) -> None:
    write = writers(tiny, wide)[writer]
    with pytest.MonkeyPatch.context() as patch:
        counting = Failing(patch, name, None)
        write(tmp_path / "counted.tsw")
    # The last fsync is that of the folder, after the file has become visible: see the next test.
    calls = counting.calls - (name == "fsync")
    assert calls == {"pwrite": calls, "fsync": 1, "replace": 1}[name]
    assert name != "pwrite" or calls >= 2
    for nth in range(1, calls + 1):
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, name, OSError(number, os.strerror(number)), nth)
            with pytest.raises(OutputError) as caught:
                write(place)
        assert str(caught.value).startswith(
            f"{place}: could not be written: {os.strerror(number)}; what was there before is unchanged; "
        )
        assert place.read_bytes() == OLD
        assert names_in(place.parent) == ["out.tsw"]


def test_a_folder_that_cannot_be_synced_is_said_to_hold_the_new_file(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, "fsync", OSError(errno.EIO, "Input/output error"), 2)
        with pytest.raises(OutputError, match="written whole and in place, but its folder could not be synced"):
            make_tiny(place)
    assert tsw.validate(place).ok


@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace"])
def test_an_interrupt_leaves_what_was_there(name: str, place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, name, KeyboardInterrupt(), 1)
        with pytest.raises(KeyboardInterrupt):
            make_tiny(place)
    assert place.read_bytes() == OLD


def test_a_folder_that_cannot_be_written_to_is_named(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, "open", PermissionError(errno.EACCES, "Permission denied"), 1)
        with pytest.raises(OutputError, match=r"out\.tsw: could not be written: Permission denied"):
            make_tiny(place)
    assert place.read_bytes() == OLD


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_named(place: Path) -> None:
    place.parent.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            make_tiny(place)
    finally:
        place.parent.chmod(0o755)
    assert place.read_bytes() == OLD


def test_short_writes_are_continued(tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    assert make_tiny(out).read_bytes() == tiny.read_bytes()


def test_a_parent_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*/none does not exist; make it first"):
        make_tiny(tmp_path / "none" / "out.tsw")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected the name of a file to write, found a folder"):
        make_tiny(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
def test_permissions_are_as_umask_says(umask: int, out: Path) -> None:
    before = os.umask(umask)
    try:
        make_tiny(out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~umask


def test_the_temporary_file_lies_beside_the_output_and_is_synced_before_it_is_renamed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_fsync(fd)

    def replace(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent == place.parent
        assert place.read_bytes() == OLD
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    make_tiny(place)
    assert steps == ["file", "rename", "folder"]
    assert tsw.validate(place).ok


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_the_same_input_gives_the_same_bytes_with_any_number_of_threads(profile: str, tmp_path: Path) -> None:
    files = [
        make(tmp_path / f"{number}.tsw", profile=profile, threads=threads).read_bytes()
        for number, threads in enumerate((1, 1, 2, 5))
    ]
    assert len(set(files)) == 1


def test_segments_of_a_mapped_file_are_aligned_and_plain(tmp_path: Path) -> None:
    path = make_wide(tmp_path / "wide.tsw", rows=5, profile="mapped")
    edited = Edited(path)
    end = 64
    data = path.read_bytes()
    with edited.segments() as table:
        assert (table["length"] >= 65536).sum() == 3
        for record in table:
            alignment = 4096 if record["length"] >= 65536 else 64
            offset = int(record["offset"])
            assert offset == -(-end // alignment) * alignment
            assert not any(data[end:offset])
            assert record["codec"] == lay.Codec.BITMAP
            end = offset + int(record["length"])
        # Masks of a large tensor lie end to end.
        assert int(table["offset"][1]) == int(table["offset"][0]) + (1 << 17)
    start = int.from_bytes(data[40:48], "little")
    assert start == -(-end // 64) * 64
    assert not any(data[end:start])


def test_an_archive_has_no_padding(archive: Path) -> None:
    end = 64
    edited = Edited(archive)
    with edited.segments() as table:
        for record in table:
            assert record["offset"] == end
            end += int(record["length"])
    assert end == 64 + len(edited.body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "a\nb"}, "a control character"),
        ({"task": ""}, "0 bytes instead of 1 to 1024"),
        ({"task": "x" * 1025}, "1025 bytes"),
        ({"task": "e\u0301"}, "NFC"),
        ({"metadata": {str(number): "" for number in range(4097)}}, r"a \.tsw file cannot hold this.*TSW-305"),
        ({"metadata": {"a": 1}}, r"a \.tsw file cannot hold this: metadata\['a'\]: expected str.*TSW-307"),
        ({"metadata": {"a": "\ud800"}}, "cannot be encoded"),
        ({"base_id": 5}, r"cannot hold this: base\.id: expected str.*TSW-307"),
        ({"base_revision": b"x"}, r"cannot hold this: base\.revision: expected str.*TSW-307"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_anything_is_visible(
    options: dict[str, Any], message: str, place: Path
) -> None:
    with pytest.raises(TswError, match=message):
        make_tiny(place, **options)
    assert place.read_bytes() == OLD


def test_more_dimensions_than_the_format_has_are_refused(place: Path) -> None:
    base = np.zeros((1,) * 17, np.float32)
    with pytest.raises(TswError, match=r"ndim: expected at most 16, found 17 \[TSW-403\]"):
        tsw.pack({"w": base}, {"w": base + 1}, place)
    assert place.read_bytes() == OLD


def test_more_aliases_than_the_format_has_are_refused(place: Path) -> None:
    base, tuned = np.zeros(3, np.float32), np.ones(3, np.float32)
    names = [f"{number}" for number in range(4098)]
    with pytest.raises(TswError, match="at most 4096 members, found 4097"):
        tsw.pack(dict.fromkeys(names, base), dict.fromkeys(names, tuned), place)
    assert place.read_bytes() == OLD


def test_what_is_packed_does_not_overwrite_its_inputs(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "a.tsw")
    before = path.read_bytes()
    for call in (
        lambda: tsw.bundle([path], path),
        lambda: tsw.extract(path, "task", path),
        lambda: tsw.repack(path, path, profile="mapped"),
    ):
        with pytest.raises(OutputError, match="the output is one of the inputs; name another output"):
            call()
    assert path.read_bytes() == before


def test_an_unknown_profile_is_named(out: Path, tiny: Path) -> None:
    base, expert = checkpoints()
    with pytest.raises(OptionError, match="profile: expected archive, mapped, found 'fast'"):
        tsw.pack(base, expert, out, profile="fast")
    with pytest.raises(OptionError, match="profile: expected archive or mapped, found 'fast'"):
        tsw.repack(tiny, out, profile="fast")
    assert not out.exists()
