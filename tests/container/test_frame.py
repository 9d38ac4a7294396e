"""Prologue and trailer (spec sections 3 and 4): every field, every cut, every flipped bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import Edited, edit, fill, refused

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.errors import FormatError, NotTswError, TruncatedError, UnsupportedError

TEXT_DAMAGE = "it was damaged by a transfer in text mode: transfer it again in binary mode"


def with_fields(
    tiny: Path, out: Path, *, prologue: dict[str, Any] | None = None, trailer: dict[str, Any] | None = None
) -> Path:
    """The tiny file with other fields in its frame, and right checksums."""

    def change(file: Edited) -> None:
        file.prologue, file.trailer = prologue or {}, trailer or {}

    return edit(tiny, out, change)


def test_a_file_taken_apart_and_put_together_is_the_same_content(tiny: Path, out: Path) -> None:
    edit(tiny, out)
    assert tsw.validate(out).ok
    with tsw.open(tiny) as before, tsw.open(out) as after:
        assert before.content_id == after.content_id


def test_the_frame_is_as_the_tables_of_the_specification_say(tiny: Path) -> None:
    data = tiny.read_bytes()
    assert data[:8] == b"\x89TSW\r\n\x1a\n"
    assert data[8:12] == bytes([1, 0, 0, 0])
    assert int.from_bytes(data[32:40], "little") == len(data)
    offset, length = int.from_bytes(data[40:48], "little"), int.from_bytes(data[48:56], "little")
    assert offset + length + 64 == len(data)
    assert data[40:56] == data[-64:-48]
    assert data[12:16] == data[-48:-44]
    assert data[56] == data[-44]
    assert data[57:60] == data[-43:-40] == bytes(3)
    assert data[-4:] == b"WST\n"
    assert data[16:32] == bytes(16)


@pytest.mark.parametrize("rest", [b"x", b"PK\x03\x04" + bytes(200), bytes(500), b"\x89PNG\r\n\x1a\n" + bytes(200)])
def test_another_file_is_no_tsw_file(rest: bytes, out: Path) -> None:
    out.write_bytes(rest)
    error = refused(out, "TSW-101", NotTswError)
    assert error.offset == 0
    assert "expected a TSW file (89 54 53 57 0d 0a 1a 0a)" in str(error)
    assert error.found == rest[:8].hex(" ")


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"\r\n", b"\n"), (b"\n", b"\r\n"), (b"\x1a\n", b"\x1a\r\n"), (b"\x89", b"\x09")],
    ids=["CR LF to LF", "LF to CR LF", "lone LF to CR LF", "7 bits"],
)
def test_damage_by_a_transfer_in_text_mode_is_named(old: bytes, new: bytes, tiny: Path, out: Path) -> None:
    out.write_bytes(tiny.read_bytes().replace(old, new))
    error = refused(out, "TSW-101", NotTswError)
    assert str(error).endswith(TEXT_DAMAGE)


def test_a_git_lfs_pointer_is_named(out: Path) -> None:
    out.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234567\n")
    error = refused(out, "TSW-101", NotTswError)
    assert "found a Git LFS pointer" in str(error)
    assert "git lfs pull" in error.advice


def test_a_file_cut_anywhere_is_truncated(tiny: Path, out: Path) -> None:
    data = tiny.read_bytes()
    for length in range(1, len(data)):
        out.write_bytes(data[:length])
        with pytest.raises(TruncatedError) as caught:
            tsw.open(out)
        error = caught.value
        assert error.rule == ("TSW-100" if length < 128 else "TSW-105")
        assert error.found == str(length)
        assert "the file is incomplete" in str(error)
        report = tsw.validate(out)
        assert [finding.rule for finding in report.findings] == [error.rule]
    assert refused(out, "TSW-105", TruncatedError).expected == f"{len(data)} bytes as the prologue says"


@pytest.mark.parametrize("more", [b"\0", b"WST\n", bytes(5000)])
def test_a_file_with_something_after_it_is_refused_but_not_called_cut(more: bytes, tiny: Path, out: Path) -> None:
    out.write_bytes(tiny.read_bytes() + more)
    error = refused(out, "TSW-105")
    assert error.found == str(tiny.stat().st_size + len(more))
    assert "incomplete" not in str(error)


def test_a_file_appended_to_itself_is_refused(tiny: Path, out: Path) -> None:
    out.write_bytes(tiny.read_bytes() * 2)
    refused(out, "TSW-105")


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found(tiny: Path, out: Path, step: int) -> None:
    data = bytearray(tiny.read_bytes())
    accepted = []
    for bit in range(0, len(data) * 8, step):  # 5 and 8 have no common divisor: bits of all places in a byte
        data[bit // 8] ^= 1 << bit % 8
        out.write_bytes(data)
        report = tsw.validate(out, "full")
        if report.ok or report.unreadable or not report.findings[0].rule.startswith("TSW-"):
            accepted.append(bit)
        data[bit // 8] ^= 1 << bit % 8
    assert accepted == []


def test_every_flipped_bit_of_padding_is_found(mapped: Path, out: Path) -> None:
    data = bytearray(mapped.read_bytes())
    edited = Edited(mapped)
    with edited.segments() as table:
        used = {at for record in table for at in range(int(record["offset"]), int(record["offset"] + record["length"]))}
    holes = [at for at in range(64, 64 + len(edited.body)) if at not in used]
    assert len(holes) > 500
    for at in holes[::13]:
        data[at] ^= 0x10
        out.write_bytes(data)
        (finding,) = tsw.validate(out, "checksums").findings
        assert (finding.rule, finding.offset, finding.found) == ("TSW-702", at, "0x10")
        assert tsw.validate(out, "structure").ok
        data[at] ^= 0x10


@pytest.mark.parametrize("major", [0, 2, 65535])
def test_another_major_version_is_unsupported_even_with_another_checksum(major: int, tiny: Path, out: Path) -> None:
    for crc in ({}, {"crc32c": 5}):
        error = refused(with_fields(tiny, out, prologue={"major": major, **crc}), "TSW-102", UnsupportedError)
        assert (error.offset, error.found) == (8, str(major))
        assert "update tswitch-format" in str(error)


def test_an_unknown_required_feature_is_named_by_its_bit(tiny: Path, out: Path) -> None:
    for features, found in ((1, "bit 0"), (1 << 5, "bit 5"), (1 << 63 | 2, "bit 1, 63")):
        error = refused(with_fields(tiny, out, prologue={"required_features": features}), "TSW-103", UnsupportedError)
        assert (error.found, error.offset) == (found, 16)


def test_optional_features_are_ignored(tiny: Path, out: Path) -> None:
    with_fields(tiny, out, prologue={"optional_features": (1 << 64) - 1})
    assert tsw.validate(out).ok
    with tsw.open(out) as file:
        assert file.keys() == ["w"]


def test_a_wrong_checksum_of_the_prologue_is_found_before_its_features(tiny: Path, out: Path) -> None:
    error = refused(with_fields(tiny, out, prologue={"crc32c": 1, "required_features": 1}), "TSW-104")
    assert (error.offset, error.expected) == (60, "00000001")


def test_another_file_length_is_found(tiny: Path, out: Path) -> None:
    length = tiny.stat().st_size
    edit(tiny, out)
    refused(with_fields(tiny, out, prologue={"file_length": 1 << 63}), "TSW-105", TruncatedError)
    refused(with_fields(tiny, out, prologue={"file_length": length // 2}), "TSW-105")


@pytest.mark.parametrize("encoding", [2, 255])
def test_an_unknown_index_encoding_is_unsupported(encoding: int, tiny: Path, out: Path) -> None:
    error = refused(with_fields(tiny, out, prologue={"index_encoding": encoding}), "TSW-106", UnsupportedError)
    assert (error.found, error.offset) == (str(encoding), 56)


@pytest.mark.parametrize("reserved", [b"\1\0\0", b"\0\0\x80"])
def test_reserved_bytes_of_the_frame_must_be_zero(reserved: bytes, tiny: Path, out: Path) -> None:
    assert refused(with_fields(tiny, out, prologue={"reserved": reserved}), "TSW-107").field == "prologue.reserved"
    error = refused(with_fields(tiny, out, trailer={"reserved": reserved}), "TSW-107")
    assert error.field == "trailer.reserved"
    assert error.offset == out.stat().st_size - 64 + 21


@pytest.mark.parametrize("decoded", [0, 1, (1 << 26) + 1, (1 << 32) - 1])
def test_the_decoded_length_of_a_raw_index_is_its_length(decoded: int, tiny: Path, out: Path) -> None:
    error = refused(with_fields(tiny, out, prologue={"index_decoded_length": decoded}), "TSW-108")
    assert (error.offset, error.found) == (12, str(decoded))


@pytest.mark.parametrize("decoded", [0, (1 << 26) + 1, (1 << 32) - 1])
def test_the_decoded_length_of_a_compressed_index_is_bounded(decoded: int, tiny: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.encoding = 1
        file.prologue = file.trailer = {"index_decoded_length": decoded}

    refused(edit(tiny, out, change), "TSW-108")


@pytest.mark.parametrize("wrong", [-1, 1])
def test_the_decoded_length_of_a_compressed_index_is_that_of_its_frame(wrong: int, tiny: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.encoding = 1
        file.prologue = file.trailer = {"index_decoded_length": len(file.document) + wrong}

    refused(edit(tiny, out, change), "TSW-707")


@pytest.mark.parametrize(
    "fields",
    [
        {"index_offset": 0},
        {"index_offset": 63},
        {"index_length": 0, "index_decoded_length": 0, "index_encoding": 1},
        {"index_offset": (1 << 64) - 1},
        {"index_length": (1 << 64) - 1, "index_encoding": 1},
        {"index_offset": (1 << 64) - 64, "index_length": 128, "index_encoding": 1},
    ],
)
def test_the_index_lies_before_the_trailer(fields: dict[str, int], tiny: Path, out: Path) -> None:
    rule = "TSW-108" if fields.get("index_decoded_length") == 0 else "TSW-203"
    refused(with_fields(tiny, out, prologue=fields, trailer=fields), rule)


@pytest.mark.parametrize("shift", [-1, 1])
def test_the_index_ends_where_the_trailer_begins(shift: int, tiny: Path, out: Path) -> None:
    edited = Edited(tiny)
    edited.write(out)
    fields = {"index_offset": 64 + len(edited.body) + shift}
    error = refused(with_fields(tiny, out, prologue=fields, trailer=fields), "TSW-203")
    assert error.offset == 40


def test_the_end_magic_is_checked(tiny: Path, out: Path) -> None:
    error = refused(with_fields(tiny, out, trailer={"end_magic": b"WST\r"}), "TSW-201")
    assert (error.expected, error.found) == ("57 53 54 0a", "57 53 54 0d")
    assert error.offset == out.stat().st_size - 4


def test_the_checksum_of_the_trailer_is_checked(tiny: Path, out: Path) -> None:
    error = refused(with_fields(tiny, out, trailer={"crc32c": 7}), "TSW-202")
    assert error.offset == out.stat().st_size - 8


def test_the_digest_of_the_index_is_checked(tiny: Path, out: Path) -> None:
    error = refused(with_fields(tiny, out, trailer={"index_sha256": bytes(31) + b"\1"}), "TSW-204")
    assert error.expected == bytes(31).hex() + "01"


@pytest.mark.parametrize("name", ["index_offset", "index_length", "index_decoded_length", "index_encoding"])
def test_the_trailer_agrees_with_the_prologue(name: str, tiny: Path, out: Path) -> None:
    error = refused(with_fields(tiny, out, trailer={name: 1 if name == "index_encoding" else 99}), "TSW-205")
    assert error.field == f"trailer.{name}"


def test_an_index_that_is_not_the_frame_that_it_should_be_is_refused(tiny: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.stored = b"not a frame"
        file.encoding = 1

    assert refused(edit(tiny, out, change), "TSW-707").field == "index"


def test_a_file_without_tasks_and_tensors_opens(tiny: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.body = bytearray()
        file.doc["tasks"] = []
        file.doc["base"] = {"aliases": {}, "dims": b"", "names": b"", "tensors": b""}
        del file.doc["content_id"]

    edit(tiny, out, change)
    assert tsw.validate(out).ok
    with tsw.open(out) as file:
        assert (file.tasks, file.base.keys(), file.content_id) == ([], [], None)


@pytest.mark.parametrize("backend", ["auto", "pread", "mmap"])
def test_what_is_no_file_is_no_format_error(backend: Any, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "expected a .tsw file, found a folder; name a file in it"),
        (tmp_path / "none.tsw", "could not be read: No such file or directory; check the path"),
    ):
        with pytest.raises(tsw.TswError, match=message) as caught:
            tsw.open(path, backend=backend)
        assert not isinstance(caught.value, FormatError)
    report = tsw.validate(tmp_path / "none.tsw")
    assert not report.ok
    assert report.unreadable is not None
    assert "No such file" in report.unreadable


def test_records_have_the_size_that_the_specification_says() -> None:
    sizes = {"PROLOGUE": 64, "TRAILER": 64, "TENSOR": 48, "ENTRY": 56, "SEGMENT": 24}
    assert {name: getattr(lay, name).itemsize for name in sizes} == sizes
    record = np.zeros((), lay.PROLOGUE)
    fill(record, {"reserved": b"abc"})
    assert record.tobytes()[57:60] == b"abc"
