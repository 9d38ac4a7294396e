"""expert - base of one tensor, in blocks that fit the cache; never the whole difference at once.

One pass over a tensor reads both sides, hashes the base, and gathers what selection and knobs need: sums, counts, and the
*survivors*, which are the elements whose key (magnitude, or external score) reaches a floor. The floor is a guess from below
at the threshold, taken from a sample, so that one pass is enough where two would be exact by themselves: if the guess was
too high, which the count of survivors shows, the exact threshold is found by histogram and the pass is done again.

Lesson of the profile: blocks of 2^16 elements would stay in the second-level cache, but then NumPy's operations take 7 us, and
a thread that waits for the interpreter's lock wakes later than that: two threads then gain nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tswitch_format._checksum import sampled_digest
from tswitch_format._dtypes import DType, Floats, compute_dtype, from_float, to_float
from tswitch_format.checkpoint import CheckpointReader
from tswitch_format.container.tensors import Digests
from tswitch_format.errors import CheckpointError, NonFiniteError
from tswitch_format.switch.blocks import BlockPool, Blocks, SquareSums, sums_of
from tswitch_format.switch.pairing import Pair
from tswitch_format.switch.survivors import Kept, Statistics

BLOCK = 1 << 19  # elements
# Of the elements from a flat one on, from their tau and room of its size and type for them: from 0 up, and 0 where tau is.
Keys = Callable[[int, Floats, Floats], Floats]
_RUN = 1024  # elements: of a sample, read at once
_RUNS = 16  # of a sample, at least where there are so many
# A block whose squares sum to a number outside this range is looked at closely: NaN, infinity, or squares that lost digits.
_SAFE = (1e-25, 1e30)


class TaskVector:
    """The task vector of one ternary pair, read in blocks.

    Keys say which elements stay. They are magnitudes, or with `score`, a checkpoint of external scores and their name there,
    its values where the task vector is not zero, or what `select_by` was given.
    `rounded`: whether differences are rounded to the tensors' common type, as the authors' code does. `pool`: buffers,
    which other vectors use too, and whether `compiled_pack` is used.
    """

    def __init__(
        self,
        pair: Pair,
        base: CheckpointReader,
        tuned: CheckpointReader,
        score: tuple[CheckpointReader, str] | None = None,
        *,
        rounded: bool = False,
        pool: BlockPool | None = None,
    ) -> None:
        if pair.base is None or pair.tuned is None:
            raise CheckpointError(f"tensor {pair.name!r}: expected it on both sides; this is a bug, please report it")
        self.name = pair.name
        self.base_dtype: DType = pair.base.dtype
        self.tuned_dtype: DType = pair.tuned.dtype
        self.shape = pair.base.shape
        self.elements = pair.base.elements
        self.rows = self.shape[0] if len(self.shape) > 1 else 1
        self.columns = self.elements // self.rows if self.rows else 0
        self.type = compute_dtype(self.base_dtype)
        self._pool = pool or BlockPool(BLOCK)
        self.loops = self._pool.loops if self.type == np.float32 else None
        self._pair = pair
        self._base = base
        self._tuned = tuned
        self._keys_of: Keys | None = None if score is None else _ScoreKeys(self, *score)
        self._known: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._rounded = self.base_dtype if rounded and self.base_dtype is self.tuned_dtype else None

    @property
    def has_sums(self) -> bool:
        """Whether sums of squares were given, so that the last pass needs the survivors only."""
        return self._known is not None

    @property
    def whole_rows(self) -> bool:
        """Whether blocks are whole rows: they are not where a row is longer than a block."""
        return 0 < self.columns < BLOCK

    def select_by(self, keys: Keys, row_squares: NDArray[np.float64], column_squares: NDArray[np.float64]) -> None:
        """Give the elements other keys, which are asked for by blocks of whole rows, where rows are whole; and sums of squares,
        finite ones, so that nothing is computed again."""
        self._keys_of = keys
        self._known = row_squares, column_squares

    def row_blocks(self) -> Iterator[tuple[int, Floats]]:
        """(first row, tau [rows, C]) of all blocks, where they are whole rows; each is overwritten by the next. Not checked for
        NaN and infinity."""
        with self._blocks() as blocks:
            for row, _, rows, columns in self._spans():
                yield row, self._read(row * columns, rows * columns, blocks).reshape(rows, columns)

    def _blocks(self) -> contextlib.AbstractContextManager[Blocks]:
        return self._pool.blocks(self.base_dtype, self.tuned_dtype)

    def _spans(self) -> Iterator[tuple[int, int, int, int]]:
        """(row, column, rows, columns) of each block: whole rows, or parts of one row where rows are long."""
        if not self.elements:
            return
        if self.columns >= BLOCK:
            for row in range(self.rows):
                for column in range(0, self.columns, BLOCK):
                    yield row, column, 1, min(BLOCK, self.columns - column)
        else:
            step = max(1, BLOCK // self.columns)
            for row in range(0, self.rows, step):
                yield row, 0, min(step, self.rows - row), self.columns

    def _read(self, start: int, count: int, blocks: Blocks) -> Floats:
        """tau of `count` elements from flat element `start` on, in the buffers of `blocks`."""
        self._load(start, count, blocks)
        return self._difference(count, blocks)

    def _load(self, start: int, count: int, blocks: Blocks, digest: hashlib._Hash | None = None) -> None:
        """Raw elements of both sides into the buffers of `blocks`; `digest` gets the base's bytes."""
        raw = blocks.base_raw[: self.base_dtype.nbytes(count)]
        self._base.read_into(self._pair.base_stored, self.base_dtype.nbytes(start), raw)
        if digest is not None:
            digest.update(raw.data)
        raw = blocks.tuned_raw[: self.tuned_dtype.nbytes(count)]
        self._tuned.read_into(self._pair.tuned_stored, self.tuned_dtype.nbytes(start), raw)

    def _difference(self, count: int, blocks: Blocks) -> Floats:
        """tau of the elements in the buffers of `blocks`."""
        tau = blocks.difference(count)
        if self._rounded is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # found and reported by the caller
                to_float(from_float(tau.copy(), self._rounded), self._rounded, tau)
        return tau

    def _keys(self, start: int, tau: Floats, blocks: Blocks) -> Floats:
        """Magnitudes, after a check that they are finite, or other keys in their place. Raises NonFiniteError."""
        if self._known is not None and self._keys_of is not None:
            return self._keys_of(start, tau, blocks.room(tau.size))
        magnitudes = blocks.magnitudes(tau)
        self._check_finite(magnitudes, start)
        return magnitudes if self._keys_of is None else self._keys_of(start, tau, blocks.room(tau.size))

    def _check_finite(self, magnitudes: Floats, start: int) -> float:
        """The largest magnitude of a block from flat element `start` on. Raises NonFiniteError for NaN and infinity."""
        largest = float(magnitudes.max(initial=0))  # NaN comes through max
        if not np.isfinite(largest):
            raise NonFiniteError(
                f"{self._base.location} and {self._tuned.location}: tensor {self.name!r}: expected finite weights and "
                f"differences, found NaN or infinity among elements {start} to {start + magnitudes.size}; repair the "
                "checkpoint, or store such tensors whole with --nonfinite dense",
                tensor=self.name,
            )
        return largest

    def blocks(self) -> Iterator[tuple[Floats, Floats]]:
        """(tau, keys) of all blocks, flat; both are overwritten by the next. Raises NonFiniteError."""
        with self._blocks() as blocks:
            for row, column, rows, columns in self._spans():
                start = row * self.columns + column
                tau = self._read(start, rows * columns, blocks)
                yield tau, self._keys(start, tau, blocks)

    def keys_from(self, floor: float) -> Iterator[tuple[NDArray[np.int32], Floats]]:
        """(positions, keys) of the elements of each block whose key reaches a floor and is not zero. Raises NonFiniteError."""
        with self._blocks() as blocks:
            for row, column, rows, columns in self._spans():
                start = row * self.columns + column
                keys = self._keys(start, self._read(start, rows * columns, blocks), blocks)
                yield blocks.reaching(keys, keys, floor, squared=False)

    def sample(self, count: int) -> NDArray[np.float64]:
        """Signed keys (key times sign of tau) of about `count` elements in runs spread evenly over the tensor."""
        with self._blocks() as blocks:
            unit = self.columns if self.whole_rows and self._keys_of is not None else 1  # keys are of whole rows
            run = min(-(-_RUN // unit) * unit, self.elements)
            runs = max(1, min(max(count // run, min(_RUNS, 4 * count // run)), self.elements // run))
            found = np.empty((runs, run))
            for number in range(runs):
                start = number * (self.elements - run) // max(runs - 1, 1) // unit * unit
                tau = self._read(start, run, blocks)
                np.copysign(self._keys(start, tau, blocks), tau, out=found[number])
            return found.reshape(-1)

    def scan(self, floor: float, *, rows: bool, columns: bool, counts: bool) -> Statistics:
        """One pass: statistics, digests of the base, and as survivors at least all whose key reaches `floor` and is not zero.

        `rows`, `columns`: sum squares by row and column; `counts`: count elements by sign. Raises NonFiniteError.
        """
        found = self._statistics(rows=rows, columns=columns)
        with self._blocks() as blocks:
            digest = hashlib.sha256()
            simple = self._known is None and self._keys_of is None and self._rounded is None and not counts
            for row, column, block_rows, block_columns in self._spans():
                start = row * self.columns + column
                self._load(start, block_rows * block_columns, blocks, digest)
                if simple:
                    gathered = blocks.gather((block_rows, block_columns), floor, columns=columns)
                    if gathered is not None and _SAFE[0] < gathered[0].total < _SAFE[1]:
                        found.add(gathered[0], row, column)
                        found.survivors.add(start, *gathered[1:], None)
                        continue
                tau = self._difference(block_rows * block_columns, blocks)
                lossy = True
                if self._known is None:
                    sums, lossy = self._square_sums(blocks, tau, start, (block_rows, block_columns), columns=columns)
                    if sums is None:
                        continue
                    found.add(sums, row, column)
                keys = None if self._keys_of is None else self._keys_of(start, tau, blocks.room(tau.size))
                if counts:
                    self._count(found, tau, keys)
                places, some = blocks.reaching(tau, keys, floor, squared=not lossy)
                if places.size:
                    found.survivors.add(start, places, some, None if keys is None else keys.take(places))
            found.digests = self._digests(digest)
            return found

    def pick(self, kept: Kept, threshold: float, *, rows: bool, columns: bool) -> Statistics:
        """The same where sums of squares are given and positions are known: `threshold` leaves these survivors."""
        found = self._statistics(rows=rows, columns=columns)
        with self._blocks() as blocks:
            digest = hashlib.sha256()
            for number, (row, column, block_rows, block_columns) in enumerate(self._spans()):
                start = row * self.columns + column
                self._load(start, block_rows * block_columns, blocks, digest)
                places = kept.places(number, threshold)
                if places.size:
                    found.survivors.add(start, places, blocks.differences_at(places), None)
            found.digests = self._digests(digest)
            return found

    def _statistics(self, *, rows: bool, columns: bool) -> Statistics:
        """With the sums that are asked for, as far as they are known."""
        found = Statistics()
        if rows:
            found.row_squares = np.zeros(self.rows)
        if columns:
            found.column_squares = np.zeros(self.columns)
        if self._known is not None:
            found.add(SquareSums.of(*self._known), 0, 0)
        return found

    def _digests(self, digest: hashlib._Hash) -> Digests:
        nbytes = self.base_dtype.nbytes(self.elements)
        sampled = sampled_digest(nbytes, lambda at, out: self._base.read_into(self._pair.base_stored, at, out))
        return Digests(digest.digest(), sampled)

    def _square_sums(
        self, blocks: Blocks, tau: Floats, start: int, shape: tuple[int, int], *, columns: bool
    ) -> tuple[SquareSums | None, bool]:
        """Sums of a block's squares, and whether they had to be f64, since those of tau's own type lose digits. None for a
        block of zeros. Raises NonFiniteError."""
        sums = blocks.square_sums(tau, shape, columns=columns)
        if _SAFE[0] < sums.total < _SAFE[1]:
            return sums, False
        if self._check_finite(np.abs(tau), start) == 0:
            return None, True
        with np.errstate(over="ignore"):  # an infinite sum makes an infinite knob, which is reported
            return sums_of(np.square(tau.astype(np.float64)), shape, columns=columns), True

    def _count(self, found: Statistics, tau: Floats, keys: Floats | None) -> None:
        """Count elements with a non-zero key by the sign of tau."""
        for positive in (True, False):
            of_sign = tau > 0 if positive else tau < 0
            if keys is not None:
                of_sign &= keys > 0
            count = int(np.count_nonzero(of_sign))
            if positive:
                found.positive += count
            else:
                found.negative += count


class _ScoreKeys:
    """External scores of a tensor as its keys: zero where nothing differs."""

    def __init__(self, vector: TaskVector, score: CheckpointReader, stored: str) -> None:
        self._name = vector.name
        self._score = score
        self._stored = stored

    def __call__(self, start: int, tau: Floats, room: Floats) -> Floats:
        dtype = self._score.specs[self._stored].dtype
        raw = np.empty(dtype.nbytes(tau.size), np.uint8)
        self._score.read_into(self._stored, dtype.nbytes(start), raw)
        scores = room
        to_float(raw.view(dtype.storage), dtype, scores)
        if not (scores >= 0).all() or np.isinf(scores).any():
            raise CheckpointError(
                f"{self._score.location}: scores of {self._name!r}: expected finite numbers from 0 up, found others among "
                f"elements {start} to {start + tau.size}; mend the scores"
            )
        scores[tau == 0] = 0
        return scores
