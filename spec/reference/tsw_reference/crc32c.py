"""CRC32C as in section 3: polynomial 0x1EDC6F41, reflected, initial value and final xor 0xFFFFFFFF."""

from __future__ import annotations

REFLECTED = 0x82F63B78
"""The polynomial 0x1EDC6F41 with its 32 bits in reverse order."""


def _entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (REFLECTED if value & 1 else 0)
    return value


_TABLE = tuple(_entry(value) for value in range(256))


def crc32c(data: bytes | memoryview) -> int:
    """CRC32C of the bytes."""
    table = _TABLE
    value = 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF
