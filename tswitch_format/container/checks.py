"""What the index must say of tasks, entries and segments: spec sections 5.4, 7 and 8.

A file may have one task of a million entries or 4,096 of a few: tasks are checked in batches, as if their tables were one,
and segments in blocks of that, so that neither the calls nor the temporary arrays grow with what a hostile index says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES
from tswitch_format.container.frame import Frame
from tswitch_format.container.index import SHARED, Index, TaskTable, table_name
from tswitch_format.container.names import name_problem
from tswitch_format.container.report import Failure, Place, Report
from tswitch_format.container.tensors import any_set

# By id, for whole columns of a table at once.
_KNOWN_KIND = np.array([i in tuple(lay.Kind) for i in range(256)])
_KNOWN_DTYPE = np.array([i in DTYPES for i in range(256)])
_FLOAT = np.array([i in DTYPES and DTYPES[i].is_float for i in range(256)])
_KNOWN_CODEC = np.array([i in tuple(lay.Codec) for i in range(256)])
_FACTORS = lay.HAS_ROW_FACTORS | lay.HAS_COLUMN_FACTORS
# In the order of section 8: five runs of segments for each entry, most of them empty.
_ROLES = np.array(
    [lay.Role.ROW_FACTORS, lay.Role.COLUMN_FACTORS, lay.Role.MASK, lay.Role.SIGN, lay.Role.DATA], np.uint8
)
_RUNS = len(_ROLES)
_BATCH = 1 << 16  # records
_FAR = 1 << 62  # bytes: no file is so long


def check_tasks(index: Index, frame: Frame, place: Place, report: Report) -> None:
    """Check all tasks of an index whose tensors are right. Raises FormatError, or StopReading where the report collects."""
    _check_names(index.tasks, report)
    batches = list(_batches(index, place, report))
    used = np.zeros(len(index.extra), np.bool_)
    pointed = np.zeros(len(index.shared), np.bool_)
    owners = _owners(index) if used.size else None
    for batch in batches:
        _check_entries(batch, frame, owners)
        _check_vectors(batch, pointed)
        extra = batch.entries["tensor"].astype(np.int64) - len(index.base)
        used[extra[(extra >= 0) & (extra < used.size)]] = True
    records = index.extra.records
    expected = "an entry that uses it"
    report.each(~used, "TSW-408", expected, lambda at: Failure(f"extra.tensors[{at}]", "none", place.of(records, at)))
    report.gate()
    arrays = index.shared.arrays.records

    def unused(at: int) -> Failure:
        return Failure(f"shared.tensors[{at}]", "none", place.of(arrays, at))

    # By the router and by tables, which there are.
    pointed |= np.isin(index.shared.roles, (lay.SharedRole.FEATURES, lay.SharedRole.COEFFICIENTS))
    # What nobody uses is not looked at: a small file may have very many.
    report.each(~pointed, "TSW-410", "an entry that uses it", unused, blocking=True)
    report.gate()
    end = lay.FRAME
    shared = _Batch(index, SHARED, index.tables[SHARED:], place, report)
    for batch in (shared, *batches) if len(shared.entries) or len(shared.segments) else batches:
        end = _Segments(batch).check(end, frame)
    report.gate()
    start = lay.align(end, lay.MAPPED_SMALL if index.mapped else 1)
    if start != frame.index_offset:
        expected = f"{start}, where the last segment ends"
        # Segments that reach into the index, or beyond the file, are not to be read.
        take = report.finding if start < frame.index_offset else report.blocking
        take("TSW-604", "index offset", expected, str(frame.index_offset), offset=40)
        report.gate()


def _check_names(tasks: Sequence[TaskTable], report: Report) -> None:
    names: set[str] = set()
    for number, task in enumerate(tasks):
        wrong = name_problem(task.name) or ("twice" if task.name in names else None)
        if wrong:
            found = f"{task.name[:80]!r} ({wrong})"
            report.finding("TSW-501", f"tasks[{number}].name", "a proper name that no other task has", found)
        names.add(task.name)


class _Batch:
    """Tasks `first` and following, their tables end to end."""

    def __init__(self, index: Index, first: int, tasks: Sequence[TaskTable], place: Place, report: Report) -> None:
        self.index = index
        self.first = first
        self.tasks = tasks
        self.place = place
        self.report = report
        self.entries = _joined([task.entries for task in tasks])
        self.segments = _joined([task.segments for task in tasks])
        self.entry_ends = np.cumsum([len(task.entries) for task in tasks])
        self.segment_ends = np.cumsum([len(task.segments) for task in tasks])

    def entry_failure(self, at: int, what: str, found: str | None = None) -> Failure:
        """That field `what` of entry `at` of the batch is wrong."""
        task = int(np.searchsorted(self.entry_ends, at, side="right"))
        table = self.tasks[task].entries
        row = at - (int(self.entry_ends[task]) - len(table))
        shown = str(table[what][row]) if found is None else found
        return Failure(f"tasks[{self.first + task}].entries[{row}].{what}", shown, self.place.of(table, row, what))

    def segment_failure(self, at: int, what: str) -> Failure:
        """That field `what` of segment `at` of the batch is wrong."""
        task = int(np.searchsorted(self.segment_ends, at, side="right"))
        table = self.tasks[task].segments
        row = at - (int(self.segment_ends[task]) - len(table))
        field = f"{table_name(self.first + task)}.segments[{row}].{what}"
        return Failure(field, str(table[what][row]), self.place.of(table, row, what))


def _joined(tables: Sequence[NDArray[Any]]) -> NDArray[Any]:
    # Not `np.concatenate`, which compares the fields of each table with those of the next.
    return tables[0] if len(tables) == 1 else np.frombuffer(b"".join(table.data for table in tables), tables[0].dtype)


def _batches(index: Index, place: Place, report: Report) -> Iterator[_Batch]:
    first = records = 0
    for number, task in enumerate(index.tasks):
        records += len(task.entries) + len(task.segments)
        if records >= _BATCH or number + 1 == len(index.tasks):
            yield _Batch(index, first, index.tasks[first : number + 1], place, report)
            first, records = number + 1, 0


def _owners(index: Index) -> NDArray[np.int64]:
    """For each tensor a number that it shares with those of the same name."""
    owners = index.base.same_names(index.extra).tolist()
    before, owner = None, 0
    for number, name in enumerate(index.extra.names):  # names one by one are slower to get than all in order
        if name != before:
            before, owner = name, len(index.base) + number
        if owners[number] < 0:
            owners[number] = owner
    return np.concatenate([np.arange(len(index.base)), np.array(owners, np.int64)])


def _check_entries(batch: _Batch, frame: Frame, owners: NDArray[np.int64] | None) -> None:
    entries, index, report = batch.entries, batch.index, batch.report
    if not len(entries):
        return

    def each(
        bad: NDArray[np.bool_], rule: str, what: str, expected: str, *, newer: bool = False, blocking: bool = False
    ) -> None:
        report.each(bad, rule, expected, lambda at: batch.entry_failure(at, what), newer=newer, blocking=blocking)

    tensors = entries["tensor"].astype(np.int64)
    base, total = len(index.base), len(index.base) + len(index.extra)
    unknown = tensors >= total
    each(unknown, "TSW-502", "tensor", f"a number below {total}", blocking=True)
    if unknown.any():
        return
    later = np.zeros(len(tensors), np.bool_)
    later[1:] = tensors[1:] <= tensors[:-1]
    later[batch.entry_ends[:-1][batch.entry_ends[:-1] < len(tensors)]] = False  # the first of another task
    each(later, "TSW-502", "tensor", "a number above that of the entry before", blocking=True)
    if owners is not None:
        each(_double_names(batch, owners[tensors]) & ~later, "TSW-502", "tensor", "each name once", blocking=True)

    kind, flags, factor = entries["kind"], entries["flags"], entries["factor_dtype"]
    each(~_KNOWN_KIND[kind], "TSW-503", "kind", "a known kind", newer=True)
    if frame.minor <= lay.MINOR:
        each((kind != lay.Kind.MASKED) & (entries["vector"] != 0), "TSW-107", "vector", "zero")
        each((flags & 0xF8) != 0, "TSW-406", "flags", "no bits but 0 to 2")
    each(((flags & lay.HAS_SHA256) == 0) & any_set(entries, "sha256"), "TSW-406", "sha256", "zero where absent")

    dtypes = index.dtypes[tensors]
    ternary, masked = kind == lay.Kind.TERNARY, kind == lay.Kind.MASKED
    factors = (flags & _FACTORS) != 0
    elements = index.elements[tensors]
    each(~_KNOWN_DTYPE[entries["dtype"]], "TSW-404", "dtype", "a known dtype", newer=True)
    for rule, only in (("TSW-504", ternary), ("TSW-507", masked)):
        unfit = only & ((tensors >= base) | ~_FLOAT[dtypes])
        each(unfit, rule, "tensor", "a float tensor of the base", blocking=True)
        each(only & ~_FLOAT[entries["dtype"]], rule, "dtype", "a float dtype", blocking=True)
        each(only & ~np.isfinite(entries["knob"]), rule, "knob", "a finite number")
        each(only & (entries["active"] > elements.astype(np.uint64)), rule, "active", "at most the elements")
    flat = (index.ndims[tensors] < 2) | (elements == 0)
    each(ternary & factors & flat, "TSW-504", "flags", "no factors for such a shape", blocking=True)
    proper = (factor <= lay.FactorDType.F32) & ((factor != 0) == factors)
    each(ternary & ~proper, "TSW-504", "factor_dtype", "1 to 3 with factors, else 0", blocking=True)
    there = np.bincount(kind, minlength=len(lay.Kind) + 1)  # most files have one kind
    for rule, number in (("TSW-505", lay.Kind.DENSE), ("TSW-506", lay.Kind.REMOVED)):
        if not there[number]:
            continue
        only = kind == number
        each(only & (entries["dtype"] != dtypes), rule, "dtype", "the dtype of the tensor's record", blocking=True)
        each(only & (entries["knob"].view(np.uint32) != 0), rule, "knob", "zero")
        each(only & (entries["active"] != 0), rule, "active", "zero")
    for rule, number in (("TSW-505", lay.Kind.DENSE), ("TSW-506", lay.Kind.REMOVED), ("TSW-507", lay.Kind.MASKED)):
        if not there[number]:
            continue
        only = kind == number
        each(only & (factor != 0), rule, "factor_dtype", "0")
        # Of a masked entry they would be looked for among its segments.
        each(only & factors, rule, "flags", "no factors", blocking=number is lay.Kind.MASKED)
    removed = kind == lay.Kind.REMOVED
    each(removed & (tensors >= base), "TSW-506", "tensor", "a tensor of the base", blocking=True)


def _check_vectors(batch: _Batch, pointed: NDArray[np.bool_]) -> None:
    """Check which shared array each masked entry names, and mark those in `pointed`."""
    entries, targets = batch.entries, batch.index.shared_targets
    masked = np.flatnonzero(entries["kind"] == lay.Kind.MASKED)
    vectors = entries["vector"][masked].astype(np.int64)
    known = vectors < pointed.size
    known[known] = batch.index.shared.roles[vectors[known]] == lay.SharedRole.VECTOR
    pointed[vectors[known]] = True
    known[known] = targets[vectors[known]] == entries["tensor"][masked[known]]
    wrong = np.zeros(len(entries), np.bool_)
    wrong[masked[~known]] = True
    expected = "the number of a shared vector of its tensor"
    batch.report.each(wrong, "TSW-507", expected, lambda at: batch.entry_failure(at, "vector"), blocking=True)


def _double_names(batch: _Batch, owners: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Entries whose tensor has the name of that of an entry before in the same task."""
    tasks = np.repeat(np.arange(len(batch.tasks)), [len(task.entries) for task in batch.tasks])
    keys = tasks * (2 * lay.MAX_TENSORS) + owners
    order = np.argsort(keys, kind="stable")
    doubles = np.zeros(len(keys), np.bool_)
    doubles[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return doubles


class _Segments:
    """The segments of a batch, which follow from its entries."""

    def __init__(self, batch: _Batch) -> None:
        self._batch = batch
        self._report = batch.report
        index, entries = batch.index, batch.entries
        self._mapped = index.mapped
        counts = index.segment_counts(entries)
        tensors = entries["tensor"]
        elements, rows = index.elements[tensors], index.rows[tensors]
        self._columns = elements // np.maximum(rows, 1)
        self._elements, self._rows = elements, rows
        self._counts = counts.ravel()
        self._ends = np.cumsum(self._counts)  # of each run: its last segment, and one

    def check(self, end: int, frame: Frame) -> int:
        """Check all that their records say; where the last ends, if the one before the first ends at `end`."""
        self._check_numbers()
        self._report.gate()
        active = np.zeros(len(self._batch.entries), np.int64)
        for first in range(0, len(self._batch.segments), _BATCH):
            last = min(first + _BATCH, len(self._batch.segments))
            end = self._check_block(first, last, end, active, frame)
        recorded = self._batch.entries["active"]

        def describe(at: int) -> Failure:
            return self._batch.entry_failure(at, "active", f"{recorded[at]}, where its masks count {active[at]}")

        # Compared as they are: above 2^63 they are no int64.
        differ = active.view(np.uint64) != recorded
        kind = self._batch.entries["kind"]
        for rule, number in (("TSW-504", lay.Kind.TERNARY), ("TSW-507", lay.Kind.MASKED)):
            self._report.each((kind == number) & differ, rule, "the sum of its masks' counts", describe)
        return end

    def _check_numbers(self) -> None:
        batch = self._batch
        entries = np.concatenate([[0], batch.entry_ends])
        runs = np.concatenate([[0], self._ends])[entries * _RUNS]
        expected = np.diff(runs)
        found = [len(task.segments) for task in batch.tasks]
        for number in np.flatnonzero(expected != found).tolist():
            self._report.blocking(
                "TSW-601",
                f"{table_name(batch.first + number)}.segments",
                f"{expected[number]} segments",
                str(found[number]),
            )

    def _check_block(self, first: int, last: int, end: int, active: NDArray[np.int64], frame: Frame) -> int:
        segments = self._batch.segments[first:last]
        run = np.searchsorted(self._ends, np.arange(first, last), side="right")
        entry = run // _RUNS
        roles = _ROLES[run - entry * _RUNS]
        planes = (roles == lay.Role.MASK) | (roles == lay.Role.SIGN)
        codec, count = segments["codec"], segments["count"]

        def each(
            good: NDArray[np.bool_], rule: str, what: str, expected: str, *, newer: bool = False, blocking: bool = False
        ) -> None:
            def describe(at: int) -> Failure:
                return self._batch.segment_failure(first + at, what)

            self._report.each(~good, rule, expected, describe, newer=newer, blocking=blocking)

        each(segments["role"] == roles, "TSW-601", "role", "that which follows from the entry", blocking=True)
        if frame.minor <= lay.MINOR:
            each(segments["reserved"] == 0, "TSW-107", "reserved", "zero")
        each(_KNOWN_CODEC[codec], "TSW-606", "codec", "a known codec", newer=True)
        gaps = (codec == lay.Codec.GAPS_ZSTD) | (codec == lay.Codec.RICE)
        fits = np.where(planes, codec <= lay.Codec.RICE, codec >= lay.Codec.RAW) & ~(gaps & (count == 0))
        each(fits, "TSW-606", "codec", "one for such a segment", blocking=True)
        most = np.where(gaps, lay.MAX_PARAMETER, 0)
        proper = segments["parameter"] <= most
        each(proper, "TSW-606", "parameter", "0, or up to 20 for gaps_zstd and rice", blocking=True)
        if self._mapped:
            plain = np.where(planes, codec == lay.Codec.BITMAP, codec == lay.Codec.RAW)
            each(plain, "TSW-605", "codec", "bitmap and raw in the mapped profile")
        sizes = self._sizes(first, run, entry, roles)
        fits = np.where(planes, count <= sizes, count == sizes)
        each(fits, "TSW-602", "count", "what the entry has room for", blocking=True)
        starts = self._starts(segments, end)
        placed = segments["offset"] == starts
        each(placed, "TSW-603", "offset", "where the segment before ends, aligned", blocking=True)
        masks = roles == lay.Role.MASK
        if masks.any():
            low = int(entry[0])
            # Sums of 32 bit numbers are exact in float64.
            sums = np.bincount(entry[masks] - low, count[masks])
            active[low : low + sums.size] += sums.astype(np.int64)
        return min(int(segments["offset"][-1]), _FAR) + int(segments["length"][-1])

    def _sizes(
        self, first: int, run: NDArray[np.int64], entry: NDArray[np.int64], roles: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """The bits of each plane of a block, or the number of elements."""
        sizes: NDArray[np.int64] = self._elements[entry]
        for role, totals in ((lay.Role.ROW_FACTORS, self._rows), (lay.Role.COLUMN_FACTORS, self._columns)):
            some = roles == role
            sizes[some] = totals[entry[some]]
        nth = np.arange(first, first + run.size) - (self._ends[run] - self._counts[run])
        sizes -= nth * lay.CHUNK
        np.minimum(sizes, lay.CHUNK, out=sizes)
        # A sign plane has a bit for each one of its mask, which lies as many segments before it as the tensor has chunks.
        signs = np.flatnonzero(roles == lay.Role.SIGN)
        sizes[signs] = self._batch.segments["count"][first + signs - self._counts[run[signs]]]
        return sizes

    def _starts(self, segments: NDArray[Any], end: int) -> NDArray[np.uint64]:
        """Where each segment begins if the one before it is where it says, and the first comes after `end`."""
        lengths = segments["length"].astype(np.int64)
        alignment: NDArray[np.int64] | int = 1
        if self._mapped:
            alignment = np.where(lengths >= lay.MAPPED_FROM, lay.MAPPED_LARGE, lay.MAPPED_SMALL)
        # An offset that would wrap around when a length is added is wrong anyway.
        ends = np.minimum(segments["offset"], _FAR).astype(np.int64) + lengths
        starts = -(-np.concatenate([[end], ends[:-1]]) // alignment) * alignment
        return starts.view(np.uint64)
