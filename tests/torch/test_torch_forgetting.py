"""Forgetting: a task with a negative coefficient is base - c * switch, rounded as spec section 10 says, everywhere the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bank_models import FLOATS, Module, Tensors, bits, bits_of, copies, tensors, tuned
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

import tswitch_format as tsw
from tswitch_format.torch import SwitchBank, apply_
from tswitch_tools.cli import tsw as command


def forgotten(base: Tensors, path: Path, coefficient: float) -> Tensors:
    """By the text: v = knob * row * column * c, rounded after each product; w - v where the sign is 1, else w + v; one cast."""
    found = copies(base)
    with tsw.open(path) as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            switch = file.switch(name)
            wide = np.float64 if base[name].dtype == torch.float64 else np.float32
            shape = switch.shape
            matrix = (shape[0], -1) if len(shape) > 1 else (1, -1)
            values = np.full(shape, switch.knob, wide).reshape(matrix)
            if switch.row_factors is not None:
                values = values * switch.row_factors.astype(wide)[:, None]
            if switch.column_factors is not None:
                values = values * switch.column_factors.astype(wide)
            values = (values * wide(coefficient)).reshape(shape)
            old = base[name].to(torch.float64 if wide is np.float64 else torch.float32).numpy()
            signs = switch.sign()
            new = np.where(signs > 0, old + values, old - values)
            rounded = torch.from_numpy(np.asarray(new, wide).reshape(shape)).to(base[name].dtype)
            found[name] = torch.where(torch.from_numpy(signs) != 0, rounded, base[name])
    return found


@pytest.mark.parametrize("coefficient", [-0.5, -1.0, -0.3])
@pytest.mark.parametrize("knob", ["projection", "mean"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_forgetting_is_the_same_bits_everywhere(tmp_path: Path, dtype: str, knob: str, coefficient: float) -> None:
    base = tensors(FLOATS[dtype])
    path = tmp_path / "code.tsw"
    tsw.pack(base, tuned(base), path, task="code", density=0.3, knob=knob)
    wanted = bits(forgotten(base, path, coefficient))
    assert wanted != bits(base)

    save_file(base, tmp_path / "base.safetensors")
    task = ["--task", f"code={coefficient}"]
    out = str(tmp_path / "out.safetensors")
    done = CliRunner().invoke(command, ["restore", str(tmp_path / "base.safetensors"), str(path), "-o", out, *task])
    assert done.exit_code == 0, done.stderr
    assert bits(load_file(out)) == wanted

    model = Module(base)
    bank = SwitchBank(model)
    bank.add("code", path)
    bank.activate({"code": coefficient})
    assert bits(model) == wanted
    bank.deactivate()
    assert bits(model) == bits(base)

    apply_(model, path, coefficient=coefficient)
    assert bits(model) == wanted


def test_forgetting_moves_away_from_the_expert_by_half_of_the_switch(tmp_path: Path) -> None:
    """In numbers that are exact: the base 8, the expert 10 and 6 in places, the knob 2."""
    base = {"w": torch.full((16,), 8.0)}
    step = torch.zeros(16)
    step[3], step[7] = 2.0, -2.0
    path = tmp_path / "code.tsw"
    tsw.pack(base, {"w": base["w"] + step}, path, task="code")
    model = Module(base)
    bank = SwitchBank(model)
    bank.add("code", path)
    with bank.active({"code": -0.5}):
        weight: Tensor = model.state_dict()["w"]
        assert bits_of(weight) == bits_of(base["w"] - 0.5 * step)
    tsw.restore(base, path, tmp_path / "out.safetensors", tasks={"code": -0.5})
    assert bits_of(load_file(tmp_path / "out.safetensors")["w"]) == bits_of(base["w"] - 0.5 * step)
