"""Products with the planes of many tasks in plain torch, on any device: what `fused.py` is compared with.

add_delta_    y += knob * r . ((x . c) S^T) + bias, each row of the batch with its task's
unpack        planes -> -1, 0, 1

Sums are made in f32 (f64 where y is f64) and rounded once to y's dtype. At most `_BLOCK` elements of a matrix are numbers at
once. S is exact in every dtype, so the only roundings are those of products with factors and of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from tswitch_format.torch.mixed.planes import TaskPlanes
from tswitch_format.torch.mixed.routing import Group, Routing

_BLOCK = 1 << 20


def add_delta_(y: Tensor, x: Tensor, planes: TaskPlanes, routing: Routing) -> None:
    """`y` [B, L, N] contiguous, of a float dtype, in place; `x` [B, L, K]; row b of both belongs to `routing.tasks[b]`."""
    for group, plane in acting(planes, routing):
        add_group_(y, x, planes, group, plane)


def acting(planes: TaskPlanes, routing: Routing) -> Iterator[tuple[Group, int]]:
    """Groups of rows to which a task adds something, with the number of its planes."""
    for group in routing.groups:
        plane = planes.plane_of[group.task] if group.switches else -1
        if plane >= 0:
            yield group, plane


def add_group_(
    y: Tensor,
    x: Tensor,
    planes: TaskPlanes,
    group: Group,
    plane: int,
    product: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """The same for one group. `product(inputs, bits)`, if given, makes [m, K] S^T -> [m, N] of all of S at once."""
    if not y.numel():
        return
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    inputs = x[group.index].to(wide).reshape(-1, planes.inputs)
    if planes.columns is not None:
        inputs = inputs * planes.columns[plane]
    scale = planes.knobs[plane].to(wide) * group.coefficient
    step = planes.outputs if product else max(_BLOCK // max(planes.inputs, 1), 1)
    for first in range(0, planes.outputs, step):
        span = slice(first, min(first + step, planes.outputs))
        part = (product or _product)(inputs, planes.bits[plane, span])
        part *= scale if planes.rows is None else scale * planes.rows[plane, span].to(wide)
        if planes.biases is not None:
            part += planes.biases[plane, span] * group.coefficient
        part = part.view(len(group.rows), -1, span.stop - first)
        part += y[group.index, :, span]
        y[group.index, :, span] = part.to(y.dtype)


def _product(inputs: Tensor, bits: Tensor) -> Tensor:
    return inputs @ unpack(bits, inputs.shape[1], inputs.dtype).T


def unpack(bits: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """`bits` u8[..., 2, S] (see `TaskPlanes`) -> [..., length] of -1, 0 and 1."""
    table = _table(bits.device, dtype)
    mask, sign = bits.unbind(-2)
    values = table.index_select(0, mask.reshape(-1).int())
    values.sub_(table.index_select(0, sign.reshape(-1).int()), alpha=2)
    return values.view(*mask.shape[:-1], -1)[..., :length]


@cache
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The bits of each byte: [256, 8]."""
    with torch.inference_mode(False):
        places = torch.arange(8, device=device)
        return ((torch.arange(256, device=device)[:, None] >> places) & 1).to(dtype)
