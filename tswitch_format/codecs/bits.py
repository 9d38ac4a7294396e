"""Bit strings, least significant bit first (spec section 1), and packed fields of k bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tswitch_format.codecs.loops import loops
from tswitch_format.errors import PayloadError


def nbytes(bits: int) -> int:
    """Bytes that a bit string of `bits` bits takes."""
    return (bits + 7) // 8


def pack_positions(positions: NDArray[np.int64], n: int) -> NDArray[np.uint8]:
    """Bit string of `n` bits with ones at `positions`: ceil(n / 8) bytes."""
    flags = np.zeros(n, np.bool_)
    flags[positions] = True
    return np.packbits(flags, bitorder="little")


def pack_constant(n: int, *, ones: bool) -> NDArray[np.uint8]:
    """Bit string of `n` bits that are all ones, or all zeros."""
    packed = np.full(nbytes(n), 0xFF if ones else 0, np.uint8)
    if ones and n % 8:
        packed[-1] = (1 << n % 8) - 1
    return packed


def unpack_positions(packed: NDArray[np.uint8], n: int) -> NDArray[np.int64]:
    """Positions of the ones in a bit string of `n` bits, ascending."""
    return np.flatnonzero(unpack_flags(packed, n))


def unpack_flags(packed: NDArray[np.uint8], n: int) -> NDArray[np.bool_]:
    """Bit string of `n` bits to `n` booleans."""
    return np.unpackbits(packed, count=n, bitorder="little").view(np.bool_)


def count_ones(packed: NDArray[np.uint8]) -> int:
    """Number of ones in a bit string."""
    compiled = loops()
    if compiled is not None:
        ones: int = compiled.count_ones(packed)
        return ones
    # Whole words first: numpy counts 8 bytes a step there.
    whole = packed.size // 8 * 8
    words = int(np.bitwise_count(packed[:whole].view(np.uint64)).sum(dtype=np.int64)) if whole else 0
    return words + int(np.bitwise_count(packed[whole:]).sum(dtype=np.int64))


def check_tail(packed: NDArray[np.uint8], n: int) -> None:
    """Raise PayloadError where the unused bits of a bit string of `n` bits are not zero."""
    if n % 8 and int(packed[-1]) >> (n % 8):
        raise PayloadError(
            rule="TSW-703", expected=f"the {8 - n % 8} unused bits zero", found=f"last byte 0x{int(packed[-1]):02X}"
        )


def pack_fields(values: NDArray[np.int64], k: int) -> bytes:
    """The lowest `k` bits (0 to 20) of each value, one field after the other: ceil(m k / 8) bytes."""
    if k == 0:
        return b""
    if k == 8:
        return values.astype(np.uint8).tobytes()
    wide = np.unpackbits(values.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return np.packbits(wide[:, :k].reshape(-1), bitorder="little").tobytes()


def unpack_fields(packed: NDArray[np.uint8], k: int, m: int) -> NDArray[np.int64]:
    """`m` fields of `k` bits (1 to 20)."""
    check_tail(packed, m * k)
    # Every field lies in the 4 bytes from its first byte on (k + 7 <= 27 bits): gather those and shift.
    padded = np.zeros(packed.size + 4, np.uint8)
    padded[: packed.size] = packed
    windows = np.ndarray(shape=(packed.size + 1,), dtype="<u4", buffer=padded.data, strides=(1,))
    starts = np.arange(m, dtype=np.int64) * k
    fields: NDArray[np.int64] = windows[starts >> 3].astype(np.int64)
    fields >>= starts & 7
    return fields & ((1 << k) - 1)
