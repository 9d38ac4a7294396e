"""The strict reader, written from the specification alone, against the library: they find the same in every file."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import strict_reader as strict
import zstandard
from safetensors.numpy import load_file

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c
from tswitch_format._dtypes import DTYPES
from tswitch_format.container.reader import Container
from tswitch_format.container.reader import Entry as LibraryEntry

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(path.name for path in GOLDEN.glob("*.tsw"))
DENSITIES = (1e-4, 3e-3, 0.02, 0.1, 0.4, 0.8, 1.0)


def compare(path: Path) -> strict.File:
    """Assert that both readers find the same, bit by bit."""
    found = strict.read(path.read_bytes())
    assert tsw.validate(path, "full").findings == ()
    container = Container(path)
    try:
        index = container.index
        for tensors, ours in ((found.base, index.base), (found.extra, index.extra)):
            assert [(t.name, t.dtype, t.dims) for t in tensors] == [
                (s.name, s.dtype.id, tuple(s.shape)) for s in map(ours.spec, range(len(ours)))
            ]
            digests = list(map(ours.digests, range(len(ours))))
            assert [(t.sha256, t.sampled) for t in tensors] == [(d.sha256, d.sampled) for d in digests]
        assert (found.profile, found.aliases, found.writer) == (index.profile, index.aliases, index.writer)
        assert (found.base_id, found.base_revision) == (index.base_id, index.base_revision)
        assert found.metadata == index.metadata
        assert found.content_id == index.content_id
        assert found.compute_content_id() == index.content_id
        assert [t.name for t in found.tasks] == [t.name for t in index.tasks]
        for number, (task, table) in enumerate(zip(found.tasks, index.tasks, strict=True)):
            assert (task.recipe, task.checkpoint, task.metadata) == (table.recipe, table.checkpoint, table.metadata)
            for theirs, entry in zip(task.entries, container.entries(number), strict=True):
                compare_entry(theirs, entry)
    finally:
        container.close()
    return found


def compare_entry(theirs: strict.Entry, ours: LibraryEntry) -> None:
    assert (theirs.number, theirs.kind, theirs.dtype, theirs.flags) == (
        ours.tensor,
        ours.kind,
        ours.dtype.id,
        ours.flags,
    )
    assert theirs.factor_dtype == ours.factor_dtype
    assert theirs.active == ours.active
    assert theirs.knob == np.array(ours.knob, "<f4").tobytes()
    assert theirs.digest() == ours.content_digest()
    assert theirs.sha256 == ours.sha256
    if theirs.kind == strict.TERNARY:
        assert theirs.masks == [ours.mask_packed(i).tobytes() for i in range(ours.chunks)]
        assert theirs.signs == [ours.sign_packed(i).tobytes() for i in range(ours.chunks)]
        for role, codes in (
            (lay.Role.ROW_FACTORS, theirs.row_factors),
            (lay.Role.COLUMN_FACTORS, theirs.column_factors),
        ):
            stored = ours.factor_codes(role)
            assert codes == (b"" if stored is None else stored.tobytes())
    else:
        assert theirs.data == b"".join(ours.data(i).tobytes() for i in range(ours.chunks))


@pytest.mark.parametrize("name", FILES)
def test_golden(name: str) -> None:
    compare(GOLDEN / name)


def pair(seed: int, floats: str = "f4") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A base and an expert of it."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (30, 41), "b": (7,), "c": (3, 2, 5, 4), "d": (), "e": (0, 3), f"n{seed}.ä": (2000,)}
    base = {name: np.array(rng.normal(size=shape), floats) for name, shape in shapes.items()}
    tuned = {n: np.array(w + rng.normal(size=w.shape) * rng.choice([0, 1], w.shape), floats) for n, w in base.items()}
    base["i"] = tuned["i"] = rng.integers(0, 9, 5)
    return base, tuned


GENERATED = [
    (seed, floats, profile, {"density": density, "knob_per": per, "knob_dtype": dtype})
    for seed, (floats, profile, density, per, dtype) in enumerate(
        (
            ("f2", "f4", "f8")[i % 3],
            ("archive", "mapped")[i % 2],
            DENSITIES[i % 7],
            ("tensor", "row", "row-col")[i // 2 % 3],
            ("u8", "f16", "f32")[i % 3],
        )
        for i in range(24)
    )
]


@pytest.mark.parametrize(("seed", "floats", "profile", "options"), GENERATED)
def test_generated(tmp_path: Path, seed: int, floats: str, profile: str, options: dict[str, Any]) -> None:
    base, tuned = pair(seed, floats)
    path = tmp_path / "t.tsw"
    tsw.pack(base, tuned, path, profile=profile, **options)
    file = compare(path)
    with tsw.open(path) as opened:
        for entry in file.tasks[0].entries:
            weights = base[entry.tensor.name]
            for coefficient in (1.0, -0.7, 0.0):
                made = opened.switch(entry.tensor.name).apply(weights.copy(), coefficient)
                assert made.tobytes() == strict.apply(weights.tobytes(), [(entry, coefficient)])


def test_several_tasks(tmp_path: Path) -> None:
    base, first = pair(100)
    rng = np.random.default_rng(101)
    second = {n: w if n == "i" else np.array(w + rng.normal(size=w.shape), "f4") for n, w in base.items()}
    for name, tuned in (("one", first), ("two", second)):
        tsw.pack(base, tuned, tmp_path / f"{name}.tsw", task=name, density=0.3)
    tsw.bundle([tmp_path / "one.tsw", tmp_path / "two.tsw"], tmp_path / "both.tsw")
    file = compare(tmp_path / "both.tsw")
    steps = {"two": 0.25, "one": -1.5}
    tsw.restore(base, tmp_path / "both.tsw", tmp_path / "out.safetensors", tasks=steps)
    out = load_file(tmp_path / "out.safetensors")
    entries = {(t.name, e.tensor.name): e for t in file.tasks for e in t.entries}
    for name, weights in base.items():
        terms = [(entries[task, name], a) for task, a in steps.items() if (task, name) in entries]
        expected = strict.apply(weights.tobytes(), terms) if terms else weights.tobytes()
        assert out[name].tobytes() == expected, name


def sealed(segments: bytes, index: bytes, minor: int = 0) -> bytes:
    """A file of these segments and this index, with right lengths and checksums."""
    place = struct.pack("<QQ", 64 + len(segments), len(index))
    length = 128 + len(segments) + len(index)
    head = (
        bytes.fromhex("895453570d0a1a0a")
        + struct.pack("<HHIQQQ", 1, minor, len(index), 0, 0, length)
        + place
        + bytes(4)
    )
    tail = place + struct.pack("<I", len(index)) + bytes(4) + hashlib.sha256(index).digest()
    return (
        head
        + struct.pack("<I", crc32c(head))
        + segments
        + index
        + tail
        + struct.pack("<I", crc32c(tail))
        + b"\x57\x53\x54\x0a"
    )


def parts(name: str) -> tuple[bytes, bytes]:
    """Segments and decoded index of a golden file."""
    raw = (GOLDEN / name).read_bytes()
    at, length, encoding = struct.unpack_from("<QQB", raw, 40)
    stored = raw[at : at + length]
    return raw[64:at], zstandard.ZstdDecompressor().decompress(stored) if encoding else stored


def verdict(raw: bytes, path: Path) -> tuple[str | None, set[str]]:
    """The rule that the strict reader finds broken, or None, and those that the library finds."""
    path.write_bytes(raw)
    report = tsw.validate(path, "full")
    assert report.unreadable is None
    try:
        strict.read(raw)
    except strict.BrokenError as e:
        return e.rule, {f.rule for f in report.findings}
    return None, {f.rule for f in report.findings}


@pytest.mark.parametrize("minor", [0, 1])
def test_sealed_golden_file_is_whole(tmp_path: Path, minor: int) -> None:
    segments, index = parts("bare.tsw")
    assert verdict(sealed(segments, index, minor), tmp_path / "x.tsw") == (None, set())


@pytest.mark.parametrize("name", ["bare.tsw", "smallest.tsw"])
def test_changed_index(tmp_path: Path, name: str) -> None:
    """Where one byte of the index is another, both accept the file or both refuse it."""
    segments, index = parts(name)
    rng = random.Random(5)
    accepted = 0
    for at in range(len(index)):
        for value in {index[at] ^ 1 << rng.randrange(8), rng.randrange(256)} - {index[at]}:
            changed = index[:at] + bytes([value]) + index[at + 1 :]
            ours, theirs = verdict(sealed(segments, changed), tmp_path / "x.tsw")
            assert (ours is None) == (not theirs), (at, value, ours, theirs)
            accepted += ours is None
    assert accepted or name == "smallest.tsw"


@pytest.mark.parametrize("codec", [c for c in lay.Codec if c < lay.Codec.RAW])
def test_changed_payload(tmp_path: Path, codec: lay.Codec) -> None:
    """Where the bytes, the count or the parameter of a plane are others, both accept the file or both refuse it."""
    segments, index = parts("bare.tsw")
    document = msgpack.unpackb(index)
    task = document["tasks"][0]
    records = np.frombuffer(task["segments"], lay.SEGMENT).copy()
    assert len(records) == 3  # a mask of ten elements, its signs, the data of "b"
    data = segments[int(records[2]["offset"]) - 64 :]
    rng = random.Random(int(codec))
    kinds = set()
    for number in range(400):
        payload = rng.randbytes(rng.randrange(6))
        if codec in (lay.Codec.BITMAP_ZSTD, lay.Codec.GAPS_ZSTD) and number % 4:
            payload = rng.randbytes(rng.randrange(2)) + zstandard.compress(
                bytes(rng.randrange(5) for _ in range(rng.randrange(5)))
            )
        count = rng.randrange(11)
        records[0]["codec"], records[0]["parameter"], records[0]["count"] = (
            codec,
            rng.choice([0, 0, 1, 2, 20, 21]),
            count,
        )
        # Signs are a bitmap of zeros, so that they fit whatever the mask is.
        records[1]["codec"], records[1]["count"], records[1]["length"] = lay.Codec.ZEROS, 0, 0
        records[0]["length"] = len(payload)
        records[0]["crc32c"], records[1]["crc32c"] = crc32c(payload), 0
        records[1]["offset"] = records[2]["offset"] = 64 + len(payload)
        entries = np.frombuffer(task["entries"], lay.ENTRY).copy()
        entries[0]["active"] = count
        document["tasks"][0] |= {"segments": records.tobytes(), "entries": entries.tobytes()}
        ours, theirs = verdict(sealed(payload + data, msgpack.packb(document)), tmp_path / "x.tsw")
        assert (ours is None) == (not theirs), (payload.hex(), records[0], ours, theirs)
        kinds.add(ours)
    assert len(kinds) > 1


def test_every_dtype_is_known() -> None:
    assert {i: d.bits for i, d in DTYPES.items()} == strict.DTYPE_BITS
