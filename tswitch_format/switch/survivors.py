"""What one pass over a task vector finds: the elements that may be active, and sums over all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import Floats
from tswitch_format.codecs import gaps, plane
from tswitch_format.container.tensors import Digests
from tswitch_format.switch.blocks import SquareSums


@dataclass(slots=True)
class Survivors:
    """Elements that may be active, piece by piece in order: flat start, positions from there (int32), tau, and, where keys are
    external scores and not the magnitudes of tau, keys."""

    starts: list[int] = field(default_factory=list)
    positions: list[NDArray[np.int32]] = field(default_factory=list)
    tau: list[Floats] = field(default_factory=list)
    keys: list[Floats] = field(default_factory=list)

    def add(self, start: int, positions: NDArray[np.int32], tau: Floats, keys: Floats | None) -> None:
        """Append those of one block, in order. `keys`: None for the magnitudes of tau."""
        self.starts.append(start)
        self.positions.append(positions)
        self.tau.append(tau)
        if keys is not None:
            self.keys.append(keys)

    def count(self) -> int:
        """How many they are."""
        return sum(piece.size for piece in self.positions)

    def keep(self, positive_from: float, negative_from: float) -> None:
        """Drop those whose key is below the threshold of their sign; then the keys themselves."""
        for number, tau in enumerate(self.tau):
            limits: Any = np.float64(positive_from)  # which may come from a wider type than the keys have
            if positive_from != negative_from:
                limits = np.where(tau > 0, positive_from, negative_from)
            kept = np.flatnonzero(np.abs(self.keys[number] if self.keys else tau) >= limits)
            if kept.size < tau.size:
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
class Kept:
    """Elements of one task vector that a threshold may leave, as it is found: block by block, positions as gap bytes.

    `above`: those that stay wherever it is in its bracket; `between`: those inside, whose keys are in `keys`.
    """

    above: list[NDArray[np.uint8]] = field(default_factory=list)
    between: list[NDArray[np.uint8]] = field(default_factory=list)
    keys: list[Floats] = field(default_factory=list)

    def add(self, places: NDArray[np.int32], keys: Floats, high: float) -> None:
        """Append those of one block, in order, of which some are not in the bracket that ends at `high`."""
        inside = keys < np.float64(high)  # which may come from a wider type than these keys have
        self.above.append(plane.gap_bytes(places[~inside].astype(np.int64)))
        self.between.append(plane.gap_bytes(places[inside].astype(np.int64)))
        self.keys.append(keys[inside])

    def places(self, number: int, threshold: float) -> NDArray[np.int32]:
        """Positions in one block that stay, ascending."""
        between = gaps.positions_of(self.between[number])[self.keys[number] >= np.float64(threshold)]
        return np.sort(np.concatenate([gaps.positions_of(self.above[number]), between])).astype(np.int32)


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

    def add(self, sums: SquareSums, row: int, column: int) -> None:
        """Sums of squares of a block from this row and column on."""
        self.squares += sums.total
        if self.row_squares is not None:
            self.row_squares[row : row + sums.rows.size] += sums.rows
        if self.column_squares is not None:
            self.column_squares[column : column + sums.columns.size] += sums.columns
