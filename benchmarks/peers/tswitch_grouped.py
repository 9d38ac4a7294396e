"""The layout of the T-Switch authors, groups of four elements, a file a tensor, as our exporter writes it.

Applied through the reader of our importer, in NumPy, which checks the layout and gives the active elements chunk by chunk.
Knobs come from the JSON file that our exporter adds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import tswitch_format as tsw
from benchmarks.peers.adding import add_at
from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer
from tswitch_format.checkpoint import DTYPE_BY_NAME, TensorSpec
from tswitch_tools.exporters import tswitch_authors as exporter
from tswitch_tools.importers import CHUNK
from tswitch_tools.importers.tswitch_authors import KNOBS, SUFFIX, Stream

TASK = "task"


def write(example: Example, path: Path) -> None:
    """A folder of files, by our exporter from a .tsw file of the same switch."""
    switch = path.with_suffix(".tsw")
    example.save_switch(switch)
    with tsw.open(switch) as file:
        exporter.convert(file, TASK, path)
    switch.unlink()


def apply(path: Path, weights: Weights) -> None:
    """Add every tensor's chunks."""
    for name, knob in json.loads((path / f"{TASK}{KNOBS}").read_text()).items():
        weight = weights[name]
        spec = TensorSpec(name, DTYPE_BY_NAME["F32"], tuple(weight.shape))
        stream = Stream(path / f"{TASK}_{name}{SUFFIX}", spec, name)
        for number, (positions, negative) in enumerate(stream.chunks()):
            chunk = weight.view(-1)[number * CHUNK :]
            add_at(chunk, positions, negative.view(np.uint8), np.array([knob], np.float32))


PEERS = [Peer("T-Switch authors' layout", Keeps.SWITCH, write, apply)]
