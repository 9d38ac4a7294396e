"""One example: how many bytes every peer takes, and how long from its file to applied weights.

Measured   bytes and times
measure    makes them, after a check of what each peer applies
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import common
from benchmarks.peers import limits
from benchmarks.peers.checking import check
from benchmarks.peers.examples import Example
from benchmarks.peers.peer import Keeps, Peer
from benchmarks.peers.safetensors_full import FULL
from benchmarks.peers.tsw import OURS


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the example of this name. `keeps` and `nbytes`: what each peer keeps, and the bytes of its files; `times` has the
    peers and the limits. `entropy_bytes`: see `Example`."""

    name: str
    elements: int
    density: float
    entropy_bytes: float
    keeps: Mapping[str, Keeps]
    nbytes: Mapping[str, int]
    times: common.Times

    def over_entropy(self, name: str) -> float | None:
        """Bytes / entropy bound of a peer that keeps the switch and nothing else; of others, and of limits, None."""
        return self.nbytes[name] / self.entropy_bytes if self.keeps.get(name) is Keeps.SWITCH else None


def measure(example: Example, peers: Sequence[Peer], folder: Path, rounds: int) -> Measured:
    """Write to a new folder in `folder`, check, time. Raises ValueError where what a peer applies is wrong."""
    weights = {name: tensor.clone() for name, tensor in example.base.items()}
    reset = limits.copying(example.base, weights)
    taken = {peer.name: peer for peer in peers if peer.takes(example)}
    files: dict[str, list[Path]] = {}
    candidates: dict[str, common.Candidate] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, peer in taken.items():
            path = Path(temporary) / re.sub(r"\W+", "-", name)
            peer.write(example, path)
            files[name] = sorted(path.iterdir()) if path.is_dir() else [path]
            reset()
            peer.apply(path, weights)
            check(peer, example, path, weights)
            candidates[name] = common.Candidate(partial(peer.apply, path, weights), reset)
        candidates[limits.COPY] = common.Candidate(limits.copying(example.expert, weights), reset)
        for name in (OURS, FULL):
            candidates[limits.READ + name] = common.Candidate(limits.reading(*files[name]), reset)
        common.pause_for_disk()
        common.read_once([file for of_one in files.values() for file in of_one])
        return Measured(
            example.name,
            example.elements,
            example.density,
            example.entropy_bytes,
            {name: peer.keeps for name, peer in taken.items()},
            {name: sum(file.stat().st_size for file in found) for name, found in files.items()},
            common.interleave(candidates, rounds),
        )
