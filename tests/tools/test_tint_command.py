"""`tsw tint import` and `tsw tint add`, `tsw restore --table`, and what `tsw info` says of tables."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tswitch_format as tsw

Run = Callable[..., Result]
TASKS = ("MNIST", "EMNIST", "cars")  # in the file's order
COLUMNS = ("cars", "MNIST", "EMNIST")  # in the code's
CLASSES = {"cars": 7, "MNIST": 10, "EMNIST": 10}


class Encoder(nn.Module):
    """Parameters in another order than by name, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.body = nn.Linear(8, 8)


def rows() -> list[str]:
    return [name for name, _ in Encoder(0).named_parameters()]


def state(seed: int) -> dict[str, Tensor]:
    """A base, or one that was fine-tuned: buffers stay."""
    found = Encoder(seed).state_dict()
    return {
        name: Encoder(0).state_dict()[name] if "running" in name or "num" in name else t for name, t in found.items()
    }


def save_tinting(
    path: Path, *, surgery: bool = False, change: Callable[[Any], None] | None = None
) -> dict[str, Tensor]:
    """What the code of the paper saves, from the description of its files: the state dict of a module with these parts."""
    make = torch.Generator().manual_seed(7)
    saved: OrderedDict[str, Tensor] = OrderedDict()
    saved["lambdas_raw"] = torch.rand(len(rows()), len(COLUMNS), generator=make) * 1.6 - 0.3
    for dataset in COLUMNS:
        if surgery:
            saved[f"down_proj_{dataset}.weight"] = torch.randn(16, 512, generator=make)
            saved[f"up_proj_{dataset}.weight"] = torch.randn(512, 16, generator=make)
        saved[f"classifier_{dataset}.weight"] = torch.randn(CLASSES[dataset], 512, generator=make)
        saved[f"classifier_{dataset}.bias"] = torch.randn(CLASSES[dataset], generator=make)
    if change is not None:
        change(saved)
    torch.save(saved, path)
    return dict(saved)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """base.safetensors, all.tsw, tinting.pth, rows.txt."""
    save_file(state(0), tmp_path / "base.safetensors")
    for seed, task in enumerate(TASKS, 1):
        expert = {name: (tensor.float() + 0).to(tensor.dtype) for name, tensor in state(seed).items()}
        tsw.pack(state_arrays(state(0)), state_arrays(expert), tmp_path / f"{task}.tsw", task=task, density=0.5)
    tsw.bundle([tmp_path / f"{task}.tsw" for task in TASKS], tmp_path / "all.tsw")
    save_tinting(tmp_path / "tinting.pth")
    (tmp_path / "rows.txt").write_text("\n".join(rows()) + "\n\n", encoding="utf-8")
    return tmp_path


def state_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def imported(folder: Path, run: Run, *more: object, tinting: str = "tinting.pth") -> Path:
    out = folder / "tinted.tsw"
    out.unlink(missing_ok=True)
    columns = ("--tasks", ",".join(COLUMNS))
    result = run(
        "tint",
        "import",
        folder / "all.tsw",
        folder / tinting,
        "-o",
        out,
        "--rows",
        folder / "rows.txt",
        *columns,
        *more,
    )
    assert result.exit_code == 0, result.output
    assert tsw.validate(out).ok
    return out


def merged(folder: Path, lambdas: Tensor) -> dict[str, Any]:
    """Section 10, slowly: clamped coefficients, columns in order, products and sums in f32."""
    made = {name: tensor.numpy().copy() for name, tensor in state(0).items()}
    with tsw.open(folder / "all.tsw") as file:
        for row, name in enumerate(rows()):
            for column, task in enumerate(COLUMNS):
                x = np.float32(min(max(float(lambdas[row, column]), 0.0), 1.0))
                if x == 0 or name not in file.keys(task):
                    continue
                switch = file.switch(name, task)
                mask = switch.mask()
                made[name][mask] += (switch.delta() * x)[mask]
    return made


def test_import_keeps_the_table_and_the_classifiers(folder: Path, run: Run) -> None:
    saved = torch.load(folder / "tinting.pth", weights_only=True)
    out = imported(folder, run)
    with tsw.open(out) as file:
        table = file.tables["tinting"]
        assert (table.tasks, table.clamp) == (COLUMNS, (0.0, 1.0))
        order = np.argsort(rows())
        assert table.rows == tuple(sorted(rows()))
        assert table.values.tobytes() == saved["lambdas_raw"].numpy()[order].tobytes()
        assert table.values.min() < 0 and table.values.max() > 1  # as it was trained
        for task in TASKS:
            for part in ("weight", "bias"):
                name = f"classifier_{task}.{part}"
                switch = file.switch(name, task)
                assert switch.kind == "dense" and switch.data().tobytes() == saved[name].numpy().tobytes()
            assert [name for name in file.keys(task) if name.startswith("classifier")] == [
                f"classifier_{task}.bias",
                f"classifier_{task}.weight",
            ]
        with tsw.open(folder / "all.tsw") as before:
            assert file.tasks == before.tasks


@pytest.mark.parametrize("task", TASKS)
def test_restored_is_the_merged_model_with_the_classifier_of_a_task(folder: Path, run: Run, task: str) -> None:
    saved = torch.load(folder / "tinting.pth", weights_only=True)
    tinted = imported(folder, run, "--layer-name", "classifier_{task}.=head.")
    out = folder / "out.safetensors"
    result = run("restore", folder / "base.safetensors", tinted, "-o", out, "--table", "tinting", "--layers", task)
    assert result.exit_code == 0, result.output
    found = load_file(out)
    wanted = merged(folder, saved["lambdas_raw"])
    assert found.keys() == {*wanted, "head.weight", "head.bias"}
    assert {name: found[name].numpy().tobytes() for name in wanted} == {n: a.tobytes() for n, a in wanted.items()}
    assert torch.equal(found["head.weight"], saved[f"classifier_{task}.weight"])

    class Model(Encoder):
        def __init__(self) -> None:
            super().__init__(0)
            self.head = nn.Linear(512, CLASSES[task])

    Model().load_state_dict(found)


def test_layers_with_names_of_their_own_live_together(folder: Path, run: Run) -> None:
    """As the code has them: all classifiers in one module."""
    tinted = imported(folder, run)
    out = folder / "out.safetensors"
    result = run("restore", folder / "base.safetensors", tinted, "-o", out, "--table", "tinting")
    assert result.exit_code == 0, result.output
    assert {name for name in load_file(out) if name.startswith("classifier")} == {
        f"classifier_{task}.{part}" for task in TASKS for part in ("weight", "bias")
    }


def test_surgery_comes_along(folder: Path, run: Run) -> None:
    saved = save_tinting(folder / "surgery.pth", surgery=True)
    out = imported(
        folder,
        run,
        *("--layer-name", "classifier_{task}.=head."),
        *("--layer-name", "down_proj_{task}.=surgery.{task}.down."),
        tinting="surgery.pth",
    )
    with tsw.open(out) as file:
        assert [name for name in file.keys("MNIST") if name not in state(0)] == [
            "head.bias",
            "head.weight",
            "surgery.MNIST.down.weight",
            "up_proj_MNIST.weight",
        ]
        switch = file.switch("surgery.MNIST.down.weight", "MNIST")
        assert switch.data().tobytes() == saved["down_proj_MNIST.weight"].numpy().tobytes()


def test_a_matrix_alone_is_taken_as_well(folder: Path, run: Run) -> None:
    def only(saved: dict[str, Tensor]) -> None:
        for name in [name for name in saved if name != "lambdas_raw"]:
            del saved[name]

    save_tinting(folder / "lambdas.pth", change=only)
    with (
        tsw.open(imported(folder, run, "--name", "adamerging", tinting="lambdas.pth")) as file,
        tsw.open(folder / "all.tsw") as before,
    ):
        assert list(file.tables) == ["adamerging"]
        assert all(file.keys(task) == before.keys(task) for task in TASKS)


def test_rows_may_be_those_of_a_state_dict(folder: Path, run: Run) -> None:
    """Its order counts; tied names are there once, as named_parameters() gives them."""
    out = imported(folder, run)
    wanted = out.read_bytes()
    parameters = {name: tensor.detach() for name, tensor in Encoder(0).named_parameters()}
    torch.save({**parameters, "tied": parameters["stem.weight"]}, folder / "rows.pt")
    assert imported(folder, run, "--rows", folder / "rows.pt").read_bytes() == wanted


def removed(name: str) -> Callable[[Any], None]:
    return lambda saved: saved.pop(name)


def added(name: str, value: Any = None) -> Callable[[Any], None]:
    return lambda saved: saved.update({name: torch.zeros(3) if value is None else value})


NAN = torch.full((6, 3), float("nan"))
BAD: list[tuple[Any, tuple[str, ...], int, str]] = [
    (removed("lambdas_raw"), (), 1, "expected the tensor 'lambdas_raw', which Model Tinting's code saves, found none"),
    (added("lambdas_raw"), (), 1, "tensor 'lambdas_raw': expected F32[tensors, tasks], found F32[3]"),
    (added("lambdas_raw", torch.zeros(6, 3).double()), (), 1, "expected F32[tensors, tasks], found F64[6, 3]"),
    (added("lambdas_raw", NAN), (), 2, "expected finite numbers"),
    (added("lambdas_raw", torch.zeros(5, 3)), (), 2, "a row for each of 6 tensors and a column for each of 3 tasks"),
    (
        None,
        ("--tasks", "cars,MNIST"),
        1,
        "tensor 'classifier_EMNIST.bias': expected a layer of 'cars', 'MNIST'",
    ),
    (None, ("--tasks", "cars,MNIST,EMNIST,more"), 1, "expected layers of each task, found none of 'more'"),
    (None, ("--tasks", "cars,MNIST,EMNIST,cars"), 2, "tasks: expected each name once, found 'cars' twice"),
    (None, ("--tasks", " , "), 2, "tasks: expected those of the matrix's columns, found none"),
    (added("classifier_pets.weight"), (), 1, "tensor 'classifier_pets.weight': expected a layer of"),
    (removed("classifier_MNIST.weight"), (), 0, ""),
    (added("classifier_cars.weight", torch.zeros(2)), ("--layer-name", "classifier_{task}.=head."), 0, ""),
    (
        None,
        ("--layer-name", "head_{task}.=head."),
        2,
        "expected layers that begin with 'head_{task}.', found none among",
    ),
    (None, ("--layer-name", "classifier_{task}.weight=classifier_{task}.bias"), 2, "'classifier_EMNIST.bias' twice"),
    (None, ("--layer-name", "classifier_{task}.=stem."), 2, "task 'EMNIST' has tensor 'stem.bias' already"),
    (None, ("--layer-name", "head."), 2, "expected OLD=NEW"),
    (None, ("--name", "a\nb"), 2, "a control character"),
]


@pytest.mark.parametrize(("change", "more", "code", "message"), BAD)
def test_what_does_not_fit(change: Any, more: tuple[str, ...], code: int, message: str, folder: Path, run: Run) -> None:
    save_tinting(folder / "bad.pth", change=change)
    out = folder / "bad.tsw"
    columns = ("--tasks", ",".join(COLUMNS)) if "--tasks" not in more else ()
    given = (folder / "all.tsw", folder / "bad.pth", "-o", out, "--rows", folder / "rows.txt", *columns)
    result = run("tint", "import", *given, *more)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert out.exists() == (code == 0)


def test_tasks_and_rows_that_are_not_there(folder: Path, run: Run) -> None:
    def other(saved: dict[str, Tensor]) -> None:
        for part in ("weight", "bias"):
            saved[f"classifier_Cars.{part}"] = saved.pop(f"classifier_cars.{part}")

    save_tinting(folder / "other.pth", change=other)
    out = folder / "x.tsw"
    result = run(
        *("tint", "import", folder / "all.tsw", folder / "other.pth", "-o", out),
        *("--rows", folder / "rows.txt", "--tasks", "Cars,MNIST,EMNIST"),
    )
    assert result.exit_code == 1 and "no task named 'Cars' among 3; did you mean 'cars'?" in result.stderr
    wrong = folder / "wrong.txt"
    given = ("tint", "import", folder / "all.tsw", folder / "tinting.pth", "-o", out, "--tasks", ",".join(COLUMNS))
    for text, message in (
        ("\n".join(["visual." + rows()[0], *rows()[1:]]), "rows: no tensor named 'visual.stem.weight' among"),
        ("\n".join(rows()[1:]), "a row for each of 5 tensors"),
        ("\n".join([*rows()[1:], rows()[1]]), "rows: expected each name once, found 'stem.bias' twice"),
        ("", "rows: expected names, at least one"),
    ):
        wrong.write_text(text, encoding="utf-8")
        result = run(*given, "--rows", wrong)
        assert result.exit_code in (1, 2) and message in result.stderr
    wrong.write_bytes(b"\xff\xfe")
    result = run(*given, "--rows", wrong)
    assert (
        result.exit_code == 1
        and "wrong.txt: expected UTF-8 text, a name a line, found other bytes at 0" in result.stderr
    )
    result = run(*given, "--rows", folder / "base.safetensors")
    assert result.exit_code == 1 and "have lost the model's order; write those of named_parameters()" in result.stderr
    result = run(*given, "--rows", folder / "nothing.txt")
    assert result.exit_code == 1 and "nothing.txt: No such file" in result.stderr
    assert not out.exists()


def test_inputs_are_not_written_over(folder: Path, run: Run) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    columns = ("--rows", folder / "rows.txt", "--tasks", ",".join(COLUMNS))
    for name in ("all.tsw", "tinting.pth", "rows.txt"):
        result = run("tint", "import", folder / "all.tsw", folder / "tinting.pth", "-o", folder / name, *columns)
        assert result.exit_code == 1, result.output
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_pickle_that_runs_code_is_refused(folder: Path, run: Run) -> None:
    (folder / "evil.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    result = run(
        *("tint", "import", folder / "all.tsw", folder / "evil.pth", "-o", folder / "x.tsw"),
        *("--rows", folder / "rows.txt", "--tasks", ",".join(COLUMNS)),
    )
    assert result.exit_code == 1 and "evil.pth: expected a file of tensors by torch.save" in result.stderr


def test_add_takes_a_matrix(folder: Path, run: Run) -> None:
    values = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    np.save(folder / "values.npy", values)
    save_file({"any": torch.from_numpy(values)}, folder / "values.safetensors")
    made = []
    for name in ("values.npy", "values.safetensors"):
        out = folder / "added.tsw"
        out.unlink(missing_ok=True)
        given = ("--rows", folder / "rows.txt", "--tasks", "MNIST, cars", "--name", "adamerging", "--clamp", "-0.5,1")
        result = run("tint", "add", folder / "all.tsw", folder / name, "-o", out, *given)
        assert result.exit_code == 0, result.output
        assert "table adamerging of 6 tensors and 2 tasks added, clamped to -0.5..1" in result.stdout
        made.append(out.read_bytes())
    assert made[0] == made[1]
    with tsw.open(folder / "added.tsw") as file:
        table = file.tables["adamerging"]
        assert (table.tasks, table.clamp) == (("MNIST", "cars"), (-0.5, 1.0))
        assert table.coefficient("cars", rows()[0]) == float(np.clip(values[0, 1], np.float32(-0.5), np.float32(1)))
    given = (
        "tint",
        "add",
        folder / "all.tsw",
        folder / "values.npy",
        "-o",
        folder / "x.tsw",
        "--rows",
        folder / "rows.txt",
    )
    for more, code, message in (
        (("--tasks", "MNIST"), 2, "a column for each of 1 tasks, [6, 1], found [6, 2]"),
        (("--tasks", "MNIST,pets"), 1, "no task named 'pets' among 3"),
        (("--tasks", "MNIST,cars", "--clamp", "1,0"), 2, "the first not above the second"),
        (("--tasks", "MNIST,cars", "--clamp", "1"), 2, "expected two numbers, such as 0,1, found '1'"),
        (("--tasks", ","), 2, "tasks: expected names, at least one"),
    ):
        result = run(*given, *more)
        assert result.exit_code == code and message in result.stderr, result.output
    assert not (folder / "x.tsw").exists()


def test_restore_says_what_does_not_go_together(folder: Path, run: Run) -> None:
    tinted = imported(folder, run)
    given = ("restore", folder / "base.safetensors", tinted, "-o", folder / "x.safetensors")
    for more, code, message in (
        (("--table", "tinting", "--task", "cars"), 2, "tasks: expected none beside a table"),
        (("--layers", "cars"), 2, "layers: expected a table too"),
        (("--table", "tint"), 1, "no table named 'tint' among 1; did you mean 'tinting'?"),
        (("--table", "tinting", "--layers", "pets"), 1, "no task named 'pets' among 3"),
    ):
        result = run(*given, *more)
        assert result.exit_code == code and message in result.stderr, result.output
    assert not (folder / "x.safetensors").exists()


def test_info_shows_tables(folder: Path, run: Run) -> None:
    tinted = imported(folder, run)
    result = run("info", tinted)
    assert result.exit_code == 0, result.output
    with tsw.open(tinted) as file:
        values = file.tables["tinting"].values
    least, greatest = float(values.min()), float(values.max())
    said = f"table tinting: 6 tensors, tasks cars, MNIST, EMNIST; {least:.3g} to {greatest:.3g}, clamped to 0 to 1"
    assert said in result.stdout
    [table] = json.loads(run("info", tinted, "--json").stdout)["tables"]
    assert table == {
        "name": "tinting",
        "rows": 6,
        "tasks": list(COLUMNS),
        "clamp": [0.0, 1.0],
        "least": least,
        "greatest": greatest,
    }
    assert json.loads(run("info", folder / "all.tsw", "--json").stdout)["tables"] == []


def test_diff_knows_tables_and_routers(folder: Path, run: Run) -> None:
    plain, tinted = folder / "all.tsw", imported(folder, run)
    with tsw.open(tinted) as file:
        table = file.tables["tinting"]
    said = {"rows": table.rows, "tasks": table.tasks, "clamp": table.clamp}
    same = tsw.add_table(plain, folder / "same.tsw", "tinting", table.values, **said)  # type: ignore[arg-type]
    other = tsw.add_table(plain, folder / "other.tsw", "tinting", table.values * 2, **said)  # type: ignore[arg-type]
    routed = tsw.add_router(same, folder / "routed.tsw", {"cars": np.eye(2, dtype=np.float32)})
    assert run("diff", same, same).exit_code == 0
    for one, two, line in (
        (same, other, "table tinting: differs"),
        (plain, other, "table tinting: only in b"),
        (other, plain, "table tinting: only in a"),
        (routed, same, "router: only in a"),
    ):
        result = run("diff", one, two)
        assert result.exit_code == 1 and f"base: same\n{line}\ntask " in result.stdout
        assert json.loads(run("diff", one, two, "--json").stdout)["same"] is False
    assert tsw.validate(routed).ok
