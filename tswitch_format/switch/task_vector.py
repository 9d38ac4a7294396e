"""expert - base of one tensor, in blocks that fit the cache; never the whole difference at once.

One pass over a tensor reads both sides, hashes the base, and gathers what selection and knobs need: sums, counts, and the
*survivors*, which are the elements whose key (magnitude, or external score) reaches a floor. The floor is a guess from below
at the threshold, taken from a sample, so that one pass is enough where two would be exact by themselves: if the guess was
too high, which the count of survivors shows, the exact threshold is found by histogram and the pass is done again.

Lesson of the profile (bf16, two cores): of 7 ns an element SHA-256 of the base takes 1.3, reading both sides 1.0, and about
twelve vector operations 0.1 to 0.6 each. Temporary arrays cost more than the operations, hence `_Scratch`. Blocks of 2^16
elements would stay in the second-level cache, but then operations take 7 us, and a thread that waits for the interpreter's lock
wakes later than that: two threads gained 1.1 times there, and 1.5 times with blocks of 2^19.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._checksum import sampled_digest
from tswitch_format._dtypes import DType, Floats, compute_dtype, from_float, to_float
from tswitch_format.checkpoint import CheckpointReader
from tswitch_format.container.tensors import Digests
from tswitch_format.errors import CheckpointError, NonFiniteError
from tswitch_format.switch.pairing import Pair

BLOCK = 1 << 19  # elements
# Squares of f32 values outside this range lose digits or overflow; then sums are made in f64.
_LONG_COLUMN = 4096  # rows
_SAFE = (1e-15, 1e15)


@dataclass(slots=True)
class Survivors:
    """Elements that may be active, piece by piece in order: flat start, positions from there (int32), tau, and, where keys are
    external scores and not the magnitudes of tau, keys."""

    starts: list[int] = field(default_factory=list)
    positions: list[NDArray[np.int32]] = field(default_factory=list)
    tau: list[Floats] = field(default_factory=list)
    keys: list[Floats] = field(default_factory=list)

    def add(self, start: int, positions: NDArray[np.int64], tau: Floats, keys: Floats | None) -> None:
        """Append those of one block, in order. `keys`: None for the magnitudes of tau."""
        self.starts.append(start)
        self.positions.append(positions.astype(np.int32))
        self.tau.append(tau)
        if keys is not None:
            self.keys.append(keys)

    def key(self, number: int) -> Floats:
        """Keys of one piece."""
        return self.keys[number] if self.keys else np.abs(self.tau[number])

    def count(self) -> int:
        """How many they are."""
        return sum(piece.size for piece in self.positions)

    def keep(self, positive_from: float, negative_from: float) -> None:
        """Drop those whose key is below the threshold of their sign; then the keys themselves."""
        for number, tau in enumerate(self.tau):
            keys = self.key(number)
            limits = (
                positive_from if positive_from == negative_from else np.where(tau > 0, positive_from, negative_from)
            )
            kept = keys >= np.float64(limits)  # a threshold may come from a wider type than the keys have
            if not kept.all():
                self.positions[number] = self.positions[number][kept]
                self.tau[number] = tau[kept]
        self.keys.clear()

    def chunk(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Those in one chunk of the tensor: positions from its start (int64, ascending), and which are negative."""
        begin = number * lay.CHUNK
        first = max(int(np.searchsorted(self.starts, begin, "right")) - 1, 0)
        positions, negative = [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
        for piece in range(first, len(self.starts)):
            offset = self.starts[piece] - begin
            if offset >= lay.CHUNK:
                break
            low, high = np.searchsorted(self.positions[piece], (-offset, lay.CHUNK - offset))
            positions.append(self.positions[piece][low:high].astype(np.int64) + offset)
            negative.append(self.tau[piece][low:high] < 0)
        return np.concatenate(positions), np.concatenate(negative)


@dataclass(slots=True)
class Statistics:
    """What one pass finds of a tensor: counts of elements with a non-zero key, by the sign of tau; sums of squares of tau in
    f64, `row_squares` [R] and `column_squares` [C] only where asked for."""

    positive: int = 0
    negative: int = 0
    squares: float = 0.0
    row_squares: NDArray[np.float64] | None = None
    column_squares: NDArray[np.float64] | None = None
    digests: Digests = field(default_factory=lambda: Digests(None, None))
    survivors: Survivors = field(default_factory=Survivors)

    @property
    def nonzero(self) -> int:
        """Number of elements with a non-zero key."""
        return self.positive + self.negative


class TaskVector:
    """The task vector of one ternary pair, read in blocks.

    `score`: a checkpoint of external scores or None; keys are then its values where the task vector is not zero.
    `rounded`: whether differences are rounded to the tensors' common type, as the authors' code does.
    """

    def __init__(
        self,
        pair: Pair,
        base: CheckpointReader,
        tuned: CheckpointReader,
        score: CheckpointReader | None = None,
        *,
        rounded: bool = False,
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
        self._pair = pair
        self._base = base
        self._tuned = tuned
        self._score = score
        self._rounded = self.base_dtype if rounded and self.base_dtype is self.tuned_dtype else None

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

    def _read(self, start: int, count: int, scratch: _Scratch) -> tuple[Floats, Floats]:
        """tau and its magnitudes of `count` elements from flat element `start` on, in the scratch buffers."""
        raw = scratch.raw[: self.base_dtype.nbytes(count)]
        self._base.read_into(self._pair.base_stored, self.base_dtype.nbytes(start), raw)
        if scratch.digest is not None:
            scratch.digest.update(raw.data)
        before = scratch.before[:count]
        to_float(raw.view(self.base_dtype.storage), self.base_dtype, before)
        raw = scratch.raw[: self.tuned_dtype.nbytes(count)]
        self._tuned.read_into(self._pair.tuned_stored, self.tuned_dtype.nbytes(start), raw)
        tau = scratch.tau[:count]
        to_float(raw.view(self.tuned_dtype.storage), self.tuned_dtype, tau)
        with np.errstate(over="ignore", invalid="ignore"):  # found and reported by the caller
            np.subtract(tau, before, out=tau)
            if self._rounded is not None:
                to_float(from_float(tau.copy(), self._rounded), self._rounded, tau)
        keys = np.abs(tau, out=before)
        return tau, keys

    def _score_keys(self, start: int, tau: Floats, keys: Floats) -> Floats:
        """External scores in place of magnitudes: zero where nothing differs."""
        if self._score is None:
            return keys
        stored = self._score.aliases.get(self.name, self.name)
        dtype = self._score.specs[stored].dtype
        raw = np.empty(dtype.nbytes(tau.size), np.uint8)
        self._score.read_into(stored, dtype.nbytes(start), raw)
        scores: Floats = np.empty(tau.size, self.type)
        to_float(raw.view(dtype.storage), dtype, scores)
        if not (scores >= 0).all() or np.isinf(scores).any():
            raise CheckpointError(
                f"{self._score.location}: scores of {self.name!r}: expected finite numbers from 0 up, found others among "
                f"elements {start} to {start + tau.size}; mend the scores"
            )
        scores[tau == 0] = 0
        return scores

    def _check_finite(self, tau: Floats, keys: Floats, start: int) -> float:
        """The largest magnitude of a block from flat element `start` on. Raises NonFiniteError for NaN and infinity."""
        largest = float(keys.max(initial=0))  # NaN comes through max
        if not np.isfinite(largest):
            raise NonFiniteError(
                f"{self._base.location} and {self._tuned.location}: tensor {self.name!r}: expected finite weights and "
                f"differences, found NaN or infinity among elements {start} to {start + tau.size}; repair the checkpoint, or "
                "store such tensors whole with --nonfinite dense",
                tensor=self.name,
            )
        return largest

    def blocks(self) -> Iterator[tuple[Floats, Floats]]:
        """(tau, keys) of all blocks, flat; both are overwritten by the next. Raises NonFiniteError."""
        scratch = _Scratch(self)
        for row, column, rows, columns in self._spans():
            start = row * self.columns + column
            tau, keys = self._read(start, rows * columns, scratch)
            self._check_finite(tau, keys, start)
            yield tau, self._score_keys(start, tau, keys)

    def sample(self, count: int) -> NDArray[np.float64]:
        """Signed keys (key times sign of tau) of about `count` elements in runs spread evenly over the tensor."""
        scratch = _Scratch(self)
        run = min(1024, self.elements)
        runs = max(1, min(count // run, self.elements // run))
        found = []
        for number in range(runs):
            start = number * (self.elements - run) // max(runs - 1, 1)
            tau, keys = self._read(start, run, scratch)
            found.append((np.sign(tau) * self._score_keys(start, tau, keys)).astype(np.float64))
        return np.concatenate(found)

    def scan(self, floor: float, *, rows: bool, columns: bool) -> Statistics:
        """One pass: statistics, digests of the base, and the survivors, whose key is at least `floor` and not zero.

        Raises NonFiniteError.
        """
        found = Statistics()
        scratch = _Scratch(self)
        scratch.digest = digest = hashlib.sha256()
        lowest = self._at_least(floor)
        if rows:
            found.row_squares = np.zeros(self.rows)
        if columns:
            found.column_squares = np.zeros(self.columns)
        for row, column, block_rows, block_columns in self._spans():
            start = row * self.columns + column
            tau, magnitudes = self._read(start, block_rows * block_columns, scratch)
            largest = self._check_finite(tau, magnitudes, start)
            if largest == 0:
                continue
            self._add_squares(found, scratch, magnitudes, largest, row, column, (block_rows, block_columns))
            keys = self._score_keys(start, tau, magnitudes)
            flags = scratch.flags[: tau.size]
            nonzero = int(np.count_nonzero(np.greater(keys, 0, out=flags)))
            # A score can be zero where tau is not; then signs are counted among the others.
            negative = int(
                np.count_nonzero(np.less(tau, 0, out=flags) if keys is magnitudes else (tau < 0) & (keys > 0))
            )
            found.positive += nonzero - negative
            found.negative += negative
            places = np.flatnonzero(np.greater_equal(keys, lowest, out=flags) if floor > 0 else keys > 0)
            if places.size:
                found.survivors.add(start, places, tau[places], None if keys is magnitudes else keys[places])
        nbytes = self.base_dtype.nbytes(self.elements)
        sampled = sampled_digest(nbytes, lambda at, out: self._base.read_into(self._pair.base_stored, at, out))
        found.digests = Digests(digest.digest(), sampled)
        return found

    def _at_least(self, floor: float) -> np.floating[Any]:
        """The smallest number of the vector's type that is not below `floor`, which may come from a wider type."""
        with np.errstate(over="ignore"):
            nearest: np.floating[Any] = self.type.type(floor)
        return np.nextafter(nearest, self.type.type(np.inf)) if float(nearest) < floor else nearest

    def _add_squares(
        self,
        found: Statistics,
        scratch: _Scratch,
        magnitudes: Floats,
        largest: float,
        row: int,
        column: int,
        shape: tuple[int, int],
    ) -> None:
        if largest < _SAFE[0] or largest > _SAFE[1]:
            with np.errstate(over="ignore"):  # an infinite sum makes an infinite knob, which is reported
                squares: Floats = np.square(magnitudes.astype(np.float64))
        else:
            squares = np.square(magnitudes, out=scratch.squares[: magnitudes.size])
        table = squares.reshape(shape)
        if found.row_squares is None and found.column_squares is None:
            found.squares += float(squares.sum())
            return
        if found.row_squares is not None:
            sums = table.sum(axis=1).astype(np.float64)
            found.row_squares[row : row + shape[0]] += sums
            found.squares += float(sums.sum())
        if found.column_squares is not None:
            # Down the columns NumPy adds one by one: in f32 that is exact enough for some thousand rows only.
            wide = np.float64 if shape[0] > _LONG_COLUMN else None
            found.column_squares[column : column + shape[1]] += table.sum(axis=0, dtype=wide)


class _Scratch:
    """Buffers of one pass over one tensor: made once, so that they stay in the cache."""

    def __init__(self, vector: TaskVector) -> None:
        size = min(vector.elements, BLOCK)
        widest = max(vector.base_dtype.bits, vector.tuned_dtype.bits) // 8
        self.raw = np.empty(size * widest, np.uint8)
        self.digest: hashlib._Hash | None = None  # of the base's bytes, where that is wanted
        self.before: Floats = np.empty(size, vector.type)
        self.tau: Floats = np.empty(size, vector.type)
        self.squares: Floats = np.empty(size, vector.type)
        self.flags = np.empty(size, np.bool_)
