"""TALL mask files are what np.save of both generations of NumPy writes: to the byte, in little memory."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from make_tall_fixtures import CASES, FOLDER, HUGE, LARGE, SMALL, packed, saved
from make_tall_fixtures import masks as masks_of
from numpy.typing import NDArray

from tswitch_format.atomic import AtomicFile
from tswitch_format.errors import CheckpointError, OptionError
from tswitch_tools.tall.npy import write_masks

Masks = dict[str, NDArray[np.uint8]]

BOTH = pytest.mark.parametrize("numpy", [1, 2])
NOTES = {numpy: json.loads((FOLDER / f"numpy{numpy}.json").read_text()) for numpy in (1, 2)}
INSTALLED = 2  # what pyproject.toml asks for


def written(masks: Masks, numpy: int, piece: int = 1000) -> bytes:
    """The file, from pieces of that length."""
    out = io.BytesIO()
    nbytes = next((mask.size for mask in masks.values()), 0)

    def pieces(task: str) -> Iterator[NDArray[np.uint8]]:
        for first in range(0, nbytes, piece):
            yield masks[task][first : first + piece]

    write_masks(out.write, list(masks), nbytes, pieces, numpy)
    return out.getvalue()


def first_difference(found: bytes, expected: bytes) -> int | None:
    """Equal bytes are compared at once; pytest would take minutes to show a difference of megabytes."""
    if found == expected:
        return None
    return next((at for at, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))


@BOTH
@pytest.mark.parametrize("name", SMALL)
def test_small_files_to_the_byte(name: str, numpy: int) -> None:
    assert written(masks_of(*SMALL[name]), numpy, 2) == (FOLDER / f"numpy{numpy}" / f"{name}.npy").read_bytes()


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_files_by_their_digest(name: str, numpy: int) -> None:
    data = written(masks_of(*CASES[name]), numpy)
    assert {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()} == NOTES[numpy]["cases"][name]


@BOTH
@pytest.mark.parametrize("name", HUGE)
def test_around_2_and_4_gib(name: str, numpy: int) -> None:
    names, elements = HUGE[name]
    zeros = np.zeros(1 << 26, np.uint8)
    rest, dropped = io.BytesIO(), 0

    def write(data: bytes | memoryview) -> None:
        nonlocal dropped
        if len(data) < LARGE:
            rest.write(data)
        else:
            dropped += len(data)

    nbytes = elements // 8

    def pieces(task: str) -> Iterator[NDArray[np.uint8]]:
        for first in range(0, nbytes, zeros.size):
            yield zeros[: nbytes - first]

    expected = NOTES[numpy]["huge"][name]
    if isinstance(expected, str):  # NumPy's error
        with pytest.raises(
            CheckpointError, match=f"at most 4294967295 bytes each, .* found {nbytes}; write .* NumPy 2"
        ):
            write_masks(write, names, nbytes, pieces, numpy)
        assert "larger than 4 GiB" in expected
        return
    write_masks(write, names, nbytes, pieces, numpy)
    data = rest.getvalue()
    assert {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()} == expected
    assert dropped == nbytes * len(names)


def test_the_versions_that_wrote_the_fixtures() -> None:
    """Both generations in several versions, and no other generation."""
    for numpy, notes in NOTES.items():
        assert len(notes["versions"]) > 1
        assert all(version.startswith(f"NumPy {numpy}.") for version in notes["versions"])
        assert set(notes["cases"]) == set(CASES)
        assert set(notes["huge"]) == set(HUGE)


OF_THE_PICKLE = ["|", "numpy", "ndarray", "dtype", "_reconstruct", "O8", "u1", "b", "", "numpy._core.multiarray"]
NAMES = st.one_of(
    st.sampled_from(OF_THE_PICKLE),
    st.text(st.characters(exclude_categories=()), max_size=10),  # with surrogates
    st.builds(lambda text, size: text * size, st.text(min_size=1, max_size=2), st.integers(1, 300)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(NAMES, max_size=45, unique=True), st.integers(0, 300), st.integers(0, 255), st.integers(1, 400))
@example(["a", "b"], 1, 0x62, 1)
def test_as_the_installed_numpy_writes(names: list[str], nbytes: int, first: int, piece: int) -> None:
    masks = {sys.intern(name): np.full(nbytes, (first + i // 2) % 256, np.uint8) for i, name in enumerate(names)}
    assert written(masks, INSTALLED, piece) == saved(masks)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(-40, 40), st.integers(1, 3), st.integers(0, 30))
def test_frames_as_the_installed_numpy_writes_them(tasks: int, by: int, share: int, length: int) -> None:
    masks = {f"{task:0{length}}": packed(8 * (LARGE // share + by), task) for task in range(tasks)}
    assert first_difference(written(masks, INSTALLED, 10_000), saved(masks)) is None


@pytest.mark.parametrize("elements", [80, 8 * LARGE])
@pytest.mark.parametrize("header", [range(60), range(60, 160)])
def test_a_frame_ends_in_any_place(header: range, elements: int) -> None:
    """Names of a length that a frame is full at each opcode behind them in turn: where small strings go, and large ones."""
    for short in header:
        masks = {"y": packed(elements, 1), "x" * (LARGE - 1 - short): packed(elements, 2)}
        assert first_difference(written(masks, INSTALLED), saved(masks)) is None, short


@BOTH
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_numpy_reads_them(name: str, numpy: int) -> None:
    masks = masks_of(*CASES[name])
    read = np.load(io.BytesIO(written(masks, numpy)), allow_pickle=True)
    assert read.shape == ()
    assert list(read.item()) == list(masks)
    for task, mask in read.item().items():
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, masks[task])


@BOTH
def test_pieces_are_written_before_the_next_is_asked_for(numpy: int) -> None:
    """So memory does not grow with masks."""
    calls, length = 0, 0
    piece = np.zeros(1 << 16, np.uint8)
    count = 128  # 8 MiB a mask
    asked = 0

    def write(data: bytes | memoryview) -> None:
        nonlocal calls, length
        calls, length = calls + 1, length + len(data)

    def pieces(task: str) -> Iterator[NDArray[np.uint8]]:
        nonlocal asked
        for _ in range(count):
            assert length >= asked * piece.size
            asked += 1
            yield piece
            assert length >= asked * piece.size

    tracemalloc.start()
    try:
        write_masks(write, [f"t{number}" for number in range(20)], count * piece.size, pieces, numpy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert asked == 20 * count
    assert 20 * count < calls <= 20 * (count + 3) + 3  # of each mask: frame, opcodes and head, and the pieces
    assert length > 20 * count * piece.size
    assert peak < 1 << 18


@BOTH
def test_into_an_atomic_file(tmp_path: Path, numpy: int) -> None:
    masks = masks_of(*CASES["large"])
    nbytes = next(iter(masks.values())).size
    with AtomicFile(tmp_path / "x.npy") as output:
        write_masks(output.write, list(masks), nbytes, lambda task: [masks[task]], numpy)
        output.commit()
    data = (tmp_path / "x.npy").read_bytes()
    assert hashlib.sha256(data).hexdigest() == NOTES[numpy]["cases"]["large"]["sha256"]


def test_pieces_of_any_kind() -> None:
    """Empty ones, with gaps, read-only, of several dimensions."""
    mask = packed(8 * 24, 1)
    gaps = np.repeat(mask[4:10], 2)[::2]
    fixed = mask[10:12].copy()
    fixed.flags.writeable = False
    pieces = [mask[:0], mask[:4], gaps, mask[:0], fixed, mask[12:].reshape(3, 4), mask[:0]]
    out = io.BytesIO()
    write_masks(out.write, ["t"], 24, lambda task: pieces, 2)
    assert out.getvalue() == saved({"t": mask})


@BOTH
@pytest.mark.parametrize(
    ("nbytes", "sizes", "found"),
    [
        (10, [], "found 0;"),
        (10, [9], "found 9;"),
        (10, [10, 0, 1], "found 11 or more;"),
        (10, [12, 5], "found 12 or more;"),
        (0, [1], "found 1 or more;"),
        (1, [], "found 0;"),
        (1, [2], "found 2 or more;"),
        (70_000, [69_999], "found 69999;"),
        (70_000, [69_999, 2], "found 70001 or more;"),
    ],
)
def test_masks_of_another_length_are_refused(nbytes: int, sizes: list[int], found: str, numpy: int) -> None:
    length = 0

    def write(data: bytes | memoryview) -> None:
        nonlocal length
        length += len(data)

    def pieces(task: str) -> list[NDArray[np.uint8]]:
        return [np.ones(size, np.uint8) for size in ([nbytes] if task == "a" else sizes)]

    with pytest.raises(CheckpointError, match=rf"mask of task 'b': expected {nbytes} bytes in all, {found} give "):
        write_masks(write, ["a", "b", "c"], nbytes, pieces, numpy)
    assert length < 2 * nbytes + 1000


@BOTH
def test_a_task_that_comes_twice_is_refused(numpy: int) -> None:
    out = io.BytesIO()
    with pytest.raises(OptionError, match="expected each once, found 'b' twice; name it once"):
        write_masks(out.write, ["a", "b", "c", "b"], 1, lambda task: [packed(8, 1)], numpy)
    assert not out.getvalue()
