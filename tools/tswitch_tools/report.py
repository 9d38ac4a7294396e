"""What a .tsw file holds and how small it is, from its index and its tables of coefficients: no other payload is read.

Percentages and bits are of the whole model: all elements of the base's tensors. *Source* is the expert as a checkpoint
in its own dtypes. What belongs to no task (prologue, index, padding, trailer, shared arrays) is shared out equally, so that
the tasks' bytes sum to the file's up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format.checkpoint import DTYPES
from tswitch_format.codecs import Codec
from tswitch_format.container.index import SWITCH_KINDS, Index, Kind, TaskTable
from tswitch_format.container.reader import Container
from tswitch_format.switch.file import SwitchFile
from tswitch_format.switch.tables import CoefficientTable

_BITS = np.array([DTYPES[i].bits if i in DTYPES else 0 for i in range(256)])


@dataclass(frozen=True, slots=True)
class EntryReport:
    """One tensor of a task. `density` and `knob` are None where it is no switch; `bytes` are those of its segments."""

    name: str
    kind: str
    dtype: str
    shape: Sequence[int]
    active: int
    density: float | None
    knob: float | None
    bytes: int
    codecs: Sequence[str]


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task. `tensors`: its entries; `params`: elements of the base; `density`: among elements of its switches;
    `shared_bytes`: its part of the file's shared arrays, which is in `bytes` too."""

    name: str
    tensors: int
    params: int
    active: int
    density: float
    bytes: int
    shared_bytes: int
    percent_of_fp32: float
    percent_of_source: float
    source_dtypes: Sequence[str]
    bits_per_param: float
    entropy_bits_per_param: float
    select: str | None
    knob: str | None
    recipe: Mapping[str, str]
    entries: Sequence[EntryReport]


@dataclass(frozen=True, slots=True)
class BaseReport:
    """The base: `bytes` in its own dtypes, `bytes_fp32` at 4 bytes an element."""

    id: str | None
    revision: str | None
    tensors: int
    params: int
    bytes: int
    bytes_fp32: int


@dataclass(frozen=True, slots=True)
class SharedReport:
    """The arrays that belong to no task: how many, their elements, types, and bytes in the file."""

    arrays: int
    elements: int
    dtypes: Sequence[str]
    bytes: int


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What says which tasks a sample needs: `samples` of `tasks`, each of `width` numbers."""

    k: int
    metric: str
    extractor: str
    preprocessing: str
    samples: int
    tasks: int
    width: int


@dataclass(frozen=True, slots=True)
class TableReport:
    """A table of coefficients: how many `rows`, which `tasks`; `least` and `greatest` as they are stored, not clamped."""

    name: str
    rows: int
    tasks: Sequence[str]
    clamp: Sequence[float] | None
    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class FileReport:
    """A whole file. `version` is that of its format."""

    file: str
    version: str
    profile: str
    file_bytes: int
    content_id: str | None
    base: BaseReport
    shared: SharedReport
    router: RouterReport | None
    tables: Sequence[TableReport]
    tasks: Sequence[TaskReport]
    metadata: Mapping[str, str]

    def document(self, *, tensors: bool = False) -> dict[str, Any]:
        """The report as JSON takes it; with each tensor of each task only if `tensors`."""
        made = asdict(self)
        if not tensors:
            for task in made["tasks"]:
                del task["entries"]
        return made


def report(file: SwitchFile, *, tensors: bool = False) -> FileReport:
    """Report on an open file; on each tensor of each task only if `tensors`."""
    container = file.container
    index = container.index
    lengths = [int(task.segments["length"].sum(dtype=np.int64)) for task in index.tasks]
    arrays = index.shared.arrays
    shared_report = SharedReport(
        len(arrays),
        sum(arrays.elements.tolist()),
        [DTYPES[i].name for i in np.unique(arrays.records["dtype"]).tolist()],
        int(index.shared.segments["length"].sum(dtype=np.int64)),
    )
    of_arrays = round(shared_report.bytes / max(len(lengths), 1))
    shared = (container.length - sum(lengths)) / max(len(lengths), 1)
    info = file.base
    base = BaseReport(info.id, info.revision, info.tensors, info.params, info.nbytes, 4 * info.params)
    held = _bytes_by_dtype(index.base.records["dtype"], index.base.elements)
    return FileReport(
        str(file.path),
        file.version,
        file.profile,
        container.length,
        file.content_id,
        base,
        shared_report,
        _router(container),
        [_table(table) for table in file.tables.values()],
        [
            _task(
                index,
                task,
                base,
                held,
                (round(length + shared), of_arrays),
                _entries(container, number) if tensors else (),
            )
            for number, (task, length) in enumerate(zip(index.tasks, lengths, strict=True))
        ],
        dict(file.metadata),
    )


def _task(
    index: Index,
    task: TaskTable,
    base: BaseReport,
    held: NDArray[np.float64],
    sizes: tuple[int, int],
    entries: Sequence[EntryReport],
) -> TaskReport:
    nbytes, shared_bytes = sizes
    switches = task.entries[np.isin(task.entries["kind"], SWITCH_KINDS)]
    active = switches["active"].astype(np.int64)
    elements = index.elements[switches["tensor"]]
    signed = int(active[switches["kind"] == Kind.TERNARY].sum())
    source = held + _changed_bytes(index, task)
    dtypes = sorted((i for i in DTYPES if source[i] > 0), key=lambda i: -source[i])
    return TaskReport(
        task.name,
        len(task.entries),
        base.params,
        int(active.sum()),
        _ratio(int(active.sum()), float(elements.sum(dtype=np.float64))),
        nbytes,
        shared_bytes,
        100 * _ratio(nbytes, 4 * base.params),
        100 * _ratio(nbytes, float(source.sum())),
        [DTYPES[i].name for i in dtypes],
        8 * _ratio(nbytes, base.params),
        _ratio(_entropy_bits(active, elements) + signed, base.params),
        task.recipe.get("select", task.recipe.get("method")),
        task.recipe.get("knob"),
        dict(task.recipe),
        entries,
    )


def _router(container: Container) -> RouterReport | None:
    keys = container.index.router
    if keys is None:
        return None
    stored = (container.features(task.name) for task in container.index.tasks)
    shapes = [features.spec.shape for features in stored if features is not None]
    samples = sum(shape[0] for shape in shapes)
    return RouterReport(keys.k, keys.metric, keys.extractor, keys.preprocessing, samples, len(shapes), shapes[0][1])


def _table(table: CoefficientTable) -> TableReport:
    least, greatest = float(table.values.min()), float(table.values.max())
    return TableReport(table.name, len(table.rows), list(table.tasks), table.clamp, least, greatest)


def _entries(container: Container, number: int) -> list[EntryReport]:
    segments = container.index.tasks[number].segments
    made = []
    for entry in container.entries(number):
        own = segments[entry.segments.start : entry.segments.stop]
        switch = entry.kind in SWITCH_KINDS
        made.append(
            EntryReport(
                entry.spec.name,
                entry.kind.name.lower(),
                entry.dtype.name,
                list(entry.spec.shape),
                entry.active,
                _ratio(entry.active, entry.spec.elements) if switch else None,
                float(entry.knob) if switch else None,
                int(own["length"].sum(dtype=np.int64)),
                [Codec(codec).name.lower() for codec in np.unique(own["codec"]).tolist()],
            )
        )
    return made


def _bytes_by_dtype(dtypes: NDArray[np.uint8], elements: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bytes of tensors, by id of their dtype. Floats: hostile sums are beyond 64 bits."""
    return np.bincount(dtypes, elements * (_BITS[dtypes] / 8), minlength=_BITS.size).astype(np.float64)


def _changed_bytes(index: Index, task: TaskTable) -> NDArray[np.float64]:
    """How the expert's checkpoint differs from the base in bytes, by dtype."""
    tensors, dtypes = task.entries["tensor"].astype(np.int64), task.entries["dtype"]
    stays = task.entries["kind"] != Kind.REMOVED
    made = _bytes_by_dtype(dtypes[stays], index.elements[tensors[stays]])
    added = tensors[tensors >= len(index.base)].tolist()
    replaced = [number for number in (index.base.find(index.name(tensor)) for tensor in added) if number is not None]
    gone = np.concatenate([tensors[tensors < len(index.base)], np.array(replaced, np.int64)])
    return made - _bytes_by_dtype(index.dtypes[gone], index.elements[gone])


def _entropy_bits(active: NDArray[np.int64], elements: NDArray[np.int64]) -> float:
    """Bits that ideal codes would need for masks: their binary entropy."""
    p = active[elements > 0] / elements[elements > 0]
    q = 1 - p
    entropy = -p * np.log2(p, where=p > 0, out=np.zeros_like(p)) - q * np.log2(q, where=q > 0, out=np.zeros_like(q))
    return float((elements[elements > 0] * entropy).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
