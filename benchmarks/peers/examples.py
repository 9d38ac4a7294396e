"""What the peers are given to keep: a base, a full expert of it, and a ternary switch between them.

Planes          the switch of one tensor: positions, signs, a knob
Example         all of it
random_planes   active elements and signs by chance, at a density
real_expert     of `make paper`: the true difference, and the planes that `tsw pack` chooses by default
every_sign      of the same: a sign for every element, as BitDelta has it
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

import tswitch_format as tsw
from benchmarks.paper.train import train_base, train_expert
from benchmarks.size import entropy_bits
from tswitch_format import _layout as lay

SHAPES = {f"layers.{layer}.weight": (2048, 1024) for layer in range(4)}  # 8.4 M elements
KNOB = 2.0**-8  # bf16 holds it, so that no peer rounds
TASK = "rotated"

Weights = Mapping[str, Tensor]  # f32, contiguous, on the CPU, by name


@dataclass(frozen=True, slots=True)
class Planes:
    """The switch of one tensor: `positions` i64, ascending, in the tensor flattened in C order; `negative` bool, for each
    of them; `knob`, which is added or subtracted there."""

    positions: NDArray[np.int64]
    negative: NDArray[np.bool_]
    knob: float

    @property
    def values(self) -> NDArray[np.float32]:
        """What is added at each position."""
        return np.where(self.negative, np.float32(-self.knob), np.float32(self.knob))


@dataclass(frozen=True, slots=True)
class Example:
    """`base`, `expert` and `difference` have the same tensors, `planes` some of them. In f32 `expert` is base + difference,
    to the bit where `exact`, else within rounding. `packs`: whether `tsw pack` chose the planes."""

    name: str
    base: Weights
    expert: Weights
    difference: Weights
    planes: Mapping[str, Planes]
    exact: bool = True
    packs: bool = False

    @property
    def elements(self) -> int:
        """Of all tensors."""
        return sum(tensor.numel() for tensor in self.base.values())

    @property
    def density(self) -> float:
        """Share of the elements of tensors with planes that are active."""
        return sum(p.positions.size for p in self.planes.values()) / sum(self.base[n].numel() for n in self.planes)

    @property
    def entropy_bytes(self) -> float:
        """What masks and signs must take where they are random: H(p) + p bits an element of each tensor with planes."""
        sizes = {name: self.base[name].numel() for name in self.planes}
        return sum(n * entropy_bits(self.planes[name].positions.size / n) / 8 for name, n in sizes.items())

    def switched(self) -> dict[str, Tensor]:
        """Copies of the base with the planes added."""
        found = {name: tensor.clone() for name, tensor in self.base.items()}
        for name, planes in self.planes.items():
            found[name].numpy().reshape(-1)[planes.positions] += planes.values
        return found

    def save_switch(self, path: Path, profile: str = "archive") -> None:
        """Write the planes, one knob a tensor, as a .tsw file."""
        switches = {name: _given(planes, tuple(self.base[name].shape)) for name, planes in self.planes.items()}
        base = {name: tensor.numpy() for name, tensor in self.base.items()}
        tsw.build(base, path, [tsw.GivenTask("task", switches)], profile=profile)


def _given(planes: Planes, shape: tuple[int, ...]) -> tsw.GivenSwitch:
    def chunk(number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        first, last = np.searchsorted(planes.positions, (number * lay.CHUNK, (number + 1) * lay.CHUNK))
        return planes.positions[first:last] - number * lay.CHUNK, planes.negative[first:last]

    return tsw.GivenSwitch(planes.knob, chunk, shape=shape)


def random_planes(density: float, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Example:
    """Each element is active with this chance and negative with chance 1/2; the full expert is the base with that."""
    random = np.random.default_rng([seed, round(1e6 * density)])
    base: dict[str, Tensor] = {}
    planes: dict[str, Planes] = {}
    difference: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        base[name] = torch.from_numpy(random.standard_normal(shape, np.float32) * np.float32(0.02))
        positions = np.flatnonzero(random.random(math.prod(shape), np.float32) < density)
        planes[name] = Planes(positions, random.random(positions.size, np.float32) < 0.5, KNOB)
        dense = np.zeros(math.prod(shape), np.float32)
        dense[positions] = planes[name].values
        difference[name] = torch.from_numpy(dense.reshape(shape))
    expert = {name: tensor + difference[name] for name, tensor in base.items()}
    return Example(f"random planes, density {100 * density:g} %", base, expert, difference, planes)


def real_expert(folder: Path) -> tuple[Example, bool]:
    """The expert of the task `TASK` in `folder`, seed 0 of `make paper`, and whether base or expert had to be trained for it
    now. The planes are those of the matrices; what else the packed file has (factors, vectors) is no peer's."""
    trained = False
    paths = {name: folder / f"{name}.safetensors" for name in ("base", TASK)}
    folder.mkdir(parents=True, exist_ok=True)
    if not paths["base"].exists():
        train_base(folder, 0)
        trained = True
    if trained or not paths[TASK].exists():
        train_expert(folder, 0, TASK)
        trained = True
    base, expert = (load_file(path) for path in paths.values())
    difference = {name: expert[name] - tensor for name, tensor in base.items()}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        packed = Path(temporary) / "packed.tsw"
        tsw.pack(base, expert, packed)
        planes = {name: found for name, found in planes_of(packed).items() if base[name].dim() == 2}
    name = f"real expert ({TASK}), planes of tsw pack"
    return Example(name, base, expert, difference, planes, exact=False, packs=True), trained


def planes_of(path: Path) -> dict[str, Planes]:
    """Positions, signs and knobs of the only task of a .tsw file."""
    found: dict[str, Planes] = {}
    with tsw.open(path) as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            switch = file.switch(name)
            if switch.kind == "ternary":
                positions = switch.indices()
                found[name] = Planes(positions, switch.sign().reshape(-1)[positions] < 0, switch.knob)
    return found


def every_sign(real: Example) -> Example:
    """Of the matrices that BitDelta's layout can hold: every element is active, the knob is the mean magnitude."""
    planes: dict[str, Planes] = {}
    for name, tensor in real.difference.items():
        if tensor.dim() == 2 and tensor.shape[1] % 32 == 0 and name.endswith(".weight"):
            flat = tensor.numpy().reshape(-1)
            planes[name] = Planes(np.arange(flat.size), flat < 0, float(np.float32(np.abs(flat).mean())))
    name = f"real expert ({TASK}), a sign for every element"
    return Example(name, real.base, real.expert, real.difference, planes, exact=False)
