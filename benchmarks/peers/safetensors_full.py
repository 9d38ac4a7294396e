"""The full expert in safetensors, as its documentation shows it: `save_file`, `load_file`.

`load_file` maps the file; `copy_` then copies each tensor once, to where the weights are.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer

FULL = "safetensors, full expert"


def write(example: Example, path: Path) -> None:
    """The expert."""
    save_file(dict(example.expert), path)


def apply(path: Path, weights: Weights) -> None:
    """Copy it over the base."""
    for name, tensor in load_file(path).items():
        weights[name].copy_(tensor)


PEERS = [Peer(FULL, Keeps.EXPERT, write, apply)]
