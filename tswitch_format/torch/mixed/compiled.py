"""Products with planes on the CPU, compiled: as `reference.py`, but what takes time is the active elements, not all of them.

Import it only where numba is installed (the extra `fast`). For each row of S its active elements are found word by word, and
the inputs of all tokens there, which lie side by side, are added or subtracted. Nothing is unpacked, nothing multiplied.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format._parallel import ordered_map
from tswitch_format.torch.mixed import reference
from tswitch_format.torch.mixed.planes import TaskPlanes
from tswitch_format.torch.mixed.routing import Routing

_lowest: Any = trailing_zeros  # the place of the lowest bit

_SPARSE = 1 / 8  # density up to which this is faster than unpacking, for 2 to 128 tokens (measured)
_TOKENS = 128  # at once: a row of sums stays in the first-level cache, inputs of some thousand columns in the second
_SHARE = 1 << 20  # additions that are worth a thread: about 2 ms


def add_delta_(y: Tensor, x: Tensor, planes: TaskPlanes, routing: Routing) -> None:
    """As `reference.add_delta_`, to which denser planes are left."""
    for group, plane in reference.acting(planes, routing):
        active = planes.active[plane]
        sparse = active <= _SPARSE * planes.outputs * planes.inputs
        reference.add_group_(y, x, planes, group, plane, partial(_product, active=active) if sparse else None)


def _product(inputs: Tensor, bits: Tensor, active: int) -> Tensor:
    """[m, K] of f32 or f64, u8[N, 2, S] with `active` elements -> [m, N]."""
    words = bits.numpy().view(np.uint32)
    sums = torch.empty(len(words), len(inputs), dtype=inputs.dtype)
    for first in range(0, len(inputs), _TOKENS):
        columns = inputs[first : first + _TOKENS].T.contiguous().numpy()
        sums[:, first : first + _TOKENS] = torch.from_numpy(_sums(columns, words, active))
    return sums.T


def _sums(columns: NDArray[Any], words: NDArray[np.uint32], active: int) -> NDArray[Any]:
    """S times `columns` [K, m], the rows of S shared among threads."""
    found = np.zeros((len(words), columns.shape[1]), columns.dtype)
    threads = max(min(torch.get_num_threads(), active * columns.shape[1] // _SHARE), 1)
    step = -(-len(words) // threads)

    def add(first: int) -> None:
        _add(columns, words[first : first + step], found[first : first + step])

    for _ in ordered_map(add, range(0, len(words), step), threads):
        pass
    return found


@njit(nogil=True, cache=True)
def _add(columns: Any, words: Any, sums: Any) -> None:
    """Add S times `columns` [K, m] to `sums` [n, m]; `words` u32[n, 2, S / 4]."""
    tokens = columns.shape[1]
    for row in range(words.shape[0]):
        for number in range(words.shape[2]):
            mask = words[row, 0, number]
            sign = words[row, 1, number]
            while mask:
                place = _lowest(mask)
                mask &= mask - np.uint32(1)
                column = 32 * number + place
                if (sign >> place) & 1:
                    for token in range(tokens):
                        sums[row, token] -= columns[column, token]
                else:
                    for token in range(tokens):
                        sums[row, token] += columns[column, token]
