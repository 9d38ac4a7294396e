"""May this tensor be changed in place? The checks that every way of applying shares, and the frame around a change.

    ModelWeights     the tensors of a model or a mapping by name, tied ones once
    check_device     a device that is there
    check_weight     one tensor for one switch: its matrix (see kernels/job.py)
    changing         the block in which tensors are changed

Nothing here changes a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tswitch_format._checksum import sampled_digest
from tswitch_format.errors import BaseMismatchError, OptionError
from tswitch_format.switch.tensor import Switch
from tswitch_format.torch.checkpoint import TensorCheckpoint, bytes_of, dtype_of_tensor, unusual
from tswitch_format.torch.kernels.job import matrix_of


class ModelWeights:
    """The tensors of an nn.Module's state dict, or of a mapping, that switches may change in place.

    `model` is the module without wrappers of torch.compile and of parallel training. `reader` is it as a checkpoint;
    `reader.specs` names each tensor once. Raises OptionError for anything else, CheckpointError where a value is no dense
    tensor with memory.
    """

    def __init__(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        self.model = model = _unwrapped(model)
        self._holders: dict[str, Callable[[], object]] = {}
        if isinstance(model, nn.Module):
            state = model.state_dict(keep_vars=True)
            # Extra state may be any object, such as the scales of a kernel library.
            tensors = {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}
            location = f"the state_dict of {type(model).__name__}"
            self._holders = _holders(model)
        elif isinstance(model, Mapping):
            tensors, location = dict(model), "the mapping of tensors"
            self._holders = {name: partial(model.get, name) for name in model}
        else:
            raise OptionError(f"model: expected an nn.Module or a mapping of tensors, found {type(model).__name__}")
        for name, tensor in tensors.items():
            if isinstance(tensor, np.ndarray):
                raise OptionError(f"{location}: {name!r}: expected a torch tensor, found a NumPy array; convert it")
        self.reader = TensorCheckpoint(tensors, location=location)
        self._tensors: dict[str, Tensor] = {name: tensors[name] for name in self.reader.specs}
        self._tied: dict[str, list[tuple[str, Tensor]]] = {}
        for alias, name in self.reader.aliases.items():
            self._tied.setdefault(name, []).append((alias, tensors[alias]))
        self._cuda_devices = {tensor.device for tensor in self._tensors.values() if tensor.is_cuda}
        self._sampled: dict[str, bytes] = {}
        rooms: dict[int, list[str]] = {}
        for name, tensor in self._tensors.items():
            rooms.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
        self._neighbours = {name: names for names in rooms.values() for name in names}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def views(self, name: str) -> list[Tensor]:
        """The objects that the model has under all names of one tensor, each once: those of tied weights may differ."""
        found = (self._tensors[name], *(tensor for _, tensor in self._tied.get(name, ())))
        return list({id(tensor): tensor for tensor in found}.values())

    @property
    def cuda_devices(self) -> set[torch.device]:
        """CUDA devices that have some of the tensors."""
        return self._cuda_devices

    def sampled(self, name: str) -> bytes:
        """Sampled digest of a tensor as it was when it was first asked for."""
        if name not in self._sampled:
            self._sampled[name] = sampled_digest_of(self._tensors[name])
        return self._sampled[name]

    def neighbours(self, names: Iterable[str]) -> set[str]:
        """These tensors and those that lie in the same storages, which torch counts changes of together."""
        return {neighbour for name in names for neighbour in self._neighbours[name]}

    def check_alone(self, names: Iterable[str]) -> None:
        """Raise OptionError where one of these tensors shares memory with another one, of which it is not the same view."""
        spans = sorted((str(t.device), *_span(t), name) for name, t in self._tensors.items() if t.numel())
        wanted = set(names)
        reached = ("", 0, "")
        for device, start, stop, name in spans:
            if device == reached[0] and start < reached[1] and {name, reached[2]} & wanted:
                raise OptionError(
                    f"{self.reader.location}: tensors {reached[2]!r} and {name!r} share memory, so each would change the "
                    "other; give each its own, or tie them whole"
                )
            if device != reached[0] or stop > reached[1]:
                reached = (device, stop, name)

    def check_there(self, names: Iterable[str]) -> None:
        """Raise OptionError where one of these tensors is no longer the model's, by any of its names."""
        for first in names:
            for name, tensor in ((first, self._tensors[first]), *self._tied.get(first, ())):
                holder = self._holders.get(name)
                if holder is not None and holder() is not tensor:
                    raise OptionError(
                        f"{self.reader.location}: tensor {name!r} was replaced by another; make a new bank for the "
                        "model as it is"
                    )


def _unwrapped(model: Any) -> Any:
    """The module inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    return model


def _holders(model: nn.Module) -> dict[str, Callable[[], object]]:
    """For the name of each parameter and buffer: what is there now."""
    found: dict[str, Callable[[], object]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers):
            for attribute in store:
                found[f"{prefix}.{attribute}" if prefix else attribute] = partial(store.get, attribute)
    return found


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a tensor and the one after its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()


def check_device(device: str | torch.device) -> torch.device:
    """The device, with its number. Raises OptionError where there is none."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device: expected one such as 'cpu' or 'cuda:0', found {str(device)[:40]!r}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise OptionError(f"device: expected one of {count} CUDA devices, found {str(device)!r}; use 'cpu'")
        return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    if found.type == "meta":
        raise OptionError("device: expected one with memory, found 'meta'")
    raise OptionError(
        f"device: expected one such as 'cpu' or 'cuda:0', found {str(device)!r}; other kinds were never tried"
    )


def check_weight(
    switch: Switch,
    weight: Tensor,
    device: torch.device,
    *,
    check_base: bool,
    sampled: bytes | None = None,
    name: str | None = None,
    where: str = "apply_",
) -> Tensor:
    """The matrix of a tensor that a switch may be applied to in place.

    With `check_base` its dtype must be the base's, and its sampled digest too where the switch is whole; `sampled` is that
    digest where it is known, `name` what the model calls the tensor, and `where` what errors call
    the model. Raises OptionError or BaseMismatchError.
    """
    name = name or switch.name
    if switch.kind == "removed":
        raise OptionError(
            f"tensor {name!r} is removed in task {switch.task!r}: a model in memory keeps its tensors; restore the expert as "
            "a checkpoint"
        )
    matrix = check_place(name, weight, device)
    fix = "give the base that the file was made from"
    dense = switch.kind == "dense"
    if tuple(weight.shape) != tuple(switch.shape):
        expected, found = f"shape {list(switch.shape)}", str(list(weight.shape))
        if dense:
            raise OptionError(
                f"tensor {name!r}: task {switch.task!r} gives it {expected}, found {found}; a tensor in place keeps its shape: "
                "restore the expert as a checkpoint instead"
            )
        raise BaseMismatchError(where, tensor=name, expected=expected, found=found, fix=fix)
    dtype = dtype_of_tensor(weight)
    if dense or dtype is switch.base.dtype:
        if dtype is not switch.target:
            raise OptionError(
                f"tensor {name!r}: task {switch.task!r} makes it {switch.target.name}, found {weight.dtype}; a tensor in "
                "place keeps its dtype: restore the expert as a checkpoint instead"
            )
    elif check_base or dtype is None or not dtype.is_float:
        expected = f"dtype {switch.base.dtype.name}" if check_base else "a float dtype"
        if check_base and dtype is not None and dtype.is_float:
            fix += ", or pass check_base=False to go on"
        raise BaseMismatchError(where, tensor=name, expected=expected, found=str(weight.dtype), fix=fix)
    recorded = switch.sampled_digest
    if check_base and not dense and recorded is not None:
        found_digest = sampled if sampled is not None else sampled_digest_of(weight)
        if found_digest != recorded:
            raise BaseMismatchError(
                where,
                tensor=name,
                expected="the recorded content",
                found="another",
                fix=f"{fix}, or pass check_base=False to go on",
                rule="TSW-902",
            )
    return matrix


def check_place(name: str, weight: Tensor, device: torch.device) -> Tensor:
    """The matrix of a tensor that can be changed in place on `device`. Raises OptionError."""
    where = f"tensor {name!r}"
    if not isinstance(weight, Tensor):
        raise OptionError(f"{where}: expected a torch tensor, found {type(weight).__name__}; convert it")
    kind = unusual(weight)
    if kind is not None:
        raise OptionError(
            f"{where}: expected a dense tensor with memory of its own, found {kind}; load it dense, without quantisation"
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
    # Of what lies in the host's memory in order, slices of NumPy's are ten times as fast as torch's.
    flat = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.is_cpu and tensor.is_contiguous() else None

    def read(start: int, out: NDArray[np.uint8]) -> None:
        if flat is not None:
            out[:] = flat[start : start + out.size]
        else:
            torch.from_numpy(out).copy_(bytes_of(tensor, start, start + out.size))

    return sampled_digest(tensor.numel() * tensor.element_size(), read)


class changing:  # noqa: N801 - a block, as contextlib's are
    """Change these tensors inside. Autograd then knows that they changed, also where kernels wrote behind its back.

    No generator: one that an interrupt leaves behind would end its block, and count a change, when it is collected.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        # The only mode that may change inference tensors; others may be changed in it as well.
        self._mode = torch.inference_mode()

    def __enter__(self) -> None:
        self._mode.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mode.__exit__(kind, error, trace)
        for tensor in self._tensors:
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)


def raw(tensor: Tensor) -> Tensor:
    """The tensor, as bytes where copying would change its bits: torch makes every byte of a bool 0 or 1."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
