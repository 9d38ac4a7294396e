"""Mask and signs as bits, by NumPy's `packbits`, in safetensors: plain, and the file compressed by zstd at levels 3 and 19.

A mask has a bit for each element; the signs, a bit for each active one, set where the knob is subtracted. Reading is
`load_file` of `safetensors.numpy`, or zstd as in `zstd_delta.py` and `load`; then `unpackbits` with `count`, as NumPy's
documentation has it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors.numpy import load, load_file, save, save_file

from benchmarks.peers.adding import add_at
from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer


def arrays(example: Example) -> dict[str, NDArray[Any]]:
    """Of each tensor its mask, signs and knob."""
    found: dict[str, NDArray[Any]] = {}
    for name, planes in example.planes.items():
        mask = np.zeros(example.base[name].numel(), np.bool_)
        mask[planes.positions] = True
        found[f"{name}.mask"] = np.packbits(mask)
        found[f"{name}.signs"] = np.packbits(planes.negative)
        found[f"{name}.knob"] = np.array([planes.knob], np.float32)
    return found


def write(example: Example, path: Path) -> None:
    """Not compressed."""
    save_file(arrays(example), path)


def write_zstd(level: int, example: Example, path: Path) -> None:
    """The same file, compressed."""
    path.write_bytes(zstandard.ZstdCompressor(level=level).compress(save(arrays(example))))


def apply(path: Path, weights: Weights) -> None:
    """Add what is in the file."""
    _add(load_file(path), weights)


def apply_zstd(path: Path, weights: Weights) -> None:
    """The same, of a compressed one."""
    _add(load(zstandard.ZstdDecompressor().decompress(path.read_bytes())), weights)


def _add(found: dict[str, NDArray[Any]], weights: Weights) -> None:
    for name in (key.removesuffix(".mask") for key in found if key.endswith(".mask")):
        weight = weights[name]
        mask = np.unpackbits(found[f"{name}.mask"], count=weight.numel()).view(np.bool_)
        positions = np.flatnonzero(mask)
        negative = np.unpackbits(found[f"{name}.signs"], count=positions.size)
        add_at(weight, positions, negative, found[f"{name}.knob"])


PEERS = [
    Peer("packbits in safetensors", Keeps.SWITCH, write, apply),
    Peer("packbits in safetensors + zstd -3", Keeps.SWITCH, partial(write_zstd, 3), apply_zstd),
    Peer("packbits in safetensors + zstd -19", Keeps.SWITCH, partial(write_zstd, 19), apply_zstd),
]
