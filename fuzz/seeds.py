"""What each harness begins with: the golden files and test vectors of the repository, and small inputs made here."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import tswitch_format as tsw
from fuzz import parts
from fuzz.memory import Slot, written_to_memory
from tswitch_format import _layout as lay
from tswitch_format.checkpoint import CheckpointReader, open_checkpoint
from tswitch_format.codecs import bits, gaps, zstd
from tswitch_tools.carrier import DOCUMENT_KEY, all_tensors
from tswitch_tools.carrier_document import from_json
from tswitch_tools.exporters import safetensors_carrier as exporter

ROOT = Path(__file__).parent.parent
_LARGEST = 12_000  # bytes; larger files slow every input down
_FEW = 10_000  # elements, the same


@cache
def _read() -> list[bytes]:
    """Golden files and test vectors that are small, also decompressed."""
    paths = sorted((ROOT / "tests" / "golden").glob("*.tsw")) + sorted((ROOT / "spec" / "vectors").glob("*/*.tsw"))
    found = [path.read_bytes() for path in paths if path.stat().st_size <= _LARGEST]
    return [data for data in found if int.from_bytes(data[12:16], "little") <= _LARGEST]


@cache
def files() -> list[bytes]:
    """Whole .tsw files of little content: golden files, test vectors of all kinds, `packed`, and each of them without
    digests and compression."""
    made = []
    small = [data for data in _read() if _elements(data) <= _FEW] + packed()
    for data in small:
        try:
            apart = parts.Parts.of(data)
            apart.compressed = False
            apart.forget_digests()
            made.append(apart.build())
        except (ValueError, TypeError, KeyError):  # a vector that cannot be taken apart
            continue
    return list(dict.fromkeys(small + made))


@cache
def large_files() -> list[bytes]:
    """Files of tensors of several chunks."""
    return [data for data in _read() if _elements(data) > _FEW]


def _elements(data: bytes) -> int:
    """Elements of the chunks that a file says it has, about."""
    try:
        apart = parts.Parts.of(data)
        return sum(int(apart.table(owner, "segments")["count"].sum()) for owner in apart.owners())
    except (ValueError, TypeError, KeyError):
        return 0


@cache
def packed() -> list[bytes]:
    """Small files with an entry of every kind, factors of every type, an added and a tied tensor, in both profiles."""
    rng = np.random.default_rng(3)
    base: dict[str, Any] = {
        "a": rng.standard_normal((6, 5)).astype(np.float32),
        "b": rng.standard_normal((2, 3, 2)).astype(np.float16),
        "c": rng.standard_normal(7),
        "counts": np.arange(3),
        "gone": np.ones(2, np.float32),
    }
    expert = {name: array + rng.standard_normal(array.shape).astype(array.dtype) for name, array in base.items()}
    expert = {name: expert[name].astype(array.dtype) for name, array in base.items() if name != "gone"}
    expert["more"] = np.ones((2, 2), np.float32)
    base["tied"] = base["a"]
    expert["tied"] = expert["a"]
    found = []
    slot = Slot("seed")
    with written_to_memory():
        for per, stored, profile in (("row-col", "u8", "archive"), ("row", "f16", "mapped"), ("row", "f32", "archive")):
            options = {"knob_per": per, "knob_dtype": stored, "profile": profile, "threads": 1}
            tsw.pack(base, expert, slot.path, density=0.4, on_mismatch="dense", **options)  # type: ignore[arg-type]
            found.append(slot.get())
        for name in ("smallest", "nothing"):
            tsw.repack(ROOT / "tests" / "golden" / f"{name}.tsw", slot.path, profile="mapped", threads=1)
            found.append(slot.get())
        for profile in lay.PROFILES:
            masked_file(base, slot.path, rng, profile)
            found.append(slot.get())
    return found


def masked_file(base: dict[str, Any], path: Path, rng: np.random.Generator, profile: str) -> None:
    """Write masks of three tasks over shared vectors of the float tensors of a base."""
    floats = {name: array for name, array in base.items() if array.dtype.kind == "f" and name != "tied"}
    stored = dict(zip(floats, (np.float16, np.float32, np.float64, np.float16), strict=False))
    vectors = {
        name: tsw.GivenVector.of_array(np.asarray(rng.standard_normal(array.shape), stored[name]))
        for name, array in floats.items()
    }
    tasks = [
        tsw.GivenTask(task, {n: tsw.GivenMask.of_flags(rng.random(a.shape) < share, knob) for n, a in floats.items()})
        for task, share, knob in (("half", 0.5, 1.0), ("few", 0.1, -0.5), ("all", 1.0, 1.0))
    ]
    tsw.build(base, path, tasks, vectors=vectors, profile=profile, threads=1)


@cache
def documents() -> list[bytes]:
    """Index documents of `files`."""
    found = []
    for data in files():
        try:
            found.append(parts.pack(parts.Parts.of(data).document))
        except (ValueError, TypeError):
            continue
    return list(dict.fromkeys(found))


@cache
def indexes() -> list[bytes]:
    """Where the index begins, the minor version, and the document: what the index harness takes."""
    found = []
    for data in files():
        try:
            apart = parts.Parts.of(data)
        except (ValueError, TypeError):
            continue
        start = struct.unpack_from("<Q", data, 40)[0]
        if start < 1 << 32:
            found.append(struct.pack("<IH", start, apart.frame.get("minor", 0)) + parts.pack(apart.document))
    return found


@cache
def planes() -> list[bytes]:
    """Codec, parameter, bits and ones of a plane, and its payload: what the plane harness takes."""
    made = []
    for n, density in ((10, 0.4), (100, 0.05), (1000, 0.01), (1000, 0.5), (4096, 0.1), (1 << 20, 0.00002)):
        positions = np.flatnonzero(np.random.default_rng(n).random(n) < density)
        m = positions.size
        packed = bits.pack_positions(positions, n).tobytes()
        choices = [(lay.Codec.BITMAP, 0, packed), (lay.Codec.BITMAP_ZSTD, 0, zstd.compress(packed, 3))]
        if m:
            distances = gaps.gaps_of(positions)
            for k in (0, 1, 3, 8, 20):
                choices.append((lay.Codec.GAPS_ZSTD, k, gaps.encode_gaps(distances, k, 1)))
                choices.append((lay.Codec.RICE, k, gaps.encode_rice(distances, k)))
        made += [struct.pack("<BBII", codec, k, n, m) + data for codec, k, data in choices if len(data) < _LARGEST]
    made += [struct.pack("<BBII", lay.Codec.ZEROS, 0, 9, 0), struct.pack("<BBII", lay.Codec.ONES, 0, 9, 9)]
    return made


@cache
def runs() -> list[bytes]:
    """Codec and size of a run of elements, and its payload."""
    content = bytes(range(64)) * 4
    return [
        struct.pack("<BI", lay.Codec.RAW, 5) + b"12345",
        struct.pack("<BI", lay.Codec.ZSTD, len(content)) + zstd.compress(content, 3),
        struct.pack("<BI", lay.Codec.ZSTD, 0) + zstd.compress(b"", 3),
        struct.pack("<BI", lay.Codec.ZSTD, 1 << 20) + zstd.compress(bytes(1 << 20), 3),
    ]


@cache
def noise() -> list[bytes]:
    """Bytes that harnesses take choices from."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, size, np.uint8).tobytes() for size in (8, 64, 200, 400)] + [bytes(100), b"\xff" * 100]


@cache
def payloads() -> list[bytes]:
    """For each segment of each file: file, segment, codec, parameter, count, and the bytes it has."""
    found = []
    for number, data in enumerate(templates()):
        apart = parts.Parts.of(data)
        records: Any = np.concatenate([apart.table(owner, "segments") for owner in apart.owners()])
        every = [payload for owner in apart.owners() for payload in apart.payloads_of(owner)]
        for segment, (record, payload) in enumerate(zip(records, every, strict=True)):
            head = (number, segment, int(record["codec"]), int(record["parameter"]), int(record["count"]))
            if len(payload) < 2000:
                found.append(struct.pack("<BBBBI", *(value % 256 for value in head[:4]), head[4]) + payload)
    return list(dict.fromkeys(found))


@cache
def templates() -> list[bytes]:
    """Valid files with segments and without digests."""
    found = []
    golden = [
        (ROOT / "tests" / "golden" / f"{name}.tsw").read_bytes() for name in ("smallest", "bare", "router", "tables")
    ]
    for data in packed() + golden:
        apart = parts.Parts.of(data)
        apart.forget_digests()
        if any(apart.payloads):
            found.append(apart.build())
    return found


@cache
def headers() -> list[bytes]:
    """Bytes of data (u32) and a safetensors header."""
    shapes = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F4", "shape": [2], "data_offsets": [24, 25]},
        "c": {"dtype": "BF16", "shape": [], "data_offsets": [25, 27]},
        "empty": {"dtype": "I64", "shape": [0, 5], "data_offsets": [27, 27]},
    }
    texts = [(27, {"__metadata__": {"format": "pt"}, **shapes}), (24, {"a": shapes["a"]}), (0, {})]
    return [struct.pack("<I", size) + json.dumps(header).encode() for size, header in texts]


@cache
def safetensors() -> list[bytes]:
    """Whole .safetensors files."""
    found = []
    for seed in headers():
        size, text = struct.unpack_from("<I", seed)[0], seed[4:]
        found.append(struct.pack("<Q", len(text)) + text + bytes(range(size)))
    return found


@cache
def shard_indexes() -> list[bytes]:
    """Contents of an index.json."""
    whole = {"metadata": {"total_size": 8}, "weight_map": {"a": "input"}}
    contents: tuple[Any, ...] = (whole, {"weight_map": {}}, {"weight_map": 1})
    return [json.dumps(content).encode() for content in contents]


@cache
def torch_files() -> list[bytes]:
    """What torch.save writes, in both formats."""
    import torch  # noqa: PLC0415 - only this harness needs it

    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    state = {"a": weight, "tied": weight, "b": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(5)}
    found = []
    for content in (state, {"state_dict": state, "epoch": 1}, {"a": weight[:, 1:]}):
        for new in (True, False):
            out = io.BytesIO()
            torch.save(content, out, _use_new_zipfile_serialization=new)
            found.append(out.getvalue())
    return found


@cache
def carriers() -> list[bytes]:
    """Documents of `packed` files as safetensors, with and without digests, a zero byte, and the tensors."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file, carrier = Path(folder, "a.tsw"), Path(folder, "a.safetensors")
        for data in dict.fromkeys((*packed(), *templates())):
            file.write_bytes(data)
            with tsw.open(file) as opened:
                exporter.convert(opened, None, carrier, threads=1)
            with contextlib.closing(open_checkpoint(carrier)) as reader:
                document = reader.metadata[DOCUMENT_KEY]
                content = b"".join(_content(reader, spec.name) for spec in all_tensors(from_json(document, carrier)))
            found.append(document.encode() + b"\0" + content)
    return found


def _content(reader: CheckpointReader, name: str) -> bytes:
    out = np.empty(reader.specs[name].nbytes, np.uint8)
    reader.read_into(name, 0, out)
    return out.tobytes()


@cache
def tall_masks() -> list[bytes]:
    """Masks as NumPy 1 and 2 save them, as pickles, and as torch.save does."""
    import torch  # noqa: PLC0415 - only this harness needs it

    found = [path.read_bytes() for path in sorted((ROOT / "tests" / "importers" / "tall_fixtures").glob("*/*.npy"))]
    flags = np.arange(20) % 3 == 0
    packed_masks = {"one": np.packbits(flags), "two": np.packbits(~flags)}
    found += [pickle.dumps(packed_masks, protocol) for protocol in range(2, 6)]
    named = {"a.weight": torch.from_numpy(flags.reshape(4, 5)), "b": torch.from_numpy(flags)}
    for content in ({name: torch.from_numpy(mask) for name, mask in packed_masks.items()}, named, named["b"]):
        out = io.BytesIO()
        torch.save(content, out)
        found.append(out.getvalue())
    return found
