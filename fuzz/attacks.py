"""Files made to cost a reader as much as they can: each below 1 MiB, each aimed at one limit (`spec/security.md`).

`ATTACKS` names them; `python -m fuzz.attack_cost` measures what opening each one takes. All checksums are right, so that
nothing ends early: an attacker can compute them too.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np
import zstandard

from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c

LARGEST = 1 << 20  # bytes of such a file
_EMPTY = {"dims": b"", "names": b"", "tensors": b""}


def sealed(document: bytes, segments: bytes = b"", *, minor: int = 0) -> bytes:
    """A file of these segments and this decoded index, with the right lengths and checksums."""
    stored = _compressed(document, 9)
    if len(stored) + len(segments) + 2 * lay.FRAME >= LARGEST:
        stored = _compressed(document, 18)  # takes up to 10 s
    offset = lay.FRAME + len(segments)
    shared = (offset, len(stored), len(document))
    head = struct.pack(
        "<8sHHIQQQQQB3x", lay.MAGIC, 1, minor, shared[2], 0, 0, offset + len(stored) + 64, *shared[:2], 1
    )
    tail = struct.pack("<QQIB3x32s", *shared, 1, hashlib.sha256(stored).digest())
    return b"".join(
        (head, struct.pack("<I", crc32c(head)), segments, stored, tail, struct.pack("<I", crc32c(tail)), lay.END_MAGIC)
    )


def _compressed(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(data)


def document(**parts: Any) -> bytes:
    """The canonical bytes of an index that says nothing but `parts`."""
    whole: dict[str, Any] = {
        "base": {"aliases": {}, **_EMPTY},
        "extra": _EMPTY,
        "metadata": {},
        "profile": "archive",
        "tasks": [],
        "writer": "",
    }
    whole |= parts
    if "shared" in whole:
        whole["shared"] = dict(sorted(whole["shared"].items()))
    packed: bytes = msgpack.packb({key: whole[key] for key in sorted(whole)})
    return packed


def tensors(names: list[bytes], *, dtype: int = 12, shape: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
    """A tensor list of these names, all of one dtype and shape."""
    records = np.zeros(len(names), lay.TENSOR)
    records["name_length"] = [len(name) for name in names]
    records["dtype"], records["ndim"] = dtype, len(shape)
    dims = np.tile(np.array(shape, "<u8"), len(names)).tobytes()
    return {**more, "dims": dims, "names": b"".join(names), "tensors": records.tobytes()}


def task(name: str, entries: np.ndarray[Any, Any], segments: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A task of these tables."""
    return {
        "checkpoint": {},
        "entries": entries.tobytes(),
        "metadata": {},
        "name": name,
        "recipe": {},
        "segments": segments.tobytes(),
    }


def _numbered(count: int, form: str = "{:05x}") -> list[bytes]:
    return [form.format(number).encode() for number in range(count)]


def _ternary(count: int, first: int = 0) -> np.ndarray[Any, Any]:
    entries = np.zeros(count, lay.ENTRY)
    entries["tensor"] = np.arange(first, first + count)
    entries["kind"], entries["dtype"] = lay.Kind.TERNARY, 12
    return entries


def _zeros(count: int) -> np.ndarray[Any, Any]:
    """Segments without bytes: all masks of a task, then all its signs."""
    segments = np.zeros(2 * count, lay.SEGMENT)
    segments["offset"] = lay.FRAME
    segments["role"] = np.repeat([lay.Role.MASK, lay.Role.SIGN], count)
    return segments


def largest_index() -> bytes:
    """64 MiB under a key of a later version."""
    return sealed(document(z=bytes(lay.MAX_INDEX - 200)), minor=1)


def most_members() -> bytes:
    """2^18 members: maps of short texts."""
    return sealed(document(tasks=_talkative_tasks()))


def _talkative_tasks() -> list[dict[str, Any]]:
    """As many tasks and remarks as there may be, each remark of one character that takes four bytes."""
    texts = {chr(0x1F600 + number): "\U0001f600" for number in range(51)}
    empty = {**task("", np.zeros(0, lay.ENTRY), np.zeros(0, lay.SEGMENT)), "metadata": texts}
    return [{**empty, "name": f"{number:04}"} for number in range(3998)]


def most_tasks() -> bytes:
    """4,096 tasks of 250 entries each, without segments."""
    base = tensors(_numbered(250), shape=(0,), aliases={})
    entries = _ternary(250)
    none = np.zeros(0, lay.SEGMENT)
    return sealed(document(base=base, tasks=[task(str(number), entries, none) for number in range(4096)]))


def most_tensors() -> bytes:
    """2^20 tensors."""
    return sealed(document(base=tensors(_numbered(1 << 20), aliases={})))


def most_entries() -> bytes:
    """One task of as many entries as fit beside their tensors, each with two segments."""
    count = 400_000
    segments = _zeros(count)
    segments["role"] = np.tile([lay.Role.MASK, lay.Role.SIGN], count)
    base = tensors(_numbered(count), shape=(5,), aliases={})
    return sealed(document(base=base, tasks=[task("t", _ternary(count), segments)]))


def most_segments() -> bytes:
    """One switch of 2.7 million segments."""
    chunks = 1_390_000
    base = tensors([b"w"], shape=(chunks * lay.CHUNK,), aliases={})
    return sealed(document(base=base, tasks=[task("t", _ternary(1), _zeros(chunks))]))


def most_dimensions() -> bytes:
    """Tensors of 16 dimensions."""
    return sealed(document(base=tensors(_numbered(360_000), shape=(1,) * 16, aliases={})))


def longest_names() -> bytes:
    """32 MiB of names of 1,024 bytes."""
    names = [f"{number:05}".encode() + b"a" * 1019 for number in range(32_768)]
    return sealed(document(base=tensors(names, aliases={})))


def strangest_names() -> bytes:
    """Names that need every check of characters: not ASCII, not printable, of marks that compose."""
    count = 128_000
    names = [f"{number:06}".encode() + ("\u00ad" + "\u0302" * 126).encode() for number in range(count)]
    return sealed(document(base=tensors(names, aliases={})))


def names_to_reorder() -> bytes:
    """Names whose marks a normaliser sorts in quadratic time; none is in normal form."""
    names = [f"{number:05}".encode() + ("\u0302" * 254 + "\u0323" * 254).encode() for number in range(32_000)]
    return sealed(document(base=tensors(names, aliases={})))


def one_bad_name_a_block() -> bytes:
    """As many names as there may be, of which one in 4,096 is not proper."""
    names = _numbered(1 << 20)
    for number in range(4095, 1 << 20, 4096):
        names[number] = names[number][:4] + b"\x7f"
    return sealed(document(base=tensors(names, aliases={})))


def last_name_twice() -> bytes:
    """2^20 names of which the last two are the same."""
    names = _numbered(1 << 20)
    names[-1] = names[-2]
    return sealed(document(base=tensors(names, aliases={})))


def most_extra() -> bytes:
    """A million records of `extra` of one name, told apart by their last dimension, each used by a task of its own or not."""
    count = 430_000
    extra = tensors([b"x"] * count, shape=(1,) * 8 + (0,))
    dims = np.frombuffer(extra["dims"], "<u8").reshape(count, 9).copy()
    dims[:, 8] = np.arange(count)
    return sealed(document(extra={**extra, "dims": dims.tobytes()}))


def most_aliases() -> bytes:
    """4,096 aliases beside a million names."""
    base = tensors(_numbered(1 << 20), aliases={f"z{number:04}": number for number in range(4096)})
    return sealed(document(base=base))


def names_in_both_lists() -> bytes:
    """Half a million names that are in `base` and in `extra`, all of them changed by one task."""
    return sealed(_both_lists(330_000))


def _both_lists(count: int, **more: Any) -> bytes:
    return document(**_both_parts(_numbered(count)), **more)


def _both_parts(names: list[bytes]) -> dict[str, Any]:
    """Tensors that are in both lists, and a task that changes the dtype of all."""
    count = len(names)
    entries = np.zeros(count, lay.ENTRY)
    entries["tensor"] = np.arange(count, 2 * count)
    entries["kind"], entries["dtype"] = lay.Kind.DENSE, 10
    return {
        "base": tensors(names, shape=(0,), aliases={}),
        "extra": tensors(names, dtype=10, shape=(0,)),
        "tasks": [task("t", entries, np.zeros(0, lay.SEGMENT))],
    }


def every_entry_wrong() -> bytes:
    """A million entries that each break several rules."""
    base = tensors(_numbered(250), shape=(0,), aliases={})
    entries = _ternary(250)
    entries["knob"], entries["active"], entries["vector"], entries["flags"] = np.nan, 5, 7, 0xF8
    none = np.zeros(0, lay.SEGMENT)
    return sealed(document(base=base, tasks=[task(str(number), entries, none) for number in range(4096)]))


def every_segment_wrong() -> bytes:
    """A switch of millions of segments none of which is where it should be, nor of the right role."""
    chunks = 1_390_000
    segments = _zeros(chunks)
    segments["offset"], segments["role"], segments["reserved"] = (1 << 64) - 1, lay.Role.DATA, 1
    base = tensors([b"w"], shape=(chunks * lay.CHUNK,), aliases={})
    return sealed(document(base=base, tasks=[task("t", _ternary(1), segments)]))


def largest_tensors() -> bytes:
    """A million tensors of 2^48 elements that no entry changes."""
    return sealed(document(base=tensors(_numbered(1 << 20), shape=(1 << 48,), aliases={})))


def deepest_nesting() -> bytes:
    """64 MiB of opening brackets."""
    return sealed(b"\x91" * lay.MAX_INDEX)


def widest_array() -> bytes:
    """An array of 2^32 - 1 members, of which 64 MiB are there."""
    return sealed(b"\xdd\xff\xff\xff\xff" + bytes(lay.MAX_INDEX - 5))


def smallest() -> bytes:
    """A file without tensors and tasks."""
    return sealed(document())


def widest_text() -> bytes:
    """64 MiB in one str in which one character makes Python take four bytes for each."""
    return sealed(document(writer="a" * (lay.MAX_INDEX - 200) + "\U0001f600"))


def widest_texts() -> bytes:
    """The same in 4,090 texts."""
    texts = {f"{number:04}": "a" * 16380 + "\U0001f600" for number in range(4090)}
    return sealed(document(metadata=texts))


def names_to_recompose() -> bytes:
    """Names of the characters that take a normaliser longest to take apart and to put together again."""
    body = ("x\u0302" + "\u1fa7" * 338).encode()
    return sealed(document(base=tensors([f"{number:05}".encode() + body for number in range(32_000)], aliases={})))


def ascii_names_to_normalise() -> bytes:
    """Names that are ASCII but for one mark, which makes a normaliser look at all characters."""
    names = [f"{number:05}".encode() + b"a" * 1015 + "x\u0302".encode() for number in range(32_000)]
    return sealed(document(base=tensors(names, aliases={})))


def other_names_to_recompose() -> bytes:
    """The same in the names of aliases and tasks."""
    body = "x\u0302" + "\u1fa7" * 338
    names = [f"{number:05}" + body for number in range(1950)]
    base = tensors([b"w"], aliases=dict.fromkeys(names, 0))
    empty = task("", np.zeros(0, lay.ENTRY), np.zeros(0, lay.SEGMENT))
    return sealed(document(base=base, tasks=[{**empty, "name": name} for name in names]))


def keys_nobody_knows() -> bytes:
    """A quarter of a million keys that no task has."""
    empty = {**task("", np.zeros(0, lay.ENTRY), np.zeros(0, lay.SEGMENT))}
    more = {f"x{number:02}": 0 for number in range(51)}
    tasks = [dict(sorted({**empty, "name": str(number), **more}.items())) for number in range(4096)]
    return sealed(document(tasks=tasks))


def remarks_that_are_no_texts() -> bytes:
    """A quarter of a million remarks that are numbers."""
    texts = {f"{number:02}": 0 for number in range(51)}
    empty = {**task("", np.zeros(0, lay.ENTRY), np.zeros(0, lay.SEGMENT)), "metadata": texts}
    return sealed(document(tasks=[{**empty, "name": str(number)} for number in range(4096)]))


def most_bins() -> bytes:
    """A quarter of a million bins without bytes, under a key of a later version."""
    return sealed(document(z=[[b""] * 4000 for _ in range(65)]), minor=1)


def longest_texts() -> bytes:
    """As many texts as there may be, each in four bytes a character."""
    texts = {f"{number:04}": "a" * 1000 + "\U0001f600" for number in range(4090)}
    return sealed(document(metadata=texts))


def most_texts() -> bytes:
    """The same beside the largest tables."""
    texts = {f"{number:04}": "a" * 1000 + "\U0001f600" for number in range(4090)}
    return sealed(_both_lists(290_000, metadata=texts))


def most_ones() -> bytes:
    """One switch of 1.39 million chunks, all of it active: 182 GB of masks, and as many of signs."""
    chunks = 1_390_000
    segments = _zeros(chunks)
    segments["codec"], segments["count"] = lay.Codec.ONES, lay.CHUNK
    entries = _ternary(1)
    entries["active"] = chunks * lay.CHUNK
    base = tensors([b"w"], shape=(chunks * lay.CHUNK,), aliases={})
    return sealed(document(base=base, tasks=[task("t", entries, segments)]))


def everything_at_once() -> bytes:
    """Strange names, texts, tables and members, as much of each as goes with the others; every entry breaks rules."""
    names = _numbered(265_000)
    names += [f"~{number:04}".encode() + ("x\u0302" + "\u1fa7" * 338).encode() for number in range(500)]
    parts = _both_parts(names)
    entries = np.frombuffer(parts["tasks"][0]["entries"], lay.ENTRY).copy()
    entries["knob"], entries["active"], entries["factor_dtype"], entries["flags"] = 1, 1, 1, 2
    parts["tasks"][0]["entries"] = entries.tobytes()
    parts["tasks"] += _talkative_tasks()
    texts = {f"{number:04}": "a" * 450 + "\U0001f600" for number in range(4090)}
    return sealed(document(**parts, metadata=texts))


def _vectors(names: list[bytes], *, chunks: int = 0, shape: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Shared vectors of these names; their digests count up, so that those of one name are in order."""
    shared = tensors(names, dtype=10, shape=shape)
    records = np.frombuffer(shared["tensors"], lay.TENSOR).copy()
    records["flags"] = lay.HAS_SHA256
    digests = np.zeros((len(names), 32), np.uint8)
    digests[:, :4] = np.arange(len(names), dtype=">u4").view(np.uint8).reshape(-1, 4)
    records["sha256"] = digests.view("V32").reshape(-1)
    segments = np.zeros(chunks, lay.SEGMENT)
    segments["offset"], segments["count"] = lay.FRAME, lay.CHUNK
    segments["role"], segments["codec"] = lay.Role.DATA, lay.Codec.RAW
    roles = bytes([lay.SharedRole.VECTOR]) * len(names)
    return {**shared, "tensors": records.tobytes(), "roles": roles, "segments": segments.tobytes()}


def _masked(tensors_and_vectors: int, *, by: int = 0) -> np.ndarray[Any, Any]:
    """An entry for each tensor with the vector of that number, or one `by` further."""
    entries = _ternary(tensors_and_vectors)
    entries["kind"] = lay.Kind.MASKED
    entries["vector"] = (np.arange(tensors_and_vectors) + by) % tensors_and_vectors
    return entries


_NO_SEGMENTS = np.zeros(0, lay.SEGMENT)


def most_vectors_of_one_name() -> bytes:
    """Many vectors of one tensor, told apart by their digests, of which one is used."""
    base = tensors([b"w"], shape=(0,), aliases={})
    shared = _vectors([b"w"] * 700_000)
    return sealed(document(base=base, shared=shared, tasks=[task("t", _masked(1), _NO_SEGMENTS)]))


def vectors_of_one_name_descend() -> bytes:
    """The same, but each digest is below the one before."""
    base = tensors([b"w"], shape=(0,) * 16, aliases={})
    shared = _vectors([b"w"] * 300_000, shape=(0,) * 16)
    records = np.frombuffer(shared["tensors"], lay.TENSOR)[::-1]
    shared["tensors"] = records.tobytes()
    return sealed(document(base=base, shared=shared, tasks=[task("t", _masked(1), _NO_SEGMENTS)]))


def most_vectors() -> bytes:
    """Many tensors, each with a vector and a masked entry."""
    names = _numbered(250_000)
    base = tensors(names, shape=(0,), aliases={})
    return sealed(document(base=base, shared=_vectors(names), tasks=[task("t", _masked(len(names)), _NO_SEGMENTS)]))


def vectors_of_other_tensors() -> bytes:
    """The same, but each entry has the vector of the tensor after its own."""
    names = _numbered(250_000)
    base = tensors(names, shape=(0,), aliases={})
    entries = _masked(len(names), by=1)
    return sealed(document(base=base, shared=_vectors(names), tasks=[task("t", entries, _NO_SEGMENTS)]))


def vectors_of_no_tensor() -> bytes:
    """Vectors of half as many names that the base has not, beside those that it has."""
    names = _numbered(300_000)
    base = tensors(names[::2], shape=(0,), aliases={})
    return sealed(document(base=base, shared=_vectors(names), tasks=[task("t", _masked(1), _NO_SEGMENTS)]))


def vectors_of_other_shapes() -> bytes:
    """Vectors of 16 dimensions of which the last one is another than the tensor's."""
    names = _numbered(100_000)
    base = tensors(names, shape=(0,) * 15 + (1,), aliases={})
    shared = _vectors(names, shape=(0,) * 15 + (2,))
    return sealed(document(base=base, shared=shared, tasks=[task("t", _masked(len(names)), _NO_SEGMENTS)]))


def most_masks() -> bytes:
    """4,096 tasks of 250 masked entries each, over 250 vectors."""
    names = _numbered(250)
    base = tensors(names, shape=(0,), aliases={})
    entries = _masked(250)
    tasks = [task(str(number), entries, _NO_SEGMENTS) for number in range(4096)]
    return sealed(document(base=base, shared=_vectors(names), tasks=tasks))


def every_mask_wrong() -> bytes:
    """The same, and each entry breaks several rules."""
    names = _numbered(250)
    base = tensors(names, shape=(0,), aliases={})
    entries = _masked(250, by=3)
    entries["knob"], entries["active"], entries["flags"], entries["factor_dtype"] = np.nan, 5, 0xFE, 9
    tasks = [task(str(number), entries, _NO_SEGMENTS) for number in range(4096)]
    return sealed(document(base=base, shared=_vectors(names), tasks=tasks))


def most_segments_of_a_vector() -> bytes:
    """A vector and a mask of 1.39 million chunks each, without a byte: in every chunk the length is wrong."""
    chunks = 1_390_000
    shape = (chunks * lay.CHUNK,)
    shared = _vectors([b"w"], chunks=chunks, shape=shape)
    base = tensors([b"w"], shape=shape, aliases={})
    return sealed(document(base=base, shared=shared, tasks=[task("t", _masked(1), _zeros(chunks)[:chunks])]))


def empty_shared_arrays() -> bytes:
    """Shared arrays of no tensor, with 60 MiB of roles."""
    shared = {**_EMPTY, "roles": bytes([lay.SharedRole.VECTOR]) * (60 << 20), "segments": b""}
    return sealed(document(shared=shared))


_ROUTER = {"extractor": "", "k": 1, "metric": "cosine", "preprocessing": ""}


def _features(names: list[bytes], *, shape: tuple[int, ...] = (1, 1)) -> dict[str, Any]:
    """Samples of these names."""
    shared = _vectors(names, shape=shape)
    return {**shared, "roles": bytes([lay.SharedRole.FEATURES]) * len(names)}


def _no_tasks(count: int) -> list[dict[str, Any]]:
    return [task(f"{number:05x}", np.zeros(0, lay.ENTRY), _NO_SEGMENTS) for number in range(count)]


def most_features() -> bytes:
    """Samples of one task over and over, told apart by their digests."""
    return sealed(document(router=_ROUTER, shared=_features([b"00000"] * 800_000), tasks=_no_tasks(1)))


def features_of_no_task() -> bytes:
    """Samples of many names, of which the first 4,096 are those of tasks."""
    return sealed(document(router=_ROUTER, shared=_features(_numbered(300_000)), tasks=_no_tasks(4096)))


def features_of_other_shapes() -> bytes:
    """Samples of 16 dimensions, of one task over and over."""
    shared = _features([b"00000"] * 300_000, shape=(1,) * 16)
    return sealed(document(router=_ROUTER, shared=shared, tasks=_no_tasks(1)))


def features_of_all_tasks() -> bytes:
    """4,096 tasks with a sample each."""
    shared = _features(_numbered(4096))
    segments = np.zeros(4096, lay.SEGMENT)
    segments["offset"], segments["length"] = lay.FRAME + 2 * np.arange(4096), 2
    segments["count"], segments["role"], segments["codec"] = 1, lay.Role.DATA, lay.Codec.RAW
    shared["segments"] = segments.tobytes()
    return sealed(document(router=_ROUTER, shared=shared, tasks=_no_tasks(4096)), bytes(2 * 4096))


def features_without_router() -> bytes:
    """Samples of one task over and over, and nothing that uses them."""
    return sealed(document(shared=_features([b"00000"] * 800_000), tasks=_no_tasks(1)))


def _tables(
    names: list[bytes], rows: np.ndarray[Any, Any], tasks: list[str], *, clamp: tuple[float, float] | None = None
) -> tuple[dict[str, Any], bytes]:
    """Parts of an index with tables of these names, all of the same rows and columns and of zeros, and their segments."""
    shape = (len(rows), len(tasks))
    shared = _vectors(names, shape=shape)
    records = np.frombuffer(shared["tensors"], lay.TENSOR).copy()
    records["dtype"] = 12
    elements = shape[0] * shape[1]
    frame = _compressed(bytes(4 * elements), 9)
    records["sha256"] = np.frombuffer(hashlib.sha256(bytes(4 * elements)).digest(), "V32")
    segments = np.zeros(len(names), lay.SEGMENT)
    segments["offset"] = lay.FRAME + len(frame) * np.arange(len(names))
    segments["length"], segments["count"], segments["crc32c"] = len(frame), elements, crc32c(frame)
    segments["role"], segments["codec"] = lay.Role.DATA, lay.Codec.ZSTD
    roles = bytes([lay.SharedRole.COEFFICIENTS]) * len(names)
    keys: dict[str, Any] = {"rows": rows.astype("<u4").tobytes(), "tasks": tasks}
    if clamp is not None:
        keys = {"clamp": struct.pack("<ff", *clamp), **keys}
    shared |= {"tensors": records.tobytes(), "roles": roles, "segments": segments.tobytes()}
    return {"coefficients": {name.decode(): keys for name in names}, "shared": shared}, frame * len(names)


def _hashed(base: dict[str, Any]) -> dict[str, Any]:
    """A tensor list whose records have digests, so that there is a content id."""
    records = np.frombuffer(base["tensors"], lay.TENSOR).copy()
    records["flags"] = lay.HAS_SHA256
    return {**base, "tensors": records.tobytes()}


def most_rows() -> bytes:
    """A table of a row for each of 900,000 tensors, which is one segment, and a second one."""
    count = 900_000
    parts, segments = _tables([b"c", b"d"], np.arange(count), ["00000"])
    base = tensors(_numbered(count), aliases={})
    return sealed(document(base=base, tasks=_no_tasks(1), **parts), segments)


def rows_of_long_names() -> bytes:
    """4,090 tables of 3,800 rows, of tensors with names of 1,024 bytes. The content id, which is wrong, is that of 16 GB."""
    count = 3800
    names = [f"{number:05}".encode() + b"a" * 1019 for number in range(count)]
    parts, segments = _tables(_numbered(4090), np.arange(count), ["00000"])
    base = _hashed(tensors(names, aliases={}))
    return sealed(document(base=base, content_id=bytes(32), tasks=_no_tasks(1), **parts), segments)


def most_tables() -> bytes:
    """4,096 tables of one row and one column."""
    parts, segments = _tables(_numbered(4096), np.arange(1), ["00000"], clamp=(0, 1))
    return sealed(document(base=tensors([b"w"], aliases={}), tasks=_no_tasks(1), **parts), segments)


def most_columns() -> bytes:
    """54 tables with a column for each of 4,000 tasks."""
    tasks = _no_tasks(4000)
    parts, segments = _tables(_numbered(54), np.arange(1), [one["name"] for one in tasks])
    return sealed(document(base=tensors([b"w"], aliases={}), tasks=tasks, **parts), segments)


def columns_of_no_task() -> bytes:
    """61 tables with 4,096 columns of tasks that are not there."""
    parts, segments = _tables(_numbered(61), np.arange(1), [f"{number:05}" for number in range(4096)])
    return sealed(document(base=tensors([b"w"], aliases={}), **parts), segments)


def every_row_wrong() -> bytes:
    """4,000 tables of 4,000 rows that all are of one tensor."""
    parts, segments = _tables(_numbered(4000), np.zeros(4000), ["00000"], clamp=(2, 1))
    return sealed(document(base=tensors([b"w"], aliases={}), tasks=_no_tasks(1), **parts), segments)


_ONE_TABLE = {"00000": {"rows": bytes(4), "tasks": ["00000"]}}


def _coefficients(names: list[bytes], *, shape: tuple[int, ...] = (1, 1)) -> dict[str, Any]:
    """Coefficients of these names, without data."""
    shared = _vectors(names, shape=shape)
    records = np.frombuffer(shared["tensors"], lay.TENSOR).copy()
    records["dtype"] = 12
    roles = bytes([lay.SharedRole.COEFFICIENTS]) * len(names)
    return {**shared, "tensors": records.tobytes(), "roles": roles}


def most_coefficients() -> bytes:
    """Coefficients of one name over and over, told apart by their digests."""
    return sealed(document(coefficients=_ONE_TABLE, shared=_coefficients([b"00000"] * 800_000), tasks=_no_tasks(1)))


def coefficients_of_no_table() -> bytes:
    """Coefficients of many names, and one table."""
    return sealed(document(coefficients=_ONE_TABLE, shared=_coefficients(_numbered(300_000)), tasks=_no_tasks(1)))


def coefficients_of_other_shapes() -> bytes:
    """Coefficients of 16 dimensions, of one name over and over."""
    shared = _coefficients([b"00000"] * 300_000, shape=(1,) * 16)
    return sealed(document(coefficients=_ONE_TABLE, shared=shared, tasks=_no_tasks(1)))


ATTACKS: Mapping[str, tuple[str | None, Callable[[], bytes]]] = {
    "largest index": (None, largest_index),
    "most members": (None, most_members),
    "most tasks": (None, most_tasks),
    "most tensors": (None, most_tensors),
    "most entries": (None, most_entries),
    "most segments": (None, most_segments),
    "most dimensions": (None, most_dimensions),
    "longest names": (None, longest_names),
    "strangest names": ("TSW-403", strangest_names),
    "names to reorder": ("TSW-402", names_to_reorder),
    "one bad name a block": ("TSW-402", one_bad_name_a_block),
    "last name twice": ("TSW-405", last_name_twice),
    "most extra": ("TSW-408", most_extra),
    "most aliases": (None, most_aliases),
    "names in both lists": (None, names_in_both_lists),
    "every entry wrong": ("TSW-504", every_entry_wrong),
    "every segment wrong": ("TSW-603", every_segment_wrong),
    "largest tensors": (None, largest_tensors),
    "deepest nesting": ("TSW-305", deepest_nesting),
    "widest array": ("TSW-305", widest_array),
    "widest text": ("TSW-305", widest_text),
    "widest texts": ("TSW-305", widest_texts),
    "names to recompose": ("TSW-403", names_to_recompose),
    "ASCII names to normalise": ("TSW-403", ascii_names_to_normalise),
    "other names to recompose": ("TSW-403", other_names_to_recompose),
    "keys nobody knows": ("TSW-307", keys_nobody_knows),
    "remarks that are no texts": ("TSW-307", remarks_that_are_no_texts),
    "most bins": (None, most_bins),
    "longest texts": (None, longest_texts),
    "most texts": (None, most_texts),
    "most ones": (None, most_ones),
    "everything at once": ("TSW-505", everything_at_once),
    "most vectors of one name": ("TSW-410", most_vectors_of_one_name),
    "vectors of one name descend": ("TSW-405", vectors_of_one_name_descend),
    "most vectors": (None, most_vectors),
    "vectors of other tensors": ("TSW-507", vectors_of_other_tensors),
    "vectors of no tensor": ("TSW-409", vectors_of_no_tensor),
    "vectors of other shapes": ("TSW-409", vectors_of_other_shapes),
    "most masks": (None, most_masks),
    "every mask wrong": ("TSW-507", every_mask_wrong),
    "most segments of a vector": (None, most_segments_of_a_vector),
    "empty shared arrays": ("TSW-409", empty_shared_arrays),
    "most features": ("TSW-409", most_features),
    "features of no task": ("TSW-409", features_of_no_task),
    "features of other shapes": ("TSW-409", features_of_other_shapes),
    "features of all tasks": (None, features_of_all_tasks),
    "features without a router": ("TSW-411", features_without_router),
    "most rows": (None, most_rows),
    "rows of long names": (None, rows_of_long_names),
    "most tables": (None, most_tables),
    "most columns": (None, most_columns),
    "columns of no task": ("TSW-412", columns_of_no_task),
    "every row wrong": ("TSW-412", every_row_wrong),
    "most coefficients": ("TSW-409", most_coefficients),
    "coefficients of no table": ("TSW-412", coefficients_of_no_table),
    "coefficients of other shapes": ("TSW-409", coefficients_of_other_shapes),
}
