"""Opening, decoding, applying, switching and validating .tsw files, beside safetensors, copies in memory and plain reads.

Three workloads: 10,000 small tensors, a bundle of 20 tasks, and one model of 100 M parameters; f32, density 5 %. Page cache
warm: all files are read once before. Cold: each file is synced and dropped from the cache (POSIX_FADV_DONTNEED) before each
measurement of a candidate that reads it. Activating packed experts and putting them back is in `switching`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

import tswitch_format as tsw
from benchmarks import common, workloads
from benchmarks.speed import get_array, list_names
from benchmarks.workloads import Workload
from tswitch_format.container.verify import Level
from tswitch_format.torch import SwitchBank, apply_

BOUNDS = {"apply": 1.2, "checksums": 0.6, "decode": 5.0}
TASKS = 20
LEVELS: Sequence[Level] = ("structure", "checksums", "full")
LARGE_FILE = 10_000_000  # bytes; of smaller files, opening takes most of the time, and a bandwidth says little
MANY_ROUNDS = 5  # of validating 10,000 tensors, which takes seconds
THREADS = (1, 2)
BLOCK = 1 << 18  # bytes that a plain read takes at a time, into the cache: several times as fast as larger ones

Work = Callable[[], object]


# Peers


def read_file(path: Path, block: bytearray) -> None:
    """Read a file from begin to end into one buffer."""
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def get_rows(path: Path, name: str, rows: slice) -> object:
    """Some rows of a tensor of a safetensors file."""
    with safe_open(path, framework="np") as file:
        return file.get_slice(name)[rows]


def copy_tensors(targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor], threads: int) -> None:
    """Copy a model's bytes over another's."""
    torch.set_num_threads(threads)
    for name, target in targets.items():
        target.copy_(sources[name])


# Ours


def list_keys(path: Path, task: str) -> object:
    """Open a .tsw file and no more."""
    with tsw.open(path) as file:
        return file.keys(task)


def get_indices(path: Path, name: str, task: str) -> object:
    """One switch, as the indices of its active elements."""
    with tsw.open(path) as file:
        return file.switch(name, task).indices()


def get_delta(path: Path, name: str, task: str, rows: slice = slice(None)) -> object:
    """One switch or some of its rows, as the array that it adds."""
    with tsw.open(path) as file:
        return file.switch(name, task)[rows].delta()


def decode_all(path: Path, task: str, room: NDArray[np.int64] | None = None) -> None:
    """All switches of a task, as indices; checksums are verified, since the file is opened anew."""
    with tsw.open(path) as file:
        for name in file.keys(task):
            file.switch(name, task).indices(room)


def apply_all(model: Mapping[str, torch.Tensor], work: Workload, threads: int) -> None:
    """The whole model, in place, decoded by one thread, which is the default and quicker than two."""
    torch.set_num_threads(threads)
    apply_(model, work.archive, task=work.task)


# What is measured


def candidates(works: Mapping[str, Work], files: Sequence[Path], *, cold: bool) -> dict[str, common.Candidate]:
    """The works with what goes before each: nothing, or dropping `files` from the page cache."""

    def drop() -> None:
        for path in files:
            common.drop_from_cache(path)

    return {name: common.Candidate(work, drop if cold else None) for name, work in works.items()}


def open_and_decode(result: common.Result, work: Workload, rounds: int, *, cold: bool = False) -> None:
    """Opening alone, and with one tensor or 1 % of its rows."""
    name, task, rows = work.name, work.task, work.rows
    works: dict[str, Work] = {
        "safe_open": partial(list_names, work.full),
        "get_tensor": partial(get_array, work.full, name),
        "get_slice": partial(get_rows, work.full, name, rows),
    }
    pairs: list[tuple[str, str]] = []
    for profile, path in _profiles(work):
        ours: list[tuple[str, str, Work]] = [
            ("open", "safe_open", partial(list_keys, path, task)),
            ("open, indices", "get_tensor", partial(get_indices, path, name, task)),
            ("open, delta", "get_tensor", partial(get_delta, path, name, task)),
            ("open, delta of rows", "get_slice", partial(get_delta, path, name, task, rows)),
        ]
        for what, peer, function in ours:
            works[f"{what} ({profile})"] = function
            pairs.append((f"{what} ({profile})", peer))
    times = common.interleave(candidates(works, work.files(), cold=cold), rounds)
    title = f"{work.title}: open and decode, {_cache(cold)}"
    common.times_table(result, f"{title}: times", times, "ms")
    note = (
        f"One tensor of {' x '.join(map(str, work.base[name].shape))}, {rows.stop - rows.start} of its rows. Tasks: "
        f"{len(work.tasks)}, tensors: {len(work.base):,}, parameters: {work.parameters:,}. Peers: the full expert in "
        "safetensors, opened too."
    )
    common.ratio_table(result, title, times, pairs, note=note, main=not cold)


def apply_whole(result: common.Result, work: Workload, rounds: int, *, cold: bool = False) -> None:
    """`apply_` against copying the model's bytes in memory."""
    base = {name: torch.from_numpy(array) for name, array in work.base.items()}
    source = {name: torch.from_numpy(array) for name, array in work.last.items()}
    model = {name: tensor.clone() for name, tensor in base.items()}
    used = torch.get_num_threads()

    def reset() -> None:
        copy_tensors(model, base, used)

    works: dict[str, Work] = {}
    for count in THREADS:
        works[f"apply_, {common.threads_text(count)}"] = partial(apply_all, model, work, count)
        works[f"copy in memory, {common.threads_text(count)}"] = partial(copy_tensors, model, source, count)
    prepared = candidates(works, [work.archive], cold=cold)
    with torch.inference_mode():
        times = common.interleave(
            {name: common.Candidate(each.run, each.before, reset) for name, each in prepared.items()}, rounds
        )
    torch.set_num_threads(used)
    title = f"{work.title}: apply the whole model, archive, {_cache(cold)}"
    common.times_table(result, f"{title}: times", times, "ms")
    pairs = [
        (f"apply_, {common.threads_text(count)}", f"copy in memory, {common.threads_text(count)}") for count in THREADS
    ]
    bound = None if cold else BOUNDS["apply"]
    common.ratio_table(result, title, times, pairs, bound, target=not cold, main=True)


def switch_tasks(result: common.Result, work: Workload, rounds: int) -> None:
    """From one packed expert to another, against copying the full one."""
    base = {name: torch.from_numpy(array) for name, array in work.base.items()}
    source = {name: torch.from_numpy(array) for name, array in work.last.items()}
    model = {name: tensor.clone() for name, tensor in base.items()}
    bank = SwitchBank(model)
    first, last = work.tasks[0], work.tasks[-1]
    for task in (first, last):
        bank.add(task, work.archive, task=task)
    copied = {name: tensor.clone() for name, tensor in base.items()}
    threads = torch.get_num_threads()
    switch, copy = "switch A to B", "copy the full expert"
    with torch.inference_mode():
        times = common.interleave(
            {
                switch: common.Candidate(lambda: bank.activate(last), lambda: bank.activate(first), bank.deactivate),
                copy: common.Candidate(lambda: copy_tensors(copied, source, threads)),
            },
            rounds,
        )
    title = f"{work.title}: switch from packed memory"
    common.times_table(result, f"{title}: times", times, "ms")
    common.ratio_table(result, title, times, [(switch, copy)], main=True, note=f"{common.threads_text(threads)} each.")


def validate_levels(
    result: common.Result, work: Workload, rounds: int, *, cold: bool = False, levels: Sequence[Level] = LEVELS
) -> None:
    """Validating at each level against reading the same file."""
    block = bytearray(BLOCK)
    works: dict[str, Work] = {}
    sizes: dict[str, int] = {}
    for profile, path in _profiles(work):
        ours: dict[str, Work] = {"read": partial(read_file, path, block)}
        for level in levels:
            ours[f"validate {level}"] = partial(tsw.validate, path, level)
        for what, function in ours.items():
            works[f"{what} ({profile})"] = function
            sizes[f"{what} ({profile})"] = path.stat().st_size
    times = common.interleave(candidates(works, [work.archive, work.mapped], cold=cold), rounds)
    title = f"{work.title}: validate, {_cache(cold)}"
    table = result.table(f"{title}: times", "what", "bytes", "median ms", "least ms", "most ms", "MB/s")
    for name, size in sizes.items():
        found = times.summary(name)
        table.add(name, size, 1e3 * found.median, 1e3 * found.least, 1e3 * found.most, round(size / 1e6 / found.median))
    result.raw[table.title] = dict(times.seconds)
    for level in levels:
        pairs = [(f"read ({profile})", f"validate {level} ({profile})") for profile, _ in _profiles(work)]
        held = level == "checksums" and not cold
        common.ratio_table(
            result,
            f"{title}, {level}: share of the read bandwidth",
            times,
            pairs,
            BOUNDS["checksums"] if held else None,
            higher_is_better=True,
            target=held and max(sizes.values()) >= LARGE_FILE,
            main=held,
        )


def decode_speed(result: common.Result, work: Workload, rounds: int) -> None:
    """All masks to indices on one core, checksums verified, against copying and reading the dense array."""
    dense = [np.ascontiguousarray(array) for array in work.last.values()]
    room = [np.empty_like(array) for array in dense]
    block = bytearray(BLOCK)

    def copy() -> None:
        for target, source in zip(room, dense, strict=True):
            np.copyto(target, source)

    indices = np.empty(max(array.size for array in dense), np.int64)  # as the peers have room for the dense array
    works: dict[str, Work] = {
        "decode (archive)": partial(decode_all, work.archive, work.task, indices),
        "decode (mapped)": partial(decode_all, work.mapped, work.task, indices),
        "decode to new arrays (archive)": partial(decode_all, work.archive, work.task),
        "copy the dense f32 in memory": copy,
        "read the dense f32 file": partial(read_file, work.full, block),
    }
    loaded = "loaded" if find_spec("numba") and import_module("numba") else "not there"
    times = common.interleave(candidates(works, [], cold=False), rounds)
    title = f"{work.title}: decode all to indices on one core, numba {loaded}"
    table = result.table(title, "what", "G elements/s", "least", "most", "bound", "met", main=True)
    for name, seconds in times.seconds.items():
        rate = common.Summary.of([work.parameters / 1e9 / taken for taken in seconds])
        bound = BOUNDS["decode"] if name.startswith("decode (") else None
        ratio = common.Ratio(
            title, f"{name}, G elements/s", None, rate.median, rate.least, rate.most, bound, True, bound is not None
        )
        table.add(name, rate.median, rate.least, rate.most, ratio.bound_text, result.hold(ratio))
    result.raw[title] = dict(times.seconds)
    pairs = [(ours, peer) for ours in list(works)[:2] for peer in list(works)[3:]]
    common.ratio_table(result, f"{title}: beside the dense bytes", times, pairs, main=True)


def _profiles(work: Workload) -> list[tuple[str, Path]]:
    return [("archive", work.archive), ("mapped", work.mapped)]


def _cache(cold: bool) -> str:
    return "cold" if cold else "warm"


@click.command()
@common.folder_option
@common.scale_option
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="With a warm page cache.")
@click.option("--cold-rounds", type=click.IntRange(1), default=5, show_default=True)
def main(folder: Path, scale: float, rounds: int, cold_rounds: int) -> None:
    """Time reading .tsw files, interleaved with peers."""
    folder.mkdir(parents=True, exist_ok=True)
    result = common.Result(
        "reading",
        "opening, decoding, applying, switching, validating, beside safetensors, copies and plain reads",
        "python -m benchmarks reading" + (f" --scale {scale:g}" if scale != 1 else ""),
        {
            "density": workloads.DENSITY,
            "rounds": rounds,
            "rounds with a cold page cache": cold_rounds,
            "torch threads": torch.get_num_threads(),
        },
        warnings=["The machine was shared with other work while this ran. Ratios are made within a round."],
    )
    caches = [(rounds, False)]
    if common.can_drop():
        caches.append((cold_rounds, True))
    else:
        result.warnings.append("Nothing was measured cold: the system cannot drop files from the page cache.")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        small = workloads.make(place / "small", "small tensors", workloads.shapes_small(scale))
        bundle = workloads.make(place / "bundle", "bundle", workloads.shapes_24m(scale), tasks=TASKS)
        model = workloads.make(place / "model", "large model", workloads.shapes_100m(scale))
        for work in (small, bundle, model):
            for count, cold in caches:
                open_and_decode(result, work, count, cold=cold)
                few = min(count, MANY_ROUNDS) if work is small else count
                validate_levels(result, work, few, cold=cold, levels=("checksums",) if cold else LEVELS)
        for count, cold in caches:
            apply_whole(result, model, count, cold=cold)
        decode_speed(result, model, rounds)
        switch_tasks(result, bundle, rounds)
    common.finish(result, save=scale == 1)
