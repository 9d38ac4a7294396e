"""How active elements are scaled: knob, row and column factors. Design section 7.

With tau the task vector of a tensor, S its active elements, i rows and j columns:

    projection   k = sum tau^2 / sum_S |tau|            what was dropped is made up for (ours, default)
    norm         k = |tau| / sqrt |S|
    rms          k = |tau on S| / sqrt |S|              the authors'
    mean         k = mean of |tau| on S                 least squares

A row's factor is the same rule on that row, divided by k; a column's (projection only) the rule on the column, with the rows'
factors in it. Factors are at most 3. They are rounded to their stored type, and k is then set anew so that its rule holds
with what is stored. Where 16 levels would round the factors of more than one active element in 64 to 0, as in an embedding of
which some rows hardly changed, the tensor's are stored with the 256 of u8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import DType, Floats, from_float, to_float
from tswitch_format._layout import FactorDType
from tswitch_format.switch.apply import Codes, factor_values
from tswitch_format.switch.options import Knob, KnobDType, KnobPer
from tswitch_format.switch.survivors import Statistics

_CAP = 3.0
_VANISHED = 1 / 64  # share of active elements


@dataclass(frozen=True, slots=True)
class FittedKnob:
    """Knob with stored codes of row and column factors, None where there are none."""

    knob: np.float32
    rows: Codes | None = None
    columns: Codes | None = None


def fit(
    found: Statistics, shape: tuple[int, ...], knob: Knob, per: KnobPer, dtype: KnobDType, like: DType | None
) -> FittedKnob:
    """Fit the knob, and the factors where `per` asks for them and the shape has at least two dimensions.

    `like`: round the knob as arithmetic in that element type would (the authors compute it in the parameter's dtype).
    """
    sums = _Sums(found, shape)
    if per == "tensor" or len(shape) < 2:
        value = _rule(knob, found.squares, sums.squares, sums.magnitudes, sums.count)
        return FittedKnob(_rounded_like(value, sums, like) if like is not None else np.float32(value))
    whole = _rule(knob, found.squares, sums.squares, sums.magnitudes, sums.count)
    by_row = sums.by_row()
    row_rule = _rules(knob, _required(found.row_squares), by_row.squares, by_row.magnitudes, by_row.counts)
    rows = to_codes(np.minimum(row_rule / whole if whole else row_rule, _CAP), dtype.stored, dtype.step)
    row_values = factor_values(rows).astype(np.float64)
    columns = None
    column_values = None
    if per == "row-col":
        weighted = whole * sums.by_column(row_values)
        exact = np.divide(_required(found.column_squares), weighted, out=np.zeros_like(weighted), where=weighted > 0)
        columns = to_codes(np.minimum(exact, _CAP), dtype.stored, dtype.step)
        column_values = factor_values(columns).astype(np.float64)
    magnitudes, squares, alive = sums.weighted(row_values, column_values)
    if dtype.step > 1 and sums.count - alive > _VANISHED * sums.count:
        return fit(found, shape, knob, per, replace(dtype, step=1), like)
    anew = _anew(knob, found.squares, sums.squares, magnitudes, squares)
    if not anew:  # all stored factors of active elements are 0: better the knob alone than a switch that does nothing
        return FittedKnob(np.float32(whole))
    return FittedKnob(np.float32(anew), rows, columns)


def _rule(knob: Knob, all_squares: float, squares: float, magnitudes: float, count: int) -> float:
    """The rule on one tensor; 0 where nothing is active."""
    return float(_rules(knob, *(np.array([x], np.float64) for x in (all_squares, squares, magnitudes, count)))[0])


def _rules(
    knob: Knob,
    all_squares: NDArray[np.float64],
    squares: NDArray[np.float64],
    magnitudes: NDArray[np.float64],
    counts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The rule on each row; 0 for rows without active elements."""
    if knob == "projection":
        above, below = all_squares, magnitudes
    elif knob == "mean":
        above, below = magnitudes, counts
    else:
        above, below = np.sqrt(all_squares if knob == "norm" else squares), np.sqrt(counts)
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)


def _anew(knob: Knob, all_squares: float, squares: float, weighted: float, weights: float) -> float:
    """k with the stored factors f: `weighted` = sum_S f |tau|, `weights` = sum_S f^2."""
    if knob == "projection":
        return all_squares / weighted if weighted else 0.0
    if not weights:
        return 0.0
    if knob == "mean":
        return weighted / weights
    return math.sqrt((all_squares if knob == "norm" else squares) / weights)


def to_codes(factors: NDArray[np.float64], dtype: FactorDType, step: int = 1) -> Codes:
    """Factors rounded to their stored type. As u8 they are from 0 to 3, what lies beyond becomes that, and codes are multiples
    of `step`, a divisor of 255."""
    if dtype is FactorDType.U8:
        return (np.rint(np.clip(factors, 0, _CAP) * (255 / step / _CAP)) * step).astype(np.uint8)
    return factors.astype(np.float16) if dtype is FactorDType.F16 else factors.astype(np.float32)


def _rounded_like(value: float, sums: _Sums, like: DType) -> np.float32:
    """The authors' quotient of two norms, each rounded to the parameter's type."""

    def rounded(number: float) -> float:
        out = np.empty(1, np.float64)
        to_float(from_float(np.array([number], np.float64), like), like, out)
        return float(out[0])

    if not sums.count:
        return np.float32(value)
    return np.float32(rounded(rounded(math.sqrt(sums.squares)) / rounded(math.sqrt(sums.count))))


def _required(sums: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if sums is None:
        raise ValueError("the scan was not asked for these sums")
    return sums


@dataclass(frozen=True, slots=True)
class _RowSums:
    squares: NDArray[np.float64]
    magnitudes: NDArray[np.float64]
    counts: NDArray[np.float64]


class _Sums:
    """Sums over the active elements, piece by piece, in f64."""

    def __init__(self, found: Statistics, shape: tuple[int, ...]) -> None:
        self._survivors = found.survivors
        self._rows = shape[0] if len(shape) > 1 else 1
        self._columns = math.prod(shape) // self._rows if self._rows else 0
        self.count = found.survivors.count()
        self.magnitudes = 0.0
        self.squares = 0.0
        for tau in found.survivors.tau:
            magnitudes = np.abs(tau).astype(np.float64)
            self.magnitudes += float(magnitudes.sum())
            self.squares += float(np.square(magnitudes).sum())

    @cached_property
    def _pieces(self) -> list[_Piece]:
        survivors = self._survivors
        found = []
        for start, positions, tau in zip(survivors.starts, survivors.positions, survivors.tau, strict=True):
            if not positions.size:
                continue
            # As in apply.py: positions ascend, so rows come from cutting them at the rows' ends, not from a division each.
            first = start // self._columns
            last = (start + int(positions[-1])) // self._columns
            row_starts = np.arange(first, last + 1) * self._columns - start
            counts = np.empty(row_starts.size, np.int64)
            counts[:-1] = np.searchsorted(positions, row_starts[1:].astype(np.int32))
            counts[-1] = positions.size
            counts[1:] -= counts[:-1].copy()
            found.append(_Piece(first, row_starts, counts, positions, tau))
        return found

    def by_row(self) -> _RowSums:
        """Sums of each row."""
        found = _RowSums(*(np.zeros(self._rows) for _ in range(3)))
        for piece in self._pieces:
            magnitudes = piece.magnitudes
            found.magnitudes[piece.rows] += piece.row_sums(magnitudes)
            found.squares[piece.rows] += piece.row_sums(np.square(magnitudes))
            found.counts[piece.rows] += piece.counts
        return found

    def by_column(self, row_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """sum_i r_i |tau_ij| over the active elements of each column."""
        found = np.zeros(self._columns)
        for piece in self._pieces:
            weighted = piece.spread(row_values) * piece.magnitudes
            if piece.counts.size == 1:  # part of one long row: each column once
                found[piece.columns] += weighted
            else:
                found += np.bincount(piece.columns, weighted, minlength=self._columns)
        return found

    def weighted(
        self, row_values: NDArray[np.float64], column_values: NDArray[np.float64] | None
    ) -> tuple[float, float, int]:
        """sum_S f |tau| and sum_S f^2 with f the product of the factors, and how many f are not 0."""
        magnitudes_sum = squares_sum = 0.0
        alive = 0
        for piece in self._pieces:
            factors = piece.spread(row_values)
            if column_values is not None:
                factors *= column_values.take(piece.columns)
            magnitudes_sum += float((factors * piece.magnitudes).sum())
            squares_sum += float(np.square(factors).sum())
            alive += int(np.count_nonzero(factors))
        return magnitudes_sum, squares_sum, alive


@dataclass(frozen=True, slots=True)
class _Piece:
    """Active elements of some rows from row `first` on: how many each row has, where it starts, positions, magnitudes."""

    first: int
    row_starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    positions: NDArray[np.int32]
    tau: Floats

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        """|tau|."""
        return np.abs(self.tau).astype(np.float64)

    @property
    def rows(self) -> slice:
        """The rows that it covers."""
        return slice(self.first, self.first + self.counts.size)

    @property
    def columns(self) -> NDArray[np.int64]:
        """Column of each element."""
        return self.positions.astype(np.int64) - np.repeat(self.row_starts, self.counts)

    def spread(self, row_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value of its row for each element."""
        return np.repeat(row_values[self.rows], self.counts)

    def row_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of the elements' values for each row."""
        sums = np.zeros(self.counts.size)
        some = self.counts > 0
        sums[some] = np.add.reduceat(values, (np.cumsum(self.counts) - self.counts)[some])
        return sums
