"""What is done with the active elements of packed switches, on every device with the same bits.

    run, add_rounded    with the fastest backend that can
    job.py              Job: one mode, one target, one switch; checked shapes
    choice.py           which backend that is
    reference.py        plain torch, any device: what the others are compared with, bit for bit
    compiled.py         the CPU: the compiled loops of switch/compiled.py, in threads
    fused.py            CUDA: Triton; unpacks, expands gaps, applies and saves in one pass
    rounded.py          several switches into f16 and bf16, for all of them

Masked switches are saved and put back by all of them; their values are added in plain torch on CUDA, by NumPy on the CPU.

`run` allocates buffers of the size of a chunk (2^20 elements) at most, on the CPU some for each thread; `add_rounded` see
there; on CUDA the first jobs of a kind are measured to find the best block size, which takes at most 16 chunks twice and
256 MiB for a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor

from tswitch_format.torch.kernels.choice import choose
from tswitch_format.torch.kernels.job import Job
from tswitch_format.torch.kernels.rounded import Terms

__all__ = ["Backend", "Job", "add_rounded", "backend_of", "run"]


class Backend(Protocol):
    """What each backend's module has."""

    __name__: str

    def run(self, jobs: Sequence[Job], done: list[Job]) -> None:
        """See `run` below."""

    def add_rounded(self, matrix: Tensor, terms: Terms) -> None:
        """See `add_rounded` below."""


def run(jobs: Sequence[Job], done: list[Job] | None = None) -> None:
    """Do all jobs, those of one target in order.

    `done` gets every job, or part of one, that was done, so that one knows what to undo where an error ends the rest.
    """
    done = [] if done is None else done
    for device in {job.target.device for job in jobs}:
        _backend(device.type).run([job for job in jobs if job.target.device == device], done)


def add_rounded(matrix: Tensor, terms: Terms) -> None:
    """Add several switches, each with its coefficient, in f32, and round once to the matrix's dtype, f16 or bf16.

    Takes f32 for 16 chunks (64 MiB), on the CPU for one a thread; and a copy of a matrix that is not contiguous.
    """
    _backend(matrix.device.type).add_rounded(matrix, terms)


def backend_of(device: torch.device) -> str:
    """What runs there: "fused", "compiled" or "reference"."""
    return _backend(device.type).__name__.rpartition(".")[2]


@cache
def _backend(kind: str) -> Backend:
    return cast(Backend, choose(__name__, kind))
