"""What is interrupted in the tests of this folder: everything that the library writes, small, and with the fsyncs it needs.

Inputs     the files that the jobs read, made once
Job        something that writes `out` in a folder, what may be there before it, and what its result must be
JOBS       all of them
Outcome    what a folder may hold afterwards
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from crash_disk import Disk, Tree
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import tswitch_format as tsw

Arrays = dict[str, NDArray[Any]]

TEMPORARY = re.compile(r"\.out[^/]*\.[0-9a-f]{12}\.tmp(/.*)?")
BYSTANDER = "beside.txt"  # a file in the same folder that nobody may touch


def model(seed: int, rows: int = 12) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.standard_normal((rows, 40)).astype(np.float32),
        "b.weight": rng.standard_normal((rows, 24)).astype(np.float16),
        "c.bias": rng.standard_normal(31).astype(np.float32),
        "d.counts": np.arange(9),
    }


def tuned(base: Mapping[str, NDArray[Any]], seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    expert = {name: (array + rng.standard_normal(array.shape)).astype(array.dtype) for name, array in base.items()}
    return {**expert, "e.added": rng.standard_normal((5, 8)).astype(np.float32)}


class Inputs:
    """Two experts of a base, packed, and the base as one file and as a folder of shards."""

    def __init__(self, folder: Path) -> None:
        base = model(0)
        self.base = folder / "base.safetensors"
        self.expert = folder / "expert.safetensors"
        save_file(base, self.base)
        save_file(tuned(base, 1), self.expert)
        self.one = _pack(self.base, tuned(base, 2), folder / "one.tsw", task="one")
        self.two = _pack(self.base, tuned(base, 3), folder / "two.tsw", task="two")
        self.both = folder / "both.tsw"
        tsw.bundle([self.one, self.two], self.both)
        self.shards = folder / "shards"
        self.shards.mkdir()
        files = {name: f"model-0000{1 + number // 2}-of-00002.safetensors" for number, name in enumerate(base)}
        for file in set(files.values()):
            save_file({name: base[name] for name in base if files[name] == file}, self.shards / file)
        index = {"metadata": {}, "weight_map": files}
        (self.shards / "model.safetensors.index.json").write_text(json.dumps(index))
        (self.shards / "config.json").write_text('{"layers": 2}')


def _pack(base: Any, expert: Any, out: Path, **options: Any) -> Path:
    tsw.pack(base, expert, out, **{"density": 0.3, "on_mismatch": "dense", "threads": 1, **options})
    return out


@dataclass(frozen=True)
class Job:
    """`write` makes `out`. `old` makes what was there before, if anything. `syncs`: the fsyncs of a run, in order."""

    write: Callable[[Inputs, Path], object]
    out: str = "out.tsw"
    old: Callable[[Inputs, Path], object] | None = None
    syncs: tuple[str, ...] = ("fsync", "fsync folder")

    def prepare(self, inputs: Inputs, root: Path) -> Path:
        """Make the folder to write in; the path to write to."""
        root.mkdir()
        (root / BYSTANDER).write_text("untouched")
        if self.old is not None:
            self.old(inputs, root / self.out)
        return root / self.out


def _file(inputs: Inputs, out: Path) -> None:
    tsw.restore(inputs.base, inputs.one, out, threads=1)


def _folder(inputs: Inputs, out: Path) -> None:
    tsw.restore(inputs.shards, inputs.one, out, threads=1)


def _old(inputs: Inputs, out: Path) -> None:
    _pack(inputs.base, inputs.expert, out, density=0.1)


# A folder of two shards, an index and a configuration: each file, the folder of them, the folder that it is in.
_FOLDER = (*["fsync"] * 4, "fsync folder", "fsync folder")

JOBS = {
    "pack": Job(lambda inputs, out: _pack(inputs.base, inputs.expert, out)),
    "pack over an old file": Job(lambda inputs, out: _pack(inputs.base, inputs.expert, out), old=_old),
    "pack mapped": Job(
        lambda inputs, out: _pack(inputs.base, inputs.expert, out, profile="mapped", threads=2), old=_old
    ),
    "bundle": Job(lambda inputs, out: tsw.bundle([inputs.one, inputs.two], out), old=_old),
    "extract": Job(lambda inputs, out: tsw.extract(inputs.both, "two", out), old=_old),
    "repack": Job(lambda inputs, out: tsw.repack(inputs.one, out, profile="mapped"), old=_old),
    "restore a file": Job(_file, "out.safetensors"),
    "restore over an old file": Job(
        _file, "out.safetensors", lambda inputs, out: tsw.restore(inputs.base, inputs.two, out, threads=1)
    ),
    "restore a folder": Job(_folder, "out", None, _FOLDER),
    "restore into an empty folder": Job(_folder, "out", lambda inputs, out: out.mkdir(), _FOLDER),
    "restore a folder with threads": Job(
        lambda inputs, out: tsw.restore(inputs.shards, inputs.one, out, threads=3), "out", None, _FOLDER
    ),
}


def visible(tree: Tree) -> Tree:
    """All but unfinished files and folders under their temporary names."""
    return {name: content for name, content in tree.items() if not TEMPORARY.fullmatch(name)}


def unfinished(root: Path) -> list[str]:
    """The temporary names in a folder."""
    return sorted(path.name for path in root.iterdir() if TEMPORARY.fullmatch(path.name))


@dataclass(frozen=True)
class Outcome:
    """What may be seen after a job was cut short: all as before, or all as after it."""

    before: Tree
    after: Tree

    @classmethod
    def of(cls, job: Job, inputs: Inputs, root: Path) -> Outcome:
        """By running the job undisturbed in a folder of its own."""
        out = job.prepare(inputs, root)
        before = Disk.read(root).tree()
        job.write(inputs, out)
        after = Disk.read(root).tree()
        assert before != after
        return cls(before, after)

    def problem(self, tree: Tree, *, returned: bool) -> str | None:
        """What is wrong with a state that a crash left: neither the old nor the new."""
        seen = visible(tree)
        if seen == self.after:
            return None
        if seen == self.before:
            return "the old state, after the job has returned" if returned else None
        wrong = [name for name in {*seen, *self.after} if seen.get(name, 0) != self.after.get(name, 0)]
        return f"neither old nor new: {sorted(wrong)}"


def materialize(tree: Tree, root: Path) -> None:
    """Make a state on a real disk."""
    root.mkdir()
    for name, content in tree.items():  # folders come before what is in them
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


def check_readable(out: Path) -> None:
    """That the output is one that readers take, if it is there."""
    if out.suffix == ".tsw" and out.exists():
        report = tsw.validate(out, "full")
        assert report.ok, report.findings
    elif out.suffix == ".safetensors" and out.exists():
        assert load_file(out)
    elif out.is_dir() and any(out.iterdir()):
        index = json.loads((out / "model.safetensors.index.json").read_text())
        for name, file in index["weight_map"].items():
            assert name in load_file(out / file)
        assert (out / "config.json").read_text() == '{"layers": 2}'
