"""Invalid files: prologue, trailer, and where the index lies (rules 1xx and 2xx)."""

from __future__ import annotations

from making import zstd_frames as zf
from making.material import WINDOW_1K, plain, raw_frame
from making.model import File
from making.suite import Suite
from making.writing import write

_FILE = plain()


def add(suite: Suite) -> None:
    """Add all of them."""
    _magic_and_length(suite)
    _prologue(suite)
    _index_place(suite)
    _trailer(suite)
    _index_frame(suite)


def _magic_and_length(suite: Suite) -> None:
    good = write(_FILE)
    suite.invalid("100-empty", "TSW-100", "no byte at all", b"")
    for length in (1, 7, 8, 10, 63, 64, 127):
        suite.invalid(f"100-{length}-bytes", "TSW-100", f"the first {length} bytes of a file", good[:length])
    for name, magic in (
        ("first-byte", b"\x88TSW\r\n\x1a\n"),
        ("high-bit-lost", b"\x09TSW\r\n\x1a\n"),
        ("lf-for-crlf", b"\x89TSW\n\x1a\n"),
        ("crlf-for-lf", b"\x89TSW\r\n\x1a\r\n"),
        ("last-byte", b"\x89TSW\r\n\x1a\r"),
        ("lower-case", b"\x89tsw\r\n\x1a\n"),
    ):
        suite.invalid(f"101-{name}", "TSW-101", "the magic is damaged", magic + good[8:])
    suite.invalid("101-short", "TSW-101", "five bytes that are no beginning of the magic", b"hello")
    suite.invalid("101-one-byte", "TSW-101", "one byte that is not the magic's first", b"T")
    suite.invalid("101-zeros", "TSW-101", "128 zeros", bytes(128))
    suite.invalid("101-second-byte-of-two", "TSW-101", "two bytes of which the second is not the magic's", b"\x89P")


def _prologue(suite: Suite) -> None:
    for major in (0, 2, 256, 65535):
        suite.invalid(f"102-{major}", "TSW-102", f"major version {major}", _FILE, prologue={"major": major})
    suite.invalid(
        "102-before-crc",
        "TSW-102",
        "major version 2 is reported before the CRC32C, which that version may not have",
        _FILE,
        prologue={"major": 2, "crc32c": 0},
    )
    for bit in (0, 1, 31, 32, 63):
        suite.invalid(
            f"103-bit-{bit}", "TSW-103", f"required feature {bit}", _FILE, prologue={"required_features": 1 << bit}
        )
    suite.invalid(
        "103-before-length",
        "TSW-103",
        "an unknown required feature is reported before the length",
        _FILE,
        prologue={"required_features": 2, "file_length": 1},
    )
    suite.invalid("104-crc", "TSW-104", "another CRC32C in the prologue", _FILE, prologue={"crc32c": 0x12345678})
    good = write(_FILE)
    for at in (10, 12, 20, 24, 35, 56, 57, 60):
        flipped = good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :]
        suite.invalid(f"104-byte-{at}", "TSW-104", f"bit 6 of byte {at} is turned over", flipped)
    suite.invalid("105-cut", "TSW-105", "the last byte is missing", good[:-1])
    suite.invalid("105-cut-to-128", "TSW-105", "the first 128 bytes of a file", good[:128])
    suite.invalid("105-longer", "TSW-105", "a byte after the end", good + b"\0")
    suite.invalid("105-twice", "TSW-105", "the file twice", good + good)
    for name, length in (("zero", 0), ("one-less", len(good) - 1), ("huge", (1 << 64) - 1)):
        suite.invalid(
            f"105-says-{name}", "TSW-105", "file_length is not the length", _FILE, prologue={"file_length": length}
        )
    for encoding in (2, 255):
        suite.invalid(
            f"106-{encoding}", "TSW-106", f"index encoding {encoding}", _FILE, prologue={"index_encoding": encoding}
        )
    for number in range(3):
        reserved = bytes(number) + b"\x01" + bytes(2 - number)
        why = f"reserved byte {number} is not zero"
        suite.invalid(f"107-prologue-{number}", "TSW-107", f"prologue: {why}", _FILE, prologue={"reserved": reserved})
        suite.invalid(f"107-trailer-{number}", "TSW-107", f"trailer: {why}", _FILE, trailer={"reserved": reserved})
    length = len(good) - 128 - 3
    for name, decoded in (("zero", 0), ("one-less", length - 1), ("one-more", length + 1), ("largest", 0xFFFFFFFF)):
        why = "a raw index whose decoded length is not its length"
        suite.invalid(f"108-raw-{name}", "TSW-108", why, _FILE, prologue={"index_decoded_length": decoded})
    empty = {"index_decoded_length": 0}
    suite.invalid(
        "108-zstd-of-nothing",
        "TSW-108",
        "a zstd index of no bytes",
        _FILE,
        stored=lambda _: raw_frame(b""),
        prologue=empty,
    )


def _index_place(suite: Suite) -> None:
    good = write(_FILE)
    offset, length = 67, len(good) - 67 - 64
    for name, fields in (
        ("offset-one-less", {"index_offset": offset - 1}),
        ("offset-one-more", {"index_offset": offset + 1}),
        ("offset-huge", {"index_offset": (1 << 64) - 1}),
        ("offset-in-trailer", {"index_offset": len(good) - 10}),
        ("length-huge", {"index_length": (1 << 64) - 1, "index_encoding": 1}),
        ("sum-wraps", {"index_offset": (1 << 64) - 64, "index_length": len(good), "index_encoding": 1}),
        ("length-one-more", {"index_length": length + 1, "index_decoded_length": length + 1}),
        ("length-one-less", {"index_length": length - 1, "index_decoded_length": length - 1}),
    ):
        suite.invalid(
            f"203-{name}", "TSW-203", "the index does not end where the trailer begins", _FILE, prologue=fields
        )
    nothing = File(content_id=False)
    size = len(write(nothing)) - 128
    for begin in (0, 63):
        fields = {"index_offset": begin, "index_length": size + 64 - begin, "index_decoded_length": size + 64 - begin}
        why = "the index begins before byte 64"
        suite.invalid(f"203-begins-at-{begin}", "TSW-203", why, nothing, prologue=fields)
    fields = {"index_offset": 64 + size, "index_length": 0, "index_encoding": 1, "index_decoded_length": 1}
    suite.invalid("203-no-bytes", "TSW-203", "an index of no bytes", nothing, prologue=fields)


def _trailer(suite: Suite) -> None:
    for name, magic in (("last-byte", b"WST\r"), ("first-byte", b"wST\n"), ("zeros", bytes(4)), ("reversed", b"TSW\n")):
        suite.invalid(f"201-{name}", "TSW-201", "the end magic is damaged", _FILE, trailer={"end_magic": magic})
    suite.invalid("202-crc", "TSW-202", "another CRC32C in the trailer", _FILE, trailer={"crc32c": 1})
    good = write(_FILE)
    for at in (64, 44, 41, 40, 8, 7):
        flipped = good[:-at] + bytes([good[-at] ^ 1]) + good[len(good) - at + 1 :]
        suite.invalid(f"202-byte-{at}-from-end", "TSW-202", "a bit of the trailer is turned over", flipped)
    suite.invalid(
        "204-other-digest", "TSW-204", "another SHA-256 of the index", _FILE, trailer={"index_sha256": bytes(32)}
    )
    at = len(good) - 65
    why = "the last byte of the index is another letter"
    suite.invalid("204-index-changed", "TSW-204", why, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    index_at = 67 + 20
    changed = good[:index_at] + bytes([good[index_at] ^ 0x80]) + good[index_at + 1 :]
    suite.invalid("204-index-damaged", "TSW-204", "a byte of the index is damaged", changed)
    for name, fields in (
        ("offset", {"index_offset": 66}),
        ("length", {"index_length": 1}),
        ("decoded-length", {"index_decoded_length": 7}),
        ("encoding", {"index_encoding": 1}),
    ):
        suite.invalid(f"205-{name}", "TSW-205", f"index {name} is another in the trailer", _FILE, trailer=fields)


def _index_frame(suite: Suite) -> None:
    for name, why, stored in (
        ("cut", "its last byte is missing", lambda data: raw_frame(data)[:-1]),
        ("followed", "a byte follows it", lambda data: raw_frame(data) + b"\0"),
        ("two-frames", "two frames", lambda data: raw_frame(data[:9]) + raw_frame(data[9:])),
        (
            "skippable-after",
            "a skippable frame follows",
            lambda data: raw_frame(data) + bytes.fromhex("502A4D1800000000"),
        ),
        ("magic", "another magic", lambda data: b"\x27" + raw_frame(data)[1:]),
        ("no-size", "no declared size", lambda data: zf.header(None, window=WINDOW_1K) + zf.raw_blocks(data)),
        ("size", "a declared size that is one less", lambda data: zf.header(len(data) - 1) + zf.raw_blocks(data)),
        ("not-zstd", "no zstd at all", lambda data: data),
        (
            "checksum",
            "the checksum flag and a checksum",
            lambda data: zf.header(len(data), checksum=True) + zf.raw_blocks(data) + bytes(4),
        ),
    ):
        suite.invalid(f"707-index-{name}", "TSW-707", f"the index's zstd frame: {why}", _FILE, stored=stored)
