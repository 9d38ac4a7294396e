"""A whole .tsw file, or one task, as a .safetensors file: `tswitch_tools.carrier` says what is in it.

    convert   the exporter

All sizes follow from the index, so the header is written first and each chunk goes to its place: memory is a few chunks for
each thread. What does not have the digest that the file records is not written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import FORMAT_VERSION, SwitchFile
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import ArrayCheckpoint, CheckpointWriter, TensorSpec
from tswitch_format.codecs import bits
from tswitch_format.container.digest import content_id
from tswitch_format.container.index import HAS_COLUMN_FACTORS, HAS_ROW_FACTORS, Kind, SharedArrays
from tswitch_format.container.reader import Container, ContentDigest, Entry, SharedArray
from tswitch_format.container.tensors import Digests, TensorList
from tswitch_format.errors import OptionError
from tswitch_format.parallel import ordered_map, thread_count
from tswitch_tools.carrier import (
    COLUMN_FACTORS,
    DATA,
    DOCUMENT_KEY,
    FEATURES,
    MASK,
    ROW_FACTORS,
    SIGN,
    VERSION,
    VERSION_KEY,
    Carried,
    CarriedArray,
    CarriedEntry,
    CarriedRouter,
    CarriedTable,
    CarriedTask,
    all_tensors,
    array_tensor,
    entry_tensors,
    factor_count,
    to_json,
)
from tswitch_tools.checkpoints import safetensors_reader, safetensors_writer

NAME = "safetensors"
SUMMARY = "one .safetensors file with planes as U8 tensors, of one task or all; spec/safetensors-carrier.md says how"
ALL_TASKS = True


def convert(
    file: SwitchFile,
    task: str | None,
    out: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sequence[str]:
    """See `Exporter.convert`. Without a task, all are written."""
    container = file.container
    if container.frame.minor > int(FORMAT_VERSION.partition(".")[2]):
        raise OptionError(
            f"{file.path}: expected a file of version {FORMAT_VERSION}, found {file.version}, of which a carrier could "
            "lose what this version does not know; update tswitch-format"
        )
    if not out.name.endswith(safetensors_reader.SUFFIX):
        raise OptionError(
            f"{out}: expected a name that ends with {safetensors_reader.SUFFIX}, which readers of such files ask for; "
            "name another output"
        )
    check_output(out, [file.path])
    numbers = [container.find(task)] if task is not None else list(range(len(file.tasks)))
    shared = _used(container, numbers)
    carried = _carried(file, numbers, shared)
    metadata = {VERSION_KEY: VERSION, DOCUMENT_KEY: to_json(carried)}
    specs = list(all_tensors(carried))
    with contextlib.closing(ArrayCheckpoint({})) as nothing:
        writer = safetensors_writer.open_writer(out, nothing, specs, metadata)
    with contextlib.ExitStack() as undo:
        undo.callback(writer.abort)  # does nothing after the commit
        jobs = list(_jobs(container, numbers, shared, carried, writer))
        for done, _ in enumerate(ordered_map(lambda write: write(), jobs, thread_count(threads)), 1):
            if progress:
                progress(done, len(jobs))
        writer.commit()
    return ["planes are not compressed in it; 'tsw import' makes the .tsw file of it again, and needs no base"]


def _used(container: Container, tasks: Sequence[int]) -> list[SharedArray]:
    """The shared vectors that some tasks select from, their samples and tables, in order."""
    chosen = [container.index.tasks[number] for number in tasks]
    tables = [task.entries for task in chosen]
    used = {int(v) for table in tables for v in np.unique(table["vector"][table["kind"] == Kind.MASKED])}
    used |= {container.coefficients(name).number for name in _tables(container, tasks)}
    used |= {features.number for task in chosen if (features := container.features(task.name)) is not None}
    return [container.shared(number) for number in sorted(used)]


def _tables(container: Container, tasks: Sequence[int]) -> list[str]:
    """The tables all of whose tasks are among some."""
    names = {container.index.tasks[number].name for number in tasks}
    return [name for name, table in container.index.coefficients.items() if names.issuperset(table.tasks)]


def _carried(file: SwitchFile, tasks: Sequence[int], shared: Sequence[SharedArray]) -> Carried:
    container, index = file.container, file.container.index
    places = {array.number: place for place, array in enumerate(shared)}
    chosen = [index.tasks[number] for number in tasks]
    arrays = SharedArrays(
        TensorList.build([one.spec for one in shared], [Digests(one.sha256, None) for one in shared]),
        np.array([one.role for one in shared], np.uint8),
    )
    routed = any(one.role.name.lower() == FEATURES for one in shared)
    router = index.router if routed else None
    coefficients = {name: index.coefficients[name] for name in _tables(container, tasks)}
    return Carried(
        base=[index.base.spec(number) for number in range(len(index.base))],
        digests=[index.base.digests(number) for number in range(len(index.base))],
        aliases=file.base.aliases,
        base_id=index.base_id,
        base_revision=index.base_revision,
        metadata=index.metadata,
        shared=[
            CarriedArray(number, one.spec, one.sha256 or b"", one.role.name.lower())
            for number, one in enumerate(shared)
        ],
        tasks=[
            CarriedTask(
                table.name,
                [_entry(entry, places) for entry in container.entries(number)],
                table.recipe,
                table.checkpoint,
                table.metadata,
            )
            for number, table in zip(tasks, chosen, strict=True)
        ],
        content_id=content_id(replace(index, tasks=chosen, shared=arrays, router=router, coefficients=coefficients)),
        router=CarriedRouter(**vars(router)) if router else None,
        tables={
            name: CarriedTable([index.base.names[row] for row in keys.rows.tolist()], list(keys.tasks), keys.clamp)
            for name, keys in coefficients.items()
        },
    )


def _entry(entry: Entry, places: Mapping[int, int]) -> CarriedEntry:
    flags = ((ROW_FACTORS, HAS_ROW_FACTORS), (COLUMN_FACTORS, HAS_COLUMN_FACTORS))
    factors = tuple(what for what, flag in flags if entry.flags & flag)
    return CarriedEntry(
        TensorSpec(entry.spec.name, entry.dtype, entry.spec.shape),
        entry.kind.name.lower(),
        entry.sha256,
        added=entry.added,
        knob=float(entry.knob),
        active=entry.active,
        factors=factors,
        factor_dtype=entry.factor_dtype.name.lower() if factors else None,
        vector=places[entry.vector.number] if entry.kind is Kind.MASKED else 0,
    )


def _jobs(
    container: Container,
    tasks: Sequence[int],
    shared: Sequence[SharedArray],
    carried: Carried,
    writer: CheckpointWriter,
) -> Iterator[Callable[[], None]]:
    """What writes each shared array and each entry."""
    for array, described in zip(shared, carried.shared, strict=True):
        yield partial(_write, array, {DATA: array_tensor(described)}, writer)
    for number, task in zip(tasks, carried.tasks, strict=True):
        for entry, of_entry in zip(container.entries(number), task.entries, strict=True):
            yield partial(_write, entry, entry_tensors(task.name, of_entry), writer)


def _write(entry: Entry, tensors: Mapping[str, TensorSpec], writer: CheckpointWriter) -> None:
    """Write all of an entry or a vector, chunk by chunk. Raises FormatError where it has not its digest."""
    parts = _Parts(entry)
    for what in (ROW_FACTORS, COLUMN_FACTORS):
        if what in tensors:
            sink, left = _Sink(writer, tensors[what].name), factor_count(entry.spec, what)
            while left:
                codes = parts.next()
                sink.write(codes)
                left -= codes.size
    if MASK in tensors:
        masks = _Sink(writer, tensors[MASK].name)
        signs = _BitSink(writer, tensors[SIGN].name) if SIGN in tensors else None
        for chunk in range(entry.chunks):
            masks.write(parts.next())
            if signs is not None:
                signs.write_bits(parts.next(), entry.mask_count(chunk))
        if signs is not None:
            signs.finish()
    if DATA in tensors:
        data = _Sink(writer, tensors[DATA].name)
        for _ in range(entry.chunks):
            data.write(parts.next())
    found = parts.digest.digest()
    if entry.sha256 not in (None, found):
        raise entry.other_content(found)


class _Parts:
    """What an entry holds, a segment after the other, digested on the way."""

    def __init__(self, entry: Entry) -> None:
        self.digest: ContentDigest = entry.digest()
        self._parts = entry.content()

    def next(self) -> NDArray[Any]:
        part = next(self._parts)()
        self.digest.update(part)
        return part


class _Sink:
    """A tensor that is written from its beginning to its end."""

    def __init__(self, writer: CheckpointWriter, name: str) -> None:
        self._writer = writer
        self._name = name
        self._end = 0

    def write(self, part: NDArray[Any]) -> None:
        data = np.ascontiguousarray(part).view(np.uint8)
        self._writer.write_from(self._name, self._end, data)
        self._end += data.size


class _BitSink(_Sink):
    """Bit strings that become one, without gaps between them."""

    def __init__(self, writer: CheckpointWriter, name: str) -> None:
        super().__init__(writer, name)
        self._rest = np.zeros(0, np.bool_)

    def write_bits(self, packed: NDArray[np.uint8], count: int) -> None:
        flags = np.concatenate([self._rest, bits.unpack_flags(packed, count)])
        whole = flags.size // 8 * 8
        self._rest = flags[whole:]
        self.write(np.packbits(flags[:whole], bitorder="little"))

    def finish(self) -> None:
        self.write(np.packbits(self._rest, bitorder="little"))
