"""Selection by spectrum: keys against plain arithmetic and a full SVD, what falls back to magnitudes, and u4 factors."""

from __future__ import annotations

import math
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from switch_models import Arrays, masks, save

import tswitch_format as tsw
from tswitch_format.switch import spectral, task_vector


def packed(tmp_path: Path, tau: np.ndarray[Any, Any], **options: Any) -> np.ndarray[Any, Any]:
    """The mask of a tensor with this task vector."""
    path = tmp_path / "x.tsw"
    tsw.pack({"w": np.zeros_like(tau)}, {"w": tau}, path, **options)
    return masks(path)["w"].reshape(tau.shape)


def plain_keys(tau: np.ndarray[Any, Any], low: np.ndarray[Any, Any]) -> list[list[float]]:
    """The docstring's formula, number by number. `low`: the projection."""
    rows, columns = tau.shape
    least = 0.05**2 * math.fsum(float(x) ** 2 for x in tau.flat) / tau.size
    m = [math.sqrt(max(math.fsum(float(x) ** 2 for x in row) / columns, least)) for row in tau]
    n = [math.sqrt(max(math.fsum(float(x) ** 2 for x in column) / rows, least)) for column in tau.T]
    return [
        [
            max(float(tau[i, j]) * float(low[i, j]), float(tau[i, j]) ** 2 / 16) / math.sqrt(m[i] * n[j])
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def largest(keys: list[list[float]], quota: int) -> list[bool]:
    flat = [key for row in keys for key in row]
    limit = sorted(flat, reverse=True)[quota - 1]
    return [key >= limit for key in flat]


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (3, 200), (200, 2), (1, 50), (50, 1)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_of_sixteen_directions_nothing_is_projected_away(tmp_path: Path, shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(shape[0])
    tau = (rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)))).astype(dtype)
    quota = math.ceil(0.1 * tau.size)
    assert packed(tmp_path, tau, density=0.1).reshape(-1).tolist() == largest(plain_keys(tau, tau), quota)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_what_is_kept_follows_the_strongest_directions(tmp_path: Path, shape: tuple[int, int]) -> None:
    """16 directions far above the rest, so that a sketch finds them: the same as with a full SVD."""
    rng = np.random.default_rng(1)
    strong = rng.standard_normal((shape[0], 16)) @ rng.standard_normal((16, shape[1]))
    tau = (strong + 1e-4 * rng.standard_normal(shape)).astype(np.float32)
    u, s, v = np.linalg.svd(tau.astype(np.float64), full_matrices=False)
    low = (u[:, :16] * s[:16]) @ v[:16]
    expected = np.array(largest(plain_keys(tau, low), math.ceil(0.05 * tau.size)))
    found = packed(tmp_path, tau, density=0.05).reshape(-1)
    assert (found != expected).sum() <= 2  # keys that are all but equal


def test_scattered_noise_is_left_out_for_what_carries_a_direction(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    carrier = 0.5 * np.outer(rng.choice([-1, 1], 80), rng.choice([-1, 1], 80))
    noise = np.zeros((80, 80))
    noise.flat[rng.choice(6400, 300, replace=False)] = 0.8
    tau = np.where(noise > 0, noise, carrier).astype(np.float32)
    by_magnitude = packed(tmp_path, tau, density=0.04, select="tensor")
    by_spectrum = packed(tmp_path, tau, density=0.04, select="spectral")
    assert (by_magnitude & (noise > 0)).sum() == 300
    assert (by_spectrum & (noise > 0)).sum() < 300


def test_rows_and_columns_of_nothing_and_equal_tensors(tmp_path: Path) -> None:
    tau = np.zeros((30, 30), np.float32)
    tau[3, 4], tau[7, 9] = 1.0, -2.0
    assert np.flatnonzero(packed(tmp_path, tau, density=0.5)).tolist() == [3 * 30 + 4, 7 * 30 + 9]
    same = {"w": np.ones((30, 30), np.float32)}
    assert tsw.pack(same, same, tmp_path / "y.tsw", density=0.5).unchanged == 1


def test_density_one_keeps_all_that_differs(tmp_path: Path) -> None:
    tau = np.random.default_rng(3).standard_normal((40, 70)).astype(np.float32)
    tau[5] = 0
    assert np.array_equal(packed(tmp_path, tau, density=1.0), tau != 0)


@pytest.mark.parametrize("shape", [(40, 50), (12, 50)])
def test_what_is_far_below_the_rest_differs_too(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Its key would be below all numbers of f32."""
    tau = np.random.default_rng(10).standard_normal(shape).astype(np.float32)
    tau[3], tau[:, 4], tau[5, :30] = 1e-30, -1e-25, 0
    assert np.array_equal(packed(tmp_path, tau, density=1.0), tau != 0)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_equal_keys_stay_together(tmp_path: Path, dtype: str) -> None:
    """Products of matrices leave noise in f64; it chooses nothing."""
    rng = np.random.default_rng(11)
    tau = (0.3 * np.outer(rng.choice([-1, 1], 60), rng.choice([-1, 1], 50))).astype(dtype)
    assert packed(tmp_path, tau, density=0.1).all()


def test_squares_below_all_numbers_are_selected_by_magnitude(tmp_path: Path) -> None:
    tau = 1e-161 * np.random.default_rng(12).uniform(1, 2, (20, 30))  # pytest makes errors of warnings
    by_magnitude = packed(tmp_path, tau, density=0.1, select="tensor")
    assert by_magnitude.sum() == 60
    assert np.array_equal(packed(tmp_path, tau, density=0.1), by_magnitude)


def test_thin_tensors_take_no_more_than_magnitudes_do(tmp_path: Path) -> None:
    tau = np.random.default_rng(13).standard_normal((200_000, 2)).astype(np.float32)
    base, expert = (save(tmp_path / f"{n}.safetensors", {"w": x}) for n, x in (("a", np.zeros_like(tau)), ("b", tau)))
    peaks = {}
    for select in ("tensor", "spectral"):
        tracemalloc.start()
        tsw.pack(base, expert, tmp_path / "x.tsw", density=0.01, select=select, threads=1)
        peaks[select] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["spectral"] < peaks["tensor"] + 60 * len(tau)  # 16 numbers a row would be 128 bytes and more


@pytest.mark.parametrize("density", [0.01, 0.3, 0.62])
def test_as_many_stay_as_density_says(tmp_path: Path, density: float) -> None:
    tau = np.random.default_rng(4).standard_normal((64, 48)).astype(np.float32)
    assert packed(tmp_path, tau, density=density).sum() == math.ceil(density * tau.size)


def test_vectors_are_kept_whole(tmp_path: Path) -> None:
    base = {"bias": np.zeros(100, np.float32), "scale": np.zeros((), np.float32), "w": np.zeros((20, 20), np.float32)}
    rng = np.random.default_rng(5)
    expert: Arrays = {name: rng.standard_normal(a.shape).astype(np.float32) for name, a in base.items()}
    expert["bias"][7] = 0
    tsw.pack(base, expert, tmp_path / "x.tsw", density=0.01)
    found = masks(tmp_path / "x.tsw")
    assert (found["bias"].sum(), found["scale"].sum(), found["w"].sum()) == (99, 1, 4)


def test_long_vectors_are_selected_by_magnitude(tmp_path: Path) -> None:
    tau = np.random.default_rng(14).standard_normal((1 << 16) + 1).astype(np.float32)
    assert packed(tmp_path, tau[:-1], density=0.01).all()
    found = packed(tmp_path, tau, density=0.01)
    assert np.array_equal(found, packed(tmp_path, tau, density=0.01, select="tensor"))
    assert found.sum() == 656


def test_tensors_of_more_dimensions_are_matrices_by_their_first(tmp_path: Path) -> None:
    tau = np.random.default_rng(6).standard_normal((24, 3, 4, 5)).astype(np.float32)
    assert np.array_equal(packed(tmp_path, tau), packed(tmp_path, tau.reshape(24, 60)).reshape(tau.shape))


def test_rows_longer_than_a_block_are_selected_by_magnitude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_vector, "BLOCK", 50)
    tau = np.random.default_rng(7).standard_normal((6, 80)).astype(np.float32)
    by_magnitude = packed(tmp_path, tau, density=0.1, select="tensor")
    assert np.array_equal(packed(tmp_path, tau, density=0.1, select="spectral"), by_magnitude)


def test_squares_beyond_all_numbers_are_selected_by_magnitude(tmp_path: Path) -> None:
    tau = np.zeros((20, 20))
    tau[4, 4] = 1.0
    tau[3, 3] = 1e200  # a knob of f32 could not hold it
    with pytest.raises(tsw.NonFiniteError, match=re.escape("tensor 'w': expected differences that a 32-bit knob")):
        packed(tmp_path, tau, density=0.5)


def test_blocks_and_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a tensor, so that the sample and sums by parts are used."""
    rng = np.random.default_rng(8)
    base = {f"w{i}": np.zeros((300, 170), np.float32) for i in range(3)}
    expert = {name: rng.standard_normal(a.shape).astype(np.float32) for name, a in base.items()}
    tsw.pack(base, expert, tmp_path / "whole.tsw", threads=1)
    monkeypatch.setattr(task_vector, "BLOCK", 170 * 7)
    monkeypatch.setattr("tswitch_format.switch.select._SMALL", 1000)
    for threads in (1, 2):
        tsw.pack(base, expert, tmp_path / f"{threads}.tsw", threads=threads)
        assert (tmp_path / f"{threads}.tsw").read_bytes() == (tmp_path / "whole.tsw").read_bytes()


def test_not_finite_is_found(tmp_path: Path) -> None:
    tau = np.ones((20, 20), np.float32)
    tau[2, 3] = np.nan
    with pytest.raises(tsw.NonFiniteError, match="expected finite weights and differences, found NaN or infinity"):
        packed(tmp_path, tau)
    tsw.pack({"w": np.zeros_like(tau)}, {"w": tau}, tmp_path / "x.tsw", nonfinite="dense")


def test_scores_of_others_exclude_it(tmp_path: Path) -> None:
    arrays = {"w": np.ones((20, 20), np.float32)}
    with pytest.raises(tsw.OptionError, match="select spectral scores elements itself; leave score out"):
        tsw.pack(arrays, arrays, tmp_path / "x.tsw", score=arrays, select="spectral")


def test_signs_of_the_sketch_are_for_ever() -> None:
    found = spectral.sketch_signs(16)
    assert found.shape == (16,)
    assert np.array_equal(found, spectral.sketch_signs(99)[:16])
    assert "".join("-" if x < 0 else "+" for x in found) == "+--+++-+-+-+--+-"


# --- u4 -------------------------------------------------------------------------------------------------------


def test_u4_has_sixteen_levels_and_takes_less(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    tau = (rng.standard_normal((500, 400)) * np.exp(rng.standard_normal((500, 1)) / 4)).astype(np.float32)
    base = save(tmp_path / "base.safetensors", {"w": np.zeros_like(tau)})
    expert = save(tmp_path / "expert.safetensors", {"w": tau})
    sizes = {}
    for name in ("u4", "u8"):
        sizes[name] = tsw.pack(base, expert, tmp_path / f"{name}.tsw", knob_dtype=name).file_bytes
        with tsw.open(tmp_path / f"{name}.tsw") as file:
            switch = file.switch("w")
            assert file.recipe()["knob_dtype"] == name
            assert switch.row_factors is not None
            assert switch.column_factors is not None
            codes = np.rint(np.concatenate([switch.row_factors, switch.column_factors]) * 85)
            assert (codes % 17 == 0).all() == (name == "u4")
            delta = switch.delta().astype(np.float64)
            assert (delta * tau).sum() == pytest.approx((tau.astype(np.float64) ** 2).sum(), rel=1e-5)  # the projection
    assert sizes["u4"] < sizes["u8"] - 250


@pytest.mark.parametrize(("small", "coarse"), [(0.3, True), (0.06, False)])
def test_rows_that_16_levels_would_drop_get_256(tmp_path: Path, small: float, coarse: bool) -> None:
    """A tenth of the rows changed much less than the others; at this density they have active elements too."""
    tau = np.random.default_rng(10).standard_normal((200, 100)).astype(np.float32)
    tau[::10] *= small
    tsw.pack({"w": np.zeros_like(tau)}, {"w": tau}, tmp_path / "x.tsw", density=0.95)
    with tsw.open(tmp_path / "x.tsw") as file:
        switch = file.switch("w")
        codes = np.rint(switch.row_factors * 85)  # type: ignore[operator]
        assert (codes % 17 == 0).all() == coarse
        assert file.recipe()["knob_dtype"] == "u4"
        assert switch.mask()[::10].any(axis=1).all()
        assert switch.delta()[::10].any(axis=1).all()
