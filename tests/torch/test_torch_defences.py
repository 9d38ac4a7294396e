"""What reviewers broke: banks in coroutines, in batches, under interrupts; kernels that do not start; shared readers."""

from __future__ import annotations

import asyncio
import sys
import types
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_models import EXPERTS, bits, copies, packed, restored_bits, tensors, tuned
from torch import nn

import tswitch_format as tsw
from tswitch_format import _optional
from tswitch_format.container.reader import Entry
from tswitch_format.torch import SwitchBank, open, staging  # noqa: A004
from tswitch_format.torch.kernels import choice


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return packed(tensors(), tmp_path_factory.mktemp("defences"))


@pytest.fixture
def filled(paths: dict[str, Path]) -> tuple[dict, SwitchBank]:
    model = tensors()
    bank = SwitchBank(model)
    for name in EXPERTS:
        bank.add(name, paths[name])
    return model, bank


@pytest.fixture
def net(tmp_path: Path) -> Iterator[tuple[nn.Module, SwitchBank]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4)).requires_grad_(False).eval()
    base = copies(model.state_dict())
    bank = SwitchBank(model)
    for seed, name in enumerate("ab", 1):
        tsw.pack(base, tuned(base, seed), tmp_path / f"{name}.tsw", density=0.5)
        bank.add(name, tmp_path / f"{name}.tsw")
    yield model, bank


def test_coroutines_of_one_thread_do_not_get_each_others_model(filled: tuple[dict, SwitchBank]) -> None:
    model, bank = filled
    base = bits(model)

    async def serve(name: str) -> str:
        try:
            with bank.active(name):
                mine = bits(model)
                await asyncio.sleep(0)
                assert bits(model) == mine
            return "served"
        except tsw.OptionError as error:
            assert "another task" in str(error)
            return "refused"

    async def both() -> list[str]:
        return await asyncio.gather(serve("math"), serve("code"), serve("law"))

    assert asyncio.run(both()) == ["served", "refused", "refused"]
    assert bits(model) == base
    assert not bank.current


def test_nothing_switches_under_a_mixed_batch(net: tuple[nn.Module, SwitchBank]) -> None:
    model, bank = net
    x = torch.randn(3, 16)
    wanted = bank.forward_mixed(x, task_ids=["a", "b", None])
    for _ in range(2):
        with bank.mixed(["a", "b", None]):
            for work in (lambda: bank.activate("a"), lambda: bank.remove("b"), bank.release, bank.deactivate):
                with pytest.raises(tsw.OptionError, match="under way"):
                    work()
            assert torch.equal(model(x), wanted)
    bank.activate("a")
    with pytest.raises(tsw.OptionError, match="deactivate"):
        bank.forward_mixed(x, task_ids=["a", "b", None])


def test_a_mixed_batch_wants_the_base(net: tuple[nn.Module, SwitchBank]) -> None:
    model, bank = net
    model[0].weight.mul_(2)
    with pytest.raises(tsw.OptionError, match="changed by something else"):
        bank.forward_mixed(torch.randn(2, 16), task_ids=["a", "b"])


def test_release_gives_memory_back(net: tuple[nn.Module, SwitchBank]) -> None:
    model, bank = net
    base = bits(model.state_dict())
    bank.forward_mixed(torch.randn(2, 16), task_ids=["a", "b"])
    bank.activate("a")
    with pytest.raises(tsw.OptionError, match="active"):
        bank.release()
    bank.deactivate()
    held = bank.memory_report()
    assert sum(held.kept.values()) and held.mixed
    bank.release()
    assert not sum(bank.memory_report().kept.values()) and not bank.memory_report().mixed
    bank.activate("b")
    bank.deactivate()
    assert bits(model.state_dict()) == base


def test_interrupts_that_follow_each_other_leave_nothing_called_active_that_is_not(
    filled: tuple[dict, SwitchBank], paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bank = filled
    base = bits(model)
    bank.activate("math")
    module = import_module("tswitch_format.torch.activation")
    real, calls = module.run, iter([True, True])

    def interrupted(jobs: list, *rest: object) -> None:
        if next(calls, False):
            real(jobs[: len(jobs) // 2], *rest)
            raise KeyboardInterrupt
        real(jobs, *rest)

    monkeypatch.setattr(module, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bank.activate("code")
    bank.activate("math")
    assert bits(model) == restored_bits(tensors(), paths["all"], "math")
    bank.deactivate()
    assert bits(model) == base


def test_the_blocks_own_error_is_the_one_that_is_seen(filled: tuple[dict, SwitchBank]) -> None:
    model, bank = filled
    with pytest.raises(ZeroDivisionError) as caught, bank.active("math"):
        model["matrix"].add_(1)
        raise ZeroDivisionError
    assert any("could not be switched back" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("error", [ImportError("numba needs another NumPy"), RuntimeError("cannot cache function")])
def test_kernels_that_do_not_start_are_replaced(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> types.ModuleType:
        if name.endswith("compiled"):
            raise error
        return import_module(name)

    monkeypatch.delenv("TSW_KERNELS", raising=False)
    monkeypatch.setattr(_optional, "import_module", fail)
    with pytest.warns(RuntimeWarning, match="does not start"):
        found = choice.choose("tswitch_format.torch.kernels", "cpu")
    assert found.__name__.endswith("reference")


def test_the_environment_can_ask_for_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSW_KERNELS", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("cpu", "cuda"):
            assert choice.choose("tswitch_format.torch.kernels", kind).__name__.endswith("reference")


def test_every_backend_has_all_of_it() -> None:
    for name in ("reference", "compiled", "fused"):
        if name == "compiled" and "numba" not in sys.modules:
            pytest.importorskip("numba")
        if name == "fused":
            pytest.importorskip("triton")
        backend = import_module(f"tswitch_format.torch.kernels.{name}")
        assert callable(backend.run) and callable(backend.add_rounded)


def test_a_reader_that_threads_share(paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = staging.Staging
    monkeypatch.setattr("tswitch_format.torch.load.Staging", lambda device, nbytes: real(device, 8192, always=True))
    with open(paths["math"]) as file:
        names = [name for name in file.keys() if file.switch(name).kind == "ternary"]  # noqa: SIM118
        wanted = {name: file.switch(name).host.delta() for name in names}
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda name: (name, file.switch(name).delta()), names * 20))
    for name, delta in found:
        assert np.array_equal(delta.numpy(), wanted[name], equal_nan=True)


def test_a_mapping_that_changes_after_its_check_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tensors()
    tsw.pack(base, tuned(base), tmp_path / "a.tsw", profile="mapped", density=0.3)
    real = Entry.masks_packed

    def changing(entry: Entry, chunks: range) -> list[np.ndarray]:
        """Masks of which a bit is another after they were checked."""
        found = [mask.copy() for mask in real(entry, chunks)]
        found[0][0] ^= 1
        return found

    monkeypatch.setattr(Entry, "masks_packed", changing)
    with open(tmp_path / "a.tsw") as file, pytest.raises(tsw.TswError, match="changed while it was read"):
        file.switch("matrix").packed()


def test_the_coefficient_must_fit_the_weight(tmp_path: Path) -> None:
    base = {"w": torch.randn(6, 6, dtype=torch.float64)}
    tsw.pack(base, tuned(base), tmp_path / "a.tsw", density=0.5)
    weight = base["w"].float()
    with open(tmp_path / "a.tsw") as file, pytest.raises(tsw.OptionError, match="finite coefficient"):
        file.switch("w").apply_(weight, 1e300, check_base=False)
    assert torch.equal(weight, base["w"].float())
