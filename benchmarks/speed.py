"""Times of pack, restore and opening, as ratios to the least that plain safetensors code must do with the same files.

Page cache: warm, all inputs are read once before. Peers are what the safetensors documentation shows, each in a function
of its own; their torch threads are set to the number of threads that they are compared with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

import tswitch_format as tsw
from benchmarks import common, synthetic
from benchmarks.workloads import QUICK

BOUNDS = {"pack": 2.5, "restore": 1.5, "open": 2.0, "two threads": 1.7}
DEFAULT_SHARE = 0.1  # of the model, for the default rule, which takes longer
HASHED, BLOCKS = 1 << 28, 16  # bytes, and their parts
SMALL_TENSORS, SMALL_SHAPE, SHAPE = 999, (64, 64), (1024, 1024)
NAME = "model.layers.500.mlp.up_proj.weight"
THREADS = (1, 2)


@dataclass(frozen=True, slots=True)
class Rule:
    """A way of packing: its name in tables, and options of `pack`."""

    name: str
    options: dict[str, Any]


MAGNITUDE = Rule("by magnitude", {"density": 0.02, **QUICK})
DEFAULT = Rule("by the default rule", {})


# Peers


def subtract(base: Sequence[Path], expert: Sequence[Path], threads: int) -> None:
    """Load both checkpoints and subtract them tensor by tensor; every difference is dropped when it is made."""
    torch.set_num_threads(threads)
    before = [load_file(path) for path in base]
    after = [load_file(path) for path in expert]
    for old, new in zip(before, after, strict=True):
        for name, tensor in new.items():
            torch.sub(tensor, old[name])


def copy(base: Sequence[Path], out: Path, threads: int) -> None:
    """Load a checkpoint and save it, shard by shard."""
    torch.set_num_threads(threads)
    out.mkdir()
    for path in base:
        save_file(load_file(path), out / path.name, metadata={"format": "pt"})


def copy_durably(base: Sequence[Path], out: Path, threads: int) -> None:
    """The same, and sync what was written, as tsw.restore does."""
    copy(base, out, threads)
    for path in [*out.iterdir(), out]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def hash_bytes(data: bytearray, threads: int) -> None:
    """SHA-256 of parts of `data`, in threads: how much a second one gains on this machine where all is arithmetic in C."""
    part = len(data) // BLOCKS
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: hashlib.sha256(memoryview(data)[i * part : (i + 1) * part]).digest(), range(BLOCKS)))


def get_array(path: Path, name: str) -> object:
    """One tensor of a safetensors file, as a NumPy array."""
    with safe_open(path, framework="np") as file:
        return file.get_tensor(name)


def get_tensor(path: Path, name: str) -> object:
    """One tensor of a safetensors file, as a torch tensor; copied, since get_tensor alone maps it and reads nothing."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


def list_names(path: Path) -> object:
    """Open a safetensors file and no more."""
    with safe_open(path, framework="np") as file:
        return file.keys()


# Ours


def get_delta(path: Path, name: str, backend: str) -> object:
    """One switch of a file, as the array that it adds."""
    with tsw.open(path, backend=backend) as file:  # type: ignore[arg-type]  # one of its literals
        return file.switch(name).delta()


def get_indices(path: Path, name: str, backend: str) -> object:
    """One switch of a file, as the indices of its active elements."""
    with tsw.open(path, backend=backend) as file:  # type: ignore[arg-type]
        return file.switch(name).indices()


def list_keys(path: Path, backend: str) -> object:
    """Open a .tsw file and no more."""
    with tsw.open(path, backend=backend) as file:  # type: ignore[arg-type]
        return file.keys()


def pack_speed(result: common.Result, model: synthetic.Model, path: Path, rule: Rule, rounds: int) -> None:
    """pack to `path` against subtraction, and one thread against two. `selecting` has other ways of packing."""
    base, expert = model.shards("base"), model.shards("expert")
    data = bytearray(HASHED)
    candidates: dict[str, common.Candidate] = {}
    for count in THREADS:
        candidates[f"pack, {common.threads_text(count)}"] = common.Candidate(
            partial(tsw.pack, model.base, model.expert, path, threads=count, **rule.options), common.pause_for_disk
        )
        candidates[f"load and subtract, {common.threads_text(count)}"] = common.Candidate(
            partial(subtract, base, expert, count), common.pause_for_disk
        )
        candidates[f"SHA-256, {common.threads_text(count)}"] = common.Candidate(
            partial(hash_bytes, data, count), common.pause_for_disk
        )
    times = common.interleave(candidates, rounds)
    title = f"pack {rule.name}"
    common.times_table(result, f"{title}: times", times)
    pairs = [
        (f"pack, {common.threads_text(count)}", f"load and subtract, {common.threads_text(count)}") for count in THREADS
    ]
    note = f"{model.parameters:,} parameters."
    common.ratio_table(result, f"{title}: ratios", times, pairs, BOUNDS["pack"], target=True, main=True, note=note)
    _two_threads(result, title, times, "pack")
    limit = [(f"SHA-256, {common.threads_text(1)}", f"SHA-256, {common.threads_text(2)}")]
    common.ratio_table(result, f"{title}: what a second thread gains on this machine", times, limit, main=True)


def _two_threads(result: common.Result, title: str, times: common.Times, work: str) -> None:
    pairs = [(f"{work}, {common.threads_text(1)}", f"{work}, {common.threads_text(2)}")]
    common.ratio_table(
        result,
        f"{title}: two threads",
        times,
        pairs,
        BOUNDS["two threads"],
        higher_is_better=True,
        target=True,
        main=True,
    )


def restore_speed(
    result: common.Result,
    model: synthetic.Model,
    path: Path,
    out: Path,
    rounds: int,
    where: str,
    *,
    durably: bool,
) -> None:
    """restore against a copy, to the folder `out` that must not exist; with `durably` also against one that is synced."""
    base = model.shards("base")

    def candidate(work: Callable[[], object]) -> common.Candidate:
        return common.Candidate(work, common.pause_for_disk, lambda: shutil.rmtree(out, ignore_errors=True))

    candidates = {
        f"restore, {common.threads_text(count)}": candidate(partial(tsw.restore, model.base, path, out, threads=count))
        for count in THREADS
    }
    peers = {"load and save": candidate(lambda: copy(base, out, THREADS[-1]))}
    if durably:
        peers["load, save and fsync"] = candidate(lambda: copy_durably(base, out, THREADS[-1]))
    times = common.interleave({**candidates, **peers}, rounds)
    title = f"restore to {where}"
    common.times_table(result, f"{title}: times", times)
    pairs = [(name, peer) for peer in peers for name in candidates]
    common.ratio_table(result, f"{title}: ratios", times, pairs, BOUNDS["restore"], main=True)
    _two_threads(result, title, times, "restore")


def open_speed(result: common.Result, folder: Path, rounds: int, seed: int = 0) -> None:
    """Opening a file of 1,000 tensors and decoding one of 2^20 elements, against reading it in full precision."""
    random = np.random.default_rng(seed)
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(SMALL_TENSORS + 1)]
    base = {name: random.standard_normal(SHAPE if name == NAME else SMALL_SHAPE, np.float32) for name in names}
    expert = {
        name: array + np.float32(0.01) * random.standard_normal(array.shape, np.float32) for name, array in base.items()
    }
    full, half = folder / "f32.safetensors", folder / "bf16.safetensors"
    save_arrays(expert, full)
    save_file({name: torch.from_numpy(array).to(torch.bfloat16) for name, array in expert.items()}, half)
    archive, mapped = folder / "archive.tsw", folder / "mapped.tsw"
    tsw.pack(base, expert, archive, **MAGNITUDE.options)
    tsw.pack(base, expert, mapped, profile="mapped", **MAGNITUDE.options)
    common.read_once([full, half, archive, mapped])

    ours: dict[str, Callable[[], object]] = {}
    for what, function in (("delta", get_delta), ("indices", get_indices)):
        for label, path, backend in (
            ("archive, pread", archive, "pread"),
            ("archive, mmap", archive, "mmap"),
            ("mapped, mmap", mapped, "mmap"),
        ):
            ours[f"open and {what} ({label})"] = partial(function, path, NAME, backend)
    peers: dict[str, Callable[[], object]] = {
        "safe_open and get_tensor (F32, numpy)": lambda: get_array(full, NAME),
        "safe_open and get_tensor (F32, torch)": lambda: get_tensor(full, NAME),
        "safe_open and get_tensor (BF16, torch)": lambda: get_tensor(half, NAME),
    }
    parts: dict[str, Callable[[], object]] = {
        "open alone (archive, pread)": lambda: list_keys(archive, "pread"),
        "open alone (archive, mmap)": lambda: list_keys(archive, "mmap"),
        "safe_open alone": lambda: list_names(full),
    }
    with _held(archive) as held:
        parts["delta alone (archive)"] = lambda: held.switch(NAME).delta()
        parts["indices alone (archive)"] = lambda: held.switch(NAME).indices()
        every = {**ours, **peers, **parts}
        times = common.interleave({name: common.Candidate(work) for name, work in every.items()}, rounds)
    common.times_table(result, "open: times", times, "ms")
    pairs = [(name, peer) for peer in peers for name in ours]
    common.ratio_table(result, "open: ratios", times, pairs, BOUNDS["open"])


@contextmanager
def _held(path: Path) -> Iterator[tsw.SwitchFile]:
    """A file that stays open, its tables made."""
    with tsw.open(path) as file:
        file.keys()
        yield file


@click.command()
@common.folder_option
@common.scale_option
@common.keep_option
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of pack and restore.")
@click.option("--open-rounds", type=click.IntRange(1), default=40, show_default=True)
def main(folder: Path, scale: float, keep: bool, rounds: int, open_rounds: int) -> None:
    """Time pack, restore and opening, interleaved with their peers."""
    folder.mkdir(parents=True, exist_ok=True)
    model = synthetic.make(folder, scale=scale)
    share = scale * DEFAULT_SHARE
    small = synthetic.make_named(folder / f"similar-{share:g}", synthetic.similar(share))
    result = common.Result(
        "speed",
        "times of pack, restore and opening, as ratios to plain safetensors work",
        "python -m benchmarks speed" + (f" --scale {scale:g}" if scale != 1 else ""),
        {
            "parameters": model.parameters,
            "parameters, for the default rule": small.parameters,
            "density by magnitude": MAGNITUDE.options["density"],
            "rounds": rounds,
            "rounds of open": open_rounds,
            "page cache": "warm, inputs read once before; os.sync() before every measurement of pack and restore",
        },
        warnings=["The machine was shared with other work while this ran. Ratios are made within a round."],
    )
    common.read_once([*model.shards("base"), *model.shards("expert"), *small.shards("base"), *small.shards("expert")])
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path, out = Path(temporary) / "model.tsw", Path(temporary) / "restored"
        open_speed(result, Path(temporary), open_rounds)
        pack_speed(result, small, Path(temporary) / "small.tsw", DEFAULT, rounds)
        pack_speed(result, model, path, MAGNITUDE, rounds)
        restore_speed(result, model, path, out, rounds, "disk", durably=True)
        restore_to_memory(result, model, path, rounds)
    small.remove()
    if not keep:
        model.remove()
    common.finish(result, save=scale == 1)


def restore_to_memory(result: common.Result, model: synthetic.Model, path: Path, rounds: int) -> None:
    """restore against a copy where the disk has no say, if there is a folder in memory with room for the output."""
    folder = common.memory_folder(2 * model.parameters)
    if folder is None:
        result.warnings.append("Nothing was restored to memory: there is no tmpfs with room for it.")
        return
    with tempfile.TemporaryDirectory(dir=folder) as memory:
        restore_speed(result, model, path, Path(memory) / "restored", rounds, "memory (tmpfs)", durably=False)
