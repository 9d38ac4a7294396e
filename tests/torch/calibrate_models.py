"""Small models, experts of them packed at low density, and samples of what the experts do, for test_torch_calibrate.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tswitch_format as tsw
import tswitch_format.torch as tsw_torch

Batch = tuple[Tensor, Tensor]
WIDTH, CLASSES = 12, 6


class Mlp(nn.Module):
    """Two layers and a norm, whose running statistics are buffers."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(WIDTH, 32)
        self.norm = nn.BatchNorm1d(32)
        self.second = nn.Linear(32, CLASSES)
        for parameter in self.parameters():
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.4).to(dtype)
        self.norm.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.norm(self.first(x.to(self.first.weight.dtype)))))
        return found.float()


def expert_of(model: nn.Module, seed: int = 1, scale: float = 0.4) -> dict[str, Tensor]:
    """The model's state with every parameter changed, some elements much more than others."""
    generator = torch.Generator().manual_seed(seed)
    names = {name for name, _ in model.named_parameters()}
    made = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator) ** 3 * scale * 0.4
        made[name] = (tensor.cpu() + noise).to(tensor.dtype) if name in names else tensor.cpu().clone()
    return made


def samples(model: nn.Module, expert: dict[str, Tensor], count: int, seed: int) -> Batch:
    """Inputs, and what the expert makes of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, WIDTH, generator=generator)
    tuned = type(model)().to(next(model.parameters()).dtype)
    tuned.load_state_dict(expert)
    with torch.no_grad():
        return x, tuned.eval()(x)


def batches_of(data: Batch, size: int = 32) -> list[Batch]:
    """A batch after the other."""
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error."""
    device = next(model.parameters()).device
    return nn.functional.mse_loss(model(batch[0].to(device)), batch[1].to(device))


def validating(data: Batch) -> Callable[[nn.Module], float]:
    """Minus the loss on these."""
    return lambda model: -float(loss(model, data))


def pack(model: nn.Module, expert: Any, path: Path, **options: Any) -> Path:
    """At low density."""
    tsw.pack(model, expert, path, **{"density": 0.15, "threads": 1, "task": "math", **options})
    return path


class Case:
    """A base, an expert packed, and three splits of its samples: to calibrate, to validate, and never seen."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any) -> None:
        self.folder = folder
        self.model = Mlp(dtype=dtype).eval().to(device)
        self.expert = expert_of(self.model)
        self.path = pack(self.model, self.expert, folder / "math.tsw", **options)
        self.out = folder / "calibrated.tsw"
        self.batches, held, never = (samples(self.model, self.expert, 128, seed) for seed in (2, 3, 4))
        self.validate, self.test = validating(held), validating(never)

    def run(self, **options: Any) -> tsw_torch.CalibrationResult:
        """Calibrate."""
        given = {
            "model": self.model, "path": self.path, "out": self.out, "loss_fn": loss, "validate": self.validate,
            "batches": batches_of(self.batches), "steps": 40,
        } | options  # fmt: skip
        return tsw_torch.calibrate(**given)

    def figure(self, path: Path, validate: Callable[[nn.Module], float]) -> float:
        """Of a model that a file was applied to."""
        first = self.model.get_parameter("first.weight")
        made = Mlp(dtype=first.dtype).eval().requires_grad_(False).to(first.device)
        tsw_torch.apply_(made, path)
        return validate(made)


class TiedMlp(nn.Module):
    """Its last layer's weight is its first one's; `apart`: as two parameters over the same memory."""

    def __init__(self, seed: int = 0, *, apart: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, WIDTH, bias=False)
        for parameter in (self.inner.weight, self.inner.bias):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
        self.outer.weight = nn.Parameter(self.inner.weight.data) if apart else self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(torch.tanh(self.inner(x)))
        return found
