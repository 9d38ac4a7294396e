"""Files made to cost much: each trips its rule or is accepted, within the memory that a reader may take (spec/security.md)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import tswitch_format as tsw
from fuzz import attack_cost
from fuzz.attacks import ATTACKS, LARGEST, document, sealed, tensors
from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c
from tswitch_format.codecs import bits, plane
from tswitch_format.container.report import Report
from tswitch_format.errors import FormatError

# Compressing these below 1 MiB takes seconds each.
SLOW = {
    "everything at once",
    "largest tensors",
    "last name twice",
    "most aliases",
    "most entries",
    "most rows",
    "most tensors",
    "most texts",
    "most vectors",
    "names in both lists",
    "one bad name a block",
    "vectors of no tensor",
    "vectors of other tensors",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ATTACKS])
def test_an_attack_trips_its_rule_or_is_read_within_the_memory_of_the_bound(name: str) -> None:
    rule, make = ATTACKS[name]
    data = make()
    assert len(data) < LARGEST
    cost = attack_cost.measure(data, "structure", 60)
    assert cost.unreadable is None
    assert cost.peak is not None
    assert cost.peak <= attack_cost.MEMORY
    assert cost.rules == () if rule is None else rule in cost.rules


@pytest.mark.parametrize("name", ["every entry wrong", "every segment wrong", "keys nobody knows", "names to reorder"])
def test_messages_on_an_attack_are_short_lines(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tsw"
    path.write_bytes(ATTACKS[name][1]())
    findings = tsw.validate(path, "structure").findings
    assert 0 < len(findings) <= Report.MOST
    assert all(len(one.message) < 2048 and one.message.isprintable() for one in findings)


def test_texts_up_to_their_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsw"
    others = b"aliasesbaseextrametadataprofilearchivetaskswriter" + 2 * b"dimsnamestensors"
    most = lay.MAX_TEXT - len(others)
    for length, rule in ((most, None), (most + 1, "TSW-305")):
        path.write_bytes(sealed(document(writer="a" * length)))
        assert {one.rule for one in tsw.validate(path).findings} == ({rule} if rule else set())


def test_names_that_are_not_ascii_are_read_up_to_their_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.tsw"
    names = [f"{number:04}".encode() + "é".encode() * 510 for number in range(lay.MAX_WIDE_NAMES // 1024)]
    for aliases, rule in (({}, None), ({"é": 0}, "TSW-403")):
        path.write_bytes(sealed(document(base=tensors(names, aliases=aliases))))
        assert {one.rule for one in tsw.validate(path).findings} == ({rule} if rule else set())


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("ones", [False, True])
def test_constant_planes_are_those_of_their_positions(n: int, ones: bool) -> None:
    codec, count = (lay.Codec.ONES, n) if ones else (lay.Codec.ZEROS, 0)
    packed = plane.decode_packed(codec, 0, memoryview(b""), n, count)
    assert packed.tobytes() == bits.pack_positions(np.arange(count), n).tobytes()


def sparse(path: Path, length: int) -> None:
    """A file of `length` bytes, of which few take room, with its index at the end and a hole before it."""
    small = sealed(document())
    stored = len(small) - 2 * lay.FRAME
    offset = length - lay.FRAME - stored
    head = bytearray(small[: lay.FRAME])
    head[32:48] = struct.pack("<QQ", length, offset)
    head[60:] = struct.pack("<I", crc32c(bytes(head[:60])))
    tail = bytearray(small[-lay.FRAME :])
    tail[:8] = struct.pack("<Q", offset)
    tail[56:60] = struct.pack("<I", crc32c(bytes(tail[:56])))
    with path.open("wb") as file:
        file.write(head)
        file.seek(offset)
        file.write(small[lay.FRAME : -lay.FRAME] + tail)


@pytest.mark.parametrize("length", [1 << 40, (1 << 63) - 1])
def test_a_sparse_file_of_any_size_is_refused_at_once(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tsw"
    try:
        sparse(path, length)
    except OSError:
        pytest.skip("no file of that size here")
    for level in ("structure", "checksums", "full"):
        assert {one.rule for one in tsw.validate(path, level).findings} == {"TSW-604"}
    for backend in ("auto", "pread"):
        with pytest.raises(FormatError, match="TSW-604"):
            tsw.open(path, backend=backend)
    with pytest.raises(tsw.TswError):
        tsw.open(path, backend="mmap")


def test_names_that_look_like_paths_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.tsw"
    names = sorted([b"../../etc/passwd", b"/etc/passwd", b"C:\\x", b".", b"a/b"])
    path.write_bytes(sealed(document(base=tensors(names, shape=(0,), aliases={}))))
    with tsw.open(path) as file:
        assert file.base.keys() == [name.decode() for name in names]
    assert list(tmp_path.iterdir()) == [path]
