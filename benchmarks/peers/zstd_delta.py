"""The difference in safetensors, the file compressed by zstd at level 3, its default: in f32, and rounded to bf16.

As the documentation of `zstandard` shows it: `ZstdCompressor(level).compress`, and `ZstdDecompressor().decompress`, which
makes a frame that says its size in one call. That one has no threads: a frame is decompressed by one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import zstandard
from safetensors.torch import load, save

from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer

LEVEL = 3


def write(dtype: torch.dtype, example: Example, path: Path) -> None:
    """The difference, compressed."""
    data = save({name: tensor.to(dtype) for name, tensor in example.difference.items()})
    path.write_bytes(zstandard.ZstdCompressor(level=LEVEL).compress(data))


def apply(path: Path, weights: Weights) -> None:
    """Decompress it all, then add."""
    data = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    for name, tensor in load(data).items():
        weights[name].add_(tensor)


PEERS = [
    Peer("safetensors + zstd -3, difference f32", Keeps.DIFFERENCE, partial(write, torch.float32), apply),
    Peer("safetensors + zstd -3, difference bf16", Keeps.ROUNDED, partial(write, torch.bfloat16), apply),
]
