"""`tsw tall` and `tsw emr`: TALL masks in every form come in, with experts or their vector, and go out to the byte."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from make_tall_fixtures import FOLDER, SMALL
from make_tall_fixtures import masks as fixture_masks
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import tswitch_format as tsw
from tswitch_tools.cli import tsw as command
from tswitch_tools.tall.exporting import export_masks

Array = NDArray[Any]
Arrays = dict[str, Array]
Bools = dict[str, NDArray[np.bool_]]
CHUNK = 1 << 20
TASKS = ("SUN397", "Cars", "MNIST")
LAMBDAS = {"SUN397": 0.2, "Cars": 0.4, "MNIST": 0.6}
# Sorted: a.weight, logit_scale (one element, so what follows begins anywhere in a byte), position_ids (integers), z...
SHAPES = {"z.weight": (13, 11), "logit_scale": (), "a.weight": (6, 4, 2), "z.bias": (13,)}


def run(*arguments: object) -> Result:
    """Run `tsw` in this process."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="tsw")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ok(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def failed(*arguments: object) -> str:
    """The one line that a failure is."""
    result = run(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == ""
    assert result.stderr.startswith("tsw: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def model(seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    base: Arrays = {name: np.asarray(random.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
    return base | {"position_ids": np.arange(21, dtype=np.int64).reshape(3, 7)}


def tuned(base: Mapping[str, Array], seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    made = {
        n: np.asarray(a + 0.02 * (1 + seed) * random.standard_normal(a.shape), a.dtype)
        for n, a in base.items()
        if a.dtype.kind == "f"
    }
    return {n: made.get(n, a) for n, a in base.items()}


class Model:
    """A base, experts and their masks, as files and in NumPy."""

    def __init__(self, folder: Path, base: Arrays) -> None:
        self.folder = folder
        self.base = base
        self.experts = {task: tuned(base, number) for number, task in enumerate(TASKS)}
        self.names = sorted(base)
        save_file(base, self.file)
        for task, expert in self.experts.items():
            save_file(expert, folder / f"{task}.safetensors")
        floats = [name for name in self.names if base[name].dtype.kind == "f"]
        self.vector: Arrays = {name: np.zeros(base[name].shape, np.float32) for name in self.names}
        self.masks: dict[str, Bools] = {t: {n: np.zeros(base[n].shape, np.bool_) for n in base} for t in TASKS}
        for name in floats:
            ptm = base[name]
            mtl = self.experts[TASKS[0]][name] - ptm
            for task in TASKS[1:]:
                mtl = mtl + (self.experts[task][name] - ptm)
            self.vector[name] = np.asarray(mtl)
            for task in TASKS:
                ft = self.experts[task][name]
                self.masks[task][name] = np.asarray(
                    np.abs(ptm - ft) > np.abs((ptm + mtl) - ft) * ptm.dtype.type(LAMBDAS[task])
                )

    @property
    def masks_set(self) -> int:
        """How many of the masks select something."""
        return sum(mask.any() for masks in self.masks.values() for mask in masks.values())

    @property
    def file(self) -> Path:
        return self.folder / "base.safetensors"

    @property
    def with_experts(self) -> list[object]:
        return [x for task in TASKS for x in ("--experts", f"{task}={self.folder / task}.safetensors")]

    def flat(self, tensors: Mapping[str, Array]) -> Array:
        return np.concatenate([tensors[name].reshape(-1) for name in self.names])

    def packed(self) -> Arrays:
        return {task: np.packbits(self.flat(masks)) for task, masks in self.masks.items()}

    def make(self) -> str:
        """By `tsw tall make`; the content id."""
        made = self.folder / "made.tsw"
        lambdas = [x for task, value in LAMBDAS.items() for x in ("--lambda", f"{task}={value}")]
        ok("tall", "make", self.file, *(f"{t}={self.folder / t}.safetensors" for t in TASKS), "-o", made, *lambdas)
        return content(made)


def content(path: Path) -> str:
    assert tsw.validate(path, level="full").ok
    with tsw.open(path) as file:
        assert file.content_id is not None
        return file.content_id


@pytest.fixture
def given(tmp_path: Path) -> Model:
    return Model(tmp_path, model())


# In


def as_npy(path: Path, value: object) -> None:
    with path.open("wb") as stream:
        np.save(stream, value, allow_pickle=True)  # type: ignore[arg-type]


def as_torch(path: Path, value: Any) -> None:
    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensors(one) for key, one in value.items()}
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))

    torch.save(tensors(value), path)


def as_pickle(protocol: int) -> Callable[[Path, object], None]:
    def save(path: Path, value: object) -> None:
        path.write_bytes(pickle.dumps(value, protocol))

    return save


WAYS: dict[str, Callable[[Path, Any], None]] = {
    "npy": as_npy,
    "torch": as_torch,
    **{f"pickle{protocol}": as_pickle(protocol) for protocol in (2, 3, 4, 5)},
}
FORMS: dict[str, Callable[[Model], Any]] = {
    "packed": Model.packed,
    "flat bools": lambda m: {task: m.flat(masks) for task, masks in m.masks.items()},
    "named": lambda m: m.masks,
    "named and flat": lambda m: {t: {n: b.reshape(-1) for n, b in masks.items()} for t, masks in m.masks.items()},
    "floats alone": lambda m: {t: {n: b for n, b in masks.items() if n != "position_ids"} for t, masks in m.masks.items()},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_every_form_comes_in_as_what_tall_make_makes(given: Model, tmp_path: Path, way: str, form: str) -> None:
    WAYS[way](tmp_path / "masks.npy", FORMS[form](given))
    result = ok(
        "tall", "import", tmp_path / "masks.npy", "--base", given.file, *given.with_experts, "-o", tmp_path / "a.tsw"
    )
    assert f" {given.masks_set} masks" in result.stdout
    assert content(tmp_path / "a.tsw") == given.make()
    with tsw.open(tmp_path / "a.tsw") as file:
        assert list(file.tasks) == list(TASKS)


@pytest.mark.parametrize("form", ["packed", "flat bools", "named"])
def test_a_folder_with_a_file_for_each_task(given: Model, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for task, mask in FORMS[form](given).items():
        as_torch(folder / f"{task}.pt", mask)
    (folder / "README.md").write_text("masks")
    for name in ("experts", "vector"):
        save_file({n: v for n, v in given.vector.items() if n != "position_ids"}, tmp_path / "vector.safetensors")
        more = given.with_experts if name == "experts" else ["--multi-task", tmp_path / "vector.safetensors"]
        ok("tall", "import", folder, "--base", given.file, *more, "-o", tmp_path / f"{name}.tsw", "-q")
    # The order of the masks is that of the sum: by name here.
    assert_same_masks(tmp_path / "experts.tsw", given)
    assert content(tmp_path / "vector.tsw") == given.make()


def assert_same_masks(path: Path, given: Model) -> None:
    with tsw.open(path) as file:
        for task, masks in given.masks.items():
            for name, mask in masks.items():
                if mask.any():
                    assert np.array_equal(file.switch(name, task).mask(), mask)
                    assert np.allclose(file.switch(name, task).vector(), given.vector[name], atol=1e-7)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_the_vector_as_a_checkpoint_or_as_numbers(given: Model, tmp_path: Path, kind: str, profile: str) -> None:
    as_npy(tmp_path / "m.npy", given.packed())
    np.save(tmp_path / "flat.npy", given.flat(given.vector).astype(kind))
    save_file({n: v.astype(kind) for n, v in given.vector.items()}, tmp_path / "v.safetensors")
    torch.save({n: torch.from_numpy(v.astype(kind)) for n, v in given.vector.items()}, tmp_path / "v.pt")
    wanted = given.make()
    for vector in ("flat.npy", "v.safetensors", "v.pt"):
        ok(
            *("tall", "import", tmp_path / "m.npy", "--base", given.file, "--multi-task", tmp_path / vector),
            *("-o", tmp_path / "a.tsw", "--profile", profile),
        )
        assert content(tmp_path / "a.tsw") == wanted


def test_f64_tensors_take_a_vector_of_f32(tmp_path: Path) -> None:
    base = {"w": np.arange(5.0), "v": np.ones(3, np.float32)}
    save_file(base, tmp_path / "b.safetensors")
    as_npy(tmp_path / "m.npy", {"t": np.packbits(np.ones(8, bool))})
    vector = np.linspace(0, 1, 8, dtype=np.float32)
    np.save(tmp_path / "flat.npy", vector)
    save_file({"v": vector[:3], "w": vector[3:]}, tmp_path / "v.safetensors")
    ids = set()
    for name in ("flat.npy", "v.safetensors"):
        more = ["--multi-task", tmp_path / name, "-o", tmp_path / "a.tsw"]
        ok("tall", "import", tmp_path / "m.npy", "--base", tmp_path / "b.safetensors", *more)
        ids.add(content(tmp_path / "a.tsw"))
        with tsw.open(tmp_path / "a.tsw") as file:
            assert np.array_equal(file.switch("w").vector(), vector[3:].astype(np.float64))
    assert len(ids) == 1


def test_a_restored_expert_is_what_numpy_makes(given: Model, tmp_path: Path) -> None:
    as_npy(tmp_path / "m.npy", given.packed())
    ok("tall", "import", tmp_path / "m.npy", "--base", given.file, *given.with_experts, "-o", tmp_path / "a.tsw")
    for task in TASKS:
        ok("restore", given.file, tmp_path / "a.tsw", "-o", tmp_path / "r.safetensors", "--task", task)
        made = load_file(tmp_path / "r.safetensors")
        assert made.keys() == given.base.keys()
        for name, tensor in given.base.items():
            wanted = tensor + given.masks[task][name] * given.vector[name] if tensor.dtype.kind == "f" else tensor
            assert made[name].dtype == tensor.dtype
            assert np.array_equal(made[name], wanted)


def test_tensors_of_several_chunks_that_begin_inside_a_byte(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    base = {"a": np.zeros((), np.float32), "b": random.standard_normal(2 * CHUNK + 3, np.float32)}
    base["c"] = random.standard_normal((3, 5), np.float32)
    given = Model(tmp_path, base)
    as_npy(tmp_path / "m.npy", given.packed())
    ok("tall", "import", tmp_path / "m.npy", "--base", given.file, *given.with_experts, "-o", tmp_path / "a.tsw")
    assert content(tmp_path / "a.tsw") == given.make()
    ok("tall", "export", tmp_path / "a.tsw", "-o", tmp_path / "out.npy", "--numpy", 2)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "m.npy").read_bytes()


def tied_model(folder: Path) -> Path:
    shared = torch.arange(10, dtype=torch.float32)
    torch.save({"head": shared, "ids": torch.arange(3), "body": torch.ones(7), "embed": shared}, folder / "base.pt")
    return folder / "base.pt"


def test_a_tied_tensor_has_its_bits_twice(tmp_path: Path) -> None:
    base = tied_model(tmp_path)
    mask = np.random.default_rng(0).random(10) < 0.5
    bits = np.concatenate([np.ones(7, bool), mask, mask, np.zeros(3, bool)])  # body, embed, head, ids
    np.save(tmp_path / "v.npy", np.concatenate([np.ones(7), np.arange(10), np.arange(10), np.zeros(3)]))
    more = ["--base", base, "--multi-task", tmp_path / "v.npy", "-o", tmp_path / "a.tsw"]
    as_npy(tmp_path / "m.npy", {"t": np.packbits(bits)})
    ok("tall", "import", tmp_path / "m.npy", *more)
    wanted = content(tmp_path / "a.tsw")
    with tsw.open(tmp_path / "a.tsw") as file:
        assert len(file.base.aliases) == 1
        assert np.array_equal(file.switch("head").mask(), mask)
        assert np.array_equal(file.switch("embed").mask(), mask)
    ok("tall", "export", tmp_path / "a.tsw", "-o", tmp_path / "out.npy", "--numpy", 2)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "m.npy").read_bytes()
    for names in (("embed", "head"), ("embed",), ("head",)):  # named_parameters() gives only one of the two
        as_torch(tmp_path / "n.pt", {"t": {"body": np.ones(7, bool)} | dict.fromkeys(names, mask)})
        ok("tall", "import", tmp_path / "n.pt", *more)
        assert content(tmp_path / "a.tsw") == wanted
    bits[7:17] = ~mask
    as_npy(tmp_path / "m.npy", {"t": np.packbits(bits)})
    assert "are tied in the base: expected the same mask" in failed("tall", "import", tmp_path / "m.npy", *more)


# What is refused


def spoiled(given: Model, tensor: str | None = None, **changes: Callable[[Array], Array]) -> Any:
    masks = given.packed()
    return masks | {task: change(masks[task]) for task, change in changes.items()}


def with_bit(given: Model, at: int) -> Callable[[Array], Array]:
    def change(mask: Array) -> Array:
        bits = np.unpackbits(mask)
        bits[at] = 1
        return np.packbits(bits)

    return change


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (lambda m: spoiled(m, Cars=lambda mask: mask[:-1]), "task 'Cars': expected 29 bytes.*found 28.*give the base"),
        (lambda m: spoiled(m, Cars=lambda mask: np.append(mask, mask[:1])), "found 30"),
        (lambda m: spoiled(m, MNIST=lambda mask: mask[:0]), "found 0"),
        (lambda m: spoiled(m, MNIST=with_bit(m, 231)), "task 'MNIST': expected 6 zero bits.*found 000001"),
        (lambda m: spoiled(m, MNIST=with_bit(m, 49 + 20)), r"task 'MNIST': tensor 'position_ids' \(I64\[3, 7\]\)"),
        (lambda m: {"x": m.packed()["Cars"]}, "expected an expert for each task, found none for 'x'; add --experts x="),
        (lambda m: {t: k for t, k in m.packed().items() if t != "Cars"}, "found 'Cars'; leave it out"),
        (lambda m: {"MNIST": np.zeros(227, bool)}, "expected a mask of 226 elements, found 227"),
        (lambda m: {"MNIST": {"a.weigth": np.zeros((6, 4, 2), bool)}}, "'a.weigth'.*a.weight"),
        (lambda m: {"MNIST": {"a.weight": np.zeros((4, 6, 2), bool)}}, r"shape \[6, 4, 2\], found \[4, 6, 2\]"),
        (lambda m: {"MNIST": {"position_ids": np.ones((3, 7), bool)}}, "no element of an integer tensor to be active"),
        (lambda m: {"MNIST": np.zeros(226)}, "float64|f8|uint8"),
        (lambda m: {}, "empty"),
        (lambda m: {"MNIST": np.zeros((2, 15), np.uint8)}, "one dimension"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    given: Model, tmp_path: Path, masks: Callable[[Model], Any], message: str
) -> None:
    as_npy(tmp_path / "m.npy", masks(given))
    before = sorted(path.name for path in tmp_path.iterdir())
    found = failed(
        "tall", "import", tmp_path / "m.npy", "--base", given.file, *given.with_experts, "-o", tmp_path / "a.tsw"
    )
    assert re.search(message, found), found
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_it_must_be_experts_or_a_vector(given: Model, tmp_path: Path) -> None:
    as_npy(tmp_path / "m.npy", given.packed())
    np.save(tmp_path / "v.npy", given.flat(given.vector))
    start = ("tall", "import", tmp_path / "m.npy", "--base", given.file, "-o", tmp_path / "a.tsw")
    wanted = "--experts NAME=PATH for each of SUN397, Cars, MNIST"
    assert wanted in failed(*start)
    assert wanted in failed(*start, *given.with_experts, "--multi-task", tmp_path / "v.npy")
    assert not (tmp_path / "a.tsw").exists()


def test_no_input_is_written_over(given: Model, tmp_path: Path) -> None:
    as_npy(tmp_path / "m.npy", given.packed())
    np.save(tmp_path / "v.npy", given.flat(given.vector))
    (tmp_path / "folder").mkdir()
    as_torch(tmp_path / "folder" / "Cars.pt", given.packed()["Cars"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for masks, vector, out in (
        ("m.npy", "v.npy", "m.npy"),
        ("m.npy", "v.npy", "v.npy"),
        ("m.npy", "v.npy", "base.safetensors"),
        ("m.npy", None, "m.npy"),
        ("m.npy", None, "Cars.safetensors"),
        ("folder", "v.npy", "folder/Cars.pt"),
    ):
        more = given.with_experts if vector is None else ["--multi-task", tmp_path / vector]
        start = ("tall", "import", tmp_path / masks, "--base", given.file, *more)
        assert "the output is one of the inputs" in failed(*start, "-o", tmp_path / out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    start = ("tall", "import", tmp_path / "m.npy", "--base", given.file, "--multi-task", tmp_path / "v.npy")
    assert "--ties: the vector is given" in failed(*start, "--ties", "-o", tmp_path / "a.tsw")


def test_diff_names_the_vector(given: Model, tmp_path: Path) -> None:
    as_npy(tmp_path / "m.npy", given.packed())
    start = ("tall", "import", tmp_path / "m.npy", "--base", given.file, *given.with_experts)
    ok(*start, "-o", tmp_path / "a.tsw")
    ok(*start, "-o", tmp_path / "b.tsw", "--shared-dtype", "bf16")
    text = run("diff", tmp_path / "a.tsw", tmp_path / "b.tsw").stdout
    assert "a.weight: vector differs" in text
    assert "mask" not in text
    zeros = {"w": np.zeros(4, np.float32)}
    task = tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(np.ones(4))})
    for kind in (np.float16, np.float32):
        of = {"w": tsw.GivenVector.of_array(np.zeros(4, kind))}
        tsw.build(zeros, tmp_path / f"{np.dtype(kind).name}.tsw", [task], vectors=of)
    text = run("diff", tmp_path / "float16.tsw", tmp_path / "float32.tsw").stdout
    assert "w: vector differs" in text


def test_vectors_that_do_not_fit_are_refused(given: Model, tmp_path: Path) -> None:
    as_npy(tmp_path / "m.npy", given.packed())
    flat = given.flat(given.vector).astype(np.float32)
    start = ("tall", "import", tmp_path / "m.npy", "--base", given.file, "-o", tmp_path / "a.tsw", "--multi-task")
    for array in (flat[:-1], flat.reshape(2, -1), flat.astype(np.int32), flat.astype(np.float16)):
        np.save(tmp_path / "v.npy", array)
        assert "expected a vector of 226 f32 or f64 numbers" in failed(*start, tmp_path / "v.npy")
    as_npy(tmp_path / "v.npy", {"t": flat})
    assert "expected an NPY file of floats" in failed(*start, tmp_path / "v.npy")
    bad = flat.copy()
    bad[0] = np.nan
    np.save(tmp_path / "v.npy", bad)
    assert "'a.weight': expected a vector that F32 can hold, found nan" in failed(*start, tmp_path / "v.npy")
    for change in ({"z.bias": np.zeros(14, np.float32)}, {"z.bias": np.zeros(13, np.int32)}):
        save_file(dict(given.vector) | change, tmp_path / "v.safetensors")
        assert "tensor 'z.bias': expected the multi-task vector" in failed(*start, tmp_path / "v.safetensors")
    save_file({n: v for n, v in given.vector.items() if n != "z.bias"}, tmp_path / "v.safetensors")
    assert "found none; give a vector of the same base" in failed(*start, tmp_path / "v.safetensors")
    failed(*start, tmp_path / "absent.npy")
    assert not (tmp_path / "a.tsw").exists()


# Out


def test_export_is_np_save_of_numpy_2(given: Model, tmp_path: Path) -> None:
    given.make()
    result = ok("tall", "export", given.folder / "made.tsw", "-o", tmp_path / "out.npy", "--numpy", 2)
    wanted = io.BytesIO()
    np.save(wanted, given.packed(), allow_pickle=True)  # type: ignore[arg-type]
    assert (tmp_path / "out.npy").read_bytes() == wanted.getvalue()
    assert "masks of 3 tasks, as NumPy 2 writes them" in result.stdout
    assert "multi-task vector that the masks select from is not in the file" in result.stderr
    loaded = np.load(tmp_path / "out.npy", allow_pickle=True).item()
    assert list(loaded) == list(TASKS)
    some = ok("tall", "export", given.folder / "made.tsw", "-o", tmp_path / "one.npy", "--task", "Cars", "-q")
    assert (some.stdout, some.stderr) == ("", "")
    assert list(np.load(tmp_path / "one.npy", allow_pickle=True).item()) == ["Cars"]
    more = ("tall", "export", given.folder / "made.tsw", "-o", tmp_path / "no.npy")
    assert "'SVHN'" in failed(*more, "--task", "SVHN")
    assert "found 'Cars' twice" in failed(*more, "--task", "Cars", "--task", "Cars")
    assert not (tmp_path / "no.npy").exists()
    assert "input" in failed("tall", "export", given.folder / "made.tsw", "-o", given.folder / "made.tsw")


@pytest.mark.parametrize("name", ["eight", "two", "one", "byte"])
@pytest.mark.parametrize("numpy", [1, 2])
def test_stored_files_of_numpy_come_in_and_go_out_to_the_byte(tmp_path: Path, name: str, numpy: int) -> None:
    tasks, elements = SMALL[name]
    stored = FOLDER / f"numpy{numpy}" / f"{name}.npy"
    base = {"a": np.zeros(3, np.float32), "b": np.zeros(elements - 3, np.float32)}
    save_file(base, tmp_path / "base.safetensors")
    np.save(tmp_path / "v.npy", np.arange(1, elements + 1, dtype=np.float32))
    more = ["--multi-task", tmp_path / "v.npy", "-o", tmp_path / "a.tsw"]
    ok("tall", "import", stored, "--base", tmp_path / "base.safetensors", *more)
    with tsw.open(tmp_path / "a.tsw") as file:
        for task, packed in fixture_masks(tasks, elements).items():
            bits = np.unpackbits(packed)[:elements].astype(bool)
            for tensor, part in (("a", bits[:3]), ("b", bits[3:])):
                if part.any():
                    assert np.array_equal(file.switch(tensor, task).mask(), part)
    ok("tall", "export", tmp_path / "a.tsw", "-o", tmp_path / "out.npy", "--numpy", numpy)
    assert (tmp_path / "out.npy").read_bytes() == stored.read_bytes()


def test_activation_masks_of_switches_are_said_to_be_no_tall_masks(given: Model, tmp_path: Path) -> None:
    ok("pack", given.file, tmp_path / "Cars.safetensors", "-o", tmp_path / "p.tsw", "--task", "Cars")
    result = ok("tall", "export", tmp_path / "p.tsw", "-o", tmp_path / "out.npy")
    assert "these are activation masks of switches, not TALL masks" in result.stderr
    bits = np.unpackbits(np.load(tmp_path / "out.npy", allow_pickle=True).item()["Cars"])[:226]
    with tsw.open(tmp_path / "p.tsw") as file:
        changed = set(file.keys())
        masks = {
            n: file.switch(n).mask() if n in changed else np.zeros(tensor.shape, bool)
            for n, tensor in given.base.items()
        }
    assert np.array_equal(bits, given.flat(masks))


def test_scales_that_are_left_out_are_said(given: Model, tmp_path: Path) -> None:
    experts = [tmp_path / f"{task}.safetensors" for task in TASKS]
    ok("emr", "make", given.file, *experts, "-o", tmp_path / "e.tsw", "-q")
    result = ok("tall", "export", tmp_path / "e.tsw", "-o", tmp_path / "out.npy")
    assert f"the scales of 3 tasks, {min(TASKS)!r} first, are left out, so these are not TALL masks" in result.stderr
    given.make()
    assert "scale" not in ok("tall", "export", given.folder / "made.tsw", "-o", tmp_path / "out.npy").stderr


def test_export_tells_its_progress(given: Model, tmp_path: Path) -> None:
    given.make()
    seen: list[tuple[int, int]] = []
    with tsw.open(given.folder / "made.tsw") as file:
        export_masks(file, file.tasks, tmp_path / "out.npy", 1, progress=lambda *counts: seen.append(counts))
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)]
    assert len(seen) % len(TASKS) == 0 and seen


# Making


def test_make_says_what_it_made(given: Model, tmp_path: Path) -> None:
    experts = [tmp_path / f"{task}.safetensors" for task in TASKS]
    arguments = ["-o", tmp_path / "a.tsw", "--threads", 2, "--lambda", 0.4]
    result = ok("tall", "make", given.file, *experts, *arguments, *(f"--lambda={t}={x}" for t, x in LAMBDAS.items()))
    assert f"3 tasks, {given.masks_set} masks, 0 dense" in result.stdout
    result = ok("emr", "make", given.file, *experts, "-o", tmp_path / "e.tsw", "--shared-dtype", "f16")
    assert "3 tasks, " in result.stdout
    assert " masks, 0 dense" in result.stdout
    for name in ("a", "e"):
        content(tmp_path / f"{name}.tsw")
        assert ok("info", tmp_path / f"{name}.tsw").stdout
        assert ok("validate", tmp_path / f"{name}.tsw").stdout
    assert run("diff", tmp_path / "a.tsw", tmp_path / "e.tsw").exit_code == 1
    ok("diff", tmp_path / "a.tsw", tmp_path / "a.tsw")
    with tsw.open(tmp_path / "a.tsw") as file:
        assert file.recipe("Cars") == {"method": "tall-masks", "vector": "sum", "tasks": "3", "lambda": "0.4"}
    with tsw.open(tmp_path / "e.tsw") as file:
        assert file.recipe("Cars") == {"method": "emr-merging", "tasks": "3"}
        assert {file.switch(n, "Cars").vector().dtype for n in file.keys("Cars")} == {np.dtype(np.float16)}
    assert ok("tall", "make", given.file, *experts, "-o", tmp_path / "t.tsw", "--ties", "-q").stdout == ""
    with tsw.open(tmp_path / "t.tsw") as file:
        assert file.recipe("Cars")["vector"] == "ties"


def test_info_shares_the_vectors_out(given: Model, tmp_path: Path) -> None:
    given.make()
    document = json.loads(ok("info", given.folder / "made.tsw", "--json", "--tensors").stdout)
    size = (given.folder / "made.tsw").stat().st_size
    assert abs(sum(task["bytes"] for task in document["tasks"]) - size) <= len(TASKS)
    assert document["shared"]["arrays"] == 4
    assert document["shared"]["elements"] == 205
    assert document["shared"]["dtypes"] == ["F32"]
    assert abs(sum(task["shared_bytes"] for task in document["tasks"]) - document["shared"]["bytes"]) <= len(TASKS)
    for task in document["tasks"]:
        masks = given.masks[task["name"]]
        assert task["active"] == sum(int(mask.sum()) for mask in masks.values())
        assert task["select"] == "tall-masks"
        for entry in task["entries"]:
            assert entry["kind"] == "masked"
            assert entry["density"] == pytest.approx(masks[entry["name"]].mean())


def test_a_module_is_as_good_as_a_file(tmp_path: Path) -> None:
    modules = [torch.nn.Linear(5, 7) for _ in range(3)]
    files = []
    for number, module in enumerate(modules):
        save_file({n: t.numpy() for n, t in module.state_dict().items()}, tmp_path / f"{number}.safetensors")
        files.append(tmp_path / f"{number}.safetensors")
    ids = {tsw.make_emr(of[0], {"x": of[1], "y": of[2]}, tmp_path / "a.tsw").content_id for of in (modules, files)}
    assert len(ids) == 1


def test_import_with_ties(given: Model, tmp_path: Path) -> None:
    experts = [f"{task}={tmp_path / task}.safetensors" for task in TASKS]
    ok("tall", "make", given.file, *experts, "-o", tmp_path / "t.tsw", "--ties")
    ok("tall", "export", tmp_path / "t.tsw", "-o", tmp_path / "m.npy")
    start = ("tall", "import", tmp_path / "m.npy", "--base", given.file)
    ok(*start, *given.with_experts, "-o", tmp_path / "a.tsw", "--ties")
    assert content(tmp_path / "a.tsw") == content(tmp_path / "t.tsw")
    ok(*start, *given.with_experts, "-o", tmp_path / "b.tsw")
    assert content(tmp_path / "b.tsw") != content(tmp_path / "t.tsw")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lambda", "x=y"], 2, "expected X or NAME=X with a number X"),
        (["--lambda", "nobody=0.3"], 2, "expected one of the tasks SUN397, found 'nobody'"),
        (["--lambda", "-1"], 2, "expected a finite number from 0 up"),
        (["--lambda", "nan"], 2, "expected a finite number from 0 up"),
        (["--shared-dtype", "f8"], 2, "f8"),
        (["--dense", "zz"], 2, "pattern 'zz' matches none"),
    ],
)
def test_wrong_options(given: Model, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    result = run("tall", "make", given.file, tmp_path / "SUN397.safetensors", "-o", tmp_path / "a.tsw", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "a.tsw").exists()
    same = tmp_path / "SUN397.safetensors"
    twice = run("tall", "make", given.file, same, same, "-o", tmp_path / "a.tsw")
    assert twice.exit_code == 2
    assert "'SUN397' twice" in twice.stderr
