"""Properties of the parts of a file: documents, planes, arithmetic."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import strategies
from fuzz.targets import importers, numbers, payloads, reading
from tswitch_format import _layout as lay
from tswitch_format.codecs import bits, gaps, plane
from tswitch_format.container import document

EXAMPLES = settings(max_examples=150, deadline=None)


def fail(rule: str, expected: str, found: str, position: int) -> Exception:
    return AssertionError(f"{rule} at byte {position}: expected {expected}, found {found}")


@EXAMPLES
@given(strategies.documents())
def test_documents_decode_to_what_was_encoded(value: Any) -> None:
    data = document.encode(value)
    assert document.encode(document.decode(data, fail)) == data
    reading.document(data)


@EXAMPLES
@given(strategies.documents(), st.integers(0, 400), st.binary(max_size=3))
def test_changed_documents(value: Any, at: int, inserted: bytes) -> None:
    data = document.encode(value)
    at = min(at, len(data))
    reading.document(data[:at] + inserted + data[at + 1 :])


@EXAMPLES
@given(strategies.planes(), st.booleans())
def test_planes_decode_to_what_was_encoded(given_plane: tuple[Any, int], mapped: bool) -> None:
    positions, n = given_plane
    made = plane.encode(positions, n, mapped=mapped)
    arguments = (made.codec, made.parameter, memoryview(made.data), n, made.count)
    assert np.array_equal(plane.decode_positions(*arguments), positions)
    assert np.array_equal(plane.decode_packed(*arguments), bits.pack_positions(positions, n))


@EXAMPLES
@given(strategies.planes(), st.sampled_from((lay.Codec.GAPS_ZSTD, lay.Codec.RICE)), st.integers(0, 20), st.data())
def test_every_parameter_and_changed_payloads(
    given_plane: tuple[Any, int], codec: lay.Codec, k: int, data: st.DataObject
) -> None:
    positions, n = given_plane
    if not positions.size:
        return
    distances = gaps.gaps_of(positions)
    coded = gaps.encode_gaps(distances, k, 1) if codec == lay.Codec.GAPS_ZSTD else gaps.encode_rice(distances, k)
    head = struct.pack("<BBII", codec, k, n, positions.size)
    payloads.planes(head + coded)
    found = plane.decode_positions(codec, k, memoryview(coded), n, positions.size)
    assert np.array_equal(found, positions)
    changed = bytearray(coded)
    changed[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    payloads.planes(head + bytes(changed))


@EXAMPLES
@given(st.binary(min_size=20, max_size=300))
def test_applying_is_as_slow_arithmetic_says(data: bytes) -> None:
    numbers.apply(data)


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(("F32", "BF16", "F4", "I64", "BOOL", "f32", "")),
        "shape": st.lists(st.integers(-1, 4), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 24), min_size=1, max_size=3),
    }
)


@EXAMPLES
@given(st.dictionaries(st.text(max_size=5), ENTRIES | st.none() | st.integers(), max_size=3))
def test_safetensors_headers(header: dict[str, Any]) -> None:
    importers.safetensors_header(struct.pack("<I", 0) + json.dumps(header).encode())
