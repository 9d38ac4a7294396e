"""The zstd decoder of the reference reader against libzstd, and against frames made by hand."""

import random

import pytest
import zstandard
from tsw_reference.zstd import LITERALS_LENGTHS, MATCH_LENGTHS, decompress, frame_header
from tsw_reference.zstd_entropy import ZstdError

SIZES = (0, 1, 2, 5, 17, 100, 255, 256, 300, 1000, 5000, 65791, 65792, 140000)
LEVELS = (-5, -1, 1, 3, 6, 9, 13, 16, 19)


def samples(rng: random.Random, size: int) -> dict[str, bytes]:
    words = [rng.randbytes(rng.randrange(2, 9)) for _ in range(300)]
    return {
        "random": rng.randbytes(size),
        "zeros": bytes(size),
        "repetitive": (b"abcdefg" * (size // 7 + 1))[:size],
        "text": b" ".join(rng.choice(words) for _ in range(size // 3 + 1))[:size],
        "gaps": bytes(min(255, int(rng.expovariate(1 / 40))) for _ in range(size)),
        "sparse": bytes(rng.choice(b"\0\0\0\0\1") for _ in range(size)),
        "few": bytes(rng.randrange(40) for _ in range(size)),
    }


def compress(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(data)


def in_blocks(data: bytes, level: int, rng: random.Random) -> bytes:
    """Several blocks, so that tables, trees and recent offsets go from one to the next."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False).compressobj(size=len(data))
    frame, at = b"", 0
    while at < len(data):
        step = rng.randrange(1, len(data) // 3 + 2)
        frame += compressor.compress(data[at : at + step]) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        at += step
    return frame + compressor.flush()


def libzstd(frame: bytes, size: int) -> bytes | None:
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError:
        return None


@pytest.mark.parametrize("size", SIZES)
def test_what_libzstd_compresses(size):
    rng = random.Random(size)
    for number, data in enumerate(samples(rng, size).values()):
        levels = LEVELS if size <= 5000 else (LEVELS[(size + number) % len(LEVELS)],)
        for level in levels:
            assert decompress(compress(data, level), size) == data
        if 100 <= size <= 5000:
            assert decompress(in_blocks(data, rng.choice(LEVELS), rng), size) == data


def test_offsets_beyond_a_block_and_a_large_window():
    rng = random.Random(5)
    start = rng.randbytes(150000)
    data = start + start[1000:60000] + b"x" * 90000
    assert decompress(compress(data, 19), len(data)) == data


def test_broken_frames_are_refused_or_mean_the_same():
    rng = random.Random(7)
    frames = [
        compress(data, level)
        for size in (20, 300, 1500)
        for data in samples(rng, size).values()
        for level in (-5, 3, 19)
    ]
    refused = accepted = 0
    for number in range(4000):
        frame = bytearray(frames[number % len(frames)])
        if rng.random() < 0.1:
            frame = frame[: rng.randrange(len(frame))]
        else:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                place = int(rng.expovariate(1 / 15)) if rng.random() < 0.6 else rng.randrange(len(frame))
                frame[min(place, len(frame) - 1)] ^= 1 << rng.randrange(8)
        try:
            size = frame_header(bytes(frame)).content_size
            if not 0 < size < 1 << 20:
                continue
            decoded = decompress(bytes(frame), size)
        except ZstdError:
            refused += 1
            continue
        accepted += 1
        assert libzstd(bytes(frame), size) == decoded
    assert refused > 1000
    assert accepted > 500


def test_length_codes():
    assert LITERALS_LENGTHS[16] == (16, 1)
    assert LITERALS_LENGTHS[24:26] == [(48, 4), (64, 6)]
    assert LITERALS_LENGTHS[35] == (65536, 16)
    assert MATCH_LENGTHS[31:33] == [(34, 0), (35, 1)]
    assert MATCH_LENGTHS[42:44] == [(99, 5), (131, 7)]
    assert MATCH_LENGTHS[52] == (65539, 16)


# Frames made by hand. A window of 1 KiB (window descriptor 0) and a content size of four bytes.


def header(size: int, flags: int = 0, window: int = 0) -> bytes:
    return bytes.fromhex("28B52FFD") + bytes([0x80 | flags, window]) + size.to_bytes(4, "little")


def block(kind: int, size: int, data: bytes, last: bool = True) -> bytes:
    return (int(last) | kind << 1 | size << 3).to_bytes(3, "little") + data


def stream(bits: str) -> bytes:
    """A bitstream that is read backward, from its bits in the order of reading."""
    value = int("1" + bits, 2)
    return value.to_bytes((value.bit_length() + 7) // 8, "little")


def compressed(data: bytes, last: bool = True) -> bytes:
    return block(2, len(data), data, last)


def one_sequence(
    literals: bytes, offset_code: int, bits: str, modes: int = 0x54, length_code: int | None = None
) -> bytes:
    """Raw literals and one sequence of all of them and a match of 3 bytes; tables of one symbol."""
    codes = bytes([len(literals) if length_code is None else length_code, offset_code, 0])
    return bytes([len(literals) << 3]) + literals + bytes([1, modes]) + codes + stream(bits)


def match_at(distance: int) -> bytes:
    value = distance + 3
    code = value.bit_length() - 1
    return one_sequence(b"", code, format(value - (1 << code), f"0{code}b"))


def four_streams(count: int, *bits: str) -> bytes:
    """Literals of two symbols of one bit each in four streams, and no sequences."""
    streams = [stream(text) for text in bits]
    data = bytes([128, 0x10]) + b"".join(len(one).to_bytes(2, "little") for one in streams[:3]) + b"".join(streams)
    return (2 | 1 << 2 | count << 4 | len(data) << 14).to_bytes(3, "little") + data + b"\0"


THREE_RAW = b"".join(block(0, 1000, bytes(range(250)) * 4, last=False) for _ in range(3))
LONG = "01" * 100
# As one_sequence, but the literals length has a table description: accuracy 5, probability 32 of code 4.
ONE_SYMBOL = b"\x20abcd\x01\x94" + bytes.fromhex("10E607") + b"\x02\x00" + stream("00000" + "11")

ACCEPTED = {
    "a sequence": (7, header(7) + compressed(one_sequence(b"abcd", 2, "11"))),
    "the unused bit": (7, header(7, flags=16) + compressed(one_sequence(b"abcd", 2, "11"))),
    "a dictionary id of 0": (1, header(1, flags=1)[:6] + b"\0" + header(1)[6:] + block(0, 1, b"a")),
    "a block larger than its content": (1, header(1) + compressed(b"\x08a\x00")),
    "no sequences, counted in two bytes": (5, header(5) + compressed(b"\x28aaaaa\x80\x00")),
    "an empty RLE block": (5, header(5) + block(0, 5, b"aaaaa", last=False) + block(1, 0, b"x")),
    "a match as far as the window": (3003, header(3003) + THREE_RAW + compressed(match_at(1024))),
    "four streams": (800, header(800) + compressed(four_streams(800, LONG, LONG, LONG, LONG))),
}

REFUSED = {
    "another magic": (1, b"\x50\x2a\x4d\x18" + bytes(8)),
    "reserved bit": (7, header(7, flags=8) + compressed(one_sequence(b"abcd", 2, "11"))),
    "a checksum": (1, header(1, flags=4) + block(0, 1, b"a") + bytes(4)),
    "a dictionary": (1, header(1, flags=1)[:6] + b"\7" + header(1)[6:] + block(0, 1, b"a")),
    "no content size": (1, bytes.fromhex("28B52FFD0000") + block(0, 1, b"a")),
    "a window of 9 MiB": (1, header(1, window=(13 << 3) | 1) + block(0, 1, b"a")),
    "no block": (0, header(0)),
    "no content and rubbish": (0, header(0) + b"\xff\xff\xff\xff"),
    "less content": (2, header(2) + block(0, 1, b"a")),
    "more content": (1, header(1) + block(0, 2, b"ab")),
    "a byte behind": (1, header(1) + block(0, 1, b"a") + b"\0"),
    "block type 3": (1, header(1) + block(3, 1, b"a")),
    "a raw block beyond the window": (2000, header(2000) + block(0, 2000, bytes(2000))),
    "an RLE block beyond the window": (2000, header(2000) + block(1, 2000, b"a")),
    "an empty compressed block": (5, header(5) + block(0, 5, b"aaaaa", last=False) + compressed(b"")),
    "a match beyond the window": (3003, header(3003) + THREE_RAW + compressed(match_at(1025))),
    "a match beyond the content": (3003, header(3003, window=8 << 3) + THREE_RAW + compressed(match_at(3001))),
    "an offset of 0": (4, header(4) + block(0, 1, b"a", last=False) + compressed(one_sequence(b"", 1, "1"))),
    "reserved modes": (7, header(7) + compressed(one_sequence(b"abcd", 2, "11", modes=0x55))),
    "nothing to repeat": (7, header(7) + compressed(one_sequence(b"abcd", 2, "11", modes=0xD4))),
    "a bit left": (7, header(7) + compressed(one_sequence(b"abcd", 2, "110"))),
    "a bit short": (7, header(7) + compressed(one_sequence(b"abcd", 2, "1"))),
    "a code too large": (7, header(7) + compressed(one_sequence(b"abcd", 2, "11", length_code=36))),
    "more literals than there are": (8, header(8) + compressed(one_sequence(b"abcd", 2, "11", length_code=5))),
    "bytes behind no sequences": (5, header(5) + compressed(b"\x28aaaaa\x80\x00\x54")),
    "a table of one symbol": (7, header(7) + compressed(ONE_SYMBOL)),
    "literals beyond the window": (
        1400,
        header(1400) + compressed((1 | 1 << 2 | 1400 << 4).to_bytes(2, "little") + b"x\0"),
    ),
    "no tree": (4, header(4) + compressed((3 | 4 << 4 | 1 << 14).to_bytes(3, "little") + stream("0110") + b"\0")),
    "four streams of five": (5, header(5) + compressed(four_streams(5, "01", "01", "0", ""))),
    "a stream not used up": (800, header(800) + compressed(four_streams(800, LONG, LONG, LONG, LONG + "1"))),
    "a stream too short": (800, header(800) + compressed(four_streams(800, LONG, LONG, LONG, LONG[1:]))),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_frames_by_hand_that_are_right(name):
    size, frame = ACCEPTED[name]
    assert decompress(frame, size) == libzstd(frame, size)


@pytest.mark.parametrize("name", REFUSED)
def test_frames_by_hand_that_are_wrong(name):
    size, frame = REFUSED[name]
    with pytest.raises(ZstdError):
        decompress(frame, size)


def test_the_declared_size_is_checked_first():
    with pytest.raises(ZstdError, match="expected a content size of 5, found 4294967295"):
        decompress(header((1 << 32) - 1)[:10], 5)
