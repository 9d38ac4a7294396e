"""Packing with compiled loops: the same bytes as with NumPy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from switch_models import Arrays

import tswitch_format as tsw
from tswitch_format._dtypes import from_float
from tswitch_format.switch import blocks, pack, task_vector

pytest.importorskip("numba")
compiled_pack = pytest.importorskip("tswitch_format.switch.compiled_pack")

F32, BF16 = blocks.F32, blocks.BF16
SHAPES = [
    (1, 5), (1, 1000), (1, 1 << 17), (7, 3), (40_000, 3), (1000, 7), (300, 170), (64, 2048), (1, 129), (3, 136), (5000, 20),
]  # fmt: skip


def experts() -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(1)
    shapes = {"a": (300, 170), "b": (1, 5000), "c": (70_000,), "d": (40, 3, 5, 7), "e": (16, 900), "f": (), "g": (31,)}
    base = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
    tuned = {}
    for name, array in base.items():
        difference = rng.standard_normal(array.shape) * np.exp(rng.standard_normal(array.shape))
        tuned[name] = np.asarray(array + 1e-2 * difference, np.float32)
    tuned["a"][7] = base["a"][7]  # nothing of this row
    tuned["e"][3] = base["e"][3] * (1 + 1e-6)  # nearly nothing
    return base, tuned


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_and_survivors_have_the_bits_of_numpy(shape: tuple[int, int]) -> None:
    tau = np.random.default_rng(0).standard_normal(shape).astype(np.float32).reshape(-1)
    tau[::5] = 0
    plain, compiled = blocks.Blocks(tau.size, F32, F32), blocks.CompiledBlocks(tau.size, F32, F32, compiled_pack)
    one, two = (b.square_sums(tau, shape, columns=True) for b in (plain, compiled))
    assert np.array_equal(one.rows, two.rows)
    assert np.array_equal(one.columns, two.columns)
    assert one.total == two.total
    for keys in (None, np.abs(tau[::-1]) * (tau != 0)):
        for floor in (0.0, 1.0, 2.5, 9.0):
            found = [b.reaching(tau, keys, floor, squared=False) for b in (plain, compiled)]
            for a, b in zip(*found, strict=True):
                assert np.array_equal(a, b)
                assert a.dtype == b.dtype


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_finds_what_three_find(shape: tuple[int, int], dtype: Any, columns: bool) -> None:
    rng = np.random.default_rng(4)
    compiled = blocks.CompiledBlocks(shape[0] * shape[1], dtype, dtype, compiled_pack)
    for raw in (compiled.base_raw, compiled.tuned_raw):
        raw[:] = from_float(rng.standard_normal(shape[0] * shape[1]).astype(np.float32), dtype).view(np.uint8)
    compiled.tuned_raw[:8] = compiled.base_raw[:8]  # differences of 0
    for floor in (0.0, 0.5, 3.0, 99.0):
        found = compiled.gather(shape, floor, columns=columns)
        if found is None:
            assert shape[1] < 128
            continue
        tau = compiled.difference(shape[0] * shape[1])
        sums = compiled.square_sums(tau, shape, columns=columns)
        assert found[0].rows.tobytes() == sums.rows.tobytes()
        assert found[0].columns.tobytes() == sums.columns.tobytes()
        for one, other in zip(found[1:], compiled.reaching(tau, None, floor, squared=False), strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.fixture
def no_subnormals() -> Iterator[None]:
    """A process that takes them for zeros."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("no_subnormals")
@pytest.mark.parametrize("select", ["tensor", "global", "spectral"])
def test_zeros_are_zeros_where_subnormal_numbers_are_too(tmp_path: Path, select: str) -> None:
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal((200, 300)).astype(np.float32)}
    changed = rng.random((200, 300)) < 0.1
    tuned = {"w": base["w"] + changed.astype(np.float32) * np.float32(0.01)}
    tsw.pack(base, tuned, tmp_path / "x.tsw", select=select, density=0.5, threads=1)
    with tsw.open(tmp_path / "x.tsw") as file:
        assert np.array_equal(file.switch("w").mask(), tuned["w"] != base["w"])


@pytest.mark.parametrize("kind", ["normal", "ties", "close", "subnormal"])
def test_the_nth_largest_magnitude_is_exact(kind: str) -> None:
    rng = np.random.default_rng(5)
    every = rng.standard_normal(5000).astype(np.float32)
    if kind == "ties":
        every = np.round(every * 4) / np.float32(4)
    elif kind == "close":  # all share their upper 16 bits
        every = (np.float32(1) + np.arange(5000, dtype=np.float32) * np.float32(2**-23)) * np.sign(every)
    elif kind == "subnormal":
        every *= np.float32(1e-44)
    pieces = [every[:7], every[7:7], every[7:4000], every[4000:]]
    ordered = np.sort(np.abs(every))[::-1]
    for nth in (1, 2, 3, 777, 4999, 5000):
        assert compiled_pack.nth_largest(pieces, nth) == ordered[nth - 1]
    assert np.array_equal(np.concatenate(pieces), every)  # which it leaves as they are


@pytest.mark.parametrize("types", [(F32, F32), (BF16, BF16), (BF16, F32), (F32, BF16)])
def test_differences_have_the_bits_of_numpy(types: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(2)
    plain, compiled = blocks.Blocks(999, *types), blocks.CompiledBlocks(999, *types, compiled_pack)
    for raw in ("base_raw", "tuned_raw"):
        getattr(plain, raw)[:] = getattr(compiled, raw)[:] = rng.integers(0, 256, getattr(plain, raw).size, np.uint8)
    assert np.array_equal(plain.difference(999), compiled.difference(999), equal_nan=True)


@pytest.mark.parametrize("block", [1 << 20, 170 * 7])
@pytest.mark.parametrize("dtype", ["f4", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"select": "tensor"},
        {"select": "global"},
        {"select": "tensor-signed", "knob_per": "row"},
        {"select": "tensor", "density": 0.3, "knob": "norm", "knob_per": "tensor"},
        {"preset": "paper"},
        {"score": True},
    ],
)
def test_files_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: str, block: int
) -> None:
    base, tuned = experts()
    if options.get("score"):
        options = {"score": {name: np.abs(array) for name, array in tuned.items()}}
    sides: list[Any] = [base, tuned]
    if dtype == "bf16":
        sides = [{n: torch.from_numpy(array).bfloat16() for n, array in side.items()} for side in sides]
    monkeypatch.setattr(task_vector, "BLOCK", block)
    monkeypatch.setattr(task_vector, "_RUN", 500)
    monkeypatch.setattr("tswitch_format.switch.select._SMALL", 1000)
    found = {}
    for name in ("reference", ""):
        monkeypatch.setenv("TSW_KERNELS", name)
        tsw.pack(*sides, tmp_path / "x.tsw", threads=2, **options)
        found[name] = (tmp_path / "x.tsw").read_bytes()
    assert found["reference"] == found[""]


def test_small_models_do_without_where_numba_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = experts()
    asked = []
    monkeypatch.setattr(pack, "start", lambda name, package, instead: asked.append(name))
    monkeypatch.delitem(sys.modules, "numba")
    tsw.pack(base, tuned, tmp_path / "x.tsw")
    assert not asked
    monkeypatch.setattr(pack, "_COMPILED_FROM", {"spectral": 1000})
    tsw.pack(base, tuned, tmp_path / "y.tsw")
    assert asked == ["tswitch_format.switch.compiled_pack"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(tmp_path: Path, value: float) -> None:
    base, tuned = experts()
    tuned["a"][5, 6] = value
    for select in ("spectral", "tensor"):
        with pytest.raises(tsw.NonFiniteError, match="expected finite weights and differences, found NaN or infinity"):
            tsw.pack(base, tuned, tmp_path / "x.tsw", select=select)
