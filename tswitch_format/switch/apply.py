"""base + switch -> expert: the arithmetic of spec section 10, in NumPy.

This is the reference: other backends give the same bits. Only active elements are computed; the others keep their bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import DType, Floats, compute_dtype, from_float, to_float
from tswitch_format.errors import OptionError

Codes = NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]


def factor_values(codes: Codes) -> NDArray[np.float32]:
    """Decoded factors (section 7): u8 code q is fl32(3 q / 255), f16 and f32 mean themselves."""
    if codes.dtype == np.uint8:
        return codes.astype(np.float32) * np.float32(3) / np.float32(255)
    return codes.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Scale:
    """Knob and factors of one tensor, or of its rows from `first_row` on: `rows` f32[R] or None, `columns` f32[C] or None,
    `row_length` C in elements."""

    knob: np.float32
    rows: NDArray[np.float32] | None
    columns: NDArray[np.float32] | None
    row_length: int
    first_row: int = 0


def proper_coefficient(coefficient: float, base: DType, where: str) -> float:
    """A coefficient that is finite in the arithmetic of a base of type `base`. Raises OptionError."""
    try:
        value = float(coefficient)
        with np.errstate(over="ignore"):
            finite = bool(np.isfinite(compute_dtype(base).type(value)))
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        kind = compute_dtype(base).name
        found = str(coefficient)[:40]
        raise OptionError(f"{where}: expected a finite coefficient, found {found}; give a number that {kind} can hold")
    return value


@np.errstate(all="ignore")  # beyond its range a product is infinity, or NaN: so says section 10
def signed_values(
    scale: Scale,
    coefficient: float,
    dtype: DType,
    start: int,
    positions: NDArray[np.int64],
    negative: NDArray[np.bool_],
) -> Floats:
    """What is added to each active element: v or -v, in the arithmetic type of a base of type `dtype`.

    `positions`: of the active elements, counted from flat element `start`, ascending. Shape of the result: that of
    `positions`.
    """
    kind = compute_dtype(dtype).type
    knob = kind(scale.knob)
    values: Floats
    columns = None
    if positions.size == 0 or (scale.rows is None and scale.columns is None):
        values = np.full(positions.size, knob)
    else:
        # Rows of the active elements without a division an element: cut the ascending positions at the rows' ends.
        length = scale.row_length
        first = (start + int(positions[0])) // length
        last = (start + int(positions[-1])) // length
        row_starts = np.arange(first, last + 1) * length - start
        counts = np.diff(np.searchsorted(positions, row_starts[1:]), prepend=0, append=positions.size)
        if scale.rows is not None:
            values = np.repeat(
                knob * scale.rows[first - scale.first_row : last + 1 - scale.first_row].astype(kind), counts
            )
        else:
            values = np.full(positions.size, knob)
        if scale.columns is not None:
            columns = positions - np.repeat(row_starts, counts)
            values *= scale.columns.astype(kind, copy=False)[columns]
    if coefficient != 1:
        values *= kind(coefficient)
    # Adding -v is subtracting v, exactly. Turning the sign bit over takes a twentieth of the time of a masked np.negative.
    if values.itemsize == 8:
        wide = values.view(np.uint64)
        wide ^= negative.astype(np.uint64) << np.uint64(63)
    else:
        bits = values.view(np.uint32)
        bits ^= negative.astype(np.uint32) << np.uint32(31)
    return values


@np.errstate(all="ignore")
def vector_values(
    knob: np.float32, coefficient: float, dtype: DType, elements: NDArray[np.generic], vector: DType
) -> Floats:
    """What a masked entry adds to its active elements: shared elements (1-D, storage dtype of `vector`) times knob and
    coefficient, in the arithmetic type of a base of type `dtype`."""
    kind = compute_dtype(dtype).type
    wide: Floats = np.empty(elements.size, compute_dtype(vector))
    to_float(elements, vector, wide)
    values: Floats = wide.astype(kind, copy=False)
    for factor in (knob, coefficient):
        if factor != 1:
            values *= kind(factor)
    return values


@np.errstate(all="ignore")
def apply_chunk(
    elements: NDArray[np.generic], base: DType, target: DType, terms: Sequence[tuple[NDArray[np.int64], Floats]]
) -> NDArray[np.generic]:
    """Apply to raw base elements (1-D, storage dtype of `base`); in place where the target's type is the base's.

    `terms`: for each task in order, positions of its active elements and their signed values.
    """
    if base is target and len(terms) == 1:
        positions, values = terms[0]
        sums = np.empty(positions.size, values.dtype)
        to_float(elements[positions], base, sums)
        sums += values
        elements[positions] = from_float(sums, target)
        return elements
    whole: Floats = np.empty(elements.size, compute_dtype(base))
    to_float(elements, base, whole)
    for positions, values in terms:
        whole[positions] += values
    if base is not target:
        return from_float(whole, target)
    for positions, _ in terms:
        elements[positions] = from_float(whole[positions], target)
    return elements
