"""Checkpoints written as safetensors: one file, or a folder laid out as another checkpoint is.

    accepts, open_writer   the plug-in (see `tswitch_format.checkpoint`)
    SafetensorsWriter      the files of a checkpoint that is being written

All headers follow from the tensors' types and shapes, so they are written first and data goes straight to its place, in
any order, from any thread.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tswitch_format.atomic import AtomicFile, AtomicFolder, WritableFile, check_output
from tswitch_format.checkpoint import CheckpointReader, CheckpointWriter, ShardLayout, TensorSpec
from tswitch_format.errors import CheckpointError, OutputError
from tswitch_tools.checkpoints.safetensors_reader import INDEX_SUFFIX, MAX_HEADER, SUFFIX, folder_files

# Names with these suffixes are names of files that are not safetensors, not of folders.
_OTHER_FILES = (".bin", ".ckpt", ".gguf", ".h5", ".json", ".npz", ".pt", ".pth", ".tsw")
# What is not copied from the base's folder: weights of any format, and the indices of their files.
_WEIGHTS = (SUFFIX, ".bin", ".ckpt", ".gguf", ".h5", ".index.json", ".msgpack", ".npz", ".onnx", ".pt", ".pth", ".tsw")
_MAX_COPY = 64 << 20  # bytes; configurations and tokenizers are smaller


def accepts(path: Path, like: CheckpointReader) -> bool:
    """Whether `path` ends with .safetensors, or can be the name of a folder."""
    return path.is_dir() or not path.name.lower().endswith(_OTHER_FILES)


def open_writer(
    path: Path, like: CheckpointReader, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> CheckpointWriter:
    """Begin a file (where `path` ends with .safetensors) or a folder at `path`.

    A folder gets the files that `like` has, with `like`'s tensors in them and all further ones in the last, an index
    where there are several, and the small files that lie beside `like`, such as config.json. `metadata` is merged over
    that of `like`. Raises OutputError where `path` is an input or cannot be written, CheckpointError where the tensors
    do not fit the safetensors format.
    """
    if path.name.endswith(SUFFIX):
        check_output(path, like.paths)
        shards = [_Shard.plan(path.name, specs, {**like.metadata, **metadata})]
        return SafetensorsWriter(path, shards, _OneFile(path))
    check_output(path, (*like.paths, *(file.parent for file in like.paths)))
    shards = [
        _Shard.plan(name, tensors, {**base_metadata, **metadata})
        for name, tensors, base_metadata in _spread(like, specs)
    ]
    output = _Folder(path)
    with contextlib.ExitStack() as undo:
        undo.callback(output.abort)
        if len(shards) > 1:
            name = like.layout.index_name or ""
            output.add_bytes(name if name.endswith(INDEX_SUFFIX) else f"model{INDEX_SUFFIX}", _index(shards))
        if like.layout.folder is not None:
            output.add_copies(like.layout.folder)
        undo.pop_all()
    return SafetensorsWriter(path, shards, output)


def _spread(
    like: CheckpointReader, specs: Sequence[TensorSpec]
) -> list[tuple[str, list[TensorSpec], Mapping[str, str]]]:
    """Name, tensors and metadata before merging of each file of a folder."""
    layout = like.layout
    file_of = {name: file for file, names in layout.files.items() for name in names}
    last = list(layout.files)[-1] if layout.files else ""
    tensors: dict[str, list[TensorSpec]] = {file: [] for file in layout.files}
    for spec in specs:
        tensors.setdefault(file_of.get(spec.name, last), []).append(spec)
    filled = [(file, held) for file, held in tensors.items() if held]
    if len(filled) <= 1:
        return [(_only_name(layout), list(specs), like.metadata)]
    renamed = not all(file.endswith(SUFFIX) for file, _ in filled)
    return [
        (f"model-{i:05d}-of-{len(filled):05d}{SUFFIX}" if renamed else file, held, layout.metadata.get(file, {}))
        for i, (file, held) in enumerate(filled, 1)
    ]


def _only_name(layout: ShardLayout) -> str:
    """The name of the only file of a folder: the same as in the base's folder, else what loaders look for."""
    name = next(iter(layout.files), "")
    return name if layout.folder and len(layout.files) == 1 and name.endswith(SUFFIX) else f"model{SUFFIX}"


def _index(shards: Sequence[_Shard]) -> bytes:
    total = sum(place.nbytes for shard in shards for place in shard.places.values())
    weight_map = {name: shard.file for shard in shards for name in shard.places}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor goes: file, first byte there, bytes."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """One file to write: its name, the bytes before the data, and the places of its tensors."""

    file: str
    header: bytes
    places: Mapping[str, _Place]

    @classmethod
    def plan(cls, file: str, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> _Shard:
        entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        ranges: dict[str, tuple[int, int]] = {}
        end = 0
        for spec in _aligned(specs):
            if spec.name == "__metadata__" or spec.name in ranges:
                raise CheckpointError(
                    f"{file}: expected names of tensors that differ from each other and from '__metadata__', "
                    f"found {spec.name!r}; rename the tensor"
                )
            begin, end = end, end + spec.nbytes
            entries[spec.name] = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": [begin, end]}
            ranges[spec.name] = (begin, end)
        try:
            text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(
                f"{file}: expected names and metadata of valid Unicode, found {error.object[error.start]!r}; rename it"
            ) from error
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8, as the format asks for
        if len(text) > MAX_HEADER:
            raise CheckpointError(
                f"{file}: expected a safetensors header of at most {MAX_HEADER} bytes, found {len(text)}; "
                "put the tensors into more files, or leave metadata out"
            )
        header = len(text).to_bytes(8, "little") + text
        places = {name: _Place(file, len(header) + begin, stop - begin) for name, (begin, stop) in ranges.items()}
        return cls(file, header, places)


def _aligned(specs: Sequence[TensorSpec]) -> Sequence[TensorSpec]:
    """The given order where it puts every tensor at a multiple of its element's size, else larger elements first."""
    end = 0
    for spec in specs:
        if end % spec.dtype.storage.itemsize:
            return sorted(specs, key=lambda s: -s.dtype.storage.itemsize)
        end += spec.nbytes
    return specs


class SafetensorsWriter:
    """The files of a checkpoint that is being written. Made by `open_writer`.

    Raises OutputError where the headers cannot be written; then no trace is left.
    """

    def __init__(self, path: Path, shards: Sequence[_Shard], output: _Output) -> None:
        self._path = path
        self._output = output
        self._places = {name: place for shard in shards for name, place in shard.places.items()}
        self._written = dict.fromkeys(self._places, 0)  # bytes by tensor
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo:
            undo.callback(output.abort)
            for shard in shards:
                output.begin(shard.file, shard.header)
            undo.pop_all()

    def write_from(self, name: str, start: int, data: NDArray[np.uint8]) -> None:
        """See `CheckpointWriter.write_from`. Raises OutputError where the disk is full, or the range is wrong."""
        place = self._places.get(name)
        if place is None or not 0 <= start <= start + data.size <= place.nbytes:
            raise OutputError(
                f"{self._path}: tensor {name!r}: expected a range within its {place.nbytes if place else 0} bytes, "
                f"found {start} to {start + data.size}; write the tensors that were announced"
            )
        self._output.write_at(place.file, place.offset + start, data.data)
        with self._lock:
            self._written[name] += data.size

    def commit(self) -> None:
        """See `CheckpointWriter.commit`. Raises OutputError also where bytes of a tensor were never written."""
        for name, place in self._places.items():
            if self._written[name] != place.nbytes:
                self.abort()
                raise OutputError(
                    f"{self._path}: tensor {name!r}: expected {place.nbytes} bytes before commit, found "
                    f"{self._written[name]} written; write every tensor whole and once, no partial file is left"
                )
        self._output.commit()

    def abort(self) -> None:
        """See `CheckpointWriter.abort`. No `write_from` may be under way."""
        self._output.abort()


class _Output(Protocol):
    """Named files that appear together. `begin` is called once for each file, before any `write_at` to it."""

    def begin(self, file: str, header: bytes) -> None: ...

    def write_at(self, file: str, offset: int, data: memoryview) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class _OneFile:
    """A single file, under the name of the output."""

    def __init__(self, path: Path) -> None:
        self._file = AtomicFile(path)
        self.commit = self._file.commit
        self.abort = self._file.abort

    def begin(self, file: str, header: bytes) -> None:
        self._file.write(header)

    def write_at(self, file: str, offset: int, data: memoryview) -> None:
        self._file.write_at(offset, data)


class _Folder:
    """The files of a folder."""

    def __init__(self, path: Path) -> None:
        self._folder = AtomicFolder(path)
        self._files: dict[str, WritableFile] = {}
        self.commit = self._folder.commit
        self.abort = self._folder.abort

    def add_bytes(self, file: str, content: bytes) -> None:
        """Add a whole file."""
        self._folder.open(file).write_at(0, content)

    def add_copies(self, folder: Path) -> None:
        """Add the small files of another folder that are not weights."""
        for file in folder_files(folder):
            if file.name.lower().endswith(_WEIGHTS):
                continue
            try:
                content = file.read_bytes() if file.stat().st_size < _MAX_COPY else None
            except OSError as error:
                reason = error.strerror or error
                raise CheckpointError(
                    f"{file}: could not be read, to be copied beside the weights: {reason}; check its permissions"
                ) from error
            if content is not None:
                self.add_bytes(file.name, content)

    def begin(self, file: str, header: bytes) -> None:
        self._files[file] = self._folder.open(file)
        self.write_at(file, 0, memoryview(header))

    def write_at(self, file: str, offset: int, data: memoryview) -> None:
        self._files[file].write_at(offset, data)
