"""May this tensor be changed in place? The checks that every way of applying shares, and the frame around a change.

check_device     a device that is there
check_weight     one tensor for one switch: its matrix (see kernels/job.py)
changing         the block in which tensors are changed
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format._checksum import sampled_digest
from tswitch_format.errors import BaseMismatchError, OptionError
from tswitch_format.switch.tensor import Switch
from tswitch_format.torch.checkpoint import bytes_of, dtype_of_tensor, unusual
from tswitch_format.torch.kernels.job import matrix_of


def check_device(device: str | torch.device) -> torch.device:
    """The device, with its number. Raises OptionError where there is none."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device: expected one such as 'cpu' or 'cuda:0', found {str(device)!r}") from error
    if found.type == "meta":
        raise OptionError("device: expected one with memory, found 'meta'")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise OptionError(f"device: expected one of {count} CUDA devices, found {str(device)!r}; use 'cpu'")
        return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    return found


def check_weight(
    switch: Switch, weight: Tensor, device: torch.device, *, check_base: bool, sampled: bytes | None = None
) -> Tensor:
    """The matrix of a tensor that a switch may be applied to in place.

    With `check_base` its dtype must be the base's, and its sampled digest too where the switch is whole; `sampled` is that
    digest where it is known. Raises OptionError or BaseMismatchError.
    """
    name = switch.name
    if switch.kind == "removed":
        raise OptionError(f"tensor {name!r} is removed in task {switch.task!r}: a model in memory keeps its tensors")
    matrix = check_place(name, weight, device)
    fix = "give the base that the file was made from, or pass check_base=False to go on"
    if tuple(weight.shape) != tuple(switch.shape):
        expected, found = f"shape {list(switch.shape)}", str(list(weight.shape))
        raise BaseMismatchError("apply_", tensor=name, expected=expected, found=found, fix=fix)
    dtype = dtype_of_tensor(weight)
    dense = switch.kind == "dense"
    if dense or (check_base and dtype is switch.base.dtype):
        if dtype is not switch.target:
            raise OptionError(
                f"tensor {name!r}: task {switch.task!r} makes it {switch.target.name}, found {weight.dtype}; a tensor in "
                "place keeps its dtype: restore the expert as a checkpoint instead"
            )
    elif check_base or dtype is None or not dtype.is_float:
        expected = f"dtype {switch.base.dtype.name}" if check_base else "a float dtype"
        raise BaseMismatchError("apply_", tensor=name, expected=expected, found=str(weight.dtype), fix=fix)
    recorded = switch.sampled_digest
    if check_base and not dense and recorded is not None:
        found_digest = sampled if sampled is not None else sampled_digest_of(weight)
        if found_digest != recorded:
            raise BaseMismatchError(
                "apply_", tensor=name, expected="the recorded content", found="another", fix=fix, rule="TSW-902"
            )
    return matrix


def check_place(name: str, weight: Tensor, device: torch.device) -> Tensor:
    """The matrix of a tensor that can be changed in place on `device`. Raises OptionError."""
    where = f"tensor {name!r}"
    if not isinstance(weight, Tensor):
        raise OptionError(f"{where}: expected a torch tensor, found {type(weight).__name__}")
    kind = unusual(weight)
    if kind is not None:
        raise OptionError(
            f"{where}: expected a dense tensor with memory of its own, found {kind}; load the model without"
        )
    if weight.device != device:
        raise OptionError(
            f"{where}: expected it on {device}, found it on {weight.device}; open the file for that device"
        )
    if weight.requires_grad:
        raise OptionError(
            f"{where}: it requires grad, so changing it would make gradients wrong; call model.requires_grad_(False) first"
        )
    matrix = matrix_of(weight.detach())
    if matrix is None:
        raise OptionError(
            f"{where}: expected contiguous elements, or a matrix with strides, found strides {weight.stride()} of shape "
            f"{list(weight.shape)}; make it contiguous first"
        )
    return matrix


def sampled_digest_of(tensor: Tensor) -> bytes:
    """Sampled digest of a tensor's elements in C order (spec section 11.2)."""
    tensor = tensor.detach()

    def read(start: int, out: NDArray[np.uint8]) -> None:
        torch.from_numpy(out).copy_(bytes_of(tensor, start, start + out.size))

    return sampled_digest(tensor.numel() * tensor.element_size(), read)


@contextlib.contextmanager
def changing(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Change these tensors inside. Autograd then knows that they changed, also where kernels wrote behind its back."""
    with torch.inference_mode():  # the only mode that may change inference tensors; others may be changed in it as well
        yield
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
