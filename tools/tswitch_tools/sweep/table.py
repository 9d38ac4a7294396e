"""What a sweep found: rows, their summary over tasks and runs, and both as text.

    Row          one method, one task, one run
    Failure      a method that could not keep these experts
    SummaryRow   one method over all tasks and runs
    SweepTable   rows and failures; Markdown, JSON and back, a plot

JSON: {"format": "tsw-sweep", "version": 1, "rows": [...], "failures": [...]}, fields as in the classes, and in each row `kept`,
which follows from the others (null where it is not defined) and is not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Self

from tswitch_format.atomic import AtomicFile
from tswitch_format.errors import OptionError, TswError
from tswitch_tools.sweep import picture
from tswitch_tools.text import printable, rounded, size

_FORMAT, _VERSION = "tsw-sweep", 1


@dataclass(frozen=True, slots=True)
class Row:
    """One task, kept by one method. `nbytes`: its own bytes and its share of what tasks have in common; `percent_of_fp32`: of 4
    bytes for each element of the base. `score`, `expert`, `base`: what `evaluate` says of what was kept, of the full expert
    and of the base. `switch_seconds`: from files in the page cache to weights, the base in memory. `chosen`: on validation
    data, or by default. `run`: which sweep, such as a seed. `family`: of the method.
    """

    method: str
    task: str
    nbytes: float
    percent_of_fp32: float
    score: float
    expert: float
    base: float
    switch_seconds: float
    chosen: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    family: str = ""

    @property
    def kept(self) -> float:
        """The score in % of the full expert's; NaN where that is 0 or less, of which nothing is a share."""
        return 100 * (self.score / self.expert) if self.expert > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Failure:
    """A method that has no rows in a run, and the message that says why."""

    method: str
    error: str
    run: str = ""


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One method over all its tasks and runs.

    `kept`: the mean of the runs' means over tasks, in %; `spread`: the standard deviation of the runs' means (n - 1), None of
    one run; `worst`: the lowest of the tasks' means over runs, of task `worst_task`. Where `kept` of a row is NaN the row does
    not count in these, and they are NaN where none counts. `nbytes` (a task) and `percent_of_fp32`: means; `switch_seconds`:
    median; `chosen`: all values that were.
    """

    method: str
    family: str
    kept: float
    spread: float | None
    worst: float
    worst_task: str
    nbytes: float
    percent_of_fp32: float
    switch_seconds: float
    chosen: str


@dataclass(frozen=True, slots=True)
class SweepTable:
    """Rows of one sweep or of several. Raises OptionError where a method has two rows of one task and run."""

    rows: Sequence[Row]
    failures: Sequence[Failure] = ()

    def __post_init__(self) -> None:
        seen = set()
        for row in self.rows:
            key = (row.method, row.task, row.run)
            if key in seen:
                raise OptionError(
                    f"rows: expected one of each method, task and run, found two of method {row.method!r}, task {row.task!r}, "
                    f"run {row.run!r}; give each sweep a run of its own"
                )
            seen.add(key)

    @classmethod
    def join(cls, tables: Iterable[SweepTable]) -> Self:
        """All rows of several tables, such as those of several seeds."""
        tables = list(tables)
        return cls([row for table in tables for row in table.rows], [f for table in tables for f in table.failures])

    def __add__(self, other: SweepTable) -> SweepTable:
        return SweepTable.join([self, other])

    def summary(self) -> list[SummaryRow]:
        """A row for each method, in the order in which they first come."""
        methods: dict[str, list[Row]] = {}
        for row in self.rows:
            methods.setdefault(row.method, []).append(row)
        return [_summary(rows) for rows in methods.values()]

    def frontier(self) -> list[SummaryRow]:
        """The rows of the summary of which no other has as few bytes and keeps as much, and is better in one of both."""
        rows = [row for row in self.summary() if not math.isnan(row.kept)]
        return [row for row in rows if not any(_beats(other, row) for other in rows)]

    def markdown(self) -> str:
        """The summary as a table, and what failed below it. Rows of the frontier begin with *."""
        best = {row.method for row in self.frontier()}
        head = ("", "method", "kept %", "spread", "worst task", "a task", "% of fp32", "to switch", "chosen")
        lines = [_line(head), "| " + " | ".join(["---"] * len(head)) + " |"]
        for row in self.summary():
            lines.append(
                _line(
                    (
                        "*" if row.method in best else "",
                        row.method,
                        _percent(row.kept),
                        "-" if row.spread is None else _percent(row.spread),
                        "-" if math.isnan(row.worst) else f"{_percent(row.worst)} ({row.worst_task})",
                        size(row.nbytes),
                        rounded(row.percent_of_fp32),
                        f"{rounded(1000 * row.switch_seconds)} ms",
                        row.chosen or "-",
                    )
                )
            )
        lines += ["", "\\* no other keeps as much in as few bytes"] if best else []
        for failure in self.failures:
            run = f" (run {failure.run})" if failure.run else ""
            lines += ["", f"{_cell(failure.method)}{_cell(run)} failed: {_cell(failure.error)}"]
        return "\n".join(lines) + "\n"

    def as_json(self) -> str:
        """The table as JSON; the module says what is in it."""
        rows = [asdict(row) | {"kept": None if math.isnan(row.kept) else row.kept} for row in self.rows]
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "rows": rows,
            "failures": [asdict(f) for f in self.failures],
        }
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, whole or not at all. Raises OutputError."""
        with AtomicFile(Path(path)) as output:
            output.write(self.as_json().encode(errors="backslashreplace"))
            output.commit()

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote. Raises TswError."""
        try:
            document = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise TswError(f"{path}: could not be read: {error.strerror or error}; check the path") from error
        except ValueError as error:
            raise TswError(f"{path}: expected JSON, found something else: {error}; save the table again") from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise TswError(
                f'{path}: expected a table with "format": "{_FORMAT}", found none; name a file of SweepTable.save'
            )
        if document.get("version") != _VERSION:
            raise TswError(
                f"{path}: expected version {_VERSION} of the table, found {document.get('version')!r}; update tswitch-format"
            )
        return cls(
            [Row(**_fields(Row, item, f"{path}: row {number}")) for number, item in _items(path, document, "rows")],
            [
                Failure(**_fields(Failure, item, f"{path}: failure {number}"))
                for number, item in _items(path, document, "failures")
            ],
        )

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw % kept against % of fp32, families as lines: a .png or .svg. Raises OptionError, OutputError or TswError."""
        picture.write([(row.method, row.family, row.percent_of_fp32, row.kept) for row in self.summary()], Path(path))


def _summary(rows: Sequence[Row]) -> SummaryRow:
    runs = [mean for mean in _means(rows, lambda row: row.run).values() if not math.isnan(mean)]
    tasks = {task: mean for task, mean in _means(rows, lambda row: row.task).items() if not math.isnan(mean)}
    worst = min(tasks, key=lambda task: tasks[task], default="")
    values: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in row.chosen.items():
            values.setdefault(name, {})[value] = None
    return SummaryRow(
        rows[0].method,
        rows[0].family,
        fmean(runs) if runs else math.nan,
        stdev(runs) if len(runs) > 1 else None,
        tasks.get(worst, math.nan),
        worst,
        fmean(row.nbytes for row in rows),
        fmean(row.percent_of_fp32 for row in rows),
        median(row.switch_seconds for row in rows),
        "; ".join(f"{name} {', '.join(found)}" for name, found in values.items()),
    )


def _means(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, float]:
    """The mean of what was kept for each key, NaN where it is not defined in any row."""
    kept: dict[str, list[float]] = {}
    for row in rows:
        kept.setdefault(key(row), []).extend([] if math.isnan(row.kept) else [row.kept])
    return {name: fmean(found) if found else math.nan for name, found in kept.items()}


def _beats(one: SummaryRow, other: SummaryRow) -> bool:
    as_good = one.percent_of_fp32 <= other.percent_of_fp32 and one.kept >= other.kept
    return as_good and (one.percent_of_fp32, one.kept) != (other.percent_of_fp32, other.kept)


def _percent(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.1f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


# What JSON may hold where a field has such a type; whole numbers are numbers.
_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "float": (int, float), "Mapping[str, str]": (dict,)}


def _items(path: str | PathLike[str], document: Mapping[str, Any], name: str) -> Iterable[tuple[int, Any]]:
    found = document.get(name)
    if not isinstance(found, list):
        raise TswError(f"{path}: expected a list of {name}, found {type(found).__name__}; save the table again")
    return enumerate(found)


def _fields(kind: type[Row] | type[Failure], item: Any, where: str) -> dict[str, Any]:
    """The fields of a row of JSON, checked."""
    found = {}
    for expected in fields(kind):
        value = item.get(expected.name) if isinstance(item, dict) else None
        if not isinstance(value, _TYPES[str(expected.type)]):
            raise TswError(
                f"{where}: {expected.name}: expected {expected.type}, found {type(value).__name__}; save the table again"
            )
        found[expected.name] = value
    return found
