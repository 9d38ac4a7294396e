"""Masks of several tasks compared, against counting in unpacked masks."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.checkpoint import ArrayCheckpoint
from tswitch_format.switch.overlap import count_words

Mask = NDArray[np.bool_]
Masks = Sequence[Mapping[str, Mask]]  # of each task, by tensor


def made(path: Path, base: Mapping[str, NDArray[Any]], masks: Masks, *, profile: str = "archive") -> Path:
    """A file with a task "t0", "t1", ... for each element of `masks`."""
    tasks = [
        tsw.GivenTask(
            f"t{number}",
            {name: tsw.GivenSwitch.of_signs(mask.astype(np.int8), 0.5) for name, mask in task.items()},
        )
        for number, task in enumerate(masks)
    ]
    tsw.build(base, path, tasks, profile=profile, threads=1)
    return path


def slow(masks: Sequence[Mask | None], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`shared` and `pairs` of one tensor."""
    flags = np.stack(
        [np.zeros(size, np.int64) if mask is None else mask.reshape(-1).astype(np.int64) for mask in masks]
    )
    return np.bincount(flags.sum(axis=0), minlength=len(masks) + 1), flags @ flags.T


def check(found: tsw.Overlap, base: Mapping[str, NDArray[Any]], masks: Masks) -> None:
    """Whether all of it is what slow counting finds, tensor by tensor and in sum."""
    shared, pairs = np.zeros(len(masks) + 1, np.int64), np.zeros((len(masks), len(masks)), np.int64)
    assert [tensor.name for tensor in found.tensors] == sorted(base)
    for tensor in found.tensors:
        wanted = slow([task.get(tensor.name) for task in masks], base[tensor.name].size)
        assert tensor.elements == base[tensor.name].size
        assert np.array_equal(tensor.shared, wanted[0]) and np.array_equal(tensor.pairs, wanted[1]), tensor.name
        shared, pairs = shared + wanted[0], pairs + wanted[1]
    assert np.array_equal(found.shared, shared) and np.array_equal(found.pairs, pairs)
    assert found.shared.sum() == found.elements == sum(array.size for array in base.values())
    assert (found.catastrophic, found.selfish) == (shared[0], shared[1])
    assert np.array_equal(found.active, pairs.diagonal())
    for i in range(len(masks)):
        for j in range(len(masks)):
            either = pairs[i, i] + pairs[j, j] - pairs[i, j]
            assert found.jaccard[i, j] == (pairs[i, j] / either if either else 0)


def drawn(rng: np.random.Generator, n: int, density: float) -> Mask:
    return rng.random(n) < density


@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 8, 63, 64, 65, 500]), min_size=1, max_size=4),
    tasks=st.sampled_from([1, 2, 3, 7, 8, 20]),
    density=st.sampled_from([0.0, 0.03, 0.5, 0.97, 1.0]),
    given_share=st.sampled_from([0.3, 1.0]),
    profile=st.sampled_from(["archive", "mapped"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_unpacked_masks(
    sizes: Sequence[int], tasks: int, density: float, given_share: float, profile: str, seed: int
) -> None:
    """Tensors that only some tasks have, empty ones, and sizes that fill no bytes or words."""
    rng = np.random.default_rng(seed)
    base = {f"x{number}": np.zeros(size, np.float32) for number, size in enumerate(sizes)}
    masks = [
        {name: drawn(rng, array.size, density) for name, array in base.items() if rng.random() < given_share}
        for _ in range(tasks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        check(tsw.overlap(made(Path(folder) / "a.tsw", base, masks, profile=profile), threads=1), base, masks)


@given(
    masks=st.integers(1, 70),
    n=st.sampled_from([1, 63, 64, 65, 1000]),
    density=st.sampled_from([0.02, 0.5, 1.0]),
    block=st.sampled_from([1, 2, 7, 100]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_words_are_counted_in_blocks_of_any_size(masks: int, n: int, density: float, block: int, seed: int) -> None:
    flags = np.random.default_rng(seed).random((masks, n)) < density
    words = np.zeros((masks, -(-n // 64)), np.uint64)
    words.view(np.uint8)[:, : -(-n // 8)] = np.packbits(flags, axis=1, bitorder="little")
    shared, pairs = count_words(words, n, block)
    wanted = slow(list(flags), n)
    np.fill_diagonal(wanted[1], 0)
    assert np.array_equal(shared, wanted[0]) and np.array_equal(pairs, wanted[1])


@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_several_chunks(tmp_path: Path, threads: int | None, profile: str) -> None:
    """Chunks with several masks, one and none, constant planes among them."""
    rng = np.random.default_rng(5)
    n = 3 * lay.CHUNK + 77
    base = {"a": np.zeros((n, 1), np.float16), "b": np.zeros((3, 5)), "none": np.zeros(10, np.float32)}
    a = np.stack([drawn(rng, n, 0.02), drawn(rng, n, 0.3), np.ones(n, np.bool_), np.zeros(n, np.bool_)])
    a[2, : lay.CHUNK + 9] = False
    a[1:, lay.CHUNK : 2 * lay.CHUNK] = False
    masks: Masks = [{"a": mask.reshape(n, 1), "b": drawn(rng, 15, 0.5).reshape(3, 5)} for mask in a]
    check(tsw.overlap(made(tmp_path / "a.tsw", base, masks, profile=profile), threads=threads), base, masks)


def test_tasks_are_chosen_and_ordered(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    base = {"a": np.zeros(300, np.float32), "b": np.zeros(40, np.float32)}
    masks = [{"a": drawn(rng, 300, 0.2)}, {"a": drawn(rng, 300, 0.9), "b": drawn(rng, 40, 0.5)}, {}]
    path = made(tmp_path / "a.tsw", base, masks)
    with tsw.open(path) as file:
        found = tsw.overlap(file, ["t2", "t0"])
        assert found.tasks == ["t2", "t0"]
        check(found, base, [masks[2], masks[0]])
        check(tsw.overlap(file, tasks=("t1",)), base, [masks[1]])
        check(tsw.overlap(file), base, masks)
        assert file.switch("a", "t0").active == masks[0]["a"].sum()  # still open


def test_tied_tensors_count_once(tmp_path: Path) -> None:
    shared = np.zeros(100, np.float32)
    mask = np.arange(100) < 30
    base = {"embed": shared, "lm_head": shared}
    path = made(tmp_path / "a.tsw", base, [{"lm_head": mask}, {"embed": mask}])
    check(tsw.overlap(path), {"embed": shared}, [{"embed": mask}, {"embed": mask}])


def test_masks_over_a_shared_vector_count_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    base = {"a": np.zeros(lay.CHUNK + 100, np.float32)}
    masks = [{"a": drawn(rng, base["a"].size, density)} for density in (0.02, 0.4, 0.3)]
    tasks = [tsw.GivenTask(f"t{i}", {"a": tsw.GivenMask.of_flags(masks[i]["a"])}) for i in range(2)]
    tasks.append(tsw.GivenTask("t2", {"a": tsw.GivenSwitch.of_signs(masks[2]["a"], 0.5)}))
    vector = tsw.GivenVector.of_array(np.ones(base["a"].size, np.float32))
    tsw.build(base, tmp_path / "a.tsw", tasks, vectors={"a": vector})
    check(tsw.overlap(tmp_path / "a.tsw"), base, masks)


def test_what_has_no_mask_is_listed_and_not_counted(tmp_path: Path) -> None:
    base = {
        "both": np.zeros(10, np.float32),
        "dense": np.zeros(20, np.float32),
        "grown": np.zeros(30, np.float32),
        "ids": np.arange(7),
        "other ids": np.arange(3),
        "untouched": np.zeros(5, np.float64),
    }
    other = ArrayCheckpoint(
        {"both": np.ones(10, np.float32), "dense": np.ones(20, np.float32), "grown": np.ones(31), "ids": np.arange(7) + 1,
         "new": np.ones(4)}
    )  # fmt: skip
    mask = np.arange(10) < 4
    tasks = [
        tsw.GivenTask("masks", {"both": tsw.GivenSwitch.of_signs(mask, 1.0)}, {"ids": (other, "ids")}),
        tsw.GivenTask("stores", {}, {name: (other, name) for name in other.specs}),
    ]
    tsw.build(base, tmp_path / "a.tsw", tasks)
    found = tsw.overlap(tmp_path / "a.tsw")
    assert found.whole == {
        "both": ["stores"], "dense": ["stores"], "grown": ["stores"], "ids": ["masks", "stores"], "new": ["stores"]
    }  # fmt: skip
    assert [(tensor.name, tensor.shared.tolist()) for tensor in found.tensors] == [
        ("both", [6, 4, 0]),
        ("untouched", [5, 0, 0]),
    ]
    assert found.pairs.tolist() == [[4, 0], [0, 0]]
    assert found.jaccard.tolist() == [[1, 0], [0, 0]]
    assert tsw.overlap(tmp_path / "a.tsw", ["masks"]).elements == 10 + 20 + 30 + 5


def test_a_removed_tensor_has_no_mask(tmp_path: Path) -> None:
    base = {"a": np.zeros(10, np.float32), "b": np.zeros(20, np.float32)}
    tsw.pack(base, {"a": np.ones(10, np.float32)}, tmp_path / "a.tsw", on_mismatch="dense", density=1)
    found = tsw.overlap(tmp_path / "a.tsw")
    assert found.whole == {"b": ["task"]}
    assert (found.elements, found.shared.tolist()) == (10, [0, 10])


def test_a_base_without_floats_has_nothing_to_count(tmp_path: Path) -> None:
    found = tsw.overlap(made(tmp_path / "a.tsw", {"ids": np.arange(4)}, [{}, {}]))
    assert (found.elements, found.shared.tolist(), found.pairs.tolist(), found.tensors) == (
        0,
        [0, 0, 0],
        [[0, 0]] * 2,
        [],
    )


def test_progress_counts_chunks(tmp_path: Path) -> None:
    mask = np.zeros(lay.CHUNK + 1, np.bool_)
    base = {"a": np.zeros(mask.size, np.float16), "b": np.zeros(3, np.float32), "c": np.zeros(3, np.float32)}
    seen: list[tuple[int, int]] = []
    path = made(tmp_path / "a.tsw", base, [{"a": mask}, {"b": mask[:3]}])
    tsw.overlap(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("tasks", "error", "words"),
    [
        (["t0", "t5"], tsw.UnknownNameError, "no task named 't5'"),
        (["t0", "t1", "t0"], tsw.OptionError, "found 't0' twice"),
        ([], tsw.OptionError, "at least one task .*, found an empty list"),
        ("t0", tsw.OptionError, "expected a list of names"),
    ],
)
def test_tasks_that_make_no_sense(tmp_path: Path, tasks: Any, error: type[Exception], words: str) -> None:
    path = made(tmp_path / "a.tsw", {"a": np.zeros(3, np.float32)}, [{}, {}])
    with pytest.raises(error, match=words):
        tsw.overlap(path, tasks)


def test_files_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(tsw.OptionError, match=r"a\.tsw: expected at least one task .*, found a file without tasks"):
        tsw.overlap(made(tmp_path / "a.tsw", {"a": np.zeros(3, np.float32)}, []))
    with pytest.raises(tsw.TswError, match=r"none\.tsw"):
        tsw.overlap(tmp_path / "none.tsw")
    with pytest.raises(tsw.OptionError, match="threads"):
        tsw.overlap(tmp_path / "a.tsw", threads=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_mask_is_refused(tmp_path: Path, threads: int) -> None:
    rng = np.random.default_rng(8)
    path = made(tmp_path / "a.tsw", {"a": np.zeros(500, np.float32)}, [{"a": drawn(rng, 500, 0.5)} for _ in range(2)])
    with tsw.open(path) as file:
        entry = file.container.entry(1, 0)
        offset = int(file.container.index.tasks[1].segments[entry.segments.start]["offset"])
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(tsw.FormatError, match="TSW-701"):
        tsw.overlap(path, threads=threads)


@pytest.mark.parametrize("density", [0.02, 0.3])
def test_masks_stay_packed(tmp_path: Path, density: float, traced: Callable[[Callable[[], object]], int]) -> None:
    """20 masks of a chunk are 2.5 MiB packed and 20 MiB at a byte an element; one is unpacked while it is decoded."""
    rng = np.random.default_rng(9)
    mask = drawn(rng, 2 * lay.CHUNK, density)
    base = {"a": np.zeros(mask.size, np.float16)}
    path = made(tmp_path / "a.tsw", base, [{"a": np.roll(mask, task)} for task in range(20)])
    with tsw.open(path) as file:
        assert traced(lambda: tsw.overlap(file, threads=1)) < 10 << 20


@pytest.fixture
def traced() -> Callable[[Callable[[], object]], int]:
    """Most bytes that Python and NumPy held during a call."""

    def run(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return run
