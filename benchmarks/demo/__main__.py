"""`python -m benchmarks.demo`: train a base and its experts, keep the experts as .tsw files, and compare."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from benchmarks.demo.report import keep, keep_together, measure, show
from benchmarks.demo.train import prepare
from tswitch_format.switch.options import DEFAULT_DENSITY

DENSITIES = (DEFAULT_DENSITY, 0.05)  # and what a small model is better kept at


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    help="Folder for the checkpoints and .tsw files.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the training.")
def main(out: Path, seed: int) -> None:
    """Train a vision transformer and experts of it on scikit-learn's digits, and keep each expert as a .tsw file."""
    console = Console()
    names = prepare(out, seed, console)
    alone = [keep(out, name, density) for density in DENSITIES for name in names]
    every = zip([*names] * (len(DENSITIES) + 2), [*alone, *keep_together(out, names)], strict=True)
    rows = [measure(out, name, kept) for name, kept in every]
    show(sorted(rows, key=lambda row: names.index(row.task.name)), console)
    console.print(f"Files are in {out}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
