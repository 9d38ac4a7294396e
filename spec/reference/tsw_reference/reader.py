"""A whole file, from its bytes: the sections of the specification in their order, every rule checked."""

from __future__ import annotations

import math
import struct

from .codecs import unpack
from .coefficients import read_map, read_tables
from .crc32c import crc32c
from .digest import content_digest, entry_digest, shared_digest
from .errors import BrokenError, shown
from .fields import Fields
from .frame import Frame, read_frame
from .layout import BITMAP, COEFFICIENTS, COLUMN_FACTORS, PLANES, PROLOGUE, RAW, ROW_FACTORS, align
from .model import Base, Entry, File, Segment, Shared
from .msgpack import Value, decode
from .router import KEYS as ROUTER_KEYS
from .router import read_router
from .shared import MORE_KEYS, check_used, read_shared, read_shared_segments
from .tasks import fill_tasks, read_names
from .tensors import LIST_KEYS, check_aliases, check_wide_names, read_lists

_FINITE_FACTORS = {2: "e", 3: "f"}
"""struct's letters for the factor dtypes that have values which are not finite."""


def read(data: bytes) -> File:
    """Decode a file and check every rule on files; raises BrokenError for the first one that is broken."""
    frame = read_frame(data)
    file = _read_index(data, frame)
    _check_places(file, frame)
    _check_contents(file, frame)
    _check_digests(file)
    return file


def _read_index(data: bytes, frame: Frame) -> File:
    stored = data[frame.index_offset : frame.index_offset + frame.index_length]
    if frame.index_encoding == 1:
        document = _decode(unpack(stored, frame.index_decoded_length, "index", frame.index_offset), None)
    else:
        document = _decode(stored, frame.index_offset)
    newer = frame.newer
    required = {"base", "extra", "metadata", "profile", "tasks", "writer"}
    top = Fields(document, "index", required, {"coefficients", "content_id", "router", "shared"}, newer)
    base_map = Fields(top.map["base"], "index, base", LIST_KEYS | {"aliases"}, {"id", "revision"}, newer)
    extra_map = Fields(top.map["extra"], "index, extra", LIST_KEYS, set(), newer)
    shared_map = None
    if "shared" in top.map:
        shared_map = Fields(top.map["shared"], "index, shared", LIST_KEYS | MORE_KEYS, set(), newer)
    router_map = None
    if "router" in top.map:
        router_map = Fields(top.map["router"], "index, router", ROUTER_KEYS, set(), newer)
    table_maps = read_map(top.map["coefficients"], newer) if "coefficients" in top.map else {}
    content_id = top.binary("content_id") if "content_id" in top.map else None
    if content_id is not None and len(content_id) != 32:
        raise BrokenError("TSW-307", "32 bytes", str(len(content_id)), "index, content_id")
    metadata, writer, values = top.texts("metadata"), top.text("writer"), top.array("tasks")
    profile = top.text("profile")
    if profile not in ("archive", "mapped"):
        raise BrokenError("TSW-308", "the profile archive or mapped", shown(profile), "index, profile")
    aliases = base_map.numbers("aliases")
    base_id, revision = base_map.optional_text("id"), base_map.optional_text("revision")
    tensors, extra, of_shared = read_lists(base_map, extra_map, shared_map, newer)
    check_aliases(aliases, tensors)
    base = Base(base_id, revision, aliases, tensors)
    tasks, task_maps = read_names(values, newer)
    names = {task.name for task in tasks}
    shared = [] if shared_map is None else read_shared(shared_map, of_shared, tensors, names)
    router = read_router(router_map, shared)
    tables = read_tables(table_maps, shared, tensors, tasks)
    fill_tasks(tasks, task_maps, tensors, extra, shared, newer)
    if shared_map is not None:
        check_used(shared, tasks)
        read_shared_segments(shared_map, shared, newer)
    check_wide_names([*(t.name for t in (*tensors, *extra, *of_shared)), *aliases, *names])
    return File(
        data,
        frame.minor,
        profile,
        writer,
        metadata,
        content_id,
        base,
        extra,
        shared,
        tasks,
        router,
        tables,
    )


def _decode(document: bytes, offset: int | None) -> Value:
    """Decode the index; say of what is wrong where it is in the file, or in the decoded index of an encoded one."""
    try:
        return decode(document)
    except BrokenError as error:
        if offset is None or error.offset is None:
            raise BrokenError(error.rule, error.expected, error.found, "decoded index", error.offset) from None
        raise BrokenError(error.rule, error.expected, error.found, error.where, error.offset + offset) from None


def _all_segments(file: File) -> list[Segment]:
    return [segment for holder in file.holders() for segment in holder.segments]


def _check_places(file: File, frame: Frame) -> None:
    """Section 8: the segments fill the file without a hole, and are as the profile wants them."""
    mapped = file.profile == "mapped"
    end = PROLOGUE
    for segment in _all_segments(file):
        step = (4096 if segment.length >= 65536 else 64) if mapped else 1
        if segment.offset != align(end, step):
            raise BrokenError("TSW-603", f"offset {align(end, step)}", str(segment.offset), segment.where)
        end = segment.offset + segment.length
        wanted = BITMAP if segment.role in PLANES else RAW
        if mapped and segment.codec != wanted:
            found = f"codec {segment.codec}"
            raise BrokenError("TSW-605", f"codec {wanted} in the profile mapped", found, segment.where)
    wanted = align(end, 64 if mapped else 1)
    if frame.index_offset != wanted:
        raise BrokenError("TSW-604", f"an index at {wanted}", str(frame.index_offset), "prologue", 40)


def _check_contents(file: File, frame: Frame) -> None:
    """Rules of 7xx: each segment alone, and the padding before it."""
    end = PROLOGUE
    for holder in file.holders():
        for segment in holder.segments:
            _check_padding(file.data, end, segment.offset)
            end = segment.offset + segment.length
            computed = crc32c(memoryview(file.data)[segment.offset : end])
            if computed != segment.crc32c:
                expected, found = f"CRC32C {segment.crc32c:08X}", f"{computed:08X}"
                raise BrokenError("TSW-701", expected, found, segment.where, segment.offset)
            content = file.content(segment)
            if isinstance(holder, Entry) and segment.role in (ROW_FACTORS, COLUMN_FACTORS):
                _check_finite("factors", _FINITE_FACTORS.get(holder.factor_dtype), segment, content)
            elif isinstance(holder, Shared) and holder.role == COEFFICIENTS:
                _check_finite("coefficients", "f", segment, content)
    _check_padding(file.data, end, frame.index_offset)


def _check_padding(data: bytes, start: int, end: int) -> None:
    rest = data[start:end].lstrip(b"\0")
    if rest:
        raise BrokenError("TSW-702", "zero padding", f"the byte {rest[0]:02X}", "padding", end - len(rest))


def _check_finite(what: str, letter: str | None, segment: Segment, content: bytes) -> None:
    """`letter`: struct's of the elements, None where they cannot be anything else."""
    if letter is None:
        return
    for number, element in enumerate(struct.unpack(f"<{segment.count}{letter}", content)):
        if not math.isfinite(element):
            raise BrokenError("TSW-705", f"finite {what}", f"{element} as number {number}", segment.where)


def _check_digests(file: File) -> None:
    """Rules of 8xx."""
    for array in file.shared:
        digest = shared_digest(file, array)
        if digest != array.sha256:
            raise BrokenError("TSW-804", f"the SHA-256 {array.sha256.hex()}", digest.hex(), array.where)
    for entry in file.all_entries():
        if entry.sha256 is not None:
            digest = entry_digest(file, entry)
            if digest != entry.sha256:
                raise BrokenError("TSW-801", f"the entry digest {entry.sha256.hex()}", digest.hex(), entry.where)
    if file.content_id is None:
        return
    for tensor in file.base.tensors:
        if tensor.sha256 is None:
            found = f"none of base tensor {shown(tensor.name)}"
            raise BrokenError("TSW-803", "the sha256 of all base tensors beside a content_id", found, "index")
    for entry in file.all_entries():
        if entry.sha256 is None:
            raise BrokenError("TSW-803", "the sha256 of all entries beside a content_id", "none", entry.where)
    digest = content_digest(file)
    if digest != file.content_id:
        raise BrokenError("TSW-802", f"the content id {file.content_id.hex()}", digest.hex(), "index, content_id")
