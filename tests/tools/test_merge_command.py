"""`tsw merge`, and what `tsw info` says of shared vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

import tswitch_format as tsw

Run = Callable[..., Result]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    arrays = {
        "a": random.standard_normal((60, 40)).astype(np.float32),
        "b": random.standard_normal(9).astype(np.float32),
    }
    save_file(arrays, tmp_path / "base.safetensors")
    for task in ("math", "code"):
        expert = {name: value + 0.01 * random.standard_normal(value.shape) for name, value in arrays.items()}
        save_file({name: value.astype(np.float32) for name, value in expert.items()}, tmp_path / f"{task}.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def tall(base: Path, tmp_path: Path, run: Run) -> Path:
    result = run(
        "tall", "make", base, tmp_path / "math.safetensors", tmp_path / "code.safetensors", "-o", tmp_path / "x.tsw"
    )
    assert result.exit_code == 0, result.output
    return tmp_path / "x.tsw"


def test_merging_writes_what_the_library_writes(base: Path, tall: Path, tmp_path: Path, run: Run) -> None:
    result = run(
        "merge", base, tall, "-o", tmp_path / "out.safetensors", "--method", "consensus", "-k", 2, "--scale", 0.4
    )
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out.safetensors'}: 2 tensors, 9.64 kB\n")
    tsw.merge(base, tall, tmp_path / "same.safetensors", method="consensus", k=2, scale=0.4)
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    run("merge", base, tall, "-o", tmp_path / "sum.safetensors", "--method", "sum", "-q")
    total = load_file(tmp_path / "sum.safetensors")
    assert not np.array_equal(total["a"], load_file(tmp_path / "out.safetensors")["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "mean"], "mean"),
        ([], "--method"),
        (["--method", "consensus", "-k", 3], "at most 2"),
        (["--method", "ties"], "tsw tall make --ties"),
        (["--method", "sum", "--task", "maths"], "'math'"),
        (["--method", "sum", "--scale", "inf"], "finite"),
        (["--method", "sum", "--task", "math"], "expected 'code' too"),
        (["--method", "sum", "-k", 2], "it is for --method consensus"),
    ],
)
def test_misuse_is_one_line(
    base: Path, tall: Path, tmp_path: Path, run: Run, arguments: list[Any], message: str
) -> None:
    result = run("merge", base, tall, "-o", tmp_path / "out.safetensors", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_info_counts_the_shared_vector_in_the_tasks_and_apart(tall: Path, run: Run) -> None:
    found = json.loads(run("info", tall, "--json", "--tensors").stdout)
    elements = 60 * 40 + 9
    assert found["shared"]["arrays"] == 2
    assert found["shared"]["elements"] == elements
    assert found["shared"]["dtypes"] == ["F32"]
    tasks = found["tasks"]
    assert sum(task["bytes"] for task in tasks) == pytest.approx(found["file_bytes"], abs=2)
    assert sum(task["shared_bytes"] for task in tasks) == pytest.approx(found["shared"]["bytes"], abs=2)
    for task in tasks:
        assert (task["select"], task["recipe"]["lambda"]) == ("tall-masks", "0.4")
        assert {entry["kind"] for entry in task["entries"]} == {"masked"}
        p = task["active"] / elements
        assert 0 < task["entropy_bits_per_param"] <= -p * np.log2(p) - (1 - p) * np.log2(1 - p) + 1e-9
    shown = run("info", tall).stdout
    assert "shared: 2 arrays, 2.41 k elements, F32, " in " ".join(shown.split())
    assert "own" in shown


def test_info_of_switches_has_no_shared_column(base: Path, tmp_path: Path, run: Run) -> None:
    tsw.pack(base, tmp_path / "math.safetensors", tmp_path / "math.tsw")
    result = run("info", tmp_path / "math.tsw")
    assert "shared" not in result.stdout and " own " not in result.stdout
    assert json.loads(run("info", tmp_path / "math.tsw", "--json").stdout)["shared"]["arrays"] == 0
