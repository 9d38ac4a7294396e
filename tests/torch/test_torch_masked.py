"""Masked entries in torch: the bits of the NumPy side, whatever runs; one copy of each vector; the way back to the base."""

from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_interrupts import Interrupts, interrupted_at_random
from bank_models import (
    FLOATS,
    Faults,
    InjectedError,
    TiedNet,
    bits,
    copies,
    restored,
    restored_bits,
    tensors,
    tuned,
)
from kernel_cases import COEFFICIENTS, Backend, matrix, same
from test_torch_bank import BACKENDS as BANK_BACKENDS
from test_torch_bank import reachable, use_backend
from test_torch_kernels import BACKENDS, FUSED, STRIDES
from torch import Tensor, nn
from torch_models import DEVICES, TORCH, assert_same, chunks_of_rows, random_bits, raw, tensor_of

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format import torch as tsw_torch
from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.container.reader import Container, SharedArray
from tswitch_format.switch.planes import Form, Mode
from tswitch_format.torch import SwitchBank, SwitchLinear, apply_, kernels, vectors
from tswitch_format.torch.kernels import Job, reference, run
from tswitch_format.torch.staging import Staging

CHUNK = lay.CHUNK
SHARED = ("F32", "BF16", "F16", "F64")
KNOBS = (1.0, -0.37, 0.0, 1e-30, 3e38)
COMBINATIONS: list[dict[str, float]] = [
    {"math": 1},
    {"code": -0.5},
    {"math": 0.6, "code": 0.4},
    {"code": 0.4, "math": 0.6},
    {"law": 1, "math": 1},
    {"math": -1.3, "law": 0.7, "code": 2},
    {"math": 0.0, "code": 0.5},
    {"math": 1e-60, "law": -1e-60},
    {"code": 1e30},
]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, for what overflows


def held() -> list[Tensor]:
    """Vectors that somebody holds. Not the length of where they are: an interrupt while a vector dies, as tests here make them,
    may leave its dead reference."""
    return list(vectors._held.values())


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left() -> Iterator[None]:
    """Vectors that nobody holds are given back, whatever the tests here did."""
    yield
    gc.collect()
    assert not held()


@pytest.fixture(params=BANK_BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_backend(monkeypatch, request.param)
    found: str = request.param
    return found


# --------------------------------------------------------------------------------------------------------------- files


def given_vector(dtype: str, elements: np.ndarray[Any, Any]) -> tsw.GivenVector:
    """Raw elements, BF16 as uint16."""
    flat = elements.reshape(-1)
    return tsw.GivenVector(DTYPE_BY_NAME[dtype], lambda number: flat[number * CHUNK : (number + 1) * CHUNK])


def plain(dtype: str, count: int, seed: int) -> np.ndarray[Any, Any]:
    """Ordinary numbers, with zeros of both signs and subnormal ones."""
    made = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul_(0.1)
    made = made.to(TORCH[dtype])
    made[::7], made[3::11] = -0.0, torch.finfo(made.dtype).smallest_normal / 4
    return np.frombuffer(raw(made), DTYPE_BY_NAME[dtype].storage).copy()


def write(
    base: Any, path: Path, shared: str, densities: Mapping[str, tuple[float, float]], seed: int = 0, **options: Any
) -> Path:
    """Masked tasks (density and knob of each) over one vector for each float tensor, and a ternary task `law`."""
    rng = np.random.default_rng(seed)
    held = base.state_dict() if isinstance(base, nn.Module) else base
    floats = {n: t for n, t in held.items() if t.is_floating_point() and n != "head.weight"}
    of = {n: given_vector(shared, plain(shared, t.numel(), seed + i)) for i, (n, t) in enumerate(floats.items())}

    def some(tensor: Tensor, density: float) -> np.ndarray[Any, Any]:
        return rng.random(tuple(tensor.shape)) < density

    tasks = [
        tsw.GivenTask(t, {n: tsw.GivenMask.of_flags(some(x, density), knob) for n, x in floats.items()})
        for t, (density, knob) in densities.items()
    ]
    law = {n: tsw.GivenSwitch.of_signs(some(x, 0.2) * np.where(some(x, 0.5), 1, -1), 0.043) for n, x in floats.items()}
    tsw.build(base, path, [*tasks, tsw.GivenTask("law", law)], vectors=of, threads=1, **options)
    return path


USUAL = {"math": (0.6, 1.0), "code": (0.05, -0.37)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By type of the base and of the vectors."""
    folder = tmp_path_factory.mktemp("files")
    return {
        (kind, shared): write(tensors(dtype), folder / f"{kind}-{shared}.tsw", shared, USUAL)
        for kind, dtype in FLOATS.items()
        for shared in SHARED
    }


def filled(model: Any, path: Path, names: Sequence[str] = ("math", "code", "law"), **options: Any) -> SwitchBank:
    bank = SwitchBank(model)
    for name in names:
        bank.add(name, path, **options)
    return bank


def assert_alike(theirs: tsw.Switch, ours: tsw_torch.TorchSwitch, device: str = "cpu", seed: int = 0) -> None:
    """Everything that a switch of a masked entry gives."""
    assert ours.kind == theirs.kind == "masked"
    assert (tuple(ours.shape), ours.density) == (theirs.shape, theirs.density)
    assert_same(ours.sign(), theirs.sign())
    assert_same(ours.mask(), theirs.mask())
    for coefficient in (1, -0.5, 1 / 3, 1e-40):
        assert_same(ours.delta(coefficient), theirs.delta(coefficient), but_nan=True)
        base = theirs.base.dtype.name
        array = random_bits(base, theirs.shape, seed)
        weight = tensor_of(array, TORCH[base], device)
        assert ours.apply_(weight, coefficient, check_base=False) is weight
        assert_same(weight, theirs.apply(array, coefficient, check_base=False), but_nan=True)
        idle = ~theirs.mask()
        assert_same(weight.cpu()[torch.from_numpy(np.asarray(idle))], array[idle])
    packed = ours.packed()
    assert packed.vector is not None
    assert packed.vector.shape == (theirs.elements,)
    assert packed.vector.dtype == TORCH[theirs.entry.vector.dtype.name]


# ------------------------------------------------------------------------------------------------ bits of the reference


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("base", TORCH)
def test_any_bits_in_any_types(tmp_path: Path, base: str, shared: str, device: str) -> None:
    """NaN, infinities, subnormals in weights and vectors; knobs that overflow; both profiles, several densities."""
    weights = tensor_of(np.zeros((37, 50), DTYPE_BY_NAME[base].storage), TORCH[base])
    vector = random_bits(shared, (37, 50), 3)
    rng = np.random.default_rng(0)
    for profile, density in itertools.product(lay.PROFILES, (0.02, 0.5, 1.0)):
        path = tmp_path / f"{profile}-{density}.tsw"
        tasks = [
            tsw.GivenTask(f"t{n}", {"w": tsw.GivenMask.of_flags(rng.random((37, 50)) < density, knob)})
            for n, knob in enumerate(KNOBS)
        ]
        tsw.build({"w": weights}, path, tasks, vectors={"w": given_vector(shared, vector)}, profile=profile)
        with tsw.open(path) as theirs, tsw_torch.open(path, device=device) as ours:
            for task in theirs.tasks:
                their, our = theirs.switch("w", task), ours.switch("w", task)
                assert_alike(their, our, device)
                for cut in (slice(3, 9), (slice(None), slice(5, 20)), slice(4, 4), (slice(2, 30), slice(49, 50))):
                    assert_alike(their[cut], our[cut], device)


@pytest.mark.parametrize("kind", FLOATS)
def test_every_shape(files: dict[tuple[str, str], Path], kind: str) -> None:
    with tsw.open(files[kind, "F32"]) as theirs, tsw_torch.open(theirs.path) as ours:
        for task in ("math", "code"):
            names = theirs.keys(task)
            assert {"matrix", "cube", "vector", "scalar", "late"} <= set(names)
            for name in names:
                assert_alike(theirs.switch(name, task), ours.switch(name, task))
                weight = tensors(FLOATS[kind])[name]
                array = np.frombuffer(raw(weight), theirs.switch(name, task).base.dtype.storage).reshape(weight.shape)
                ours.switch(name, task).apply_(weight)  # with the check of its content
                assert_same(weight, theirs.switch(name, task).apply(array))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shared", SHARED)
def test_shards_are_the_parts_of_the_whole(files: dict[tuple[str, str], Path], shared: str, dim: int) -> None:
    with tsw.open(files["bf16", shared]) as theirs, tsw_torch.open(theirs.path) as ours:
        for name in ("matrix", "cube"):
            whole = ours.switch(name, "math")
            for act in ("delta", "sign", "mask"):
                parts = [getattr(whole.shard(rank, 3, dim), act)() for rank in range(3)]
                assert torch.equal(torch.cat(parts, dim), getattr(whole, act)())
            for rank in range(3):
                part = theirs.switch(name, "math").shard(rank, 3, dim)
                assert_alike(part, whole.shard(rank, 3, dim))


@pytest.mark.parametrize(
    ("profile", "shared", "threads", "always"),
    [
        ("archive", "F32", 1, False),
        ("archive", "F32", 3, True),
        ("archive", "BF16", 3, False),
        ("mapped", "F32", 3, False),
        ("mapped", "BF16", 1, True),
    ],
)
def test_several_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, shared: str, threads: int, always: bool
) -> None:
    """Through small staging buffers too; some chunks without an active element."""
    if always:
        monkeypatch.setattr("tswitch_format.torch.load.Staging", lambda device, _: Staging(device, 8192, always=True))
    shape = (2200, 1000)
    rng = np.random.default_rng(1)
    base = {"w": torch.from_numpy(rng.standard_normal(shape).astype(np.float32)), "v": torch.zeros(300)}
    mask = rng.random(shape) < 0.1
    mask.reshape(-1)[CHUNK : 2 * CHUNK] = False
    path = tmp_path / "big.tsw"
    tsw.build(
        base, path,
        [
            tsw.GivenTask("a", {"w": tsw.GivenMask.of_flags(mask, 0.7), "v": tsw.GivenMask.of_flags(np.ones(300))}),
            tsw.GivenTask("b", {"w": tsw.GivenMask.of_flags(rng.random(shape) < 0.5)}),
        ],
        vectors={
            "w": given_vector(shared, plain(shared, 2200000, 2)), "v": given_vector(shared, plain(shared, 300, 5)),
        },
        profile=profile,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tsw.open(path) as theirs, tsw_torch.open(path, threads=threads) as ours:
            for task in theirs.tasks:
                assert_alike(theirs.switch("w", task), ours.switch("w", task))
                loaded = ours.load(task=task)
                assert set(loaded) == set(theirs.keys(task))
                for name, found in loaded.items():
                    vector = np.frombuffer(raw(found.vector), theirs.switch(name, task).vector().dtype)  # type: ignore[union-attr, arg-type]
                    assert vector.tobytes() == theirs.switch(name, task).vector().tobytes()
            cut = (slice(1000, 2100), slice(3, 900))
            assert_alike(theirs.switch("w", "b")[cut], ours.switch("w", "b")[cut])
    finally:
        torch.set_num_threads(before)


def test_a_slice_reads_its_own_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (3000, 1000)
    path = tmp_path / "big.tsw"
    tasks = [tsw.GivenTask("a", {"w": tsw.GivenMask.of_flags(np.ones(shape))})]
    tsw.build({"w": torch.zeros(shape)}, path, tasks, vectors={"w": given_vector("F16", plain("F16", 3000000, 2))})
    found: list[tuple[int, int]] = []
    segment = Container.segment

    def recording(self: Container, task: int, number: int) -> memoryview:
        found.append((task, number))
        return segment(self, task, number)

    monkeypatch.setattr(Container, "segment", recording)
    with tsw_torch.open(path) as file:
        file.switch("w")[10:20].packed()
        wanted = len(chunks_of_rows(shape, 10, 20))
        assert wanted == 1 and len(set(found)) == 2  # of the mask, and of the vector


# ------------------------------------------------------------------------------------------------------------- kernels


class Case:
    """A masked switch of a matrix, and what NumPy makes of it."""

    def __init__(self, folder: Path, dtype: str, shared: str, density: float, knob: float, profile: str) -> None:
        self.shape = (131, 127)
        self.dtype = dtype
        self.array = random_bits(dtype, self.shape, 1)
        path = folder / f"{dtype}-{shared}-{density}-{profile}.tsw"
        mask = np.random.default_rng(4).random(self.shape) < density
        base = tensor_of(np.zeros_like(self.array), TORCH[dtype])
        task = tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(mask, knob)})
        vector = given_vector(shared, random_bits(shared, self.shape, 2))
        tsw.build({"w": base}, path, [task], vectors={"w": vector}, profile=profile)
        self.path = path
        self.mask = torch.from_numpy(mask)
        self.file = tsw.open(path)
        self.host = self.file.switch("w")

    @property
    def weights(self) -> Tensor:
        return tensor_of(self.array, TORCH[self.dtype])

    def wanted(self, coefficient: float) -> Tensor:
        return tensor_of(np.asarray(self.host.apply(self.array, coefficient, check_base=False)), TORCH[self.dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TORCH)
def test_every_mode_of_every_backend(tmp_path: Path, dtype: str, backend: Backend) -> None:
    device = backend.device
    for shared, density, knob, profile in zip(
        SHARED, (0.03, 0.6, 0.02, 0.3), (1.0, -0.4, 2.5, 1.0), ("archive", "archive", "mapped", "archive"), strict=True
    ):
        case = Case(tmp_path, dtype, shared, density, knob, profile)
        with tsw_torch.open(case.path, device=device) as file:
            switch = file.switch("w").packed()
        assert switch.signs.numel() == 0
        assert switch.form is (Form.GAPS if (density, profile) == (0.03, "archive") else Form.BITMAP)
        for coefficient in COEFFICIENTS:
            target = case.weights.to(device)
            backend.run([Job(Mode.ADD, target, switch, coefficient)])
            assert same(target, case.wanted(coefficient))
        other = torch.full((switch.active,), 7, dtype=TORCH[dtype], device=device)
        target = case.weights.to(device)
        adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other)
        done = backend.run([adding])
        assert sum(job.switch.active for job in done) == switch.active
        assert same(target, case.wanted(0.3))
        assert same(other, case.weights[case.mask])
        backend.run([replace(adding, mode=Mode.PUT_BACK)])
        assert raw(target) == raw(case.weights)
        other.fill_(7)
        backend.run([Job(Mode.SAVE, target, switch, other=other)])
        assert raw(other) == raw(case.weights[case.mask]) and raw(target) == raw(case.weights)

        wide = torch.float64 if dtype == "F64" else torch.float32
        values = torch.zeros(switch.elements, dtype=wide, device=device)
        backend.run([Job(Mode.VALUES, values, switch, -0.3)])
        assert same(values, torch.from_numpy(np.asarray(case.host.delta(-0.3))).reshape(-1))
        signs = torch.zeros(switch.elements, dtype=torch.int8, device=device)
        backend.run([Job(Mode.SIGNS, signs, switch)])
        assert same(signs, torch.from_numpy(np.asarray(case.host.sign())).reshape(-1))
        if dtype != "F64":
            target = case.weights.to(device)
            sums = torch.randn(switch.elements, device=device)
            backend.run([Job(Mode.ROUND, target, switch, other=sums)])
            rounded = torch.where(case.mask, sums.cpu().view(case.shape).to(TORCH[dtype]), case.weights)
            assert same(target, rounded)
        case.file.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_weights_with_gaps(tmp_path: Path, dtype: str, strides: str, backend: Backend) -> None:
    case = Case(tmp_path, dtype, "BF16", 0.2, -0.4, "archive")
    (rows, columns) = case.shape
    memory = torch.zeros(8 * rows * columns, dtype=TORCH[dtype], device=backend.device)
    target = STRIDES[strides](memory, rows, columns)
    target.copy_(case.weights)
    before = raw(memory)
    with tsw_torch.open(case.path, device=backend.device) as file:
        switch = file.switch("w").packed()
    adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, memory.new_zeros(switch.active))
    backend.run([adding])
    assert same(target, case.wanted(0.3))
    backend.run([replace(adding, mode=Mode.PUT_BACK)])
    assert raw(memory) == before
    case.file.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shared", "density"), [("F32", 0.2), ("BF16", 0.001), ("F16", 0.2), ("F64", 0.001)])
def test_across_chunks_and_runs(tmp_path: Path, backend: Backend, shared: str, density: float) -> None:
    """Ranks and places count on; a run of a tensor begins at `origin`."""
    if backend == Backend("fused", "cpu"):
        density = 0.001  # Triton's interpreter is slow
    shape = (1100, 2000)
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).bfloat16()
    mask = rng.random(shape) < density
    path = tmp_path / "big.tsw"
    task = tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(mask, 0.9)})
    tsw.build({"w": weights}, path, [task], vectors={"w": given_vector(shared, plain(shared, mask.size, 1))})
    with tsw.open(path) as theirs, tsw_torch.open(path, device=backend.device) as ours:
        array = np.frombuffer(raw(weights), np.uint16).reshape(shape)
        wanted = tensor_of(np.asarray(theirs.switch("w").apply(array, 0.3)), torch.bfloat16)
        delta = torch.from_numpy(np.asarray(theirs.switch("w").delta(0.3))).view(-1)
        switch = ours.switch("w").packed()
    target = weights.clone().to(backend.device)
    other = target.new_zeros(switch.active)
    adding = Job(Mode.SAVE_AND_ADD, target, switch, 0.3, other)
    done = backend.run([adding])
    assert sum(job.switch.active for job in done) == switch.active
    assert same(target, wanted)
    assert same(other, weights[torch.from_numpy(mask)])
    backend.run([replace(job, mode=Mode.PUT_BACK) for job in done])
    assert same(target, weights)
    part, stop = switch.part(1, 3), weights.numel()
    flat = weights.view(-1)[CHUNK:stop].clone().to(backend.device)
    other = flat.new_zeros(switch.active)
    adding = Job(Mode.SAVE_AND_ADD, flat, part, 0.3, other, origin=CHUNK)
    backend.run([adding])
    assert same(flat, wanted.view(-1)[CHUNK:])
    backend.run([replace(adding, mode=Mode.PUT_BACK)])
    assert same(flat, weights.view(-1)[CHUNK:])
    values = torch.full(flat.shape, 9.0, device=backend.device)
    backend.run([Job(Mode.VALUES, values, part, 0.3, origin=CHUNK)])
    chosen = torch.from_numpy(mask).view(-1)[CHUNK:]
    assert same(values, torch.where(chosen, delta[CHUNK:], 9.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_sums_are_rounded_once(files: dict[tuple[str, str], Path], dtype: str, backend: Backend) -> None:
    base = tensors(FLOATS[dtype])
    for shared in SHARED:
        path = files[dtype, shared]
        for chosen in ({"math": 0.6, "code": 1.0}, {"law": 1.0, "math": -0.3}, {"code": 1.0, "law": 0.2, "math": 3.0}):
            expected = restored(base, path, chosen)
            with tsw_torch.open(path, device=backend.device) as file:
                for name in ("matrix", "cube", "scalar"):
                    terms = [(file.switch(name, task).packed(), a) for task, a in chosen.items()]
                    target = matrix(base[name]).clone().to(backend.device)
                    backend.module.add_rounded(target, terms)
                    assert same(target, matrix(expected[name]))


@pytest.mark.parametrize("backend", FUSED)
def test_triton_leaves_only_what_it_cannot_to_plain_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    case = Case(tmp_path, "BF16", "F32", 0.2, 1.0, "archive")
    with tsw_torch.open(case.path, device=backend.device) as file:
        switch = file.switch("w").packed()
    left: list[Mode] = []
    plain_run = reference.run

    def recording(jobs: Sequence[Job], done: list[Job]) -> None:
        left.extend(job.mode for job in jobs)
        plain_run(jobs, done)

    monkeypatch.setattr(reference, "run", recording)
    target = case.weights.to(backend.device)
    other = target.new_zeros(switch.active)
    for mode in (Mode.SAVE, Mode.ADD, Mode.PUT_BACK, Mode.SAVE_AND_ADD):
        backend.run([Job(mode, target, switch, 1.0, other)])
    assert left == [Mode.ADD, Mode.SAVE_AND_ADD]
    case.file.close()


# ---------------------------------------------------------------------------------------------------------------- bank


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("shared", SHARED)
def test_weights_are_those_that_restore_writes(
    files: dict[tuple[str, str], Path], kind: str, shared: str, backend: str
) -> None:
    base, path = tensors(FLOATS[kind]), files[kind, shared]
    model = copies(base)
    bank = filled(model, path)
    for wanted in COMBINATIONS:
        bank.activate(wanted)
        assert bits(model) == restored_bits(base, path, wanted), wanted
    with bank.active("math"), bank.active({"code": 1.0, "law": 0.1}):
        assert bits(model) == restored_bits(base, path, {"code": 1.0, "law": 0.1})
    bank.deactivate()
    assert bits(model) == bits(base)
    assert bank.current == {}
    bank.remove("math")
    bank.release()
    bank.activate("code")
    assert bits(model) == restored_bits(base, path, "code")
    bank.deactivate()
    assert bits(model) == bits(base)


@pytest.mark.parametrize("options", [{"profile": "mapped"}, {"threads": 3}, {"staging": True}, {"backend": "pread"}])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_however_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
) -> None:
    base = tensors(FLOATS[kind])
    profile = {"profile": options.pop("profile")} if "profile" in options else {}
    if options.pop("staging", False):
        monkeypatch.setattr("tswitch_format.torch.expert.Staging", lambda device, _: Staging(device, 8192, always=True))
    path = write(base, tmp_path / "all.tsw", "BF16", USUAL, **profile)
    model = copies(base)
    bank = filled(model, path, **options)
    for wanted in ({"math": 1.0}, {"math": 0.5, "code": 1.0, "law": 2.0}):
        bank.activate(wanted)
        assert bits(model) == restored_bits(base, path, wanted)
    bank.deactivate()
    assert bits(model) == bits(base)


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_many_chunks(tmp_path: Path, kind: str, backend: str) -> None:
    make = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(1100, 2000, generator=make).to(FLOATS[kind]), "v": torch.randn(9, generator=make)}
    path = write(base, tmp_path / "all.tsw", "F32", {"math": (0.3, 0.5), "code": (0.01, 1.0)})
    model = copies(base)
    bank = filled(model, path)
    for wanted in ({"math": 1.0}, {"code": 0.3, "law": 1.0}, {"math": 1.0, "code": -1.0}):
        bank.activate(wanted)
        assert bits(model) == restored_bits(base, path, wanted)
    bank.deactivate()
    assert bits(model) == bits(base)


def test_weights_with_strides_in_a_bank(files: dict[tuple[str, str], Path], backend: str) -> None:
    for kind in FLOATS:
        base = tensors(FLOATS[kind])
        model = copies(base)
        model["matrix"] = base["matrix"].t().contiguous().t()
        bank = filled(model, files[kind, "F16"])
        for wanted in ({"math": 1.0}, {"math": 1.0, "law": 1.0}):
            bank.activate(wanted)
            assert bits(model) == restored_bits(base, files[kind, "F16"], wanted)
        bank.deactivate()
        assert bits(model) == bits(base)


@pytest.mark.parametrize("kind", FLOATS)
def test_applying_for_good(files: dict[tuple[str, str], Path], kind: str) -> None:
    base = tensors(FLOATS[kind])
    for task, coefficient in (("math", 1.0), ("code", -0.3)):
        model = copies(base)
        apply_(model, files[kind, "BF16"], task=task, coefficient=coefficient)
        assert bits(model) == restored_bits(base, files[kind, "BF16"], {task: coefficient})


def test_weights_of_another_type(files: dict[tuple[str, str], Path]) -> None:
    """With check_base=False the arithmetic is that of the weights' own type."""
    path = files["f32", "F64"]
    base = tensors(torch.float64)
    model = copies(base)
    bank = SwitchBank(model)
    with pytest.raises(tsw.BaseMismatchError):
        bank.add("math", path)
    bank.add("code", path, check_base=False)
    bank.activate({"code": 0.3})
    with tsw.open(path) as file:
        for name in file.keys("code"):
            wanted = file.switch(name, "code").apply(base[name].numpy(), 0.3, check_base=False)
            assert_same(model[name], np.asarray(wanted))
    bank.deactivate()
    assert bits(model) == bits(base)


def test_tied_weights(tmp_path: Path, backend: str) -> None:
    base = TiedNet()
    path = write(base, tmp_path / "all.tsw", "BF16", USUAL)
    model = TiedNet()
    bank = filled(model, path)
    for wanted in ({"math": 1.0}, {"math": 0.4, "code": 1.0}, {"law": 1.0, "code": 1.0}):
        bank.activate(wanted)
        assert model.head.weight is model.embed.weight
        state, expected = bits(model), restored_bits(base, path, wanted)
        assert all(state[name] == expected[name] for name in expected)
        assert state["head.weight"] == state["embed.weight"] != bits(base)["embed.weight"]
    assert bank.memory_report().total == reachable(bank, model.state_dict())
    bank.deactivate()
    assert bits(model) == bits(base)
    untied = TiedNet()
    untied.head.weight = nn.Parameter(untied.embed.weight.detach().clone(), requires_grad=False)
    bank = filled(untied, path)
    bank.activate("math")
    assert (
        bits(untied)["head.weight"] == bits(untied)["embed.weight"] == restored_bits(base, path, "math")["embed.weight"]
    )
    assert bank.memory_report().total == reachable(bank, untied.state_dict())
    bank.deactivate()
    assert bits(untied) == bits(base)


@pytest.mark.parametrize("make", ["tall", "emr", "ties"])
@pytest.mark.parametrize("shared", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_files_of_the_methods(tmp_path: Path, make: str, shared: str, kind: str) -> None:
    base = tensors(FLOATS[kind])
    experts = {name: tuned(base, seed) for seed, name in enumerate(("math", "code", "law"), 1)}
    path = tmp_path / "all.tsw"
    if make == "emr":
        tsw.make_emr(base, experts, path, shared_dtype=shared)
    else:
        tsw.make_tall(base, experts, path, ties=make == "ties", shared_dtype=shared)
    model = copies(base)
    bank = filled(model, path)
    one_copy = sum(vector.nbytes for vector in bank._experts["math"].vectors)
    assert sum(bank.memory_report().vectors.values()) <= 1.2 * one_copy
    for wanted in ({"math": 1.0}, {"law": 1.0}, {"math": 0.5, "code": 0.5, "law": -1.0}):
        bank.activate(wanted)
        assert bits(model) == restored_bits(base, path, wanted)
    bank.deactivate()
    assert bits(model) == bits(base)


# -------------------------------------------------------------------------------------------------------------- memory


def test_each_vector_is_there_once(tmp_path: Path, files: dict[tuple[str, str], Path]) -> None:
    """Shared by tasks of a file, by files, by banks; counted once; given back with the last that holds it."""
    base, path = tensors(), files["f32", "F32"]
    again = write(base, tmp_path / "again.tsw", "F32", {"more": (0.3, 2.0)})  # the same vectors, other masks
    narrow = write(base, tmp_path / "narrow.tsw", "F16", {"half": (0.3, 2.0)})
    model = copies(base)
    bank = SwitchBank(model)
    bank.add("law", path)
    assert sum(bank.memory_report().vectors.values()) == 0
    expected = sum(4 * tensor.numel() for name, tensor in base.items() if tensor.is_floating_point())
    for name, file in (("math", path), ("code", path), ("more", again)):
        bank.add(name, file)
        report = bank.memory_report()
        assert report.vectors == {torch.device("cpu"): expected}
        assert report.total == reachable(bank, model)
        assert report.total == sum(sum(sizes.values()) for sizes in report.experts.values()) + expected
    one, other = (bank._experts[name].switches["matrix"].vector for name in ("math", "more"))
    assert one is not None and one is other
    bank.add("half", narrow)
    assert sum(bank.memory_report().vectors.values()) == expected * 3 // 2
    bank.activate({"math": 1.0, "half": 1.0})
    assert bank.memory_report().total == reachable(bank, model)
    bank.deactivate()
    second = SwitchBank(copies(base))
    second.add("math", path)
    assert second._experts["math"].switches["matrix"].vector is one
    with tsw_torch.open(path) as opened:
        assert opened.switch("matrix", "code").packed().vector is one
        assert opened.switch("matrix", "code")[3:5].packed().vector is not one
    pointer = one.data_ptr()
    del one, other
    for name in ("math", "code"):
        bank.remove(name)
    assert sum(bank.memory_report().vectors.values()) == expected * 3 // 2
    bank.remove("more")
    bank.remove("half")
    assert sum(bank.memory_report().vectors.values()) == 0
    assert bank.memory_report().total == reachable(bank, model)
    gc.collect()
    assert sum(vector.nbytes for vector in vectors._held.values()) == expected
    assert any(vector.data_ptr() == pointer for vector in vectors._held.values())
    del second
    gc.collect()
    assert not held()


def test_threads_that_add_at_once_share(files: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    data = SharedArray.data

    def recording(self: SharedArray, chunk: int) -> Any:
        read.append(self.spec.name)
        return data(self, chunk)

    monkeypatch.setattr(SharedArray, "data", recording)
    base, path = tensors(), files["f32", "F16"]
    model = copies(base)
    bank = SwitchBank(model)
    barrier = threading.Barrier(4)

    def add(number: int) -> None:
        barrier.wait()
        bank.add(str(number), path, task=("math", "code")[number % 2])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert sorted(read) == sorted(set(read))  # each was read by one of them
    assert bank.memory_report().total == reachable(bank, model)
    assert len({id(expert.switches["matrix"].vector) for expert in bank._experts.values()}) == 1
    bank.activate({"0": 1.0, "1": 1.0})
    assert bits(model) == restored_bits(base, path, {"math": 1.0, "code": 1.0})
    bank.deactivate()


def test_vectors_of_equal_content_under_two_names_are_one(tmp_path: Path) -> None:
    base = {"a": torch.zeros(6, 8), "b": torch.zeros(48), "c": torch.zeros(0, 3)}
    vector = plain("F32", 48, 1)
    masks = {name: tsw.GivenMask.of_flags(np.ones(tuple(base[name].shape))) for name in ("a", "b")}
    path = tmp_path / "all.tsw"
    of = {name: given_vector("F32", vector) for name in ("a", "b")}
    masks["c"], of["c"] = tsw.GivenMask.of_flags(np.ones((0, 3))), given_vector("F32", vector[:0])
    tsw.build(base, path, [tsw.GivenTask("t", masks)], vectors=of)
    model = copies(base)
    bank = SwitchBank(model)
    bank.add("t", path)
    assert sum(bank.memory_report().vectors.values()) == 4 * 48
    bank.activate("t")
    assert bits(model) == restored_bits(base, path, "t")


def test_what_lies_of_its_vector_is_refused(
    files: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would else be found by the digest for other files."""
    bank = SwitchBank(tensors())
    with monkeypatch.context() as patch:
        patch.setattr(SharedArray, "sha256", property(lambda self: bytes(32)))
        with pytest.raises(tsw.FormatError, match="TSW-804"):
            bank.add("math", files["f32", "F32"])
    assert bank.experts == []
    assert not held()
    bank.add("math", files["f32", "F32"])


@pytest.mark.parametrize("profile", lay.PROFILES)
def test_a_damaged_vector_is_an_error(tmp_path: Path, profile: str) -> None:
    base = tensors()
    path = write(base, tmp_path / "all.tsw", "F32", USUAL, profile=profile)
    with tsw.open(path) as file:
        entry = file.switch("matrix", "math").entry.vector
        record = entry._record(entry.segments[0])
        offset = int(record["offset"])
    content = bytearray(path.read_bytes())
    content[offset + 9] ^= 1
    path.write_bytes(content)
    model = copies(base)
    bank = SwitchBank(model)
    for name in ("math", "code"):
        with pytest.raises(tsw.FormatError, match="TSW-701"):
            bank.add(name, path)
    bank.add("law", path)
    with tsw_torch.open(path) as file:
        file.switch("cube", "math").delta()  # others are whole
        with pytest.raises(tsw.FormatError):
            file.load(task="math")
        with pytest.raises(tsw.FormatError):
            file.switch("matrix", "math")[1:3].packed()
        assert set(file.load(task="law")) == set(file.keys("law"))


# ---------------------------------------------------------------------------------------------------------- interrupts


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, backend: str) -> Iterator[Faults]:
    found = Faults()
    monkeypatch.setattr(reference, "_run_chunk", found.wrap(reference._run_chunk))
    if kernels.backend_of(torch.device("cpu")) == "compiled" and backend == "fastest":
        compiled = pytest.importorskip("tswitch_format.switch.compiled")
        monkeypatch.setattr(compiled, "run", found.wrap(compiled.run))
    yield found
    found.error = InjectedError()  # the old one's traceback holds banks


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("error", [InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize("first", [None, {"law": 1.0}, {"math": 0.5, "law": 1.0}])
def test_a_kernel_that_fails_leaves_what_was_active(
    files: dict[tuple[str, str], Path],
    faults: Faults,
    kind: str,
    first: dict[str, float] | None,
    error: type[BaseException],
    backend: str,
) -> None:
    base, path = tensors(FLOATS[kind]), files[kind, "F16"]
    for second in ({"math": 1.0}, {"code": 0.5, "law": 1.0}):
        model = copies(base)
        bank = filled(model, path)
        if first is not None:
            bank.activate(first)
        before, current = bits(model), dict(bank.current)
        with faults.at(None):
            bank.activate(second)
        calls, after = faults.calls, bits(model)
        assert calls > 1
        for number in range(0, calls, max(1, calls // 12)):
            for late in (False, True) if backend == "reference" else (False,):
                bank.deactivate()
                if first is not None:
                    bank.activate(first)
                with faults.at(number, error("injected"), after=late), pytest.raises(error):
                    bank.activate(second)
                assert bits(model) == before, (number, calls)
                assert bank.current == current, (number, calls)
                bank.activate(second)
                assert bits(model) == after, (number, calls)
        bank.deactivate()
        assert bits(model) == bits(base)


def test_a_chunk_that_fails_in_the_middle_is_undone(tmp_path: Path, faults: Faults, backend: str) -> None:
    """Of a tensor of several chunks, at every call of a kernel."""
    base = {"w": torch.randn(1100, 2000, generator=torch.Generator().manual_seed(0))}
    path = write(base, tmp_path / "all.tsw", "BF16", {"math": (0.01, 1.0), "code": (0.2, 0.5)})
    model = copies(base)
    bank = filled(model, path)
    for wanted in ({"math": 1.0}, {"code": 1.0, "math": 1.0}):
        for number in itertools.count():
            with faults.at(number):
                try:
                    bank.activate(wanted)
                except InjectedError:
                    assert bits(model) == bits(base), number
                    assert bank.current == {}
                    continue
            break
        assert number > 2
        assert bits(model) == restored_bits(base, path, wanted)
        bank.deactivate()
        assert bits(model) == bits(base)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_line(files: dict[tuple[str, str], Path], step: int) -> None:
    base, path = tensors(torch.bfloat16), files["bf16", "F32"]
    model = copies(base)
    bank = filled(model, path)
    known: dict[tuple[tuple[str, float], ...], dict[str, bytes]] = {(): bits(base)}
    for wanted in ({"math": 1.0}, {"code": 1.0, "law": 0.5}):
        bank.activate(wanted)
        known[tuple(wanted.items())] = bits(model)
    for number in itertools.count(0, step):
        bank.activate({"math": 1.0})
        with Interrupts(number) as interrupts, contextlib.suppress(KeyboardInterrupt):
            bank.activate({"code": 1.0, "law": 0.5})
        if not interrupts.place:
            break
        assert bits(model) == known[tuple(bank.current.items())], interrupts.place
        bank.activate({"code": 1.0, "law": 0.5})
        bank.deactivate()
        assert bits(model) == bits(base), interrupts.place
    assert number > 20


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_interrupts_at_random_times(tmp_path: Path) -> None:
    make = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(1024, 512, generator=make), "b": torch.randn(2048, 600, generator=make).bfloat16()}
    path = write(base, tmp_path / "all.tsw", "F32", {"math": (0.3, 1.0), "code": (0.1, 0.5)})
    combinations: list[dict[str, float]] = [{"math": 1.0}, {"code": 0.5, "math": 0.5}]
    model = copies(base)
    bank = filled(model, path)
    known: dict[tuple[tuple[str, float], ...], dict[str, bytes]] = {(): bits(base)}
    for wanted in combinations:
        bank.activate(wanted)
        known[tuple(wanted.items())] = bits(model)
    assert interrupted_at_random(bank, model, combinations, known, turns=60, seconds=0.02) > 5


# ------------------------------------------------------------------------------------------------------- mixed batches


class Net(nn.Module):
    """A linear layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def test_mixed_batches_refuse_them(tmp_path: Path) -> None:
    model = Net()
    path = write(model, tmp_path / "all.tsw", "F32", USUAL)
    bank = filled(model, path)
    x = torch.ones(2, 8)

    def mixed() -> None:
        with bank.mixed(["law", None]):
            model(x)

    refused: list[Callable[[], Any]] = [lambda: bank.forward_mixed(x, task_ids=["law", "math"]), mixed]
    with tsw_torch.open(path) as file:
        switches = {task: file.load(task=task) for task in file.tasks}
    weight, bias, law = (
        {"t": switches[task][f"layer.{name}"]}
        for task, name in (("math", "weight"), ("math", "bias"), ("law", "weight"))
    )
    refused += [lambda: SwitchLinear(model.layer, weight), lambda: SwitchLinear(model.layer, law, bias)]  # type: ignore[arg-type]
    for act in refused:
        with pytest.raises(tsw.OptionError, match=r"found a masked one.*activate one expert at a time"):
            act()
    with bank.active("math"):
        model(x)
    bank.remove("math")
    bank.remove("code")
    bank.forward_mixed(x, task_ids=["law", None])


def test_what_has_no_mask(files: dict[tuple[str, str], Path]) -> None:
    with tsw_torch.open(files["f32", "F32"]) as file:
        with pytest.raises(tsw.OptionError, match="masked, not dense"):
            file.switch("matrix", "math").data()
        out = torch.zeros(40, 33)
        run([Job(Mode.ADD, out, file.switch("matrix", "math").packed())])
        assert torch.equal(out, file.switch("matrix", "math").delta())
