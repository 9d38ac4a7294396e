"""Tables of coefficients: what restore makes of one, to the bit, tables in files, files put together and taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from switch_models import Array, Arrays, load, model, same, save, tuned

import tswitch_format as tsw
from tswitch_format.checkpoint import ArrayCheckpoint

TASKS = ("law", "art", "biology")  # in the file's order
COLUMNS = ("biology", "law", "art")
ROWS = ("wide", "layer.weight", "half")
VALUES = np.array([[0.3, -0.25, 1.75], [0.1, 1.0, 0.0], [2.5, 0.7, 1e-30]], np.float32)
CLAMPS = [None, (0.0, 1.0), (-0.2, 0.5), (0.4, 0.4), (0.0, 0.0)]


def expert(task: str) -> Arrays:
    return tuned(model(), TASKS.index(task) + 1)


def heads(*tasks: str) -> dict[str, Arrays]:
    """Layers of tasks that the base has not, of as many rows as the task's number says."""
    return {
        task: {
            "head.weight": np.full((TASKS.index(task) + 2, 3), TASKS.index(task), np.float32),
            "head.bias": np.arange(TASKS.index(task) + 2, dtype=np.float32),
        }
        for task in tasks
    }


def layers(given: Mapping[str, Arrays]) -> dict[str, dict[str, tuple[Any, str]]]:
    """As `add_table` takes them."""
    return {
        task: {name: (reader, name) for name in arrays}
        for task, arrays in given.items()
        for reader in [ArrayCheckpoint(arrays)]
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three tasks of every float type, with factors; that of biology leaves a tensor as it is."""
    for task in TASKS:
        arrays = expert(task)
        if task == "biology":
            arrays["half"] = model()["half"]
        tsw.pack(model(), arrays, tmp_path / f"{task}.tsw", task=task, density=0.6)
    return tsw.bundle([tmp_path / f"{task}.tsw" for task in TASKS], tmp_path / "all.tsw")


def tinted(
    bundle: Path,
    out: str = "tinted.tsw",
    name: str = "tinting",
    given: Mapping[str, Arrays] | None = None,
    **options: Any,
) -> Path:
    said: dict[str, Any] = {"values": VALUES, "rows": ROWS, "tasks": COLUMNS, **options}
    return tsw.add_table(bundle, bundle.parent / out, name, layers=layers(given or {}), **said)


def table_of(path: Path, name: str = "tinting") -> tsw.CoefficientTable:
    with tsw.open(path) as file:
        return file.tables[name]


def restored(base: Mapping[str, Array], path: Path, **options: Any) -> Arrays:
    out = path.parent / "restored.safetensors"
    tsw.restore(base, path, out, threads=1, **options)
    found = load(out)
    out.unlink()
    return found


# --- section 10, slowly ----------------------------------------------------------------------------------------


def value_of(switch: tsw.Switch, coefficient: np.float32, kind: Any) -> Array:
    """v of each element: knob, row, column, coefficient, each product rounded."""
    if switch.kind == "masked":
        v = switch.vector().astype(kind)
        v = v * kind(switch.knob) if switch.knob != 1 else v
    else:
        v = np.full(switch.shape, kind(switch.knob))
        matrix = v.reshape(switch.shape[0], -1)
        if switch.row_factors is not None:
            matrix = matrix * switch.row_factors.astype(kind)[:, None]
        if switch.column_factors is not None:
            matrix = matrix * switch.column_factors.astype(kind)
        v = matrix.reshape(switch.shape) * switch.sign().astype(kind)
    return v * kind(coefficient) if coefficient != 1 else v


def slowly(base: Arrays, path: Path, rows: Mapping[str, Mapping[str, float]], clamp: Any) -> Arrays:
    """What a table makes of the base's tensors; `rows`: task -> coefficient, for each tensor that has a row, in order."""
    made = {}
    with tsw.open(path) as file:
        for name, array in base.items():
            kind = np.float64 if array.dtype == np.float64 else np.float32
            sums = array.astype(kind)
            touched = np.zeros(array.shape, bool)
            for task, number in rows.get(name, {}).items():
                x = np.float32(number)
                if clamp is not None:
                    x = min(max(x, np.float32(clamp[0])), np.float32(clamp[1]))
                if x == 0 or name not in file.keys(task):
                    continue
                switch = file.switch(name, task)
                mask, v = switch.mask(), value_of(switch, x, kind)
                sums[mask] = sums[mask] + v[mask]
                touched |= mask
            made[name] = np.where(touched, sums.astype(array.dtype), array)
    return made


def by_row(values: NDArray[Any] = VALUES) -> dict[str, dict[str, float]]:
    return {row: dict(zip(COLUMNS, line, strict=True)) for row, line in zip(ROWS, values.tolist(), strict=True)}


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_restored_bits_are_those_of_the_text(bundle: Path, clamp: Any, profile: str) -> None:
    path = tsw.repack(tinted(bundle, clamp=clamp), bundle.parent / "out.tsw", profile=profile)
    found = restored(model(), path, table="tinting")
    assert same(found, slowly(model(), bundle, by_row(), clamp))
    assert not same(found, model()) or clamp == (0.0, 0.0)
    assert found["layer.bias"].tobytes() == model()["layer.bias"].tobytes()  # it has no row


def test_masks_over_a_vector_are_weighted_too(tmp_path: Path) -> None:
    base = model()
    rng = np.random.default_rng(5)
    floats = {name: array for name, array in base.items() if array.dtype.kind == "f"}
    vectors = {name: tsw.GivenVector.of_array((array * 0.1).astype(array.dtype)) for name, array in floats.items()}
    tasks = [
        tsw.GivenTask(
            task, {name: tsw.GivenMask.of_flags(rng.random(a.shape) < 0.4, knob) for name, a in floats.items()}
        )
        for task, knob in zip(TASKS, (1.0, -0.5, 0.3), strict=True)
    ]
    tsw.build(base, tmp_path / "masks.tsw", tasks, vectors=vectors)
    path = tinted(tmp_path / "masks.tsw", clamp=(0, 1))
    assert same(restored(base, path, table="tinting"), slowly(base, path, by_row(), (0, 1)))


def test_the_columns_say_the_order(bundle: Path) -> None:
    """Sums of floats depend on it."""
    turned = tinted(bundle, "turned.tsw", tasks=COLUMNS[::-1], values=VALUES[:, ::-1])
    one, other = restored(model(), tinted(bundle), table="tinting"), restored(model(), turned, table="tinting")
    assert not same(one, other)
    np.testing.assert_allclose(one["wide"], other["wide"], rtol=1e-12)


def test_one_coefficient_for_all_is_as_tasks_with_it(bundle: Path) -> None:
    rows = [name for name, array in model().items() if array.dtype.kind == "f"]
    path = tinted(bundle, rows=rows, values=np.tile(np.array([0.3, 1.0, -0.7], np.float32), (len(rows), 1)))
    same_tasks = dict(zip(COLUMNS, (float(np.float32(0.3)), 1.0, float(np.float32(-0.7))), strict=True))
    assert same(restored(model(), path, table="tinting"), restored(model(), path, tasks=same_tasks))


def test_a_tied_tensor_has_the_row_of_its_target(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    tied = {"a": array, "b": array}
    for number, task in enumerate(TASKS):
        changed = array + np.float32(0.1 * (number + 1))
        tsw.pack(tied, {"a": changed, "b": changed}, tmp_path / f"{task}.tsw", task=task, density=1.0)
    path = tsw.bundle([tmp_path / f"{task}.tsw" for task in TASKS], tmp_path / "all.tsw")
    for number, row in enumerate(("a", "b")):
        out = tsw.add_table(path, tmp_path / f"{number}.tsw", "t", [[0.5]] * np.ones((1, 1)), rows=[row], tasks=["art"])
        assert table_of(out, "t").rows == ("a",)
        assert (tmp_path / f"{number}.tsw").read_bytes() == (tmp_path / "0.tsw").read_bytes()
    for base in (tied, {"a": array, "b": array.copy()}, {"b": array}):
        found = restored(base, tmp_path / "0.tsw", table="t")
        wanted = restored(base, path, tasks={"art": 0.5})
        assert same(found, wanted) and found["b"].tobytes() != array.tobytes()
    with pytest.raises(tsw.OptionError, match="rows 'a' and 'b' are one tensor of the base; give it one row"):
        tsw.add_table(path, tmp_path / "x.tsw", "t", np.ones((2, 1)), rows=["a", "b"], tasks=["art"])


# --- layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_layers_of_one_task_count(bundle: Path, task: str) -> None:
    path = tinted(bundle, given=heads(*TASKS), clamp=(0, 1))
    assert tsw.validate(path).ok
    found = restored(model(), path, table="tinting", layers=task)
    assert same(found, {**slowly(model(), bundle, by_row(), (0, 1)), **heads(task)[task]})


def test_layers_may_be_of_a_task_without_a_column(bundle: Path) -> None:
    some = {"values": VALUES[:, 1:], "tasks": COLUMNS[1:]}
    path = tinted(bundle, given=heads(*TASKS), **some)
    found = restored(model(), path, table="tinting", layers="biology")
    rows = {row: dict(zip(COLUMNS[1:], line[1:], strict=True)) for row, line in zip(ROWS, VALUES.tolist(), strict=True)}
    assert same(found, {**slowly(model(), bundle, rows, None), **heads("biology")["biology"]})


def test_layers_that_differ_are_refused_where_nobody_says_whose(bundle: Path) -> None:
    path = tinted(bundle, given=heads(*TASKS))
    with pytest.raises(tsw.OptionError, match=r"'head.bias': tasks 'biology' and 'law' and 'art' give .*TSW-903"):
        restored(model(), path, table="tinting")
    equal = tinted(bundle, "equal.tsw", given={task: heads("law")["law"] for task in TASKS[:2]})
    found = restored(model(), equal, table="tinting")
    assert same(found, {**slowly(model(), bundle, by_row(), None), **heads("law")["law"]})


def test_a_tensor_that_one_task_replaces_and_others_switch(tmp_path: Path) -> None:
    """TSW-903 where they have coefficients; not where these are 0, nor where the layers are another's."""
    whole = {**expert("law"), "half": np.full_like(model()["half"], 7)}
    tsw.pack(model(), whole, tmp_path / "law.tsw", task="law", dense=["half"])
    for task in ("art", "biology"):
        tsw.pack(model(), expert(task), tmp_path / f"{task}.tsw", task=task, density=0.3)
    path = tsw.bundle([tmp_path / f"{task}.tsw" for task in TASKS], tmp_path / "all.tsw")
    table = tinted(path)
    for given in ({}, {"layers": "law"}):
        with pytest.raises(
            tsw.OptionError, match=r"'half': task 'law' replaces or removes it, task 'biology' changes .*TSW-903"
        ):
            restored(model(), table, table="tinting", **given)
    assert same(
        {"half": restored(model(), table, table="tinting", layers="art")["half"]},
        {"half": slowly({"half": model()["half"]}, path, {"half": {"biology": 2.5, "art": 1e-30}}, None)["half"]},
    )
    values = VALUES.copy()
    values[2] = [0, 5, -0.0]
    zero = tinted(path, "zero.tsw", values=values)
    for given in ({}, {"layers": "law"}):
        assert (restored(model(), zero, table="tinting", **given)["half"] == 7).all()
    clamped = tinted(path, "clamped.tsw", values=values - np.float32(3) * (np.arange(3) != 1), clamp=(0, 9))
    assert (restored(model(), clamped, table="tinting", layers="law")["half"] == 7).all()


def test_a_tensor_that_is_removed(tmp_path: Path) -> None:
    for task in TASKS:
        arrays = expert(task)
        if task == "law":
            del arrays["layer.bias"]
        tsw.pack(model(), arrays, tmp_path / f"{task}.tsw", task=task, on_mismatch="dense")
    path = tinted(tsw.bundle([tmp_path / f"{task}.tsw" for task in TASKS], tmp_path / "all.tsw"))
    assert "layer.bias" not in restored(model(), path, table="tinting")
    assert "layer.bias" not in restored(model(), path, table="tinting", layers="law")
    assert "layer.bias" in restored(model(), path, table="tinting", layers="art")


def test_an_alias_is_a_name_of_its_own_where_its_entry_counts(tmp_path: Path) -> None:
    """Else it is the same as its target, also for the task that has the entry (spec section 10)."""

    def tied(arrays: Arrays) -> Arrays:
        return {**arrays, "tied": arrays["half"]}

    for task in TASKS:
        tsw.pack(tied(model()), tied(expert(task)), tmp_path / f"{task}.tsw", task=task, density=0.3)
    path = tsw.bundle([tmp_path / f"{task}.tsw" for task in TASKS], tmp_path / "all.tsw")
    own = np.full((2, 3), 7, np.float32)
    path = tinted(path, rows=("wide", "layer.weight", "tied"), given={"art": {"tied": own}})
    plain = restored(tied(model()), path, table="tinting", layers="law")
    assert plain["tied"].tobytes() == plain["half"].tobytes() != model()["half"].tobytes()
    for given in ({}, {"layers": "art"}):
        found = restored(tied(model()), path, table="tinting", **given)
        assert found.pop("tied").tobytes() == own.tobytes()
        assert same({**found, "tied": plain["tied"]}, plain)


def test_a_layer_may_take_the_place_of_a_base_tensor(bundle: Path) -> None:
    """Of the same dtype and shape, and of others."""
    for head in (np.arange(10, dtype=np.int64)[::-1].copy(), np.ones((2, 2), np.float32)):
        path = tinted(bundle, "ids.tsw", given={"art": {"ids": head, "a": head.copy()}})
        assert tsw.validate(path).ok
        found = restored(model(), path, table="tinting", layers="art")
        assert found["ids"].tobytes() == head.tobytes() == found["a"].tobytes()
        assert same({"ids": restored(model(), path, table="tinting", layers="law")["ids"]}, {"ids": model()["ids"]})


def test_layers_of_the_checkpoints_metadata_stay(bundle: Path, tmp_path: Path) -> None:
    path = tinted(bundle, given=heads("art"))
    with tsw.open(path) as file, tsw.open(bundle) as before:
        assert file.tasks == before.tasks
        for task in TASKS:
            assert file.recipe(task) == before.recipe(task)
            assert [name for name in file.keys(task) if name not in ("head.weight", "head.bias")] == before.keys(task)
            for name in before.keys(task):
                assert file.switch(name, task).content == before.switch(name, task).content
        assert file.content_id != before.content_id


def test_a_layer_that_the_task_has_already_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = tinted(bundle, given=heads("art"))
    with pytest.raises(
        tsw.OptionError, match=r"task 'art' has tensor 'head.weight' already; give the layer another name"
    ):
        tinted(path, "x.tsw", given=heads("art"))
    with pytest.raises(tsw.OptionError, match=r"task 'law' has tensor 'half' already"):
        tinted(path, "x.tsw", given={"law": {"half": np.zeros(3)}})
    with pytest.raises(tsw.UnknownNameError, match="no task named 'other'"):
        tinted(path, "x.tsw", given={"other": {"half": np.zeros(3)}})
    with pytest.raises(tsw.CheckpointError, match="proper name"):
        tinted(path, "x.tsw", given={"law": {"a\u2028b": np.zeros(3)}})
    assert not (tmp_path / "x.tsw").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"table": "tinting", "tasks": ["law"]}, tsw.OptionError, "tasks: expected none beside a table"),
        ({"table": "tinting", "tasks": []}, tsw.OptionError, "tasks: expected none beside a table"),
        ({"layers": "law"}, tsw.OptionError, "layers: expected a table too"),
        ({"layers": "law", "tasks": ["law"]}, tsw.OptionError, "layers: expected a table too"),
        ({"table": "tint"}, tsw.UnknownNameError, r"no table named 'tint' among 1; did you mean 'tinting'\?"),
        ({"table": "tinting", "layers": "lav"}, tsw.UnknownNameError, r"no task named 'lav' .*did you mean 'law'\?"),
    ],
)
def test_options_that_make_no_sense(bundle: Path, options: Any, error: type[Exception], message: str) -> None:
    path = tinted(bundle)
    with pytest.raises(error, match=message):
        restored(model(), path, **options)
    assert not (bundle.parent / "restored.safetensors").exists()


def test_a_file_without_tables_says_so(bundle: Path) -> None:
    with tsw.open(bundle) as file:
        assert dict(file.tables) == {} and file.tables.get("tinting") is None
    with pytest.raises(tsw.UnknownNameError, match="no table named 'tinting' among 0; there is no table in it"):
        restored(model(), bundle, table="tinting")


def test_another_base_is_refused(bundle: Path) -> None:
    with pytest.raises(tsw.BaseMismatchError):
        restored(model(9), tinted(bundle), table="tinting")


# --- tables in files -------------------------------------------------------------------------------------------


def test_what_was_stored_comes_back(bundle: Path) -> None:
    path = tinted(bundle, clamp=(0, 1))
    table = table_of(path)
    assert (table.name, table.tasks, table.clamp) == ("tinting", COLUMNS, (0.0, 1.0))
    assert table.rows == ("half", "layer.weight", "wide")  # as the base has them
    assert table.values.tobytes() == VALUES[[2, 1, 0]].tobytes()
    assert not table.values.flags.writeable
    for row, name in enumerate(ROWS):
        for column, task in enumerate(COLUMNS):
            assert table.coefficient(task, name) == float(np.clip(VALUES[row, column], np.float32(0), np.float32(1)))
    assert table.coefficient("law", "layer.bias") == 0.0 == table.coefficient("law", "nothing")
    with pytest.raises(
        tsw.UnknownNameError, match=r"table 'tinting': no task named 'lav' among 3; did you mean 'law'\?"
    ):
        table.coefficient("lav", "half")
    with tsw.open(path) as file, tsw.open(bundle) as before:
        assert list(file.tables) == ["tinting"] and len(file.tables) == 1 and "tinting" in file.tables
        assert file.content_id != before.content_id


def test_a_table_without_a_clamp_is_used_as_it_is(bundle: Path) -> None:
    table = table_of(tinted(bundle))
    assert (
        table.clamp is None and table.coefficient("art", "wide") == 1.75 and table.coefficient("law", "wide") == -0.25
    )


def test_other_float_types_are_turned_into_f32(bundle: Path) -> None:
    for dtype in (np.float16, np.float64, ">f4"):
        path = tinted(bundle, "x.tsw", values=VALUES.astype(dtype))
        assert table_of(path).values.tobytes() == VALUES.astype(dtype).astype("<f4")[[2, 1, 0]].tobytes()


def test_tables_are_added_and_replaced(bundle: Path) -> None:
    one = tinted(bundle)
    two = tinted(one, "two.tsw", "other", values=VALUES * 2, clamp=(0, 1))
    three = tinted(two, "three.tsw", values=VALUES[:1], rows=ROWS[:1])
    with tsw.open(three) as file:
        assert list(file.tables) == ["other", "tinting"]
        assert file.tables["other"].values.tobytes() == (VALUES * 2)[[2, 1, 0]].tobytes()
        assert file.tables["tinting"].rows == ROWS[:1]
    assert tsw.validate(three).ok
    assert tinted(two, "again.tsw").read_bytes() == two.read_bytes()  # in place of its equal


def test_a_router_and_tables_live_together(bundle: Path) -> None:
    routed = tsw.add_router(tinted(bundle), bundle.parent / "routed.tsw", {"law": np.eye(3, dtype=np.float32)})
    named = tinted(routed, "named.tsw", "law")  # as the task with samples is called
    with tsw.open(named) as file:
        assert file.router is not None and list(file.tables) == ["law", "tinting"]
        assert file.router.features["law"].tolist() == np.eye(3).tolist()
    assert tsw.validate(named).ok
    with tsw.open(tinted(named, "more.tsw", "law", values=-VALUES)) as file:
        assert file.router is not None and file.tables["law"].values.tobytes() == (-VALUES)[[2, 1, 0]].tobytes()


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_a_table_goes_where_all_of_its_tasks_go(bundle: Path, tmp_path: Path, profile: str) -> None:
    path = tinted(tinted(bundle), "two.tsw", "of one", values=VALUES[:, :1], tasks=["art"], clamp=(0, 1))
    path = tsw.repack(tinted(path, "three.tsw", given=heads("law")), tmp_path / "repacked.tsw", profile=profile)
    parts = [tsw.extract(path, task, tmp_path / f"part-{task}.tsw") for task in TASKS]
    found = []
    for part in parts:
        assert tsw.validate(part).ok
        with tsw.open(part) as file:
            found.append(list(file.tables))
    assert found == [[], ["of one"], []]
    together = tsw.bundle(parts, tmp_path / "together.tsw")
    with tsw.open(together) as file, tsw.open(path) as before:
        assert list(file.tables) == ["of one"]
        assert file.tables["of one"].values.tobytes() == before.tables["of one"].values.tobytes()
    table = table_of(path)
    again = tsw.add_table(
        together, tmp_path / "again.tsw", "tinting", table.values, rows=table.rows, tasks=table.tasks, clamp=table.clamp
    )
    assert again.read_bytes() == path.read_bytes()
    assert tsw.bundle([path], tmp_path / "bundled.tsw").read_bytes() == path.read_bytes()
    assert tsw.repack(path, tmp_path / "same.tsw", profile=profile).read_bytes() == path.read_bytes()


def test_a_bundle_gives_tasks_other_places_and_tables_mean_the_same(bundle: Path, tmp_path: Path) -> None:
    path = tinted(bundle, values=VALUES[:, :1], tasks=["art"])
    art, law = tsw.extract(path, "art", tmp_path / "1.tsw"), tsw.extract(path, "law", tmp_path / "2.tsw")
    for order in ([art, law], [law, art]):
        both = tsw.bundle(order, tmp_path / "both.tsw")
        assert same(restored(model(), both, table="tinting"), restored(model(), path, table="tinting"))


def test_different_tables_of_one_name_do_not_meet(bundle: Path, tmp_path: Path) -> None:
    parts = []
    for number, task in enumerate(("art", "law")):
        whole = tinted(bundle, f"{task}-whole.tsw", values=VALUES[:, :1] + number, tasks=[task])
        parts.append(tsw.extract(whole, task, tmp_path / f"{task}-part.tsw"))
    with pytest.raises(
        tsw.OptionError, match=r"law-part.tsw: expected the table 'tinting' of .*art-part.tsw, or none .*under"
    ):
        tsw.bundle(parts, tmp_path / "both.tsw")
    assert not (tmp_path / "both.tsw").exists()


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"rows": ["wide", "layer.wait", "half"]},
        r"rows: no tensor named 'layer.wait' among 5; did you mean 'layer.weight'",
    ),
    ({"rows": ["wide", "half", "half"]}, "rows: expected each name once, found 'half' twice"),
    ({"rows": ROWS[:2]}, r"a row for each of 2 tensors and a column for each of 3 tasks, \[2, 3\], found \[3, 3\]"),
    ({"rows": []}, "rows: expected names, at least one"),
    ({"rows": "half"}, "rows: expected names"),
    ({"tasks": ["law", "art", "biologie"]}, r"no task named 'biologie' among 3; did you mean 'biology'"),
    ({"tasks": ["law", "art", "law"]}, "tasks: expected each name once, found 'law' twice"),
    ({"tasks": COLUMNS[:2]}, r"a column for each of 2 tasks, \[3, 2\], found \[3, 3\]"),
    ({"tasks": ()}, "tasks: expected names, at least one"),
    ({"values": VALUES[0]}, r"\[3, 3\], found \[3\]"),
    ({"values": VALUES[None]}, r"found \[1, 3, 3\]"),
    ({"values": VALUES.astype(np.int64)}, "expected f32 numbers, found int64"),
    ({"values": VALUES.astype(complex)}, "expected f32 numbers, found complex128"),
    ({"values": np.where(VALUES > 1, np.nan, VALUES)}, "finite numbers in f32, found NaN"),
    ({"values": VALUES.astype(np.float64) * 1e39}, "finite numbers in f32"),
    ({"clamp": (1, 0)}, r"clamp: expected two finite numbers, the first not above the second, found \(1, 0\)"),
    ({"clamp": (0, np.inf)}, "clamp: expected two finite numbers"),
    ({"clamp": (0, 1e39)}, "clamp: expected two finite numbers"),
    ({"clamp": (0, np.nan)}, "clamp: expected two finite numbers"),
    ({"clamp": (0,)}, "clamp: expected two finite numbers"),
    ({"clamp": "no"}, "clamp: expected two finite numbers"),
    ({"name": ""}, "table '': 0 bytes instead of 1 to 1024"),
    ({"name": "a\nb"}, "a control character"),
    ({"name": "x" * 1025}, "1025 bytes instead of 1 to 1024"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_tables_are_refused(bundle: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(tsw.TswError, match=message):
        tinted(bundle, "x.tsw", **options)
    assert not (tmp_path / "x.tsw").exists()


def test_a_file_is_not_written_over_itself(bundle: Path) -> None:
    with pytest.raises(tsw.OutputError):
        tinted(bundle, bundle.name)


def test_a_base_of_files_and_threads(bundle: Path, tmp_path: Path) -> None:
    path = tinted(bundle, given=heads("law"))
    base = save(tmp_path / "base.safetensors", model())
    for threads in (1, 3):
        out = tmp_path / f"{threads}.safetensors"
        result = tsw.restore(base, path, out, table="tinting", layers="law", threads=threads)
        assert result.tensors == len(model()) + 2
        assert same(load(out), restored(model(), path, table="tinting", layers="law"))
