"""A base and two experts of it, small and of every kind of tensor, for the tests of sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tswitch_tools.sweep.tensors import write_tensors

TASKS = ("math", "co/de |")  # the second is no file's name, and would end a cell of a table


def base_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Matrices, a convolution, a vector, a scalar, and whole numbers."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (24, 16), "a.bias": (24,), "conv": (8, 4, 3, 3), "scale": ()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()} | {
        "ids": torch.arange(5)
    }


def expert_tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The base with changes of low rank and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in base_tensors(dtype).items():
        made[name] = tensor
        if name != "ids":
            change = 0.01 * torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                column = torch.randn(tensor.shape[0], generator=generator)
                change += 0.1 * torch.einsum("i,...->i...", column, torch.randn(tensor.shape[1:], generator=generator))
            made[name] = (tensor.float() + change).to(dtype)
    return made


def write_models(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, dict[str, Path]]:
    """Base and experts as files."""
    base = folder / "base.safetensors"
    write_tensors(base_tensors(dtype), base)
    experts = {task: folder / f"{seed}.safetensors" for seed, task in enumerate(TASKS, 1)}
    for seed, path in enumerate(experts.values(), 1):
        write_tensors(expert_tensors(seed, dtype), path)
    return base, experts


def nearness(task: str, weights: Mapping[str, Tensor]) -> float:
    """1 for the weights of the expert, less the farther they are."""
    expert = expert_tensors(TASKS.index(task) + 1, weights["a.weight"].dtype)
    far = sum(float((weights[name].double() - expert[name].double()).norm()) for name in expert)
    return 1 / (1 + far)
