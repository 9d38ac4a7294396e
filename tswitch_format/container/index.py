"""The index as a model: what it says, and its canonical bytes (spec section 5). `parse.py` is the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._layout import Kind
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container import document
from tswitch_format.container.tensors import TensorList

__all__ = ["Index", "Kind", "TaskTable"]


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
        return _joined(self.base.elements, self.extra.elements)

    @cached_property
    def dtypes(self) -> NDArray[np.uint8]:
        """Id of the element type of each tensor, by tensor number."""
        return _joined(self.base.records["dtype"], self.extra.records["dtype"])

    @cached_property
    def ndims(self) -> NDArray[np.uint8]:
        """Number of dimensions of each tensor, by tensor number."""
        return _joined(self.base.records["ndim"], self.extra.records["ndim"])

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """First dimension of each tensor, by tensor number."""
        return _joined(self.base.rows, self.extra.rows)

    def spec(self, number: int) -> TensorSpec:
        """Name, dtype and shape of the tensor with that number."""
        base = len(self.base)
        return self.base.spec(number) if number < base else self.extra.spec(number - base)

    def name(self, number: int) -> str:
        """Name of the tensor with that number."""
        base = len(self.base)
        return self.base.names[number] if number < base else self.extra.names[number - base]

    def segment_counts(self, entries: NDArray[Any]) -> NDArray[np.int64]:
        """Number of segments of each entry, a column a role: [entries, 5] in the order of section 8."""
        tensors, kind, flags = entries["tensor"], entries["kind"], entries["flags"]
        elements = self.elements[tensors]
        rows = self.rows[tensors]
        columns = elements // np.maximum(rows, 1)
        chunks = lay.chunks_of(elements)
        ternary = kind == Kind.TERNARY
        return np.stack(
            [
                np.where(ternary & ((flags & lay.HAS_ROW_FACTORS) != 0), lay.chunks_of(rows), 0),
                np.where(ternary & ((flags & lay.HAS_COLUMN_FACTORS) != 0), lay.chunks_of(columns), 0),
                np.where(ternary, chunks, 0),
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
        return document.encode(whole)


def _joined(base: NDArray[Any], extra: NDArray[Any]) -> NDArray[Any]:
    # Most files have no extra tensors, and a copy for a million tensors is not for nothing.
    return np.concatenate([base, extra]) if extra.size else base
