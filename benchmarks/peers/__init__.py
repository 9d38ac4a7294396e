"""The library beside its peers: how many bytes, and how long from a file to applied weights. `python -m benchmarks peers`.

examples.py      what is to be kept: random planes, real experts
peer.py          what every peer has
NAME.py          one peer each, in a few calls: read those to object
adding.py        what those share that keep positions and signs
limits.py        copying memory, reading files
checking.py      what a peer's weights must be, before anything is timed
measuring.py     one example: sizes, times
pictures.py      curves by density
__main__.py      the benchmark

all_peers        the peers, in the order of the tables
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from benchmarks.peers.peer import Peer

MODULES = (
    "tsw",
    "packbits",
    "roaring",
    "tswitch_grouped",
    "bitdelta",
    "scipy_npz",
    "torch_coo",
    "safetensors_full",
    "zstd_delta",
    "zipnn_delta",
)


def peers_of(module: str) -> Sequence[Peer]:
    """Those of one module here. Raises ModuleNotFoundError where a package of the extra `bench` is missing."""
    found: Sequence[Peer] = import_module(f"{__name__}.{module}").PEERS
    return found


def all_peers() -> list[Peer]:
    """All of them. Raises ModuleNotFoundError, as above."""
    return [peer for module in MODULES for peer in peers_of(module)]
