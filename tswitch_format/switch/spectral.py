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
product may change between machines or numbers of threads are far below those that the factors and scales have, which are f32.
Keys are then computed in f32, each operation in its place, so NumPy and compiled loops have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import Floats
from tswitch_format._parallel import one_blas_thread
from tswitch_format.switch.task_vector import TaskVector

RANK = 16
WHOLE = 1 << 16  # elements of a vector that is kept whole; longer ones are by magnitude
BUCKETS = 64
_OWN = np.float32(1 / 16)  # share of an element's own magnitude
_LEAST = 0.05  # of the tensor's root mean square: what a row's and a column's count for at least
_SEED = 0x545357  # "TSW"
_USABLE = (1e-50, 1e50)  # mean squares whose tensors have keys that are numbers of f32
_TINY = np.finfo(np.float32).tiny
_NOTHING = 1e-12  # of the strongest direction's square: weaker ones are what rounding leaves of none
# Products up to which OpenBLAS starts no threads. Those spin when they are done, which slows ours down.
_ONE_THREAD = 1 << 18
_AT_ONCE = 1 << 16  # elements whose keys NumPy computes at once, so that they stay in the second-level cache

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
    return Spectrum(work, factors, row_squares, column_squares)


def _factors(vector: TaskVector, work: _Work, sketch: NDArray[np.float64]) -> _Factors:
    """The strongest directions of a sketch [R, 64], and the task vector along them."""
    squares = np.zeros((BUCKETS, BUCKETS))
    for part in _pieces(len(sketch), BUCKETS * BUCKETS):
        other = sketch[part].copy()  # of an array with itself BLAS has another product, with threads
        squares += sketch[part].T @ other
    with one_blas_thread():
        strengths, directions = np.linalg.eigh(squares)
    strengths, directions = strengths[-RANK:], directions[:, -RANK:]
    some = strengths > _NOTHING * strengths[-1]
    lengths = np.sqrt(strengths, where=some, out=np.ones(RANK))
    turned = np.where(some, directions / lengths, 0.0)
    basis = np.empty((len(sketch), RANK))
    for part in _pieces(len(sketch), BUCKETS * RANK):
        np.matmul(sketch[part], turned, out=basis[part])
    projected = np.zeros((RANK, vector.columns))
    for row, block in vector.row_blocks():
        work.turn(block, basis[row : row + len(block)], projected)
    return basis.astype(np.float32), projected.astype(np.float32)


def _pieces(rows: int, products: int) -> Iterator[slice]:
    """Rows in pieces whose matrix product, of so many products a row, BLAS leaves to the thread that asks."""
    step = max(1, _ONE_THREAD // products)
    for row in range(0, rows, step):
        yield slice(row, min(row + step, rows))


class Spectrum:
    """Projection and sums of squares of the rows [R] and columns [C], f64, of one task vector."""

    def __init__(
        self,
        work: _Work,
        factors: _Factors | None,
        row_squares: NDArray[np.float64],
        column_squares: NDArray[np.float64],
    ) -> None:
        """`factors`: None where the projection is the task vector."""
        self._work = work
        self._factors = factors
        self.row_squares = row_squares
        self.column_squares = column_squares
        rows, columns = row_squares.size, column_squares.size
        least = _LEAST**2 * (float(row_squares.sum()) / (rows * columns))
        self._row_scales, self._column_scales = (
            (np.maximum(squares, least) ** -0.25).astype(np.float32)
            for squares in (row_squares / columns, column_squares / rows)
        )

    def keys(self, start: int, tau: Floats, room: Floats) -> Floats:
        """Keys of whole rows from flat element `start` on, f32; 0 where tau is, and only there. In `room`, as long as tau."""
        columns = self._column_scales.size
        block = tau.reshape(-1, columns)
        part = slice(start // columns, start // columns + len(block))
        factors = None if self._factors is None else (self._factors[0][part], self._factors[1])
        keys = room.view(np.float32)[: tau.size]
        self._work.keys(block, factors, self._row_scales[part], self._column_scales, keys.reshape(block.shape))
        return keys


class _Work:
    """What is done with a block [R, C] of the task vector, in NumPy."""

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
        for part in _pieces(len(block), RANK * block.shape[1]):
            out += basis[part].T @ block[part].astype(np.float64)

    def keys(
        self,
        block: Floats,
        factors: _Factors | None,
        row_scales: NDArray[np.float32],
        column_scales: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None:
        """out [R, C] = keys. `factors` [R, 16] and [16, C]; scales are what is multiplied by. All in f32, some rows at once."""
        rows = max(1, _AT_ONCE // block.shape[1])
        rooms = [np.empty((rows, block.shape[1]), np.float32) for _ in range(4)]
        for row in range(0, len(block), rows):
            part = slice(row, row + rows)
            tau = block[part].astype(np.float32, copy=False)
            low, main, own, spare = (room[: len(tau)] for room in rooms)
            if factors is None:
                low[:] = tau
            else:
                _product(factors[0][part], factors[1], low, main, own, spare)
            scaled = np.multiply(tau, row_scales[part, None], out=spare)
            np.multiply(low, column_scales, out=main)
            main *= scaled
            np.multiply(tau, _OWN, out=own)
            own *= column_scales
            own *= scaled
            np.maximum(main, own, out=main)
            np.maximum(main, _TINY, out=out[part])
        out[block == 0] = 0


def _product(
    left: NDArray[np.float32], right: NDArray[np.float32], out: Floats, one: Floats, two: Floats, three: Floats
) -> None:
    """out = left [R, 16] @ right [16, C], the products added four by four as pairs of pairs. `one` to `three`: room."""
    out[:] = 0
    for lane in range(0, RANK, 4):
        a, b, c, d = (left[:, lane + k : lane + k + 1] for k in range(4))
        np.multiply(a, right[lane], out=one)
        one += np.multiply(b, right[lane + 1], out=two)
        np.multiply(c, right[lane + 2], out=two)
        two += np.multiply(d, right[lane + 3], out=three)
        one += two
        out += one


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
        row_scales: NDArray[np.float32],
        column_scales: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None:
        """See `_Work`."""
        left, right = (None, None) if factors is None else factors
        self._loops.keys(block, left, right, row_scales, column_scales, _OWN, out)


def sketch_signs(columns: int) -> NDArray[np.float64]:
    """[C] of 1 and -1: bits of a generator whose stream NumPy promises to keep."""
    words = np.random.PCG64(_SEED).random_raw(-(-columns // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:columns]
    signs: NDArray[np.float64] = 1 - 2 * bits.astype(np.float64)
    return signs
