"""Times of pack, restore and opening, as ratios to the least that plain safetensors code must do with the same files.

Page cache: warm, all inputs are read once before. Peers are what the safetensors documentation shows, each in a function
of its own; their torch threads are set to the number of threads that they are compared with.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

import tswitch_format as tsw
from benchmarks import common, synthetic

BOUNDS = {"pack": 4.0, "restore": 1.5, "open": 2.0}
SMALL_TENSORS, SMALL_SHAPE, SHAPE = 999, (64, 64), (1024, 1024)
NAME = "model.layers.500.mlp.up_proj.weight"
MEMORY_FOLDER = Path("/dev/shm")


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


def pack_speed(
    result: common.Result, model: synthetic.Model, folder: Path, rounds: int, threads: Sequence[int]
) -> Path:
    """pack by magnitude against subtraction; the packed file. `selecting` has the other ways."""
    base, expert = model.shards("base"), model.shards("expert")
    path = folder / "model.tsw"
    candidates: dict[str, common.Candidate] = {}
    for count in threads:
        candidates[f"pack, {_threads(count)}"] = common.Candidate(
            partial(
                tsw.pack, model.base, model.expert, path, density=0.02, select="tensor", knob_dtype="u8", threads=count
            ),
            common.pause_for_disk,
        )
        candidates[f"load and subtract, {_threads(count)}"] = common.Candidate(
            partial(subtract, base, expert, count), common.pause_for_disk
        )
    times = common.interleave(candidates, rounds)
    common.times_table(result, "pack: times", times)
    pairs = [(f"pack, {_threads(count)}", f"load and subtract, {_threads(count)}") for count in threads]
    common.ratio_table(result, "pack: ratios", times, pairs, BOUNDS["pack"])
    return path


def restore_speed(
    result: common.Result,
    model: synthetic.Model,
    path: Path,
    out: Path,
    rounds: int,
    threads: Sequence[int],
    where: str,
) -> None:
    """restore against a copy, to the folder `out` that must not exist."""
    base = model.shards("base")

    def candidate(work: Callable[[], object]) -> common.Candidate:
        return common.Candidate(work, common.pause_for_disk, lambda: shutil.rmtree(out, ignore_errors=True))

    candidates = {
        f"restore, {_threads(count)}": candidate(partial(tsw.restore, model.base, path, out, threads=count))
        for count in threads
    }
    peers = {
        "load and save": candidate(lambda: copy(base, out, threads[-1])),
        "load, save and fsync": candidate(lambda: copy_durably(base, out, threads[-1])),
    }
    times = common.interleave({**candidates, **peers}, rounds)
    common.times_table(result, f"restore to {where}: times", times)
    pairs = [(name, peer) for peer in peers for name in candidates]
    common.ratio_table(result, f"restore to {where}: ratios", times, pairs, BOUNDS["restore"])


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
    tsw.pack(base, expert, archive, density=0.02, select="tensor", knob_dtype="u8")
    tsw.pack(base, expert, mapped, density=0.02, select="tensor", knob_dtype="u8", profile="mapped")
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


def _threads(count: int) -> str:
    return f"{count} thread" + "s" * (count > 1)


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
    threads = (1, 2)
    result = common.Result(
        "speed",
        "times of pack, restore and opening, as ratios to plain safetensors work",
        "python -m benchmarks speed" + (f" --scale {scale:g}" if scale != 1 else ""),
        {
            "parameters": model.parameters,
            "density": 0.02,
            "rounds": rounds,
            "rounds of open": open_rounds,
            "page cache": "warm, inputs read once before; os.sync() before every measurement of pack and restore",
        },
        warnings=["The machine was shared with other work while this ran. Ratios are made within a round."],
    )
    common.read_once([*model.shards("base"), *model.shards("expert")])
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        open_speed(result, Path(temporary), open_rounds)
        path = pack_speed(result, model, Path(temporary), rounds, threads)
        restore_speed(result, model, path, Path(temporary) / "restored", rounds, threads, "disk")
        if _fits_in_memory(2 * model.parameters):
            with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER) as memory:
                restore_speed(result, model, path, Path(memory) / "restored", rounds, threads, "memory (tmpfs)")
    if not keep:
        model.remove()
    common.finish(result, save=scale == 1)


def _fits_in_memory(nbytes: int) -> bool:
    """Whether there is a folder in memory with room for an output."""
    return MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > 2 * nbytes
