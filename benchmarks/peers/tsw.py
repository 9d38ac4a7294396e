"""Ours: a .tsw file, applied by `tswitch_format.torch.apply_` with the extra `fast`, as the README shows it.

It checks names, shapes, dtypes, sampled digests of the base and every byte of the task before it changes anything, and keeps
the original values meanwhile, to put them back on an error. No peer here does any of this. What `tsw pack` writes by default
has more than the peers' switch: factors of rows and columns, and vectors whole.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import tswitch_format as tsw
from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer
from tswitch_format.torch import apply_

OURS = "tsw, archive profile"


def write(profile: str, example: Example, path: Path) -> None:
    """The planes, one knob a tensor."""
    example.save_switch(path, profile)


def pack(example: Example, path: Path) -> None:
    """What `tsw pack` writes by default."""
    tsw.pack(example.base, example.expert, path)


def apply(path: Path, weights: Weights) -> None:
    """In place."""
    apply_(weights, path)


PEERS = [
    Peer(OURS, Keeps.SWITCH, partial(write, "archive"), apply),
    Peer("tsw, mapped profile", Keeps.SWITCH, partial(write, "mapped"), apply),
    Peer("tsw pack, its defaults", Keeps.PACKED, pack, apply, lambda example: example.packs),
]
