"""`merge`: sum, TIES and consensus of a file's tasks, against the formulas on whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tswitch_format as tsw

Arrays = dict[str, NDArray[Any]]

SHAPES = {"a": (1300, 900), "b": (33,), "none": (7, 5)}  # "a" has more than one chunk


def models(tasks: int, seed: int = 0) -> tuple[Arrays, list[Arrays]]:
    """A base, and for each task its differences; "none" is the same in all."""
    random = np.random.default_rng(seed)
    base: Arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    base["count"] = np.arange(4)
    taus = []
    for _ in range(tasks):
        tau = {name: (random.standard_normal(shape) * 0.01).astype(np.float32) for name, shape in SHAPES.items()}
        taus.append({name: value for name, value in tau.items() if name != "none"})
    return base, taus


def expert(base: Arrays, tau: Arrays) -> Arrays:
    return {name: value + tau[name] if name in tau else value for name, value in base.items()}


@pytest.fixture(scope="module")
def switches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Path, list[Arrays]]:
    """A base, a bundle of switches, and what each of them adds."""
    folder = tmp_path_factory.mktemp("switches")
    base, taus = models(3)
    for number, tau in enumerate(taus):
        tsw.pack(base, expert(base, tau), folder / f"{number}.tsw", task=f"t{number}", density=0.3)
    tsw.bundle([folder / f"{number}.tsw" for number in range(3)], folder / "all.tsw")
    return base, folder / "all.tsw", added(folder / "all.tsw", 3)


def added(path: Path, tasks: int) -> list[Arrays]:
    with tsw.open(path) as file:
        return [{name: file.switch(name, f"t{t}").delta() for name in file.keys(f"t{t}")} for t in range(tasks)]


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Path, list[Arrays], Arrays]:
    """A base, a file of TALL masks, the masks, and the vector."""
    folder = tmp_path_factory.mktemp("tall")
    base, taus = models(3, seed=1)
    experts = {f"t{number}": expert(base, tau) for number, tau in enumerate(taus)}
    tsw.make_tall(base, experts, folder / "tall.tsw")
    with tsw.open(folder / "tall.tsw") as file:
        masks: list[Arrays] = [
            {name: file.switch(name, task).mask() for name in file.keys(task)} for task in file.tasks
        ]
        vector: Arrays = {name: file.switch(name, "t0").vector() for name in file.keys("t0")}
    return base, folder / "tall.tsw", masks, vector


def same(path: Path, expected: Arrays) -> None:
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == np.ascontiguousarray(value).tobytes(), name


def expect(
    base: Arrays, scale: float, combine: Callable[[list[NDArray[Any]]], NDArray[Any]], parts: list[Arrays]
) -> Arrays:
    out = dict(base)
    for name in ("a", "b"):
        merged = combine([part[name] for part in parts])
        out[name] = np.where(merged != 0, base[name] + np.float32(scale) * merged, base[name])
    return out


def total(parts: list[NDArray[Any]]) -> NDArray[Any]:
    out = np.zeros_like(parts[0])
    for part in parts:
        out = out + part
    return out


@pytest.mark.parametrize("scale", [1.0, 0.3, -0.5])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_sum_is_task_arithmetic(
    switches: tuple[Arrays, Path, list[Arrays]], tmp_path: Path, scale: float, threads: int
) -> None:
    base, path, parts = switches
    result = tsw.merge(base, path, tmp_path / "x.safetensors", scale=scale, threads=threads)
    assert (result.tensors, result.path) == (4, tmp_path / "x.safetensors")
    same(tmp_path / "x.safetensors", expect(base, scale, total, parts))


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_consensus_keeps_what_enough_tasks_have_active(
    switches: tuple[Arrays, Path, list[Arrays]], tmp_path: Path, k: int
) -> None:
    base, path, parts = switches

    def combine(terms: list[NDArray[Any]]) -> NDArray[Any]:
        return np.where(sum((term != 0).astype(int) for term in terms) >= k, total(terms), np.float32(0))

    tsw.merge(base, path, tmp_path / "x.safetensors", method="consensus", k=k, scale=0.4)
    same(tmp_path / "x.safetensors", expect(base, 0.4, combine, parts))


def test_ties_takes_the_mean_of_those_that_agree(switches: tuple[Arrays, Path, list[Arrays]], tmp_path: Path) -> None:
    base, path, parts = switches

    def combine(terms: list[NDArray[Any]]) -> NDArray[Any]:
        sign = np.sign(total(terms))
        agreeing = [np.where((np.sign(term) == sign) & (sign != 0), term, np.float32(0)) for term in terms]
        counts = sum((term != 0).astype(np.float32) for term in agreeing)
        return np.divide(total(agreeing), counts, out=np.zeros_like(terms[0]), where=counts > 0)

    tsw.merge(base, path, tmp_path / "x.safetensors", method="ties", scale=0.7)
    same(tmp_path / "x.safetensors", expect(base, 0.7, combine, parts))


@pytest.mark.parametrize("k", [None, 0, 1, 2, 3])
def test_of_masks_over_one_vector_the_vector_is_the_sum(
    tall: tuple[Arrays, Path, list[Arrays], Arrays], tmp_path: Path, k: int | None
) -> None:
    """Consensus merging as published: ptm + scale * (consensus * mtl)."""
    base, path, masks, vector = tall
    method = {"method": "sum"} if k is None else {"method": "consensus", "k": k}
    tsw.merge(base, path, tmp_path / "x.safetensors", scale=0.3, **method)  # type: ignore[arg-type]
    expected = dict(base)
    for name in ("a", "b"):
        counts = sum(mask[name].astype(int) for mask in masks)
        consensus = counts >= (k or 0)
        expected[name] = base[name] + np.float32(0.3) * (consensus.astype(np.float32) * vector[name])
    same(tmp_path / "x.safetensors", expected)


def test_a_choice_of_tasks(switches: tuple[Arrays, Path, list[Arrays]], tmp_path: Path) -> None:
    base, path, parts = switches
    tsw.merge(base, path, tmp_path / "x.safetensors", tasks=["t2", "t0"], scale=1)
    same(tmp_path / "x.safetensors", expect(base, 1, total, [parts[2], parts[0]]))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "mean"}, "expected sum, ties or consensus"),
    ({"method": "consensus", "k": -1}, "from 0 up"),
    ({"method": "consensus", "k": 4}, "at most 3"),
    ({"scale": float("nan")}, "finite"),
    ({"tasks": ["t0", "other"]}, "other"),
    ({"tasks": "t0"}, "a list of names"),
    ({"tasks": {"t0": 0.5}}, "coefficients are for 'restore'"),
    ({"tasks": []}, "at least one task"),
    ({"method": "consensus", "k": 2.0}, "from 0 up"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[str(given) for given, _ in BAD])
def test_what_cannot_be_merged_is_said(
    switches: tuple[Arrays, Path, list[Arrays]], tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(tsw.TswError, match=message):
        tsw.merge(switches[0], switches[1], tmp_path / "x.safetensors", **given)
    assert not list(tmp_path.iterdir())


def test_ties_of_masks_is_refused(tall: tuple[Arrays, Path, list[Arrays], Arrays], tmp_path: Path) -> None:
    with pytest.raises(tsw.OptionError, match="tall make --ties"):
        tsw.merge(tall[0], tall[1], tmp_path / "x.safetensors", method="ties")
    assert not list(tmp_path.iterdir())


def test_masks_over_different_vectors_are_refused(tmp_path: Path) -> None:
    base, taus = models(4)
    for name, some in (("one", taus[:2]), ("two", taus[2:])):
        experts = {f"{name}{number}": expert(base, tau) for number, tau in enumerate(some)}
        tsw.make_tall(base, experts, tmp_path / f"{name}.tsw")
    tsw.bundle([tmp_path / "one.tsw", tmp_path / "two.tsw"], tmp_path / "all.tsw")
    with pytest.raises(tsw.OptionError, match="different vectors"):
        tsw.merge(base, tmp_path / "all.tsw", tmp_path / "x.safetensors")
    tsw.merge(base, tmp_path / "all.tsw", tmp_path / "x.safetensors", tasks=["two0", "two1"])


def test_heads_of_their_own_are_refused(tmp_path: Path) -> None:
    base, taus = models(2)
    for number, tau in enumerate(taus):
        tsw.pack(base, expert(base, tau), tmp_path / f"{number}.tsw", task=f"t{number}", dense=["b"])
    tsw.bundle([tmp_path / "0.tsw", tmp_path / "1.tsw"], tmp_path / "all.tsw")
    with pytest.raises(tsw.OptionError, match="different dense content"):
        tsw.merge(base, tmp_path / "all.tsw", tmp_path / "x.safetensors")


def test_another_base_is_refused(switches: tuple[Arrays, Path, list[Arrays]], tmp_path: Path) -> None:
    base = dict(switches[0], b=switches[0]["b"] + 1)
    with pytest.raises(tsw.BaseMismatchError):
        tsw.merge(base, switches[1], tmp_path / "x.safetensors")
    tsw.merge(base, switches[1], tmp_path / "x.safetensors", check_base=False)


def test_the_sum_is_task_arithmetic_also_where_no_mask_selects_anything(tmp_path: Path) -> None:
    """Of a scalar that all experts move alike, the vector is farther from each of them than the base."""
    base: Arrays = {"scale": np.ones((), np.float32), "w": np.zeros(64, np.float32)}
    random = np.random.default_rng(0)
    experts: dict[str, Arrays] = {
        f"t{number}": {"scale": np.float32(1.01) * np.ones((), np.float32), "w": random.standard_normal(64, np.float32)}
        for number in range(5)
    }
    tsw.make_tall(base, experts, tmp_path / "x.tsw")
    with tsw.open(tmp_path / "x.tsw") as file:
        assert sum(file.switch("scale", task).active for task in file.tasks if "scale" in file.keys(task)) == 0
    tsw.merge(base, tmp_path / "x.tsw", tmp_path / "x.safetensors", scale=1)
    taus = [expert["scale"] - base["scale"] for expert in experts.values()]
    assert load_file(tmp_path / "x.safetensors")["scale"] == base["scale"] + np.sum(taus, dtype=np.float32)


@pytest.mark.parametrize("method", ["sum", "consensus"])
def test_a_vector_is_that_of_all_its_tasks(
    tall: tuple[Arrays, Path, list[Arrays], Arrays], tmp_path: Path, method: str
) -> None:
    with pytest.raises(tsw.OptionError, match="expected 't1' too, found t0"):
        tsw.merge(tall[0], tall[1], tmp_path / "x.safetensors", method=method, tasks=["t0"], k=1)
    assert not list(tmp_path.iterdir())


def test_emr_has_no_sum(tmp_path: Path) -> None:
    base, taus = models(2)
    tsw.make_emr(base, {f"t{number}": expert(base, tau) for number, tau in enumerate(taus)}, tmp_path / "x.tsw")
    with pytest.raises(tsw.OptionError, match="scales its vector by itself"):
        tsw.merge(base, tmp_path / "x.tsw", tmp_path / "x.safetensors")


def test_switches_and_masks_are_not_added_up(tmp_path: Path) -> None:
    base, taus = models(3)
    experts = {f"t{number}": expert(base, tau) for number, tau in enumerate(taus)}
    tsw.make_tall(base, {name: experts[name] for name in ("t0", "t1")}, tmp_path / "tall.tsw")
    tsw.pack(base, experts["t2"], tmp_path / "t2.tsw", task="t2")
    tsw.bundle([tmp_path / "tall.tsw", tmp_path / "t2.tsw"], tmp_path / "all.tsw")
    with pytest.raises(tsw.OptionError, match="found both, switches in 't2'"):
        tsw.merge(base, tmp_path / "all.tsw", tmp_path / "x.safetensors")
    tsw.merge(base, tmp_path / "all.tsw", tmp_path / "x.safetensors", tasks=["t2"])


def test_the_default_scale(switches: tuple[Arrays, Path, list[Arrays]], tmp_path: Path) -> None:
    base, path, _ = switches
    for method, scale in (("sum", 0.3), ("consensus", 0.3), ("ties", 1.0)):
        tsw.merge(base, path, tmp_path / "x.safetensors", method=method)
        tsw.merge(base, path, tmp_path / "y.safetensors", method=method, scale=scale)
        assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
