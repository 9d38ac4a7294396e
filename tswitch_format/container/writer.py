"""A file in one pass: segments as they come, then the index, then the prologue in the place kept for it.

Memory holds the tables of the index and one buffer of 1 MiB, whatever the size of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._checksum import sha256
from tswitch_format.atomic import AtomicFile
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.codecs import zstd
from tswitch_format.container import frame as framing
from tswitch_format.container.digest import content_id
from tswitch_format.container.index import Index, SharedArrays, TaskTable
from tswitch_format.container.names import name_problem
from tswitch_format.container.parse import parse
from tswitch_format.container.report import Report
from tswitch_format.container.segments import EncodedArray, EncodedEntry, EncodedSegment
from tswitch_format.container.tensors import Digests, TensorList
from tswitch_format.errors import FormatError, OptionError, TswError

_BUFFER = 1 << 20  # bytes: many small segments make one write
_INDEX_LEVEL = 9


@dataclass(slots=True)
class _Task:
    name: str
    recipe: Mapping[str, str]
    checkpoint: Mapping[str, str]
    metadata: Mapping[str, str]
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    extras: list[TensorSpec | None] = field(default_factory=list)
    segments: list[tuple[Any, ...]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Shared:
    arrays: list[EncodedArray] = field(default_factory=list)
    segments: list[tuple[Any, ...]] = field(default_factory=list)


class ContainerWriter:
    """Writes one file. Use as a context manager: without `finish` and `commit`, nothing is left.

    `header` is an Index of which base, aliases, ids, profile, metadata and writer are taken. Within a task, entries of base
    tensors come in the order of the base, then those of added tensors in the order that section 5.3 gives `extra`.
    """

    def __init__(self, path: Path, header: Index) -> None:
        self._header = header
        self._file = AtomicFile(path)
        self._buffer = bytearray(lay.FRAME)  # the prologue's place; nothing that can fail happens before `__enter__`
        self._end = lay.FRAME
        self._shared = _Shared()
        self._tasks: list[_Task] = []
        self._content_id: bytes | None = None

    @property
    def mapped(self) -> bool:
        """Whether the file is of the mapped profile."""
        return self._header.mapped

    def add_shared(self, array: EncodedArray) -> int:
        """Write an array that belongs to no task, before all tasks and in the order of section 5.5. Returns its number."""
        self._shared.segments.extend(map(self._write, array.segments))
        self._shared.arrays.append(replace(array, segments=()))
        return len(self._shared.arrays) - 1

    def begin_task(
        self,
        name: str,
        *,
        recipe: Mapping[str, str],
        checkpoint: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> None:
        """Begin a task: the entries that follow are its. Raises OptionError for a name that is not proper or comes twice."""
        wrong = name_problem(name)
        if wrong:
            raise OptionError(
                f"task name {name[:80]!r}: {wrong}; choose a name of 1 to {lay.MAX_NAME} bytes of plain text"
            )
        if any(task.name == name for task in self._tasks):
            raise OptionError(
                f"task {name!r}: there are two of that name; pack one of them anew under another (--task)"
            )
        if len(self._tasks) == lay.MAX_TASKS:
            raise OptionError(f"more than {lay.MAX_TASKS} tasks; spread them over several files")
        self._tasks.append(_Task(name, recipe, checkpoint, metadata))

    def add(self, entry: EncodedEntry) -> None:
        """Write the segments of an entry and keep its record."""
        task = self._tasks[-1]
        if entry.spec.name in task.names:
            raise TswError(f"tensor {entry.spec.name!r}: two entries in task {task.name!r}; give each name once")
        task.names.add(entry.spec.name)
        tensor = 0 if entry.added else self._header.base.numbers[entry.spec.name]
        flags = entry.flags & ~lay.HAS_SHA256 | (lay.HAS_SHA256 if entry.sha256 is not None else 0)
        digest = np.void(entry.sha256 if entry.sha256 is not None else bytes(32))
        task.extras.append(entry.spec if entry.added else None)
        task.entries.append(
            (
                tensor,
                entry.kind,
                entry.dtype.id,
                entry.factor_dtype,
                flags,
                entry.knob,
                entry.vector,
                entry.active,
                digest,
            )
        )
        task.segments.extend(map(self._write, entry.segments))

    def _write(self, segment: EncodedSegment) -> tuple[Any, ...]:
        """Write a segment; its record."""
        offset, what = self._put(segment.data), (segment.role, segment.codec, segment.parameter, 0)
        return (offset, len(segment.data), segment.crc32c, segment.count, *what)

    def _put(self, data: bytes | memoryview) -> int:
        """Append aligned bytes; where they begin."""
        offset = lay.align(self._end, lay.segment_alignment(len(data), mapped=self._header.mapped))
        self._buffer += bytes(offset - self._end)
        self._buffer += data
        self._end = offset + len(data)
        if len(self._buffer) >= _BUFFER:
            self._flush()
        return offset

    def _flush(self) -> None:
        self._file.write(bytes(self._buffer))
        self._buffer.clear()

    def finish(self, base: TensorList | None = None) -> int:
        """Write the index, the trailer and the prologue. Returns the length of the file, which `commit` makes visible.

        `base`: the header's base with digests that were not known before.
        """
        if base is not None:
            self._header = replace(self._header, base=base)
        index = self._index()
        index = replace(index, content_id=content_id(index))
        try:
            document = index.encode()
        except (UnicodeEncodeError, TypeError) as error:
            raise TswError(f"{self._file.path}: metadata or names cannot be encoded: {error}") from error
        if len(document) > lay.MAX_INDEX:
            raise TswError(
                f"{self._file.path}: the index would take {len(document)} bytes, more than the format's {lay.MAX_INDEX}; "
                "spread the tasks over several files"
            )
        stored, encoding = document, lay.Encoding.RAW
        packed = zstd.compress(document, _INDEX_LEVEL)
        if len(packed) < len(document):
            stored, encoding = packed, lay.Encoding.ZSTD
        start = lay.align(self._end, lay.MAPPED_SMALL if index.mapped else 1)
        self._buffer += bytes(start - self._end)
        frame = framing.Frame(start, len(stored), len(document), encoding, sha256(stored))
        self._check(document, frame)
        prologue, trailer = framing.build(frame)
        self._buffer += stored + trailer
        self._flush()
        self._file.write_at(0, prologue)
        self._content_id = index.content_id
        return frame.file_length

    def _check(self, document: bytes, frame: framing.Frame) -> None:
        """Nothing that a reader would refuse becomes visible: too many aliases, dimensions or remarks, for example."""
        try:
            parse(document, frame, Report(str(self._file.path)))
        except FormatError as error:
            raise TswError(
                f"{self._file.path}: a .tsw file cannot hold this: {error.field}: expected {error.expected}, "
                f"found {error.found} [{error.rule}]"
            ) from error

    @property
    def content_id(self) -> bytes | None:
        """The content id of the finished file, before it is committed. None where digests are absent."""
        return self._content_id

    def commit(self) -> bytes | None:
        """Make the finished file durable and visible. Returns the content id, None where digests are absent."""
        self._file.commit()
        return self._content_id

    def _index(self) -> Index:
        specs = {_extra_key(spec): spec for task in self._tasks for spec in task.extras if spec is not None}
        numbers = {key: len(self._header.base) + number for number, key in enumerate(sorted(specs))}
        if len(self._header.base) + len(specs) > lay.MAX_TENSORS:
            raise TswError(f"{self._file.path}: more than {lay.MAX_TENSORS} tensors, the format's limit")
        tables = []
        for task in self._tasks:
            entries: NDArray[Any] = np.array(task.entries, lay.ENTRY)
            for number, spec in enumerate(task.extras):
                if spec is not None:
                    entries["tensor"][number] = numbers[_extra_key(spec)]
            segments: NDArray[Any] = np.array(task.segments, lay.SEGMENT)
            tables.append(TaskTable(task.name, entries, segments, task.recipe, task.checkpoint, task.metadata))
        arrays = self._shared.arrays
        shared = SharedArrays(
            TensorList.build([array.spec for array in arrays], [Digests(array.sha256, None) for array in arrays]),
            np.array([array.role for array in arrays], np.uint8),
            np.array(self._shared.segments, lay.SEGMENT),
        )
        extra = TensorList.build([specs[key] for key in sorted(specs)])
        return replace(self._header, extra=extra, tasks=tables, content_id=None, shared=shared)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.abort()


def _extra_key(spec: TensorSpec) -> tuple[bytes, int, int, Sequence[int]]:
    return spec.name.encode(), spec.dtype.id, len(spec.shape), spec.shape


def in_file_order(names: Iterable[str]) -> list[str]:
    """Names as a file orders its base tensors: by their UTF-8 bytes."""
    return sorted(names, key=str.encode)
