"""Make the golden files of format version 1.0 and their manifest: run by hand, once for each version, never by a test.

    python tests/golden/make_golden.py [--new | --force]

A file that is there already is kept: golden files decode for ever, so they do not change; --new adds those that are not there,
also to the manifest. The manifest is what the reader of
spec/reference, which shares no code with the library, finds in the files.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format._checksum import sampled_digest, sha256
from tswitch_format._dtypes import DTYPE_BY_NAME, DType
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.codecs import bits, gaps, zstd
from tswitch_format.container import frame as framing
from tswitch_format.container.digest import EntryDigest
from tswitch_format.container.index import CoefficientKeys, Index, RouterKeys
from tswitch_format.container.reader import Container
from tswitch_format.container.segments import EncodedArray, EncodedEntry, EncodedSegment
from tswitch_format.container.tensors import Digests, TensorList
from tswitch_format.container.writer import ContainerWriter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "spec" / "reference"))

# Found by the line above.
from tsw_reference import File, numerics, read  # noqa: E402
from tsw_reference.application import Array, apply  # noqa: E402
from tsw_reference.codecs import unpack  # noqa: E402
from tsw_reference.digest import entry_digest  # noqa: E402
from tsw_reference.frame import read_frame  # noqa: E402
from tsw_reference.layout import DENSE, KINDS, SHARED_ROLES, TERNARY  # noqa: E402
from tsw_reference.model import Base, Router, Segment, Shared  # noqa: E402
from tsw_reference.model import Entry as ReferenceEntry  # noqa: E402
from tsw_reference.msgpack import decode  # noqa: E402

Plan = tuple[lay.Codec, int]
BITMAP: Plan = (lay.Codec.BITMAP, 0)
WRITER = "tests/golden/make_golden.py"


# ---------------------------------------------------------------------------------------------------------- ingredients


def noise(name: str, nbytes: int) -> bytes:
    """Bytes that depend on the name alone."""
    return hashlib.shake_128(name.encode()).digest(nbytes)


def numbers(elements: int, dtype: DType) -> bytes:
    """Elements of a float type: small multiples of 1/64."""
    values = ((np.arange(elements) * 37) % 129 - 64) / 64
    return b"".join(numerics.encode(dtype.id, value) for value in values.tolist())


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    """A tensor's name, type and shape."""
    return TensorSpec(name, DTYPE_BY_NAME[dtype], shape)


def content(tensor: TensorSpec) -> bytes:
    """A base tensor's elements."""
    if tensor.dtype.is_float:
        return numbers(tensor.elements, tensor.dtype)
    raw = noise(tensor.name, tensor.nbytes)
    return bytes(b & 1 for b in raw) if tensor.dtype.name == "BOOL" else raw


def digests(raw: bytes) -> Digests:
    """Both digests of a tensor's bytes."""
    whole = np.frombuffer(raw, np.uint8)

    def read(start: int, out: np.ndarray) -> None:
        out[:] = whole[start : start + out.size]

    return Digests(sha256(raw), sampled_digest(len(raw), read))


def plane(role: lay.Role, positions: np.ndarray, n: int, plan: Plan) -> EncodedSegment:
    """A plane in the codec that the plan says."""
    codec, k = plan
    packed = bits.pack_positions(positions, n).tobytes()
    encode: dict[lay.Codec, Callable[[], bytes]] = {
        lay.Codec.ZEROS: lambda: b"",
        lay.Codec.ONES: lambda: b"",
        lay.Codec.BITMAP: lambda: packed,
        lay.Codec.BITMAP_ZSTD: lambda: zstd.compress(packed, 3),
        lay.Codec.GAPS_ZSTD: lambda: gaps.encode_gaps(gaps.gaps_of(positions), k, 1),
        lay.Codec.RICE: lambda: gaps.encode_rice(gaps.gaps_of(positions), k),
    }
    return EncodedSegment.make(role, codec, k, positions.size, encode[codec]())


def arrays(role: lay.Role, raw: bytes, width: int, codec: lay.Codec) -> list[EncodedSegment]:
    """Factors or data of `width` bits an element, cut into chunks."""
    step = lay.CHUNK * width // 8
    parts = [raw[at : at + step] for at in range(0, len(raw), step)]
    return [
        EncodedSegment.make(
            role, codec, 0, len(part) * 8 // width, zstd.compress(part, 3) if codec is lay.Codec.ZSTD else part
        )
        for part in parts
    ]


def ternary(
    tensor: TensorSpec,
    mask: Sequence[int],
    plans: Sequence[Plan] = (BITMAP,),
    *,
    knob: float = 0.5,
    rows: np.ndarray | None = None,
    columns: np.ndarray | None = None,
    dtype: str | None = None,
    signs: Plan = BITMAP,
    negative: np.ndarray | None = None,
    factors: lay.Codec = lay.Codec.RAW,
    digest: bool = True,
) -> EncodedEntry:
    """A switch: `mask` holds the active elements; `plans` the codecs of the chunks of the mask."""
    target = DTYPE_BY_NAME[dtype] if dtype else tensor.dtype
    codes = rows if rows is not None else columns
    kinds = {"uint8": lay.FactorDType.U8, "float16": lay.FactorDType.F16, "float32": lay.FactorDType.F32}
    factor_dtype = kinds[codes.dtype.name] if codes is not None else lay.FactorDType.NONE
    flags = (lay.HAS_ROW_FACTORS if rows is not None else 0) | (lay.HAS_COLUMN_FACTORS if columns is not None else 0)
    found = EntryDigest(lay.Kind.TERNARY, target, tensor.shape)
    found.ternary(np.float32(knob), factor_dtype, flags)
    head: list[EncodedSegment] = []
    for role, part in ((lay.Role.ROW_FACTORS, rows), (lay.Role.COLUMN_FACTORS, columns)):
        if part is not None:
            found.update(part.tobytes())
            head += arrays(role, part.tobytes(), part.itemsize * 8, factors)
    active = np.array(mask, np.int64)
    down = negative if negative is not None else active * 7 // 3 % 2 == 1
    masks, planes = [], []
    for number in range(lay.chunks_of(tensor.elements)):
        start = number * lay.CHUNK
        here = (active >= start) & (active < start + lay.CHUNK)
        n = min(lay.CHUNK, tensor.elements - start)
        found.update(bits.pack_positions(active[here] - start, n))
        found.update(np.packbits(down[here], bitorder="little"))
        masks.append(plane(lay.Role.MASK, active[here] - start, n, plans[number]))
        planes.append(plane(lay.Role.SIGN, np.flatnonzero(down[here]), int(here.sum()), signs))
    return EncodedEntry(
        tensor,
        lay.Kind.TERNARY,
        target,
        [*head, *masks, *planes],
        found.digest() if digest else None,
        knob=np.float32(knob),
        factor_dtype=factor_dtype,
        flags=flags,
        active=active.size,
    )


def dense(
    tensor: TensorSpec, raw: bytes, *, added: bool = False, codec: lay.Codec = lay.Codec.RAW, digest: bool = True
) -> EncodedEntry:
    """A tensor that is given whole."""
    found = EntryDigest(lay.Kind.DENSE, tensor.dtype, tensor.shape)
    found.update(raw)
    segments = arrays(lay.Role.DATA, raw, tensor.dtype.bits, codec)
    return EncodedEntry(tensor, lay.Kind.DENSE, tensor.dtype, segments, found.digest() if digest else None, added=added)


def removed(tensor: TensorSpec) -> EncodedEntry:
    """A tensor that is not there."""
    digest = EntryDigest(lay.Kind.REMOVED, tensor.dtype, tensor.shape).digest()
    return EncodedEntry(tensor, lay.Kind.REMOVED, tensor.dtype, [], digest)


@dataclasses.dataclass(frozen=True)
class Vector:
    """A shared vector, features or coefficients: its record and its elements."""

    tensor: TensorSpec
    raw: bytes
    codec: lay.Codec = lay.Codec.RAW
    role: lay.SharedRole = lay.SharedRole.VECTOR

    @property
    def key(self) -> tuple[Any, ...]:
        """The order of section 5.5."""
        return (
            self.tensor.name.encode(),
            self.tensor.dtype.id,
            len(self.tensor.shape),
            self.tensor.shape,
            sha256(self.raw),
        )

    def encoded(self) -> EncodedArray:
        """As it is written."""
        segments = arrays(lay.Role.DATA, self.raw, self.tensor.dtype.bits, self.codec)
        return EncodedArray(self.role, self.tensor, sha256(self.raw), segments)


def vector(tensor: TensorSpec, dtype: str, seed: str = "", codec: lay.Codec = lay.Codec.RAW) -> Vector:
    """A vector of a tensor: multiples of 1/1024 that follow from the seed."""
    steps = np.frombuffer(noise(f"vector {tensor.name} {seed}", tensor.elements), np.int8)
    made = DTYPE_BY_NAME[dtype]
    raw = b"".join(numerics.encode(made.id, step / 1024) for step in steps.tolist())
    return Vector(spec(tensor.name, dtype, *tensor.shape), raw, codec)


def features(task: str, dtype: str, n: int, width: int = 6, codec: lay.Codec = lay.Codec.RAW) -> Vector:
    """Samples of a task: multiples of 1/64 that follow from its name."""
    steps = np.frombuffer(noise(f"features {task}", n * width), np.int8)
    made = DTYPE_BY_NAME[dtype]
    raw = b"".join(numerics.encode(made.id, step / 64) for step in steps.tolist())
    return Vector(spec(task, dtype, n, width), raw, codec, lay.SharedRole.FEATURES)


def coefficients(name: str, values: Sequence[Sequence[float]], codec: lay.Codec = lay.Codec.RAW) -> Vector:
    """The elements of a table."""
    raw = b"".join(numerics.encode(DTYPE_BY_NAME["F32"].id, value) for row in values for value in row)
    return Vector(spec(name, "F32", len(values), len(values[0])), raw, codec, lay.SharedRole.COEFFICIENTS)


def masked(
    tensor: TensorSpec,
    over: Vector,
    mask: Sequence[int],
    plans: Sequence[Plan] = (BITMAP,),
    *,
    knob: float = 1.0,
    dtype: str | None = None,
) -> tuple[EncodedEntry, Vector]:
    """A masked entry and its vector, whose number is known when all vectors are."""
    target = DTYPE_BY_NAME[dtype] if dtype else tensor.dtype
    found = EntryDigest(lay.Kind.MASKED, target, tensor.shape)
    found.masked(np.float32(knob), over.tensor.dtype.id, sha256(over.raw))
    active = np.array(mask, np.int64)
    masks = []
    for number, start in enumerate(range(0, tensor.elements, lay.CHUNK)):
        here = active[active // lay.CHUNK == number] - start
        n = min(lay.CHUNK, tensor.elements - start)
        found.update(bits.pack_positions(here, n))
        masks.append(plane(lay.Role.MASK, here, n, plans[number]))
    entry = EncodedEntry(
        tensor, lay.Kind.MASKED, target, masks, found.digest(), knob=np.float32(knob), active=active.size
    )
    return entry, over


def order(entries: Sequence[EncodedEntry]) -> list[EncodedEntry]:
    """Entries as a task has them."""
    return sorted(entries, key=lambda e: (e.added, e.spec.name.encode(), e.spec.dtype.id, e.spec.shape))


def write(
    path: Path,
    base: Sequence[TensorSpec],
    tasks: Mapping[str, Sequence[EncodedEntry]],
    *,
    digest: bool = True,
    vectors: Sequence[Vector] = (),
    **kw: Any,
) -> None:
    """A file of these tasks and vectors; the latter are in order."""
    base = sorted(base, key=lambda s: s.name.encode())
    found = [digests(content(s)) for s in base] if digest else None
    names = [s.name for s in base]
    kw["aliases"] = {alias: names.index(name) for alias, name in kw.pop("aliases", {}).items()}
    header = Index(TensorList.build(base, found), writer=WRITER, **kw)
    with ContainerWriter(path, header) as writer:
        for one in vectors:
            writer.add_shared(one.encoded())
        for name, entries in tasks.items():
            writer.begin_task(
                name,
                recipe={"select": "tensor", "density": "0.02", "knob": "mean", "knob_per": "tensor"},
                checkpoint={"format": "pt"},
                metadata={"remark": "Änderung ✓"},
            )
            for entry in order(entries):
                writer.add(entry)
        writer.finish()
        writer.commit()


# ------------------------------------------------------------------------------------------------------------ the files


def smallest(path: Path) -> None:
    """The file of the specification's hex dump: its index is stored as it is."""
    w = spec("w", "F32", 2, 5)
    entry = ternary(w, [0, 3, 4, 9], negative=np.array([False, True, False, True]))
    header = Index(TensorList.build([w], [digests(content(w))]), writer="hand")
    with ContainerWriter(path, header) as writer:
        writer.begin_task("t", recipe={}, checkpoint={}, metadata={})
        writer.add(entry)
        writer.finish()
        writer.commit()
    container = Container(path)
    document = container.index.encode()
    start = container.frame.index_offset
    segments = path.read_bytes()[64:start]
    prologue, trailer = framing.build(
        framing.Frame(start, len(document), len(document), lay.Encoding.RAW, sha256(document))
    )
    path.write_bytes(prologue + segments + document + trailer)


# Codecs, each with a mask of 4,096 elements that it can hold.
_FEW = [3, 257, 512, 1213, 1214, 2000, 4095]  # gaps of 253, 254, 700, 0, 785: with and without bytes 255
_MANY = [i for i in range(4096) if i * i % 11 in (3, 4, 5) or i % 97 == 0]
CODECS: dict[str, tuple[Plan, Sequence[int]]] = {
    "zeros": ((lay.Codec.ZEROS, 0), []),
    "ones": ((lay.Codec.ONES, 0), range(4096)),
    "bitmap": ((lay.Codec.BITMAP, 0), _MANY),
    "bitmap_zstd": ((lay.Codec.BITMAP_ZSTD, 0), _MANY),
    **{f"gaps_zstd.{k}": ((lay.Codec.GAPS_ZSTD, k), _FEW if k != 1 else _MANY) for k in (0, 1, 3, 8, 20)},
    "gaps_zstd.escape": ((lay.Codec.GAPS_ZSTD, 0), [255, 511, 1022, 1532, 4095]),
    **{f"rice.{k}": ((lay.Codec.RICE, k), _FEW if k != 1 else _MANY) for k in (0, 1, 5, 20)},
}
FLOATS = [spec(name, name.upper(), 8, 16) for name in ("f16", "bf16", "f32", "f64")]
EVERY = range(0, 128, 3)


def archive(path: Path) -> None:
    """Every codec, kind, dtype and form of factors; three tasks."""
    f16, bf16, f32, f64 = FLOATS
    more = [
        spec("conv", "F32", 4, 3, 2, 2),
        spec("bias", "F32", 16),
        spec("scalar", "F32"),
        spec("empty", "F32", 0, 4),
        spec("cast.down", "F32", 8, 16),
        spec("cast.up", "BF16", 8, 16),
        spec("gone", "F32", 3),
        spec("reshaped", "F32", 4),
        spec("retyped", "I32", 3),
        spec("same", "F16", 5),
        spec("sparse", "BF16", 600000),
        spec("größe.重み", "F16", 10),
    ]
    whole = [spec(f"dense.{name}", name, 2, 4) for name in DTYPE_BY_NAME]
    whole += [spec("dense.0d", "I64"), spec("dense.empty", "F16", 3, 0), spec("dense.zstd", "U8", 500)]
    coded = [spec(f"codec.{name}", "F16", 4096) for name in CODECS]
    by_name = {s.name: s for s in (*more, *whole, *coded)}
    codes = np.frombuffer(noise("codes", 128), np.uint8)
    small = np.arange(1, 25)
    first = [
        ternary(f16, EVERY, knob=0.03, rows=codes[:8]),
        ternary(bf16, EVERY, knob=0.3, rows=(small[:8] / 8).astype("<f2"), columns=(small[:16] / 16).astype("<f2")),
        ternary(f32, EVERY, knob=1e-3, rows=(small[:8] / 7).astype("<f4"), columns=(small[:16] / 11).astype("<f4")),
        ternary(f64, EVERY, knob=-0.1, columns=codes[:16], factors=lay.Codec.ZSTD),
        ternary(by_name["conv"], range(0, 48, 5), rows=codes[:4], columns=codes[4:16]),
        ternary(by_name["bias"], [0, 15], knob=2**-140),
        ternary(by_name["scalar"], [0], signs=(lay.Codec.ONES, 0), negative=np.array([True])),
        ternary(by_name["empty"], [], ()),
        ternary(by_name["cast.down"], EVERY, dtype="F16", knob=1 / 3),
        ternary(by_name["cast.up"], EVERY, dtype="F64", knob=1 / 3, columns=codes[:16]),
        ternary(by_name["sparse"], range(77, 600000, 3779), [(lay.Codec.RICE, 11)], knob=0.01),
        ternary(by_name["größe.重み"], [0, 3, 4, 9], knob=0.25),
        removed(by_name["gone"]),
        dense(spec("reshaped", "F32", 2, 3), numbers(6, DTYPE_BY_NAME["F32"]), added=True),
        dense(spec("retyped", "I64", 3), noise("retyped", 24), added=True),
        dense(spec("added.F8_E4M3", "F8_E4M3", 4), b"\0\1\2\3", added=True),
        dense(spec("added.0d", "F64"), bytes(8), added=True),
        dense(spec("added.empty", "C64", 0), b"", added=True),
    ]
    plain = {**by_name}
    first += [ternary(plain[f"codec.{name}"], mask, [plan]) for name, (plan, mask) in CODECS.items()]
    for s in whole:
        first.append(
            dense(s, bytes(500), codec=lay.Codec.ZSTD) if s.name == "dense.zstd" else dense(s, content(s)[::-1])
        )
    second = [
        ternary(f32, range(1, 128, 2), knob=2.0, signs=(lay.Codec.RICE, 0)),
        ternary(bf16, range(5), [(lay.Codec.GAPS_ZSTD, 2)], signs=(lay.Codec.BITMAP_ZSTD, 0)),
        dense(spec("reshaped", "F32", 2, 3), numbers(6, DTYPE_BY_NAME["F32"]), added=True),
        dense(spec("reshaped2", "F32", 1), bytes(4), added=True),
        dense(spec("tied", "F32", 1), b"\0\0\x80?", added=True),
        removed(by_name["same"]),
    ]
    write(
        path,
        [*FLOATS, *more, *whole, *coded],
        {"eins": first, "Übersetzung 翻訳": second, "empty": []},
        aliases={"tied": "f32", "größe.tied": "größe.重み"},
        base_id="golden/base",
        base_revision="1",
        metadata={"remark": "every codec", "": "an empty key"},
    )


def chunks(path: Path) -> None:
    """Tensors, factors and data of several chunks."""
    long = spec("long", "F16", lay.CHUNK + 5)
    tall = spec("tall", "F32", lay.CHUNK + 3, 2)
    wide = spec("wide", "BF16", 1, lay.CHUNK + 7)
    data = spec("data", "U8", lay.CHUNK + 9)
    exact = spec("exact", "F16", 2, lay.CHUNK // 2)
    rows = np.full(lay.CHUNK + 3, 85, np.uint8)
    columns = np.full(lay.CHUNK + 7, 1.5, "<f2")
    entries = [
        ternary(
            long,
            [*range(0, lay.CHUNK, 9001), lay.CHUNK, lay.CHUNK + 4],
            [(lay.Codec.RICE, 12), (lay.Codec.BITMAP, 0)],
        ),
        ternary(
            tall,
            [0, lay.CHUNK - 1, 2 * lay.CHUNK + 5],
            [(lay.Codec.GAPS_ZSTD, 12), (lay.Codec.ZEROS, 0), (lay.Codec.BITMAP, 0)],
            rows=rows,
            factors=lay.Codec.ZSTD,
        ),
        ternary(
            wide,
            [*range(300, lay.CHUNK, 7000), lay.CHUNK + 6],
            [(lay.Codec.GAPS_ZSTD, 0), (lay.Codec.RICE, 0)],
            columns=columns,
            factors=lay.Codec.ZSTD,
        ),
        ternary(exact, [lay.CHUNK - 1], [(lay.Codec.GAPS_ZSTD, 20)]),
        dense(data, bytes(lay.CHUNK) + b"123456789", codec=lay.Codec.ZSTD),
    ]
    write(path, [long, tall, wide, data, exact], {"t": entries})


def bare(path: Path) -> None:
    """Without any digest, and so without a content id."""
    a, b = spec("a", "F32", 2, 5), spec("b", "U8", 3)
    entries = [ternary(a, [0, 3, 4, 9], digest=False), dense(b, b"xyz", digest=False)]
    write(path, [a, b], {"t": entries}, digest=False)


def nothing(path: Path) -> None:
    """No base tensor and no task."""
    write(path, [], {})


def packed(path: Path) -> None:
    """What `pack` and `bundle` make."""
    base = {
        "a": np.frombuffer(numbers(4000, DTYPE_BY_NAME["F32"]), "<f4").reshape(40, 100),
        "b": np.frombuffer(numbers(500, DTYPE_BY_NAME["F16"]), "<f2"),
        "c": np.arange(7),
    }
    recipes: list[dict[str, Any]] = [{"density": 0.05}, {"preset": "paper"}, {"select": "global", "density": 0.3}]
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number, options in enumerate(recipes):
            tuned = {"c": base["c"] + number}
            for name in ("a", "b"):
                step = np.frombuffer(noise(f"{name}{number}", base[name].size), np.int8).astype(base[name].dtype) / 512
                tuned[name] = base[name] + step.reshape(base[name].shape)
            out = Path(folder) / f"{number}.tsw"
            tsw.pack(base, tuned, out, task=f"task {number}", dense=["c"], threads=1, **options)
            made.append(out)
        tsw.bundle(made, path)


def mapped(path: Path) -> None:
    """The content of archive.tsw in the other profile."""
    tsw.repack(HERE / "archive.tsw", path, profile="mapped")


def shared(path: Path) -> None:
    """Masked entries: every float type of vectors, bases and experts, every codec, several tasks and vectors of one name."""
    floats = {name: spec(f"{name}.w", name, 6, 8) for name in ("F16", "BF16", "F32", "F64")}
    wide, empty, scalar = spec("wide", "F16", lay.CHUNK + 9), spec("empty", "BF16", 0, 3), spec("scalar", "F32")
    switched, whole, gone = spec("switched", "F32", 5), spec("whole", "I8", 4), spec("zzz", "F32", 2)
    coded = spec("coded", "BF16", 4096)
    over = {(here, kept): vector(s, kept) for here, s in floats.items() for kept in floats}
    long = Vector(spec("wide", "BF16", *wide.shape), b"\x80\x3c" * wide.elements, lay.Codec.ZSTD)
    one, other = (
        vector(coded, "BF16", seed, codec) for seed, codec in (("one", lay.Codec.RAW), ("other", lay.Codec.ZSTD))
    )
    few = range(0, 48, 5)
    first = [masked(floats[here], over[here, here], few) for here in floats]
    first += [
        masked(wide, long, [0, lay.CHUNK - 1, lay.CHUNK, lay.CHUNK + 8], [(lay.Codec.RICE, 17), BITMAP]),
        masked(empty, vector(empty, "F16"), [], ()),
        masked(scalar, vector(scalar, "F64"), [0]),
    ]
    tasks: dict[str, list[tuple[EncodedEntry, Vector | None]]] = {"own": [*first]}
    for number, (here, tensor) in enumerate(floats.items()):
        for knob, to, kept in zip(
            (0.5, -1.0, 1 / 3, 1.0), floats, list(floats)[number:] + list(floats)[:number], strict=True
        ):
            made = masked(tensor, over[here, kept], few[number:], knob=knob, dtype=to)
            tasks.setdefault(f"{kept} in {to}", []).append(made)
    for name, (plan, mask) in CODECS.items():
        tasks[name] = [masked(coded, other if "zstd" in name else one, mask, [plan])]
    tasks["all kinds"] = [
        masked(floats["F32"], over["F32", "BF16"], range(48)),
        (ternary(switched, [1, 4]), None),
        (dense(whole, b"abcd"), None),
        (removed(gone), None),
    ]
    used = sorted(
        {v.key: v for pairs in tasks.values() for _, v in pairs if v is not None}.values(), key=lambda v: v.key
    )
    place = {v.key: number for number, v in enumerate(used)}
    entries = {
        name: [e if v is None else dataclasses.replace(e, vector=place[v.key]) for e, v in pairs]
        for name, pairs in tasks.items()
    }
    base = [*floats.values(), wide, empty, scalar, switched, whole, gone, coded]
    write(
        path, base, entries, vectors=used, aliases={"tied": "F32.w"}, metadata={"remark": "masks over shared vectors"}
    )


def shared_mapped(path: Path) -> None:
    """A masked tensor, and a vector at a page, in the profile `mapped`."""
    a, b = spec("a", "F32", 8, 9), spec("b", "F16", 33_000)
    vectors = [vector(a, "F16"), Vector(spec("b", "BF16", 33_000), b"\x80\x3c" * 33_000)]
    entries = {
        "t": [masked(a, vectors[0], range(0, 72, 7)), masked(b, vectors[1], range(5, 33_000, 401))],
        "u": [masked(b, vectors[1], range(32_990, 33_000), knob=-2.0)],
    }
    tasks = {
        name: [dataclasses.replace(e, vector=vectors.index(v)) for e, v in pairs] for name, pairs in entries.items()
    }
    write(path, [a, b], tasks, vectors=vectors, profile="mapped")


def router(path: Path) -> None:
    """A router: tasks with features of both types, one without, one with the name of a vector."""
    a, w = spec("a", "F32", 4, 6), spec("w", "F16", 10)
    vectors = [vector(a, "F32"), vector(w, "BF16")]
    samples = [
        features("a", "F32", 4),
        features("größe 翻訳", "F16", 300, codec=lay.Codec.ZSTD),
        features("t", "F16", 1),
    ]
    shared = sorted([*vectors, *samples], key=lambda v: v.key)
    over = [shared.index(one) for one in vectors]
    tasks = {
        "t": [dataclasses.replace(masked(a, vectors[0], range(0, 24, 5))[0], vector=over[0])],
        "größe 翻訳": [ternary(w, [0, 3, 4, 9])],
        "none": [dataclasses.replace(masked(w, vectors[1], [1, 2], knob=-0.5)[0], vector=over[1])],
        "a": [],
    }
    keys = RouterKeys(10, "cosine", "somebody/extractor@1, mean of the last layer", "größe 224 ✓")
    write(path, [a, w], tasks, vectors=shared, router=keys)


def router_mapped(path: Path) -> None:
    """Features at a page in the profile `mapped`, the other metric, no words."""
    w = spec("w", "F32", 2, 5)
    large = Vector(spec("t", "F16", 8200, 4), b"\x00\x3c" * 32_800, role=lay.SharedRole.FEATURES)
    small = features("u", "F32", 3, 4)
    tasks = {"t": [ternary(w, [0, 3, 4, 9])], "u": [ternary(w, [1])]}
    keys = RouterKeys(lay.MAX_NEIGHBOURS, "euclidean", "", "")
    write(path, [w], tasks, vectors=[large, small], router=keys, profile="mapped")


def tables(path: Path) -> None:
    """Tables with and without a clamp, in two codecs, one with the name of a tensor that has a vector, one with that of a task
    with samples; layers of the tasks."""
    a, w, c = spec("a", "F32", 4, 6), spec("w", "F16", 10), spec("c", "I32", 3)
    over = vector(a, "F32")
    arrays_of = [
        over,
        features("t", "F32", 2),
        coefficients("a", [[1.5, -0.25, 0.5], [0.0, 1e-45, -0.0]]),
        coefficients("t", [[0.75]]),
        coefficients("größe 翻訳", [[3.0, 2.0]] * 2, lay.Codec.ZSTD),
    ]
    shared = sorted(arrays_of, key=lambda v: v.key)
    described = {
        "a": CoefficientKeys(np.array([0, 2], "<u4"), ["größe 翻訳", "u", "t"], (0.0, 1.0)),
        "t": CoefficientKeys(np.array([2], "<u4"), ["u"]),
        "größe 翻訳": CoefficientKeys(np.array([0, 1], "<u4"), ["t", "u"], (-0.5, -0.5)),
    }
    tasks = {
        "t": [ternary(a, range(0, 24, 3)), layer("head.weight", "F32", 2, 4)],
        "u": [dataclasses.replace(masked(a, over, range(1, 24, 5))[0], vector=shared.index(over)), ternary(w, [0, 9])],
        "größe 翻訳": [ternary(w, [0, 3, 4]), layer("head.weight", "F32", 3, 4), layer("head.bias", "F32", 3)],
        "none": [],
    }
    keys = RouterKeys(1, "euclidean", "", "")
    write(path, [a, w, c], tasks, vectors=shared, router=keys, coefficients=described, aliases={"tied": "w"})


def layer(name: str, dtype: str, *shape: int) -> EncodedEntry:
    """A tensor that the base has not."""
    tensor = spec(name, dtype, *shape)
    return dense(tensor, content(tensor), added=True)


def tables_mapped(path: Path) -> None:
    """Coefficients at a page in the profile `mapped`, 128 tensors by 128 tasks, and others that are no page."""
    base = [spec(f"{number:03}", "F32", 2) for number in range(128)]
    tasks = [f"task {number:03}" for number in range(128)]
    large = coefficients("all", [[(row * 37 + column) % 129 / 64 - 1 for column in range(128)] for row in range(128)])
    small = coefficients("some", [[0.5], [-2.0]])
    described = {
        "all": CoefficientKeys(np.arange(128, dtype="<u4"), tasks[::-1], (0.0, 1.0)),
        "some": CoefficientKeys(np.array([7, 127], "<u4"), tasks[5:6]),
    }
    entries = {task: [ternary(base[number], [number % 2])] for number, task in enumerate(tasks)}
    write(path, base, entries, vectors=[large, small], coefficients=described, profile="mapped")


FILES: dict[str, Callable[[Path], None]] = {
    "smallest.tsw": smallest,
    "archive.tsw": archive,
    "mapped.tsw": mapped,
    "chunks.tsw": chunks,
    "bare.tsw": bare,
    "nothing.tsw": nothing,
    "packed.tsw": packed,
    "shared.tsw": shared,
    "shared_mapped.tsw": shared_mapped,
    "router.tsw": router,
    "router_mapped.tsw": router_mapped,
    "tables.tsw": tables,
    "tables_mapped.tsw": tables_mapped,
}


# --------------------------------------------------------------------------------------------------------- the manifest


def describe(path: Path) -> dict[str, Any]:
    """What the reference reader finds in a file."""
    raw = path.read_bytes()
    file = read(raw)
    tensors = file.base.tensors
    said = describe_tables(raw)
    vectors = [describe_shared(file, one) for one in file.shared]
    return {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "bytes": len(raw),
        "profile": file.profile,
        "content_id": file.content_id.hex() if file.content_id else None,
        "base": {t.name: [DTYPE_NAMES[t.dtype], list(t.shape)] for t in tensors},
        "aliases": {alias: tensors[number].name for alias, number in file.base.aliases.items()},
        **({"shared": vectors} if vectors else {}),
        **({"router": describe_router(file.router)} if file.router else {}),
        **({"coefficients": said} if said else {}),
        "tasks": {task.name: [describe_entry(file, e) for e in task.entries] for task in file.tasks},
    }


DTYPE_NAMES = {d.id: name for name, d in DTYPE_BY_NAME.items()}


def describe_shared(file: File, array: Shared) -> dict[str, Any]:
    """What the reference reader finds in a shared array."""
    data = b"".join(map(file.content, array.data))
    dtype = DTYPE_NAMES[array.tensor.dtype]
    return {
        "name": array.tensor.name,
        "role": SHARED_ROLES[array.role],
        "dtype": dtype,
        "shape": list(array.tensor.shape),
        "sha256": array.sha256.hex(),
        "data": hashlib.sha256(data).hexdigest(),
    }


def describe_router(keys: Router) -> dict[str, Any]:
    """What the reference reader finds of a router; its features are shared arrays."""
    return {
        "extractor": keys.extractor,
        "k": keys.k,
        "metric": keys.metric,
        "preprocessing": keys.preprocessing,
    }


def describe_tables(raw: bytes) -> dict[str, Any]:
    """What the index says of tables; their elements are shared arrays."""
    frame = read_frame(raw)
    index = raw[frame.index_offset : frame.index_offset + frame.index_length]
    if frame.index_encoding:
        index = unpack(index, frame.index_decoded_length, "index", frame.index_offset)
    document: Any = decode(index)
    return {
        name: {key: value if isinstance(value, list) else bytes(value).hex() for key, value in table.items()}
        for name, table in document.get("coefficients", {}).items()
    }


def describe_entry(file: File, entry: ReferenceEntry) -> dict[str, Any]:
    """What the reference reader finds in an entry; SHA-256 of planes and arrays, all chunks one after the other."""
    found: dict[str, Any] = {
        "name": entry.tensor.name,
        "kind": KINDS[entry.kind],
        "dtype": DTYPE_NAMES[entry.dtype],
        "shape": list(entry.tensor.shape),
        "digest": entry_digest(file, entry).hex(),
    }
    parts: dict[str, list[Segment]] = {}
    if entry.kind == TERNARY:
        found |= {"knob": entry.knob[::-1].hex(), "active": entry.active, "factor_dtype": entry.factor_dtype}
        parts = {"mask": entry.masks, "sign": entry.signs}
        if entry.flags & lay.HAS_ROW_FACTORS:
            parts["row_factors"] = entry.row_factors
        if entry.flags & lay.HAS_COLUMN_FACTORS:
            parts["column_factors"] = entry.column_factors
    elif entry.vector is not None:
        found |= {"knob": entry.knob[::-1].hex(), "active": entry.active, "vector": entry.vector.tensor.number}
        parts = {"mask": entry.masks}
    elif entry.kind == DENSE:
        parts = {"data": entry.data}
    return found | {
        name: hashlib.sha256(b"".join(map(file.content, segments))).hexdigest() for name, segments in parts.items()
    }


def applied() -> list[dict[str, Any]]:
    """Small tensors of archive.tsw with what comes out when one task is applied to them."""
    file = read((HERE / "archive.tsw").read_bytes())
    found = []
    task = file.tasks[0]
    by_name = {e.tensor.name: e for e in task.entries}
    for name in (*(s.name for s in FLOATS), "cast.down", "cast.up", "conv", "bias", "scalar"):
        entry = by_name[name]
        tensor = entry.tensor
        base = numbers(tensor.elements, DTYPE_BY_NAME[DTYPE_NAMES[tensor.dtype]])
        alone = dataclasses.replace(
            file, base=Base(None, None, {}, [tensor]), tasks=[dataclasses.replace(task, entries=[entry])]
        )
        given = {name: Array(DTYPE_NAMES[tensor.dtype], tensor.shape, base)}
        for coefficient in (1.0, -0.3):
            result = apply(alone, given, [(task.name, coefficient)])[name].data
            found.append(
                {"name": name, "coefficient": coefficient, "base": base.hex(), "result": result.hex()},
            )
    return found


def applied_masks() -> list[dict[str, Any]]:
    """The float tensors of shared.tsw with what comes out when each of its tasks is applied to them."""
    file = read((HERE / "shared.tsw").read_bytes())
    found = []
    for task in file.tasks:
        for entry in task.entries:
            tensor = entry.tensor
            if entry.vector is None or not tensor.name.endswith(".w"):
                continue
            base = numbers(tensor.elements, DTYPE_BY_NAME[DTYPE_NAMES[tensor.dtype]])
            alone = dataclasses.replace(
                file, base=Base(None, None, {}, [tensor]), tasks=[dataclasses.replace(task, entries=[entry])]
            )
            given = {tensor.name: Array(DTYPE_NAMES[tensor.dtype], tensor.shape, base)}
            for coefficient in (1.0, -0.3):
                result = apply(alone, given, [(task.name, coefficient)])[tensor.name].data
                found.append(
                    {"task": task.name, "name": tensor.name, "coefficient": coefficient, "base": base.hex()}
                    | {"result": result.hex()}
                )
    return found


def readable(value: Any, depth: int = 0) -> str:
    """JSON with a line for each member down to entries and dtypes."""
    flat = json.dumps(value, ensure_ascii=False)
    if (
        not isinstance(value, dict | list)
        or len(flat) < 100
        or not any(isinstance(m, dict | list) for m in members(value))
    ):
        return flat
    inner = "\n" + " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{json.dumps(k, ensure_ascii=False)}: {readable(m, depth + 1)}" for k, m in value.items()]
    else:
        lines = [readable(m, depth + 1) for m in value]
    text = "".join(f"{inner}{line}," for line in lines)[:-1] + "\n" + " " * depth
    return f"{{{text}}}" if isinstance(value, dict) else f"[{text}]"


def members(value: Any) -> list[Any]:
    """Members of a dict or list but for shapes."""
    found = list(value.values() if isinstance(value, dict) else value)
    return [m for key, m in zip(value, found, strict=True) if key != "shape"]


def main() -> int:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="write existing files anew")
    parser.add_argument("--new", action="store_true", help="write files that are not there, and keep the others")
    arguments = parser.parse_args()
    there = [name for name in (*FILES, "manifest.json") if (HERE / name).exists()]
    if there and not arguments.force and not arguments.new:
        print(f"{', '.join(there)}: there already and not to be changed; --force writes them anew", file=sys.stderr)
        return 1
    for name, make in FILES.items():
        if arguments.force or name not in there:
            make(HERE / name)
    manifest = {
        "format": lay.FORMAT_VERSION,
        "files": {name: describe(HERE / name) for name in FILES},
        "applied": {"file": "archive.tsw", "task": "eins", "tensors": applied()},
        "applied_masks": {"file": "shared.tsw", "tensors": applied_masks()},
    }
    (HERE / "manifest.json").write_text(readable(manifest) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
