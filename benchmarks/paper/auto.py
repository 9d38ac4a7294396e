"""Auto-Switch (arXiv 2412.00054): the model chooses its experts itself. Rows for the sweep's table.

The router's samples are features of 100 training images a task, as in the paper: what the base's head sees, projected to 64
numbers by a fixed random matrix, in f16, for 384 would take as much as the expert. Test images come in batches of 50 of one
task ("batch", as in the paper: "mean" of the weights, or "hard", the largest alone), or all tasks' mixed, 40 of each, every
image with its own combination ("sample"): there a symmetric digit does not say whether it was turned.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor

import tswitch_format as tsw
from benchmarks.demo.model import DigitTransformer
from benchmarks.demo.train import accuracy
from benchmarks.paper.data import TASKS
from benchmarks.paper.evaluation import samples
from benchmarks.paper.train import WIDTH, load_model
from tswitch_format.torch import AutoSwitch, Router, SwitchBank
from tswitch_tools.sweep import Row, SweepTable

SAMPLES = 100
NUMBERS = 64
BATCH = 50
MIXED = 40  # test images a task in mixed batches


class Features:
    """What the head of a model sees, projected: images [n, 8, 8] to f32 [n, 64]."""

    def __init__(self, model: DigitTransformer) -> None:
        self._model = model
        generator = torch.Generator().manual_seed(0)
        self._projection = torch.randn(WIDTH, NUMBERS, generator=generator) / NUMBERS**0.5

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Run the model up to its head."""
        seen: list[Tensor] = []
        hook = self._model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self._model(images)
        finally:
            hook.remove()
        return seen[0] @ self._projection


def auto_rows(folder: Path, seed: int, density: float) -> SweepTable:
    """Experts of a seed packed into one file with a router, and the accuracy of the model that uses it."""
    names = [task.name for task in TASKS]
    base, files = folder / "base.safetensors", folder / "auto"
    files.mkdir(exist_ok=True)
    path = files / "all.tsw"
    for name in names:
        tsw.pack(base, folder / f"{name}.safetensors", files / f"{name}.tsw", task=name, density=density)
    tsw.bundle([files / f"{name}.tsw" for name in names], files / "bundle.tsw")
    model = load_model(base).requires_grad_(False)
    features = Features(model)
    made = {name: features(_first(name, seed)).half().numpy() for name in names}
    tsw.add_router(files / "bundle.tsw", path, made, extractor="the base's last hidden state, projected")
    bank = SwitchBank(model)
    for name in names:
        bank.add(name, path)
    times = {name: _switch_time(bank, name) for name in names}
    nbytes = path.stat().st_size / len(names)
    percent = 100 * nbytes / (4 * sum(tensor.numel() for tensor in load_file(base).values()))
    rows = []
    for mode, label in (("hard", "batch, hard"), ("mean", "batch, mean"), ("sample", "sample")):
        auto = AutoSwitch(model, bank, Router.open(path, "cpu"), features, mode)  # type: ignore[arg-type]
        mixed = mode == "sample"
        scores = _mixed(auto, names, seed) if mixed else {name: _batches(auto, name, seed) for name in names}
        count = MIXED if mixed else None
        rows += [
            Row(
                f"Auto-Switch, {label}",
                name,
                nbytes,
                percent,
                scores[name],
                _accuracy(folder / f"{name}.safetensors", name, seed, count),
                _accuracy(base, name, seed, count),
                times[name],
                run=str(seed),
            )
            for name in names
        ]
    return SweepTable(rows)


def _accuracy(path: Path, name: str, seed: int, count: int | None) -> float:
    """Of a checkpoint, on the test images that Auto-Switch is measured on: the first `count`, or all."""
    part = samples(name, seed, "test")
    return accuracy(load_model(path), part.inputs[:count], part.labels[:count])


def _first(name: str, seed: int) -> Tensor:
    inputs = samples(name, seed, "train").inputs
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    return inputs[order[:SAMPLES]]


def _switch_time(bank: SwitchBank, name: str) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        bank.activate(name)
        times.append(time.perf_counter() - start)
        bank.deactivate()
    return median(times[1:])


def _batches(auto: AutoSwitch, name: str, seed: int) -> float:
    part = samples(name, seed, "test")
    right = [
        auto(inputs).argmax(dim=1) == labels
        for inputs, labels in zip(part.inputs.split(BATCH), part.labels.split(BATCH), strict=True)
    ]
    return torch.cat(right).float().mean().item()


def _mixed(auto: AutoSwitch, names: list[str], seed: int) -> dict[str, float]:
    parts = [samples(name, seed, "test") for name in names]
    task = torch.arange(len(names)).repeat_interleave(MIXED)
    order = torch.randperm(len(task), generator=torch.Generator().manual_seed(seed))
    inputs, labels = (
        torch.cat([getattr(part, what)[:MIXED] for part in parts])[order] for what in ("inputs", "labels")
    )
    right = torch.cat(
        [auto(x).argmax(dim=1) == y for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True)]
    ).float()
    return {name: right[task[order] == number].mean().item() for number, name in enumerate(names)}
