"""Products and lookups of mixed batches: equal to the exact formula within the tolerance that `mixed/linear.py` states."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_models import load_expert, pack_experts, parts_of, switch_on, switches_of, tuned
from torch import Tensor, nn
from torch.nn import functional

import tswitch_format as tsw
from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.torch.load import SwitchTensors
from tswitch_format.torch.mixed import Routing, SwitchLinear, TaskPlanes, mixed_linear, reference
from tswitch_format.torch.mixed.planes import values_of
from tswitch_format.torch.packed import PackedSwitch

CPU = torch.device("cpu")
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TASKS, COEFFICIENTS = [2, -1, 0, 2, 1, 0], [1.0, 1.0, 1.0, -0.5, 1.0, 0.0]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    """The kernel in Triton's interpreter: only a process that was started with TRITON_INTERPRET=1 has it."""
    pytest.importorskip("triton")
    if not INTERPRETED:
        pytest.skip("runs in test_the_kernel_in_a_process_of_its_own")
    return import_module("tswitch_format.torch.mixed.fused")


@pytest.mark.skipif(INTERPRETED, reason="the tests themselves run")
def test_the_kernel_in_a_process_of_its_own() -> None:
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout


def exact(
    x: Tensor, weight: Tensor, bias: Tensor | None, switch: PackedSwitch | None, coefficient: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In f64: y, x W^T + b, and the sums of magnitudes that the tolerance is made of."""
    x, weight = x.double(), weight.double()
    added = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
    base, large = functional.linear(x, weight, added), functional.linear(x.abs(), weight.abs(), added.abs())
    if switch is None or coefficient == 0:
        return base, base, large, torch.zeros_like(base)
    signs, knob, r, c = parts_of(switch)
    y = base + coefficient * knob * (r * ((x * c) @ signs.T))
    sums = abs(coefficient) * knob.abs() * (r.abs() * ((x * c).abs() @ signs.abs().T))
    return y, base, large, sums


def check(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, switches: list[PackedSwitch], q: float = 0.0
) -> None:
    """Every element is within the stated tolerance."""
    u, v, length = ROUNDOFF[y.dtype], min(ROUNDOFF[y.dtype], 2.0**-24), x.shape[-1]
    assert y.dtype == x.dtype and y.isfinite().all()
    for row, (task, coefficient) in enumerate(zip(TASKS, COEFFICIENTS, strict=True)):
        switch = switches[task] if task >= 0 else None
        want, base, large, sums = exact(x[row], weight, bias, switch, coefficient)
        bound = 2 * u * (base.abs() + want.abs()) + (length + 8) * v * large + ((length + 8) * v + q) * sums
        assert ((y[row].double() - want).abs() <= bound).all(), f"row {row}"


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    density=st.sampled_from([0.02, 0.2, 0.9]),
    seed=st.integers(0, 9),
    transposed=st.booleans(),
    profile=st.sampled_from(["archive", "mapped"]),
)
def test_planes_hold_mask_and_sign_of_every_element(
    folder: Path, shape: tuple[int, int], density: float, seed: int, transposed: bool, profile: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = {"weight": torch.randn(shape, generator=generator)}
    tsw.pack(
        base,
        {"weight": base["weight"] + torch.randn(shape, generator=generator)},
        folder / "p.tsw",
        density=density,
        profile=profile,
    )
    with SwitchTensors(folder / "p.tsw") as file:
        sign, packed = file.switch("weight").sign(), file.switch("weight").packed()
    planes = TaskPlanes.build([None, packed], transposed=transposed)
    outputs, inputs = reversed(shape) if transposed else shape
    assert planes.plane_of == (-1, 0) and planes.places.tolist() == [-1, 0]
    assert planes.bits.shape == (1, outputs, 2, 4 * -(-inputs // 32))
    found = reference.unpack(planes.bits[0], inputs, torch.float32)
    assert torch.equal(found, (sign.T if transposed else sign).float())
    mask, signs = planes.bits[0].unbind(1)
    assert not (signs & ~mask).any()  # and nothing beyond the last column
    assert int(sum((planes.bits >> bit & 1).sum() for bit in range(8))) == int(sign.ne(0).sum() + sign.lt(0).sum())


def test_planes_of_several_chunks(folder: Path) -> None:
    base = {"weight": torch.zeros(1500, 1403)}
    expert = {"weight": torch.randn(1500, 1403, generator=torch.Generator().manual_seed(3))}
    tsw.pack(base, expert, folder / "c.tsw", density=0.01)
    with SwitchTensors(folder / "c.tsw") as file:
        switch = file.switch("weight")
        planes, sign = TaskPlanes.build([switch.packed()]), switch.sign()
    assert torch.equal(reference.unpack(planes.bits[0], 1403, torch.int8), sign)


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (70, 45), (64, 256)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_mixed_linear_is_within_the_stated_tolerance(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    shape: tuple[int, int],
    biased: bool,
    backend: str,
) -> None:
    found = pytest.importorskip("numba") and import_module(f"tswitch_format.torch.mixed.{backend}")
    monkeypatch.setattr("tswitch_format.torch.mixed.linear._backend", lambda kind, dtype: found)
    monkeypatch.setattr("tswitch_format.torch.mixed.compiled._SPARSE", 1.0)
    switches = switches_of(shape, folder, dtype=dtype)
    x, weight = torch.randn(6, 3, shape[1]).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if biased else None
    y = mixed_linear(x, weight, bias, TaskPlanes.build(switches), TASKS, COEFFICIENTS)
    check(y, x, weight, bias, switches)
    exact_base = functional.linear(x, weight, bias)
    assert torch.equal(y[1], exact_base[1]) and torch.equal(y[5], exact_base[5])  # the base, and a coefficient of 0


def test_the_reference_works_in_blocks_of_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = switches_of((70, 45), folder)
    monkeypatch.setattr(reference, "_BLOCK", 300)
    x, weight = torch.randn(6, 2, 45), torch.randn(70, 45)
    y = functional.linear(x, weight)
    reference.add_delta_(y, x, TaskPlanes.build(switches), Routing(TASKS, CPU, COEFFICIENTS))
    check(y, x, weight, None, switches)


def test_compiled_loops_take_many_tokens_and_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = import_module("tswitch_format.torch.mixed.compiled") if pytest.importorskip("numba") else None
    monkeypatch.setattr(compiled, "_SHARE", 10)
    monkeypatch.setattr(compiled, "_TOKENS", 16)
    switches = switches_of((70, 45), folder)
    x, y = torch.randn(6, 37, 45), torch.zeros(6, 37, 70)
    compiled.add_delta_(y, x, TaskPlanes.build(switches), Routing(TASKS, CPU, COEFFICIENTS))
    check(y, x, torch.zeros(70, 45), None, switches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "tokens"), [((70, 45), 1), ((130, 200), 7), ((129, 70), 70)], ids=str)
def test_interpreted_kernel_is_within_the_stated_tolerance(
    folder: Path, fused: ModuleType, dtype: torch.dtype, shape: tuple[int, int], tokens: int
) -> None:
    switches = switches_of(shape, folder)
    x, weight = torch.randn(6, tokens, shape[1]).to(dtype), torch.randn(shape).to(dtype)
    y = functional.linear(x, weight)
    fused.add_delta_(y, x, TaskPlanes.build(switches), Routing(TASKS, CPU, COEFFICIENTS))
    # The interpreter cuts BF16 off instead of rounding it: twice the error of each piece, so four times that of two.
    check(y, x, weight, None, switches, 0.0 if dtype == torch.float32 else 2.0**-14)


@pytest.mark.parametrize("factors", [False, True])
def test_interpreted_kernel_adds_what_the_reference_adds(folder: Path, fused: ModuleType, factors: bool) -> None:
    """Biases, no factors at all, tasks without planes, tasks with a bias alone, batches of the base alone."""
    switches: list[PackedSwitch | None] = list(switches_of((70, 45), folder))
    switches = [switches[0 if factors else 2], None, None]
    planes = TaskPlanes.build(switches, keep=[2]).with_biases([torch.randn(70), None, torch.randn(70)])
    assert (planes.rows is not None) == factors and planes.plane_of == (0, -1, 1)
    x, y = torch.randn(6, 5, 45).bfloat16().float(), torch.randn(6, 5, 70)
    for tasks in (TASKS, [1, 1, -1, -1, 1, 1], [0] * 6):
        routing, want, found = Routing(tasks, CPU, COEFFICIENTS), y.clone(), y.clone()
        reference.add_delta_(want, x, planes, routing)
        fused.add_delta_(found, x, planes, routing)
        assert torch.allclose(found, want, rtol=1e-5, atol=1e-5)
        assert torch.equal(want, y) == (tasks[0] == 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "tokens"), [((70, 45), 1), ((1100, 1030), 7), ((1100, 1030), 70)], ids=str)
def test_a_gpu_is_within_the_stated_tolerance(
    folder: Path, dtype: torch.dtype, shape: tuple[int, int], tokens: int
) -> None:
    switches, cuda = switches_of(shape, folder), torch.device("cuda")
    planes = TaskPlanes.build([switch_on(switch, cuda) for switch in switches])
    x, weight = torch.randn(6, tokens, shape[1]).to(dtype), torch.randn(shape).to(dtype)
    y = mixed_linear(x.to(cuda), weight.to(cuda), None, planes, TASKS, COEFFICIENTS).cpu()
    check(y, x, weight, None, switches, 2.0**-16 if dtype in (torch.bfloat16, torch.float16) else 0.0)


@pytest.mark.slow
def test_the_kernel_compiles_for_hopper_without_a_gpu() -> None:
    """What the interpreter does not see: types, layouts, registers. In a process where it is off."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("mixed_compile.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["wgmma"] * 9


def test_a_linear_whose_rows_use_experts(folder: Path) -> None:
    linear = nn.Linear(20, 30)
    paths = pack_experts(linear, folder)
    loaded = {name: load_expert(path) for name, path in paths.items()}
    weights = {name: found["weight"] for name, found in loaded.items()}
    biases = {name: found["bias"] for name, found in loaded.items() if name != "task1"}
    layer = SwitchLinear(linear, weights, biases)  # type: ignore[arg-type]
    x = torch.randn(4, 20)
    assert torch.equal(layer(x), linear(x))
    layer.task_ids = ["task1", None, ("task0", 0.5), "task2"]
    assert layer.weight is linear.weight and set(layer.state_dict()) == {"weight", "bias"}
    for row, (name, coefficient) in enumerate([("task1", 1), (None, 0), ("task0", 0.5), ("task2", 1)]):
        weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
        if name is not None:
            weight += values_of(weights[name], coefficient)  # type: ignore[arg-type]
            bias += values_of(biases[name], coefficient) if name in biases else 0  # type: ignore[arg-type]
        assert torch.allclose(layer(x)[row], functional.linear(x[row], weight, bias), atol=1e-5)
    layer.task_ids = None
    assert torch.equal(layer(x), linear(x))


def test_planes_take_two_bits_an_element(folder: Path) -> None:
    switch = switches_of((64, 256), folder)[2]
    planes = TaskPlanes.build([switch])
    assert switch.rows is None and planes.rows is None and planes.columns is None
    assert planes.nbytes == 64 * 256 // 4 + 4 + 4


def test_task_ids_are_names_numbers_pairs_or_tensors() -> None:
    names = ["a", "b"]
    assert Routing.of(["b", None, 0, ("a", 0.5)], names, CPU).tasks == (1, -1, 0, 0)
    assert Routing.of(["b", ("a", 0.5)], names, CPU).coefficients == (1.0, 0.5)
    assert Routing.of(torch.tensor([1, -1], dtype=torch.int32), names, CPU).tasks == (1, -1)
    groups = Routing.of(["b", "a", "b", None, ("b", 2)], names, CPU).groups
    assert [(g.task, g.coefficient, g.rows) for g in groups] == [
        (-1, 1, (3,)),
        (0, 1, (1,)),
        (1, 1, (0, 2)),
        (1, 2, (4,)),
    ]
    with pytest.raises(UnknownNameError, match="'c'"):
        Routing.of(["c"], names, CPU)
    for bad in ([2], [-2], [True], [1.0], "a", 3, [("a", float("nan"))], torch.tensor([0.0]), torch.tensor([[0]])):
        with pytest.raises(OptionError, match="task_ids"):
            Routing.of(bad, names, CPU)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    tasks=st.lists(st.integers(-1, 4), min_size=1, max_size=20),
    tokens=st.integers(1, 40),
    size=st.sampled_from([16, 64]),
)
def test_tiles_cover_every_token_once(tasks: list[int], tokens: int, size: int) -> None:
    routing = Routing(tasks, CPU, [0.0 if task == 3 else 1.0 for task in tasks])
    tiles, order = routing.tiles(tokens, size), routing.order.tolist()
    seen = []
    for task, first, stop in tiles.spans.tolist():
        for token in range(first, min(first + size, stop)):
            assert tasks[order[token // tokens]] == task
            seen.append(order[token // tokens] * tokens + token % tokens)
    assert sorted(seen) == [
        row * tokens + t for row, task in enumerate(tasks) if task not in (-1, 3) for t in range(tokens)
    ]


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.randn(5, 45), "expected inputs \\[6, ..., 45\\]"),
        (torch.randn(6, 44), "expected inputs"),
        (torch.randn(6), "expected inputs"),
        (torch.zeros(6, 45, dtype=torch.int64), "float inputs"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, inputs: Tensor, match: str) -> None:
    switches = switches_of((70, 45), folder)
    planes = TaskPlanes.build(switches)
    with pytest.raises(OptionError, match=match):
        mixed_linear(inputs, torch.randn(70, 45), None, planes, TASKS)
    with pytest.raises(OptionError, match="expected shape \\[70, 45\\]"):
        mixed_linear(torch.randn(6, 45), torch.randn(45, 70), None, planes, TASKS)
    with pytest.raises(OptionError, match="one a row"):
        mixed_linear(torch.randn(6, 45), torch.randn(70, 45), None, planes, TASKS, [1.0])
    with pytest.raises(OptionError, match="for every task"):
        TaskPlanes.build([switches[0], switches_of((45, 70), folder)[0]])
    with pytest.raises(OptionError, match="at least one"):
        TaskPlanes.build([None])
    with pytest.raises(OptionError, match=r"biases\[0\]"):
        planes.with_biases([torch.zeros(3), None, None])
    with pytest.raises(OptionError, match="linear: expected a weight"):
        SwitchLinear(nn.Linear(3, 4), {"a": switches[0]})
    with pytest.raises(UnknownNameError, match="'b'"):
        SwitchLinear(nn.Linear(45, 70), {"a": switches[0]}, {"b": switches[0]})


def test_under_autocast_sums_are_still_made_in_f32(folder: Path) -> None:
    switches = switches_of((70, 45), folder)
    x, weight = torch.randn(6, 45), torch.randn(70, 45)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixed_linear(x, weight, None, TaskPlanes.build(switches), TASKS)
        base = functional.linear(x, weight)
    assert y.dtype == torch.bfloat16
    want = mixed_linear(x, torch.zeros(70, 45), None, TaskPlanes.build(switches), TASKS)
    assert torch.equal(y, (base.float() + want).bfloat16())


def test_experts_differ_enough_for_these_tests(folder: Path) -> None:
    linear = nn.Linear(20, 30)
    assert not torch.allclose(linear.weight, tuned(linear, 1).get_parameter("weight"), atol=1e-2)
