"""Lookups in tables that experts changed: only the looked-up rows are unpacked."""

from __future__ import annotations

import torch
from torch import Tensor

from tswitch_format.torch.mixed.planes import TaskPlanes
from tswitch_format.torch.mixed.reference import acting, unpack
from tswitch_format.torch.mixed.routing import Group, Routing

_BLOCK = 1 << 20  # elements that are numbers in f32 at once


def add_rows_(y: Tensor, ids: Tensor, planes: TaskPlanes, routing: Routing) -> None:
    """Make of looked-up rows of the base those of the experts, in place.

    `y` [B, ..., D], `ids` [B, ...] of integers: the rows. The numbers are those of spec section 10 (only a -0 may become +0).
    """
    for group, plane in acting(planes, routing):
        if y.numel():
            found = y[group.index]
            rows = found.view(-1, planes.inputs)
            wanted = ids[group.index].reshape(-1)
            step = max(_BLOCK // planes.inputs, 1)
            for first in range(0, len(rows), step):
                part = slice(first, first + step)
                rows[part] = _changed(rows[part], wanted[part], planes, group, plane)
            y[group.index] = found


def _changed(rows: Tensor, wanted: Tensor, planes: TaskPlanes, group: Group, plane: int) -> Tensor:
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    values = planes.knobs[plane].to(wide).expand(rows.shape)  # products in the order of section 10
    if planes.rows is not None:
        values = values * planes.rows[plane, wanted, None]
    if planes.columns is not None:
        values = values * planes.columns[plane]
    if group.coefficient != 1:
        values = values * torch.tensor(group.coefficient, dtype=wide, device=rows.device)
    return (rows.to(wide) + values * unpack(planes.bits[plane, wanted], planes.inputs, wide)).to(rows.dtype)
