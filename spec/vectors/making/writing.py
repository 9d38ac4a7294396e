"""A file's bytes: layout, index, prologue and trailer; and the hooks by which a vector breaks one rule and no other.

    content    draft before it is placed: records and encoded segments; lengths, offsets and CRC32C follow from it
    placed     draft after that: any field of any record, the padding
    document   the index as plain values, tables as bytes
    index      the index's bytes before they are stored
    stored     the index's bytes as stored
    prologue, trailer   fields by name, before their CRC32C is made (a `crc32c` given stands)
    whole      the file's bytes

Everything after a hook is made anew: so all else stays right.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import crc32c
import msgpack

from making.model import DTYPES, KINDS, ROLES, SHARED_ROLES, File, Segment

PROLOGUE = struct.Struct("<8sHHIQQQQQB3s")
TRAILER = struct.Struct("<QQIB3s32s")
TENSOR = struct.Struct("<HBBI8s32s")
ENTRY = struct.Struct("<IBBBBIIQ32s")
SEGMENT = struct.Struct("<QIIIBBBB")
MAGIC = bytes.fromhex("895453570D0A1A0A")
END_MAGIC = bytes.fromhex("5753540A")

Record: TypeAlias = dict[str, Any]
Hook: TypeAlias = Callable[["Draft"], None]
Change: TypeAlias = Callable[[bytes], bytes]


@dataclass
class Draft:
    """A file on its way. Records by list (`base`, `extra`, `shared` if there is such) and by task; `payloads` beside the
    segments' records; `roles`, `shared_segments` and `shared_payloads` are those of the shared arrays."""

    lists: dict[str, list[Record]]
    names: dict[str, bytes]
    dims: dict[str, bytes]
    entries: list[list[Record]]
    segments: list[list[Record]]
    payloads: list[list[bytes]]
    roles: bytearray
    shared_segments: list[Record]
    shared_payloads: list[bytes]
    body: bytearray = field(default_factory=bytearray)  # from byte 64 to the index


def write(
    file: File,
    *,
    content: Hook | None = None,
    placed: Hook | None = None,
    document: Callable[[dict[str, Any]], None] | None = None,
    index: Change | None = None,
    stored: Change | None = None,
    prologue: Mapping[str, Any] | None = None,
    trailer: Mapping[str, Any] | None = None,
    whole: Change | None = None,
) -> bytes:
    """The bytes of a file. `stored` given: the index is encoding 1, and `stored` compresses it."""
    draft = _draft(file)
    if content:
        content(draft)
    _place(draft, mapped=file.profile == "mapped")
    if placed:
        placed(draft)
    doc = _document(file, draft)
    if document:
        document(doc)
    plain = encode(doc)
    if index:
        plain = index(plain)
    kept = stored(plain) if stored else plain
    common = {
        "index_offset": 64 + len(draft.body),
        "index_length": len(kept),
        "index_decoded_length": len(plain),
        "index_encoding": int(stored is not None),
        "reserved": bytes(3),
    }
    head = {
        "magic": MAGIC,
        "major": 1,
        "minor": file.minor,
        "required_features": 0,
        "optional_features": 0,
        "file_length": 128 + len(draft.body) + len(kept),
        **common,
        **(prologue or {}),
    }
    shared = {name: head[name] for name in common if name != "reserved"}
    tail = {
        **common,
        **shared,
        "index_sha256": hashlib.sha256(kept).digest(),
        "end_magic": END_MAGIC,
        **(trailer or {}),
    }
    out = _prologue(head) + bytes(draft.body) + kept + _trailer(tail)
    return whole(out) if whole else out


def _prologue(f: Mapping[str, Any]) -> bytes:
    names = ("magic", "major", "minor", "index_decoded_length", "required_features", "optional_features")
    names += ("file_length", "index_offset", "index_length", "index_encoding", "reserved")
    out = PROLOGUE.pack(*(f[name] for name in names))
    return out + struct.pack("<I", f.get("crc32c", crc32c.crc32c(out)))


def _trailer(f: Mapping[str, Any]) -> bytes:
    names = ("index_offset", "index_length", "index_decoded_length", "index_encoding", "reserved", "index_sha256")
    out = TRAILER.pack(*(f[name] for name in names))
    return out + struct.pack("<I", f.get("crc32c", crc32c.crc32c(out))) + bytes(f["end_magic"])


def _draft(file: File) -> Draft:
    lists: dict[str, list[Record]] = {}
    names, dims = {}, {}
    vectors = [replace(vector.tensor, sha256=True, sampled=False) for vector in file.shared]
    extra = [tensor.bare() for tensor in file.extra]
    for where, tensors in (("base", file.tensors), ("extra", extra), ("shared", vectors)):
        if where == "shared" and not tensors:
            continue
        lists[where] = [
            {
                "name_length": len(t.name.encode()),
                "dtype": DTYPES[t.dtype][0],
                "ndim": len(t.shape),
                "flags": t.sha256 + 2 * t.sampled,
                "sampled": t.sampled_digest if t.sampled else bytes(8),
                "sha256": t.digest if t.sha256 else bytes(32),
            }
            for t in tensors
        ]
        names[where] = b"".join(t.name.encode() for t in tensors)
        dims[where] = b"".join(struct.pack("<Q", size) for t in tensors for size in t.shape)
    encoded = [segment for vector in file.shared for segment in vector.segments()]
    draft = Draft(
        lists,
        names,
        dims,
        entries=[],
        segments=[],
        payloads=[],
        roles=bytearray(SHARED_ROLES[one.role] for one in file.shared),
        shared_segments=[_segment(segment) for segment in encoded],
        shared_payloads=[segment.data for segment in encoded],
    )
    for task in file.tasks:
        entries, segments, payloads = [], [], []
        for entry in file.ordered(task):
            fields = entry.fields
            digest = entry.sha256
            entries.append(
                {
                    "tensor": file.number(entry.tensor),
                    "kind": KINDS[entry.kind],
                    "dtype": fields["dtype"],
                    "factor_dtype": fields["factor_dtype"],
                    "flags": fields["flags"] | (digest is not None),
                    "knob": fields["knob"],
                    "vector": file.vector_number(entry) or 0,
                    "active": fields["active"],
                    "sha256": digest or bytes(32),
                }
            )
            for made in entry.segments():
                segments.append(_segment(made))
                payloads.append(made.data)
        draft.entries.append(entries)
        draft.segments.append(segments)
        draft.payloads.append(payloads)
    return draft


def _segment(made: Segment) -> Record:
    """Its record, of which place and checksum are set later."""
    return {
        "offset": 0,
        "length": 0,
        "crc32c": 0,
        "count": made.count,
        "role": ROLES[made.role],
        "codec": made.codec,
        "parameter": made.parameter,
        "reserved": 0,
    }


def _place(draft: Draft, *, mapped: bool) -> None:
    tables = zip((draft.shared_segments, *draft.segments), (draft.shared_payloads, *draft.payloads), strict=True)
    for records, payloads in tables:
        for record, data in zip(records, payloads, strict=True):
            _pad(draft.body, (4096 if len(data) >= 65536 else 64) if mapped else 1)
            record.update(offset=64 + len(draft.body), length=len(data), crc32c=crc32c.crc32c(data))
            draft.body += data
    _pad(draft.body, 64 if mapped else 1)


def _pad(body: bytearray, alignment: int) -> None:
    body += bytes(-(64 + len(body)) % alignment)


def _table(form: struct.Struct, records: list[Record]) -> bytes:
    return b"".join(form.pack(*record.values()) for record in records)


def _document(file: File, draft: Draft) -> dict[str, Any]:
    lists: dict[str, dict[str, Any]] = {
        where: {"dims": draft.dims[where], "names": draft.names[where], "tensors": _table(TENSOR, records)}
        for where, records in draft.lists.items()
    }
    if "shared" in lists:
        lists["shared"].update(roles=bytes(draft.roles), segments=_table(SEGMENT, draft.shared_segments))
    lists["base"]["aliases"] = dict(file.alias_numbers)
    for key, value in (("id", file.id), ("revision", file.revision)):
        if value is not None:
            lists["base"][key] = value
    doc: dict[str, Any] = {
        **lists,
        "metadata": dict(file.metadata),
        "profile": file.profile,
        "tasks": [
            {
                "checkpoint": dict(task.checkpoint),
                "entries": _table(ENTRY, entries),
                "metadata": dict(task.metadata),
                "name": task.name,
                "recipe": dict(task.recipe),
                "segments": _table(SEGMENT, segments),
            }
            for task, entries, segments in zip(file.tasks, draft.entries, draft.segments, strict=True)
        ],
        "writer": file.writer,
    }
    if file.router is not None:
        doc["router"] = file.router.keys()
    if file.tables:
        doc["coefficients"] = {table.name: table.keys(file.base_numbers) for table in file.tables}
    if file.content_digest is not None:
        doc["content_id"] = file.content_digest
    return doc


def encode(value: Any) -> bytes:
    """Canonical MessagePack."""
    packed: bytes = msgpack.packb(_sorted(value), use_bin_type=True)
    return packed


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _sorted(value[key]) for key in sorted(value, key=lambda k: k.encode() if isinstance(k, str) else b"")
        }
    if isinstance(value, list):
        return [_sorted(member) for member in value]
    return value


def edit(table: str, number: int = 0, **fields: Any) -> Hook:
    """A hook that sets fields of a record of `base`, `extra`, `shared`, `shared_segments`, or the first task's `entries` or
    `segments`."""

    def change(draft: Draft) -> None:
        if table == "shared_segments":
            found = draft.shared_segments
        else:
            found = draft.lists[table] if table in draft.lists else getattr(draft, table)[0]
        found[number].update(fields)

    return change


def assign(*path: Any, value: Any) -> Callable[[Any], None]:
    """A change of the index: the value at a path of keys and numbers."""

    def change(doc: Any) -> None:
        for step in path[:-1]:
            doc = doc[step]
        doc[path[-1]] = value

    return change


def splice(old: bytes, new: bytes) -> Change:
    """A change of the one place where `old` is. Raises ValueError where that is not one place."""

    def change(data: bytes) -> bytes:
        if data.count(old) != 1:
            raise ValueError(f"{old!r} is in the bytes {data.count(old)} times, expected once")
        return data.replace(old, new)

    return change
