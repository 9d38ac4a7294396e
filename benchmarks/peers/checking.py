"""What each peer must make of the base, before anything is timed.

check   raises where weights differ from that
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import tswitch_format as tsw
from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer

# Relative errors: two f32 roundings (of the difference, of the sum), and one to bf16, each by half a unit in the last place.
_F32, _BF16 = 2.0**-23, 2.0**-8


def check(peer: Peer, example: Example, path: Path, weights: Weights) -> None:
    """Raise ValueError where `weights`, to which `peer` has applied `path`, are not what it should have made of the base.

    The switch, and the expert itself, to the bit. A difference to the bit where the example's expert is exactly base +
    difference, else within the rounding of its type.
    """
    expected = _expected(peer.keeps, example, path)
    for name, tensor in expected.items():
        error = (weights[name] - tensor).abs()
        most = _allowed(peer.keeps, example, name)
        wrong = int((~(error <= most)).sum())
        if wrong:
            raise ValueError(
                f"{example.name}: {peer.name}: tensor {name!r}: expected {peer.keeps.value} within {float(most.max()):.3g}, "
                f"found {wrong} of {tensor.numel()} elements elsewhere, by {float(error.max()):.3g} at most"
            )


def _expected(keeps: Keeps, example: Example, path: Path) -> Weights:
    if keeps is Keeps.SWITCH:
        return example.switched()
    if keeps is Keeps.PACKED:
        return _restored(example, path)
    return example.expert


def _restored(example: Example, path: Path) -> dict[str, Tensor]:
    """By NumPy, and not by the kernels that `apply_` runs."""
    found = dict(example.base)
    with tsw.open(path) as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            found[name] = torch.from_numpy(file.switch(name).apply(example.base[name].numpy()))
    return found


def _allowed(keeps: Keeps, example: Example, name: str) -> Tensor:
    """For each element."""
    if example.exact or keeps not in (Keeps.DIFFERENCE, Keeps.ROUNDED):
        return torch.zeros(())
    base, expert, difference = example.base[name], example.expert[name], example.difference[name]
    most = _F32 * torch.maximum(base.abs(), expert.abs()).add(difference.abs())
    return most + _BF16 * difference.abs() if keeps is Keeps.ROUNDED else most
