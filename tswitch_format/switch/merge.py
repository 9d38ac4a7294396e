"""All tasks of a file in one model: `merge`, and the three ways of adding them up.

    merge        base + tasks -> checkpoint
    _Sum         task arithmetic
    _Ties        TIES' election of signs
    _Consensus   only what enough tasks have active

Of tasks whose entries are masks over one vector, the vector is the merge already: it is taken as it is, and masks say which
of its elements count. It is that of all its tasks, so they are merged together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPE_BY_NAME, DType, Floats, compute_dtype
from tswitch_format._parallel import thread_count
from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_format.container.index import TaskTable
from tswitch_format.errors import OptionError
from tswitch_format.switch.apply import proper_coefficient, vector_values
from tswitch_format.switch.file import SwitchFile
from tswitch_format.switch.restore import Combine, Progress, RestoreResult, Term, added, chosen_tasks, write_combined
from tswitch_format.switch.tensor import Switch

DEFAULT_SCALE = 0.3
_ONE = np.float32(1)


def merge(
    base: Any,
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    method: str = "sum",
    k: int = 2,
    scale: float | None = None,
    tasks: Sequence[str] | None = None,
    check_base: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RestoreResult:
    """Write the checkpoint of one model for all tasks of the file at `path`, or those of `tasks`: base + scale * merged.

    With d_t what task t adds to an element (0 where it is not active), merged is by `method`
    "sum"        the sum of all d_t (task arithmetic)
    "ties"       the mean of those d_t that have the sign of the sum of all, 0 where that is 0 (TIES; the switches are what it
                 trims to)
    "consensus"  the sum where at least `k` tasks are active, else 0 (Consensus merging: k = 2 leaves out catastrophic and
                 selfish weights)
    Of masks over a shared vector the vector is the sum; TIES has its place where that is made. `scale`: the papers choose it
    on validation data, from 0.1 to 1; left out it is 0.3 for sum and consensus and 1 for ties.

    In f32 (f64 for F64 tensors), tasks in order: the sum, one product with `scale`, one sum with the base, one cast. Elements
    with merged 0 for want of an active task, or too few, keep the base's bits. `out`, `check_base`, `progress`, tensors that
    tasks store whole, and errors: as in `restore`.
    """
    if scale is None:
        scale = 1.0 if method == "ties" else DEFAULT_SCALE
    combine = _method(method, k, proper_coefficient(scale, DTYPE_BY_NAME["F32"], "scale"))
    with borrow_checkpoint(base) as reader, SwitchFile(path) as file:
        if isinstance(tasks, str | Mapping):
            raise OptionError(f"tasks: expected a list of names, found {tasks!r}; coefficients are for 'restore'")
        chosen = chosen_tasks(file, list(file.tasks if tasks is None else tasks))
        if not chosen:
            raise OptionError(f"{file.path}: expected at least one task to merge, found none")
        if method == "consensus" and k > len(chosen):
            raise OptionError(f"k: expected at most {len(chosen)}, as many as there are tasks, found {k}")
        _check_masks(file, [share.task for share in chosen])
        return write_combined(
            reader,
            file,
            Path(out),
            chosen,
            combine,
            check_base=check_base,
            threads=thread_count(threads),
            progress=progress,
        )


def _check_masks(file: SwitchFile, chosen: Sequence[str]) -> None:
    """Raise OptionError for tasks of masks that are no one's merge."""
    index = file.container.index
    used = {task.name: _vectors(task) for task in index.tasks}
    of_chosen = set().union(*(used[name] for name in chosen))
    if not of_chosen:
        return
    for name in chosen:
        entries = index.tasks[file.container.find(name)].entries
        if (entries["kind"] == lay.Kind.TERNARY).any():
            raise OptionError(
                f"{file.path}: tasks to merge: expected switches, or masks over a vector, found both, switches in {name!r}; "
                "merge one or the other"
            )
        if (entries["knob"][entries["kind"] == lay.Kind.MASKED] != 1).any():
            raise OptionError(
                f"{file.path}: task {name!r} scales its vector by itself, as EMR-Merging does: expected a vector that is a "
                "sum; restore such tasks one by one"
            )
    for name, vectors in used.items():
        if vectors & of_chosen and name not in chosen:
            raise OptionError(
                f"{file.path}: the vector is that of all its tasks: expected {name!r} too, found {', '.join(chosen)}; "
                "leave out --task, or restore single tasks"
            )


def _vectors(task: TaskTable) -> set[int]:
    entries = task.entries
    found: set[int] = set(entries["vector"][entries["kind"] == lay.Kind.MASKED].tolist())
    return found


def _method(method: str, k: int, scale: float) -> Combine:
    match method:
        case "sum":
            return partial(_merged, 0, scale)
        case "consensus":
            if not isinstance(k, int) or k < 0:
                raise OptionError(f"k: expected a number from 0 up, found {k!r}")
            return partial(_merged, k, scale)
        case "ties":
            return partial(_ties, scale)
    raise OptionError(f"method: expected sum, ties or consensus, found {method!r}")


def _merged(k: int, scale: float, switches: Sequence[tuple[Switch, float]], number: int, base: DType) -> Sequence[Term]:
    """The sum of what the tasks add, or their vector, where at least `k` of them are active."""
    masked = switches[0][0].kind == "masked"
    total = _vector(switches, number, base) if masked else np.zeros(_elements(switches, number), compute_dtype(base))
    if masked and k == 0:
        return [(np.arange(total.size), total * total.dtype.type(scale))]
    counts = np.zeros(total.size, np.uint16)
    for switch, coefficient in switches:
        chunk = switch.chunk(number)
        counts[chunk.positions] += 1
        if not masked:
            total[chunk.positions] += switch.values(chunk, coefficient, base)
    positions = np.flatnonzero(counts >= max(k, 1))
    return [(positions, total[positions] * total.dtype.type(scale))]


def _elements(switches: Sequence[tuple[Switch, float]], number: int) -> int:
    return switches[0][0].entry.chunk_elements(number)


def _ties(scale: float, switches: Sequence[tuple[Switch, float]], number: int, base: DType) -> Sequence[Term]:
    """The mean of what those tasks add that agree with the sum of all in sign."""
    for switch, _ in switches:
        if switch.kind == "masked":
            raise OptionError(
                f"tensor {switch.name!r}: task {switch.task!r} is a mask over a vector that was merged before; make the "
                "file with 'tsw tall make --ties', then merge by sum or consensus"
            )
    terms = added(switches, number, base)
    total: Floats = np.zeros(_elements(switches, number), compute_dtype(base))
    for positions, values in terms:
        total[positions] += values
    kept = np.zeros_like(total)
    counts = np.zeros(total.size, np.uint16)
    for positions, values in terms:
        agree = np.sign(values) == np.sign(total[positions])
        agree &= values != 0
        kept[positions[agree]] += values[agree]
        counts[positions[agree]] += 1
    where = np.flatnonzero(counts)
    kept = kept[where] / counts[where].astype(kept.dtype)
    return [(where, kept * kept.dtype.type(scale))]


def _vector(switches: Sequence[tuple[Switch, float]], number: int, base: DType) -> Floats:
    """A chunk of the vector that all these entries share."""
    vector = switches[0][0].entry.vector
    for switch, _ in switches[1:]:
        if switch.entry.vector.number != vector.number:
            raise OptionError(
                f"tensor {switch.name!r}: tasks {switches[0][0].task!r} and {switch.task!r} are masks over different vectors; "
                "merge tasks of one vector"
            )
    elements: NDArray[Any] = vector.data(number).view(vector.dtype.storage)
    return vector_values(_ONE, 1.0, base, elements, vector.dtype)
