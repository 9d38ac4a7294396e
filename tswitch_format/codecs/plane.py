"""A plane of bits <-> the smallest of its encodings (spec section 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tswitch_format._layout import Codec
from tswitch_format.codecs import bits, gaps, zstd
from tswitch_format.codecs.loops import loops
from tswitch_format.errors import PayloadError

# All figures here: random masks, benchmarks/results/codecs.md.
# zstd levels. Gap bytes hold no matches, only their Huffman coding counts, and level 1 does that as well as any (levels 2 to
# 9 give the same size or more up to 30 %). Bitmaps have the same size at levels 1 to 3 where they are taken, 20 % and more.
_GAPS_LEVEL = 1
_BITMAP_LEVEL = 3
# Gap bytes with k = 0 decode faster than anything else from 1 to 10 %: 10.7 against 3.7 G elements/s a core for Rice at 2 %,
# 7.4 against 1.7 for Rice and 1.5 for k = 1 at 5 %. (Below 0.5 % Rice is faster, and they are 6 % larger at 0.3 %.) They are
# taken where they cost at most this factor in size.
_FAST_FACTOR = 1.01
# From this density up a compressed bitmap can be the smallest, up to that one gaps can: mask / entropy of bitmap against the
# better of gaps and Rice is 1.143 : 1.012 at 10 %, 1.018 : 1.023 at 20 %, 1.006 : 1.008 at 30 %, and a plain bitmap has
# 1.000 at 50 %. (Real experts, which that file does not have, leave room to spare.) Outside, trying costs time and wins
# nothing.
_BITMAP_FROM = 0.08
_GAPS_TO = 0.4
_PACKED_GAPS_TO = 0.2

_GAPS = (Codec.GAPS_ZSTD, Codec.RICE)
_PLANES = (Codec.ZEROS, Codec.ONES, Codec.BITMAP, Codec.BITMAP_ZSTD, *_GAPS)


@dataclass(frozen=True, slots=True)
class EncodedPlane:
    """Encoded bytes with what the segment record says of them. `count`: number of ones."""

    codec: Codec
    parameter: int
    count: int
    data: bytes


def encode(positions: NDArray[np.int64], n: int, *, mapped: bool = False) -> EncodedPlane:
    """The smallest encoding of a plane of `n` bits with ones at `positions` (int64, ascending); a bitmap if `mapped`."""
    m = int(positions.size)
    if mapped:
        return EncodedPlane(Codec.BITMAP, 0, m, bits.pack_positions(positions, n).tobytes())
    if m == 0:
        return EncodedPlane(Codec.ZEROS, 0, 0, b"")
    if m == n:
        return EncodedPlane(Codec.ONES, 0, m, b"")
    best = None
    if m <= _GAPS_TO * n:
        best = _smallest_gaps(gaps.gaps_of(positions), n)
    limit = len(best.data) if best else bits.nbytes(n)
    if best is None or m >= _BITMAP_FROM * n or limit >= bits.nbytes(n):
        packed = bits.pack_positions(positions, n)
        if packed.size <= limit:
            best, limit = EncodedPlane(Codec.BITMAP, 0, m, packed.tobytes()), packed.size
        data = zstd.compress(packed.data, _BITMAP_LEVEL)
        if len(data) < limit:
            best = EncodedPlane(Codec.BITMAP_ZSTD, 0, m, data)
    if best is None:  # cannot be: m > _GAPS_TO * n implies the branch above
        raise ValueError("no codec for the plane")
    return best


def encode_packed(packed: NDArray[np.uint8], n: int, *, mapped: bool = False) -> EncodedPlane:
    """A small encoding of a bit string of ceil(n / 8) bytes, whose unused bits are zero: of dense ones a bitmap, without a look
    at gaps, so that masks of 20 to 60 % come at 10 G bits/s a core instead of 0.13 (measured once)."""
    m = bits.count_ones(packed)
    if mapped:
        return EncodedPlane(Codec.BITMAP, 0, m, packed.tobytes())
    if m <= _PACKED_GAPS_TO * n or m == n:
        return encode(bits.unpack_positions(packed, n), n)
    data = zstd.compress(packed.data, _BITMAP_LEVEL)
    if len(data) < packed.size:
        return EncodedPlane(Codec.BITMAP_ZSTD, 0, m, data)
    return EncodedPlane(Codec.BITMAP, 0, m, packed.tobytes())


def _smallest_gaps(distances: NDArray[np.int64], n: int) -> EncodedPlane:
    m = distances.size
    mean = math.log2(n / m)
    # Rice: with gaps of mean 2^mean the best k is near log2(ln 2 * 2^mean); its sizes are counted, not tried.
    guess = max(0, round(mean - 0.53))
    sizes = {
        k: bits.nbytes(m * k) + bits.nbytes(gaps.rice_bits(distances, k)) for k in range(max(0, guess - 1), guess + 2)
    }
    k = min(sizes, key=lambda k: (sizes[k], k))
    rice_size = sizes[k]
    smallest = rice_size
    best: EncodedPlane | None = None
    # Gap bytes: about 8 values of the high part a mean gap keep the Huffman table short (measured). With k = 0 and gaps of
    # more than 256 on average most bytes would be escapes.
    for low in sorted({0, max(0, round(mean - 3))} if mean <= 8 else {round(mean - 3)}):
        data = gaps.encode_gaps(distances, low, _GAPS_LEVEL)
        if len(data) < smallest or (low == 0 and len(data) <= _FAST_FACTOR * smallest):
            best = EncodedPlane(Codec.GAPS_ZSTD, low, m, data)
            smallest = len(data)
            if low == 0 and smallest <= _FAST_FACTOR * rice_size:
                break
    return best or EncodedPlane(Codec.RICE, k, m, gaps.encode_rice(distances, k))


def decode_positions(
    codec: int,
    parameter: int,
    data: memoryview,
    n: int,
    count: int,
    *,
    start: int = 0,
    out: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Positions of the ones of a plane of `n` bits of which `count` are set, ascending, each plus `start`: int64[count].

    `out`: where to put them. A new array costs more than decoding does, where the kernel has to give its memory.
    """
    # A few bytes may claim any count: nothing is allocated before that is checked.
    if codec in (Codec.ZEROS, Codec.ONES):
        _check_constant(data, count, n if codec == Codec.ONES else 0)
    elif codec not in _PLANES or (codec in _GAPS and not count):
        raise PayloadError(
            rule="TSW-606", expected="a plane codec that fits the count", found=f"codec {codec}, count {count}"
        )
    if count > n:
        rule = "TSW-706" if codec in _GAPS else "TSW-704"
        raise PayloadError(rule=rule, expected=f"at most {n} ones in the plane", found=str(count))
    positions = np.empty(count, np.int64) if out is None else out
    match codec:
        case Codec.GAPS_ZSTD:
            gaps.decode_gaps(data, parameter, n, start, positions)
        case Codec.RICE:
            gaps.decode_rice(data, parameter, n, start, positions)
        case Codec.ONES:
            positions[:] = np.arange(start, start + n)
        case Codec.BITMAP | Codec.BITMAP_ZSTD:
            _positions_of_bitmap(_bitmap(codec, data, n), n, start, positions)
    return positions


def _positions_of_bitmap(packed: NDArray[np.uint8], n: int, start: int, out: NDArray[np.int64]) -> None:
    compiled = loops()
    if compiled is not None:
        if compiled.bit_positions(packed, start, out) != out.size:
            _check_count(bits.count_ones(packed), out.size)
        return
    found = bits.unpack_positions(packed, n)
    _check_count(found.size, out.size)
    np.add(found, start, out=out)


def decode_packed(codec: int, parameter: int, data: memoryview, n: int, count: int) -> NDArray[np.uint8]:
    """The plane as a bit string of ceil(n / 8) bytes. For a bitmap it is a view of `data`, valid as long as that is."""
    if codec in (Codec.BITMAP, Codec.BITMAP_ZSTD):
        packed = _bitmap(codec, data, n)
        _check_count(bits.count_ones(packed), count)
        return packed
    if codec in (Codec.ZEROS, Codec.ONES):  # at once: a file of 5 kB may have 2.7 million such planes
        _check_constant(data, count, n if codec == Codec.ONES else 0)
        return bits.pack_constant(n, ones=codec == Codec.ONES)
    return bits.pack_positions(decode_positions(codec, parameter, data, n, count), n)


def decode_gap_bytes(codec: int, parameter: int, data: memoryview, n: int, count: int) -> NDArray[np.uint8]:
    """The plane as gap bytes with k = 0 (spec 9.3), whatever it is stored as; none where no bit is set.

    Those that were stored as such are not summed up: whoever does that finds, or not, `count` ends among `n` bits, the last
    byte one of them; and where not, `decode_positions` says what is wrong.
    """
    if codec == Codec.GAPS_ZSTD and parameter == 0 and count:
        return gaps.decode_gap_bytes(data, n, count)
    return gap_bytes(decode_positions(codec, parameter, data, n, count))


def gap_bytes(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Positions of ones, ascending, as gap bytes with k = 0."""
    return gaps.gap_bytes(gaps.gaps_of(positions)) if positions.size else np.empty(0, np.uint8)


def _bitmap(codec: int, data: memoryview, n: int) -> NDArray[np.uint8]:
    if codec == Codec.BITMAP_ZSTD:
        packed = np.frombuffer(zstd.decompress(data, bits.nbytes(n)), np.uint8)
    else:
        if len(data) != bits.nbytes(n):
            raise PayloadError(rule="TSW-706", expected=f"a bitmap of {bits.nbytes(n)} bytes", found=str(len(data)))
        packed = np.frombuffer(data, np.uint8)
    bits.check_tail(packed, n)
    return packed


def _check_constant(data: memoryview, count: int, expected: int) -> None:
    if len(data):
        raise PayloadError(rule="TSW-706", expected="no bytes", found=str(len(data)))
    _check_count(expected, count)


def _check_count(ones: int, count: int) -> None:
    if ones != count:
        raise PayloadError(rule="TSW-704", expected=f"{count} ones in the plane", found=str(ones))
