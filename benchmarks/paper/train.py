"""Training for the experiment: for each seed a base, and of it an expert for each task.

The base learns the digits upright, and beside that which of the eight symmetries an image was put through (its second head
is thrown away): a pre-training that knows more than its labels, as that of real bases does. An expert fine-tunes all
parameters of a copy of the base. The settings were chosen by the accuracy of experts on the validation part, before anything
was compressed; steps are as few as keep that. All in f32: products in bf16 take several times as long where the processor has
no instructions for them.

Each model is trained by one process with one thread, so the same seed gives the same files whatever the number of
processes, on the same machine with the same torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.demo.model import DigitTransformer
from benchmarks.demo.train import Settings, fit
from benchmarks.paper.data import BY_NAME, PLAIN, Task, turned

WIDTH, DEPTH, HEADS = 384, 3, 6
PATCH = (4, 8)  # two tokens: half of the time of four
SYMMETRIES = 8

BASE = Settings(steps=540, learning_rate=1e-3, weight_decay=0.05, epsilon=1e-8, batch=64)
# The larger epsilon leaves weights alone whose gradients are mostly noise.
EXPERT = Settings(steps=407, learning_rate=3e-4, weight_decay=0.0, epsilon=1e-4, batch=32)


def new_model() -> DigitTransformer:
    """A fresh model of 5.3 M parameters."""
    return DigitTransformer(WIDTH, DEPTH, HEADS, patch=PATCH)


def load_model(path: Path) -> DigitTransformer:
    """The model of a checkpoint."""
    model = new_model()
    model.load_state_dict(load_file(path))
    return model.eval()


def train_base(folder: Path, seed: int) -> Path:
    """Train a base and write it to `folder`/base.safetensors; its path."""
    torch.manual_seed(seed)
    model, second = new_model(), nn.Linear(WIDTH, SYMMETRIES)
    seen: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        upright = PLAIN.batch(seed, rows, generator)
        images, which = turned(upright.inputs, generator)
        seen.clear()
        scores = model(torch.cat([upright.inputs, images]))[: len(rows)]
        return functional.cross_entropy(scores, upright.labels) + functional.cross_entropy(
            second(seen[0][len(rows) :]), which
        )

    _fit(nn.ModuleList([model, second]), PLAIN, loss, BASE, seed)
    hook.remove()
    return _save(model, folder / "base.safetensors")


def train_expert(folder: Path, seed: int, name: str) -> Path:
    """Fine-tune the base in `folder` on a task and write the expert to `folder`/NAME.safetensors; its path."""
    task = BY_NAME[name]
    model = copy.deepcopy(load_model(folder / "base.safetensors"))

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        batch = task.batch(seed, rows, generator)
        return functional.cross_entropy(model(batch.inputs), batch.labels)

    _fit(model, task, loss, EXPERT, seed)
    return _save(model, folder / f"{name}.safetensors")


def _fit(
    model: nn.Module, task: Task, loss: Callable[[Tensor, torch.Generator], Tensor], settings: Settings, seed: int
) -> None:
    count = len(task.parts(seed)["train"].labels)
    fit(model, loss, count, settings, torch.Generator().manual_seed(seed))


def _save(model: nn.Module, path: Path) -> Path:
    save_file({name: t.detach().contiguous() for name, t in model.state_dict().items()}, path, {"format": "pt"})
    return path
