"""Mutants: small files, changed in one of six ways that reach different depths. A mutant's number gives its bytes.

raw       bytes of the file; checksums stay as they were
frame     a field of prologue or trailer, or of both, signed anew
index     bytes of the decoded index; all checksums right
record    a field of a record of the index, set to a number at some edge; all checksums right
payload   bytes of a segment, or its codec, parameter or count; places and checksums right
zstd      bytes of a zstd frame, in a segment or around the index; the same
"""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import differential_models as models
import numpy as np
import zstandard
from differential_readers import DisagreementError, Tally, compare
from mutation_files import Victim, victims
from mutation_sealing import body_of, sealed

from fuzz.parts import SHARED, Parts, pack, sign
from tswitch_format import _layout as lay

SEED = 4
LARGEST = 4000  # bytes of a file that mutants are made of
ELEMENTS = 20_000  # of all its segments: the reference decodes one after the other in Python
MODELS = 40
ZSTD_CODECS = (lay.Codec.BITMAP_ZSTD, lay.Codec.GAPS_ZSTD, lay.Codec.ZSTD)
FRAME_MAGIC = bytes.fromhex("28B52FFD")
EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 16, 17, 20, 21, 63, 64, 65, 127, 128, 255, 256, 4095, 4096, 4097, 65535, 65536]
EDGES += [(1 << bits) + near for bits in (20, 24, 26, 31, 32, 48, 63) for near in (-1, 0, 1)] + [(1 << 64) - 1]


class Mutant(NamedTuple):
    """A changed file. `frames`: what was changed in zstd frames, if anything (differential_readers.compare)."""

    kind: str
    origin: str
    data: bytes
    frames: str = ""


@cache
def origins() -> list[tuple[str, bytes]]:
    """Small valid files of the suite, golden ones, generated ones; each also without digests and compression."""
    found = [(victim.name, victim.data) for victim in victims() if not victim.large and _small(victim)]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(MODELS):
            data = models.make(seed, Path(folder)).data
            if len(data) <= LARGEST:
                found.append((f"model {seed}", data))
    return found


def _small(victim: Victim) -> bool:
    if len(victim.data) > LARGEST:
        return False
    apart = Parts.of(victim.data)
    tables = [apart.table(owner, "segments") for owner in apart.owners()]
    return sum(int(table["count"].sum()) for table in tables) < ELEMENTS and "chunks" not in victim.name


@cache
def _open_origins() -> list[tuple[str, bytes]]:
    """The same without digests, which find every change of content."""
    found = []
    for name, data in origins():
        apart = Parts.of(data)
        apart.forget_digests()
        apart.compressed = False
        found.append((f"{name} without digests", apart.build()))
    return found


def mutant(number: int) -> Mutant:
    """The mutant of a number; always the same one, as far as zstd compresses the same."""
    rng = random.Random(f"{SEED} {number}")
    name, data = rng.choice(origins() if rng.random() < 0.3 else _open_origins())
    kind = rng.choices(list(_KINDS), weights=[1, 2, 4, 6, 5, 4])[0]
    changed, frames = _KINDS[kind](data, rng)
    return Mutant(kind, name, changed, frames)


def run(first: int, last: int) -> tuple[dict[str, Tally], list[str]]:
    """Compare the mutants of these numbers: what came out, by kind, and the disagreements."""
    tallies = {kind: Tally() for kind in _KINDS}
    wrong = []
    for number in range(first, last):
        one = mutant(number)
        try:
            compare(one.data, tallies[one.kind], frames=one.frames)
        except DisagreementError as error:
            wrong.append(f"mutant({number}), {one.kind} of {one.origin}: {error}")
    return tallies, wrong


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three bytes or bits set, put in, taken out, or copied from elsewhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(changed):
                changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                changed[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4)))
            case 4:
                del changed[at : at + rng.choice((1, 1, 2, 4))]
            case _:
                start = rng.randrange(len(changed) + 1)
                piece = changed[start : start + rng.choice((1, 4, 8))]
                changed[at : at + len(piece)] = piece
    return bytes(changed)


def _raw(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    changed = data
    while changed == data:  # a piece may be copied onto itself
        changed = _bytes(data, rng)
    return changed, ""


def _frame(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The field of one of the records, or the same field of both."""
    changed = bytearray(data)
    places = [(name, (0, lay.PROLOGUE)) for name in (lay.PROLOGUE.names or ())[1:-1]]
    places += [(name, (len(data) - lay.FRAME, lay.TRAILER)) for name in (lay.TRAILER.names or ())]
    name, _ = rng.choice(places)
    number = rng.getrandbits(64) if rng.random() < 0.1 else rng.choice(EDGES)
    step = rng.choice((None, None, 1, -1, 1 << rng.randrange(20)))
    for found, (start, record) in places:
        if found != name or (rng.random() < 0.3 and found in lay.PROLOGUE.fields and found in lay.TRAILER.fields):
            continue
        first, last = (start + place for place in lay.span(record, found))
        value = number if step is None else int.from_bytes(changed[first:last], "little") + step
        changed[first:last] = (value % (1 << 8 * (last - first))).to_bytes(last - first, "little")
    if name == "end_magic":
        return bytes(changed), ""
    return sign(bytes(changed)), ""


def _index(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    document = _bytes(pack(Parts.of(data).document), rng)
    minor = struct.unpack_from("<H", data, 10)[0]
    if rng.random() < 0.3 and document:
        stored = zstandard.compress(document)
        return sealed(body_of(data), stored, minor=minor, encoding=1, decoded_length=len(document)), ""
    return sealed(body_of(data), document, minor=minor), ""


def _record(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One or two fields of tables, now and then the `k` of a router or the columns of a table of coefficients."""
    apart = Parts.of(data)
    tables: list[tuple[dict[str, bytes], str, np.dtype[np.void]]] = []
    lists = [apart.document[key] for key in ("base", "extra", "shared") if key in apart.document]
    for part in lists:
        tables += [(part, "tensors", lay.TENSOR), (part, "dims", np.dtype([("dim", "<u8")]))]
    if "shared" in apart.document:
        tables += [(apart.document["shared"], "segments", lay.SEGMENT)]
        tables += [(apart.document["shared"], "roles", np.dtype([("role", "u1")]))]
    for given in apart.document.get("coefficients", {}).values():
        tables += [(given, "rows", np.dtype([("row", "<u4")])), (given, "clamp", np.dtype([("bound", "<u4")]))]
        if rng.random() < 0.1:
            names = given["tasks"]
            given["tasks"] = rng.choice((names[::-1], names[1:], names * 2, names[:1] + names[:-1]))
    for task in apart.document["tasks"]:
        tables += [(task, "entries", lay.ENTRY), (task, "segments", lay.SEGMENT)] * 2
    tables = [table for table in tables if table[0].get(table[1])]
    if "router" in apart.document and rng.random() < 0.2:
        apart.document["router"]["k"] = rng.choice(EDGES)
    for _ in range(rng.choice((1, 1, 2)) if tables else 0):
        part, key, record = rng.choice(tables)
        changed = bytearray(part[key])
        first, last = lay.span(record, rng.choice(record.names or ()))
        at = rng.randrange(len(changed) // record.itemsize) * record.itemsize
        size = last - first
        value = int.from_bytes(changed[at + first : at + last], "little")
        value = rng.choice(
            (rng.choice(EDGES), rng.choice(EDGES), value + 1, value - 1, value ^ 1 << rng.randrange(8 * size))
        )
        changed[at + first : at + last] = (value % (1 << 8 * size)).to_bytes(size, "little")
        part[key] = bytes(changed)
    minor = struct.unpack_from("<H", data, 10)[0]
    return sealed(body_of(data), pack(apart.document), minor=minor), ""


def _payload(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    apart = Parts.of(data)
    places = apart.places()
    if not places:
        return _index(data, rng)
    task, at = rng.choice(places)
    table = apart.table(task, "segments")
    for _ in range(rng.choice((1, 1, 2))):
        match rng.randrange(8):
            case 0:
                table["codec"][at] = rng.choice(list(lay.Codec))
            case 1:
                table["parameter"][at] = rng.randrange(22)
            case 2:
                _set_count(apart, task, table, at, rng)
            case 3:
                apart.payloads_of(task)[at] = rng.randbytes(rng.randrange(6))
            case _:
                apart.payloads_of(task)[at] = _bytes(apart.payloads_of(task)[at], rng)
    apart.put_table(task, "segments", table)
    if rng.random() < 0.7:
        apart.sign_shared()
    return apart.build(), "payload" if table["codec"][at] in ZSTD_CODECS else ""


def _set_count(apart: Parts, task: int, table: np.ndarray, at: int, rng: random.Random) -> None:
    """Another count, and the entry's `active` with it if it is the entry's only mask."""
    before = int(table["count"][at])
    table["count"][at] = max(0, before + rng.choice((-1, 1, 8)))
    if task == SHARED:
        return
    entries = apart.table(task, "entries")
    mine = np.flatnonzero(entries["active"] == before)
    if table["role"][at] == lay.Role.MASK and len(mine):
        entries["active"][mine[0]] = table["count"][at]
        apart.put_table(task, "entries", entries)


def _zstd(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes of a frame behind its magic; of a segment's frame, or of one around the index."""
    apart = Parts.of(data)
    places = [
        (owner, at)
        for owner, at in apart.places()
        if apart.table(owner, "segments")["codec"][at] in ZSTD_CODECS and FRAME_MAGIC in apart.payloads_of(owner)[at]
    ]
    if not places or rng.random() < 0.15:
        document = pack(apart.document)
        frame = _bytes(zstandard.compress(document, rng.choice((1, 3, 19)))[4:], rng)
        minor = struct.unpack_from("<H", data, 10)[0]
        stored = FRAME_MAGIC + frame
        return sealed(body_of(data), stored, minor=minor, encoding=1, decoded_length=len(document)), "index"
    task, at = rng.choice(places)
    payload = apart.payloads_of(task)[at]
    start = payload.index(FRAME_MAGIC) + 4
    apart.payloads_of(task)[at] = payload[:start] + _bytes(payload[start:], rng)
    if rng.random() < 0.7:
        apart.sign_shared()
    return apart.build(), "zstd"


_KINDS: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    "raw": _raw,
    "frame": _frame,
    "index": _index,
    "record": _record,
    "payload": _payload,
    "zstd": _zstd,
}
