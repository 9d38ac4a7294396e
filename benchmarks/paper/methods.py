"""Ways of keeping experts that need the task's data, for `tsw_sweep`. What is learned is learned on the training part, what is
chosen is chosen by `job.validate`, on the validation part.

Scored        elements by importance scores (Selective Task Arithmetic), the knob's rule chosen
Calibrated    the default file, its knobs refined
Tinted        all experts in one model, a coefficient for each tensor and task and a head for each task, both trained
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

import tswitch_format as tsw
from benchmarks.paper.evaluation import loss, samples, training_batches
from benchmarks.paper.train import load_model, new_model
from tswitch_format.torch import SwitchBank, Tint, apply_, calibrate, importance
from tswitch_tools.report import report
from tswitch_tools.sweep import Job, Kept

SCORE_BATCHES = 16  # of 32 samples
KNOBS = ("projection", "norm", "mean")
CALIBRATION_BATCHES = 8
CALIBRATION_STEPS = 24
_LEAST_STEP = 1e-3  # of accuracy: less than a sample of a validation part is
TINT_STEPS = 40
TABLE = "tinting"


class Scored:
    """`importance` of the expert on its training data, and the knob's rule that is best on validation data."""

    family = "STA scores"

    def __init__(self, seed: int, density: float) -> None:
        self._seed = seed
        self._density = density
        self.name = f"{self.family}, {100 * density:g} %"

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`."""
        if job.validate is None:
            raise tsw.OptionError("STA scores: expected validate, by which the knob is chosen, found none; give it")
        kept = {}
        for task, expert in job.experts.items():
            scores, path = job.path(task, ".scores.safetensors"), job.path(task, ".tsw")
            found = importance(
                load_model(expert), loss, training_batches(task, self._seed, SCORE_BATCHES), base=job.base
            )
            found.save(scores)
            best: dict[str, float] = {}
            for knob in KNOBS:
                tsw.pack(job.base, expert, path, task=task, density=self._density, score=scores, knob=knob)
                weights = job.weights()
                apply_(weights, path)
                best[knob] = job.validate(task, weights)
            knob = max(best, key=best.__getitem__)
            tsw.pack(job.base, expert, path, task=task, density=self._density, score=scores, knob=knob)
            kept[task] = Kept(path.stat().st_size, partial(apply_, path=path), {"knob": knob})
        return kept


class Calibrated:
    """The default file of a density, refined by `calibrate`, which keeps what it was where validation data say so: by accuracy,
    and where that is the same, as it often is near 100 %, by the loss."""

    family = "default, calibrated"

    def __init__(self, seed: int, density: float) -> None:
        self._seed = seed
        self._density = density
        self.name = f"{self.family}, {100 * density:g} %"

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`."""
        validate = job.validate
        if validate is None:
            raise tsw.OptionError(
                "calibrated: expected validate, by which the better knobs are kept, found none; give it"
            )
        kept = {}
        for task, expert in job.experts.items():
            plain, path = job.path(task, ".plain.tsw"), job.path(task, ".tsw")
            tsw.pack(job.base, expert, plain, task=task, density=self._density)
            path.unlink(missing_ok=True)
            result = calibrate(
                load_model(job.base).requires_grad_(False),
                plain,
                path,
                loss,
                training_batches(task, self._seed, CALIBRATION_BATCHES),
                lambda model, task=task: (  # type: ignore[misc]
                    validate(task, model.state_dict()) - _LEAST_STEP * self._loss(model, task)
                ),
                steps=CALIBRATION_STEPS,
            )
            better = "yes" if result.kept else "no"
            kept[task] = Kept(path.stat().st_size, partial(apply_, path=path), {"better on validation": better})
        return kept

    @torch.no_grad()
    def _loss(self, model: nn.Module, task: str) -> float:
        """On the validation part, at most 1."""
        model.eval()
        return min(loss(model, samples(task, self._seed, "validation")).item(), 1.0)


class Tinted:
    """Model Tinting over switches: `sum_t lambda[l, t] switch[l, t]` for every tensor l but the head, of which each task has
    its own. Lambdas (from 0.3 on) and heads (from the experts') are trained on all tasks' training data together."""

    family = ""

    def __init__(self, seed: int, density: float) -> None:
        self._seed = seed
        self._density = density
        self.name = f"tinting, {100 * density:g} %"

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`."""
        tasks = list(job.experts)
        heads = {task: _Head(job.load_expert(task)) for task in tasks}
        switches = {task: self._switches(job, task) for task in tasks}
        rows = sorted(set().union(*switches.values()), key=str.encode)
        table = _train(job, switches, heads, rows, self._seed)
        files = []
        for task, expert in job.experts.items():
            tinted, path = job.path(task, ".expert.safetensors"), job.path(task, ".tsw")
            save_file(load_file(expert) | heads[task].stored(), tinted)
            tsw.pack(job.base, tinted, path, task=task, density=self._density, dense=["head.*"])
            files.append(path)
        bundle, out = job.folder / "all.tsw", job.folder / "tinted.tsw"
        tsw.bundle(files, bundle)
        tsw.add_table(bundle, out, TABLE, table.numpy(), rows=rows, tasks=tasks, clamp=(0, 1))
        with tsw.open(out) as file:
            sizes = {task.name: task.bytes for task in report(file).tasks}
        return {task: Kept(sizes[task], partial(_tint, out, tasks, task)) for task in tasks}

    def _switches(self, job: Job, task: str) -> dict[str, Tensor]:
        """What the switches of a task add, by tensor, but for the head."""
        path = job.path(task, ".first.tsw")
        tsw.pack(job.base, job.experts[task], path, task=task, density=self._density, dense=["head.*"])
        with tsw.open(path) as file:
            found = {name: file.switch(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {
                name: torch.from_numpy(switch.delta()) for name, switch in found.items() if switch.kind == "ternary"
            }


class _Head:
    """A task's own head, which learns."""

    def __init__(self, expert: Mapping[str, Tensor]) -> None:
        self.parts = {name: expert[name].clone().requires_grad_(True) for name in ("head.weight", "head.bias")}

    def stored(self) -> dict[str, Tensor]:
        return {name: part.detach().contiguous() for name, part in self.parts.items()}


def _train(
    job: Job, switches: Mapping[str, Mapping[str, Tensor]], heads: Mapping[str, _Head], rows: list[str], seed: int
) -> Tensor:
    """Train coefficients [rows, tasks] and the heads."""
    model, tasks = new_model().requires_grad_(False), list(switches)
    table = torch.full((len(rows), len(tasks)), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": [table], "lr": 2e-2}, {"params": [p for h in heads.values() for p in h.parts.values()], "lr": 1e-3}]
    )
    batches = {task: training_batches(task, seed, TINT_STEPS) for task in tasks}
    for step in range(TINT_STEPS):
        used = table.clamp(0, 1)
        merged = dict(job.tensors)
        for row, name in enumerate(rows):
            parts = [(column, switches[task][name]) for column, task in enumerate(tasks) if name in switches[task]]
            merged[name] = merged[name] + sum(used[row, column] * part for column, part in parts)
        found = torch.zeros(())
        for task in tasks:
            batch = batches[task][step % len(batches[task])]
            found = found + loss(_With(model, merged | heads[task].parts), batch)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    return table.detach()


class _With(nn.Module):
    """A model with other weights."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._call = partial(functional_call, model, dict(weights))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self._call((inputs,))
        return found


def _tint(path: Path, tasks: list[str], layers: str, weights: dict[str, Tensor]) -> None:
    bank = SwitchBank(weights)
    for task in tasks:
        bank.add(task, path)
    with tsw.open(path) as file:
        bank.activate(Tint(file.tables[TABLE], layers=layers))
