"""Small models, and checkpoints read back, for the tests beside this file."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tswitch_format as tsw

Array = NDArray[Any]
Arrays = dict[str, Array]

STORAGE = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1", "BOOL": "?"}
NAMES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
}


def model(seed: int = 0) -> Arrays:
    """A base of four float tensors and one of integers."""
    rng = np.random.default_rng(seed)
    return {
        "layer.weight": rng.standard_normal((24, 16)).astype(np.float32),
        "layer.bias": rng.standard_normal(24).astype(np.float32),
        "half": rng.standard_normal((6, 5)).astype(np.float16),
        "wide": rng.standard_normal((3, 4)),
        "ids": np.arange(10, dtype=np.int64),
    }


def tuned(base: Mapping[str, Array], seed: int = 1, scale: float = 0.1) -> Arrays:
    """The base with every float element changed."""
    rng = np.random.default_rng(seed)
    return {
        name: (array + scale * rng.standard_normal(array.shape)).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in base.items()
    }


def save(path: Path, arrays: Mapping[str, Array]) -> Path:
    """A .safetensors file in the given order."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
    return path


def load(path: Path) -> Arrays:
    """A .safetensors file, BF16 as uint16."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], STORAGE[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


def same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    """Whether two models have the same names, types, shapes and bits."""
    return a.keys() == b.keys() and all(same_array(a[name], b[name]) for name in a)


def same_array(a: Array, b: Array) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def files_in(folder: Path) -> dict[str, bytes]:
    """All files in a folder, hidden ones as well, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def masks(path: Path) -> Arrays:
    """The masks of a file's only task, by tensor."""
    with tsw.open(path) as file:
        found = ((name, file.switch(name)) for name in file.keys())  # noqa: SIM118 - no mapping
        return {name: switch.mask() for name, switch in found if switch.kind == "ternary"}
