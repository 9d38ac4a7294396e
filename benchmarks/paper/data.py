"""The tasks of the experiment: data that scikit-learn carries, each cut into three parts.

* `train`: what the base and the experts are trained on, and what importance and routers' samples come from,
* `validation`: what chooses: lambdas, merging scales, thresholds, whether calibrated knobs are kept, and with `make
  frontier` the default rule of `tsw pack`,
* `test`: what tables and plots show. Nothing is chosen by it. It is the same for all seeds; they cut the rest.

The digits (1797 grey images of 8x8) are cut stratified; every task on digits has the same images in the same part, so no
model has seen a test image under another transform. The tumours (569 rows of 30 numbers,
benign or malignant) are cut likewise and rendered as 8x8 images: each number, standardised by the training part and brought
between 0 and 1, becomes two pixels beside each other. The base has never seen any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from benchmarks.demo.data import CLASSES, SIDE, TEST_IMAGES, VALIDATION_IMAGES, augment, stratified

Split = Literal["train", "validation", "test"]

_TUMOUR_PARTS = (0.4, 0.15)  # test, validation; train has the rest


@dataclass(frozen=True)
class Samples:
    """Inputs f32 [n, 8, 8] and labels i64 [n]."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """A task: its name, what it is in words, its parts as they are before `render`, which makes the model's inputs of them,
    and what a training batch goes through before that."""

    name: str
    about: str
    parts: Callable[[int], dict[Split, Samples]]
    render: Callable[[Tensor], Tensor]
    vary: Callable[[Tensor, torch.Generator], Tensor]

    def samples(self, seed: int, split: Split) -> Samples:
        """Inputs and labels of one part."""
        part = self.parts(seed)[split]
        return Samples(self.render(part.inputs).contiguous(), part.labels)

    def batch(self, seed: int, rows: Tensor, generator: torch.Generator) -> Samples:
        """Some rows of the training part, varied."""
        part = self.parts(seed)["train"]
        return Samples(self.render(self.vary(part.inputs[rows], generator)).contiguous(), part.labels[rows])


def _cut(labels: Tensor, test: int, validation: int, seed: int) -> dict[Split, Tensor]:
    """Rows of each part: the test part is the first of seed 0's order, the others are the rest in an order of the seed's."""
    order = stratified(labels.numpy(), 0)
    rest = order[test:]
    if seed:
        rest = rest[stratified(labels[rest].numpy(), seed)]
    return {"test": order[:test], "validation": rest[:validation], "train": rest[validation:]}


@cache
def _digits(seed: int) -> dict[Split, Samples]:
    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16)
    digits = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    rows = _cut(digits, TEST_IMAGES, VALIDATION_IMAGES, seed)
    return {split: Samples(images[at], digits[at]) for split, at in rows.items()}


@cache
def _relabelled(seed: int) -> dict[Split, Samples]:
    return {split: Samples(part.inputs, (3 * part.labels + 1) % CLASSES) for split, part in _digits(seed).items()}


@cache
def _tumours(seed: int) -> dict[Split, Samples]:
    bunch = load_breast_cancer()
    numbers = torch.from_numpy(np.asarray(bunch.data, dtype=np.float32))
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    rows = _cut(labels, *(round(share * len(labels)) for share in _TUMOUR_PARTS), seed)
    middle, spread = numbers[rows["train"]].mean(dim=0), numbers[rows["train"]].std(dim=0)
    images = torch.zeros(len(numbers), SIDE * SIDE)
    # From two standard deviations below the mean to two above: most numbers, and the rest is cut.
    images[:, : 2 * numbers.shape[1]] = (((numbers - middle) / spread + 2) / 4).clamp(0, 1).repeat_interleave(2, dim=1)
    inputs = images.view(-1, SIDE, SIDE)
    return {split: Samples(inputs[at], labels[at]) for split, at in rows.items()}


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


PLAIN = Task("base", "upright digits", _digits, _as_it_is, augment)

TASKS = (
    Task("rotated", "digits turned left by 90 degrees", _digits, lambda x: torch.rot90(x, 1, (-2, -1)), augment),
    Task("mirrored", "digits mirrored left to right", _digits, lambda x: x.flip(-1), augment),
    Task("flipped", "digits upside down", _digits, lambda x: x.flip(-2), augment),
    Task("inverted", "digits white on black", _digits, lambda x: 1 - x, augment),
    Task("relabelled", "digit d has label (3 d + 1) mod 10", _relabelled, _as_it_is, augment),
    Task("tumours", "30 numbers of a tumour, benign or malignant", _tumours, _as_it_is, _noise),
)
BY_NAME = {task.name: task for task in TASKS}


def turned(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image under one of the eight symmetries of the square, and which: what the base learns beside the digits."""
    which = torch.randint(0, 8, (len(images),), generator=generator)
    every = torch.stack([torch.rot90(x, k, (-2, -1)) for x in (images, images.transpose(-2, -1)) for k in range(4)])
    return every[which, torch.arange(len(images))], which
