"""Every backend gives the bits of the NumPy reference, whatever the weights, the mask and the factors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import COEFFICIENTS, DTYPES, Backend, Case, Cases, Options, bits, from_numpy, matrix, same, to_numpy
from torch import Tensor

from tswitch_format import _layout as lay
from tswitch_format.switch.planes import Form, Mode
from tswitch_format.torch.kernels import Job, backend_of, reference, run
from tswitch_format.torch.kernels.job import matrix_of
from tswitch_format.torch.load import SwitchTensors

GAPS, BITMAP = Form.GAPS, Form.BITMAP
CUDA = torch.cuda.is_available()
triton = pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
BACKENDS = (
    pytest.param(Backend("reference", "cpu"), id="reference"),
    pytest.param(
        Backend("compiled", "cpu"),
        id="compiled",
        marks=pytest.mark.skipif(not find_spec("numba"), reason="needs numba"),
    ),
    pytest.param(
        Backend("fused", "cpu"),
        id="fused-interpreted",
        marks=[triton, pytest.mark.skipif(CUDA, reason="its kernels run on the device instead")],
    ),
    pytest.param(Backend("reference", "cuda"), id="reference-cuda", marks=pytest.mark.gpu),
    pytest.param(Backend("fused", "cuda"), id="fused-cuda", marks=[triton, pytest.mark.gpu]),
)
SMALL = (
    Options((33, 61), 0.001, GAPS),
    Options((40, 50), 0.02, GAPS, "row"),
    Options((70, 301), 0.1, GAPS, "row-col"),  # three blocks of codes
    Options((40, 50), 0.02, GAPS, "row-col", "f16"),
    Options((6, 7, 11), 0.05, GAPS, "row-col", "f32"),
    Options((37, 29), 0.003, BITMAP, "row-col"),
    Options((37, 29), 0.3, BITMAP, "row", "f32"),
    Options((131, 127), 0.6, BITMAP, "row-col", "f16"),  # three blocks of bits
    Options((9, 13), 1.0, BITMAP, "row-col"),
    Options((1021,), 0.05, GAPS),
    Options((11,), 0.5, BITMAP, "row"),
    Options((), 1.0, BITMAP),
)
ACROSS = (Options((1031, 1024), 0.001, GAPS, "row-col"), Options((1031, 1024), 0.002, BITMAP))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    made = Cases(tmp_path_factory.mktemp("cases"))
    yield made
    made.close()


def named(options: Options) -> str:
    shape = "x".join(map(str, options.shape)) or "0-d"
    return f"{shape}-{options.density}-{options.form.name.lower()}-{options.per}-{options.factors}"


def saved_by(case: Case, weights: Tensor) -> Tensor:
    return weights.reshape(-1)[torch.from_numpy(case.host.indices())]


def rounded(sums: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """f32 to bf16 by the text, not by a library's cast; to the others by NumPy's."""
    if dtype != torch.bfloat16:
        return torch.from_numpy(sums).to(dtype)
    whole = sums.view(np.uint32).astype(np.uint64)
    low, high = whole & 0xFFFF, whole >> 16
    return from_numpy((high + ((low > 0x8000) | ((low == 0x8000) & (high & 1 == 1)))).astype(np.uint16), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", SMALL, ids=named)
def test_adding_saving_and_putting_back(cases: Cases, options: Options, dtype: torch.dtype, backend: Backend) -> None:
    case = cases(options, dtype)
    switch = case.packed(backend.device)
    assert switch.form is options.form
    for coefficient in COEFFICIENTS:
        target = matrix(case.weights).clone().to(backend.device)
        backend.run([Job(Mode.ADD, target, switch, coefficient)])
        assert same(target, matrix(case.wanted(case.weights, coefficient))), coefficient

    kept = saved_by(case, case.weights)
    other = torch.full((switch.active,), 7, dtype=dtype, device=backend.device)
    target = matrix(case.weights).clone().to(backend.device)
    adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other)
    backend.run([adding])
    assert same(target, matrix(case.wanted(case.weights, 0.3)))
    assert same(other, kept)
    backend.run([replace(adding, mode=Mode.PUT_BACK)])
    assert same(target, matrix(case.weights))

    other = torch.full((switch.active,), 7, dtype=dtype, device=backend.device)
    backend.run([Job(Mode.SAVE, target, switch, other=other)])
    assert same(other, kept)
    assert same(target, matrix(case.weights))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [SMALL[2], SMALL[5], SMALL[6]], ids=named)
def test_slices_and_nothing(cases: Cases, options: Options, backend: Backend) -> None:
    case = cases(options, torch.bfloat16)
    with SwitchTensors(case.path, device=backend.device) as file:
        for key in (slice(3, 3), (slice(None), slice(4, 4)), (slice(5, 30), slice(3, 22)), slice(36, 37)):
            switch, host = file.switch("w")[key].packed(), case.host[key]
            part = case.weights[key]
            target = part.clone().to(backend.device)
            other = torch.zeros(switch.active, dtype=torch.bfloat16, device=backend.device)
            adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other)
            backend.run([adding])
            wanted = host.apply(to_numpy(part), 0.3)
            assert same(target, from_numpy(wanted, torch.bfloat16))
            backend.run([replace(adding, mode=Mode.PUT_BACK)])
            assert same(target, part)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", SMALL, ids=named)
def test_what_is_made_of_a_switch(cases: Cases, options: Options, backend: Backend) -> None:
    for dtype, wide in ((torch.float32, torch.float32), (torch.float64, torch.float64)):
        case = cases(options, dtype)
        switch = case.packed(backend.device)
        for coefficient in COEFFICIENTS:
            target = torch.zeros(switch.elements, dtype=wide, device=backend.device)
            backend.run([Job(Mode.VALUES, target, switch, coefficient)])
            assert same(target, torch.from_numpy(np.asarray(case.host.delta(coefficient))).reshape(-1))
        target = torch.zeros(switch.elements, dtype=torch.int8, device=backend.device)
        backend.run([Job(Mode.SIGNS, target, switch)])
        assert same(target, torch.from_numpy(np.asarray(case.host.sign())).reshape(-1))


STRIDES = {
    "transposed": lambda memory, r, c: memory[: r * c].view(c, r).t(),
    "columns apart": lambda memory, r, c: memory[: 3 * r * c].view(r, 3 * c)[:, 1::3],
    "rows apart": lambda memory, r, c: memory[: 2 * r * (c + 5)].view(r, 2 * (c + 5))[:, 2 : c + 2],
    "transposed and apart": lambda memory, r, c: memory[: 2 * c * (r + 3)].view(c, 2 * (r + 3))[:, : 2 * r : 2].t(),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_strides(cases: Cases, strides: str, dtype: torch.dtype, backend: Backend) -> None:
    for options in (SMALL[2], SMALL[6]):
        case = cases(options, dtype)
        switch = case.packed(backend.device)
        rows, columns = case.weights.shape
        memory = torch.full((4 * (rows + 8) * (columns + 8),), 3, dtype=dtype, device=backend.device)
        view = STRIDES[strides](memory, rows, columns)
        target = matrix_of(view)
        assert target is not None and not target.is_contiguous()
        target.copy_(case.weights)
        before = memory.clone()

        other = torch.zeros(switch.active, dtype=dtype, device=backend.device)
        adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other)
        backend.run([adding])
        assert same(target, case.wanted(case.weights, 0.3))
        assert same(other, saved_by(case, case.weights))
        assert (memory != before).sum() <= switch.active  # nothing between the elements
        backend.run([replace(adding, mode=Mode.PUT_BACK)])
        assert same(memory, before)

        backend.run([Job(Mode.ADD, target, switch, -0.5)])
        assert same(target, case.wanted(case.weights, -0.5))
        if dtype != torch.float64:
            sums = target.float().contiguous().view(-1) * 1.001
            backend.run([Job(Mode.ROUND, target, switch, other=sums)])
            active = torch.from_numpy(case.host.mask())
            wanted = torch.where(
                active, rounded(sums.cpu().numpy(), dtype).view(rows, columns), case.wanted(case.weights, -0.5)
            )
            assert same(target, wanted)


def combined(weights: Tensor, terms: list[tuple[Case, float]]) -> Tensor:
    """Section 10, several tasks: sums in f32, one rounding, and only where something is active."""
    sums = weights.float().numpy().copy()
    touched = np.zeros(sums.shape, np.bool_)
    for case, coefficient in terms:
        mask = case.host.mask()
        sums[mask] += case.host.delta(coefficient)[mask]
        touched |= mask
    return torch.where(torch.from_numpy(touched), rounded(sums, weights.dtype), weights)


def add_rounded(backend: Backend, target: Tensor, terms: list[tuple[Case, float]]) -> None:
    backend.module.add_rounded(target, [(case.packed(backend.device), coefficient) for case, coefficient in terms])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_two_tasks_are_rounded_once(cases: Cases, dtype: torch.dtype, backend: Backend) -> None:
    for one, two in ((SMALL[2], SMALL[2]), (SMALL[7], SMALL[7])):
        terms = [(cases(one, dtype), 0.3), (cases(replace(two, seed=5), dtype), -0.7)]
        weights = matrix(terms[0][0].weights)
        for start in (weights.clone(), weights.t().contiguous().t()):
            target = start.to(backend.device)
            add_rounded(backend, target, terms)
            assert same(target, combined(weights, terms))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", ACROSS, ids=named)
def test_across_chunks(cases: Cases, options: Options, backend: Backend) -> None:
    case = cases(options, torch.bfloat16)
    switch = case.packed(backend.device)
    assert len(switch.chunks) == 3
    other = torch.zeros(switch.active, dtype=torch.bfloat16, device=backend.device)
    target = case.weights.clone().to(backend.device)
    adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other)
    backend.run([adding])
    assert same(target, case.wanted(case.weights, 0.3))
    assert same(other, saved_by(case, case.weights))
    for chunk in (1, 0):
        backend.run([replace(adding, mode=Mode.PUT_BACK, switch=switch.part(chunk, chunk + 1))])
    assert same(target, case.weights)
    if options.form is GAPS:  # the interpreter takes seconds for the other
        terms = [(case, 0.3), (cases(replace(options, seed=3), torch.bfloat16), 1.0)]
        add_rounded(backend, target, terms)
        assert same(target, combined(case.weights, terms))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_of_the_tensor(cases: Cases, backend: Backend) -> None:
    """One-dimensional targets begin at `origin`, in every mode."""
    case = cases(ACROSS[0], torch.bfloat16)
    switch, origin = case.packed(backend.device).part(1, 2), lay.CHUNK
    flat, delta, sign = (
        x.reshape(-1)[origin:]
        for x in (case.weights, torch.from_numpy(case.host.delta()), torch.from_numpy(case.host.sign()))
    )
    values = torch.full(flat.shape, 9.0, device=backend.device)
    backend.run([Job(Mode.VALUES, values, switch, origin=origin)])
    assert same(values, torch.where(sign != 0, delta, 9.0))
    signs = torch.zeros(flat.shape, dtype=torch.int8, device=backend.device)
    backend.run([Job(Mode.SIGNS, signs, switch, origin=origin)])
    assert same(signs, sign)
    target = flat.clone().to(backend.device)
    other = torch.zeros(case.host.active, dtype=torch.bfloat16, device=backend.device)
    adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other, origin)
    backend.run([adding])
    assert same(target, case.wanted(case.weights, 0.3).view(-1)[origin:])
    backend.run([replace(adding, mode=Mode.PUT_BACK)])
    assert same(target, flat)


EXTREMES = {
    torch.float32: (3.4028235e38, 1e-45, 1.1754944e-38),
    torch.bfloat16: (3.3895314e38, 9.2e-41, 1.1754944e-38),
    torch.float16: (65504.0, 6e-8, 6.1e-5),
    torch.float64: (1.7976931348623157e308, 5e-324, 2.2250738585072014e-308),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, for what overflows
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_weights(cases: Cases, dtype: torch.dtype, backend: Backend) -> None:
    """Infinities, NaN, zeros of both signs, subnormals, the largest; all of them active and not."""
    largest, least, normal = EXTREMES[dtype]
    found = [float("inf"), float("nan"), 0.0, largest, least, normal, 1.0]
    for options in (SMALL[2], SMALL[8], SMALL[6]):
        case = cases(options, dtype)
        count = case.weights.numel()
        values = torch.tensor([*found, *(-x for x in found)], dtype=torch.float64)
        weights = values.repeat(count // len(values) + 1)[:count].to(dtype).view(case.weights.shape)
        if dtype == torch.bfloat16:  # a NaN whose upper bits adding would carry away
            weights.view(torch.int16)[weights.isnan()] = 0x7FFF
        switch = case.packed(backend.device)
        for coefficient in (1, 1e38, -1e-40, 1e-44):
            other = torch.zeros(switch.active, dtype=dtype, device=backend.device)
            target = weights.clone().to(backend.device)
            adding = Job(Mode.SAVE_AND_ADD, matrix(target), switch, coefficient, other)
            backend.run([adding])
            with np.errstate(all="ignore"):
                assert same(target, case.wanted(weights, coefficient)), coefficient
            backend.run([replace(adding, mode=Mode.PUT_BACK)])
            assert torch.equal(bits(target), bits(weights))  # NaN too


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, for what overflows
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_rounding(cases: Cases, dtype: torch.dtype, backend: Backend) -> None:
    """ROUND on every kind of f32 number: ties, subnormals, overflow, NaN."""
    case = cases(Options((128, 96), 1.0, BITMAP), dtype)
    random = np.random.default_rng(1)
    numbers = random.integers(0, 2**32, case.weights.numel(), np.uint32)
    numbers[::3] = (numbers[::3] & 0xFFFF0000) | random.choice(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], numbers[::3].shape
    )
    numbers[1::3] = (random.uniform(-24, 16, numbers[1::3].shape)).astype(np.float32).view(np.uint32)
    numbers[1::6] = (
        np.exp2(random.uniform(-26, 16.1, numbers[1::6].shape)).astype(np.float32).view(np.uint32) & 0xFFFFF000
    )
    sums = numbers.view(np.float32)
    target = torch.zeros_like(matrix(case.weights)).to(backend.device)
    backend.run(
        [Job(Mode.ROUND, target, case.packed(backend.device), other=torch.from_numpy(sums.copy()).to(backend.device))]
    )
    wanted = rounded(sums, dtype)
    wanted[torch.from_numpy(np.isnan(sums))] = float("nan")
    assert same(target.view(-1), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_small_switch(cases: Cases, backend: Backend, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    density = data.draw(st.sampled_from([0.001, 0.01, 0.1, 0.13, 0.5, 1.0]))
    form = BITMAP if density > 1 / 8 else data.draw(st.sampled_from([GAPS, BITMAP]))
    per = data.draw(st.sampled_from(["tensor", "row", "row-col"]))
    factors = data.draw(st.sampled_from(["u8", "f16", "f32"]))
    options = Options((rows, columns), density, form, per, factors, data.draw(st.integers(0, 9)))
    dtype = data.draw(st.sampled_from(DTYPES))
    coefficient = data.draw(st.floats(-4, 4, width=32).filter(bool) | st.sampled_from([1.0, 1e-40, 0.1, 1 + 1e-12]))
    case = cases(options, dtype)
    target = case.weights.clone().to(backend.device)
    if data.draw(st.booleans()):
        target = target.t().contiguous().t()
    backend.run([Job(Mode.ADD, target, case.packed(backend.device), coefficient)])
    assert same(target, case.wanted(case.weights, coefficient))


@pytest.mark.parametrize("backend", BACKENDS)
def test_jobs_of_one_target_keep_their_order(cases: Cases, backend: Backend) -> None:
    """In bf16 another order rounds otherwise; f64 among them goes another way."""
    ours, other, wide = cases(SMALL[7], torch.bfloat16), cases(SMALL[8], torch.bfloat16), cases(SMALL[8], torch.float64)
    again = cases(replace(SMALL[7], seed=9), torch.bfloat16)
    target, beside, far = (matrix(case.weights).clone().to(backend.device) for case in (ours, other, wide))
    jobs = [
        Job(Mode.ADD, target, ours.packed(backend.device), 0.3),
        Job(Mode.ADD, far, wide.packed(backend.device)),
        Job(Mode.ADD, beside, other.packed(backend.device)),
        Job(Mode.ADD, target, again.packed(backend.device), -0.7),
    ]
    done = backend.run(jobs)
    assert {id(job.target) for job in done} == {id(target), id(beside), id(far)}
    assert same(target, again.wanted(ours.wanted(ours.weights, 0.3), -0.7))
    assert not same(target, ours.wanted(again.wanted(ours.weights, -0.7), 0.3))
    assert same(beside, other.wanted(other.weights))
    assert same(far, wide.wanted(wide.weights))
    assert backend.run([]) == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_fastest_that_can_do_it(cases: Cases, device: str) -> None:
    packages = {"cpu": ("numba", "compiled"), "cuda": ("triton", "fused")}
    package, name = packages[device]
    assert backend_of(torch.device(device)) == (name if find_spec(package) else "reference")
    case = cases(SMALL[2], torch.float32)
    target = case.weights.clone().to(device)
    run([Job(Mode.ADD, target, case.packed(device))])
    assert same(target, case.wanted(case.weights))


# What only the Triton kernels have

FUSED = BACKENDS[2], BACKENDS[4]


@pytest.fixture
def fused() -> Any:
    return import_module("tswitch_format.torch.kernels.fused")


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("options", [SMALL[2], SMALL[7]], ids=named)
def test_every_width_gives_the_same_bits(cases: Cases, fused: Any, options: Options, backend: Backend) -> None:
    case = cases(options, torch.bfloat16)
    switch = case.packed(backend.device)
    for width, warps in fused._CONFIGS[options.form]:
        target = case.weights.clone().to(backend.device)
        other = torch.zeros(switch.active, dtype=torch.bfloat16, device=backend.device)
        begun = torch.zeros((), dtype=torch.int32, device=backend.device)
        fused._launch(Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other), width, warps, begun, 5)
        assert same(target, case.wanted(case.weights, 0.3))
        assert same(other, saved_by(case, case.weights))
        assert int(begun) == 5


@pytest.mark.parametrize("backend", FUSED)
def test_rows_beyond_32_bits(cases: Cases, fused: Any, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_FAR", 0)
    for options in (SMALL[2], SMALL[7]):
        case = cases(options, torch.float16)
        for start in (case.weights.clone(), case.weights.t().contiguous().t()):
            target = start.to(backend.device)
            backend.run([Job(Mode.ADD, target, case.packed(backend.device), 0.3)])
            assert same(target, case.wanted(case.weights, 0.3))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_leaves_a_note_of_what_was_launched(
    cases: Cases, fused: Any, backend: Backend, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, count = fused._launch, 0

    def interrupted(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 2 and when == "before":
            raise KeyboardInterrupt
        launch(*args)
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fused, "_launch", interrupted)
    case = cases(SMALL[6], torch.bfloat16)
    switch = case.packed(backend.device)
    jobs = []
    for _ in range(3):
        other = torch.zeros(switch.active, dtype=torch.bfloat16, device=backend.device)
        jobs.append(Job(Mode.SAVE_AND_ADD, case.weights.clone().to(backend.device), switch, 1.0, other))
    done: list[Job] = [jobs[2]]
    with pytest.raises(KeyboardInterrupt):
        fused.run(jobs, done)
    assert [id(job) for job in done] == [id(job) for job in [jobs[2], *jobs[: 1 if when == "before" else 2]]]
    monkeypatch.undo()
    backend.run([replace(job, mode=Mode.PUT_BACK) for job in done[1:]])
    assert all(same(job.target, case.weights) for job in jobs)


@pytest.mark.parametrize("backend", FUSED)
def test_measuring_touches_no_weights(cases: Cases, fused: Any, backend: Backend) -> None:
    case = cases(ACROSS[0], torch.bfloat16)
    switch = case.packed(backend.device)
    for mode in Mode:
        kind = {Mode.VALUES: torch.float32, Mode.SIGNS: torch.int8}.get(mode, torch.bfloat16)
        target = torch.ones(case.weights.shape, dtype=kind, device=backend.device)
        size = case.weights.numel() if mode is Mode.ROUND else switch.active
        other = torch.ones(size, dtype=torch.float32 if mode is Mode.ROUND else kind, device=backend.device)
        trial = fused._trial(Job(mode, target, switch, 0.3, other), 1)
        assert trial.other is not None and trial.target.numel() == lay.CHUNK
        assert trial.switch.block_count == switch.chunk_blocks[1]
        begun = torch.zeros((), dtype=torch.int32, device=backend.device)
        fused._launch(trial, 1024, 4, begun, 0)
        assert bool((target == 1).all()) and bool((other == 1).all())


@pytest.mark.gpu
@triton
def test_measured_once_and_right_at_once(cases: Cases, fused: Any) -> None:
    case = cases(Options((8200, 1024), 0.05, GAPS, "row-col"), torch.bfloat16)
    switch = case.packed("cuda")
    fused._found.clear()
    for _ in range(2):
        target = case.weights.clone().cuda()
        other = torch.zeros(switch.active, dtype=torch.bfloat16, device="cuda")
        adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other)
        fused.run([adding], [])
        assert same(target, case.wanted(case.weights, 0.3))
        assert same(other, saved_by(case, case.weights))
        fused.run([replace(adding, mode=Mode.PUT_BACK)], [])
        assert same(target, case.weights)
    assert len(fused._found) == 2


@triton
def test_they_compile_for_hopper_without_fusion_or_flushing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folder = Path(__file__).parent
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(folder.parents[1])}
    made = subprocess.run(
        [sys.executable, folder / "kernel_compiling.py", tmp_path],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) == 2 * (7 + 5 * 3 + 2)


def test_missing_other_is_told(cases: Cases) -> None:
    case = cases(SMALL[2], torch.float32)
    with pytest.raises(TypeError, match="other"):
        reference.run([Job(Mode.SAVE, case.weights.clone(), case.packed("cpu"))], [])
