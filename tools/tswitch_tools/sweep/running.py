"""`tsw_sweep`: every method keeps the experts in files, and what comes back from them is timed and evaluated."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from tswitch_format.atomic import check_output, output_errors
from tswitch_format.errors import OptionError, TswError
from tswitch_tools.sweep.defaults import default_methods
from tswitch_tools.sweep.method import Evaluate, Job, Kept, Method, numbered
from tswitch_tools.sweep.table import Failure, Row, SweepTable
from tswitch_tools.sweep.tensors import read_tensors, write_tensors

_LOADS = 3


def tsw_sweep(
    base: Any,
    experts: Mapping[str, Any],
    evaluate: Evaluate,
    *,
    validate: Evaluate | None = None,
    methods: Sequence[Method] | None = None,
    folder: str | PathLike[str] | None = None,
    save: str | PathLike[str] | None = None,
    run: str = "",
    loads: int = _LOADS,
    progress: Callable[[int, int], None] | None = None,
) -> SweepTable:
    """Measure what each way of keeping the experts of a base costs and keeps.

    `base`, and `experts` by task: paths, mappings of arrays, or nn.Modules (those are written to files first).
    `evaluate(task, weights)`: how good a model with these weights is at a task, on held-out data; a finite number, higher is
    better. `weights`: all tensors by name, on the CPU, to be read during the call. It chooses nothing: what a method has to
    choose, it chooses by `validate`, the same on other data; without that methods use the published defaults, and the table
    says so. `methods`: default_methods() if left out; names must differ.

    `folder`: where the files go, made if need be, a folder for each method; a temporary one if left out. `save`: a file that
    gets the table after each method, so that nothing is lost when something ends the sweep. `run`: what this sweep is called
    where tables are joined, such as a seed. `progress` gets methods done and in all.

    Time to switch: from files in the page cache to weights, base tensors in memory, the median of `loads`; one before them
    warms files and compiled loops. With 0 that one is all there is, for sweeps that ask for no times.
    Memory: the base twice or three times, and what methods take.

    A method that raises a TswError is a failure in the table and has no rows; others go on. Raises OptionError for arguments
    that make no sense and scores of base or experts that are no numbers, CheckpointError, OutputError, and whatever
    `evaluate` raises.
    """
    chosen = list(default_methods() if methods is None else methods)
    _check(experts, chosen)
    for what, given in (("evaluate", evaluate), ("validate", validate)):
        if not callable(given) and not (given is None and what == "validate"):
            raise OptionError(f"{what}: expected a function of a task and its weights, found {type(given).__name__}")
    if not isinstance(loads, int) or loads < 0:
        raise OptionError(f"loads: expected a number from 0 up, found {loads!r}")
    if folder is not None:
        _make(Path(folder))
    with tempfile.TemporaryDirectory(prefix="tsw-sweep-") as temporary:
        job = _job(
            base, experts, Path(folder or temporary), None if validate is None else _checked(validate, "validate")
        )
        out = None if save is None else Path(save)
        if out is not None:
            check_output(out, [job.base, *job.experts.values()])
        return _Sweep(job, _checked(evaluate, "evaluate"), run, loads).measured(chosen, out, progress)


def _check(experts: Mapping[str, Any], methods: Sequence[Method]) -> None:
    if not isinstance(experts, Mapping) or not experts:
        raise OptionError(f"experts: expected a mapping of task to checkpoint, with at least one, found {experts!r}")
    for task in experts:
        if not isinstance(task, str) or not task:
            raise OptionError(f"experts: expected names of tasks, found {task!r}; name it by a text")
    if not methods:
        raise OptionError("methods: expected at least one, found none; leave methods out for the default ones")
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"methods: expected names that differ, found {name!r} twice; leave one out, or rename it")


def _job(base: Any, experts: Mapping[str, Any], folder: Path, validate: Evaluate | None) -> Job:
    """Base and experts as files, those that are none yet written to a folder in `folder`."""
    written = folder / "inputs"
    job = Job(_file(base, written / "base.safetensors"), {}, folder, validate, read_tensors(base))
    files = {
        task: _file(expert, written / f"{numbered(number, task)}.safetensors", job.names)
        for number, (task, expert) in enumerate(experts.items())
    }
    return replace(job, experts=files)


def _file(source: Any, path: Path, names: Sequence[str] = ()) -> Path:
    if isinstance(source, str | PathLike):
        return Path(source)
    _make(path.parent)
    write_tensors(source, path, names)
    return path


def _make(folder: Path) -> None:
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _checked(evaluate: Evaluate, name: str) -> Evaluate:
    """The user's function, which must give finite numbers."""

    def score(task: str, weights: Mapping[str, Tensor]) -> float:
        found = evaluate(task, weights)
        if not isinstance(found, Real) or not math.isfinite(found):
            raise OptionError(f"{name}: task {task!r}: expected a finite number, higher is better, found {found!r}")
        return float(found)

    return score


class _Sweep:
    """One sweep: what it measures, and against what."""

    def __init__(self, job: Job, evaluate: Evaluate, run: str, loads: int) -> None:
        self._job = job
        self._evaluate = evaluate
        self._run = run
        self._loads = loads
        self._bases = {task: evaluate(task, job.weights()) for task in job.experts}
        self._experts = {task: evaluate(task, job.load_expert(task)) for task in job.experts}

    def measured(
        self, methods: Sequence[Method], save: Path | None, progress: Callable[[int, int], None] | None
    ) -> SweepTable:
        """The table of all methods, written to `save` after each."""
        table = SweepTable([])
        for number, method in enumerate(methods):
            try:
                table += SweepTable(self._rows(method, self._job.folder / numbered(number, method.name)))
            except TswError as error:
                table += SweepTable([], [Failure(method.name, str(error), self._run)])
            if save is not None:
                table.save(save)
            if progress:
                progress(number + 1, len(methods))
        return table

    def _rows(self, method: Method, folder: Path) -> list[Row]:
        _make(folder)
        kept = method.keep(replace(self._job, folder=folder))
        if kept.keys() != self._job.experts.keys():
            raise OptionError(
                f"method {method.name!r}: expected files of the tasks {', '.join(self._job.experts)}, found those of "
                f"{', '.join(kept) or 'none'}; keep each task"
            )
        return [self._row(method, task, kept[task]) for task in self._job.experts]

    def _row(self, method: Method, task: str, kept: Kept) -> Row:
        weights, seconds = _loaded(self._job, kept, self._loads)
        return Row(
            method.name,
            task,
            float(kept.nbytes),
            100 * kept.nbytes / self._job.fp32_bytes,
            self._evaluate(task, weights),
            self._experts[task],
            self._bases[task],
            seconds,
            dict(kept.chosen),
            self._run,
            method.family,
        )


def _loaded(job: Job, kept: Kept, loads: int) -> tuple[dict[str, Tensor], float]:
    """A task's weights, and the seconds that they take."""
    weights: dict[str, Tensor] = {}
    times = []
    for _ in range(1 + loads):
        weights.clear()  # no copy too many
        weights.update(job.weights())
        start = time.perf_counter()
        kept.load(weights)
        times.append(time.perf_counter() - start)
    return weights, median(times[1:] or times)
