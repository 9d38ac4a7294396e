"""`python -m benchmarks ideas`: rules that `pack` does not have, computed on arrays, on validation images.

What was tried before the default was chosen. Sizes are computed, not measured: the entropy H(p) + p of each tensor's
planes, that of the stored factors, and 110 bytes of index a tensor. So rows compare with each other, and the default stands
among them. Accuracy moves by half a point from seed to seed, so rules are told apart by the divergence of what the model
says from what the expert says, which moves less.

    Keys        what an element is worth: magnitudes or parts in a tensor's directions, scaled by rows and columns
    together    one threshold for all tensors; apart: one for each
    fitted      the projection with row and column factors in 16 levels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean

import click
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from benchmarks.common import Result, console, finish
from benchmarks.paper.__main__ import folder_option, keep_option, prepared, processes_option
from benchmarks.paper.data import TASKS
from benchmarks.paper.evaluation import accuracy_on, log_probabilities
from benchmarks.paper.running import SEEDS, run_jobs
from tswitch_format.switch.spectral import BUCKETS, RANK, sketch_signs
from tswitch_tools.sweep.low_rank import factors

INDEX_BYTES = 110
LEVELS, CAP = 15, 3.0  # of u4 factors
LEAST = 0.05  # as in tswitch_format/switch/spectral.py
SIZES = (0.2, 0.45)  # % of fp32
ROUNDS = 4  # of looking for the density that takes so much

Keys = Callable[[Tensor], Tensor]
Masks = Mapping[str, Tensor]
Switch = tuple[Tensor, float]  # what is added to a matrix, and the bits that it takes
Fit = Callable[[Tensor, Tensor], Switch]  # of a matrix and its mask
Select = Callable[[Mapping[str, Tensor]], Callable[[float], Masks]]  # of matrices, and then of a density
Rule = tuple[Select, Fit]


def plane_bits(mask: Tensor) -> float:
    """H(p) + p bits an element."""
    p = mask.double().mean().item()
    entropy = -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)
    return mask.numel() * (entropy + p)


def largest(keys: Tensor, count: int) -> Tensor:
    """The mask of so many elements with the highest keys."""
    flat = keys.flatten()
    if count < 1:
        return torch.zeros_like(keys, dtype=torch.bool)
    return (keys >= flat.kthvalue(max(flat.numel() - count, 0) + 1).values) & (keys > 0)


def scaled(tau: Tensor, keys: Tensor, rows: float, columns: float) -> Tensor:
    """Keys divided by powers of the root mean squares of rows and columns."""
    least = LEAST * tau.square().mean().sqrt()
    by_row = tau.square().mean(1).sqrt().clamp_min(least)
    by_column = tau.square().mean(0).sqrt().clamp_min(least)
    return keys / (by_row[:, None] ** rows * by_column**columns)


def magnitudes(rows: float = 0.0, columns: float = 0.0) -> Keys:
    """|tau|, scaled."""
    return lambda tau: scaled(tau, tau.abs(), rows, columns)


def spectral(rows: float = 0.5, columns: float = 0.5, rank: int = RANK) -> Keys:
    """Keys as `pack --select spectral` has them, but of exact directions, not of a sketch's."""

    return lambda tau: scaled(tau, torch.maximum(tau * strongest(tau, rank), tau.square() / 16), rows, columns)


@lru_cache(maxsize=128)  # tensors are told apart as objects; those of an expert serve many rules
def strongest(tau: Tensor, rank: int) -> Tensor:
    """The part in the strongest directions."""
    left, right = factors(tau, rank)
    return (left @ right).to(tau.dtype)


def sketched(tau: Tensor) -> Tensor:
    """Keys of the directions that `pack` finds, from its count sketch."""
    wide = tau.double()
    signed = wide * torch.from_numpy(sketch_signs(tau.shape[1]))
    buckets = functional.pad(signed, (0, -tau.shape[1] % BUCKETS)).reshape(len(tau), -1, BUCKETS).sum(1)
    basis = torch.linalg.svd(buckets, full_matrices=False)[0][:, :RANK]
    part = torch.maximum(tau * (basis @ (basis.T @ wide)).to(tau.dtype), tau.square() / 16)
    return scaled(tau, part, 0.5, 0.5)


def together(keys: Keys) -> Select:
    """One threshold for all tensors."""

    def prepared(taus: Mapping[str, Tensor]) -> Callable[[float], Masks]:
        worth = {name: keys(tau) for name, tau in taus.items()}
        ordered = torch.cat([key.flatten() for key in worth.values()]).sort().values

        def select(density: float) -> Masks:
            limit = ordered[len(ordered) - math.ceil(density * len(ordered))]
            return {name: (key >= limit) & (key > 0) for name, key in worth.items()}

        return select

    return prepared


def apart(keys: Keys, power: float = 0.0) -> Select:
    """One threshold for each, at a density in proportion to a power of its root mean square."""

    def prepared(taus: Mapping[str, Tensor]) -> Callable[[float], Masks]:
        worth = {name: keys(tau) for name, tau in taus.items()}
        share = {name: float(tau.square().mean().sqrt()) ** power for name, tau in taus.items()}
        unit = sum(tau.numel() for tau in taus.values()) / sum(share[name] * tau.numel() for name, tau in taus.items())

        def select(density: float) -> Masks:
            counts = {name: math.ceil(density * unit * share[name] * key.numel()) for name, key in worth.items()}
            return {name: largest(key, min(key.numel(), counts[name])) for name, key in worth.items()}

        return select

    return prepared


def fitted(tau: Tensor, mask: Tensor, cap: float = CAP, weights: Tensor | None = None) -> Switch:
    """The projection with row and column factors in 16 levels. `weights`: relative heights of the active elements."""
    bits = plane_bits(mask)
    if not mask.any():
        return torch.zeros_like(tau), bits
    height = mask.to(tau.dtype) if weights is None else mask * weights
    squares, overlap = tau.square(), tau.abs() * height
    knob = squares.sum() / overlap.sum()

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


def two_heights(tau: Tensor, mask: Tensor) -> Switch:
    """The larger half of the active elements as much higher as they are in the mean; which half, costs a bit each."""
    sizes = tau.abs()
    upper = mask & (sizes > sizes[mask].median()) if mask.any() else mask
    ratio = sizes[upper].mean() / sizes[mask & ~upper].mean() if upper.any() else 1.0
    made, bits = fitted(tau, mask, weights=torch.where(upper, ratio, torch.ones_like(tau)))
    return made, bits + int(mask.sum())


def residual_plane(tau: Tensor, mask: Tensor) -> Switch:
    """A first switch scaled to least squares, and as many elements in a second one of what it leaves."""
    first = tau.abs()[mask].mean().nan_to_num() * mask * tau.sign()
    left = tau - first
    second, bits = fitted(left, largest(spectral()(left), int(mask.sum())))
    return first + second, bits + plane_bits(mask)


def rank_under(tau: Tensor, mask: Tensor, rank: int = 2) -> Switch:
    """A part of low rank in int8, and a switch of as many elements of what it leaves."""
    left, right = factors(tau, rank)
    low = (_int8(left, 0) @ _int8(right, 1)).to(tau.dtype)
    made, bits = fitted(tau - low, largest(spectral()(tau - low), int(mask.sum())))
    return low + made, bits + 8 * (left.numel() + right.numel()) + 64 * rank


def _int8(factor: Tensor, along: int) -> Tensor:
    scale = factor.abs().amax(along, keepdim=True).clamp_min(1e-30) / 127
    return (factor / scale).round() * scale


def ideas() -> Mapping[str, Rule]:
    """All of them."""
    default = together(spectral())
    return {
        f"the default: by spectrum, rank {RANK}": (default, fitted),
        "the same, directions from a count sketch": (together(sketched), fitted),
        "magnitudes, a threshold for all tensors": (together(magnitudes()), fitted),
        "magnitudes, a threshold for each": (apart(magnitudes()), fitted),
        "magnitudes / row^1/4, column^1/4": (together(magnitudes(0.25, 0.25)), fitted),
        "magnitudes / column^1/2": (together(magnitudes(0, 0.5)), fitted),
        "by spectrum, not scaled": (together(spectral(0, 0)), fitted),
        "by spectrum / column": (together(spectral(0, 1)), fitted),
        "by spectrum / row, column, times rms": (together(_with_rms(spectral(1, 1))), fitted),
        "by spectrum / row, column, a threshold for each": (apart(spectral(1, 1)), fitted),
        "by spectrum, a threshold for each": (apart(spectral()), fitted),
        "by spectrum, densities by rms": (apart(spectral(), 1), fitted),
        "by spectrum, densities by mean squares": (apart(spectral(), 2), fitted),
        "by spectrum, rank 8": (together(spectral(rank=8)), fitted),
        "by spectrum, rank 32": (together(spectral(rank=32)), fitted),
        "the default, factors up to 1.5": (default, partial(fitted, cap=1.5)),
        "the default, factors up to 6": (default, partial(fitted, cap=6.0)),
        "the default, two heights": (default, two_heights),
        "the default, and a second plane on the residual": (default, residual_plane),
        "rank 2 in int8 under the default": (default, rank_under),
    }


def _with_rms(keys: Keys) -> Keys:
    return lambda tau: keys(tau) * tau.square().mean().sqrt()


def of_size(
    base: Mapping[str, Tensor], taus: Mapping[str, Tensor], rule: Rule, sizes: Sequence[float]
) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Weights that are kept at about so much of fp32 each, vectors with a sign each; and how much that is."""
    select, fit = rule
    masks = select({name: tau for name, tau in taus.items() if tau.dim() > 1})
    for percent in sizes:
        density = percent / 40
        for _ in range(ROUNDS):
            weights, size = made(base, taus, masks(density), fit)
            if abs(size / percent - 1) < 0.01:
                break
            # The size grows with the density a little more slowly than in proportion.
            density = min(density * (percent / size) ** 1.3, 0.5)
        yield weights, size


def made(
    base: Mapping[str, Tensor], taus: Mapping[str, Tensor], masks: Masks, fit: Fit
) -> tuple[dict[str, Tensor], float]:
    """Weights that are kept, and % of fp32."""
    weights, bits = {}, 0.0
    for name, before in base.items():
        tau = taus[name]
        if name in masks:
            change, taken = fit(tau, masks[name])
        else:
            change, taken = tau.sign() * tau.square().sum() / tau.abs().sum(), tau.numel()
        weights[name] = before + change
        bits += taken + 8 * INDEX_BYTES
    return weights, 100 * bits / (32 * sum(before.numel() for before in base.values()))


def measured(folder: Path, seed: int) -> list[tuple[str, float, str, float, float, float]]:
    """(idea, size wanted, task, % of fp32, % kept, divergence) for each idea, size and task."""
    evaluate = accuracy_on(seed, "validation")
    base = load_file(folder / "base.safetensors")
    rows = []
    for task in TASKS:
        expert = load_file(folder / f"{task.name}.safetensors")
        full = evaluate(task.name, expert)
        says = log_probabilities(task.name, seed, "validation", expert)
        taus = {name: expert[name] - before for name, before in base.items()}
        for name, rule in ideas().items():
            for percent, (weights, size) in zip(SIZES, of_size(base, taus, rule, SIZES), strict=True):
                surprise = says - log_probabilities(task.name, seed, "validation", weights)
                divergence = (says.exp() * surprise).sum(1).mean().item()
                kept = 100 * evaluate(task.name, weights) / full
                rows.append((name, percent, task.name, size, kept, divergence))
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
    for percent in SIZES:
        table = result.table(
            f"About {percent} % of fp32",
            "rule",
            "% of fp32, computed",
            "kept %",
            "worst task %",
            "divergence",
            note="Divergence: of Kullback and Leibler, from what the full expert says, mean over images, tasks and seeds.",
        )
        for name in ideas():
            rows = [row for row in found if row[:2] == (name, percent)]
            tasks = {task: fmean(row[4] for row in rows if row[2] == task) for task in {row[2] for row in rows}}
            table.add(
                name,
                round(fmean(row[3] for row in rows), 3),
                round(fmean(tasks.values()), 2),
                round(min(tasks.values()), 1),
                round(fmean(row[5] for row in rows), 4),
            )
    result.raw["rows"] = [list(row) for row in found]
    finish(result, save=True)
