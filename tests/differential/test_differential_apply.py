"""Applying and restoring: the library gives the bits that the reference gives, or both refuse."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from differential_models import Made, make
from differential_readers import library
from tsw_reference import BrokenError, UsageError, read
from tsw_reference.application import Array, apply, apply_table

import tswitch_format as tsw

COEFFICIENTS = (1.0, -0.7, 0.0, 0.25, -1.5, 1e-3, 2.0**-30, 3.0)
CASES = 60
APPLY = sorted((Path(__file__).parents[2] / "spec" / "vectors" / "apply").glob("*.json"))
NATIVE = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
LETTERS = {"F16": "e", "F32": "f", "F64": "d"}


Output = dict[str, Any] | str
"""What applying gives, or why it is refused: a rule, or the words of a wrong wish."""


def by_reference(case: dict[str, Any]) -> Output:
    """The output of a case, or the rule by which it is refused."""
    base = {
        name: Array(t["dtype"], tuple(t["shape"]), bytes.fromhex(t["data"]["hex"])) for name, t in case["base"].items()
    }
    try:
        file = read(bytes.fromhex(case["file"]["hex"]))
        if "table" in case:
            made = apply_table(file, base, case["table"], case.get("layers"))
        else:
            made = apply(file, base, [(name, float(text)) for name, text in case["tasks"]])
    except BrokenError as error:
        return error.rule
    except UsageError as error:
        return str(error)
    return {
        name: {"dtype": array.dtype, "shape": list(array.shape), "data": {"hex": array.data.hex()}}
        for name, array in made.items()
    }


def by_library(case: dict[str, Any], folder: Path) -> Output:
    """The same, by `tsw.restore`."""
    try:
        made: dict[str, Any] = library.apply(case, folder)
    except library.RefusedError as error:
        return str(error)
    return made


def agree(ours: Output, theirs: Output) -> bool:
    """Whether both give the same bytes, or refuse by the same rule."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return isinstance(ours, str) and isinstance(theirs, str) and theirs in ours
    return with_plain_nans(ours) == with_plain_nans(theirs)


def with_plain_nans(output: dict[str, Any]) -> dict[str, Any]:
    """NaNs of a float type count as equal whatever their bits."""
    made = {}
    for name, tensor in output.items():
        data = bytes.fromhex(tensor["data"]["hex"])
        if tensor["dtype"] == "BF16":
            words = [0x7FC0 if word & 0x7FFF > 0x7F80 else word for (word,) in struct.iter_unpack("<H", data)]
            data = struct.pack(f"<{len(words)}H", *words)
        elif tensor["dtype"] in LETTERS:
            letter = "<" + LETTERS[tensor["dtype"]]
            data = b"".join(
                struct.pack(letter, math.nan if math.isnan(value) else value)
                for (value,) in struct.iter_unpack(letter, data)
            )
        made[name] = {**tensor, "data": {"hex": data.hex()}}
    return made


def case_of(made: Made, seed: int, tied: bool) -> dict[str, Any]:
    """The file's tasks in some order, each with some coefficient.

    None comes twice: the library refuses that wish, the reference adds it twice, and section 10 does not say.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(made.tasks).tolist()
    return given_of(made, tied) | {"tasks": [[name, repr(float(rng.choice(COEFFICIENTS)))] for name in names]}


def given_of(made: Made, tied: bool) -> dict[str, Any]:
    """File and base of a case."""
    base = {name: tensor.case() for name, tensor in made.base.items()}
    if tied:
        base["z.tied"] = base["t0"]
    return {"file": {"hex": made.data.hex()}, "base": base}


def check(seed: int, folder: Path) -> bool:
    """Compare one case; whether it was applied."""
    case = case_of(make(seed, folder), seed, tied=seed % 6 == 0)
    ours, theirs = by_library(case, folder), by_reference(case)
    assert agree(ours, theirs), (seed, ours, theirs)
    return not isinstance(ours, str)


def test_restored_experts(tmp_path: Path) -> None:
    applied = sum(check(seed, tmp_path) for seed in range(CASES))
    assert CASES // 2 < applied <= CASES


def check_tables(seed: int, folder: Path) -> tuple[int, int]:
    """Compare what the file's tables give, with the layers of nobody and of each task: how many applied, how many refused."""
    made = make(seed, folder)
    outcomes = []
    for table in made.tables:
        for layers in ({}, *({"layers": task} for task in made.tasks)):
            case = given_of(made, tied=seed % 6 == 0) | {"table": table, **layers}
            ours, theirs = by_library(case, folder), by_reference(case)
            assert agree(ours, theirs), (seed, table, layers, ours, theirs)
            outcomes.append(isinstance(ours, str))
    return outcomes.count(False), outcomes.count(True)


def test_tables(tmp_path: Path) -> None:
    applied, refused = np.sum([check_tables(seed, tmp_path) for seed in range(CASES)], 0)
    assert applied > CASES and refused


@pytest.mark.slow
def test_many_tables(tmp_path: Path) -> None:
    applied, refused = np.sum([check_tables(seed, tmp_path) for seed in range(CASES, 1000)], 0)
    print(f"\ntables: {applied:,} applied by both with equal bytes, {refused:,} refused by both")


@pytest.mark.slow
def test_many_restored_experts(tmp_path: Path) -> None:
    seeds = range(CASES, 1500)
    applied = sum(check(seed, tmp_path) for seed in seeds)
    print(f"\nrestored: {len(seeds):,} cases, {applied:,} applied by both with equal bytes, the others refused by both")


@pytest.mark.parametrize("path", APPLY, ids=lambda path: path.stem)
def test_cases_of_the_suite(path: Path, tmp_path: Path) -> None:
    case = json.loads(path.read_bytes())["input"]
    ours, theirs = by_library(case, tmp_path), by_reference(case)
    assert agree(ours, theirs), (ours, theirs)


@pytest.mark.parametrize(
    "seed", [seed for seed in range(24) if seed % 4 != 1]
)  # not those of BF16, which NumPy has not
def test_switches_on_arrays(seed: int, tmp_path: Path) -> None:
    """`Switch.apply` on an array, in memory, one tensor at a time."""
    made = make(seed, tmp_path)
    path = tmp_path / "switches.tsw"
    path.write_bytes(made.data)
    file = read(made.data)
    base = {name: Array(*tensor) for name, tensor in made.base.items()}
    with tsw.open(path) as opened:
        for task in file.tasks:
            for coefficient in (1.0, -0.7, 0.0):
                expert = apply(file, base, [(task.name, coefficient)])
                for entry in task.entries:
                    name = entry.tensor.name
                    if entry.kind not in (1, 2) or made.base[name].dtype not in NATIVE:
                        continue
                    given = np.frombuffer(base[name].data, NATIVE[base[name].dtype]).reshape(base[name].shape)
                    result = opened.switch(name, task.name).apply(given.copy(), coefficient)
                    assert result.tobytes() == expert[name].data, (task.name, name, coefficient)
