"""What a user's loss function gives for a batch, checked: for `calibrate` and `importance`."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from tswitch_format.errors import OptionError


def checked_loss(loss: Any, *, where: str, advice: str) -> Tensor:
    """The loss, without dimensions. Raises OptionError, at `where`, for what is no finite loss with a graph; `advice`: what to
    do where it is not finite."""
    if not isinstance(loss, Tensor):
        raise OptionError(
            f"{where}: expected a tensor with one element, found {type(loss).__name__}; return the loss itself"
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise OptionError(
            f"{where}: expected a float tensor with one element, found {str(loss.dtype).removeprefix('torch.')} of shape "
            f"{list(loss.shape)}; take its mean"
        )
    if not loss.requires_grad:
        raise OptionError(
            f"{where}: expected a loss that depends on the model's parameters, found one without a graph; compute it with the "
            "model that loss_fn is given, without no_grad and detach"
        )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise OptionError(f"{where}: expected a finite loss, found {value}; {advice}")
    return loss.reshape(())
