"""What `blocks.py` and `spectral.py` do with a block of a task vector, compiled: one pass where NumPy takes several, without
the GIL. Import it only where numba is installed (the extra `fast`).

The bits are those of NumPy where they decide what a file holds: sums of squares are added in the order in which NumPy adds
them, pairwise along a row and one by one down a column. What `spectral.py` multiplies is in f64 and rounded
to f32, as there. spec/decisions/0016 has the figures.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tswitch_format._dtypes import Floats
from tswitch_format.switch.compiled import _widen

_FLAGS = 4096  # elements that are compared at once: their flags stay in the first-level cache
_PAIRWISE = 128  # elements up to which NumPy sums with eight accumulators
_LANES = 16  # directions: spectral.RANK
_BUCKETS = 64  # spectral.BUCKETS
_TILE = 512  # columns of a tile: what is read of some rows stays in the first-level cache
_TINY = np.float32(np.finfo(np.float32).tiny)


def difference(before: NDArray[Any], after: NDArray[Any], out: NDArray[np.float32]) -> None:
    """out = after - before, elementwise. Raw elements of F32, or of BF16 as uint16."""
    _difference(before, after, out)


def square_sums(tau: NDArray[np.float32], shape: tuple[int, int], columns: Floats) -> NDArray[np.float32]:
    """Sums of squares of the rows, f32[rows]; those of the columns are added to `columns`, unless that is empty."""
    rows = np.empty(shape[0], np.float32)
    _square_sums(tau.reshape(shape), rows, columns, np.empty(shape[1], np.float32), _leaves(shape[1]))
    return rows


def reaching(
    keys: Floats, tau: NDArray[np.float32], limit: np.float32, places: NDArray[np.int32], some: NDArray[np.float32]
) -> int:
    """How many elements have a key, or a magnitude of it, of at least `limit`, and not 0; in front of `places` where they are,
    in front of `some` their tau. `places` has room for 8 more than there are elements."""
    flags = np.empty(_FLAGS, np.uint8)
    return int(_reaching(keys, tau, limit, places, some, flags, flags.view(np.uint64)))


def sketch(block: NDArray[np.float32], signs: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """out [R, 64] = sums of the columns of block [R, C] times their signs [C], of every 64th one, in f64."""
    _sketch(block, signs, out)


def turn(block: NDArray[np.float32], basis: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """out [16, C] += basis [rows, 16].T @ block [rows, C], in f64."""
    _turn(block, basis, out, np.empty((4, _TILE)))


def add_squares(block: NDArray[np.float32], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> None:
    """rows [R] = sums of squares of the rows of block [R, C], columns [C] += those of the columns, in f64."""
    _spectral_squares(block, rows, columns)


def keys(
    block: NDArray[np.float32],
    left: NDArray[np.float64] | None,
    right: NDArray[np.float32] | None,
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    own: float,
) -> NDArray[np.float32]:
    """Keys of block [R, C], as `spectral.py` has them. Its projection is left [R, 16] @ right [16, C], or, with None, the block
    itself; rows [R] and columns [C] are what is multiplied by."""
    out = np.empty(block.shape, np.float32)
    low = np.empty((2, _TILE))
    if left is None or right is None:
        _whole_keys(block, rows, columns, own, out, low)
    else:
        _projected_keys(block, left, right, rows, columns, own, out, low)
    return out


@njit(nogil=True, cache=True)
def _difference(before: Any, after: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = _widen(after[i]) - _widen(before[i])


@njit(nogil=True, cache=True)
def _leaf(values: Any, begin: int, count: int) -> Any:
    """NumPy's sum of up to 128 contiguous elements."""
    if count < 8:
        total = np.float32(0)
        for i in range(begin, begin + count):
            total += values[i]
        return total
    r0, r1, r2, r3 = values[begin], values[begin + 1], values[begin + 2], values[begin + 3]
    r4, r5, r6, r7 = values[begin + 4], values[begin + 5], values[begin + 6], values[begin + 7]
    whole = count - count % 8
    for i in range(begin + 8, begin + whole, 8):
        r0 += values[i]
        r1 += values[i + 1]
        r2 += values[i + 2]
        r3 += values[i + 3]
        r4 += values[i + 4]
        r5 += values[i + 5]
        r6 += values[i + 6]
        r7 += values[i + 7]
    total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
    for i in range(begin + whole, begin + count):
        total += values[i]
    return total


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


@njit(nogil=True, cache=True)
def _square_sums(tau: Any, rows: Any, columns: Any, squares: Any, leaves: Any) -> None:
    width = tau.shape[1]
    sums = np.empty(64, np.float32)
    for row in range(tau.shape[0]):
        for i in range(width):
            squares[i] = tau[row, i] * tau[row, i]
        at = top = 0
        for leaf in range(leaves.shape[0]):
            sums[top] = _leaf(squares, at, leaves[leaf, 0])
            at += leaves[leaf, 0]
            for _ in range(leaves[leaf, 1]):
                top -= 1
                sums[top] += sums[top + 1]
            top += 1
        rows[row] = sums[0]
        if columns.size:
            for i in range(width):
                columns[i] += squares[i]


@njit(nogil=True, cache=True)
def _reaching(keys: Any, tau: Any, limit: Any, places: Any, some: Any, flags: Any, words: Any) -> int:
    count = 0
    for begin in range(0, keys.size, _FLAGS):
        size = min(_FLAGS, keys.size - begin)
        part = keys[begin : begin + size]
        for i in range(size):
            flags[i] = (np.abs(part[i]) >= limit) & (part[i] != 0)
        for i in range(size, -(-size // 8) * 8):
            flags[i] = 0
        for word in range(-(-size // 8)):
            if words[word]:  # few have a flag, and most of those one: no branch an element
                for i in range(8 * word, 8 * word + 8):
                    places[count] = begin + i
                    count += flags[i]
    for i in range(count):
        some[i] = tau[places[i]]
    return count


@njit(nogil=True, cache=True)
def _sketch(block: Any, signs: Any, out: Any) -> None:
    rows, width = block.shape
    whole = width - width % _BUCKETS
    for row in range(rows):
        sums, x = out[row], block[row]
        for bucket in range(_BUCKETS):
            sums[bucket] = 0.0
        for c in range(0, whole, _BUCKETS):
            for bucket in range(_BUCKETS):
                sums[bucket] += signs[c + bucket] * np.float64(x[c + bucket])
        for c in range(whole, width):
            sums[c - whole] += signs[c] * np.float64(x[c])


@njit(nogil=True, cache=True)
def _turn(block: Any, basis: Any, out: Any, wide: Any) -> None:
    rows, width = block.shape
    whole = rows - rows % 4
    w0, w1, w2, w3 = wide[0], wide[1], wide[2], wide[3]
    for begin in range(0, width, _TILE):
        size = min(_TILE, width - begin)
        for row in range(0, whole, 4):
            x0, x1 = block[row, begin : begin + size], block[row + 1, begin : begin + size]
            x2, x3 = block[row + 2, begin : begin + size], block[row + 3, begin : begin + size]
            for i in range(size):
                w0[i], w1[i], w2[i], w3[i] = x0[i], x1[i], x2[i], x3[i]
            for lane in range(_LANES):
                sums = out[lane, begin : begin + size]
                b0, b1, b2, b3 = basis[row, lane], basis[row + 1, lane], basis[row + 2, lane], basis[row + 3, lane]
                for i in range(size):
                    sums[i] += (b0 * w0[i] + b1 * w1[i]) + (b2 * w2[i] + b3 * w3[i])
        for row in range(whole, rows):
            x0 = block[row, begin : begin + size]
            for lane in range(_LANES):
                sums = out[lane, begin : begin + size]
                b0 = basis[row, lane]
                for i in range(size):
                    sums[i] += b0 * x0[i]


@njit(nogil=True, cache=True)
def _spectral_squares(block: Any, rows: Any, columns: Any) -> None:
    lanes = np.empty(_LANES, np.float64)
    width = block.shape[1]
    whole = width - width % _LANES
    for row in range(block.shape[0]):
        x = block[row]
        for lane in range(_LANES):
            lanes[lane] = 0.0
        for c in range(0, whole, _LANES):
            for lane in range(_LANES):
                lanes[lane] += np.float64(x[c + lane]) * np.float64(x[c + lane])
        total = 0.0
        for lane in range(_LANES):
            total += lanes[lane]
        for c in range(whole, width):
            total += np.float64(x[c]) * np.float64(x[c])
        rows[row] = total
        for c in range(width):
            columns[c] += np.float64(x[c]) * np.float64(x[c])


@njit(nogil=True, cache=True)
def _projected_keys(block: Any, left: Any, right: Any, rows: Any, columns: Any, own: float, out: Any, low: Any) -> None:
    """Two rows at once, which share what is read of `right`."""
    height, width = block.shape
    low0, low1 = low[0], low[1]
    for begin in range(0, width, _TILE):
        size = min(_TILE, width - begin)
        scales = columns[begin : begin + size]
        for row in range(0, height, 2):
            other = min(row + 1, height - 1)
            for i in range(size):
                low0[i] = 0.0
                low1[i] = 0.0
            for lane in range(0, _LANES, 4):
                a0, a1, a2, a3 = left[row, lane], left[row, lane + 1], left[row, lane + 2], left[row, lane + 3]
                b0, b1, b2, b3 = left[other, lane], left[other, lane + 1], left[other, lane + 2], left[other, lane + 3]
                d0, d1 = right[lane, begin : begin + size], right[lane + 1, begin : begin + size]
                d2, d3 = right[lane + 2, begin : begin + size], right[lane + 3, begin : begin + size]
                for i in range(size):
                    low0[i] += (a0 * d0[i] + a1 * d1[i]) + (a2 * d2[i] + a3 * d3[i])
                    low1[i] += (b0 * d0[i] + b1 * d1[i]) + (b2 * d2[i] + b3 * d3[i])
            _keys_of(block[row, begin : begin + size], low0, rows[row], scales, own, out[row, begin : begin + size])
            if other > row:
                _keys_of(
                    block[other, begin : begin + size], low1, rows[other], scales, own, out[other, begin : begin + size]
                )


@njit(nogil=True, cache=True)
def _whole_keys(block: Any, rows: Any, columns: Any, own: float, out: Any, low: Any) -> None:
    """Where the projection is the block."""
    for begin in range(0, block.shape[1], _TILE):
        size = min(_TILE, block.shape[1] - begin)
        for row in range(block.shape[0]):
            x = block[row, begin : begin + size]
            for i in range(size):
                low[0, i] = x[i]
            _keys_of(x, low[0], rows[row], columns[begin : begin + size], own, out[row, begin : begin + size])


@njit(nogil=True, cache=True)
def _keys_of(x: Any, low: Any, row: float, columns: Any, own: float, out: Any) -> None:
    for i in range(x.size):
        wide = np.float64(x[i])
        main, least = low[i] * wide, wide * wide * own
        key = np.float32((main if main > least else least) * row * columns[i])
        key = key if key > _TINY else _TINY
        out[i] = key if wide != 0.0 else np.float32(0)
