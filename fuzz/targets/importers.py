"""Readers of checkpoints: only CheckpointError comes out, and what is accepted is what the file has."""

from __future__ import annotations

import json
import struct
from functools import cache
from typing import Any

import numpy as np
import safetensors as package

from fuzz.limits import limited, promise
from fuzz.memory import Slot
from fuzz.targets.reading import slot
from tswitch_format.checkpoint import CheckpointReader
from tswitch_format.errors import CheckpointError
from tswitch_tools.checkpoints import safetensors_reader, torch_files

_MOST = 1 << 20  # bytes read of a tensor


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


def _read(reader: CheckpointReader, name: str) -> bytes:
    spec: Any = reader.specs[name]
    out = np.empty(min(spec.nbytes, _MOST), np.uint8)
    reader.read_into(name, 0, out)
    return out.tobytes()


def _check_message(error: CheckpointError) -> None:
    promise("\n" not in str(error), f"a message of several lines: {error}")
