"""One tensor -> encoded entry: planes, factors or data, chunk by chunk, with the entry's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DType
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.codecs import array, bits, plane
from tswitch_format.container.digest import EntryDigest
from tswitch_format.container.segments import EncodedArray, EncodedEntry, EncodedSegment
from tswitch_format.switch.apply import Codes

Planes = Iterable[tuple[NDArray[np.int64], NDArray[np.bool_]]]  # a chunk: active positions, and which are negative


def encode_ternary(
    spec: TensorSpec,
    dtype: DType,
    knob: np.float32,
    rows: Codes | None,
    columns: Codes | None,
    factor_dtype: lay.FactorDType,
    planes: Planes,
    *,
    mapped: bool,
) -> EncodedEntry:
    """Encode a switch. `spec`: the base's tensor; `dtype`: the expert's; `planes`: for every chunk in order."""
    flags = (lay.HAS_ROW_FACTORS if rows is not None else 0) | (lay.HAS_COLUMN_FACTORS if columns is not None else 0)
    factor_dtype = factor_dtype if flags else lay.FactorDType.NONE
    digest = EntryDigest(lay.Kind.TERNARY, dtype, spec.shape)
    digest.ternary(knob, factor_dtype, flags)
    factors: list[EncodedSegment] = []
    for role, codes in ((lay.Role.ROW_FACTORS, rows), (lay.Role.COLUMN_FACTORS, columns)):
        if codes is not None:
            digest.update(np.ascontiguousarray(codes))
            factors.extend(array_segments(role, codes, mapped=mapped))
    masks: list[EncodedSegment] = []
    signs: list[EncodedSegment] = []
    active = 0
    for number, (positions, negative) in enumerate(planes):
        elements = min(lay.CHUNK, spec.elements - number * lay.CHUNK)
        digest.update(bits.pack_positions(positions, elements))
        digest.update(np.packbits(negative, bitorder="little"))
        masks.append(_plane_segment(lay.Role.MASK, positions, elements, mapped=mapped))
        signs.append(_plane_segment(lay.Role.SIGN, np.flatnonzero(negative), positions.size, mapped=mapped))
        active += positions.size
    return EncodedEntry(
        spec,
        lay.Kind.TERNARY,
        dtype,
        [*factors, *masks, *signs],
        digest.digest(),
        knob=knob,
        factor_dtype=factor_dtype,
        flags=flags,
        active=active,
    )


def encode_dense(spec: TensorSpec, reader: CheckpointReader, stored: str, *, added: bool, mapped: bool) -> EncodedEntry:
    """Encode a tensor that is given whole, read as `stored` from `reader`."""
    digest = EntryDigest(lay.Kind.DENSE, spec.dtype, spec.shape)
    segments = []
    for start in range(0, spec.elements, lay.CHUNK):
        elements = min(lay.CHUNK, spec.elements - start)
        data = np.empty(spec.dtype.nbytes(elements), np.uint8)
        reader.read_into(stored, spec.dtype.nbytes(start), data)
        digest.update(data)
        codec, encoded = array.encode(data, mapped=mapped)
        segments.append(EncodedSegment.make(lay.Role.DATA, codec, 0, elements, encoded))
    return EncodedEntry(spec, lay.Kind.DENSE, spec.dtype, segments, digest.digest(), added=added)


@dataclass(frozen=True, slots=True)
class Vector:
    """A shared vector that is in the file already: its number, element type and SHA-256."""

    number: int
    dtype: DType
    sha256: bytes


def encode_masked(
    spec: TensorSpec,
    dtype: DType,
    knob: np.float32,
    vector: Vector,
    masks: Iterable[NDArray[np.uint8]],
    *,
    mapped: bool,
) -> EncodedEntry:
    """Encode a mask over a shared vector. `masks`: the bit string of every chunk in order, unused bits zero."""
    digest = EntryDigest(lay.Kind.MASKED, dtype, spec.shape)
    digest.masked(knob, vector.dtype.id, vector.sha256)
    segments = []
    for number, packed in enumerate(masks):
        digest.update(packed)
        encoded = plane.encode_packed(packed, min(lay.CHUNK, spec.elements - number * lay.CHUNK), mapped=mapped)
        segments.append(_segment(lay.Role.MASK, encoded))
    return EncodedEntry(
        spec,
        lay.Kind.MASKED,
        dtype,
        segments,
        digest.digest(),
        knob=knob,
        active=sum(segment.count for segment in segments),
        vector=vector.number,
    )


def encode_vector(spec: TensorSpec, chunks: Iterable[NDArray[np.generic]], *, mapped: bool) -> EncodedArray:
    """Encode a shared vector. `chunks`: its elements in storage dtype, a chunk after the other."""
    digest = hashlib.sha256()
    segments = []
    for chunk in chunks:
        raw = np.ascontiguousarray(chunk).view(np.uint8)
        digest.update(raw.data)
        codec, encoded = array.encode(raw, mapped=mapped)
        segments.append(EncodedSegment.make(lay.Role.DATA, codec, 0, chunk.size, encoded))
    return EncodedArray(lay.SharedRole.VECTOR, spec, digest.digest(), segments)


def encode_removed(spec: TensorSpec) -> EncodedEntry:
    """Encode that a tensor of the base is not there in the expert."""
    digest = EntryDigest(lay.Kind.REMOVED, spec.dtype, spec.shape).digest()
    return EncodedEntry(spec, lay.Kind.REMOVED, spec.dtype, [], digest)


def _plane_segment(role: lay.Role, positions: NDArray[np.int64], n: int, *, mapped: bool) -> EncodedSegment:
    return _segment(role, plane.encode(positions, n, mapped=mapped))


def _segment(role: lay.Role, encoded: plane.EncodedPlane) -> EncodedSegment:
    return EncodedSegment.make(role, encoded.codec, encoded.parameter, encoded.count, encoded.data)


def array_segments(role: lay.Role, codes: Codes, *, mapped: bool) -> Iterable[EncodedSegment]:
    """Encode factors, as stored codes."""
    for start in range(0, codes.size, lay.CHUNK):
        part = np.ascontiguousarray(codes[start : start + lay.CHUNK])
        codec, encoded = array.encode(part.view(np.uint8), mapped=mapped)
        yield EncodedSegment.make(role, codec, 0, part.size, encoded)
