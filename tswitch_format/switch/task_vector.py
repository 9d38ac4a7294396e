"""expert - base of one tensor, in blocks that fit the cache; never the whole difference at once.

One pass over a tensor reads both sides, hashes the base, and gathers what selection and knobs need: sums, counts, and the
*survivors*, which are the elements whose key (magnitude, or external score) reaches a floor. The floor is a guess from below
at the threshold, taken from a sample, so that one pass is enough where two would be exact by themselves: if the guess was
too high, which the count of survivors shows, the exact threshold is found by histogram and the pass is done again.

Lesson of the profile (bf16, one core, 1.2 G elements; measured once, on 2026-11-20): of 8 ns an element SHA-256 of the base
takes 1.4, reading both sides 0.9, conversion 1.2, and the other vector operations 0.2 to 0.6 each. Temporary arrays cost more
than the operations, hence `_Scratch`. Blocks of 2^16 elements would stay in the second-level cache, but then operations take
7 us, and a thread that waits for the interpreter's lock wakes later than that: two threads then gain nothing; with blocks of
2^20 they gain 1.6 times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
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

BLOCK = 1 << 20  # elements
Keys = Callable[
    [int, Floats], Floats
]  # of the elements from a flat one on, from their tau: from 0 up, and 0 where tau is
_RUN = 2048  # elements: of a sample, read at once
_RUNS = 16  # of a sample, at least where there are so many
# A block whose squares sum to a number outside this range is looked at closely: NaN, infinity, or squares that lost digits.
_SAFE = (1e-25, 1e30)
# Floors in this range may be compared by squares, a little lower, since squares are rounded; `Survivors.keep` is exact.
_SAFE_FLOOR = (1e-12, 1e12)
_LOWER = 1 - 1e-6
_LONG_COLUMN = 4096  # rows


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
            kept = np.flatnonzero(
                keys >= np.float64(limits)
            )  # a threshold may come from a wider type than the keys have
            if kept.size < keys.size:
                self.positions[number] = self.positions[number].take(kept)
                self.tau[number] = tau.take(kept)
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
    """What one pass finds of a tensor: sums of squares of tau in f64; where asked for `row_squares` [R], `column_squares` [C],
    and `positive` and `negative`, the numbers of elements with a non-zero key by the sign of tau."""

    positive: int = 0
    negative: int = 0
    squares: float = 0.0
    row_squares: NDArray[np.float64] | None = None
    column_squares: NDArray[np.float64] | None = None
    digests: Digests = field(default_factory=lambda: Digests(None, None))
    survivors: Survivors = field(default_factory=Survivors)


class TaskVector:
    """The task vector of one ternary pair, read in blocks.

    Keys say which elements stay. They are magnitudes, or with `score`, a checkpoint of external scores and their name there,
    its values where the task vector is not zero, or what `select_by` was given.
    `rounded`: whether differences are rounded to the tensors' common type, as the authors' code does.
    """

    def __init__(
        self,
        pair: Pair,
        base: CheckpointReader,
        tuned: CheckpointReader,
        score: tuple[CheckpointReader, str] | None = None,
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
        self._keys_of: Keys | None = None if score is None else _ScoreKeys(self, *score)
        self._rounded = self.base_dtype if rounded and self.base_dtype is self.tuned_dtype else None

    @property
    def whole_rows(self) -> bool:
        """Whether blocks are whole rows: they are not where a row is longer than a block."""
        return 0 < self.columns < BLOCK

    def select_by(self, keys: Keys) -> None:
        """Give the elements other keys. They are asked for by blocks of whole rows, where rows are whole."""
        self._keys_of = keys

    def row_blocks(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """(first row, tau [rows, C] in f64) of all blocks, where they are whole rows. Raises NonFiniteError."""
        scratch = _Scratch(self)
        for row, _, rows, columns in self._spans():
            tau = self._read(row * columns, rows * columns, scratch)
            self._check_finite(np.abs(tau, out=scratch.before[: tau.size]), row * columns)
            yield row, tau.reshape(rows, columns).astype(np.float64)

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

    def _read(self, start: int, count: int, scratch: _Scratch) -> Floats:
        """tau of `count` elements from flat element `start` on, in the scratch buffers."""
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
        return tau

    def _keys(self, start: int, tau: Floats, scratch: _Scratch) -> Floats:
        """Magnitudes, after a check that they are finite, or external scores in their place. Raises NonFiniteError."""
        magnitudes = np.abs(tau, out=scratch.before[: tau.size])
        self._check_finite(magnitudes, start)
        return magnitudes if self._keys_of is None else self._keys_of(start, tau)

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
        scratch = _Scratch(self)
        for row, column, rows, columns in self._spans():
            start = row * self.columns + column
            tau = self._read(start, rows * columns, scratch)
            yield tau, self._keys(start, tau, scratch)

    def sample(self, count: int) -> NDArray[np.float64]:
        """Signed keys (key times sign of tau) of about `count` elements in runs spread evenly over the tensor."""
        scratch = _Scratch(self)
        unit = self.columns if self.whole_rows and self._keys_of is not None else 1  # keys are of whole rows
        run = min(-(-_RUN // unit) * unit, self.elements)
        runs = max(1, min(max(count // run, min(_RUNS, 4 * count // run)), self.elements // run))
        found = []
        for number in range(runs):
            start = number * (self.elements - run) // max(runs - 1, 1) // unit * unit
            tau = self._read(start, run, scratch)
            found.append((np.sign(tau) * self._keys(start, tau, scratch)).astype(np.float64))
        return np.concatenate(found)

    def scan(self, floor: float, *, rows: bool, columns: bool, counts: bool) -> Statistics:
        """One pass: statistics, digests of the base, and as survivors at least all whose key reaches `floor` and is not zero.

        `rows`, `columns`: sum squares by row and column; `counts`: count elements by sign. Raises NonFiniteError.
        """
        found = Statistics()
        scratch = _Scratch(self)
        scratch.digest = digest = hashlib.sha256()
        if rows:
            found.row_squares = np.zeros(self.rows)
        if columns:
            found.column_squares = np.zeros(self.columns)
        for row, column, block_rows, block_columns in self._spans():
            start = row * self.columns + column
            tau = self._read(start, block_rows * block_columns, scratch)
            squares = self._add_squares(found, scratch, tau, start, row, column, (block_rows, block_columns))
            if squares is None:
                continue
            keys = None if self._keys_of is None else self._keys_of(start, tau)
            if counts:
                self._count(found, tau, keys)
            places = _places(self._candidates(floor, tau, squares, keys, scratch.flags[: tau.size]), scratch)
            if places.size:
                scores = None if keys is None else keys.take(places)
                found.survivors.add(start, places, tau.take(places), scores)
        nbytes = self.base_dtype.nbytes(self.elements)
        sampled = sampled_digest(nbytes, lambda at, out: self._base.read_into(self._pair.base_stored, at, out))
        found.digests = Digests(digest.digest(), sampled)
        return found

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

    def _candidates(
        self, floor: float, tau: Floats, squares: Floats, keys: Floats | None, flags: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which elements may reach `floor`, in `flags`."""
        if keys is None and floor == 0:
            np.not_equal(tau, 0, out=flags)
        elif keys is None and squares.dtype == tau.dtype and _SAFE_FLOOR[0] < floor < _SAFE_FLOOR[1]:
            np.greater_equal(squares, self.type.type(floor * floor * _LOWER), out=flags)
        elif keys is None or floor > 0:
            np.greater_equal(np.abs(tau) if keys is None else keys, self._at_least(floor), out=flags)
        else:
            np.greater(keys, 0, out=flags)
        return flags

    def _at_least(self, floor: float) -> np.floating[Any]:
        """The smallest number of the vector's type that is not below `floor`, which may come from a wider type."""
        with np.errstate(over="ignore"):
            nearest: np.floating[Any] = self.type.type(floor)
        return np.nextafter(nearest, self.type.type(np.inf)) if float(nearest) < floor else nearest

    def _add_squares(
        self,
        found: Statistics,
        scratch: _Scratch,
        tau: Floats,
        start: int,
        row: int,
        column: int,
        shape: tuple[int, int],
    ) -> Floats | None:
        """Add a block's squares; they are f64 where those of tau's own type lose digits. None for a block of zeros.

        Raises NonFiniteError.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # seen by the sum
            squares: Floats = np.square(tau, out=scratch.squares[: tau.size])
            sums = squares.reshape(shape).sum(axis=1)
            total = float(sums.sum())
        if not _SAFE[0] < total < _SAFE[1]:
            if self._check_finite(np.abs(tau), start) == 0:
                return None
            with np.errstate(over="ignore"):  # an infinite sum makes an infinite knob, which is reported
                squares = np.square(tau.astype(np.float64))
                sums = squares.reshape(shape).sum(axis=1)
                total = float(sums.sum())
        found.squares += total
        if found.row_squares is not None:
            found.row_squares[row : row + shape[0]] += sums
        if found.column_squares is not None:
            # Down the columns NumPy adds one by one: in f32 that is exact enough for some thousand rows only.
            wide = np.float64 if shape[0] > _LONG_COLUMN else None
            found.column_squares[column : column + shape[1]] += squares.reshape(shape).sum(axis=0, dtype=wide)
        return squares


class _ScoreKeys:
    """External scores of a tensor as its keys: zero where nothing differs."""

    def __init__(self, vector: TaskVector, score: CheckpointReader, stored: str) -> None:
        self._name = vector.name
        self._type = vector.type
        self._score = score
        self._stored = stored

    def __call__(self, start: int, tau: Floats) -> Floats:
        dtype = self._score.specs[self._stored].dtype
        raw = np.empty(dtype.nbytes(tau.size), np.uint8)
        self._score.read_into(self._stored, dtype.nbytes(start), raw)
        scores: Floats = np.empty(tau.size, self._type)
        to_float(raw.view(dtype.storage), dtype, scores)
        if not (scores >= 0).all() or np.isinf(scores).any():
            raise CheckpointError(
                f"{self._score.location}: scores of {self._name!r}: expected finite numbers from 0 up, found others among "
                f"elements {start} to {start + tau.size}; mend the scores"
            )
        scores[tau == 0] = 0
        return scores


def _places(flags: NDArray[np.bool_], scratch: _Scratch) -> NDArray[np.int64]:
    """np.flatnonzero, twice as fast where few are set: first the words of 8 flags that have one, then the flags in them."""
    whole = flags.size // 8 * 8
    words = flags[:whole].view(np.uint64)
    some = np.flatnonzero(np.not_equal(words, 0, out=scratch.words[: words.size]))
    if some.size * 2 > words.size:
        return np.flatnonzero(flags)
    inside = np.flatnonzero(words.take(some).view(np.bool_))
    places = (some.take(inside >> 3) << 3) + (inside & 7)
    return np.concatenate([places, np.flatnonzero(flags[whole:]) + whole]) if whole < flags.size else places


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
        self.words = np.empty(size // 8, np.bool_)
