"""The pulse effect (arXiv 2412.00054): what is left of an expert when a share of each tensor's changes is dropped.

Dropped are the smallest, the largest, or random ones; what stays, stays as it is, neither binarised nor scaled. The pruned
expert is written as a checkpoint and read back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.paper.data import TASKS
from benchmarks.paper.evaluation import accuracy_on

RATIOS = (0.3, 0.6, 0.9, 0.99)
KINDS = ("low magnitude", "random", "high magnitude")


@dataclass(frozen=True)
class Point:
    """One curve's point: `kept` in % of the expert's accuracy on the test part."""

    kind: str
    ratio: float
    task: str
    seed: int
    kept: float


def pulse_points(folder: Path, seed: int) -> list[Point]:
    """All points of one seed."""
    evaluate = accuracy_on(seed, "test")
    base, path = load_file(folder / "base.safetensors"), folder / "pruned.safetensors"
    points = []
    for task in TASKS:
        expert = load_file(folder / f"{task.name}.safetensors")
        full = evaluate(task.name, expert)
        for kind in KINDS:
            for ratio in RATIOS:
                generator = torch.Generator().manual_seed(seed)
                pruned = copy.copy(base)
                for name, weight in base.items():
                    pruned[name] = torch.where(
                        _stays(expert[name] - weight, kind, ratio, generator), expert[name], weight
                    )
                save_file(pruned, path)
                points.append(Point(kind, ratio, task.name, seed, 100 * evaluate(task.name, load_file(path)) / full))
    path.unlink()
    return points


def _stays(tau: Tensor, kind: str, ratio: float, generator: torch.Generator) -> Tensor:
    dropped = round(ratio * tau.numel())
    if kind == "random":
        keys = torch.rand(tau.shape, generator=generator)
    else:
        keys = tau.abs() if kind == "low magnitude" else -tau.abs()
    if dropped == 0:
        return torch.ones(tau.shape, dtype=torch.bool)
    if dropped == tau.numel():
        return torch.zeros(tau.shape, dtype=torch.bool)
    return keys > keys.flatten().kthvalue(dropped).values
