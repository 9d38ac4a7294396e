"""One array from a file: .npy, or a checkpoint that holds a single tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_format.errors import CheckpointError

_NPY = b"\x93NUMPY"


def read_array(path: Path, what: str) -> NDArray[Any]:
    """The array of a file; `what` it is, in words. Raises CheckpointError."""
    try:
        with path.open("rb") as stream:
            is_npy = stream.read(len(_NPY)) == _NPY
        if is_npy:
            return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path}: expected an NPY file of numbers, found one that cannot be read ({error})"
        ) from error
    with borrow_checkpoint(path) as reader:
        if len(reader.specs) != 1:
            raise CheckpointError(f"{path}: expected one tensor, {what}, found {len(reader.specs)}; save them alone")
        ((name, spec),) = reader.specs.items()
        if spec.dtype.name not in ("F16", "F32", "F64"):
            raise CheckpointError(f"{path}: expected F16, F32 or F64 numbers, found {spec}; convert them")
        raw = np.empty(spec.nbytes, np.uint8)
        reader.read_into(name, 0, raw)
    return raw.view(spec.dtype.storage).reshape(spec.shape)
