"""Masks, signs and scales that somebody else made, as `build.py` takes them.

GivenSwitch    one tensor of a task as a switch, its planes given chunk by chunk
GivenMask      one as a mask over a vector that tasks share
GivenVector    such a vector; vector_dtype, round_vector: how numbers become one
GivenTask      a task: switches, masks and dense tensors by name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPE_BY_NAME, F16, F64, DType, Floats, dtype_of_array, from_float, to_float
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.errors import OptionError

ChunkPlanes = tuple[NDArray[np.int64], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class GivenSwitch:
    """A switch of one base tensor. `knob` is rounded to f32. `chunk(number)` gives, for each chunk of 2^20 elements of the
    tensor flattened in C order, the positions of its active elements in it (i64, ascending) and whether each is negative.

    `rows` f32[R], `columns` f32[C]: factors, where there are any; stored as f32. `dtype`: the expert's, or else the base's.
    `shape`: of what the chunks were made from, where it is known: that of the tensor, or flat.
    """

    knob: float
    chunk: Callable[[int], ChunkPlanes]
    rows: NDArray[np.float32] | None = None
    columns: NDArray[np.float32] | None = None
    dtype: DType | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def of_signs(cls, signs: NDArray[np.generic], knob: float) -> GivenSwitch:
        """From an array of the tensor's shape: above 0 adds, below 0 subtracts, 0 is not active."""
        flat = np.asarray(signs).reshape(-1)

        def chunk(number: int) -> ChunkPlanes:
            part = flat[number * lay.CHUNK : (number + 1) * lay.CHUNK]
            positions = np.flatnonzero(part)
            return positions, np.asarray(part[positions] < 0)

        return cls(knob, chunk, shape=np.shape(signs))


@dataclass(frozen=True, slots=True)
class GivenMask:
    """A mask over the shared vector of its tensor. `chunk(number)` gives the mask of each chunk of 2^20 elements as a bit
    string: u8[ceil(n / 8)], least significant bit first, unused bits zero. `knob`: what the vector is multiplied by, f32.
    `dtype`: the expert's, or else the base's. `shape`: as in `GivenSwitch`."""

    chunk: Callable[[int], NDArray[np.uint8]]
    knob: float = 1.0
    dtype: DType | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def of_flags(cls, flags: NDArray[np.generic], knob: float = 1.0) -> GivenMask:
        """From an array of the tensor's shape: what is not 0 is active."""
        flat = np.asarray(flags).reshape(-1)

        def chunk(number: int) -> NDArray[np.uint8]:
            return np.packbits(flat[number * lay.CHUNK : (number + 1) * lay.CHUNK] != 0, bitorder="little")

        return cls(chunk, knob, shape=np.shape(flags))


@dataclass(frozen=True, slots=True)
class GivenVector:
    """A vector of a base tensor's shape, which masks of several tasks select from. `dtype`: F16, BF16, F32 or F64;
    `chunk(number)` gives each chunk of 2^20 of its elements, in the storage dtype (BF16 as u16 bit patterns). `shape`: as in
    `GivenSwitch`."""

    dtype: DType
    chunk: Callable[[int], NDArray[np.generic]]
    shape: tuple[int, ...] | None = None

    @classmethod
    def of_array(cls, array: NDArray[np.generic]) -> GivenVector:
        """From an array of the tensor's shape. Raises OptionError where its type is no float type."""
        dtype = dtype_of_array(array)
        if dtype is None or not dtype.is_float:
            raise OptionError(f"vector: expected an array of floats, found {array.dtype}")
        if array.dtype.byteorder == ">":
            array = array.astype(dtype.storage)
        flat = np.ascontiguousarray(array).reshape(-1).view(dtype.storage)
        return cls(dtype, lambda number: flat[number * lay.CHUNK : (number + 1) * lay.CHUNK], array.shape)

    @classmethod
    def of_floats(cls, spec: TensorSpec, shared_dtype: str, chunk: Callable[[int], Floats]) -> GivenVector:
        """From chunks of f32 or f64 numbers for the base's tensor `spec`, rounded to `vector_dtype`."""
        dtype = vector_dtype(spec, shared_dtype)
        return cls(dtype, lambda number: round_vector(chunk(number), dtype, spec))


SHARED_DTYPES = ("F32", "BF16", "F16")


def vector_dtype(spec: TensorSpec, shared_dtype: str) -> DType:
    """The type in which the vector of a tensor is stored: "F32", "BF16" or "F16"; of an F64 tensor F64 with "F32"."""
    if shared_dtype not in SHARED_DTYPES:
        raise OptionError(f"shared_dtype: expected {', '.join(SHARED_DTYPES)}, found {shared_dtype!r}")
    return F64 if spec.dtype is F64 and shared_dtype == "F32" else DTYPE_BY_NAME[shared_dtype]


def round_vector(values: Floats, dtype: DType, spec: TensorSpec) -> NDArray[np.generic]:
    """Elements of the vector of `spec` in the storage dtype of `dtype`. Raises OptionError where it cannot hold one."""
    stored = from_float(values, dtype)
    back: Floats = np.empty_like(values)
    to_float(stored, dtype, back)
    small = np.count_nonzero(values) - np.count_nonzero(back)
    if small > values.size // 2:
        raise OptionError(
            f"tensor {spec.name!r}: expected a vector that {dtype.name} can hold, found one of which {small} of {values.size} "
            "elements would become 0; take shared dtype BF16 or F32"
        )
    if not np.isfinite(back).all():
        raise OptionError(
            f"tensor {spec.name!r}: expected a vector that {dtype.name} can hold, found {np.abs(values).max():.4g}; "
            f"{'take shared dtype BF16 or F32' if dtype is F16 else 'look for an expert of another base'}"
        )
    return stored


@dataclass(frozen=True, slots=True)
class GivenTask:
    """A task: `switches`, or masks, by the name of the base's tensor; `dense`: tensors that are stored whole, by name, each
    with the checkpoint that has it and its name there; `recipe`: how the task was made, in words."""

    name: str
    switches: Mapping[str, GivenSwitch | GivenMask]
    dense: Mapping[str, tuple[CheckpointReader, str]] = field(default_factory=dict)
    recipe: Mapping[str, str] = field(default_factory=dict)
