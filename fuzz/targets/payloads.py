"""Encoded bytes: planes and runs of elements by themselves, and in a file whose checksums are right."""

from __future__ import annotations

import struct

import numpy as np

from fuzz import parts, seeds
from fuzz.limits import limited, promise
from fuzz.targets import reading
from tswitch_format import _layout as lay
from tswitch_format.codecs import array, bits, gaps, plane, zstd
from tswitch_format.errors import PayloadError
from tswitch_format.rules import RULES

_HEAD = struct.Struct("<BBII")
_RUN = struct.Struct("<BI")
_SEGMENT = struct.Struct("<BBBBI")


def planes(data: bytes) -> None:
    """Codec, parameter, bits, ones, payload: the decoders agree, and what is accepted is what encoding gives, to the byte."""
    if len(data) < _HEAD.size:
        return
    codec, k, n, count = _HEAD.unpack_from(data)
    k %= lay.MAX_PARAMETER + 1
    n = n if n <= lay.CHUNK else n % 4096
    count %= n + 1
    payload = memoryview(data)[_HEAD.size :]
    with limited():
        try:
            positions = plane.decode_positions(codec, k, payload, n, count)
        except PayloadError as error:
            positions = None
            promise(error.rule in RULES, f"no such rule: {error.rule!r}")
        try:
            packed = plane.decode_packed(codec, k, payload, n, count)
        except PayloadError:
            packed = None
    promise((positions is None) == (packed is None), "the two decoders disagree on what is accepted")
    if positions is None or packed is None:
        return
    promise(positions.dtype == np.int64 and positions.size == count, "another number of ones")
    promise(not count or (positions[0] >= 0 and positions[-1] < n), "a position outside the plane")
    promise(bool((np.diff(positions) > 0).all()), "positions that do not ascend")
    promise(np.array_equal(packed, bits.pack_positions(positions, n)), "positions and bit string differ")
    _check_canonical(codec, k, bytes(payload), positions, packed)


def _check_canonical(codec: int, k: int, payload: bytes, positions: np.ndarray, packed: np.ndarray) -> None:
    """Each plane has one payload in each codec and parameter, up to what zstd makes of it."""
    if codec == lay.Codec.BITMAP:
        promise(payload == packed.tobytes(), "another bitmap")
    elif codec == lay.Codec.BITMAP_ZSTD:
        promise(zstd.decompress(payload, packed.size) == packed.tobytes(), "another bitmap")
    elif codec == lay.Codec.RICE:
        promise(payload == gaps.encode_rice(gaps.gaps_of(positions), k), "a plane with two Rice codes")
    elif codec == lay.Codec.GAPS_ZSTD:
        again = gaps.encode_gaps(gaps.gaps_of(positions), k, 1)
        low = bits.nbytes(positions.size * k)
        promise(payload[:low] == again[:low], "a plane with two low parts")
        sizes = [zstd.content_size(frame) for frame in (payload[low:], again[low:])]
        promise(sizes[0] == sizes[1], "a plane with two numbers of gap bytes")
        contents = [zstd.decompress(frame, sizes[0]) for frame in (payload[low:], again[low:])]
        promise(contents[0] == contents[1], "a plane with two sequences of gap bytes")


def runs(data: bytes) -> None:
    """Codec, size, payload of a run of elements: decodes to just that size or raises PayloadError, in bounded memory."""
    if len(data) < _RUN.size:
        return
    codec, size = _RUN.unpack_from(data)
    size %= (1 << 23) + 1
    payload = memoryview(data)[_RUN.size :]
    with limited(size):
        try:
            found = array.decode(codec, payload, size)
        except PayloadError as error:
            promise(error.rule in RULES, f"no such rule: {error.rule!r}")
            return
    promise(found.dtype == np.uint8 and found.size == size, "another size")


def payloads(data: bytes) -> None:
    """File, segment, codec, parameter, count, payload: a valid file with that segment, decoded and validated in full."""
    if len(data) < _SEGMENT.size:
        return
    number, segment, codec, k, count = _SEGMENT.unpack_from(data)
    templates = seeds.templates()
    apart = parts.Parts.of(templates[number % len(templates)])
    places = apart.places()
    if not places:
        return
    task, at = places[segment % len(places)]
    table = apart.table(task, "segments")
    table["codec"][at], table["parameter"][at] = codec, k
    before, table["count"][at] = int(table["count"][at]), count
    apart.put_table(task, "segments", table)
    apart.payloads_of(task)[at] = data[_SEGMENT.size :]
    if task == parts.SHARED:
        apart.sign_shared()
    if table["role"][at] == lay.Role.MASK:
        _move_active(apart, task, at, count - before)
    reading.decode_once(apart.build())


def _move_active(apart: parts.Parts, task: int, segment: int, by: int) -> None:
    """Add to `active` of the entry that a mask belongs to."""
    masks = np.flatnonzero(apart.table(task, "segments")["role"] == lay.Role.MASK)
    entries = apart.table(task, "entries")
    left = int(np.searchsorted(masks, segment))
    for entry in np.flatnonzero(np.isin(entries["kind"], lay.SWITCH_KINDS)):
        chunks = lay.chunks_of(_elements(apart, int(entries["tensor"][entry])))
        if left < chunks:
            entries["active"][entry] = max(0, int(entries["active"][entry]) + by)
            break
        left -= chunks
    apart.put_table(task, "entries", entries)


def _elements(apart: parts.Parts, tensor: int) -> int:
    """Elements of a base tensor."""
    base = apart.document["base"]
    ndim = parts.table_of(base, "tensors", lay.TENSOR)["ndim"].astype(int)
    dims = np.frombuffer(base["dims"], "<u8")
    start = int(ndim[:tensor].sum())
    return int(np.prod(dims[start : start + int(ndim[tensor])], dtype=np.int64))
