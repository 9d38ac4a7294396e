"""A second, plain reader of TSW files, written from spec/tsw-1.md alone.

It shares no code with the library: it is here so that what the text says and what the library does can be compared. It reads
the whole file, checks every rule of the text that is about a file, and decodes everything. Slow and simple on purpose.
"""

from __future__ import annotations

import hashlib
import struct
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import zstandard

Bits = np.ndarray  # one uint8 of value 0 or 1 for each bit

CHUNK = 1 << 20
LARGEST_INDEX = 1 << 26

DTYPE_BITS = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 32, 8: 64, 9: 64, 10: 16, 11: 16, 12: 32, 13: 64}
DTYPE_BITS |= {14: 8, 15: 8, 16: 8, 17: 4, 18: 6, 19: 6, 20: 64}
FLOAT_DTYPES = {10, 11, 12, 13}
TERNARY, DENSE, REMOVED = 1, 3, 4
MASK, SIGN, ROW_FACTORS, COLUMN_FACTORS, DATA = 1, 2, 3, 4, 5
ZEROS, ONES, BITMAP, BITMAP_ZSTD, GAPS_ZSTD, RICE, RAW, ZSTD = 0, 1, 2, 3, 4, 5, 16, 17
PLANE_CODECS = {ZEROS, ONES, BITMAP, BITMAP_ZSTD, GAPS_ZSTD, RICE}
FACTOR_BITS = {1: 8, 2: 16, 3: 32}
BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


class BrokenError(Exception):
    """The file breaks a rule."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"[{rule}] {text}")
        self.rule = rule


def must(condition: Any, rule: int, text: str) -> None:
    """Raise BrokenError unless the condition holds."""
    if not condition:
        raise BrokenError(f"TSW-{rule}", text)


@dataclass
class Tensor:
    """One tensor record with its name and dimensions."""

    name: str
    dtype: int
    dims: tuple[int, ...]
    sampled: bytes | None
    sha256: bytes | None

    @property
    def elements(self) -> int:
        n = 1
        for dim in self.dims:
            n *= dim
        return n


@dataclass
class Entry:
    """One entry, decoded."""

    tensor: Tensor
    number: int
    kind: int
    dtype: int
    factor_dtype: int
    flags: int
    knob: bytes
    active: int
    sha256: bytes | None
    masks: list[bytes] = field(default_factory=list)
    signs: list[bytes] = field(default_factory=list)
    row_factors: bytes = b""
    column_factors: bytes = b""
    data: bytes = b""
    codecs: list[tuple[int, int, int]] = field(default_factory=list)

    def digest(self) -> bytes:
        """Section 11.3."""
        h = hashlib.sha256(b"TSW1-entry\0")
        h.update(struct.pack("<BBB", self.kind, self.dtype, len(self.tensor.dims)))
        h.update(b"".join(struct.pack("<Q", d) for d in self.tensor.dims))
        if self.kind == TERNARY:
            h.update(self.knob + bytes([self.factor_dtype, self.flags & ~1]))
            h.update(self.row_factors + self.column_factors)
            for mask, sign in zip(self.masks, self.signs, strict=True):
                h.update(mask)
                h.update(sign)
        elif self.kind == DENSE:
            h.update(self.data)
        return h.digest()


@dataclass
class Task:
    """One task."""

    name: str
    entries: list[Entry]
    checkpoint: dict[str, str]
    recipe: dict[str, str]
    metadata: dict[str, str]


@dataclass
class File:
    """A whole file, decoded."""

    profile: str
    base: list[Tensor]
    extra: list[Tensor]
    aliases: dict[str, int]
    base_id: str | None
    base_revision: str | None
    tasks: list[Task]
    metadata: dict[str, str]
    writer: str
    content_id: bytes | None

    def compute_content_id(self) -> bytes | None:
        """Section 11.4; None where a digest that it needs is absent."""
        h = hashlib.sha256(b"TSW1-content\0")
        h.update(struct.pack("<I", len(self.base)))
        for t in self.base:
            if t.sha256 is None:
                return None
            h.update(_named(t.name) + struct.pack("<BB", t.dtype, len(t.dims)))
            h.update(b"".join(struct.pack("<Q", d) for d in t.dims) + t.sha256)
        h.update(struct.pack("<I", len(self.aliases)))
        for name in sorted(self.aliases, key=str.encode):
            h.update(_named(name) + struct.pack("<I", self.aliases[name]))
        h.update(struct.pack("<I", len(self.tasks)))
        for task in sorted(self.tasks, key=lambda t: t.name.encode()):
            h.update(_named(task.name) + struct.pack("<I", len(task.entries)))
            for e in task.entries:
                if e.sha256 is None:
                    return None
                h.update(_named(e.tensor.name) + e.sha256)
        return h.digest()


def _named(name: str) -> bytes:
    raw = name.encode()
    return struct.pack("<H", len(raw)) + raw


# ------------------------------------------------------------------------------------------------------------ checksums


def _crc_table() -> list[int]:
    table = []
    for i in range(256):
        c = i
        for _ in range(8):
            c = (c >> 1) ^ (0x82F63B78 if c & 1 else 0)  # 0x1EDC6F41 with its bits reversed
        table.append(c)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC32C, section 3."""
    c = 0xFFFFFFFF
    table = _CRC_TABLE
    for b in data:
        c = table[(c ^ b) & 0xFF] ^ (c >> 8)
    return c ^ 0xFFFFFFFF


# ----------------------------------------------------------------------------------------------------------------- bits


def unpack(raw: bytes, n: int) -> Bits:
    """The first n bits of a bit string; its unused bits must be zero."""
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    must(not bits[n:].any(), 703, "unused bits are not zero")
    return bits[:n]


def pack(bits: Bits) -> bytes:
    """The bit string of these bits."""
    return np.packbits(bits, bitorder="little").tobytes()


# ----------------------------------------------------------------------------------------------------------------- zstd


def zstd_frame(raw: bytes, low: int, high: int, rule: int = 707) -> bytes:
    """Decode one frame (9.5) whose content size must be from low to high."""
    must(len(raw) >= 6 and raw[:4] == b"\x28\xb5\x2f\xfd", rule, "no zstd frame")
    descriptor = raw[4]
    single, checksum, id_width = descriptor >> 5 & 1, descriptor >> 2 & 1, (0, 1, 2, 4)[descriptor & 3]
    must(not descriptor & 8 and not checksum, rule, "reserved bit or checksum")
    at = 5
    window = None
    if not single:
        exponent, mantissa = raw[at] >> 3, raw[at] & 7
        window = (1 << (10 + exponent)) // 8 * (8 + mantissa)
        at += 1
    must(not any(raw[at : at + id_width]), rule, "dictionary")
    at += id_width
    width = {0: 1 if single else 0, 1: 2, 2: 4, 3: 8}[descriptor >> 6]
    must(width and len(raw) >= at + width, rule, "no content size")
    size = int.from_bytes(raw[at : at + width], "little") + (256 if width == 2 else 0)
    at += width
    must(low <= size <= high, rule, "content size is not what it must be")
    must(window is None or window <= max(size, 8 << 20), rule, "window is too large")
    last = False
    while not last:
        must(len(raw) >= at + 3, rule, "cut frame")
        header = int.from_bytes(raw[at : at + 3], "little")
        last = bool(header & 1)
        at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
    must(at == len(raw), rule, "the frame does not fill its place")
    try:
        out = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompress(raw, max_output_size=size)
    except zstandard.ZstdError as e:
        raise BrokenError(f"TSW-{rule}", str(e)) from e
    must(len(out) == size, rule, "content is not as long as declared")
    return out


# --------------------------------------------------------------------------------------------------------------- codecs


def decode_plane(codec: int, k: int, raw: bytes, n: int, m: int) -> bytes:
    """A plane of n bits with m ones, as its bit string."""
    if codec in (ZEROS, ONES):
        must(not raw, 706, "zeros or ones with bytes")
        must(m == (0 if codec == ZEROS else n), 704, "number of ones")
        return pack(np.full(n, codec == ONES, np.uint8))
    if codec in (BITMAP, BITMAP_ZSTD):
        length = (n + 7) // 8
        if codec == BITMAP_ZSTD:
            raw = zstd_frame(raw, length, length)
        must(len(raw) == length, 706, "length of a bitmap")
        must(unpack(raw, n).sum() == m, 704, "number of ones")
        return raw
    must(m >= 1, 606, "gaps of an empty plane")
    length = (m * k + 7) // 8
    must(len(raw) > length, 706, "low parts are cut")
    low_bits = unpack(raw[:length], m * k).reshape(m, k).astype(np.int64)
    low = (low_bits << np.arange(k, dtype=np.int64)).sum(axis=1)
    rest = raw[length:]
    if codec == GAPS_ZSTD:
        gaps = np.frombuffer(zstd_frame(rest, m, m + n // (255 << k)), np.uint8)
        ends = np.flatnonzero(gaps != 255)
        must(len(ends) == m and ends[-1] == len(gaps) - 1, 706, "gap bytes")
        high = 255 * (np.diff(ends, prepend=-1) - 1) + gaps[ends]
    else:
        ones = np.flatnonzero(np.unpackbits(np.frombuffer(rest, np.uint8), bitorder="little"))
        must(len(ones) == m and len(rest) == ones[-1] // 8 + 1, 706, "rice")
        high = np.diff(ones, prepend=-1) - 1
    positions = np.cumsum((high << k) + low + 1) - 1
    must(positions[-1] < n, 706, "position beyond the plane")
    bits = np.zeros(n, np.uint8)
    bits[positions] = 1
    return pack(bits)


# ------------------------------------------------------------------------------------------------------------ the index


def _count(value: Any) -> int:
    """Maps, arrays and their members."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + len(value) + sum(map(_count, value.values() if isinstance(value, dict) else value))


def _depth_and_types(value: Any, depth: int) -> None:
    if depth == 1:
        must(_count(value) <= 1 << 18, 305, "too many members in all")
    if isinstance(value, dict | list):
        must(depth <= 8 and len(value) <= 4096, 305, "too deep or too many members")
        if isinstance(value, dict):
            must(all(isinstance(k, str) for k in value), 303, "a key is not a str")
            keys = [k.encode() for k in value]
            must(keys == sorted(keys), 303, "keys are not ascending")
        for member in value.values() if isinstance(value, dict) else value:
            _depth_and_types(member, depth + 1)
    else:
        must(type(value) in (str, bytes, int) and not (type(value) is int and value < 0), 301, "type")


def parse_index(raw: bytes) -> dict[str, Any]:
    """Section 5.1."""
    try:
        document = msgpack.unpackb(raw, raw=False, strict_map_key=False)
    except msgpack.ExtraData as e:
        raise BrokenError("TSW-306", "something follows the document") from e
    except UnicodeDecodeError as e:
        raise BrokenError("TSW-304", "not UTF-8") from e
    except Exception as e:
        raise BrokenError("TSW-302", f"not MessagePack: {e}") from e
    _depth_and_types(document, 1)
    must(msgpack.packb(document, use_bin_type=True) == raw, 302, "not the shortest form, or a key twice")
    must(isinstance(document, dict), 307, "not a map")
    return document


def _keys(m: Any, minor: int, required: Mapping[str, type], optional: Mapping[str, type]) -> dict[str, Any]:
    must(isinstance(m, dict), 307, "not a map")
    for key, kind in {**required, **optional}.items():
        must(key in m or key in optional, 307, f"key {key} is missing")
        must(key not in m or isinstance(m[key], kind), 307, f"key {key} has another type")
    must(minor > 0 or set(m) <= {*required, *optional}, 307, "unknown key")
    return m


def _texts(m: dict[Any, Any]) -> dict[str, str]:
    must(all(isinstance(v, str) for v in m.values()), 307, "not a map of str to str")
    return m


def check_name(name: str, rule: int) -> None:
    """The rule of names."""
    must(1 <= len(name.encode()) <= 1024, rule, "length of a name")
    must(unicodedata.is_normalized("NFC", name), rule, "a name is not NFC")
    for ch in name:
        must(unicodedata.category(ch) not in ("Cc", "Zl", "Zp") and ord(ch) not in BIDI, rule, "character in a name")


def tensor_list(m: dict[str, Any], minor: int, is_base: bool) -> list[Tensor]:
    """Section 5.3."""
    names, dims, table = m["names"], m["dims"], m["tensors"]
    must(len(table) % 48 == 0, 310, "length of the tensor table")
    out: list[Tensor] = []
    name_at = dim_at = 0
    for at in range(0, len(table), 48):
        name_length, dtype, ndim, flags, sampled, sha256 = struct.unpack_from("<HBBI8s32s", table, at)
        must(name_at + name_length <= len(names) and dim_at + 8 * ndim <= len(dims), 401, "names or dims are short")
        try:
            name = names[name_at : name_at + name_length].decode()
        except UnicodeDecodeError as e:
            raise BrokenError("TSW-402", "a name is not UTF-8") from e
        check_name(name, 402)
        must(ndim <= 16, 403, "too many dimensions")
        shape = struct.unpack_from(f"<{ndim}Q", dims, dim_at)
        name_at += name_length
        dim_at += 8 * ndim
        must(dtype in DTYPE_BITS, 404, "dtype")
        if minor == 0:
            must(flags <= (3 if is_base else 0), 406, "flags")
        must(flags & 1 or not any(sha256), 406, "absent digest is not zero")
        must(flags & 2 or not any(sampled), 406, "absent digest is not zero")
        tensor = Tensor(name, dtype, shape, sampled if flags & 2 else None, sha256 if flags & 1 else None)
        must(all(d <= 1 << 48 for d in shape) and tensor.elements <= 1 << 48, 403, "too large")
        must(tensor.elements * DTYPE_BITS[dtype] % 8 == 0, 404, "elements do not fill whole bytes")
        out.append(tensor)
    must(name_at == len(names) and dim_at == len(dims), 401, "names or dims are long")
    order = [(t.name.encode(),) if is_base else (t.name.encode(), t.dtype, len(t.dims), t.dims) for t in out]
    must(all(a < b for a, b in pairwise(order)), 405, "order of tensors")
    return out


# ------------------------------------------------------------------------------------------------------------- the file


@dataclass
class _Place:
    """Where the next segment begins, and what the layout asks for."""

    mapped: bool
    end: int = 64

    def next(self, alignment: int, raw: bytes) -> int:
        start = -(-self.end // alignment) * alignment
        must(not any(raw[self.end : start]), 702, "padding is not zero")
        return start


def read(raw: bytes) -> File:
    """Check and decode a whole file."""
    magic = bytes.fromhex("895453570d0a1a0a")
    must(raw and magic.startswith(raw[:8]), 101, "magic")
    must(len(raw) >= 128, 100, "too short")
    major, minor, decoded, required, _optional, length = struct.unpack_from("<HHIQQQ", raw, 8)
    index_offset, index_length, encoding, reserved, crc = struct.unpack_from("<QQB3sI", raw, 40)
    must(major == 1, 102, "major")
    must(crc == crc32c(raw[:60]), 104, "crc of the prologue")
    must(required == 0, 103, "required features")
    must(minor > 0 or not any(reserved), 107, "reserved")
    must(length == len(raw), 105, "length of the file")
    must(encoding in (0, 1), 106, "index encoding")
    must(1 <= decoded <= LARGEST_INDEX and (encoding or decoded == index_length), 108, "length of the index")
    must(index_offset >= 64 and index_length >= 1 and index_offset + index_length + 64 == length, 203, "index")

    trailer = raw[-64:]
    must(trailer[60:] == b"\x57\x53\x54\x0a", 201, "end magic")
    must(struct.unpack_from("<I", trailer, 56)[0] == crc32c(trailer[:56]), 202, "crc of the trailer")
    must(struct.unpack_from("<QQIB", trailer) == (index_offset, index_length, decoded, encoding), 205, "trailer")
    must(minor > 0 or not any(trailer[21:24]), 107, "reserved")
    stored = raw[index_offset : index_offset + index_length]
    must(hashlib.sha256(stored).digest() == trailer[24:56], 204, "digest of the index")
    document = parse_index(zstd_frame(stored, decoded, decoded) if encoding else stored)

    top = _keys(
        document,
        minor,
        {"base": dict, "extra": dict, "metadata": dict, "profile": str, "tasks": list, "writer": str},
        {"content_id": bytes},
    )
    list_keys = {"dims": bytes, "names": bytes, "tensors": bytes}
    base_map = _keys(top["base"], minor, {"aliases": dict, **list_keys}, {"id": str, "revision": str})
    base = tensor_list(base_map, minor, True)
    extra = tensor_list(_keys(top["extra"], minor, list_keys, {}), minor, False)
    must(len(base) + len(extra) <= 1 << 20, 403, "too many tensors")
    must(top["profile"] in ("archive", "mapped"), 308, "profile")
    must("content_id" not in top or len(top["content_id"]) == 32, 307, "content_id")
    base_names = {t.name for t in base}
    for name, number in base_map["aliases"].items():
        check_name(name, 407)
        must(type(number) is int and name not in base_names and number < len(base), 407, "alias")

    tensors = base + extra
    place = _Place(top["profile"] == "mapped")
    tasks = [_read_task(t, raw, minor, tensors, len(base), place) for t in top["tasks"]]
    for task in tasks:
        check_name(task.name, 501)
    must(len({t.name for t in tasks}) == len(tasks), 501, "two tasks of one name")
    used = {e.number for t in tasks for e in t.entries}
    must(all(i in used for i in range(len(base), len(tensors))), 408, "an extra tensor without an entry")
    must(place.next(64 if place.mapped else 1, raw) == index_offset, 604, "index is not behind the segments")

    out = File(
        top["profile"],
        base,
        extra,
        base_map["aliases"],
        base_map.get("id"),
        base_map.get("revision"),
        tasks,
        _texts(top["metadata"]),
        top["writer"],
        top.get("content_id"),
    )
    if out.content_id is not None:
        computed = out.compute_content_id()
        must(computed is not None, 803, "content_id although a digest is absent")
        must(computed == out.content_id, 802, "content_id")
    return out


def _read_task(m: Any, raw: bytes, minor: int, tensors: list[Tensor], n_base: int, place: _Place) -> Task:
    maps = {"checkpoint": dict, "metadata": dict, "recipe": dict}
    m = _keys(m, minor, {**maps, "entries": bytes, "name": str, "segments": bytes}, {})
    must(len(m["entries"]) % 56 == 0 and len(m["segments"]) % 24 == 0, 310, "length of a table")
    segments = [struct.unpack_from("<QIIIBBBB", m["segments"], at) for at in range(0, len(m["segments"]), 24)]
    entries: list[Entry] = []
    for at in range(0, len(m["entries"]), 56):
        number, kind, dtype, factor_dtype, flags, knob, reserved, active, sha256 = struct.unpack_from(
            "<IBBBB4sIQ32s", m["entries"], at
        )
        must(number < len(tensors) and (not entries or entries[-1].number < number), 502, "tensor number")
        must(kind in (TERNARY, DENSE, REMOVED), 503, "kind")
        must(1 <= dtype <= 20, 404, "dtype of an entry")
        must(minor > 0 or reserved == 0, 107, "reserved")
        present = sha256 if flags & 1 else None
        entry = Entry(tensors[number], number, kind, dtype, factor_dtype, flags, knob, active, present)
        _check_entry(entry, number < n_base, minor)
        must(minor > 0 or flags <= 7, 406, "flags")
        must(present is not None or not any(sha256), 406, "absent digest is not zero")
        _read_entry(entry, segments, raw, minor, place)
        must(present is None or present == entry.digest(), 801, "digest of an entry")
        entries.append(entry)
    must(not segments, 601, "segments left over")
    must(len({e.tensor.name for e in entries}) == len(entries), 502, "two entries of one name")
    return Task(m["name"], entries, _texts(m["checkpoint"]), _texts(m["recipe"]), _texts(m["metadata"]))


def _check_entry(e: Entry, in_base: bool, minor: int) -> None:
    n = e.tensor.elements
    if e.kind == TERNARY:
        must(in_base and e.tensor.dtype in FLOAT_DTYPES and e.dtype in FLOAT_DTYPES, 504, "tensor or dtype")
        must(np.isfinite(np.frombuffer(e.knob, "<f4")).all(), 504, "knob")
        must(not e.flags & 6 or (len(e.tensor.dims) >= 2 and n), 504, "factors")
        must(e.factor_dtype <= 3 and (e.factor_dtype == 0) == (e.flags & 6 == 0), 504, "factor dtype")
        must(e.active <= n, 504, "active")
    else:
        rule = 505 if e.kind == DENSE else 506
        must(e.kind == DENSE or in_base, rule, "tensor")
        must(e.dtype == e.tensor.dtype, rule, "dtype")
        must(e.knob == bytes(4) and not e.active and not e.factor_dtype and not e.flags & 6, rule, "fields")


def _chunks(n: int) -> Iterator[int]:
    """Elements of each chunk; an iterator, for a hostile file may have very many."""
    return (min(CHUNK, n - at) for at in range(0, n, CHUNK))


def _read_entry(e: Entry, segments: list[Any], raw: bytes, minor: int, place: _Place) -> None:
    """Take the entry's segments from the front of the list and decode them."""

    def segment(role: int, elements: int, bits: int) -> tuple[bytes, int]:
        must(segments, 601, "a segment is missing")
        offset, length, crc, count, has_role, codec, parameter, reserved = segments.pop(0)
        e.codecs.append((has_role, codec, parameter))
        must(has_role == role, 601, "role")
        must(minor > 0 or reserved == 0, 107, "reserved")
        is_plane = role in (MASK, SIGN)
        must(count <= elements if is_plane else count == elements, 602, "count")
        must(codec in (PLANE_CODECS if is_plane else {RAW, ZSTD}), 606, "codec")
        must(parameter <= (20 if codec in (GAPS_ZSTD, RICE) else 0), 606, "parameter")
        must(not place.mapped or codec == (BITMAP if is_plane else RAW), 605, "codec of the profile mapped")
        start = place.next((4096 if length >= 65536 else 64) if place.mapped else 1, raw)
        must(offset == start, 603, "offset")
        must(start + length <= len(raw) - 64, 604, "a segment reaches beyond the index")
        place.end = start + length
        payload = raw[start : start + length]
        must(crc32c(payload) == crc, 701, "crc of a segment")
        if is_plane:
            return decode_plane(codec, parameter, payload, elements, count), count
        size = elements * bits // 8
        if codec == ZSTD:
            payload = zstd_frame(payload, size, size)
        must(len(payload) == size, 706, "length of the elements")
        return payload, count

    n = e.tensor.elements
    if e.kind == TERNARY:
        bits = FACTOR_BITS.get(e.factor_dtype, 0)
        if e.flags & 2:
            rows = e.tensor.dims[0]
            e.row_factors = b"".join(segment(ROW_FACTORS, c, bits)[0] for c in _chunks(rows))
        if e.flags & 4:
            columns = n // e.tensor.dims[0]
            e.column_factors = b"".join(segment(COLUMN_FACTORS, c, bits)[0] for c in _chunks(columns))
        decoded_factors(e)
        counts = []
        for c in _chunks(n):
            plane, ones = segment(MASK, c, 1)
            e.masks.append(plane)
            counts.append(ones)
        e.signs = [segment(SIGN, ones, 1)[0] for ones in counts]
        must(sum(counts) == e.active, 504, "active")
    elif e.kind == DENSE:
        e.data = b"".join(segment(DATA, c, DTYPE_BITS[e.dtype])[0] for c in _chunks(n))


def decoded_factors(e: Entry) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Row and column factors as binary32 numbers."""

    def decode(codes: bytes) -> np.ndarray:
        if e.factor_dtype == 1:
            # 3 q / 255 has at most 53 significant bits before the division, so one rounding to binary64 and one to
            # binary32 could differ from a single rounding; the exact quotient is taken instead
            return np.array([_round_quotient(3 * q, 255) for q in codes], np.float32)
        values = np.frombuffer(codes, "<f2" if e.factor_dtype == 2 else "<f4").astype(np.float32)
        must(np.isfinite(values).all(), 705, "factor is not finite")
        return values

    rows = decode(e.row_factors) if e.flags & 2 else None
    columns = decode(e.column_factors) if e.flags & 4 else None
    return rows, columns


def _round_quotient(numerator: int, denominator: int) -> float:
    """A quotient that is 0 or from 2^-7 to 4, rounded once to binary32 (to nearest, ties to even)."""
    if not numerator:
        return 0.0
    exponent = 0
    while (numerator << exponent) < denominator << 23:
        exponent += 1
    q, rest = divmod(numerator << exponent, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and q & 1):
        q += 1
    return q / (1 << exponent)


# ------------------------------------------------------------------------------------------------------------- applying


def widen(raw: bytes, dtype: int) -> np.ndarray:
    """Elements of a float type as binary32, or binary64 for F64: exact."""
    if dtype == 11:
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {10: "<f2", 12: "<f4", 13: "<f8"}[dtype]).astype(
        np.float64 if dtype == 13 else np.float32
    )


def narrow(values: np.ndarray, dtype: int) -> bytes:
    """Round once to the elements of a float type."""
    with np.errstate(all="ignore"):
        if dtype != 11:
            return values.astype({10: "<f2", 12: "<f4", 13: "<f8"}[dtype]).tobytes()
        if values.dtype == np.float64:  # to odd first, so that the second rounding is right
            near = values.astype(np.float32)
            bits = near.view(np.uint32).copy()
            over = np.abs(near.astype(np.float64)) > np.abs(values)
            inexact = near.astype(np.float64) != values
            bits[over & inexact] -= 1
            bits[inexact] |= 1
            values = np.where(np.isfinite(values), bits, near.view(np.uint32)).astype(np.uint32).view(np.float32)
        bits = values.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        rounded = np.where(np.isnan(values), bits >> 16 | 0x40, rounded)
        return rounded.astype("<u2").tobytes()


def apply(base: bytes, steps: list[tuple[Entry, float]]) -> bytes:
    """Section 10: ternary entries for one tensor, with their coefficients, in order."""
    first = steps[0][0]
    steps = [s for s in steps if s[1] != 0]
    if not steps:
        return base
    tensor = first.tensor
    assert all(e.kind == TERNARY and e.dtype == first.dtype for e, _ in steps)
    s = widen(base, tensor.dtype)
    original = s.copy()
    real = s.dtype.type
    touched = np.zeros(tensor.elements, bool)
    for e, a in steps:
        rows, columns = decoded_factors(e)
        v = np.full(tensor.elements, real(np.frombuffer(e.knob, "<f4")[0]))
        per_row = tensor.elements // tensor.dims[0] if tensor.dims and tensor.elements else 1
        with np.errstate(all="ignore"):
            if rows is not None:
                v = v * np.repeat(rows.astype(real), per_row)
            if columns is not None:
                v = v * np.tile(columns.astype(real), tensor.dims[0])
            if a != 1:
                v = v * real(a)
            at = 0
            for mask, sign, c in zip(e.masks, e.signs, _chunks(tensor.elements), strict=True):
                where = np.flatnonzero(unpack(mask, c)) + at
                negative = unpack(sign, len(where)).astype(bool)
                s[where] = np.where(negative, s[where] - v[where], s[where] + v[where])
                touched[where] = True
                at += c
    if first.dtype == tensor.dtype:
        size = DTYPE_BITS[tensor.dtype] // 8
        out = np.frombuffer(narrow(s, first.dtype), f"V{size}").copy()
        out[~touched] = np.frombuffer(base, f"V{size}")[~touched]
        return out.tobytes()
    s[~touched] = original[~touched]
    return narrow(s, first.dtype)
