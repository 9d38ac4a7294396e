"""The compiled loops of `switch/compiled.py` on CPU tensors, shared among as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format._parallel import ordered_map
from tswitch_format.switch import compiled
from tswitch_format.switch.apply import Scale
from tswitch_format.switch.planes import Mode, Planes
from tswitch_format.torch.kernels import reference
from tswitch_format.torch.kernels.job import Job

_TYPES = (torch.float32, torch.bfloat16)
_BLOCKS = 64  # that a thread takes at once: about 10^6 elements at 6 %


def run(jobs: Sequence[Job]) -> None:
    """Do all jobs, those of one target in order. Weights of other types than f32 and bf16, or with gaps between their
    elements, are left to the reference."""
    waiting: list[Job] = []
    begun: set[int] = set()
    for job in jobs:
        if job.target.data_ptr() in begun or not _takes(job):  # threads keep no order: what came before must be over
            _run(waiting)
            waiting, begun = [], set()
        if _takes(job):
            waiting.append(job)
            begun.add(job.target.data_ptr())
        else:
            reference.run([job])
    _run(waiting)


def _takes(job: Job) -> bool:
    return job.target.dtype in _TYPES and job.contiguous


def _run(jobs: Sequence[Job]) -> None:
    threads = min(torch.get_num_threads(), sum(-(-job.switch.block_count // _BLOCKS) for job in jobs))
    for _ in ordered_map(lambda unit: unit(), _units(jobs), max(threads, 1)):
        pass


def _units(jobs: Sequence[Job]) -> Iterator[Any]:
    for job in jobs:
        switch = job.switch
        blocks = switch.blocks.numpy()
        planes = Planes(
            switch.form,
            switch.elements,
            switch.active,
            switch.codes.numpy(),
            switch.signs.numpy(),
            blocks,
            switch.chunk_blocks,
        )
        rows, columns = (None if f is None else f.numpy() for f in (switch.rows, switch.columns))
        scale = Scale(np.float32(switch.knob), rows, columns, switch.row_length)
        target = _array(job.target.view(-1))
        other = None if job.other is None else _array(job.other)
        origin = job.origin if job.target.ndim == 1 or job.mode is Mode.ROUND else 0
        for first in range(0, switch.block_count, _BLOCKS):
            span = first, min(first + _BLOCKS, switch.block_count)
            yield (
                lambda span=span, job=job, target=target, planes=planes, scale=scale, other=other, origin=origin: (
                    compiled.run(
                        job.mode, target, planes, scale, span, coefficient=job.coefficient, other=other, origin=origin
                    )
                )
            )


def _array(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor's memory; bf16 as u16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
