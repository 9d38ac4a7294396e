"""Base and expert by name: what fits, what is refused by name, what is stored whole or removed, ties, types, NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from switch_models import Arrays, files_in, load, model, same, same_array, save, tuned

import tswitch_format as tsw


def misfits() -> dict[str, Arrays]:
    """Experts that do not fit `model()`, by the name of the tensor that does not."""
    base = model()
    expert = tuned(base)
    return {
        "added.weight": {**expert, "added.weight": np.ones((3, 2), np.float32)},
        "layer.bias": {**expert, "layer.bias": np.ones(25, np.float32)},
        "half": {name: array for name, array in expert.items() if name != "half"},
        "ids": {**expert, "ids": expert["ids"] + 1},
        "wide": {**expert, "wide": np.zeros((3, 4), np.int64)},
    }


@pytest.mark.parametrize("name", misfits())
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(tsw.CheckpointError, match=f"'{name}'.*--dense PATTERN or --on-mismatch dense"):
        tsw.pack(model(), misfits()[name], tmp_path / "x.tsw")
    assert not files_in(tmp_path)


def test_all_misfits_are_named_at_once_up_to_five(tmp_path: Path) -> None:
    base = {f"t{i}": np.zeros(3, np.float32) for i in range(7)}
    expert = {f"t{i}": np.zeros(4, np.float32) for i in range(7)}
    with pytest.raises(tsw.CheckpointError, match=r"'t0'.*'t1'.*'t2'.*'t3'.*'t4'.* and 2 more"):
        tsw.pack(base, expert, tmp_path / "x.tsw")


@pytest.mark.parametrize("name", misfits())
def test_on_mismatch_dense_gives_exactly_the_experts_tensors(tmp_path: Path, name: str) -> None:
    base, expert = model(), misfits()[name]
    result = tsw.pack(base, expert, tmp_path / "x.tsw", on_mismatch="dense")
    assert (result.dense, result.removed) == ((0, 1) if name == "half" else (1, 0))
    with tsw.open(tmp_path / "x.tsw") as file:
        assert file.switch(name).kind == ("removed" if name == "half" else "dense")
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    found = load(tmp_path / "out.safetensors")
    assert {n: (a.dtype, a.shape) for n, a in found.items()} == {n: (a.dtype, a.shape) for n, a in expert.items()}
    if name in expert:
        assert same_array(found[name], expert[name])
    assert same_array(found["ids"], expert["ids"])
    assert tsw.validate(tmp_path / "x.tsw", base=base).ok


@pytest.mark.parametrize("pattern", ["head.*", "*.weight", "head.weight"])
def test_a_dense_pattern_stores_whole_what_it_matches(tmp_path: Path, pattern: str) -> None:
    base = {**model(), "head.weight": np.ones((2, 3), np.float32)}
    expert = {**tuned(base), "head.weight": np.ones((5, 3), np.float32)}
    tsw.pack(base, expert, tmp_path / "x.tsw", dense=[pattern])
    with tsw.open(tmp_path / "x.tsw") as file:
        dense = {name for name in file.keys() if file.switch(name).kind == "dense"}  # noqa: SIM118 - no mapping
        assert dense == ({"head.weight", "layer.weight"} if pattern == "*.weight" else {"head.weight"})
        assert same_array(file.switch("head.weight").data(), expert["head.weight"])
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    found = load(tmp_path / "out.safetensors")
    assert all(same_array(found[name], expert[name]) for name in dense)


def test_a_dense_pattern_does_not_allow_other_misfits(tmp_path: Path) -> None:
    expert = misfits()["added.weight"]
    with pytest.raises(tsw.CheckpointError, match=r"'added\.weight' is in the expert only"):
        tsw.pack(model(), expert, tmp_path / "x.tsw", dense=["layer.*"])


def test_dense_everything_restores_the_expert_bit_for_bit(tmp_path: Path) -> None:
    base, expert = model(), {**misfits()["half"], "new": np.arange(4, dtype=np.uint8)}
    tsw.pack(base, expert, tmp_path / "x.tsw", dense=["*"], on_mismatch="dense")
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same(load(tmp_path / "out.safetensors"), expert)


def test_unchanged_tensors_have_no_entry(tmp_path: Path) -> None:
    base = model()
    expert = {**base, "half": tuned(base)["half"]}
    result = tsw.pack(base, expert, tmp_path / "x.tsw", dense=["wide"])
    assert (result.switches, result.dense, result.unchanged) == (1, 0, 4)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert file.keys() == ["half"]
        with pytest.raises(tsw.UnknownNameError, match="leaves this tensor as the base has it"):
            file.switch("wide")


# --- ties -----------------------------------------------------------------------------------------------------


def step(base: np.ndarray[Any, Any], size: float) -> np.ndarray[Any, Any]:
    """The base changed by +-size: a switch says that exactly."""
    signs = np.where(np.arange(base.size).reshape(base.shape) % 3 == 0, -1, 1)
    return (base + np.float32(size) * signs).astype(base.dtype)


def tied_base() -> Arrays:
    embedding = np.arange(12, dtype=np.float32).reshape(4, 3)
    return {"lm_head": embedding, "embed": embedding, "norm": np.ones(3, np.float32)}


def test_tied_tensors_are_stored_once_and_restored_under_both_names(tmp_path: Path) -> None:
    base = tied_base()
    changed = step(base["embed"], 0.5)
    expert = {"lm_head": changed, "embed": changed, "norm": base["norm"]}
    tsw.pack(base, expert, tmp_path / "x.tsw", density=1)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert dict(file.base.aliases) == {"lm_head": "embed"}
        assert file.base.keys() == ["embed", "norm"]
        assert file.keys() == ["embed"]
        assert file.switch("lm_head").name == "embed"
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same(load(tmp_path / "out.safetensors"), expert)


def test_ties_of_a_bin_file(tmp_path: Path) -> None:
    before = {name: torch.from_numpy(array) for name, array in tied_base().items()}
    before["lm_head"] = before["embed"]
    changed = torch.from_numpy(step(before["embed"].numpy(), 0.25))
    after = {"lm_head": changed, "embed": changed, "norm": before["norm"]}
    torch.save(before, tmp_path / "base.bin")
    torch.save(after, tmp_path / "expert.bin")
    tsw.pack(tmp_path / "base.bin", tmp_path / "expert.bin", tmp_path / "x.tsw", density=1)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert dict(file.base.aliases) == {"lm_head": "embed"}
    tsw.restore(tmp_path / "base.bin", tmp_path / "x.tsw", tmp_path / "out.safetensors")
    wanted = {name: tensor.numpy() for name, tensor in after.items()}
    assert same(load(tmp_path / "out.safetensors"), wanted)


def test_an_expert_may_untie(tmp_path: Path) -> None:
    base = tied_base()
    expert = {**base, "lm_head": step(base["embed"], 0.5), "embed": step(base["embed"], 0.25)}
    tsw.pack(base, expert, tmp_path / "x.tsw", density=1)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert not file.base.aliases
        assert file.keys() == ["embed", "lm_head"]
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same(load(tmp_path / "out.safetensors"), expert)


def test_an_expert_may_tie(tmp_path: Path) -> None:
    base = {name: array.copy() for name, array in tied_base().items()}
    base["lm_head"] += 2
    changed = step(base["embed"], 0.5)
    base["lm_head"] = step(changed, 2.0)  # so that both differences are of one size each
    expert = {**base, "lm_head": changed, "embed": changed}
    tsw.pack(base, expert, tmp_path / "x.tsw", density=1)
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same(load(tmp_path / "out.safetensors"), expert)


def test_a_base_may_lack_an_alias_as_safetensors_files_do(tmp_path: Path) -> None:
    base = tied_base()
    changed = step(base["embed"], 0.5)
    tsw.pack(base, {**base, "embed": changed, "lm_head": changed}, tmp_path / "x.tsw", density=1)
    once = {"embed": base["embed"], "norm": base["norm"]}
    tsw.restore(once, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same_array(load(tmp_path / "out.safetensors")["embed"], changed)


@pytest.mark.parametrize(
    "other", [np.zeros((4, 3), np.float32), np.zeros((4, 4), np.float32), np.zeros((4, 3), np.int32)]
)
def test_a_base_with_something_else_under_an_alias_is_another_base(tmp_path: Path, other: np.ndarray[Any, Any]) -> None:
    base = tied_base()
    changed = step(base["embed"], 0.5)
    tsw.pack(base, {**base, "embed": changed, "lm_head": changed}, tmp_path / "x.tsw", density=1)
    copied = {**base, "lm_head": base["lm_head"].copy()}
    tsw.restore(copied, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same_array(load(tmp_path / "out.safetensors")["lm_head"], changed)
    with pytest.raises(tsw.BaseMismatchError, match="'lm_head'"):
        tsw.restore({**base, "lm_head": other}, tmp_path / "x.tsw", tmp_path / "wrong.safetensors")
    assert not (tmp_path / "wrong.safetensors").exists()


# --- types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["float16", "float32", "float64"])
def test_an_expert_of_another_type_is_restored_in_its_type(tmp_path: Path, to: str) -> None:
    base = {name: array for name, array in model().items() if array.dtype.kind == "f"}
    expert = {name: array.astype(to) for name, array in base.items()}
    expert["layer.bias"] = step(base["layer.bias"], 0.5).astype(to)
    tsw.pack(base, expert, tmp_path / "x.tsw", density=1)
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    found = load(tmp_path / "out.safetensors")
    assert {array.dtype.name for array in found.values()} == {to}
    assert all(array.shape == base[name].shape for name, array in found.items())


def test_apply_into_an_array_of_the_experts_type(tmp_path: Path) -> None:
    base = {"w": np.zeros(6, np.float16)}
    expert = {"w": torch.tensor([1, 0, 0, 0, 0, -1], dtype=torch.bfloat16)}
    tsw.pack(base, expert, tmp_path / "x.tsw", density=1)
    wanted = np.array([0x3F80, 0, 0, 0, 0, 0xBF80], np.uint16)
    with tsw.open(tmp_path / "x.tsw") as file:
        switch = file.switch("w")
        assert same_array(switch.apply(base["w"]), wanted)
        out = np.empty(6, np.uint16)
        assert switch.apply(base["w"], out=out) is out
        assert same_array(out, wanted)
        for wrong in (np.empty(6, np.float32), base["w"].copy()):  # float16 has the size of BF16, but other bits
            with pytest.raises(tsw.OptionError, match="expected a writable out of BF16"):
                switch.apply(base["w"], out=wrong)


def test_apply_in_place_through_a_view_that_is_not_contiguous(tmp_path: Path) -> None:
    base = {"w": np.zeros((3, 4), np.float32)}
    expert = {"w": step(base["w"], 0.5)}
    tsw.pack(base, expert, tmp_path / "x.tsw", density=1)
    room = np.zeros((4, 6), np.float32)
    view = room[:, ::2].T  # 3 x 4
    with tsw.open(tmp_path / "x.tsw") as file:
        assert file.switch("w").apply(view, out=view) is view
    assert np.array_equal(view, expert["w"])
    assert not room[:, 1::2].any()


# --- NaN and infinity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["base", "expert"])
def test_not_finite_is_refused_by_name(tmp_path: Path, select: str, value: float, side: str) -> None:
    base = model()
    expert = tuned(base)
    (base if side == "base" else expert)["half"][2, 3] = value
    with pytest.raises(tsw.NonFiniteError, match=r"'half'.*--nonfinite dense") as error:
        tsw.pack(base, expert, tmp_path / "x.tsw", select=select)
    assert error.value.tensor == "half"
    assert not files_in(tmp_path)


@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_can_be_stored_whole(tmp_path: Path, select: str, value: float) -> None:
    base = model()
    expert = tuned(base)
    expert["half"][2, 3] = value
    tsw.pack(base, expert, tmp_path / "x.tsw", select=select, nonfinite="dense", density=0.5)
    with tsw.open(tmp_path / "x.tsw") as file:
        kinds = {name: file.switch(name).kind for name in file.keys()}  # noqa: SIM118
    assert kinds == {"half": "dense", "layer.bias": "ternary", "layer.weight": "ternary", "wide": "ternary"}
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same_array(load(tmp_path / "out.safetensors")["half"], expert["half"])


def test_a_difference_beyond_the_range_is_refused(tmp_path: Path) -> None:
    base, expert = {"w": np.full(3, -3e38, np.float32)}, {"w": np.full(3, 3e38, np.float32)}
    with pytest.raises(tsw.NonFiniteError, match="'w'"):
        tsw.pack(base, expert, tmp_path / "x.tsw")
    tsw.pack(base, expert, tmp_path / "x.tsw", nonfinite="dense")
    tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same(load(tmp_path / "out.safetensors"), expert)


def test_tensors_stored_whole_for_nan_do_not_count_for_the_global_density(tmp_path: Path) -> None:
    base = {"a": np.zeros(100, np.float32), "b": np.zeros(300, np.float32)}
    expert = {"a": np.arange(100, dtype=np.float32), "b": np.full(300, np.nan, np.float32)}
    result = tsw.pack(base, expert, tmp_path / "x.tsw", select="global", density=0.1, nonfinite="dense")
    assert result.density == pytest.approx(0.1)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert file.switch("a").active == 10


def test_a_knob_beyond_binary32_is_refused_by_name(tmp_path: Path) -> None:
    base, expert = {"w": np.zeros(3)}, {"w": np.full(3, 1e200)}
    with pytest.raises(tsw.NonFiniteError, match=r"'w'.*32-bit knob"):
        tsw.pack(base, expert, tmp_path / "x.tsw")
    assert not files_in(tmp_path)


# --- what may stand for a checkpoint --------------------------------------------------------------------------


def test_paths_mappings_and_modules_give_the_same_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before, after = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)
    arrays = [{n: t.detach().numpy() for n, t in m.state_dict().items()} for m in (before, after)]
    save(tmp_path / "base.safetensors", arrays[0])
    save(tmp_path / "expert.safetensors", arrays[1])
    made = []
    sources: list[tuple[Any, Any]] = [
        (before, after),
        (before.state_dict(), after.state_dict()),
        (arrays[0], arrays[1]),
        (tmp_path / "base.safetensors", str(tmp_path / "expert.safetensors")),
    ]
    for number, (base, expert) in enumerate(sources):
        tsw.pack(base, expert, tmp_path / f"{number}.tsw")
        made.append((tmp_path / f"{number}.tsw").read_bytes())
    assert len(set(made)) == 1
