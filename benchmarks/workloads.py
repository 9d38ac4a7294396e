"""Models and files that benchmarks share: random bases and experts, as arrays, safetensors and .tsw files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import tswitch_format as tsw
from benchmarks import common

Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, NDArray[np.float32]]

# How benchmarks pack whose figures do not depend on the rule: by magnitude, which is quick.
QUICK: dict[str, Any] = {"select": "tensor", "knob_dtype": "u8"}
DENSITY = 0.05


def shapes_100m(scale: float = 1.0) -> Shapes:
    """100.3 M parameters: an embedding and ten transformer MLPs; below scale 1 fewer rows and layers."""
    found: Shapes = {"embed.weight": (max(100, round(16000 * scale)), 1024)}
    for layer in range(max(1, round(10 * scale))):
        found[f"layers.{layer}.up.weight"] = (4096, 1024)
        found[f"layers.{layer}.down.weight"] = (1024, 4096)
    return found


def shapes_small(scale: float = 1.0) -> Shapes:
    """10,000 tensors of 32 x 32."""
    return {f"layers.{n}.weight": (32, 32) for n in range(max(100, round(10_000 * scale)))}


def shapes_24m(scale: float = 1.0) -> Shapes:
    """23.6 M parameters: ten square matrices with a vector each."""
    found: Shapes = {}
    for layer in range(max(1, round(10 * scale))):
        found[f"layers.{layer}.weight"], found[f"layers.{layer}.bias"] = (1536, 1536), (1536,)
    return found


def random_base(shapes: Shapes, random: np.random.Generator) -> Arrays:
    """Normal weights."""
    return {name: random.standard_normal(shape, np.float32) * np.float32(0.02) for name, shape in shapes.items()}


def random_expert(base: Arrays, random: np.random.Generator) -> Arrays:
    """The base plus normal noise of a tenth of its size."""
    return {
        name: array + random.standard_normal(array.shape, np.float32) * np.float32(0.002)
        for name, array in base.items()
    }


@dataclass(frozen=True, slots=True)
class Workload:
    """A base, an expert of it in full precision, and .tsw files of one or several tasks, in both profiles.

    `name`: a tensor in the middle; `task`: the last one. `last`: that expert as arrays.
    """

    title: str
    base: Arrays
    last: Arrays
    full: Path
    archive: Path
    mapped: Path
    tasks: list[str]
    name: str

    @property
    def task(self) -> str:
        """The last task, which `full` and `last` hold."""
        return self.tasks[-1]

    @property
    def parameters(self) -> int:
        """Elements of the base."""
        return sum(array.size for array in self.base.values())

    @property
    def rows(self) -> slice:
        """1 % of the rows of tensor `name`, at least one, from the middle."""
        count = self.base[self.name].shape[0]
        return slice(count // 2, count // 2 + max(1, count // 100))

    def files(self) -> list[Path]:
        """All of them."""
        return [self.full, self.archive, self.mapped]


def pack_tasks(
    folder: Path, base: Arrays, tasks: Sequence[str], random: np.random.Generator
) -> tuple[list[Path], Arrays]:
    """A file of one random expert for each task, and the last expert."""
    expert = base
    paths = [folder / f"{number}.tsw" for number in range(len(tasks))]
    for task, path in zip(tasks, paths, strict=True):
        expert = random_expert(base, random)
        tsw.pack(base, expert, path, task=task, density=DENSITY, **QUICK)
    return paths, expert


def make(folder: Path, title: str, shapes: Shapes, *, tasks: int = 1, seed: int = 0) -> Workload:
    """Draw and write a workload; its files are in the page cache afterwards."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    base = random_base(shapes, random)
    names = [f"task {number}" for number in range(tasks)]
    paths, expert = pack_tasks(folder, base, names, random)
    full, archive, mapped = folder / "full.safetensors", folder / "archive.tsw", folder / "mapped.tsw"
    save_file(expert, full)
    if tasks == 1:
        paths[0].rename(archive)
    else:
        tsw.bundle(paths, archive)
    tsw.repack(archive, mapped, profile="mapped")
    largest = max(math.prod(shape) for shape in shapes.values())
    largest_names = [name for name, shape in shapes.items() if math.prod(shape) == largest]
    made = Workload(title, base, expert, full, archive, mapped, names, largest_names[len(largest_names) // 2])
    common.read_once(made.files())
    return made
