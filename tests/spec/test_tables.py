"""The tables and worked examples of spec/tsw-1.md against the library's numbers and the golden file."""

from __future__ import annotations

import hashlib
import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c
from tswitch_format._dtypes import DTYPES
from tswitch_format.codecs import bits, gaps, plane
from tswitch_format.rules import RULES
from tswitch_format.switch.apply import factor_values

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "spec" / "tsw-1.md").read_text(encoding="utf-8")
GOLDEN = ROOT / "tests" / "golden"
CITED = re.compile(r"\[(TSW-\d{3})\]")


def table(name: str) -> list[list[str]]:
    """The rows of the table after `<!-- table: NAME`."""
    found = re.search(rf"<!-- table: {name}\b[^\n]*-->\n((?:\|[^\n]*\n?)+)", TEXT)
    assert found, name
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in found[1].splitlines()]
    return rows[2:]


def blocks(kind: str) -> list[tuple[str, str]]:
    """Title and content of each code block after `<!-- KIND: TITLE -->`."""
    return re.findall(rf"<!-- {kind}: ([^\n]*?) -->\n```\n(.*?)\n```", TEXT, re.S)


def hex_bytes(text: str) -> bytes:
    """The bytes of pairs of hexadecimal digits at the beginning of each line."""
    lines = (re.match(r"(?:[0-9A-F]{2}(?: |$))+", line) for line in text.splitlines())
    return b"".join(bytes.fromhex(line[0]) for line in lines if line)


RECORDS = {
    "prologue": lay.PROLOGUE,
    "trailer": lay.TRAILER,
    "tensor": lay.TENSOR,
    "entry": lay.ENTRY,
    "segment": lay.SEGMENT,
}
TYPES = {"u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "f32": "<f4"}


@pytest.mark.parametrize("name", RECORDS)
def test_records(name: str) -> None:
    record = RECORDS[name]
    rows = table(name)
    assert [row[3] for row in rows] == list(record.names or ())
    end = 0
    for offset, size, kind, field, _ in rows:
        dtype, at = record.fields[field][:2]  # type: ignore[index]
        assert (at, dtype.itemsize) == (int(offset), int(size)), field
        assert at == end, "the table has no holes"
        end = at + dtype.itemsize
        if kind == "bytes":
            assert dtype.kind in "VS", field
        else:
            assert dtype == np.dtype(TYPES[kind]), field
    assert end == record.itemsize


def test_dtypes() -> None:
    rows = [(int(i), name, int(size)) for i, name, size, _ in table("dtype")]
    assert rows == [(d.id, d.name, d.bits) for d in DTYPES.values()]
    floats = re.search(r"\*Float types\* below are ([^.]*) alone", TEXT.replace("\n", " "))
    assert floats and re.findall(r"[A-Z0-9]+", floats[1]) == [d.name for d in DTYPES.values() if d.is_float]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("kind", lay.Kind),
        ("role", lay.Role),
        ("codec", lay.Codec),
        ("factor_dtype", lay.FactorDType),
        ("shared role", lay.SharedRole),
    ],
)
def test_numbers(name: str, numbers: type[IntEnum]) -> None:
    assert [(int(row[0]), row[1]) for row in table(name)] == [(m.value, m.name.lower()) for m in numbers]


def test_codec_parameters() -> None:
    with_k = [row[1] for row in table("codec") if row[3] == f"k, 0 to {lay.MAX_PARAMETER}"]
    assert with_k == ["gaps_zstd", "rice"]
    assert {row[3] for row in table("codec") if row[1] not in with_k} == {"0"}


LIMITS = {
    "bytes of the decoded index": lay.MAX_INDEX,
    "members of a map or array of the index, so tasks, aliases and keys of a map": lay.MAX_MEMBERS,
    "maps, arrays and their members in the index, all together": lay.MAX_VALUES,
    "levels of maps and arrays": lay.MAX_DEPTH,
    "bytes of all str of the index": lay.MAX_TEXT,
    "tensors of all lists": lay.MAX_TENSORS,
    "dimensions of a tensor": lay.MAX_DIMENSIONS,
    "a dimension, and elements of a tensor": lay.MAX_SIZE,
    "bytes of a name": lay.MAX_NAME,
    "bytes of names that are not ASCII, all together": lay.MAX_WIDE_NAMES,
    "elements of a chunk": lay.CHUNK,
    "k of a router": lay.MAX_NEIGHBOURS,
    "parameter k": lay.MAX_PARAMETER,
    "bytes of a zstd frame's window, unless its content is larger": lay.MAX_WINDOW,
}


def number(text: str) -> int:
    """A number as the text writes it: 4,096 or 2^18."""
    base, _, power = text.replace(",", "").partition("^")
    return int(base) ** int(power or 1)


def test_limits() -> None:
    assert {row[0]: number(row[1]) for row in table("limits")} == LIMITS
    assert lay.MAX_TASKS == lay.MAX_MEMBERS


def test_rules() -> None:
    assert [(row[0], row[1]) for row in table("rules")] == list(RULES.items())
    body, _, rest = TEXT.partition("<!-- table: rules -->")
    cited = set(CITED.findall(body))
    assert cited == set(RULES), "every rule is cited where its MUST stands"
    assert set(CITED.findall(rest)) <= set(RULES)


def test_every_must_has_an_id() -> None:
    """In its sentence, or in the row of its table."""
    body = TEXT.partition("## 1. Conventions")[2]
    places = [line for line in body.splitlines() if line.startswith("|")]
    for paragraph in re.split(
        r"\n\s*\n|\n- ", "\n".join(line for line in body.splitlines() if not line.startswith("|"))
    ):
        places += re.split(r"(?<=[.:\]])\s+(?=[A-Z*])", " ".join(paragraph.split()))
    musts = [place for place in places if re.search(r"\bMUST\b", place)]
    assert len(musts) > 15
    assert [place for place in musts if "TSW-" not in place] == []


def test_numbers_in_the_text() -> None:
    flat = " ".join(TEXT.split())
    for part in (
        lay.MAGIC.hex(" ").upper(),
        lay.END_MAGIC.hex(" ").upper(),
        f"The CRC32C of the nine ASCII bytes `123456789` is 0x{crc32c(b'123456789'):X}",
        f"A is {lay.MAPPED_LARGE:,} for a segment with a `length` of {lay.MAPPED_FROM:,} or more, else {lay.MAPPED_SMALL}",
        f"if L <= {lay.SAMPLE_WHOLE:,} the sample is all bytes; else it is the {lay.SAMPLE_BLOCKS} blocks of "
        f"{lay.SAMPLE_BLOCK:,} bytes at `floor(b (L - {lay.SAMPLE_BLOCK}) / {lay.SAMPLE_BLOCKS - 1})`",
        f"the {len(lay.ENTRY_DOMAIN)} bytes that are `{lay.ENTRY_DOMAIN[:-1].decode()}` in ASCII and a zero byte",
        f"the {len(lay.CONTENT_DOMAIN)} bytes that are `{lay.CONTENT_DOMAIN[:-1].decode()}` in ASCII and a zero byte",
        f"the {len(lay.COEFFICIENTS_DOMAIN)} bytes that are `{lay.COEFFICIENTS_DOMAIN[:-1].decode()}` in ASCII and a zero byte",
        f"version {lay.FORMAT_VERSION}",
        *(f"`{profile}`" for profile in lay.PROFILES),
    ):
        assert part in flat, part


def test_factor_codes_are_rounded_once() -> None:
    exact = [np.float32(3 * q / 255) for q in range(256)]  # binary64 is wide enough: no code lies near a tie
    assert factor_values(np.arange(256, dtype=np.uint8)).tolist() == exact


def msgpack_rows() -> list[tuple[str, int, str]]:
    """(type, a number at a bound of the table of 5.1, the form that it says)."""
    rows = []
    for kind, text in table("msgpack"):
        forms = re.findall(r"`([0-9A-F]{2})`(?: to `[0-9A-F]{2}`)? (?:up to (\d+)|beyond)", text)
        low = 0
        for first, bound in forms:
            high = int(bound) if bound else low
            rows += [(kind, low, first), (kind, high, first)]
            low = high + 1
    return rows


@pytest.mark.parametrize(("kind", "number", "form"), msgpack_rows())
def test_msgpack_forms(kind: str, number: int, form: str) -> None:
    make: dict[str, Any] = {
        "unsigned integer": lambda: number,
        "str": lambda: "x" * number,
        "bin": lambda: bytes(number),
        "array": lambda: [0] * number,
        "map": lambda: dict.fromkeys(range(number), 0),
    }
    first = msgpack.packb(make[kind](), use_bin_type=True)[0]
    in_first_byte = {"00": number, "A0": 0xA0 | number, "90": 0x90 | number, "80": 0x80 | number}
    assert first == in_first_byte.get(form, int(form, 16))


@pytest.mark.parametrize(("title", "block"), blocks("example"))
def test_examples(title: str, block: str) -> None:
    found = re.fullmatch(r"(\w+)(?:, k = (\d+))?, n = (\d+), positions ([\d ]+)", title)
    assert found, title
    codec, k, n = lay.Codec[found[1].upper()], int(found[2] or 0), int(found[3])
    positions = np.array(found[4].split(), np.int64)
    data = hex_bytes(block)
    assert plane.decode_positions(codec, k, memoryview(data), n, positions.size).tolist() == positions.tolist()
    distances = gaps.gaps_of(positions)
    encoded = {
        lay.Codec.BITMAP: lambda: bits.pack_positions(positions, n).tobytes(),
        lay.Codec.GAPS_ZSTD: lambda: gaps.encode_gaps(distances, k, 1),
        lay.Codec.RICE: lambda: gaps.encode_rice(distances, k),
    }[codec]()
    assert encoded == data


def test_there_are_examples_of_gaps_and_rice() -> None:
    assert {title.split(",")[0] for title, _ in blocks("example")} == {"bitmap", "gaps_zstd", "rice"}


def test_hex_dump() -> None:
    [(name, dump)] = blocks("dump")
    data = b""
    for line in dump.splitlines():
        found = re.match(r"([0-9A-F]{4})  ((?:[0-9A-F]{2} ?)+)", line)
        if found:
            assert int(found[1], 16) == len(data), line
            data += bytes.fromhex(found[2])
    assert data == (GOLDEN / name).read_bytes()
    assert f"`tests/golden/{name}`, {len(data)} bytes" in " ".join(TEXT.split())


def test_dump_elements() -> None:
    """The elements that the text gives for the base of the smallest file are those of its digest."""
    found = re.search(r"whose elements are ([-\d/64, ]*);", " ".join(TEXT.split()))
    assert found
    elements = np.array([int(part.split("/")[0]) / 64 for part in found[1].split(",")], "<f4")
    assert hashlib.sha256(elements.tobytes()).digest() in (GOLDEN / "smallest.tsw").read_bytes()
