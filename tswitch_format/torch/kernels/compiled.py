"""The compiled loops of `switch/compiled.py` on CPU tensors, shared among as many threads as torch uses.

They know ternary switches. Of a masked one they gather the vector's active elements and the weights' by rank, NumPy adds them
(`switch/apply.py`), and the loops put the sums back: three passes over the codes in place of one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format._dtypes import BF16, F32, from_float, to_float
from tswitch_format.codecs.runs import RANK
from tswitch_format.switch import compiled
from tswitch_format.switch.apply import Scale, vector_values
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.checkpoint import dtype_of_tensor
from tswitch_format.torch.kernels import reference
from tswitch_format.torch.kernels.job import Job
from tswitch_format.torch.kernels.rounded import Terms, piece_adder
from tswitch_format.torch.packed import PackedSwitch

_T = TypeVar("_T")

_TYPES = (torch.float32, torch.bfloat16)
_FOR_GOOD = (Mode.ADD, Mode.VALUES, Mode.SIGNS)
_BLOCKS = 64  # that a thread takes at once, at least: about 10^6 elements at 6 %
_SHARES = 8  # of the work a thread, at most: with many small parts it takes 10 % longer (measured)
PIECE = 1  # chunks that are summed at a time: 4 MiB of f32, which stay in the cache


def run(jobs: Sequence[Job], done: list[Job]) -> None:
    """Do all jobs, those of one target in order. Weights of other types than f32 and bf16, or with gaps between their
    elements, and vectors of f64, are left to the reference."""
    for wave in _waves(jobs):
        _run([job for job in wave if _takes(job)], done)
        reference.run([job for job in wave if not _takes(job)], done)


def _waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """The first jobs of all targets, then the second, and so on: threads keep no order within one of these."""
    waves: list[list[Job]] = []
    before: dict[int, int] = {}  # jobs of this memory
    for job in jobs:
        memory = [tensor.data_ptr() for tensor in (job.target, job.other) if tensor is not None]
        number = max(before.get(place, 0) for place in memory)
        before |= dict.fromkeys(memory, number + 1)
        if number == len(waves):
            waves.append([])
        waves[number].append(job)
    return waves


def _takes(job: Job) -> bool:
    vector = job.switch.vector if job.gathers else None
    if job.mode is Mode.SIGNS:
        return job.contiguous and vector is None
    return job.target.dtype in _TYPES and job.contiguous and (vector is None or vector.dtype != torch.float64)


def _run(jobs: Sequence[Job], done: list[Job]) -> None:
    """In threads, also where it is one: an interrupt then comes between parts, never between a part and its note. But where
    nobody can undo it there is no note to be late, and a thread takes longer than a small part."""
    threads = torch.get_num_threads()
    blocks = sum(job.switch.block_count for job in jobs)
    least = max(_BLOCKS, blocks // (_SHARES * threads))
    parts = [part for job in jobs for part in _parts(job, least)]
    if not parts:
        return
    if len(parts) == 1 and parts[0].mode in _FOR_GOOD:
        _do(parts[0])
        done.append(parts[0])
        return

    def do(part: Job) -> None:
        _do(part)
        done.append(part)

    each(do, parts)


def each(do: Callable[[_T], None], parts: Sequence[_T]) -> None:
    """Call it for every part, in threads. When this returns, or raises, none of them is running.

    Threads of our own and no pool: an interrupt while a pool starts one leaves a thread that it does not know of, which goes
    on meanwhile and keeps the process from ending.
    """
    gate = threading.Condition()
    left = deque(parts)
    errors: list[BaseException] = []
    running = 0

    def work() -> None:
        nonlocal running
        while True:
            with gate:
                if not left:
                    return
                part = left.popleft()
                running += 1
            try:
                with torch.inference_mode():  # a thread begins without, and then may not change inference tensors
                    do(part)
            except BaseException as error:  # noqa: BLE001 - raised below
                with gate:
                    errors.append(error)
                    left.clear()
            finally:
                with gate:
                    running -= 1
                    gate.notify_all()

    try:
        for _ in range(min(torch.get_num_threads(), len(parts))):
            threading.Thread(target=work, name="tsw", daemon=True).start()
        with gate:
            gate.wait_for(lambda: not left and not running)
    except BaseException:
        with gate:
            left.clear()
            gate.wait_for(lambda: not running)
        raise
    if errors:
        raise errors[0]


def add_rounded(matrix: Tensor, terms: Terms) -> None:
    """See `kernels.add_rounded`."""
    add_piece, firsts = piece_adder(matrix, terms, PIECE, _run_here)
    if firsts:
        each(add_piece, firsts)


def _run_here(jobs: Sequence[Job]) -> None:
    """In this thread."""
    for job in jobs:
        if _takes(job):
            _do(job)
        else:
            reference.run([job], [])


def _parts(job: Job, least: int) -> Iterator[Job]:
    """The job in parts of whole chunks, of at least `least` blocks but the last. One that gathers: each chunk a part, which
    fails, if it does, before its weights change."""
    if job.gathers:
        least = 1
    starts = job.switch.chunk_blocks
    first = 0
    for stop in range(1, len(starts)):
        if starts[stop] - starts[first] >= least or (stop == len(starts) - 1 and starts[stop] > starts[first]):
            yield replace(job, switch=job.switch.part(first, stop))
            first = stop


def _do(job: Job) -> None:
    if job.gathers and job.switch.vector is not None:
        _do_gathered(job, job.switch.vector)
        return
    switch = job.switch
    rows, columns = (None if f is None else f.numpy() for f in (switch.rows, switch.columns))
    scale, mode, coefficient = (
        Scale(np.float32(switch.knob), rows, columns, switch.row_length),
        job.mode,
        job.coefficient,
    )
    if mode is Mode.SIGNS:  # the values of a knob of 1, whatever the coefficient
        scale, mode, coefficient = Scale(np.float32(1), None, None, switch.row_length), Mode.VALUES, 1.0
    compiled.run(
        mode,
        _array(job.target.view(-1)),
        switch.form,
        switch.codes.numpy(),
        switch.signs.numpy(),
        switch.blocks.numpy(),
        scale,
        coefficient=coefficient,
        other=None if job.other is None else _array(job.other),
        origin=job.origin if job.target.ndim == 1 else 0,
        other_origin=job.origin,
    )


def _do_gathered(job: Job, vector: Tensor) -> None:
    """Of a masked switch: ADD, SAVE_AND_ADD and VALUES, chunk by chunk."""
    kind = dtype_of_tensor(vector) or F32
    target = _array(job.target.view(-1))
    dtype = BF16 if job.target.dtype == torch.bfloat16 else F32
    origin = job.origin if job.target.ndim == 1 else 0
    for number in range(len(job.switch.chunks) - 1):
        switch = job.switch.part(number, number + 1)
        blocks = switch.blocks.numpy().copy()
        first = int(blocks[0, RANK])
        blocks[:, RANK] -= first
        move = partial(_move, switch, blocks)
        gathered = np.empty(switch.active, kind.storage)
        move(Mode.SAVE, _words(vector), gathered.view(_words(vector).dtype))
        values = vector_values(np.float32(switch.knob), job.coefficient, F32, gathered, kind)
        if job.mode is not Mode.VALUES:
            found = np.empty(switch.active, target.dtype)
            if job.mode is Mode.SAVE_AND_ADD and job.other is not None:
                found = _array(job.other)[first : first + switch.active]
            move(Mode.SAVE, target, found, origin)
            sums = np.empty(switch.active, np.float32)
            to_float(found, dtype, sums)
            with np.errstate(all="ignore"):
                sums += values
            values = sums
        move(Mode.PUT_BACK, target, from_float(values, dtype), origin)


def _move(
    switch: PackedSwitch,
    blocks: NDArray[np.int64],
    mode: Mode,
    target: NDArray[Any],
    other: NDArray[Any],
    origin: int = 0,
) -> None:
    """Active elements to or from `other`, by rank as `blocks` has it."""
    codes, signs = switch.codes.numpy(), switch.signs.numpy()
    scale = Scale(np.float32(0), None, None, 1)
    compiled.run(mode, target, switch.form, codes, signs, blocks, scale, other=other, origin=origin)


def _array(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor's memory; bf16 as u16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _words(tensor: Tensor) -> NDArray[Any]:
    """The same for what is only moved: f16 as u16 too, since the loops are compiled for each type."""
    return (tensor.view(torch.uint16) if tensor.element_size() == 2 else tensor).numpy()
