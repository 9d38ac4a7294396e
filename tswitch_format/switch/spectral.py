"""Selection by spectrum: which elements carry the directions in which a tensor changes most.

Fine-tuning changes a matrix along few directions and scatters small changes over all of it. A threshold of magnitude keeps
what is large by chance, and of some rows and columns much, of others nothing. Here an element is worth

    key_ij = |tau_ij| * max(sign(tau_ij) * L_ij, |tau_ij| / 16) / sqrt(m_i n_j)

tau [R, C] is the task vector, L its projection onto its 16 strongest left directions, m_i and n_j the root mean squares of
row i and column j, at least a twentieth of the whole's. tau_ij L_ij is the element's part of the squares of L; the
denominator spreads the elements more evenly over rows and columns, half as far as if all were to have equally many. So that
no element is worth nothing, its own square counts a little. Keys have the unit of weights, so one threshold serves all tensors
(threshold.py), and tensors that change more keep more.

Found on validation data of the experiment: `make frontier` compares it with magnitudes, `python -m benchmarks ideas` with other
scales and ranks (decision 0015).

The directions come from a sketch: columns with random signs are added up in 64 buckets (a count sketch: Clarkson and Woodruff
2013, arXiv 1207.6365), and the 16 strongest directions of that [R, 64] are taken (Halko, Martinsson, Tropp 2011, arXiv
0909.4061, stage A). So tau is read twice for them, in blocks, and for the second time to be projected onto them. Memory is 64
numbers a row meanwhile, and then 16 of f32 for each row and column of all tensors. Where there are no more than 16 rows or
columns, L is tau: it is read once, for m and n. The sketch has fixed signs and all of this is in f64: bits that a matrix
product may change between machines or numbers of threads are far below those that factors and keys have, which are f32.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import Floats
from tswitch_format.switch.task_vector import TaskVector

RANK = 16
WHOLE = 1 << 16  # elements of a vector that is kept whole; longer ones are by magnitude
BUCKETS = 64
_OWN = 1 / 16  # share of an element's own magnitude
_LEAST = 0.05  # of the tensor's root mean square: what a row's and a column's count for at least
_SEED = 0x545357  # "TSW"
_USABLE = (1e-50, 1e50)  # mean squares whose tensors have keys that are numbers of f32

_Factors = tuple[NDArray[np.float32], NDArray[np.float32]]  # [R, 16] and [16, C], whose product is the projection


def spectrum_of(vector: TaskVector) -> Spectrum | None:
    """Read a task vector for what its keys need. None where it has no rows and columns in blocks, or differences that are
    not finite or, squared, too large or small for f32: such tensors are selected from by magnitude, which reports those."""
    if len(vector.shape) < 2 or not vector.whole_rows:
        return None
    work = _Work() if vector.loops is None else _CompiledWork(vector.loops)
    rows, columns = vector.rows, vector.columns
    row_squares, column_squares = np.zeros(rows), np.zeros(columns)
    projected = min(rows, columns) > RANK
    signs = sketch_signs(columns) if projected else None
    sketch = np.zeros((rows if projected else 0, BUCKETS))
    with np.errstate(over="ignore", invalid="ignore"):
        for row, block in vector.row_blocks():
            part = slice(row, row + len(block))
            work.add_squares(block, row_squares[part], column_squares)
            if signs is not None:
                work.sketch(block, signs, sketch[part])
        mean = float(row_squares.sum()) / vector.elements
        if not _USABLE[0] < mean < _USABLE[1]:  # nor if it is NaN
            return None
    factors = None if signs is None else _factors(vector, work, sketch)
    least = _LEAST**2 * mean
    row_scales, column_scales = (
        np.maximum(squares, least) ** -0.25 for squares in (row_squares / columns, column_squares / rows)
    )
    return Spectrum(work, factors, row_scales, column_scales)


def _factors(vector: TaskVector, work: _Work, sketch: NDArray[np.float64]) -> _Factors:
    strongest = np.linalg.eigh(sketch.T @ sketch)[1][:, -RANK:]
    basis, _ = np.linalg.qr(sketch @ strongest)
    projected = np.zeros((RANK, vector.columns))
    for row, block in vector.row_blocks():
        work.turn(block, basis[row : row + len(block)], projected)
    return basis.astype(np.float32), projected.astype(np.float32)


class Spectrum:
    """Projection and scales of the rows [R] and columns [C] of one task vector."""

    def __init__(
        self,
        work: _Work,
        factors: _Factors | None,
        row_scales: NDArray[np.float64],
        column_scales: NDArray[np.float64],
    ) -> None:
        """`factors`: None where the projection is the task vector. Scales are what is multiplied by."""
        self._work = work
        self._factors = factors
        self._row_scales = row_scales
        self._column_scales = column_scales

    def keys(self, start: int, tau: Floats) -> Floats:
        """Keys of whole rows from flat element `start` on, f32; 0 where tau is, and only there."""
        columns = self._column_scales.size
        block = tau.reshape(-1, columns)
        part = slice(start // columns, start // columns + len(block))
        factors = None if self._factors is None else (self._factors[0][part], self._factors[1])
        return self._work.keys(block, factors, self._row_scales[part], self._column_scales).reshape(-1)


class _Work:
    """What is done with a block [R, C] of the task vector, in NumPy. f64 but for block, factors and keys."""

    def add_squares(self, block: Floats, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> None:
        """rows [R] = sums of squares of the rows, columns [C] += those of the columns."""
        squares = np.square(block, dtype=np.float64)
        rows[:] = squares.sum(axis=1)
        columns += squares.sum(axis=0)

    def sketch(self, block: Floats, signs: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """out [R, 64] = sums of the columns times their signs [C], of every 64th one."""
        signed = block * signs
        whole = signed.shape[1] // BUCKETS * BUCKETS
        signed[:, :whole].reshape(len(signed), -1, BUCKETS).sum(axis=1, out=out)
        out[:, : signed.shape[1] - whole] += signed[:, whole:]

    def turn(self, block: Floats, basis: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """out [16, C] += basis [R, 16].T @ block."""
        out += basis.T @ block.astype(np.float64)

    def keys(
        self,
        block: Floats,
        factors: _Factors | None,
        row_scales: NDArray[np.float64],
        column_scales: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Keys [R, C], f32. `factors` [R, 16] and [16, C]."""
        wide = block.astype(np.float64)
        main = wide.copy() if factors is None else factors[0].astype(np.float64) @ factors[1].astype(np.float64)
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

    def sketch(self, block: Floats, signs: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """See `_Work`."""
        self._loops.sketch(block, signs, out)

    def turn(self, block: Floats, basis: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """See `_Work`."""
        self._loops.turn(block, basis, out)

    def keys(
        self,
        block: Floats,
        factors: _Factors | None,
        row_scales: NDArray[np.float64],
        column_scales: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """See `_Work`."""
        left, right = (None, None) if factors is None else (factors[0].astype(np.float64), factors[1])
        keys: NDArray[np.float32] = self._loops.keys(block, left, right, row_scales, column_scales, _OWN)
        return keys


def sketch_signs(columns: int) -> NDArray[np.float64]:
    """[C] of 1 and -1: bits of a generator whose stream NumPy promises to keep."""
    words = np.random.PCG64(_SEED).random_raw(-(-columns // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:columns]
    signs: NDArray[np.float64] = 1 - 2 * bits.astype(np.float64)
    return signs
