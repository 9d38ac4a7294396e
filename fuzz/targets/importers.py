"""Readers of checkpoints and importers: only errors of the library come out, and what is accepted is what the file has."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors as package

import tswitch_format as tsw
from fuzz.limits import limited, promise
from fuzz.memory import Slot, written_to_memory
from fuzz.targets.reading import slot
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.errors import CheckpointError, TswError
from tswitch_tools import carrier as carriers
from tswitch_tools import carrier_document
from tswitch_tools.checkpoints import safetensors_reader, torch_files
from tswitch_tools.importers import ImportOptions, safetensors_carrier
from tswitch_tools.tall.masks import NamedMask
from tswitch_tools.tall.reading import open_masks

_MOST = 1 << 20  # bytes read of a tensor
_MOST_CARRIED = 1 << 16  # bytes of a carrier's tensors


def safetensors(data: bytes) -> None:
    """A whole .safetensors file: read where the safetensors package reads it, every byte of the data as it lies, once."""
    path = slot().put(data)
    with limited():
        try:
            reader = safetensors_reader.open_reader(path)
        except CheckpointError as error:
            _check_message(error)
            promise(not _package_accepts(data), f"the safetensors package reads it, ours says {error}")
            return
        try:
            content = b"".join(_read(reader, name) for name in reader.specs)
        finally:
            reader.close()
    (length,) = struct.unpack_from("<Q", data)
    promise(content == data[8 + length :], "tensors are not the file's data")
    # Python's JSON reads -0 as the integer 0, as JSON means it.
    promise(b"-0" in data or _package_accepts(data), "accepted, but the safetensors package refuses it")
    promise(len(set(reader.specs)) == len(reader.specs), "a name twice")


def _package_accepts(data: bytes) -> bool:
    deserialize: Any = package.deserialize
    try:
        deserialize(data)
    except package.SafetensorError:
        return False
    return True


def safetensors_header(data: bytes) -> None:
    """Bytes of data (u32) and a header of JSON: the same with the right length before it."""
    if len(data) < 4:
        return
    size = struct.unpack_from("<I", data)[0] % 4096
    safetensors(struct.pack("<Q", len(data) - 4) + data[4:] + bytes(i & 255 for i in range(size)))


def shard_index(data: bytes) -> None:
    """The content of an index.json: a map of names to plain names of files that are there."""
    path = slot().put(data)
    with limited():
        try:
            weight_map = safetensors_reader.read_index(path)
        except CheckpointError as error:
            _check_message(error)
            return
    promise(weight_map and json.loads(data)["weight_map"] == weight_map, "another weight_map")
    promise(all("/" not in file and (path.parent / file).is_file() for file in weight_map.values()), "a file elsewhere")


def torch_file(data: bytes) -> None:
    """A .pt file: loaded without running code of its own, or refused."""
    path = _torch_slot().put(data)
    with limited():
        try:
            reader = torch_files.open_reader(path)
        except CheckpointError as error:
            _check_message(error)
            return
        try:
            for name in reader.specs:
                _read(reader, name)
        finally:
            reader.close()


@cache
def _torch_slot() -> Slot:
    return Slot("input.pt")  # mapped by torch, so apart from the others


def carrier(data: bytes) -> None:
    """A carrier's document, a zero byte, and content for the tensors that follow from it: what is taken in is valid."""
    raw, _, content = data.partition(b"\0")
    text = raw.decode("utf-8", "replace")
    with limited():
        try:
            carried = carrier_document.from_json(text, Path("input"))
        except CheckpointError as error:
            _check_message(error)
            return
    specs = list(carriers.all_tensors(carried))
    size = sum(spec.nbytes for spec in specs)
    if size > _MOST_CARRIED:
        return
    source, out = slot().path, _carrier_out().path
    slot().put(_framed(specs, text, (content or b"\0") * (size // max(len(content), 1) + 1)))
    _carrier_out().put(b"")
    with written_to_memory(), limited(8 * _MOST_CARRIED):
        try:
            safetensors_carrier.convert(source, None, out, ImportOptions(threads=1))
        except TswError as error:
            _check_message(error)
            return
    promise(tsw.validate(out, "full").ok, "what was taken in is not valid")
    with tsw.open(out) as file:
        promise(file.tasks == [task.name for task in carried.tasks], "other tasks")
        for task in carried.tasks:
            promise(set(file.keys(task.name)) == {entry.spec.name for entry in task.entries}, "other tensors")


def _framed(specs: list[TensorSpec], document: str, content: bytes) -> bytes:
    """A .safetensors file of these tensors, one after the other, with as many of the bytes as they take."""
    header: dict[str, Any] = {"__metadata__": {carriers.VERSION_KEY: carriers.VERSION, carriers.DOCUMENT_KEY: document}}
    end = 0
    for spec in specs:
        place = [end, end + spec.nbytes]
        header[spec.name] = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": place}
        end += spec.nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[:end]


@cache
def _carrier_out() -> Slot:
    return Slot("carried")


def tall_masks(data: bytes) -> None:
    """A file of TALL masks: read without running anything of its own, or refused."""
    path = _tall_slot().put(data)
    with limited():
        try:
            found = open_masks(path)
            for mask in found.tasks.values():
                for flat in mask.tensors.values() if isinstance(mask, NamedMask) else (mask,):
                    flat.check(flat.data.size * (8 if flat.packed else 1), "mask")
                    promise(flat.window(0, flat.data.size).size == -(-flat.data.size // 8), "another window")
        except CheckpointError as error:
            _check_message(error)
            return
    promise(found.tasks, "a file without a task")


@cache
def _tall_slot() -> Slot:
    return Slot("masks")  # mapped, so apart from the others


def _read(reader: CheckpointReader, name: str) -> bytes:
    spec: Any = reader.specs[name]
    out = np.empty(min(spec.nbytes, _MOST), np.uint8)
    reader.read_into(name, 0, out)
    return out.tobytes()


def _check_message(error: CheckpointError) -> None:
    promise("\n" not in str(error), f"a message of several lines: {error}")
