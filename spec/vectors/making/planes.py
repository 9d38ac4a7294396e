"""Bit strings and the codecs of planes, as sections 1 and 9 of the specification say them, one bit after the other."""

from __future__ import annotations

from collections.abc import Sequence


def bit_string(ones: Sequence[int], bits: int) -> bytes:
    """The bit string of `bits` bits with ones at these positions."""
    out = bytearray((bits + 7) // 8)
    for position in ones:
        out[position >> 3] |= 1 << (position & 7)
    return bytes(out)


def gaps_of(ones: Sequence[int]) -> list[int]:
    """Gaps before each one."""
    return [here - before - 1 for before, here in zip([-1, *ones], ones, strict=False)]


def low_parts(gaps: Sequence[int], k: int) -> bytes:
    """The lowest k bits of each gap."""
    ones = [i * k + j for i, gap in enumerate(gaps) for j in range(k) if gap >> j & 1]
    return bit_string(ones, len(gaps) * k)


def gap_bytes(gaps: Sequence[int], k: int) -> bytes:
    """The high parts as bytes, 255 meaning 255 further."""
    out = bytearray()
    for gap in gaps:
        escapes, rest = divmod(gap >> k, 255)
        out += b"\xff" * escapes
        out.append(rest)
    return bytes(out)


def unary(gaps: Sequence[int], k: int) -> bytes:
    """The high parts as so many zeros and a one."""
    ones, at = [], -1
    for gap in gaps:
        at += (gap >> k) + 1
        ones.append(at)
    return bit_string(ones, at + 1)
