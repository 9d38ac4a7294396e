"""A model becomes what `restore` writes, bit for bit; on any error it is what it was, bit for bit."""

from __future__ import annotations

import _thread
import inspect
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_models import (
    GOLDEN,
    NEEDS_CUDA,
    TORCH,
    Network,
    damaged,
    one_line,
    raw,
    segments,
    state,
    tensors,
    tuned,
)

import tswitch_format as tsw
import tswitch_format.torch as tsw_torch
from tswitch_format import _layout as lay
from tswitch_format.switch import compiled
from tswitch_format.torch import kernels
from tswitch_format.torch.kernels import reference

pytestmark = pytest.mark.filterwarnings("error")

DENSE = ["wide.bias", "norm.num_batches_tracked", "brain.bias"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apply")


@pytest.fixture(scope="module")
def expert() -> dict[str, Tensor]:
    made = tuned(Network().state_dict())
    made["norm.num_batches_tracked"] += 7
    return made


@pytest.fixture(scope="module")
def file(folder: Path, expert: dict[str, Tensor]) -> Path:
    """The expert as a task, some tensors dense."""
    tsw.pack(Network(), expert, folder / "expert.tsw", density=0.2, dense=DENSE, threads=1)
    return folder / "expert.tsw"


@pytest.fixture(scope="module")
def several(folder: Path, file: Path) -> Path:
    """Three tasks."""
    made = [file]
    for seed in (2, 3):
        made.append(folder / f"{seed}.tsw")
        options: dict[str, Any] = {"select": ("global", "tensor")[seed % 2], "knob_dtype": ("f16", "f32")[seed % 2]}
        base = Network()
        tsw.pack(base, tuned(base.state_dict(), seed), made[-1], task=f"task {seed}", density=0.5, **options)
    tsw.bundle(made, folder / "several.tsw")
    return folder / "several.tsw"


@pytest.fixture(scope="module")
def large(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Tensors of several chunks."""
    generator = torch.Generator().manual_seed(0)
    base = {
        "a": torch.randn(1100, 1000, generator=generator).bfloat16(),
        "b": torch.randn(1100, 2000, generator=generator),
        "c": torch.randn(lay.CHUNK + 7, generator=generator).half(),
        "d": torch.randn(2, generator=generator),
    }
    tsw.pack(base, tuned(base), folder / "large.tsw", density=0.01, dense=["d"])
    return base, folder / "large.tsw"


def restored(base: Any, path: Path, out: Path, task: str | None = None, coefficient: float = 1.0) -> dict[str, bytes]:
    """What `restore` writes, by name; of tied names at least one."""
    with tsw.open(path) as opened:
        name = task if task is not None else opened.tasks[0]
    tsw.restore(base, path, out, tasks=[(name, coefficient)], threads=1)
    return {name: raw(tensor) for name, tensor in load_file(out).items()}


def assert_restored(found: dict[str, bytes], expected: dict[str, bytes], tied: Mapping[str, str] | None = None) -> None:
    ties = {} if tied is None else tied
    assert {ties.get(name, name) for name in found} == {ties.get(name, name) for name in expected}
    expected = {ties.get(name, name): content for name, content in expected.items()}
    assert [name for name in found if found[name] != expected[ties.get(name, name)]] == []


# ------------------------------------------------------------------------------------------------------- as restore does


@pytest.mark.parametrize("coefficient", [1, -0.7, 0, 1e-45, 3.5])
@pytest.mark.parametrize("kind", ["module", "mapping"])
def test_a_model_becomes_what_restore_writes(
    file: Path, tmp_path: Path, kind: str, coefficient: float, device: str
) -> None:
    expected = restored(Network(), file, tmp_path / "out.safetensors", coefficient=coefficient)
    model = Network().to(device)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    given = model if kind == "module" else model.state_dict()
    assert tsw_torch.apply_(given, file, coefficient=coefficient) is None  # type: ignore[func-returns-value]
    assert_restored(state(model), expected, {"head.weight": "embedding.weight"})
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before, "in place"
    assert model.head.weight is model.embedding.weight
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("backend", ["auto", "mmap", "pread"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("task", ["task", "task 2", "task 3"])
def test_one_of_several_tasks(
    several: Path, tmp_path: Path, task: str, backend: Any, threads: int, device: str
) -> None:
    expected = restored(Network(), several, tmp_path / "out.safetensors", task)
    model = Network().to(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tsw_torch.apply_(model, several, task=task, backend=backend, threads=threads)
    finally:
        torch.set_num_threads(before)
    assert_restored(state(model), expected, {"head.weight": "embedding.weight"})


@pytest.mark.parametrize("kernel", ["fastest", "reference"])
@pytest.mark.parametrize("profile", lay.PROFILES)
def test_tensors_of_several_chunks(
    large: tuple[dict[str, Tensor], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    profile: str,
    device: str,
) -> None:
    base, path = large
    tsw.repack(path, tmp_path / "x.tsw", profile=profile)
    if kernel == "reference":
        monkeypatch.setattr(kernels, "_backend", lambda kind: reference)
    expected = restored(base, path, tmp_path / "out.safetensors", coefficient=0.3)
    model = {name: tensor.clone().to(device) for name, tensor in base.items()}
    tsw_torch.apply_(model, tmp_path / "x.tsw", coefficient=0.3)
    assert_restored(state(model), expected)


@pytest.mark.parametrize("dtype", TORCH)
def test_every_shape_of_every_dtype(folder: Path, tmp_path: Path, dtype: str, device: str) -> None:
    base = tensors(TORCH[dtype])
    for number, density in enumerate((0.01, 1.0)):
        path = tmp_path / f"{number}.tsw"
        tsw.pack(base, tuned(base), path, density=density, profile=lay.PROFILES[number])
        expected = restored(base, path, tmp_path / "out.safetensors", coefficient=-1.5)
        model = {name: tensor.clone().to(device) for name, tensor in base.items()}
        tsw_torch.apply_(model, path, coefficient=-1.5)
        assert_restored(state(model), expected)


def test_numbers_beyond_the_range_and_next_to_zero(tmp_path: Path, device: str) -> None:
    """Infinities, subnormals, zeros of both signs in the base; sums that overflow, and round to subnormals."""
    for dtype in TORCH.values():
        info = torch.finfo(dtype)
        special = [0.0, -0.0, info.max, -info.max, info.tiny, -info.tiny, info.smallest_normal / 4, 1.0]
        base = {"w": torch.tensor(special * 8, dtype=torch.float64).to(dtype)}
        for knob in (info.max / 2, info.tiny / 2):
            step = torch.tensor([knob, -knob] * 32, dtype=torch.float64).to(dtype)
            moved = (base["w"].double() + step.double()).clamp(-info.max, info.max).to(dtype)
            if not moved.isfinite().all() or (dtype == torch.float64 and knob > 1):
                continue
            tsw.pack(base, {"w": moved}, tmp_path / "x.tsw", density=1.0)
            for coefficient in (1, -2):
                expected = restored(base, tmp_path / "x.tsw", tmp_path / "out.safetensors", coefficient=coefficient)
                model = {"w": base["w"].clone().to(device)}
                tsw_torch.apply_(model, tmp_path / "x.tsw", coefficient=coefficient)
                assert_restored(state(model), expected)


def test_strided_weights(file: Path, tmp_path: Path, device: str) -> None:
    """Transposed, and columns of larger tensors, whose other elements stay."""
    expected = restored(Network(), file, tmp_path / "out.safetensors")
    model = {name: tensor.to(device) for name, tensor in Network().state_dict().items()}
    del model["head.weight"]
    for name in ("low.weight", "brain.weight", "wide.weight"):
        model[name] = model[name].t().contiguous().t()
    around = {}
    for name in ("embedding.weight", "low.bias", "norm.running_mean", "brain.bias", "conv.weight"):
        whole = model[name]
        if whole.ndim == 1:
            around[name] = torch.full((len(whole), 3), 7, dtype=whole.dtype, device=device)
            view = around[name][:, 1]
        else:
            around[name] = torch.full(
                (len(whole), whole.shape[1] + 2, *whole.shape[2:]), 7, dtype=whole.dtype, device=device
            )
            view = around[name][:, 1:-1]
        view.copy_(whole)
        model[name] = view
    tsw_torch.apply_(model, file)
    assert_restored(state(model), expected, {"head.weight": "embedding.weight"})
    for memory in around.values():
        assert (memory[:, 0] == 7).all() and (memory[:, -1] == 7).all()


def test_columns_of_one_matrix_are_tensors_of_their_own(tmp_path: Path, device: str) -> None:
    """Their memory interleaves, but they share no element: a fused projection in parts."""
    fused = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
    parts = {"q": fused[:, :16].clone(), "k": fused[:, 16:28].clone(), "v": fused[:, 28:].clone()}
    tsw.pack(parts, tuned(parts), tmp_path / "x.tsw", density=0.5)
    expected = restored(parts, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    memory = fused.clone().to(device)
    model = {"q": memory[:, :16], "k": memory[:, 16:28], "v": memory[:, 28:]}
    before = raw(memory)
    try:
        tsw_torch.apply_(model, tmp_path / "x.tsw")
    except tsw.OptionError as error:  # a program may be careful, if it says so and changes nothing
        assert "share memory" in one_line(error)
        assert raw(memory) == before
    else:
        assert_restored(state(model), expected)


def test_rows_of_one_matrix_are_tensors_of_their_own(tmp_path: Path, device: str) -> None:
    fused = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
    parts = {"q": fused[:4].clone(), "k": fused[4:8].clone(), "v": fused[8:].clone()}
    tsw.pack(parts, tuned(parts), tmp_path / "x.tsw", density=0.5)
    expected = restored(parts, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    memory = fused.clone().to(device)
    model = {"q": memory[:4], "k": memory[4:8], "v": memory[8:]}
    tsw_torch.apply_(model, tmp_path / "x.tsw")
    assert_restored(state(model), expected)


@pytest.mark.parametrize("dtype", TORCH)
def test_weights_of_another_float_dtype(tmp_path: Path, dtype: str, device: str) -> None:
    """check_base=False: what NumPy's `apply` gives for the same elements."""
    base = {"w": torch.randn(37, 50, generator=torch.Generator().manual_seed(2)), "f": torch.zeros(3)}
    tsw.pack(base, tuned(base), tmp_path / "x.tsw", density=0.2)
    model = {name: tensor.to(device, TORCH[dtype]) for name, tensor in base.items()}
    if dtype != "F32":
        before = state(model)
        with pytest.raises(tsw.BaseMismatchError, match=rf"'f': expected F32\[3\], found {dtype}\[3\]"):
            tsw_torch.apply_(model, tmp_path / "x.tsw")
        assert state(model) == before
    wide = torch.float64 if dtype == "F64" else torch.float32
    with tsw.open(tmp_path / "x.tsw") as opened:
        array = model["w"].cpu().to(wide).numpy()
        if dtype == "BF16":
            expected = torch.from_numpy(array + np.float32(0.5) * opened.switch("w").delta()).to(TORCH[dtype])
        else:
            given = array.astype(np.float16) if dtype == "F16" else array
            expected = torch.from_numpy(opened.switch("w").apply(given, 0.5, check_base=False))
    tsw_torch.apply_(model, tmp_path / "x.tsw", coefficient=0.5, check_base=False)
    assert raw(model["w"]) == raw(expected)


def test_other_content_with_check_base_off(file: Path, device: str) -> None:
    model = Network(seed=5).to(device)
    before = state(model)
    tsw_torch.apply_(model, file, check_base=False)
    with tsw.open(file) as opened:
        for name in ("low.weight", "brain.weight", "conv.weight"):
            active = torch.from_numpy(opened.switch(name).mask())
            changed = model.state_dict()[name].cpu() != Network(seed=5).state_dict()[name]
            assert (changed <= active).all() and changed.any()
    assert state(model) != before


def retyped(path: Path) -> dict[str, Tensor]:
    """A base of F32 and a file that makes F16 of it."""
    base = {"w": torch.randn(8, 8, generator=torch.Generator().manual_seed(2))}
    tsw.pack(base, {"w": (base["w"] + 0.1).half()}, path, density=0.5)
    return base


@pytest.mark.parametrize("check", [True, False])
def test_an_entry_of_another_dtype_does_not_become_one_of_the_base(tmp_path: Path, check: bool) -> None:
    """The expert's tensor is F16: a F32 weight in place cannot be it, with check_base or without (spec section 10, step 3)."""
    base = retyped(tmp_path / "x.tsw")
    model = {"w": base["w"].clone()}
    with pytest.raises(tsw.OptionError, match=r"makes it F16, found torch.float32.*keeps its dtype"):
        tsw_torch.apply_(model, tmp_path / "x.tsw", check_base=check)
    assert raw(model["w"]) == raw(base["w"])


def test_an_entry_of_another_dtype_is_refused_whatever_the_coefficient(tmp_path: Path) -> None:
    """`restore` leaves the tensor with a coefficient of 0; in place such an entry is of no use, so it is refused at once."""
    base = retyped(tmp_path / "x.tsw")
    model = {"w": base["w"].clone()}
    for coefficient in (0, 1):
        with pytest.raises(tsw.OptionError, match="keeps its dtype"):
            tsw_torch.apply_(model, tmp_path / "x.tsw", coefficient=coefficient)
    assert state(model) == state(base)


# ---------------------------------------------------------------------------------------------------------------- ties


class Tied(nn.Module):
    """A weight under three names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6, bias=False)
        self.two = nn.Linear(6, 6, bias=False)
        self.three = nn.Linear(6, 6, bias=False)
        with torch.no_grad():
            self.one.weight.copy_(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
        self.two.weight = self.three.weight = self.one.weight
        self.requires_grad_(False)


@pytest.mark.parametrize("dense", [[], ["*"]])
def test_tied_weights_change_once(tmp_path: Path, dense: list[str], device: str) -> None:
    base = Tied()
    step = tuned(base.state_dict())
    tsw.pack(base, step, tmp_path / "x.tsw", density=1.0, dense=dense)
    (expected,) = set(restored(base, tmp_path / "x.tsw", tmp_path / "out.safetensors").values())
    for given in (lambda m: m, lambda m: m.state_dict(), lambda m: dict(reversed(m.state_dict().items()))):
        model = Tied().to(device)
        tsw_torch.apply_(given(model), tmp_path / "x.tsw")
        assert set(state(model).values()) == {expected}
        assert model.one.weight is model.two.weight is model.three.weight


def test_a_mapping_may_leave_tied_names_out_or_have_others(tmp_path: Path) -> None:
    base = Tied()
    tsw.pack(base, tuned(base.state_dict()), tmp_path / "x.tsw", density=0.5)
    (expected,) = set(restored(base, tmp_path / "x.tsw", tmp_path / "out.safetensors").values())
    for names in (["two.weight"], ["one.weight", "three.weight"], ["three.weight", "two.weight"]):
        weight = base.one.weight.detach().clone()
        model = dict.fromkeys(names, weight)
        tsw_torch.apply_(model, tmp_path / "x.tsw")
        assert {raw(tensor) for tensor in model.values()} == {expected}


def test_an_untied_model_gets_each_copy_changed(tmp_path: Path) -> None:
    base = Tied()
    tsw.pack(base, tuned(base.state_dict()), tmp_path / "x.tsw", density=0.5)
    model = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    expected = restored(model, tmp_path / "x.tsw", tmp_path / "out.safetensors")
    tsw_torch.apply_(model, tmp_path / "x.tsw")
    assert_restored(state(model), expected)
    assert len(set(expected.values())) == 1


def test_a_tie_that_the_file_lacks_is_refused_where_the_values_differ(tmp_path: Path) -> None:
    base = {"a": torch.ones(4, 4), "b": torch.ones(4, 4)}
    other = {"a": torch.eye(4) * 2, "b": -torch.eye(4)}
    tsw.pack(base, other, tmp_path / "x.tsw", density=1.0)
    one = torch.ones(4, 4)
    model = {"a": one, "b": one}
    with pytest.raises(tsw.OptionError, match="tied") as caught:
        tsw_torch.apply_(model, tmp_path / "x.tsw")
    one_line(caught.value)
    assert raw(one) == raw(base["a"])


# ----------------------------------------------------------------------------- on any error the model is what it was


class StopError(Exception):
    """Raised where no kernel raises it."""


@pytest.mark.parametrize("last", ["mask", "sign", "data"])
def test_a_damaged_last_chunk(large: tuple[dict[str, Tensor], Path], tmp_path: Path, last: str, device: str) -> None:
    base, path = large
    if last == "data":
        segment = segments(path)[-1]
    else:
        segment = [s for s in segments(path) if s.name == "c" and s.role == getattr(lay.Role, last.upper())][-1]
    broken = damaged(path, tmp_path / "x.tsw", [segment.offset])
    model = {name: tensor.clone().to(device) for name, tensor in base.items()}
    before = state(model)
    with pytest.raises(tsw.FormatError, match="CRC32C") as caught:
        tsw_torch.apply_(model, broken)
    assert caught.value.offset == segment.offset
    one_line(caught.value)
    assert state(model) == before


def test_each_damaged_segment(file: Path, tmp_path: Path) -> None:
    model = Network()
    before = state(model)
    for segment in segments(file):
        if segment.length:
            with pytest.raises(tsw.FormatError):
                tsw_torch.apply_(model, damaged(file, tmp_path / "x.tsw", [segment.offset]))
            assert state(model) == before


@pytest.mark.parametrize(
    "name", ["embedding.weight", "wide.bias", "norm.num_batches_tracked", "temperature", "norm.running_var"]
)
def test_wrong_content_of_any_tensor(file: Path, name: str, device: str) -> None:
    """Also of those that the task gives whole, and of integers that it does not touch."""
    model = Network().to(device)
    model.state_dict()[name].add_(1)
    before = state(model)
    with pytest.raises(tsw.BaseMismatchError, match=f"tensor '{name}'.*TSW-902") as caught:
        tsw_torch.apply_(model, file)
    assert caught.value.tensor == name
    one_line(caught.value)
    assert state(model) == before


def test_a_second_time_is_no_base(file: Path) -> None:
    model = Network()
    tsw_torch.apply_(model, file)
    before = state(model)
    with pytest.raises(tsw.BaseMismatchError, match="TSW-902"):
        tsw_torch.apply_(model, file)
    assert state(model) == before


Change = Callable[[dict[str, Any]], Any]


class _Subclass(Tensor):
    pass


def wrong() -> Iterator[Any]:
    """Models that are refused: (what makes one of the right one, error, message)."""

    def put(name: str, value: Callable[[Tensor], Any]) -> Change:
        return lambda m: m.update({name: value(m[name])})

    def rename(old: str, new: str) -> Change:
        return lambda m: m.update({new: m.pop(old)})

    base, checkpoint, option = tsw.BaseMismatchError, tsw.CheckpointError, tsw.OptionError
    name = "low.weight"
    yield "missing", lambda m: m.pop(name), base, "tensor 'low.weight': expected the tensor, found none"
    yield "extra", lambda m: m.update(more=torch.ones(3)), base, "tensor 'more': expected no tensor of that name"
    yield "renamed", rename(name, "low.weights"), base, r"tensor 'low.weights'.*near: 'low.weight'"
    yield "dense missing", lambda m: m.pop("wide.bias"), base, "tensor 'wide.bias': expected the tensor, found none"
    yield "prefix", lambda m: [rename(n, f"model.{n}")(m) for n in list(m)], base, r"near: 'brain.bias'"
    yield "shape", put(name, lambda t: t[:3].clone()), base, r"expected F16\[8, 16\], found F16\[3, 16\]"
    yield "transposed", put(name, lambda t: t.t()), base, r"found F16\[16, 8\]"
    yield "dtype", put(name, lambda t: t.float()), base, r"expected F16\[8, 16\], found F32\[8, 16\]"
    yield "integers", put(name, lambda t: t.int()), base, "found I32"
    yield "meta", put(name, lambda t: t.to("meta")), checkpoint, "'low.weight'.*meta device"
    yield "sparse", put(name, lambda t: t.to_sparse()), checkpoint, "'low.weight'.*sparse_coo"
    yield "subclass", put(name, lambda t: t.as_subclass(_Subclass)), checkpoint, "'low.weight'.*_Subclass"
    yield "number", put(name, lambda t: 3), checkpoint, "found int under 'low.weight'"
    yield "array", put(name, lambda t: t.numpy()), (option, checkpoint), "'low.weight'"
    yield "key", lambda m: m.update({3: torch.ones(1)}), checkpoint, "key 3"
    yield (
        "grad",
        put(name, lambda t: t.clone().requires_grad_()),
        option,
        r"'low.weight': it requires grad.*requires_grad_\(False\)",
    )
    yield (
        "channels",
        put("conv.weight", lambda t: t.to(memory_format=torch.channels_last)),
        option,
        "'conv.weight'.*contiguous",
    )
    yield (
        "expanded",
        put("norm.running_mean", lambda t: torch.zeros(1).expand(8)),
        (base, option),
        "'norm.running_mean'",
    )


WRONG = [pytest.param(change, error, message, id=name) for name, change, error, message in wrong()]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_models_that_are_refused(file: Path, change: Change, error: Any, message: str, check: bool) -> None:
    model: dict[str, Any] = dict(Network().state_dict())
    del model["head.weight"]
    change(model)
    if not check and "found F32" in message:
        return
    held = {n: t.as_subclass(Tensor) for n, t in model.items() if isinstance(t, Tensor) and t.layout is torch.strided}
    held = {n: t for n, t in held.items() if not t.is_meta}
    before = state(held)
    with pytest.raises(error, match=message) as found:
        tsw_torch.apply_(model, file, check_base=check)
    one_line(found.value)
    assert state(held) == before


def test_an_array_under_a_name_that_no_switch_changes(file: Path) -> None:
    """An error or none, but none of Python's own."""
    model: dict[str, Any] = dict(Network().state_dict())
    model["norm.running_var"] = model["norm.running_var"].numpy()
    before = state({name: tensor for name, tensor in model.items() if isinstance(tensor, Tensor)})
    try:
        tsw_torch.apply_(model, file)
    except tsw.TswError as error:
        one_line(error)
        del model["norm.running_var"]
        assert state(model) == before


def test_a_quantised_weight(file: Path) -> None:
    model: dict[str, Any] = dict(Network().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will have it elsewhere
        model["conv.weight"] = torch.quantize_per_tensor(model["conv.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(tsw.CheckpointError, match=r"'conv.weight'.*quantised tensor \(torch.qint8\)") as caught:
        tsw_torch.apply_(model, file)
    one_line(caught.value)


def test_tensors_that_overlap(tmp_path: Path) -> None:
    """Of which the content is right, so that only their memory is wrong."""
    memory = torch.arange(20.0)
    base = {"a": memory[:12].view(3, 4).clone(), "b": memory[8:].clone(), "c": memory[:12].view(4, 3).clone()}
    tsw.pack(base, tuned(base), tmp_path / "x.tsw", density=0.5)
    views = {"a": memory[:12].view(3, 4), "b": memory[8:], "c": memory[:12].view(4, 3)}
    for shared in (("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")):
        model = {name: views[name] if name in shared else base[name].clone() for name in base}
        before = state(model)
        with pytest.raises(tsw.OptionError, match=r"tensors '.' and '.' share memory") as caught:
            tsw_torch.apply_(model, tmp_path / "x.tsw")
        one_line(caught.value)
        assert state(model) == before


def test_tensors_that_overlap_but_stay_are_no_matter(tmp_path: Path) -> None:
    memory = torch.arange(20.0)
    base = {"a": memory[:12], "b": memory[8:], "w": torch.ones(4, 4)}
    tsw.pack(base, {**base, "w": torch.eye(4)}, tmp_path / "x.tsw", density=0.5)
    model = {**base, "w": torch.ones(4, 4)}
    tsw_torch.apply_(model, tmp_path / "x.tsw")
    assert raw(model["w"]) != raw(base["w"])


@pytest.mark.parametrize("model", [None, [], torch.ones(3), "model", 3, Network])
def test_what_is_no_model(file: Path, model: Any) -> None:
    with pytest.raises(
        tsw.OptionError, match=r"model: expected an nn\.Module or a mapping of tensors, found"
    ) as caught:
        tsw_torch.apply_(model, file)
    one_line(caught.value)


def test_a_model_without_tensors(file: Path) -> None:
    for model in ({}, nn.Identity()):
        with pytest.raises(tsw.BaseMismatchError, match="expected the tensor, found none"):
            tsw_torch.apply_(model, file)


def test_a_model_that_is_not_initialised(file: Path) -> None:
    with pytest.raises(tsw.TswError, match="no shape yet") as caught:
        tsw_torch.apply_(nn.LazyLinear(4), file)
    one_line(caught.value)


def test_a_model_that_requires_gradients(file: Path) -> None:
    model = Network()
    model.requires_grad_(True)
    before = state(model)
    with pytest.raises(tsw.OptionError, match=r"it requires grad.*model.requires_grad_\(False\) first"):
        tsw_torch.apply_(model, file)
    with torch.no_grad(), pytest.raises(tsw.OptionError, match="it requires grad"):
        tsw_torch.apply_(model, file)
    assert state(model) == before


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_wrappers_that_torch_makes_are_looked_through(file: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, inner = Network(), Network()
    inner.load_state_dict(plain.state_dict())
    tsw_torch.apply_(plain, file)
    tsw_torch.apply_(wrap(inner), file)
    assert state(inner.state_dict()) == state(plain.state_dict())


def test_wrapped_models_show_near_names(file: Path) -> None:
    model = nn.Sequential(Network())
    with pytest.raises(tsw.BaseMismatchError, match=r"near: 'brain\.bias'"):
        tsw_torch.apply_(model, file)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, tsw.OptionError, "it has 3 tasks: task, task 2, task 3; name one with task="),
        ({"task": "tsk"}, tsw.UnknownNameError, "no task named 'tsk' among 3; did you mean 'task'"),
        ({"task": "task", "coefficient": float("nan")}, tsw.OptionError, "expected a finite coefficient, found nan"),
        ({"task": "task", "coefficient": 1e39}, tsw.OptionError, r"expected a finite coefficient, found 1e\+39"),
        ({"task": "task", "coefficient": "much"}, tsw.OptionError, "expected a finite coefficient, found much"),
        ({"task": "task", "backend": "read"}, tsw.OptionError, "backend: expected 'auto', 'mmap' or 'pread'"),
        ({"task": "task", "threads": 0}, tsw.OptionError, "threads: expected a number from 1 up"),
        ({"task": "task", "staging_bytes": 7}, tsw.OptionError, "staging_bytes: expected at least 8192 bytes"),
    ],
)
def test_options_are_refused(several: Path, options: dict[str, Any], error: Any, message: str) -> None:
    model = Network()
    before = state(model)
    with pytest.raises(error, match=message) as caught:
        tsw_torch.apply_(model, several, **options)
    one_line(caught.value)
    assert state(model) == before


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(tsw.TswError, match=r"none.tsw: could not be read"):
        tsw_torch.apply_(Network(), tmp_path / "none.tsw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update({"added.bias": torch.ones(3)}), "has tensor 'added.bias'.*none of that name"),
        (lambda e: e.pop("temperature"), "'temperature' is removed in task 'task'"),
        (lambda e: e.update({"wide.bias": e["wide.bias"].float()}), "'wide.bias'.*makes it F32, found torch.float64"),
    ],
)
def test_experts_that_a_model_in_place_cannot_be(
    tmp_path: Path, expert: dict[str, Tensor], change: Change, message: str
) -> None:
    made = dict(expert)
    change(made)
    tsw.pack(Network(), made, tmp_path / "x.tsw", on_mismatch="dense", dense=["wide.bias"])
    model = Network()
    before = state(model)
    for check in (True, False):
        with pytest.raises(tsw.OptionError, match=message) as caught:
            tsw_torch.apply_(model, tmp_path / "x.tsw", check_base=check)
        one_line(caught.value)
        assert state(model) == before


def test_an_expert_with_a_tensor_of_another_shape_does_not_blame_the_base(
    tmp_path: Path, expert: dict[str, Tensor]
) -> None:
    tsw.pack(Network(), {**expert, "wide.bias": torch.ones(9).double()}, tmp_path / "x.tsw", on_mismatch="dense")
    model = Network()
    before = state(model)
    with pytest.raises(tsw.OptionError, match=r"'wide.bias'.*\[9\].*restore"):
        tsw_torch.apply_(model, tmp_path / "x.tsw")
    assert state(model) == before


# -------------------------------------------------------------------------------------- errors in the midst of a change


def failing(call: Callable[..., Any], number: int, error: type[BaseException]) -> Callable[..., Any]:
    """`call`, which fails at the call of that number."""
    numbers = itertools.count(1)

    def fails(*arguments: Any, **options: Any) -> Any:
        if next(numbers) == number:  # of itertools: right in threads too
            raise error
        return call(*arguments, **options)

    return fails


def calls_of(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, act: Callable[[], Any]) -> int:
    """How often `act` calls it."""
    real, count = getattr(where, name), itertools.count(1)
    last = [0]

    def counting(*arguments: Any, **options: Any) -> Any:
        last[0] = next(count)
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, counting)
    act()
    monkeypatch.setattr(where, name, real)
    return last[0]


@pytest.mark.parametrize("error", [StopError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("kernel", "where", "name"),
    [
        ("fastest", compiled, "run"),
        ("fastest", reference, "_run_chunk"),
        ("reference", reference, "_run_chunk"),
        ("reference", reference, "active_elements"),
        ("reference", reference, "signed_values"),
        ("reference", reference, "_places"),
    ],
)
def test_a_kernel_that_fails(
    file: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, where: Any, name: str, error: type[BaseException]
) -> None:
    """At its first call, its second, ... its last."""
    if kernel == "reference":
        monkeypatch.setattr(kernels, "_backend", lambda kind: reference)
    calls = calls_of(monkeypatch, where, name, lambda: tsw_torch.apply_(Network(), file))
    if where is not compiled or kernels.backend_of(torch.device("cpu")) == "compiled":
        assert calls > 2
    model = Network()
    before = state(model)
    real = getattr(where, name)
    for number in range(1, calls + 1):
        monkeypatch.setattr(where, name, failing(real, number, error))
        with pytest.raises(error):
            tsw_torch.apply_(model, file)
        monkeypatch.setattr(where, name, real)
        assert state(model) == before
    tsw_torch.apply_(model, file)


@pytest.mark.parametrize("name", ["copy_", "clone", "view"])
def test_a_method_of_torch_that_fails(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Those that dense entries use; at every call that `Activation` makes."""
    real = getattr(Tensor, name)
    model = Network()
    before = state(model)
    number = 0
    while True:
        number += 1
        numbers = itertools.count(1)

        def fails(*arguments: Any, numbers: Any = numbers, number: int = number, **options: Any) -> Any:
            caller = inspect.currentframe().f_back  # type: ignore[union-attr]
            if caller is not None and caller.f_code.co_filename.endswith("activation.py") and next(numbers) == number:
                raise StopError
            return real(*arguments, **options)

        monkeypatch.setattr(Tensor, name, fails)
        try:
            tsw_torch.apply_(model, file)
        except StopError:
            monkeypatch.setattr(Tensor, name, real)
            assert state(model) == before
        else:
            break
        finally:
            monkeypatch.setattr(Tensor, name, real)
    assert number > len(DENSE) or name == "view"
    assert state(model) != before


TRACED = (
    "apply.py",
    "activation.py",
    "weights.py",
    "combination.py",
    "reference.py",
    "compiled.py",
    "job.py",
    "packed.py",
)


def interrupted(act: Callable[[], Any], number: int) -> int | None:
    """Run `act` and raise KeyboardInterrupt at the line of that number that it runs in floor 4, on this thread. The number of
    lines where it came to its end."""
    lines = 0
    folder = str(Path(tsw_torch.__file__).parent)

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        path = frame.f_code.co_filename
        if not path.startswith(folder) or Path(path).name not in TRACED:
            return None
        if event == "line":
            lines += 1
            if lines == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return None
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("kernel", ["fastest", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, step: int) -> None:
    base = {"a": torch.ones(5, 4), "b": torch.ones(7).half(), "c": torch.ones(3), "i": torch.arange(4)}
    tsw.pack(base, {**tuned(base), "i": torch.arange(4) + 1}, tmp_path / "x.tsw", density=0.5, dense=["c", "i"])
    if kernel == "reference":
        monkeypatch.setattr(kernels, "_backend", lambda kind: reference)
    model = {name: tensor.clone() for name, tensor in base.items()}
    before = state(model)

    def act() -> None:
        tsw_torch.apply_(model, tmp_path / "x.tsw", threads=1)

    for number in range(1, 2000, step):
        if interrupted(act, number) is not None:
            break
        assert state(model) == before, f"line {number}"
    assert 100 < number < 2000
    assert state(model) != before


def test_a_real_interrupt_while_threads_work(
    large: tuple[dict[str, Tensor], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels.backend_of(torch.device("cpu")) != "compiled":
        pytest.skip("the reference works on this thread alone")
    base, path = large
    model = {name: tensor.clone() for name, tensor in base.items()}
    before = state(model)
    real = compiled.run
    numbers = itertools.count(1)

    def interrupts(*arguments: Any, **options: Any) -> None:
        if next(numbers) == 2:
            _thread.interrupt_main()
            time.sleep(0.05)  # while this part is still to come
        real(*arguments, **options)

    monkeypatch.setattr(compiled, "run", interrupts)
    with pytest.raises(KeyboardInterrupt):
        tsw_torch.apply_(model, path)
    monkeypatch.setattr(compiled, "run", real)
    assert state(model) == before


# ------------------------------------------------------------------------------------------------- autograd and modes


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made", [torch.enable_grad, torch.inference_mode])
def test_modes_of_torch(
    file: Path, tmp_path: Path, made: Callable[[], Any], mode: Callable[[], Any], device: str
) -> None:
    expected = restored(Network(), file, tmp_path / "out.safetensors")
    with made():
        model = Network().to(device)
    with mode():
        tsw_torch.apply_(model, file)
    assert_restored(state(model), expected, {"head.weight": "embedding.weight"})
    assert model.low.weight.is_inference() == (made is torch.inference_mode)


@pytest.mark.parametrize(
    "name", ["low.weight", "brain.weight", "wide.weight", "conv.weight", "brain.bias", "temperature"]
)
def test_autograd_notices_the_change(file: Path, name: str, device: str) -> None:
    model = Network().to(device)
    weight = model.state_dict(keep_vars=True)[name]
    x = torch.ones_like(weight, requires_grad=True)
    y = (x * weight).sum()
    tsw_torch.apply_(model, file)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_autograd_works_with_what_came_of_it(file: Path, device: str) -> None:
    model = Network().to(device)
    tsw_torch.apply_(model, file)
    model.requires_grad_(True)
    model(torch.arange(5, device=device)).sum().backward()
    assert model.embedding.weight.grad is not None


def test_refused_models_are_not_marked_as_changed(file: Path) -> None:
    model = Network()
    model.temperature.add_(1)
    x = torch.ones(8, 16, dtype=torch.float16, requires_grad=True)
    y = (x * model.low.weight).sum()
    with pytest.raises(tsw.BaseMismatchError):
        tsw_torch.apply_(model, file)
    y.backward()


# ------------------------------------------------------------------------------------------------- files of other kinds


def test_the_golden_pack(device: str) -> None:
    with tsw.open(GOLDEN / "packed.tsw") as opened:
        for task in opened.tasks:
            arrays = {
                "a": (((np.arange(4000) * 37) % 129 - 64) / 64).astype(np.float32).reshape(40, 100),
                "b": (((np.arange(500) * 37) % 129 - 64) / 64).astype(np.float16),
                "c": np.arange(7),
            }
            model = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
            tsw_torch.apply_(model, opened.path, task=task)
            for name, array in arrays.items():
                made = opened.switch(name, task).apply(array) if name in opened.keys(task) else array
                assert raw(model[name]) == made.tobytes()


def test_a_file_without_tasks() -> None:
    with pytest.raises(tsw.OptionError, match="it has 0 tasks"):
        tsw_torch.apply_({}, GOLDEN / "nothing.tsw")


def test_without_digests(device: str) -> None:
    """Nothing to compare with: names, dtypes and shapes are."""
    model = {"a": torch.arange(10.0, device=device).view(2, 5), "b": torch.zeros(3, dtype=torch.uint8, device=device)}
    tsw_torch.apply_(model, GOLDEN / "bare.tsw")
    assert bytes(model["b"].tolist()) == b"xyz"
    with tsw.open(GOLDEN / "bare.tsw") as opened:
        expected = opened.switch("a").apply(np.arange(10, dtype=np.float32).reshape(2, 5))
    assert raw(model["a"]) == expected.tobytes()


@pytest.mark.gpu
@NEEDS_CUDA[1]
def test_a_model_on_two_devices(file: Path, tmp_path: Path) -> None:
    expected = restored(Network(), file, tmp_path / "out.safetensors")
    model = Network()
    model.low.cuda()
    model.conv.cuda()
    tsw_torch.apply_(model, file)
    assert model.low.weight.is_cuda and not model.brain.weight.is_cuda
    assert_restored(state(model), expected, {"head.weight": "embedding.weight"})
