"""Planes with few ones, as the gaps between them: gap bytes + zstd (spec 9.3) and Rice codes (spec 9.4).

Both cut a gap into its low k bits, packed as they are, and the rest: as bytes that zstd's Huffman stage codes, or in unary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tswitch_format.codecs import bits, zstd
from tswitch_format.codecs.loops import loops
from tswitch_format.errors import PayloadError

ESCAPE = 255  # a gap byte: "255 further, nothing here"


def gaps_of(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions (ascending) to gaps: the distance from one to the next, minus one."""
    gaps = np.empty_like(positions)
    gaps[0] = positions[0]
    np.subtract(positions[1:], positions[:-1], out=gaps[1:])
    gaps[1:] -= 1
    return gaps


def encode_gaps(gaps: NDArray[np.int64], k: int, level: int) -> bytes:
    """Gaps as low parts and a zstd frame of gap bytes."""
    return bits.pack_fields(gaps, k) + zstd.compress(gap_bytes(gaps, k).data, level)


def gap_bytes(gaps: NDArray[np.int64], k: int = 0) -> NDArray[np.uint8]:
    """The high parts of gaps as bytes, 255 for "255 further, nothing here"."""
    high = gaps >> k if k else gaps
    if int(high.max()) < ESCAPE:
        return high.astype(np.uint8)
    compiled = loops()
    if compiled is not None:
        made: NDArray[np.uint8] = compiled.gap_bytes(high)
        return made
    escapes, rest = np.divmod(high, ESCAPE)
    places = np.cumsum(escapes)
    places += np.arange(gaps.size)
    out = np.full(int(places[-1]) + 1, ESCAPE, np.uint8)
    out[places] = rest
    return out


def positions_of(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Positions that gap bytes with k = 0 lead to, which are trusted."""
    last = codes < ESCAPE
    out = np.empty(np.count_nonzero(last), np.int64)
    if out.size:
        _add_up(codes, last, out)
    return out


def _add_up(steps: NDArray[np.uint8], last: NDArray[np.bool_], out: NDArray[np.int64]) -> None:
    """Positions of the gaps that end in the bytes `last`, one or more."""
    # A byte below 255 moves on by itself and one more, 255 by 255: bytes again. So all but the sum is done on bytes, and the
    # sum takes as long as zstd does. (np.minimum with 254 would take as long once more.)
    moves = np.add(steps, last.view(np.uint8))
    moves[0] -= 1  # the first position is the first gap
    if steps.size == out.size:
        np.cumsum(moves, dtype=np.int64, out=out)
    else:
        out[:] = np.cumsum(moves, dtype=np.int64)[last]


def decode_gaps(data: memoryview, k: int, n: int, start: int, out: NDArray[np.int64]) -> None:
    """Positions of the ones among `n` bits, as many as `out` has room for (1 or more), each plus `start`."""
    m = out.size
    low, steps = _split(data, k, n, m)
    compiled = loops() if k == 0 else None
    if compiled is not None and compiled.gap_positions(steps, start, out) == m and steps[-1] != ESCAPE:
        _check_below(int(out[-1]) - start, n)
        return
    last = steps < ESCAPE
    _check_ends(int(np.count_nonzero(last)), steps, m)
    if k == 0:
        _add_up(steps, last, out)
        out += start
    else:
        wide = steps.astype(np.int64) << k
        wide[last] += bits.unpack_fields(low, k, m) + 1
        np.add(np.cumsum(wide)[last], start - 1, out=out)
    _check_below(int(out[-1]) - start, n)


def decode_gap_bytes(data: memoryview, n: int, m: int) -> NDArray[np.uint8]:
    """The gap bytes of a payload with k = 0: m or more, as `decode_gaps` takes them, which checks their ends and sum too."""
    return _split(data, 0, n, m)[1]


def _split(data: memoryview, k: int, n: int, m: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Low parts and gap bytes of a payload."""
    low_length = _low_length(data, k, m)
    frame = data[low_length:] if low_length else data
    size = zstd.content_size(frame)
    most = m + n // (ESCAPE << k)
    if not m <= size <= most:
        raise PayloadError(rule="TSW-706", expected=f"{m} to {most} gap bytes", found=str(size))
    return np.frombuffer(data[:low_length], np.uint8), np.frombuffer(zstd.content(frame, size), np.uint8)


def _check_ends(ends: int, steps: NDArray[np.uint8], m: int) -> None:
    if ends != m or steps[-1] == ESCAPE:
        raise PayloadError(
            rule="TSW-706", expected=f"{m} gap bytes below 255, the last of all among them", found=f"{ends} such bytes"
        )


def rice_bits(gaps: NDArray[np.int64], k: int) -> int:
    """Bits of the unary part of a Rice code."""
    return gaps.size + int((gaps >> k).sum())


def encode_rice(gaps: NDArray[np.int64], k: int) -> bytes:
    """Gaps as low parts and unary high parts."""
    ones = np.cumsum((gaps >> k) + 1) - 1
    return bits.pack_fields(gaps, k) + bits.pack_positions(ones, int(ones[-1]) + 1).tobytes()


def decode_rice(data: memoryview, k: int, n: int, start: int, out: NDArray[np.int64]) -> None:
    """See `decode_gaps`."""
    m = out.size
    low_length = _low_length(data, k, m)
    unary = np.frombuffer(data[low_length:], np.uint8)
    most = bits.nbytes(m + (n >> k))
    if unary.size > most:
        raise PayloadError(rule="TSW-706", expected=f"at most {most} bytes of unary code", found=str(unary.size))
    ones = bits.unpack_positions(unary, unary.size * 8)
    if ones.size != m or bits.nbytes(int(ones[-1]) + 1) != unary.size:
        raise PayloadError(rule="TSW-706", expected=f"{m} ones, the last in the last byte", found=f"{ones.size} ones")
    order = np.arange(m, dtype=np.int64)
    np.subtract(ones, order, out=out)
    out <<= k
    out += order
    if k:
        fields = bits.unpack_fields(np.frombuffer(data[:low_length], np.uint8), k, m)
        out += np.cumsum(fields, out=fields)
    _check_below(int(out[-1]), n)
    out += start


def _low_length(data: memoryview, k: int, m: int) -> int:
    length = bits.nbytes(m * k)
    if len(data) <= length:
        raise PayloadError(rule="TSW-706", expected=f"more than {length} bytes", found=str(len(data)))
    return length


def _check_below(last: int, n: int) -> None:
    if last >= n:
        raise PayloadError(rule="TSW-706", expected=f"positions below {n}", found=str(last))
