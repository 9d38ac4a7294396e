"""A .tsw file as a .safetensors file: it comes back with the same content, and whatever was changed is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

import tswitch_format as tsw
from fuzz import strategies
from fuzz.parts import Parts
from tswitch_format import GivenMask, GivenSwitch, GivenTask, GivenVector
from tswitch_format.checkpoint import DTYPE_BY_NAME, DTYPES, ArrayCheckpoint, TensorSpec
from tswitch_format.container.digest import content_id
from tswitch_format.container.reader import Container
from tswitch_format.parallel import ordered_map
from tswitch_tools import exporters, importers
from tswitch_tools.carrier import escaped
from tswitch_tools.cli import tsw as command
from tswitch_tools.exporters import safetensors_carrier as exporter
from tswitch_tools.importers import ImportOptions
from tswitch_tools.importers import safetensors_carrier as importer

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.tsw"))
# The index of limit-texts has no place for a writer's name that is longer than its own.
VALID = [p for p in sorted((ROOT / "spec" / "vectors" / "valid").glob("*.tsw")) if p.stat().st_size < 20_000]
SLOW = ("limit-tensors", "limit-index-bytes")
CASES = [
    pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else [])
    for p in (*GOLDEN, *VALID)
    if p.stem != "limit-texts"
]
CHUNK = 1 << 20
Json = dict[str, Any]

RNG = np.random.default_rng(11)
BASE = {
    "a.weight": RNG.standard_normal((6, 10)).astype(np.float32),
    "b/c": RNG.standard_normal((2, 3, 4)).astype(np.float16),
    "c": RNG.standard_normal(21),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.arange(5),
    "scalar": np.array(2.5, np.float32),
}
BASE["tied"] = BASE["a.weight"]


def switch(shape: tuple[int, ...], seed: int, **factors: Any) -> GivenSwitch:
    signs = np.random.default_rng(seed).integers(-1, 2, shape)
    given = GivenSwitch.of_signs(signs, 0.1 * seed)
    return GivenSwitch(given.knob, given.chunk, **factors)


def make(path: Path, profile: str = "archive") -> Path:
    """Three tasks: switches with and without factors, masks over vectors, dense tensors, names that could meet."""
    rng = np.random.default_rng(3)
    added = ArrayCheckpoint(
        {
            "new": np.arange(4, dtype=np.uint8),
            "c": np.ones((2, 2), np.float32),
            "ids": np.arange(5) + 1,
            "complex": np.ones(3, np.complex64),
            "hollow": np.zeros((3, 0), np.float32),
        }
    )
    rows, columns = rng.random(6, np.float32), rng.random(10, np.float32)
    tasks = [
        GivenTask(
            "a/b",
            {
                "a.weight": switch((6, 10), 1, rows=rows, columns=columns),
                "b/c": GivenMask.of_flags(rng.integers(0, 2, (2, 3, 4)), 0.3),
                "empty": switch((0, 4), 1),
                "scalar": switch((), 5),
            },
            {name: (added, name) for name in ("new", "c", "ids", "complex", "hollow")},
            {"how": "by hand: \u00e9"},
        ),
        GivenTask(
            "a", {"b/c": switch((2, 3, 4), 2, columns=rng.random(12, np.float32)), "c": switch((21,), 3)}, recipe={}
        ),
        GivenTask(
            "shared",
            {"a.weight": GivenMask.of_flags(rng.integers(0, 2, (6, 10))), "b/c": switch((2, 3, 4), 4, rows=rows[:2])},
            {"0": (added, "new")},
        ),
    ]
    vectors = {
        "a.weight": GivenVector.of_array(rng.standard_normal((6, 10)).astype(np.float32)),
        "b/c": GivenVector.of_array(rng.standard_normal((2, 3, 4)).astype(np.float16)),
    }
    options: Json = {"metadata": {"note": 'a "quote"'}, "base_id": "org/m", "base_revision": "v1", "threads": 1}
    tsw.build(BASE, path, tasks, vectors=vectors, profile=profile, **options)
    return path


def export(file: Path, out: Path, task: str | None = None, **options: Any) -> Path:
    with tsw.open(file) as opened:
        exporter.convert(opened, task, out, **options)
    return out


def bring_back(carrier: Path, out: Path, base: Any = None, **options: Any) -> Path:
    importer.convert(carrier, base, out, ImportOptions(**{"threads": 1, **options}))
    return out


def check_same(first: Path, second: Path) -> None:
    """Everything that both files say is the same, but for profile, codecs and writer."""
    a, b = Container(first), Container(second)
    one, other = a.index, b.index
    for mine, yours in ((one.base, other.base), (one.extra, other.extra), (one.shared.arrays, other.shared.arrays)):
        assert list(mine.names) == list(yours.names)
        assert mine.records.tobytes() == yours.records.tobytes() and mine.dims.tobytes() == yours.dims.tobytes()
    for name in ("aliases", "base_id", "base_revision", "metadata"):
        assert getattr(one, name) == getattr(other, name)
    assert one.shared.roles.tobytes() == other.shared.roles.tobytes()
    assert len(one.tasks) == len(other.tasks)
    for mine_task, your_task in zip(one.tasks, other.tasks, strict=True):
        assert mine_task.entries.tobytes() == your_task.entries.tobytes()
        for name in ("name", "recipe", "checkpoint", "metadata"):
            assert getattr(mine_task, name) == getattr(your_task, name)
    for number in range(len(one.tasks)):
        for mine_entry, your_entry in zip(a.entries(number), b.entries(number), strict=True):
            assert mine_entry.content_digest() == your_entry.content_digest()
    assert content_id(one) == other.content_id
    a.close()
    b.close()
    assert tsw.validate(second, "full").ok


# There and back


@pytest.mark.parametrize("profile", ["archive", "mapped"])
@pytest.mark.parametrize("threads", [1, 3])
def test_everything_comes_back(tmp_path: Path, profile: str, threads: int) -> None:
    file = make(tmp_path / "x.tsw", profile)
    carrier = export(file, tmp_path / "x.safetensors")
    back = bring_back(carrier, tmp_path / "y.tsw", profile=profile, threads=threads)
    check_same(file, back)
    with tsw.open(file) as one, tsw.open(back) as other:
        assert one.content_id == other.content_id is not None
        assert other.profile == profile
    back = bring_back(carrier, back, profile="mapped" if profile == "archive" else "archive")
    check_same(file, back)


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    file = make(tmp_path / "x.tsw")
    first = export(file, tmp_path / "x.safetensors").read_bytes()
    again = bring_back(tmp_path / "x.safetensors", tmp_path / "y.tsw")
    assert export(again, tmp_path / "y.safetensors").read_bytes() == first
    bring_back(tmp_path / "x.safetensors", tmp_path / "z.tsw", threads=4)
    assert again.read_bytes() == (tmp_path / "z.tsw").read_bytes()


@pytest.mark.parametrize("path", CASES)
def test_golden_files_and_the_suite_come_back(tmp_path: Path, path: Path) -> None:
    carrier = export(path, tmp_path / "x.safetensors")
    load_torch(carrier)
    check_same(path, bring_back(carrier, tmp_path / "y.tsw"))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.packed(), st.sampled_from(["archive", "mapped"]), st.booleans())
def test_random_files_come_back(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, profile: str, digests: bool
) -> None:
    folder = tmp_path_factory.mktemp("random")
    if not digests:
        apart = Parts.of(data)
        apart.forget_digests()
        data = apart.build()
    (folder / "x.tsw").write_bytes(data)
    carrier = export(folder / "x.tsw", folder / "x.safetensors")
    load_file(carrier)
    check_same(folder / "x.tsw", bring_back(carrier, folder / "y.tsw", profile=profile))


def test_digests_that_are_absent_stay_absent(tmp_path: Path) -> None:
    apart = Parts.of(make(tmp_path / "x.tsw").read_bytes())
    apart.forget_digests()
    (tmp_path / "x.tsw").write_bytes(apart.build())
    carrier = export(tmp_path / "x.tsw", tmp_path / "x.safetensors")
    result = importer.convert(carrier, None, tmp_path / "y.tsw", ImportOptions())
    assert result.content_id == ""
    check_same(tmp_path / "x.tsw", tmp_path / "y.tsw")
    assert '"content_id"' not in document_text(carrier)


@pytest.mark.parametrize("stored", ["u8", "f16", "f32"])
@pytest.mark.parametrize("per", ["row", "row-col"])
def test_factors_of_every_type(tmp_path: Path, stored: str, per: str) -> None:
    expert = {**BASE, "a.weight": BASE["a.weight"] + 1, "b/c": BASE["b/c"] * 2}
    tsw.pack(BASE, expert, tmp_path / "x.tsw", density=0.5, knob_dtype=stored, knob_per=per)  # type: ignore[arg-type]
    carrier = export(tmp_path / "x.tsw", tmp_path / "x.safetensors")
    found = load_file(carrier)["task/a.weight/row_factors"]
    assert (found.shape, found.dtype) == ((6,), {"u8": np.uint8, "f16": np.float16, "f32": np.float32}[stored])
    check_same(tmp_path / "x.tsw", bring_back(carrier, tmp_path / "y.tsw"))


class Raw:
    """A checkpoint of one tensor of any type."""

    location, paths, aliases, metadata = "raw", (), {}, {}

    def __init__(self, name: str, dtype: str, elements: int) -> None:
        self.specs = {name: TensorSpec(name, DTYPE_BY_NAME[dtype], (elements,))}
        self.data = np.random.default_rng(1).integers(0, 256, self.specs[name].nbytes, np.uint8)

    def read_into(self, name: str, start: int, out: Any) -> None:
        out[:] = self.data[start : start + out.size]


@pytest.mark.parametrize("dtype", [dtype.name for dtype in DTYPES.values()])
def test_dense_tensors_of_every_type(tmp_path: Path, dtype: str) -> None:
    raw: Any = Raw("head", dtype, 24)
    tsw.build(BASE, tmp_path / "x.tsw", [GivenTask("t", {}, {"head": (raw, "head")})])
    carrier = export(tmp_path / "x.tsw", tmp_path / "x.safetensors")
    with safe_open(carrier, "pt") as file:
        found = file.get_slice("t/head/data")
        as_bytes = dtype in ("C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")
        assert (found.get_dtype(), found.get_shape()) == (("U8", [raw.data.size]) if as_bytes else (dtype, [24]))
    check_same(tmp_path / "x.tsw", bring_back(carrier, tmp_path / "y.tsw"))


def big(path: Path, rows: int) -> Path:
    """A tensor of `rows` rows of 2^18 elements: planes, and a vector and data of that size."""
    rng = np.random.default_rng(2)

    def chunk(number: int) -> tuple[Any, Any]:
        count = min(CHUNK, (rows << 18) - number * CHUNK)
        positions = np.flatnonzero(np.random.default_rng(number).random(count) < 0.3)
        return positions, np.random.default_rng(number).random(positions.size) < 0.5

    base = {"big": np.zeros((rows, 1 << 18), np.float32), "big2": np.zeros((rows, 1 << 18), np.float32)}
    vector = GivenVector.of_array(rng.random((rows, 1 << 18), np.float32))
    mask = GivenMask(lambda number: rng.integers(0, 256, min(CHUNK, (rows << 18) - number * CHUNK) // 8, np.uint8))
    whole = ArrayCheckpoint({"head": rng.random((rows, 1 << 18), np.float32)})
    task = GivenTask("t", {"big": GivenSwitch(0.5, chunk), "big2": mask}, {"head": (whole, "head")})
    tsw.build(base, path, [task], vectors={"big2": vector}, threads=1)
    return path


def test_signs_are_one_bit_string_over_chunks(tmp_path: Path) -> None:
    file = big(tmp_path / "x.tsw", 11)  # two chunks and three quarters
    carrier = export(file, tmp_path / "x.safetensors")
    tensors = load_file(carrier)
    with tsw.open(file) as opened:
        found = opened.switch("big")
        mask = np.unpackbits(tensors["t/big/mask"], count=found.elements, bitorder="little").astype(bool)
        sign = np.unpackbits(tensors["t/big/sign"], count=found.active, bitorder="little").astype(bool)
        assert np.array_equal(mask, found.mask().reshape(-1))
        assert np.array_equal(np.where(sign, -1, 1), found.sign().reshape(-1)[mask])
    check_same(file, bring_back(carrier, tmp_path / "y.tsw"))


def test_memory_is_a_few_chunks(tmp_path: Path) -> None:
    file = big(tmp_path / "x.tsw", 64)  # 16 M elements: 64 MiB of data, and of the vector
    carrier = tmp_path / "x.safetensors"
    assert traced(lambda: export(file, carrier, threads=1)) < 30 << 20
    assert carrier.stat().st_size > 130 << 20
    peak = traced(lambda: bring_back(carrier, tmp_path / "y.tsw", profile="mapped"))
    assert peak < 110 << 20  # one encoded tensor, and a few chunks
    check_same(file, tmp_path / "y.tsw")


def traced(work: Callable[[], Any]) -> int:
    """Peak bytes of Python and NumPy."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# Commands


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="tsw")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def failed(result: Result, code: int) -> str:
    """The one line that a failure is."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("tsw: error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_commands_there_and_back(tmp_path: Path) -> None:
    file, carrier, back = make(tmp_path / "x.tsw"), tmp_path / "x.safetensors", tmp_path / "y.tsw"
    done = run("export", file, "-o", carrier, "--to", "safetensors")
    assert (done.exit_code, done.stdout) == (0, f"{carrier}: 3 tasks as safetensors\n")
    assert done.stderr.startswith("tsw: note: planes are not compressed") and done.stderr.count("\n") == 1
    done = run("import", carrier, "-o", back)
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.endswith("from safetensors (8 switches, 6 dense)\n")
    check_same(file, back)
    done = run("import", carrier, "-o", back, "--format", "safetensors", "--profile", "mapped", "--threads", 1, "-q")
    assert (done.exit_code, done.output) == (0, "")
    check_same(file, back)
    assert json.loads(run("info", back, "--json").stdout)["profile"] == "mapped"
    done = run("export", file, "-o", carrier, "--to", "safetensors", "--task", "a/b", "--threads", 2)
    assert done.stdout == f"{carrier}: task a/b as safetensors\n"
    save_file(BASE, tmp_path / "base.safetensors")
    assert run("import", carrier, "-o", back, "--base", tmp_path / "base.safetensors").exit_code == 0
    with tsw.open(back) as opened:
        assert opened.tasks == ["a/b"]


def test_commands_that_fail(tmp_path: Path) -> None:
    file, carrier, back = make(tmp_path / "x.tsw"), tmp_path / "x.safetensors", tmp_path / "y.tsw"
    out = ("export", file, "-o", carrier, "--to", "safetensors")
    assert "no task named 'x'" in failed(run(*out, "--task", "x"), 1)
    assert "ends with .safetensors" in failed(run("export", file, "-o", tmp_path / "x", "--to", "safetensors"), 2)
    assert "it has 3 tasks" in failed(run("export", file, "-o", tmp_path / "x", "--to", "bitdelta"), 2)
    assert run(*out, "-q").output == ""
    assert "--knob: everything is in the file already" in failed(run("import", carrier, "-o", back, "--knob", 1), 2)
    needed = failed(run("import", carrier, "-o", back, "--format", "bitdelta"), 2)
    assert "expected --base, the checkpoint that it is of, found none" in needed and "bitdelta needs it" in needed
    save_file({**BASE, "c": BASE["c"] + 1}, tmp_path / "base.safetensors")
    wrong = failed(run("import", carrier, "-o", back, "--base", tmp_path / "base.safetensors"), 1)
    assert "wrong base: tensor 'c'" in wrong and "org/m@v1" in wrong
    carrier.write_bytes(carrier.read_bytes()[:-1])
    assert "the file is truncated" in failed(run("import", carrier, "-o", back), 1)
    assert not back.exists()


def test_commands_load_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from tswitch_tools.cli import tsw
tsw(sys.argv[1:], standalone_mode=False)
assert "torch" not in sys.modules and "safetensors" not in sys.modules
"""
    file, carrier = make(tmp_path / "x.tsw"), tmp_path / "x.safetensors"
    for arguments in (
        ["export", file, "-o", carrier, "--to", "safetensors"],
        ["import", carrier, "-o", tmp_path / "y.tsw"],
    ):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)


# What the file looks like


def test_names_do_not_meet(tmp_path: Path) -> None:
    carrier = export(make(tmp_path / "x.tsw"), tmp_path / "x.safetensors")
    names = set(load_file(carrier))
    assert {"a%2Fb/b%2Fc/mask", "a/b%2Fc/mask", "a/b%2Fc/sign", "shared/0/data", "shared/0/a.weight/data"} <= names
    assert "a%2Fb/b%2Fc/sign" not in names


@given(st.lists(st.tuples(st.text("a/%2F5"), st.text("a/%2F5"))))
def test_escaped_names_are_different(pairs: list[tuple[str, str]]) -> None:
    assert len({f"{escaped(a)}/{escaped(b)}" for a, b in pairs}) == len(set(pairs))


def test_metadata_and_alignment(tmp_path: Path) -> None:
    carrier = export(make(tmp_path / "x.tsw"), tmp_path / "x.safetensors")
    with safe_open(carrier, "numpy") as file:
        metadata = file.metadata()
    assert metadata["tsw_carrier"] == "1"
    document = json.loads(metadata["tsw"])
    with tsw.open(tmp_path / "x.tsw") as opened:
        assert document["content_id"] == opened.content_id
        assert [task["name"] for task in document["tasks"]] == opened.tasks
        knob = document["tasks"][0]["entries"][0]["knob"]
        assert np.float32(knob) == knob == opened.switch("a.weight", "a/b").knob
    assert document["base"]["aliases"] == {"tied": "a.weight"}
    assert (document["base"]["id"], document["base"]["revision"]) == ("org/m", "v1")
    data = carrier.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % (DTYPE_BY_NAME[entry["dtype"]].storage.itemsize) == 0


@pytest.fixture
def example() -> str:
    text = (ROOT / "spec" / "safetensors-carrier.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(code)


@pytest.mark.filterwarnings("error")
def test_the_example_of_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str) -> None:
    expert = {**BASE, "a.weight": BASE["a.weight"] + 1, "c": BASE["c"] - RNG.standard_normal(21)}
    expert["tied"] = expert["a.weight"]
    tsw.pack(BASE, expert, tmp_path / "p.tsw", task="packed", density=0.5, base_id="org/m", base_revision="v1")
    file = tsw.bundle([make(tmp_path / "x.tsw"), tmp_path / "p.tsw"], tmp_path / "all.tsw")
    export(file, tmp_path / "all.safetensors")
    monkeypatch.chdir(tmp_path)
    found: Json = {}
    exec(example, found)
    with tsw.open(file) as opened:
        expected = {(task, name): opened.switch(name, task) for task in opened.tasks for name in opened.keys(task)}
        assert {key for key, sw in expected.items() if sw.kind == "dense"} == found["whole"].keys()
        assert {key for key, sw in expected.items() if sw.kind != "dense"} == found["deltas"].keys()
        for key, delta in found["deltas"].items():
            assert np.array_equal(delta, expected[key].delta()), key


def test_the_example_computes_in_binary64_over_an_f64_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    """Factors and scaled vectors, whose products binary32 would round."""
    rng = np.random.default_rng(7)
    base = {name: rng.standard_normal((6, 10)) for name in ("factors", "masked")} | {
        "f32": np.ones((6, 10), np.float32)
    }
    rows, columns = rng.random(6, np.float32), rng.random(10, np.float32)
    given = {
        "factors": switch((6, 10), 1, rows=rows, columns=columns),
        "masked": GivenMask.of_flags(rng.integers(0, 2, (6, 10)), 0.3),
        "f32": switch((6, 10), 3, rows=rows, columns=columns),
    }
    vectors = {"masked": GivenVector.of_array(rng.standard_normal((6, 10)))}
    tsw.build(base, tmp_path / "all.tsw", [GivenTask("t", given)], vectors=vectors, threads=1)
    export(tmp_path / "all.tsw", tmp_path / "all.safetensors")
    monkeypatch.chdir(tmp_path)
    found: Json = {}
    exec(example, found)
    with tsw.open(tmp_path / "all.tsw") as opened:
        for name in given:
            delta, expected = found["deltas"]["t", name], opened.switch(name).delta()
            assert delta.dtype == expected.dtype == base[name].dtype
            assert np.array_equal(delta, expected), name
            assert name == "f32" or not np.array_equal(delta, delta.astype(np.float32))


# Options


def test_one_task(tmp_path: Path) -> None:
    file = make(tmp_path / "x.tsw")
    for task in ("a/b", "a", "shared"):
        alone = tsw.extract(file, task, tmp_path / "alone.tsw")
        carrier = export(file, tmp_path / "one.safetensors", task)
        check_same(alone, bring_back(carrier, tmp_path / "y.tsw", task=task))
        whole = export(file, tmp_path / "all.safetensors")
        check_same(alone, bring_back(whole, tmp_path / "y.tsw", task=task))
    with pytest.raises(tsw.UnknownNameError, match="no task named 'nope'"):
        bring_back(tmp_path / "all.safetensors", tmp_path / "z.tsw", task="nope")
    with pytest.raises(tsw.UnknownNameError, match="no task named 'nope'"):
        export(file, tmp_path / "z.safetensors", "nope")
    assert not (tmp_path / "z.tsw").exists() and not (tmp_path / "z.safetensors").exists()


def test_a_base_is_compared(tmp_path: Path) -> None:
    carrier = export(make(tmp_path / "x.tsw"), tmp_path / "x.safetensors")
    check_same(tmp_path / "x.tsw", bring_back(carrier, tmp_path / "y.tsw", ArrayCheckpoint(BASE)))
    (tmp_path / "y.tsw").unlink()
    other = {**BASE, "c": BASE["c"] + 1}
    with pytest.raises(tsw.BaseMismatchError, match="sampled digest"):
        bring_back(carrier, tmp_path / "y.tsw", ArrayCheckpoint(other))
    assert not (tmp_path / "y.tsw").exists()


def test_base_id_and_progress(tmp_path: Path) -> None:
    carrier = export(make(tmp_path / "x.tsw"), tmp_path / "x.safetensors")
    seen: list[tuple[int, int]] = []
    bring_back(carrier, tmp_path / "y.tsw", base_id="other/m", progress=lambda *counts: seen.append(counts))
    with tsw.open(tmp_path / "y.tsw") as file:
        assert (file.base.id, file.base.revision) == ("other/m", None)
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)]
    out: list[tuple[int, int]] = []
    one = export(tmp_path / "x.tsw", tmp_path / "1.safetensors", threads=1, progress=lambda *counts: out.append(counts))
    assert out == seen
    assert one.read_bytes() == export(tmp_path / "x.tsw", tmp_path / "3.safetensors", threads=3).read_bytes()


@pytest.mark.parametrize("options", [{"knob": 1.0}, {"scales": Path("x")}, {"expert": ArrayCheckpoint({})}])
def test_options_of_other_formats_are_refused(tmp_path: Path, options: Json) -> None:
    carrier = export(make(tmp_path / "x.tsw"), tmp_path / "x.safetensors")
    with pytest.raises(tsw.OptionError, match=f"--{next(iter(options))}: everything is in the file"):
        bring_back(carrier, tmp_path / "y.tsw", **options)


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    file = make(tmp_path / "x.tsw")
    with pytest.raises(tsw.OptionError, match=r"ends with \.safetensors"):
        export(file, tmp_path / "out")
    named = tmp_path / "really.safetensors"
    named.write_bytes(file.read_bytes())
    with pytest.raises(tsw.OutputError, match="one of the inputs"):
        export(named, named)
    carrier = export(file, tmp_path / "c.safetensors")
    with pytest.raises(tsw.OutputError, match="one of the inputs"):
        bring_back(carrier, carrier)
    with pytest.raises(tsw.OptionError, match="found a folder or none"):
        bring_back(tmp_path, tmp_path / "y.tsw")


def test_a_damaged_file_is_not_exported(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path / "x.tsw").read_bytes())
    data[64] ^= 1
    (tmp_path / "x.tsw").write_bytes(data)
    with pytest.raises(tsw.FormatError, match="TSW-701"):
        export(tmp_path / "x.tsw", tmp_path / "x.safetensors")
    apart = Parts.of(make(tmp_path / "x.tsw").read_bytes())
    entries = apart.table(1, "entries").copy()
    entries["sha256"][0] = np.void(bytes(32))
    apart.document["tasks"][1]["entries"] = entries.tobytes()
    apart.document.pop("content_id", None)
    (tmp_path / "x.tsw").write_bytes(apart.build())
    with pytest.raises(tsw.FormatError, match="TSW-801"):
        export(tmp_path / "x.tsw", tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tsw"]


# Looking into files


def test_only_carriers_are_accepted(tmp_path: Path) -> None:
    carrier = export(make(tmp_path / "x.tsw"), tmp_path / "x.safetensors")
    assert importers.find(carrier) is importer or importers.find(carrier).NAME == "safetensors"
    assert exporters.find("safetensors").NAME == "safetensors"
    ones = {"tsw_carrier": np.ones(3, np.float32)}
    for metadata in (None, {"format": "pt"}, {"note": '"tsw_carrier":"1"'}, {"tsw": "{}"}):
        save_file(ones, tmp_path / "other.safetensors", metadata)
        assert not importer.accepts(tmp_path / "other.safetensors"), metadata
        with pytest.raises(tsw.CheckpointError, match="use 'tsw pack'"):
            bring_back(tmp_path / "other.safetensors", tmp_path / "y.tsw")
    for path in (tmp_path, tmp_path / "none", tmp_path / "x.tsw", Path("a\0b")):
        assert not importer.accepts(path)
    again = tmp_path / "again.safetensors"  # written by others: another order of tensors and of metadata
    save_file(load_file(carrier), again, dict(reversed(metadata_of(carrier).items())))
    assert importer.accepts(again)
    check_same(tmp_path / "x.tsw", bring_back(again, tmp_path / "y.tsw"))


# Hostile files


def metadata_of(carrier: Path) -> dict[str, str]:
    data = carrier.read_bytes()
    found: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return found


def document_text(carrier: Path) -> str:
    return metadata_of(carrier)["tsw"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    return export(make(folder / "x.tsw"), folder / "x.safetensors")


def entry(document: Json, task: str, name: str) -> Json:
    entries = next(t for t in document["tasks"] if t["name"] == task)["entries"]
    found: Json = next(e for e in entries if e["name"] == name)
    return found


def setting(*path: Any) -> Callable[[Json], None]:
    """Set what is at a path of keys to the last item."""
    *keys, last, value = path

    def change(document: Json) -> None:
        place: Any = document
        for key in keys:
            place = place[key]
        place[last] = value

    return change


def of_entry(task: str, tensor: str, /, **fields: Any) -> Callable[[Json], None]:
    """Change fields of an entry; None takes one away."""

    def change(document: Json) -> None:
        found = entry(document, task, tensor)
        for key, value in fields.items():
            if value is None:
                del found[key]
            else:
                found[key] = value

    return change


W = ("a/b", "a.weight")
DOCUMENTS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "no base": (lambda d: d.pop("base"), "found no 'base'"),
    "unknown key": (setting("extra", 1), "unknown key 'extra'"),
    "tasks is a map": (setting("tasks", {}), "tasks: expected a list"),
    "task is a list": (setting("tasks", 0, []), r"tasks\[0\]: expected a map"),
    "metadata of numbers": (setting("metadata", {"a": 1}), "metadata: expected a string"),
    "recipe is a list": (setting("tasks", 0, "recipe", []), "map of string to string"),
    "surrogate": (setting("metadata", {"a": "\ud800"}), "valid Unicode"),
    "surrogate in a key": (setting("tasks", 0, "checkpoint", {"\udfff": ""}), "valid Unicode"),
    "no name of a task": (setting("tasks", 0, "name", ""), "a proper name"),
    "two tasks of a name": (setting("tasks", 0, "name", "a"), "tensor 'a/"),
    "name of a tensor with a newline": (setting("base", "tensors", 0, "name", "a\nb"), "a proper name"),
    "long name": (setting("base", "tensors", 0, "name", "a" * 70_000), "a proper name"),
    "order of the base": (lambda d: d["base"]["tensors"].reverse(), "order of a .tsw file"),
    "base tensor twice": (lambda d: d["base"]["tensors"].insert(0, d["base"]["tensors"][0]), "order of a .tsw file"),
    "dtype of the base": (setting("base", "tensors", 0, "dtype", "F12"), "expected one of BOOL"),
    "dtype is a list": (setting("base", "tensors", 0, "dtype", []), "expected one of BOOL"),
    "dims": (setting("base", "tensors", 0, "shape", [1] * 17), "at most 16 dimensions"),
    "negative dimension": (setting("base", "tensors", 0, "shape", [-1, 10]), "an integer from 0"),
    "huge dimension": (setting("base", "tensors", 0, "shape", [1 << 49]), "an integer from 0"),
    "huge product": (setting("base", "tensors", 0, "shape", [1 << 40, 1 << 40]), "elements that fill whole bytes"),
    "float dimension": (setting("base", "tensors", 0, "shape", [6.0, 10]), "an integer from 0"),
    "true as a dimension": (setting("base", "tensors", 0, "shape", [True, 10]), "an integer from 0"),
    "half a byte": (
        lambda d: d["base"]["tensors"][0].update(dtype="F4", shape=[3]),
        "elements that fill whole bytes",
    ),
    "digest of the base": (setting("base", "tensors", 0, "sha256", "00" * 32), "content id: expected"),
    "short digest": (setting("base", "tensors", 0, "sha256", "00"), "64 hexadecimal digits"),
    "digest in capitals": (setting("base", "tensors", 0, "sampled", "AB" * 8), "16 hexadecimal digits"),
    "digest is a number": (setting("content_id", 1), "64 hexadecimal digits"),
    "content id": (setting("content_id", "ab" * 32), "content id: expected abab"),
    "content id where it is not defined": (lambda d: d["base"]["tensors"][0].pop("sha256"), "digests are absent"),
    "alias of nothing": (setting("base", "aliases", {"tied": "nothing"}), "name of a tensor of the base"),
    "alias that is a tensor": (setting("base", "aliases", {"c": "a.weight"}), "TSW-407"),
    "alias of a number": (setting("base", "aliases", {"tied": 1}), "expected a string"),
    "id is a number": (setting("base", "id", 1), "expected a string"),
    "role": (setting("shared", 0, "role", "router"), "'vector'"),
    "order of the vectors": (lambda d: d["shared"].reverse(), "order of a .tsw file"),
    "digest of a vector": (setting("shared", 0, "sha256", "00" * 32), "shared/0/a.weight/data"),
    "no digest of a vector": (lambda d: d["shared"][0].pop("sha256"), "found no 'sha256'"),
    "vector of integers": (setting("shared", 0, "dtype", "I32"), "F16, BF16, F32 or F64"),
    "dtype of a vector": (setting("shared", 0, "dtype", "F64"), "expected F64"),
    "name of a vector": (setting("shared", 0, "name", "a.weights"), "vector of the tensor"),
    "kind": (of_entry(*W, kind="quaternary"), "one of ternary"),
    "kind is a list": (of_entry(*W, kind=[]), "one of ternary"),
    "masked without a vector": (of_entry(*W, kind="masked"), "found no 'vector'"),
    "vector of another tensor": (of_entry("a/b", "b/c", vector=0), "vector of the tensor"),
    "vector that is not there": (of_entry("a/b", "b/c", vector=2), "an integer from 0 to 1"),
    "no vector": (of_entry("a/b", "b/c", vector=-1), "an integer from 0 to 1"),
    "dense instead of ternary": (of_entry("a", "c", kind="dense", knob=None, active=None), "expected F64"),
    "knob": (of_entry(*W, knob=0.5), "content of SHA-256"),
    "knob that f32 lacks": (of_entry(*W, knob=0.1), "a finite number that binary32 has"),
    "knob beyond f32": (of_entry(*W, knob=1e39), "a finite number that binary32 has"),
    "huge knob": (of_entry(*W, knob=10**400), "a finite number that binary32 has"),
    "knob is text": (of_entry(*W, knob="1"), "a finite number that binary32 has"),
    "knob is true": (of_entry(*W, knob=True), "a finite number that binary32 has"),
    "no knob": (of_entry(*W, knob=None), "found no 'knob'"),
    "active": (of_entry(*W, active=1), "a%2Fb/a.weight/sign"),
    "active of a mask": (of_entry("a/b", "b/c", active=1), "1 ones, as 'active' says"),
    "more active than elements": (of_entry(*W, active=61), "an integer from 0 to 60"),
    "factors": (of_entry(*W, factors=["row_factors"]), "expected none of that name"),
    "factors in another order": (of_entry(*W, factors=["column_factors", "row_factors"]), "factors: expected one of"),
    "no factor": (of_entry(*W, factors=[]), "factors: expected one of"),
    "factors are a map": (of_entry(*W, factors=[{}]), "factors: expected one of"),
    "no type of factors": (of_entry(*W, factor_dtype=None), "factor_dtype: expected one of"),
    "type of factors": (of_entry(*W, factor_dtype="f16"), "expected F16"),
    "factors of a vector": (of_entry("a", "c", factors=["row_factors"], factor_dtype="u8"), "none for the shape"),
    "factors of a mask": (of_entry("a/b", "b/c", factors=["row_factors"]), "unknown key 'factors'"),
    "shape of an entry": (of_entry(*W, shape=[10, 6]), "a tensor of the base of shape"),
    "dtype of an entry": (of_entry(*W, dtype="F16"), "content of SHA-256"),
    "integers in an expert": (of_entry(*W, dtype="I32"), "float types"),
    "name of an entry": (of_entry(*W, name="b.weight"), "a tensor of the base of shape"),
    "entry twice": (lambda d: d["tasks"][1]["entries"].append(d["tasks"][1]["entries"][0]), "each tensor once"),
    "order of entries": (lambda d: d["tasks"][1]["entries"].reverse(), "order of a .tsw file"),
    "added is a number": (of_entry("a/b", "new", added=1), "added: expected true"),
    "added is not said": (of_entry("a/b", "new", added=None), "a tensor of the base of shape"),
    "sha256 of data": (of_entry("a/b", "new", sha256="00" * 32), "task 'a/b': tensor 'new': expected content"),
    "shape of data": (of_entry("a/b", "new", shape=[2, 2]), "expected U8"),
    "removed with data": (
        lambda d: entry(d, "a/b", "ids").update(kind="removed"),
        "expected none of that name",
    ),
    "removed of another dtype": (
        lambda d: entry(d, "a/b", "ids").update(kind="removed", dtype="U8"),
        "dtype: expected I64",
    ),
    "entry left out": (lambda d: d["tasks"][1]["entries"].pop(), "expected none of that name"),
    "task left out": (lambda d: d["tasks"].pop(), "expected none of that name"),
}


def rewritten(good: Path, out: Path, document: str, version: str = "1", **tensors: Any) -> Path:
    """The carrier with another document and other tensors; None takes one away."""
    found = {**load_file(good), **tensors}
    metadata = {"tsw_carrier": version, "tsw": document}
    header: Json = {"__metadata__": metadata}
    body = b""
    for name, array in found.items():
        if array is not None:
            data = np.ascontiguousarray(array).tobytes()
            dtype = {"f4": "F32", "f2": "F16", "f8": "F64", "u1": "U8", "i8": "I64"}[array.dtype.str[1:]]
            header[name] = {
                "dtype": dtype,
                "shape": list(array.shape),
                "data_offsets": [len(body), len(body) + len(data)],
            }
            body += data
    text = json.dumps(header).encode()
    out.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return out


def refused(carrier: Path, match: str) -> None:
    out = carrier.parent / "y.tsw"
    with pytest.raises(tsw.TswError, match=match) as caught:
        bring_back(carrier, out)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    with pytest.raises(tsw.TswError):
        bring_back(carrier, out, threads=4)
    assert {path.suffix for path in carrier.parent.iterdir()} == {".safetensors"}


def test_rewriting_alone_changes_nothing(good: Path, tmp_path: Path) -> None:
    carrier = rewritten(good, tmp_path / "x.safetensors", document_text(good))
    check_same(good.with_suffix(".tsw"), bring_back(carrier, tmp_path / "y.tsw"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_changed_document_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    change, match = DOCUMENTS[name]
    document = json.loads(document_text(good))
    change(document)
    refused(rewritten(good, tmp_path / "x.safetensors", json.dumps(document)), match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected JSON"),
        ("[]", "expected a map"),
        ("null", "expected a map"),
        ('{"base": NaN}', "NaN is no JSON"),
        ('{"a": 1, "a": 2}', "a key comes twice"),
        ("[" * 200_000, "expected JSON"),
        ('{"content_id": ' + "9" * 10_000 + "}", "expected JSON"),
    ],
)
def test_what_is_no_document_is_refused(good: Path, tmp_path: Path, text: str, match: str) -> None:
    refused(rewritten(good, tmp_path / "x.safetensors", text), match)


def test_other_versions_are_refused(good: Path, tmp_path: Path) -> None:
    refused(rewritten(good, tmp_path / "x.safetensors", document_text(good), version="2"), "found '2'; update")
    save_file({}, tmp_path / "x.safetensors", {"tsw_carrier": "1"})
    refused(tmp_path / "x.safetensors", "the key 'tsw'")


def flip(array: Any, place: int, bit: int) -> Any:
    changed = array.copy()
    changed.reshape(-1).view(np.uint8)[place] ^= 1 << bit
    return changed


MASK, SIGN, ROWS, DATA = "a%2Fb/a.weight/mask", "a%2Fb/a.weight/sign", "a%2Fb/a.weight/row_factors", "a%2Fb/new/data"
TENSORS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "no mask": (MASK, lambda a: None, "mask': expected U8"),
    "mask of another size": (MASK, lambda a: a[1:], "mask': expected U8"),
    "mask of another type": (MASK, lambda a: a.view(np.float64)[:1], "mask': expected U8"),
    "bit in the tail of a mask": (MASK, lambda a: flip(a, -1, 7), "unused bits zero"),
    "a one more or less": (MASK, lambda a: flip(a, 0, 0), "ones, as 'active' says"),
    "other ones": (MASK, lambda a: np.append(a[:2][::-1], a[2:]), "content of SHA-256"),
    "sign": (SIGN, lambda a: flip(a, 0, 0), "content of SHA-256"),
    "bit in the tail of signs": (SIGN, lambda a: flip(a, -1, 7), "unused bits zero"),
    "no signs": (SIGN, lambda a: None, "sign': expected U8"),
    "factors": (ROWS, lambda a: a * 2, "content of SHA-256"),
    "factors that are not finite": (ROWS, lambda a: a * np.float32(np.inf), "finite factors"),
    "no factors": (ROWS, lambda a: None, "row_factors': expected F32"),
    "data": (DATA, lambda a: flip(a, 2, 3), "tensor 'new': expected content"),
    "data of another shape": (DATA, lambda a: a.reshape(2, 2), "expected U8"),
    "vector": ("shared/0/a.weight/data", lambda a: flip(a, 9, 1), "content of SHA-256"),
    "vector of another type": ("shared/0/a.weight/data", lambda a: a.astype(np.float16), "expected F32"),
    "one more tensor": ("more", lambda a: np.ones(1, np.float32), "expected none of that name"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_changed_tensors_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    tensor, change, match = TENSORS[name]
    changed = change(load_file(good).get(tensor))
    refused(rewritten(good, tmp_path / "x.safetensors", document_text(good), **{tensor: changed}), match)


@pytest.mark.parametrize("name", ["bit in the tail of a mask", "a one more or less", "bit in the tail of signs"])
def test_bits_are_checked_without_digests(good: Path, tmp_path: Path, name: str) -> None:
    document = json.loads(document_text(good))
    del document["content_id"]
    for task in document["tasks"]:
        for one in task["entries"]:
            del one["sha256"]
    tensor, change, match = TENSORS[name]
    tensors = {tensor: change(load_file(good)[tensor])}
    refused(rewritten(good, tmp_path / "x.safetensors", json.dumps(document), **tensors), match)


def test_every_cut_is_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    for length in {*range(0, len(data), 97), 7, 8, 9, len(data) - 1}:
        (tmp_path / "x.safetensors").write_bytes(data[:length])
        with pytest.raises(tsw.TswError):
            bring_back(tmp_path / "x.safetensors", tmp_path / "y.tsw")
    assert not (tmp_path / "y.tsw").exists()


def test_changed_bytes_are_refused_or_mean_the_same(good: Path, tmp_path: Path) -> None:
    data, rng = good.read_bytes(), random.Random(7)
    with tsw.open(good.with_suffix(".tsw")) as opened:
        expected = opened.content_id
    kept = 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(changed))
            match rng.randrange(3):
                case 0:
                    changed[place] ^= 1 << rng.randrange(8)
                case 1:
                    changed[place] = rng.randrange(256)
                case 2:
                    changed[place] = rng.choice(b'0123456789",:[]{}aft.-')
        (tmp_path / "x.safetensors").write_bytes(changed)
        assert importer.accepts(tmp_path / "x.safetensors") in (True, False)
        try:
            bring_back(tmp_path / "x.safetensors", tmp_path / "y.tsw")
        except tsw.TswError:
            assert not (tmp_path / "y.tsw").exists()
            continue
        with tsw.open(tmp_path / "y.tsw") as found:
            assert found.content_id == expected
        (tmp_path / "y.tsw").unlink()
        kept += 1
    assert kept < 300


LEAVES: list[Any] = json.loads(
    """[null, true, 0, 1, -1, 3, 18446744073709551616, 0.5, -0.0, 1e300, "", "a", "F32", "U8", "F4", "ternary", "dense",
    "a.weight", "b/c", [], {}, [0], [281474976710656, 281474976710656], [[]], {"a": "b"}, {"": {}}, ["row_factors"],
    "\\ud800", "\\u202e", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]"""
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_change_of_a_document_is_refused_or_makes_a_valid_file(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    document = json.loads(document_text(good))
    if data.draw(st.booleans()):  # so that what follows from other content is reached
        document.pop("content_id")
        for one in (e for task in document["tasks"] for e in task["entries"]):
            one.pop("sha256")
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = document
        while True:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 5)) == 0:
                break
            place = place[key]
        match data.draw(st.sampled_from(["set", "set", "drop", "double"])):
            case "set":
                place[key] = copy.deepcopy(data.draw(st.sampled_from(LEAVES)))
            case "drop":
                del place[key]
            case "double" if isinstance(place, list):
                place.insert(data.draw(st.integers(0, len(place))), place[key])
        if not document:
            break
    carrier = rewritten(good, tmp_path / "x.safetensors", json.dumps(document))
    try:
        bring_back(carrier, tmp_path / "y.tsw")
    except tsw.TswError as error:
        assert len(str(error)) < 1500
    else:
        assert tsw.validate(tmp_path / "y.tsw", "full").ok
        (tmp_path / "y.tsw").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("knob", [-0.0, 0.0, 1e-45, -3.4028234663852886e38, 0.1, 16777216.0])
def test_knobs_come_back_to_the_bit(tmp_path: Path, knob: float) -> None:
    given = GivenSwitch.of_signs(np.ones(21), knob)
    tsw.build(BASE, tmp_path / "x.tsw", [GivenTask("t", {"c": given})])
    carrier = export(tmp_path / "x.tsw", tmp_path / "x.safetensors")
    found = json.loads(document_text(carrier))["tasks"][0]["entries"][0]["knob"]
    assert np.float64(found).tobytes() == np.float64(np.float32(knob)).tobytes()
    check_same(tmp_path / "x.tsw", bring_back(carrier, tmp_path / "y.tsw"))


def test_what_a_hostile_file_repeats_is_cut(good: Path, tmp_path: Path) -> None:
    more = {"n" * 100_000: np.ones((1,) * 32, np.float32)}
    refused(rewritten(good, tmp_path / "x.safetensors", document_text(good), **more), "expected none of that name")
    wide = {MASK: np.ones((1,) * 32, np.uint8)}
    refused(rewritten(good, tmp_path / "x.safetensors", document_text(good), **wide), "mask': expected U8")


def test_threads_end_at_the_first_error() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError
        return number

    with pytest.raises(ValueError):
        list(ordered_map(work, range(1000), 2))
    assert len(begun) < 20
    assert list(ordered_map(lambda n: n * n, range(50), 3)) == [n * n for n in range(50)]


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_a_router_is_carried_with_its_samples(tmp_path: Path, profile: str) -> None:
    rng = np.random.default_rng(0)
    base = {"w": np.zeros((9, 7), np.float32), "b/c": np.zeros(4, np.float32)}
    experts = {
        f"t{n}/%": {name: rng.standard_normal(v.shape, np.float32) for name, v in base.items()} for n in range(3)
    }
    tsw.make_tall(base, experts, tmp_path / "tall.tsw", profile=profile)
    samples = {"t0/%": rng.standard_normal((5, 6), np.float32), "t2/%": np.ones((2, 6), np.float16)}
    path = tsw.add_router(
        tmp_path / "tall.tsw", tmp_path / "x.tsw", samples, k=3, metric="cosine", extractor="\u00e9", preprocessing="p"
    )
    run("export", path, "-o", tmp_path / "x.safetensors", "--to", "safetensors")
    carried = load_file(tmp_path / "x.safetensors")
    assert any(
        np.array_equal(array, samples["t0/%"]) for name, array in carried.items() if name.endswith("/t0%2F%25/data")
    )
    run("import", tmp_path / "x.safetensors", "-o", tmp_path / "y.tsw", "--profile", profile)
    assert (tmp_path / "y.tsw").read_bytes() == path.read_bytes()
    for task in experts:
        whole = tsw.extract(path, task, tmp_path / "whole.tsw")
        run("export", path, "-o", tmp_path / "one.safetensors", "--to", "safetensors", "--task", task)
        run("import", tmp_path / "one.safetensors", "-o", tmp_path / "one.tsw", "--profile", profile)
        run("import", tmp_path / "x.safetensors", "-o", tmp_path / "two.tsw", "--profile", profile, "--task", task)
        assert (tmp_path / "one.tsw").read_bytes() == (tmp_path / "two.tsw").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("router"), "TSW-411"),
        (lambda d: d["router"].update(k=0), "TSW-411"),
        (lambda d: d["router"].update(k="3"), "integer"),
        (lambda d: d["router"].update(metric="other"), "TSW-411"),
        (lambda d: d["router"].update(extractor=3), "a string"),
        (lambda d: d["router"].pop("k"), "no 'k'"),
        (lambda d: d["router"].update(more=1), "unknown key"),
        (lambda d: d["shared"][0].update(role="samples"), "'vector' or 'features' or 'coefficients'"),
        (lambda d: d["shared"][0].update(role="vector"), "TSW-409"),
        (lambda d: d["shared"][0].update(name="other"), "tensor 'shared/0/other/data'"),
        (lambda d: d.update(router=[]), "a map"),
    ],
)
def test_a_hostile_router_is_refused(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    base = {"w": np.zeros((9, 7), np.float32)}
    tsw.pack(base, {"w": np.ones((9, 7), np.float32)}, tmp_path / "p.tsw", task="t")
    tsw.add_router(tmp_path / "p.tsw", tmp_path / "r.tsw", {"t": np.ones((2, 3), np.float32)})
    run("export", tmp_path / "r.tsw", "-o", tmp_path / "x.safetensors", "--to", "safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as opened:
        metadata = opened.metadata()
    document = json.loads(metadata["tsw"])
    change(document)
    document.pop("content_id")
    save_file(tensors, tmp_path / "bad.safetensors", metadata | {"tsw": json.dumps(document)})
    result = CliRunner().invoke(command, ["import", str(tmp_path / "bad.safetensors"), "-o", str(tmp_path / "y.tsw")])
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "y.tsw").exists()


def with_tables(folder: Path, profile: str = "archive") -> Path:
    """Masks and switches of three tasks, a router, tables of all of them, of two and of one."""
    rng = np.random.default_rng(0)
    base = {"w": np.zeros((9, 7), np.float32), "b/c": np.zeros(4, np.float32)}
    experts = {
        f"t{n}/%": {name: rng.standard_normal(v.shape, np.float32) for name, v in base.items()} for n in range(3)
    }
    tsw.make_tall(base, experts, folder / "0.tsw", profile=profile)
    tasks = list(experts)
    tsw.add_router(folder / "0.tsw", folder / "1.tsw", {tasks[1]: np.eye(3, dtype=np.float32)})
    for number, (name, chosen, clamp) in enumerate(
        (("t1/%", tasks[::-1], (0, 1)), ("of two", tasks[:2], None), ("w", tasks[1:2], (-0.1, np.float32(1e-45)))), 1
    ):
        values = rng.standard_normal((2, len(chosen)), np.float32)
        rows = ["w", "b/c"]
        tsw.add_table(
            folder / f"{number}.tsw", folder / f"{number + 1}.tsw", name, values, rows=rows, tasks=chosen, clamp=clamp
        )
    return folder / "4.tsw"


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_tables_of_coefficients_are_carried(tmp_path: Path, profile: str) -> None:
    path = with_tables(tmp_path, profile)
    run("export", path, "-o", tmp_path / "x.safetensors", "--to", "safetensors")
    carried = load_file(tmp_path / "x.safetensors")
    with tsw.open(path) as file:
        values = file.tables["t1/%"].values
        tasks = file.tasks
    assert any(np.array_equal(array, values) for name, array in carried.items() if name.endswith("/t1%2F%25/data"))
    run("import", tmp_path / "x.safetensors", "-o", tmp_path / "y.tsw", "--profile", profile)
    assert (tmp_path / "y.tsw").read_bytes() == path.read_bytes()
    for task, tables in zip(tasks, ([], ["w"], []), strict=True):
        whole = tsw.extract(path, task, tmp_path / "whole.tsw")
        run("export", path, "-o", tmp_path / "one.safetensors", "--to", "safetensors", "--task", task)
        run("import", tmp_path / "one.safetensors", "-o", tmp_path / "one.tsw", "--profile", profile)
        run("import", tmp_path / "x.safetensors", "-o", tmp_path / "two.tsw", "--profile", profile, "--task", task)
        assert (tmp_path / "one.tsw").read_bytes() == (tmp_path / "two.tsw").read_bytes() == whole.read_bytes()
        with tsw.open(whole) as file:
            assert list(file.tables) == tables


def of_table(name: str, value: Any) -> Callable[[Any], None]:
    return lambda d: d["coefficients"]["w"].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("coefficients"), "TSW-412"),
        (lambda d: d["coefficients"].pop("w"), "TSW-412"),
        (lambda d: d["coefficients"].update(more=d["coefficients"]["w"]), "TSW-412"),
        (lambda d: d.update(coefficients={}), "a map of tables, or no such key"),
        (lambda d: d.update(coefficients=[]), "a map of tables, or no such key"),
        (lambda d: d["coefficients"].update(w=[]), "coefficients.'w': expected a map"),
        (lambda d: d["coefficients"]["w"].pop("rows"), "no 'rows'"),
        (of_table("more", 1), "unknown key"),
        (of_table("rows", ["w", "b/c"]), "TSW-412"),
        (of_table("rows", ["w", "w"]), "TSW-412"),
        (of_table("rows", ["w"]), "TSW-412"),
        (of_table("rows", ["w", "x"]), "names of tensors of the base, found 'x'"),
        (of_table("rows", ["w", 1]), "coefficients.'w'.rows[1]: expected a string"),
        (of_table("rows", "w"), "coefficients.'w'.rows: expected a list"),
        (of_table("tasks", ["other"]), "TSW-412"),
        (of_table("tasks", [1]), "coefficients.'w'.tasks[0]: expected a string"),
        (of_table("clamp", [1, 0]), "TSW-412"),
        (of_table("clamp", [0]), "two numbers, found 1"),
        (of_table("clamp", [0, 0.1]), "a finite number that binary32 has"),
        (of_table("clamp", [0, "1"]), "a finite number that binary32 has"),
        (of_table("clamp", 1), "coefficients.'w'.clamp: expected a list"),
        (of_table("clamp", None), "coefficients.'w'.clamp: expected a list"),
        (lambda d: d["shared"][1].update(role="features"), "TSW-409"),
    ],
)
def test_hostile_tables_are_refused(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    run("export", with_tables(tmp_path), "-o", tmp_path / "x.safetensors", "--to", "safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as opened:
        metadata = opened.metadata()
    document = json.loads(metadata["tsw"])
    change(document)
    document.pop("content_id")
    save_file(tensors, tmp_path / "bad.safetensors", metadata | {"tsw": json.dumps(document)})
    result = CliRunner().invoke(command, ["import", str(tmp_path / "bad.safetensors"), "-o", str(tmp_path / "y.tsw")])
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert not (tmp_path / "y.tsw").exists()


def test_coefficients_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    run("export", with_tables(tmp_path), "-o", tmp_path / "x.safetensors", "--to", "safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as opened:
        metadata = opened.metadata()
    document = json.loads(metadata["tsw"])
    number = next(n for n, one in enumerate(document["shared"]) if one["role"] == "coefficients")
    name = next(name for name in tensors if name.startswith(f"shared/{number}/"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    document["shared"][number]["sha256"] = hashlib.sha256(tensors[name].tobytes()).hexdigest()
    document.pop("content_id")
    save_file(tensors, tmp_path / "bad.safetensors", metadata | {"tsw": json.dumps(document)})
    result = CliRunner().invoke(command, ["import", str(tmp_path / "bad.safetensors"), "-o", str(tmp_path / "y.tsw")])
    assert result.exit_code == 1 and "expected finite coefficients, found NaN or infinity" in result.stderr
    assert not (tmp_path / "y.tsw").exists()
