"""Arithmetic of one block of a task vector, in buffers that are made once for a pass so that they stay in the cache.

    Blocks            in NumPy: what others must equal, bit for bit
    CompiledBlocks    the same with the loops of `compiled_scan.py`, for F32 and BF16
    BlockPool         which of them, and buffers that are used again

Lesson of the profile: temporary arrays cost more than the operations on them, hence the buffers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import BF16, F32, DType, Floats, compute_dtype, to_float

# Keys that are magnitudes may be compared with floors in this range by squares, a little lower, since squares are rounded.
_SAFE_FLOOR = (1e-12, 1e12)
_LOWER = 1 - 1e-6
_NARROW = 128  # columns, below which steps of their own are quicker than a row at a time
LONG_COLUMN = 4096  # rows, from which on squares are added in f64


@dataclass(frozen=True, slots=True)
class SquareSums:
    """Sums of squares of a block, f32 or f64: `rows` [R], `columns` [C], or [0] where they were not asked for, and all."""

    rows: Floats
    columns: Floats
    total: float

    @classmethod
    def of(cls, rows: Floats, columns: Floats) -> SquareSums:
        """With the total, which may be infinite or NaN."""
        with np.errstate(over="ignore", invalid="ignore"):
            return cls(rows, columns, float(rows.sum()))


class Blocks:
    """For blocks of at most `size` elements. `base_raw` and `tuned_raw`: room for their raw bytes."""

    def __init__(self, size: int, base: DType, tuned: DType) -> None:
        self.base_raw = np.empty(base.nbytes(size), np.uint8)
        self.tuned_raw = np.empty(tuned.nbytes(size), np.uint8)
        self._base = base
        self._tuned = tuned
        kind = compute_dtype(base)
        self._tau: Floats = np.empty(size, kind)
        self._other: Floats = np.empty(size, kind)
        self._squares: Floats | None = None
        self._flags: NDArray[np.bool_] | None = None
        self._words: NDArray[np.bool_] | None = None

    def difference(self, count: int) -> Floats:
        """tau of `count` elements whose raw bytes are in the buffers. Overwritten by the next."""
        tau, before = self._tau[:count], self._other[:count]
        to_float(_elements(self.base_raw, self._base, count), self._base, before)
        to_float(_elements(self.tuned_raw, self._tuned, count), self._tuned, tau)
        with np.errstate(over="ignore", invalid="ignore"):  # found and reported by the caller
            return np.subtract(tau, before, out=tau)

    def differences_at(self, places: NDArray[np.int32]) -> Floats:
        """tau of some elements whose raw bytes are in the buffers, a new array."""
        before: Floats = np.empty(places.size, self._tau.dtype)
        after: Floats = np.empty_like(before)
        for raw, dtype, out in ((self.base_raw, self._base, before), (self.tuned_raw, self._tuned, after)):
            to_float(raw.view(dtype.storage).take(places), dtype, out)
        after -= before
        return after

    def room(self, count: int) -> Floats:
        """Room for keys, of the type of tau. Overwritten by the next difference and by magnitudes."""
        return self._other[:count]

    def magnitudes(self, tau: Floats) -> Floats:
        """|tau|, overwritten by the next."""
        return np.abs(tau, out=self.room(tau.size))

    def square_sums(self, tau: Floats, shape: tuple[int, int], *, columns: bool) -> SquareSums:
        """In the arithmetic of tau, but down long columns; infinite or NaN where the squares are."""
        if self._squares is None:
            self._squares = np.empty_like(self._tau)
        with np.errstate(over="ignore", invalid="ignore"):  # seen by the caller
            squares = np.square(tau, out=self._squares[: tau.size])
            return sums_of(squares, shape, columns=columns)

    def gather(
        self, shape: tuple[int, int], floor: float, *, columns: bool
    ) -> tuple[SquareSums, NDArray[np.int32], Floats] | None:
        """`difference`, `square_sums` and `reaching` by magnitude, of what is in the buffers, where all at once is quicker: not
        in NumPy. Nothing is checked, and no difference kept."""
        return None

    def reaching(
        self, tau: Floats, keys: Floats | None, floor: float, *, squared: bool
    ) -> tuple[NDArray[np.int32], Floats]:
        """Where the elements are whose key, or magnitude, is not 0 and at least `floor`, and their tau; a few that are a little
        below may be among them. `squared`: whether `square_sums` was the last call, and lost no digits."""
        if self._flags is None or self._words is None:
            self._flags, self._words = (np.empty(n, np.bool_) for n in (self._tau.size, self._tau.size // 8))
        flags = self._flags[: tau.size]
        if keys is None and floor == 0:
            np.not_equal(tau, 0, out=flags)
        elif keys is None and squared and self._squares is not None and _SAFE_FLOOR[0] < floor < _SAFE_FLOOR[1]:
            np.greater_equal(self._squares[: tau.size], tau.dtype.type(floor * floor * _LOWER), out=flags)
        elif floor > 0:
            np.greater_equal(self.magnitudes(tau) if keys is None else keys, at_least(floor, tau.dtype), out=flags)
        else:
            np.greater(keys, 0, out=flags)  # type: ignore[arg-type]  # keys are there: floor is 0
        places = _places(flags, self._words)
        return places.astype(np.int32), tau.take(places)


class CompiledBlocks(Blocks):
    """With the loops of the module `loops`, `compiled_pack`."""

    def __init__(self, size: int, base: DType, tuned: DType, loops: ModuleType) -> None:
        super().__init__(size, base, tuned)
        self._loops = loops
        self._found_places = np.empty(size + 8, np.int32)
        self._found = np.empty(size + 8, np.float32)

    def difference(self, count: int) -> Floats:
        """See `Blocks`."""
        tau = self._tau[:count]
        self._loops.difference(
            _elements(self.base_raw, self._base, count), _elements(self.tuned_raw, self._tuned, count), tau
        )
        return tau

    def square_sums(self, tau: Floats, shape: tuple[int, int], *, columns: bool) -> SquareSums:
        """See `Blocks`."""
        by_column = self._columns(shape, columns)
        return SquareSums.of(self._loops.square_sums(tau, shape, by_column), by_column)

    def _columns(self, shape: tuple[int, int], wanted: bool) -> Floats:
        """Room for the sums down the columns, which for NumPy are not all of one type: see `sums_of`."""
        size = shape[1] if wanted else 0
        return np.zeros(size, np.float64) if shape[0] > LONG_COLUMN else np.zeros(size, np.float32)

    def gather(
        self, shape: tuple[int, int], floor: float, *, columns: bool
    ) -> tuple[SquareSums, NDArray[np.int32], Floats] | None:
        """See `Blocks`."""
        count = shape[0] * shape[1]
        if shape[1] < _NARROW:
            return None
        by_column = self._columns(shape, columns)
        rows, found = self._loops.gather(
            _elements(self.base_raw, self._base, count),
            _elements(self.tuned_raw, self._tuned, count),
            shape,
            at_least(floor, self._found.dtype),
            by_column,
            self._found_places,
            self._found,
        )
        return SquareSums.of(rows, by_column), self._found_places[:found].copy(), self._found[:found].copy()

    def reaching(
        self, tau: Floats, keys: Floats | None, floor: float, *, squared: bool
    ) -> tuple[NDArray[np.int32], Floats]:
        """See `Blocks`."""
        limit = at_least(floor, tau.dtype)
        count = self._loops.reaching(tau if keys is None else keys, tau, limit, self._found_places, self._found)
        return self._found_places[:count].copy(), self._found[:count].copy()


class BlockPool:
    """Blocks of one size that passes use one after the other, and threads at once, so that memory is touched for the first time
    once and not for each tensor. `loops`: `compiled_pack`, for types that it knows, or None for NumPy."""

    def __init__(self, size: int, loops: ModuleType | None = None) -> None:
        self.loops = loops
        self._size = size
        self._free: dict[tuple[DType, DType], list[Blocks]] = {}

    @contextlib.contextmanager
    def blocks(self, base: DType, tuned: DType) -> Iterator[Blocks]:
        """Blocks that nobody else uses meanwhile."""
        free = self._free.setdefault((base, tuned), [])
        try:
            taken = free.pop()  # not asked before: another thread may take the last one
        except IndexError:
            taken = self._make(base, tuned)
        try:
            yield taken
        finally:
            free.append(taken)

    def _make(self, base: DType, tuned: DType) -> Blocks:
        if self.loops is not None and {base, tuned} <= {F32, BF16}:
            return CompiledBlocks(self._size, base, tuned, self.loops)
        return Blocks(self._size, base, tuned)


def sums_of(squares: Floats, shape: tuple[int, int], *, columns: bool) -> SquareSums:
    """Sums of squares that are there already."""
    block = squares.reshape(shape)
    # Down the columns NumPy adds one by one: in f32 that is exact enough for some thousand rows only.
    wide = np.float64 if shape[0] > LONG_COLUMN else None
    by_column: Floats = block.sum(axis=0, dtype=wide) if columns else np.empty(0, squares.dtype)
    return SquareSums.of(block.sum(axis=1), by_column)


def at_least(floor: float, kind: np.dtype[Any]) -> np.floating[Any]:
    """The smallest number of a float type that is not below `floor`, which may come from a wider type."""
    with np.errstate(over="ignore"):
        nearest: np.floating[Any] = kind.type(floor)
    return np.nextafter(nearest, kind.type(np.inf)) if float(nearest) < floor else nearest


def _elements(raw: NDArray[np.uint8], dtype: DType, count: int) -> NDArray[Any]:
    return raw[: dtype.nbytes(count)].view(dtype.storage)


def _places(flags: NDArray[np.bool_], buffer: NDArray[np.bool_]) -> NDArray[np.int64]:
    """np.flatnonzero, twice as fast where few are set: first the words of 8 flags that have one, then the flags in them."""
    whole = flags.size // 8 * 8
    words = flags[:whole].view(np.uint64)
    some = np.flatnonzero(np.not_equal(words, 0, out=buffer[: words.size]))
    if some.size * 2 > words.size:
        return np.flatnonzero(flags)
    inside = np.flatnonzero(words.take(some).view(np.bool_))
    places = (some.take(inside >> 3) << 3) + (inside & 7)
    return np.concatenate([places, np.flatnonzero(flags[whole:]) + whole]) if whole < flags.size else places
