"""The arithmetic of `apply.py` on packed planes, compiled: gaps, values and weights in one pass, without the GIL.

Import it only where numba is installed (the extra `fast`). It works on F32 and BF16 and gives the bits of `apply.py`: numba
contracts nothing into a fused multiply-add unless it is asked to. spec/decisions/0011 says why it is here, with figures.

A block of the table (see `planes.py`) at a time: its codes become places, its factors values, both in buffers that stay in
the first-level cache, and then one loop goes through the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload
from numpy.typing import NDArray

from tswitch_format.codecs.compiled import bit_places, gap_places
from tswitch_format.switch.apply import Scale
from tswitch_format.switch.planes import BLOCK, Form, Mode

_MOST = 8 * BLOCK  # elements of one block of a bitmap
_NONE = np.empty(0, np.float32)

# numba takes globals as constants.
_1, _STEP = np.uint64(1), np.uint64(8)
_BITS = np.arange(256, dtype=np.uint32)[:, None] >> np.arange(8, dtype=np.uint32) & 1
_TOPS = _BITS << np.uint32(31)  # the bits of each byte as signs of floats
_GAPS = int(Form.GAPS)
_ADD, _SAVE_AND_ADD, _SAVE, _PUT_BACK, _ROUND, _VALUES = (int(mode) for mode in list(Mode)[:6])


def run(
    mode: Mode,
    target: NDArray[Any],
    form: Form,
    codes: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    blocks: NDArray[np.int64],
    scale: Scale,
    *,
    coefficient: float = 1.0,
    other: NDArray[Any] | None = None,
    origin: int = 0,
    other_origin: int = 0,
) -> None:
    """Do what `mode` says with the active elements of the blocks of a switch, or of some of them (see `Planes`).

    `target`, `other`: flat, contiguous, F32 or BF16 as uint16, as `Mode` says; in mode VALUES also i8, for values of -1 and 1.
    `target` begins at flat element `origin`, in mode ROUND `other` at `other_origin`. `scale.first_row` is 0. Releases the
    GIL.
    """
    _run(
        int(mode),
        int(form),
        target,
        _NONE if other is None else other,
        origin,
        other_origin,
        codes,
        signs,
        blocks,
        np.float32(scale.knob),
        _NONE if scale.rows is None else scale.rows,
        _NONE if scale.columns is None else scale.columns,
        max(scale.row_length, 1),
        np.float32(coefficient),
    )


def _widen(element: Any) -> Any:
    """An element as f32; `_narrow`: f32 rounded to an element like the first. Compiled versions below."""
    raise NotImplementedError


def _narrow(element: Any, value: Any) -> Any:
    raise NotImplementedError


@overload(_widen, inline="always")
def _widen_compiled(element: Any) -> Any:
    def same(element: Any) -> Any:
        return element

    def from_bf16(element: Any) -> Any:
        return np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)  # shifting made it u64

    return from_bf16 if str(element) == "uint16" else same


@overload(_narrow, inline="always")
def _narrow_compiled(element: Any, value: Any) -> Any:
    def same(element: Any, value: Any) -> Any:
        return value

    def to_bf16(element: Any, value: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        high = np.uint32(bits >> np.uint32(16))
        if np.isnan(value):  # adding may carry it into infinity or zero
            return np.uint16(high | np.uint32(0x40))
        return np.uint16((bits + np.uint32(0x7FFF) + (high & np.uint32(1))) >> np.uint32(16))

    def to_sign(element: Any, value: Any) -> Any:
        return np.int8(value)

    return {"uint16": to_bf16, "int8": to_sign}.get(str(element), same)


@njit(nogil=True, cache=True)
def _places(form: int, codes: Any, begin: int, end: int, start: int, places: Any) -> int:
    """Flat elements of the active elements of one block; their number."""
    if form == _GAPS:
        return gap_places(codes, begin, end, start, places)
    return bit_places(codes, begin, end, start, places)


@njit(nogil=True, cache=True)
def _values(
    places: Any,
    count: int,
    signs: Any,
    sign: int,
    knob: Any,
    rows: Any,
    columns: Any,
    length: int,
    factor: Any,
    values: Any,
) -> None:
    """What is added to the active elements: section 10, step 1, and the sign."""
    if rows.size == 0 and columns.size == 0:
        for i in range(count):
            values[i] = knob
    else:
        _factored(places, np.uint64(count), knob, rows, columns, length, values)
    if factor != np.float32(1):
        for i in range(count):
            values[i] *= factor
    _turn(values.view(np.uint32), count, signs, sign)


@njit(nogil=True, cache=True)
def _factored(places: Any, count: Any, knob: Any, rows: Any, columns: Any, length: int, values: Any) -> None:
    """The same where there are factors, a row at a time: its end is looked for in steps, and what is left is a counted loop
    without a branch, half as long as one that looks for the end as it goes."""
    i = np.uint64(0)
    while i < count:
        row = places[i] // length
        begin = row * length
        end = begin + length
        value = knob * rows[row] if rows.size else knob
        stop = i
        while stop + _STEP <= count and places[stop + _STEP - _1] < end:
            stop += _STEP
        while stop < count and places[stop] < end:
            stop += _1
        if columns.size:
            for k in range(i, stop):
                values[np.uint64(k)] = value * columns[np.uint64(places[np.uint64(k)] - begin)]
        else:
            for k in range(i, stop):
                values[np.uint64(k)] = value
        i = stop


@njit(nogil=True, cache=True)
def _turn(bits: Any, count: int, signs: Any, sign: int) -> None:
    """Give floats, as bits, the signs from bit `sign` on."""
    head = min(-sign & 7, count)
    for i in range(head):
        bits[i] ^= _TOPS[signs[sign >> 3], (sign + i) & 7]
    first = (sign + head) >> 3
    whole = (count - head) >> 3
    for number in range(whole):
        tops = _TOPS[signs[np.uint64(first + number)]]
        at = np.uint64(head + 8 * number)
        for k in range(8):  # one load and one vector instruction
            bits[at + np.uint64(k)] ^= tops[np.uint64(k)]
    for k in range(count - head - 8 * whole):
        bits[head + 8 * whole + k] ^= _TOPS[signs[first + whole], k]


@njit(nogil=True, cache=True)
def _run(  # noqa: PLR0912 - a loop for each mode
    mode: int, form: int, target: Any, other: Any, origin: int, other_origin: int, codes: Any, signs: Any, blocks: Any,
    knob: Any, rows: Any, columns: Any, length: int, factor: Any,
) -> None:  # fmt: skip
    places = np.empty(_MOST, np.int64)
    values = np.empty(_MOST, np.float32)
    for block in range(len(blocks) - 1):
        rank = blocks[block, 2]
        count = _places(form, codes, blocks[block, 0], blocks[block + 1, 0], blocks[block, 1], places)
        if mode in (_ADD, _SAVE_AND_ADD, _VALUES):
            _values(places, count, signs, blocks[block, 3], knob, rows, columns, length, factor, values)
        if mode == _ADD:
            for i in range(count):
                at = np.uint64(places[i] - origin)  # unsigned: not looked at from behind
                element = target[at]
                target[at] = _narrow(element, _widen(element) + values[i])
        elif mode == _SAVE_AND_ADD:
            for i in range(count):
                at = np.uint64(places[i] - origin)
                element = target[at]
                other[rank + i] = element
                target[at] = _narrow(element, _widen(element) + values[i])
        elif mode == _SAVE:
            for i in range(count):
                other[rank + i] = target[places[i] - origin]
        elif mode == _PUT_BACK:
            for i in range(count):
                target[places[i] - origin] = other[rank + i]
        elif mode == _ROUND:
            for i in range(count):
                at = places[i] - origin
                target[at] = _narrow(target[at], other[places[i] - other_origin])
        elif mode == _VALUES:
            for i in range(count):
                at = places[i] - origin
                target[at] = _narrow(target[at], values[i])
