"""`tsw_sweep` and its methods: what is written, read back, timed and chosen."""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sweep_models import TASKS, base_tensors, expert_tensors, nearness, write_models
from torch import Tensor, nn

import tswitch_format as tsw
from tswitch_tools.sweep import (
    Consensus,
    Emr,
    Job,
    Kept,
    LowRank,
    Method,
    Packed,
    Sum,
    SweepTable,
    Tall,
    Ties,
    Whole,
    default_methods,
    tsw_sweep,
)
from tswitch_tools.sweep import method as method_module
from tswitch_tools.sweep.low_rank import factors
from tswitch_tools.sweep.tensors import read_tensors

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    base, experts = write_models(tmp_path)
    folder = tmp_path / "job"
    folder.mkdir()
    return Job(base, experts, folder, None, read_tensors(base))


def loaded(job: Job, kept: Kept) -> dict[str, Tensor]:
    weights = job.weights()
    kept.load(weights)
    return weights


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


# --- the sweep ------------------------------------------------------------------------------------------------


def test_a_sweep_of_the_default_methods(tmp_path: Path) -> None:
    base, experts = write_models(tmp_path)
    steps: list[tuple[int, int]] = []
    table = tsw_sweep(
        base,
        experts,
        nearness,
        validate=nearness,
        folder=tmp_path / "made" / "sweep",
        save=tmp_path / "sweep.json",
        progress=lambda done, total: steps.append((done, total)),
    )
    names = [method.name for method in default_methods()]
    assert not table.failures and [row.method for row in table.summary()] == names
    assert steps == [(number + 1, len(names)) for number in range(len(names))]
    assert [row.kept for row in table.rows if row.method == "full expert"] == [100.0, 100.0]
    assert all(row.switch_seconds > 0 and row.percent_of_fp32 == 100 * row.nbytes / (4 * 702) for row in table.rows)
    assert {row.task: row.base for row in table.rows} == {task: nearness(task, base_tensors()) for task in TASKS}
    assert SweepTable.load(tmp_path / "sweep.json") == table
    ranked = {row.method: row.kept for row in table.summary()}
    assert ranked["SVD f16, rank 1"] > ranked["spectral projection row-col u4, 20 %"]  # it is of rank 1, nearly


def test_evaluate_chooses_nothing(tmp_path: Path) -> None:
    base, experts = write_models(tmp_path)
    events: list[str] = []

    def evaluate(task: str, weights: Mapping[str, Tensor]) -> float:
        events.append("evaluate")
        return nearness(task, weights)

    def validate(task: str, weights: Mapping[str, Tensor]) -> float:
        events.append("validate")
        return -nearness(task, weights)  # the worst of all, which evaluate would never choose

    table = tsw_sweep(base, experts, evaluate, validate=validate, methods=[Sum(), Tall()])
    two = ["evaluate"] * 2
    assert events == [*two, *two, *["validate"] * 20, *two, *["validate"] * 10, *two]
    best = tsw_sweep(base, experts, nearness, validate=nearness, methods=[Sum(), Tall()])
    assert best.rows[0].chosen != table.rows[0].chosen
    assert best.summary()[0].kept > table.summary()[0].kept and best.summary()[1].kept > table.summary()[1].kept


def test_without_validation_the_table_says_default(tmp_path: Path) -> None:
    base, experts = write_models(tmp_path)
    table = tsw_sweep(base, experts, nearness, methods=[Sum(), Ties(), Consensus(), Tall(), Emr()])
    assert [row.chosen for row in table.summary()] == [*["scale 0.3 (default)"] * 3, "lambda 0.4 (default)", ""]


def test_modules_and_arrays_are_written_first(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

    base, expert = Tied(), Tied()
    seen: list[Mapping[str, Tensor]] = []

    def evaluate(task: str, weights: Mapping[str, Tensor]) -> float:
        seen.append({name: tensor.clone() for name, tensor in weights.items()})
        return 1.0

    table = tsw_sweep(base, {"t": expert}, evaluate, methods=[Whole(), LowRank(1)], folder=tmp_path)
    assert {path.name for path in (tmp_path / "inputs").iterdir()} == {"base.safetensors", "00-t.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"inputs", "00-full-expert", "01-SVD-int8-rank-1"}
    assert all(weights.keys() == {"embed.weight", "head.weight"} for weights in seen)
    assert all(torch.equal(weights["embed.weight"], weights["head.weight"]) for weights in seen)
    assert torch.equal(seen[2]["head.weight"], expert.head.weight)
    assert table.rows[0].percent_of_fp32 == 100 * table.rows[0].nbytes / (4 * 24)
    arrays = {name: tensor.detach().numpy() for name, tensor in expert.state_dict().items()}
    assert not tsw_sweep(arrays, {"t": arrays}, lambda task, weights: 1.0, methods=[Whole()]).failures


def test_a_failing_method_loses_nothing(tmp_path: Path) -> None:
    base, experts = write_models(tmp_path)
    one = {"math": experts["math"]}
    table = tsw_sweep(base, one, nearness, methods=[Consensus(), Whole()], save=tmp_path / "t.json", run="s")
    assert [(f.method, f.run) for f in table.failures] == [("merged: Consensus", "s")]
    assert [row.method for row in table.rows] == ["full expert"] and SweepTable.load(tmp_path / "t.json") == table
    assert "merged: Consensus (run s) failed: k: expected at most 1" in table.markdown()

    class Interrupted(Whole):
        name = "interrupted"

        def keep(self, job: Job) -> Mapping[str, Kept]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tsw_sweep(base, one, nearness, methods=[Whole(), Interrupted()], save=tmp_path / "u.json")
    assert len(SweepTable.load(tmp_path / "u.json").rows) == 1


def test_a_method_of_ones_own_and_what_it_may_not_do(tmp_path: Path) -> None:
    base, experts = write_models(tmp_path)

    class Half(Whole):
        name = "half"

        def keep(self, job: Job) -> Mapping[str, Kept]:
            return {"math": Kept(1.0, lambda weights: None)}

    found = tsw_sweep(base, experts, nearness, methods=[Half()]).failures[0].error
    assert (
        found == f"method 'half': expected files of the tasks {', '.join(TASKS)}, found those of math; keep each task"
    )


def test_a_score_that_is_no_number(tmp_path: Path) -> None:
    base, experts = write_models(tmp_path)
    for bad in (math.nan, math.inf, "0.5", None):
        message = rf"evaluate: task 'math': expected a finite number, higher is better, found {bad!r}"
        with pytest.raises(tsw.OptionError, match=re.escape(message)):
            tsw_sweep(base, experts, lambda task, weights: bad, methods=[Whole()])  # type: ignore[arg-type, return-value]  # noqa: B023
    table = tsw_sweep(
        base,
        experts,
        nearness,
        validate=lambda task, weights: math.nan,
        methods=[Sum(), Whole()],
        folder=tmp_path / "f",
    )
    assert (
        table.failures[0].error.startswith("validate: task 'math': expected a finite number") and len(table.rows) == 2
    )
    table = tsw_sweep(base, experts, lambda task, weights: np.float32(0), methods=[Whole()])
    assert all(math.isnan(row.kept) for row in table.rows) and "| - | - | - |" in table.markdown()


@pytest.mark.parametrize(
    ("experts", "methods", "message"),
    [
        ({}, None, "experts: expected a mapping of task to checkpoint, with at least one, found {}"),
        ({"": "x"}, None, "experts: expected names of tasks, found ''"),
        ({"t": "x"}, [], "methods: expected at least one, found none"),
        ({"t": "x"}, [Whole(), Whole()], "methods: expected names that differ, found 'full expert' twice"),
    ],
)
def test_arguments_that_make_no_sense(experts: dict[str, str], methods: list[Method] | None, message: str) -> None:
    with pytest.raises(tsw.OptionError, match=re.escape(message)):
        tsw_sweep("base", experts, nearness, methods=methods)


def test_functions_that_are_none_are_seen_before_anything_is_written(tmp_path: Path) -> None:
    functions: dict[str, Any] = {"evaluate": nearness, "validate": nearness}
    for what, found in (("evaluate", None), ("evaluate", 0.5), ("validate", 0.5)):
        message = f"{what}: expected a function of a task and its weights, found {type(found).__name__}"
        with pytest.raises(tsw.OptionError, match=re.escape(message)):
            tsw_sweep("base", {"t": "x"}, folder=tmp_path / "f", **{**functions, what: found})
    assert not list(tmp_path.iterdir())


# --- methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_gives_what_restore_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    base, experts = write_models(tmp_path, dtype)
    job = Job(base, experts, tmp_path, None, read_tensors(base))
    kept = Packed(density=0.1).keep(job)
    for task in TASKS:
        path = job.path(task, ".tsw")
        assert kept[task].nbytes == path.stat().st_size
        tsw.restore(base, path, tmp_path / "restored.safetensors")
        assert_same(loaded(job, kept[task]), read_tensors(tmp_path / "restored.safetensors"))


def test_names_of_packed() -> None:
    assert Packed().name == "spectral projection row-col u4, 1.5 %"
    assert Packed(density=0.003, knob_dtype="f16").name == "spectral projection row-col f16, 0.3 %"
    assert Packed(target_size=0.7, select="global", knob="norm").name == "global norm tensor, 0.7 % of fp32"
    assert Packed(preset="paper").name == "preset paper, discard 0.6"
    assert Packed(discard=0.9, score={}).name == "tensor projection row-col u4 by scores, discard 0.9"
    assert (Packed(label="STA").name, Packed(label="STA").family) == ("STA, 1.5 %", "STA")
    with pytest.raises(tsw.OptionError, match="density"):
        Packed(density=2)


def test_packed_by_scores(job: Job) -> None:
    scores = {task: {"a.weight": np.eye(24, 16, dtype=np.float32)} for task in TASKS}
    kept = Packed(density=0.04, score=scores, knob_per="tensor").keep(job)
    changed = loaded(job, kept["math"])["a.weight"] != job.tensors["a.weight"]
    assert torch.equal(changed, torch.eye(24, 16, dtype=torch.bool))
    with pytest.raises(tsw.UnknownNameError, match=r"scores of .*: no task named 'co/de \|'"):
        Packed(score={"math": scores["math"]}).keep(job)


def test_whole(job: Job) -> None:
    kept = Whole().keep(job)
    for task, path in job.experts.items():
        assert kept[task].nbytes == path.stat().st_size == job.path(task, ".safetensors").stat().st_size
        assert_same(loaded(job, kept[task]), read_tensors(path))
    with pytest.raises(tsw.UnknownNameError, match="experts: no task named 'mth'"):
        job.load_expert("mth")


def test_merged(job: Job) -> None:
    for method in (Sum(), Ties(), Consensus()):
        kept = method.keep(job)
        path = job.folder / "merged.safetensors"
        assert list(job.folder.iterdir()) == [path]
        assert all(kept[task].nbytes == path.stat().st_size / 2 for task in TASKS)
        assert_same(loaded(job, kept["math"]), read_tensors(path))
    Sum().keep(job)
    first, second = (expert_tensors(seed)["conv"] - job.tensors["conv"] for seed in (1, 2))
    assert torch.equal(read_tensors(path)["conv"], job.tensors["conv"] + (first + second) * torch.tensor(0.3))


def test_masks_over_a_vector(job: Job) -> None:
    for method, name in ((Tall(), "tall.tsw"), (Emr(), "emr.tsw")):
        kept = method.keep(job)
        path = job.folder / name
        assert sum(found.nbytes for found in kept.values()) == pytest.approx(path.stat().st_size, abs=1)
        tsw.restore(job.base, path, job.folder / "out.safetensors", tasks=["math"])
        assert_same(loaded(job, kept["math"]), read_tensors(job.folder / "out.safetensors"))


def test_factors_are_numpys() -> None:
    generator = torch.Generator().manual_seed(3)
    for shape in ((9, 5), (5, 9)):
        matrix = torch.randn(shape, generator=generator)
        u, sigma, v = np.linalg.svd(matrix.numpy().astype(np.float64), full_matrices=False)
        left, right = factors(matrix, 3)
        assert np.allclose(left @ right, u[:, :3] * sigma[:3] @ v[:3], atol=1e-9)
        assert np.allclose(left.norm(dim=0) ** 2, sigma[:3]) and np.allclose(right.norm(dim=1) ** 2, sigma[:3])
    left, right = factors(torch.zeros(3, 2), 4)
    assert not left.any() and not right.any() and (left.shape, right.shape) == ((3, 2), (2, 2))


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_low_rank(job: Job, dtype: str) -> None:
    method = LowRank(2, dtype)  # type: ignore[arg-type]
    assert (method.name, method.family) == (f"SVD {dtype}, rank 2", f"SVD {dtype}")
    kept = method.keep(job)["math"]
    path = job.path("math", ".safetensors")
    assert kept.nbytes == path.stat().st_size
    parts = read_tensors(path)
    scales = {f"{part}-scale/{name}" for part in ("left", "right") for name in ("conv", "a.weight")}
    scales |= {"delta-scale/a.bias", "delta-scale/scale"}
    assert parts.keys() == {
        *("left/conv", "right/conv", "left/a.weight", "right/a.weight", "delta/a.bias", "delta/scale"),
        *(scales if dtype == "int8" else ()),
    }
    assert parts["right/conv"].shape == (2, 36)
    weights, expert = loaded(job, kept), job.load_expert("math")
    for name in ("conv", "a.weight"):
        delta = (expert[name] - job.tensors[name]).flatten(1).numpy()
        u, sigma, v = np.linalg.svd(delta, full_matrices=False)
        best = torch.from_numpy(u[:, :2] * sigma[:2] @ v[:2])
        found = (weights[name] - job.tensors[name]).flatten(1)
        assert (found - best).norm() < (0.002 if dtype == "f16" else 0.02) * best.norm()
    delta = expert["a.bias"] - job.tensors["a.bias"]
    found = weights["a.bias"] - job.tensors["a.bias"]
    if dtype == "f16":
        assert torch.equal(weights["a.bias"], job.tensors["a.bias"] + delta.half())
    assert (found - delta).abs().max() <= (1e-3 if dtype == "f16" else 0.51 / 127) * delta.abs().max()


def test_low_rank_in_bf16_casts_once(tmp_path: Path) -> None:
    base, experts = write_models(tmp_path, torch.bfloat16)
    job = Job(base, experts, tmp_path, None, read_tensors(base))
    weights = loaded(job, LowRank(2, "f16").keep(job)["math"])
    parts = read_tensors(job.path("math", ".safetensors"))
    delta = parts["left/a.weight"].float() @ parts["right/a.weight"].float()
    assert torch.equal(weights["a.weight"], (job.tensors["a.weight"].float() + delta).bfloat16())


def test_what_low_rank_cannot_keep(job: Job) -> None:
    for changes, error, message in (
        ({"more": torch.ones(2)}, tsw.CheckpointError, "found 'more' in one of the two only"),
        ({"scale": torch.ones(2)}, tsw.CheckpointError, r"'scale': expected torch.float32\[\] as in the base, found"),
        ({"conv": torch.full((8, 4, 3, 3), torch.nan)}, tsw.NonFiniteError, "'conv': expected differences"),
        ({"a.bias": torch.full((24,), torch.inf)}, tsw.NonFiniteError, "'a.bias': expected differences"),
    ):
        torch.save(expert_tensors(1) | changes, job.folder / "x.pt")
        with pytest.raises(error, match=message):
            LowRank(2).keep(replace(job, experts={"t": job.folder / "x.pt"}))
    torch.save(expert_tensors(1) | {"a.bias": torch.full((24,), 1e6)}, job.folder / "x.pt")
    with pytest.raises(tsw.NonFiniteError, match=r"'a\.bias': expected differences from the base that f16 can hold"):
        LowRank(2, "f16").keep(replace(job, experts={"t": job.folder / "x.pt"}))
    torch.save(job.weights() | {"ids": torch.ones(5, dtype=torch.int64)}, job.folder / "x.pt")
    other = replace(job, experts={"t": job.folder / "x.pt"})
    kept = LowRank(2).keep(other)["t"]
    assert_same(loaded(job, kept), other.load_expert("t"))
    with pytest.raises(tsw.OptionError, match="rank: expected a number from 1 up, found 0"):
        LowRank(0)
    with pytest.raises(tsw.OptionError, match="dtype: expected int8 or f16, found 'u4'"):
        LowRank(1, "u4")  # type: ignore[arg-type]


def test_loads_that_are_not_asked_for_are_not_made(job: Job) -> None:
    made: list[str] = []

    class Counting:
        name, family = "counting", ""

        def keep(self, job: Job) -> dict[str, Kept]:
            return {task: Kept(1.0, lambda weights, task=task: made.append(task)) for task in job.experts}  # type: ignore[misc]

    for loads, calls in ((0, 1), (2, 3)):
        made.clear()
        table = tsw_sweep(job.base, job.experts, nearness, methods=[Counting()], loads=loads)
        assert made == [task for task in TASKS for _ in range(calls)]
        assert all(row.switch_seconds > 0 for row in table.rows)
    with pytest.raises(tsw.OptionError, match="loads: expected a number from 0 up, found -1"):
        tsw_sweep(job.base, job.experts, nearness, methods=[Counting()], loads=-1)


# --- texts and floors -----------------------------------------------------------------------------------------


def test_the_readmes_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(import torch\n(?:(?!```).)*tsw_sweep.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert "| full expert | 100.0 | - | 100.0 (math) |" in capsys.readouterr().out
    assert len(SweepTable.load("sweep.json").rows) == 2 * len(default_methods())
    assert Path("sweep.svg").read_bytes().startswith(b"<?xml")


def test_the_method_in_the_documentation_runs(job: Job) -> None:
    example = (method_module.__doc__ or "").split("sweep:\n\n")[1].split("\n\nWhat has")[0]
    names: dict[str, Any] = {"torch": torch, "Job": Job, "Kept": Kept, "Mapping": Mapping, "Tensor": Tensor}
    exec(textwrap.dedent(example), names)
    kept = names["HalfDelta"]().keep(job)
    assert kept.keys() == set(TASKS) and torch.allclose(
        loaded(job, kept["math"])["conv"], job.load_expert("math")["conv"], atol=1e-3
    )


def test_nothing_else_in_the_tools_imports_it() -> None:
    tools = ROOT / "tools" / "tswitch_tools"
    for path in tools.rglob("*.py"):
        if path.parent.name == "sweep":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not any("sweep" in name for name in names), path
