"""Masks, signs and scales that somebody else made -> a file: what importers call.

    GivenSwitch    one tensor of a task as a switch, its planes given chunk by chunk
    GivenTask      a task: switches and dense tensors by name
    build          base + tasks -> file, in bounded memory

`pack` makes switches of two checkpoints; here they exist already, and are stored as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DType
from tswitch_format._parallel import ordered_map, thread_count
from tswitch_format._version import WRITER
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader, TensorSpec, borrow_checkpoint
from tswitch_format.container.index import Index
from tswitch_format.container.names import name_problem
from tswitch_format.container.segments import EncodedEntry
from tswitch_format.container.tensors import TensorList
from tswitch_format.container.writer import ContainerWriter, in_file_order
from tswitch_format.errors import CheckpointError, OptionError, UnknownNameError
from tswitch_format.switch.base import base_digests, stored_name
from tswitch_format.switch.encode import encode_dense, encode_ternary

Progress = Callable[[int, int], None]
ChunkPlanes = tuple[NDArray[np.int64], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class GivenSwitch:
    """A switch of one base tensor. `knob` is rounded to f32. `chunk(number)` gives, for each chunk of 2^20 elements of the
    tensor flattened in C order, the positions of its active elements in it (i64, ascending) and whether each is negative.

    `rows` f32[R], `columns` f32[C]: factors, where there are any; stored as f32. `dtype`: the expert's, or else the base's.
    """

    knob: float
    chunk: Callable[[int], ChunkPlanes]
    rows: NDArray[np.float32] | None = None
    columns: NDArray[np.float32] | None = None
    dtype: DType | None = None

    @classmethod
    def of_signs(cls, signs: NDArray[np.generic], knob: float) -> GivenSwitch:
        """From an array of the tensor's shape: above 0 adds, below 0 subtracts, 0 is not active."""
        flat = np.asarray(signs).reshape(-1)

        def chunk(number: int) -> ChunkPlanes:
            part = flat[number * lay.CHUNK : (number + 1) * lay.CHUNK]
            positions = np.flatnonzero(part)
            return positions, np.asarray(part[positions] < 0)

        return cls(knob, chunk)


@dataclass(frozen=True, slots=True)
class GivenTask:
    """A task: `switches` by the name of the base's tensor; `dense`: tensors that are stored whole, by name, each with the
    checkpoint that has it and its name there; `recipe`: how the task was made, in words."""

    name: str
    switches: Mapping[str, GivenSwitch]
    dense: Mapping[str, tuple[CheckpointReader, str]] = field(default_factory=dict)
    recipe: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was written: `path`, its bytes, `content_id`, and how many switches and dense tensors all tasks have."""

    path: Path
    nbytes: int
    content_id: str
    switches: int
    dense: int


def build(
    base: Any,
    path: str | PathLike[str],
    tasks: Sequence[GivenTask],
    *,
    profile: str = "archive",
    base_id: str | None = None,
    base_revision: str | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Write to `path` these tasks over `base` (a path, a mapping of arrays or an nn.Module). Memory: a tensor for each thread.

    `progress` gets tensors done and in all. Raises UnknownNameError for a switch of a tensor that the base lacks, OptionError,
    CheckpointError or OutputError; then nothing is written.
    """
    if profile not in lay.PROFILES:
        raise OptionError(f"profile: expected one of {', '.join(lay.PROFILES)}, found {profile!r}")
    count = thread_count(threads)
    path = Path(path)
    with borrow_checkpoint(base) as reader:
        check_output(path, reader.paths)
        specs = _base_specs(reader)
        plans = [_plan(task, reader) for task in tasks]
        total = len(specs) + sum(len(plan) for plan in plans)
        numbers = {spec.name: number for number, spec in enumerate(specs)}
        header = Index(
            TensorList.build(specs),
            profile=profile,
            aliases={alias: numbers[name] for alias, name in reader.aliases.items()},
            base_id=base_id,
            base_revision=base_revision,
            metadata=dict(metadata or {}),
            writer=WRITER,
        )
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, total)

        kinds = dict.fromkeys(lay.Kind, 0)
        with ContainerWriter(path, header) as writer:
            for task, plan in zip(tasks, plans, strict=True):
                writer.begin_task(task.name, recipe=task.recipe, checkpoint={}, metadata={})
                for entry in ordered_map(lambda make: make(profile == "mapped"), plan, count):
                    writer.add(entry)
                    kinds[entry.kind] += 1
                    advance()
            digests = []
            for digest in ordered_map(lambda spec: base_digests(reader, spec), specs, count):
                digests.append(digest)
                advance()
            size = writer.finish(TensorList.build(specs, digests))
            content_id = writer.commit()
    return BuildResult(
        path, size, content_id.hex() if content_id else "", kinds[lay.Kind.TERNARY], kinds[lay.Kind.DENSE]
    )


def _base_specs(reader: CheckpointReader) -> list[TensorSpec]:
    for name in (*reader.specs, *reader.aliases):
        wrong = name_problem(name)
        if wrong:
            raise CheckpointError(f"tensor {name[:80]!r}: {wrong}; rename it, a .tsw file cannot hold it")
    return [reader.specs[name] for name in in_file_order(reader.specs)]


_Make = Callable[[bool], EncodedEntry]


def _plan(task: GivenTask, base: CheckpointReader) -> list[_Make]:
    """What makes each entry, in the order of the file. Everything that can be checked now is."""
    switches: dict[str, GivenSwitch] = {}
    for name, switch in task.switches.items():
        stored = stored_name(base, name)
        if stored is None:
            raise UnknownNameError("tensor", name, base.specs, where=base.location)
        if stored in switches:
            raise OptionError(f"task {task.name!r}: {name!r} and another name are one tied tensor; give it one switch")
        _check(task, base.specs[stored], switch)
        switches[stored] = switch
    made = {name: _switch_maker(base.specs[name], switch) for name, switch in switches.items()}
    added: dict[str, _Make] = {}
    for name, (reader, stored) in task.dense.items():
        target = stored_name(base, name) or name
        if target in made or target in added:
            raise OptionError(f"task {task.name!r}: {name!r} is given twice, as a switch or whole; leave one out")
        wrong = name_problem(target)
        if wrong:
            raise CheckpointError(f"tensor {target[:80]!r}: {wrong}; rename it, a .tsw file cannot hold it")
        spec = TensorSpec(target, reader.specs[stored].dtype, reader.specs[stored].shape)
        same = target in base.specs and str(spec) == str(base.specs[target])
        (made if same else added)[target] = _dense_maker(spec, reader, stored, added=not same)
    return [made[name] for name in in_file_order(made)] + [added[name] for name in in_file_order(added)]


def _check(task: GivenTask, spec: TensorSpec, switch: GivenSwitch) -> None:
    """Raise OptionError for a switch that does not fit its tensor."""
    where = f"task {task.name!r}: tensor {spec.name!r}"
    rows = spec.shape[0] if spec.shape else 1
    columns = spec.elements // max(rows, 1)
    if not spec.dtype.is_float or not (switch.dtype or spec.dtype).is_float:
        raise OptionError(f"{where}: expected a float tensor, found {spec}; store it whole")
    if not np.isfinite(np.float32(switch.knob)):
        raise OptionError(f"{where}: expected a knob that is finite in f32, found {switch.knob}")
    for what, factors, size in (("row", switch.rows, rows), ("column", switch.columns, columns)):
        if factors is not None and (factors.shape != (size,) or not np.isfinite(factors).all()):
            raise OptionError(f"{where}: expected {size} finite {what} factors, found shape {list(factors.shape)}")


def _switch_maker(spec: TensorSpec, switch: GivenSwitch) -> _Make:
    return lambda mapped: encode_ternary(
        spec,
        switch.dtype or spec.dtype,
        np.float32(switch.knob),
        switch.rows,
        switch.columns,
        lay.FactorDType.F32,
        (switch.chunk(number) for number in range(lay.chunks_of(spec.elements))),
        mapped=mapped,
    )


def _dense_maker(spec: TensorSpec, reader: CheckpointReader, stored: str, *, added: bool) -> _Make:
    return lambda mapped: encode_dense(spec, reader, stored, added=added, mapped=mapped)
