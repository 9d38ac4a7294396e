"""Bits as text: a str of 0 and 1 is slow, and as readable as the specifications that it follows."""

from __future__ import annotations


def bit_text(data: bytes) -> str:
    """The bits of a bit string (least significant first), first bit first."""
    if not data:
        return ""
    return format(int.from_bytes(data, "little"), f"0{8 * len(data)}b")[::-1]


def ones(data: bytes) -> int:
    """How many bits are one."""
    return int.from_bytes(data, "little").bit_count()


def unused_bits_are_zero(data: bytes, bits: int) -> bool:
    """Whether a bit string of so many bits has zeros in the rest of its last byte."""
    return bits % 8 == 0 or data[-1] >> (bits % 8) == 0


def positions_of_ones(data: bytes, bits: int) -> list[int]:
    """Where the ones of a bit string of so many bits are, ascending."""
    found = []
    for number, byte in enumerate(data):
        if byte:
            start = 8 * number
            found += [start + bit for bit in _ONES_OF_BYTE[byte] if start + bit < bits]
    return found


def with_ones_at(positions: list[int], bits: int) -> bytes:
    """The bit string of so many bits that has ones at these positions."""
    plane = bytearray((bits + 7) // 8)
    for position in positions:
        plane[position >> 3] |= 1 << (position & 7)
    return bytes(plane)


_ONES_OF_BYTE = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
