"""What a file holds: tensors, entries, tasks; and the JSON document that a decoder must print of it.

Content only: how it is laid out and signed is in `writing.py`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from making import planes

CHUNK = 1 << 20
DTYPES = {
    name: (number, bits)
    for number, name, bits in (
        *((1, "BOOL", 8), (2, "U8", 8), (3, "I8", 8), (4, "U16", 16), (5, "I16", 16), (6, "U32", 32), (7, "I32", 32)),
        *((8, "U64", 64), (9, "I64", 64), (10, "F16", 16), (11, "BF16", 16), (12, "F32", 32), (13, "F64", 64)),
        *((14, "F8_E4M3", 8), (15, "F8_E5M2", 8), (16, "F8_E8M0", 8), (17, "F4", 4), (18, "F6_E2M3", 6)),
        *((19, "F6_E3M2", 6), (20, "C64", 64)),
    )
}
KINDS = {"ternary": 1, "masked": 2, "dense": 3, "removed": 4}
FACTORS = {"none": (0, 0), "u8": (1, 1), "f16": (2, 2), "f32": (3, 4)}  # id, bytes
ROLES = {"mask": 1, "sign": 2, "row_factors": 3, "column_factors": 4, "data": 5}
CODECS = {"zeros": 0, "ones": 1, "bitmap": 2, "bitmap_zstd": 3, "gaps_zstd": 4, "rice": 5, "raw": 16, "zstd": 17}
SHARED_ROLES = {"vector": 1, "features": 2, "coefficients": 3}
HALF = 0x3F000000  # 0.5 as binary32
ONE = 0x3F800000

Compress: TypeAlias = Callable[[bytes], bytes]


class Coding(NamedTuple):
    """How a plane or an array is stored: codec, its parameter, and what makes a zstd frame of its content."""

    codec: str
    k: int = 0
    compress: Compress | None = None


BITMAP = Coding("bitmap")
RAW = Coding("raw")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the base or of `extra`. `data`: its elements, or None for some that follow from its name."""

    name: str
    dtype: str = "F32"
    shape: tuple[int, ...] = (10,)
    sha256: bool = True
    sampled: bool = True
    data: bytes | None = None

    @property
    def elements(self) -> int:
        """N."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.elements * DTYPES[self.dtype][1] // 8

    @property
    def chunks(self) -> list[int]:
        """Elements of each chunk."""
        return [min(CHUNK, self.elements - start) for start in range(0, self.elements, CHUNK)]

    @cached_property
    def content(self) -> bytes:
        """The elements."""
        return noise(self.name, self.nbytes) if self.data is None else self.data

    @cached_property
    def digest(self) -> bytes:
        """Section 11.1."""
        return hashlib.sha256(self.content).digest()

    @cached_property
    def sampled_digest(self) -> bytes:
        """Section 11.2."""
        length = self.nbytes
        out = hashlib.sha256(struct.pack("<Q", length))
        if length <= 65536:
            out.update(self.content)
        else:
            for number in range(16):
                start = number * (length - 4096) // 15
                out.update(self.content[start : start + 4096])
        return out.digest()[:8]

    @property
    def key(self) -> tuple[Any, ...]:
        """The order of the records of `extra`."""
        return (self.name.encode(), DTYPES[self.dtype][0], len(self.shape), self.shape)

    def bare(self) -> Tensor:
        """The same without digests."""
        return replace(self, sha256=False, sampled=False)


class Segment(NamedTuple):
    """An encoded segment."""

    role: str
    codec: int
    parameter: int
    count: int
    data: bytes


@dataclass(frozen=True)
class Entry:
    """What the four kinds share."""

    tensor: Tensor
    digest: bool = field(default=True, kw_only=True)

    kind = ""
    dtype_name = ""

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the record that depend on the kind."""
        return {"dtype": DTYPES[self.tensor.dtype][0], "factor_dtype": 0, "flags": 0, "knob": 0, "active": 0}

    @property
    def vector_used(self) -> Vector | None:
        """The shared vector that it selects from, of a masked entry."""
        return None

    def segments(self) -> list[Segment]:
        """Its segments in order."""
        return []

    def hashed(self) -> bytes:
        """What the digest covers after the dimensions."""
        return b""

    @property
    def sha256(self) -> bytes | None:
        """Section 11.3, or None where it is not recorded."""
        if not self.digest:
            return None
        shape = self.tensor.shape
        head = struct.pack(f"<BBB{len(shape)}Q", KINDS[self.kind], self.fields["dtype"], len(shape), *shape)
        return hashlib.sha256(b"TSW1-entry\0" + head + self.hashed()).digest()

    def document(self) -> dict[str, Any]:
        """Keys of the entry that its kind alone has."""
        return {}


@dataclass(frozen=True)
class Ternary(Entry):
    """A switch. `active`, `negative`: flat element numbers, ascending; `masks`, `signs`: a coding, or one a chunk."""

    kind = "ternary"

    active: Sequence[int] = (0, 3, 4, 9)
    negative: Sequence[int] = (3, 9)
    dtype: str | None = None
    knob: int = HALF
    factor_dtype: str = "none"
    rows: bytes | None = None
    columns: bytes | None = None
    masks: Coding | Sequence[Coding] = BITMAP
    signs: Coding | Sequence[Coding] = BITMAP
    factors: Coding = RAW

    @property
    def fields(self) -> dict[str, Any]:
        """See `Entry.fields`."""
        return {
            "dtype": DTYPES[self.dtype or self.tensor.dtype][0],
            "factor_dtype": FACTORS[self.factor_dtype][0],
            "flags": 2 * (self.rows is not None) + 4 * (self.columns is not None),
            "knob": self.knob,
            "active": len(self.active),
        }

    @cached_property
    def planes(self) -> list[tuple[list[int], int, list[int], int]]:
        """For each chunk: ones and bits of the mask, ones and bits of the signs."""
        down = set(self.negative)
        out: list[tuple[list[int], int, list[int], int]] = []
        ones: list[list[int]] = [[] for _ in self.tensor.chunks]
        for element in self.active:
            ones[element // CHUNK].append(element)
        for number, bits in enumerate(self.tensor.chunks):
            mine = ones[number]
            signs = [i for i, element in enumerate(mine) if element in down]
            out.append(([element - number * CHUNK for element in mine], bits, signs, len(mine)))
        return out

    def segments(self) -> list[Segment]:
        """See `Entry.segments`."""
        out = []
        width = FACTORS[self.factor_dtype][1]
        for role, codes in (("row_factors", self.rows), ("column_factors", self.columns)):
            if codes is not None:
                out += array_segments(role, codes, len(codes) // width, width * 8, self.factors)
        for role, first, codings in (("mask", 0, self.masks), ("sign", 2, self.signs)):
            for number, plane in enumerate(self.planes):
                coding = codings if isinstance(codings, Coding) else codings[number]
                out.append(plane_segment(role, plane[first], plane[first + 1], coding))  # type: ignore[arg-type]
        return out

    def hashed(self) -> bytes:
        """See `Entry.hashed`."""
        fields = self.fields
        head = struct.pack("<IBB", self.knob, fields["factor_dtype"], fields["flags"])
        strings = [
            planes.bit_string(mask, bits) + planes.bit_string(signs, count) for mask, bits, signs, count in self.planes
        ]
        return head + (self.rows or b"") + (self.columns or b"") + b"".join(strings)

    def document(self) -> dict[str, Any]:
        """See `Entry.document`."""
        return {
            "knob": {"f32": f"{self.knob:08x}"},
            "active": len(self.active),
            "factor_dtype": self.factor_dtype,
            "row_factors": tagged(self.rows),
            "column_factors": tagged(self.columns),
            "mask": tagged(b"".join(planes.bit_string(mask, bits) for mask, bits, _, _ in self.planes)),
            "signs": [tagged(planes.bit_string(signs, count)) for _, _, signs, count in self.planes],
        }


@dataclass(frozen=True)
class Vector:
    """A shared vector: its record and elements, which are those of `tensor`, and how they are stored."""

    role = "vector"

    tensor: Tensor
    coding: Coding = RAW

    @property
    def key(self) -> tuple[Any, ...]:
        """The order of the records of `shared`."""
        return (*self.tensor.key, self.tensor.digest)

    def segments(self) -> list[Segment]:
        """Its segments in order."""
        bits = DTYPES[self.tensor.dtype][1]
        return array_segments("data", self.tensor.content, self.tensor.elements, bits, self.coding)

    def document(self) -> dict[str, Any]:
        """What a decoder prints of it."""
        return {
            "name": self.tensor.name,
            "role": self.role,
            "dtype": self.tensor.dtype,
            "shape": list(self.tensor.shape),
            "sha256": tagged(self.tensor.digest),
            "data": tagged(self.tensor.content),
        }


@dataclass(frozen=True)
class Features(Vector):
    """Samples of the task whose name `tensor` has."""

    role = "features"

    @property
    def key(self) -> tuple[Any, ...]:
        """The order of the records of `shared`."""
        return (*super().key, self.role)


@dataclass(frozen=True)
class Router:
    """Which tasks a sample needs."""

    features: Sequence[Features]
    k: int = 10
    metric: str = "euclidean"
    extractor: str = "an extractor"
    preprocessing: str = "resized"

    @property
    def ordered(self) -> list[Features]:
        """The features in order."""
        return sorted(self.features, key=lambda one: one.key)

    def hashed(self) -> bytes:
        """What the content id covers of it."""
        out = struct.pack("<I", len(self.features))
        for one in self.ordered:
            tensor = one.tensor
            out += _name(tensor.name) + struct.pack("<BB", DTYPES[tensor.dtype][0], len(tensor.shape))
            out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + tensor.digest
        out += struct.pack("<I", self.k)
        return out + b"".join(
            struct.pack("<I", len(text.encode())) + text.encode()
            for text in (self.metric, self.extractor, self.preprocessing)
        )

    def keys(self) -> dict[str, Any]:
        """Its map in the index."""
        return {
            "extractor": self.extractor,
            "k": self.k,
            "metric": self.metric,
            "preprocessing": self.preprocessing,
        }

    def document(self) -> dict[str, Any]:
        """What a decoder prints of it."""
        return {**self.keys(), "features": {one.tensor.name: tagged(one.tensor.digest) for one in self.ordered}}


@dataclass(frozen=True)
class Coefficients(Features):
    """The elements of the table whose name `tensor` has."""

    role = "coefficients"


@dataclass(frozen=True)
class Table:
    """How much of each task goes into each tensor. `rows`: names of base tensors; `clamp`: two binary32 as bits."""

    array: Coefficients
    rows: Sequence[str]
    tasks: Sequence[str]
    clamp: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """That of the array."""
        return self.array.tensor.name

    @property
    def ordered(self) -> list[str]:
        """The rows in order."""
        return sorted(self.rows, key=str.encode)

    @property
    def _bounds(self) -> bytes | None:
        return None if self.clamp is None else struct.pack("<II", *self.clamp)

    def hashed(self) -> bytes:
        """What the content id covers of it."""
        out = _name(self.name) + struct.pack("<II", len(self.rows), len(self.tasks))
        out += b"".join(map(_name, (*self.ordered, *self.tasks)))
        out += bytes(1) if self._bounds is None else b"\1" + self._bounds
        return out + self.array.tensor.digest

    def keys(self, numbers: Mapping[str, int]) -> dict[str, Any]:
        """Its map in the index. `numbers`: those of the base tensors."""
        rows = struct.pack(f"<{len(self.rows)}I", *(numbers[name] for name in self.ordered))
        return {
            **({} if self._bounds is None else {"clamp": self._bounds}),
            "rows": rows,
            "tasks": list(self.tasks),
        }

    def document(self) -> dict[str, Any]:
        """What a decoder prints of it."""
        return {
            "rows": self.ordered,
            "tasks": list(self.tasks),
            "clamp": None if self.clamp is None else [{"f32": f"{bound:08x}"} for bound in self.clamp],
            "sha256": tagged(self.array.tensor.digest),
        }


def tables_hashed(tables: Sequence[Table]) -> bytes:
    """What the content id covers of tables, where there are such."""
    if not tables:
        return b""
    ordered = sorted(tables, key=lambda table: table.name.encode())
    return b"TSW1-coefficients\0" + struct.pack("<I", len(tables)) + b"".join(table.hashed() for table in ordered)


@dataclass(frozen=True)
class Masked(Entry):
    """Elements of a shared vector that a mask selects. `active`, `masks`: as of a switch."""

    kind = "masked"

    vector: Vector
    active: Sequence[int] = (0, 3, 4, 9)
    dtype: str | None = None
    knob: int = ONE
    masks: Coding | Sequence[Coding] = BITMAP

    @property
    def fields(self) -> dict[str, Any]:
        """See `Entry.fields`."""
        dtype = DTYPES[self.dtype or self.tensor.dtype][0]
        return {"dtype": dtype, "factor_dtype": 0, "flags": 0, "knob": self.knob, "active": len(self.active)}

    @property
    def vector_used(self) -> Vector | None:
        """See `Entry.vector_used`."""
        return self.vector

    @cached_property
    def planes(self) -> list[tuple[list[int], int]]:
        """For each chunk: ones and bits of the mask."""
        ones: list[list[int]] = [[] for _ in self.tensor.chunks]
        for element in self.active:
            ones[element // CHUNK].append(element % CHUNK)
        return list(zip(ones, self.tensor.chunks, strict=True))

    def segments(self) -> list[Segment]:
        """See `Entry.segments`."""
        codings = [self.masks] * len(self.planes) if isinstance(self.masks, Coding) else self.masks
        return [
            plane_segment("mask", ones, bits, coding) for (ones, bits), coding in zip(self.planes, codings, strict=True)
        ]

    @property
    def _mask(self) -> bytes:
        return b"".join(planes.bit_string(ones, bits) for ones, bits in self.planes)

    def hashed(self) -> bytes:
        """See `Entry.hashed`."""
        vector = self.vector.tensor
        return struct.pack("<IB", self.knob, DTYPES[vector.dtype][0]) + vector.digest + self._mask

    def document(self) -> dict[str, Any]:
        """See `Entry.document`; `File.document` adds the vector's number."""
        return {"knob": {"f32": f"{self.knob:08x}"}, "active": len(self.active), "mask": tagged(self._mask)}


@dataclass(frozen=True)
class Dense(Entry):
    """A tensor given whole. `data`: its elements, or None for the tensor's own."""

    kind = "dense"

    data: bytes | None = None
    coding: Coding = RAW

    @property
    def content(self) -> bytes:
        """The elements."""
        return self.tensor.content if self.data is None else self.data

    def segments(self) -> list[Segment]:
        """See `Entry.segments`."""
        bits = DTYPES[self.tensor.dtype][1]
        return array_segments("data", self.content, self.tensor.elements, bits, self.coding)

    def hashed(self) -> bytes:
        """See `Entry.hashed`."""
        return self.content

    def document(self) -> dict[str, Any]:
        """See `Entry.document`."""
        return {"data": tagged(self.content)}


@dataclass(frozen=True)
class Removed(Entry):
    """A tensor that the expert has not."""

    kind = "removed"


@dataclass(frozen=True)
class Task:
    """A task."""

    name: str = "t"
    entries: Sequence[Entry] = ()
    recipe: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """A whole file. `content_id`: whether it has one; `extra` and `shared` follow from the entries."""

    base: Sequence[Tensor] = ()
    tasks: Sequence[Task] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    profile: str = "archive"
    content_id: bool = True
    id: str | None = None
    revision: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    writer: str = "hand"
    minor: int = 0
    router: Router | None = None
    tables: Sequence[Table] = ()

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The base's tensors in order."""
        return sorted(self.base, key=lambda t: t.name.encode())

    @cached_property
    def extra(self) -> list[Tensor]:
        """The tensors of `extra` in order."""
        known = {id(tensor) for tensor in self.base}
        found = {t.key: t for task in self.tasks for t in (e.tensor for e in task.entries) if id(t) not in known}
        return [found[key] for key in sorted(found)]

    @cached_property
    def shared(self) -> list[Vector]:
        """The shared arrays in order."""
        used = [entry.vector_used for task in self.tasks for entry in task.entries]
        used += [] if self.router is None else self.router.features
        used += [table.array for table in self.tables]
        found = {vector.key: vector for vector in used if vector is not None}
        return [found[key] for key in sorted(found)]

    def vector_number(self, entry: Entry) -> int | None:
        """The number of the vector that an entry selects from, if it does."""
        vector = entry.vector_used
        return None if vector is None else [one.key for one in self.shared].index(vector.key)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {id(tensor): number for number, tensor in enumerate(self.tensors)}

    @cached_property
    def _extra_numbers(self) -> dict[tuple[Any, ...], int]:
        return {tensor.key: len(self.base) + number for number, tensor in enumerate(self.extra)}

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor: objects of `base` are base tensors, all others are of `extra`."""
        found = self._numbers.get(id(tensor))
        return self._extra_numbers[tensor.key] if found is None else found

    def ordered(self, task: Task) -> list[Entry]:
        """The entries of a task in the order of their tensors."""
        return sorted(task.entries, key=lambda entry: self.number(entry.tensor))

    @cached_property
    def base_numbers(self) -> dict[str, int]:
        """Name -> number of a base tensor."""
        return {tensor.name: number for number, tensor in enumerate(self.tensors)}

    @cached_property
    def alias_numbers(self) -> dict[str, int]:
        """Alias -> number of a base tensor."""
        return {alias: self.base_numbers[target] for alias, target in self.aliases.items()}

    @cached_property
    def content_digest(self) -> bytes | None:
        """Section 11.4, or None where the file has none."""
        covered = self.hashed() + self._of_router + tables_hashed(self.tables)
        return hashlib.sha256(covered).digest() if self.content_id else None

    @property
    def _of_router(self) -> bytes:
        return b"" if self.router is None else self.router.hashed()

    def hashed(self) -> bytes:
        """What the content id covers, but for router and tables."""
        out = b"TSW1-content\0" + struct.pack("<I", len(self.base))
        for tensor in self.tensors:
            out += _name(tensor.name) + struct.pack("<BB", DTYPES[tensor.dtype][0], len(tensor.shape))
            out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + tensor.digest
        out += struct.pack("<I", len(self.aliases))
        for alias, number in sorted(self.alias_numbers.items(), key=lambda pair: pair[0].encode()):
            out += _name(alias) + struct.pack("<I", number)
        out += struct.pack("<I", len(self.tasks))
        for task in sorted(self.tasks, key=lambda task: task.name.encode()):
            out += _name(task.name) + struct.pack("<I", len(task.entries))
            for entry in self.ordered(task):
                out += _name(entry.tensor.name) + (entry.sha256 or bytes(32))
        return out

    def document(self) -> dict[str, Any]:
        """What a decoder prints of it."""
        return {
            "version": f"1.{self.minor}",
            "profile": self.profile,
            "writer": self.writer,
            "metadata": dict(self.metadata),
            "content_id": tagged(self.content_digest),
            "base": {
                "id": self.id,
                "revision": self.revision,
                "aliases": self.alias_numbers,
                "tensors": [
                    {
                        **_described(tensor),
                        "sha256": tagged(tensor.digest if tensor.sha256 else None),
                        "sampled": tagged(tensor.sampled_digest if tensor.sampled else None),
                    }
                    for tensor in self.tensors
                ],
            },
            "extra": [_described(tensor) for tensor in self.extra],
            **({"shared": [vector.document() for vector in self.shared]} if self.shared else {}),
            **({"coefficients": {table.name: table.document() for table in self.tables}} if self.tables else {}),
            **({} if self.router is None else {"router": self.router.document()}),
            "tasks": [
                {
                    "name": task.name,
                    "recipe": dict(task.recipe),
                    "checkpoint": dict(task.checkpoint),
                    "metadata": dict(task.metadata),
                    "entries": [
                        {
                            "tensor": self.number(entry.tensor),
                            "kind": entry.kind,
                            "dtype": _DTYPE_NAMES[entry.fields["dtype"]],
                            "sha256": tagged(entry.sha256),
                            **entry.document(),
                            **({} if entry.vector_used is None else {"vector": self.vector_number(entry)}),
                        }
                        for entry in self.ordered(task)
                    ],
                }
                for task in self.tasks
            ],
        }


_DTYPE_NAMES = {number: name for name, (number, _) in DTYPES.items()}


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _name(name: str) -> bytes:
    return struct.pack("<H", len(name.encode())) + name.encode()


def tagged(data: bytes | None) -> dict[str, Any] | None:
    """Bytes as the decoders print them."""
    if data is None:
        return None
    if len(data) <= 4096:
        return {"hex": data.hex()}
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def noise(seed: str, nbytes: int) -> bytes:
    """Bytes that depend on the seed alone."""
    return hashlib.shake_128(seed.encode()).digest(nbytes)


def plane_segment(role: str, ones: Sequence[int], bits: int, coding: Coding) -> Segment:
    """A plane, encoded."""
    codec, k, compress = coding
    squeeze = compress or (lambda data: data)
    if codec in ("zeros", "ones"):
        data = b""
    elif codec in ("bitmap", "bitmap_zstd"):
        data = squeeze(planes.bit_string(ones, bits))
    else:
        gaps = planes.gaps_of(ones)
        high = squeeze(planes.gap_bytes(gaps, k)) if codec == "gaps_zstd" else planes.unary(gaps, k)
        data = planes.low_parts(gaps, k) + high
    return Segment(role, CODECS[codec], k, len(ones), data)


def array_segments(role: str, data: bytes, elements: int, bits: int, coding: Coding) -> list[Segment]:
    """The chunks of factors or data, encoded."""
    out = []
    for start in range(0, elements, CHUNK):
        count = min(CHUNK, elements - start)
        part = data[start * bits // 8 : (start + count) * bits // 8]
        out.append(Segment(role, CODECS[coding.codec], 0, count, coding.compress(part) if coding.compress else part))
    return out
