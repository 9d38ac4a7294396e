"""One pass over a block of a task vector, compiled: differences, sums of squares, and the elements that reach a floor.

Import it only where numba is installed (the extra `fast`). The bits are those of NumPy where they decide what a file holds:
sums of squares are added in the order in which NumPy adds them, pairwise along a row and one by one down a column.

A row at a time, so that it stays in the first-level cache between the steps; and vectors of eight and of 64 elements, which
LLVM cuts into what the processor has, since it makes none of the loops that would say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from tswitch_format._dtypes import Floats
from tswitch_format.codecs.compiled import _ones, _trailing_zeros
from tswitch_format.switch.compiled import _widen

_PAIRWISE = 128  # elements up to which NumPy sums with eight accumulators
_STACK = 64  # sums that wait to be added, at most: one for each halving
_1, _63 = np.uint64(1), np.uint64(63)
_MAGNITUDE, _DIGIT_SHIFT, _DIGITS = np.uint32(0x7FFFFFFF), np.uint32(15), 1 << 16


def difference(before: NDArray[Any], after: NDArray[Any], out: NDArray[np.float32]) -> None:
    """out = after - before, elementwise. Raw elements of F32, or of BF16 as uint16."""
    _difference(before, after, out)


def square_sums(tau: NDArray[np.float32], shape: tuple[int, int], columns: Floats) -> NDArray[np.float32]:
    """Sums of squares of the rows, f32[rows]; those of the columns are added to `columns`, unless that is empty."""
    rows = np.empty(shape[0], np.float32)
    _square_sums(tau.reshape(shape), rows, columns, _leaves(shape[1]))
    return rows


def reaching(
    keys: Floats, tau: NDArray[np.float32], limit: np.float32, places: NDArray[np.int32], some: NDArray[np.float32]
) -> int:
    """How many elements have a key, or a magnitude of it, of at least `limit`, and not 0; in front of `places` where they are,
    in front of `some` their tau. Both have room for 8 more than there are elements."""
    return int(_reaching(keys, tau, limit, 0, places, some, 0))


def gather(
    before: NDArray[Any],
    after: NDArray[Any],
    shape: tuple[int, int],
    limit: np.float32,
    columns: Floats,
    places: NDArray[np.int32],
    some: NDArray[np.float32],
) -> tuple[NDArray[np.float32], int]:
    """`difference`, `square_sums` and `reaching` for magnitudes, at once: sums of the rows, and how many elements."""
    rows = np.empty(shape[0], np.float32)
    return rows, int(_gather(before, after, shape[1], limit, rows, columns, places, some, _leaves(shape[1])))


def nth_largest(pieces: Sequence[NDArray[np.float32]], nth: int) -> float:
    """The `nth` largest magnitude of all elements, from 1 on: by its upper 16 bits, and then exactly among those that share
    these."""
    counts = np.zeros(_DIGITS, np.int64)
    for piece in pieces:
        _count_digits(piece.view(np.uint32), counts)
    reached = np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, nth))
    digit = _DIGITS - 1 - place
    found = np.empty(int(counts[digit]), np.float32)
    done = 0
    for piece in pieces:
        done = _with_digit(piece.view(np.uint32), digit, found.view(np.uint32), done)
    rank = int(reached[place]) - nth  # of those inside that are smaller
    found.partition(rank)
    return float(found[rank])


@lru_cache(maxsize=64)
def _leaves(count: int) -> NDArray[np.int64]:
    """How NumPy cuts so many elements into halves, of whole eights, until 128 are left: [leaves, 2], elements of each leaf in
    order, and how often two sums are added to one after it. (numba does not keep functions that call themselves.)"""
    found = []
    waiting = [(count, 0)]
    while waiting:
        size, merges = waiting.pop()
        if size <= _PAIRWISE:
            found.append((size, merges))
        else:
            half = size // 2 // 8 * 8
            waiting += [(size - half, merges + 1), (half, 0)]
    return np.array(found, np.int64)


def _vector(builder: Any, array: Any, index: Any, lanes: int) -> Any:
    """So many elements of a contiguous f32 array, wherever they lie."""
    place = builder.gep(array.data, [index])
    kind = ir.VectorType(ir.FloatType(), lanes)
    return builder.load(builder.bitcast(place, kind.as_pointer()), align=4)


@intrinsic
def _squares_of_eights(_context: Any, values: Any, _begin: Any, _eights: Any) -> Any:
    """The sum of the squares of so many times eight elements, one or more, in NumPy's order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, arguments[0])  # type: ignore[no-untyped-call]
        _, begin, eights = arguments

        def squares(at: Any) -> Any:
            eight = _vector(builder, array, at, 8)
            return builder.fmul(eight, eight)

        one = ir.Constant(eights.type, 1)
        sums = cgutils.alloca_once_value(builder, squares(begin))  # type: ignore[no-untyped-call]
        with cgutils.for_range_slice(builder, one, eights, one) as (number, _):
            at = builder.add(begin, builder.shl(number, ir.Constant(number.type, 3)))
            builder.store(builder.fadd(builder.load(sums), squares(at)), sums)
        found = builder.load(sums)
        lanes = [builder.extract_element(found, ir.Constant(ir.IntType(32), lane)) for lane in range(8)]
        while len(lanes) > 1:
            lanes = [builder.fadd(one, other) for one, other in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0]

    return types.float32(values, types.int64, types.int64), generate


@intrinsic
def _at_least(_context: Any, values: Any, index: Any, limit: Any) -> Any:
    """A bit for each of 64 elements from `index` on: whether its magnitude is at least `limit`, and not 0. Zero is asked for by
    itself: to a processor that takes subnormal numbers for zeros (`torch.set_flush_denormal`) no limit above 0 excludes it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, arguments[0])  # type: ignore[no-untyped-call]
        words, floats = ir.VectorType(ir.IntType(32), 64), ir.VectorType(ir.FloatType(), 64)
        found = builder.bitcast(_vector(builder, array, arguments[1], 64), words)
        magnitudes = builder.bitcast(builder.and_(found, ir.Constant(words, [0x7FFFFFFF] * 64)), floats)
        none = ir.Constant(floats, ir.Undefined)
        first = builder.insert_element(none, arguments[2], ir.Constant(ir.IntType(32), 0))
        limits = builder.shuffle_vector(first, none, ir.Constant(words, [0] * 64))
        large = builder.fcmp_ordered(">=", magnitudes, limits)
        some = builder.fcmp_ordered("!=", magnitudes, ir.Constant(floats, [0.0] * 64))
        return builder.bitcast(builder.and_(large, some), ir.IntType(64))

    return types.uint64(values, index, limit), generate


@njit(nogil=True, cache=True)
def _difference(before: Any, after: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = _widen(after[i]) - _widen(before[i])


@njit(nogil=True, cache=True)
def _row_squares(row: Any, leaves: Any, sums: Any) -> Any:
    """NumPy's sum of the squares of a row. `sums`: room for `_STACK`."""
    begin = top = 0
    for leaf in range(leaves.shape[0]):
        size = leaves[leaf, 0]
        end = begin + size
        whole = begin + (size & ~7)
        total = np.float32(0)
        if whole > begin:
            total = _squares_of_eights(row, begin, size >> 3)  # type: ignore[call-arg]  # numba gives the context
        for i in range(whole, end):
            total += row[i] * row[i]
        sums[top] = total
        for _ in range(leaves[leaf, 1]):
            top -= 1
            sums[top] += sums[top + 1]
        top += 1
        begin = end
    return sums[0]


@njit(nogil=True, cache=True)
def _square_sums(tau: Any, rows: Any, columns: Any, leaves: Any) -> None:
    sums = np.empty(_STACK, np.float32)
    for number in range(tau.shape[0]):
        row = tau[number]
        rows[number] = _row_squares(row, leaves, sums)
        if columns.size:
            for i in range(row.size):
                columns[i] += row[i] * row[i]


@njit(nogil=True, cache=True)
def _reaching(keys: Any, tau: Any, limit: Any, start: int, places: Any, some: Any, count: int) -> int:
    """Append to the `count` elements that are in `places`, where they count from `start` before these, and in `some`.

    Four ones of a word at a time, whether it has so many or not, as `codecs.compiled.bit_places` does it.
    """
    whole = keys.size & ~63
    for i in range(0, whole, 64):
        word: np.uint64 = _at_least(keys, i, limit)  # type: ignore[call-arg]  # numba gives the context
        found = int(_ones(word))
        for four in range(0, found, 4):
            for k in range(4):
                at = np.uint64(i) + (_trailing_zeros(word) & _63)
                places[count + four + k] = np.int32(np.uint64(start) + at)
                some[count + four + k] = tau[at]
                word &= word - _1
        count += found
    for i in range(whole, keys.size):
        if np.abs(keys[i]) >= limit and keys[i] != 0:
            places[count] = start + i
            some[count] = tau[i]
            count += 1
    return count


@njit(nogil=True, cache=True)
def _count_digits(words: Any, counts: Any) -> None:
    for word in words:
        counts[(word & _MAGNITUDE) >> _DIGIT_SHIFT] += 1


@njit(nogil=True, cache=True)
def _with_digit(words: Any, digit: int, found: Any, done: int) -> int:
    for word in words:
        if (word & _MAGNITUDE) >> _DIGIT_SHIFT == digit:
            found[done] = word & _MAGNITUDE
            done += 1
    return done


@njit(nogil=True, cache=True)
def _gather(
    before: Any, after: Any, width: int, limit: Any, rows: Any, columns: Any, places: Any, some: Any, leaves: Any
) -> int:
    tau, sums = np.empty(width, np.float32), np.empty(_STACK, np.float32)
    count = 0
    for number in range(rows.size):
        begin = number * width
        _difference(before[begin : begin + width], after[begin : begin + width], tau)
        rows[number] = _row_squares(tau, leaves, sums)
        if columns.size:
            for i in range(width):
                columns[i] += tau[i] * tau[i]
        count = _reaching(tau, tau, limit, begin, places, some, count)
    return count
