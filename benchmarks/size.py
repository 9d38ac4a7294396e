"""Bytes against what a random mask with random signs must take: N (H(p) + p) / 8 bytes for N elements of density p."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import tswitch_format as tsw
from benchmarks import common
from benchmarks.common import Ratio
from tswitch_format import _layout as lay
from tswitch_format.codecs import plane, zstd

DENSITIES = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
CHUNKS = 8
TENSORS, SHAPE = 6, (2048, 2048)
TENSOR_BYTES, CHUNK_BYTES = 128, 64  # the bound of the index
_INDEX_LEVEL = 9  # zstd level, as the index has


def entropy_bits(density: float) -> float:
    """H(p) + p: bits an element of mask and sign."""
    if density in (0, 1):
        return density
    return -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) + density


def allowed(density: float) -> float:
    """The bound of planes / entropy."""
    return 1.02 if density >= 0.005 else 1.04


def planes(result: common.Result, random: np.random.Generator) -> None:
    """Encoded planes of random masks and signs."""
    table = result.table(
        f"Encoded planes of {CHUNKS} chunks of 2^20 elements",
        "asked %",
        "density %",
        "mask bytes",
        "sign bytes",
        "bound bytes",
        "mask / H(p)",
        "sign / p",
        "planes / bound",
        "allowed",
        "met",
        "mask codecs",
        note="bound: (H(p) + p) bits an element, p the density that came out.",
        main=True,
    )
    for asked in DENSITIES:
        mask_bytes = sign_bytes = active = 0
        codecs: Counter[str] = Counter()
        for _ in range(CHUNKS):
            positions = np.flatnonzero(random.random(lay.CHUNK, np.float32) < asked)
            signs = np.flatnonzero(random.random(positions.size) < 0.5)
            mask = plane.encode(positions, lay.CHUNK)
            sign = plane.encode(signs, positions.size)
            mask_bytes += len(mask.data)
            sign_bytes += len(sign.data)
            active += positions.size
            codecs[f"{lay.Codec(mask.codec).name} {mask.parameter}"] += 1
        elements = CHUNKS * lay.CHUNK
        density = active / elements
        bound = elements * entropy_bits(density) / 8
        ratio = (mask_bytes + sign_bytes) / bound
        met = result.hold(Ratio.exact(table.title, f"planes at {100 * asked:g} %", "bound", ratio, allowed(asked)))
        table.add(
            f"{100 * asked:g}",
            100 * density,
            mask_bytes,
            sign_bytes,
            round(bound),
            f"{mask_bytes / (bound - active / 8):.4f}",
            f"{sign_bytes / (active / 8):.4f}",
            f"{ratio:.4f}",
            f"{allowed(asked)}",
            met,
            ", ".join(f"{name} x{count}" for name, count in codecs.items()),
        )


def _random_expert(base: Mapping[str, NDArray[np.float32]], random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Base plus noise: a share of the largest differences is a random mask with random signs."""
    return {name: array + 0.01 * random.standard_normal(array.shape, np.float32) for name, array in base.items()}


def _parts(path: Path) -> tuple[dict[str, int], int, int, int]:
    """Bytes of planes, factors, index, frame and file, active elements, and number of entries and chunks, of a file."""
    with tsw.open(path) as file:
        task = file.container.index.tasks[0]
        roles, lengths = task.segments["role"], task.segments["length"].astype(np.int64)
        is_plane = np.isin(roles, (lay.Role.MASK, lay.Role.SIGN))
        parts = {
            "planes": int(lengths[is_plane].sum()),
            "factors": int(lengths[~is_plane].sum()),
            "index": file.container.frame.index_length,
            "index decoded": file.container.frame.index_decoded_length,
            "file": path.stat().st_size,
        }
        chunks = int((roles == lay.Role.MASK).sum())
        return parts, int(task.entries["active"].sum()), len(task.entries), chunks


def files(result: common.Result, random: np.random.Generator, folder: Path) -> None:
    """Whole files of a random task vector."""
    table = result.table(
        f"Whole files: {TENSORS} tensors of {SHAPE[0]} x {SHAPE[1]}, random task vector, default options",
        "asked %",
        "density %",
        "planes",
        "factors",
        "index",
        "file",
        "bound",
        "planes / bound",
        "file / bound",
        "file without factors / bound",
        "allowed",
        "planes met",
        "% of fp32",
        note="bytes. factors: one u8 for every row and column (--knob-per row-col). bound: as above, by each tensor's density.",
    )
    base = {f"layers.{n}.weight": random.standard_normal(SHAPE, np.float32) for n in range(TENSORS)}
    expert = _random_expert(base, random)
    elements = TENSORS * math.prod(SHAPE)
    for asked in DENSITIES:
        path = folder / "random.tsw"
        tsw.pack(base, expert, path, density=asked, select="tensor", knob_dtype="u8")
        parts, active, _, _ = _parts(path)
        density = active / elements
        bound = elements * entropy_bits(density) / 8
        ratio = parts["planes"] / bound
        met = result.hold(Ratio.exact(table.title, f"planes at {100 * asked:g} %", "bound", ratio, allowed(asked)))
        table.add(
            f"{100 * asked:g}",
            100 * density,
            parts["planes"],
            parts["factors"],
            parts["index"],
            parts["file"],
            round(bound),
            f"{ratio:.4f}",
            f"{parts['file'] / bound:.4f}",
            f"{(parts['file'] - parts['factors']) / bound:.4f}",
            f"{allowed(asked)}",
            met,
            f"{100 * parts['file'] / (4 * elements):.3f}",
        )


def _names(kind: str, count: int, random: np.random.Generator) -> list[str]:
    if kind == "short":
        return [f"h.{n}.w" for n in range(count)]
    if kind == "long":
        stem = "model.language_model.vision_text_projector.encoder.stages.{}.residual_blocks.{}.mixture_of_experts.expert_{}."
        return [
            stem.format(n // 100, n // 10 % 10, n % 10) + "feed_forward.intermediate_dense.weight" for n in range(count)
        ]
    return [random.bytes(90).hex() for _ in range(count)]


def indices(result: common.Result, random: np.random.Generator, folder: Path) -> None:
    """Bytes of the index by tensor and by chunk."""
    table = result.table(
        f"Index: stored bytes against {TENSOR_BYTES} a tensor + {CHUNK_BYTES} a chunk",
        "model",
        "knob-per",
        "tensors",
        "chunks",
        "bytes in a name",
        "index",
        "decoded",
        "bound",
        "index / bound",
        "bytes a tensor",
        "bytes a chunk",
        "met",
        "names alone, zstd",
        "index less names / bound",
        note="Names of random hexadecimal digits hardly compress; the last two columns tell their share.",
    )
    plan: list[tuple[str, str, int, tuple[int, ...]]] = [
        ("1,000 small tensors", "short", 1000, (32, 32)),
        ("1,000 small tensors", "long", 1000, (32, 32)),
        ("1,000 small tensors", "random", 1000, (32, 32)),
        ("1,000 vectors", "short", 1000, (256,)),
        ("24 tensors of 3 chunks", "long", 24, (1536, 2048)),
        ("2 tensors of 16 chunks", "long", 2, (8192, 2048)),
    ]
    for model, kind, count, shape in plan:
        base = {name: random.standard_normal(shape, np.float32) for name in _names(kind, count, random)}
        expert = _random_expert(base, random)
        length = sum(len(name) for name in base) / count
        names = len(zstd.compress("".join(sorted(base)).encode(), _INDEX_LEVEL))
        for knob_per in ("row-col", "tensor"):
            path = folder / "index.tsw"
            tsw.pack(base, expert, path, density=0.02, select="tensor", knob_per=knob_per, knob_dtype="u8")
            parts, _, tensors, chunks = _parts(path)
            bound = TENSOR_BYTES * tensors + CHUNK_BYTES * chunks
            name = f"index of {model}, {kind} names, {knob_per}"
            met = result.hold(Ratio.exact(table.title, name, "bound", parts["index"] / bound, 1.0))
            table.add(
                f"{model}, {kind} names",
                knob_per,
                tensors,
                chunks,
                f"{length:.0f}",
                parts["index"],
                parts["index decoded"],
                bound,
                f"{parts['index'] / bound:.3f}",
                f"{parts['index'] / tensors:.1f}",
                f"{parts['index'] / chunks:.1f}",
                met,
                names,
                f"{(parts['index'] - names) / bound:.3f}",
            )


@click.command()
@common.folder_option
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--save/--no-save", default=True, show_default=True)
def main(folder: Path, seed: int, save: bool) -> None:
    """Sizes of random planes, of whole files of random task vectors, and of the index."""
    result = common.Result("size", (__doc__ or "").strip(), "python -m benchmarks size", {"seed": seed})
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        planes(result, random)
        files(result, random, Path(temporary))
        indices(result, random, Path(temporary))
    common.finish(result, save=save)
