"""Training of the base and of the experts, and the checkpoints that the demo writes.

Plain fine-tuning: an expert starts as a copy of the base, and AdamW trains all of its parameters. Every run makes its
own random numbers from the seed, so it does not depend on what ran before. The settings below were chosen on the
validation part; the test part is never read here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.demo.data import PLAIN, TASKS, Digits, Task, augment, load
from benchmarks.demo.model import DigitTransformer

THREADS = 2
WARM_UP = 0.15  # share of the steps in which the learning rate grows; a cosine takes it down to nought afterwards

Tick = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """How one model is trained: optimiser steps, and what AdamW needs."""

    steps: int
    learning_rate: float
    weight_decay: float
    epsilon: float
    batch: int


BASE = Settings(steps=900, learning_rate=1e-3, weight_decay=0.05, epsilon=1e-8, batch=64)
# The larger epsilon leaves weights alone whose gradients are mostly noise.
EXPERT = Settings(steps=592, learning_rate=1e-3, weight_decay=0.0, epsilon=1e-4, batch=32)


def train_base(seed: int = 0, digits: Digits | None = None, tick: Tick | None = None) -> DigitTransformer:
    """Train a fresh model on the plain digits. `tick` is called after each epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitTransformer()
    _train(model, PLAIN, digits or load(), BASE, seed, tick)
    return model


def train_expert(
    base: DigitTransformer, task: Task, seed: int = 0, digits: Digits | None = None, tick: Tick | None = None
) -> DigitTransformer:
    """Fine-tune all parameters of a copy of `base` on a task. `tick` is called after each epoch."""
    model = copy.deepcopy(base)
    _train(model, task, digits or load(), EXPERT, seed, tick)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the inputs `x` for which the model's highest score is that of the label `y`."""
    model.eval()
    return (model(x).argmax(dim=1) == y).float().mean().item()


def prepare(folder: Path, seed: int = 0, console: Console | None = None) -> list[str]:
    """Train base and experts, write `base.safetensors` and `{task}.safetensors` into `folder`; the tasks' names.

    A terminal shows a progress bar, a pipe gets one line for each model. Torch gets `THREADS` threads whatever the
    machine has, since sums that more threads share are added in another order. The same seed gives the same files on
    the same machine with the same torch; elsewhere the last digits of the weights may differ.
    """
    console = console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        digits = load()
        count = len(digits.train.digits)
        epochs = sum(settings.steps // (count // settings.batch) for settings in (BASE, *[EXPERT] * len(TASKS)))
        with _Display(console, epochs) as display:
            display.begin(f"base: {PLAIN.about}")
            base = train_base(seed, digits, display.tick)
            _save(base, folder / "base.safetensors")
            for task in TASKS:
                display.begin(f"{task.name}: {task.about}")
                _save(train_expert(base, task, seed, digits, display.tick), folder / f"{task.name}.safetensors")
    finally:
        torch.set_num_threads(threads)
    return [task.name for task in TASKS]


def _train(
    model: DigitTransformer, task: Task, digits: Digits, settings: Settings, seed: int, tick: Tick | None
) -> None:
    """Train all parameters of `model` in place."""
    images, labels = digits.train.images, task.labels(digits.train.digits)

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        scores = model(task.images(augment(images[rows], generator)).contiguous())
        return functional.cross_entropy(scores, labels[rows])

    fit(model, loss, len(labels), settings, torch.Generator().manual_seed(seed), tick=tick)


def fit(
    model: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    samples: int,
    settings: Settings,
    generator: torch.Generator,
    *,
    tick: Tick | None = None,
) -> None:
    """Train all parameters of `model` in place, in epochs over `samples` samples: `loss` gets the numbers of those of a batch.

    `tick` is called after each epoch.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / settings.steps))
    model.train()
    epoch = (
        samples // settings.batch
    )  # a last batch that is not full is left out; the next epoch's order is another one
    batches: list[Tensor] = []
    for step in range(settings.steps):
        if not batches:
            batches = list(torch.randperm(samples, generator=generator).split(settings.batch)[:epoch])
        found = loss(batches.pop(0), generator)
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if tick and (step + 1) % epoch == 0:
            tick()


def _rate(done: float) -> float:
    """The learning rate's factor when this share of the steps is done."""
    if done < WARM_UP:
        return max(done / WARM_UP, 0.04)
    return 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))


def _save(model: nn.Module, path: Path) -> None:
    """Write a model's tensors as f32, with the metadata that the usual tools write."""
    save_file({name: t.detach().contiguous() for name, t in model.state_dict().items()}, path, {"format": "pt"})


class _Display:
    """What `prepare` shows: a bar on a terminal, a line for each model elsewhere."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=epochs)

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def begin(self, what: str) -> None:
        """Say which model is trained next."""
        self._progress.update(self._task, description=what)
        if not self._console.is_terminal:
            self._console.print(f"training {what}", markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Count one epoch."""
        self._progress.advance(self._task)
