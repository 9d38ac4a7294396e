"""Canonical MessagePack (spec section 5.1): what is canonical comes back, nothing else is taken."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from container_files import Edited, canonical, edit, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from tswitch_format.container import document


class RefusedError(Exception):
    """What `fail` makes: (rule, expected, found, position)."""


def decode(data: bytes) -> document.Value:
    return document.decode(data, RefusedError)


def rule_of(data: bytes) -> str:
    """The rule by which a document is refused."""
    with pytest.raises(RefusedError) as caught:
        decode(data)
    rule, expected, found, position = caught.value.args
    assert 0 <= position <= len(data)
    assert expected
    assert found
    return str(rule)


leaves = st.integers(0, (1 << 64) - 1) | st.text(max_size=40) | st.binary(max_size=40)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20)
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=150, deadline=None)
@given(values.filter(lambda value: depth(value) <= 8))
def test_documents_come_back_and_are_encoded_canonically(value: Any) -> None:
    data = document.encode(value)
    assert data == msgpack.packb(canonical(value))
    assert decode(data) == value
    assert decode(memoryview(data)) == value


@pytest.mark.parametrize("number", [0, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
def test_integers_of_every_width_come_back(number: int) -> None:
    assert decode(document.encode([number])) == [number]


@pytest.mark.parametrize(
    "data",
    [
        "cc 01",
        "cd 00ff",
        "ce 0000ffff",
        "cf 00000000ffffffff",
        "d9 01 61",
        "da 0001 61",
        "db 00000001 61",
        "c5 0001 00",
        "c6 00000001 00",
        "dc 0001 01",
        "dd 00000001 01",
        "de 0001 a161 01",
        "df 00000001 a161 01",
        "81 d901 61 01",
    ],
)
def test_a_form_that_is_not_the_shortest_is_refused(data: str) -> None:
    assert rule_of(bytes.fromhex(data)) == "TSW-302"
    assert rule_of(b"\x91" + bytes.fromhex(data)) == "TSW-302"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("c0", "nil"),
        ("c2", "false"),
        ("c3", "true"),
        ("ca 3f800000", "float 32"),
        ("cb 3ff0000000000000", "float 64"),
        ("ff", "negative fixint"),
        ("d0 80", "int 8"),
        ("d0 01", "int 8 that is not negative"),
        ("d1 0001", "int 16"),
        ("d2 00000001", "int 32"),
        ("d3 8000000000000000", "int 64"),
        ("d4 05 00", "fixext 1"),
        ("c7 03 05 000000", "ext 8"),
        ("d6 ff 00000000", "timestamp 32"),
        ("d7 ff 0000000000000000", "timestamp 64"),
        ("c7 0c ff 000000000000000000000000", "timestamp 96"),
    ],
)
def test_a_type_that_does_not_occur_is_refused(data: str, what: str) -> None:
    for around in ("", "91", "81 a161"):
        assert rule_of(bytes.fromhex(around + data)) == "TSW-301", what


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("82 a162 01 a161 01", "not sorted"),
        ("82 a161 01 a161 01", "twice"),
        ("82 a161 01 a161 02", "twice with another value"),
        ("82 a2c3a9 01 a17a 01", "not sorted by bytes"),
        ("82 a4f0908080 01 a3efbfbd 01", "sorted by UTF-16"),
        ("81 01 01", "integer"),
        ("81 c4 01 61 01", "bin"),
        ("81 90 01", "array"),
        ("81 80 01", "map"),
    ],
)
def test_keys_that_are_not_str_in_ascending_order_are_refused(data: str, what: str) -> None:
    assert rule_of(bytes.fromhex(data)) == "TSW-303", what
    assert rule_of(bytes.fromhex("81 a161" + data)) == "TSW-303", what


@pytest.mark.parametrize("text", ["ff", "c0 80", "ed a0 80", "f4 90 80 80", "e2 82"])
def test_text_that_is_not_utf8_is_refused(text: str) -> None:
    raw = bytes.fromhex(text)
    assert rule_of(bytes([0xA0 | len(raw)]) + raw) == "TSW-304"
    assert rule_of(b"\x81" + bytes([0xA0 | len(raw)]) + raw + b"\1") == "TSW-304"


def test_eight_levels_are_read_and_nine_are_not() -> None:
    assert decode(b"\x91" * 8 + b"\1") == [[[[[[[[1]]]]]]]]
    assert rule_of(b"\x91" * 9 + b"\1") == "TSW-305"
    assert decode(b"\x81\xa0" * 8 + b"\1")
    assert rule_of(b"\x81\xa0" * 9 + b"\1") == "TSW-305"


@pytest.mark.parametrize("levels", [500, 2000, 1_000_000])
def test_deep_nesting_ends_early(levels: int) -> None:
    for opening in (b"\x91", b"\x81\xa0"):
        assert rule_of(opening * levels) in {"TSW-305", "TSW-302"}
        assert rule_of(opening * levels + b"\1") == "TSW-305"


def test_members_are_limited() -> None:
    array = b"\xdc\x10\x00" + b"\0" * 4096
    assert len(decode(array)) == 4096  # type: ignore[arg-type]
    assert rule_of(b"\xdc\x10\x01" + b"\0" * 4097) == "TSW-305"
    keys = [str(number) for number in range(4097)]
    assert len(decode(document.encode(dict.fromkeys(keys[:4096], 0)))) == 4096  # type: ignore[arg-type]
    assert rule_of(document.encode(dict.fromkeys(keys, 0))) == "TSW-305"


@pytest.mark.parametrize("rest", [b"\0", b"\x80", b"\xc1", bytes(1000)])
def test_nothing_may_follow(rest: bytes) -> None:
    assert rule_of(b"\x80" + rest) == "TSW-306"


@settings(max_examples=60, deadline=None)
@given(values, st.data())
def test_a_document_cut_anywhere_is_refused(value: Any, data: st.DataObject) -> None:
    whole = document.encode(value)
    assert rule_of(whole[: data.draw(st.integers(0, len(whole) - 1))]) in {"TSW-302", "TSW-304", "TSW-305"}


@pytest.mark.parametrize("head", ["dd", "df", "c6", "db", "c9", "dd 00001000", "df 00001000"])
def test_a_huge_declared_length_takes_no_memory(head: str) -> None:
    data = bytes.fromhex(head).ljust(5, b"\xff") + b"\x05" * 20
    tracemalloc.start()
    try:
        assert rule_of(data) in {"TSW-302", "TSW-305", "TSW-303", "TSW-301"}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nested_declared_lengths_take_little_memory() -> None:
    tracemalloc.start()
    try:
        assert rule_of(b"\xdc\x10\x00" * 5000) in {"TSW-302", "TSW-305"}
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        value = decode(data)
    except RefusedError as error:
        assert error.args[0].startswith("TSW-30")
    else:
        assert document.encode(value) == data


BROKEN = {
    "TSW-301": (b"\x81\xa1a\xc0", 3),
    "TSW-302": (b"\x81\xa1a\xcc\x01", 3),
    "TSW-303": (b"\x82\xa1b\x01\xa1a\x01", 4),
    "TSW-304": (b"\x81\xa1a\xa1\xff", 4),
    "TSW-305": (b"\x91" * 9 + b"\x01", 8),
    "TSW-306": (b"\x80\x80", 1),
}


@pytest.mark.parametrize("encoding", [0, 1])
@pytest.mark.parametrize("rule", BROKEN)
def test_a_file_with_such_an_index_does_not_open(rule: str, encoding: int, tiny: Path, out: Path) -> None:
    """Where the index is stored as it is, the message names the byte."""
    body = b""

    def change(file: Edited) -> None:
        nonlocal body
        body = bytes(file.body)
        file.index = BROKEN[rule][0]
        file.encoding = encoding

    error = refused(edit(tiny, out, change), rule)
    assert (error.field, error.offset) == ("index", 64 + len(body) + (0 if encoding else BROKEN[rule][1]))


def test_very_many_empty_maps_cost_little_memory() -> None:
    count = 1535
    bomb = b"\xdc" + count.to_bytes(2, "big") + (b"\xdc\x10\x00" + b"\x80" * 4096) * count  # 6 MiB, 600 bytes as zstd
    tracemalloc.start()
    try:
        assert rule_of(bomb) == "TSW-305"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
