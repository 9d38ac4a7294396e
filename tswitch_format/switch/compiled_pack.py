"""What `blocks.py` and `spectral.py` do with a block of a task vector, compiled: one pass where NumPy takes several, without
the GIL. Import it only where numba is installed (the extra `fast`). What is done for every way to select is in
`compiled_scan.py`; here is what `spectral` needs. Products with whole matrices are in f64 and rounded to f32, as in NumPy.
spec/decisions/0016 has the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tswitch_format.switch.compiled_scan import difference, gather, nth_largest, reaching, square_sums

__all__ = ["add_squares", "difference", "gather", "keys", "nth_largest", "reaching", "sketch", "square_sums", "turn"]

_LANES = 16  # directions: spectral.RANK
_BUCKETS = 64  # spectral.BUCKETS
_TILE = 256  # columns of a tile: what is read of some rows stays in the first-level cache
_TURN_TILE = 128  # the same, of f64
_TINY = np.float32(np.finfo(np.float32).tiny)


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
