"""Small models, experts of them in files, and the same model with one expert applied, for tests of mixed batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tswitch_format as tsw
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import Job, run
from tswitch_format.torch.load import Loaded, SwitchTensors
from tswitch_format.torch.packed import PackedSwitch


def tuned(model: nn.Module, seed: int, scale: float = 0.05) -> nn.Module:
    """A copy with every float tensor changed."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return made


def pack_experts(model: nn.Module, folder: Path, count: int = 3, **options: Any) -> dict[str, Path]:
    """Files of experts, each of another density and form of factors."""
    forms = ({"knob_per": "row-col"}, {"knob_per": "row"}, {"knob_per": "tensor"})
    paths = {}
    for number in range(count):
        paths[f"task{number}"] = path = folder / f"task{number}.tsw"
        chosen = {"density": (0.3, 0.05, 0.6)[number % 3], **forms[number % 3], **options}
        tsw.pack(model, tuned(model, number + 1), path, **chosen)
    return paths


def load_expert(path: Path, device: str = "cpu") -> dict[str, Loaded]:
    """What a bank keeps of a file."""
    with SwitchTensors(path, device=device) as file:
        return file.load()


def applied(model: nn.Module, path: Path | None, coefficient: float = 1.0) -> nn.Module:
    """A copy with one expert applied for real."""
    made = copy.deepcopy(model).requires_grad_(False)
    if path is not None:
        tensors = made.state_dict()
        with SwitchTensors(path) as file:
            names = file.keys()
            for name in names:
                file.switch(name).apply_(tensors[name], coefficient)
    return made


def rows_alone(
    model: nn.Module, paths: Mapping[str, Path], tasks: Sequence[Any], call: Mapping[str, Tensor]
) -> list[Any]:
    """The outputs of each row run alone with its expert; a task is a name, None, or a pair with a coefficient."""
    found = []
    for row, task in enumerate(tasks):
        name, coefficient = task if isinstance(task, tuple) else (task, 1.0)
        alone = applied(model, paths[name] if name is not None else None, coefficient)
        with torch.no_grad():
            found.append(alone(**{key: value[row : row + 1] for key, value in call.items()}))
    return found


def switches_of(
    shape: tuple[int, int], folder: Path, count: int = 3, dtype: torch.dtype = torch.float32
) -> list[PackedSwitch]:
    """Packed switches of one matrix, each of another density and form of factors."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))
    found = []
    for path in pack_experts(model, folder, count).values():
        switch = load_expert(path)["weight"]
        assert isinstance(switch, PackedSwitch)
        found.append(switch)
    return found


def parts_of(switch: PackedSwitch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S, knob, r and c of a matrix's switch in f64, each read on its own."""
    rows, columns = switch.shape
    signs = torch.zeros(switch.elements, dtype=torch.int8)
    run([Job(Mode.SIGNS, signs, switch)])
    one = torch.ones((), dtype=torch.float64)
    r = one.expand(rows) if switch.rows is None else switch.rows.double()
    c = one.expand(columns) if switch.columns is None else switch.columns.double()
    return signs.view(rows, columns).double(), one * switch.knob, r, c


def switch_on(switch: PackedSwitch, device: torch.device) -> PackedSwitch:
    """The same on another device."""
    parts = {name: getattr(switch, name) for name in ("codes", "signs", "blocks", "rows", "columns")}
    return replace(switch, **{name: None if part is None else part.to(device) for name, part in parts.items()})
