"""Sections 5.4, 7 and 8: tasks, their entries, and which segments follow from the entries."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from .errors import BrokenError, shown
from .fields import Fields
from .layout import (
    COLUMN_FACTORS,
    DENSE,
    DTYPES,
    FACTOR_DTYPES,
    FLOATS,
    HAS_COLUMN_FACTORS,
    HAS_ROW_FACTORS,
    HAS_SHA256,
    KINDS,
    MASK,
    MASKED,
    ROW_FACTORS,
    SIGN,
    SWITCHES,
    TERNARY,
    chunk_count,
    chunk_sizes,
)
from .model import Entry, Shared, Task, Tensor
from .msgpack import Value
from .segments import Place, Records, data_places
from .shared import vector_of
from .tensors import NAME_EXPECTED, name_fault, optional_digest

ENTRY = struct.Struct("<IBBBB4sIQ32s")
_SWITCH_RULES = {TERNARY: "TSW-504", MASKED: "TSW-507"}
KEYS = {"checkpoint", "entries", "metadata", "name", "recipe", "segments"}


def read_names(values: list[Value], newer: bool) -> tuple[list[Task], list[Fields]]:
    """All tasks without their entries, and the maps that have those."""
    tasks: list[Task] = []
    seen: set[str] = set()
    maps = [Fields(value, f"index, task {number}", KEYS, set(), newer) for number, value in enumerate(values)]
    for fields in maps:
        name = fields.text("name")
        fault = name_fault(name)
        if fault or name in seen:
            found = fault or f"{shown(name)} a second time"
            raise BrokenError("TSW-501", f"{NAME_EXPECTED}, once", found, f"{fields.where}, name")
        seen.add(name)
        fields.where = f"task {shown(name)}"
        tasks.append(Task(name, fields.texts("recipe"), fields.texts("checkpoint"), fields.texts("metadata"), []))
    return tasks, maps


def fill_tasks(
    tasks: list[Task], maps: list[Fields], base: list[Tensor], extra: list[Tensor], shared: list[Shared], newer: bool
) -> None:
    """Give the tasks their entries, checked; where their segments lie in the file is the caller's to check."""
    tensors = [*base, *extra]
    for task, fields in zip(tasks, maps, strict=True):
        task.entries = _read_entries(fields, tensors, len(base), shared, newer)
    _check_extra_used(tasks, extra, len(base))
    for task, fields in zip(tasks, maps, strict=True):
        _read_segments(fields, task.entries, newer)


def _read_entries(
    fields: Fields, tensors: list[Tensor], base_count: int, shared: list[Shared], newer: bool
) -> list[Entry]:
    entries: list[Entry] = []
    names: set[str] = set()
    before = -1
    for place, record in enumerate(ENTRY.iter_unpack(fields.table("entries", ENTRY.size))):
        number, kind, dtype, factor_dtype, flags, knob, vector, active, sha256 = record
        where = f"{fields.where}, entry {place}"
        if not before < number < len(tensors):
            expected = f"tensor numbers that ascend strictly below {len(tensors)}"
            raise BrokenError("TSW-502", expected, f"{number} after {before}" if place else str(number), where)
        before = number
        tensor = tensors[number]
        where = f"{where}, {shown(tensor.name)}"
        if tensor.name in names:
            raise BrokenError("TSW-502", "one entry for a name", "a second", where)
        names.add(tensor.name)
        if kind not in KINDS:
            raise BrokenError("TSW-503", "a kind of 1 to 4", str(kind), where)
        if dtype not in DTYPES:
            raise BrokenError("TSW-404", "a dtype of section 6", str(dtype), where)
        if not newer and flags > 7:
            raise BrokenError("TSW-406", "flags of bits 0 to 2", f"{flags:#x}", where)
        if not newer and kind != MASKED and vector:
            raise BrokenError("TSW-107", "a zero vector number where nothing is masked", str(vector), where)
        digest = optional_digest(sha256, bool(flags & HAS_SHA256), where)
        entry = Entry(tensor, kind, dtype, factor_dtype, flags, knob, active, digest, where)
        if kind in SWITCHES:
            _check_switch(entry, number < base_count)
            if kind == MASKED:
                entry.vector = vector_of(shared, vector, tensor, where)
        else:
            _check_whole(entry, number < base_count)
        entries.append(entry)
    return entries


def _check_switch(entry: Entry, of_base: bool) -> None:
    """What ternary and masked entries share, and the factors, which masked ones have not."""

    def wrong(expected: str, found: str) -> BrokenError:
        return BrokenError(_SWITCH_RULES[entry.kind], expected, found, entry.where)

    tensor = entry.tensor
    if not of_base:
        raise wrong("a base tensor", "one of extra")
    for dtype in (tensor.dtype, entry.dtype):
        if dtype not in FLOATS:
            raise wrong("F16, BF16, F32 or F64", DTYPES[dtype][0])
    (knob,) = struct.unpack("<f", entry.knob)
    if not math.isfinite(knob):
        raise wrong("a finite knob", str(knob))
    factors = entry.flags & (HAS_ROW_FACTORS | HAS_COLUMN_FACTORS)
    if entry.kind == MASKED and (factors or entry.factor_dtype):
        raise wrong("no factors of a masked entry", f"{entry.factor_dtype} with flags {entry.flags}")
    if factors and (len(tensor.shape) < 2 or tensor.elements == 0):
        raise wrong("factors only of a tensor with two dimensions or more and an element", f"shape {tensor.shape}")
    if entry.factor_dtype not in FACTOR_DTYPES or bool(entry.factor_dtype) != bool(factors):
        raise wrong("factor_dtype 1 to 3 with factors, else 0", f"{entry.factor_dtype} with flags {entry.flags}")
    if entry.active > tensor.elements:
        raise wrong(f"at most {tensor.elements} active elements", str(entry.active))


def _check_whole(entry: Entry, of_base: bool) -> None:
    rule = "TSW-505" if entry.kind == DENSE else "TSW-506"
    if entry.kind != DENSE and not of_base:
        raise BrokenError(rule, "a base tensor", "one of extra", entry.where)
    if entry.dtype != entry.tensor.dtype:
        expected = f"the record's dtype {DTYPES[entry.tensor.dtype][0]}"
        raise BrokenError(rule, expected, DTYPES[entry.dtype][0], entry.where)
    factors = entry.flags & (HAS_ROW_FACTORS | HAS_COLUMN_FACTORS)
    if any(entry.knob) or entry.active or entry.factor_dtype or factors:
        found = f"knob {entry.knob.hex()}, active {entry.active}, factors {entry.factor_dtype} and {factors}"
        raise BrokenError(rule, "zero knob, active, factor_dtype and factor flags", found, entry.where)


def _check_extra_used(tasks: list[Task], extra: list[Tensor], base_count: int) -> None:
    used = {entry.tensor.number for task in tasks for entry in task.entries}
    for tensor in extra:
        if tensor.number not in used:
            where = f"index, extra, tensor record {tensor.number - base_count}"
            raise BrokenError("TSW-408", "an entry that uses the record", f"none for {shown(tensor.name)}", where)


def _segment_count(entry: Entry) -> int:
    if entry.kind == TERNARY:
        factors = chunk_count(entry.rows) + chunk_count(entry.columns)
        return factors + 2 * chunk_count(entry.tensor.elements)
    return chunk_count(entry.tensor.elements) if entry.kind in (MASKED, DENSE) else 0


def _places(entry: Entry) -> Iterator[Place]:
    """The segments that an entry must have, in order. That of a sign plane is known when its mask has been read."""
    if entry.kind == DENSE:
        yield from data_places(entry.tensor, entry.dtype, entry.data)
    if entry.kind not in SWITCHES:
        return
    for role, group, count in (
        (ROW_FACTORS, entry.row_factors, entry.rows),
        (COLUMN_FACTORS, entry.column_factors, entry.columns),
    ):
        for chunk, elements in enumerate(chunk_sizes(count)):
            yield Place(entry.tensor, role, group, chunk, elements, elements * entry.factor_bytes)
    for chunk, elements in enumerate(chunk_sizes(entry.tensor.elements)):
        yield Place(entry.tensor, MASK, entry.masks, chunk, elements, elements)
    if entry.kind == TERNARY:
        for chunk, mask in enumerate(entry.masks):
            yield Place(entry.tensor, SIGN, entry.signs, chunk, mask.count, mask.count)


def _read_segments(fields: Fields, entries: list[Entry], newer: bool) -> None:
    records = Records(fields, list(map(_segment_count, entries)), newer)
    for entry in entries:
        records.fill(_places(entry))
        active = sum(mask.count for mask in entry.masks)
        if active != entry.active:
            rule = _SWITCH_RULES.get(entry.kind, "TSW-504")
            raise BrokenError(rule, f"active {active}, as many as its masks", str(entry.active), entry.where)
