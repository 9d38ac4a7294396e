"""Masks, signs and scales that somebody else made (`given.py`) -> a file: what importers call.

    build          base + tasks -> file, in bounded memory
    write_tasks    the same, for tasks that are known only when their vectors are written

`pack` makes switches of two checkpoints; here they exist already, and are stored as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._parallel import ordered_map, thread_count
from tswitch_format._version import WRITER
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader, TensorSpec, borrow_checkpoint
from tswitch_format.codecs import bits
from tswitch_format.container.index import Index
from tswitch_format.container.names import name_problem
from tswitch_format.container.segments import EncodedArray, EncodedEntry
from tswitch_format.container.tensors import TensorList
from tswitch_format.container.writer import ContainerWriter, in_file_order
from tswitch_format.errors import CheckpointError, OptionError, PayloadError, UnknownNameError
from tswitch_format.switch.base import base_digests, stored_name
from tswitch_format.switch.encode import Vector, encode_dense, encode_masked, encode_ternary, encode_vector
from tswitch_format.switch.given import GivenMask, GivenSwitch, GivenTask, GivenVector

Progress = Callable[[int, int], None]


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
    vectors: Mapping[str, GivenVector] | None = None,
    profile: str = "archive",
    base_id: str | None = None,
    base_revision: str | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Write to `path` these tasks over `base` (a path, a mapping of arrays or an nn.Module). Memory: a tensor for each thread.

    `vectors`: by the name of the base's tensor, for the masks of all tasks. `progress` gets tensors done and in all. Raises
    UnknownNameError for a switch of a tensor that the base lacks, OptionError, CheckpointError or OutputError; then nothing is
    written.
    """
    place = Place(Path(path), profile, base_id, base_revision, dict(metadata or {}), thread_count(threads), progress)
    with borrow_checkpoint(base) as reader:
        makers: dict[str, MakeVector] = {}
        for name, vector in (vectors or {}).items():
            stored = _stored(reader, name)
            if stored in makers:
                raise OptionError(f"vector {name!r}: it and another name are one tied tensor; give it one vector")
            makers[stored] = _vector_maker(reader.specs[stored], vector)
        plans = [_Plan(task, reader, makers) for task in tasks]
        _check_used(makers, plans)
        check_beforehand(reader, place, [task.name for task in tasks])
        return _write(reader, place, makers, lambda: plans, sum(len(plan.makers) for plan in plans))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file goes, and what it says of itself and its base."""

    path: Path
    profile: str
    base_id: str | None
    base_revision: str | None
    metadata: Mapping[str, str]
    threads: int
    progress: Progress | None

    def __post_init__(self) -> None:
        if self.profile not in lay.PROFILES:
            raise OptionError(f"profile: expected one of {', '.join(lay.PROFILES)}, found {self.profile!r}")


def check_beforehand(base: CheckpointReader, place: Place, tasks: Sequence[str]) -> None:
    """Raise OutputError, CheckpointError or OptionError for what would make the end of the work fail: the output, and names."""
    check_output(place.path, base.paths)
    _base_specs(base)
    for task in tasks:
        wrong = name_problem(task)
        if wrong:
            raise OptionError(
                f"task name {task[:80]!r}: {wrong}; choose a name of 1 to {lay.MAX_NAME} bytes of plain text"
            )


MakeVector = Callable[[bool], EncodedArray | None]


def write_tasks(
    base: CheckpointReader,
    place: Place,
    vectors: Mapping[str, MakeVector],
    tasks: Callable[[], Sequence[GivenTask]],
    entries: int,
) -> BuildResult:
    """Write vectors, then tasks. `vectors`: by name in `base.specs`, what makes each (for the mapped profile or not), called
    once and from threads; one that gives None is left out. `tasks` is called when all are written. `entries`: how many there
    will be at most.
    """
    written: set[str] = set()

    def noting(name: str, make: MakeVector) -> MakeVector:
        def noted(mapped: bool) -> EncodedArray | None:
            made = make(mapped)
            if made is not None:
                written.add(name)
            return made

        return noted

    makers = {name: noting(name, make) for name, make in vectors.items()}
    return _write(base, place, makers, lambda: [_Plan(task, base, written) for task in tasks()], entries)


def _write(
    reader: CheckpointReader,
    place: Place,
    vectors: Mapping[str, MakeVector],
    plans: Callable[[], Sequence[_Plan]],
    entries: int,
) -> BuildResult:
    specs = _base_specs(reader)
    mapped = place.profile == "mapped"
    numbers = {spec.name: number for number, spec in enumerate(specs)}
    header = Index(
        TensorList.build(specs),
        profile=place.profile,
        aliases={alias: numbers[name] for alias, name in reader.aliases.items()},
        base_id=place.base_id,
        base_revision=place.base_revision,
        metadata=place.metadata,
        writer=WRITER,
    )
    total = len(specs) + len(vectors) + entries
    done = 0

    def advance(to: int | None = None) -> None:
        nonlocal done
        done = done + 1 if to is None else to
        if place.progress:
            place.progress(done, total)

    kinds = dict.fromkeys(lay.Kind, 0)
    written: dict[str, Vector] = {}
    with ContainerWriter(place.path, header) as writer:
        names = in_file_order(vectors)
        made = ordered_map(
            lambda name: vectors[name](mapped), names, place.threads, nbytes=lambda name: reader.specs[name].nbytes
        )
        for name, array in zip(names, made, strict=True):
            if array is not None:
                written[name] = Vector(writer.add_shared(array), array.spec.dtype, array.sha256)
            advance()
        for plan in plans():
            writer.begin_task(plan.task.name, recipe=plan.task.recipe, checkpoint={}, metadata={})
            for entry in ordered_map(
                lambda maker: maker.make(mapped, written), plan.makers, place.threads, nbytes=lambda maker: maker.nbytes
            ):
                writer.add(entry)
                kinds[entry.kind] += 1
                advance()
        if done < len(vectors) + entries:  # fewer tensors may have changed than could have
            advance(len(vectors) + entries)
        digests = []
        for digest in ordered_map(lambda spec: base_digests(reader, spec), specs, place.threads):
            digests.append(digest)
            advance()
        size = writer.finish(TensorList.build(specs, digests))
        content_id = writer.commit()
    switches = kinds[lay.Kind.TERNARY] + kinds[lay.Kind.MASKED]
    return BuildResult(place.path, size, content_id.hex() if content_id else "", switches, kinds[lay.Kind.DENSE])


def _base_specs(reader: CheckpointReader) -> list[TensorSpec]:
    for name in (*reader.specs, *reader.aliases):
        wrong = name_problem(name)
        if wrong:
            raise CheckpointError(f"tensor {name[:80]!r}: {wrong}; rename it, a .tsw file cannot hold it")
    return [reader.specs[name] for name in in_file_order(reader.specs)]


def _stored(base: CheckpointReader, name: str) -> str:
    stored = stored_name(base, name)
    if stored is None:
        raise UnknownNameError("tensor", name, base.specs, where=base.location)
    return stored


_Make = Callable[[bool, Mapping[str, Vector]], EncodedEntry]


@dataclass(frozen=True, slots=True)
class _Maker:
    """What makes an entry, and the most that its planes or data take."""

    make: _Make
    nbytes: int


class _Plan:
    """What makes each entry of a task, in the order of the file. Everything that can be checked before is."""

    def __init__(self, task: GivenTask, base: CheckpointReader, vectors: Container[str]) -> None:
        self.task = task
        self.masked: set[str] = set()
        self.makers = _makers(task, base)
        for name, switch in task.switches.items():
            if isinstance(switch, GivenMask):
                stored = _stored(base, name)
                self.masked.add(stored)
                if stored not in vectors:
                    raise OptionError(f"task {task.name!r}: {name!r} has a mask, but no vector; give one in vectors")


def _check_used(vectors: Iterable[str], plans: Iterable[_Plan]) -> None:
    used = set().union(*(plan.masked for plan in plans))
    for name in vectors:
        if name not in used:
            raise OptionError(f"vector {name!r}: no task has a mask for it; leave it out")


def _makers(task: GivenTask, base: CheckpointReader) -> list[_Maker]:
    switches: dict[str, GivenSwitch | GivenMask] = {}
    for name, switch in task.switches.items():
        stored = _stored(base, name)
        if stored in switches:
            raise OptionError(f"task {task.name!r}: {name!r} and another name are one tied tensor; give it one switch")
        _check(task, base.specs[stored], switch)
        switches[stored] = switch
    made = {
        # A mask, and as many signs at most.
        name: _Maker(_switch_maker(base.specs[name], switch), base.specs[name].elements // 4)
        for name, switch in switches.items()
    }
    added: dict[str, _Maker] = {}
    for name, (reader, stored) in task.dense.items():
        target = stored_name(base, name) or name
        if target in made or target in added:
            raise OptionError(f"task {task.name!r}: {name!r} is given twice, as a switch or whole; leave one out")
        wrong = name_problem(target)
        if wrong:
            raise CheckpointError(f"tensor {target[:80]!r}: {wrong}; rename it, a .tsw file cannot hold it")
        spec = TensorSpec(target, reader.specs[stored].dtype, reader.specs[stored].shape)
        same = target in base.specs and str(spec) == str(base.specs[target])
        maker = _Maker(_dense_maker(spec, reader, stored, added=not same), spec.nbytes)
        (made if same else added)[target] = maker
    return [made[name] for name in in_file_order(made)] + [added[name] for name in in_file_order(added)]


def _check(task: GivenTask, spec: TensorSpec, switch: GivenSwitch | GivenMask) -> None:
    """Raise OptionError for a switch that does not fit its tensor."""
    where = f"task {task.name!r}: tensor {spec.name!r}"
    rows = spec.shape[0] if spec.shape else 1
    columns = spec.elements // max(rows, 1)
    if not spec.dtype.is_float or not (switch.dtype or spec.dtype).is_float:
        raise OptionError(f"{where}: expected a float tensor, found {spec}; store it whole")
    if switch.shape not in (None, spec.shape, (spec.elements,)):
        raise OptionError(
            f"{where}: expected shape {list(spec.shape)}, found {list(switch.shape or ())}; give all elements"
        )
    with np.errstate(over="ignore"):
        knob = np.float32(switch.knob)
    if not np.isfinite(knob):
        raise OptionError(f"{where}: expected a knob that is finite in f32, found {switch.knob}")
    if isinstance(switch, GivenMask):
        return
    for what, factors, size in (("row", switch.rows, rows), ("column", switch.columns, columns)):
        if factors is not None and (factors.shape != (size,) or not np.isfinite(factors).all()):
            raise OptionError(f"{where}: expected {size} finite {what} factors, found shape {list(factors.shape)}")


def _switch_maker(spec: TensorSpec, switch: GivenSwitch | GivenMask) -> _Make:
    chunks = range(lay.chunks_of(spec.elements))
    if isinstance(switch, GivenMask):
        return lambda mapped, vectors: encode_masked(
            spec,
            switch.dtype or spec.dtype,
            np.float32(switch.knob),
            vectors[spec.name],
            (_checked_mask(spec, number, switch.chunk(number)) for number in chunks),
            mapped=mapped,
        )
    return lambda mapped, vectors: encode_ternary(
        spec,
        switch.dtype or spec.dtype,
        np.float32(switch.knob),
        switch.rows,
        switch.columns,
        lay.FactorDType.F32,
        (switch.chunk(number) for number in chunks),
        mapped=mapped,
    )


def _chunk_elements(spec: TensorSpec, number: int) -> int:
    return min(lay.CHUNK, spec.elements - number * lay.CHUNK)


def _checked_mask(spec: TensorSpec, number: int, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return checked_bits(packed, _chunk_elements(spec, number), f"tensor {spec.name!r}: mask of chunk {number}")


def checked_bits(packed: NDArray[np.uint8], elements: int, where: str) -> NDArray[np.uint8]:
    """A mask's bit string that somebody gave, contiguous. Raises OptionError unless it is one of so many elements."""
    packed = np.asarray(packed)
    if packed.shape != (bits.nbytes(elements),) or packed.dtype != np.uint8:
        raise OptionError(
            f"{where}: expected uint8[{bits.nbytes(elements)}], {elements} bits, found {packed.dtype}{list(packed.shape)}"
        )
    packed = np.ascontiguousarray(packed)
    try:
        bits.check_tail(packed, elements)
    except PayloadError as error:
        raise OptionError(f"{where}: {error}") from error
    return packed


def _vector_maker(spec: TensorSpec, vector: GivenVector) -> MakeVector:
    if vector.shape not in (None, spec.shape, (spec.elements,)):
        raise OptionError(
            f"vector of {spec.name!r}: expected shape {list(spec.shape)}, found {list(vector.shape or ())}"
        )
    if not spec.dtype.is_float or not vector.dtype.is_float:
        raise OptionError(
            f"vector of {spec.name!r}: expected a float type for a float tensor, found {vector.dtype.name}"
        )

    def chunk(number: int) -> NDArray[np.generic]:
        made = vector.chunk(number)
        if made.shape != (_chunk_elements(spec, number),) or made.dtype != vector.dtype.storage:
            raise OptionError(
                f"vector of {spec.name!r}: chunk {number}: expected {_chunk_elements(spec, number)} elements of "
                f"{vector.dtype.storage}, found {made.dtype}{list(made.shape)}"
            )
        return made

    chunks = range(lay.chunks_of(spec.elements))
    made = TensorSpec(spec.name, vector.dtype, spec.shape)
    return lambda mapped: encode_vector(made, map(chunk, chunks), mapped=mapped)


def _dense_maker(spec: TensorSpec, reader: CheckpointReader, stored: str, *, added: bool) -> _Make:
    return lambda mapped, vectors: encode_dense(spec, reader, stored, added=added, mapped=mapped)
