"""Small parts of the reference reader: CRC32C, MessagePack, rounding, digests."""

import hashlib
import math
import random
import struct

import numpy as np
import pytest
from reference_draft import pack
from tsw_reference.bits import bit_text, positions_of_ones, with_ones_at
from tsw_reference.crc32c import crc32c
from tsw_reference.digest import sampled_digest
from tsw_reference.errors import BrokenError
from tsw_reference.layout import BF16, F16, F32
from tsw_reference.msgpack import decode
from tsw_reference.numerics import decode as numbers
from tsw_reference.numerics import decode_factors, encode, fl32
from tsw_reference.tensors import name_fault


def test_crc32c_of_the_specification():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize(
    "value",
    [
        *[2**power + delta for power in (0, 7, 8, 16, 32) for delta in (-1, 0, 1)],
        2**64 - 1,
        *["a" * length for length in (0, 1, 31, 32, 255, 256, 65535, 65536)],
        *[b"a" * length for length in (0, 1, 255, 256, 65535, 65536)],
        *[[1] * length for length in (0, 15, 16, 4096)],
        {},
        {f"{number:04}": [number, {"x": b"\0"}] for number in range(4096)},
        [[[[[[[[]]]]]]]],
        {"": "", "A": "é", "a": "日本", "\U0001f600": ""},
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:12]} {len(str(value))}",
)
def test_messagepack_forms(value):
    assert decode(pack(value)) == value


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_cut_document_is_not_well_formed(length):
    data = pack({"a": [1, 2, 300], "b": b"xyz"})
    with pytest.raises(BrokenError, match="TSW-302"):
        decode(data[:-length])


def test_bit_strings():
    assert bit_text(b"\x19\x02") == "1001100001000000"
    assert positions_of_ones(b"\x19\x02", 10) == [0, 3, 4, 9]
    assert with_ones_at([0, 3, 4, 9], 10) == b"\x19\x02"


def hard_numbers() -> list[float]:
    """Numbers at and beside ties, limits and subnormals of the float types, and bits at random."""
    rng = random.Random(3)
    numbers = [
        0.0,
        math.inf,
        5e-324,
        1.7976931348623157e308,
        65519.99999999999,
        65520.0,
        2.0**-133,
        2.0**-134,
        2.0**-149,
    ]
    numbers += [2.0**-150, 3 * 2.0**-150, 3.4028235677973366e38, 3.4028235677973362e38, 3.3961775292304957e38]
    for exponent in (-150, -149, -134, -133, -126, -25, -24, -14, -1, 0, 15, 16, 127):
        for digits in (8, 9, 11, 12, 24, 25):
            tie = math.ldexp(1 + 2.0**-digits, exponent)
            numbers += [
                tie,
                math.nextafter(tie, 0),
                math.nextafter(tie, math.inf),
                tie + math.ldexp(1, exponent - digits + 1),
            ]
    numbers += [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(2000)]
    numbers += [math.ldexp(rng.random(), rng.randrange(-160, 130)) for _ in range(2000)]
    numbers = [number for number in numbers if not math.isnan(number)]
    return numbers + [-number for number in numbers]


def exact(value: float) -> int:
    """The number in units so small that all are whole."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * (2**1100 // denominator)


def bf16_of(value: float) -> int:
    """Round binary64 to bfloat16 by searching its neighbours, exactly."""
    upper = struct.unpack("<I", struct.pack("<f", abs(value)))[0] >> 16 if abs(value) < 3.4e38 else 0x7F7F
    best = None
    for bits in range(max(upper - 1, 0), upper + 3):
        as_float = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
        if math.isinf(as_float):
            as_float = 2.0**128
        if as_float > 2.0**128 or math.isnan(as_float):
            continue
        distance = abs(exact(as_float) - exact(abs(value)))
        key = (distance, bits & 1)
        if best is None or key < best[0]:
            best = (key, bits)
    return best[1] | (0x8000 if math.copysign(1, value) < 0 else 0)


def test_rounding():
    with np.errstate(over="ignore"):
        for value in hard_numbers():
            assert encode(F32, value) == np.float64(value).astype("<f4").tobytes(), value
            assert encode(F16, value) == np.float64(value).astype("<f2").tobytes(), value
            if math.isfinite(value):
                assert encode(BF16, value) == struct.pack("<H", bf16_of(value)), value
    assert encode(BF16, math.inf) == b"\x80\x7f"
    assert encode(BF16, -math.inf) == b"\x80\xff"
    assert math.isnan(numbers(BF16, encode(BF16, math.nan))[0])


def test_arithmetic_is_that_of_binary32():
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 1 << 32, (4000, 2), dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        near = bits[:, 0] * rng.uniform(-2, 2, 4000).astype(np.float32)
        for a, b in [*bits.tolist(), *np.stack([bits[:, 0], near], 1).tolist()]:
            for ours, theirs in (
                (fl32(a * b), np.float32(a) * np.float32(b)),
                (fl32(a + b), np.float32(a) + np.float32(b)),
            ):
                assert math.isnan(ours) == np.isnan(theirs)
                if not math.isnan(ours):
                    assert struct.pack("<f", ours) == theirs.tobytes()


def test_factors():
    codes = decode_factors(1, bytes(range(256)))
    expected = np.float32(3) * np.arange(256, dtype=np.float32) / np.float32(255)
    assert codes == expected.tolist()
    assert decode_factors(2, b"\x00\x3c") == [1.0]
    assert decode_factors(3, b"\0\0\x80\x3f") == [1.0]


def test_sampled_digest():
    data = random.Random(1).randbytes(100001)
    blocks = b"".join(data[b * (100001 - 4096) // 15 :][:4096] for b in range(16))
    assert sampled_digest(data) == hashlib.sha256((100001).to_bytes(8, "little") + blocks).digest()[:8]
    assert sampled_digest(b"ab") == hashlib.sha256((2).to_bytes(8, "little") + b"ab").digest()[:8]


def test_names():
    assert name_fault("größe.重み") is None
    assert name_fault("../x y") is None
    assert name_fault("a\u200bb") is None
    for name in ("", "a\0", "a\x85", "\u2067", "A\u030a"):
        assert name_fault(name)
