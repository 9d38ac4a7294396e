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
    in blocks, or squares that f64 cannot hold. Raises NonFiniteError."""
    if len(vector.shape) < 2 or not vector.whole_rows:
        return
    found = _Spectrum(vector)
    if found.usable:
        vector.select_by(found.keys)


class _Spectrum:
    """Directions [C, 16] and root mean squares of rows and columns of one task vector, in f64."""

    def __init__(self, vector: TaskVector) -> None:
        self._columns = vector.columns
        rows, columns = vector.rows, vector.columns
        row_squares, column_squares = np.zeros(rows), np.zeros(columns)
        self._directions: NDArray[np.float64] | None = None  # all that there are
        projected = min(rows, columns) > RANK
        sketch = _signs(columns) if projected else None
        seen = np.zeros((rows, RANK)) if projected else None
        with np.errstate(over="ignore", invalid="ignore"):
            for row, block in vector.row_blocks():
                squares = np.square(block)
                row_squares[row : row + len(block)] = squares.sum(axis=1)
                column_squares += squares.sum(axis=0)
                if sketch is not None and seen is not None:
                    seen[row : row + len(block)] = block @ sketch
            least = _LEAST**2 * (float(row_squares.sum()) / vector.elements)
            self.usable = bool(np.isfinite(least) and least >= np.finfo(np.float64).tiny)
            if not self.usable:
                return
            if seen is not None:
                basis, _ = np.linalg.qr(seen)
                turned = np.zeros((columns, RANK))
                for row, block in vector.row_blocks():
                    turned += block.T @ basis[row : row + len(block)]
                self._directions, _ = np.linalg.qr(turned)
        self._row_scales = np.sqrt(np.maximum(row_squares / columns, least))
        self._column_scales = np.sqrt(np.maximum(column_squares / rows, least))

    def keys(self, start: int, tau: Floats) -> Floats:
        """Keys of whole rows from flat element `start` on, f32; 0 where tau is, and only there."""
        block = tau.reshape(-1, self._columns).astype(np.float64)
        row = start // self._columns
        main = block.copy() if self._directions is None else (block @ self._directions) @ self._directions.T
        main *= block
        np.square(block, out=block)
        block *= _OWN
        np.maximum(main, block, out=main)
        main /= self._row_scales[row : row + len(block), None]
        main /= self._column_scales
        keys = np.maximum(main.astype(np.float32), np.finfo(np.float32).tiny).reshape(-1)
        keys[tau == 0] = 0
        return keys


def _signs(columns: int) -> NDArray[np.float64]:
    """[C, 16] of 1 and -1: bits of a generator whose stream NumPy promises to keep."""
    words = np.random.PCG64(_SEED).random_raw(-(-columns * RANK // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[: columns * RANK]
    signs: NDArray[np.float64] = 1 - 2 * bits.reshape(columns, RANK).astype(np.float64)
    return signs
