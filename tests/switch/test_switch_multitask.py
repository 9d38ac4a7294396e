"""make_tall and make_emr against the published formulas in torch, to the bit; what does not fit leaves nothing behind."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from switch_models import files_in

import tswitch_format as tsw

Array = NDArray[Any]
Tensors = dict[str, torch.Tensor]
CHUNK = 1 << 20
SHAPES = {"a.weight": (33, 31), "b.bias": (7,), "c.scale": (), "d.weight": (5, 3, 11), "e.bias": (1,), "f.none": (0, 3)}


def model(seed: int = 0, dtype: torch.dtype = torch.float32, shapes: Mapping[str, Sequence[int]] = SHAPES) -> Tensors:
    """A base: floats of several shapes, a frozen tensor, integers.

    The last two do not change: torch adds the last N mod 32 elements of a vector in an order of their own.
    """
    made = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(tuple(shape), generator=made).to(dtype) for name, shape in shapes.items()}
    return base | {"frozen": torch.randn(50, generator=made).to(dtype), "ids": torch.arange(9)}


def tuned(base: Tensors, seed: int, scale: float = 0.02) -> Tensors:
    """An expert: each float tensor but the frozen one changed, sizes of changes differ, a tenth of the elements as before."""
    made = torch.Generator().manual_seed(seed)
    expert = dict(base)
    for name, tensor in base.items():
        if tensor.is_floating_point() and name != "frozen":
            noise = torch.randn(tensor.shape, generator=made) * scale * (1 + seed % 4)
            noise *= torch.rand(tensor.shape, generator=made) > 0.1
            expert[name] = (tensor + noise).to(tensor.dtype)
    return expert


def saved(folder: Path, base: Tensors, experts: Sequence[Tensors]) -> tuple[Path, dict[str, Path]]:
    save_file(base, folder / "base.safetensors")
    for number, expert in enumerate(experts):
        save_file(expert, folder / f"t{number}.safetensors")
    return folder / "base.safetensors", {f"t{n}": folder / f"t{n}.safetensors" for n in range(len(experts))}


def descriptors() -> int:
    """Open files of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def flat(tensors: Mapping[str, torch.Tensor], kind: torch.dtype) -> torch.Tensor:
    """A whole state dict, sorted by name."""
    return torch.cat([tensors[name].reshape(-1).to(kind) for name in sorted(tensors)])


def cut(vector: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    sizes = [like[name].numel() for name in sorted(like)]
    return {
        name: part.numpy().reshape(like[name].shape)
        for name, part in zip(sorted(like), vector.split(sizes), strict=True)
    }


def ties_merge(taus: torch.Tensor) -> torch.Tensor:
    """TIES (arXiv 2306.01708): the largest 20 % of each row, elected signs, sum."""
    kept = taus.shape[1] - int(taus.shape[1] * 0.2)
    trimmed = taus * (taus.abs() >= taus.abs().kthvalue(kept, dim=1, keepdim=True).values)
    signs = trimmed.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    return (trimmed * torch.where(signs > 0, trimmed > 0, trimmed < 0)).sum(0)


def tall(
    base: Tensors, experts: Sequence[Tensors], lambdas: Sequence[float], ties: bool, kind: torch.dtype
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """TALL-masks (arXiv 2405.07813) as methods.md has it."""
    ptm, fts = flat(base, kind), torch.stack([flat(expert, kind) for expert in experts])
    taus = fts - ptm
    mtl = ties_merge(taus) if ties else taus.sum(0)
    masks = [cut((ptm - ft).abs() > ((ptm + mtl) - ft).abs() * lam, base) for ft, lam in zip(fts, lambdas, strict=True)]
    return cut(mtl, base), masks


def emr(
    base: Tensors, experts: Sequence[Tensors], kind: torch.dtype
) -> tuple[dict[str, Array], list[dict[str, Array]], list[float]]:
    """EMR-Merging (arXiv 2405.17461) as methods.md has it; means in f64."""
    vectors: dict[str, Array] = {}
    masks: list[dict[str, Array]] = [{} for _ in experts]
    own, kept = np.zeros(len(experts)), np.zeros(len(experts))
    for name, tensor in base.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        taus = torch.stack([expert[name].to(kind) - tensor.to(kind) for expert in experts])
        flag = (taus.mean(0) > 0) * 2 - 1
        agree = taus * flag > 0
        vector = (taus.abs() * agree).max(0).values * flag
        vectors[name] = vector.numpy()
        for number in range(len(experts)):
            masks[number][name] = agree[number].numpy()
            own[number] += taus[number].double().abs().mean().item()
            kept[number] += (vector * agree[number]).double().abs().mean().item()
    return vectors, masks, [a / b if b else 1.0 for a, b in zip(own, kept, strict=True)]


def compare(path: Path, vectors: Mapping[str, Array], masks: Sequence[Mapping[str, Array]]) -> None:
    """The file has exactly these masks, and all vectors that are not zero: those that none selects from in the first task."""
    selected = {name for of_task in masks for name, mask in of_task.items() if mask.any()}
    there = {name for name in masks[0] if vectors[name].any()}
    with tsw.open(path) as file:
        for number, of_task in enumerate(masks):
            names = {name for name, mask in of_task.items() if mask.any()} | (
                there - selected if number == 0 else set()
            )
            assert set(file.keys(f"t{number}")) == names
            for name in names:
                switch = file.switch(name, f"t{number}")
                assert np.array_equal(switch.mask(), of_task[name])
                assert switch.vector().tobytes() == vectors[name].tobytes(), name
        assert set(file.container.index.shared.arrays.names) == selected | there


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tasks", range(1, 21))
def test_tall_is_the_published_formula(tmp_path: Path, tasks: int, ties: bool) -> None:
    base = model(tasks)
    experts = [tuned(base, 100 * tasks + n) for n in range(tasks)]
    lambdas = [(0.2, 0.3, 0.4, 0.5, 0.6)[n % 5] for n in range(tasks)]
    start, paths = saved(tmp_path, base, experts)
    given = {f"t{n}": lambdas[n] for n in reversed(range(tasks)) if lambdas[n] != 0.4}
    result = tsw.make_tall(start, paths, tmp_path / "a.tsw", lambdas=given, ties=ties)
    vectors, masks = tall(base, experts, lambdas, ties, torch.float32)
    compare(tmp_path / "a.tsw", vectors, masks)
    empty = [n for n, v in vectors.items() if v.any() and not any(of_task[n].any() for of_task in masks)]
    assert result.switches == len(empty) + sum(mask.any() for of_task in masks for mask in of_task.values())
    for number in (0, tasks - 1):
        tsw.restore(start, tmp_path / "a.tsw", tmp_path / "r.safetensors", tasks=[f"t{number}"])
        made = load_file(tmp_path / "r.safetensors")
        for name, tensor in base.items():
            if tensor.is_floating_point():
                wanted = tensor.numpy() + masks[number][name] * vectors[name]
                assert np.array_equal(made[name].numpy(), wanted)
            else:
                assert torch.equal(made[name], tensor)


@pytest.mark.parametrize("tasks", range(1, 21))
def test_emr_is_the_published_formula(tmp_path: Path, tasks: int) -> None:
    base = model(tasks)
    experts = [tuned(base, 100 * tasks + n) for n in range(tasks)]
    start, paths = saved(tmp_path, base, experts)
    tsw.make_emr(start, paths, tmp_path / "a.tsw")
    vectors, masks, scales = emr(base, experts, torch.float32)
    compare(tmp_path / "a.tsw", vectors, masks)
    with tsw.open(tmp_path / "a.tsw") as file:
        for number, scale in enumerate(scales):
            knobs = {file.switch(name, f"t{number}").knob for name in file.keys(f"t{number}")}
            assert len(knobs) == 1
            assert knobs.pop() == pytest.approx(scale, rel=2e-7)
            name = "a.weight"
            knob = np.float32(file.switch(name, f"t{number}").knob)
            wanted = base[name].numpy() + masks[number][name] * (vectors[name] * knob)
            assert np.array_equal(file.switch(name, f"t{number}").apply(base[name].numpy()), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["tall", "ties", "emr"])
def test_other_types_are_computed_in_f32_or_f64(tmp_path: Path, dtype: torch.dtype, method: str) -> None:
    base = model(3, dtype) | {"ids": torch.arange(9)}
    experts = [tuned(base, n, 0.1) for n in range(5)]
    start, paths = saved(tmp_path, base, experts)
    kind = torch.float64 if dtype is torch.float64 else torch.float32
    if method == "emr":
        tsw.make_emr(start, paths, tmp_path / "a.tsw")
        vectors, masks, _ = emr(base, experts, kind)
    else:
        tsw.make_tall(start, paths, tmp_path / "a.tsw", ties=method == "ties")
        vectors, masks = tall(base, experts, [0.4] * 5, method == "ties", kind)
    compare(tmp_path / "a.tsw", vectors, masks)
    tsw.restore(start, tmp_path / "a.tsw", tmp_path / "r.safetensors", tasks=["t2"])
    assert load_file(tmp_path / "r.safetensors")["a.weight"].dtype is dtype
    if method != "emr":
        wanted = (base["a.weight"].to(kind) + torch.from_numpy(masks[2]["a.weight"] * vectors["a.weight"])).to(dtype)
        assert torch.equal(load_file(tmp_path / "r.safetensors")["a.weight"], wanted)


@pytest.mark.parametrize(("shared", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
@pytest.mark.parametrize("wide", [False, True])
def test_a_rounded_vector_has_the_masks_of_the_exact_one(
    tmp_path: Path, shared: str, dtype: torch.dtype, wide: bool
) -> None:
    kind = torch.float64 if wide else torch.float32
    base = model(4, kind)
    experts = [tuned(base, n) for n in range(4)]
    start, paths = saved(tmp_path, base, experts)
    tsw.make_tall(start, paths, tmp_path / "a.tsw", shared_dtype=shared)
    vectors, masks = tall(base, experts, [0.4] * 4, False, kind)
    stored = {}
    for name, vector in vectors.items():
        if wide and shared == "BF16":  # torch rounds twice
            continue
        rounded = torch.from_numpy(np.ascontiguousarray(vector)).to(dtype)
        stored[name] = rounded.view(torch.int16).numpy() if shared == "BF16" else rounded.numpy()
    with tsw.open(tmp_path / "a.tsw") as file:
        for number, of_task in enumerate(masks):
            for name in file.keys(f"t{number}"):
                assert np.array_equal(file.switch(name, f"t{number}").mask(), of_task[name])
                if name in stored:
                    assert file.switch(name, f"t{number}").vector().tobytes() == stored[name].tobytes()


def test_ties_elects_the_sign_of_most_where_a_sum_is_0(tmp_path: Path) -> None:
    for sign in (1.0, -1.0, 0.0):
        base = {"w": torch.zeros(50)}
        first, second = torch.zeros(50), torch.zeros(50)
        first[:8], second[:8] = 3.0, -3.0
        first[8:10] = sign * 4
        start, paths = saved(tmp_path, base, [{"w": first}, {"w": second}])
        tsw.make_tall(start, paths, tmp_path / "a.tsw", ties=True)
        vectors, masks = tall(base, [{"w": first}, {"w": second}], [0.4, 0.4], True, torch.float32)
        compare(tmp_path / "a.tsw", vectors, masks)


def test_tied_tensors_count_for_ties_as_often_as_a_state_dict_has_them(tmp_path: Path) -> None:
    base = model(5)
    arrays = {name: tensor.numpy() for name, tensor in base.items()}
    arrays["g.tied"] = arrays["a.weight"]
    experts = []
    for number in range(3):
        expert = {name: tensor.numpy() for name, tensor in tuned(base, number, 0.02).items()}
        expert["g.tied"] = expert["a.weight"]
        experts.append(expert)
    tsw.make_tall(arrays, {f"t{n}": e for n, e in enumerate(experts)}, tmp_path / "a.tsw", ties=True)

    def whole(tensors: Mapping[str, Array]) -> Tensors:
        return {name: torch.from_numpy(array) for name, array in tensors.items()}

    vectors, masks = tall(whole(arrays), list(map(whole, experts)), [0.4] * 3, True, torch.float32)
    with tsw.open(tmp_path / "a.tsw") as file:
        assert file.base.aliases == {"g.tied": "a.weight"}
    compare(tmp_path / "a.tsw", vectors, [{n: m for n, m in of.items() if n != "g.tied"} for of in masks])


def test_wide_and_narrow_tensors_of_one_model_share_a_threshold(tmp_path: Path) -> None:
    base = {"w": torch.zeros(100), "x": torch.zeros(100, dtype=torch.float64)}
    made = torch.Generator().manual_seed(1)
    experts = [
        {"w": torch.randn(100, generator=made), "x": torch.randn(100, generator=made, dtype=torch.float64)}
        for _ in range(3)
    ]
    # The threshold is this f64 number; the f32 number below it, which it would round to, stays out.
    for expert in experts:
        every = torch.cat([expert["w"].double(), expert["x"]]).abs().sort(descending=True).values
        place = int((expert["x"].abs() - every[40]).abs().argmin())
        expert["x"][place] = float(every[40].float()) * (1 + 1e-12)
        expert["w"][0] = every[40].float()
    start, paths = saved(tmp_path, base, experts)
    tsw.make_tall(start, paths, tmp_path / "a.tsw", ties=True, lambdas=0.0)
    taus = torch.stack([torch.cat([expert["w"].double(), expert["x"]]) for expert in experts])
    wanted = ties_merge(taus)
    with tsw.open(tmp_path / "a.tsw") as file:
        assert np.array_equal(file.switch("x", "t0").vector(), wanted[100:].numpy())
        assert np.allclose(file.switch("w", "t0").vector(), wanted[:100].numpy(), rtol=1e-5)


# What is whole, what is left out


def test_frozen_tensors_and_integers_have_no_entry_and_equal_experts_no_vector(tmp_path: Path) -> None:
    base = model(1)
    start, paths = saved(tmp_path, base, [dict(base), dict(base)])
    for make in (tsw.make_tall, tsw.make_emr):
        result = make(start, paths, tmp_path / "a.tsw")
        assert (result.switches, result.dense) == (0, 0)
        with tsw.open(tmp_path / "a.tsw") as file:
            assert file.tasks == ("t0", "t1") or list(file.tasks) == ["t0", "t1"]
            assert len(file.container.index.shared.arrays) == 0
        assert tsw.validate(tmp_path / "a.tsw", level="full").ok


def test_an_expert_of_another_type_keeps_it_even_where_nothing_else_differs(tmp_path: Path) -> None:
    base = model(1)
    other = dict(base) | {"b.bias": base["b.bias"].double(), "frozen": base["frozen"].double()}
    start, paths = saved(tmp_path, base, [other, tuned(base, 1)])
    for make in (tsw.make_tall, tsw.make_emr):
        make(start, paths, tmp_path / "a.tsw")
        assert tsw.validate(tmp_path / "a.tsw", level="full").ok
        tsw.restore(start, tmp_path / "a.tsw", tmp_path / "r.safetensors", tasks=["t0"])
        made = load_file(tmp_path / "r.safetensors")
        assert all(made[name].dtype is other[name].dtype and torch.equal(made[name], other[name]) for name in other)


def test_dense_patterns_and_mismatches_are_stored_whole(tmp_path: Path) -> None:
    base = model(1)
    experts = [tuned(base, n) for n in range(3)]
    experts[0]["head"] = torch.ones(4)
    experts[1]["b.bias"] = torch.ones(9)
    experts[2]["ids"] = torch.arange(9).flip(0)
    start, paths = saved(tmp_path, base, experts)
    with pytest.raises(tsw.CheckpointError, match="on-mismatch dense"):
        tsw.make_tall(start, paths, tmp_path / "a.tsw")
    for make in (tsw.make_tall, tsw.make_emr):
        result = make(start, paths, tmp_path / "a.tsw", dense=["d.*"], on_mismatch="dense")
        assert result.dense == 3 + 3
        for number, expert in enumerate(experts):
            tsw.restore(start, tmp_path / "a.tsw", tmp_path / "r.safetensors", tasks=[f"t{number}"])
            made = load_file(tmp_path / "r.safetensors")
            assert made.keys() == expert.keys()
            whole = {"d.weight", "head", "ids", "frozen"} | ({"b.bias"} if number == 1 else set())
            assert all(torch.equal(made[name], expert[name]) for name in whole & expert.keys())
    left = {name: base[name] for name in base if name not in ("d.weight", "b.bias", "ids")}
    two = [{name: experts[n][name] for name in left} for n in range(3)]
    tsw.make_tall(start, paths, tmp_path / "a.tsw", dense=["d.*"], on_mismatch="dense")
    vectors, masks = tall(left, two, [0.4] * 3, False, torch.float32)
    with tsw.open(tmp_path / "a.tsw") as file:
        assert np.array_equal(file.switch("a.weight", "t1").mask(), masks[1]["a.weight"])
        bias = sum((experts[n]["b.bias"] - base["b.bias"] for n in (0, 2)), torch.zeros(7)).numpy()
        assert np.array_equal(file.switch("b.bias", "t0").vector(), bias)  # of those that have it
        assert np.array_equal(file.switch("a.weight", "t1").vector(), vectors["a.weight"])


def test_what_the_base_ties_must_be_tied(tmp_path: Path) -> None:
    base = {"a": np.ones(5, np.float32), "b": np.zeros(0)}
    base["b"] = base["a"]
    free = {"a": np.full(5, 2, np.float32), "b": np.full(5, 3, np.float32)}
    with pytest.raises(tsw.OptionError, match="'b' is tied in the base and one of its own here"):
        tsw.make_emr(base, {"t": free}, tmp_path / "a.tsw")
    tied = {"a": free["a"], "b": free["a"]}
    tsw.make_emr(base, {"t": tied, "u": {"a": free["b"]}}, tmp_path / "a.tsw")
    tsw.restore(base, tmp_path / "a.tsw", tmp_path / "r.safetensors", tasks=["t"])
    assert all((tensor == 2).all() for tensor in load_file(tmp_path / "r.safetensors").values())


# The same bytes


@pytest.mark.parametrize("method", ["tall", "ties", "emr"])
@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_threads_and_the_order_of_names_do_not_matter(tmp_path: Path, method: str, profile: str) -> None:
    base = model(2, shapes=SHAPES | {"large": (CHUNK + 300_001,), "more": (70_001,)})
    experts = [tuned(base, n) for n in range(3)]
    start, paths = saved(tmp_path, base, experts)
    backwards = {name: base[name].numpy() for name in reversed(base)}
    others = {f"t{n}": {name: e[name].numpy() for name in reversed(e)} for n, e in enumerate(experts)}
    lambdas = {"t0": 0.2, "t1": 0.3, "t2": 0.6}
    contents = set()
    for number, (b, e, threads) in enumerate(
        [(start, paths, 1), (start, paths, 4), (backwards, others, 3), (start, paths, None)]
    ):
        out = tmp_path / f"{number}.tsw"
        if method == "emr":
            result = tsw.make_emr(b, e, out, threads=threads, profile=profile)
        else:
            order = dict(reversed(lambdas.items())) if number % 2 else lambdas
            result = tsw.make_tall(b, e, out, lambdas=order, ties=method == "ties", threads=threads, profile=profile)
        contents.add(out.read_bytes())
        assert result.nbytes == out.stat().st_size
    assert len(contents) == 1
    assert tsw.validate(tmp_path / "0.tsw", level="full").ok
    if method == "emr":
        vectors, masks, _ = emr(base, experts, torch.float32)
    else:
        vectors, masks = tall(base, experts, list(lambdas.values()), method == "ties", torch.float32)
    compare(tmp_path / "0.tsw", vectors, masks)


def test_two_experts_have_one_content_in_either_order(tmp_path: Path) -> None:
    base = model(6)
    start, paths = saved(tmp_path, base, [tuned(base, n) for n in range(2)])
    for make in (tsw.make_tall, tsw.make_emr):
        ids = {
            make(start, dict(order), tmp_path / "a.tsw").content_id
            for order in (paths.items(), reversed(paths.items()))
        }
        assert len(ids) == 1


def test_given_masks_are_kept(tmp_path: Path) -> None:
    base = model(7, shapes={"w": (CHUNK + 11,), "x": (3, 70_003), "y": ()})
    start, paths = saved(tmp_path, base, [tuned(base, n) for n in range(2)])
    random = np.random.default_rng(1)
    masks = {(t, n): random.random(v.shape) < 0.3 for t in paths for n, v in base.items() if n in ("w", "x")}
    none = {name: np.zeros(base[name].shape, np.bool_) for name in base}

    def chunk(task: str, name: str, number: int) -> NDArray[np.uint8]:
        flags = masks.get((task, name), none[name]).reshape(-1)
        return np.packbits(flags[number * CHUNK : (number + 1) * CHUNK], bitorder="little")

    tsw.make_tall(start, paths, tmp_path / "a.tsw", masks=chunk)
    with tsw.open(tmp_path / "a.tsw") as file:
        for (task, name), mask in masks.items():
            assert np.array_equal(file.switch(name, task).mask(), mask)
        assert (set(file.keys("t0")), set(file.keys("t1"))) == ({"w", "x", "y"}, {"w", "x"})
        assert file.switch("y", "t0").active == 0  # it is merged, and no mask selects any of it
        assert file.recipe("t0")["masks"] == "given"


# What is refused


def tensors_of(base: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in base.items()}


def nan(experts: list[Tensors]) -> None:
    experts[1]["a.weight"][3, 4] = torch.nan


def lacking(experts: list[Tensors]) -> None:
    del experts[1]["b.bias"]


def shaped(experts: list[Tensors]) -> None:
    experts[1]["b.bias"] = torch.zeros(8)


def integers(experts: list[Tensors]) -> None:
    experts[1]["ids"] = experts[1]["ids"] + 1


def huge(experts: list[Tensors]) -> None:
    experts[0]["a.weight"] = torch.full((33, 31), 3e38)
    experts[1]["a.weight"] = torch.full((33, 31), 3e38)


def far(experts: list[Tensors]) -> None:
    experts[0]["a.weight"] += 1e5


def nothing(experts: list[Tensors]) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (nan, {}, "t1.safetensors: tensor 'a.weight': expected finite weights.*store it whole with --dense"),
        (nan, {"ties": True}, "tensor 'a.weight': expected finite weights"),
        (lacking, {}, "'b.bias' is in the base only"),
        (lacking, {"on_mismatch": "dense"}, "expected tensor 'b.bias', which the base has, found none"),
        (shaped, {}, r"'b.bias' is F32\[7\] in the base and F32\[8\] in the expert"),
        (integers, {}, "'ids' .* is not a float tensor and differs"),
        (huge, {}, "'a.weight': expected a vector that F32 can hold"),
        (
            far,
            {"shared_dtype": "F16"},
            "'a.weight': expected a vector that F16 can hold.*take shared dtype BF16 or F32",
        ),
        (nothing, {"shared_dtype": "F8"}, "shared_dtype: expected F32, BF16, F16, found 'F8'"),
        (nothing, {"lambdas": {"t9": 0.3}}, "expected one of the tasks t0, t1, found 't9'"),
        (nothing, {"lambdas": {"t1": -0.1}}, "lambda of task 't1': expected a finite number from 0 up, found -0.1"),
        (nothing, {"lambdas": float("nan")}, "found nan"),
        (nothing, {"lambdas": {"t0": "0.4"}}, "found '0.4'"),
        (nothing, {"profile": "zip"}, "profile: expected one of archive, mapped, found 'zip'"),
        (nothing, {"dense": ["zz*"]}, "pattern 'zz.*' matches none"),
        (nothing, {"threads": 0}, "threads"),
        (nothing, {"masks": lambda t, n, c: np.zeros(1, np.uint8)}, r"mask of chunk 0: expected uint8\[128\]"),
        (
            nothing,
            {"masks": lambda t, n, c: np.full(10**6, 255, np.uint8)},
            r"mask of chunk 0: .*found uint8\[1000000\]",
        ),
        (nothing, {"metadata": {"k": "v" * (1 << 25)}}, "hold|limit|more than"),
    ],
)
def test_failures_leave_what_was_there(
    tmp_path: Path,
    spoil: Callable[[list[Tensors]], None],
    options: dict[str, Any],
    message: str,
    recwarn: pytest.WarningsRecorder,
) -> None:
    base = model(1)
    experts = [tensors_of(tuned(base, n)) for n in range(2)]
    spoil(experts)
    start, paths = saved(tmp_path, base, experts)
    (tmp_path / "a.tsw").write_bytes(b"before")
    before = files_in(tmp_path)
    opened = descriptors()
    with pytest.raises(tsw.TswError, match=message):
        tsw.make_tall(start, paths, tmp_path / "a.tsw", **options)
    assert files_in(tmp_path) == before
    assert descriptors() == opened
    assert not recwarn.list


def test_masks_of_a_callback_that_fails_leave_nothing(tmp_path: Path) -> None:
    base = model(1)
    start, paths = saved(tmp_path, base, [tuned(base, 1)])
    before = files_in(tmp_path)

    def fail(task: str, name: str, chunk: int) -> NDArray[np.uint8]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tsw.make_tall(start, paths, tmp_path / "a.tsw", masks=fail, threads=3)
    assert files_in(tmp_path) == before


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model(1)
    start, paths = saved(tmp_path, base, [tuned(base, 1)])
    before = files_in(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tswitch_format.switch.multitask.pwrite", full)
    with pytest.raises(tsw.OutputError, match=r"a.tsw: could not be written: No space left on device.*free some space"):
        tsw.make_tall(start, paths, tmp_path / "a.tsw")
    assert files_in(tmp_path) == before


def test_no_experts_and_outputs_that_are_inputs_are_refused(tmp_path: Path) -> None:
    base = model(1)
    start, paths = saved(tmp_path, base, [tuned(base, 1)])
    before = files_in(tmp_path)
    with pytest.raises(tsw.OptionError, match="expected at least one, found none"):
        tsw.make_emr(start, {}, tmp_path / "a.tsw")
    for out in (start, paths["t0"]):
        for make in (tsw.make_tall, tsw.make_emr):
            with pytest.raises(tsw.TswError, match="safetensors"):
                make(start, paths, out)
    for out in (tmp_path / "no" / "a.tsw", tmp_path):
        with pytest.raises(tsw.OutputError):
            tsw.make_tall(start, paths, out)
    for name in ("", "x" * 2000, "a\nb"):
        with pytest.raises(tsw.OptionError, match="task name"):
            tsw.make_tall(start, {name: paths["t0"]}, tmp_path / "a.tsw")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("method", ["tall", "ties", "emr"])
def test_an_interrupt_at_any_step_leaves_nothing(tmp_path: Path, method: str) -> None:
    base = model(1)
    start, paths = saved(tmp_path, base, [tuned(base, n) for n in range(2)])
    steps: list[tuple[int, int]] = []

    def make(progress: Callable[[int, int], None]) -> None:
        if method == "emr":
            tsw.make_emr(start, paths, tmp_path / "a.tsw", progress=progress, threads=2)
        else:
            tsw.make_tall(start, paths, tmp_path / "a.tsw", progress=progress, threads=2, ties=method == "ties")

    make(lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len({total for _, total in steps}) == 1
    (tmp_path / "a.tsw").unlink()
    before = files_in(tmp_path)
    opened = descriptors()
    for number in range(len(steps)):
        seen: list[int] = []

        def stop(done: int, total: int, at: int = number, seen: list[int] = seen) -> None:
            seen.append(done)
            if len(seen) == at + 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(stop)
        assert files_in(tmp_path) == before
        assert descriptors() == opened


def test_memory_is_that_of_a_tensor_and_not_of_a_model(tmp_path: Path) -> None:
    def peak(tensors: int, tasks: int) -> int:
        folder = tmp_path / f"{tensors}x{tasks}"
        folder.mkdir()
        base = model(1, shapes={f"w{n}": (2 * CHUNK + 5,) for n in range(tensors)})
        start, paths = saved(folder, base, [tuned(base, n) for n in range(tasks)])
        del base
        tracemalloc.start()
        try:
            tsw.make_tall(start, paths, folder / "a.tsw", threads=1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many, tasks = peak(1, 3), peak(5, 3), peak(1, 8)
    tensor = 4 * (2 * CHUNK + 5)
    print(f"peaks: {few} of one tensor, {many} of five, {tasks} of one with 8 experts; a tensor has {tensor}")
    assert many < few + 1.5 * tensor  # what one tensor waits for while the one before is written
    assert tasks < few + 5 * (CHUNK // 8 + 6 * 4 * (1 << 16))  # a chunk's masks and blocks of each further expert
    assert few < 4 * tensor


# What was found later


def test_tied_tensors_count_in_scales_as_often_as_a_state_dict_has_them(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in model(3).items()}
    experts = [{name: tensor.numpy() for name, tensor in tuned(model(3), n).items()} for n in range(3)]
    for some in (arrays, *experts):
        some["g.tied"] = some["a.weight"]
    tsw.make_emr(arrays, {f"t{n}": expert for n, expert in enumerate(experts)}, tmp_path / "a.tsw")
    as_tensors = [{name: torch.from_numpy(value) for name, value in some.items()} for some in (arrays, *experts)]
    _, _, scales = emr(as_tensors[0], as_tensors[1:], torch.float32)
    with tsw.open(tmp_path / "a.tsw") as file:
        assert file.base.aliases == {"g.tied": "a.weight"}
        assert [file.switch("a.weight", f"t{n}").knob for n in range(3)] == pytest.approx(scales, rel=1e-6)


def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look at an expert's elements fail."""

    def fail(*_: object) -> None:
        raise AssertionError("the experts are read")

    monkeypatch.setattr("tswitch_format.switch.experts.Experts.vectors", fail)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("out", "task", "options", "message"),
    [
        ("none/x.tsw", "t", {}, "none"),
        ("x.tsw", "e\u0301", {}, "task name"),
        ("x.tsw", "t", {"shared_dtype": "F8"}, "shared_dtype"),
        ("x.tsw", "t", {"profile": "small"}, "profile"),
    ],
)
def test_what_can_be_known_is_refused_before_an_expert_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ties: bool, out: str, task: str, options: Any, message: str
) -> None:
    unreadable(monkeypatch)
    base = {name: tensor.numpy() for name, tensor in model(0).items()}
    with pytest.raises(tsw.TswError, match=message):
        tsw.make_tall(base, {task: base}, tmp_path / out, ties=ties, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ties", [False, True])
def test_progress_counts_up_to_its_end(tmp_path: Path, ties: bool) -> None:
    base = model(1)
    start, paths = saved(tmp_path, base, [tuned(base, n) for n in range(3)])
    seen: list[tuple[int, int]] = []
    tsw.make_tall(start, paths, tmp_path / "a.tsw", ties=ties, progress=lambda *at: seen.append(at))
    assert len({total for _, total in seen}) == 1
    done = [at for at, _ in seen]
    assert done == sorted(done) and done[0] == 1 and done[-1] == seen[0][1]


def test_a_vector_that_f16_would_lose_is_refused(tmp_path: Path) -> None:
    base = {"w": np.zeros(100, np.float32)}
    expert = {"w": np.full(100, 1e-9, np.float32)}
    with pytest.raises(tsw.OptionError, match="100 of 100 elements would become 0; take shared dtype BF16 or F32"):
        tsw.make_tall(base, {"t": expert}, tmp_path / "x.tsw", shared_dtype="F16")
    tsw.make_tall(base, {"t": expert}, tmp_path / "x.tsw", shared_dtype="BF16")


def test_ties_takes_memory_for_experts_and_not_for_tensors_too(tmp_path: Path) -> None:
    """A histogram has 0.5 MiB: of each of 20 experts for each of 60 tensors they would have 600."""
    base = {f"w{n:02}": np.zeros(64, np.float32) for n in range(60)}
    random = np.random.default_rng(0)
    experts = {f"t{n}": {name: random.standard_normal(64, np.float32) for name in base} for n in range(20)}
    tracemalloc.start()
    try:
        tsw.make_tall(base, experts, tmp_path / "x.tsw", ties=True, threads=4)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
