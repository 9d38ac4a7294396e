"""BitDelta's diff.pt, as our exporter writes it: a sign for every element of a matrix, and a coefficient.

BitDelta's code loads it by `torch.load`, unpacks the words of a mask [columns / 32, rows] to signs, and adds coefficient times
sign to the weight (`load_diff`). Here NumPy's `unpackbits` unpacks them, in place of shifts that make an i64 for every bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import tswitch_format as tsw
from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer
from tswitch_tools.exporters import bitdelta as exporter
from tswitch_tools.importers.bitdelta import COEFFICIENT, MASK, WEIGHT


def takes(example: Example) -> bool:
    """Whether every element has a sign, which is all that the layout knows."""
    return example.density == 1


def write(example: Example, path: Path) -> None:
    """One file, by our exporter from a .tsw file of the same switch."""
    switch = path.with_suffix(".tsw")
    example.save_switch(switch)
    with tsw.open(switch) as file:
        exporter.convert(file, file.tasks[0], path)
    switch.unlink()


def apply(path: Path, weights: Weights) -> None:
    """Add every matrix."""
    found = torch.load(path, weights_only=True)
    for module in (key.removesuffix(MASK) for key in found if key.endswith(MASK)):
        weight = weights[module + WEIGHT].numpy()
        words = np.ascontiguousarray(found[module + MASK].numpy().T)
        positive = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(weight.shape)
        coefficient = found[module + COEFFICIENT].numpy()
        weight += np.stack([-coefficient, coefficient]).take(positive)


PEERS = [Peer("BitDelta's layout", Keeps.SWITCH, write, apply, takes)]
