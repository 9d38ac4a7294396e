"""What `blocks.py` and `spectral.py` do with a block of a task vector, compiled: one pass where NumPy takes several, without
the GIL. Import it only where numba is installed (the extra `fast`).

The bits are those of NumPy where they decide what a file holds: sums of squares are added in the order in which NumPy adds
them, pairwise along a row and one by one down a column. Products with whole matrices are in f64 and rounded
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
_TILE = 256  # columns of a tile: what is read of some rows stays in the first-level cache
_TURN_TILE = 128  # the same, of f64
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
    _turn(block, basis, out, np.empty(4 * _TURN_TILE), np.empty(_LANES * _TURN_TILE))


def add_squares(block: NDArray[np.float32], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> None:
    """rows [R] = sums of squares of the rows of block [R, C], columns [C] += those of the columns, in f64."""
    _spectral_squares(block, rows, columns)


def keys(
    block: NDArray[np.float32],
    left: NDArray[np.float32] | None,
    right: NDArray[np.float32] | None,
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
    own: np.float32,
    out: NDArray[np.float32],
) -> None:
    """out = keys of block [R, C], as `spectral.py` has them. Its projection is left [R, 16] @ right [16, C], or, with None, the
    block itself; rows [R] and columns [C] are what is multiplied by."""
    low = np.empty(2 * _TILE, np.float32)
    if left is None or right is None:
        _whole_keys(block, rows, columns, own, out, low)
    else:
        _projected_keys(block, left, right, rows, columns, own, out, low, np.empty(_LANES * _TILE, np.float32))


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


@njit(nogil=True, cache=True, fastmath={"contract"})
def _turn(block: Any, basis: Any, out: Any, wide: Any, sums: Any) -> None:
    """Four rows and two lanes at once. Lanes lie in one array at distances that the compiler knows: it need not look whether
    they overlap, and makes vectors of them."""
    rows, width = block.shape
    whole = rows - rows % 4
    for begin in range(0, width, _TURN_TILE):
        size = min(_TURN_TILE, width - begin)
        for lane in range(_LANES):
            sums[lane * _TURN_TILE : lane * _TURN_TILE + size] = out[lane, begin : begin + size]
        for row in range(0, whole, 4):
            for k in range(4):
                wide[k * _TURN_TILE : k * _TURN_TILE + size] = block[row + k, begin : begin + size]
            for lane in range(0, _LANES, 2):
                a0, a1, a2, a3 = basis[row, lane], basis[row + 1, lane], basis[row + 2, lane], basis[row + 3, lane]
                b0, b1 = basis[row, lane + 1], basis[row + 1, lane + 1]
                b2, b3 = basis[row + 2, lane + 1], basis[row + 3, lane + 1]
                two = sums[lane * _TURN_TILE : (lane + 2) * _TURN_TILE]
                for i in range(size):
                    w0, w1 = wide[i], wide[_TURN_TILE + i]
                    w2, w3 = wide[2 * _TURN_TILE + i], wide[3 * _TURN_TILE + i]
                    two[i] += (a0 * w0 + a1 * w1) + (a2 * w2 + a3 * w3)
                    two[_TURN_TILE + i] += (b0 * w0 + b1 * w1) + (b2 * w2 + b3 * w3)
        for row in range(whole, rows):
            for lane in range(_LANES):
                for i in range(size):
                    sums[lane * _TURN_TILE + i] += basis[row, lane] * block[row, begin + i]
        for lane in range(_LANES):
            out[lane, begin : begin + size] = sums[lane * _TURN_TILE : lane * _TURN_TILE + size]


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
def _projected_keys(
    block: Any, left: Any, right: Any, rows: Any, columns: Any, own: Any, out: Any, low: Any, wide: Any
) -> None:
    """Two rows at once, which share what is read of `right`; arrays as in `_turn`."""
    height, width = block.shape
    for begin in range(0, width, _TILE):
        size = min(_TILE, width - begin)
        scales = columns[begin : begin + size]
        for lane in range(_LANES):
            wide[lane * _TILE : lane * _TILE + size] = right[lane, begin : begin + size]
        for row in range(0, height, 2):
            other = min(row + 1, height - 1)
            for i in range(2 * _TILE):
                low[i] = 0
            for lane in range(0, _LANES, 4):
                a0, a1, a2, a3 = left[row, lane], left[row, lane + 1], left[row, lane + 2], left[row, lane + 3]
                b0, b1, b2, b3 = left[other, lane], left[other, lane + 1], left[other, lane + 2], left[other, lane + 3]
                four = wide[lane * _TILE : (lane + 4) * _TILE]
                for i in range(size):
                    d0, d1, d2, d3 = four[i], four[_TILE + i], four[2 * _TILE + i], four[3 * _TILE + i]
                    low[i] += (a0 * d0 + a1 * d1) + (a2 * d2 + a3 * d3)
                    low[_TILE + i] += (b0 * d0 + b1 * d1) + (b2 * d2 + b3 * d3)
            _keys_of(block[row, begin : begin + size], low, 0, rows[row], scales, own, out[row, begin : begin + size])
            if other > row:
                _keys_of(
                    block[other, begin : begin + size],
                    low,
                    _TILE,
                    rows[other],
                    scales,
                    own,
                    out[other, begin : begin + size],
                )


@njit(nogil=True, cache=True)
def _whole_keys(block: Any, rows: Any, columns: Any, own: Any, out: Any, low: Any) -> None:
    """Where the projection is the block."""
    for begin in range(0, block.shape[1], _TILE):
        size = min(_TILE, block.shape[1] - begin)
        for row in range(block.shape[0]):
            x = block[row, begin : begin + size]
            for i in range(size):
                low[i] = x[i]
            _keys_of(x, low, 0, rows[row], columns[begin : begin + size], own, out[row, begin : begin + size])


@njit(nogil=True, cache=True)
def _keys_of(x: Any, low: Any, at: int, row: Any, columns: Any, own: Any, out: Any) -> None:
    """Of some elements of a row, whose projection is in `low` from `at` on."""
    for i in range(x.size):
        scaled = x[i] * row
        main, least = low[at + i] * columns[i] * scaled, x[i] * own * columns[i] * scaled
        key = main if main > least else least
        key = key if key > _TINY else _TINY
        out[i] = key if x[i] != 0 else np.float32(0)
