"""Section 9 of the specification once more, in plain Python and as slow as it reads; shares no code with the library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAGIC = bytes.fromhex("28B52FFD")
RAW_BLOCK = 1 << 17  # bytes: the largest block of a zstd frame


def bit_string(bits: Sequence[int]) -> bytes:
    """Bit i is bit i mod 8 of byte i // 8."""
    out = bytearray((len(bits) + 7) // 8)
    for i, bit in enumerate(bits):
        out[i // 8] |= bit << (i % 8)
    return bytes(out)


def plane(positions: Iterable[int], n: int) -> bytes:
    """The bit string of n bits with ones at these positions."""
    ones = set(positions)
    return bit_string([int(i in ones) for i in range(n)])


def gaps(positions: Sequence[int]) -> list[int]:
    """g[0] = p[0], g[i] = p[i] - p[i - 1] - 1."""
    return [p - q - 1 for p, q in zip(positions, [-1, *positions], strict=False)]


def low_parts(distances: Iterable[int], k: int) -> bytes:
    """Bit i k + j is bit j of g[i] mod 2^k."""
    return bit_string([g >> j & 1 for g in distances for j in range(k)])


def gap_bytes(distances: Iterable[int], k: int) -> bytes:
    """Section 9.3: floor(high / 255) bytes 255, then high mod 255."""
    return b"".join(b"\xff" * ((g >> k) // 255) + bytes([(g >> k) % 255]) for g in distances)


def unary(distances: Iterable[int], k: int) -> bytes:
    """Section 9.4: high zeros, then a one."""
    return bit_string([bit for g in distances for bit in [0] * (g >> k) + [1]])


def frame(
    content: bytes,
    *,
    declare: int | None = -1,
    checksum: bool = False,
    dictionary: int | None = None,
    window: int | None = None,
) -> bytes:
    """A zstd frame of raw blocks, RFC 8878 section 3.1.1. `declare`: content size written, -1 for the true one, None for none.

    `window`: the log2 of the window, else the frame is a single segment (which must declare its size).
    """
    size = len(content) if declare == -1 else declare
    descriptor = (0x80 if size is not None else 0) | (0 if window else 0x20) | (4 if checksum else 0)
    out = MAGIC + bytes([descriptor | (1 if dictionary is not None else 0)])
    out += bytes([(window - 10) << 3]) if window else b""
    out += bytes([dictionary]) if dictionary is not None else b""
    out += size.to_bytes(4, "little") if size is not None else b""
    blocks = [content[i : i + RAW_BLOCK] for i in range(0, len(content), RAW_BLOCK)] or [b""]
    for number, block in enumerate(blocks):
        out += (len(block) << 3 | (number == len(blocks) - 1)).to_bytes(3, "little") + block
    return out + (bytes(4) if checksum else b"")


def skippable(content: bytes) -> bytes:
    """A skippable frame."""
    return bytes.fromhex("502A4D18") + len(content).to_bytes(4, "little") + content
