"""Modules that are run once a task: arguments cut by the rows of the batch, outputs put together again.

take_rows    arguments for some rows
put_rows     outputs of all groups -> outputs of the batch
batched      a tensor with a row for each row of the batch
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils import (
    _pytree as pytree,
)  # what Module outputs are flattened with everywhere; transformers registers its own

from tswitch_format.errors import OptionError

# Arguments that say nothing of single rows.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, Enum, torch.dtype, torch.device, torch.Size)


def batched(tensor: Tensor, size: int, where: str) -> Tensor:
    """`tensor` with dimension 0 of `size`: as it is, or expanded where that is 1. Raises OptionError otherwise."""
    if tensor.ndim and tensor.shape[0] == size:
        return tensor
    if tensor.ndim and tensor.shape[0] == 1:
        return tensor.expand(size, *tensor.shape[1:])
    raise OptionError(
        f"{where}: expected a tensor with the batch of {size} in dimension 0, found shape {list(tensor.shape)}; "
        "run such a model one expert at a time"
    )


def take_rows(arguments: Any, index: Tensor, size: int, where: str) -> Any:
    """The same tuples, lists and dicts with rows `index` of every tensor. Numbers and names pass as they are.

    Raises OptionError for a tensor without the batch in dimension 0, and for objects that cannot be cut (caches).
    """
    if isinstance(arguments, Tensor):
        return arguments if arguments.ndim == 0 else batched(arguments, size, where)[index]
    if isinstance(arguments, _PLAIN):
        return arguments
    if type(arguments) in (tuple, list):
        return type(arguments)(take_rows(part, index, size, where) for part in arguments)
    if type(arguments) is dict:
        return {key: take_rows(part, index, size, where) for key, part in arguments.items()}
    raise OptionError(
        f"{where}: expected tensors and numbers, which can be cut by tasks, found a {type(arguments).__name__}; "
        "give all rows the same task, or run one expert at a time"
    )


def put_rows(outputs: Sequence[Any], indices: Sequence[Tensor], size: int, where: str) -> Any:
    """Outputs of groups of rows -> one output of `size` rows. Raises OptionError where they do not fit together."""
    flat = [pytree.tree_flatten(output) for output in outputs]
    first, shape = flat[0]
    if any(other != shape for _, other in flat):
        raise OptionError(
            f"{where}: expected outputs of one form from every task, found several; run one expert at a time"
        )
    leaves = [_put_leaf([leaves[number] for leaves, _ in flat], indices, size, where) for number in range(len(first))]
    return pytree.tree_unflatten(leaves, shape)


def _put_leaf(parts: Sequence[Any], indices: Sequence[Tensor], size: int, where: str) -> Any:
    first = parts[0]
    if not isinstance(first, Tensor):
        if isinstance(first, _PLAIN) and all(part == first for part in parts):
            return first
        raise OptionError(
            f"{where}: expected outputs that are tensors, or the same for every task, found {type(first).__name__}; "
            "run one expert at a time"
        )
    for part, index in zip(parts, indices, strict=True):
        if part.ndim == 0 or part.shape != (len(index), *first.shape[1:]):
            raise OptionError(
                f"{where}: expected outputs [{len(index)}, ...] with the batch in dimension 0, found {list(part.shape)}; "
                "run one expert at a time"
            )
    out = first.new_empty(size, *first.shape[1:])
    for part, index in zip(parts, indices, strict=True):
        out[index] = part
    return out
