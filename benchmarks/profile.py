"""Where the time of pack, restore, apply_, decoding and validating goes: time inside each function, one thread, by cProfile."""

from __future__ import annotations

import cProfile
import pstats
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import tswitch_format as tsw
from benchmarks import common, reading, synthetic, workloads


def add_table(result: common.Result, title: str, work: Callable[[], object], top: int) -> None:
    """Run `work` and add a table of its functions."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats: Any = pstats.Stats(profiler)  # its types know neither `stats` nor `total_tt`
    table = result.table(
        title,
        "function",
        "calls",
        "seconds inside",
        "% of all",
        "seconds with callees",
        note=f"All: {stats.total_tt:.2f} s, of which the profiler itself takes some.",
    )
    found = sorted(stats.stats.items(), key=lambda item: -item[1][2])
    for (file, line, name), (_, calls, inside, cumulative, _) in found[:top]:
        where = name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}:{line} {name}"
        table.add(where.replace("|", "/"), calls, inside, f"{100 * inside / stats.total_tt:.1f}", cumulative)


def in_memory(result: common.Result, folder: Path, scale: float, top: int) -> None:
    """What is done with a file of 100 M parameters, density 5 %, each for the second time."""
    work = workloads.make(folder / "large", "large model", workloads.shapes_100m(scale))
    jobs: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "apply_": lambda weights: reading.apply_all(weights, work, 1),
        "decode to indices": lambda weights: reading.decode_all(work.archive, work.task),
        "validate, checksums": lambda weights: tsw.validate(work.archive, level="checksums"),
    }
    for name, job in jobs.items():
        for profiled in (False, True):
            weights = {key: torch.from_numpy(array.copy()) for key, array in work.base.items()}
            if profiled:
                add_table(result, name, partial(job, weights), top)
            else:
                job(weights)


@click.command()
@common.folder_option
@common.scale_option
@common.keep_option
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Functions listed.")
def main(folder: Path, scale: float, keep: bool, top: int) -> None:
    """Profile pack and restore of the synthetic model; apply_, decoding and validating of the large model of `reading`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = synthetic.make(folder, scale=scale)
    common.read_once([*model.shards("base"), *model.shards("expert")])
    result = common.Result(
        "profile",
        (__doc__ or "").strip(),
        "python -m benchmarks profile",
        {"parameters": model.parameters, "threads": 1},
    )
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path, out = Path(temporary) / "expert.tsw", Path(temporary) / "restored"
        add_table(result, "pack, the default", lambda: tsw.pack(model.base, model.expert, path, threads=1), top)
        add_table(
            result,
            "pack by magnitude",
            lambda: tsw.pack(model.base, model.expert, path, density=0.02, select="tensor", knob_dtype="u8", threads=1),
            top,
        )
        common.pause_for_disk()
        add_table(result, "restore", lambda: tsw.restore(model.base, path, out, threads=1), top)
        shutil.rmtree(out)
        in_memory(result, Path(temporary), scale, top)
    result.warnings.append("The machine was shared with other work; only shares mean something.")
    if not keep:
        model.remove()
    common.finish(result, save=scale == 1)
