"""A switch packed in memory: what kernels on any device read. Masks and signs stay bits or bytes, never one number an element.

    Mode           what kernels do with a switch
    Planes         mask and sign of a switch as flat arrays, with a table of blocks that gives kernels random access
    pack_chunk     the part of it that one chunk of a file gives, so that threads can share the decoding
    planes         all of it

The mask has one of two forms. *Gap bytes* (spec section 9.3 with k = 0) take a byte for each active element and more only
below a density of 0.4 %; *bitmaps* take a bit for each element. The smaller is taken, which is gap bytes below 1/8; files of
the mapped profile keep their bitmaps, as they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format.codecs import bits, gaps, plane
from tswitch_format.errors import TswError
from tswitch_format.switch.tensor import Switch

BLOCK = 1024  # bytes of codes that a kernel's program begins and ends with: the table is 3 % of them
BYTE, START, RANK, SIGN = range(4)  # columns of the table

_NO_SIGNS = np.empty(0, np.uint8)  # of masked switches


class Form(IntEnum):
    """How a mask is kept in memory."""

    GAPS = 0
    BITMAP = 1


class Mode(IntEnum):
    """What a kernel does with the active elements of a switch.

    `target` are weights, or what is made of them: all elements, or a run of them. `other`, where it is used, has one element
    for each active one, by rank, of the target's dtype; in mode ROUND it is f32, a run of elements.
    """

    ADD = 0  # target += values, rounded to its dtype
    SAVE_AND_ADD = 1  # other = target; then the same
    SAVE = 2  # other = target
    PUT_BACK = 3  # target = other
    ROUND = 4  # target = other, f32 elements, rounded to its dtype
    VALUES = 5  # target = values, in f32 or f64
    SIGNS = 6  # target = -1 or 1, in i8; of a masked switch the sign of the vector's element, which may be 0


@dataclass(frozen=True, slots=True)
class Planes:
    """Mask and sign of a switch of `elements` elements, `active` of them active. A masked switch has no signs: `signs` is
    empty, and the bits that the table counts are not there.

    `codes` u8: gap bytes or bitmap, chunk after chunk. `signs` u8: bit strings, 1 = negative, each chunk's begun in a byte of
    its own. `blocks` i64[B + 1, 4]: for each run of at most `BLOCK` codes of one chunk, and for the end, its first code, the
    flat element that its first code counts from, its first active element's rank, and the bit of that one's sign.
    `chunk_blocks`: the first block of each chunk, and their number.
    """

    form: Form
    elements: int
    active: int
    codes: NDArray[np.uint8]
    signs: NDArray[np.uint8]
    blocks: NDArray[np.int64]
    chunk_blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChunkPlanes:
    """The planes of one chunk: `codes` and `signs` as above, `active` elements, `blocks` counted from the chunk's begin."""

    codes: NDArray[np.uint8]
    signs: NDArray[np.uint8]
    active: int
    blocks: NDArray[np.int64]


def form_of(elements: int, active: int) -> Form:
    """The smaller form."""
    return Form.BITMAP if active * 8 >= elements else Form.GAPS


def planes(switch: Switch) -> Planes:
    """The planes of a ternary or masked switch or of a slice of one. Decodes the chunks that it overlaps.

    Raises FormatError for a damaged chunk, OptionError for a switch of another kind.
    """
    if not switch.is_whole:
        return _planes_of_slice(switch)
    form = stored_form(switch)
    return assemble(form, switch.elements, [pack_chunk(switch, form, number) for number in range(switch.chunk_count)])


def stored_form(switch: Switch) -> Form:
    """The form for a whole switch, known before anything is decoded."""
    return Form.BITMAP if switch.entry.mapped else form_of(switch.elements, switch.active)


def pack_chunk(switch: Switch, form: Form, number: int) -> ChunkPlanes:
    """Decode one chunk of a whole switch as far as `form` needs."""
    entry = switch.entry
    count = entry.mask_count(number)
    if form is Form.GAPS:
        codes = entry.mask_gap_bytes(number)
    else:
        # A view of a mapping may change after it was checked, if somebody writes into the file: kernels trust what is here.
        codes = entry.mask_packed(number).copy()
        beyond = entry.chunk_elements(number) % 8
        if bits.count_ones(codes) != count or (beyond and int(codes[-1]) >> beyond):
            raise TswError(f"tensor {switch.name!r}: its file changed while it was read; files are never written into")
    signs = entry.sign_packed(number) if entry.kind is lay.Kind.TERNARY else _NO_SIGNS
    return ChunkPlanes(codes, signs, count, _blocks(form, codes))


def _planes_of_slice(switch: Switch) -> Planes:
    chunks = list(switch.chunks())
    places = np.concatenate([np.empty(0, np.int64), *(switch.places(chunk) for chunk in chunks)])
    negative = None
    if switch.entry.kind is lay.Kind.TERNARY:
        negative = np.concatenate([np.empty(0, np.bool_), *(switch.negative(chunk) for chunk in chunks)])
    form = Form.BITMAP if switch.entry.mapped else form_of(switch.elements, places.size)
    return assemble(form, switch.elements, list(_cut(form, switch.elements, places, negative)))


def _cut(
    form: Form, elements: int, places: NDArray[np.int64], negative: NDArray[np.bool_] | None
) -> Iterator[ChunkPlanes]:
    for start in range(0, elements, lay.CHUNK):
        low, high = np.searchsorted(places, (start, start + lay.CHUNK))
        positions = places[low:high] - start
        if form is Form.BITMAP:
            codes = bits.pack_positions(positions, min(lay.CHUNK, elements - start))
        else:
            codes = plane.gap_bytes(positions)
        signs = _NO_SIGNS if negative is None else np.packbits(negative[low:high], bitorder="little")
        yield ChunkPlanes(codes, signs, int(high - low), _blocks(form, codes))


def assemble(form: Form, elements: int, chunks: Sequence[ChunkPlanes]) -> Planes:
    """Put chunks together, in order: each of `CHUNK` elements but the last."""
    tables = []
    byte = rank = sign = 0
    for number, chunk in enumerate(chunks):
        tables.append(chunk.blocks + np.array((byte, number * lay.CHUNK, rank, sign)))
        byte += chunk.codes.size
        rank += chunk.active
        sign += 8 * chunk.signs.size
    tables.append(np.array([[byte, elements, rank, sign]], np.int64))
    return Planes(
        form,
        elements,
        rank,
        np.concatenate([np.empty(0, np.uint8), *(chunk.codes for chunk in chunks)]),
        np.concatenate([np.empty(0, np.uint8), *(chunk.signs for chunk in chunks)]),
        np.concatenate(tables),
        (0, *np.cumsum([len(table) for table in tables[:-1]], dtype=np.int64).tolist()),
    )


def _blocks(form: Form, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The table of one chunk in itself."""
    first = np.arange(0, codes.size, BLOCK)
    table = np.zeros((first.size, 4), np.int64)
    if not first.size:
        return table
    table[:, BYTE] = first
    if form is Form.BITMAP:
        table[:, START] = 8 * first
        ends = np.add.reduceat(np.bitwise_count(codes), first, dtype=np.int64)
    else:
        ends, moves = gaps.run_sums(codes, BLOCK)
        table[1:, START] = np.cumsum(moves)[:-1]
    table[1:, RANK] = np.cumsum(ends)[:-1]
    table[:, SIGN] = table[:, RANK]
    return table
