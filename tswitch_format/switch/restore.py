"""base + tasks of a file -> checkpoint, chunk by chunk: memory is one chunk a thread, whatever the model's size."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPE_BY_NAME, DType, Floats
from tswitch_format._parallel import ordered_map, thread_count
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    ShardLayout,
    TensorSpec,
    borrow_checkpoint,
    create_checkpoint,
)
from tswitch_format.errors import CheckpointError, OptionError, TswError
from tswitch_format.switch.apply import apply_chunk, proper_coefficient
from tswitch_format.switch.base import base_problems, file_name, stored_name
from tswitch_format.switch.file import SwitchFile
from tswitch_format.switch.tables import Share, shares_of
from tswitch_format.switch.tensor import Switch

Progress = Callable[[int, int], None]
Term = tuple[NDArray[np.int64], Floats]  # positions in a chunk, ascending, and what is added there
Combine = Callable[[Sequence[tuple[Switch, float]], int, DType], Sequence[Term]]  # of a chunk, for a base of that type
Tasks = Sequence[str | tuple[str, float]] | Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was written: `path`, number of tensors, bytes of their elements."""

    path: Path
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Output:
    """One tensor of the result: a base tensor (`stored` in the reader) with switches, or one that is given whole."""

    spec: TensorSpec
    stored: str | None
    base: DType
    switches: Sequence[tuple[Switch, float]] = ()
    dense: Switch | None = None


def restore(
    base: Any,
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    tasks: Tasks | None = None,
    table: str | None = None,
    layers: str | None = None,
    check_base: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RestoreResult:
    """Write the checkpoint that `base` and the tasks of the file at `path` make (spec section 10).

    `base`: a path, a mapping of arrays or an nn.Module. `out`: a `.safetensors` file, or a folder (sharded where the base
    is). `tasks`: names, (name, coefficient) pairs or a mapping of name to coefficient, applied in that order; left out: the
    file's only task. `table`: in place of tasks, the name of a table of coefficients of the file: the tasks of its columns,
    each tensor with its own coefficients (`SwitchFile.tables` has them). `layers`: with a table, the one task whose dense and
    removed entries count, such as its head; left out: those of all columns, which must agree. `check_base=False` goes on where
    the base's sampled digests differ. `progress` gets bytes done and in all.

    Raises BaseMismatchError, FormatError, UnknownNameError, OptionError, CheckpointError or OutputError; then nothing is
    written.
    """
    count = thread_count(threads)
    if layers is not None and table is None:
        raise OptionError(
            f"layers: expected a table too, found layers of {layers!r} alone; name the table, or leave it out"
        )
    with borrow_checkpoint(base) as reader, SwitchFile(path) as file:
        shares = chosen_tasks(file, tasks) if table is None else _table_shares(file, tasks, table, layers)
        return write_combined(
            reader, file, Path(out), shares, added, check_base=check_base, threads=count, progress=progress
        )


def _table_shares(file: SwitchFile, tasks: Tasks | None, table: str, layers: str | None) -> list[Share]:
    if tasks is not None:
        raise OptionError("tasks: expected none beside a table, whose columns they are; leave out tasks or table")
    if layers is not None:
        file.container.find(layers)
    return shares_of(file.tables[table], layers)


def added(switches: Sequence[tuple[Switch, float]], number: int, base: DType) -> Sequence[Term]:
    """Several tasks as section 10 has them: each added with its coefficient, one after the other."""
    terms = []
    for switch, coefficient in switches:
        chunk = switch.chunk(number)
        terms.append((chunk.positions, switch.values(chunk, coefficient, base)))
    return terms


def write_combined(
    reader: CheckpointReader,
    file: SwitchFile,
    out: Path,
    shares: Sequence[Share],
    combine: Combine,
    *,
    check_base: bool,
    threads: int,
    progress: Progress | None,
) -> RestoreResult:
    """Write what a base and tasks make, chunk by chunk: `combine` says what is added to the base's elements."""
    check_output(out, (*reader.paths, file.path))
    for problem in base_problems(file.base, reader, digests=check_base):
        raise problem
    outputs = _plan(file, reader, shares)
    metadata: dict[str, str] = {}
    for share in shares:
        metadata.update(file.container.index.tasks[file.container.find(share.task)].checkpoint)
    writer = create_checkpoint(out, like=reader, specs=[o.spec for o in outputs], metadata=metadata)
    try:
        total = sum(o.spec.nbytes for o in outputs)
        done = 0
        units = _units(outputs, reader.layout, threads)
        for written in ordered_map(lambda unit: _write(unit, reader, writer, combine), units, threads):
            done += written
            if progress:
                progress(done, total)
        writer.commit()
    finally:
        writer.abort()
    return RestoreResult(out, len(outputs), total)


def chosen_tasks(file: SwitchFile, tasks: Tasks | None) -> list[Share]:
    """Tasks with their coefficients; without `tasks` the file's only one. Raises OptionError or UnknownNameError."""
    if tasks is None:
        if len(file.tasks) != 1:
            raise OptionError(
                f"{file.path}: it has {len(file.tasks)} tasks: {', '.join(file.tasks)}; name those to apply"
            )
        return [Share(file.tasks[0], 1.0)]
    if isinstance(tasks, str):
        raise OptionError(f"tasks: expected a list of names, found the name {tasks!r}; write [{tasks!r}]")
    try:
        return [Share(name, coefficient) for name, coefficient in _pairs(file, tasks)]
    except (TypeError, ValueError) as error:
        if isinstance(error, TswError):
            raise
        raise OptionError(
            f"tasks: expected names, (name, coefficient) pairs or a mapping of them, found {tasks!r}"
        ) from error


def _pairs(file: SwitchFile, tasks: Tasks) -> list[tuple[str, float]]:
    pairs = (
        list(tasks.items()) if isinstance(tasks, Mapping) else [(t, 1.0) if isinstance(t, str) else t for t in tasks]
    )
    for name, _ in pairs:
        file.container.find(name)
    # In the widest arithmetic; in that of a tensor when it is planned.
    pairs = [
        (name, proper_coefficient(coefficient, DTYPE_BY_NAME["F64"], f"task {name!r}")) for name, coefficient in pairs
    ]
    if len({name for name, _ in pairs}) != len(pairs):
        raise OptionError("tasks: one of them is named twice; give each once, with the sum of the coefficients")
    return pairs


def _plan(file: SwitchFile, reader: CheckpointReader, shares: Sequence[Share]) -> list[_Output]:
    """Every tensor of the result, those of the base first and in its order. Raises OptionError where tasks conflict."""
    found: dict[str, list[tuple[Switch, float]]] = {}
    for share in shares:
        for name in file.keys(share.task):
            switch = file.switch(name, share.task)
            # One of 0 is as if there were no entry; on those that are no switches coefficients do not act.
            coefficient = share.of(name) if switch.is_additive else float(share.layers)
            if coefficient != 0:
                found.setdefault(name, []).append((switch, coefficient))
    outputs = []
    for name in (*reader.specs, *reader.aliases):
        target = file_name(file.base, reader, name)
        if target is None:
            raise CheckpointError(f"{reader.location}: tensor {name!r} is none of the base's; give the right base")
        terms = found.get(name, found.get(target, []))
        if not all(switch.is_additive for switch, _ in terms):
            _check_whole(name, terms)
            if terms[0][0].kind == "dense":
                outputs.append(_dense(name, terms[0][0]))
            continue
        spec = file.base.spec(target)
        for switch, coefficient in terms:
            proper_coefficient(coefficient, spec.dtype, f"task {switch.task!r}: tensor {name!r}")
        dtypes = {switch.target for switch, _ in terms}
        if len(dtypes) > 1:
            raise OptionError(
                f"tensor {name!r}: the tasks make it of different dtypes, {' and '.join(sorted(d.name for d in dtypes))}; "
                "restore them one by one [TSW-903]"
            )
        made = dtypes.pop() if dtypes else spec.dtype
        outputs.append(_Output(TensorSpec(name, made, spec.shape), stored_name(reader, name), spec.dtype, terms))
    known = {*reader.specs, *reader.aliases}
    for name, terms in found.items():
        if name not in known and terms[0][0].kind == "dense" and name not in file.base:
            _check_whole(name, terms)
            outputs.append(_dense(name, terms[0][0]))
    return outputs


def _dense(name: str, switch: Switch) -> _Output:
    spec = TensorSpec(name, switch.target, switch.shape)
    return _Output(spec, None, spec.dtype, (), switch)


def _check_whole(name: str, terms: Sequence[tuple[Switch, float]]) -> None:
    """Tasks that give or remove a tensor must all do the same with it."""
    if len({switch.content for switch, _ in terms}) == 1:
        return
    changing = [switch.task for switch, _ in terms if switch.is_additive]
    if changing:
        whole = next(switch.task for switch, _ in terms if not switch.is_additive)
        raise OptionError(
            f"tensor {name!r}: task {whole!r} replaces or removes it, task {changing[0]!r} changes it; restore them one by "
            f"one, or with a table in which {changing[0]!r} has 0 for it, or with the layers of another task [TSW-903]"
        )
    tasks = " and ".join(repr(switch.task) for switch, _ in terms)
    raise OptionError(
        f"tensor {name!r}: tasks {tasks} give it different dense content; restore them one by one, or with a "
        "table say whose layers count [TSW-903]"
    )


def _units(outputs: Sequence[_Output], layout: ShardLayout, threads: int) -> Iterator[tuple[_Output, int]]:
    """All chunks, in turn from as many files of the base as there are threads: who writes to a file locks it."""
    file_of = {name: file for file, names in layout.files.items() for name in names}
    files: dict[str | None, list[_Output]] = {}
    for output in outputs:
        files.setdefault(file_of.get(output.spec.name), []).append(output)
    chunks = [_chunks(held) for held in files.values()]
    for first in range(0, len(chunks), threads):
        for some in itertools.zip_longest(*chunks[first : first + threads]):
            yield from (unit for unit in some if unit is not None)


def _chunks(outputs: Sequence[_Output]) -> Iterator[tuple[_Output, int]]:
    for output in outputs:
        yield from zip(itertools.repeat(output), range(lay.chunks_of(output.spec.elements)))


_buffers = threading.local()  # one a thread: fresh pages for every chunk would cost a tenth of the time


def _buffer(nbytes: int) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] | None = getattr(_buffers, "bytes", None)
    if found is None or found.size < nbytes:
        found = _buffers.bytes = np.empty(nbytes, np.uint8)
    return found[:nbytes]


def _write(unit: tuple[_Output, int], reader: CheckpointReader, writer: CheckpointWriter, combine: Combine) -> int:
    """Make and write one chunk of one tensor; its bytes."""
    output, number = unit
    start = number * lay.CHUNK
    elements = min(lay.CHUNK, output.spec.elements - start)
    if output.dense is not None:
        raw = output.dense.dense_chunk(number)
    else:
        base = output.base
        block = _buffer(base.nbytes(elements))
        reader.read_into(output.stored or output.spec.name, base.nbytes(start), block)
        terms = combine(output.switches, number, base) if output.switches else ()
        if terms:
            made = apply_chunk(block.view(base.storage), base, output.spec.dtype, terms)
            raw = np.ascontiguousarray(made).view(np.uint8)
        else:
            raw = block
    writer.write_from(output.spec.name, output.spec.dtype.nbytes(start), raw)
    return raw.size
