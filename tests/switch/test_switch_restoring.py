"""Bases that are not the right one, tasks together, names that are not there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from switch_models import Arrays, files_in, load, model, same, same_array, tuned

import tswitch_format as tsw
from tswitch_format.switch import restore as restore_module


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    tsw.pack(model(), tuned(model()), tmp_path / "x.tsw", density=0.5)
    return tmp_path / "x.tsw"


# --- wrong bases ----------------------------------------------------------------------------------------------


def changed_content() -> Arrays:
    base = model()
    base["layer.bias"][3] += 1
    return base


WRONG_BASES: dict[str, tuple[str, Callable[[], Arrays]]] = {
    "shape": ("wide", lambda: {**model(), "wide": np.zeros((4, 3))}),
    "type": ("half", lambda: {**model(), "half": model()["half"].astype(np.float32)}),
    "content": ("layer.bias", changed_content),
    "integers": ("ids", lambda: {**model(), "ids": model()["ids"] + 1}),
    "missing": ("layer.weight", lambda: {n: a for n, a in model().items() if n != "layer.weight"}),
    "missing, unchanged": ("ids", lambda: {n: a for n, a in model().items() if n != "ids"}),
    "additional": ("more", lambda: {**model(), "more": np.zeros(3, np.float32)}),
}


@pytest.mark.parametrize("wrong", WRONG_BASES)
def test_a_wrong_base_is_refused_by_name_and_nothing_is_written(tmp_path: Path, packed: Path, wrong: str) -> None:
    name, make = WRONG_BASES[wrong]
    before = files_in(tmp_path)
    with pytest.raises(tsw.BaseMismatchError, match=f"'{name}': expected .* found .*TSW-90[12]") as error:
        tsw.restore(make(), packed, tmp_path / "out.safetensors")
    assert error.value.tensor == name
    assert files_in(tmp_path) == before
    report = tsw.validate(packed, base=make())
    assert not report.ok
    assert any(name in finding.field for finding in report.findings)


def test_an_old_output_survives_a_wrong_base(tmp_path: Path, packed: Path) -> None:
    (tmp_path / "out.safetensors").write_bytes(b"old")
    before = files_in(tmp_path)
    with pytest.raises(tsw.BaseMismatchError):
        tsw.restore(changed_content(), packed, tmp_path / "out.safetensors")
    assert files_in(tmp_path) == before


def test_check_base_false_goes_on_where_the_content_differs(tmp_path: Path, packed: Path) -> None:
    base = changed_content()
    tsw.restore(base, packed, tmp_path / "out.safetensors", check_base=False)
    with tsw.open(packed) as file:
        switch = file.switch("layer.bias")
        with pytest.raises(tsw.BaseMismatchError, match=r"'layer\.bias'"):
            switch.apply(base["layer.bias"])
        made = switch.apply(base["layer.bias"], check_base=False)
    assert same_array(load(tmp_path / "out.safetensors")["layer.bias"], made)


@pytest.mark.parametrize("wrong", ["shape", "type", "missing", "additional"])
def test_check_base_false_does_not_go_on_where_the_tensors_do_not_fit(tmp_path: Path, packed: Path, wrong: str) -> None:
    name, make = WRONG_BASES[wrong]
    with pytest.raises(tsw.BaseMismatchError, match=f"'{name}'"):
        tsw.restore(make(), packed, tmp_path / "out.safetensors", check_base=False)
    assert not (tmp_path / "out.safetensors").exists()


def test_apply_checks_shape_and_type(packed: Path) -> None:
    base = model()["layer.weight"]
    with tsw.open(packed) as file:
        switch = file.switch("layer.weight")
        for other in (base.T, base[:3], base.astype(np.float64), base.astype(np.int32)):
            with pytest.raises(tsw.BaseMismatchError, match=r"'layer\.weight'"):
                switch.apply(other)
        assert switch.apply(base.astype(np.float16), check_base=False).dtype == np.float16
        assert same_array(switch[3:9].apply(base[3:9]), switch.apply(base)[3:9])


def test_apply_refuses_big_endian_arrays_rather_than_misread_them(packed: Path) -> None:
    base = model()["layer.weight"].astype(">f4")
    with tsw.open(packed) as file:
        for view, array in ((file.switch("layer.weight"), base), (file.switch("layer.weight")[:2], base[:2])):
            with pytest.raises(tsw.BaseMismatchError, match=r"little-endian, found .* big-endian"):
                view.apply(array, check_base=False)


def test_apply_leaves_its_argument_alone(packed: Path) -> None:
    base = model()["layer.weight"]
    with tsw.open(packed) as file:
        made = file.switch("layer.weight").apply(base)
        assert same_array(base, model()["layer.weight"])
        out = np.zeros_like(base)
        assert file.switch("layer.weight").apply(base, out=out) is out
        assert same_array(out, made)
        with pytest.raises(tsw.OptionError, match="expected a writable out of F32"):
            file.switch("layer.weight").apply(base, out=np.zeros((2, 2), np.float32))


# --- several tasks --------------------------------------------------------------------------------------------


def bundle_of(tmp_path: Path, experts: dict[str, Arrays], base: Arrays | None = None, **options: Any) -> Path:
    files = []
    for task, expert in experts.items():
        files.append(tmp_path / f"{task}.tsw")
        tsw.pack(base or model(), expert, files[-1], task=task, **options)
    return tsw.bundle(files, tmp_path / "all.tsw")


def test_tasks_are_applied_in_the_order_given(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, {f"t{i}": tuned(model(), i, 0.7) for i in range(3)}, density=0.8)
    made = []
    for number, order in enumerate(itertools.permutations(["t0", "t1", "t2"])):
        out = tmp_path / f"{number}.safetensors"
        tsw.restore(model(), path, out, tasks=order)
        found = load(out)
        with tsw.open(path) as file:
            sums = model()["layer.weight"]
            for task in order:
                sums = sums + file.switch("layer.weight", task).delta()
        assert same_array(found["layer.weight"], sums)
        made.append(found["layer.weight"].tobytes())
    assert len(set(made)) > 1


def test_the_ways_to_name_tasks_agree(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, {"a": tuned(model(), 1), "b": tuned(model(), 2)})
    ways: list[Any] = [["a", ("b", 0.5)], [("a", 1.0), ("b", 0.5)], {"a": 1, "b": 0.5}]
    for number, tasks in enumerate(ways):
        tsw.restore(model(), path, tmp_path / f"{number}.safetensors", tasks=tasks)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(3)}) == 1


def test_a_coefficient_of_zero_is_as_without_the_task(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, {"a": tuned(model(), 1), "b": tuned(model(), 2)})
    tsw.restore(model(), path, tmp_path / "none.safetensors", tasks={"a": 0, "b": -0.0})
    assert same(load(tmp_path / "none.safetensors"), model())
    tsw.restore(model(), path, tmp_path / "with.safetensors", tasks={"a": 0, "b": 1})
    tsw.restore(model(), path, tmp_path / "without.safetensors", tasks=["b"])
    assert same(load(tmp_path / "with.safetensors"), load(tmp_path / "without.safetensors"))
    tsw.restore(model(), path, tmp_path / "nothing.safetensors", tasks=[])
    assert same(load(tmp_path / "nothing.safetensors"), model())


def test_switching_there_and_back_gives_the_bases_bits(tmp_path: Path, packed: Path) -> None:
    base = model()
    for coefficient in (1, -3.7, 0):
        tsw.restore(base, packed, tmp_path / "out.safetensors", tasks={"task": coefficient})
    assert same(load(tmp_path / "out.safetensors"), base)


def headed(value: float | None, **more: np.ndarray[Any, Any]) -> Arrays:
    """An expert with a head of its own, or without one."""
    expert = {**tuned(model()), **more}
    return expert if value is None else {**expert, "head": np.full((2, 3), value, np.float32)}


def test_dense_entries_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, {"a": headed(1), "b": headed(2), "c": headed(1)}, on_mismatch="dense")
    with pytest.raises(tsw.OptionError, match=r"'head': tasks 'a' and 'b' .*TSW-903"):
        tsw.restore(model(), path, tmp_path / "out.safetensors", tasks=["a", "b"])
    assert not (tmp_path / "out.safetensors").exists()
    tsw.restore(model(), path, tmp_path / "out.safetensors", tasks={"a": 0.3, "c": 0})
    assert same_array(load(tmp_path / "out.safetensors")["head"], headed(1)["head"])


def test_dense_or_removed_against_a_switch_is_refused_by_name(tmp_path: Path) -> None:
    whole, switched = tuned(model(), 1), tuned(model(), 2)
    gone = {name: array for name, array in switched.items() if name != "half"}
    files = [tmp_path / f"{task}.tsw" for task in ("whole", "switched", "gone", "gone2")]
    tsw.pack(model(), whole, files[0], task="whole", dense=["half"])
    tsw.pack(model(), switched, files[1], task="switched")
    tsw.pack(model(), gone, files[2], task="gone", on_mismatch="dense")
    tsw.pack(model(), gone, files[3], task="gone2", on_mismatch="dense")
    path = tsw.bundle(files, tmp_path / "all.tsw")
    for tasks in itertools.permutations(["whole", "switched", "gone"], 2):
        with pytest.raises(tsw.OptionError, match=r"'half'.*TSW-903"):
            tsw.restore(model(), path, tmp_path / "out.safetensors", tasks=tasks)
    tsw.restore(model(), path, tmp_path / "out.safetensors", tasks=["gone", "gone2"])
    assert load(tmp_path / "out.safetensors").keys() == gone.keys()


def test_tasks_of_different_types_are_refused_by_name(tmp_path: Path) -> None:
    other = {**tuned(model(), 2), "half": tuned(model(), 2)["half"].astype(np.float32)}
    path = bundle_of(tmp_path, {"a": tuned(model(), 1), "b": other}, density=0.3)
    with pytest.raises(tsw.OptionError, match=r"'half'.*F16 and F32.*TSW-903"):
        tsw.restore(model(), path, tmp_path / "out.safetensors", tasks=["a", "b"])
    tsw.restore(model(), path, tmp_path / "out.safetensors", tasks={"a": 1, "b": 0})


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("a", "expected a list of names"),
        (["a", "a"], "named twice"),
        ([("a", 1.0), ("a", 2.0)], "named twice"),
        ({"a": np.nan}, "'a': expected a finite coefficient"),
        ({"a": np.inf}, "'a': expected a finite coefficient"),
        (None, "2 tasks: a, bb"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(tmp_path: Path, tasks: Any, message: str) -> None:
    path = bundle_of(tmp_path, {"a": tuned(model(), 1), "bb": tuned(model(), 2)})
    with pytest.raises(tsw.OptionError, match=message):
        tsw.restore(model(), path, tmp_path / "out.safetensors", tasks=tasks)
    assert not (tmp_path / "out.safetensors").exists()


# --- unknown names --------------------------------------------------------------------------------------------


def test_unknown_names_show_near_names(tmp_path: Path, packed: Path) -> None:
    path = bundle_of(tmp_path, {"mathematics": tuned(model(), 1), "law": tuned(model(), 2)})
    with pytest.raises(tsw.UnknownNameError, match="did you mean 'mathematics'"):
        tsw.restore(model(), path, tmp_path / "out.safetensors", tasks=["mathematic"])
    with tsw.open(path) as file:
        with pytest.raises(tsw.UnknownNameError, match=r"'lay\.weight'.*did you mean 'layer\.weight'"):
            file.switch("lay.weight", "law")
        with pytest.raises(KeyError, match="did you mean 'mathematics'"):
            file.keys("mathematik")
        with pytest.raises(tsw.UnknownNameError, match=r"'layer\.biass'.*'layer\.bias'"):
            file.base.spec("layer.biass")
        with pytest.raises(tsw.OptionError, match="2 tasks: mathematics, law"):
            file.switch("half")
    with pytest.raises(tsw.UnknownNameError, match="did you mean 'law'"):
        tsw.extract(path, "laws", tmp_path / "y.tsw")


def test_kinds_answer_only_what_they_hold(tmp_path: Path) -> None:
    expert = {name: array for name, array in headed(1).items() if name != "half"}
    tsw.pack(model(), expert, tmp_path / "x.tsw", on_mismatch="dense")
    with tsw.open(tmp_path / "x.tsw") as file:
        with pytest.raises(tsw.OptionError, match="'head' is dense"):
            file.switch("head").mask()
        with pytest.raises(tsw.OptionError, match="'half' is removed"):
            file.switch("half").apply(model()["half"])
        with pytest.raises(tsw.OptionError, match=r"'layer\.bias' is ternary, not dense"):
            file.switch("layer.bias").data()
        assert same_array(file.switch("head")[1:2].data(), expert["head"][1:2])
        with pytest.raises(tsw.OptionError, match="step 1"):
            file.switch("layer.bias")[::2]


def test_threads_write_to_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk once, in turn from as many files as there are threads."""
    folder, expert = tmp_path / "base", tuned(model())
    folder.mkdir()
    names = sorted(model())
    shards = [names[0::3], names[1::3], names[2::3]]
    for number, held in enumerate(shards):
        save_file({name: model()[name] for name in held}, folder / f"model-{number + 1:05d}-of-00003.safetensors")
    weight_map = {name: f"model-{n + 1:05d}-of-00003.safetensors" for n, held in enumerate(shards) for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    tsw.pack(folder, expert, tmp_path / "a.tsw", density=1.0)
    made: list[str] = []
    real = restore_module._write

    def noted(unit: Any, *rest: Any) -> int:
        made.append(weight_map[unit[0].spec.name][:11])
        return real(unit, *rest)

    monkeypatch.setattr(restore_module, "_write", noted)
    tsw.restore(folder, tmp_path / "a.tsw", tmp_path / "one", threads=1)
    assert made == sorted(made)
    before, made[:] = sorted(made), []
    tsw.restore(folder, tmp_path / "a.tsw", tmp_path / "two", threads=2)
    assert sorted(made) == before
    assert set(made[:4]) == {"model-00001", "model-00002"}
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
