"""Triton, one launch a job: codes become places, ranks and signs, and the weights change, in one pass.

    run, add_rounded, probe           do jobs (see job.py) on CUDA tensors; on CPU tensors where TRITON_INTERPRET is 1
    _config                           how many codes at once and how many warps: measured on scratch memory, kept by the process
    _launch                           one job: what is constant for it, and the grid
    _kernel                           one block of the table (see switch/planes.py) for each program
    _expand_gaps, _expand_bitmap      a step of codes -> offset, rank and liveness of each lane
    _change                           what the mode does with them
    _signed, _add, _round             spec section 10: products one after the other, one sum, one rounding

Neighbouring lanes have neighbouring active elements, so a warp reads the sectors of memory that it needs once and in order;
what is saved lies by rank and is read and written densely. Nothing but codes and weights comes from memory: places and ranks
are running sums of codes, which the table begins anew for each program.

Masked switches: modes that need the vector's elements are left to plain torch (`Job.gathers`); saving and putting back are not.

The bits are those of `reference.py`. Fusion of multiply and add is off, signs are flipped and not subtracted from zero, and
BF16 is rounded by integers: Triton's interpreter would cut it off.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench

from tswitch_format import _layout as lay
from tswitch_format.switch.planes import BLOCK, Form, Mode
from tswitch_format.torch.kernels import reference
from tswitch_format.torch.kernels.job import Job
from tswitch_format.torch.kernels.rounded import Terms, piece_adder

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
_FAR = 2**31 - 255 * BLOCK  # a row this long, and a block behind it, are beyond i32

# Codes (bytes) at once and warps; the first is taken for what is too small to be measured.
_CONFIGS = {
    Form.GAPS: ((1024, 4), (1024, 8), (512, 4), (256, 2)),
    Form.BITMAP: ((256, 4), (1024, 8), (128, 4), (64, 2)),
}
_MEASURED = 8, 16  # chunks: the fewest that are worth it, the most that are used
_found: dict[tuple[Any, ...], tuple[int, int]] = {}

# Triton takes globals only as constants of its own.
_BLOCK = tl.constexpr(BLOCK)
_GAPS = tl.constexpr(int(Form.GAPS))
_, _SAVE_AND_ADD, _SAVE, _PUT_BACK, _ROUND, _VALUES, _SIGNS = (tl.constexpr(int(mode)) for mode in Mode)


def run(jobs: Sequence[Job], done: list[Job]) -> None:
    """Do all jobs in order; all targets are on one device. `done` gets those that were launched, also where an error or an
    interrupt ends the rest. Those in F64 are left to the reference, for Triton takes numbers from Python as f32; and those
    that need the vector of a masked switch, which this kernel does not read."""
    for ours, group in itertools.groupby(jobs, lambda job: job.target.dtype in _TYPES and not job.gathers):
        if ours:
            _run(list(group), done)
        else:
            reference.run(list(group), done)


def add_rounded(matrix: Tensor, terms: Terms) -> None:
    """See `kernels.add_rounded`."""
    add_piece, firsts = piece_adder(matrix, terms, reference.PIECE, lambda jobs: run(jobs, []))
    for first in firsts:
        add_piece(first)


def probe() -> None:
    """Launch the smallest kernel there is: Triton needs a C compiler for that, and says so now."""
    if torch.cuda.is_available():
        _probe[(1,)](torch.zeros(1, device="cuda"))


def _run(jobs: Sequence[Job], done: list[Job]) -> None:
    device, before = jobs[0].target.device, len(done)
    # An interrupt may come between a launch and its note in Python. So kernels note their number themselves, on the device.
    begun = torch.zeros((), dtype=torch.int32, device=device)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            for number, job in enumerate(jobs, 1):
                if job.switch.active:
                    _launch(job, *_config(job), begun, number)
        done.extend(jobs)
    except BaseException:
        done[before:] = jobs[: int(begun)]
        raise


def _config(job: Job) -> tuple[int, int]:
    """Codes at once and warps, for a job of this kind the fastest on this device.

    Measured once, on memory of its own: kernels change weights in place, and a copy to restore them from would take as much
    memory as the weights, and most of the time that is measured. Jobs too small to tell say nothing for others.
    """
    switch, target = job.switch, job.target
    configs = _CONFIGS[switch.form]
    key = job.mode, switch.form, target.dtype, target.device
    if key in _found:
        return _found[key]
    chunks = min(len(switch.chunks) - 1, _MEASURED[1])
    small = chunks < _MEASURED[0] or switch.first_chunk != 0
    if small or target.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return configs[0]
    try:
        trial, begun = _trial(job, chunks), torch.zeros((), dtype=torch.int32, device=target.device)
        launches = {config: partial(_launch, trial, *config, begun, 0) for config in configs}
        times = {config: float(do_bench(launch, warmup=5, rep=20)) for config, launch in launches.items()}
    except torch.OutOfMemoryError:  # no reason to fail: there is room for the job itself
        return configs[0]
    _found[key] = min(times, key=times.__getitem__)
    return _found[key]


def _trial(job: Job, chunks: int) -> Job:
    """The same with the first chunks of a switch and weights of nobody's."""
    switch = replace(job.switch, blocks=job.switch.blocks[: job.switch.chunk_blocks[chunks] + 1])
    target = torch.zeros(chunks * lay.CHUNK, dtype=job.target.dtype, device=job.target.device)
    other = None if job.other is None else torch.zeros_like(target, dtype=job.other.dtype)
    return replace(job, target=target, switch=switch, other=other, origin=0)


def _launch(job: Job, width: int, warps: int, begun: Tensor, number: int) -> None:
    switch, target = job.switch, job.target
    strided = target.ndim == 2 and not job.contiguous
    down, along = target.stride() if strided else (0, 0)
    valued = job.mode in (Mode.ADD, Mode.SAVE_AND_ADD, Mode.VALUES)
    factors = valued and (switch.rows is not None or switch.columns is not None)
    _kernel[(switch.block_count,)](
        target,
        job.other,
        switch.codes,
        switch.signs,
        switch.blocks,
        switch.rows,
        switch.columns,
        switch.knob,
        float(np.float32(job.coefficient)),  # the launcher's own rounding is not ours to trust
        switch.row_length,
        down,
        along,
        job.origin if target.ndim == 1 else 0,
        job.origin,
        begun,
        number,
        mode=int(job.mode),
        form=int(switch.form),
        strided=strided,
        factors=factors,
        index=tl.int64 if switch.row_length > _FAR else tl.int32,
        width=width,
        num_warps=warps,
        enable_fp_fusion=False,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _probe(place: tl.tensor) -> None:
    tl.store(place, 1.0)


_FREE = ["knob", "coefficient", "length", "down", "along", "origin", "other_origin", "number"]  # no new kernel for a 1


@triton.jit(do_not_specialize=_FREE)  # type: ignore[untyped-decorator]
def _kernel(
    target: tl.tensor,
    other: tl.tensor,
    codes: tl.tensor,
    signs: tl.tensor,
    blocks: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    knob: tl.tensor,
    coefficient: tl.tensor,
    length: tl.tensor,
    down: tl.tensor,
    along: tl.tensor,
    origin: tl.tensor,
    other_origin: tl.tensor,
    begun: tl.tensor,
    number: tl.tensor,
    mode: tl.constexpr,
    form: tl.constexpr,
    strided: tl.constexpr,
    factors: tl.constexpr,
    index: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """What `mode` says, with the active elements of one block. Numbers that may pass 2^31 are scalars, once a program; what
    is counted from the block's first element fits i32, and so do the divisions: the dearest thing here, made only for
    factors and strides."""
    if tl.program_id(0) == 0:
        tl.store(begun, number)
    block = blocks + 4 * tl.program_id(0)
    begin = tl.load(block)
    start = tl.load(block + 1)
    rank = tl.load(block + 2)
    sign = tl.load(block + 3)
    count = (tl.load(block + 4) - begin).to(tl.int32)
    codes += begin
    signs += sign >> 3
    first_row = start
    first_column = start
    if strided or factors:
        first_row = start // length
        first_column = start - first_row * length
    if other is not None:
        other += start - other_origin if mode == _ROUND else rank

    done = tl.zeros((), tl.int32)
    for first in range(0, _BLOCK, width):
        if form == _GAPS:
            offset, ahead, live, done = _expand_gaps(codes, first + tl.arange(0, width), count, done)
        else:
            offset, ahead, live, done = _expand_bitmap(codes, 8 * first + tl.arange(0, 8 * width), count, done)
        row = first_row
        column = offset.to(index)
        if strided or factors:
            column += first_column.to(index)
            lower = column // length.to(index)
            column -= lower * length.to(index)
            row = first_row + lower
        place = target + (start - origin) + offset
        if strided:
            place = target + (row * down + column.to(tl.int64) * along)
        kept = other
        if other is not None:
            kept = other + (offset if mode == _ROUND else ahead)
        at = (sign & 7).to(tl.int32) + ahead
        _change(mode, place, kept, live, signs, at, knob, rows, columns, row, column, coefficient)


@triton.jit  # type: ignore[untyped-decorator]
def _change(
    mode: tl.constexpr,
    place: tl.tensor,
    kept: tl.tensor,
    live: tl.tensor,
    signs: tl.tensor,
    at: tl.tensor,
    knob: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    coefficient: tl.tensor,
) -> None:
    """What `mode` says, with one active element for each live lane: at `place`, its counterpart at `kept`, its sign at bit
    `at` of `signs`."""
    if mode == _PUT_BACK:
        tl.store(place, tl.load(kept, mask=live), mask=live)
    elif mode == _ROUND:
        tl.store(place, _round(tl.load(kept, mask=live), place.dtype.scalar.element_ty), mask=live)
    elif mode == _SAVE:
        tl.store(kept, tl.load(place, mask=live), mask=live)
    else:
        negative = (tl.load(signs + (at >> 3), mask=live, other=0).to(tl.int32) >> (at & 7)) & 1
        if mode == _SIGNS:
            tl.store(place, (1 - 2 * negative).to(tl.int8), mask=live)
        else:
            value = _signed(knob, rows, columns, row, column, coefficient, negative, live)
            if mode == _VALUES:
                tl.store(place, value, mask=live)
            else:
                found = tl.load(place, mask=live)
                if mode == _SAVE_AND_ADD:
                    tl.store(kept, found, mask=live)
                tl.store(place, _add(found, value), mask=live)


@triton.jit  # type: ignore[untyped-decorator]
def _expand_gaps(codes: tl.tensor, lane: tl.tensor, count: tl.tensor, done: tl.tensor) -> tl.tensor:
    """Of each lane: offset from the block's first element, rank in the block, whether it is active; and `done` for the
    lanes behind. One running sum does for offsets (20 bits: a block's steps come to 255 * 1024 at most) and ranks."""
    inside = lane < count
    code = tl.load(codes + lane, mask=inside, other=255).to(tl.int32)
    live = code < 255
    ends = live.to(tl.int32)
    steps = tl.where(inside, tl.minimum(code, 254) + 1, 0) + (ends << 20)
    through = done + tl.cumsum(steps, 0)
    offset = (through & 0xFFFFF) - 1
    return offset, (through >> 20) - ends, live, done + tl.sum(steps, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _expand_bitmap(codes: tl.tensor, lane: tl.tensor, count: tl.tensor, done: tl.tensor) -> tl.tensor:
    """The same; a lane for each bit, so that loads and stores of weights are of neighbours."""
    byte = tl.load(codes + (lane >> 3), mask=lane < 8 * count, other=0).to(tl.int32)
    ends = (byte >> (lane & 7)) & 1
    through = done + tl.cumsum(ends, 0)
    return lane, through - ends, ends != 0, done + tl.sum(ends, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _signed(
    knob: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    coefficient: tl.tensor,
    negative: tl.tensor,
    live: tl.tensor,
) -> tl.tensor:
    """v or -v in f32. Multiplying by a coefficient of 1 changes nothing, so it needs no branch. A number minus another loses
    the sign of zero: the bit is turned over."""
    value = knob
    if rows is not None:
        value = value * tl.load(rows + row, mask=live, other=0.0)
    if columns is not None:
        value = value * tl.load(columns + column, mask=live, other=0.0)
    value = value * coefficient
    return (value.to(tl.int32, bitcast=True) ^ (negative << 31)).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _add(found: tl.tensor, value: tl.tensor) -> tl.tensor:
    """Weights plus values, in the weights' type. BF16 is the upper half of an f32."""
    if found.dtype == tl.bfloat16:
        wide = (found.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = found.to(tl.float32)
    return _round(wide + value, found.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _round(value: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """f32 to nearest, ties to even; NaN stays NaN, which adding could carry into infinity or zero."""
    if kind == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where(value != value, (bits >> 16) | 0x40, nearest)  # noqa: PLR0124 - NaN
        rounded = half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = value.to(kind)
    return rounded
