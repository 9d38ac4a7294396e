"""What the benchmarks share: interleaved timing, ratios within one run, the machine, and results as JSON and Markdown.

The machine may be shared and its speed drift. So everything that is compared runs in the same process and in rounds: each
round runs every candidate once, in an order that is shuffled anew, and ratios are made within a round and only then
summed up. `interleave` does this; nothing else here measures time.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table as RichTable

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("tswitch-format", "numpy", "zstandard", "msgpack", "crc32c", "safetensors", "torch")

Cell = str | int | float | bool | None

folder_option = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir()) / "tsw-bench",
    show_default="tsw-bench in the temporary folder",
    help="Where big files go. They are deleted afterwards.",
)
keep_option = click.option("--keep", is_flag=True, help="Leave the model in the folder, for the next run.")
scale_option = click.option(
    "--scale",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the 1.2 G parameters, for a quick run. Results of less than 1 are not saved.",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, least and most of some measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Sum up measurements."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to time: `run`, and what is done untimed before it (`before`) and after it (`after`)."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each candidate, round by round."""

    seconds: Mapping[str, Sequence[float]]

    def summary(self, name: str) -> Summary:
        """Of one candidate."""
        return Summary.of(self.seconds[name])

    def ratios(self, name: str, peer: str) -> Sequence[float]:
        """Candidate / peer in each round."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[peer], strict=True)]

    def ratio(self, name: str, peer: str) -> Summary:
        """Of the ratios."""
        return Summary.of(self.ratios(name, peer))


def interleave(candidates: Mapping[str, Candidate], rounds: int, *, warm_up: bool = True, seed: int = 0) -> Times:
    """Time all candidates once a round, each round in another order; before that, once without counting.

    Garbage is collected before each measurement and not during it.
    """
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + warm_up):
        for name in order.sample(list(candidates), len(candidates)):
            taken = _time(candidates[name])
            if number or not warm_up:
                seconds[name].append(taken)
    return Times(seconds)


def _time(candidate: Candidate) -> float:
    if candidate.before:
        candidate.before()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        candidate.run()
        return time.perf_counter() - start
    finally:
        gc.enable()
        if candidate.after:
            candidate.after()


def machine() -> dict[str, Cell]:
    """What it ran on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "load_average": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = [line.partition(":") for line in reversed(lines)]  # the first processor's last, so that it counts
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    model = f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family')}"
    return f"{model} model {fields.get('model')}"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):
        return None


def _commit() -> str | None:
    """The commit that was measured; "-dirty" where the working tree differs from it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pause_for_disk() -> None:
    """Write out what other candidates left in the page cache, so that none pays for another."""
    if hasattr(os, "sync"):
        os.sync()


def read_once(paths: Sequence[Path]) -> None:
    """Bring files into the page cache."""
    block = bytearray(1 << 24)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


@dataclass(slots=True)
class Table:
    """A table of results. `rows` hold numbers as they were measured; `show` makes text of them."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: Cell) -> None:
        """Append a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: expected {len(self.columns)} cells, found {len(cells)}")
        self.rows.append(cells)

    def texts(self) -> list[list[str]]:
        """Rows as they are shown."""
        return [[_text(cell) for cell in row] for row in self.rows]


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "NO"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


@dataclass(slots=True)
class Result:
    """All that one benchmark found, to be shown and saved."""

    name: str
    question: str
    command: str
    settings: Mapping[str, Cell]
    tables: list[Table] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def table(self, title: str, *columns: str, note: str = "") -> Table:
        """Begin a table."""
        self.tables.append(Table(title, columns, note=note))
        return self.tables[-1]

    def show(self, console: Console) -> None:
        """Print all tables."""
        for table in self.tables:
            shown = RichTable(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
            for number, column in enumerate(table.columns):
                shown.add_column(column, justify="right" if number else "left")
            for row in table.texts():
                shown.add_row(*row)
            console.print(shown)

    def save(self, folder: Path = RESULTS) -> Path:
        """Write NAME.json and NAME.md; the path of the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "machine": machine()}
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        path = folder / f"{self.name}.md"
        path.write_text(self._markdown(content["machine"]))
        return path

    def _markdown(self, where: Mapping[str, Cell]) -> str:
        lines = [f"# {self.name}: {self.question}", "", "Written by the program; do not edit.", "", f"`{self.command}`"]
        lines += ["", ", ".join(f"{key} {_text(value)}" for key, value in self.settings.items())]
        for warning in self.warnings:
            lines += ["", f"**Note:** {warning}"]
        for table in self.tables:
            lines += ["", f"## {table.title}", "", f"| {' | '.join(table.columns)} |"]
            lines.append("|---|" + "---:|" * (len(table.columns) - 1))
            lines += [f"| {' | '.join(row)} |" for row in table.texts()]
            lines += ["", table.note] if table.note else []
        lines += ["", "## Machine", "", *(f"- {key}: {_text(value)}" for key, value in where.items())]
        return "\n".join(lines) + "\n"


def times_table(result: Result, title: str, times: Times, unit: str = "s") -> None:
    """Seconds, or ms, of every candidate."""
    factor = 1000 if unit == "ms" else 1
    table = result.table(title, "what", f"median {unit}", f"least {unit}", f"most {unit}")
    for name in times.seconds:
        found = times.summary(name)
        table.add(name, factor * found.median, factor * found.least, factor * found.most)
    result.raw[title] = {name: list(seconds) for name, seconds in times.seconds.items()}


def ratio_table(result: Result, title: str, times: Times, pairs: Sequence[tuple[str, str]], bound: float) -> None:
    """Candidate / peer for each pair, and whether the median is within the bound."""
    table = result.table(title, "what / peer", "median", "least", "most", "bound", "met")
    for name, peer in pairs:
        found = times.ratio(name, peer)
        table.add(f"{name} / {peer}", found.median, found.least, found.most, f"{bound:g}", found.median <= bound)


def console() -> Console:
    """Where tables go: wide where the output is a file or a pipe."""
    made = Console()
    return made if made.is_terminal else Console(width=200)


def finish(result: Result, *, save: bool) -> None:
    """Show a result and, if wanted, save it."""
    out = console()
    result.show(out)
    for warning in result.warnings:
        out.print(f"Note: {warning}", markup=False, highlight=False)
    if save:
        out.print(f"Saved: {result.save().relative_to(RESULTS.parent.parent)}", markup=False, highlight=False)
