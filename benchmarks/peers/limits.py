"""What nothing can beat: copying the weights' bytes in memory, reading a file from the page cache into memory.

The limit of bytes is `Example.entropy_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.examples import Weights

COPY = "limit: copying all weights in memory"
READ = "limit: reading the file of "  # and the name of its peer


def copying(source: Weights, target: Weights) -> Callable[[], None]:
    """What copies all elements, with as many threads as torch uses."""

    def run() -> None:
        for name, tensor in source.items():
            target[name].copy_(tensor)

    return run


def reading(path: Path) -> Callable[[], None]:
    """What reads a whole file into memory that is there already."""
    buffer = bytearray(path.stat().st_size)

    def run() -> None:
        with path.open("rb", buffering=0) as file:
            if file.readinto(buffer) != len(buffer):
                raise OSError(f"{path}: expected {len(buffer)} bytes at once, found fewer; run it again")

    return run
