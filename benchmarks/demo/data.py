"""The digits that scikit-learn carries, split once, and the tasks that the demo makes of them.

Nothing is downloaded: `sklearn.datasets.load_digits` reads 1797 grey 8x8 images from the installed package. One seeded,
stratified permutation cuts them into three parts:

* `train` (1197 images): what the base and every expert is trained on,
* `validation` (200 images): what the training settings of `train.py` were chosen on, unused when the demo runs,
* `test` (400 images): what the printed accuracies are measured on, and used for nothing else.

A task is a fixed change of the image and a fixed change of the label, applied to the same images. A part keeps its
images under every task, so no expert has seen a test image under another transform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

SIDE = 8
CLASSES = 10
TEST_IMAGES = 400
VALIDATION_IMAGES = 200


@dataclass(frozen=True)
class Part:
    """Images as f32 [n, 8, 8] between 0 (paper) and 1 (ink), and the digits they show as i64 [n]."""

    images: Tensor
    digits: Tensor


@dataclass(frozen=True)
class Digits:
    """The three parts of the data."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Task:
    """A task: its name (also its file's name), what it is in words, and what it makes of images and of digits."""

    name: str
    about: str
    images: Callable[[Tensor], Tensor]
    labels: Callable[[Tensor], Tensor]

    def of(self, part: Part) -> tuple[Tensor, Tensor]:
        """Inputs and labels of this task for a part of the data."""
        return self.images(part.images).contiguous(), self.labels(part.digits)


def load(seed: int = 0) -> Digits:
    """Read and split the digits. Each part has the same share of every digit, to within one image a class."""
    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16)
    digits = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    order = stratified(digits.numpy(), seed)
    test, validation, train = torch.tensor_split(order, (TEST_IMAGES, TEST_IMAGES + VALIDATION_IMAGES))
    return Digits(*(Part(images[rows], digits[rows]) for rows in (train, validation, test)))


def stratified(labels: np.ndarray[Any, Any], seed: int) -> Tensor:
    """An order of which any run holds the classes in proportion: the samples of each class are numbered in random order, then
    all are sorted by how far along their class they are."""
    rng = np.random.default_rng([seed, 0xD161])
    along = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        along[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(np.argsort(along, kind="stable"))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to one pixel each way (paper moves in) and add a little noise; for training only.

    It is applied before a task's own transform, so every task sees the same kind of variation.
    """
    count = len(images)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    top, left = torch.randint(0, 3, (2, count, 1, 1), generator=generator)
    rows = top + torch.arange(SIDE)[:, None]
    columns = left + torch.arange(SIDE)
    shifted = padded[torch.arange(count)[:, None, None], rows, columns]
    return (shifted + 0.05 * torch.randn(shifted.shape, generator=generator)).clamp(0, 1)


def _same(x: Tensor) -> Tensor:
    return x


PLAIN = Task("base", "upright digits, their own labels", _same, _same)

TASKS = (
    Task("rotated", "turned left by 90 degrees", lambda x: torch.rot90(x, 1, (-2, -1)), _same),
    Task("mirrored", "mirrored left to right", lambda x: x.flip(-1), _same),
    Task("flipped", "upside down", lambda x: x.flip(-2), _same),
    Task("relabelled", "label (3 d + 1) mod 10 for digit d", _same, lambda d: (3 * d + 1) % CLASSES),
)
