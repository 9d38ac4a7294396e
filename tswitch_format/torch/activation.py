"""Changing weights in place so that it can be undone exactly: original values are kept, nothing is subtracted.

    Change        what happens to one weight
    Store         memory for original values
    Activation    all changes together: make and undo

Extra memory of an activation: for each active element one value of the weight's dtype; a copy of each weight that a dense
entry replaces; and where several tasks change f16 or bf16 weights, which are summed in f32 before they are rounded once,
one run of elements in f32 (64 MiB a device; on the CPU 4 MiB a thread), and a copy of one such weight if it is not contiguous.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import Job, add_rounded, run
from tswitch_format.torch.packed import PackedSwitch
from tswitch_format.torch.weights import changing, raw


@dataclass(frozen=True, slots=True)
class Change:
    """One weight: `terms` are added in order, each with its coefficient, or `dense` replaces it.

    `matrix` is its memory as kernels want it (see `kernels.job.matrix_of`).
    """

    name: str
    weight: Tensor
    matrix: Tensor
    terms: Sequence[tuple[PackedSwitch, float]] = ()
    dense: Tensor | None = None

    @property
    def in_order(self) -> bool:
        """Whether terms may be added one after the other: rounding to the weight's dtype changes nothing between them."""
        return len(self.terms) < 2 or self.weight.dtype in (torch.float32, torch.float64)


class Store:
    """Memory for original values, of one activation at a time. It grows and is used again: fresh pages would take a tenth of
    the time of an activation, and a server knows what it needs once it has activated its largest combination."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def nbytes(self) -> dict[torch.device, int]:
        """Bytes that it holds, by device."""
        return add_sizes(self._buffers.values())

    def clear(self) -> None:
        """Give it all back."""
        self._buffers.clear()

    def reserve(self, device: torch.device, dtype: torch.dtype, size: int) -> Tensor:
        """Room for `size` elements. What was there is lost."""
        found = self._buffers.get((device, dtype))
        if found is None or len(found) < size:
            if found is not None and device.type == "cuda":
                torch.cuda.synchronize(device)  # other streams may still read what is let go
            self._buffers.pop((device, dtype), None)
            found = None  # before the new one is made
            found = self._buffers[device, dtype] = _empty(size, dtype, device)
        return found[:size]


def _empty(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU NumPy's memory: of large arrays that asks for large pages, of which the first touch costs a tenth."""
    if device.type != "cpu" or not size:
        return torch.empty(size, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size * dtype.itemsize, np.uint8)).view(dtype)


def add_sizes(tensors: Iterable[Tensor]) -> dict[torch.device, int]:
    """Bytes of tensors, by device."""
    sizes: dict[torch.device, int] = {}
    for tensor in tensors:
        sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.nbytes
    return sizes


class Activation:
    """Changes that are made and undone. Original values are kept in `store`; making it allocates, and changes nothing.

    It can be interrupted anywhere: `undo` puts back what was changed so far, and may itself be called again.
    """

    def __init__(self, changes: Sequence[Change], store: Store) -> None:
        self._changes = changes
        self._weights = [change.weight for change in changes]
        self._jobs = _saving_jobs(changes, store)
        self._dense = [
            (raw(c.weight.detach()), raw(c.dense), raw(c.weight.detach()).clone())
            for c in changes
            if c.dense is not None
        ]
        self._saved: list[Job] = []

    @property
    def dense_nbytes(self) -> dict[torch.device, int]:
        """Bytes of the copies of weights that dense entries replace, by device."""
        return add_sizes(kept for _, _, kept in self._dense)

    def make(self) -> None:
        """Make all changes."""
        with changing(self._weights):
            run(self._jobs, self._saved)
            self._saved = self._jobs  # whole again: parts are put back one after the other
            for change in self._changes:
                if not change.in_order:
                    add_rounded(change.matrix, change.terms)
            for weight, dense, _ in self._dense:
                weight.copy_(dense.view(weight.shape))

    def undo(self) -> None:
        """Give every touched element its own bits back."""
        with changing(self._weights):
            for weight, _, kept in self._dense:
                weight.copy_(kept)
            run([replace(job, mode=Mode.PUT_BACK) for job in reversed(self._saved)])


def _saving_jobs(changes: Sequence[Change], store: Store) -> list[Job]:
    """For each term a job that keeps the original values, and adds the term if that can be done at once."""
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    for change in changes:
        kind = change.weight.device, change.weight.dtype
        sizes[kind] = sizes.get(kind, 0) + sum(switch.active for switch, _ in change.terms)
    buffers = {kind: store.reserve(*kind, size) for kind, size in sizes.items()}
    used = dict.fromkeys(buffers, 0)
    jobs = []
    for change in changes:
        kind = change.weight.device, change.weight.dtype
        mode = Mode.SAVE_AND_ADD if change.in_order else Mode.SAVE
        for switch, coefficient in change.terms:
            if not switch.active:
                continue
            other = buffers[kind][used[kind] : used[kind] + switch.active]
            used[kind] += switch.active
            jobs.append(Job(mode, change.matrix, switch, coefficient, other))
    return jobs
