"""How long does it take to compare the masks of 20 tasks over 100 M parameters, beside unpacking them and adding up?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

import tswitch_format as tsw
from benchmarks import common
from tswitch_format import _layout as lay
from tswitch_format.switch.overlap import count_words

DENSITIES = (0.02, 0.3)
ROWS, COLUMNS = 4096, 1024  # of a weight: 4 chunks
WEIGHTS = 24
SECONDS = 10.0  # the bound, on two cores
BLOCKS = (1024, 2048, 4096, 8192, 16384)


def _shapes(scale: float) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(max(1, round(WEIGHTS * scale))):
        found[f"layer.{layer:02}.weight"] = (ROWS, COLUMNS)
        found[f"layer.{layer:02}.bias"] = (ROWS,)
    return found


def _mask(random: np.random.Generator, n: int, density: float) -> NDArray[np.int64]:
    return np.flatnonzero(random.random(n, np.float32) < density)


def make(path: Path, tasks: int, density: float, scale: float, seed: int) -> Path:
    """A file of tasks with random masks and even signs."""
    base = {name: np.zeros(shape, np.float16) for name, shape in _shapes(scale).items()}

    def given(task: int, number: int, elements: int) -> tsw.GivenSwitch:
        def chunk(at: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
            random = np.random.Generator(np.random.SFC64([seed, task, number, at]))
            positions = _mask(random, min(lay.CHUNK, elements - at * lay.CHUNK), density)
            return positions, random.random(positions.size, np.float32) < 0.5

        return tsw.GivenSwitch(0.01, chunk)

    made = [
        tsw.GivenTask(
            f"task {task}", {name: given(task, i, array.size) for i, (name, array) in enumerate(base.items())}
        )
        for task in range(tasks)
    ]
    tsw.build(base, path, made)
    return path


def _chunks(file: tsw.SwitchFile, use: Callable[[list[NDArray[np.uint8]], int], None]) -> None:
    """All packed masks of every chunk."""
    entries = [list(file.container.entries(task)) for task in range(len(file.tasks))]
    for same in zip(*entries, strict=True):
        for chunk in range(same[0].chunks):
            use([entry.mask_packed(chunk) for entry in same], same[0].chunk_elements(chunk))


def decode(path: Path) -> None:
    """Decode all masks, and no more."""
    with tsw.open(path) as file:
        _chunks(file, lambda packed, n: None)


def unpack_and_sum(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The plain way: a byte an element to count, four to multiply."""
    with tsw.open(path) as file:
        tasks = len(file.tasks)
        shared, pairs = np.zeros(tasks + 1, np.int64), np.zeros((tasks, tasks), np.int64)

        def add(packed: list[NDArray[np.uint8]], n: int) -> None:
            nonlocal shared, pairs
            flags = np.stack([np.unpackbits(mask, count=n, bitorder="little") for mask in packed])
            shared += np.bincount(flags.sum(axis=0, dtype=np.uint8), minlength=tasks + 1)
            dense = flags.astype(np.float32)
            pairs += (dense @ dense.T).astype(np.int64)

        _chunks(file, add)
        return shared, pairs


def _check(path: Path) -> None:
    found = tsw.overlap(path)
    shared, pairs = unpack_and_sum(path)
    if not np.array_equal(found.shared, shared) or not np.array_equal(found.pairs, pairs):
        raise ValueError("tsw.overlap and unpackbits + sum differ")


def measure(result: common.Result, folder: Path, tasks: int, scale: float, rounds: int, seed: int) -> None:
    """Times of the whole, a row for each density."""
    table = result.table(
        "Shared by j of T tasks, and all pairs",
        "density %",
        "file MB",
        "mask bits",
        "seconds, 2 threads",
        "least",
        "most",
        f"at most {SECONDS:g} s",
        "M mask bits/s",
        "seconds, 1 thread",
        "decoding alone, 1 thread",
        "unpackbits + sum",
        "ratio to that",
        note="Medians, of 2 threads also least and most; page cache warm. unpackbits + sum: NumPy, matrices in all cores.",
    )
    elements = sum(int(np.prod(shape)) for shape in _shapes(scale).values())
    for density in DENSITIES:
        path = make(folder / f"overlap-{density:g}.tsw", tasks, density, scale, seed)
        _check(path)
        candidates = {
            "two": common.Candidate(lambda path=path: tsw.overlap(path, threads=2)),
            "one": common.Candidate(lambda path=path: tsw.overlap(path, threads=1)),
            "decode": common.Candidate(lambda path=path: decode(path)),
            "unpack": common.Candidate(lambda path=path: unpack_and_sum(path)),
        }
        times = common.interleave(candidates, rounds)
        two = times.summary("two")
        name = f"seconds at density {100 * density:g} %, 2 threads"
        met = result.hold(common.Ratio(table.title, name, None, two.most, two.least, two.most, SECONDS))
        table.add(
            f"{100 * density:g}",
            path.stat().st_size / 1e6,
            tasks * elements,
            two.median,
            two.least,
            two.most,
            met,
            tasks * elements / 1e6 / two.median,
            *(times.summary(name).median for name in ("one", "decode", "unpack")),
            times.ratio("two", "unpack").median,
        )
        result.raw[f"{density:g}"] = dict(times.seconds)
        path.unlink()


def blocks(result: common.Result, tasks: int, rounds: int, seed: int) -> None:
    """Counting alone, by the number of words at a time."""
    table = result.table(
        "Counting one chunk of decoded masks, ms",
        "density %",
        *(f"blocks of {block:,} words" for block in BLOCKS),
        note=f"Median of {10 * rounds} rounds, one thread.",
    )
    random = np.random.default_rng(seed)
    for density in DENSITIES:
        rows = [random.random(lay.CHUNK, np.float32) < density for _ in range(tasks)]
        words = np.stack([np.packbits(row, bitorder="little").view(np.uint64) for row in rows])
        candidates = {
            str(block): common.Candidate(lambda words=words, block=block: count_words(words, lay.CHUNK, block))
            for block in BLOCKS
        }
        times = common.interleave(candidates, 10 * rounds)
        table.add(f"{100 * density:g}", *(1000 * times.summary(str(block)).median for block in BLOCKS))


@click.command()
@common.folder_option
@click.option("--tasks", type=click.IntRange(2), default=20, show_default=True)
@click.option(
    "--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Share of the weights."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--save/--no-save", default=True, show_default=True, help="A share of the weights is not saved.")
def main(folder: Path, tasks: int, scale: float, rounds: int, seed: int, save: bool) -> None:
    """Compare the masks of all tasks of a file."""
    settings = {"tasks": tasks, "scale": scale, "rounds": rounds, "seed": seed}
    result = common.Result("overlap", (__doc__ or "").strip(), "python -m benchmarks overlap", settings)
    folder = folder / "overlap"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measure(result, folder, tasks, scale, rounds, seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    blocks(result, tasks, rounds, seed)
    common.finish(result, save=save and scale == 1)
