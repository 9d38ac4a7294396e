"""Other knobs and factors for a task: these change, with their digests and the recipe, and nothing else does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from switch_models import Array, files_in, model, tuned

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.container.reader import Container, Entry
from tswitch_format.container.segments import EncodedEntry
from tswitch_format.switch import transfer
from tswitch_format.switch.knob import FittedKnob, to_codes
from tswitch_format.switch.recalibrate import calibrated_recipe, with_knobs

FACTORS = (lay.Role.ROW_FACTORS, lay.Role.COLUMN_FACTORS)
SWITCHES = ("layer.weight", "half", "wide")
RECIPE = {"knob": "calibrated", "made": "here"}


@dataclass(frozen=True)
class Stored:
    """What a file says of an entry, and its encoded segments."""

    kind: int
    knob: bytes
    sha256: bytes | None
    rest: tuple[Any, ...]
    factors: list[tuple[Any, ...]]
    planes: list[tuple[Any, ...]]


def stored(path: Path) -> dict[tuple[str, str], Stored]:
    """By task and tensor."""
    container = Container(path)
    found = {}
    for number, task in enumerate(container.index.tasks):
        for entry in container.entries(number):
            segments = [(s.role, s.codec, s.parameter, s.count, bytes(s.data)) for s in entry.stored_segments()]
            rest = (entry.dtype, entry.factor_dtype, entry.flags, entry.active, entry.spec)
            found[task.name, entry.spec.name] = Stored(
                int(entry.kind),
                entry.knob.tobytes(),
                entry.sha256,
                rest,
                [segment for segment in segments if segment[0] in FACTORS],
                [segment for segment in segments if segment[0] not in FACTORS],
            )
    container.close()
    return found


def codes(path: Path, name: str, task: str) -> tuple[Array | None, Array | None]:
    """Stored factors."""
    with tsw.open(path) as file:
        entry = file.switch(name, task).entry
        rows, columns = (entry.factor_codes(role) for role in FACTORS)
        return rows, columns


def others(path: Path, task: str, names: tuple[str, ...] = SWITCHES) -> dict[str, FittedKnob]:
    """Knobs and factors of the right kinds that are not those of the file."""
    found = {}
    for name in names:
        rows, columns = (None if held is None else (held * 0.5).astype(held.dtype) for held in codes(path, name, task))
        found[name] = FittedKnob(np.float32(0.125), rows, columns)
    return found


@pytest.fixture(params=["archive", "mapped"])
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path, profile: str) -> Path:
    """Two tasks with switches, dense tensors, ones that are added and removed, and samples of a router."""
    base = model()
    files = []
    for seed, task in enumerate(("math", "code"), 1):
        expert = tuned(base, seed)
        expert["ids"] = base["ids"] + seed
        expert["added"] = np.full(5, seed, np.float32)
        expert.pop("layer.bias")
        files.append(tmp_path / f"{task}.tsw")
        options: dict[str, Any] = {"on_mismatch": "dense", "profile": profile, "density": 0.3, "threads": 1}
        tsw.pack(base, expert, files[-1], task=task, metadata={"k": task}, **options)
    whole = tsw.bundle(files, tmp_path / "bundle.tsw")
    samples = np.arange(12, dtype=np.float32).reshape(4, 3)
    return tsw.add_router(whole, tmp_path / "all.tsw", {"math": samples, "code": -samples}, extractor="e")


def test_knobs_and_factors_change_and_nothing_else(path: Path, tmp_path: Path) -> None:
    knobs = others(path, "math")
    out = with_knobs(path, tmp_path / "out.tsw", "math", knobs, RECIPE)
    assert out == tmp_path / "out.tsw"
    assert tsw.validate(out, base=model()).ok
    before, after = stored(path), stored(out)
    assert before.keys() == after.keys()
    for key, was in before.items():
        now = after[key]
        if key[0] == "math" and key[1] in knobs:
            assert (now.kind, now.rest, now.planes) == (was.kind, was.rest, was.planes)
            assert now.knob == np.float32(0.125).tobytes()
            assert now.sha256 not in (was.sha256, None)
        else:
            assert now == was
    for name, fitted in knobs.items():
        for found, expected in zip(codes(out, name, "math"), (fitted.rows, fitted.columns), strict=True):
            assert found is not None and expected is not None
            assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    with tsw.open(path) as a, tsw.open(out) as b:
        assert a.content_id != b.content_id
        assert b.recipe("math") == RECIPE
        assert b.recipe("code") == a.recipe("code")
        assert (a.tasks, a.metadata, a.profile, a.base.tensor_list.records.tobytes()) == (
            b.tasks, b.metadata, b.profile, b.base.tensor_list.records.tobytes(),
        )  # fmt: skip
        assert a.router is not None and b.router is not None
        for task in a.tasks:
            assert a.router.features[task].tobytes() == b.router.features[task].tobytes()


def test_the_model_is_the_base_with_those_knobs(path: Path, tmp_path: Path) -> None:
    out = with_knobs(path, tmp_path / "out.tsw", "math", others(path, "math"), RECIPE)
    with tsw.open(path) as a, tsw.open(out) as b:
        was, now = a.switch("layer.weight", "math"), b.switch("layer.weight", "math")
        assert np.array_equal(was.sign(), now.sign())
        rows, columns = now.row_factors, now.column_factors
        assert rows is not None and columns is not None
        expected = was.sign() * (np.float32(0.125) * rows[:, None] * columns)
        assert np.array_equal(now.delta(), expected)


def test_no_knobs_and_the_same_recipe_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    with tsw.open(path) as file:
        recipe = file.recipe("math")
    assert with_knobs(path, tmp_path / "out.tsw", "math", {}, recipe).read_bytes() == path.read_bytes()


def test_the_knobs_that_there_are_give_the_same_content(path: Path, tmp_path: Path) -> None:
    with tsw.open(path) as file:
        same = {
            name: FittedKnob(np.float32(file.switch(name, "math").knob), *codes(path, name, "math"))
            for name in SWITCHES
        }
        recipe, content = file.recipe("math"), file.content_id
    out = with_knobs(path, tmp_path / "out.tsw", "math", same, recipe)
    assert out.read_bytes() == path.read_bytes()
    with tsw.open(out) as file:
        assert file.content_id == content


@pytest.mark.parametrize("per", ["tensor", "row", "row-col"])
@pytest.mark.parametrize("dtype", ["u8", "f16", "f32"])
def test_all_kinds_of_factors(tmp_path: Path, dtype: str, per: str, profile: str) -> None:
    options: dict[str, Any] = {"knob_dtype": dtype, "knob_per": per, "profile": profile, "density": 0.5}
    tsw.pack(model(), tuned(model()), tmp_path / "x.tsw", threads=1, **options)
    knobs = others(tmp_path / "x.tsw", "task")
    assert [knobs["half"].rows is None, knobs["half"].columns is None] == [per == "tensor", per != "row-col"]
    out = with_knobs(tmp_path / "x.tsw", tmp_path / "out.tsw", "task", knobs, RECIPE)
    assert tsw.validate(out).ok
    # What `build` makes of the same signs, with such knobs, has the same digests where factors are f32.
    if dtype == "f32":
        given = {}
        with tsw.open(out) as file:
            content = file.content_id
            for name in file.keys("task"):
                switch = file.switch(name)
                made = tsw.GivenSwitch.of_signs(switch.sign(), switch.knob)
                given[name] = replace(made, rows=switch.row_factors, columns=switch.column_factors)
        built = tsw.build(model(), tmp_path / "built.tsw", [tsw.GivenTask("task", given)])
        assert built.content_id == content


def test_factors_and_planes_of_several_chunks(tmp_path: Path, profile: str) -> None:
    rng = np.random.default_rng(0)
    delta = np.zeros((2, lay.CHUNK + 5), np.float32)
    delta.flat[rng.choice(delta.size, 3000, replace=False)] = 1
    base = {"w": np.zeros_like(delta)}
    tsw.pack(base, {"w": delta}, tmp_path / "x.tsw", density=1.0, knob_dtype="f16", threads=1, profile=profile)
    knobs = others(tmp_path / "x.tsw", "task", ("w",))
    out = with_knobs(tmp_path / "x.tsw", tmp_path / "out.tsw", "task", knobs, RECIPE)
    assert tsw.validate(out).ok
    was, now = stored(tmp_path / "x.tsw")["task", "w"], stored(out)["task", "w"]
    assert now.planes == was.planes and len(now.planes) == 6 and len(now.factors) == 3
    found = codes(out, "w", "task")[1]
    assert found is not None and np.array_equal(found, knobs["w"].columns)  # type: ignore[arg-type]


def test_planes_are_not_encoded_anew(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("encoded")

    for name in ("encode", "encode_packed"):
        monkeypatch.setattr(f"tswitch_format.codecs.plane.{name}", never)
    with_knobs(path, tmp_path / "out.tsw", "math", others(path, "math"), RECIPE)


def test_a_file_without_digests(tmp_path: Path) -> None:
    bare = Path(__file__).parents[1] / "golden" / "bare.tsw"
    with tsw.open(bare) as file:
        task, content = file.tasks[0], file.content_id
        name = next(n for n in file.keys(task) if file.switch(n).kind == "ternary")
    assert content is None
    out = with_knobs(bare, tmp_path / "out.tsw", task, others(bare, task, (name,)), RECIPE)
    with tsw.open(out) as file:
        assert file.content_id is None
        assert file.switch(name).knob == 0.125
    assert tsw.validate(out).ok


# --------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("before", "origin"),
    [
        ({"knob": "rms", "density": "0.1"}, "rms"),
        ({"knob": "calibrated", "calibrated_from": "norm", "calibrated_on": "x"}, "norm"),
        ({"imported_from": "bitdelta"}, "given"),
    ],
)
def test_the_recipe_says_where_knobs_came_from(before: Mapping[str, str], origin: str) -> None:
    made = calibrated_recipe(before, "4 batches")
    assert made == {**before, "knob": "calibrated", "calibrated_from": origin, "calibrated_on": "4 batches"}


# ---------------------------------------------------------------------------------------------------------------- errors


def refused(path: Path, out: Path, knobs: Mapping[str, FittedKnob], task: str = "math") -> str:
    before = files_in(out.parent)
    with pytest.raises(tsw.TswError) as caught:
        with_knobs(path, out, task, knobs, RECIPE)
    assert files_in(out.parent) == before
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_knobs_that_do_not_fit(path: Path, tmp_path: Path) -> None:
    good = others(path, "math")
    one = good["layer.weight"]
    assert one.rows is not None and one.columns is not None
    wrong: list[tuple[FittedKnob, str]] = [
        (replace(one, rows=None), "expected row factors as stored, uint8[24], found none"),
        (replace(one, rows=one.rows[1:]), "expected row factors as stored, uint8[24], found uint8[23]"),
        (
            replace(one, columns=one.columns.astype(np.float32)),
            "column factors as stored, uint8[16], found float32[16]",
        ),
        (replace(one, knob=np.float32(np.nan)), "expected a finite number, found nan"),
    ]
    for fitted, message in wrong:
        found = refused(path, tmp_path / "out.tsw", {**good, "layer.weight": fitted})
        assert found.startswith("OptionError: ") and f"{path}: knob of 'layer.weight': " in found
        assert message in found
    for name, kind in (("ids", "dense"), ("layer.bias", "removed"), ("added", "dense")):
        found = refused(path, tmp_path / "out.tsw", {**good, name: FittedKnob(np.float32(1))})
        assert f"knob of {name!r}: expected a ternary entry, found a {kind} one; leave it out" in found


def test_factors_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "x.tsw"
    tsw.pack(model(), tuned(model()), path, threads=1, density=0.3, knob_dtype="f16")
    good = others(path, "task")
    assert good["half"].columns is not None
    good["half"].columns[2] = np.inf
    found = refused(path, tmp_path / "out.tsw", good, "task")
    assert "knob of 'half': expected finite column factors, found NaN or infinity" in found


def test_names_that_are_not_there(path: Path, tmp_path: Path) -> None:
    assert "no task named 'maths' among 2; did you mean 'math'" in refused(path, tmp_path / "out.tsw", {}, "maths")
    found = refused(path, tmp_path / "out.tsw", {"layer.weights": FittedKnob(np.float32(1))})
    assert f"{path}, task 'math': no tensor named 'layer.weights' among" in found


def test_the_input_is_no_output(path: Path) -> None:
    assert "the output is one of the inputs" in refused(path, path, others(path, "math"))


def test_content_that_is_not_what_its_digest_says_gets_no_right_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Entry.sha256.fget  # type: ignore[attr-defined]

    def wrong(entry: Entry) -> bytes | None:
        return hashlib.sha256().digest() if entry.spec.name == "half" else real(entry)

    monkeypatch.setattr(Entry, "sha256", property(wrong))
    found = refused(path, tmp_path / "out.tsw", others(path, "math"))
    assert found.startswith("FormatError: ") and "TSW-801" in found


def test_a_file_of_a_later_version(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.lay, "MINOR", -1)
    assert "expected a file of version" in refused(path, tmp_path / "out.tsw", others(path, "math"))


def test_the_change_of_an_entry_gets_what_would_be_copied(path: Path, tmp_path: Path) -> None:
    """What `copy_tasks` promises to those who change a task."""
    seen: list[str] = []

    def change(entry: Entry, copied: EncodedEntry) -> EncodedEntry:
        assert (copied.spec, copied.sha256, copied.active) == (entry.spec, entry.sha256, entry.active)
        seen.append(entry.spec.name)
        return copied

    container = transfer.open_whole(path)
    edit = transfer.TaskEdit("code", {"a": "b"}, change)
    header = transfer.bare_header(container.index)
    transfer.copy_tasks(tmp_path / "out.tsw", header, [(container, 0), (container, 1)], None, edit=edit)
    container.close()
    assert seen == list(dict.fromkeys(name for task, name in stored(path) if task == "code"))
    assert stored(tmp_path / "out.tsw") == stored(path)
    with tsw.open(tmp_path / "out.tsw") as file:
        assert file.recipe("code") == {"a": "b"} != file.recipe("math")


def test_rounding_to_stored_types() -> None:
    values = np.array([-1, 0, 1, 1.006, 3, 7], np.float64)
    assert to_codes(values, lay.FactorDType.U8).tolist() == [0, 0, 85, 86, 255, 255]
    for dtype in (lay.FactorDType.F16, lay.FactorDType.F32):
        kind = np.float16 if dtype is lay.FactorDType.F16 else np.float32
        assert to_codes(values, dtype).tolist() == values.astype(kind).tolist()
