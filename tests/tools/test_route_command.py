"""`tsw route build` and `tsw route query`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import save_file

import tswitch_format as tsw

Run = Callable[..., Result]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    base = {"w": np.zeros((8, 6), np.float32)}
    for task in ("math", "code"):
        tsw.pack(base, {"w": random.standard_normal((8, 6), np.float32)}, tmp_path / f"{task}.tsw", task=task)
    np.save(tmp_path / "math.npy", np.eye(3, dtype=np.float32))
    save_file({"features": -np.eye(3, dtype=np.float16)}, tmp_path / "code.safetensors")
    return tsw.bundle([tmp_path / "math.tsw", tmp_path / "code.tsw"], tmp_path / "all.tsw")


@pytest.fixture
def routed(bundle: Path, tmp_path: Path, run: Run) -> Path:
    files = ["--features", f"math={tmp_path / 'math.npy'}", "--features", f"code={tmp_path / 'code.safetensors'}"]
    result = run("route", "build", bundle, "-o", tmp_path / "routed.tsw", *files, "-k", 1, "--extractor", "e")
    assert result.exit_code == 0, result.output
    assert "router of 6 samples of 2 tasks added" in result.stdout
    return tmp_path / "routed.tsw"


def test_a_query_prints_weights(routed: Path, tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "q.npy", np.array([[1, 0.2, 0], [-1, 0, 0], [0, 1, 0.1]], np.float32))
    lines = run("route", "query", routed, tmp_path / "q.npy").stdout.split("\n")
    assert [line.split() for line in lines[:3]] == [["sample", "math", "code"], ["0", "1", "0"], ["1", "0", "1"]]
    found = json.loads(run("route", "query", routed, tmp_path / "q.npy", "--json", "--mode", "mean").stdout)
    assert found["tasks"] == ["math", "code"]
    assert found["router"] == {"k": 1, "metric": "euclidean", "extractor": "e", "preprocessing": ""}
    assert found["weights"] == [pytest.approx([2 / 3, 1 / 3])]
    hard = json.loads(run("route", "query", routed, tmp_path / "q.npy", "--json", "--mode", "hard").stdout)
    assert hard["weights"] == [[1, 0]]


def test_types_are_kept_or_halved(routed: Path, bundle: Path, tmp_path: Path, run: Run) -> None:
    with tsw.open(routed) as file:
        assert file.router is not None
        assert {t: f.dtype for t, f in file.router.features.items()} == {"math": np.float32, "code": np.float16}
    run(
        "route",
        "build",
        bundle,
        "-o",
        tmp_path / "h.tsw",
        "--features",
        f"math={tmp_path / 'math.npy'}",
        "--half",
        "-q",
    )
    with tsw.open(tmp_path / "h.tsw") as file:
        assert file.router is not None and file.router.features["math"].dtype == np.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "math"], "expected TASK=FILE"),
        (["--features", "math=a.npy", "--features", "math=b.npy"], "'math' twice"),
        (["--features", "other={folder}/math.npy"], "no task named 'other'"),
        (["--features", "math={folder}/none.npy"], "No such file"),
        (["--features", "math={folder}/all.tsw"], "all.tsw"),
        (["--features", "math={folder}/two.safetensors"], "expected one tensor"),
        (["--features", "math={folder}/integers.safetensors"], "F16, F32 or F64"),
        (["--features", "math={folder}/pickled.npy"], "expected an NPY file of numbers"),
        (["--features", "math={folder}/math.npy", "-k", "0"], "from 1 to"),
    ],
)
def test_misuse_is_one_line(bundle: Path, tmp_path: Path, run: Run, arguments: list[Any], message: str) -> None:
    save_file({"a": np.eye(3), "b": np.eye(3)}, tmp_path / "two.safetensors")
    save_file({"a": np.eye(3, dtype=np.int64)}, tmp_path / "integers.safetensors")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    given = [argument.format(folder=tmp_path) for argument in arguments]
    result = run("route", "build", bundle, "-o", tmp_path / "x.tsw", *given)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "x.tsw").exists()


def test_a_file_without_a_router_says_what_to_do(bundle: Path, tmp_path: Path, run: Run) -> None:
    result = run("route", "query", bundle, tmp_path / "math.npy")
    assert (result.exit_code, "tsw route build" in result.stderr) == (2, True)


def test_info_names_the_router(routed: Path, bundle: Path, run: Run) -> None:
    assert (
        "router: 1 nearest by euclidean of 6 samples of 2 tasks, 3 numbers each, extractor e"
        in run("info", routed).stdout
    )
    found = json.loads(run("info", routed, "--json").stdout)["router"]
    assert found == {
        "k": 1,
        "metric": "euclidean",
        "extractor": "e",
        "preprocessing": "",
        "samples": 6,
        "tasks": 2,
        "width": 3,
    }
    assert json.loads(run("info", bundle, "--json").stdout)["router"] is None
