"""Element types: exact conversions and a single rounding, against torch and against rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tswitch_format._dtypes import (
    BF16,
    DTYPE_BY_NAME,
    DTYPES,
    F16,
    F32,
    F64,
    DType,
    compute_dtype,
    dtype_of_array,
    from_float,
    to_float,
)

# Widening or narrowing a signalling NaN raises IEEE 754 "invalid", of which NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")

UPPER = np.arange(1 << 16, dtype=np.uint32) << 16
# precision in bits after the leading one, lowest exponent, exponent of overflow
FORMATS = {"F16": (10, -14, 16), "BF16": (7, -126, 128)}


def as_f64(raw: np.ndarray, dtype: DType) -> np.ndarray:
    out = np.empty(raw.shape, np.float64)
    to_float(raw, dtype, out)
    return out


def nearest_even(value: float, dtype: DType) -> float:
    """The value rounded once, by rational arithmetic."""
    if value == 0 or not math.isfinite(value):
        return value
    precision, lowest, overflow = FORMATS[dtype.name]
    exponent = max(math.frexp(value)[1] - 1, lowest)
    unit = Fraction(2) ** (exponent - precision)
    rounded = round(Fraction(value) / unit) * unit  # of Fractions: half to even
    if abs(rounded) >= Fraction(2) ** overflow:
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


@pytest.mark.parametrize("low", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_f32_to_bf16_rounds_as_torch_does_for_every_upper_half(low: int) -> None:
    values = (UPPER | low).view(np.float32)
    raw = from_float(values, BF16)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    nan = np.isnan(values)
    np.testing.assert_array_equal(raw[~nan], expected[~nan])
    assert np.isnan(as_f64(raw[nan], BF16)).all()
    np.testing.assert_array_equal(raw >> 15, UPPER >> 31)  # signs stay, those of NaN and zero too


def test_f32_beyond_the_range_of_bf16_is_infinity() -> None:
    values = np.array([0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000], np.uint32).view(np.float32)
    assert from_float(values, BF16).tolist() == [0x7F7F, 0x7F80, 0x7F80, 0xFF80, 0x7F80]


@pytest.mark.parametrize("out_type", [np.float32, np.float64])
def test_every_bf16_and_f16_becomes_the_number_that_torch_says(out_type: type) -> None:
    raw = np.arange(1 << 16, dtype=np.uint16)
    for dtype, storage, name in ((BF16, raw, torch.bfloat16), (F16, raw.view(np.float16), torch.float16)):
        out = np.empty(raw.shape, out_type)
        to_float(storage, dtype, out)
        expected = torch.from_numpy(raw.copy()).view(name).to(torch.float64).numpy()
        np.testing.assert_array_equal(out.astype(np.float64), expected)
        again = from_float(out, dtype).view(np.uint16)
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(again[number], raw[number])


def near_ties(dtype: DType) -> np.ndarray:
    """f64 at, just below and just above the ties between all neighbours of one type, and far beyond."""
    raw = np.arange(1 << 16, dtype=np.uint16)
    values = as_f64(raw.view(dtype.storage), dtype)
    values = np.unique(values[np.isfinite(values)])
    ties = (values[1:] + values[:-1]) / 2
    top = values[-1] + (values[-1] - values[-2]) / 2  # the tie with what would be the next
    ties = np.concatenate([ties, [top, -top]])
    steps = [
        ties,
        np.nextafter(ties, np.inf),
        np.nextafter(ties, -np.inf),
        ties * (1 + 2.0**-30),
        ties * (1 - 2.0**-30),
    ]
    extremes = [0.0, -0.0, 5e-324, -5e-324, 1e-46, -1e-46, 3.5e38, -3.5e38, 1e300, -1e300, np.inf, -np.inf]
    return np.concatenate([*steps, extremes])


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_f64_near_ties_is_rounded_once(dtype: DType) -> None:
    values = near_ties(dtype)
    # Rational arithmetic is slow: a spread of the ties, and all of the extremes.
    picked = np.concatenate([values[::17], values[-200:]])
    found = as_f64(from_float(picked, dtype), dtype)
    expected = np.array([nearest_even(float(value), dtype) for value in picked])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_f64_that_would_round_twice_through_f32_does_not() -> None:
    value = 1 + 2.0**-8 + 2.0**-40  # f32 makes it the tie 1 + 2^-8, which would go down to even
    assert as_f64(from_float(np.array([value]), BF16), BF16)[0] == 1 + 2.0**-7
    assert as_f64(from_float(np.array([value], np.float32), BF16), BF16)[0] == 1


def test_nan_stays_nan_from_either_width() -> None:
    quiet = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    wide = np.array([0x7FF0000000000001, 0x7FFFFFFFFFFFFFFF, 0xFFF8000000000000], np.uint64).view(np.float64)
    for values in (quiet, wide):
        for dtype in (BF16, F16, F32):
            assert np.isnan(as_f64(from_float(values, dtype), dtype)).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20), st.sampled_from([BF16, F16]))
def test_any_f64_is_rounded_once(values: list[float], dtype: DType) -> None:
    found = as_f64(from_float(np.array(values), dtype), dtype)
    assert found.tolist() == [nearest_even(value, dtype) for value in values]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=20), st.sampled_from([BF16, F16]))
def test_any_f32_is_rounded_once(values: list[float], dtype: DType) -> None:
    found = as_f64(from_float(np.array(values, np.float32), dtype), dtype)
    assert found.tolist() == [nearest_even(value, dtype) for value in values]


def test_f64_to_f32_overflows_to_infinity_without_a_warning() -> None:
    assert from_float(np.array([1e39, -1e39, 3.0]), F32).tolist() == [np.inf, -np.inf, 3.0]
    assert from_float(np.array([1e39]), F64).tolist() == [1e39]


def test_rounding_does_not_change_its_argument() -> None:
    for width in (np.float32, np.float64):
        values = np.array([1.1, np.nan, 3e38], width)
        before = values.tobytes()
        from_float(values, BF16)
        assert values.tobytes() == before


def test_types_are_computed_with_in_binary64_for_an_f64_base_only() -> None:
    assert {name: compute_dtype(DTYPE_BY_NAME[name]).name for name in ("F16", "BF16", "F32", "F64")} == {
        "F16": "float32",
        "BF16": "float32",
        "F32": "float32",
        "F64": "float64",
    }
    assert sorted(dtype.name for dtype in DTYPES.values() if dtype.is_float) == ["BF16", "F16", "F32", "F64"]


def test_numpy_arrays_have_the_type_of_the_same_name_or_none() -> None:
    names = {"bool": "BOOL", "uint8": "U8", "int64": "I64", "float16": "F16", "float64": "F64", "complex64": "C64"}
    for numpy_name, name in names.items():
        assert dtype_of_array(np.empty(1, numpy_name)) is DTYPE_BY_NAME[name]
    for other in ("complex128", "datetime64[s]", "S3", "O", "longdouble"):
        assert dtype_of_array(np.empty(1, other)) is None
