"""Checkpoints in the safetensors format: the length of a header (u64), the header (JSON), the bytes of the tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .application import Array
from .errors import UsageError, shown
from .layout import DTYPES

_BITS = dict(DTYPES.values())
_METADATA = "__metadata__"


def _broken(path: Path, expected: str, found: str) -> UsageError:
    return UsageError(f"{path}: expected {expected}, found {found}; give a whole safetensors file")


def read_safetensors(path: Path) -> dict[str, Array]:
    """The tensors of a file."""
    data = path.read_bytes()
    header_length = int.from_bytes(data[:8], "little")
    start = 8 + header_length
    if len(data) < 8 or start > len(data):
        raise _broken(path, "a safetensors header", f"a file of {len(data)} bytes")
    try:
        header: Any = json.loads(data[8:start])
    except ValueError as error:
        raise _broken(path, "a JSON header", str(error)) from None
    if not isinstance(header, dict):
        raise _broken(path, "a JSON object as header", type(header).__name__)
    tensors = {}
    for name, fields in header.items():
        if name == _METADATA:
            continue
        try:
            dtype, shape = str(fields["dtype"]), tuple(int(size) for size in fields["shape"])
            begin, end = (start + int(offset) for offset in fields["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise _broken(path, f"dtype, shape and data_offsets of {shown(name)}", shown(str(fields))) from None
        if not start <= begin <= end <= len(data) or (end - begin) * 8 != math.prod(shape) * _BITS.get(dtype, -1):
            raise _broken(path, f"the data of {shown(name)}", f"{shown(dtype)} {shape} at {begin} to {end}")
        tensors[name] = Array(dtype, shape, data[begin:end])
    return tensors


def write_safetensors(path: Path, tensors: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write a file that is not there yet; it has its name only when it is complete."""
    if path.exists():
        raise UsageError(f"{path}: expected no such file, found one; choose another name or move it away")
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    # Wide elements first, so that each tensor lies at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-_BITS[tensors[name].dtype], name))
    offset = 0
    for name in names:
        array = tensors[name]
        end = offset + len(array.data)
        header[name] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    part = path.with_name(path.name + ".part")
    with part.open("xb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            stream.write(tensors[name].data)
    part.replace(path)
