"""Files that are replaced while they are opened, lying digests and lengths, special files, huge tensors, bundles."""

from __future__ import annotations

import hashlib
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from container_files import Edited, checkpoints, content, edit, fill, make, make_tiny, refused

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.container.reader import Container
from tswitch_format.errors import BaseMismatchError, FormatError, TswError

# --- one file from beginning to end ---------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the index is read", "after opening"])
@pytest.mark.parametrize("how", ["replaced", "removed"])
@pytest.mark.parametrize("profile", ["mapped", "archive"])
def test_a_file_that_is_replaced_or_removed_is_read_on(
    profile: str, how: str, moment: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(out, profile=profile)
    other = make_tiny(tmp_path / "other.tsw", profile=profile)
    wanted = content(out)
    real = Container._read_index

    def act() -> None:
        if how == "replaced":
            other.replace(out)
        else:
            out.unlink()

    def read_index(self: Container) -> Any:
        if moment.startswith("before"):
            act()
        return real(self)

    monkeypatch.setattr(Container, "_read_index", read_index)
    with tsw.open(out, backend="auto") as file:
        if moment.startswith("after"):
            act()
        assert file.backend == ("mmap" if profile == "mapped" else "pread")
        for (task, name), held in wanted.items():
            switch = file.switch(name, task)
            assert (switch.kind, switch.dtype, switch.shape) == held[:3]
            if switch.kind == "ternary":
                assert (switch.sign().tobytes(), switch.delta().tobytes(), switch.knob) == held[3:]
            elif switch.kind == "dense":
                assert switch.data().tobytes() == held[3]
    assert out.exists() == (how == "replaced")


# --- digests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [lay.Kind.TERNARY, lay.Kind.DENSE])
@pytest.mark.parametrize("profile", ["archive", "mapped"])
@pytest.mark.parametrize("threads", [1, 2])
def test_repacking_refuses_an_entry_whose_digest_is_another(
    kind: lay.Kind, profile: str, threads: int, archive: Path, tmp_path: Path, out: Path
) -> None:
    at = -1

    def change(file: Edited) -> None:
        nonlocal at
        with file.entries() as table:
            at = int(np.flatnonzero(table["kind"] == kind)[-1])
            table["sha256"][at] = np.void(bytes(range(32)))
        del file.doc["content_id"]

    wrong = edit(archive, tmp_path / "wrong.tsw", change)
    with tsw.open(wrong) as file:  # opening does not decode
        assert file.tasks == ["one"]
    with pytest.raises(FormatError, match=rf"tasks\[0\]\.entries\[{at}\]\.sha256.*\[TSW-801\]") as caught:
        tsw.repack(wrong, out, profile=profile, threads=threads)
    assert caught.value.rule == "TSW-801"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.tsw"]


# --- lengths that lie -----------------------------------------------------------------------------------------


def sparse(path: Path, index_length: int, decoded: int) -> Path:
    """A file with a hole for an index, and a right frame."""
    common = {
        "index_offset": lay.FRAME,
        "index_length": index_length,
        "index_decoded_length": decoded,
        "index_encoding": lay.Encoding.ZSTD,
    }
    length = index_length + 2 * lay.FRAME
    head, tail = np.zeros((), lay.PROLOGUE), np.zeros((), lay.TRAILER)
    fill(head, {"magic": lay.MAGIC, "major": 1, "file_length": length, **common})
    fill(tail, {"end_magic": lay.END_MAGIC, "index_sha256": hashlib.sha256().digest(), **common})
    head["crc32c"], tail["crc32c"] = crc32c.crc32c(head.tobytes()[:60]), crc32c.crc32c(tail.tobytes()[:56])
    with path.open("wb") as file:
        file.write(head.tobytes())
        file.truncate(length - lay.FRAME)
        file.seek(0, os.SEEK_END)
        file.write(tail.tobytes())
    return path


@pytest.mark.parametrize(
    ("length", "decoded"), [(1 << 32, 1000), (1 << 32, lay.MAX_INDEX), (1 << 26, 1 << 20), (1 << 16, 1)]
)
def test_an_index_far_longer_than_it_decodes_to_is_not_read(length: int, decoded: int, out: Path) -> None:
    sparse(out, length, decoded)
    tracemalloc.start()
    try:
        began = time.perf_counter()
        error = refused(out, "TSW-108")
        took = time.perf_counter() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.field == "index length"
    assert error.found == str(length)
    assert error.offset == 48
    assert peak < 10 << 20
    assert took < 2


def test_an_index_of_the_most_that_its_length_allows_is_read(out: Path) -> None:
    decoded = 1000
    most = decoded + (decoded >> 8) + 1024
    refused(sparse(out, most, decoded), "TSW-204")  # read, and not what the trailer says
    refused(sparse(out, most + 1, decoded), "TSW-108")


# --- what is no file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "pread", "mmap"])
@pytest.mark.parametrize("what", ["pipe", "link to a pipe", "zero byte", "/dev/zero"])
def test_what_is_no_regular_file_is_refused_at_once(what: str, backend: Any, tmp_path: Path) -> None:
    path, message = tmp_path / "a.tsw", r": expected a regular file, found something else; save it as a file first"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif what == "zero byte":
        path, message = tmp_path / "a\0b.tsw", r"a\\x00b\.tsw': could not be read: .*null.*; check the path"
    else:
        path = Path(what)
    with pytest.raises(TswError, match=message) as caught:
        tsw.open(path, backend=backend)
    assert not isinstance(caught.value, FormatError)
    for level in ("structure", "checksums", "full"):
        report = tsw.validate(path, level)  # type: ignore[arg-type]
        assert (report.ok, report.findings, report.unreadable) == (False, (), str(caught.value))


# --- bundles --------------------------------------------------------------------------------------------------


def test_a_bundle_puts_metadata_together_and_the_first_file_counts(tmp_path: Path, out: Path) -> None:
    said = [{"a": "1", "both": "first"}, {"b": "2", "both": "second", "late": "second"}, {"c": "3", "late": "third"}]
    files = [
        make(tmp_path / f"{n}.tsw", n, task=f"t{n}", metadata=metadata, base_id=f"base/{n}")
        for n, metadata in enumerate(said)
    ]
    tsw.bundle(files, out)
    with tsw.open(out) as file:
        assert dict(file.metadata) == {"a": "1", "b": "2", "c": "3", "both": "first", "late": "second"}
        assert (file.base.id, file.tasks) == ("base/0", ["t0", "t1", "t2"])
    tsw.bundle(files[::-1], out)
    with tsw.open(out) as file:
        assert dict(file.metadata) == {"a": "1", "b": "2", "c": "3", "both": "second", "late": "third"}
        assert (file.base.id, file.tasks) == ("base/2", ["t2", "t1", "t0"])
    assert tsw.validate(out).ok


def test_files_whose_aliases_have_other_targets_are_not_bundled(tmp_path: Path, out: Path) -> None:
    files = []
    for target in ("a", "b"):
        base = {name: np.ones((2, 3), np.float32) for name in ("a", "b")}  # the same content, so only the ties differ
        expert = {name: array * 2 for name, array in base.items()}
        for side in (base, expert):
            side["z"] = side[target]
        files.append(tmp_path / f"{target}.tsw")
        tsw.pack(base, expert, files[-1], task=target)
        with tsw.open(files[-1]) as file:
            assert dict(file.base.aliases) == {"z": target}
    for order in (files, files[::-1]):
        with pytest.raises(BaseMismatchError, match=r"tensor 'z': expected the one of .*; a bundle holds tasks of one"):
            tsw.bundle(order, out)
    assert not out.exists()


# --- sizes beyond 64 bits -------------------------------------------------------------------------------------


def test_elements_of_many_huge_tensors_are_counted_right(tiny: Path, out: Path) -> None:
    count = (1 << 15) + 3

    def change(file: Edited) -> None:
        table = np.zeros(count, lay.TENSOR)
        table["name_length"], table["ndim"], table["dtype"] = 5, 2, dtype
        file.doc["base"] = {
            "aliases": {},
            "dims": np.tile(np.array([1 << 20, 1 << 28], "<u8"), count).tobytes(),
            "names": "".join(f"{number:05d}" for number in range(count)).encode(),
            "tensors": table.tobytes(),
        }
        file.body = bytearray()
        file.doc["tasks"] = []
        del file.doc["content_id"]

    with Edited(tiny).tensors() as records:
        dtype = int(records["dtype"][0])  # F32
    edit(tiny, out, change)
    assert tsw.validate(out).ok
    with tsw.open(out) as file:
        assert file.base.tensors == count
        assert file.base.params == count << 48 > 1 << 63
        assert file.base.nbytes == 4 * count << 48
        assert file.base.spec("32768").elements == 1 << 48


def test_the_model_of_these_tests_is_counted_right(archive: Path) -> None:
    base, _ = checkpoints()
    with tsw.open(archive) as file:
        del base["a.tied"]
        assert file.base.params == sum(array.size for array in base.values())
        assert file.base.nbytes == sum(array.nbytes for array in base.values())
