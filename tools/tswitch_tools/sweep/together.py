"""Experts that are kept together: what each one costs depends on how many there are.

    Sum, Ties, Consensus    one model for all tasks, of the full experts
    Tall, Emr               one vector for all tasks, and a mask for each

Sources and formulas: `tswitch_format.make_tall`, `make_emr` and `merge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import tswitch_format as tsw
from tswitch_format.switch.merge import DEFAULT_SCALE
from tswitch_format.switch.multitask import DEFAULT_LAMBDA
from tswitch_format.torch import apply_
from tswitch_tools.report import report
from tswitch_tools.sweep.method import Job, Kept
from tswitch_tools.sweep.packed import replace_by

# What the papers choose from. Of equally good ones the first: the least change, and the smallest masks.
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LAMBDAS = (0.6, 0.5, 0.4, 0.3, 0.2)


class Sum:
    """Task arithmetic: base + scale * the sum of all task vectors, one checkpoint of which each task has an equal share.

    The scale is the one of `scales` with the best mean over tasks on validation data, 0.3 without. The file that it is merged
    from is not kept.
    """

    name = "merged: sum"
    family = ""
    ties = False
    least: int | None = None  # tasks that must have an element in their masks (of lambda 0.4) for it to change

    def __init__(self, scales: Sequence[float] = SCALES) -> None:
        self._scales = scales

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`."""
        parts, path = job.folder / "parts.tsw", job.folder / "merged.safetensors"
        tsw.make_tall(job.base, job.experts, parts, ties=self.ties)
        merge = partial(
            tsw.merge, job.base, parts, path, method="consensus" if self.least else "sum", k=self.least or 0
        )
        scale, validate = DEFAULT_SCALE, job.validate
        if validate is not None:

            def score(scale: float) -> float:
                merge(scale=scale)
                weights = job.load(path)
                return fmean(validate(task, weights) for task in job.experts)

            scale = max(self._scales, key=score)
        merge(scale=scale)
        parts.unlink()
        share = path.stat().st_size / len(job.experts)
        chosen = _chosen("scale", scale, validated=validate is not None)
        return {task: Kept(share, partial(replace_by, job, path), chosen) for task in job.experts}


class Ties(Sum):
    """TIES as the TALL-masks code has it: the largest 20 % of each task vector, elected signs, summed; scaled as in `Sum`."""

    name = "merged: TIES"
    ties = True


class Consensus(Sum):
    """Consensus merging: `Sum` without what fewer than two tasks have in their TALL masks."""

    name = "merged: Consensus"
    least = 2


class Tall:
    """TALL-masks. Each task has the one of `LAMBDAS` that is best on validation data, 0.4 without."""

    name = "TALL-masks"
    family = ""

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`."""
        path = job.folder / "tall.tsw"
        lambdas = dict.fromkeys(job.experts, DEFAULT_LAMBDA)
        if job.validate is not None:
            scores: dict[tuple[str, float], float] = {}
            for value in LAMBDAS:
                tsw.make_tall(job.base, job.experts, path, lambdas=value)
                for task in job.experts:
                    weights = job.weights()
                    apply_(weights, path, task=task)
                    scores[task, value] = job.validate(task, weights)
            lambdas = {task: max(LAMBDAS, key=lambda value: scores[task, value]) for task in job.experts}
        tsw.make_tall(job.base, job.experts, path, lambdas=lambdas)
        chosen = {task: _chosen("lambda", value, validated=job.validate is not None) for task, value in lambdas.items()}
        return _tasks_of(path, chosen)


class Emr:
    """EMR-Merging, which has nothing to choose."""

    name = "EMR"
    family = ""

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`."""
        path = job.folder / "emr.tsw"
        tsw.make_emr(job.base, job.experts, path)
        return _tasks_of(path, {task: {} for task in job.experts})


def _chosen(name: str, value: float, *, validated: bool) -> Mapping[str, str]:
    return {name: f"{value:g}" if validated else f"{value:g} (default)"}


def _tasks_of(path: Path, chosen: Mapping[str, Mapping[str, str]]) -> Mapping[str, Kept]:
    """The tasks of a file, each with its own bytes and an equal share of the rest."""
    with tsw.open(path) as file:
        sizes = {task.name: task.bytes for task in report(file).tasks}
    return {task: Kept(sizes[task], partial(apply_, path=path, task=task), chosen[task]) for task in chosen}
