"""Safetensors files, and Hugging Face folders of them, as checkpoints.

    accepts, open_reader    the plug-in (see `tswitch_format.checkpoint`)
    SafetensorsCheckpoint   one or more files
    read_header             one file's header, checked
    read_index, check_index the weight_map of an index.json, checked (of .bin shards too)
    folder_files, index_in  what lies in a model folder

The header is parsed here, not by the safetensors package: that one hands out whole tensors, or slices along an axis,
of a mapped file, whereas we need ranges of bytes, read by several threads into buffers of the caller. Files are read,
never mapped, since the pages of a map count as memory of the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format.checkpoint import DTYPE_BY_NAME, CheckpointReader, ShardLayout, TensorSpec
from tswitch_format.errors import CheckpointError
from tswitch_tools.checkpoints.open_files import ReadFile

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the safetensors package refuses more, too

_LENGTH = 8  # bytes of the header's length, before the header
_MAX_READ = 1 << 30  # Linux moves at most 2^31 - 4096 bytes a call
_AGAIN = "download the file again, or save it again with the safetensors package"
_SAME_SAVE = "download the folder again, so that index and files are of one save"


def accepts(source: object) -> bool:
    """Whether `source` is the path of a .safetensors file, of an index of such, or of a folder with either."""
    if not isinstance(source, Path):
        return False
    if source.is_dir():
        return any(file.name.endswith((SUFFIX, INDEX_SUFFIX)) for file in folder_files(source))
    return source.is_file() and source.name.endswith((SUFFIX, INDEX_SUFFIX))


def open_reader(source: Path) -> CheckpointReader:
    """Open a file, an index or a folder. A folder's index says which files count; without one, all .safetensors do.

    Raises CheckpointError where a header or the index is wrong, or a file cannot be read.
    """
    folder = source if source.is_dir() else None
    index = index_in(source, INDEX_SUFFIX) if folder else None
    if source.name.endswith(INDEX_SUFFIX) and not folder:
        index, folder = source, source.parent
    if index is not None:
        weight_map = read_index(index)
        files = [index.parent / name for name in sorted(set(weight_map.values()))]
        checkpoint = SafetensorsCheckpoint(files, location=str(source), index=index, folder=folder)
        try:
            check_index(index, weight_map, checkpoint.layout.files)
        except CheckpointError:
            checkpoint.close()
            raise
        return checkpoint
    files = [file for file in folder_files(folder) if file.name.endswith(SUFFIX)] if folder else [source]
    return SafetensorsCheckpoint(files, location=str(source), folder=folder)


class SafetensorsCheckpoint:
    """The tensors of one or more .safetensors files, which are read until `close`, and open as `open_files` says.

    `specs` has them file by file in the order of their data. Where files disagree on a key of `__metadata__`, the first
    file's value counts. Raises CheckpointError where a header is wrong or a tensor is in two files.
    """

    def __init__(
        self, files: Sequence[Path], *, location: str, index: Path | None = None, folder: Path | None = None
    ) -> None:
        self.location = location
        self.paths = [*files, *([index] if index else [])]
        self.specs: dict[str, TensorSpec] = {}
        self.aliases: Mapping[str, str] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[ReadFile, int]] = {}  # name -> file, first byte in it
        headers: dict[str, Header] = {}
        with contextlib.ExitStack() as stack:
            for path in files:
                file = stack.enter_context(contextlib.closing(ReadFile(path)))
                with file.opened() as fd:
                    header = headers[path.name] = read_header(fd, path)
                for spec in header.specs:
                    if spec.name in self.specs:
                        raise CheckpointError(
                            f"{path}: tensor {spec.name!r}: expected it in one file, found it in "
                            f"{self._places[spec.name][0].path.name} too; keep the files of one checkpoint only"
                        )
                    self.specs[spec.name] = spec
                    self._places[spec.name] = (file, header.offsets[spec.name])
                self.metadata = {**header.metadata, **self.metadata}
            self._files = stack.pop_all()
        self.layout = ShardLayout(
            files={file: [spec.name for spec in header.specs] for file, header in headers.items()},
            metadata={file: header.metadata for file, header in headers.items()},
            index_name=index.name if index else None,
            folder=folder,
        )

    def read_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """See `CheckpointReader.read_into`."""
        if name not in self._places:
            state = "closed" if name in self.specs else "not in it"
            raise CheckpointError(f"{self.location}: tensor {name!r}: cannot be read, it is {state}; open it again")
        spec = self.specs[name]
        if not 0 <= start <= start + out.size <= spec.nbytes:
            raise CheckpointError(
                f"{self.location}: tensor {name!r}: expected a range within its {spec.nbytes} bytes, "
                f"found {start} to {start + out.size}; ask for less"
            )
        file, offset = self._places[name]
        with file.opened() as fd:
            _read_exactly(fd, file.path, offset + start, out.data)

    def close(self) -> None:
        """See `CheckpointReader.close`."""
        self._places = {}
        self._files.close()


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header: tensors in the order of their data, where in the file each begins (bytes), `__metadata__`."""

    specs: Sequence[TensorSpec]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]


def read_header(fd: int, path: Path) -> Header:
    """Read and check the header of the open file `fd`, called `path` in messages.

    Raises CheckpointError where it is no safetensors header, or does not account for every byte of the file.
    """
    size = os.fstat(fd).st_size
    if size < _LENGTH:
        raise CheckpointError(f"{path}: expected a safetensors file, found one of only {size} bytes; {_AGAIN}")
    prefix = bytearray(_LENGTH)
    _read_exactly(fd, path, 0, memoryview(prefix))
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: expected a safetensors header of at most {MAX_HEADER} bytes, found the length {length} "
            f"at byte 0: this is no safetensors file; {_AGAIN}"
        )
    data_start = _LENGTH + length
    if data_start > size:
        raise CheckpointError(
            f"{path}: expected a header of {length} bytes at byte {_LENGTH}, found the end of the file at byte {size}; "
            f"{_AGAIN}"
        )
    text = bytearray(length)
    _read_exactly(fd, path, _LENGTH, memoryview(text))
    header = _parse_object(text, f"{path}: header at byte {_LENGTH}", _AGAIN)
    metadata = header.pop("__metadata__", {})
    if not _maps_strings(metadata):
        raise CheckpointError(
            f"{path}: __metadata__: expected a map of string to string, found another value; {_AGAIN}"
        )
    ranges = sorted((_parse_tensor(name, entry, path) for name, entry in header.items()), key=lambda r: r[:2])
    end = 0
    for begin, stop, spec in ranges:
        if begin != end:
            raise CheckpointError(
                f"{path}: tensor {spec.name!r}: expected its data to begin at byte {end} of the data, where the data "
                f"before it ends, found {begin} ({'a hole' if begin > end else 'an overlap'}); {_AGAIN}"
            )
        end = stop
    if data_start + end != size:
        state = "is truncated" if size < data_start + end else "has bytes that belong to no tensor"
        raise CheckpointError(f"{path}: expected {data_start + end} bytes, found {size}: the file {state}; {_AGAIN}")
    return Header(
        specs=[spec for _, _, spec in ranges],
        offsets={spec.name: data_start + begin for begin, _, spec in ranges},
        metadata=metadata,
    )


def _parse_tensor(name: str, entry: Any, path: Path) -> tuple[int, int, TensorSpec]:
    """First byte and byte after the last one, in the file's data, of the tensor that an entry describes."""
    where = f"{path}: tensor {name!r}"
    match entry:
        case {"dtype": str(dtype_name), "shape": list(shape), "data_offsets": [begin, stop]} if all(
            type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, stop)
        ):
            pass
        case _:
            raise CheckpointError(
                f"{where}: expected dtype, shape and data_offsets (integers from 0 on), found {reprlib.repr(entry)}; "
                f"{_AGAIN}"
            )
    dtype = DTYPE_BY_NAME.get(dtype_name)
    if dtype is None:
        raise CheckpointError(
            f"{where}: expected one of the types {', '.join(DTYPE_BY_NAME)}, found {dtype_name!r}; "
            "convert the tensor to one of them"
        )
    spec = TensorSpec(name, dtype, tuple(shape))
    if spec.elements * dtype.bits % 8:
        raise CheckpointError(
            f"{where}: expected whole bytes of data, found {spec.elements} of {dtype.bits} bits; {_AGAIN}"
        )
    if stop - begin != spec.nbytes:
        raise CheckpointError(
            f"{where}: expected {spec.nbytes} bytes of data for {spec}, found {stop - begin} ({begin} to {stop}); "
            f"{_AGAIN}"
        )
    return begin, stop, spec


def folder_files(folder: Path) -> list[Path]:
    """The files in a folder that are not hidden, by name. Raises CheckpointError where it cannot be listed."""
    try:
        return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed: {error.strerror}; check its permissions") from error


def index_in(folder: Path, suffix: str) -> Path | None:
    """The index among a folder's files: the only one whose name ends with `suffix`, or the one that loaders look for.

    Raises CheckpointError where there are several, and none has the usual name.
    """
    found = [file for file in folder_files(folder) if file.name.endswith(suffix)]
    usual = [file for file in found if file.name in (f"model{suffix}", f"pytorch_model{suffix}")]
    if len(found) > 1 and len(usual) != 1:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{folder}: expected one index, found {names}; pass the path of the one to read")
    return next(iter(usual or found), None)


def read_index(path: Path) -> Mapping[str, str]:
    """The weight_map of an index.json: name of a tensor -> name of its file, which lies beside the index.

    Raises CheckpointError where it is no such index, or names a file in another folder or one that is not there.
    """
    with contextlib.closing(ReadFile(path)) as index, index.opened() as fd:
        size = os.fstat(fd).st_size
        if size > MAX_HEADER:
            raise CheckpointError(
                f"{path}: expected an index of at most {MAX_HEADER} bytes, found {size}; {_SAME_SAVE}"
            )
        text = bytearray(size)
        _read_exactly(fd, path, 0, memoryview(text))
    weight_map = _parse_object(text, str(path), _SAME_SAVE).get("weight_map")
    if not _maps_strings(weight_map) or not weight_map:
        raise CheckpointError(f"{path}: expected a weight_map of tensor name to file name, found none; {_SAME_SAVE}")
    result: dict[str, str] = weight_map
    for file in sorted(set(result.values())):
        if file in ("", ".", "..") or any(c in file for c in "/\\\0"):
            raise CheckpointError(f"{path}: expected names of files beside the index, found {file!r}; {_SAME_SAVE}")
        if not (path.parent / file).is_file():
            raise CheckpointError(f"{path}: expected the file {file!r} beside the index, found none; {_SAME_SAVE}")
    return result


def check_index(path: Path, weight_map: Mapping[str, str], files: Mapping[str, Iterable[str]]) -> None:
    """Compare an index at `path` with the tensors that its files hold. Raises CheckpointError where they differ."""
    held = {name: file for file, names in files.items() for name in names}
    if held == weight_map:
        return
    name = min(name for name in held.keys() | weight_map.keys() if held.get(name) != weight_map.get(name))
    listed, found = (repr(m[name]) if name in m else "no file" for m in (weight_map, held))
    raise CheckpointError(
        f"{path}: tensor {name!r}: expected it in {listed} as listed, found it in {found}; {_SAME_SAVE}"
    )


def _maps_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _parse_object(text: bytearray, where: str, advice: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_object_of_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected JSON, found something else: {error}; {advice}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found a {type(value).__name__}; {advice}")
    return value


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from JSON. ValueError where a key comes twice or a string is not Unicode (a lone surrogate)."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} comes twice")
        key.encode()
        if isinstance(value, str):
            value.encode()
        result[key] = value
    return result


def _read_exactly(fd: int, path: Path, offset: int, out: memoryview) -> None:
    """Fill `out` from byte `offset` of the file on. Raises CheckpointError where the file ends first."""
    while out.nbytes:
        try:
            count = os.preadv(fd, [out[:_MAX_READ]], offset)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read at byte {offset}: {error.strerror}; check the disk, or {_AGAIN}"
            ) from error
        if count == 0:
            raise CheckpointError(
                f"{path}: expected {out.nbytes} more bytes at byte {offset}, found the end of the file: "
                "it was cut while it was open; leave it alone while it is read"
            )
        out = out[count:]
        offset += count
