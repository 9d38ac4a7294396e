"""Section 9: from the encoded bytes of a segment to a plane's bit string or to the bytes of elements."""

from __future__ import annotations

from .bits import bit_text, ones, unused_bits_are_zero, with_ones_at
from .errors import BrokenError
from .layout import BITMAP, BITMAP_ZSTD, CODECS, GAPS_ZSTD, RAW, ZEROS, ZSTD
from .layout import ONES as ALL_ONES
from .zstd import decompress, frame_header
from .zstd_entropy import ZstdError


def decode(payload: bytes, codec: int, parameter: int, size: int, count: int, where: str, offset: int) -> bytes:
    """The content of a segment of `size` bits (planes) or bytes, `count` as in its record.

    Raises BrokenError with a rule of 703, 704, 706 or 707; `offset` is where the payload lies in the file.
    """
    place = f"{where}, {CODECS[codec]}"
    if codec == RAW:
        return _exactly(payload, size, place, offset)
    if codec == ZSTD:
        return unpack(payload, size, place, offset)
    plane = _plane(payload, codec, parameter, size, count, place, offset)
    if not unused_bits_are_zero(plane, size):
        last = f"the last byte {plane[-1]:02X} of {size} bits"
        raise BrokenError("TSW-703", "unused bits that are zero", last, place, offset)
    if ones(plane) != count:
        raise BrokenError("TSW-704", f"{count} ones", str(ones(plane)), place, offset)
    return plane


def unpack(frame: bytes, size: int, where: str, offset: int | None) -> bytes:
    """The content of a zstd frame of which the size is known; TSW-707 where it is another or the frame broken."""
    try:
        return decompress(frame, size)
    except ZstdError as error:
        raise _of_frame(error, where, offset) from None


def _of_frame(error: ZstdError, where: str, offset: int | None) -> BrokenError:
    place = None if offset is None else offset + error.offset
    return BrokenError("TSW-707", error.expected, error.found, f"{where}, zstd frame", place)


def _exactly(payload: bytes, size: int, where: str, offset: int) -> bytes:
    if len(payload) != size:
        raise BrokenError("TSW-706", f"{size} bytes", str(len(payload)), where, offset)
    return payload


def _plane(payload: bytes, codec: int, k: int, bits: int, count: int, where: str, offset: int) -> bytes:
    size = (bits + 7) // 8
    if codec == BITMAP:
        return _exactly(payload, size, where, offset)
    if codec == BITMAP_ZSTD:
        return unpack(payload, size, where, offset)
    if codec in (ZEROS, ALL_ONES):
        _exactly(payload, 0, where, offset)
        return bytes(size) if codec == ZEROS else ((1 << bits) - 1).to_bytes(size, "little")
    low, length = _low_parts(payload, k, count, where, offset)
    rest = payload[length:]
    offset += length
    if codec == GAPS_ZSTD:
        high = _high_parts_of_gap_bytes(rest, k, bits, count, where, offset)
    else:
        high = _high_parts_of_rice(rest, count + (bits >> k), count, where, offset)
    position = -1
    positions = []
    for i in range(count):
        position += 1 + (high[i] << k) + low[i]
        if position >= bits:
            raise BrokenError("TSW-706", f"positions below {bits}", f"{position} of one {i}", where, offset)
        positions.append(position)
    return with_ones_at(positions, bits)


def _low_parts(payload: bytes, k: int, count: int, where: str, offset: int) -> tuple[list[int], int]:
    """The low parts of all gaps, and how many bytes they take."""
    length = (count * k + 7) // 8
    if len(payload) < length:
        raise BrokenError("TSW-706", f"{length} bytes of low parts", str(len(payload)), where, offset)
    if k == 0:
        return [0] * count, 0
    stored = payload[:length]
    if not unused_bits_are_zero(stored, count * k):
        last = f"the last byte {stored[-1]:02X} of {count * k} bits"
        raise BrokenError("TSW-703", "unused bits of the low parts that are zero", last, where, offset + length - 1)
    # Most significant bit first, so that each low part is a number as text has it; the first one stands last.
    text = bit_text(stored)[::-1]
    end = len(text)
    return [int(text[end - (i + 1) * k : end - i * k], 2) for i in range(count)], length


def _high_parts_of_gap_bytes(frame: bytes, k: int, bits: int, count: int, where: str, offset: int) -> list[int]:
    """Section 9.3. A byte of 255 adds 255 to a gap, one below ends it."""
    if not frame:
        raise BrokenError("TSW-706", "a zstd frame of gap bytes", "the end of the payload", where, offset)
    try:
        declared = frame_header(frame).content_size
    except ZstdError as error:
        raise _of_frame(error, where, offset) from None
    most = count + bits // (255 << k)
    if not count <= declared <= most:
        raise BrokenError("TSW-706", f"{count} to {most} gap bytes", str(declared), where, offset)
    gap_bytes = unpack(frame, declared, where, offset)
    ends = declared - gap_bytes.count(255)
    if ends != count:
        raise BrokenError("TSW-706", f"{count} gap bytes below 255", str(ends), where, offset)
    if gap_bytes[-1] == 255:
        raise BrokenError("TSW-706", "a last gap byte below 255", "255", where, offset)
    high = []
    gap = 0
    for byte in gap_bytes:
        gap += byte
        if byte < 255:
            high.append(gap)
            gap = 0
    return high


def _high_parts_of_rice(stream: bytes, most_bits: int, count: int, where: str, offset: int) -> list[int]:
    """Section 9.4. The zeros between ones are counted; more bits than the plane has room for are not even looked at."""
    most = (most_bits + 7) // 8
    if len(stream) > most:
        raise BrokenError("TSW-706", f"at most {most} bytes of codes", str(len(stream)), where, offset)
    parts = bit_text(stream).split("1", count)
    if len(parts) <= count:
        raise BrokenError("TSW-706", f"{count} ones in the bit string", str(len(parts) - 1), where, offset)
    rest = parts.pop()
    if len(rest) >= 8 or "1" in rest:
        found = f"{rest.count('1')} more in {len(rest)} bits behind it"
        raise BrokenError("TSW-706", f"one {count} as the last one, in the last byte", found, where, offset)
    return [len(part) for part in parts]
