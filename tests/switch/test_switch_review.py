"""Refusals that change nothing, readers that stay open, ties by any name, slices, fallbacks and bounded waiting."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from switch_models import Arrays, files_in, load, model, same, same_array, save, tuned

import tswitch_format as tsw
from tswitch_format._parallel import _WAITING_BYTES, ordered_map
from tswitch_format.atomic import AtomicFile
from tswitch_format.checkpoint import ArrayCheckpoint, open_checkpoint
from tswitch_format.container.reader import Container

Numbers = list[int]


# --- apply and restore: all or nothing ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Arrays, Path]:
    """A base of one tensor in two chunks, and a file; its segments are two masks, then two planes of signs."""
    rng = np.random.default_rng(0)
    base = {"w": np.zeros((3, 1 << 19), np.float32)}
    expert = base["w"].copy()
    expert.flat[rng.choice(expert.size, 2000, replace=False)] = rng.standard_normal(2000)
    path = tmp_path_factory.mktemp("wide") / "wide.tsw"
    tsw.pack(base, {"w": expert}, path, density=1, knob_per="tensor")
    return base, path


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("backend", ["pread", "mmap"])
def test_a_damaged_second_chunk_leaves_an_array_in_place_as_it_was(
    tmp_path: Path, wide: tuple[Arrays, Path], number: int, backend: Any
) -> None:
    base, path = wide
    with tsw.open(path) as file:
        record = file.container.index.tasks[0].segments[number]
        at = int(record["offset"]) + int(record["length"]) // 2
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    (tmp_path / "bad.tsw").write_bytes(data)
    array, out = base["w"].copy(), np.ones_like(base["w"])
    with tsw.open(tmp_path / "bad.tsw", backend=backend) as file:
        for target in (array, out):
            with pytest.raises(tsw.FormatError, match=rf"tasks\[0\]\.segments\[{number}\].*\[TSW-701\]"):
                file.switch("w").apply(array, out=target)
    assert same_array(array, base["w"])
    assert (out == 1).all()


def test_apply_in_place_is_apply(wide: tuple[Arrays, Path]) -> None:
    base, path = wide
    array = base["w"].copy()
    with tsw.open(path) as file:
        made = file.switch("w").apply(base["w"])
        assert file.switch("w").apply(array, out=array) is array
    assert same_array(array, made)
    assert not base["w"].any()


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("name", "make", "found"),
    [
        ("w", lambda: read_only(np.ones((4, 5), np.float32)), r"F32\[4, 5\], found a read-only one of float32\[4, 5\]"),
        ("w", lambda: np.ones((4, 5), np.int32), r"F32\[4, 5\], found a one of int32\[4, 5\]"),
        ("w", lambda: np.ones((5, 4), np.float32), r"F32\[4, 5\], found a one of float32\[5, 4\]"),
        ("w", lambda: np.ones((4, 5), ">f4"), r"F32\[4, 5\], found a one of >f4\[4, 5\]"),
        ("b", lambda: np.ones((4, 5), np.float16), r"BF16\[4, 5\], found a one of float16\[4, 5\]"),
        ("b", lambda: read_only(np.ones((4, 5), np.uint16)), r"BF16\[4, 5\], found a read-only one of uint16"),
        ("d", lambda: np.ones((4, 5), np.int32), r"F32\[4, 5\], found a one of int32\[4, 5\]"),
    ],
)
def test_an_out_that_does_not_fit_is_refused_and_left_alone(
    tmp_path: Path, name: str, make: Callable[[], np.ndarray[Any, Any]], found: str
) -> None:
    torch = pytest.importorskip("torch")
    before = {n: np.arange(20, dtype=np.float32).reshape(4, 5) for n in "wbd"}
    base = {n: torch.from_numpy(array).to(torch.bfloat16 if n == "b" else torch.float32) for n, array in before.items()}
    tsw.pack(base, {n: array + 1 for n, array in base.items()}, tmp_path / "x.tsw", density=1, dense=["d"])
    array = (before["b"].view(np.uint32) >> 16).astype(np.uint16) if name == "b" else before[name]
    kept, out = array.copy(), make()
    raw = out.tobytes()
    with tsw.open(tmp_path / "x.tsw") as file:
        with pytest.raises(tsw.OptionError, match=rf"tensor '{name}': expected a writable out of {found}"):
            file.switch(name).apply(array, out=out)
        fitting = np.zeros((4, 5), array.dtype)
        assert file.switch(name).apply(array, out=fitting) is fitting
        assert fitting.any()
    assert out.tobytes() == raw
    assert same_array(array, kept)


def test_a_read_only_array_in_place_is_refused(wide: tuple[Arrays, Path]) -> None:
    base, path = wide
    array = read_only(base["w"].copy())
    with tsw.open(path) as file, pytest.raises(tsw.OptionError, match="found a read-only one of float32"):
        file.switch("w").apply(array, out=array)
    assert same_array(array, base["w"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "coefficient", [1e39, -1e39, float("nan"), float("inf"), float("-inf"), np.float64(1e39), 10**400, "x", None]
)
def test_coefficients_beyond_binary32_are_refused_without_a_warning(tmp_path: Path, coefficient: Any) -> None:
    base = {"w": np.ones((4, 5), np.float32), "h": np.ones(7, np.float16)}
    tsw.pack(base, tuned(base), tmp_path / "x.tsw", density=1)
    before = files_in(tmp_path)
    with tsw.open(tmp_path / "x.tsw") as file:
        for name, array in base.items():
            kept = array.copy()
            with pytest.raises(tsw.OptionError, match=rf"tensor '{name}': expected a finite coefficient, found "):
                file.switch(name).apply(array, coefficient, out=array)
            with pytest.raises(tsw.OptionError, match=rf"tensor '{name}': expected a finite coefficient, found "):
                file.switch(name).delta(coefficient)
            assert same_array(array, kept)
    for tasks in ({"task": coefficient}, [("task", coefficient)]):
        with pytest.raises(tsw.OptionError, match=r"task 'task': .*expected a finite coefficient, found "):
            tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors", tasks=tasks)
    assert files_in(tmp_path) == before


# --- readers of the caller ------------------------------------------------------------------------------------


def test_readers_that_the_caller_opened_stay_open(tmp_path: Path) -> None:
    arrays = {"base": model(), "expert": tuned(model()), "other": tuned(model(), 5)}
    arrays["score"] = {name: np.abs(array) for name, array in model().items() if array.dtype.kind == "f"}
    readers = {name: open_checkpoint(save(tmp_path / f"{name}.safetensors", a)) for name, a in arrays.items()}

    def open_still() -> bool:
        for name, reader in readers.items():
            raw = np.empty(reader.specs["wide"].nbytes, np.uint8)
            reader.read_into("wide", 0, raw)
            assert raw.tobytes() == arrays[name]["wide"].tobytes()
        return True

    base, expert, path = readers["base"], readers["expert"], tmp_path / "x.tsw"
    tsw.pack(base, expert, path, score=readers["score"])
    assert open_still()
    assert tsw.validate(path, base=base).ok
    assert open_still()
    tsw.restore(base, path, tmp_path / "out.safetensors")
    assert open_still()
    # Errors do not close them either.
    with pytest.raises(tsw.OutputError, match="the output is one of the inputs"):
        tsw.pack(base, expert, tmp_path / "base.safetensors")
    with pytest.raises(tsw.BaseMismatchError, match="wrong base"):
        tsw.restore(readers["other"], path, tmp_path / "wrong.safetensors")
    assert not tsw.validate(path, base=readers["other"]).ok
    assert open_still()
    for reader in readers.values():
        reader.close()


# --- outputs that are no regular files ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "socket"])
def test_a_special_file_is_no_output_and_stays(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model()
    tsw.pack(base, tuned(base), tmp_path / "x.tsw")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "special.safetensors"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            monkeypatch.chdir(out.parent)  # the names of sockets are short
            listener.bind(out.name)
        else:
            os.mkfifo(tmp_path / "pipe" if kind.startswith("link") else out)
        if kind.startswith("link"):
            out.symlink_to(tmp_path / "pipe")
        before = out.lstat()
        acts: list[Callable[[], Any]] = [
            lambda: AtomicFile(out),
            lambda: tsw.pack(base, tuned(base), out),
            lambda: tsw.bundle([tmp_path / "x.tsw"], out),
            lambda: tsw.repack(tmp_path / "x.tsw", out, profile="mapped"),
            lambda: tsw.restore(base, tmp_path / "x.tsw", out),
        ]
        for act in acts:
            with pytest.raises(
                tsw.OutputError, match=r"special\.safetensors: expected a regular file or none, found a"
            ):
                act()
        after = out.lstat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
        assert not stat.S_ISREG(out.stat().st_mode)
        assert [path.name for path in out.parent.iterdir()] == [out.name]


# --- tied weights ---------------------------------------------------------------------------------------------


def containers(folder: Path, tied: np.ndarray[Any, Any], norm: np.ndarray[Any, Any]) -> Mapping[str, Any]:
    """One model whose tensors `embed` and `lm_head` are tied, as containers list it."""
    swapped = ArrayCheckpoint({"lm_head": tied, "norm": norm})
    swapped.aliases["embed"] = "lm_head"
    return {
        "views": {"lm_head": tied, "embed": tied, "norm": norm},
        "swapped": swapped,
        "embed only": save(folder / "embed.safetensors", {"embed": tied, "norm": norm}),
        "head only": save(folder / "head.safetensors", {"lm_head": tied, "norm": norm}),
    }


NAMES = {
    "views": {"embed", "lm_head"},
    "swapped": {"embed", "lm_head"},
    "embed only": {"embed"},
    "head only": {"lm_head"},
}
PAIRS = [(a, b) for a in NAMES for b in NAMES if NAMES[a] & NAMES[b]]


@pytest.mark.parametrize("dense", [(), ("[el]*",)])
@pytest.mark.parametrize(("packed", "given"), PAIRS)
def test_tied_tensors_are_found_by_any_of_their_names(
    tmp_path: Path, packed: str, given: str, dense: tuple[str, ...]
) -> None:
    tied, norm = np.arange(12, dtype=np.float32).reshape(4, 3), np.ones(3, np.float32)
    changed = (tied + np.where(tied % 3 == 0, -0.5, 0.5)).astype(np.float32)
    (tmp_path / "after").mkdir()
    bases, experts = containers(tmp_path, tied, norm), containers(tmp_path / "after", changed, norm)
    for number, expert in enumerate((packed, given)):
        path, out = tmp_path / f"{number}.tsw", tmp_path / f"{number}.safetensors"
        result = tsw.pack(bases[packed], experts[expert], path, density=1, dense=dense)
        assert (result.switches, result.dense, result.unchanged) == ((0, 1, 1) if dense else (1, 0, 1))
        for level in ("structure", "full"):
            report = tsw.validate(path, level, base=bases[given])  # type: ignore[arg-type]
            assert report.ok, report
        tsw.restore(bases[given], path, out)
        assert same(load(out), {**dict.fromkeys(NAMES[given], changed), "norm": norm})


@pytest.mark.parametrize(("packed", "given"), PAIRS)
def test_a_tied_tensor_of_another_base_is_refused_by_any_of_its_names(tmp_path: Path, packed: str, given: str) -> None:
    tied, norm = np.arange(12, dtype=np.float32).reshape(4, 3), np.ones(3, np.float32)
    bases = containers(tmp_path, tied, norm)
    (tmp_path / "other").mkdir()
    others = containers(tmp_path / "other", tied + 7, norm)
    tsw.pack(bases[packed], {**dict.fromkeys(NAMES[packed], tied + 1), "norm": norm}, tmp_path / "x.tsw", density=1)
    with pytest.raises(tsw.BaseMismatchError, match=r"tensor '(embed|lm_head)': expected sampled digest.*\[TSW-902\]"):
        tsw.restore(others[given], tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert not tsw.validate(tmp_path / "x.tsw", base=others[given]).ok
    assert not (tmp_path / "out.safetensors").exists()


def test_a_name_that_neither_side_ties_is_not_guessed(tmp_path: Path) -> None:
    tied, norm = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    tsw.pack({"embed": tied, "norm": norm}, {"embed": tied * 2, "norm": norm}, tmp_path / "x.tsw")
    with pytest.raises(tsw.BaseMismatchError, match=r"tensor 'lm_head': expected no tensor of that name.*\[TSW-901\]"):
        tsw.restore({"lm_head": tied, "norm": norm}, tmp_path / "x.tsw", tmp_path / "out.safetensors")


def test_three_names_of_which_the_base_has_the_last_two(tmp_path: Path) -> None:
    tied = np.arange(6, dtype=np.float32).reshape(2, 3)
    changed = tied + np.float32(0.5)
    tsw.pack(dict.fromkeys("abc", tied), dict.fromkeys("abc", changed), tmp_path / "x.tsw", density=1)
    tsw.restore(dict.fromkeys("bc", tied), tmp_path / "x.tsw", tmp_path / "out.safetensors")
    assert same(load(tmp_path / "out.safetensors"), dict.fromkeys("bc", changed))


# --- options of pack ------------------------------------------------------------------------------------------


def test_a_dense_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(tsw.OptionError, match=r"dense: pattern 'nomatch\*' matches none of the tensors"):
        tsw.pack(model(), tuned(model()), tmp_path / "x.tsw", dense=["layer.*", "nomatch*"])
    assert not files_in(tmp_path)


@pytest.mark.parametrize("pattern", ["embed", "lm_head"])
@pytest.mark.parametrize("both", [True, False])
def test_a_dense_pattern_may_give_any_name_of_a_tied_tensor(tmp_path: Path, pattern: str, both: bool) -> None:
    tied = np.arange(12, dtype=np.float32).reshape(4, 3)
    base, expert = (
        {"embed": tied, "lm_head": tied},
        dict.fromkeys(("embed", "lm_head") if both else ("embed",), tied + 1),
    )
    result = tsw.pack(base, expert, tmp_path / "x.tsw", dense=[pattern])
    assert (result.switches, result.dense) == (0, 1)


def test_the_papers_preset_takes_no_scores(tmp_path: Path) -> None:
    scores = {name: np.abs(array) for name, array in model().items() if array.dtype.kind == "f"}
    with pytest.raises(tsw.OptionError, match="preset paper selects by magnitude; leave score out"):
        tsw.pack(model(), tuned(model()), tmp_path / "x.tsw", preset="paper", score=scores)
    assert not files_in(tmp_path)


class Counting(ArrayCheckpoint):
    """Counts how often it is read."""

    reads = 0

    def read_into(self, name: str, start: int, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.reads += 1
        super().read_into(name, start, out)


@pytest.mark.parametrize("select", ["global", "tensor"])
@pytest.mark.parametrize(
    ("path", "task", "kind", "message"),
    [
        ("x.tsw", "", tsw.OptionError, "task name '': 0 bytes"),
        ("x.tsw", "a\nb", tsw.OptionError, r"task name 'a\\nb': a control character; choose a name"),
        ("no/x.tsw", "task", tsw.OutputError, "no does not exist; make it first"),
        ("", "task", tsw.OutputError, "expected the name of a file to write, found a folder"),
    ],
)
def test_a_bad_task_or_output_fails_before_anything_is_read(
    tmp_path: Path, select: str, path: str, task: str, kind: type[Exception], message: str
) -> None:
    floats = {name: array for name, array in model().items() if array.dtype.kind == "f"}
    base, expert = Counting(floats), Counting(tuned(floats))
    with pytest.raises(kind, match=message):
        tsw.pack(base, expert, tmp_path / path, task=task, select=select)
    assert (base.reads, expert.reads) == (0, 0)
    assert not files_in(tmp_path)
    tsw.pack(base, expert, tmp_path / "x.tsw", select=select)
    assert base.reads
    assert expert.reads


def test_factors_that_all_round_to_nothing_leave_the_knob_alone(tmp_path: Path) -> None:
    base = {"w": np.zeros((10, 10), np.float32)}
    expert = {"w": np.arange(100, dtype=np.float32).reshape(10, 10)}
    tsw.pack(base, expert, tmp_path / "x.tsw", score={"w": 100 - expert["w"]}, density=0.05)
    with tsw.open(tmp_path / "x.tsw") as file:
        switch = file.switch("w")
        assert switch.indices().tolist() == [1, 2, 3, 4, 5]
        assert (switch.row_factors, switch.column_factors) == (None, None)
        assert switch.knob == np.square(np.arange(100)).sum() / 15  # the projection's rule
        assert switch.delta().flat[:7].tolist() == [0, *[switch.knob] * 5, 0]
    assert tsw.validate(tmp_path / "x.tsw", base=base).ok


# --- slices ---------------------------------------------------------------------------------------------------

ROWS = (1 << 20) + 5


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tensor of more rows than a chunk of factors holds. Segments: row factors 0 and 1, column factors 2, masks 3 to 5,
    signs 6 to 8."""
    rng = np.random.default_rng(3)
    base = np.zeros((ROWS, 2), np.float32)
    expert = base.copy()
    places = np.union1d(
        rng.choice(base.size, 3000, replace=False), [0, 3, (1 << 20) - 1, 1 << 20, *range(base.size - 14, base.size)]
    )
    expert.flat[places] = rng.uniform(0.5, 1.5, places.size) * rng.choice([-1, 1], places.size)
    path = tmp_path_factory.mktemp("tall") / "tall.tsw"
    tsw.pack({"t": base}, {"t": expert}, path, density=0.01)
    return path


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> Numbers:
    numbers: Numbers = []
    real = Container.segment

    def segment(self: Container, task: int, number: int) -> memoryview:
        numbers.append(number)
        return real(self, task, number)

    monkeypatch.setattr(Container, "segment", segment)
    return numbers


@pytest.mark.parametrize(
    ("rows", "factors", "segments"),
    [
        (slice(0, 10), [0], [0, 2, 3, 6]),
        (slice(ROWS - 3, None), [1], [1, 2, 5, 8]),
        (slice(1 << 20, None), [1], [1, 2, 5, 8]),
        (slice((1 << 19) - 1, (1 << 19) + 1), [0], [0, 2, 3, 4, 6, 7]),
        (slice((1 << 20) - 2, (1 << 20) + 2), [0, 1], [0, 1, 2, 4, 5, 7, 8]),
        (slice(None), [0, 1], list(range(9))),
    ],
)
def test_a_slice_reads_its_own_factors_and_planes_only(
    tall: Path, touched: Numbers, rows: slice, factors: Numbers, segments: Numbers
) -> None:
    with tsw.open(tall) as file:
        whole = file.switch("t")
        row_factors, delta = whole.row_factors, whole.delta()
        assert row_factors is not None
        touched.clear()
        found = file.switch("t")[rows].row_factors
        assert touched == factors
        assert found is not None
        assert same_array(found, row_factors[rows])
        touched.clear()
        part = file.switch("t")[rows].delta()
        assert sorted(touched) == segments
        assert same_array(part, np.ascontiguousarray(delta[rows]))
        assert part.any()


@pytest.mark.parametrize("at", [0, 5, 1 << 20, ROWS])
def test_an_empty_slice_has_no_factors_and_no_delta(tall: Path, touched: Numbers, at: int) -> None:
    with tsw.open(tall) as file:
        part = file.switch("t")[at:at]
        assert part.delta().shape == part.mask().shape == (0, 2)
        assert touched == []
        factors = part.row_factors
        assert factors is not None
        assert factors.shape == (0,)


# --- threads --------------------------------------------------------------------------------------------------


def begun(sizes: list[int], threads: int, *, sized: bool = True) -> Numbers:
    """How many items are begun and not taken whenever one more begins; results are checked to be in order."""
    taken, waiting = 0, []

    def items() -> Any:
        for number in range(len(sizes)):
            waiting.append(number + 1 - taken)
            yield number

    for result in ordered_map(lambda n: n, items(), threads, nbytes=sizes.__getitem__ if sized else None):
        assert result == taken
        taken += 1
    assert taken == len(sizes)
    return waiting


@pytest.mark.parametrize("threads", [2, 3])
def test_few_items_wait_while_they_are_large_and_many_while_they_are_small(threads: int) -> None:
    few, many = threads + 1, 64 * threads
    large, small = _WAITING_BYTES, 1
    assert max(begun([large] * 100, threads)) == few
    assert max(begun([large] * 100, threads, sized=False)) == 4 * threads
    assert max(begun([_WAITING_BYTES // few + 1] * 100, threads)) == few
    assert max(begun([small] * 300, threads)) == many
    # One large item at the front does not stall the small ones behind it; two do, until they are taken.
    assert max(begun([large // 2] + [small] * 300, threads)[:many]) == many
    mixed = begun([large, large] + [small] * 300, threads)
    assert max(mixed[:few]) == few
    assert max(mixed) == many
    back = begun([small] * 300 + [large] * 100, threads)
    assert max(back[: 300 - few]) == many
    assert max(back[301:]) <= few


def test_one_thread_begins_one_at_a_time() -> None:
    assert max(begun([1] * 20, 1)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 256, "File name too long"), ("a\0b", "found a zero byte in it"), ("no/x", "does not exist")],
)
def test_outputs_that_cannot_be_are_refused_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    base = {"w": np.ones((4, 5), np.float32)}
    file = tmp_path / "x.tsw"
    tsw.pack(base, tuned(base), file, density=1)
    out = tmp_path / name
    for write in (
        lambda: tsw.pack(base, tuned(base), out),
        lambda: tsw.restore(base, file, out),
        lambda: tsw.bundle([file], out),
        lambda: tsw.extract(file, "task", out),
        lambda: tsw.repack(file, out, profile="mapped"),
    ):
        with pytest.raises(tsw.OutputError, match=message):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["x.tsw"]
