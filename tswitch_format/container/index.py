"""The index: spec sections 5, 7 and 8. Parsing checks every rule that needs no more than the index; building makes the bytes.

Whole tables are checked at once with NumPy, so that a file of 10,000 tensors opens in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container import document
from tswitch_format.container.frame import Frame
from tswitch_format.container.report import Report
from tswitch_format.container.tensors import TensorList, name_problem, parse_names

# By id, for whole columns of a table at once.
_KNOWN_KIND = np.array([i in lay.KNOWN_KINDS for i in range(256)])
_KNOWN_DTYPE = np.array([i in DTYPES for i in range(256)])
_FLOAT = np.array([i in DTYPES and DTYPES[i].is_float for i in range(256)])
_ROLES = (lay.Role.ROW_FACTORS, lay.Role.COLUMN_FACTORS, lay.Role.MASK, lay.Role.SIGN, lay.Role.DATA)


@dataclass(frozen=True)
class TaskTable:
    """One task of the index. `entries`: ENTRY records; `segments`: SEGMENT records."""

    name: str
    entries: NDArray[Any]
    segments: NDArray[Any]
    recipe: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, document.Value]:
        """The task's map in the index."""
        return {
            "checkpoint": dict(self.checkpoint),
            "entries": self.entries.tobytes(),
            "metadata": dict(self.metadata),
            "name": self.name,
            "recipe": dict(self.recipe),
            "segments": self.segments.tobytes(),
        }


@dataclass(frozen=True)
class Index:
    """Everything that the index says."""

    base: TensorList
    extra: TensorList = field(default_factory=TensorList)
    tasks: Sequence[TaskTable] = ()
    profile: str = "archive"
    aliases: Mapping[str, int] = field(default_factory=dict)
    base_id: str | None = None
    base_revision: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    writer: str = ""
    content_id: bytes | None = None

    @property
    def mapped(self) -> bool:
        """Whether planes lie raw and aligned."""
        return self.profile == "mapped"

    @cached_property
    def task_numbers(self) -> Mapping[str, int]:
        """Name of a task -> its number."""
        return {task.name: number for number, task in enumerate(self.tasks)}

    @cached_property
    def elements(self) -> NDArray[np.int64]:
        """Elements of each tensor, by tensor number."""
        return np.concatenate([self.base.elements, self.extra.elements])

    @cached_property
    def dtypes(self) -> NDArray[np.uint8]:
        """Id of the element type of each tensor, by tensor number."""
        return np.concatenate([self.base.records["dtype"], self.extra.records["dtype"]])

    @cached_property
    def ndims(self) -> NDArray[np.uint8]:
        """Number of dimensions of each tensor, by tensor number."""
        return np.concatenate([self.base.records["ndim"], self.extra.records["ndim"]])

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """First dimension of each tensor, by tensor number."""
        return np.concatenate([self.base.rows, self.extra.rows])

    def spec(self, number: int) -> TensorSpec:
        """Name, dtype and shape of the tensor with that number."""
        base = len(self.base)
        return self.base.spec(number) if number < base else self.extra.spec(number - base)

    @cached_property
    def names(self) -> list[str]:
        """Names by tensor number."""
        return [*self.base.names, *self.extra.names]

    def segment_counts(self, task: int) -> NDArray[np.int64]:
        """Number of segments of each entry, a column a role: [entries, 5] in the order of section 8."""
        if task not in self._segment_counts:
            self._segment_counts[task] = self._count_segments(self.tasks[task].entries)
        return self._segment_counts[task]

    @cached_property
    def _segment_counts(self) -> dict[int, NDArray[np.int64]]:
        return {}

    def _count_segments(self, entries: NDArray[Any]) -> NDArray[np.int64]:
        tensors, kind, flags = entries["tensor"], entries["kind"], entries["flags"]
        elements = self.elements[tensors]
        rows = self.rows[tensors]
        columns = elements // np.maximum(rows, 1)
        chunks = -(-elements // lay.CHUNK)
        ternary = kind == lay.Kind.TERNARY
        return np.stack(
            [
                np.where(ternary & ((flags & lay.HAS_ROW_FACTORS) != 0), -(-rows // lay.CHUNK), 0),
                np.where(ternary & ((flags & lay.HAS_COLUMN_FACTORS) != 0), -(-columns // lay.CHUNK), 0),
                np.where(ternary, chunks, 0),
                np.where(ternary, chunks, 0),
                np.where(kind == lay.Kind.DENSE, chunks, 0),
            ],
            axis=1,
        )

    def encode(self) -> bytes:
        """The canonical document."""
        base: dict[str, document.Value] = {**self.base.document(), "aliases": dict(self.aliases)}
        if self.base_id is not None:
            base["id"] = self.base_id
        if self.base_revision is not None:
            base["revision"] = self.base_revision
        whole: dict[str, document.Value] = {
            "base": base,
            "extra": self.extra.document(),
            "metadata": dict(self.metadata),
            "profile": self.profile,
            "tasks": [task.document() for task in self.tasks],
            "writer": self.writer,
        }
        if self.content_id is not None:
            whole["content_id"] = self.content_id
        return document.encode(whole)


_OPTIONAL = {"content_id", "id", "revision"}
_LIST_KEYS: Mapping[str, type] = {"dims": bytes, "names": bytes, "tensors": bytes}
_BASE_KEYS: Mapping[str, type] = {**_LIST_KEYS, "aliases": dict, "id": str, "revision": str}
_TASK_KEYS: Mapping[str, type] = {
    "checkpoint": dict,
    "entries": bytes,
    "metadata": dict,
    "name": str,
    "recipe": dict,
    "segments": bytes,
}
_KEYS: Mapping[str, type] = {
    "base": dict,
    "content_id": bytes,
    "extra": dict,
    "metadata": dict,
    "profile": str,
    "tasks": list,
    "writer": str,
}
_TYPE_NAMES = {bytes: "bin", dict: "map", str: "str", list: "array", int: "unsigned integer"}


def parse(data: bytes | memoryview, frame: Frame, report: Report) -> Index:
    """Parse and check a decoded index. Raises FormatError where what follows would make no sense."""
    value = document.decode(data, lambda rule, expected, found: report.fatal(rule, "index", expected, found))
    doc = _keys(value, _KEYS, "index", frame, report)
    base = _keys(doc["base"], _BASE_KEYS, "base", frame, report)
    extra = _keys(doc["extra"], _LIST_KEYS, "extra", frame, report)
    base_list = _tensor_list(base, "base", frame, report)
    extra_list = _tensor_list(extra, "extra", frame, report)
    if len(base_list) + len(extra_list) > lay.MAX_TENSORS:
        raise report.fatal("TSW-403", "tensors", f"at most {lay.MAX_TENSORS}", str(len(base_list) + len(extra_list)))
    if doc["profile"] not in lay.PROFILES:
        raise report.newer("TSW-308", "profile", " or ".join(lay.PROFILES), repr(doc["profile"]))
    content_id = doc.get("content_id")
    if content_id is not None and len(content_id) != 32:
        raise report.fatal("TSW-307", "content_id", "32 bytes", str(len(content_id)))
    _check_aliases(base["aliases"], base_list, report)
    tasks = []
    for number, member in enumerate(doc["tasks"]):
        task = _keys(member, _TASK_KEYS, f"tasks[{number}]", frame, report)
        tasks.append(
            TaskTable(
                task["name"],
                _table(task["entries"], lay.ENTRY, f"tasks[{number}].entries", report),
                _table(task["segments"], lay.SEGMENT, f"tasks[{number}].segments", report),
                *(_texts(task[key], f"tasks[{number}].{key}", report) for key in ("recipe", "checkpoint", "metadata")),
            )
        )
    index = Index(
        base_list,
        extra_list,
        tasks,
        doc["profile"],
        base["aliases"],
        base.get("id"),
        base.get("revision"),
        _texts(doc["metadata"], "metadata", report),
        doc["writer"],
        content_id,
    )
    _check_tasks(index, frame, report)
    return index


def _keys(value: Any, keys: Mapping[str, type], where: str, frame: Frame, report: Report) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise report.fatal("TSW-307", where, "a map", _TYPE_NAMES.get(type(value), "?"))
    for key, kind in keys.items():
        if key not in value:
            if key not in _OPTIONAL:
                raise report.fatal("TSW-307", f"{where}.{key}", "the key", "none")
        elif not isinstance(value[key], kind):
            raise report.fatal("TSW-307", f"{where}.{key}", _TYPE_NAMES[kind], _TYPE_NAMES[type(value[key])])
    if frame.minor <= lay.MINOR:
        for key in value:
            if key not in keys:
                report.finding("TSW-307", f"{where}.{key}", "no such key", "it")
    return value


def _texts(value: dict[str, Any], where: str, report: Report) -> Mapping[str, str]:
    for key, text in value.items():
        if not isinstance(text, str):
            raise report.fatal("TSW-307", f"{where}.{key}", "str", _TYPE_NAMES[type(text)])
    return value


def _table(data: bytes, record: np.dtype[Any], where: str, report: Report) -> NDArray[Any]:
    if len(data) % record.itemsize:
        raise report.fatal("TSW-310", where, f"a multiple of {record.itemsize} bytes", str(len(data)))
    return np.frombuffer(data, record)


def _tensor_list(doc: dict[str, Any], where: str, frame: Frame, report: Report) -> TensorList:
    records = _table(doc["tensors"], lay.TENSOR, f"{where}.tensors", report)
    if len(records) > lay.MAX_TENSORS:
        raise report.fatal("TSW-403", f"{where}.tensors", f"at most {lay.MAX_TENSORS}", str(len(records)))
    dims = int(records["ndim"].sum(dtype=np.int64))
    if len(doc["dims"]) != dims * 8:
        raise report.fatal("TSW-401", f"{where}.dims", f"{dims * 8} bytes", str(len(doc["dims"])))
    names = parse_names(doc["names"], records["name_length"], where, report)
    made = TensorList(names, records, np.frombuffer(doc["dims"], "<u8").astype(np.uint64, copy=False))
    made.check(where, report, base=where == "base", minor=frame.minor)
    return made


def _check_aliases(aliases: Mapping[str, Any], base: TensorList, report: Report) -> None:
    for name, target in aliases.items():
        wrong = name_problem(name)
        if wrong or name in base.numbers:
            raise report.fatal(
                "TSW-407",
                "base.aliases",
                "proper names that the base has not",
                f"{name[:80]!r} ({wrong or 'a tensor'})",
            )
        if not isinstance(target, int) or target >= len(base):
            raise report.fatal("TSW-407", f"base.aliases.{name}", f"a number below {len(base)}", repr(target)[:40])


def _check_tasks(index: Index, frame: Frame, report: Report) -> None:
    used = np.zeros(len(index.extra), np.bool_)
    names: set[str] = set()
    end = lay.FRAME
    for number, task in enumerate(index.tasks):
        where = f"tasks[{number}]"
        wrong = name_problem(task.name)
        if wrong or task.name in names:
            expected = "a proper name that no other task has"
            report.finding("TSW-501", f"{where}.name", expected, f"{task.name[:80]!r} ({wrong or 'twice'})")
        names.add(task.name)
        _check_entries(index, task, f"{where}.entries", frame, report)
        base = len(index.base)
        used[task.entries["tensor"][task.entries["tensor"] >= base].astype(np.int64) - base] = True
        _check_segments(index, number, f"{where}.segments", frame, report)
        end = _check_places(task.segments, end, index.mapped, f"{where}.segments", report)
    if not used.all():
        report.finding("TSW-408", f"extra.tensors[{int(np.argmin(used))}]", "an entry that uses it", "none")
    start = lay.align(end, lay.MAPPED_SMALL if index.mapped else 1)
    if start != frame.index_offset:
        report.finding(
            "TSW-604", "index offset", f"{start}, where the last segment ends", str(frame.index_offset), offset=40
        )


def _check_entries(index: Index, task: TaskTable, where: str, frame: Frame, report: Report) -> None:
    entries = task.entries
    if not len(entries):
        return
    tensors = entries["tensor"].astype(np.int64)
    base = len(index.base)
    if int(tensors.max()) >= base + len(index.extra) or (np.diff(tensors) <= 0).any():
        raise report.fatal("TSW-502", f"{where}.tensor", f"ascending numbers below {base + len(index.extra)}", "others")
    own = tensors[tensors < base]
    extra = [index.names[int(n)] for n in tensors[tensors >= base]]
    doubles = set(extra) & {index.base.names[n] for n in own} if extra else set()
    if doubles or len(set(extra)) != len(extra):
        raise report.fatal("TSW-502", where, "each name once", f"{sorted(doubles or extra)[0]!r} twice")
    kind, flags, factor = entries["kind"], entries["flags"], entries["factor_dtype"]

    def check(bad: NDArray[np.bool_], rule: str, what: str, expected: str, *, newer: bool = False) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            found = str(entries[what][at])
            make = report.newer if newer else report.fatal
            raise make(rule, f"{where}[{at}].{what}", expected, found)

    check(~_KNOWN_KIND[kind], "TSW-503", "kind", "a known kind", newer=True)
    if frame.minor <= lay.MINOR:
        check(entries["reserved"] != 0, "TSW-107", "reserved", "zero")
        check((flags & 0xF8) != 0, "TSW-406", "flags", "no bits but 0 to 2")
    dtypes = index.dtypes[tensors]
    ndim = index.ndims[tensors]
    elements = index.elements[tensors]
    ternary = kind == lay.Kind.TERNARY
    check(ternary & ((tensors >= base) | ~_FLOAT[dtypes]), "TSW-504", "tensor", "a float tensor of the base")
    check(~_KNOWN_DTYPE[entries["dtype"]], "TSW-404", "dtype", "a known dtype", newer=True)
    check(ternary & ~_FLOAT[entries["dtype"]], "TSW-504", "dtype", "a float dtype")
    check(ternary & ~np.isfinite(entries["knob"]), "TSW-504", "knob", "a finite number")
    factors = (flags & (lay.HAS_ROW_FACTORS | lay.HAS_COLUMN_FACTORS)) != 0
    check(ternary & factors & ((ndim < 2) | (elements == 0)), "TSW-504", "flags", "no factors for such a shape")
    check(
        ternary & ((factor > lay.FactorDType.F32) | ((factor != 0) != factors)),
        "TSW-504",
        "factor_dtype",
        "1 to 3 with factors, else 0",
    )
    check(ternary & (entries["active"] > elements.astype(np.uint64)), "TSW-504", "active", "at most the elements")
    for rule, only in (("TSW-505", kind == lay.Kind.DENSE), ("TSW-506", kind == lay.Kind.REMOVED)):
        check(only & (entries["dtype"] != dtypes), rule, "dtype", "the dtype of the tensor's record")
        check(only & (entries["knob"].view(np.uint32) != 0), rule, "knob", "zero")
        check(only & (entries["active"] != 0), rule, "active", "zero")
        check(only & ((factor != 0) | factors), rule, "factor_dtype", "no factors")
    check((kind == lay.Kind.REMOVED) & (tensors >= base), "TSW-506", "tensor", "a tensor of the base")
    absent = np.ascontiguousarray(entries["sha256"][(flags & lay.HAS_SHA256) == 0])
    if np.frombuffer(absent.tobytes(), np.uint8).any():
        report.finding("TSW-406", f"{where}.sha256", "zero where absent", "something else")


def _check_segments(index: Index, number: int, where: str, frame: Frame, report: Report) -> None:
    task = index.tasks[number]
    segments = task.segments
    counts = index.segment_counts(number)
    if int(counts.sum()) != len(segments):
        raise report.fatal("TSW-601", where, f"{int(counts.sum())} segments", str(len(segments)))
    roles, sizes = _roles_and_sizes(index, number)
    _each(segments["role"] == roles, "TSW-601", where, segments, "role", "the role that follows from the entry", report)
    if frame.minor <= lay.MINOR:
        _each(segments["reserved"] == 0, "TSW-107", where, segments, "reserved", "zero", report)
    codec = segments["codec"]
    planes = (roles == lay.Role.MASK) | (roles == lay.Role.SIGN)
    known = np.where(planes, codec <= lay.Codec.RICE, (codec == lay.Codec.RAW) | (codec == lay.Codec.ZSTD))
    if not known.all():
        at = int(np.argmin(known))
        make = report.fatal if codec[at] in tuple(lay.Codec) else report.newer
        raise make("TSW-606", f"{where}[{at}].codec", "a known codec that fits the role", str(codec[at]))
    k = (codec == lay.Codec.GAPS_ZSTD) | (codec == lay.Codec.RICE)
    _each(
        segments["parameter"] <= np.where(k, lay.MAX_PARAMETER, 0),
        "TSW-606",
        where,
        segments,
        "parameter",
        "a proper one",
        report,
    )
    if index.mapped:
        plain = np.where(planes, codec == lay.Codec.BITMAP, codec == lay.Codec.RAW)
        _each(plain, "TSW-605", where, segments, "codec", "bitmap and raw in the mapped profile", report)
    fits = np.where(planes, segments["count"] <= sizes, segments["count"] == sizes)
    _each(fits, "TSW-602", where, segments, "count", "what the entry has room for", report)
    masks = np.where(roles == lay.Role.MASK, segments["count"], 0).astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(masks)])
    ends = np.cumsum(counts.sum(axis=1))
    active = sums[ends] - sums[ends - counts.sum(axis=1)]
    wrong = active != task.entries["active"].astype(np.int64)
    if wrong.any():
        at = int(np.argmax(wrong))
        report.finding(
            "TSW-504",
            f"tasks[{number}].entries[{at}].active",
            f"{active[at]} as its masks count",
            str(task.entries["active"][at]),
        )


def _roles_and_sizes(index: Index, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Of each segment of one task: its role, and the bits of its plane or the number of its elements."""
    task = index.tasks[number]
    tensors = task.entries["tensor"]
    elements = index.elements[tensors]
    rows = index.rows[tensors]
    totals = np.stack([rows, elements // np.maximum(rows, 1), elements, elements, elements], axis=1).ravel()
    counts = index.segment_counts(number).ravel()
    # Which run of segments (entry times role) each segment belongs to; all else is looked up by that.
    run = np.repeat(np.arange(counts.size), counts)
    roles = np.tile(np.array(_ROLES, np.uint8), len(tensors))[run]
    nth = np.arange(run.size) - (np.cumsum(counts) - counts)[run]
    sizes = np.minimum(lay.CHUNK, totals[run] - nth * lay.CHUNK)
    # A sign plane has a bit for each one of its mask, which lies as many segments before it as the tensor has chunks.
    signs = np.flatnonzero(roles == lay.Role.SIGN)
    sizes[signs] = task.segments["count"][signs - counts[run[signs]]]
    return roles, sizes


def _check_places(segments: NDArray[Any], end: int, mapped: bool, where: str, report: Report) -> int:
    """Check that segments follow each other from `end` on; where they end."""
    if not len(segments):
        return end
    offsets = segments["offset"].astype(np.uint64)
    lengths = segments["length"].astype(np.uint64)
    # Offsets above the limit would wrap around when lengths are added.
    if int(offsets.max()) > 1 << 62:
        raise report.fatal("TSW-603", f"{where}.offset", "an offset inside the file", str(int(offsets.max())))
    ends = np.concatenate([np.array([end], np.uint64), (offsets + lengths)[:-1]])
    if mapped:
        alignment = np.where(lengths >= lay.MAPPED_FROM, lay.MAPPED_LARGE, lay.MAPPED_SMALL).astype(np.uint64)
        ends = (ends + alignment - np.uint64(1)) // alignment * alignment
    _each(offsets == ends, "TSW-603", where, segments, "offset", "where the segment before ends, aligned", report)
    return int(offsets[-1]) + int(lengths[-1])


def _each(
    good: NDArray[np.bool_], rule: str, where: str, table: NDArray[Any], name: str, expected: str, report: Report
) -> None:
    if not good.all():
        at = int(np.argmin(good))
        more = int(good.size - np.count_nonzero(good)) - 1
        rest = f" (and {more} more)" if more else ""
        raise report.fatal(rule, f"{where}[{at}].{name}", expected, f"{table[name][at]}{rest}")
