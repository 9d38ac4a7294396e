"""Other people's files -> .tsw: one small module a format, found by looking into the file.

    formats        all importers, in the order in which they are asked
    find           the one that knows a source
    ImportOptions  what the user gave beside source, base and output
    names_of       names of a checkpoint, tied ones too, each with the one that it is stored under
    floats         a range of a tensor as f32 or f64

To add one: CONTRIBUTING.md, "How to add an importer".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tswitch_format import BuildResult
from tswitch_format.checkpoint import CheckpointReader
from tswitch_format.errors import OptionError

CHUNK = 1 << 20  # elements: what GivenSwitch.chunk gives at once

_MODULES = ("bitdelta", "tswitch_authors")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """`task`: its name in the file, where the source has several the one to take; `expert`: the fine-tuned checkpoint, where a
    format leaves scales to it; `scales`: a file of them; `knob`: one for all; `profile`, `base_id`, `base_revision`, `threads`,
    `progress` as in `build`."""

    task: str | None = None
    expert: CheckpointReader | None = None
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

    def accepts(self, source: Path) -> bool:
        """Whether the source looks like one of this format. Reads little, raises nothing."""
        ...

    def convert(self, source: Path, base: CheckpointReader, out: Path, options: ImportOptions) -> BuildResult:
        """Write the file. Raises TswError; then nothing is written."""
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
