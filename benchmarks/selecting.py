"""How long does `tsw pack` take by the way of selecting, beside loading both checkpoints and subtracting them?

A tenth of the model of `speed`, bf16, page cache warm. `spectral` reads both sides three times more, and takes three thin
matrix products; `global` reads them once more.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import click

import tswitch_format as tsw
from benchmarks import common, synthetic
from benchmarks.speed import subtract
from tswitch_format.switch.options import DEFAULT_DENSITY, SELECTS

THREADS = (1, 2)


@click.command()
@common.folder_option
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--save/--no-save", default=True, show_default=True)
def main(folder: Path, scale: float, rounds: int, save: bool) -> None:
    """Time packing by each selection, interleaved with the peer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = synthetic.make(folder, scale=scale)
    result = common.Result(
        "selecting",
        "how long pack takes by the way of selecting",
        "python -m benchmarks selecting",
        {"parameters": model.parameters, "density": DEFAULT_DENSITY, "rounds": rounds},
    )
    base, expert = model.shards("base"), model.shards("expert")
    common.read_once([*base, *expert])
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        candidates = {
            f"{select}, {count} threads": common.Candidate(
                partial(tsw.pack, model.base, model.expert, Path(temporary) / "x.tsw", select=select, threads=count),
                common.pause_for_disk,
            )
            for select in SELECTS
            for count in THREADS
        }
        peers = {
            f"load and subtract, {count} threads": common.Candidate(
                partial(subtract, base, expert, count), common.pause_for_disk
            )
            for count in THREADS
        }
        times = common.interleave({**candidates, **peers}, rounds)
    model.remove()
    common.times_table(result, "Times", times)
    table = result.table(
        "Ratios", "select", "threads", "/ load and subtract", "least", "most", "/ tensor", "ns an element"
    )
    for select in SELECTS:
        for count in THREADS:
            name = f"{select}, {count} threads"
            found = times.ratio(name, f"load and subtract, {count} threads")
            nanoseconds = 1e9 * times.summary(name).median / model.parameters
            to_tensor = times.ratio(name, f"tensor, {count} threads").median
            table.add(select, count, found.median, found.least, found.most, to_tensor, nanoseconds)
    common.finish(result, save=save)


if __name__ == "__main__":
    main()
