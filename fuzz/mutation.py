"""Mutations that know the format, in plain Python: custom mutators for Atheris, and all that the random engine has.

    of_bytes     any bytes: the kinds of change that fuzzers make
    of_document  a MessagePack document: a node of its tree, a field of a record
    of_file      a whole .tsw file, with right checksums most of the time
    of_zip       the members of a zip file, stored anew

All take bytes and give bytes, from a `random.Random` alone. `raw` is what changes plain bytes: `of_bytes`, or the fuzzer's own.
"""

from __future__ import annotations

import contextlib
import io
import random
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from fuzz import parts
from fuzz.parts import Parts, Table
from tswitch_format import _layout as lay

Raw = Callable[[bytes, random.Random], bytes]
Mutator = Callable[[bytes, random.Random, Raw], bytes]

_SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 20, 21, 63, 64, 127, 128, 255, 256, 1024, 1025, 4095, 4096, 65535, 65536)
_LARGE = (1 << 20, 1 << 26, 1 << 31, 1 << 32, 1 << 48, 1 << 62, 1 << 63, (1 << 64) - 2)
_EDGES = (*_SMALL, *(n + d for n in _LARGE for d in (-1, 0, 1)))
_TEXTS = (
    "",
    "a",
    "\0",
    "é",
    "é",
    "\u202e",
    "\u2028",
    "x" * 1025,
    "archive",
    "mapped",
    "euclidean",
    "cosine",
    "w",
    "\ufffd",
    "\U0001f600",
    "\u0661",
)


def of_bytes(data: bytes, rng: random.Random, raw: Raw | None = None) -> bytes:  # a Raw and a Mutator
    """One to four small changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 64)))
        match rng.randrange(7):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                out[at : at + size] = b""
            case 3:
                out[at:at] = rng.randbytes(size)
            case 4:
                begin = rng.randrange(len(out) + 1)
                out[at:at] = out[begin : begin + size]
            case 5:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(_EDGES) & ((1 << 8 * width) - 1)
                out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 6:
                begin = rng.randrange(len(out) + 1)
                out[at : at + size] = out[begin : begin + size]
    return bytes(out)


def of_document(data: bytes, rng: random.Random, raw: Raw) -> bytes:
    """A change of the tree, packed anew; now and then of the bytes as they are."""
    if rng.random() < 0.3:
        return raw(data, rng)
    try:
        document = parts.parse(data)
        change_tree(document, rng, raw)
        return parts.pack(document)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return raw(data, rng)


def change_tree(document: dict[str, Any], rng: random.Random, raw: Raw) -> None:
    """Change one node, or a record of one table."""
    where: Any = document
    key: Any = None
    for _ in range(rng.randrange(1, 6)):
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        if not keys:
            break
        key = rng.choice(keys)
        if not isinstance(where[key], (dict, list)):
            break
        if rng.random() < 0.1:
            break
        where = where[key]
    if (
        key is None
        or (isinstance(where, dict) and key not in where)
        or (isinstance(where, list) and rng.random() < 0.1)
    ):
        _change_members(where, rng)
        return
    if isinstance(where, list):
        key = rng.randrange(len(where))
    where[key] = _changed(where, key, rng, raw)


def _change_members(where: Any, rng: random.Random) -> None:
    if isinstance(where, list):
        if where and rng.random() < 0.5:
            where.insert(rng.randrange(len(where) + 1), rng.choice(where))
        elif where:
            where.pop(rng.randrange(len(where)))
    elif where and rng.random() < 0.4:
        where.pop(rng.choice(list(where)))
    else:
        where[rng.choice(_TEXTS)] = rng.choice((0, 1, "", b"", {}, [], None, -1, 1.5, True, *_TEXTS))


_RECORDS = {
    "tensors": lay.TENSOR,
    "entries": lay.ENTRY,
    "segments": lay.SEGMENT,
    "dims": np.dtype([("dim", "<u8")]),
    "rows": np.dtype([("row", "<u4")]),
    "clamp": np.dtype([("bound", "<f4")]),
}


def _changed(where: Any, key: Any, rng: random.Random, raw: Raw) -> Any:
    value = where[key]
    if rng.random() < 0.03:
        return rng.choice((0, 1, "", b"", {}, [], None, -1, 1.5, True, *_TEXTS))
    if isinstance(value, bytes):
        record = _RECORDS.get(key) if isinstance(key, str) else None
        if record is not None and len(value) >= record.itemsize and rng.random() < 0.85:
            table = np.frombuffer(value[: len(value) // record.itemsize * record.itemsize], record).copy()
            return change_table(table, rng).tobytes()
        return raw(value, rng)
    if isinstance(value, str):
        return rng.choice((rng.choice(_TEXTS), raw(value.encode(), rng).decode("utf-8", "replace")))
    if isinstance(value, int):
        return rng.choice(_EDGES)
    if isinstance(value, (dict, list)):
        _change_members(value, rng)
    return value


def change_table(table: Table, rng: random.Random) -> Table:
    """A field of a record, or the order of the records."""
    at = rng.randrange(len(table))
    match rng.randrange(12):
        case 0:
            return np.delete(table, at)
        case 1:
            return np.insert(table, at, table[rng.randrange(len(table))])
        case 2:
            other = rng.randrange(len(table))
            table[[at, other]] = table[[other, at]]
        case _:
            _change_field(table, at, rng)
    return table


def _change_field(table: Table, at: int, rng: random.Random) -> None:
    name = rng.choice(table.dtype.names or ())
    kind = table.dtype[name]
    raw = table[name][at].tobytes()
    size = kind.itemsize
    match rng.randrange(4):
        case 0:
            number = int.from_bytes(raw, "little") + rng.choice((-1, 1))
        case 1:
            number = rng.choice(_EDGES)
        case 2:
            number = int.from_bytes(raw, "little") ^ 1 << rng.randrange(8 * size)
        case _:
            number = int.from_bytes(table[name][rng.randrange(len(table))].tobytes(), "little")
    value = np.frombuffer((number % (1 << 8 * size)).to_bytes(size, "little"), kind)
    table[name][at] = value[0]


def of_file(data: bytes, rng: random.Random, raw: Raw) -> bytes:
    """A change of the file's bytes, frame, index or payloads."""
    kind = rng.random()
    if kind < 0.1:
        return raw(data, rng)
    if kind < 0.2:
        return parts.sign_in_place(raw(data, rng))
    try:
        apart = Parts.of(data)
        for _ in range(rng.choice((1, 1, 1, 2))):
            _change_file(apart, rng, raw)
        return apart.build()
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, RecursionError):
        return parts.sign_in_place(raw(data, rng))


def _change_file(apart: Parts, rng: random.Random, raw: Raw) -> None:
    kind = rng.random()
    if kind < 0.4:
        change_tree(apart.document, rng, raw)
    elif kind < 0.75:
        change_payload(apart, rng, raw)
    elif kind < 0.8:
        apart.index = raw(parts.pack(apart.document), rng)
    elif kind < 0.87:
        apart.forget_digests()
    elif kind < 0.88:
        apart.sign_shared()
    elif kind < 0.9:
        apart.compressed = not apart.compressed
    elif kind < 0.93:
        apart.document["profile"] = rng.choice(lay.PROFILES)
    else:
        name = rng.choice([n for n in lay.PROLOGUE.names or () if n not in ("magic", "reserved", "crc32c")])
        size = lay.PROLOGUE[name].itemsize
        apart.frame[name] = rng.choice(_EDGES) % (1 << 8 * size)


def change_payload(apart: Parts, rng: random.Random, raw: Raw) -> None:
    """Other bytes, another codec, parameter or count for one segment; sums of counts follow most of the time."""
    owner = rng.choice([owner for owner in apart.owners() if apart.payloads_of(owner)])
    payloads = apart.payloads_of(owner)
    at = rng.randrange(len(payloads))
    table = apart.table(owner, "segments")
    match rng.randrange(6):
        case 0 | 1 | 2:
            payloads[at] = _changed_payload(payloads[at], rng, raw)
        case 3:
            table["codec"][at] = rng.choice(list(lay.Codec))
        case 4:
            table["parameter"][at] = rng.randrange(22)
        case _:
            _change_field(table[["count"]], at, rng)
    apart.put_table(owner, "segments", table)
    if owner == parts.SHARED:
        if rng.random() < 0.8:
            apart.sign_shared()
    elif rng.random() < 0.8:
        _fit_active(apart, owner)
    if rng.random() < 0.7:
        apart.forget_digests()


def _changed_payload(payload: bytes, rng: random.Random, raw: Raw) -> bytes:
    """Other bytes; of a zstd frame, also its content."""
    start = payload.find(bytes.fromhex("28B52FFD"))
    if start >= 0 and rng.random() < 0.6:
        with contextlib.suppress(ValueError):
            return payload[:start] + zstandard.compress(raw(parts.decompressed(payload[start:]), rng))
    return raw(payload, rng)


def _fit_active(apart: Parts, task: int) -> None:
    """Make `active` of entries with one mask each (as small tensors have) the count of that."""
    entries, segments = apart.table(task, "entries"), apart.table(task, "segments")
    masks = segments["count"][segments["role"] == lay.Role.MASK]
    switches = np.flatnonzero(np.isin(entries["kind"], lay.SWITCH_KINDS) & (entries["active"] > 0))
    if len(masks) == len(switches):
        entries["active"][switches] = masks
        apart.put_table(task, "entries", entries)


def of_zip(data: bytes, rng: random.Random, raw: Raw) -> bytes:
    """Another content or name of a member, or other bytes."""
    if rng.random() < 0.3:
        return raw(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()[:32]]
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        IndexError,
        zlib.error,
    ):
        return raw(data, rng)
    if not members:
        return raw(data, rng)
    at = rng.randrange(len(members))
    name, content = members[at]
    members[at] = (
        (name, raw(content, rng)) if rng.random() < 0.9 else (raw(name.encode(), rng).decode("latin-1"), content)
    )
    return zipped(members)


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    """A zip file with these members, stored as torch stores them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()
