"""Small models, experts of them, and what `tsw.restore` makes of both, for the tests of banks beside this file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tswitch_format as tsw

Tensors = dict[str, Tensor]
Bits = dict[str, bytes]
Chosen = str | Mapping[str, float]

FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
EXPERTS = ("math", "code", "law")


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """A base with a tensor of every rank, an empty one and integers. Some elements are -0.0 or subnormal."""
    make = torch.Generator().manual_seed(seed)
    found = {
        "matrix": torch.randn(40, 33, generator=make, dtype=torch.float64),
        "cube": torch.randn(5, 4, 6, generator=make, dtype=torch.float64),
        "vector": torch.randn(29, generator=make, dtype=torch.float64),
        "scalar": torch.randn((), generator=make, dtype=torch.float64),
        "empty": torch.zeros(0, 3, dtype=torch.float64),
        "late": torch.randn(12, 9, generator=make, dtype=torch.float64),
    }
    made = {name: tensor.to(dtype) for name, tensor in found.items()}
    flat = made["matrix"].view(-1)
    flat[::7] = -0.0
    flat[3::11] = torch.finfo(dtype).smallest_normal / 4
    made["ids"] = torch.arange(10)
    return made


def tuned(base: Mapping[str, Tensor], seed: int = 1, scale: float = 0.1, only: Iterable[str] | None = None) -> Tensors:
    """The base with every float element changed, or those of some tensors."""
    make = torch.Generator().manual_seed(seed)
    made = {}
    for name, found in base.items():
        tensor = found.detach()
        chosen = tensor.is_floating_point() and (only is None or name in only)
        noise = torch.randn(tensor.shape, generator=make, dtype=torch.float64) if tensor.is_floating_point() else None
        made[name] = (tensor.double() + scale * noise).to(tensor.dtype) if chosen else tensor.clone()  # type: ignore[operator]
    return made


def copies(base: Mapping[str, Tensor]) -> Tensors:
    """The same tensors in memory of their own."""
    return {name: tensor.detach().clone() for name, tensor in base.items()}


class Module(nn.Module):
    """Tensors as parameters and, where they are integers, buffers."""

    def __init__(self, found: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in found.items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor.detach().clone(), requires_grad=False))
            else:
                self.register_buffer(name, tensor.detach().clone())


class TiedNet(nn.Module):
    """An embedding that is the head's weight as well, a layer between, running statistics with an integer buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(24, 16)
        self.middle = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 24, bias=False)
        self.head.weight = self.embed.weight
        self.requires_grad_(False).eval()

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(torch.tanh(self.middle(self.embed(ids)))))
        return found


def bits_of(tensor: Tensor) -> bytes:
    """The elements' bits in row-major order, NaNs and all."""
    found: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def bits(model: nn.Module | Mapping[str, Tensor]) -> Bits:
    """The bits of all of a model's tensors."""
    found = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: bits_of(tensor) for name, tensor in found.items()}


def places(model: nn.Module | Mapping[str, Tensor]) -> dict[str, int]:
    """Where tensors are."""
    found = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: tensor.data_ptr() for name, tensor in found.items()}


def pack(base: Any, expert: Any, path: Path, **options: Any) -> Path:
    """Pack with many active elements."""
    tsw.pack(base, expert, path, **{"task": path.stem, "density": 0.3, "threads": 1, **options})
    return path


def packed(base: Tensors, folder: Path, names: Iterable[str] = EXPERTS, **options: Any) -> dict[str, Path]:
    """Experts of a base, a file each, and all of them in the file `all`."""
    found = {
        name: pack(base, tuned(base, seed), folder / f"{name}.tsw", **options) for seed, name in enumerate(names, 1)
    }
    return {**found, "all": tsw.bundle(list(found.values()), folder / "all.tsw")}


_numbers = itertools.count()


def restored(base: Any, path: Path, chosen: Chosen, **options: Any) -> Tensors:
    """What `tsw.restore` writes, by name."""
    out = path.parent / f"restored-{next(_numbers)}.safetensors"
    tasks: Any = [chosen] if isinstance(chosen, str) else chosen
    tsw.restore(base, path, out, tasks=tasks, threads=1, **options)
    found: Tensors = load_file(out)
    out.unlink()
    return found


def restored_bits(base: Any, path: Path, chosen: Chosen, **options: Any) -> Bits:
    """The bits of what `tsw.restore` writes."""
    return bits(restored(base, path, chosen, **options))


def active_elements(path: Path, name: str, task: str) -> Any:
    """Mask of the active elements of one tensor, flat."""
    with tsw.open(path) as file:
        return np.asarray(file.switch(name, task).mask()).reshape(-1)


class InjectedError(RuntimeError):
    """What tests let kernels raise."""


class Faults:
    """Lets the kernel's call of number `fail_at` raise, once; counts calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.fail_at: int | None = None
        self.error: BaseException = InjectedError("injected")
        self.after = False  # whether the call's work is done before it raises

    def wrap(self, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            fails = number == self.fail_at
            if fails and not self.after:
                raise self.error
            found = function(*args, **options)
            if fails:
                raise self.error
            return found

        return call

    @contextmanager
    def at(self, number: int | None, error: BaseException | None = None, *, after: bool = False) -> Iterator[Faults]:
        """Fail at this call of the block."""
        self.calls, self.fail_at, self.after = 0, number, after
        self.error = error or InjectedError("injected")
        try:
            yield self
        finally:
            self.fail_at = None
