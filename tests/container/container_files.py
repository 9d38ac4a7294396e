"""Making files, and files that break one rule: the index is decoded, changed and written anew with right checksums.

Shares with the library only the record types and constants of `_layout`, which a test compares with the specification.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import crc32c
import msgpack
import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.errors import FormatError

Arrays = dict[str, NDArray[Any]]
Change = Callable[["Edited"], None]


def checkpoints(seed: int = 0, *, base_seed: int = 7) -> tuple[Arrays, Arrays]:
    """A base and an expert that together have an entry of every kind, added and reshaped tensors, and a tied one."""
    rng = np.random.default_rng(base_seed)
    base: Arrays = {
        "a.weight": rng.standard_normal((8, 6)).astype(np.float32),
        "b.weight": rng.standard_normal((3, 4, 5)).astype(np.float16),
        "c.weight": rng.standard_normal((5, 7)),
        "d.bias": rng.standard_normal(17).astype(np.float32),
        "e.scalar": np.array(1.5, np.float32),
        "f.empty": np.zeros((0, 3), np.float32),
        "g.counts": np.arange(9),
        "h.gone": np.ones(4, np.float32),
        "i.same": np.ones(4, np.float32),
        "j.reshaped": np.ones((2, 3), np.float32),
    }
    base["a.tied"] = base["a.weight"]
    rng = np.random.default_rng(seed)
    expert = {
        name: array
        if name in ("f.empty", "i.same")
        else np.asarray(array + rng.standard_normal(array.shape)).astype(array.dtype)
        for name, array in base.items()
        if name not in ("a.tied", "h.gone")
    }
    expert["a.tied"] = expert["a.weight"]
    expert["g.counts"] = base["g.counts"] + 1
    expert["j.reshaped"] = rng.standard_normal((3, 2)).astype(np.float32)
    expert["k.added"] = rng.standard_normal(11).astype(np.float32)
    return base, expert


def make(path: Path, seed: int = 0, *, base_seed: int = 7, **options: Any) -> Path:
    """Pack `checkpoints(seed)` into a file."""
    base, expert = checkpoints(seed, base_seed=base_seed)
    tsw.pack(
        base, expert, path, **{"density": 0.4, "select": "tensor", "on_mismatch": "dense", "threads": 1, **options}
    )
    return path


def make_tiny(path: Path, **options: Any) -> Path:
    """A file of one switch, as small as they get."""
    base = np.zeros((2, 5), np.float32)
    tuned = base.copy()
    tuned[0, 1], tuned[1, 3] = 1, -1
    tsw.pack({"w": base}, {"w": tuned}, path, **{"density": 1.0, "threads": 1, **options})
    return path


def make_wide(path: Path, rows: int = 5, **options: Any) -> Path:
    """A file of one tensor of `rows` rows of 2^19 elements, a chunk for every two rows, and of a small tensor."""
    rng = np.random.default_rng(1)
    delta = np.zeros((rows, 1 << 19), np.float32)
    places = rng.choice(delta.size, 3000, replace=False)
    delta.flat[places] = rng.standard_normal(places.size)
    base = {"wide": np.zeros_like(delta), "x": np.zeros(9, np.float32)}
    expert = {"wide": delta, "x": np.arange(9, dtype=np.float32)}
    tsw.pack(base, expert, path, **{"density": 1.0, "knob_per": "tensor", "threads": 1, **options})
    return path


def canonical(value: Any) -> Any:
    """Maps with their keys in order; msgpack writes shortest forms by itself."""
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value, key=str.encode)}
    return [canonical(member) for member in value] if isinstance(value, list) else value


class Edited:
    """A file taken apart. Change `doc`, `body`, `prologue` and `trailer`, then `write` it."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        head = np.frombuffer(data[:64], lay.PROLOGUE)[0]
        start, length = int(head["index_offset"]), int(head["index_length"])
        stored = data[start : start + length]
        self.doc: dict[str, Any] = msgpack.unpackb(
            zstandard.decompress(stored) if head["index_encoding"] else stored, strict_map_key=False
        )
        self.body = bytearray(data[64:start])
        self.index: bytes | None = None  # instead of the encoded `doc`
        self.stored: bytes | None = None  # instead of the stored index
        self.encoding = 0
        self.padding = b""  # between the segments and the index
        self.prologue: dict[str, Any] = {}
        self.trailer: dict[str, Any] = {}

    @property
    def document(self) -> bytes:
        """The index, decoded."""
        packed: bytes = msgpack.packb(canonical(self.doc)) if self.index is None else self.index
        return packed

    @contextlib.contextmanager
    def table(self, record: np.dtype[Any], *keys: str | int) -> Iterator[NDArray[Any]]:
        """A table of the index, to be changed in place."""
        place: Any = self.doc
        for key in keys[:-1]:
            place = place[key]
        table = np.frombuffer(place[keys[-1]], record).copy()
        yield table
        place[keys[-1]] = table.tobytes()

    def tensors(self, which: str = "base") -> Any:
        """The tensor records of `base` or `extra`."""
        return self.table(lay.TENSOR, which, "tensors")

    def entries(self, task: int = 0) -> Any:
        """The entry records of a task."""
        return self.table(lay.ENTRY, "tasks", task, "entries")

    def segments(self, task: int = 0) -> Any:
        """The segment records of a task."""
        return self.table(lay.SEGMENT, "tasks", task, "segments")

    def dims(self, which: str = "base") -> Any:
        """The dimensions of `base` or `extra`."""
        return self.table(np.dtype("<u8"), which, "dims")

    def set_payload(self, number: int, data: bytes, task: int = 0, **fields: int) -> None:
        """Give a segment other bytes, with the right checksum and places of all; and other fields of its record."""
        mapped = self.doc["profile"] == "mapped"
        body = bytearray()
        for at in range(len(self.doc["tasks"])):
            with self.segments(at) as table:
                for n, record in enumerate(table):
                    start = int(record["offset"]) - 64
                    old = bytes(self.body[start : start + int(record["length"])])
                    new = data if (at, n) == (task, number) else old
                    body += bytes(
                        lay.align(64 + len(body), lay.segment_alignment(len(new), mapped=mapped)) - 64 - len(body)
                    )
                    record["offset"], record["length"] = 64 + len(body), len(new)
                    if (at, n) == (task, number):
                        record["crc32c"] = crc32c.crc32c(new)
                        for name, value in fields.items():
                            record[name] = value
                    body += new
        self.body = body + bytes(lay.align(64 + len(body), 64 if mapped else 1) - 64 - len(body))

    def write(self, path: Path) -> Path:
        """The file, with right lengths and checksums but for what `prologue` and `trailer` override."""
        document = self.document
        stored = zstandard.compress(document) if self.encoding == 1 else document
        stored = stored if self.stored is None else self.stored
        start = 64 + len(self.body) + len(self.padding)
        common = {
            "index_offset": start,
            "index_length": len(stored),
            "index_decoded_length": len(document),
            "index_encoding": self.encoding,
        }
        head, tail = np.zeros((), lay.PROLOGUE), np.zeros((), lay.TRAILER)
        length = start + len(stored) + 64
        fill(head, {"magic": lay.MAGIC, "major": 1, "file_length": length, **common, **self.prologue})
        fill(
            tail,
            {"end_magic": lay.END_MAGIC, "index_sha256": hashlib.sha256(stored).digest(), **common, **self.trailer},
        )
        if "crc32c" not in self.prologue:
            head["crc32c"] = crc32c.crc32c(head.tobytes()[:60])
        if "crc32c" not in self.trailer:
            tail["crc32c"] = crc32c.crc32c(tail.tobytes()[:56])
        path.write_bytes(head.tobytes() + self.body + self.padding + stored + tail.tobytes())
        return path


def fill(record: NDArray[Any], values: Mapping[str, Any]) -> None:
    """Set fields of a record; bytes for void ones."""
    for name, value in values.items():
        assert record.dtype.fields is not None
        void = record.dtype.fields[name][0].kind == "V"
        record[name] = np.void(value) if void else value


def edit(source: Path, out: Path, *changes: Change) -> Path:
    """Write `out`: `source` with changes."""
    edited = Edited(source)
    for change in changes:
        change(edited)
    return edited.write(out)


def refused(path: Path, rule: str, kind: type[FormatError] = FormatError) -> FormatError:
    """`path` does not open, by that rule and with exactly that class, and `validate` lists the rule without raising."""
    for backend in ("pread", "mmap"):
        with pytest.raises(FormatError) as caught:
            tsw.open(path, backend=backend)  # type: ignore[arg-type]
        error = caught.value
        assert (error.rule, type(error)) == (rule, kind), error
        assert f"[{rule}]" in str(error)
        assert str(error).startswith(f"{path}: {error.field}")
        assert f"expected {error.expected}, found {error.found}" in str(error)
    for level in ("structure", "full"):
        report = tsw.validate(path, level)  # type: ignore[arg-type]
        assert not report.ok
        assert rule in {finding.rule for finding in report.findings}
        assert report.newer == (kind is tsw.UnsupportedError)
    return error


def content(path: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Everything that the tasks of a file say, decoded."""
    with tsw.open(path) as file:
        found: dict[tuple[str, str], tuple[Any, ...]] = {}
        for task in file.tasks:
            for name in file.keys(task):
                switch = file.switch(name, task)
                held: tuple[Any, ...] = ()
                if switch.kind == "dense":
                    held = (switch.data().tobytes(),)
                elif switch.kind == "ternary":
                    held = (switch.sign().tobytes(), switch.delta().tobytes(), switch.knob)
                found[task, name] = (switch.kind, switch.dtype, switch.shape, *held)
        return found
