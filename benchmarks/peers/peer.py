"""What every peer has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks.peers.examples import Example, Weights


class Keeps(Enum):
    """What a peer's file gives back when it is applied to the base."""

    EXPERT = "expert, f32"
    DIFFERENCE = "difference, f32"
    ROUNDED = "difference, bf16"
    SWITCH = "switch"
    PACKED = "switch, factors, vectors"


def _any(example: Example) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to keep an expert.

    `write(example, path)` makes a file or a folder of that name, which is not there yet; it is not timed. `apply(path,
    weights)` is: it reads that, and changes `weights`, which hold the base, in place. `takes` says whether the peer can hold
    an example.
    """

    name: str
    keeps: Keeps
    write: Callable[[Example, Path], None]
    apply: Callable[[Path, Weights], None]
    takes: Callable[[Example], bool] = _any
