"""How long does `import tswitch_format` take, beside what it needs and beside what others import?

Every import runs in a fresh process and is timed inside it, so that the start of Python does not count. Processes are
interleaved; byte code is compiled by the round that does not count.
"""

from __future__ import annotations

import click

from benchmarks import common
from benchmarks.children import printed

BOUND = 1.3
OURS, NEEDED = "tswitch_format", "numpy, zstandard, msgpack"
OTHERS = ("numpy", "numpy, safetensors.numpy", "crc32c", "tswitch_tools.cli")
TITLE = "Import"


def seconds(modules: str) -> float:
    """Of `import MODULES` in a fresh process."""
    return float(
        printed(f"import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)")
    )


def measure(result: common.Result, repeats: int, *, others: bool = True) -> None:
    """Tables of times and ratios; without `others`, of what the bound is stated for only."""
    names = [OURS, NEEDED, *(OTHERS if others else ())]
    times = common.in_rounds(names, seconds, repeats)
    common.times_table(result, f"{TITLE}: times", times, "ms")
    common.ratio_table(result, TITLE, times, [(OURS, NEEDED)], BOUND, target=True, main=True)
    if others:
        beside = [(OURS, "numpy, safetensors.numpy"), (OURS, "numpy"), ("tswitch_tools.cli", OURS)]
        common.ratio_table(result, f"{TITLE}: beside others", times, beside)


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=21, show_default=True, help="Processes for each import.")
@click.option("--save/--no-save", default=True, show_default=True)
def main(repeats: int, save: bool) -> None:
    """Time imports in fresh processes."""
    result = common.Result(
        "imports",
        "how long importing takes, beside what is needed and what others import",
        "python -m benchmarks imports",
        {"fresh processes for each import": repeats, "page cache": "warm", "byte code": "compiled before"},
    )
    measure(result, repeats)
    common.finish(result, save=save)
