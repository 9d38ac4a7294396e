"""One threshold for many tensors: what the sample says decides nothing, and where it misleads, histograms find the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from switch_models import Arrays, masks

import tswitch_format as tsw
from tswitch_format.switch import spectral, threshold

SHAPES = {"a": (200, 300), "b": (50, 70), "c": (400, 150), "long": (70_000,), "few": (3, 900)}


def pair(seed: int = 0) -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(seed)
    base = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    scale = {"a": 1.0, "b": 3.0, "c": 0.3, "long": 1.0, "few": 1.0}
    return base, {n: (scale[n] * rng.standard_normal(SHAPES[n])).astype(np.float32) for n in SHAPES}


@pytest.fixture
def by_sample(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Models of this size are sampled too; the pairs of keys that samples gave."""
    found: list[tuple[float, float]] = []
    real = threshold._bracket

    def bracket(*given: Any) -> tuple[float, float]:
        found.append(real(*given))
        return found[-1]

    monkeypatch.setattr(threshold, "_SMALL", 1000)
    monkeypatch.setattr(threshold, "_SAMPLE", 50_000)
    monkeypatch.setattr(threshold, "_LEAST_SAMPLE", 500)
    monkeypatch.setattr(threshold, "_bracket", bracket)
    return found


@pytest.mark.parametrize("density", [0.004, 0.03, 0.4, 1.0])
def test_as_many_stay_of_all_as_density_says(tmp_path: Path, by_sample: list[Any], density: float) -> None:
    base, expert = pair()
    tsw.pack(base, expert, tmp_path / "x.tsw", select="global", density=density)
    keys = np.sort(np.concatenate([np.abs(array).reshape(-1) for array in expert.values()]))
    limit = keys[-math.ceil(round(density * keys.size, 6))]
    for name, mask in masks(tmp_path / "x.tsw").items():
        assert np.array_equal(mask, np.abs(expert[name]) >= limit), name
    low, high = by_sample[0]
    assert low <= limit
    assert high >= limit
    assert low > 0 or density > 0.9


@pytest.mark.parametrize("select", ["spectral", "global"])
def test_a_sample_that_misleads_does_no_harm(
    tmp_path: Path, by_sample: list[Any], monkeypatch: pytest.MonkeyPatch, select: str
) -> None:
    base, expert = pair()
    tsw.pack(base, expert, tmp_path / "right.tsw", select=select, density=0.02)
    for wrong in ((0.0, 1e-9), (1e9, math.inf), (1e-9, 2e-9)):
        monkeypatch.setattr(threshold, "_bracket", lambda *given, wrong=wrong: wrong)
        tsw.pack(base, expert, tmp_path / "x.tsw", select=select, density=0.02)
        assert (tmp_path / "x.tsw").read_bytes() == (tmp_path / "right.tsw").read_bytes()


@pytest.mark.parametrize("select", ["spectral", "global"])
def test_threads_and_samples_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str) -> None:
    base, expert = pair()
    found = set()
    for small in (1000, 1 << 20):
        monkeypatch.setattr(threshold, "_SMALL", small)
        for threads in (1, 3):
            tsw.pack(base, expert, tmp_path / "x.tsw", select=select, threads=threads)
            found.add((tmp_path / "x.tsw").read_bytes())
    assert len(found) == 1


def test_what_is_not_finite_does_not_count(tmp_path: Path, by_sample: list[Any]) -> None:
    base, expert = pair()
    expert["c"][7, 9] = np.inf
    for select in ("spectral", "global"):
        with pytest.raises(tsw.NonFiniteError, match="'c'"):
            tsw.pack(base, expert, tmp_path / "x.tsw", select=select)
        assert not list(tmp_path.iterdir())
    tsw.pack(base, expert, tmp_path / "x.tsw", select="global", density=0.1, nonfinite="dense")
    kept = sum(int(mask.sum()) for mask in masks(tmp_path / "x.tsw").values())
    assert kept == math.ceil(0.1 * sum(expert[name].size for name in SHAPES if name != "c"))


def test_tensors_that_change_more_keep_more(tmp_path: Path) -> None:
    base, expert = pair()
    tsw.pack(base, expert, tmp_path / "x.tsw", density=0.02)
    share = {name: mask.mean() for name, mask in masks(tmp_path / "x.tsw").items()}
    assert share["b"] > 2 * share["a"] > 4 * share.get("c", 0.0)
    matrices = [name for name in SHAPES if name != "long"]
    kept = sum(share.get(name, 0.0) * expert[name].size for name in matrices)
    assert round(kept) == math.ceil(0.02 * sum(expert[name].size for name in matrices))
    assert share["long"] == 0.02  # by magnitude, with a threshold of its own


def test_a_tensor_of_which_nothing_reaches_the_threshold_is_as_the_base(tmp_path: Path) -> None:
    base, expert = pair()
    expert["b"] *= np.float32(1e-4)
    result = tsw.pack(base, expert, tmp_path / "x.tsw", density=0.02)
    assert result.unchanged == 1
    with tsw.open(tmp_path / "x.tsw") as file:
        assert "b" not in file.keys()  # noqa: SIM118


def test_discard_is_of_what_differs(tmp_path: Path) -> None:
    base, expert = pair()
    expert["a"][:100] = 0
    for select in ("spectral", "global"):
        tsw.pack(base, expert, tmp_path / "x.tsw", select=select, discard=0.9)
        counted = [name for name in SHAPES if select == "global" or name != "long"]
        differ = sum(int(np.count_nonzero(expert[name])) for name in counted)
        found = masks(tmp_path / "x.tsw")
        assert sum(int(found[name].sum()) for name in counted if name in found) == pytest.approx(0.1 * differ, abs=1)


def test_a_target_size_looks_for_directions_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, expert = pair()
    calls: list[str] = []
    real = spectral._factors
    monkeypatch.setattr(spectral, "_factors", lambda vector, *rest: (calls.append(vector.name), real(vector, *rest))[1])
    seen: list[tuple[int, int]] = []
    result = tsw.pack(base, expert, tmp_path / "x.tsw", target_size=3, progress=lambda *at: seen.append(at))
    assert 0.98 * 3 <= result.percent_of_fp32 <= 3
    assert sorted(calls) == ["a", "b", "c"]
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total in seen}) == 2


def test_a_bound_of_f64_is_compared_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In f32 it would be 1, and the element of that key would count for more than the larger ones of f64."""
    base = {"d": np.zeros(4), "w": np.zeros(4, np.float32)}
    expert = {"d": np.array([1 + 1e-12, 1 + 1.5e-12, 0.7, 0]), "w": np.array([1, 2, 0, 0], np.float32)}
    monkeypatch.setattr(threshold, "_bracket", lambda *given: (0.5, 1 + 2e-12))
    tsw.pack(base, expert, tmp_path / "x.tsw", select="global", density=3 / 8)
    found = masks(tmp_path / "x.tsw")
    assert found["d"].tolist() == [True, True, False, False]
    assert found["w"].tolist() == [False, True, False, False]
