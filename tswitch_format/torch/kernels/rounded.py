"""Several switches into f16 or bf16 weights: summed in f32, rounded once (spec section 10), a run of chunks at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tswitch_format import _layout as lay
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels.job import Job
from tswitch_format.torch.packed import PackedSwitch

Terms = Sequence[tuple[PackedSwitch, float]]


def piece_adder(
    matrix: Tensor, terms: Terms, chunks: int, run: Callable[[Sequence[Job]], None]
) -> tuple[Callable[[int], None], range]:
    """What adds the terms, each with its coefficient, to `chunks` chunks of a matrix from a given one on, and all such
    beginnings. `run` does jobs in order. A piece takes f32 for its elements."""
    flat = matrix.reshape(-1)  # a copy where the weight is not contiguous
    count = lay.chunks_of(flat.numel())
    room = threading.local()  # one buffer a thread: each piece's own would leave its pages to the allocator

    def add_piece(first: int) -> None:
        stop = min(first + chunks, count)
        origin = first * lay.CHUNK
        weights = flat[origin : stop * lay.CHUNK]
        if not hasattr(room, "sums"):
            room.sums = weights.new_empty(min(chunks * lay.CHUNK, flat.numel()), dtype=torch.float32)
        sums = room.sums[: weights.numel()].copy_(weights)
        parts = [(switch.part(first, stop), coefficient) for switch, coefficient in terms]
        run([Job(Mode.ADD, sums, part, coefficient, origin=origin) for part, coefficient in parts])
        run([Job(Mode.ROUND, matrix, part, other=sums, origin=origin) for part, _ in parts])

    return add_piece, range(0, count, chunks)
