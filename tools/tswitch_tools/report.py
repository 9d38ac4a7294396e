"""What a .tsw file holds and how small it is, from its index alone: no payload is read.

Percentages and bits are of the whole model: all elements of the base's tensors. *Source* is the expert as a checkpoint
in its own dtypes. What belongs to no task (prologue, index, padding, trailer) is shared out equally, so that the tasks'
bytes sum to the file's up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format.codecs import Codec
from tswitch_format.container.reader import Entry
from tswitch_format.switch.file import SwitchFile


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
    """One task. `tensors`: its entries; `params`: elements of the base; `density`: among elements of its switches."""

    name: str
    tensors: int
    params: int
    active: int
    density: float
    bytes: int
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
class FileReport:
    """A whole file. `version` is that of its format."""

    file: str
    version: str
    profile: str
    file_bytes: int
    content_id: str | None
    base: BaseReport
    tasks: Sequence[TaskReport]
    metadata: Mapping[str, str]

    def document(self, *, tensors: bool = False) -> dict[str, Any]:
        """The report as JSON takes it; with each tensor of each task only if `tensors`."""
        made = asdict(self)
        if not tensors:
            for task in made["tasks"]:
                del task["entries"]
        return made


def report(file: SwitchFile) -> FileReport:
    """Report on an open file."""
    container = file.container
    lengths = [int(task.segments["length"].sum(dtype=np.int64)) for task in container.index.tasks]
    shared = (container.length - sum(lengths)) / max(len(lengths), 1)
    base = file.base
    return FileReport(
        str(file.path),
        file.version,
        file.profile,
        container.length,
        file.content_id,
        BaseReport(base.id, base.revision, base.tensors, base.params, base.nbytes, 4 * base.params),
        [_task(file, number, round(length + shared)) for number, length in enumerate(lengths)],
        dict(file.metadata),
    )


def _task(file: SwitchFile, number: int, nbytes: int) -> TaskReport:
    task = file.container.index.tasks[number]
    params = file.base.params
    entries = list(file.container.entries(number))
    ternary = [entry for entry in entries if entry.kind.name == "TERNARY"]
    active = np.array([entry.active for entry in ternary], np.int64)
    elements = np.array([entry.spec.elements for entry in ternary], np.int64)
    source = _source(file, entries)
    return TaskReport(
        task.name,
        len(entries),
        params,
        int(active.sum()),
        _ratio(int(active.sum()), int(elements.sum())),
        nbytes,
        100 * _ratio(nbytes, 4 * params),
        100 * _ratio(nbytes, source.total()),
        [name for name, _ in source.most_common()],
        8 * _ratio(nbytes, params),
        _ratio(_entropy_bits(active, elements), params),
        task.recipe.get("select"),
        task.recipe.get("knob"),
        dict(task.recipe),
        _entries(file, number, entries),
    )


def _entries(file: SwitchFile, number: int, entries: Sequence[Entry]) -> list[EntryReport]:
    segments = file.container.index.tasks[number].segments
    made = []
    for entry in entries:
        own = segments[entry.segments.start : entry.segments.stop]
        switch = entry.kind.name == "TERNARY"
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


def _source(file: SwitchFile, entries: Sequence[Entry]) -> Counter[str]:
    """Bytes of the expert's checkpoint, by dtype."""
    specs = {name: file.base.spec(name) for name in file.base}
    for entry in entries:
        if entry.kind.name == "REMOVED":
            del specs[entry.spec.name]
        else:
            specs[entry.spec.name] = replace(entry.spec, dtype=entry.dtype)
    held: Counter[str] = Counter()
    for spec in specs.values():
        held[spec.dtype.name] += spec.nbytes
    return held


def _entropy_bits(active: NDArray[np.int64], elements: NDArray[np.int64]) -> float:
    """Bits that ideal codes would need for masks (their binary entropy) and signs (one bit an active element)."""
    p = active[elements > 0] / elements[elements > 0]
    q = 1 - p
    entropy = -p * np.log2(p, where=p > 0, out=np.zeros_like(p)) - q * np.log2(q, where=q > 0, out=np.zeros_like(q))
    return float((elements[elements > 0] * (entropy + p)).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
