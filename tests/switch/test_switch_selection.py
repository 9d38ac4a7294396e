"""Which elements stay: exact thresholds, streamed ones as well, ties, scores, the paper's preset, target sizes."""

from __future__ import annotations

import math
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from switch_models import Arrays, files_in, masks, model, save, tuned

import tswitch_format as tsw
from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_format.switch import select as selection
from tswitch_format.switch.task_vector import BLOCK
from tswitch_format.switch.threshold import _SAMPLE


def nth_largest(keys: np.ndarray[Any, Any], quota: int) -> float:
    """By sorting everything."""
    return float(np.sort(keys[keys > 0].astype(np.float64))[-quota])


# --- one threshold over the model -----------------------------------------------------------------------------


def check_global(base: Arrays, expert: Arrays, density: float, path: Path) -> None:
    tsw.pack(base, expert, path, select="global", density=density)
    wide = {name: np.float64 if base[name].dtype == np.float64 else np.float32 for name in base}
    keys = {n: np.abs(expert[n].astype(wide[n]) - base[n].astype(wide[n])) for n in base}
    every = np.concatenate([k.astype(np.float64).reshape(-1) for k in keys.values()])
    quota = min(math.ceil(round(density * every.size, 9)), np.count_nonzero(every))
    limit = nth_largest(every, quota)
    found = masks(path)
    for name, key in keys.items():
        wanted = (key > 0) & (key.astype(np.float64) >= limit)
        assert np.array_equal(found.get(name, np.zeros(key.shape, bool)), wanted), name


@pytest.mark.parametrize("density", [0.001, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("types", [("f4",), ("f8",), ("f2",), ("f4", "f8", "f2")])
def test_global_threshold_is_that_of_sorting_the_whole_model(
    tmp_path: Path, density: float, types: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(len(types))
    base = {f"t{i}": rng.standard_normal((50, 20 * (i + 1))).astype(types[i % len(types)]) for i in range(5)}
    expert = tuned(base, scale=0.05)
    check_global(base, expert, density, tmp_path / "x.tsw")


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_ties_at_the_global_threshold_all_stay(tmp_path: Path, density: float) -> None:
    rng = np.random.default_rng(4)
    base = {f"t{i}": np.zeros(300, np.float32) for i in range(4)}
    expert = {name: rng.integers(-4, 5, 300).astype(np.float32) for name in base}
    check_global(base, expert, density, tmp_path / "x.tsw")


def test_global_threshold_between_two_numbers_of_binary32(tmp_path: Path) -> None:
    """The threshold is an element of the F64 tensor, a little above one of the F32 tensor, which must not stay."""
    base = {"d": np.zeros(4), "w": np.zeros(8, np.float32)}
    expert = {"d": np.array([1 + 1e-12, 0, 0, 0]), "w": np.array([1, 2, 0, 0, 0, 0, 0, 0], np.float32)}
    check_global(base, expert, 2 / 12, tmp_path / "x.tsw")
    assert masks(tmp_path / "x.tsw")["w"].tolist() == [False, True] + 6 * [False]


def test_global_threshold_below_the_range_of_binary32_keeps_no_zeros(tmp_path: Path) -> None:
    base = {"d": np.zeros(4), "w": np.zeros(8, np.float32)}
    expert = {"d": np.array([1e-300, 0, 0, 0]), "w": np.array([1e-45, 2, 0, 0, 0, 0, 0, 0], np.float32)}
    check_global(base, expert, 1.0, tmp_path / "x.tsw")
    assert masks(tmp_path / "x.tsw")["w"].sum() == 2


def test_global_density_counts_unchanged_tensors_too(tmp_path: Path) -> None:
    base = {"a": np.zeros(100, np.float32), "same": np.ones(900, np.float32)}
    expert = {"a": np.arange(1, 101, dtype=np.float32), "same": base["same"]}
    tsw.pack(base, expert, tmp_path / "x.tsw", select="global", density=0.05)
    assert masks(tmp_path / "x.tsw")["a"].sum() == 50


@pytest.mark.parametrize("select", ["spectral", "tensor", "tensor-signed", "global"])
def test_packing_does_not_hold_the_model(tmp_path: Path, select: str) -> None:
    rng = np.random.default_rng(0)
    tensors = 16
    one = rng.standard_normal(1 << 20).astype(np.float32)
    base = save(tmp_path / "base.safetensors", {f"t{i:02}": one for i in range(tensors)})
    expert = save(tmp_path / "expert.safetensors", {f"t{i:02}": one[::-1] * np.float32(i + 1) for i in range(tensors)})
    pack = partial(tsw.pack, base, expert, select=select, density=0.01, threads=1)
    pack(tmp_path / "warm.tsw")  # what is imported and made once does not count
    tracemalloc.start()
    pack(tmp_path / "x.tsw")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = one.nbytes
    buffers = (
        32 * BLOCK
    )  # bytes of one pass, whatever the tensor: a raw block, three of f32, flags, digits of a histogram
    bound = (
        2 if select == "global" else 5
    )  # tensors: sums, and candidates of a tensor of one chunk, which keeps them all
    sample = (
        40 * _SAMPLE if select == "global" else 0
    )  # bytes: keys, what each stands for, their order, and two in between
    assert peak < buffers + sample + bound * largest < tensors * largest


# --- one threshold a tensor -----------------------------------------------------------------------------------

BIG = (1 << 20) + (1 << 18)


def sampled_places() -> np.ndarray[Any, Any]:
    """Which elements of a flat tensor of BIG elements the library samples, as its source says: 32 runs of 1,024."""
    found = np.zeros(BIG, bool)
    for number in range(32):
        start = number * (BIG - 1024) // 31
        found[start : start + 1024] = True
    return found


@pytest.mark.parametrize("select", ["tensor", "tensor-signed"])
@pytest.mark.parametrize("large", ["in the sample", "outside of the sample", "anywhere"])
def test_a_sample_that_misleads_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str, large: str
) -> None:
    streamed: list[int] = []
    real = selection._streamed_threshold

    def counted(vector: Any, sign: int, quota: int) -> float:
        streamed.append(sign)
        return real(vector, sign, quota)

    monkeypatch.setattr(selection, "_streamed_threshold", counted)
    rng = np.random.default_rng(9)
    tau = rng.standard_normal(BIG).astype(np.float32) * np.float32(1e-3)
    sampled = sampled_places()
    if large != "anywhere":
        tau[sampled if large == "in the sample" else ~sampled] *= 1000
    base, expert = {"w": np.zeros(BIG, np.float32)}, {"w": tau}
    tsw.pack(base, expert, tmp_path / "x.tsw", select=select, density=0.4, threads=1)
    quota = math.ceil(BIG * 2 / 5)
    keys = np.abs(tau)
    if select == "tensor":
        wanted = keys >= nth_largest(keys, quota)
    else:
        nonzero, wanted = np.count_nonzero(tau), np.zeros(BIG, bool)
        for sign in (1, -1):
            of_sign = np.where(np.sign(tau) == sign, keys, 0)
            share = -(-quota * np.count_nonzero(of_sign) // nonzero)
            wanted |= of_sign >= nth_largest(of_sign, share)
    assert np.array_equal(masks(tmp_path / "x.tsw")["w"], wanted)
    assert bool(streamed) == (large == "in the sample")  # so that the way out of a wrong guess was taken


@pytest.mark.parametrize("number", [0.07, np.float64(0.07), np.float32(0.0625), 1])
def test_density_is_the_decimal_that_was_written(tmp_path: Path, number: float) -> None:
    base, expert = {"w": np.zeros(100, np.float32)}, {"w": np.arange(1, 101, dtype=np.float32)}
    tsw.pack(base, expert, tmp_path / "x.tsw", density=number, select="tensor")
    assert masks(tmp_path / "x.tsw")["w"].sum() == {0.07: 7, 0.0625: 7, 1.0: 100}[float(number)]


# --- external scores ------------------------------------------------------------------------------------------


def scored() -> tuple[Arrays, Arrays, Arrays]:
    base = {"w": np.zeros((10, 10), np.float32)}
    expert = {"w": np.arange(100, dtype=np.float32).reshape(10, 10)}  # the first element does not differ
    return base, expert, {"w": 100 - expert["w"]}


@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
def test_scores_decide_in_place_of_magnitudes(tmp_path: Path, select: str) -> None:
    base, expert, score = scored()
    tsw.pack(base, expert, tmp_path / "x.tsw", score=score, density=0.05, select=select)
    assert np.flatnonzero(masks(tmp_path / "x.tsw")["w"]).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
@pytest.mark.parametrize("amount", [{"density": 0.1}, {"discard": 0.2}])
def test_elements_with_a_score_of_zero_never_stay(tmp_path: Path, select: str, amount: dict[str, Any]) -> None:
    base, expert, score = scored()
    score["w"].reshape(-1)[4:] = 0
    tsw.pack(base, expert, tmp_path / "x.tsw", score=score, select=select, **amount)
    wanted = [1, 2, 3] if "density" in amount else [1, 2]
    assert np.flatnonzero(masks(tmp_path / "x.tsw")["w"]).tolist() == wanted


def test_scores_of_zero_alone_keep_nothing(tmp_path: Path) -> None:
    base, expert, _ = scored()
    assert tsw.pack(base, expert, tmp_path / "x.tsw", score={"w": np.zeros((10, 10))}).unchanged == 1


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("select", ["tensor", "global"])
def test_a_score_of_minus_zero_is_a_score_of_zero(tmp_path: Path, select: str, dtype: str) -> None:
    base, expert, score = ({name: a.astype(dtype) for name, a in arrays.items()} for arrays in scored())
    score["w"].reshape(-1)[50:] = -0.0
    tsw.pack(base, expert, tmp_path / "x.tsw", score=score, density=0.05, select=select)
    assert np.flatnonzero(masks(tmp_path / "x.tsw")["w"]).tolist() == [1, 2, 3, 4, 5]


def test_the_recipe_says_where_scores_are_from(tmp_path: Path) -> None:
    base, expert, score = scored()
    path = save(tmp_path / "score.safetensors", score)
    tsw.pack(base, expert, tmp_path / "x.tsw", score=path)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert file.recipe()["score"] == path.name


def test_the_recipe_says_what_scores_are_as_their_file_says(tmp_path: Path) -> None:
    base, expert, score = scored()
    with borrow_checkpoint(score) as reader:
        reader.metadata = {"score_method": "by hand", "note": "no"}  # type: ignore[misc]
        tsw.pack(base, expert, tmp_path / "x.tsw", score=reader)
    tsw.pack(base, expert, tmp_path / "y.tsw", score=score)
    tsw.pack(base, expert, tmp_path / "z.tsw", select="tensor")
    with tsw.open(tmp_path / "x.tsw") as x, tsw.open(tmp_path / "y.tsw") as y, tsw.open(tmp_path / "z.tsw") as z:
        assert x.recipe() == {**z.recipe(), "score": "the mapping of arrays", "score_method": "by hand"}
        assert y.recipe() == {**z.recipe(), "score": "the mapping of arrays"}


@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
def test_a_tensor_without_scores_is_selected_by_magnitude_alone(tmp_path: Path, select: str) -> None:
    base, expert, score = scored()
    base["buffer"] = np.zeros(20, np.float32)
    expert["buffer"] = np.arange(20, dtype=np.float32) * 1000  # far above all scores
    result = tsw.pack(base, expert, tmp_path / "x.tsw", score=score, density=0.1, select=select)
    found = masks(tmp_path / "x.tsw")
    assert np.flatnonzero(found["w"]).tolist() == list(range(1, 11))
    assert np.flatnonzero(found["buffer"]).tolist() == [18, 19]
    assert result.density == pytest.approx(0.1)


def test_scores_of_tensors_that_are_no_switches_do_no_harm(tmp_path: Path) -> None:
    base, expert, score = scored()
    more: Arrays = {"ids": np.arange(3), "head": np.ones(3, np.float32)}
    score["head"], score["ids"] = np.ones(4), np.ones(3)
    tsw.pack({**base, **more}, {**expert, **more}, tmp_path / "x.tsw", score=score, dense=["head"], density=0.05)
    assert np.flatnonzero(masks(tmp_path / "x.tsw")["w"]).tolist() == [1, 2, 3, 4, 5]


def test_scores_of_no_tensor_are_refused_with_near_names(tmp_path: Path) -> None:
    base, expert, score = scored()
    base, expert = {"layer.weight": base["w"]}, {"layer.weight": expert["w"]}
    message = r"scores of 'layers.weight': expected a tensor of that name in the base or the expert, found none \(near: 'layer"
    with pytest.raises(tsw.CheckpointError, match=message):
        tsw.pack(
            base, expert, tmp_path / "x.tsw", score={"layer.weight": score["w"], "layers.weight": score["w"].copy()}
        )
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"w": np.ones((10, 9), np.float32)},
        {"w": np.ones((10, 10), np.int32)},
        {"w": np.full((10, 10), -1.0, np.float32)},
        {"w": np.full((10, 10), np.nan, np.float32)},
        {"w": np.full((10, 10), np.inf, np.float32)},
    ],
)
def test_scores_that_do_not_fit_are_refused_by_name(tmp_path: Path, wrong: Arrays) -> None:
    base, expert, _ = scored()
    with pytest.raises(tsw.CheckpointError, match="scores of 'w'"):
        tsw.pack(base, expert, tmp_path / "x.tsw", score=wrong)
    assert not files_in(tmp_path)


# --- the paper's preset ---------------------------------------------------------------------------------------


def test_the_papers_arithmetic_is_pythons() -> None:
    assert int(10 * (1 - 0.9)) == 0
    assert int(100 * (1 - 0.9)) == 9


def papers_tensor() -> np.ndarray[Any, Any]:
    """Ten positive and a hundred negative entries, the rest zero."""
    tau = np.zeros(200, np.float32)
    tau[:10] = np.arange(1, 11)
    tau[10:110] = -np.arange(1, 101)
    return tau


def test_the_paper_keeps_all_of_a_sign_whose_quota_is_zero(tmp_path: Path) -> None:
    tau = papers_tensor()
    tsw.pack({"w": np.zeros_like(tau)}, {"w": tau}, tmp_path / "x.tsw", preset="paper", discard=0.9)
    kept = masks(tmp_path / "x.tsw")["w"]
    assert kept[:10].all()
    assert np.flatnonzero(kept[10:]).tolist() == list(range(91, 100))
    with tsw.open(tmp_path / "x.tsw") as file:
        survivors = tau[kept].astype(np.float64)
        assert file.switch("w").knob == pytest.approx(np.sqrt(np.mean(survivors**2)), rel=1e-6)
        assert file.switch("w").row_factors is None
        assert file.recipe()["preset"] == "paper"
        assert file.recipe()["discard"] == "0.9"


def test_without_the_preset_at_least_one_of_a_sign_stays(tmp_path: Path) -> None:
    tau = papers_tensor()
    options = {"select": "tensor-signed", "discard": 0.9}
    tsw.pack({"w": np.zeros_like(tau)}, {"w": tau}, tmp_path / "x.tsw", **options)
    kept = masks(tmp_path / "x.tsw")["w"]
    assert np.flatnonzero(kept[:10]).tolist() == [9]
    assert kept.sum() == 10


def test_ties_at_the_papers_threshold_stay(tmp_path: Path) -> None:
    tau = np.array([5, 3, 3, 3, 3, 1, 1, 1, 1, 1, -2, -2, -2], np.float32)
    tsw.pack({"w": np.zeros_like(tau)}, {"w": tau}, tmp_path / "x.tsw", preset="paper", discard=0.7)
    assert int(10 * (1 - 0.7)) == 3
    assert masks(tmp_path / "x.tsw")["w"].tolist() == 5 * [True] + 5 * [False] + 3 * [True]


def test_the_paper_keeps_tensors_without_dimensions_whole_and_skips_equal_ones(tmp_path: Path) -> None:
    base = {"scale": np.array(1, np.float32), "same": np.ones(5, np.float32), "w": np.zeros(5, np.float32)}
    expert = {**base, "scale": np.array(1.37, np.float32), "w": np.arange(5, dtype=np.float32)}
    result = tsw.pack(base, expert, tmp_path / "x.tsw", preset="paper")
    assert (result.switches, result.dense, result.unchanged) == (1, 1, 1)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert file.switch("scale").kind == "dense"
        assert file.switch("scale").data() == np.float32(1.37)
        assert file.recipe()["discard"] == "0.6"


# --- target sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("select", ["tensor", "global"])
def test_a_target_size_is_met_from_below(tmp_path: Path, percent: float, select: str) -> None:
    rng = np.random.default_rng(0)
    base = {f"t{i}": np.zeros((400, 250), np.float32) for i in range(4)}
    expert = {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in base.items()}
    result = tsw.pack(base, expert, tmp_path / "x.tsw", target_size=percent, select=select)
    target = percent / 100 * 4 * 400_000
    assert 0.98 * target <= result.file_bytes <= target
    assert result.file_bytes == (tmp_path / "x.tsw").stat().st_size
    with tsw.open(tmp_path / "x.tsw") as file:
        assert float(file.recipe()["target_size"]) == percent
        again = tsw.pack(base, expert, tmp_path / "y.tsw", density=float(file.recipe()["density"]), select=select)
    assert again.content_id == result.content_id


def test_an_impossible_target_size_is_refused_with_what_was_needed(tmp_path: Path) -> None:
    with pytest.raises(tsw.OptionError, match=r"target-size 0\.001 % of fp32 is .* bytes were needed"):
        tsw.pack(model(), tuned(model()), tmp_path / "x.tsw", target_size=0.001)
    assert not files_in(tmp_path)


def test_vectors_that_are_whole_and_too_large_are_refused_with_what_would_help(tmp_path: Path) -> None:
    base, expert = {"v": np.zeros(20_000, np.float32)}, {"v": np.random.default_rng(0).standard_normal(20_000, "f4")}
    with pytest.raises(tsw.OptionError, match="bytes were needed; ask for more, or use --select tensor"):
        tsw.pack(base, expert, tmp_path / "x.tsw", target_size=1.5)
    assert tsw.pack(base, expert, tmp_path / "x.tsw", target_size=1.5, select="tensor").percent_of_fp32 < 1.5


def test_a_target_size_above_all_there_is_keeps_all_but_a_thousandth(tmp_path: Path) -> None:
    base, expert = {"w": np.zeros(5000, np.float32)}, {"w": np.arange(5000, dtype=np.float32)}
    result = tsw.pack(base, expert, tmp_path / "x.tsw", target_size=100)
    assert result.file_bytes < 20_000
    assert masks(tmp_path / "x.tsw")["w"].sum() >= 0.999 * 4999
