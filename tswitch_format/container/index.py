"""The index as a model: what it says, and its canonical bytes (spec section 5). `parse.py` is the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._layout import HAS_COLUMN_FACTORS, HAS_ROW_FACTORS, SWITCH_KINDS, FactorDType, Kind, SharedRole
from tswitch_format._version import WRITER
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container import document
from tswitch_format.container.tensors import TensorList

__all__ = [
    "HAS_COLUMN_FACTORS",
    "HAS_ROW_FACTORS",
    "SWITCH_KINDS",
    "WRITER",
    "CoefficientKeys",
    "FactorDType",
    "Index",
    "Kind",
    "RouterKeys",
    "SharedArrays",
    "SharedRole",
    "TaskTable",
]

SHARED = -1  # in place of a task's number: the table of the shared arrays


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
class SharedArrays:
    """Arrays that belong to no task (spec section 5.5): their records, a role for each, and SEGMENT records of all."""

    arrays: TensorList = field(default_factory=TensorList)
    roles: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    segments: NDArray[Any] = field(default_factory=lambda: np.zeros(0, lay.SEGMENT))

    def __len__(self) -> int:
        return len(self.arrays)

    def named(self, role: SharedRole) -> Iterator[tuple[str, int]]:
        """Name and number of each array of a role, in order."""
        for number in np.flatnonzero(self.roles == role).tolist():
            yield self.arrays.names[number], number

    def find(self, name: str, role: SharedRole) -> int | None:
        """Number of the first array of that name and role, or None."""
        number = self.arrays.find(name)
        while number is not None and number < len(self) and self.arrays.names[number] == name:
            if self.roles[number] == role:
                return number
            number += 1
        return None

    def document(self) -> dict[str, document.Value]:
        """The map in the index."""
        return {**self.arrays.document(), "roles": self.roles.tobytes(), "segments": self.segments.tobytes()}


@dataclass(frozen=True)
class RouterKeys:
    """What the index says of a router (spec section 5.6); its features are shared arrays."""

    k: int
    metric: str
    extractor: str
    preprocessing: str

    def document(self) -> dict[str, document.Value]:
        """The map in the index."""
        return dict(vars(self))


@dataclass(frozen=True)
class CoefficientKeys:
    """What the index says of a table of coefficients (spec section 5.7), whose elements are a shared array: `rows`, numbers of
    base tensors, u32; `tasks`, the names of those of its columns; `clamp`, least and greatest, or None."""

    rows: NDArray[np.uint32]
    tasks: Sequence[str]
    clamp: tuple[float, float] | None = None

    @property
    def clamp_bytes(self) -> bytes | None:
        """The clamp as the file has it."""
        return None if self.clamp is None else np.array(self.clamp, "<f4").tobytes()

    def document(self) -> dict[str, document.Value]:
        """The map in the index."""
        clamp = self.clamp_bytes
        return {
            **({} if clamp is None else {"clamp": clamp}),
            "rows": self.rows.astype("<u4").tobytes(),
            "tasks": list(self.tasks),
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
    shared: SharedArrays = field(default_factory=SharedArrays)
    router: RouterKeys | None = None
    coefficients: Mapping[str, CoefficientKeys] = field(default_factory=dict)

    @property
    def mapped(self) -> bool:
        """Whether planes lie raw and aligned."""
        return self.profile == "mapped"

    @cached_property
    def task_numbers(self) -> Mapping[str, int]:
        """Name of a task -> its number."""
        return {task.name: number for number, task in enumerate(self.tasks)}

    @cached_property
    def _lists(self) -> tuple[TensorList, ...]:
        """Where tensor numbers lead to; here those of shared arrays go on after the others."""
        return self.base, self.extra, self.shared.arrays

    @cached_property
    def elements(self) -> NDArray[np.int64]:
        """Elements of each tensor, by tensor number."""
        return _joined([tensors.elements for tensors in self._lists])

    @cached_property
    def dtypes(self) -> NDArray[np.uint8]:
        """Id of the element type of each tensor, by tensor number."""
        return _joined([tensors.records["dtype"] for tensors in self._lists])

    @cached_property
    def ndims(self) -> NDArray[np.uint8]:
        """Number of dimensions of each tensor, by tensor number."""
        return _joined([tensors.records["ndim"] for tensors in self._lists])

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """First dimension of each tensor, by tensor number."""
        return _joined([tensors.rows for tensors in self._lists])

    def spec(self, number: int) -> TensorSpec:
        """Name, dtype and shape of the tensor with that number."""
        tensors, number = self._find(number)
        return tensors.spec(number)

    def name(self, number: int) -> str:
        """Name of the tensor with that number."""
        tensors, number = self._find(number)
        return tensors.names[number]

    def _find(self, number: int) -> tuple[TensorList, int]:
        for tensors in self._lists[:-1]:
            if number < len(tensors):
                return tensors, number
            number -= len(tensors)
        return self._lists[-1], number

    @cached_property
    def shared_targets(self) -> NDArray[np.int64]:
        """For each shared array the number of the base's tensor of its name, or -1."""
        return self.base.same_names(self.shared.arrays)

    @cached_property
    def tables(self) -> Sequence[TaskTable]:
        """Those of the tasks, and last, as number SHARED, the shared arrays as if they were dense entries of one."""
        entries = np.zeros(len(self.shared), lay.ENTRY)
        entries["tensor"] = len(self.base) + len(self.extra) + np.arange(len(entries))
        entries["kind"] = Kind.DENSE
        entries["dtype"] = self.shared.arrays.records["dtype"]
        return [*self.tasks, TaskTable("", entries, self.shared.segments)]

    def segment_counts(self, entries: NDArray[Any]) -> NDArray[np.int64]:
        """Number of segments of each entry, a column a role: [entries, 5] in the order of section 8."""
        tensors, kind, flags = entries["tensor"], entries["kind"], entries["flags"]
        elements = self.elements[tensors]
        rows = self.rows[tensors]
        columns = elements // np.maximum(rows, 1)
        chunks = lay.chunks_of(elements)
        ternary = kind == Kind.TERNARY
        masks = np.where(ternary | (kind == Kind.MASKED), chunks, 0)
        return np.stack(
            [
                np.where(ternary & ((flags & lay.HAS_ROW_FACTORS) != 0), lay.chunks_of(rows), 0),
                np.where(ternary & ((flags & lay.HAS_COLUMN_FACTORS) != 0), lay.chunks_of(columns), 0),
                masks,
                np.where(ternary, chunks, 0),
                np.where(kind == Kind.DENSE, chunks, 0),
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
        if len(self.shared):
            whole["shared"] = self.shared.document()
        if self.router is not None:
            whole["router"] = self.router.document()
        if self.coefficients:
            whole["coefficients"] = {name: table.document() for name, table in self.coefficients.items()}
        return document.encode(whole)


def table_name(number: int) -> str:
    """What messages call table `number` of `Index.tables`."""
    return "shared" if number == SHARED else f"tasks[{number}]"


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    # Most files have tensors of the base only, and a copy for a million of them is not for nothing.
    first, *others = parts
    return np.concatenate(parts) if any(other.size for other in others) else first
