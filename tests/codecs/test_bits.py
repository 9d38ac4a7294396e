"""Bit strings and fields of k bits (spec section 1)."""

from __future__ import annotations

import codec_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tswitch_format.codecs import bits
from tswitch_format.errors import PayloadError

flags = st.lists(st.integers(0, 1), max_size=300)


def test_the_worked_example_of_the_specification() -> None:
    packed = bits.pack_positions(np.array([0, 3, 4, 9]), 10)
    assert packed.tobytes() == bytes.fromhex("19 02")
    signs = bits.pack_positions(np.array([1, 3]), 4)
    assert signs.tobytes() == bytes.fromhex("0A")
    assert bits.unpack_positions(packed, 10).tolist() == [0, 3, 4, 9]


@settings(deadline=None)  # compiled loops are loaded when they are first used
@given(flags)
def test_positions_pack_as_the_specification_says_and_come_back(ones: list[int]) -> None:
    positions = np.flatnonzero(np.array(ones, np.int64))
    packed = bits.pack_positions(positions, len(ones))
    assert packed.tobytes() == reference.bit_string(ones)
    assert bits.unpack_positions(packed, len(ones)).tolist() == positions.tolist()
    assert bits.unpack_flags(packed, len(ones)).tolist() == [bool(one) for one in ones]
    assert bits.count_ones(packed) == sum(ones)
    assert packed.size == bits.nbytes(len(ones))


@pytest.mark.parametrize("offset", range(8))
def test_ones_are_counted_wherever_the_bytes_lie_in_memory(offset: int) -> None:
    data = np.random.default_rng(offset).integers(0, 256, 1000 + offset, np.uint8)[offset:]
    assert bits.count_ones(data) == sum(byte.bit_count() for byte in data.tobytes())


@pytest.mark.parametrize("n", range(1, 17))
def test_every_unused_bit_is_checked(n: int) -> None:
    for bit in range(bits.nbytes(n) * 8):
        packed = np.frombuffer((1 << bit).to_bytes(bits.nbytes(n), "little"), np.uint8)
        if bit < n:
            bits.check_tail(packed, n)
            continue
        with pytest.raises(PayloadError, match=r"unused bits zero, found last byte 0x.. \[TSW-703\]") as caught:
            bits.check_tail(packed, n)
        assert caught.value.rule == "TSW-703"


@settings(deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(0, (1 << 21) - 1), max_size=100))
def test_fields_of_k_bits_lie_as_the_specification_says_and_come_back(k: int, values: list[int]) -> None:
    packed = bits.pack_fields(np.array(values, np.int64), k)
    assert packed == reference.low_parts(values, k)
    if k and values:
        unpacked = bits.unpack_fields(np.frombuffer(packed, np.uint8), k, len(values))
        assert unpacked.tolist() == [value % (1 << k) for value in values]


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(1, 40))
def test_unused_bits_after_fields_are_checked(k: int, m: int) -> None:
    packed = np.zeros(bits.nbytes(m * k), np.uint8)
    packed[-1] = 0x80
    if m * k % 8 == 0:
        assert bits.unpack_fields(packed, k, m)[-1] == 1 << (k - 1)
    else:
        with pytest.raises(PayloadError, match="TSW-703"):
            bits.unpack_fields(packed, k, m)
