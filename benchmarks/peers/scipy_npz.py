"""The switch's difference as SciPy's sparse arrays (CSR, f32), one `.npz` a tensor: compressed, the default, and not.

As the documentation of `scipy.sparse` shows it: `save_npz` and `load_npz`. Its sum of a dense and a sparse array is a new dense
one; adding at the places that `indptr` and `indices` tell changes only the active elements.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer


def write(compressed: bool, example: Example, path: Path) -> None:
    """A folder of files."""
    path.mkdir()
    for name, planes in example.planes.items():
        shape = tuple(example.base[name].shape)
        places = np.unravel_index(planes.positions, shape)
        sparse.save_npz(path / name, sparse.csr_array((planes.values, places), shape), compressed=compressed)


def apply(path: Path, weights: Weights) -> None:
    """Add each array at its places, which are unique."""
    for file in path.iterdir():
        found = sparse.load_npz(file)
        rows, columns = found.shape
        begins = np.repeat(np.arange(0, rows * columns, columns), np.diff(found.indptr))
        weights[file.name.removesuffix(".npz")].numpy().reshape(-1)[begins + found.indices] += found.data


PEERS = [
    Peer("SciPy npz (CSR), compressed", Keeps.SWITCH, partial(write, True), apply),
    Peer("SciPy npz (CSR)", Keeps.SWITCH, partial(write, False), apply),
]
