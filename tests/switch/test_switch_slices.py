"""Rows, columns and shards of a switch are the same cuts of the whole, and read no more chunks than their rows touch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tswitch_format as tsw

SHAPES = {"matrix": (37, 50), "cube": (5, 6, 7), "vector": (300,), "long": (1100, 1000), "scalar": ()}


@pytest.fixture(scope="module", params=[np.float32, np.float16])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    random = np.random.default_rng(5)
    base = {name: random.standard_normal(shape).astype(request.param) for name, shape in SHAPES.items()}
    expert = {name: array + random.standard_normal(array.shape).astype(array.dtype) for name, array in base.items()}
    path = tmp_path_factory.mktemp("slices") / "a.tsw"
    tsw.pack(base, expert, path, density=0.3)
    return path, base


CUTS = [
    slice(3, 9), slice(0, 0), slice(-4, None), (slice(None), slice(2, 5)), (slice(1, 4), slice(0, 3)),
    (slice(2, 2), slice(1, 3)), (slice(None), slice(4, 4)), (slice(1, None), slice(-2, None)),
]  # fmt: skip


@pytest.mark.parametrize("name", ["matrix", "cube", "long"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_slice_is_the_same_cut_of_the_whole(opened: tuple[Path, dict], name: str, cut: object) -> None:
    path, base = opened
    with tsw.open(path) as file:
        whole = file.switch(name)
        part = whole[cut]
        assert part.shape == whole.delta()[cut].shape
        assert np.array_equal(part.delta(0.5), whole.delta(0.5)[cut])
        assert np.array_equal(part.mask(), whole.mask()[cut])
        assert np.array_equal(part.sign(), whole.sign()[cut])
        assert np.array_equal(part.indices(), np.flatnonzero(whole.mask()[cut]))
        assert part.active == np.count_nonzero(whole.mask()[cut])
        assert np.array_equal(part.apply(base[name][cut]), whole.apply(base[name])[cut])
        array = base[name][cut].copy()
        assert part.apply(array, out=array) is array
        assert np.array_equal(array, whole.apply(base[name])[cut])


@pytest.mark.parametrize("cut", [np.s_[:], np.s_[1:3], np.s_[:, 1:2]], ids=str)
def test_indices_go_where_they_are_wanted(opened: tuple[Path, dict], cut: object) -> None:
    with tsw.open(opened[0]) as file:
        switch = file.switch("cube")[cut]
        expected = switch.indices()
        assert expected.size
        room = np.full(expected.size + 1, -1)
        found = switch.indices(room)
        assert np.shares_memory(found, room)
        assert np.array_equal(found, expected)
        assert room[-1] == -1
        fixed = room.copy()
        fixed.flags.writeable = False
        for wrong in (room[: expected.size - 1], room.astype(np.int32), np.full(2 * expected.size, -1)[::2], fixed):
            with pytest.raises(tsw.OptionError, match=rf"expected room for {expected.size} indices"):
                switch.indices(wrong)


def test_slices_of_slices_add_up(opened: tuple[Path, dict]) -> None:
    path, _ = opened
    with tsw.open(path) as file:
        whole = file.switch("matrix")
        part = whole[5:30, 10:40][2:9][:, 3:8]
        assert np.array_equal(part.delta(), whole.delta()[5:30, 10:40][2:9][:, 3:8])
        rows, columns = whole.row_factors, whole.column_factors
        assert rows is not None and np.array_equal(part.row_factors, rows[7:14])
        assert columns is not None and np.array_equal(part.column_factors, columns[13:18])


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_put_together_are_the_whole(opened: tuple[Path, dict], world_size: int) -> None:
    path, _ = opened
    with tsw.open(path) as file:
        for name in ("matrix", "cube", "long"):
            whole = file.switch(name)
            for dim in (0, 1):
                parts = [whole.shard(rank, world_size, dim).delta() for rank in range(world_size)]
                assert np.array_equal(np.concatenate(parts, dim), whole.delta())
        parts = [file.switch("vector").shard(rank, world_size).delta() for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), file.switch("vector").delta())


def test_the_result_may_be_of_another_dtype(tmp_path: Path) -> None:
    base = {"w": np.arange(24, dtype=np.float32).reshape(4, 6) / 7}
    tsw.pack(base, {"w": (base["w"] + 1).astype(np.float16)}, tmp_path / "a.tsw", density=0.5)
    with tsw.open(tmp_path / "a.tsw") as file:
        whole = file.switch("w").apply(base["w"])
        part = file.switch("w")[1:3, 2:5].apply(base["w"][1:3, 2:5])
    assert part.dtype == np.float16
    assert np.array_equal(part, whole[1:3, 2:5])


@pytest.mark.parametrize("key", [3, slice(0, 4, 2), (slice(0, 1), 2), (slice(0, 1),) * 3, "rows"])
def test_other_keys_are_refused(opened: tuple[Path, dict], key: object) -> None:
    with tsw.open(opened[0]) as file, pytest.raises(tsw.OptionError, match="slices"):
        file.switch("cube")[key]  # type: ignore[index]


def test_shards_that_make_no_sense_are_refused(opened: tuple[Path, dict]) -> None:
    with tsw.open(opened[0]) as file:
        for arguments in [(2, 2, 0), (-1, 2, 0), (0, 0, 0)]:
            with pytest.raises(tsw.OptionError, match="rank"):
                file.switch("matrix").shard(*arguments)
        for name, dim in [("matrix", 2), ("vector", 1), ("cube", -1)]:
            with pytest.raises(tsw.OptionError, match="dimension"):
                file.switch(name).shard(0, 2, dim)
