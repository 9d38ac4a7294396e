"""Selection by spectrum: which elements carry the directions in which a tensor changes most.

Fine-tuning changes a matrix along few directions and scatters small changes over all of it. A threshold of magnitude keeps
what is large by chance, and of some rows and columns much, of others nothing. Here an element is worth

    key_ij = |tau_ij| * max(sign(tau_ij) * L_ij, |tau_ij| / 16) / (m_i n_j)

tau [R, C] is the task vector, L its projection onto its 16 strongest right directions, m_i and n_j the root mean squares of
row i and column j, at least a twentieth of the whole's. tau_ij L_ij is the element's part of the squares of L; the
denominator spreads the elements more evenly over rows and columns. So that no element is worth nothing, its own square counts
a little.

Found on validation data of the experiment: `make frontier` compares it with magnitudes, `python -m benchmarks ideas` with other
scales and ranks (decision 0015).

The directions come from a random sketch and one step of subspace iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061,
algorithm 4.4 with half a step), so tau is read twice before it is selected from, in blocks; memory is some times 16 numbers a
row and a column. Where there are no more than 16 rows or columns, L is tau: it is read once, for m and n. The sketch is of
fixed signs and all of this in f64: bits that a matrix product may change between machines or numbers of threads are far below
those that a key has, which is f32 whatever tau is.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import Floats
from tswitch_format.switch.task_vector import TaskVector

RANK = 16
WHOLE = 1 << 16  # elements of a vector that is kept whole; longer ones are by magnitude
_OWN = 1 / 16  # share of an element's own magnitude
_LEAST = 0.05  # of the tensor's root mean square: what a row's and a column's count for at least
_SEED = 0x545357  # "TSW"


def spectral_keys(vector: TaskVector) -> None:
    """Let a task vector be selected from by spectrum. Nothing changes, so it is by magnitude, where it has no rows and columns
    in blocks, or squares that f64 cannot hold, as those of NaN and infinity, which selection by magnitude reports."""
    if len(vector.shape) < 2 or not vector.whole_rows:
        return
    found = _Spectrum(vector)
    if found.usable:
        vector.select_by(found.keys)


_Directions = tuple[NDArray[np.float64], NDArray[np.float64]]  # [C, 16], and the same turned


class _Spectrum:
    """Directions and root mean squares of rows and columns of one task vector, in f64."""

    def __init__(self, vector: TaskVector) -> None:
        self._columns = vector.columns
        self._work = _Work() if vector.loops is None else _CompiledWork(vector.loops)
        rows, columns = vector.rows, vector.columns
        row_squares, column_squares = np.zeros(rows), np.zeros(columns)
        self._directions: _Directions | None = None  # None: all that there are
        projected = min(rows, columns) > RANK
        sketch = _signs(columns) if projected else None
        seen = np.zeros((rows, RANK)) if projected else None
        with np.errstate(over="ignore", invalid="ignore"):
            for row, block in vector.row_blocks():
                part = slice(row, row + len(block))
                self._work.add_squares(block, row_squares[part], column_squares)
                if sketch is not None and seen is not None:
                    self._work.project(block, sketch, seen[part])
            least = _LEAST**2 * (float(row_squares.sum()) / vector.elements)
            self.usable = bool(np.isfinite(least) and least >= np.finfo(np.float64).tiny)
            if not self.usable:
                return
            if seen is not None:
                basis, _ = np.linalg.qr(seen)
                turned = np.zeros((RANK, columns))
                for row, block in vector.row_blocks():
                    self._work.turn(block, basis[row : row + len(block)], turned)
                found, _ = np.linalg.qr(turned.T)
                self._directions = np.ascontiguousarray(found), np.ascontiguousarray(found.T)
        self._row_scales = 1 / np.sqrt(np.maximum(row_squares / columns, least))
        self._column_scales = 1 / np.sqrt(np.maximum(column_squares / rows, least))

    def keys(self, start: int, tau: Floats) -> Floats:
        """Keys of whole rows from flat element `start` on, f32; 0 where tau is, and only there."""
        block = tau.reshape(-1, self._columns)
        row = start // self._columns
        scales = self._row_scales[row : row + len(block)]
        return self._work.keys(block, self._directions, scales, self._column_scales).reshape(-1)


class _Work:
    """What is done with a block [R, C] of the task vector, in NumPy. f64 but for block and keys."""

    def add_squares(self, block: Floats, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> None:
        """rows [R] = sums of squares of the rows, columns [C] += those of the columns."""
        squares = np.square(block, dtype=np.float64)
        rows[:] = squares.sum(axis=1)
        columns += squares.sum(axis=0)

    def project(self, block: Floats, directions: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """out [R, 16] = block @ directions [C, 16]."""
        np.matmul(block.astype(np.float64), directions, out=out)

    def turn(self, block: Floats, basis: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """out [16, C] += basis [R, 16].T @ block."""
        out += basis.T @ block.astype(np.float64)

    def keys(
        self,
        block: Floats,
        directions: _Directions | None,
        row_scales: NDArray[np.float64],
        column_scales: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Keys [R, C], f32. Scales are what is multiplied by."""
        wide = block.astype(np.float64)
        main = wide.copy() if directions is None else (wide @ directions[0]) @ directions[1]
        main *= wide
        np.square(wide, out=wide)
        wide *= _OWN
        np.maximum(main, wide, out=main)
        main *= row_scales[:, None]
        main *= column_scales
        keys: NDArray[np.float32] = np.maximum(main.astype(np.float32), np.finfo(np.float32).tiny)
        keys[block == 0] = 0
        return keys


class _CompiledWork(_Work):
    """With the loops of the module `compiled_pack`, for blocks of f32."""

    def __init__(self, loops: ModuleType) -> None:
        self._loops = loops

    def add_squares(self, block: Floats, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> None:
        """See `_Work`."""
        self._loops.add_squares(block, rows, columns)

    def project(self, block: Floats, directions: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """See `_Work`."""
        self._loops.project(block, directions, out)

    def turn(self, block: Floats, basis: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """See `_Work`."""
        self._loops.turn(block, basis, out)

    def keys(
        self,
        block: Floats,
        directions: _Directions | None,
        row_scales: NDArray[np.float64],
        column_scales: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """See `_Work`."""
        seen = None
        if directions is not None:
            seen = np.empty((len(block), RANK))
            self._loops.project(block, directions[0], seen)
        turned = None if directions is None else directions[1]
        keys: NDArray[np.float32] = self._loops.keys(block, seen, turned, row_scales, column_scales, _OWN)
        return keys


def _signs(columns: int) -> NDArray[np.float64]:
    """[C, 16] of 1 and -1: bits of a generator whose stream NumPy promises to keep."""
    words = np.random.PCG64(_SEED).random_raw(-(-columns * RANK // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[: columns * RANK]
    signs: NDArray[np.float64] = 1 - 2 * bits.reshape(columns, RANK).astype(np.float64)
    return signs
