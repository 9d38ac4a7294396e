"""Plain torch, chunk by chunk, on any device: the arithmetic of spec section 10 as `switch/apply.py` has it in NumPy.

run                 do jobs (see job.py)
active_elements     unpack a bitmap or expand gap bytes: flat elements and signs of a chunk
added_values        what is added to them
signed_values       of a ternary switch
selected_values     of a masked one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tswitch_format._dtypes import F64
from tswitch_format.codecs.runs import RANK, SIGN
from tswitch_format.switch.planes import Form, Mode
from tswitch_format.torch.kernels.job import Job
from tswitch_format.torch.kernels.rounded import Terms, piece_adder
from tswitch_format.torch.packed import PackedSwitch, chunk_codes, chunk_start

PIECE = 16  # chunks that are summed at a time: 64 MiB


def run(jobs: Sequence[Job], done: list[Job]) -> None:
    """Do all jobs in order; `done` gets them chunk by chunk."""
    for job in jobs:
        for chunk in range(len(job.switch.chunks) - 1):
            part = replace(job, switch=job.switch.part(chunk, chunk + 1))
            if part.switch.active:
                _run_chunk(part, done)


def add_rounded(matrix: Tensor, terms: Terms) -> None:
    """See `kernels.add_rounded`."""
    add_piece, firsts = piece_adder(matrix, terms, PIECE, lambda jobs: run(jobs, []))
    for first in firsts:
        add_piece(first)


def _run_chunk(job: Job, done: list[Job]) -> None:
    switch, mode = job.switch, job.mode
    first, stop = int(switch.chunks[0, RANK]), int(switch.chunks[1, RANK])
    elements, negative = active_elements(switch, 0)
    flat, places = _places(job, elements)
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    if mode is Mode.PUT_BACK:
        flat[places] = _other(job)[first:stop]
    elif mode is Mode.ROUND:
        flat[places] = _other(job)[elements - job.origin].to(flat.dtype)
    elif mode is Mode.VALUES:
        flat[places] = added_values(switch, elements, negative, job.coefficient, wide)
    elif mode is Mode.SIGNS:
        flat[places] = _signs(switch, elements, negative).to(flat.dtype)
    else:
        found = flat[places]
        sums = None
        if mode in (Mode.ADD, Mode.SAVE_AND_ADD):
            sums = found.to(wide) + added_values(switch, elements, negative, job.coefficient, wide)
        if mode in (Mode.SAVE, Mode.SAVE_AND_ADD):
            _other(job)[first:stop] = found
        done.append(job)  # from here on it may be undone, and must be
        if sums is not None:
            flat[places] = sums.to(flat.dtype)
        return
    done.append(job)


def active_elements(switch: PackedSwitch, chunk: int) -> tuple[Tensor, Tensor]:
    """Flat elements (i64[m], ascending) of the active elements of a chunk of a switch or a part, and whether they are negative
    (bool[m]; bool[0] of a masked switch)."""
    codes = chunk_codes(switch, chunk)
    start = chunk_start(switch, chunk)
    count = int(switch.chunks[chunk + 1, RANK] - switch.chunks[chunk, RANK])
    if switch.form is Form.BITMAP:
        elements = _bits(codes).nonzero().squeeze(1)
        elements += start
    else:
        elements = codes.clamp(max=254).cumsum(0, dtype=torch.int64)
        elements += torch.arange(start, start + len(codes), device=codes.device)
        if len(codes) > count:
            elements = elements[codes < 255]
    sign = int(switch.chunks[chunk, SIGN]) // 8
    return elements, _bits(switch.signs[sign : sign + (count + 7) // 8])[:count].bool()


def _bits(codes: Tensor) -> Tensor:
    """Bits of bytes, least significant first: u8[8 n]."""
    return ((codes[:, None] >> torch.arange(8, dtype=torch.uint8, device=codes.device)) & 1).view(-1)


def added_values(
    switch: PackedSwitch, elements: Tensor, negative: Tensor, coefficient: float, dtype: torch.dtype
) -> Tensor:
    """What is added to these elements, in f32 or f64."""
    if switch.vector is not None:
        return selected_values(switch, switch.vector, elements, coefficient, dtype)
    return signed_values(switch, elements, negative, coefficient, dtype)


def selected_values(
    switch: PackedSwitch, vector: Tensor, elements: Tensor, coefficient: float, dtype: torch.dtype
) -> Tensor:
    """The vector's elements, times knob, times coefficient, where these are not 1; each product rounded."""
    values = vector[elements].to(dtype)
    for factor in (switch.knob, coefficient):
        if factor != 1:
            values *= torch.tensor(factor, dtype=dtype, device=elements.device)
    return values


def _signs(switch: PackedSwitch, elements: Tensor, negative: Tensor) -> Tensor:
    if switch.vector is None:
        return 1 - 2 * negative.to(torch.int8)
    # As numbers of the arithmetic type: what it rounds to zero has no sign.
    values = switch.vector[elements].to(torch.float64 if switch.base is F64 else torch.float32)
    return (values > 0).to(torch.int8) - (values < 0).to(torch.int8)


def signed_values(
    switch: PackedSwitch, elements: Tensor, negative: Tensor, coefficient: float, dtype: torch.dtype
) -> Tensor:
    """v or -v for these elements, in f32 or f64: knob, times row factor, times column factor, times coefficient."""
    values = torch.full(elements.shape, switch.knob, dtype=dtype, device=elements.device)
    rows = elements // switch.row_length
    if switch.rows is not None:
        values *= switch.rows.to(dtype)[rows]
    if switch.columns is not None:
        values *= switch.columns.to(dtype)[elements - rows * switch.row_length]
    if coefficient != 1:
        values *= torch.tensor(coefficient, dtype=dtype, device=elements.device)
    return torch.where(negative, -values, values)


def _places(job: Job, elements: Tensor) -> tuple[Tensor, Tensor]:
    """The target as one dimension, and the places of flat elements in it."""
    target = job.target
    if target.ndim == 1:
        return target, elements - job.origin
    if job.contiguous:
        return target.view(-1), elements
    down, along = target.stride()
    rows = elements // target.shape[1]
    span = (target.shape[0] - 1) * down + (target.shape[1] - 1) * along + 1
    return target.as_strided((span,), (1,)), rows * down + (elements - rows * target.shape[1]) * along


def _other(job: Job) -> Tensor:
    if job.other is None:
        raise TypeError(f"mode {job.mode.name} needs the tensor `other`")
    return job.other
