"""A .tsw file taken apart, and put together again with right lengths, places and checksums.

Mutations between the two reach what lies behind the checksums, where those of a file's bytes would end.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from typing import Any, Self

import crc32c
import msgpack
import numpy as np
import zstandard
from numpy.typing import NDArray

from tswitch_format import _layout as lay

Table = NDArray[Any]
_MOST = 1 << 20  # bytes of a zstd frame's content
SHARED = -1  # in place of a task's number: the segments of the shared arrays


def canonical(value: Any) -> Any:
    """Maps with their keys in order; msgpack writes shortest forms by itself."""
    if isinstance(value, dict):
        return {
            key: canonical(value[key]) for key in sorted(value, key=lambda key: str(key).encode("utf-8", "replace"))
        }
    return [canonical(member) for member in value] if isinstance(value, list) else value


def parse(document: bytes) -> dict[str, Any]:
    """A MessagePack document that is a map. Raises ValueError."""
    try:
        value = msgpack.unpackb(document, strict_map_key=False, unicode_errors="replace")
    except (msgpack.UnpackException, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(value, dict):
        raise ValueError("no map")
    return value


def pack(document: Any) -> bytes:
    """The canonical bytes of a document."""
    packed: bytes = msgpack.packb(canonical(document), unicode_errors="replace")
    return packed


class Parts:
    """`document` (parsed), `payloads` (encoded bytes of each task's segments), `shared` (of those of the shared arrays) and
    fields of the frame, to be changed."""

    def __init__(self, document: dict[str, Any], payloads: list[list[bytes]], shared: list[bytes]) -> None:
        self.document = document
        self.payloads = payloads
        self.shared = shared
        self.index: bytes | None = None  # instead of the packed `document`
        self.compressed = False
        self.frame: dict[str, int] = {}  # fields of the prologue, instead of the right ones

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Take a file apart. Raises ValueError where that cannot be done."""
        if len(data) < 2 * lay.FRAME:
            raise ValueError("too short")
        head = np.frombuffer(data, lay.PROLOGUE, 1)[0]
        start, length = int(head["index_offset"]), int(head["index_length"])
        stored = data[start : start + length]
        if head["index_encoding"] == lay.Encoding.ZSTD:
            stored = decompressed(stored)
        document = parse(stored)
        tasks = document.get("tasks")
        payloads = []
        for owner in (document.get("shared"), *(tasks if isinstance(tasks, list) else ())):
            table = table_of(owner, "segments", lay.SEGMENT)
            places = zip(table["offset"].tolist(), table["length"].tolist(), strict=True)
            payloads.append([data[begin : begin + size] for begin, size in places])
        made = cls(document, payloads[1:], payloads[0])
        made.compressed = head["index_encoding"] == lay.Encoding.ZSTD
        if head["minor"]:
            made.frame["minor"] = int(head["minor"])
        return made

    def owners(self) -> list[int]:
        """Whose segments there are, as they lie in the file: SHARED, then the numbers of the tasks."""
        return [SHARED, *range(len(self.payloads))]

    def payloads_of(self, owner: int) -> list[bytes]:
        """The encoded bytes of the segments of a task or of SHARED, to be changed."""
        return self.shared if owner == SHARED else self.payloads[owner]

    def places(self) -> list[tuple[int, int]]:
        """Owner and number of every segment."""
        return [(owner, at) for owner in self.owners() for at in range(len(self.payloads_of(owner)))]

    def _map(self, owner: int) -> Any:
        return self.document.get("shared") if owner == SHARED else self.document["tasks"][owner]

    def table(self, owner: int, key: str) -> Table:
        """The "entries" or "segments" of a task, or the "segments" or "tensors" of SHARED; a copy."""
        record = {"entries": lay.ENTRY, "segments": lay.SEGMENT, "tensors": lay.TENSOR}[key]
        return table_of(self._map(owner), key, record)

    def put_table(self, owner: int, key: str, table: Table) -> None:
        """Give a task, or SHARED, another table."""
        self._map(owner)[key] = table.tobytes()

    def forget_digests(self) -> None:
        """Leave out the digests of entries and the content id, which would end the decoding of other content."""
        self.document.pop("content_id", None)
        for number in range(len(self.payloads)):
            entries = self.table(number, "entries")
            entries["flags"] &= ~np.uint8(lay.HAS_SHA256)
            entries["sha256"] = np.void(bytes(32))
            self.put_table(number, "entries", entries)

    def sign_shared(self) -> None:
        """Record of each shared array the SHA-256 of what its bytes decode to, as far as they do; the order stays as it is."""
        if not self.shared:
            return
        tensors, segments = self.table(SHARED, "tensors"), self.table(SHARED, "segments")
        dims = np.frombuffer(self.document["shared"]["dims"], "<u8")
        first = axis = 0
        for record in tensors:
            ndim = int(record["ndim"])
            chunks = lay.chunks_of(int(np.prod(dims[axis : axis + ndim], dtype=np.int64)))
            parts = zip(segments["codec"][first : first + chunks], self.shared[first : first + chunks], strict=False)
            with contextlib.suppress(ValueError):
                content = b"".join(decompressed(part) if codec == lay.Codec.ZSTD else part for codec, part in parts)
                record["sha256"] = np.void(hashlib.sha256(content).digest())
            first, axis = first + chunks, axis + ndim
        self.put_table(SHARED, "tensors", tensors)

    def build(self) -> bytes:
        """The file."""
        body = self._lay_out()
        document = pack(self.document) if self.index is None else self.index
        stored = zstandard.compress(document) if self.compressed else document
        common = {
            "index_offset": lay.FRAME + len(body),
            "index_length": len(stored),
            "index_decoded_length": len(document),
            "index_encoding": int(self.compressed),
        }
        head, tail = np.zeros((), lay.PROLOGUE), np.zeros((), lay.TRAILER)
        length = 2 * lay.FRAME + len(body) + len(stored)
        for name, value in ({"major": lay.MAJOR, "file_length": length} | common | self.frame).items():
            head[name] = value
        for name, value in common.items():
            tail[name] = self.frame.get(name, value)
        head["magic"] = lay.MAGIC
        return sign(head.tobytes() + body + stored + tail.tobytes(), stored)

    def _lay_out(self) -> bytes:
        mapped = self.document.get("profile") == "mapped"
        body = bytearray()
        for number in self.owners():
            table, payloads = self.table(number, "segments"), self.payloads_of(number)
            for record, payload in zip(table, payloads, strict=False):
                end = lay.FRAME + len(body)
                start = lay.align(end, lay.segment_alignment(len(payload), mapped=mapped))
                body += bytes(start - end) + payload
                record["offset"], record["length"] = start, len(payload)
                record["crc32c"] = crc32c.crc32c(payload)
            if len(table):
                self.put_table(number, "segments", table)
        end = lay.FRAME + len(body)
        return bytes(body) + bytes(lay.align(end, lay.MAPPED_SMALL if mapped else 1) - end)


def decompressed(frame: bytes) -> bytes:
    """The content of a zstd frame, whatever its form. Raises ValueError, also where it is large."""
    try:
        if zstandard.frame_content_size(frame) > _MOST:
            raise ValueError("too large")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=_MOST)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def table_of(task: Any, key: str, record: np.dtype[Any]) -> Table:
    """A table of a task's map, a copy; an empty one where there is no such."""
    raw = task.get(key) if isinstance(task, dict) else None
    raw = raw if isinstance(raw, bytes) else b""
    return np.frombuffer(raw[: len(raw) // record.itemsize * record.itemsize], record).copy()


def sign(data: bytes, index: bytes | None = None) -> bytes:
    """The same bytes with the magics, and with right checksums of prologue and trailer; of the index too if it is given."""
    if len(data) < 2 * lay.FRAME:
        return data
    head, tail = data[: lay.FRAME - 4], bytearray(data[-lay.FRAME :])
    if index is not None:
        tail[24:56] = hashlib.sha256(index).digest()
    tail[56:64] = struct.pack("<I", crc32c.crc32c(bytes(tail[:56]))) + lay.END_MAGIC
    head = lay.MAGIC + head[8:]
    return head + struct.pack("<I", crc32c.crc32c(head)) + data[lay.FRAME : -lay.FRAME] + bytes(tail)


def sign_in_place(data: bytes) -> bytes:
    """The same bytes with right checksums of prologue, trailer and of what the prologue says is the index."""
    if len(data) < 2 * lay.FRAME:
        return data
    start, length = struct.unpack_from("<QQ", data, 40)
    return sign(data, data[start : start + length] if start + length <= len(data) else b"")
