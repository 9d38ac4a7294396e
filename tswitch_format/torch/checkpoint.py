"""Torch objects in memory as checkpoints, and the only place where a torch dtype becomes a `DType`.

    accepts, open_reader   the plug-in (see `tswitch_format.checkpoint`): an nn.Module, or a mapping with torch tensors
    TensorCheckpoint       a mapping of name to tensor, on any device, read by ranges of bytes
    dtype_of_tensor        torch tensor -> DType; torch_dtype is its inverse
    unusual                why a tensor's memory is not simply its elements

The entry point loads this module for every source, so torch is imported only where a tensor is at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import DTYPE_BY_NAME, DType
from tswitch_format.checkpoint import ArrayCheckpoint, CheckpointReader, ShardLayout, TensorSpec
from tswitch_format.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# By name, since older versions of torch lack some of these types.
_BY_TORCH_NAME: Mapping[str, DType] = MappingProxyType(
    {
        f"torch.{torch_name}": DTYPE_BY_NAME[name]
        for torch_name, name in (
            ("bool", "BOOL"),
            ("uint8", "U8"),
            ("int8", "I8"),
            ("uint16", "U16"),
            ("int16", "I16"),
            ("uint32", "U32"),
            ("int32", "I32"),
            ("uint64", "U64"),
            ("int64", "I64"),
            ("float16", "F16"),
            ("bfloat16", "BF16"),
            ("float32", "F32"),
            ("float64", "F64"),
            ("float8_e4m3fn", "F8_E4M3"),
            ("float8_e5m2", "F8_E5M2"),
            ("float8_e8m0fnu", "F8_E8M0"),
            ("complex64", "C64"),
        )
    }
)


def accepts(source: object) -> bool:
    """Whether `source` is an nn.Module or a mapping with at least one torch tensor. Never imports torch."""
    torch = sys.modules.get("torch")
    if torch is None:  # then nobody can have made a tensor
        return False
    if isinstance(source, Mapping):
        return any(isinstance(value, torch.Tensor) for value in source.values())
    return isinstance(source, torch.nn.Module)


def open_reader(source: Any) -> CheckpointReader:
    """Open an nn.Module, or a mapping of name to torch tensor or NumPy array. Nothing is copied before it is read.

    Raises CheckpointError where a value is no dense tensor of a type that a .tsw file can hold.
    """
    if isinstance(source, Mapping):
        return TensorCheckpoint(source, location="the mapping of tensors")
    return TensorCheckpoint(source.state_dict(), location=f"the state_dict of {type(source).__name__}")


def dtype_of_tensor(tensor: Tensor) -> DType | None:
    """The element type of a torch tensor, or None where a file cannot hold it."""
    return _BY_TORCH_NAME.get(str(tensor.dtype))


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of an element type. Raises OptionError where this torch has none."""
    import torch  # noqa: PLC0415 - not before a tensor is wanted

    for name, found in _BY_TORCH_NAME.items():
        kind = getattr(torch, name.removeprefix("torch."), None)
        if found is dtype and kind is not None:
            return kind  # type: ignore[no-any-return]
    raise OptionError(f"torch {torch.__version__} has no dtype {dtype.name}; use the NumPy side, tswitch_format.open")


class TensorCheckpoint:
    """A mapping of name to torch tensor (or NumPy array) as a checkpoint.

    Tensors that are the same view of the same memory are tied: the first name in sorted order is kept, the others are
    `aliases`. Tensors are not copied: `read_into` moves just the bytes asked for to the CPU, so a change made to a
    tensor meanwhile is seen.

    Raises CheckpointError where a value is no dense tensor of a type that a .tsw file can hold.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        *,
        location: str,
        paths: Sequence[Path] = (),
        layout: ShardLayout | None = None,
    ) -> None:
        self.location = location
        self.paths = paths
        self.layout = layout or ShardLayout()
        self.metadata: Mapping[str, str] = {}
        for name in tensors:
            if not isinstance(name, str):
                raise CheckpointError(f"{location}: expected names of tensors, found the key {name!r}; leave it out")
        self._arrays = ArrayCheckpoint({n: a for n, a in tensors.items() if isinstance(a, np.ndarray)})
        self.specs: dict[str, TensorSpec] = dict(self._arrays.specs)
        self.aliases: dict[str, str] = dict(self._arrays.aliases)
        self._tensors: dict[str, Tensor] = {}
        seen: dict[tuple[Any, ...], str] = {}
        for name in sorted(tensors.keys() - self.specs.keys() - self.aliases.keys()):
            tensor, dtype = _plain_tensor(tensors[name], name, location)
            memory = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
            key = (*memory, tensor.shape, tensor.stride(), dtype.id)
            if tensor.numel() and key in seen:
                self.aliases[name] = seen[key]
                continue
            seen[key] = name
            self.specs[name] = TensorSpec(name, dtype, tuple(tensor.shape))
            self._tensors[name] = tensor

    def read_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """See `CheckpointReader.read_into`."""
        if name in self._arrays.specs:
            self._arrays.read_into(name, start, out)
        elif out.size:
            import torch  # noqa: PLC0415 - loaded already, for there are tensors

            torch.from_numpy(out).copy_(bytes_of(self._tensors[name], start, start + out.size))

    def close(self) -> None:
        """Let go of the tensors."""
        self._arrays = ArrayCheckpoint({})
        self._tensors = {}


def _plain_tensor(value: Any, name: str, location: str) -> tuple[Tensor, DType]:
    import torch  # noqa: PLC0415 - loaded only when a tensor is at hand

    if not isinstance(value, torch.Tensor):
        raise CheckpointError(
            f"{location}: expected tensors only, found {type(value).__name__} under {name!r}; "
            "leave it out, or pass the part that holds the tensors"
        )
    kind = unusual(value)
    if kind is not None:
        raise CheckpointError(f"{location}: tensor {name!r}: expected a dense tensor, found {kind}; convert it first")
    dtype = dtype_of_tensor(value)
    if dtype is None:
        raise CheckpointError(
            f"{location}: tensor {name!r}: dtype {value.dtype} cannot be stored in a .tsw file; "
            "convert it to a float or integer type"
        )
    return value.detach().resolve_conj().resolve_neg(), dtype


def unusual(tensor: Tensor) -> str | None:
    """What a tensor is that is not simply numbers in memory, or None."""
    import torch  # noqa: PLC0415 - loaded already

    if torch.nn.parameter.is_lazy(tensor):
        return "a parameter that has no shape yet"
    tensor = tensor.detach()
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"a {str(tensor.layout).removeprefix('torch.')} tensor"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype})"
    if tensor.is_meta:
        return "a tensor on the meta device, which has no data"
    if type(tensor) is not torch.Tensor:  # DTensor and other wrappers, whose memory is not what they show
        return f"a {type(tensor).__name__}"
    return None


def bytes_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Bytes [start, stop) of the elements in row-major order, as a u8 tensor on the tensor's device."""
    import torch  # noqa: PLC0415 - loaded already

    if not tensor.is_contiguous():  # copy no more than the rows that are asked for
        row = tensor.numel() * tensor.element_size() // tensor.shape[0]
        first = start // row
        tensor = tensor[first : -(-stop // row)].contiguous()
        start, stop = start - first * row, stop - first * row
    return tensor.reshape(-1).view(torch.uint8)[start:stop]
