"""Peak resident memory of `tsw pack` and `tsw restore`, each in a process of its own, on the synthetic model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import click

from benchmarks import common, synthetic
from benchmarks.children import peak

BOUND_GIB = 1.5
TITLE = "Peak resident memory"
PACK, RESTORE = "tsw pack BASE EXPERT -o X.tsw", "tsw restore BASE D.tsw -o OUT"


def plan(cores: int, many_threads: int, every: bool) -> list[str]:
    """Commands, in order; what `restore` reads is what the first `pack` writes."""
    threads = sorted({1, cores, many_threads}) if every else [cores]
    commands = ["python -c pass", "python -c 'import tswitch_format'", "tsw --help"]
    commands += [f"{PACK} --threads {cores}", f"{PACK} --threads {cores} --select tensor"]
    if every:
        commands += [f"{PACK} --threads {count}" for count in threads if count != cores]
        commands += [f"{PACK} --threads {count} --select tensor" for count in threads if count != cores]
        commands += [f"{PACK} --threads {cores} {rule}" for rule in ("--select global", "--preset paper")]
        commands += [f"{PACK} --threads {cores} --select {rule} --density 0.2" for rule in ("spectral", "tensor")]
    return commands + [f"{RESTORE} --threads {count}" for count in threads]


@click.command()
@common.folder_option
@common.scale_option
@common.keep_option
@click.option(
    "--all", "every", is_flag=True,
    help="Also with one and with many threads, --select global, --preset paper and --density 0.2, which takes several times "
    "as long.",
)  # fmt: skip
@click.option("--many-threads", type=click.IntRange(2), default=8, show_default=True, help="How many those are.")
def main(folder: Path, scale: float, keep: bool, every: bool, many_threads: int) -> None:
    """Pack and restore the synthetic model and print the peak resident memory of each: with as many threads as there are
    cores, by the default rule and by magnitude. Other threads and rules are left out without --all."""
    folder.mkdir(parents=True, exist_ok=True)
    model = synthetic.make(folder, scale=scale)
    flags = (" --all" if every else "") + (f" --scale {scale:g}" if scale != 1 else "")
    result = common.Result(
        "memory",
        (__doc__ or "").strip(),
        "python -m benchmarks memory" + flags,
        {"parameters": model.parameters, "bound GiB": BOUND_GIB},
    )
    table = result.table(
        TITLE,
        "command",
        "MiB",
        "GiB",
        "below the bound",
        "seconds",
        note=(
            "BASE and EXPERT: the folders that `python -m benchmarks synthetic` makes; D.tsw: what the first `tsw pack` wrote. "
            "To reproduce: /usr/bin/time -v COMMAND, 'Maximum resident set size'. Without --select: the default rule."
        ),
        main=True,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        places = {
            "BASE": str(model.base),
            "EXPERT": str(model.expert),
            "X.tsw": f"{temporary}/x.tsw",
            "D.tsw": f"{temporary}/default.tsw",
            "OUT": f"{temporary}/out",
        }
        for command in plan(cores, many_threads, every):
            mib, seconds = peak(_arguments(command, places), folder)
            gib = mib / 1024
            met = result.hold(common.Ratio.exact(TITLE, f"GiB of {command}", None, gib, BOUND_GIB))
            table.add(command, round(mib), f"{gib:.2f}", met, f"{seconds:.1f}")
            if command.startswith(PACK) and not Path(places["D.tsw"]).exists():
                shutil.copyfile(places["X.tsw"], places["D.tsw"])
            shutil.rmtree(places["OUT"], ignore_errors=True)
    result.warnings.append("The seconds are of a shared machine and of one run; see the benchmark `speed`.")
    if not keep:
        model.remove()
    common.finish(result, save=scale == 1)


def _arguments(command: str, places: dict[str, str]) -> list[str]:
    """What `peak` runs for a command as it is shown."""
    program, *words = command.split(maxsplit=2)
    if program == "python":
        return ["-c", words[1].strip("'")]
    arguments = [places.get(word, word) for word in command.split()[1:]]
    return arguments + ["--quiet"] * (arguments[0] in ("pack", "restore"))
