"""Element types (spec section 6) and exact conversions between them.

NumPy has no bfloat16 and no float8, so raw elements travel as the unsigned integers of `DType.storage`, with the `DType`
beside them; `to_float` and `from_float` are the only places where bits become numbers and numbers become bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: `id` in the file, safetensors' `name`, `bits` an element, NumPy dtype of the raw elements.

    Types of less than 8 bits have the storage dtype u1 and several elements to a byte or more.
    """

    id: int
    name: str
    bits: int
    storage: np.dtype[Any]
    is_float: bool = False  # computed with, and so open to a ternary entry

    def nbytes(self, elements: int) -> int:
        """Bytes that `elements` elements take; they must fill whole bytes."""
        return elements * self.bits // 8


def _table() -> tuple[DType, ...]:
    rows: list[tuple[int, str, int, str, bool]] = [
        (1, "BOOL", 8, "u1", False),
        (2, "U8", 8, "u1", False),
        (3, "I8", 8, "i1", False),
        (4, "U16", 16, "<u2", False),
        (5, "I16", 16, "<i2", False),
        (6, "U32", 32, "<u4", False),
        (7, "I32", 32, "<i4", False),
        (8, "U64", 64, "<u8", False),
        (9, "I64", 64, "<i8", False),
        (10, "F16", 16, "<f2", True),
        (11, "BF16", 16, "<u2", True),
        (12, "F32", 32, "<f4", True),
        (13, "F64", 64, "<f8", True),
        (14, "F8_E4M3", 8, "u1", False),
        (15, "F8_E5M2", 8, "u1", False),
        (16, "F8_E8M0", 8, "u1", False),
        (17, "F4", 4, "u1", False),
        (18, "F6_E2M3", 6, "u1", False),
        (19, "F6_E3M2", 6, "u1", False),
        (20, "C64", 64, "<c8", False),
    ]
    return tuple(DType(i, name, bits, np.dtype(storage), is_float) for i, name, bits, storage, is_float in rows)


DTYPES: Mapping[int, DType] = MappingProxyType({d.id: d for d in _table()})
DTYPE_BY_NAME: Mapping[str, DType] = MappingProxyType({d.name: d for d in DTYPES.values()})

F16 = DTYPE_BY_NAME["F16"]
BF16 = DTYPE_BY_NAME["BF16"]
F32 = DTYPE_BY_NAME["F32"]
F64 = DTYPE_BY_NAME["F64"]

# What an array of NumPy (or of ml_dtypes, whose types NumPy knows by name only) is in a file.
_BY_NUMPY_NAME: Mapping[str, DType] = MappingProxyType(
    {
        "bool": DTYPE_BY_NAME["BOOL"],
        "complex64": DTYPE_BY_NAME["C64"],
        "bfloat16": BF16,
        "float8_e4m3fn": DTYPE_BY_NAME["F8_E4M3"],
        "float8_e5m2": DTYPE_BY_NAME["F8_E5M2"],
        "float8_e8m0fnu": DTYPE_BY_NAME["F8_E8M0"],
        **{
            f"{kind}{bits}": DTYPE_BY_NAME[f"{letter}{bits}"]
            for kind, letter in (("uint", "U"), ("int", "I"))
            for bits in (8, 16, 32, 64)
        },
        **{f"float{bits}": DTYPE_BY_NAME[f"F{bits}"] for bits in (16, 32, 64)},
    }
)


def dtype_of_array(array: NDArray[Any]) -> DType | None:
    """The element type of a NumPy array, or None where a file cannot hold it."""
    return _BY_NUMPY_NAME.get(array.dtype.name)


def compute_dtype(base: DType) -> np.dtype[Any]:
    """The type T of spec section 10: binary64 for an F64 base, else binary32."""
    return np.dtype(np.float64 if base is F64 else np.float32)


def to_float(raw: NDArray[Any], dtype: DType, out: Floats) -> None:
    """Convert raw elements of a float type into `out` (f32 or f64, same shape), exactly (f64 to f32: rounded)."""
    if dtype is BF16:
        if out.dtype == np.float32:
            # Widened and shifted in one pass over memory, piece by piece in NumPy's own buffer.
            np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32)
        else:
            np.copyto(out, (raw.astype(np.uint32) << 16).view(np.float32))
    else:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            np.copyto(out, raw, casting="same_kind")


def from_float(values: Floats, dtype: DType) -> NDArray[Any]:
    """Round f32 or f64 values once, to nearest even, to raw elements of a float type. Overflow gives infinity."""
    if dtype is BF16:
        return _to_bf16(values)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is what the specification asks for
        return values.astype(dtype.storage, copy=False)


def _to_bf16(values: Floats) -> NDArray[np.uint16]:
    if values.dtype == np.float64:
        values = _round_f64_to_odd_f32(values.astype(np.float64, copy=False))
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    nan = np.isnan(values)
    if nan.any():  # adding may carry a NaN into infinity or zero
        rounded[nan] = (bits[nan] >> 16) | 0x40
    return rounded.astype(np.uint16)


def _round_f64_to_odd_f32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """f64 to f32 rounded to odd, so that rounding on to bf16 does not round twice."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32).copy()
    back = nearest.astype(np.float64)
    inexact = (back != values) & ~np.isnan(values)
    # Step back where rounding to nearest went away from zero (infinity included), then make inexact results odd.
    bits -= (inexact & (np.abs(back) > np.abs(values))).astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return bits.view(np.float32)
