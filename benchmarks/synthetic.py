"""A model of the size that the bounds are stated for: base and expert, bf16, sharded, with the names and shapes of a
Llama-3.2-1B-like model (1.236 G parameters). Made in bounded memory from a seed, as real safetensors files with an index.

The expert is the base plus normal noise of which one entry in fifty is ten times as large, rounded to bf16.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from tswitch_format._dtypes import BF16, from_float, to_float

HIDDEN = 2048
MLP = 8192
HEADS, KV_HEADS = 32, 8
LAYERS = 16
VOCABULARY = 128256
SHARDS = 3
WEIGHT_SPREAD = 0.02
NOISE_SPREAD = 2e-4
LARGE_SHARE, LARGE_FACTOR = 0.02, 10

_BLOCK = 1 << 22  # elements made at a time

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Model:
    """Folders of base and expert, and number of parameters."""

    base: Path
    expert: Path
    parameters: int

    def shards(self, side: str) -> list[Path]:
        """The shard files of "base" or "expert"."""
        return sorted((self.base if side == "base" else self.expert).glob("*.safetensors"))

    def remove(self) -> None:
        """Delete both."""
        shutil.rmtree(self.base.parent, ignore_errors=True)


def transformer(hidden: int, layers: int, vocabulary: int) -> Shapes:
    """Names and shapes of a transformer of these sizes; the MLP and the heads are in the model's own proportions."""
    found: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    mlp, kv = hidden * MLP // HIDDEN, hidden * KV_HEADS // HEADS
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found[prefix + "input_layernorm.weight"] = (hidden,)
        found[prefix + "mlp.down_proj.weight"] = (hidden, mlp)
        found[prefix + "mlp.gate_proj.weight"] = (mlp, hidden)
        found[prefix + "mlp.up_proj.weight"] = (mlp, hidden)
        found[prefix + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("k", kv), ("o", hidden), ("q", hidden), ("v", kv)):
            found[prefix + f"self_attn.{name}_proj.weight"] = (rows, hidden)
    found["model.norm.weight"] = (hidden,)
    return found


def shapes(scale: float) -> Shapes:
    """At scale 1 the whole model, below with fewer layers and a smaller vocabulary."""
    return transformer(HIDDEN, max(1, round(LAYERS * scale)), max(64, round(VOCABULARY * scale)))


def similar(share: float) -> Shapes:
    """A model of about `share` of the parameters, whose width and depth shrink alike, as those of a family of models do."""
    root = share ** (1 / 3)
    hidden = max(64, 64 * round(HIDDEN * root / 64))
    return transformer(hidden, max(1, round(LAYERS * root)), max(64, round(VOCABULARY * root**2)))


def make(folder: Path, *, scale: float = 1.0, seed: int = 0) -> Model:
    """The model in `folder`; what is there already is used again."""
    return make_named(folder / f"synthetic-{scale:g}-{seed}", shapes(scale), seed)


def make_named(folder: Path, named: Shapes, seed: int = 0) -> Model:
    """Base and expert of these names and shapes in folders of `folder`; what is there already is used again."""
    model = Model(folder / "base", folder / "expert", sum(math.prod(shape) for shape in named.values()))
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for side in (model.base, model.expert):
            side.mkdir(parents=True)
        _write(model, named, seed)
        done.touch()
    return model


def _write(model: Model, named: Shapes, seed: int) -> None:
    weight_map: dict[str, str] = {}
    numbers = {name: number for number, name in enumerate(named)}
    groups = list(_split(named, model.parameters))
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with (model.base / file).open("wb") as base, (model.expert / file).open("wb") as expert:
            header = _header({name: named[name] for name in names})
            base.write(header)
            expert.write(header)
            for name in names:
                for before, after in _blocks(math.prod(named[name]), len(named[name]) == 1, seed, numbers[name]):
                    base.write(before.data)
                    expert.write(after.data)
    index = {"metadata": {"total_size": 2 * model.parameters}, "weight_map": weight_map}
    for side in (model.base, model.expert):
        (side / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _split(named: Shapes, parameters: int) -> Iterator[Sequence[str]]:
    """Names in groups of about equal size, one for each shard."""
    group: list[str] = []
    filled = 0
    for name, shape in named.items():
        if group and filled + math.prod(shape) > parameters / SHARDS * 1.05:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += math.prod(shape)
    yield group


def _header(named: Shapes) -> bytes:
    """A safetensors header."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in named.items():
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(
    elements: int, norm: bool, seed: int, number: int
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
    """Base and expert, block by block, as bf16 bit patterns."""
    random = np.random.Generator(np.random.SFC64([seed, number]))
    for start in range(0, elements, _BLOCK):
        size = min(_BLOCK, elements - start)
        weights = random.standard_normal(size, np.float32)
        weights *= np.float32(WEIGHT_SPREAD)
        if norm:
            weights += 1
        base = from_float(weights, BF16)
        noise = random.standard_normal(size, np.float32)
        noise *= np.float32(NOISE_SPREAD)
        noise[random.integers(0, size, round(size * LARGE_SHARE))] *= LARGE_FACTOR
        to_float(base, BF16, weights)
        weights += noise
        yield base, from_float(weights, BF16)


@click.command()
@common.folder_option
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(folder: Path, scale: float, seed: int) -> None:
    """Make base and expert under FOLDER and leave them there; what needs it then uses them with --keep."""
    model = make(folder, scale=scale, seed=seed)
    print(f"{model.parameters:,} parameters\nbase    {model.base}\nexpert  {model.expert}")
