"""`python -m benchmarks ideas`: rules that `pack` does not have, computed on arrays, on validation images.

What was tried before the default was chosen. Sizes are computed, not measured: the entropy H(p) + p of each tensor's
planes, that of the stored factors, and 110 bytes of index a tensor. So rows compare with each other, and the default stands
among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean

import click
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import Result, console, finish
from benchmarks.paper.__main__ import folder_option, keep_option, prepared, processes_option
from benchmarks.paper.data import TASKS
from benchmarks.paper.evaluation import accuracy_on
from benchmarks.paper.running import SEEDS, run_jobs
from tswitch_format.switch.spectral import RANK
from tswitch_tools.sweep.low_rank import factors

INDEX_BYTES = 110
LEVELS, CAP = 15, 3.0  # of u4 factors
LEAST = 0.05  # as in tswitch_format/switch/spectral.py

Switch = tuple[Tensor, float]  # what is added to a matrix, and the bits that it takes
Rule = Callable[[Tensor], Switch]


def plane_bits(mask: Tensor) -> float:
    """H(p) + p bits an element."""
    p = mask.double().mean().item()
    entropy = -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)
    return mask.numel() * (entropy + p)


def largest(keys: Tensor, density: float) -> Tensor:
    """The mask of the elements with the highest keys."""
    quota = max(1, math.ceil(density * keys.numel()))
    return (keys >= keys.flatten().kthvalue(keys.numel() - quota + 1).values) & (keys > 0)


def scaled(tau: Tensor, keys: Tensor, rows: float, columns: float) -> Tensor:
    """Keys divided by powers of the root mean squares of rows and columns."""
    least = LEAST * tau.square().mean().sqrt()
    by_row = tau.square().mean(1).sqrt().clamp_min(least)
    by_column = tau.square().mean(0).sqrt().clamp_min(least)
    return keys / (by_row[:, None] ** rows * by_column**columns)


def spectral(tau: Tensor, rank: int = RANK) -> Tensor:
    """Keys as `pack --select spectral` has them, but of exact directions, not of a sketch's, and 0 where they oppose."""
    left, right = factors(tau, rank)
    return scaled(tau, (tau * (left @ right).to(tau.dtype)).clamp_min(0), 1, 1)


def fitted(tau: Tensor, mask: Tensor, cap: float = CAP, weights: Tensor | None = None) -> Switch:
    """The projection with row and column factors in 16 levels. `weights`: relative heights of the active elements."""
    height = mask.to(tau.dtype) if weights is None else mask * weights
    squares, overlap = tau.square(), tau.abs() * height
    knob = squares.sum() / overlap.sum()
    bits = plane_bits(mask)

    def stored(over: Tensor, under: Tensor) -> Tensor:
        nonlocal bits
        factors = torch.where(under > 0, over / (knob * under).clamp_min(1e-30), 0.0).clamp(0, cap)
        codes = (factors * LEVELS / cap).round()
        shares = codes.long().bincount().double() / codes.numel()
        bits += codes.numel() * -sum(p * math.log2(p) for p in shares.tolist() if p)
        return codes * cap / LEVELS

    rows = stored(squares.sum(1), overlap.sum(1))
    columns = stored(squares.sum(0), (rows[:, None] * overlap).sum(0))
    field = rows[:, None] * columns
    total = (field * overlap).sum()
    if total > 0:
        knob = squares.sum() / total
    else:
        field = torch.ones_like(tau)
    return knob * field * height * tau.sign(), bits


def by(keys: Callable[[Tensor], Tensor], density: float, cap: float = CAP) -> Rule:
    """Select by keys, then fit."""
    return lambda tau: fitted(tau, largest(keys(tau), density), cap)


def two_heights(density: float) -> Rule:
    """The larger half of the active elements as much higher as they are in the mean; which half, costs a bit each."""

    def rule(tau: Tensor) -> Switch:
        mask = largest(spectral(tau), density)
        magnitudes = tau.abs()
        upper = mask & (magnitudes > magnitudes[mask].median())
        ratio = magnitudes[upper].mean() / magnitudes[mask & ~upper].mean() if upper.any() else 1.0
        made, bits = fitted(tau, mask, weights=torch.where(upper, ratio, torch.ones_like(tau)))
        return made, bits + int(mask.sum())

    return rule


def residual_plane(density: float) -> Rule:
    """Half of the elements in a first switch scaled to least squares, the others in a second one of what it leaves."""

    def rule(tau: Tensor) -> Switch:
        mask = largest(spectral(tau), density / 2)
        first = tau.abs()[mask].mean() * mask * tau.sign()
        left = tau - first
        second, bits = fitted(left, largest(spectral(left), density / 2))
        return first + second, bits + plane_bits(mask)

    return rule


def rank_under(density: float, rank: int = 2) -> Rule:
    """A part of low rank in int8, and a switch of what it leaves."""

    def rule(tau: Tensor) -> Switch:
        left, right = factors(tau, rank)
        low = (_int8(left, 0) @ _int8(right, 1)).to(tau.dtype)
        made, bits = fitted(tau - low, largest(spectral(tau - low), density))
        return low + made, bits + 8 * (left.numel() + right.numel()) + 64 * rank

    return rule


def _int8(factor: Tensor, along: int) -> Tensor:
    scale = factor.abs().amax(along, keepdim=True).clamp_min(1e-30) / 127
    return (factor / scale).round() * scale


def ideas() -> Mapping[str, Rule]:
    """All of them, at two sizes."""
    found: dict[str, Rule] = {}
    for percent in (0.5, 1.5):
        d = percent / 100
        found |= {
            f"the default: by spectrum, rank {RANK}, {percent} %": by(spectral, d),
            f"magnitudes, {percent} %": by(torch.abs, d),
            f"magnitudes / sqrt(row), sqrt(column), {percent} %": by(lambda t: scaled(t, t.abs(), 0.5, 0.5), d),
            f"magnitudes / column, {percent} %": by(lambda t: scaled(t, t.abs(), 0, 1), d),
            f"by spectrum, rank 8, {percent} %": by(partial(spectral, rank=8), d),
            f"by spectrum, rank 32, {percent} %": by(partial(spectral, rank=32), d),
            f"factors up to 1.5, {percent} %": by(spectral, d, 1.5),
            f"factors up to 6, {percent} %": by(spectral, d, 6.0),
            f"two heights, {percent} %": two_heights(d),
            f"a second plane on the residual, {percent} %": residual_plane(d),
            f"rank 2 in int8 under it, {percent} %": rank_under(d),
        }
    return found


def measured(folder: Path, seed: int) -> list[tuple[str, str, float, float]]:
    """(idea, task, % of fp32, % kept) for each idea and task."""
    evaluate = accuracy_on(seed, "validation")
    base = load_file(folder / "base.safetensors")
    elements = sum(tensor.numel() for tensor in base.values())
    rows = []
    for task in TASKS:
        expert = load_file(folder / f"{task.name}.safetensors")
        full = evaluate(task.name, expert)
        for name, rule in ideas().items():
            weights, bits = {}, 0.0
            for tensor, before in base.items():
                tau = expert[tensor] - before
                made, taken = (
                    rule(tau) if tau.dim() > 1 else (tau.sign() * tau.square().sum() / tau.abs().sum(), tau.numel())
                )
                weights[tensor] = before + made
                bits += taken + 8 * INDEX_BYTES
            rows.append((name, task.name, 100 * bits / (32 * elements), 100 * evaluate(task.name, weights) / full))
    return rows


@click.command()
@folder_option
@keep_option
@processes_option
def main(folder: Path, keep: bool, processes: int) -> None:
    """Rules beside those of `tsw pack`: other thresholds, caps, heights, a second plane, low ranks under the switch."""
    found = [
        row for part in run_jobs(prepared(folder, keep=keep), SEEDS, [measured], console(), processes) for row in part
    ]
    result = Result(
        "ideas",
        "what rules that pack does not have would keep",
        "python -m benchmarks ideas",
        {"tasks": len(TASKS), "seeds": len(SEEDS), "images": "validation"},
    )
    table = result.table("Ideas", "rule", "% of fp32, computed", "kept %", "worst task %")
    for name in dict.fromkeys(row[0] for row in found):
        rows = [row for row in found if row[0] == name]
        tasks = {task: fmean(row[3] for row in rows if row[1] == task) for task in {row[1] for row in rows}}
        table.add(
            name,
            round(fmean(row[2] for row in rows), 3),
            round(fmean(tasks.values()), 2),
            round(min(tasks.values()), 1),
        )
    result.raw["rows"] = [list(row) for row in found]
    finish(result, save=True)
