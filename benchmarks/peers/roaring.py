"""Positions as Roaring bitmaps, one a tensor, with signs as packed bits, in safetensors.

As the documentation of `pyroaring` shows it: `run_optimize`, then `serialize`; reading is `deserialize`, which wants bytes, and
`to_array`, its fast way to all members.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap
from safetensors.numpy import load_file, save_file

from benchmarks.peers.adding import add_at
from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer


def write(example: Example, path: Path) -> None:
    """One file of all tensors."""
    found: dict[str, NDArray[Any]] = {}
    for name, planes in example.planes.items():
        positions = BitMap(planes.positions.astype(np.uint32))
        positions.run_optimize()
        found[f"{name}.bitmap"] = np.frombuffer(positions.serialize(), np.uint8)
        found[f"{name}.signs"] = np.packbits(planes.negative)
        found[f"{name}.knob"] = np.array([planes.knob], np.float32)
    save_file(found, path)


def apply(path: Path, weights: Weights) -> None:
    """Add what is in the file."""
    found = load_file(path)
    for name in (key.removesuffix(".bitmap") for key in found if key.endswith(".bitmap")):
        positions = np.asarray(BitMap.deserialize(found[f"{name}.bitmap"].tobytes()).to_array())
        negative = np.unpackbits(found[f"{name}.signs"], count=positions.size)
        add_at(weights[name], positions, negative, found[f"{name}.knob"])


PEERS = [Peer("Roaring bitmaps, packed signs", Keeps.SWITCH, write, apply)]
