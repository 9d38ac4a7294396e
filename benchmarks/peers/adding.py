"""Adding a knob at some positions, in NumPy: what peers share that keep positions and signs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def add_at(
    weight: Tensor, positions: NDArray[np.integer], negative: NDArray[np.uint8], knob: NDArray[np.float32]
) -> None:
    """Add `knob` f32[1] at `positions` of the flattened weight, or subtract it where `negative` is 1. Positions are unique."""
    values = np.concatenate([knob, -knob]).take(negative)
    weight.numpy().reshape(-1)[positions] += values
