"""What is done with the active elements of packed switches, on every device with the same bits.

    job.py          Job: one mode, one target, one switch; checked shapes
    reference.py    plain torch, any device: what the others are compared with, bit for bit
    fused.py        Triton, CUDA (and its interpreter): unpacks, expands gaps, applies and saves in one pass
    run             the fastest that can do it: `fused`, on the CPU the compiled loops of switch/compiled.py, else `reference`

Nothing here allocates more than buffers of the size of a chunk (2^20 elements).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch

from tswitch_format.torch.kernels import reference
from tswitch_format.torch.kernels.job import Job

__all__ = ["Job", "backend_of", "run"]


def run(jobs: Sequence[Job]) -> None:
    """Do all jobs, those of one target in order."""
    for device in {job.target.device for job in jobs}:
        _backend(device.type).run([job for job in jobs if job.target.device == device])


def backend_of(device: torch.device) -> str:
    """What runs there: "fused", "compiled" or "reference"."""
    return _backend(device.type).__name__.rpartition(".")[2]


class _Backend(Protocol):
    __name__: str

    def run(self, jobs: Sequence[Job]) -> None: ...


@cache
def _backend(kind: str) -> _Backend:
    """Extras are imported when they are first used."""
    for device, package, name in (("cuda", "triton", "fused"), ("cpu", "numba", "compiled")):
        if kind == device and find_spec(package):
            found: _Backend = import_module(f"{__name__}.{name}")
            return found
    return reference
