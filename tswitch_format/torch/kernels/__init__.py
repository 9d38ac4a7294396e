"""What is done with the active elements of packed switches, on every device with the same bits.

    job.py          Job: one mode, one target, one switch; checked shapes
    reference.py    plain torch, any device: what the others are compared with, bit for bit
    fused.py        Triton, CUDA (and its interpreter): unpacks, expands gaps, applies and saves in one pass
    run             the fastest that can do it: `fused`, on the CPU the compiled loops of switch/compiled.py, else `reference`

Nothing here allocates more than buffers of the size of a chunk (2^20 elements).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from tswitch_format import _layout as lay
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import reference
from tswitch_format.torch.kernels.job import Job
from tswitch_format.torch.packed import PackedSwitch

__all__ = ["Job", "add_rounded", "backend_of", "run"]


def run(jobs: Sequence[Job], done: list[Job] | None = None) -> None:
    """Do all jobs, those of one target in order.

    `done` gets every job, or part of one, that was done, so that one knows what to undo where an error ends the rest.
    """
    done = [] if done is None else done
    for device in {job.target.device for job in jobs}:
        _backend(device.type).run([job for job in jobs if job.target.device == device], done)


def add_rounded(matrix: Tensor, terms: Sequence[tuple[PackedSwitch, float]]) -> None:
    """Add several switches, each with its coefficient, in f32, and round once to the matrix's dtype, f16 or bf16.

    Takes an f32 buffer of `PIECE` chunks, on the CPU one for each thread.
    """
    backend = _backend(matrix.device.type)
    flat = matrix.reshape(-1)  # a copy where the weight is not contiguous
    chunks = lay.chunks_of(flat.numel())

    def add_piece(first: int) -> None:
        stop = min(first + backend.PIECE, chunks)
        origin = first * lay.CHUNK
        sums = flat[origin : stop * lay.CHUNK].float()
        parts = [(switch.part(first, stop), coefficient) for switch, coefficient in terms]
        backend.run_here([Job(Mode.ADD, sums, part, coefficient, origin=origin) for part, coefficient in parts])
        backend.run_here([Job(Mode.ROUND, matrix, part, other=sums, origin=origin) for part, _ in parts])

    backend.each(add_piece, range(0, chunks, backend.PIECE))


def backend_of(device: torch.device) -> str:
    """What runs there: "fused", "compiled" or "reference"."""
    return _backend(device.type).__name__.rpartition(".")[2]


class _Backend(Protocol):
    """What a backend's module has."""

    __name__: str
    PIECE: int

    def run(self, jobs: Sequence[Job], done: list[Job]) -> None: ...

    def run_here(self, jobs: Sequence[Job]) -> None: ...

    def each(self, do: Callable[[int], None], parts: Sequence[int]) -> None: ...


@cache
def _backend(kind: str) -> _Backend:
    """Extras are imported when they are first used."""
    for device, package, name in (("cuda", "triton", "fused"), ("cpu", "numba", "compiled")):
        if kind == device and find_spec(package):
            found: _Backend = import_module(f"{__name__}.{name}")
            return found
    return reference
