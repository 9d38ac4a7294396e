"""Other people's files -> .tsw: one small module a format, found by looking into the file.

    formats          all importers, in the order in which they are asked
    find             the one that knows a source
    needs_base       whether it must be given a base
    ImportOptions    what the user gave beside source, base and output
    refuse_experts   what only TALL masks have a use for
    names_of         names of a checkpoint, tied ones too, each with the one that it is stored under
    floats           a range of a tensor as f32 or f64

To add one: CONTRIBUTING.md, "How to add an importer".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tswitch_format import BuildResult
from tswitch_format.checkpoint import CheckpointReader
from tswitch_format.errors import OptionError

CHUNK = 1 << 20  # elements: what GivenSwitch.chunk gives at once

_MODULES = ("bitdelta", "tswitch_authors", "tall_masks", "safetensors_carrier")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """`task`: its name in the file, where the source has several the one to take; `expert`: the fine-tuned checkpoint, where a
    format leaves scales to it; `experts`: those of all tasks by name, or `multi_task`, a file of their merged vector, where a
    format leaves that to them; `ties`: merge them by TIES; `shared_dtype`: how the vector is stored; `scales`: a file of
    scales; `knob`: one for all; `profile`, `base_id`, `base_revision`, `threads`, `progress` as in `build`."""

    task: str | None = None
    expert: CheckpointReader | None = None
    experts: Mapping[str, Any] = field(default_factory=dict)
    multi_task: Path | None = None
    ties: bool = False
    shared_dtype: str = "F32"
    scales: Path | None = None
    knob: float | None = None
    profile: str = "archive"
    base_id: str | None = None
    base_revision: str | None = None
    threads: int | None = None
    progress: Callable[[int, int], None] | None = None


class Importer(Protocol):
    """What a module here has."""

    __name__: str
    NAME: str  # for --format
    SUMMARY: str  # what such files are, and what is needed beside them
    NEEDS_BASE: bool  # whether the checkpoint that the source is of must be given; a module without the name needs it

    def accepts(self, source: Path) -> bool:
        """Whether the source looks like one of this format. Reads little, raises nothing."""
        ...

    def convert(self, source: Path, base: CheckpointReader | None, out: Path, options: ImportOptions) -> BuildResult:
        """Write the file. `base` is None only where `needs_base` is false. Raises TswError; then nothing is written."""
        ...


def formats() -> Sequence[Importer]:
    """All importers."""
    return [import_module(f"{__name__}.{name}") for name in _MODULES]


def find(source: Path, name: str | None = None) -> Importer:
    """The importer of that name, or else the one that accepts the source. Raises OptionError."""
    known = formats()
    named = next((importer for importer in known if name == importer.NAME), None)
    if name is not None and named is None:
        raise OptionError(f"format: expected one of {', '.join(i.NAME for i in known)}, found {name!r}")
    if not source.exists():
        raise OptionError(f"{source}: no such file or folder; check the path")
    importer = named or next((importer for importer in known if importer.accepts(source)), None)
    if importer is None:
        raise OptionError(
            f"{source}: expected a file of one of the formats that 'tsw import --list' shows, found none; "
            "name it with --format"
        )
    return importer


def refuse_experts(source: Path, options: ImportOptions) -> None:
    """Raise OptionError where experts or a vector of several tasks are given, of which a format has no use."""
    given = {"--experts": options.experts, "--multi-task": options.multi_task, "--ties": options.ties}
    for option, value in given.items():
        if value:
            raise OptionError(f"{source}: {option}: it is for TALL masks, and these are none; leave it out")


def needs_base(importer: Importer) -> bool:
    """Whether an importer must be given a base."""
    return getattr(importer, "NEEDS_BASE", True)


def names_of(reader: CheckpointReader) -> Mapping[str, str]:
    """All names of tensors, each with the one in `reader.specs`."""
    return {**{name: name for name in reader.specs}, **reader.aliases}


def floats(reader: CheckpointReader, name: str, start: int, count: int) -> NDArray[np.float32] | NDArray[np.float64]:
    """`count` elements from flat element `start` on, exact: f64 of an F64 tensor, f32 of other floats. Raises
    CheckpointError."""
    dtype = reader.specs[name].dtype
    raw = np.empty(dtype.nbytes(count), np.uint8)
    reader.read_into(name, dtype.nbytes(start), raw)
    if dtype.name == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype.name == "F64":
        return raw.view("<f8").astype(np.float64, copy=False)
    return raw.view(dtype.storage).astype(np.float32)
