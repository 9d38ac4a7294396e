"""Switches to try kernels on, backends that run them, and what NumPy makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tswitch_format as tsw
from tswitch_format.switch.planes import Form
from tswitch_format.torch.kernels import Job
from tswitch_format.torch.load import SwitchTensors
from tswitch_format.torch.packed import PackedSwitch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COEFFICIENTS = (1, -0.5, 0.3, 1e-40)
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Backend:
    """One way to do jobs, on one device."""

    name: str
    device: str

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Do them; the parts that the backend says it did."""
        done: list[Job] = []
        self.module.run(jobs, done)
        return done

    @property
    def module(self) -> Any:
        """Its module."""
        return import_module(f"tswitch_format.torch.kernels.{self.name}")


@dataclass(frozen=True)
class Options:
    """What a case is made with. `form` is checked: it follows from density and profile."""

    shape: tuple[int, ...]
    density: float
    form: Form
    per: str = "tensor"
    factors: str = "u8"
    seed: int = 0


@dataclass
class Case:
    """The base's weights on the CPU, and a switch for them in NumPy and on devices."""

    weights: Tensor
    path: Path
    host: Any
    found: dict[str, PackedSwitch] = field(default_factory=dict)

    def packed(self, device: str) -> PackedSwitch:
        """The switch on a device."""
        if device not in self.found:
            with SwitchTensors(self.path, device=device) as file:
                self.found[device] = file.switch("w").packed()
        return self.found[device]

    def wanted(self, weights: Tensor, coefficient: float = 1.0) -> Tensor:
        """What NumPy makes of weights."""
        array = self.host.apply(to_numpy(weights), coefficient, check_base=False)
        return from_numpy(np.asarray(array), weights.dtype).view(weights.shape)


class Cases:
    """Makes each case once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Options, torch.dtype], Case] = {}
        self._open = ExitStack()

    def __call__(self, options: Options, dtype: torch.dtype) -> Case:
        key = options, dtype
        if key not in self._made:
            path = self._folder / f"{len(self._made)}.tsw"
            random = torch.Generator().manual_seed(options.seed)
            draw: Callable[[], Tensor] = partial(torch.randn, options.shape, generator=random, dtype=torch.float64)
            weights = draw().to(dtype)
            moved = draw()  # far enough that no element stays as it is, so that a density of 1 is a mask of ones
            expert = (weights.double() + moved + moved.sign() / 2).to(dtype)
            mapped = options.form is Form.BITMAP and options.density < 1 / 8
            knob_dtype = {"knob_dtype": options.factors} if options.per != "tensor" else {}
            tsw.pack(
                {"w": weights}, {"w": expert}, path, density=options.density, knob_per=options.per,
                profile="mapped" if mapped else "archive", select="tensor", **knob_dtype,
            )  # fmt: skip
            self._made[key] = Case(weights, path, self._open.enter_context(tsw.open(path)).switch("w"))
        return self._made[key]

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def matrix(weights: Tensor) -> Tensor:
    """Weights as jobs want them."""
    rows = weights.shape[0] if weights.ndim else 1
    return weights.reshape(rows, weights.numel() // rows if rows else 0)


def bits(tensor: Tensor) -> Tensor:
    """Elements as integers, so that zeros have signs and NaN are equal to themselves."""
    return tensor.contiguous().cpu().view(_INTS[tensor.element_size()])


def same(found: Tensor, wanted: Tensor) -> bool:
    """Equal to the last bit, but for what a NaN is made of."""
    found, wanted = found.cpu(), wanted.cpu()
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    numbers = (~wanted.isnan()) if wanted.is_floating_point() else torch.ones_like(wanted, dtype=torch.bool)
    return torch.equal(bits(found)[numbers], bits(wanted)[numbers]) and (
        not wanted.is_floating_point() or torch.equal(found.isnan(), wanted.isnan())
    )


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A CPU tensor as the library's NumPy arrays are: BF16 as uint16."""
    tensor = tensor.contiguous()
    return (
        tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    ).copy()


def from_numpy(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """And back."""
    return torch.from_numpy(array.view(np.int16)).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(array)
