"""Section 11: the digests of tensors, entries and whole contents."""

from __future__ import annotations

import hashlib
import struct

from .layout import DENSE, HAS_SHA256, TERNARY
from .model import Entry, File, Router, Shared, Table


def tensor_digest(data: bytes) -> bytes:
    """Section 11.1."""
    return hashlib.sha256(data).digest()


def shared_digest(file: File, array: Shared) -> bytes:
    """The same of a shared array, chunk by chunk."""
    sha256 = hashlib.sha256()
    for segment in array.segments:
        sha256.update(file.content(segment))
    return sha256.digest()


def sampled_digest(data: bytes) -> bytes:
    """Section 11.2: all bytes of a small tensor, 16 blocks of a larger one."""
    length = len(data)
    sha256 = hashlib.sha256(struct.pack("<Q", length))
    if length <= 65536:
        sha256.update(data)
    else:
        for block in range(16):
            start = block * (length - 4096) // 15
            sha256.update(data[start : start + 4096])
    return sha256.digest()[:8]


def entry_digest(file: File, entry: Entry) -> bytes:
    """Section 11.3."""
    shape = entry.tensor.shape
    sha256 = hashlib.sha256(b"TSW1-entry\0")
    sha256.update(struct.pack(f"<BBB{len(shape)}Q", entry.kind, entry.dtype, len(shape), *shape))
    if entry.kind == TERNARY:
        sha256.update(entry.knob)
        sha256.update(struct.pack("<BB", entry.factor_dtype, entry.flags & ~HAS_SHA256))
        for segment in (*entry.row_factors, *entry.column_factors):
            sha256.update(file.content(segment))
        for mask, sign in zip(entry.masks, entry.signs, strict=True):
            sha256.update(file.content(mask))
            sha256.update(file.content(sign))
    elif entry.vector is not None:
        vector = entry.vector
        sha256.update(entry.knob + bytes([vector.tensor.dtype]) + vector.sha256)
        for mask in entry.masks:
            sha256.update(file.content(mask))
    elif entry.kind == DENSE:
        for segment in entry.data:
            sha256.update(file.content(segment))
    return sha256.digest()


def content_digest(file: File) -> bytes:
    """Section 11.4; the digests of all base tensors and entries must be there."""
    sha256 = hashlib.sha256(b"TSW1-content\0")
    sha256.update(struct.pack("<I", len(file.base.tensors)))
    for tensor in file.base.tensors:
        shape = tensor.shape
        sha256.update(_name(tensor.name))
        sha256.update(struct.pack(f"<BB{len(shape)}Q", tensor.dtype, len(shape), *shape))
        sha256.update(tensor.sha256 or b"")
    aliases = sorted(file.base.aliases.items(), key=lambda alias: alias[0].encode("utf-8"))
    sha256.update(struct.pack("<I", len(aliases)))
    for alias, number in aliases:
        sha256.update(_name(alias) + struct.pack("<I", number))
    tasks = sorted(file.tasks, key=lambda task: task.name.encode("utf-8"))
    sha256.update(struct.pack("<I", len(tasks)))
    for task in tasks:
        sha256.update(_name(task.name) + struct.pack("<I", len(task.entries)))
        for entry in task.entries:
            sha256.update(_name(entry.tensor.name) + (entry.sha256 or b""))
    if file.router is not None:
        sha256.update(_router(file, file.router))
    if file.tables:
        sha256.update(_tables(file.tables))
    return sha256.digest()


def _router(file: File, router: Router) -> bytes:
    features = file.features()
    out = struct.pack("<I", len(features))
    for array in features:
        tensor = array.tensor
        out += _name(tensor.name)
        out += struct.pack(f"<BB{len(tensor.shape)}Q", tensor.dtype, len(tensor.shape), *tensor.shape) + array.sha256
    out += struct.pack("<I", router.k)
    for text in (router.metric, router.extractor, router.preprocessing):
        encoded = text.encode("utf-8")
        out += struct.pack("<I", len(encoded)) + encoded
    return out


def _tables(tables: list[Table]) -> bytes:
    out = b"TSW1-coefficients\0" + struct.pack("<I", len(tables))
    for table in sorted(tables, key=lambda table: table.name.encode("utf-8")):
        out += _name(table.name) + struct.pack("<II", len(table.rows), len(table.tasks))
        out += b"".join(_name(tensor.name) for tensor in table.rows)
        out += b"".join(_name(task.name) for task in table.tasks)
        out += b"\0" if table.clamp is None else b"\1" + table.clamp
        out += table.array.sha256
    return out


def _name(name: str) -> bytes:
    encoded = name.encode("utf-8")
    return struct.pack("<H", len(encoded)) + encoded
