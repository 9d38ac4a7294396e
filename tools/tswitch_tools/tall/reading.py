"""Masks of several tasks, in any of the forms in which people keep them.

    open_masks   a file or a folder -> MaskFile
    looks_like   whether it may be one, by its first bytes

The form is found by the first bytes, never by a name:

    0-d object array, NPY      {task: mask}, as np.save writes it, by NumPy 1 and 2
    zip of torch.save          {task: mask}, {tensor: bools} or a mask
    pickle, protocol 2 to 5    the same
    folder                     a .pt file for each task, which is named by it: {tensor: bools}, or a mask

where a mask is u8[ceil(N / 8)], packed by np.packbits, or bools of any shape, or {tensor: bools}. A file with a dict of bools
alone is of several tasks if all have one dimension and the same length, else of one task, which is named by the file.

Files are mapped: nothing is copied until a window of a mask is asked for, but masks that a pickle of protocol 2 has as text.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tswitch_format.errors import CheckpointError
from tswitch_tools.tall import archive, pickles
from tswitch_tools.tall.building import Array, Boxed, Bytes, shown
from tswitch_tools.tall.masks import FlatMask, Mask, NamedMask

SUFFIX = ".pt"  # of the files in a folder

_NPY = b"\x93NUMPY"
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how torch.save began before it made zip files
_LONGEST_HEADER = 1 << 16  # bytes, of NPY
_HEADER = re.compile(r"\{'descr': (.{1,999}), 'fortran_order': (?:True|False), 'shape': \(([0-9, ]*)\), \} *\n?")
_MOST_FILES = 10_000  # in a folder
_MOST_USES = 64  # of the same bytes, by tasks that share a mask
_ADVICE = "give a file of masks, or save them again as a dict of task to mask"


@dataclass(frozen=True, slots=True, eq=False)
class MaskFile:
    """`tasks` in the file's order, a folder's by name; never empty. Files stay mapped as long as there is a mask of them, and
    must not be written to meanwhile."""

    source: Path
    tasks: Mapping[str, Mask]


def looks_like(source: Path) -> bool:
    """Whether it is a zip, an NPY file, a pickle, or a folder with .pt files. Reads little, raises nothing."""
    try:
        if source.is_dir():
            return any(_is_task(path) for path in source.iterdir())
        if not source.is_file():
            return False
        with source.open("rb") as stream:
            start = stream.read(len(_LEGACY))
    except OSError:
        return False
    pickled = start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
    return start.startswith((_NPY, b"PK\x03\x04")) or (pickled and not start.startswith(_LEGACY))


def open_masks(source: Path) -> MaskFile:
    """The masks in a file or folder, mapped. Their lengths are not checked: see `FlatMask.check`.

    Raises CheckpointError for whatever is no file of masks, naming what is out of place in it. Nothing of a file is run.
    """
    if not source.is_dir():
        return MaskFile(source, _masks(source, several=True))
    try:
        paths = sorted(path for path in source.iterdir() if _is_task(path))
    except OSError as error:
        raise _unreadable(source, error) from error
    if not 0 < len(paths) <= _MOST_FILES:
        raise CheckpointError(
            f"{source}: expected a folder with a {SUFFIX} file for each task, found {len(paths)} such files; {_ADVICE}"
        )
    return MaskFile(source, {task: mask for path in paths for task, mask in _masks(path, several=False).items()})


def _is_task(path: Path) -> bool:
    return path.suffix == SUFFIX and not path.name.startswith(".") and path.is_file()


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected what can be read, found that it cannot ({error.strerror}); check the path"
    )


def _mapped(path: Path) -> Bytes:
    if not path.is_file():  # opening a pipe would wait for its other end
        raise CheckpointError(f"{path}: expected a file of masks or a folder of them, found none; check the path")
    try:
        with path.open("rb") as stream:
            if not stream.seek(0, os.SEEK_END):
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from error


def _masks(path: Path, *, several: bool) -> Mapping[str, Mask]:
    """The masks in a file: of several tasks, or of one that the file names."""
    data = _mapped(path)
    content = _content(data, str(path))
    tasks = _tasks(content, path) if several else {path.stem: _one(content, str(path))}
    total = sum(_size(mask) for mask in tasks.values())
    if total > _MOST_USES * data.size:
        raise CheckpointError(
            f"{path}: expected masks of at most {_MOST_USES} times the file's {data.size} bytes, found {total}, the same ones "
            f"under many names; {_ADVICE}"
        )
    return tasks


def _size(mask: Mask) -> int:
    """Bytes of its arrays."""
    return sum(one.data.size for one in ((mask,) if isinstance(mask, FlatMask) else mask.tensors.values()))


def _content(data: Bytes, where: str) -> object:
    """What a file holds, a box opened."""
    start = data[: len(_LEGACY)].tobytes()
    if archive.is_archive(data):
        return _of_torch(data, where)
    if start.startswith(_NPY):
        content = pickles.load(data[_after_header(data, where) :], where)
        if isinstance(content, Boxed):
            return content.content
        raise CheckpointError(f"{where}: expected an array of one dict, found {shown(content)}; {_ADVICE}")
    if start == _LEGACY:
        raise CheckpointError(
            f"{where}: expected a zip by torch.save, found a file of an old torch; "
            "load it with torch.load(..., weights_only=True) and save it again"
        )
    if start[:1] == b"\x80":
        return pickles.load(data, where)
    raise CheckpointError(
        f"{where}: expected an NPY file, a zip by torch.save or a pickle, found a file that begins with "
        f"{start[:8].hex(' ') or 'nothing'}; {_ADVICE}"
    )


def _of_torch(data: Bytes, where: str) -> object:
    members = archive.open_archive(data, where)
    found = [name for name in members.names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise CheckpointError(
            f"{where}: expected one data.pkl in a zip by torch.save, found {len(found)}; save the masks with torch.save"
        )
    folder = found[0].removesuffix("data.pkl")
    code = members.get(found[0])
    return pickles.load(
        np.empty(0, np.uint8) if code is None else code, where, lambda key: members.get(f"{folder}data/{key}")
    )


def _after_header(data: Bytes, where: str) -> int:
    """Where the content of an NPY file begins, if it is an array of objects without dimensions."""
    version = data[6:8].tobytes()
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(version)
    if width is None:
        raise CheckpointError(f"{where}: expected NPY 1.0, 2.0 or 3.0, found version {version.hex('.')}; {_ADVICE}")
    size = int.from_bytes(data[8 : 8 + width].tobytes(), "little")
    header = data[8 + width : 8 + width + size].tobytes() if size <= _LONGEST_HEADER else b""
    if size != len(header) or not header:
        raise CheckpointError(f"{where}: expected an NPY header, found one of {size} bytes; get the file again")
    fields = _HEADER.fullmatch(header.decode("latin-1"))
    if not fields:
        raise CheckpointError(f"{where}: expected the dict of an NPY header, found something else; get the file again")
    if fields[1] != "'|O'" or fields[2]:
        raise CheckpointError(
            f"{where}: expected an array of one dict, type '|O' of shape (), found type {shown(fields[1])} of shape "
            f"({fields[2][:40]}); {_ADVICE}"
        )
    return 8 + width + size


def _tasks(content: object, source: Path) -> Mapping[str, Mask]:
    where = str(source)
    if not isinstance(content, dict) or _is_named(content):
        return {source.stem: _one(content, where)}
    tasks: dict[str, Mask] = {}
    for task, value in content.items():
        tasks[task] = _one(value, f"{where}: task {shown(task)}")
    if not tasks:
        raise CheckpointError(f"{where}: expected a dict of task to mask, found an empty one; {_ADVICE}")
    return tasks


def _is_named(content: Mapping[str, object]) -> bool:
    """Whether it has the bools of tensors, not of tasks."""
    shapes = {value.shape if isinstance(value, Array) and value.is_bool else None for value in content.values()}
    return None not in shapes and (len(shapes) > 1 or any(len(shape or ()) != 1 for shape in shapes))


def _one(content: object, where: str) -> Mask:
    """The mask of one task."""
    if isinstance(content, Array):
        return _flat(content, where)
    if not isinstance(content, dict) or not content:
        found = "an empty dict" if content == {} else shown(content)
        raise CheckpointError(f"{where}: expected an array or tensor, or a dict of them, found {found}; {_ADVICE}")
    tensors: dict[str, FlatMask] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in content.items():
        place = f"{where}: tensor {shown(name)}"
        if not isinstance(value, Array) or not value.is_bool:
            found = "one of uint8" if isinstance(value, Array) else shown(value)
            raise CheckpointError(f"{place}: expected an array or tensor of bools, found {found}; {_ADVICE}")
        tensors[name], shapes[name] = _flat(value, place), value.shape
    return NamedMask(tensors, shapes)


def _flat(array: Array, where: str) -> FlatMask:
    if array.data is None:
        raise CheckpointError(f"{where}: expected an array, found one without content; get the file again")
    if not array.is_bool and len(array.shape) != 1:
        raise CheckpointError(
            f"{where}: expected packed bits, uint8 in one dimension, found {len(array.shape)}; save them as np.packbits "
            "makes them of a flat mask"
        )
    return FlatMask(array.data, packed=not array.is_bool)
