"""Linear layers for batches of many experts.

    mixed_linear    a function
    add_delta_      its second half: what the experts add
    SwitchLinear    a module in place of an nn.Linear

y = round(round(x W^T + b) + d), where d = a knob (r . ((x . c) S^T)) + a b' is summed up in f32 (f64 for f64) and both
roundings are to x's dtype; W^T's product is torch's own. With u the unit roundoff of x's dtype (2^-53, 2^-24, 2^-11, 2^-8),
v that of the sums (2^-53 or 2^-24), K inputs and q = 2^-16 for 16-bit inputs on CUDA, else 0, it differs from the exact
formula by at most

    2 u (|x W^T + b| + |y|) + (K + 8) v (|x| |W|^T + |b|) + ((K + 8) v + q) |a| (|knob| |r| . (|x . c| |S|^T) + |b'|).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.torch.kernels.choice import choose
from tswitch_format.torch.mixed import reference
from tswitch_format.torch.mixed.planes import TaskPlanes, values_of
from tswitch_format.torch.mixed.routing import Routing, TaskIds
from tswitch_format.torch.packed import PackedSwitch

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def mixed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    planes: TaskPlanes,
    task_ids: TaskIds | Routing,
    coefficients: Sequence[float] | None = None,
) -> Tensor:
    """y = x W^T + b, plus what the task of each row adds, without its weight. See above for arithmetic and tolerance.

    `x` [B, ..., K] of a float dtype; `weight` [N, K] and `bias` [N] the base's, of x's dtype; `task_ids`: one number a row,
    -1 or None for the base (see `Routing.of`; a Routing may be used for all layers of a forward); `coefficients`: one a row.
    Returns [B, ..., N] of x's dtype, without gradient. Raises OptionError where shapes, dtypes or devices do not fit.
    """
    if not isinstance(task_ids, Routing):
        task_ids = Routing.of(task_ids, len(planes.plane_of), planes.device)
    if coefficients is not None:
        task_ids = Routing(task_ids.tasks, planes.device, coefficients)
    if tuple(weight.shape) != (planes.outputs, planes.inputs):
        raise OptionError(
            f"weight: expected shape [{planes.outputs}, {planes.inputs}] of the planes, found {list(weight.shape)}; "
            "build the planes from switches of this weight"
        )
    check_inputs(x, planes, task_ids, "mixed_linear")
    return add_delta_(functional.linear(x, weight, bias), x, planes, task_ids)


def check_inputs(x: Tensor, planes: TaskPlanes, routing: Routing, where: str) -> None:
    """Raise OptionError unless `x` is [B, ..., K] of a float dtype on the planes' device."""
    if x.ndim < 2 or x.shape[0] != routing.size or x.shape[-1] != planes.inputs:
        raise OptionError(
            f"{where}: expected inputs [{routing.size}, ..., {planes.inputs}], a row for each task id, found "
            f"{list(x.shape)}; keep the batch in dimension 0 and give a task id for each row"
        )
    if x.dtype not in _FLOATS or x.device != planes.device:
        raise OptionError(
            f"{where}: expected float inputs on {planes.device}, found {x.dtype} on {x.device}; "
            "load the experts to the model's device"
        )


def add_delta_(y: Tensor, x: Tensor, planes: TaskPlanes, routing: Routing) -> Tensor:
    """Add to `y` [B, ..., N], outputs of the base, what the tasks of the rows add for the inputs `x` [B, ..., K].

    In place where y is contiguous; returns the sum.
    """
    if not planes.changes(routing.tasks):
        return y
    y = y.contiguous()
    tokens = y[..., 0].numel() // max(routing.size, 1) if planes.outputs else 0
    flat = y.view(routing.size, tokens, planes.outputs)
    inputs = x.contiguous().view(routing.size, tokens, planes.inputs)
    with torch.autocast(y.device.type, enabled=False):  # sums are made in f32 there as well
        _backend(y.device.type, y.dtype).add_delta_(flat, inputs, planes, routing)
    return y


class _Backend(Protocol):
    def add_delta_(self, y: Tensor, x: Tensor, planes: TaskPlanes, routing: Routing) -> None: ...


@cache
def _backend(kind: str, dtype: torch.dtype) -> _Backend:
    if kind == "cuda" and dtype == torch.float64:
        return reference
    return cast(_Backend, choose("tswitch_format.torch.mixed", kind))


class SwitchLinear(nn.Module):
    """An nn.Linear whose rows use the experts that `task_ids` names. It shares weight and bias with `linear`.

    `experts`: packed switches of the weight by task name, on its device; `biases`: packed switches of the bias. Planes are
    built once and stay on that device. Set `task_ids` before a forward: a name, a number or None (the base) for each row.
    Raises OptionError where shapes or devices do not fit, UnknownNameError for the bias of a task without a weight.
    """

    def __init__(
        self,
        linear: nn.Linear,
        experts: Mapping[str, PackedSwitch],
        biases: Mapping[str, PackedSwitch] | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.names = tuple(experts)
        biases = biases or {}
        for name in biases:
            if name not in experts:
                raise UnknownNameError("task", name, self.names, where="biases")
        self.planes = TaskPlanes.build(list(experts.values())).with_biases(
            [values_of(biases[name]) if name in biases else None for name in self.names]
        )
        if tuple(self.weight.shape) != (self.planes.outputs, self.planes.inputs):
            raise OptionError(
                f"linear: expected a weight [{self.planes.outputs}, {self.planes.inputs}] as the experts', found "
                f"{list(self.weight.shape)}; give switches of this weight"
            )
        self._routing: Routing | None = None

    @property
    def task_ids(self) -> Routing | None:
        """What the rows of the next batches use; None: the base alone."""
        return self._routing

    @task_ids.setter
    def task_ids(self, task_ids: TaskIds | Routing | None) -> None:
        if task_ids is not None and not isinstance(task_ids, Routing):
            task_ids = Routing.of(task_ids, self.names, self.planes.device)
        self._routing = task_ids

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, ..., K] -> [B, ..., N], see `mixed_linear`."""
        if self._routing is None:
            return functional.linear(x, self.weight, self.bias)
        return mixed_linear(x, self.weight, self.bias, self.planes, self._routing)

    def extra_repr(self) -> str:
        """Sizes and tasks."""
        return f"inputs={self.planes.inputs}, outputs={self.planes.outputs}, tasks={list(self.names)}"
