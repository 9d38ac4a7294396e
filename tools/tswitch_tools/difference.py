"""In what two .tsw files differ: content digests first, so that only tensors that differ are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tswitch_format.switch.file import BaseInfo, SwitchFile
from tswitch_format.switch.tensor import Switch


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor in which a task differs.

    `differs`: "only in a", "only in b", or some of "kind", "shape", "dtype", "knob", "factors", "mask", "sign",
    "vector" and "dense". `mask_elements`: active in one only; `sign_elements`: active in both, in opposite directions.
    """

    name: str
    differs: Sequence[str]
    mask_elements: int = 0
    sign_elements: int = 0


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """A task of either file. `status`: "same", "differs", "only in a" or "only in b"; `same`: tensors alike."""

    name: str
    status: str
    same: int
    tensors: Sequence[TensorDifference]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two files `a` and `b`. `same` says that their content is the same, so the content ids are too. `beside`: of "router" and
    tables of coefficients, as "table NAME", those that are not the same, each with "differs", "only in a" or "only in b"."""

    a: str
    b: str
    same: bool
    same_base: bool
    tasks: Sequence[TaskDifference]
    beside: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def compare(a: SwitchFile, b: SwitchFile) -> Difference:
    """Compare two open files task by task, tensor by tensor."""
    tasks = []
    for name in dict.fromkeys((*a.tasks, *b.tasks)):
        if name not in b.tasks:
            tasks.append(TaskDifference(name, "only in a", 0, ()))
        elif name not in a.tasks:
            tasks.append(TaskDifference(name, "only in b", 0, ()))
        else:
            tasks.append(_task(a, b, name))
    base = _same_base(a.base, b.base)
    mine, theirs = _beside(a), _beside(b)
    beside = {
        what: "only in a" if what not in theirs else "only in b" if what not in mine else "differs"
        for what in sorted({*mine, *theirs})
        if mine.get(what) != theirs.get(what)
    }
    same = base and not beside and all(task.status == "same" for task in tasks)
    return Difference(str(a.path), str(b.path), same, base, tasks, beside)


def _beside(file: SwitchFile) -> dict[str, Any]:
    """The router and the tables, each as what its digest covers."""
    container, index = file.container, file.container.index
    found: dict[str, Any] = {
        f"table {name}": (keys.document(), container.coefficients(name).sha256)
        for name, keys in index.coefficients.items()
    }
    if index.router is not None:
        samples = {task: container.features(task) for task in file.tasks}
        found["router"] = index.router, {task: (one.spec, one.sha256) for task, one in samples.items() if one}
    return found


def _same_base(a: BaseInfo, b: BaseInfo) -> bool:
    """Whether names, dtypes, shapes, ties and what there is of digests agree."""
    if a.keys() != b.keys() or a.aliases != b.aliases:
        return False
    for name in a:
        one, other = a.spec(name), b.spec(name)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        mine, theirs = a.digests(name), b.digests(name)
        for left, right in ((mine.sha256, theirs.sha256), (mine.sampled, theirs.sampled)):
            if left is not None and right is not None and left != right:
                return False
    return True


def _task(a: SwitchFile, b: SwitchFile, task: str) -> TaskDifference:
    mine, theirs = a.keys(task), b.keys(task)
    in_a, in_b = set(mine), set(theirs)
    found = []
    for name in dict.fromkeys((*mine, *theirs)):
        if name not in in_b:
            found.append(TensorDifference(name, ["only in a"]))
        elif name not in in_a:
            found.append(TensorDifference(name, ["only in b"]))
        else:
            difference = _tensor(a.switch(name, task), b.switch(name, task))
            if difference:
                found.append(difference)
    same = len(in_a | in_b) - len(found)
    return TaskDifference(task, "differs" if found else "same", same, found)


def _tensor(a: Switch, b: Switch) -> TensorDifference | None:
    """The difference of two entries for one tensor, or None."""
    if a.content == b.content:
        return None
    if a.kind != b.kind:
        return TensorDifference(a.name, ["kind"])
    differs = [what for what in ("shape", "dtype") if getattr(a, what) != getattr(b, what)]
    if not a.is_additive:
        return TensorDifference(a.name, [*differs, "dense"])
    if a.knob != b.knob:
        differs.append("knob")
    if not (_equal(a.row_factors, b.row_factors) and _equal(a.column_factors, b.column_factors)):
        differs.append("factors")
    masks = signs = 0
    if a.shape == b.shape:
        masks, signs = _planes(a, b)
        differs += ["mask"] * bool(masks) + ["sign"] * bool(signs)
    if a.kind == "masked":
        mine, theirs = a.entry.vector, b.entry.vector
        if (mine.dtype, mine.sha256) != (theirs.dtype, theirs.sha256):
            differs.append("vector")
    return TensorDifference(a.name, differs, masks, signs)


def _planes(a: Switch, b: Switch) -> tuple[int, int]:
    """Elements that are active in one only, and those active in both with opposite signs."""
    masks = signs = 0
    for one, other in zip(a.chunks(), b.chunks(), strict=True):
        common, mine, theirs = np.intersect1d(one.positions, other.positions, assume_unique=True, return_indices=True)
        masks += one.positions.size + other.positions.size - 2 * common.size
        if a.kind == "ternary":
            signs += int(np.count_nonzero(a.negative(one)[mine] != b.negative(other)[theirs]))
    return masks, signs


def _equal(a: Any, b: Any) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)
