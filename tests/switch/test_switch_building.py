"""Switches that somebody else made: stored as they are, or refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tswitch_format as tsw
from tswitch_format.checkpoint import ArrayCheckpoint

RNG = np.random.default_rng(3)
BASE = {
    "a": RNG.standard_normal((6, 5)).astype(np.float32),
    "b": RNG.standard_normal(9).astype(np.float16),
    "big": RNG.standard_normal((1100, 1000)).astype(np.float32),
    "ids": np.arange(4),
    "tied": np.zeros(0),
}
BASE["tied"] = BASE["a"]


def signs(shape: tuple[int, ...], density: float = 0.3) -> np.ndarray:
    return RNG.choice([-1, 0, 1], shape, p=[density / 2, 1 - density, density / 2]).astype(np.int8)


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_what_is_given_comes_back(tmp_path: Path, profile: str) -> None:
    given = {name: signs(BASE[name].shape) for name in ("a", "b", "big")}
    head = ArrayCheckpoint({"head": np.ones(3, np.float32), "ids": np.arange(4)[::-1].copy(), "b": np.ones(2)})
    tasks = [
        tsw.GivenTask("one", {n: tsw.GivenSwitch.of_signs(s, 0.25) for n, s in given.items()}, recipe={"by": "hand"}),
        tsw.GivenTask("two", {}, {"head": (head, "head"), "ids": (head, "ids"), "b": (head, "b")}),
    ]
    result = tsw.build(BASE, tmp_path / "a.tsw", tasks, profile=profile, base_id="org/base", metadata={"k": "v"})
    assert (result.switches, result.dense) == (3, 3)
    assert tsw.validate(tmp_path / "a.tsw", level="full").ok
    with tsw.open(tmp_path / "a.tsw") as file:
        assert file.content_id == result.content_id
        assert file.recipe("one") == {"by": "hand"}
        assert file.base.id == "org/base"
        assert file.base.aliases == {"tied": "a"}
        for name, wanted in given.items():
            switch = file.switch(name, "one")
            assert np.array_equal(switch.sign(), wanted)
            assert np.array_equal(switch.delta(), wanted * np.float32(0.25))
        assert np.array_equal(file.switch("ids", "two").data(), np.arange(4)[::-1])
        assert file.switch("b", "two").shape == (2,)
        assert file.switch("head", "two").shape == (3,)
    tsw.restore(BASE, tmp_path / "a.tsw", tmp_path / "out.safetensors", tasks=["one"])


def test_factors_are_kept_in_f32(tmp_path: Path) -> None:
    rows, columns = RNG.random(6, np.float32), RNG.random(5, np.float32)
    given = signs((6, 5), 0.9)
    plain = tsw.GivenSwitch.of_signs(given, 2.0)
    switch = tsw.GivenSwitch(2.0, plain.chunk, rows, columns)
    tsw.build(BASE, tmp_path / "a.tsw", [tsw.GivenTask("t", {"tied": switch})])
    with tsw.open(tmp_path / "a.tsw") as file:
        assert np.array_equal(file.switch("a").delta(), (np.float32(2) * rows[:, None]) * columns * given)


def test_the_same_is_written_whatever_the_threads_and_the_order(tmp_path: Path) -> None:
    switches = {name: tsw.GivenSwitch.of_signs(signs(BASE[name].shape), 1.0) for name in ("a", "b", "big")}
    for number, (threads, names) in enumerate([(1, "a b big"), (3, "big a b")]):
        task = tsw.GivenTask("t", {name: switches[name] for name in names.split()})
        tsw.build(BASE, tmp_path / f"{number}.tsw", [task], threads=threads)
    assert (tmp_path / "0.tsw").read_bytes() == (tmp_path / "1.tsw").read_bytes()


ONE = tsw.GivenSwitch.of_signs(np.ones((6, 5)), 1.0)
WHOLE = (ArrayCheckpoint({"a": np.ones((6, 5), np.float32)}), "a")


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (tsw.GivenTask("t", {"c": ONE}), tsw.UnknownNameError, "no tensor named 'c'"),
        (tsw.GivenTask("t", {"a": ONE, "tied": ONE}), tsw.OptionError, "one tied tensor"),
        (tsw.GivenTask("t", {"ids": ONE}), tsw.OptionError, "expected a float tensor"),
        (tsw.GivenTask("t", {"a": tsw.GivenSwitch(np.inf, ONE.chunk)}), tsw.OptionError, "finite in f32"),
        (tsw.GivenTask("t", {"a": tsw.GivenSwitch(1, ONE.chunk, rows=np.ones(5))}), tsw.OptionError, "6 finite row"),
        (tsw.GivenTask("t", {"a": ONE}, {"tied": WHOLE}), tsw.OptionError, "given twice"),
        (tsw.GivenTask("", {"a": ONE}), tsw.OptionError, "task name"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, task: tsw.GivenTask, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tsw.build(BASE, tmp_path / "a.tsw", [task])
    assert not list(tmp_path.iterdir())
