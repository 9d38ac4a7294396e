"""`results/latest.md`: what `make bench` found, in one page made of the results files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import common
from benchmarks.bench import STEPS
from benchmarks.common import Ratio, Table

MOST_ROWS = 20  # of a table of a benchmark that says not which of its tables are the main ones
_OF_A_RUN = ("date", "commit", "load_average")


def page(results: Mapping[str, Mapping[str, Any]], missing: Sequence[str], plots: Mapping[str, Sequence[str]]) -> str:
    """The Markdown of what the results files hold, by benchmark. `plots`: names of files beside them."""
    lines = ["# latest: what `make bench` found", "", "Written by `python -m benchmarks latest`; do not edit."]
    ratios = [(name, ratio) for name, content in results.items() for ratio in common.ratios_of(content)]
    targets = [(name, ratio) for name, ratio in ratios if ratio.target]
    bounds = [(name, ratio) for name, ratio in ratios if ratio.bound is not None and not ratio.target]
    failed = [(name, ratio) for name, ratio in bounds if not ratio.met]
    met = sum(bool(ratio.met) for _, ratio in targets)
    lines += ["", "## Targets", "", f"{met} of {len(targets)} are met.", "", *_bounds(targets).markdown()]
    lines += ["", "## Other bounds", "", f"{len(bounds) - len(failed)} of {len(bounds)} are met."]
    lines += ["Those that are not:", "", *_bounds(failed).markdown()] if failed else []
    lines += ["", "## Runs", "", *_runs(results).markdown()]
    lines += [f"\nNo results: {', '.join(missing)}."] if missing else []
    lines += ["", *_machines(results)]
    for name, content in results.items():
        lines += ["", f"## {name}", "", f"{content['question']} ([all tables]({name}.md))"]
        for table in main_tables(content):
            lines += ["", f"### {table.title}", "", *table.markdown()]
        for plot in plots.get(name, ()):
            lines += ["", f"![{plot}]({plot})"]
    return "\n".join(lines) + "\n"


def main_tables(content: Mapping[str, Any]) -> list[Table]:
    """Those that the benchmark marked; where it marked none, the first, unless that is long."""
    tables = [Table(**table) for table in content["tables"]]
    marked = [table for table in tables if table.main]
    return marked or [table for table in tables[:1] if len(table.rows) <= MOST_ROWS]


def _bounds(found: Sequence[tuple[str, Ratio]]) -> Table:
    table = Table("", ("what", "median", "least", "most", "bound", "met", "benchmark"))
    for name, ratio in found:
        what = f"{ratio.where}: {ratio.label}"
        table.add(what, ratio.median, ratio.least, ratio.most, ratio.bound_text, ratio.met, name)
    return table


def _runs(results: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("", ("benchmark", "command", "seconds", *_OF_A_RUN))
    for name, content in results.items():
        of_run = [content["machine"].get(key) for key in _OF_A_RUN]
        table.add(name, f"`{content['command']}`", content.get("seconds"), *of_run)
    return table


def _machines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What they ran on: a list for each machine and set of versions that there is, with what was run there."""
    found: dict[str, list[str]] = {}
    for name, content in results.items():
        where = {key: value for key, value in content["machine"].items() if key not in _OF_A_RUN}
        text = "\n".join(f"- {key}: {common.text(value)}" for key, value in where.items())
        found.setdefault(text, []).append(name)
    lines = []
    for text, names in found.items():
        lines += ["## Machine" + (f" of {', '.join(names)}" if len(found) > 1 else ""), "", text, ""]
    return lines[:-1]


def write(folder: Path) -> Path:
    """Read the results in `folder` and write latest.md there."""
    results: dict[str, Mapping[str, Any]] = {}
    missing: list[str] = []
    for name in (step[0] for step in STEPS):
        file = folder / f"{name}.json"
        if file.exists():
            results[name] = json.loads(file.read_text())
        else:
            missing.append(name)
    plots = {name: sorted(p.name for p in folder.glob(f"{name}*.svg")) for name in results}
    path = folder / "latest.md"
    path.write_text(page(results, missing, plots))
    return path


@click.command()
def main() -> None:
    """Write results/latest.md from the results of the benchmarks that `make bench` runs."""
    print(f"Saved: {os.path.relpath(write(common.RESULTS))}")
