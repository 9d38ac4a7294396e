"""Peak resident memory of `tsw pack` and `tsw restore`, each in a process of its own, on the synthetic model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks import common, synthetic

BOUND_GIB = 1.5

# Runs the command line and says, to the file that the first argument names, what the peak was: VmHWM where there is /proc.
# (ru_maxrss would not do: between fork and exec a child has its parent's memory, and that peak stays.)
_CHILD = """
import sys
out, *arguments = sys.argv[1:]
def peak():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = 0
if arguments == ["import"]:
    import tswitch_format
elif arguments:
    from tswitch_tools.__main__ import main
    sys.argv = ["tsw", *arguments]
    try:
        code = main() or 0
    except SystemExit as end:
        code = end.code or 0
with open(out, "w") as file:
    file.write(str(peak()))
sys.exit(code)
"""


def peak(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Peak of a command in MiB, and its seconds."""
    with tempfile.NamedTemporaryFile("r", dir=folder) as out:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", _CHILD, out.name, *arguments], check=True, stdout=subprocess.DEVNULL)
        return int(out.read()) / 1024, time.perf_counter() - start


@click.command()
@common.folder_option
@common.scale_option
@common.keep_option
@click.option(
    "--many-threads", type=click.IntRange(2), default=8, show_default=True, help="Also measured with this many."
)
def main(folder: Path, scale: float, keep: bool, many_threads: int) -> None:
    """Pack and restore the synthetic model and print the peak resident memory of each."""
    folder.mkdir(parents=True, exist_ok=True)
    model = synthetic.make(folder, scale=scale)
    result = common.Result(
        "memory",
        (__doc__ or "").strip(),
        "python -m benchmarks memory" + (f" --scale {scale:g}" if scale != 1 else ""),
        {"parameters": model.parameters, "bound GiB": BOUND_GIB},
    )
    table = result.table(
        "Peak resident memory",
        "command",
        "MiB",
        "GiB",
        "below the bound",
        "seconds",
        note=(
            "BASE and EXPERT: the folders that `python -m benchmarks synthetic` makes. To reproduce: "
            "/usr/bin/time -v COMMAND, 'Maximum resident set size'."
        ),
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = sorted({1, cores, many_threads})
    plan: list[tuple[str, list[str]]] = [
        ("python -c pass", []),
        ("python -c 'import tswitch_format'", ["import"]),
        ("tsw --help", ["--help"]),
    ]
    for count in threads:
        plan.append((f"tsw pack BASE EXPERT -o X.tsw --threads {count}", []))
    plan += [
        (f"tsw pack BASE EXPERT -o X.tsw --threads {cores} --select global", []),
        (f"tsw pack BASE EXPERT -o X.tsw --threads {cores} --density 0.2", []),
        (f"tsw pack BASE EXPERT -o X.tsw --threads {cores} --preset paper", []),
    ]
    plan += [(f"tsw restore BASE D.tsw -o OUT --threads {count}", []) for count in threads]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        places = {
            "BASE": str(model.base),
            "EXPERT": str(model.expert),
            "X.tsw": f"{temporary}/x.tsw",
            "D.tsw": f"{temporary}/default.tsw",
            "OUT": f"{temporary}/out",
        }
        for command, given in plan:
            arguments = given
            if command.startswith(("tsw pack", "tsw restore")):
                arguments = [places.get(word, word) for word in command.split()[1:]] + ["--quiet"]
            mib, seconds = peak(arguments, folder)
            table.add(command, round(mib), f"{mib / 1024:.2f}", mib / 1024 < BOUND_GIB, f"{seconds:.1f}")
            if command.endswith(f"X.tsw --threads {cores}"):
                shutil.copyfile(places["X.tsw"], places["D.tsw"])
            shutil.rmtree(places["OUT"], ignore_errors=True)
    result.warnings.append("The seconds are of a shared machine and of one run; see the benchmark `speed`.")
    if not keep:
        model.remove()
    common.finish(result, save=scale == 1)
