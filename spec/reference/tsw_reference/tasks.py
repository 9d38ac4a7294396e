"""Sections 5.4, 7 and 8: tasks, their entries, and the segments that follow from the entries."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import BrokenError, shown
from .fields import Fields
from .layout import (
    CODECS,
    COLUMN_FACTORS,
    DATA,
    DENSE,
    DTYPES,
    FACTOR_DTYPES,
    FLOATS,
    GAPS_ZSTD,
    HAS_COLUMN_FACTORS,
    HAS_ROW_FACTORS,
    HAS_SHA256,
    KINDS,
    LARGEST_PARAMETER,
    MASK,
    PLANES,
    RICE,
    ROLES,
    ROW_FACTORS,
    SIGN,
    TERNARY,
    chunk_count,
    chunk_sizes,
)
from .model import Entry, Segment, Task, Tensor
from .msgpack import Value
from .tensors import NAME_EXPECTED, name_fault, optional_digest

ENTRY = struct.Struct("<IBBBB4s4sQ32s")
SEGMENT = struct.Struct("<QIIIBBBB")
KEYS = {"checkpoint", "entries", "metadata", "name", "recipe", "segments"}


def read_tasks(values: list[Value], base: list[Tensor], extra: list[Tensor], newer: bool) -> list[Task]:
    """All tasks, checked; where their segments lie in the file is the caller's to check."""
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
    tensors = [*base, *extra]
    for task, fields in zip(tasks, maps, strict=True):
        task.entries = _read_entries(fields, tensors, len(base), newer)
    _check_extra_used(tasks, extra, len(base))
    for task, fields in zip(tasks, maps, strict=True):
        _read_segments(fields, task.entries, newer)
    return tasks


def _read_entries(fields: Fields, tensors: list[Tensor], base_count: int, newer: bool) -> list[Entry]:
    entries: list[Entry] = []
    names: set[str] = set()
    before = -1
    for place, record in enumerate(ENTRY.iter_unpack(fields.table("entries", ENTRY.size))):
        number, kind, dtype, factor_dtype, flags, knob, reserved, active, sha256 = record
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
            raise BrokenError("TSW-503", "a kind of 1, 3 or 4", str(kind), where)
        if dtype not in DTYPES:
            raise BrokenError("TSW-404", "a dtype of section 6", str(dtype), where)
        if not newer and flags > 7:
            raise BrokenError("TSW-406", "flags of bits 0 to 2", f"{flags:#x}", where)
        if not newer and any(reserved):
            raise BrokenError("TSW-107", "a zero reserved field", reserved.hex(), where)
        digest = optional_digest(sha256, bool(flags & HAS_SHA256), where)
        entry = Entry(tensor, kind, dtype, factor_dtype, flags, knob, active, digest, where)
        if kind == TERNARY:
            _check_ternary(entry, number < base_count)
        else:
            _check_whole(entry, number < base_count)
        entries.append(entry)
    return entries


def _check_ternary(entry: Entry, of_base: bool) -> None:
    def wrong(expected: str, found: str) -> BrokenError:
        return BrokenError("TSW-504", expected, found, entry.where)

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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a segment belongs, and what it must be like: `size` as in model.Segment, `elements` of its chunk."""

    entry: Entry
    role: int
    group: list[Segment]
    chunk: int
    elements: int
    size: int


def _segment_count(entry: Entry) -> int:
    if entry.kind == TERNARY:
        factors = chunk_count(entry.rows) + chunk_count(entry.columns)
        return factors + 2 * chunk_count(entry.tensor.elements)
    return chunk_count(entry.tensor.elements) if entry.kind == DENSE else 0


def _places(entry: Entry) -> Iterator[_Place]:
    """The segments that an entry must have, in order. That of a sign plane is known when its mask has been read."""
    if entry.kind == DENSE:
        bits = DTYPES[entry.dtype][1]
        for chunk, elements in enumerate(chunk_sizes(entry.tensor.elements)):
            yield _Place(entry, DATA, entry.data, chunk, elements, elements * bits // 8)
    if entry.kind != TERNARY:
        return
    for role, group, count in (
        (ROW_FACTORS, entry.row_factors, entry.rows),
        (COLUMN_FACTORS, entry.column_factors, entry.columns),
    ):
        for chunk, elements in enumerate(chunk_sizes(count)):
            yield _Place(entry, role, group, chunk, elements, elements * entry.factor_bytes)
    for chunk, elements in enumerate(chunk_sizes(entry.tensor.elements)):
        yield _Place(entry, MASK, entry.masks, chunk, elements, elements)
    for chunk, mask in enumerate(entry.masks):
        yield _Place(entry, SIGN, entry.signs, chunk, mask.count, mask.count)


def _read_segments(fields: Fields, entries: list[Entry], newer: bool) -> None:
    table = fields.table("segments", SEGMENT.size)
    count = len(table) // SEGMENT.size
    needed = sum(map(_segment_count, entries))
    if needed != count:
        raise BrokenError("TSW-601", f"{needed} segment records", str(count), f"{fields.where}, segments")
    records = SEGMENT.iter_unpack(table)
    number = 0
    for entry in entries:
        for place in _places(entry):
            _add_segment(place, next(records), f"{fields.where}, segment {number}", newer)
            number += 1
        active = sum(mask.count for mask in entry.masks)
        if active != entry.active:
            raise BrokenError("TSW-504", f"active {active}, as many as its masks", str(entry.active), entry.where)


def _add_segment(place: _Place, record: tuple[int, ...], where: str, newer: bool) -> None:
    offset, length, crc32c, count, role, codec, parameter, reserved = record
    where = f"{where}, {ROLES[place.role]} {place.chunk} of {shown(place.entry.tensor.name)}"
    if role != place.role:
        raise BrokenError("TSW-601", f"role {ROLES[place.role]}", ROLES.get(role, str(role)), where)
    if reserved and not newer:
        raise BrokenError("TSW-107", "a zero reserved field", str(reserved), where)
    plane = role in PLANES
    if count > place.elements or (not plane and count != place.elements):
        expected = f"a count of {'at most ' if plane else ''}{place.elements}"
        raise BrokenError("TSW-602", expected, str(count), where)
    if codec not in CODECS or (codec < 16) != plane:
        expected = f"a codec for {'planes' if plane else 'elements'}"
        raise BrokenError("TSW-606", expected, CODECS.get(codec, str(codec)), where)
    gaps = codec in (GAPS_ZSTD, RICE)
    if gaps and count == 0:
        raise BrokenError("TSW-606", "a codec for a plane without ones", CODECS[codec], where)
    most = LARGEST_PARAMETER if gaps else 0
    if parameter > most:
        raise BrokenError("TSW-606", f"a parameter of at most {most}", str(parameter), where)
    place.group.append(Segment(offset, length, crc32c, count, role, codec, parameter, place.size, where))
