"""One thing to do with the active elements of a switch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tswitch_format.switch.planes import Mode
from tswitch_format.torch.packed import PackedSwitch

_VALUED = (Mode.ADD, Mode.SAVE_AND_ADD, Mode.VALUES, Mode.SIGNS)


@dataclass(frozen=True, slots=True)
class Job:
    """`mode` says what is done (see `switch.planes.Mode`).

    `target`: all elements of the tensor as a matrix [R, C] of any strides (see `matrix_of`), or contiguous and
    one-dimensional a run of its elements that begins at flat element `origin`. `other`: [active] of the target's dtype by
    rank, for SAVE_AND_ADD, SAVE and PUT_BACK; for ROUND f32, a run that begins at `origin`.
    """

    mode: Mode
    target: Tensor
    switch: PackedSwitch
    coefficient: float = 1.0
    other: Tensor | None = None
    origin: int = 0

    @property
    def contiguous(self) -> bool:
        """Whether flat elements are places in memory."""
        return self.target.is_contiguous()

    @property
    def gathers(self) -> bool:
        """Whether it needs elements of the vector of a masked switch. Other modes need its mask alone."""
        return self.switch.vector is not None and self.mode in _VALUED


def matrix_of(tensor: Tensor) -> Tensor | None:
    """The tensor as rows (first dimension) and columns (all others), without a copy; None where strides do not allow it, or
    where elements share memory."""
    rows = tensor.shape[0] if tensor.ndim else 1
    columns = tensor.numel() // rows if rows else 0
    try:
        matrix = tensor.view(rows, columns)
    except RuntimeError:
        return None
    if tensor.numel() == 0 or matrix.is_contiguous():
        return matrix
    (rows, columns), (down, along) = matrix.shape, matrix.stride()
    # Elements are apart where one stride jumps over all that the other reaches.
    apart = (columns == 1 or along > 0) and (rows == 1 or down > 0)
    apart = apart and (down > (columns - 1) * along or along > (rows - 1) * down)
    return matrix if apart else None
