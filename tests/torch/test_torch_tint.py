"""SwitchBank with tables of coefficients: the bits of `tsw.restore`, back to the base's own bits, and nothing changed where
something is wrong."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_interrupts import Interrupts, State, interrupted_at_random, state
from bank_models import (
    EXPERTS,
    FLOATS,
    Bits,
    Faults,
    InjectedError,
    Module,
    Tensors,
    TiedNet,
    bits,
    bits_of,
    copies,
    pack,
    packed,
    places,
    restored_bits,
    tensors,
    tuned,
)
from safetensors.torch import load_file

import tswitch_format as tsw
from tswitch_format.checkpoint import ArrayCheckpoint
from tswitch_format.torch import SwitchBank, Tint, kernels
from tswitch_format.torch.checkpoint import TensorCheckpoint
from tswitch_format.torch.kernels import reference

COLUMNS = ("law", "math")
ROWS = ("matrix", "late", "cube", "scalar", "empty")
VALUES = np.array([[0.3, -0.25], [0.0, 1.0], [2.5, -0.0], [1.0, 0.7], [1, 1]], np.float32)
CLAMPS = [None, (0.0, 1.0), (0.25, 0.5)]
HEADS = {name: np.full((3, 4), number, np.float32) for number, name in enumerate(EXPERTS)}


@pytest.fixture(params=["fastest", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(kernels, "_backend", lambda kind: reference)
    found: str = request.param
    return found


def tinted(path: Path, out: Path, *, heads: Mapping[str, Any] = HEADS, **options: Any) -> Path:
    """A file with a table of the columns, and a head of each task."""
    said: dict[str, Any] = {"values": VALUES, "rows": ROWS, "tasks": COLUMNS, **options}
    layers = {name: {"head": (ArrayCheckpoint({"head": head}), "head")} for name, head in heads.items()}
    return tsw.add_table(path, out, "tinting", layers=layers, **said)


def table_of(path: Path) -> tsw.CoefficientTable:
    with tsw.open(path) as file:
        return file.tables["tinting"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three experts with heads and a table without a clamp, by type of the base."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in FLOATS}
    return {
        kind: tinted(packed(tensors(dtype), folders[kind])["all"], folders[kind] / "tinted.tsw")
        for kind, dtype in FLOATS.items()
    }


def headed(base: Tensors) -> Tensors:
    """A model of the base, with a head of its own."""
    return {**copies(base), "head": torch.full((3, 4), -7.0)}


def filled(model: Any, path: Path) -> SwitchBank:
    bank = SwitchBank(model)
    for name in EXPERTS:
        bank.add(name, path)
    return bank


def by_restore(base: Any, path: Path, layers: str | None = None) -> Bits:
    out = path.parent / "out.safetensors"
    tsw.restore(base, path, out, table="tinting", layers=layers, threads=1)
    found = load_file(out)
    out.unlink()
    return bits(found)


# --- the bits of tsw.restore -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FLOATS)
def test_weights_are_those_that_restore_writes(files: dict[str, Path], kind: str, tmp_path: Path, backend: str) -> None:
    base = tensors(FLOATS[kind])
    model = headed(base)
    at, before = places(model), bits(model)
    bank = filled(model, files[kind])
    assert bits(model) == before
    for number, clamp in enumerate(CLAMPS):
        path = tinted(files[kind], tmp_path / f"{number}.tsw", heads={}, clamp=clamp)
        for layers in EXPERTS:
            tint = Tint(table_of(path), layers)
            bank.activate(tint)
            assert bits(model) == by_restore(base, path, layers), (clamp, layers)
            assert bank.current is tint
    bank.deactivate()
    assert bits(model) == before and places(model) == at
    assert bank.current == {}


def test_equal_layers_need_no_name(tmp_path: Path, backend: str) -> None:
    base = tensors()
    path = tinted(packed(base, tmp_path)["all"], tmp_path / "t.tsw", heads={"law": HEADS["law"], "math": HEADS["law"]})
    model = headed(base)
    bank = filled(model, path)
    bank.activate(Tint(table_of(path)))
    assert bits(model) == by_restore(base, path)


def test_modules_and_tied_weights(tmp_path: Path, backend: str) -> None:
    """The file knows a tied weight by one name, the model lists it under another."""
    base = TiedNet()
    found = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    found["head.weight"] = found["embed.weight"]
    names = ("embed.weight", "middle.weight", "middle.bias")
    for seed, name in enumerate(EXPERTS, 1):
        expert = tuned(found, seed, only=names)
        expert["head.weight"] = expert["embed.weight"]
        pack(found, expert, tmp_path / f"{name}.tsw")
    path = tsw.bundle([tmp_path / f"{name}.tsw" for name in EXPERTS], tmp_path / "all.tsw")
    rows = ("head.weight", "middle.weight")
    path = tinted(path, tmp_path / "t.tsw", heads={}, rows=rows, values=VALUES[:2])
    module = TiedNet()
    bank = filled(module, path)
    before = bits(module)
    bank.activate(Tint(table_of(path)))
    wanted = by_restore(found, path)
    assert bits_of(module.embed.weight) == bits_of(module.head.weight) != before["embed.weight"]
    assert {name: bits(module)[name] for name in names} == {name: wanted[name] for name in names}
    assert bits(module)["middle.bias"] == before["middle.bias"]  # no row
    bank.deactivate()
    assert bits(module) == before
    with pytest.raises(tsw.OptionError, match="tint: expected a CoefficientTable, found str; open"):
        Tint("tinting")  # type: ignore[arg-type]


def test_a_base_of_a_module_with_buffers(tmp_path: Path) -> None:
    base = tensors()
    path = tinted(packed(base, tmp_path)["all"], tmp_path / "t.tsw", heads={}, clamp=(0, 1))
    module = Module(base)
    bank = filled(module, path)
    with bank.active(Tint(table_of(path))):
        assert bits(module) == by_restore(base, path)
    assert bits(module) == bits(base)


def test_a_table_that_was_trained_in_memory(files: dict[str, Path], tmp_path: Path) -> None:
    """No file is needed to try coefficients."""
    base = tensors()
    model = headed(base)
    bank = filled(model, files["f32"])
    for step in range(3):
        values = VALUES + np.float32(step)
        bank.activate(Tint(tsw.CoefficientTable("try", values, ROWS, COLUMNS, (0, 1)), "code"))
        path = tinted(files["f32"], tmp_path / f"{step}.tsw", heads={}, values=values, clamp=(0, 1))
        assert bits(model) == by_restore(base, path, "code")


# --- to and fro ------------------------------------------------------------------------------------------------


def test_blocks_return_to_tables_and_from_them(files: dict[str, Path]) -> None:
    base = tensors()
    model = headed(base)
    bank = filled(model, files["f32"])
    before = bits(model)
    one, other = (Tint(table_of(files["f32"]), layers) for layers in ("law", "math"))
    with bank.active(one):
        of_one = bits(model)
        with bank.active({"math": 0.5}):
            assert bits(model)["matrix"] == restored_bits(base, files["f32"], {"math": 0.5})["matrix"]
            with bank.active(other):
                of_other = bits(model)
                assert of_other != of_one and bank.current is other
            assert bank.current == {"math": 0.5}
            with pytest.raises(tsw.OptionError, match="'law' is active, or a block returns to it"):
                bank.remove("law")
        assert bank.current is one and bits(model) == of_one
        shown = "active Tint(table=<CoefficientTable 'tinting' 5 tensors, tasks ['law', 'math']>, layers='law')>"
        assert shown in repr(bank)
        bank.activate(other)
        bank.activate(one)
        assert bits(model) == of_one
        with pytest.raises(tsw.OptionError, match="bank: law, math is active; deactivate"):
            bank.release()
    assert bits(model) == before
    bank.remove("law")
    with pytest.raises(tsw.UnknownNameError, match="no expert named 'law' among 2"):
        bank.activate(one)
    assert bits(model) == before


def test_an_active_table_is_not_made_again(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = headed(tensors())
    bank = filled(model, files["f32"])
    table = table_of(files["f32"])
    bank.activate(Tint(table, "law"))
    monkeypatch.setattr("tswitch_format.torch.bank.Activation", None)
    bank.activate(Tint(table, "law"))
    with torch.no_grad():
        model["late"].add_(1)
    with pytest.raises(tsw.OptionError, match="'late' was moved or changed by something else"):
        bank.activate(Tint(table, "law"))


def test_what_something_else_changed_is_refused(files: dict[str, Path]) -> None:
    model = headed(tensors())
    bank = filled(model, files["f32"])
    with torch.no_grad():
        model["head"].add_(1)
    before = bits(model)
    with pytest.raises(tsw.OptionError, match="'head' was moved or changed by something else"):
        bank.activate(Tint(table_of(files["f32"]), "code"))
    assert bits(model) == before and bank.current == {}


# --- what is wrong ---------------------------------------------------------------------------------------------


def test_layers_that_differ_are_refused_where_nobody_says_whose(files: dict[str, Path]) -> None:
    model = headed(tensors())
    bank = filled(model, files["f32"])
    before = bits(model)
    with pytest.raises(tsw.OptionError, match=r"'head': experts 'law' and 'math' .*say whose layers count \[TSW-903\]"):
        bank.activate(Tint(table_of(files["f32"])))
    assert bits(model) == before


def test_a_weight_that_one_expert_replaces_and_others_switch(tmp_path: Path) -> None:
    """TSW-903 where they have coefficients; not where these are 0, nor where the layers are another's."""
    base = tensors()
    for seed, name in enumerate(EXPERTS, 1):
        pack(base, tuned(base, seed), tmp_path / f"{name}.tsw", dense=["late"] if name == "law" else [])
    path = tsw.bundle([tmp_path / f"{name}.tsw" for name in EXPERTS], tmp_path / "all.tsw")
    for number, (row, layers, refused) in enumerate(
        (([9, 1], "law", True), ([9, 0], "law", False), ([9, 1], "code", False), ([9, 1], "math", False))
    ):
        out = tinted(path, tmp_path / f"{number}.tsw", heads={}, rows=["late"], values=np.array([row], np.float32))
        model = copies(base)
        bank = filled(model, out)
        if refused:
            with pytest.raises(tsw.OptionError, match=r"'late'.*TSW-903"):
                bank.activate(Tint(table_of(out), layers))
            with pytest.raises(tsw.OptionError, match=r"'late'.*TSW-903"):
                by_restore(base, out, layers)
            assert bits(model) == bits(base)
        else:
            bank.activate(Tint(table_of(out), layers))
            assert bits(model) == by_restore(base, out, layers)


def untied(folder: Path, changed: Mapping[str, str], **options: Any) -> tuple[Tensors, Path]:
    """A base whose `tail` is tied to `late`, and experts that change `late` and `matrix`, store `late` whole, or leave it; but
    for `math`, each gives `tail` a content of its own."""
    base = tensors()
    base["tail"] = base["late"]
    paths = []
    for seed, (name, late) in enumerate(changed.items(), 1):
        expert = tuned(base, seed, only=["matrix"] if late == "kept" else ["late", "matrix"])
        expert["tail"] = expert["late"]
        whole = ["late"] if late == "whole" else []
        paths.append(pack(base, expert, folder / f"{name}.tsw", dense=whole))
    path = tsw.bundle(paths, folder / "all.tsw")
    tails = {name: {"tail": torch.full((12, 9), len(name) / 3)} for name in changed if name != "math"}
    layers = {name: {"tail": (TensorCheckpoint(tail, location=name), "tail")} for name, tail in tails.items()}
    said: dict[str, Any] = {"rows": ["tail", "matrix"], "tasks": list(changed), "layers": layers, **options}
    return base, tsw.add_table(path, folder / "t.tsw", "tinting", **said)


@pytest.mark.parametrize("clamp", [None, (0.25, 0.5)])
def test_an_alias_is_a_name_of_its_own_where_its_entry_counts(tmp_path: Path, clamp: Any, backend: str) -> None:
    """Entries of its target act on it where nobody's entry for it counts (spec section 10)."""
    values = np.array([[0.3, 1, -2], [0.5, 0.25, 0.75]], np.float32)
    changed = {"math": "switched", "code": "kept", "science": "switched"}
    base, path = untied(tmp_path, changed, values=values, clamp=clamp)
    model = copies(base)  # where the alias is a tensor of its own
    before = bits(model)
    bank = SwitchBank(model)
    for name in changed:
        bank.add(name, path)
    found = {}
    for layers in changed:
        bank.activate(Tint(table_of(path), layers))
        found[layers] = bits(model)
        assert found[layers] == by_restore(copies(base), path, layers), layers
    assert found["math"]["tail"] == found["math"]["late"]  # nobody's own: what both that switch it make of it
    assert len({made["tail"] for made in found.values()}) == 3
    assert len({made["late"] for made in found.values()}) == 1
    with pytest.raises(tsw.OptionError, match=r"'tail'.*'code' and 'science'.*TSW-903"):
        bank.activate(Tint(table_of(path)))
    for chosen in ({"math": 0.5, "code": 0.25}, {"science": 2.0, "math": 1.0}):
        bank.activate(chosen)
        assert bits(model) == restored_bits(copies(base), path, chosen), chosen
    bank.deactivate()
    assert bits(model) == before


def test_an_alias_beside_a_target_that_is_stored_whole(tmp_path: Path, backend: str) -> None:
    """Its own entry counts, that of its target not; a tensor without one is given whole, or refused."""
    values = np.ones((2, 3), np.float32)
    changed = {"math": "whole", "code": "kept", "science": "switched"}
    base, path = untied(tmp_path, changed, values=values)
    model = copies(base)
    bank = SwitchBank(model)
    for name in changed:
        bank.add(name, path)
    for chosen in ({"math": 1.0, "code": 1.0}, {"code": 1.0, "math": 1.0}, {"math": 1.0}):
        bank.activate(chosen)
        assert bits(model) == restored_bits(copies(base), path, chosen), chosen
    before = bits(model)
    with pytest.raises(tsw.OptionError, match=r"'late'.*'math'.*'science'.*TSW-903"):
        bank.activate({"math": 1.0, "science": 1.0})
    assert bits(model) == before


def test_experts_that_are_not_there(files: dict[str, Path]) -> None:
    model = headed(tensors())
    bank = SwitchBank(model)
    bank.add("law", files["f32"])
    table, before = table_of(files["f32"]), bits(model)
    with pytest.raises(tsw.UnknownNameError, match="bank: no expert named 'math' among 1"):
        bank.activate(Tint(table, "law"))
    bank.add("math", files["f32"])
    with pytest.raises(tsw.UnknownNameError, match="bank: no expert named 'code' among 2"):
        bank.activate(Tint(table, "code"))
    with pytest.raises(tsw.OptionError, match="tint: layers: expected the name of an expert, found 3"):
        Tint(table, 3)  # type: ignore[arg-type]
    assert bits(model) == before
    bank.activate(Tint(table, "law"))


def test_a_table_of_another_model_is_refused(files: dict[str, Path]) -> None:
    model = headed(tensors())
    bank = filled(model, files["f32"])
    table = tsw.CoefficientTable("t", np.ones((2, 2)), ("blocks.0.weight", "blocks.0.bias"), COLUMNS)
    with pytest.raises(tsw.OptionError, match=r"rows of the experts' tensors, such as 'cube', found 'blocks.0.weight'"):
        bank.activate(Tint(table, "law"))
    assert bank.current == {}


def test_mixed_batches_have_no_tables(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(8, 8)).requires_grad_(False)
    found = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    path = tinted(packed(found, tmp_path)["all"], tmp_path / "t.tsw", heads={}, rows=["0.weight"], values=VALUES[:1])
    bank = filled(base, path)
    tint: Any = Tint(table_of(path))
    with pytest.raises(tsw.OptionError, match=r"task_ids\[0\]: expected a name, .* found ['\"]Tint"):
        bank.forward_mixed(torch.zeros(1, 8), task_ids=[tint])
    bank.activate(tint)
    with pytest.raises(tsw.OptionError, match="expected the base, found law, math active; deactivate"):
        bank.forward_mixed(torch.zeros(1, 8), task_ids=["law"])


# --- failures and interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_a_kernel_that_fails_leaves_what_was_active(
    files: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_backend", lambda kind: reference)
    faults = Faults()
    monkeypatch.setattr(reference, "_run_chunk", faults.wrap(reference._run_chunk))
    model = headed(tensors(FLOATS[kind]))
    before = bits(model)
    bank = filled(model, files[kind])
    table = table_of(files[kind])
    for first, second in itertools.permutations([Tint(table, "law"), Tint(table, "code"), {"math": 0.5}], 2):
        bank.activate(second)
        after = bits(model)
        bank.activate(first)
        of_first, current = bits(model), state(bank)
        with faults.at(None):
            bank.activate(second)
        calls = faults.calls
        assert calls > 1
        for number in range(0, calls, 2):
            for late in (False, True):
                bank.deactivate()
                bank.activate(first)
                with faults.at(number, after=late), pytest.raises(InjectedError):
                    bank.activate(second)
                assert bits(model) == of_first and state(bank) == current, (number, calls)
        bank.activate(second)
        assert bits(model) == after
    bank.deactivate()
    assert bits(model) == before


@pytest.mark.parametrize("kind", ["f32", pytest.param("f16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_line_leaves_a_state_that_the_bank_knows(
    files: dict[str, Path], kind: str, step: int
) -> None:
    model = headed(tensors(FLOATS[kind]))
    known: dict[State, Bits] = {(): bits(model)}
    bank = filled(model, files[kind])
    tint, plain = Tint(table_of(files[kind]), "code"), {"math": 1.0}
    for wanted in (tint, plain):
        bank.activate(wanted)
        known[state(bank)] = bits(model)
    for first, second in ((tint, plain), (plain, tint)):
        for number in itertools.count(0, step):
            bank.activate(first)
            with Interrupts(number) as interrupts, contextlib.suppress(KeyboardInterrupt):
                bank.activate(second)
            if not interrupts.place:
                break
            assert bits(model) == known[state(bank)], interrupts.place
            bank.deactivate()
            assert bits(model) == known[()], interrupts.place
        assert number > 50


def test_interrupts_at_random_times(files: dict[str, Path]) -> None:
    model = headed(tensors())
    known: dict[State, Bits] = {(): bits(model)}
    bank = filled(model, files["f32"])
    combinations: list[dict[str, float] | Tint] = [Tint(table_of(files["f32"]), "law"), {"code": 0.5, "law": 0.5}]
    bank.add("spare", files["f32"], task="code")
    combinations[1] = {"code": 0.5, "spare": 0.5}  # whose heads agree
    for wanted in combinations:
        bank.activate(wanted)
        known[state(bank)] = bits(model)
    assert interrupted_at_random(bank, model, combinations, known, turns=120, seconds=0.004) > 5
