"""A task of a .tsw file -> other people's files: one small module a format.

    formats             all exporters
    find                the one of a name
    takes_all           whether it can write all tasks at once
    fitting, problem_of what a format can hold of a task

To add one: as an importer, CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from tswitch_format import Switch, SwitchFile
from tswitch_format.errors import OptionError

_MODULES = ("bitdelta", "tswitch_authors", "tall_masks", "safetensors_carrier")


class Exporter(Protocol):
    """What a module here has."""

    __name__: str
    NAME: str  # for --to
    SUMMARY: str  # what is written, and what such files cannot hold
    ALL_TASKS: bool  # whether it can write all tasks at once; a module without the name cannot

    def convert(
        self,
        file: SwitchFile,
        task: str | None,
        out: Path,
        *,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sequence[str]:
        """Write one task, or all where `task` is None (only where `takes_all`), to `out`, a file or a folder that appears
        whole or not at all. `threads`: as many as there are cores if None, where it is written by several; `progress` is
        called with the tensors done and in all. Returns remarks for the user on what the format does not keep. Raises
        TswError; then nothing is written."""
        ...


def formats() -> Sequence[Exporter]:
    """All exporters."""
    return [import_module(f"{__name__}.{name}") for name in _MODULES]


def find(name: str) -> Exporter:
    """The exporter of that name. Raises OptionError."""
    known = formats()
    for exporter in known:
        if name == exporter.NAME:
            return exporter
    raise OptionError(
        f"to: expected one of {', '.join(e.NAME for e in known)}, found {name!r}; see 'tsw export --list'"
    )


def takes_all(exporter: Exporter) -> bool:
    """Whether an exporter can write all tasks at once."""
    return getattr(exporter, "ALL_TASKS", False)


def fitting(
    file: SwitchFile, task: str, problem: Callable[[Switch, Mapping[str, Switch]], str | None]
) -> dict[str, Switch]:
    """The switches of a task by name. Raises OptionError for the first that a format cannot hold: `problem` gives what is wrong
    with one among all of them, and what to do, or None."""
    switches = {name: file.switch(name, task) for name in file.keys(task)}
    found = {name: problem(switch, switches) for name, switch in switches.items()}
    problems = {name: wrong for name, wrong in found.items() if wrong is not None}
    for name, wrong in problems.items():
        more = f"; it is the first of {len(problems)} such tensors" if len(problems) > 1 else ""
        raise OptionError(f"{file.path}: task {task!r}: tensor {name!r}: {wrong}{more}")
    return switches


def problem_of(file: SwitchFile, switch: Switch) -> str | None:
    """What no format here can hold of a switch or a removed tensor, or None."""
    if switch.kind == "removed":
        return "expected a tensor that the expert has, found a removed one; use 'tsw restore'"
    if switch.kind == "masked":
        return (
            "expected a switch with signs of its own, found a mask over a shared vector; use 'tsw tall export', or "
            "'tsw restore'"
        )
    if switch.row_factors is not None or switch.column_factors is not None:
        return (
            "expected a knob only, found factors of rows or columns; pack with --knob-per tensor, or use 'tsw restore'"
        )
    base = file.base.spec(switch.name).dtype.name
    if switch.dtype != base:
        return f"expected the base's type {base}, found {switch.dtype}; convert the expert, then pack it anew"
    return None
