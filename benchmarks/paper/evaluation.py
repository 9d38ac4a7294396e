"""How good weights are at a task: accuracy on one part of its data, as `tsw_sweep` wants it; and batches to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.demo.model import DigitTransformer
from benchmarks.demo.train import accuracy
from benchmarks.paper.data import BY_NAME, Samples, Split
from benchmarks.paper.train import new_model
from tswitch_tools.sweep import Evaluate

BATCH = 32


@cache
def _model() -> DigitTransformer:
    return new_model()


@cache
def samples(task: str, seed: int, split: Split) -> Samples:
    """One part of a task's data."""
    return BY_NAME[task].samples(seed, split)


def accuracy_on(seed: int, split: Split) -> Evaluate:
    """`evaluate(task, weights)`: the share of a part's samples that a model with these weights gets right."""

    def evaluate(task: str, weights: Mapping[str, Tensor]) -> float:
        model = _model()
        model.load_state_dict(weights)
        part = samples(task, seed, split)
        return accuracy(model, part.inputs, part.labels)

    return evaluate


@torch.no_grad()
def log_probabilities(task: str, seed: int, split: Split, weights: Mapping[str, Tensor]) -> Tensor:
    """What a model with these weights says of a part's samples: [n, classes]."""
    model = _model()
    model.load_state_dict(weights)
    model.eval()
    return functional.log_softmax(model(samples(task, seed, split).inputs), dim=1)


def training_batches(task: str, seed: int, count: int) -> list[Samples]:
    """The first `count` batches of a seeded order of the training part, as they are, not varied."""
    part = samples(task, seed, "train")
    order = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(seed))
    return [Samples(part.inputs[rows], part.labels[rows]) for rows in order.split(BATCH)[:count]]


def loss(model: nn.Module, batch: Samples) -> Tensor:
    """Cross-entropy."""
    return functional.cross_entropy(model(batch.inputs), batch.labels)
