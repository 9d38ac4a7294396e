"""A switch packed in memory: what kernels on any device read. Masks and signs stay bits or bytes, never one number an element.

    Mode           what kernels do with a switch
    Planes         mask and sign of a switch as flat arrays, with a table of blocks that gives kernels random access
    pack_chunks    the part of it that some chunks of a file give, so that threads can share the decoding
    planes         all of it

The mask has one of two forms. *Gap bytes* (spec section 9.3 with k = 0) take a byte for each active element and more only
below a density of 0.4 %; *bitmaps* take a bit for each element. The smaller is taken, which is gap bytes below 1/8; files of
the mapped profile keep their bitmaps, as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import le

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format.codecs import bits, gaps, plane
from tswitch_format.codecs.runs import RunTable, run_table
from tswitch_format.errors import TswError
from tswitch_format.switch.tensor import Switch, runs

BLOCK = 1024  # bytes of codes that a kernel's program begins and ends with: the table is 3 % of them

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
class Piece:
    """The planes of some chunks, and their table, counted from the first of them."""

    codes: NDArray[np.uint8]
    signs: NDArray[np.uint8]
    table: RunTable


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
    return assemble(form, switch.elements, [pack_chunks(switch, form, chunks) for chunks in runs(switch.chunk_count)])


def stored_form(switch: Switch) -> Form:
    """The form for a whole switch, known before anything is decoded."""
    return Form.BITMAP if switch.entry.mapped else form_of(switch.elements, switch.active)


def pack_chunks(switch: Switch, form: Form, chunks: range) -> Piece:
    """Decode some chunks of a whole switch as far as `form` needs. Raises FormatError."""
    entry = switch.entry
    masks = entry.mask_gap_bytes(chunks) if form is Form.GAPS else entry.masks_packed(chunks)
    signs = entry.signs_packed(chunks) if entry.kind is lay.Kind.TERNARY else [_NO_SIGNS] * len(chunks)
    piece = _piece(form, masks, signs)
    sizes = [entry.chunk_elements(chunk) for chunk in chunks]
    active, reach = piece.table.ends.T.tolist()
    if form is Form.GAPS:
        sound = all(map(le, reach, sizes)) and not any(mask.size and mask[-1] == gaps.ESCAPE for mask in masks)
    else:
        sound = not sizes[-1] % 8 or not int(piece.codes[-1]) >> sizes[-1] % 8
    if not sound or active != entry.mask_counts(chunks):
        for chunk in chunks if form is Form.GAPS else ():
            entry.mask_positions(chunk)  # says what is wrong with it
        # A view of a mapping may change after it was checked, if somebody writes into the file: kernels trust what is here.
        raise TswError(f"tensor {switch.name!r}: its file changed while it was read; files are never written into")
    return piece


def _planes_of_slice(switch: Switch) -> Planes:
    chunks = list(switch.chunks())
    places = np.concatenate([np.empty(0, np.int64), *(switch.places(chunk) for chunk in chunks)])
    negative = None
    if switch.entry.kind is lay.Kind.TERNARY:
        negative = np.concatenate([np.empty(0, np.bool_), *(switch.negative(chunk) for chunk in chunks)])
    form = Form.BITMAP if switch.entry.mapped else form_of(switch.elements, places.size)
    masks, signs = [], []
    for start in range(0, switch.elements, lay.CHUNK):
        low, high = np.searchsorted(places, (start, start + lay.CHUNK))
        positions = places[low:high] - start
        if form is Form.BITMAP:
            masks.append(bits.pack_positions(positions, min(lay.CHUNK, switch.elements - start)))
        else:
            masks.append(plane.gap_bytes(positions))
        signs.append(_NO_SIGNS if negative is None else np.packbits(negative[low:high], bitorder="little"))
    return assemble(form, switch.elements, [_piece(form, masks, signs)] if masks else [])


def assemble(form: Form, elements: int, pieces: Sequence[Piece]) -> Planes:
    """Put pieces together, in order: each chunk of `CHUNK` elements but the last."""
    rows, chunk_blocks = [], [np.zeros(1, np.int64)]
    byte = start = rank = sign = 0
    for piece in pieces:
        rows.append(piece.table.rows + np.array((byte, start, rank, sign)))
        chunk_blocks.append(piece.table.stops + chunk_blocks[-1][-1])
        byte += piece.codes.size
        start += len(piece.table.ends) * lay.CHUNK
        rank += int(piece.table.ends[:, 0].sum())
        sign += 8 * piece.signs.size
    rows.append(np.array([[byte, elements, rank, sign]], np.int64))
    codes, signs = [piece.codes for piece in pieces], [piece.signs for piece in pieces]
    return Planes(
        form,
        elements,
        rank,
        codes[0] if len(pieces) == 1 else _join(codes),
        signs[0] if len(pieces) == 1 else _join(signs),
        np.concatenate(rows),
        tuple(np.concatenate(chunk_blocks).tolist()),
    )


def _piece(form: Form, masks: Sequence[NDArray[np.uint8]], signs: Sequence[NDArray[np.uint8]]) -> Piece:
    """The planes of chunks that follow each other, copied."""
    codes = _join(masks)
    sizes = [mask.size for mask in masks]
    table = run_table(codes, sizes, [plane.size for plane in signs], BLOCK, gaps=form is Form.GAPS)
    return Piece(codes, _join(signs), table)


def _join(arrays: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate([np.empty(0, np.uint8), *arrays])
