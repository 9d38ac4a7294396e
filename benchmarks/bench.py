"""Run what `make bench` is made of, each benchmark in a process of its own, and say how long each took."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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
# What makes a quick run of one that knows no --scale.
QUICK: Mapping[str, Sequence[str]] = {"peers": ("--layers", "1"), "mixed": ("--width", "256")}
OTHERS: Sequence[tuple[str, ...]] = (("codecs",), ("selecting",), ("mixed",), ("overlap",), ("tall",))


def plan(every: bool, scale: float) -> list[list[str]]:
    """Arguments of each process; a `scale` below 1 goes to those that know it, and others are quick in their own way."""
    steps = [[*step, "--all"] if every and step[0] == "memory" else [*step] for step in STEPS]
    steps += [[*step] for step in OTHERS] if every else []
    if scale != 1:
        steps = [[*step, *_quick(step[0], scale)] for step in steps]
    return [*steps, ["latest"]]


def _quick(name: str, scale: float) -> list[str]:
    command: click.Command = import_module(BENCHMARKS[name][0]).main
    names = {parameter.name for parameter in command.params}
    options = ["--scale", f"{scale:g}"] if "scale" in names else [*QUICK.get(name, ())]
    return [*options, *(["--no-save"] if "save" in names and common.RESULTS == common.COMMITTED else [])]


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
