"""The bytes of an index -> `Index`, with every check that needs no more than the index (spec sections 5, 7 and 8)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format.container import document
from tswitch_format.container.check_shared import check_shared
from tswitch_format.container.checks import check_tasks
from tswitch_format.container.frame import Frame
from tswitch_format.container.index import CoefficientKeys, Index, RouterKeys, SharedArrays, TaskTable
from tswitch_format.container.names import Budget, cut_names, name_problem
from tswitch_format.container.report import Place, Report
from tswitch_format.container.tensors import ListRules, TensorList

_TYPES = {"map": dict, "array": list, "str": str, "bin": memoryview, "unsigned integer": int}
_OPTIONAL = {"clamp", "coefficients", "content_id", "id", "revision", "router", "shared"}
_LISTS = {"base": ListRules.BASE, "extra": ListRules.EXTRA, "shared": ListRules.SHARED}
_LIST_KEYS: Mapping[str, str] = {"dims": "bin", "names": "bin", "tensors": "bin"}
_BASE_KEYS: Mapping[str, str] = {**_LIST_KEYS, "aliases": "map", "id": "str", "revision": "str"}
_SHARED_KEYS: Mapping[str, str] = {**_LIST_KEYS, "roles": "bin", "segments": "bin"}
_ROUTER_KEYS: Mapping[str, str] = {"extractor": "str", "k": "unsigned integer", "metric": "str", "preprocessing": "str"}
_TABLE_KEYS: Mapping[str, str] = {"clamp": "bin", "rows": "bin", "tasks": "array"}
_TASK_KEYS: Mapping[str, str] = {
    "checkpoint": "map",
    "entries": "bin",
    "metadata": "map",
    "name": "str",
    "recipe": "map",
    "segments": "bin",
}
_ROW = np.dtype("<u4")
_CLAMP_BYTES = 8
_KEYS: Mapping[str, str] = {
    "base": "map",
    "coefficients": "map",
    "content_id": "bin",
    "extra": "map",
    "metadata": "map",
    "profile": "str",
    "router": "map",
    "shared": "map",
    "tasks": "array",
    "writer": "str",
}


def parse(data: bytes | memoryview, frame: Frame, report: Report) -> Index:
    """Parse and check a decoded index. Raises FormatError, or StopReading where the report collects."""
    return _Parser(data, frame, report).index()


class _Parser:
    def __init__(self, data: bytes | memoryview, frame: Frame, report: Report) -> None:
        self._data = data
        self._minor = frame.minor
        self._frame = frame
        self._report = report
        self._budget = Budget(report)
        self._place = Place(data, frame.index_offset, compressed=frame.index_encoding == lay.Encoding.ZSTD)

    def index(self) -> Index:
        report = self._report
        doc = self._keys(document.decode(self._data, self._broken_document), _KEYS, "index")
        base = self._keys(doc["base"], _BASE_KEYS, "base")
        extra = self._keys(doc["extra"], _LIST_KEYS, "extra")
        base_records = self._table(base["tensors"], lay.TENSOR, "base.tensors")
        extra_records = self._table(extra["tensors"], lay.TENSOR, "extra.tensors")
        shared = self._keys(doc["shared"], _SHARED_KEYS, "shared") if "shared" in doc else None
        shared_records = self._table(shared["tensors"] if shared else memoryview(b""), lay.TENSOR, "shared.tensors")
        tensors = len(base_records) + len(extra_records) + len(shared_records)
        if tensors > lay.MAX_TENSORS:
            raise report.fatal("TSW-403", "tensors", f"at most {lay.MAX_TENSORS}", str(tensors))
        if doc["profile"] not in lay.PROFILES:
            raise report.newer("TSW-308", "profile", " or ".join(lay.PROFILES), repr(doc["profile"][:80]))
        content_id = doc.get("content_id")
        if content_id is not None and len(content_id) != 32:
            report.finding("TSW-307", "content_id", "32 bytes", str(len(content_id)), offset=self._place.of(content_id))
            content_id = None
        tasks = [self._task(member, f"tasks[{number}]") for number, member in enumerate(doc["tasks"])]
        metadata = self._texts(doc["metadata"], "metadata")
        index = Index(
            self._tensor_list(base, base_records, "base"),
            self._tensor_list(extra, extra_records, "extra"),
            tasks,
            doc["profile"],
            base["aliases"],
            base.get("id"),
            base.get("revision"),
            metadata,
            doc["writer"],
            None if content_id is None else bytes(content_id),
            self._shared(shared, shared_records),
            RouterKeys(**self._keys(doc["router"], _ROUTER_KEYS, "router")) if "router" in doc else None,
            self._coefficients(doc.get("coefficients")),
        )
        report.gate()
        self._check_aliases(index)
        report.gate()
        check_shared(index, self._place, report)
        report.gate()
        check_tasks(index, self._frame, self._place, report)
        return index

    def _broken_document(self, rule: str, expected: str, found: str, position: int) -> Exception:
        return self._report.fatal(rule, "index", expected, found, offset=self._place.at(position))

    def _keys(self, value: Any, keys: Mapping[str, str], where: str) -> dict[str, Any]:
        """A map that has these keys with values of these types; what builds on others makes no sense."""
        report = self._report
        if not isinstance(value, dict):
            raise report.fatal("TSW-307", where, "a map", document.type_name(value))
        for key, kind in keys.items():
            if key not in value:
                if key not in _OPTIONAL:
                    report.blocking("TSW-307", f"{where}.{key}", "the key", "none")
            elif not isinstance(value[key], _TYPES[kind]):
                report.blocking("TSW-307", f"{where}.{key}", kind, document.type_name(value[key]))
        for key in sorted(value.keys() - keys.keys()):
            if self._minor <= lay.MINOR:
                report.finding("TSW-307", f"{where}[{key[:80]!r}]", "no such key", "it")
            del value[key]  # it may hold a quarter of a million objects
        report.gate()
        return value

    def _texts(self, value: dict[str, Any], where: str) -> Mapping[str, str]:
        for key, text in value.items():
            if not isinstance(text, str):
                self._report.finding("TSW-307", f"{where}[{key[:80]!r}]", "str", document.type_name(text))
        return value

    def _table(self, data: memoryview, record: np.dtype[Any], where: str) -> NDArray[Any]:
        if len(data) % record.itemsize:
            offset = self._place.of(data)
            expected = f"a multiple of {record.itemsize} bytes"
            self._report.blocking("TSW-310", where, expected, str(len(data)), offset=offset)
            self._report.gate()
        return np.frombuffer(data, record)

    def _task(self, member: Any, where: str) -> TaskTable:
        task = self._keys(member, _TASK_KEYS, where)
        return TaskTable(
            task["name"],
            self._table(task["entries"], lay.ENTRY, f"{where}.entries"),
            self._table(task["segments"], lay.SEGMENT, f"{where}.segments"),
            *(self._texts(task[key], f"{where}.{key}") for key in ("recipe", "checkpoint", "metadata")),
        )

    def _shared(self, doc: dict[str, Any] | None, records: NDArray[Any]) -> SharedArrays:
        if doc is None:
            return SharedArrays()
        if not len(records):
            self._report.blocking("TSW-410", "shared.tensors", "an array", "none")
        if len(doc["roles"]) != len(records):
            expected = f"{len(records)} bytes"
            offset = self._place.of(doc["roles"])
            self._report.blocking("TSW-409", "shared.roles", expected, str(len(doc["roles"])), offset=offset)
        self._report.gate()
        return SharedArrays(
            self._tensor_list(doc, records, "shared"),
            np.frombuffer(doc["roles"], np.uint8),
            self._table(doc["segments"], lay.SEGMENT, "shared.segments"),
        )

    def _coefficients(self, doc: dict[str, Any] | None) -> Mapping[str, CoefficientKeys]:
        if doc is None:
            return {}
        if not doc:
            self._report.blocking("TSW-412", "coefficients", "a table", "none")
        return {name: self._coefficient_keys(keys, f"coefficients[{name[:80]!r}]") for name, keys in doc.items()}

    def _coefficient_keys(self, value: Any, where: str) -> CoefficientKeys:
        keys = self._keys(value, _TABLE_KEYS, where)
        for number, task in enumerate(keys["tasks"]):
            if not isinstance(task, str):
                self._report.blocking("TSW-307", f"{where}.tasks[{number}]", "str", document.type_name(task))
        rows, clamp = keys["rows"], keys.get("clamp")
        if len(rows) % _ROW.itemsize:
            self._wrong_length(f"{where}.rows", f"a multiple of {_ROW.itemsize} bytes", rows)
        if clamp is not None and len(clamp) != _CLAMP_BYTES:
            self._wrong_length(f"{where}.clamp", f"{_CLAMP_BYTES} bytes", clamp)
        self._report.gate()
        least_and_greatest = None if clamp is None else struct.unpack("<ff", clamp)
        return CoefficientKeys(np.frombuffer(rows, _ROW), keys["tasks"], least_and_greatest)

    def _wrong_length(self, where: str, expected: str, data: memoryview) -> None:
        self._report.blocking("TSW-412", where, expected, str(len(data)), offset=self._place.of(data))

    def _tensor_list(self, doc: dict[str, Any], records: NDArray[Any], where: str) -> TensorList:
        dims = int(records["ndim"].sum(dtype=np.int64))
        if len(doc["dims"]) != dims * 8:
            offset = self._place.of(doc["dims"])
            self._report.blocking("TSW-401", f"{where}.dims", f"{dims * 8} bytes", str(len(doc["dims"])), offset=offset)
        names, order = cut_names(doc["names"], records["name_length"], where, self._place, self._budget)
        self._report.gate()
        made = TensorList(names, records, np.frombuffer(doc["dims"], "<u8"))
        made.check(where, order, self._minor, self._place, self._report, _LISTS[where])
        return made

    def _check_aliases(self, index: Index) -> None:
        self._budget.take(index.aliases, "base.aliases")
        self._budget.take([task.name for task in index.tasks], "tasks")
        for name, target in index.aliases.items():
            wrong = name_problem(name) or ("the name of a tensor" if index.base.find(name) is not None else None)
            where = f"base.aliases[{name[:80]!r}]"
            if wrong:
                self._report.blocking("TSW-407", where, "a proper name that the base has not", wrong)
            if not isinstance(target, int):
                self._report.blocking("TSW-307", where, "unsigned integer", document.type_name(target))
            elif target >= len(index.base):
                self._report.blocking("TSW-407", where, f"a number below {len(index.base)}", str(target))
