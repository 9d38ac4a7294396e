"""Lists of tensors as the index keeps them: names, dtypes, shapes and digests in tables (spec section 5.3)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container.document import Value
from tswitch_format.container.names import Order
from tswitch_format.container.report import Failure, Place, Report

_BITS = np.array([DTYPES[i].bits if i in DTYPES else 0 for i in range(256)], np.int64)
_BLOCK = 1 << 16  # records at a time, where temporary arrays would take a multiple of the index


class ListRules(Enum):
    """Which digests the records of a list have, and by what they ascend: see section 5.3, and 5.5 for shared arrays."""

    BASE = lay.HAS_SHA256 | lay.HAS_SAMPLED
    EXTRA = 0
    SHARED = lay.HAS_SHA256


@dataclass(frozen=True, slots=True)
class Digests:
    """Full (32 bytes) and sampled (8 bytes) digest of a base tensor; None where absent."""

    sha256: bytes | None
    sampled: bytes | None


@dataclass(frozen=True)
class TensorList:
    """Tensors by number. `names`, `records` (TENSOR), `dims` (u64, all tensors) and `starts` (of each in `dims`)."""

    names: Sequence[str] = ()
    records: NDArray[Any] = field(default_factory=lambda: np.zeros(0, lay.TENSOR))
    dims: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    @classmethod
    def build(cls, specs: Sequence[TensorSpec], digests: Sequence[Digests] | None = None) -> TensorList:
        """The list of these tensors, which must be in the order that the specification asks for."""
        records = np.zeros(len(specs), lay.TENSOR)
        records["name_length"] = [len(spec.name.encode()) for spec in specs]
        records["dtype"] = [spec.dtype.id for spec in specs]
        records["ndim"] = [len(spec.shape) for spec in specs]
        for record, digest in zip(records, digests or (), strict=bool(digests)):
            if digest.sha256 is not None:
                record["flags"] |= lay.HAS_SHA256
                record["sha256"] = np.void(digest.sha256)
            if digest.sampled is not None:
                record["flags"] |= lay.HAS_SAMPLED
                record["sampled"] = np.void(digest.sampled)
        dims = np.array([size for spec in specs for size in spec.shape], np.uint64)
        return cls([spec.name for spec in specs], records, dims)

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each tensor's dimensions begin in `dims`."""
        ndim = self.records["ndim"].astype(np.int64)
        return np.cumsum(ndim) - ndim

    @cached_property
    def elements(self) -> NDArray[np.int64]:
        """Number of elements of each tensor."""
        return self._products().astype(np.int64)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """First dimension of each tensor, 1 for those without dimensions."""
        rows = np.ones(len(self), np.int64)
        some = self.records["ndim"] > 0
        rows[some] = self.dims[self.starts[some]]
        return rows

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Name -> number, for lists whose names differ."""
        return {name: number for number, name in enumerate(self.names)}

    def find(self, name: str) -> int | None:
        """Number of the first tensor of that name in a list in order, or None; without a dictionary of all names."""
        number = bisect_left(self.names, name)  # code points order str as their UTF-8 bytes do
        return number if number < len(self) and self.names[number] == name else None

    def same_names(self, other: TensorList) -> NDArray[np.int64]:
        """For each tensor of another list the number of the one of its name here, or -1. Both are in order of names."""
        # They are merged: dictionaries of 330,000 names took a second, measured once.
        found = np.full(len(other), -1, np.int64)
        if not len(other):
            return found
        ours = enumerate(self.names)
        at, candidate = next(ours, (0, None))
        for number, name in enumerate(other.names):
            while candidate is not None and candidate < name:
                at, candidate = next(ours, (at, None))
            if candidate == name:
                found[number] = at
        return found

    def same_shapes(
        self, numbers: NDArray[np.int64], other: TensorList, others: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether tensors `numbers` have the shapes of tensors `others` of another list, one by one."""
        ndim = self.records["ndim"][numbers]
        same: NDArray[np.bool_] = ndim == other.records["ndim"][others]
        for axis in range(int(ndim[same].max(initial=0))):
            some = np.flatnonzero(same & (ndim > axis))
            ours, theirs = self.starts[numbers[some]] + axis, other.starts[others[some]] + axis
            same[some] = self.dims[ours] == other.dims[theirs]
        return same

    def shape(self, number: int) -> tuple[int, ...]:
        """Shape of one tensor."""
        start = int(self.starts[number])
        return tuple(int(size) for size in self.dims[start : start + int(self.records["ndim"][number])])

    def spec(self, number: int) -> TensorSpec:
        """Name, dtype and shape of one tensor."""
        return TensorSpec(self.names[number], DTYPES[int(self.records["dtype"][number])], self.shape(number))

    def digests(self, number: int) -> Digests:
        """Digests of one tensor."""
        record = self.records[number]
        flags = int(record["flags"])
        return Digests(
            record["sha256"].tobytes() if flags & lay.HAS_SHA256 else None,
            record["sampled"].tobytes() if flags & lay.HAS_SAMPLED else None,
        )

    def nbytes(self) -> int:
        """Bytes of all tensors' elements."""
        # Python's integers: the sum of many large tensors is above 64 bits.
        elements, bits = self.elements.tolist(), _BITS[self.records["dtype"]].tolist()
        return sum(int(e) * int(b) for e, b in zip(elements, bits, strict=True)) // 8

    def document(self) -> dict[str, Value]:
        """The keys of a tensor list in the index."""
        return {
            "dims": self.dims.astype("<u8").tobytes(),
            "names": "".join(self.names).encode(),
            "tensors": self.records.tobytes(),
        }

    def _products(self) -> NDArray[np.float64]:
        """Number of elements of each tensor: exact below 2^53, and a huge product does not wrap around to look small."""
        products = np.ones(len(self))
        for first in range(0, len(self), _BLOCK):
            ndim = self.records["ndim"][first : first + _BLOCK]
            starts = self.starts[first : first + _BLOCK]
            for axis in range(int(ndim.max())):
                some = np.flatnonzero(ndim > axis)
                products[first + some] *= self.dims[starts[some] + axis]
        return products

    def check(self, field: str, order: Order, minor: int, place: Place, report: Report, rules: ListRules) -> None:
        """Check everything that section 5.3 says of the records but for names, which `cut_names` has checked.

        `order`: which names do not come after the one before.
        """
        if not len(self):  # as two of three lists of most files
            return
        records = self.records
        flags = records["flags"]

        def each(
            bad: NDArray[np.bool_], rule: str, what: str, expected: str, *, newer: bool = False, blocking: bool = False
        ) -> None:
            def describe(at: int) -> Failure:
                found = records[what][at]
                shown = found.tobytes().hex() if isinstance(found, np.void) else str(found)
                return Failure(f"{field}.tensors[{at}].{what}", shown, place.of(records, at, what))

            report.each(bad, rule, expected, describe, newer=newer, blocking=blocking)

        each(records["ndim"] > lay.MAX_DIMENSIONS, "TSW-403", "ndim", f"at most {lay.MAX_DIMENSIONS}", blocking=True)
        report.gate()  # what follows takes time for each axis
        self._check_sizes(field, place, report)
        bits = _BITS[records["dtype"]]
        each(bits == 0, "TSW-404", "dtype", "a known dtype", newer=True)
        each((self.elements % 8 * bits) % 8 != 0, "TSW-404", "dtype", "one whose elements fill whole bytes here")
        known = np.uint32(lay.HAS_SHA256 | lay.HAS_SAMPLED)
        allowed = np.uint32(rules.value)
        wrong = flags & ~allowed if minor <= lay.MINOR else flags & known & ~allowed
        each(wrong != 0, "TSW-406", "flags", f"no bits but those of 0x{allowed:X}")
        if rules is ListRules.SHARED:
            each((flags & lay.HAS_SHA256) == 0, "TSW-406", "flags", "bit 0, for sha256 must be there")
        for name, flag in (("sha256", lay.HAS_SHA256), ("sampled", lay.HAS_SAMPLED)):
            each(((flags & flag) == 0) & any_set(records, name), "TSW-406", name, "zero where absent")
        unordered = np.zeros(len(self), np.bool_)
        unordered[order.wrong] = True
        unordered[order.equal if rules is ListRules.BASE else self._unordered(order.equal, rules)] = True

        def after(at: int) -> Failure:
            found = f"{self.names[at][:80]!r} after {self.names[at - 1][:80]!r}"
            return Failure(f"{field}.tensors[{at}]", found, place.of(records, at))

        report.each(unordered, "TSW-405", "records that ascend strictly", after, blocking=True)

    def _check_sizes(self, field: str, place: Place, report: Report) -> None:
        large = self._products() > lay.MAX_SIZE
        # A dimension of 0 makes the product 0 whatever the others are.
        beyond = np.flatnonzero(self.dims > lay.MAX_SIZE)
        large[np.searchsorted(self.starts, beyond, side="right") - 1] = True

        def shape(at: int) -> Failure:
            offset = place.of(self.dims, int(self.starts[at]))
            return Failure(f"{field}.tensors[{at}].shape", str(self.shape(at)), offset)

        expected = f"dimensions and elements of at most {lay.MAX_SIZE}"
        report.each(large, "TSW-403", expected, shape, blocking=True)
        report.gate()

    def _unordered(self, ties: NDArray[np.int64], rules: ListRules) -> NDArray[np.int64]:
        """Of the records with the name of the one before, those that do not come after it by the rest."""
        bad, same = self._unordered_specs(ties)
        if rules is ListRules.SHARED:
            words = np.ascontiguousarray(self.records["sha256"]).view(">u8").reshape(-1, 4)
            for column in range(4):
                before, here = words[same - 1, column], words[same, column]
                bad.append(same[before > here])
                same = same[before == here]
        return np.concatenate([*bad, same])

    def _unordered_specs(self, ties: NDArray[np.int64]) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Those that come before the one before by dtype and shape, and those that are as it is."""
        bad: list[NDArray[np.int64]] = []
        same: list[NDArray[np.int64]] = []
        for name in ("dtype", "ndim"):
            column = self.records[name]
            bad.append(ties[column[ties - 1] > column[ties]])
            ties = ties[column[ties - 1] == column[ties]]
        for axis in range(lay.MAX_DIMENSIONS):
            shorter = self.records["ndim"][ties] <= axis
            same.append(ties[shorter])
            ties = ties[~shorter]
            before, here = self.dims[self.starts[ties - 1] + axis], self.dims[self.starts[ties] + axis]
            bad.append(ties[before > here])
            ties = ties[before == here]
        return bad, np.sort(np.concatenate([*same, ties]))


def any_set(records: NDArray[Any], field: str) -> NDArray[np.bool_]:
    """For each record of a table: whether a field has a bit that is set."""
    begin, end = lay.span(records.dtype, field)
    rows = records.view(np.uint8).reshape(len(records), records.itemsize)
    return np.asarray(rows[:, begin:end].any(axis=1))
