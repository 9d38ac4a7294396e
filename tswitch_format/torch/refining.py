"""Knobs and factors that learn: weights as functions of them, and what of them is stored.

Refined           knob and factors of one ternary switch, each times the exponential of a number that learns, 0 at first
refined_weight    base + switch with such a knob and factors, differentiable in these
with_fitted       the switch with rounded ones
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format._layout import FactorDType
from tswitch_format.errors import OptionError
from tswitch_format.switch.apply import Codes, factor_values
from tswitch_format.switch.knob import FittedKnob, to_codes
from tswitch_format.switch.options import COARSE
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import Job, run
from tswitch_format.torch.kernels.job import matrix_of
from tswitch_format.torch.packed import PackedSwitch

_REACH = 3.0  # of a logarithm: no descent that makes sense makes anything 20 times as large or small
_LARGEST = {FactorDType.U8: 3.0, FactorDType.F16: 65504.0}
_LARGEST_F32 = 1e38
_BLOCK = 1 << 24  # elements that are f32 at a time


class Refined:
    """Knob, row and column factors of a switch, as they learn: the stored values times e^x, and every x learns, 0 at first.

    So steps are relative, whatever the knob's size; what is 0 stays 0, and nothing changes its sign. Values end where their
    stored type does. `logarithms`: the tensors that learn, f32, on the switch's device.
    """

    def __init__(self, switch: PackedSwitch, factor_dtype: FactorDType) -> None:
        self._name = switch.name
        self._factor_dtype = factor_dtype
        self._step = _step(switch, factor_dtype)
        largest = _LARGEST.get(factor_dtype, _LARGEST_F32)
        knob = torch.tensor(switch.knob, dtype=torch.float32, device=switch.device)
        self._learned = [_Learned(knob, _LARGEST_F32)]
        self._rows = self._columns = None
        if switch.rows is not None:
            self._rows = _Learned(switch.rows, largest)
            self._learned.append(self._rows)
        if switch.columns is not None:
            self._columns = _Learned(switch.columns, largest)
            self._learned.append(self._columns)

    @property
    def logarithms(self) -> list[Tensor]:
        """What learns."""
        return [learned.logarithm for learned in self._learned]

    def values(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Knob f32[], row factors f32[R] and column factors f32[C] or None, as functions of what learns."""
        rows, columns = (None if part is None else part.values() for part in (self._rows, self._columns))
        return self._learned[0].values(), rows, columns

    def keep_in_range(self) -> None:
        """Bring what learned too far back to the end of its range."""
        for learned in self._learned:
            learned.keep_in_range()

    def fitted(self) -> FittedKnob:
        """Knob and factors rounded to their stored type. Raises OptionError where they are no numbers any more."""
        arrays = [None if value is None else _array(value) for value in self.values()]
        if not all(array is None or np.isfinite(array).all() for array in arrays):
            raise OptionError(
                f"calibrate: tensor {self._name!r}: expected finite gradients of the loss, found NaN or infinity; "
                "lower learning_rate, or compute the loss in f32"
            )
        knob, rows, columns = arrays
        return FittedKnob(np.float32(knob), self._codes(rows), self._codes(columns))

    def _codes(self, values: NDArray[np.float64] | None) -> Codes | None:
        return None if values is None else to_codes(values, self._factor_dtype, self._step)


def _step(switch: PackedSwitch, factor_dtype: FactorDType) -> int:
    """Between u8 codes that factors may have: those of u4 stay what they are, or the file would grow."""
    stored = [part for part in (switch.rows, switch.columns) if part is not None]
    if factor_dtype is not FactorDType.U8 or not stored:
        return 1
    codes = np.concatenate([to_codes(_array(part), factor_dtype) for part in stored])
    return 1 if (codes % COARSE).any() else COARSE


class _Learned:
    def __init__(self, stored: Tensor, largest: float) -> None:
        self._stored = stored.detach()
        self.logarithm = torch.zeros_like(self._stored, requires_grad=True)
        self._upper = torch.log(largest / self._stored.abs()).clamp(0, _REACH)  # beyond all reach where it is 0

    def values(self) -> Tensor:
        return self._stored * self.logarithm.exp()

    @torch.no_grad()
    def keep_in_range(self) -> None:
        self.logarithm.clamp_(min=-_REACH).copy_(torch.minimum(self.logarithm, self._upper))


def _array(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return found


def with_fitted(switch: PackedSwitch, fitted: FittedKnob) -> PackedSwitch:
    """The switch as it will be read from a file with this knob and these factors."""
    rows, columns = (
        None if codes is None else torch.from_numpy(factor_values(codes)).to(switch.device)
        for codes in (fitted.rows, fitted.columns)
    )
    return replace(switch, knob=float(fitted.knob), rows=rows, columns=columns)


def refined_weight(weight: Tensor, switch: PackedSwitch, refined: Refined) -> Tensor:
    """The base's `weight` with a switch of this knob and these factors: the bits of spec section 10, a tensor of its own.

    Gradients reach what learns, as if rounding to the weight's dtype were not there; they are summed in f32 (f64 where the
    weight is). Planes stay packed: backward makes an i8 of each element of this weight for a moment.
    """
    values = (None if value is None else value.to(weight.device) for value in refined.values())
    made: Tensor = _Weight.apply(*values, weight, switch)  # type: ignore[no-untyped-call]
    return made


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, knob: Tensor, rows: Tensor | None, columns: Tensor | None, weight: Tensor, switch: PackedSwitch
    ) -> Tensor:
        made = weight.detach().clone()
        target = matrix_of(made)
        if target is None:
            raise ValueError(f"{switch.name!r}: strides {made.stride()}")  # cannot be: its base was checked
        run([Job(Mode.ADD, target, replace(switch, knob=float(knob.detach()), rows=rows, columns=columns))])
        ctx.save_for_backward(knob, rows, columns)
        ctx.switch, ctx.matrix = switch, target.shape
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        knob, rows, columns = ctx.saved_tensors
        (count, length), gradient = ctx.matrix, gradients[0]
        if gradient.is_sparse:  # of an embedding that asks for it
            gradient = gradient.to_dense()
        gradient = gradient.reshape(count, length)
        signs = torch.zeros(count * length, dtype=torch.int8, device=gradient.device)
        run([Job(Mode.SIGNS, signs, ctx.switch)])
        signs = signs.view(count, length)
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        by_column = torch.zeros(length, dtype=wide, device=gradient.device)  # sum over rows, with their factors
        by_row = torch.empty(count, dtype=wide, device=gradient.device)  # the same the other way round
        across = None if columns is None else columns.to(wide)
        step = max(1, _BLOCK // max(length, 1))
        for first in range(0, count, step):
            part = slice(first, first + step)
            signed = gradient[part].to(wide) * signs[part]
            by_row[part] = signed.sum(1) if across is None else signed @ across
            if columns is not None:
                by_column += signed.sum(0) if rows is None else rows[part].to(wide) @ signed
        whole = by_row.sum() if rows is None else rows.to(wide) @ by_row
        return (
            whole.to(knob.dtype),
            None if rows is None else (knob * by_row).to(rows.dtype),
            None if columns is None else (knob * by_column).to(columns.dtype),
            None,
            None,
        )
