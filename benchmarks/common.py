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
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table as RichTable

COMMITTED = Path(__file__).resolve().parent / "results"
RESULTS = Path(os.environ.get("TSW_BENCH_RESULTS", COMMITTED)).resolve()  # elsewhere quick runs are saved too
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
    help="Share of the parameters, for a quick run. Results of less than 1 are not saved.",
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

    Garbage is collected before each measurement and not during it; what is there already is left alone, since looking
    through all objects of torch and numba takes longer than most of what is measured.
    """
    gc.collect()
    gc.freeze()
    try:
        return in_rounds(list(candidates), lambda name: _time(candidates[name]), rounds, warm_up=warm_up, seed=seed)
    finally:
        gc.unfreeze()


def in_rounds(
    names: Sequence[str], measure: Callable[[str], float], rounds: int, *, warm_up: bool = True, seed: int = 0
) -> Times:
    """The same where `measure` says the seconds of one candidate by itself, as of what runs in a process of its own."""
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + warm_up):
        for name in order.sample(names, len(names)):
            taken = measure(name)
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
    """The commit that was measured; "-dirty" where anything but results differs from it."""
    run = partial(subprocess.run, cwd=COMMITTED.parent.parent, capture_output=True, text=True)
    try:
        commit = run(["git", "rev-parse", "--short", "HEAD"], check=True).stdout.strip()
        changed = run(["git", "diff", "--quiet", "HEAD", "--", ".", f":!{COMMITTED.parent.name}/{COMMITTED.name}"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed.returncode else str(commit)


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


def drop_from_cache(path: Path) -> None:
    """Take a file out of the page cache: what was written is synced, then given up (POSIX_FADV_DONTNEED)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def can_drop() -> bool:
    """Whether the system has what `drop_from_cache` needs."""
    return hasattr(os, "posix_fadvise")


def memory_folder(nbytes: int) -> Path | None:
    """A folder in memory (tmpfs) with room for an output of `nbytes`, or None: there the disk has no say."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() and shutil.disk_usage(folder).free > 2 * nbytes else None


def threads_text(count: int) -> str:
    """As "1 thread" and "2 threads" are written in tables."""
    return f"{count} thread" + "s" * (count > 1)


@dataclass(slots=True)
class Ratio:
    """One figure with its spread, for programs: what `latest` lists and `check` watches.

    `where`: title of its table. `peer`: what `name` was divided by within a round; None where the figure is no ratio, so that
    it says something of one machine only. `bound`: what the median is to be at most, or at least where `higher_is_better`;
    None where it is only watched. `target`: whether the bound is one of the project's targets.
    """

    where: str
    name: str
    peer: str | None
    median: float
    least: float
    most: float
    bound: float | None = None
    higher_is_better: bool = False
    target: bool = False
    met: bool | None = field(init=False)

    def __post_init__(self) -> None:
        within = self.bound is not None and (
            self.median >= self.bound if self.higher_is_better else self.median <= self.bound
        )
        self.met = None if self.bound is None else within

    @classmethod
    def exact(cls, where: str, name: str, peer: str | None, value: float, bound: float) -> Ratio:
        """A figure without spread, such as of bytes."""
        return cls(where, name, peer, value, value, value, bound)

    @property
    def label(self) -> str:
        """What is shown in a table."""
        return self.name if self.peer is None else f"{self.name} / {self.peer}"

    @property
    def bound_text(self) -> str:
        """The bound, and its direction where that is not the usual one."""
        if self.bound is None:
            return "-"
        return f"at least {self.bound:.4g}" if self.higher_is_better else f"{self.bound:.4g}"


def ratios_of(content: Mapping[str, Any]) -> list[Ratio]:
    """The ratios in a results file; files from before there were any have none."""
    return [Ratio(**{key: value for key, value in each.items() if key != "met"}) for each in content.get("ratios", ())]


@dataclass(slots=True)
class Table:
    """A table of results. `rows` hold numbers as they were measured; `show` makes text of them. `main`: whether it is one of
    the few that `latest` shows."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    note: str = ""
    main: bool = False

    def add(self, *cells: Cell) -> None:
        """Append a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: expected {len(self.columns)} cells, found {len(cells)}")
        self.rows.append(cells)

    def texts(self) -> list[list[str]]:
        """Rows as they are shown."""
        return [[text(cell) for cell in row] for row in self.rows]

    def markdown(self) -> list[str]:
        """Lines of a Markdown table, with its note."""
        lines = [f"| {' | '.join(self.columns)} |", "|---|" + "---:|" * (len(self.columns) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in self.texts()]
        return lines + (["", self.note] if self.note else [])


def text(cell: Cell) -> str:
    """A cell as it is shown."""
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
    ratios: list[Ratio] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def table(self, title: str, *columns: str, note: str = "", main: bool = False) -> Table:
        """Begin a table."""
        self.tables.append(Table(title, columns, note=note, main=main))
        return self.tables[-1]

    def hold(self, ratio: Ratio) -> bool | None:
        """Keep a figure for programs; whether its bound is met."""
        self.ratios.append(ratio)
        return ratio.met

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
        content = {**asdict(self), "seconds": round(time.monotonic() - self.started), "machine": machine()}
        del content["started"]  # a clock of this process
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        path = folder / f"{self.name}.md"
        path.write_text(self._markdown(content["machine"]))
        return path

    def _markdown(self, where: Mapping[str, Cell]) -> str:
        lines = [f"# {self.name}: {self.question}", "", "Written by the program; do not edit.", "", f"`{self.command}`"]
        lines += ["", ", ".join(f"{key} {text(value)}" for key, value in self.settings.items())]
        for warning in self.warnings:
            lines += ["", f"**Note:** {warning}"]
        for table in self.tables:
            lines += ["", f"## {table.title}", "", *table.markdown()]
        lines += ["", "## Machine", "", *(f"- {key}: {text(value)}" for key, value in where.items())]
        return "\n".join(lines) + "\n"


def times_table(result: Result, title: str, times: Times, unit: str = "s") -> None:
    """Seconds, or ms, of every candidate."""
    factor = 1000 if unit == "ms" else 1
    table = result.table(title, "what", f"median {unit}", f"least {unit}", f"most {unit}")
    for name in times.seconds:
        found = times.summary(name)
        table.add(name, factor * found.median, factor * found.least, factor * found.most)
    result.raw[title] = {name: list(seconds) for name, seconds in times.seconds.items()}


def ratio_table(
    result: Result,
    title: str,
    times: Times,
    pairs: Sequence[tuple[str, str]],
    bound: float | None = None,
    *,
    higher_is_better: bool = False,
    target: bool = False,
    main: bool = False,
    note: str = "",
) -> None:
    """Candidate / peer for each pair, and whether the median is within the bound; also among the result's ratios."""
    table = result.table(title, "what / peer", "median", "least", "most", "bound", "met", note=note, main=main)
    for name, peer in pairs:
        found = times.ratio(name, peer)
        ratio = Ratio(title, name, peer, found.median, found.least, found.most, bound, higher_is_better, target)
        table.add(ratio.label, ratio.median, ratio.least, ratio.most, ratio.bound_text, result.hold(ratio))


def console() -> Console:
    """Where tables go: wide where the output is a file or a pipe."""
    made = Console()
    return made if made.is_terminal else Console(width=200)


def saves(wanted: bool) -> bool:
    """Whether results are saved: where it is wanted, and always where they go elsewhere than into the repository."""
    return wanted or RESULTS != COMMITTED


def finish(result: Result, *, save: bool) -> None:
    """Show a result and, if wanted, save it (`saves`)."""
    out = console()
    result.show(out)
    for warning in result.warnings:
        out.print(f"Note: {warning}", markup=False, highlight=False)
    if saves(save):
        out.print(f"Saved: {os.path.relpath(result.save())}", markup=False, highlight=False)
