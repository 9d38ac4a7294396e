"""The switch's difference as torch's sparse COO tensors, coalesced, saved together by `torch.save`.

As the documentation of `torch.sparse` and of `torch.load` shows it: `weights_only=True`, and `add_` of a sparse tensor to a
dense one, which changes only the active elements.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer


def write(example: Example, path: Path) -> None:
    """One file of all tensors."""
    found = {}
    for name, planes in example.planes.items():
        shape = tuple(example.base[name].shape)
        places = torch.from_numpy(np.stack(np.unravel_index(planes.positions, shape)))
        values = torch.from_numpy(planes.values)
        found[name] = torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()
    torch.save(found, path)


def apply(path: Path, weights: Weights) -> None:
    """Add every tensor."""
    for name, tensor in torch.load(path, weights_only=True).items():
        weights[name].add_(tensor)


PEERS = [Peer("torch sparse COO", Keeps.SWITCH, write, apply)]
