"""Run what `make bench` is made of, each benchmark in a process of its own, and say how long each took."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module

import click

from benchmarks import common
from benchmarks.__main__ import BENCHMARKS

# In this order: short ones first; then those that share the model of 1.2 G parameters, which the last of them deletes.
STEPS: Sequence[tuple[str, ...]] = (
    ("imports",),
    ("size",),
    ("peers",),
    ("reading",),
    ("switching",),
    ("speed", "--keep"),
    ("memory", "--keep"),
    ("growth",),
)
OTHERS: Sequence[tuple[str, ...]] = (("codecs",), ("selecting",), ("mixed",), ("overlap",), ("tall",))


def plan(every: bool, scale: float) -> list[list[str]]:
    """Arguments of each process; `scale` goes to those that know it."""
    steps = [[*step, "--all"] if every and step[0] == "memory" else [*step] for step in STEPS]
    steps += [[*step] for step in OTHERS] if every else []
    if scale != 1:
        steps = [[*step, "--scale", f"{scale:g}"] if _knows_scale(step[0]) else step for step in steps]
    return [*steps, ["latest"]]


def _knows_scale(name: str) -> bool:
    command: click.Command = import_module(BENCHMARKS[name][0]).main
    return any(parameter.name == "scale" for parameter in command.params)


@click.command()
@click.option("--all", "every", is_flag=True, help="Also codecs, selecting, mixed, overlap, tall, and memory --all.")
@common.scale_option
def main(every: bool, scale: float) -> None:
    """Run the benchmarks one after another, then write results/latest.md."""
    result = common.Result("bench", "", "", {})
    table = result.table("Time taken", "benchmark", "seconds", "exit code")
    failed = []
    for step in plan(every, scale):
        start = time.monotonic()
        print(f"== python -m benchmarks {' '.join(step)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "benchmarks", *step], check=False).returncode
        table.add(" ".join(step), round(time.monotonic() - start), code)
        failed += [step[0]] if code else []
    table.add("all", sum(int(row[1] or 0) for row in table.rows), None)
    result.show(common.console())
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
