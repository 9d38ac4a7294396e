"""Random checkpoints go into a file and come back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from container_files import Arrays, content
from hypothesis import given, settings
from hypothesis import strategies as st

import tswitch_format as tsw
from tswitch_format.container.names import name_problem

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name_problem(name) is None)
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
DTYPES = st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.uint8, np.bool_])


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Arrays, Arrays]:
    base: Arrays = {}
    expert: Arrays = {}
    for name in draw(st.lists(NAMES, max_size=6, unique=True)):
        shape, dtype = draw(SHAPES), draw(DTYPES)
        rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
        base[name] = np.asarray(rng.standard_normal(shape) * 3).astype(dtype)
        changed = rng.random(shape) < draw(st.sampled_from([0, 0.1, 0.5, 1]))
        expert[name] = np.where(changed, np.asarray(rng.standard_normal(shape) * 3).astype(dtype), base[name])
    for name in draw(st.lists(NAMES, max_size=2, unique=True)):
        if name not in base:
            draw(st.sampled_from([base, expert]))[name] = np.arange(draw(st.integers(0, 5)), dtype=np.float32)
    return base, expert


def difference(base: np.ndarray[Any, Any], expert: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Its signs, computed in binary64, which is exact for equality and order."""
    signs: np.ndarray[Any, Any] = np.sign(expert.astype(np.float64) - base.astype(np.float64)).astype(np.int8)
    return signs


@settings(max_examples=60, deadline=None)
@given(checkpoints(), st.sampled_from(["archive", "mapped"]), st.sampled_from(["tensor", "row", "row-col"]))
def test_random_checkpoints_come_back(case: tuple[Arrays, Arrays], profile: str, knob_per: str) -> None:
    base, expert = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tsw"
        result = tsw.pack(
            base, expert, path, density=1.0, on_mismatch="dense", profile=profile, knob_per=knob_per, threads=1
        )
        assert result.file_bytes == path.stat().st_size
        assert tsw.validate(path, base=base).findings == ()
        with tsw.open(path) as file:
            assert file.content_id == result.content_id
            assert sorted(file.base.keys()) == sorted(base)
            keys = set(file.keys())
            for name in base.keys() | expert.keys():
                if name not in expert:
                    assert file.switch(name).kind == "removed"
                elif name not in base or (base[name].dtype.kind != "f" and name in keys):
                    switch = file.switch(name)
                    assert switch.kind == "dense"
                    assert switch.data().tobytes() == expert[name].tobytes()
                elif name in keys:
                    switch = file.switch(name)
                    signs = difference(base[name], expert[name])
                    np.testing.assert_array_equal(switch.sign(), signs)
                    np.testing.assert_array_equal(switch.mask(), signs != 0)
                    np.testing.assert_array_equal(switch.indices(), np.flatnonzero(signs))
                    assert switch.active == np.count_nonzero(signs)
                    assert switch.delta().shape == base[name].shape
                    assert ((switch.delta() != 0) <= (signs != 0)).all()
                else:
                    assert not difference(base[name], expert[name]).any()
        other = Path(folder) / "y.tsw"
        tsw.repack(path, other, profile="mapped" if profile == "archive" else "archive", threads=1)
        assert content(other) == content(path)
        tsw.repack(other, Path(folder) / "z.tsw", profile=profile, threads=1)
        assert (Path(folder) / "z.tsw").read_bytes() == path.read_bytes()
