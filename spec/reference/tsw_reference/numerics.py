"""Section 10: IEEE 754 arithmetic with Python's binary64 numbers, every rounding explicit.

The product of two binary32 numbers is exact in binary64. Their sum or quotient is not, but rounding it to binary64 and
then to binary32 gives what rounding once gives, because 53 >= 2 * 24 + 2 bits. Other conversions round once, from the
number itself.
"""

from __future__ import annotations

import math
import struct

from .layout import BF16, F16, F32, F64

_LETTERS = {F16: "e", F32: "f", F64: "d"}
_QUIET_NAN_BF16 = 0x7FC0
_INFINITY_BF16 = 0x7F80


def _pack(letter: str, value: float) -> bytes:
    """`struct.pack`, but beyond the range to infinity, as IEEE 754 rounds."""
    try:
        return struct.pack("<" + letter, value)
    except OverflowError:
        return struct.pack("<" + letter, math.copysign(math.inf, value))


def fl32(value: float) -> float:
    """A number rounded to binary32."""
    (rounded,) = struct.unpack("<f", _pack("f", value))
    return float(rounded)


def fl64(value: float) -> float:
    """A number rounded to binary64, which it is."""
    return value


def _bf16(value: float) -> int:
    """The bits of a number rounded to bfloat16: 8 bits of precision, and the exponents of binary32."""
    sign = 0x8000 if math.copysign(1.0, value) < 0 else 0
    if math.isnan(value):
        return sign | _QUIET_NAN_BF16
    if math.isinf(value):
        return sign | _INFINITY_BF16
    exponent = math.frexp(value)[1]
    step = max(exponent - 8, -133)
    # Scaling by a power of two is exact here, and Python rounds to an integer with ties to even.
    digits = round(math.ldexp(abs(value), -step))
    if digits.bit_length() + step > 128:
        return sign | _INFINITY_BF16
    (upper,) = struct.unpack("<2xH", struct.pack("<f", math.ldexp(digits, step)))
    return sign | int(upper)


def encode(dtype: int, value: float) -> bytes:
    """An element of a float type: the number rounded to it, once."""
    if dtype == BF16:
        return struct.pack("<H", _bf16(value))
    return _pack(_LETTERS[dtype], value)


def decode(dtype: int, data: bytes) -> list[float]:
    """The elements of a float type, exactly."""
    if dtype == BF16:
        upper = struct.unpack(f"<{len(data) // 2}H", data)
        data = struct.pack(f"<{len(upper)}I", *(bits << 16 for bits in upper))
        dtype = F32
    letter = _LETTERS[dtype]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data))


def decode_factors(factor_dtype: int, data: bytes) -> list[float]:
    """Stored factors as the numbers that they mean (section 7)."""
    if factor_dtype == 1:
        return [fl32(3 * code / 255) for code in data]
    return decode(F16 if factor_dtype == 2 else F32, data)
