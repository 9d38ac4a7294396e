"""Entries from file to file: bundle, extract, repack.

Bundle and extract copy encoded bytes without decoding them; repack decodes planes and encodes them for the other profile. All
write a new file; the content id of what is kept does not change. `copy_tasks` is what they share with `routing.py` and
`tables.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format._parallel import ordered_map, thread_count
from tswitch_format._version import WRITER
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.codecs import array
from tswitch_format.container.index import CoefficientKeys, Index, RouterKeys, SharedArrays, SharedRole, TaskTable
from tswitch_format.container.reader import Container, Entry, SharedArray
from tswitch_format.container.segments import EncodedArray, EncodedEntry, EncodedSegment
from tswitch_format.container.tensors import TensorList
from tswitch_format.container.writer import ContainerWriter
from tswitch_format.errors import BaseMismatchError, OptionError
from tswitch_format.switch.encode import Vector, encode_masked, encode_ternary

Progress = Callable[[int, int], None]


def bundle(paths: Sequence[str | PathLike[str]], out: str | PathLike[str], *, progress: Progress | None = None) -> Path:
    """Put all tasks of the files at `paths`, in order, into a new file at `out`.

    All must have the same base and profile, and no task name may come twice. Metadata are put together; where files say
    different things under one key, and of the base's id and revision, the first file's count.

    Raises BaseMismatchError, OptionError, FormatError or OutputError.
    """
    if not paths:
        raise OptionError("bundle: expected at least one file, found none")
    out = Path(out)
    containers: list[Container] = []
    try:
        for path in paths:
            containers.append(open_whole(Path(path)))
        first = containers[0]
        for other in containers[1:]:
            _check_same_base(first, other)
        picked = [(container, number) for container in containers for number in range(len(container.index.tasks))]
        metadata = {key: text for c in reversed(containers) for key, text in c.index.metadata.items()}
        copy_tasks(out, replace(bare_header(first.index), metadata=metadata), picked, progress)
    finally:
        for container in containers:
            container.close()
    return out


def extract(
    path: str | PathLike[str], task: str, out: str | PathLike[str], *, progress: Progress | None = None
) -> Path:
    """Write one task of a file to a new file. Raises UnknownNameError, FormatError or OutputError."""
    container = open_whole(Path(path))
    try:
        copy_tasks(Path(out), bare_header(container.index), [(container, container.find(task))], progress)
    finally:
        container.close()
    return Path(out)


def repack(
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    profile: str,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a file anew in the profile "archive" or "mapped". Raises OptionError, FormatError or OutputError."""
    if profile not in lay.PROFILES:
        raise OptionError(f"profile: expected {' or '.join(lay.PROFILES)}, found {profile!r}")
    count = thread_count(threads)
    container = open_whole(Path(path))
    try:
        header = replace(bare_header(container.index), profile=profile)
        everything = [(container, number) for number in range(len(container.index.tasks))]
        copy_tasks(
            Path(out), header, everything, progress, encode=lambda entry: _encode(entry, header.mapped), threads=count
        )
    finally:
        container.close()
    return Path(out)


def open_whole(path: Path) -> Container:
    """Open a file that is to be copied. Raises OptionError for one of a later version."""
    container = Container(path)
    minor = container.frame.minor
    if minor > lay.MINOR:
        container.close()
        raise OptionError(
            f"{path}: expected a file of version {lay.FORMAT_VERSION}, found {lay.MAJOR}.{minor}, of which a copy could lose "
            "what this version does not know; update tswitch-format"
        )
    return container


def bare_header(index: Index) -> Index:
    """What `copy_tasks` takes of the header of a file."""
    return replace(
        index,
        extra=TensorList(),
        tasks=(),
        content_id=None,
        writer=WRITER,
        shared=SharedArrays(),
        router=None,
        coefficients={},
    )


def _check_same_base(first: Container, other: Container) -> None:
    ours, theirs = first.index, other.index
    if ours.profile != theirs.profile:
        raise OptionError(
            f"{other.path}: expected the profile {ours.profile} of {first.path}, found {theirs.profile}; "
            f"bring it there with 'tsw repack --profile {ours.profile}'"
        )
    for number, name in enumerate(ours.base.names):
        same = name in theirs.base.numbers
        if same:
            at = theirs.base.numbers[name]
            same = ours.base.spec(number) == theirs.base.spec(at) and ours.base.digests(number) == theirs.base.digests(
                at
            )
        if not same:
            raise _other_base(first, other, name)
    # The names are the same by now, or theirs has more; so numbers mean the same, also as targets of aliases.
    for name in set(theirs.base.names) - set(ours.base.names):
        raise _other_base(first, other, name)
    for name, _ in set(ours.aliases.items()) ^ set(theirs.aliases.items()):
        raise _other_base(first, other, name)


def _other_base(first: Container, other: Container, name: str) -> BaseMismatchError:
    return BaseMismatchError(
        str(other.path),
        tensor=name,
        expected=f"the one of {first.path}",
        found="another",
        fix="a bundle holds tasks of one base",
    )


@dataclass(frozen=True, slots=True)
class TaskEdit:
    """What `copy_tasks` changes in the task of that name: its recipe, and entries. `change` gets each as it is stored and as it
    would be copied, its segments not read yet."""

    task: str
    recipe: Mapping[str, str]
    change: Callable[[Entry, EncodedEntry], EncodedEntry]

    def encode(self, entry: Entry) -> EncodedEntry:
        """An entry of the task for the new file."""
        return self.change(entry, _copy(entry))


def copy_tasks(
    out: Path,
    header: Index,
    picked: Sequence[tuple[Container, int]],
    progress: Progress | None,
    *,
    router: RouterKeys | None = None,
    coefficients: Mapping[str, CoefficientKeys] | None = None,
    arrays: Sequence[EncodedArray] = (),
    layers: Mapping[str, Sequence[EncodedEntry]] | None = None,
    encode: Callable[[Entry], EncodedEntry] | None = None,
    threads: int = 1,
    edit: TaskEdit | None = None,
) -> None:
    """Write tasks of open files, with the vectors, the samples and the tables that belong to them, to a new file.

    `router`: its keys, if not those of the files. `coefficients`: what is said of tables that are new, or take the place of
    others. `arrays`: samples and coefficients that are new, or take the place of those of the same name. `layers`: further
    entries by task, in the order of a file. `edit`: what changes in one of the tasks.
    """
    check_output(out, (container.path for container, _ in picked))
    given = coefficients or {}
    tables = _tables_of(picked, given)
    described = {name: container.index.coefficients[name] for name, container in tables.items()}
    header = replace(header, router=router or _router_of(picked), coefficients={**described, **given})
    more = layers or {}
    total = sum(len(container.index.tasks[number].entries) for container, number in picked)
    total += sum(map(len, more.values()))
    done = 0
    with ContainerWriter(out, header) as writer:
        numbers = _write_shared(writer, picked, tables, arrays, anew=encode is not None)
        for container, number in picked:
            task: TaskTable = container.index.tasks[number]
            own = edit if edit is not None and edit.task == task.name else None
            recipe = own.recipe if own else task.recipe
            writer.begin_task(task.name, recipe=recipe, checkpoint=task.checkpoint, metadata=task.metadata)
            made = ordered_map(own.encode if own else encode or _copy, container.entries(number), threads)
            for entry in heapq.merge(made, more.get(task.name, ()), key=entry_order):
                vector = numbers[container, entry.vector] if entry.kind is lay.Kind.MASKED else 0
                writer.add(replace(entry, vector=vector))
                done += 1
                if progress:
                    progress(done, total)
        writer.finish()
        writer.commit()


def _router_of(picked: Sequence[tuple[Container, int]]) -> RouterKeys | None:
    """The router that the tasks' files have. Raises OptionError where they are different."""
    found: tuple[Container, SharedArray] | None = None
    for container, number in picked:
        features = container.features(container.index.tasks[number].name)
        if features is None:
            continue
        if found is None:
            found = container, features
        elif (found[0].index.router, found[1].spec.shape[1]) != (container.index.router, features.spec.shape[1]):
            raise OptionError(
                f"{container.path}: expected the router of {found[0].path}, {_described(*found)}, found "
                f"{_described(container, features)}; build one of them anew with 'tsw route build'"
            )
    return found[0].index.router if found else None


def _tables_of(picked: Sequence[tuple[Container, int]], given: Mapping[str, CoefficientKeys]) -> dict[str, Container]:
    """The files of the tables all of whose tasks are picked, by name, but for those that are `given`. Raises OptionError where
    there are different ones of one name."""
    chosen: dict[Container, set[str]] = {}
    for container, number in picked:
        chosen.setdefault(container, set()).add(container.index.tasks[number].name)
    found: dict[str, Container] = {}
    for container, tasks in chosen.items():
        for name, table in container.index.coefficients.items():
            if name in given or not tasks.issuperset(table.tasks):
                continue
            other = found.setdefault(name, container)
            if _table_content(other, name) != _table_content(container, name):
                raise OptionError(
                    f"{container.path}: expected the table {name!r} of {other.path}, or none of that name, found another; "
                    "write one of the files anew with its table under another name"
                )
    return found


def _table_content(container: Container, name: str) -> tuple[Any, bytes | None]:
    return container.index.coefficients[name].document(), container.coefficients(name).sha256


def _described(container: Container, features: SharedArray) -> str:
    router = container.index.router
    if router is None:
        return "none"
    made = f", extractor {router.extractor!r}, preprocessing {router.preprocessing!r}"
    return f"k {router.k}, {router.metric}, {features.spec.shape[1]} numbers a sample{made}"


def _write_shared(
    writer: ContainerWriter,
    picked: Sequence[tuple[Container, int]],
    tables: Mapping[str, Container],
    given: Sequence[EncodedArray],
    *,
    anew: bool,
) -> dict[tuple[Container, int], int]:
    """Write the shared arrays that the tasks use, those of tables and those that are given, equal ones once; (container, number
    there) -> number in the new file."""
    used: dict[tuple[Container, int], SharedArray] = {}
    sampled = {array.spec.name for array in given if array.role is SharedRole.FEATURES}
    for container, number in picked:
        entries, name = container.index.tasks[number].entries, container.index.tasks[number].name
        for vector in np.unique(entries["vector"][entries["kind"] == lay.Kind.MASKED]).tolist():
            used[container, vector] = container.shared(vector)
        samples = container.features(name) if name not in sampled else None
        if samples is not None:
            used[container, samples.number] = samples
    for name, container in tables.items():
        table = container.coefficients(name)
        used[container, table.number] = table
    places: dict[tuple[Any, ...], list[tuple[Container, int]]] = {}
    arrays = {_order(array.spec, array.sha256): array for array in given}
    for place, shared in used.items():
        key = _order(shared.spec, shared.sha256 or b"")
        arrays.setdefault(key, _copied(shared, anew=anew, mapped=writer.mapped))
        places.setdefault(key, []).append(place)
    numbers: dict[tuple[Container, int], int] = {}
    for key in sorted(arrays):
        number = writer.add_shared(arrays[key])
        numbers.update(dict.fromkeys(places.get(key, ()), number))
    return numbers


def _order(spec: TensorSpec, sha256: bytes) -> tuple[Any, ...]:
    """What shared arrays ascend by in a file (spec section 5.5)."""
    return spec.name.encode(), spec.dtype.id, len(spec.shape), spec.shape, sha256


def entry_order(entry: EncodedEntry) -> tuple[Any, ...]:
    """What the entries of a task ascend by: those of base tensors come first, which ascend by name."""
    return entry.added, _order(entry.spec, b"")


def _copied(shared: SharedArray, *, anew: bool, mapped: bool) -> EncodedArray:
    """An array as it is stored, or encoded anew, which is done when it is written."""

    def segments() -> Iterator[EncodedSegment]:
        if not anew:
            yield from shared.stored_segments()
            return
        found = shared.content_digest()
        if found != shared.sha256:
            raise shared.other_content(found)
        yield from _data(shared, mapped)

    return EncodedArray(shared.role, shared.spec, shared.sha256 or b"", segments())


def _copy(entry: Entry) -> EncodedEntry:
    return _entry(entry, entry.stored_segments())


def _entry(entry: Entry, segments: Iterator[EncodedSegment]) -> EncodedEntry:
    return EncodedEntry(
        entry.spec,
        entry.kind,
        entry.dtype,
        segments,
        entry.sha256,
        entry.added,
        entry.knob,
        entry.factor_dtype,
        entry.flags,
        entry.active,
        int(entry.record["vector"]),
    )


def _encode(entry: Entry, mapped: bool) -> EncodedEntry:
    """The same content in another profile."""
    if entry.kind is lay.Kind.MASKED:
        vector = Vector(entry.vector.number, entry.vector.dtype, entry.vector.sha256 or b"")
        masks = (entry.mask_packed(chunk) for chunk in range(entry.chunks))
        return _checked(entry, encode_masked(entry.spec, entry.dtype, entry.knob, vector, masks, mapped=mapped))
    if entry.kind is not lay.Kind.TERNARY:
        found = entry.content_digest()
        if entry.sha256 not in (None, found):
            raise entry.other_content(found)
        return _entry(entry, _data(entry, mapped))
    switch = encode_ternary(
        entry.spec,
        entry.dtype,
        entry.knob,
        entry.factor_codes(lay.Role.ROW_FACTORS),
        entry.factor_codes(lay.Role.COLUMN_FACTORS),
        entry.factor_dtype,
        ((entry.mask_positions(chunk), entry.sign_flags(chunk)) for chunk in range(entry.chunks)),
        mapped=mapped,
    )
    return _checked(entry, switch)


def _checked(entry: Entry, made: EncodedEntry) -> EncodedEntry:
    """An entry encoded anew. Raises FormatError where its content is not what the digest says."""
    if entry.sha256 is None:
        return replace(made, sha256=None)
    if entry.sha256 != made.sha256:
        raise entry.other_content(made.sha256 or b"")
    return made


def _data(entry: Entry, mapped: bool) -> Iterator[EncodedSegment]:
    for chunk in range(entry.chunks):
        codec, data = array.encode(entry.data(chunk), mapped=mapped)
        yield EncodedSegment.make(lay.Role.DATA, codec, 0, entry.chunk_elements(chunk), data)
