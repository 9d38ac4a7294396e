"""Small files for the tests of the reference reader, from drafts of which every field can be set wrong.

`Draft()` is a valid file: base tensors `a` (F32, 2 x 5), `b` (F16, 4) and `c` (U8, 3), an alias `d` of `a`, an extra
tensor `x` (I32, 2), and a task `t` that changes a (with factors), replaces b, removes c and adds x. No digests.
"""

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tsw_reference.crc32c import crc32c


@dataclass(frozen=True)
class Raw:
    """Bytes to stand in the index as they are."""

    data: bytes


def pack(value: Any) -> bytes:
    """Canonical MessagePack, but maps keep their order."""
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, int):
        for limit, first, size in ((128, None, 1), (1 << 8, 0xCC, 1), (1 << 16, 0xCD, 2), (1 << 32, 0xCE, 4)):
            if value < limit:
                return (b"" if first is None else bytes([first])) + value.to_bytes(size, "big")
        return b"\xcf" + value.to_bytes(8, "big")
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return _head(len(data), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + data
    if isinstance(value, bytes):
        return _head(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, list):
        return _head(len(value), 0x90, 16, (None, 0xDC, 0xDD)) + b"".join(map(pack, value))
    members = b"".join(pack(key) + pack(item) for key, item in value.items())
    return _head(len(value), 0x80, 16, (None, 0xDE, 0xDF)) + members


def _head(length: int, fixed: int, fixed_below: int, firsts: tuple[int | None, int | None, int | None]) -> bytes:
    if length < fixed_below:
        return bytes([fixed + length])
    for first, size in zip(firsts, (1, 2, 4), strict=True):
        if first is not None and length < 1 << (8 * size):
            return bytes([first]) + length.to_bytes(size, "big")
    raise ValueError(length)


def tensor(
    name: bytes | str,
    dtype: int,
    *shape: int,
    flags: int = 0,
    sampled: bytes = bytes(8),
    sha256: bytes = bytes(32),
    ndim: int | None = None,
) -> dict[str, Any]:
    name = name.encode() if isinstance(name, str) else name
    ndim = len(shape) if ndim is None else ndim
    return {
        "name": name,
        "shape": shape,
        "record": [len(name), dtype, ndim, flags, sampled, sha256],
    }


def segment(role: int, codec: int, count: int, payload: bytes, parameter: int = 0, **wrong: int) -> dict[str, Any]:
    return {"role": role, "codec": codec, "count": count, "payload": payload, "parameter": parameter, **wrong}


def entry(number: int, kind: int, dtype: int, segments: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"tensor": number, "kind": kind, "dtype": dtype, "segments": segments, **fields}


def vector(
    name: str, dtype: int, *shape: int, payload: bytes, flags: int = 1, role: int = 1, **fields: Any
) -> dict[str, Any]:
    """A shared vector, or with another role another array, of one chunk or none; `sha256` may be set wrong."""
    fields.setdefault("sha256", hashlib.sha256(payload).digest())
    count = math.prod(shape)
    parts = [segment(5, 16, count, payload)] if count else []
    return {**tensor(name, dtype, *shape, flags=flags, **fields), "role": role, "segments": parts}


def features(name: str, *shape: int, dtype: int = 12, **fields: Any) -> dict[str, Any]:
    """Samples of a task."""
    size = math.prod(shape) * (2 if dtype == 10 else 4)
    return vector(name, dtype, *shape, **{"payload": bytes(size), "role": 2} | fields)


def coefficients(name: str, *rows: tuple[float, ...], **fields: Any) -> dict[str, Any]:
    """The elements of a table, a tuple for each of its rows."""
    payload = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
    return vector(name, 12, len(rows), len(rows[0]), **{"payload": payload, "role": 3} | fields)


def table(rows: tuple[int, ...], tasks: list[str], **clamp: bytes) -> dict[str, Any]:
    """The map of a table."""
    return {**clamp, "rows": struct.pack(f"<{len(rows)}I", *rows), "tasks": tasks}


def masked(number: int, dtype: int, **fields: Any) -> dict[str, Any]:
    """The mask of the specification's worked example over a shared vector."""
    parts = [segment(1, 2, 4, b"\x19\x02")]
    return entry(number, 2, dtype, parts, **{"knob": struct.pack("<f", 1.0), "active": 4, **fields})


def task(name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "entries": entries}


ROWS = struct.pack("<2e", 1.0, 0.5)
COLUMNS = struct.pack("<5e", 1.0, 2.0, 3.0, -4.0, 0.25)


def ternary() -> dict[str, Any]:
    """The mask and signs of the specification's worked example, with factors."""
    segments = [
        segment(3, 16, 2, ROWS),
        segment(4, 16, 5, COLUMNS),
        segment(1, 2, 4, b"\x19\x02"),
        segment(2, 2, 2, b"\x0a"),
    ]
    return entry(0, 1, 12, segments, knob=struct.pack("<f", 0.5), factor_dtype=2, flags=6, active=4)


def _entries() -> list[dict[str, Any]]:
    return [
        ternary(),
        entry(1, 3, 10, [segment(5, 16, 4, bytes(range(8)))]),
        entry(2, 4, 2, []),
        entry(3, 3, 7, [segment(5, 16, 2, bytes(range(8)))]),
    ]


@dataclass
class Draft:
    """A file before it is bytes."""

    base: list[dict[str, Any]] = field(
        default_factory=lambda: [tensor("a", 12, 2, 5), tensor("b", 10, 4), tensor("c", 2, 3)]
    )
    extra: list[dict[str, Any]] = field(default_factory=lambda: [tensor("x", 7, 2)])
    aliases: dict[str, Any] = field(default_factory=lambda: {"d": 0})
    tasks: list[dict[str, Any]] = field(default_factory=lambda: [task("t", _entries())])
    shared: list[dict[str, Any]] = field(default_factory=list)
    router: dict[str, Any] | None = None
    tables: dict[str, Any] = field(default_factory=dict)
    profile: str = "archive"
    frame: dict[str, Any] = field(default_factory=dict)
    """Fields of prologue and trailer that are not to be what they should."""
    edit: Callable[[dict[str, Any]], object] | None = None
    """Changes the index document before it is encoded."""
    tail: bytes = b""
    """Bytes behind the index document, in the index."""
    padding: bytes = b"\0"
    gap: bytes = b""
    """Bytes between the last segment and the index."""

    def entry(self, number: int) -> dict[str, Any]:
        return self.tasks[0]["entries"][number]

    def segment(self, number: int, place: int) -> dict[str, Any]:
        return self.entry(number)["segments"][place]

    def build(self) -> bytes:
        body, of_shared = self._segments(b"", self.shared)
        maps = []
        for one in self.tasks:
            entries = b""
            for record in one["entries"]:
                entries += struct.pack(
                    "<IBBBB4sIQ32s",
                    record["tensor"],
                    record["kind"],
                    record["dtype"],
                    record.get("factor_dtype", 0),
                    record.get("flags", 0),
                    record.get("knob", bytes(4)),
                    record.get("vector", 0),
                    record.get("active", 0),
                    record.get("sha256", bytes(32)),
                )
            body, segments = self._segments(body, one["entries"])
            maps.append(
                {"checkpoint": {}, "entries": entries, "metadata": {}, "name": one["name"], "recipe": {}}
                | {"segments": segments}
            )
        if self.profile == "mapped":
            body += self.padding * (-len(body) % 64)
        document = {
            "base": {"aliases": self.aliases, **_tensor_list(self.base)},
            "extra": _tensor_list(self.extra),
            "metadata": {},
            "profile": self.profile,
            "tasks": maps,
            "writer": "test",
        }
        if self.shared:
            roles = bytes(one["role"] for one in self.shared)
            more = {"shared": {**_tensor_list(self.shared), "roles": roles, "segments": of_shared}}
            document = dict(sorted((document | more).items()))
            document["shared"] = dict(sorted(more["shared"].items()))
        if self.router is not None:
            document = dict(sorted((document | {"router": self.router}).items()))
        if self.tables:
            document = dict(sorted((document | {"coefficients": self.tables}).items()))
        if self.edit is not None:
            self.edit(document)
        return seal(pack(document) + self.tail, body + self.gap, **self.frame)

    def _segments(self, body: bytes, owners: list[dict[str, Any]]) -> tuple[bytes, bytes]:
        """The body with the segments of entries or shared arrays, and their records."""
        records = b""
        for part in (part for owner in owners for part in owner["segments"]):
            payload = part["payload"]
            step = (4096 if len(payload) >= 65536 else 64) if self.profile == "mapped" else 1
            body += self.padding * (-len(body) % step if step == 64 else -(len(body) + 64) % step)
            offset = part.get("offset", 64 + len(body))
            body += payload
            records += struct.pack(
                "<QIIIBBBB",
                offset,
                part.get("length", len(payload)),
                part.get("crc32c", crc32c(payload)),
                part["count"],
                part["role"],
                part["codec"],
                part["parameter"],
                part.get("reserved", 0),
            )
        return body, records


def _tensor_list(tensors: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "dims": b"".join(struct.pack(f"<{len(one['shape'])}Q", *one["shape"]) for one in tensors),
        "names": b"".join(one["name"] for one in tensors),
        "tensors": b"".join(struct.pack("<HBBI8s32s", *one["record"]) for one in tensors),
    }


def seal(index: bytes, body: bytes, **wrong: Any) -> bytes:
    """Prologue, body, index and trailer; `wrong` has fields to set otherwise, those of the trailer with `trailer_`."""
    encoding = wrong.get("index_encoding", 0)
    stored = wrong.get("stored", index)
    fields = {
        "index_offset": 64 + len(body),
        "index_length": len(stored),
        "index_decoded_length": len(index),
        "index_encoding": encoding,
        "reserved": bytes(3),
    }
    front = fields | {"major": 1, "minor": 0, "required": 0, "optional": 0} | wrong
    front.setdefault("file_length", 128 + len(body) + len(stored))
    prologue = struct.pack(
        "<8sHHIQQQQQB3s",
        front.get("magic", bytes.fromhex("895453570D0A1A0A")),
        front["major"],
        front["minor"],
        front["index_decoded_length"],
        front["required"],
        front["optional"],
        front["file_length"],
        front["index_offset"],
        front["index_length"],
        front["index_encoding"],
        front["reserved"],
    )
    prologue += struct.pack("<I", wrong.get("crc32c", crc32c(prologue)))
    back = fields | {key.removeprefix("trailer_"): value for key, value in wrong.items() if key.startswith("trailer_")}
    trailer = struct.pack(
        "<QQIB3s32s",
        back["index_offset"],
        back["index_length"],
        back["index_decoded_length"],
        back["index_encoding"],
        back["reserved"],
        back.get("sha256", hashlib.sha256(stored).digest()),
    )
    trailer += struct.pack("<I", back.get("crc32c", crc32c(trailer)))
    return prologue + body + stored + trailer + back.get("end_magic", bytes.fromhex("5753540A"))
