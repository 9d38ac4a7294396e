"""What the library asks of a checkpoint, and how it finds someone who can read or write one.

    CheckpointReader   names, types, shapes, aliases, metadata; reads ranges of bytes; thread-safe
    CheckpointWriter   takes ranges of bytes in any order from any thread; appears whole or not at all
    open_checkpoint    path | mapping of arrays | nn.Module -> CheckpointReader
    create_checkpoint  path -> CheckpointWriter

Formats are plug-ins: an entry point in the group `tswitch_format.checkpoints` names a module that has

    def accepts(source: object) -> bool           # quick, opens nothing, imports nothing heavy
    def open_reader(source: Any) -> CheckpointReader

and one in `tswitch_format.checkpoint_writers` a module that has

    def accepts(path: Path, like: CheckpointReader) -> bool
    def open_writer(path: Path, like: CheckpointReader, specs: Sequence[TensorSpec], metadata) -> CheckpointWriter

So the library imports neither torch nor the tools that lie above it. Mappings of NumPy arrays are read here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tswitch_format._closing import Closing
from tswitch_format._dtypes import DTYPE_BY_NAME, DTYPES, DType, dtype_of_array
from tswitch_format.errors import CheckpointError

__all__ = [
    "DTYPES",
    "DTYPE_BY_NAME",
    "ArrayCheckpoint",
    "CheckpointReader",
    "CheckpointWriter",
    "DType",
    "ShardLayout",
    "TensorSpec",
    "borrow_checkpoint",
    "create_checkpoint",
    "open_checkpoint",
]

READERS = "tswitch_format.checkpoints"
WRITERS = "tswitch_format.checkpoint_writers"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.dtype.nbytes(self.elements)

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """How a checkpoint is spread over files.

    `files` maps each file's name to the names of its tensors in their order there, `metadata` each file's name to its
    `__metadata__`. A checkpoint in one file, or in none, has one member or none. `index_name` is the name of the JSON
    index, or None. `folder` is the folder that holds the files, if they lie in a model folder.
    """

    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    index_name: str | None = None
    folder: Path | None = None


class CheckpointReader(Protocol):
    """A checkpoint that is open for reading. All methods may be called from several threads at once."""

    @property
    def location(self) -> str:
        """What to call it in a message, such as its path."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """The files that it is read from (an output must not be one of them)."""
        ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Its tensors by name, tied ones once."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further name -> name in `specs`, for tied tensors."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The checkpoint's own metadata (`__metadata__` of safetensors), empty where there is none."""
        ...

    @property
    def layout(self) -> ShardLayout:
        """Files and their order."""
        ...

    def read_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` (1-D, contiguous) with the bytes of tensor `name` from byte `start` of it on.

        Raises CheckpointError where the checkpoint's file ends early or cannot be read.
        """
        ...

    def close(self) -> None:
        """Release files. Reading afterwards is an error."""
        ...


class CheckpointWriter(Protocol):
    """A checkpoint that is being written. Nothing is visible at its path before `commit`."""

    def write_from(self, name: str, start: int, data: NDArray[np.uint8]) -> None:
        """Write `data` (1-D, contiguous) as the bytes of tensor `name` from byte `start` of it on. Thread-safe."""
        ...

    def commit(self) -> None:
        """Make it durable and visible. Raises OutputError; then nothing is visible."""
        ...

    def abort(self) -> None:
        """Remove every trace. Safe to call at any time, also after `commit`, when it does nothing."""
        ...


def open_checkpoint(source: Any) -> CheckpointReader:
    """Open a path, a mapping of name to array, or an object with `state_dict()` such as an nn.Module.

    Raises CheckpointError where nobody can read it.
    """
    if hasattr(source, "read_into") and hasattr(source, "specs"):
        return source  # type: ignore[no-any-return]  # is a CheckpointReader already
    if isinstance(source, str):
        source = Path(source)
    if isinstance(source, Mapping) and all(isinstance(a, (np.ndarray, np.generic)) for a in source.values()):
        return ArrayCheckpoint(source)
    for plugin in _plugins(READERS):
        if plugin.accepts(source):
            reader: CheckpointReader = plugin.open_reader(source)
            return reader
    if isinstance(source, Path):
        if not source.exists():
            raise CheckpointError(f"{source}: no such file or folder; check the path")
        raise CheckpointError(
            f"{source}: expected a .safetensors file, a folder or index.json of shards, or a .bin, .pt or .pth file; "
            "found none of them; convert the checkpoint to safetensors"
        )
    raise CheckpointError(
        f"expected a path, a mapping of name to array, or an nn.Module, found {type(source).__name__}; "
        "pass module.state_dict() or a path"
    )


@contextlib.contextmanager
def borrow_checkpoint(source: Any) -> Iterator[CheckpointReader]:
    """`open_checkpoint` for the length of a block. A reader that is open already stays open: it is the caller's."""
    reader = open_checkpoint(source)
    try:
        yield reader
    finally:
        if reader is not source:
            reader.close()


def create_checkpoint(
    path: Path, *, like: CheckpointReader, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> CheckpointWriter:
    """Begin a checkpoint of these tensors at `path`, laid out as `like` is, with `metadata` over its own.

    Raises CheckpointError where nobody can write it, OutputError where the path cannot be written to.
    """
    for plugin in _plugins(WRITERS):
        if plugin.accepts(path, like):
            writer: CheckpointWriter = plugin.open_writer(path, like, specs, metadata)
            return writer
    raise CheckpointError(
        f"{path}: a checkpoint of that kind cannot be written; name the output OUT.safetensors, or a folder"
    )


@cache  # looking through all installed packages takes 10 ms, and a merge opens many checkpoints
def _plugins(group: str) -> list[Any]:
    return [point.load() for point in sorted(entry_points(group=group), key=lambda p: p.name)]


class ArrayCheckpoint(Closing):
    """A mapping of name to NumPy array as a checkpoint. Arrays that are views of the same memory are tied."""

    location = "the mapping of arrays"
    paths: Sequence[Path] = ()

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.specs: dict[str, TensorSpec] = {}
        self.aliases: dict[str, str] = {}
        self.metadata: Mapping[str, str] = {}
        self.layout = ShardLayout()
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        seen: dict[tuple[Any, ...], str] = {}
        for name in sorted(arrays):
            array = np.asarray(arrays[name])
            dtype = dtype_of_array(array)
            if dtype is None:
                raise CheckpointError(
                    f"tensor {name!r}: dtype {array.dtype} has no place in a .tsw file; convert it to a float or integer type"
                )
            pointer = array.__array_interface__["data"][0]
            key = (pointer, array.strides, array.shape, dtype.id)
            if array.size and key in seen:
                self.aliases[name] = seen[key]
                continue
            seen[key] = name
            self.specs[name] = TensorSpec(name, dtype, tuple(array.shape))
            flat = np.ascontiguousarray(array).reshape(-1)
            if flat.dtype.byteorder == ">":
                flat = flat.astype(flat.dtype.newbyteorder("<"))
            self._bytes[name] = flat.view(np.uint8)

    def read_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """See `CheckpointReader.read_into`."""
        found = self._bytes[name][start : start + out.size]
        if found.size != out.size:
            raise CheckpointError(
                f"tensor {name!r}: expected {out.size} bytes from byte {start} on, found {found.size}"
            )
        out[:] = found

    def close(self) -> None:
        """Nothing to release."""
