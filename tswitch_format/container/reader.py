"""An open file: its index, and its segments, each verified when it is first touched."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from operator import add
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c, sha256
from tswitch_format._dtypes import DTYPES, DType
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.codecs import array, bits, plane, zstd
from tswitch_format.container import frame as framing
from tswitch_format.container.digest import EntryDigest
from tswitch_format.container.index import SHARED, Index, table_name
from tswitch_format.container.parse import parse
from tswitch_format.container.report import Report
from tswitch_format.container.segments import EncodedSegment
from tswitch_format.container.source import Backend, PreadSource, Source, open_source
from tswitch_format.errors import FormatError, OptionError, PayloadError, UnknownNameError

Verify = Literal["lazy", "full", "off"]


class ContentDigest(Protocol):
    """A SHA-256 that takes what an entry holds."""

    def update(self, data: Any, /) -> None:  # an array, which type checkers do not take for a buffer
        """Take decoded content."""

    def digest(self) -> bytes:
        """32 bytes."""
        ...


_SPAN = 1 << 18  # bytes, that stay in the second-level cache between reading and checking
_BLOCK = 1 << 12  # segments
_MOST_RUN = 1 << 26  # bytes that are read at once
_MOST_PADDING = 1 << 20  # bytes that are read of what is skipped

_T = TypeVar("_T")
_Decoder = Callable[[int, int, memoryview, int, int], _T]  # of codec, parameter, payload, bits, ones

FACTOR_STORAGE: dict[int, np.dtype[np.uint8] | np.dtype[np.float16] | np.dtype[np.float32]] = {
    lay.FactorDType.U8: np.dtype("u1"),
    lay.FactorDType.F16: np.dtype("<f2"),
    lay.FactorDType.F32: np.dtype("<f4"),
}


class Container:
    """A file that is open for reading. All methods may be called from several threads at once.

    Opening reads prologue, trailer and index; every rule that needs no more is checked then. `verify`: "lazy" checks the
    CRC32C of a segment when it is first touched, "off" never. Raises FormatError, or TswError where the file cannot be read.
    """

    def __init__(
        self, path: Path, *, backend: Backend = "auto", verify: Verify = "lazy", report: Report | None = None
    ) -> None:
        if verify not in ("lazy", "full", "off"):
            raise OptionError(f"verify: expected 'lazy', 'full' or 'off', found {verify!r}")
        self.path = path
        self.report = report or Report(str(path))
        self._source: Source = open_source(path, backend)
        try:
            self.frame = framing.read(self._source, self.report)
            self.index = self._read_index()
        except BaseException:
            self._source.close()
            raise
        if backend == "auto" and self.index.mapped and isinstance(self._source, PreadSource):
            pread, self._source = self._source, self._source.mapped()
            pread.close()
        self._verify = verify != "off"
        self._entry_numbers: dict[int, dict[str, int]] = {}
        self._rooms = threading.local()
        self._touched = [np.zeros(len(table.segments), np.bool_) for table in self.index.tables]

    @property
    def backend(self) -> str:
        """What really reads: "mmap" or "pread"."""
        return self._source.backend

    @property
    def length(self) -> int:
        """Length of the file in bytes."""
        return self._source.length

    def _read_index(self) -> Index:
        frame = self.frame
        stored = self._source.read(frame.index_offset, frame.index_length)
        self.report.offset = frame.index_offset
        found = sha256(stored)
        if frame.index_sha256 is not None and found != frame.index_sha256:
            self.report.finding("TSW-204", "index SHA-256", frame.index_sha256.hex(), found.hex())
        if frame.index_encoding == lay.Encoding.ZSTD:
            try:
                decoded: bytes | memoryview = zstd.decompress(stored, frame.index_decoded_length)
            except PayloadError as error:
                raise self.report.fatal(error.rule, "index", error.expected, error.found) from error
        else:
            decoded = bytes(stored)
        return parse(decoded, frame, self.report)

    def segment(self, task: int, number: int) -> memoryview:
        """The encoded bytes of a segment, verified. With the mapping they are a view of it, valid as long as it is held."""
        record = self.index.tables[task].segments[number]
        data = self._source.read(int(record["offset"]), int(record["length"]))
        if self._verify and not self._touched[task][number]:
            found = crc32c(data)
            if found != int(record["crc32c"]):
                raise self._other_checksum(task, number, found)
            self._touched[task][number] = True
        return data

    def run(self, task: int, numbers: range) -> list[memoryview]:
        """The same of segments that follow each other, with one read where they lie together."""
        records = self.index.tables[task].segments[numbers.start : numbers.stop]
        starts, lengths = records["offset"].tolist(), records["length"].tolist()
        begin, end = min(starts, default=0), max(map(add, starts, lengths), default=0)
        if len(numbers) < 2 or end - begin > min(sum(lengths) + len(numbers) * lay.MAPPED_LARGE, _MOST_RUN):
            return [self.segment(task, number) for number in numbers]
        whole = self._source.read(begin, end - begin)
        found = [whole[start - begin : start - begin + length] for start, length in zip(starts, lengths, strict=True)]
        if self._verify and not self._touched[task][numbers.start : numbers.stop].all():
            for number, data, checksum in zip(numbers, found, records["crc32c"].tolist(), strict=True):
                if crc32c(data) != checksum:
                    raise self._other_checksum(task, number, crc32c(data))
            self._touched[task][numbers.start : numbers.stop] = True
        return found

    def spans(self, task: int) -> Iterator[range]:
        """The segments of a table in runs that are worth one read: of at most `_SPAN` bytes, padding counted, or one segment.
        Those of a damaged table may lie anywhere."""
        segments = self.index.tables[task].segments
        for block in range(0, len(segments), _BLOCK):  # as lists they take ten times the memory
            some = segments[block : block + _BLOCK]
            starts = some["offset"].astype(np.int64)
            ends = (starts + some["length"]).tolist()
            first, before, limit = block, 0, 0
            for number, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True), block):
                if number > first and (end > limit or start < before):
                    yield range(first, number)
                    first = number
                if number == first:
                    limit = start + _SPAN
                before = end
            yield range(first, block + len(some))

    def check_span(self, task: int, span: range) -> list[FormatError]:
        """Read a span; an error for padding in it that is not zero, and for each segment whose CRC32C is another. Raises
        TruncatedError."""
        records = self.index.tables[task].segments[span.start : span.stop]
        offsets, checksums = records["offset"].tolist(), records["crc32c"].tolist()
        begin = offsets[0]
        starts = [offset - begin for offset in offsets]
        ends = list(map(add, starts, records["length"].tolist()))
        data = self._read_once(begin, ends[-1])
        errors = []
        if starts[1:] != ends[:-1]:
            for start, end in zip(starts[1:], ends, strict=False):
                errors += self._wrong_padding(data[end:start], begin + end)
        found = [crc32c(data[start:end]) for start, end in zip(starts, ends, strict=True)]
        if found != checksums:
            errors += [
                self._other_checksum(task, number, one)
                for number, one, checksum in zip(span, found, checksums, strict=True)
                if one != checksum
            ]
        return sorted(errors, key=lambda error: error.offset or 0)

    def _read_once(self, offset: int, length: int) -> memoryview:
        """Bytes that are looked at before this thread reads on: new memory takes longer than reading into what is there."""
        if length > _SPAN:
            return self._source.read(offset, length)
        try:
            room: memoryview = self._rooms.room
        except AttributeError:
            room = self._rooms.room = memoryview(bytearray(_SPAN))
        self._source.read_into(offset, room[:length])
        return room[:length]

    def check_padding(self, start: int, end: int) -> list[FormatError]:
        """An error for bytes between two segments that are not zero."""
        # They are less than 4,096, but before an index that lies where it should not: which is reported, and of which a sparse
        # file may have any number.
        return self._wrong_padding(self._source.read(start, max(0, min(end - start, _MOST_PADDING))), start)

    def _wrong_padding(self, padding: memoryview, offset: int) -> list[FormatError]:
        content = bytes(padding)
        rest = content.lstrip(b"\0")
        if not rest:
            return []
        at = offset + len(content) - len(rest)
        return [self.report.fatal("TSW-702", "padding", "zero", f"0x{rest[0]:02x}", offset=at)]

    def _other_checksum(self, task: int, number: int, found: int) -> FormatError:
        record = self.index.tables[task].segments[number]
        return FormatError(
            rule="TSW-701",
            file=str(self.path),
            offset=int(record["offset"]),
            field=f"{table_name(task)}.segments[{number}]",
            expected=f"CRC32C {int(record['crc32c']):08x}",
            found=f"{found:08x}",
        )

    @cached_property
    def _first_segments(self) -> list[NDArray[np.int64]]:
        """For each table, the first segment of each entry and, last, their number."""
        return [
            np.concatenate([[0], np.cumsum(self.index.segment_counts(table.entries).sum(axis=1))])
            for table in self.index.tables
        ]

    def entry(self, task: int, number: int) -> Entry:
        """One entry of a task."""
        return Entry(self, task, number, int(self._first_segments[task][number]))

    def shared(self, number: int) -> SharedArray:
        """One of the arrays that belong to no task."""
        return SharedArray(self, SHARED, number, int(self._first_segments[SHARED][number]))

    def shared_arrays(self) -> Iterator[SharedArray]:
        """All of them in order."""
        for number in range(len(self.index.shared)):
            yield self.shared(number)

    def entries(self, task: int) -> Iterator[Entry]:
        """All entries of a task in order."""
        for number in range(len(self.index.tasks[task].entries)):
            yield self.entry(task, number)

    def features(self, task: str) -> SharedArray | None:
        """The stored samples of a task, or None where it has none."""
        number = self.index.shared.find(task, lay.SharedRole.FEATURES) if self.index.router is not None else None
        return None if number is None else self.shared(number)

    def coefficients(self, name: str) -> SharedArray:
        """The elements of a table of coefficients. Raises UnknownNameError where there is none of that name."""
        number = self.index.shared.find(name, lay.SharedRole.COEFFICIENTS)
        if number is None:
            raise UnknownNameError("table", name, self.index.coefficients, where=str(self.path))
        return self.shared(number)

    def find(self, task: str) -> int:
        """Number of the task of that name. Raises UnknownNameError."""
        try:
            return self.index.task_numbers[task]
        except KeyError:
            raise UnknownNameError("task", task, self.index.task_numbers, where=str(self.path)) from None

    def entry_numbers(self, task: int) -> dict[str, int]:
        """Name of the tensor that an entry makes -> number of the entry."""
        if task not in self._entry_numbers:  # of one task only: hostile files have thousands
            tensors = self.index.tasks[task].entries["tensor"].tolist()
            self._entry_numbers[task] = {self.index.name(tensor): number for number, tensor in enumerate(tensors)}
        return self._entry_numbers[task]

    def close(self) -> None:
        """Release the file. Arrays that were given out stay valid."""
        self._source.close()


class Entry:
    """One entry of one task: fields of its record, and its planes, factors or data, chunk by chunk.

    Decoding raises FormatError that names the segment where a payload breaks a rule.
    """

    def __init__(self, container: Container, task: int, number: int, first: int) -> None:
        self._container = container
        self._task = task
        self._first = first
        self.number = number
        self.record = container.index.tables[task].entries[number]

    @property
    def mapped(self) -> bool:
        """Whether its file is of the mapped profile."""
        return self._container.index.mapped

    @property
    def tensor(self) -> int:
        """Number of the tensor that it makes."""
        return int(self.record["tensor"])

    @cached_property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape of the record that it refers to."""
        return self._container.index.spec(self.tensor)

    @cached_property
    def kind(self) -> lay.Kind:
        """What it says of its tensor."""
        return lay.Kind(int(self.record["kind"]))

    @property
    def dtype(self) -> DType:
        """Element type of the tensor that it makes."""
        return DTYPES[int(self.record["dtype"])]

    @property
    def knob(self) -> np.float32:
        """The knob."""
        return np.float32(self.record["knob"])

    @property
    def active(self) -> int:
        """Number of active elements."""
        return int(self.record["active"])

    @cached_property
    def flags(self) -> int:
        """Flag bits of the record."""
        return int(self.record["flags"])

    @property
    def factor_dtype(self) -> lay.FactorDType:
        """Stored type of the factors."""
        return lay.FactorDType(int(self.record["factor_dtype"]))

    @property
    def sha256(self) -> bytes | None:
        """Digest of the decoded content as recorded, or None."""
        return self.record["sha256"].tobytes() if self.flags & lay.HAS_SHA256 else None

    @cached_property
    def vector(self) -> SharedArray:
        """The shared vector of a masked entry."""
        return self._container.shared(int(self.record["vector"]))

    @cached_property
    def chunks(self) -> int:
        """Number of chunks of the tensor."""
        return 0 if self.kind is lay.Kind.REMOVED else lay.chunks_of(self.spec.elements)

    @property
    def segments(self) -> range:
        """Numbers of its segments in the task's table."""
        starts = self._container._first_segments[self._task]
        return range(int(starts[self.number]), int(starts[self.number + 1]))

    @property
    def stored_bytes(self) -> int:
        """Encoded bytes of its segments."""
        return sum(int(self._record(number)["length"]) for number in self.segments)

    def stored(self, number: int) -> memoryview:
        """Encoded, verified bytes of a segment of the task's table."""
        return self._container.segment(self._task, number)

    def stored_segments(self) -> Iterator[EncodedSegment]:
        """Its segments as they are stored, verified, one after the other."""
        for number in self.segments:
            record = self._record(number)
            yield EncodedSegment(
                lay.Role(int(record["role"])),
                int(record["codec"]),
                int(record["parameter"]),
                int(record["count"]),
                self.stored(number),
                int(record["crc32c"]),
            )

    @property
    def added(self) -> bool:
        """Whether its tensor's record is one of `extra`."""
        return self.tensor >= len(self._container.index.base)

    @property
    def row_count(self) -> int:
        """Rows R: the first dimension."""
        shape = self.spec.shape
        return shape[0] if shape else 1

    @property
    def column_count(self) -> int:
        """Columns C: elements of a row."""
        return self.spec.elements // max(self.row_count, 1)

    def factor_codes(
        self, role: lay.Role, first: int = 0, stop: int | None = None
    ) -> NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32] | None:
        """Row or column factors `first` to `stop` as stored, or None where there are none; reads only the chunks they are in.

        Raises FormatError for factors that are not finite.
        """
        if not self.flags & (lay.HAS_ROW_FACTORS if role is lay.Role.ROW_FACTORS else lay.HAS_COLUMN_FACTORS):
            return None
        total = self.row_count if role is lay.Role.ROW_FACTORS else self.column_count
        stop = total if stop is None else stop
        if first == stop:
            return np.empty(0, FACTOR_STORAGE[self.factor_dtype])
        chunks = range(first // lay.CHUNK, lay.chunks_of(stop))
        parts = [self._factor_chunk(role, chunk, total) for chunk in chunks]
        start = chunks.start * lay.CHUNK
        if len(parts) == 1:
            return parts[0][first - start : stop - start]
        whole = np.empty(sum(part.size for part in parts), FACTOR_STORAGE[self.factor_dtype])
        np.concatenate(parts, out=whole)
        return whole[first - start : stop - start]

    def _factor_chunk(
        self, role: lay.Role, chunk: int, total: int
    ) -> NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]:
        rows = lay.chunks_of(self.row_count) if self.flags & lay.HAS_ROW_FACTORS else 0
        number = self._first + chunk + (0 if role is lay.Role.ROW_FACTORS else rows)
        storage = FACTOR_STORAGE[self.factor_dtype]
        size = min(lay.CHUNK, total - chunk * lay.CHUNK)
        codes = self._array(number, size * storage.itemsize).view(storage)
        if storage.kind == "f" and not np.isfinite(codes).all():
            raise self._wrong(number, PayloadError(rule="TSW-705", expected="finite factors", found="NaN or infinity"))
        return codes

    def chunk_elements(self, chunk: int) -> int:
        """Number of elements of a chunk."""
        return min(lay.CHUNK, self.spec.elements - chunk * lay.CHUNK)

    def mask_count(self, chunk: int) -> int:
        """Number of active elements of a chunk, without decoding."""
        return int(self._record(self._mask(chunk))["count"])

    def mask_counts(self, chunks: range) -> list[int]:
        """The same of some chunks."""
        masks = self._masks(chunks)
        counts: list[int] = (
            self._container.index.tables[self._task].segments["count"][masks.start : masks.stop].tolist()
        )
        return counts

    def mask_positions(self, chunk: int) -> NDArray[np.int64]:
        """Active elements of a chunk, as positions in it, ascending."""
        return self._decode(plane.decode_positions, self._mask(chunk), self.chunk_elements(chunk))

    def mask_positions_into(self, chunks: range, out: NDArray[np.int64]) -> None:
        """The same of some chunks as flat elements of the tensor, into `out`, of as many as `mask_count` says of all."""
        start, done = chunks.start * lay.CHUNK, 0

        def into(codec: int, parameter: int, data: memoryview, n: int, count: int) -> NDArray[np.int64]:
            nonlocal start, done
            here = out[done : done + count]
            plane.decode_positions(codec, parameter, data, n, count, start=start, out=here)
            start, done = start + n, done + count
            return here

        self._decode_run(into, self._masks(chunks), map(self.chunk_elements, chunks))

    def mask_gap_bytes(self, chunks: range) -> list[NDArray[np.uint8]]:
        """Mask planes of some chunks as gap bytes with k = 0, which are not checked all: see `plane.decode_gap_bytes`."""
        return self._decode_run(plane.decode_gap_bytes, self._masks(chunks), map(self.chunk_elements, chunks))

    def mask_packed(self, chunk: int) -> NDArray[np.uint8]:
        """Mask plane of a chunk as a bit string."""
        return self._decode(plane.decode_packed, self._mask(chunk), self.chunk_elements(chunk))

    def masks_packed(self, chunks: range) -> list[NDArray[np.uint8]]:
        """The same of some chunks."""
        return self._decode_run(plane.decode_packed, self._masks(chunks), map(self.chunk_elements, chunks))

    def sign_packed(self, chunk: int) -> NDArray[np.uint8]:
        """Sign plane of a chunk as a bit string with a bit for each active element."""
        return self._decode(plane.decode_packed, self._mask(chunk) + self.chunks, self.mask_count(chunk))

    def signs_packed(self, chunks: range) -> list[NDArray[np.uint8]]:
        """The same of some chunks."""
        masks = self._masks(chunks)
        numbers = range(masks.start + self.chunks, masks.stop + self.chunks)
        return self._decode_run(plane.decode_packed, numbers, self.mask_counts(chunks))

    def sign_flags(self, chunk: int) -> NDArray[np.bool_]:
        """For each active element of a chunk, in order: whether it is negative."""
        return bits.unpack_flags(self.sign_packed(chunk), self.mask_count(chunk))

    def data(self, chunk: int) -> NDArray[np.uint8]:
        """Bytes of a chunk of a dense entry."""
        return self._array(self._first + chunk, self.dtype.nbytes(self.chunk_elements(chunk)))

    def digest(self) -> ContentDigest:
        """The digest of its content (section 11.3) before that, which `content` gives."""
        digest = EntryDigest(self.kind, self.dtype, self.spec.shape)
        if self.kind is lay.Kind.TERNARY:
            digest.ternary(self.knob, self.factor_dtype, self.flags)
        elif self.kind is lay.Kind.MASKED:
            digest.masked(self.knob, self.vector.dtype.id, self.vector.sha256 or b"")
        return digest

    def content(self) -> Iterator[Callable[[], NDArray[Any]]]:
        """What its digest covers, a segment at a time, each decoded when it is called: it raises FormatError."""
        if self.kind is lay.Kind.TERNARY:
            for role, flag, total in (
                (lay.Role.ROW_FACTORS, lay.HAS_ROW_FACTORS, self.row_count),
                (lay.Role.COLUMN_FACTORS, lay.HAS_COLUMN_FACTORS, self.column_count),
            ):
                for chunk in range(lay.chunks_of(total) if self.flags & flag else 0):
                    yield partial(self._factor_chunk, role, chunk, total)
            for chunk in range(self.chunks):
                yield partial(self.mask_packed, chunk)
                yield partial(self.sign_packed, chunk)
        elif self.kind is lay.Kind.MASKED:
            for chunk in range(self.chunks):
                yield partial(self.mask_packed, chunk)
        else:
            for chunk in range(self.chunks):
                yield partial(self.data, chunk)

    def content_digest(self) -> bytes:
        """Digest of the content, computed from what is stored (section 11.3): decodes everything."""
        digest = self.digest()
        for part in self.content():
            digest.update(part())
        return digest.digest()

    def other_content(self, found: bytes) -> FormatError:
        """The error for content that has not the recorded digest."""
        rule, where = self._digest_rule
        return self._container.report.fatal(rule, f"{where}.sha256", (self.sha256 or b"").hex(), found.hex())

    @property
    def _digest_rule(self) -> tuple[str, str]:
        return "TSW-801", f"tasks[{self._task}].entries[{self.number}]"

    def _mask(self, chunk: int) -> int:
        """Number of the mask segment of a chunk."""
        return self._first_mask + chunk

    def _masks(self, chunks: range) -> range:
        return range(self._first_mask + chunks.start, self._first_mask + chunks.stop)

    @cached_property
    def _first_mask(self) -> int:
        factors = 0
        if self.flags & lay.HAS_ROW_FACTORS:
            factors += lay.chunks_of(self.row_count)
        if self.flags & lay.HAS_COLUMN_FACTORS:
            factors += lay.chunks_of(self.column_count)
        return self._first + factors

    def _record(self, number: int) -> np.void:
        record: np.void = self._container.index.tables[self._task].segments[number]
        return record

    def _decode(self, decoder: _Decoder[_T], number: int, n: int) -> _T:
        return self._decode_run(decoder, range(number, number + 1), (n,))[0]

    def _decode_run(self, decoder: _Decoder[_T], numbers: range, sizes: Iterable[int]) -> list[_T]:
        """Planes of segments that follow each other, of so many bits each."""
        records = self._container.index.tables[self._task].segments[numbers.start : numbers.stop]
        fields = (records[field].tolist() for field in ("codec", "parameter", "count"))
        found = []
        for number, data, n, codec, parameter, count in zip(
            numbers, self._container.run(self._task, numbers), sizes, *fields, strict=True
        ):
            try:
                found.append(decoder(codec, parameter, data, n, count))
            except PayloadError as error:
                raise self._wrong(number, error) from error
        return found

    def _array(self, number: int, nbytes: int) -> NDArray[np.uint8]:
        data = self.stored(number)
        try:
            return array.decode(int(self._record(number)["codec"]), data, nbytes)
        except PayloadError as error:
            raise self._wrong(number, error) from error

    def _wrong(self, number: int, error: PayloadError) -> FormatError:
        return FormatError(
            rule=error.rule,
            file=str(self._container.path),
            offset=int(self._record(number)["offset"]),
            field=f"{table_name(self._task)}.segments[{number}]",
            expected=error.expected,
            found=error.found,
        )


class SharedArray(Entry):
    """An array that belongs to no task: read as a dense entry, with the digest of a tensor (section 11.1)."""

    @property
    def role(self) -> lay.SharedRole:
        """What it is for."""
        return lay.SharedRole(int(self._container.index.shared.roles[self.number]))

    @property
    def sha256(self) -> bytes | None:
        """Digest of its bytes as recorded; every such array has one."""
        digest: bytes = self._container.index.shared.arrays.records["sha256"][self.number].tobytes()
        return digest

    def data(self, chunk: int) -> NDArray[np.uint8]:
        """Bytes of a chunk. Raises FormatError for coefficients that are not finite."""
        data = super().data(chunk)
        if self.role is lay.SharedRole.COEFFICIENTS and not np.isfinite(data.view(self.dtype.storage)).all():
            error = PayloadError(rule="TSW-705", expected="finite coefficients", found="NaN or infinity")
            raise self._wrong(self._first + chunk, error)
        return data

    def digest(self) -> ContentDigest:
        """The digest of its bytes before that, which `content` gives."""
        return hashlib.sha256()

    @property
    def _digest_rule(self) -> tuple[str, str]:
        return "TSW-804", f"shared.tensors[{self.number}]"
