"""Invalid files: what the segments hold, and the digests (rules 7xx and 8xx)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from making import planes
from making import zstd_frames as zf
from making.material import BARE, WINDOW_1K, WINDOW_8M, W, kept, plain, prose, raw_frame
from making.model import CODECS, Coding, Dense, File, Removed, Task, Tensor, Ternary
from making.suite import Suite
from making.writing import Draft

_N = 1000
_TENSOR = Tensor("w", "F16", (_N,)).bare()
_ONES = (3, 255, 511, 956)
_GAPS = planes.gaps_of(_ONES)


def add(suite: Suite) -> None:
    """Add all of them."""
    _checksums(suite)
    _planes(suite)
    _factors(suite)
    _payloads(suite)
    _frames(suite)
    _digests(suite)


def _payload(data: bytes, number: int = 0, **fields: Any) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.payloads[0][number] = data
        draft.segments[0][number].update(fields)

    return change


def _mask(codec: str, k: int, data: bytes, count: int = len(_ONES)) -> dict[str, Any]:
    """A file with a mask of 1,000 bits of these bytes, and bitmaps of no negative signs."""
    active = tuple(range(count))
    entry = Ternary(_TENSOR, active, (), signs=Coding("zeros"), digest=False)
    return {"file": plain(entry, tensor=_TENSOR), "content": _payload(data, codec=CODECS[codec], parameter=k)}


def _checksums(suite: Suite) -> None:
    file = plain()

    def flip(at: int, bit: int = 1) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.body[at] ^= bit

        return change

    # Bits that keep the number of ones, so that only the checksum tells.
    suite.invalid("701-mask", "TSW-701", "a byte of the mask is another", file, placed=flip(0, 0x03))
    suite.invalid("701-sign", "TSW-701", "a byte of the signs is another", file, placed=flip(2, 0x03))

    def other(draft: Draft) -> None:
        draft.segments[0][1]["crc32c"] ^= 0x80000000

    suite.invalid("701-crc", "TSW-701", "the last bit of a segment's CRC32C", file, placed=other)
    none = plain(Ternary(BARE, (), (), masks=Coding("zeros"), signs=Coding("zeros"), digest=False))
    suite.invalid("701-empty", "TSW-701", "the CRC32C of a segment of no bytes is not 0", none, placed=other)
    big = Tensor("x", "U8", (40,)).bare()
    dense = File([big], [Task("t", [Dense(big, digest=False)])], content_id=False)
    suite.invalid("701-data", "TSW-701", "the last byte of dense data is another", dense, placed=flip(39))
    mapped = replace(file, profile="mapped")
    for name, at in (("first", 2), ("middle", 40), ("last", 63)):
        suite.invalid(
            f"702-{name}",
            "TSW-702",
            f"{name} byte of the padding between segments is not zero",
            mapped,
            placed=flip(at),
        )
    suite.invalid(
        "702-before-index",
        "TSW-702",
        "the last byte of the padding before the index is not zero",
        mapped,
        placed=flip(127, 0x80),
    )
    large = Tensor("w", "U8", (65536,), data=bytes(65536)).bare()
    page = File([large], [Task("t", [Dense(large, digest=False)])], profile="mapped", content_id=False)
    suite.invalid(
        "702-before-first",
        "TSW-702",
        "a byte of the padding before the first segment is not zero",
        page,
        placed=flip(1000),
    )


def _planes(suite: Suite) -> None:
    # 703
    file = plain()
    suite.invalid("703-mask", "TSW-703", "an unused bit of a mask is one", file, content=_payload(b"\x19\x06"))
    suite.invalid(
        "703-mask-last-bit", "TSW-703", "the last unused bit of a mask is one", file, content=_payload(b"\x19\x82")
    )
    suite.invalid(
        "703-counted", "TSW-703", "an unused bit is one and stands for an element", file, content=_payload(b"\x19\x04")
    )
    suite.invalid("703-sign", "TSW-703", "an unused bit of the signs is one", file, content=_payload(b"\x1a", 1))
    zipped = _payload(raw_frame(b"\x19\x22"), codec=CODECS["bitmap_zstd"])
    suite.invalid("703-zstd", "TSW-703", "an unused bit of a compressed mask is one", file, content=zipped)
    high = planes.unary(_GAPS, 3)
    low = planes.low_parts(_GAPS, 3)  # 12 bits
    suite.invalid(
        "703-rice-low",
        "TSW-703",
        "an unused bit of the low parts of a Rice code is one",
        **_mask("rice", 3, low[:1] + bytes([low[1] | 0x10]) + high),
    )
    frame = raw_frame(planes.gap_bytes(_GAPS, 3))
    suite.invalid(
        "703-gaps-low",
        "TSW-703",
        "an unused bit of the low parts before gap bytes is one",
        **_mask("gaps_zstd", 3, low[:1] + bytes([low[1] | 0x80]) + frame),
    )
    # 704
    for name, why, content in (
        ("bitmap-less", "a mask with 3 ones that counts 4", _payload(b"\x18\x02")),
        ("bitmap-more", "a mask with 5 ones that counts 4", _payload(b"\x1b\x02")),
        ("sign", "signs with 3 ones that count 2", _payload(b"\x0b", 1)),
        (
            "zstd",
            "a compressed mask with 5 ones that counts 4",
            _payload(raw_frame(b"\x1b\x02"), codec=CODECS["bitmap_zstd"]),
        ),
        ("zeros", "codec zeros that counts 4", _payload(b"", codec=CODECS["zeros"])),
        ("ones", "codec ones for 10 bits that counts 4", _payload(b"", codec=CODECS["ones"])),
        ("sign-zeros", "signs of codec zeros that count 2", _payload(b"", 1, codec=CODECS["zeros"])),
        ("sign-ones", "signs of codec ones for 4 bits that count 2", _payload(b"", 1, codec=CODECS["ones"])),
    ):
        suite.invalid(f"704-{name}", "TSW-704", why, file, content=content)


def _factors(suite: Suite) -> None:
    for factor, form, bits in (
        ("f16", "<H", {"nan": 0x7E00, "signalling-nan": 0x7C01, "infinity": 0x7C00, "minus-infinity": 0xFC00}),
        (
            "f32",
            "<I",
            {"nan": 0x7FC00000, "signalling-nan": 0xFF800001, "infinity": 0x7F800000, "minus-infinity": 0xFF800000},
        ),
    ):
        for name, value in bits.items():
            code = struct.pack(form, value)
            rows = plain(Ternary(BARE, factor_dtype=factor, rows=bytes(len(code)) + code, digest=False))
            suite.invalid(f"705-{factor}-{name}", "TSW-705", f"a row factor is {name}", rows)
        columns = plain(
            Ternary(
                BARE,
                factor_dtype=factor,
                columns=code + bytes(4 * len(code)),
                factors=Coding("zstd", 0, raw_frame),
                digest=False,
            )
        )
        suite.invalid(f"705-{factor}-column", "TSW-705", "a column factor in a zstd frame is infinite", columns)


def _payloads(suite: Suite) -> None:
    def bad(name: str, why: str, **made: Any) -> None:
        suite.invalid(f"706-{name}", "TSW-706", why, **made)

    file = plain()
    # Lengths of what is stored as it is.
    bad("bitmap-shorter", "a bitmap of a byte less", file=file, content=_payload(b"\x1b"))
    bad("bitmap-longer", "a bitmap of a byte more", file=file, content=_payload(b"\x19\x02\x00"))
    bad("bitmap-empty", "a bitmap of no bytes", file=file, content=_payload(b""))
    bad("sign-longer", "signs of a byte more", file=file, content=_payload(b"\x0a\x00", 1))
    none = plain(Ternary(BARE, (), (), digest=False))
    bad("sign-of-nothing", "a byte for signs of no bits", file=none, content=_payload(b"\x00", 1))
    bad("zeros-bytes", "a byte for codec zeros", file=none, content=_payload(b"\x00", codec=CODECS["zeros"]))
    every = plain(Ternary(BARE, range(10), (), digest=False))
    bad("ones-bytes", "bytes for codec ones", file=every, content=_payload(b"\xff\x03", codec=CODECS["ones"]))
    dense = File([BARE], [Task("t", [Dense(BARE, digest=False)])], content_id=False)
    for name, size in (("shorter", 39), ("longer", 41), ("empty", 0), ("element-more", 44)):
        bad(f"raw-{name}", f"{size} bytes for 10 F32 elements", file=dense, content=_payload(bytes(size)))
    for factor, size in (("u8", 3), ("f16", 3), ("f32", 4)):
        rows = plain(
            Ternary(BARE, factor_dtype=factor, rows=bytes(2 * {"u8": 1, "f16": 2, "f32": 4}[factor]), digest=False)
        )
        bad(
            f"raw-factors-{factor}", f"{size} bytes for 2 factors of {factor}", file=rows, content=_payload(bytes(size))
        )
    # Rice codes.
    for k in (0, 3):
        low, high = planes.low_parts(_GAPS, k), planes.unary(_GAPS, k)
        ends = sum(gap >> k for gap in _GAPS) + len(_GAPS)
        last = 1 << (ends - 1) % 8
        bad(f"rice-{k}-followed", f"rice, k = {k}: a byte follows the last one", **_mask("rice", k, low + high + b"\0"))
        bad(f"rice-{k}-cut", f"rice, k = {k}: the last byte is missing", **_mask("rice", k, low + high[:-1]))
        bad(
            f"rice-{k}-one-less",
            f"rice, k = {k}: a one is missing",
            **_mask("rice", k, low + high[:-1] + bytes([high[-1] ^ last])),
        )
        if ends % 8:
            bad(
                f"rice-{k}-one-more",
                f"rice, k = {k}: a fifth one in the last byte",
                **_mask("rice", k, low + high[:-1] + bytes([high[-1] | last << 1])),
            )
        bad(f"rice-{k}-low-only", f"rice, k = {k}: nothing but low parts", **_mask("rice", k, low))
    bad("rice-empty", "rice: no bytes", **_mask("rice", 3, b""))
    bad("rice-low-cut", "rice: half of the low parts", **_mask("rice", 20, bytes(5)))
    for name, gaps, k in (
        ("beyond", [0, 0, 0, 997], 0),
        ("beyond-by-low-parts", [0, 0, 992, 5], 4),
        ("far-beyond", [0, 0, 0, (1 << 20) - 1], 20),
    ):
        data = planes.low_parts(gaps, k) + planes.unary(gaps, k)
        bad(f"rice-{name}", "rice: the last position is not below n", **_mask("rice", k, data))
    bad(
        "rice-k20-high",
        "rice, k = 20: a gap of 2^20 and more",
        **_mask("rice", 20, planes.low_parts([0] * 4, 20) + b"\x17"),
    )
    bad("rice-zeros", "rice: zeros without end", **_mask("rice", 0, bytes(500)))
    signs = plain(Ternary(BARE, digest=False))
    past = _payload(planes.unary([2, 2], 0), 1, codec=CODECS["rice"])
    bad(
        "rice-sign-beyond",
        "rice: the last negative sign is not below the number of active elements",
        file=signs,
        content=past,
    )
    # Gap bytes.
    for k in (0, 3):
        low, high = planes.low_parts(_GAPS, k), planes.gap_bytes(_GAPS, k)
        for name, why, found in (
            ("one-less", "a gap is missing", high[:-1]),
            ("one-more", "a fifth gap", high + b"\0"),
            ("ends-in-255", "the last byte is 255", high[:-1] + b"\xff"),
            ("255-at-end", "a 255 follows the last gap", high + b"\xff"),
            ("none", "no gap byte", b""),
        ):
            bad(f"gaps-{k}-{name}", f"gaps_zstd, k = {k}: {why}", **_mask("gaps_zstd", k, low + raw_frame(found)))
    many = b"\xff" * 4 + b"\0" * 3 + b"\xff"  # B = 8 > 4 + floor(1000 / 255) = 7
    bad(
        "gaps-too-many-bytes",
        "gaps_zstd: more gap bytes than n allows",
        **_mask("gaps_zstd", 0, raw_frame(many + b"\0")),
    )
    bad(
        "gaps-b-beyond",
        "gaps_zstd: B = m + floor(n / 255) + 1, declared in the frame",
        **_mask("gaps_zstd", 0, raw_frame(b"\xff" * 4 + b"\0" * 4)),
    )
    bad(
        "gaps-b-beyond-k",
        "gaps_zstd, k = 2: B = m + floor(n / 1020) + 1",
        **_mask("gaps_zstd", 2, b"\0" + raw_frame(b"\xff" + b"\0" * 4)),
    )
    bad(
        "gaps-b-huge",
        "gaps_zstd: a frame that declares 2^40 gap bytes",
        **_mask("gaps_zstd", 0, zf.header(1 << 40, window=WINDOW_8M) + zf.raw_blocks(b"\0" * 4)),
    )
    for name, gaps, k in (
        ("beyond", [0, 0, 0, 997], 0),
        ("beyond-by-low-parts", [0, 0, 992, 5], 4),
        ("beyond-by-escape", [0, 255, 255, 488], 0),
    ):
        data = planes.low_parts(gaps, k) + raw_frame(planes.gap_bytes(gaps, k))
        bad(f"gaps-{name}", "gaps_zstd: the last position is not below n", **_mask("gaps_zstd", k, data))
    bad("gaps-low-only", "gaps_zstd: low parts and no frame", **_mask("gaps_zstd", 8, bytes(4)))
    bad("gaps-low-cut", "gaps_zstd: fewer bytes than the low parts take", **_mask("gaps_zstd", 20, bytes(9)))
    bad("gaps-empty", "gaps_zstd, k = 0: no bytes", **_mask("gaps_zstd", 0, b""))


def _frames(suite: Suite) -> None:
    data = prose("frames", 400)
    tensor = Tensor("x", "U8", (400,)).bare()
    file = File(
        [tensor], [Task("t", [Dense(tensor, coding=Coding("zstd", 0, raw_frame), digest=False)])], content_id=False
    )
    size = len(data)
    good = zf.raw(data)
    real = kept("level 3")(data)
    tail = zf.raw_blocks(data)

    def head(**options: Any) -> bytes:
        return zf.header(size, **options)

    long = zf.literals_header(0, size, 3) + data + b"\0"
    cases: dict[str, tuple[str, bytes]] = {
        "empty": ("no bytes", b""),
        "magic-only": ("nothing but the magic", good[:4]),
        "header-cut": ("the header is cut", good[:6]),
        "no-block": ("no block", head()),
        "cut": ("the last byte is missing", good[:-1]),
        "block-header-cut": ("a block's header is cut", head() + tail[:2]),
        "no-last-block": ("no block is the last", head() + zf.raw_blocks(data, last=False)),
        "followed": ("a byte follows", good + b"\0"),
        "followed-by-frame": ("an empty frame follows", good + zf.raw(b"")),
        "two-frames": ("two frames that make the content together", zf.raw(data[:200]) + zf.raw(data[200:])),
        "skippable-before": ("a skippable frame before", bytes.fromhex("502A4D1802000000") + b"ab" + good),
        "skippable-after": ("a skippable frame after", good + bytes.fromhex("5F2A4D1800000000")),
        "skippable-only": ("a skippable frame", bytes.fromhex("502A4D18") + struct.pack("<I", size) + data),
        "magic": ("another magic", b"\x29" + good[1:]),
        "magic-of-0.7": ("the magic of zstd 0.7", b"\x27" + good[1:]),
        "magicless": ("no magic", good[4:]),
        "lz4": ("an LZ4 frame", bytes.fromhex("04224D186440A7") + bytes(8)),
        "not-compressed": ("the data as they are", data),
        "no-size": ("no declared size", zf.header(None, window=7 << 3) + tail),
        "size-less": ("a declared size one less than the place allows", zf.header(size - 1) + zf.raw_blocks(data[:-1])),
        "size-more": ("a declared size one more", zf.header(size + 1) + zf.raw_blocks(data + b"x")),
        "size-of-nothing": ("a declared size of 0", zf.raw(b"")),
        "size-huge": ("a declared size of 2^63", zf.header(1 << 63, window=WINDOW_8M) + tail),
        "size-largest": ("a declared size of 2^64 - 1", zf.header((1 << 64) - 1, window=WINDOW_8M) + tail),
        "content-less": ("less content than declared", head() + zf.raw_blocks(data[:-1])),
        "content-more": ("more content than declared", head() + zf.raw_blocks(data + b"x")),
        "content-none": ("no content, 400 bytes declared", head() + zf.block(0, 0, b"", last=True)),
        "content-more-rle": (
            "an RLE block of 128 KiB where 400 bytes are declared",
            head() + zf.block(1, 1 << 17, b"x", last=True),
        ),
        "checksum": ("a content checksum, and a right one", head(checksum=True) + tail + bytes.fromhex("00000000")),
        "checksum-flag": ("the checksum flag and no checksum", head(checksum=True) + tail),
        "dictionary-1": ("a dictionary id of one byte", head(dictionary=b"\x07") + tail),
        "dictionary-2": ("a dictionary id of two bytes", head(dictionary=b"\x00\x01") + tail),
        "dictionary-4": ("a dictionary id of four bytes", head(dictionary=b"\0\0\0\x80") + tail),
        "reserved-bit": ("the reserved bit of the frame header", head(reserved=True) + tail),
        "reserved-block": ("a block of the reserved kind", head() + zf.block(3, size, data, last=True)),
        "block-too-large": ("a block of more than 128 KiB", head() + zf.block(0, (1 << 17) + 1, data, last=True)),
        "window": ("a window of 9 MiB", zf.header(size, window=WINDOW_8M + 1) + tail),
        "window-in-raw": ("a window of 16 MiB", zf.header(size, window=14 << 3) + tail),
        "real-cut": ("a compressed frame without its last byte", real[:-1]),
        "real-followed": ("a byte after a compressed frame", real + b"\0"),
        "literals-beyond": (
            "a compressed block whose literals are longer than the block",
            head() + zf.block(2, 4, b"\x2c\x19ab", last=True),
        ),
        "treeless-first": ("treeless literals in the first block", _with_first_block(real, 0x03)),
        "repeat-first": ("repeated sequence tables in the first block", head() + _sequences(0xFC, size)),
        "reserved-mode": ("the reserved bits of the sequences' modes", head() + _sequences(0x55, size)),
        "offset-beyond": ("a match from before the frame's beginning", head() + _far(size)),
        "block-above-content": (
            "a compressed block that is longer than the whole content",
            head() + zf.block(2, len(long), long, last=True),
        ),
        "block-empty-compressed": ("a compressed block of no bytes", head() + zf.block(2, 0, b"", last=False) + tail),
    }
    for name, (why, frame) in cases.items():
        suite.invalid(f"707-{name}", "TSW-707", f"a zstd frame: {why}", file, content=_payload(frame))
    with_checksum = head(checksum=True) + tail + _xxh64_low(data)
    suite.invalid(
        "707-checksum-right",
        "TSW-707",
        "a zstd frame with a right content checksum",
        file,
        content=_payload(with_checksum),
    )
    # In each place where a frame may be.
    for name, made in (
        ("mask", _mask("bitmap_zstd", 0, raw_frame(planes.bit_string(_ONES, _N)) + b"\0")),
        ("gaps", _mask("gaps_zstd", 0, raw_frame(planes.gap_bytes(_GAPS, 0)) + b"\0")),
        (
            "gaps-no-size",
            _mask("gaps_zstd", 0, zf.header(None, window=WINDOW_1K) + zf.raw_blocks(planes.gap_bytes(_GAPS, 0))),
        ),
        (
            "gaps-magic",
            _mask("gaps_zstd", 3, planes.low_parts(_GAPS, 3) + b"\0" + raw_frame(planes.gap_bytes(_GAPS, 3))),
        ),
        ("mask-shorter", _mask("bitmap_zstd", 0, raw_frame(planes.bit_string(_ONES, _N)[:-1]))),
        ("mask-longer", _mask("bitmap_zstd", 0, raw_frame(planes.bit_string(_ONES, _N) + b"\0"))),
    ):
        suite.invalid(f"707-in-{name}", "TSW-707", f"a wrong zstd frame in {name}", **made)
    rows = plain(
        Ternary(BARE, factor_dtype="f16", rows=bytes(4), factors=Coding("zstd", 0, partial(zf.raw)), digest=False)
    )
    suite.invalid(
        "707-in-factors",
        "TSW-707",
        "row factors whose frame declares a byte more",
        rows,
        content=_payload(raw_frame(bytes(5))),
    )
    empty = plain(
        Ternary(
            BARE,
            (),
            (),
            masks=Coding("bitmap_zstd", 0, raw_frame),
            signs=Coding("bitmap_zstd", 0, raw_frame),
            digest=False,
        )
    )
    for name, why, frame in (
        (
            "content",
            "signs of no bits: a frame that declares nothing and holds a byte",
            zf.header(0) + zf.raw_blocks(b"x"),
        ),
        ("followed", "signs of no bits: a byte after the frame", zf.raw(b"") + b"\0"),
        ("no-bytes", "signs of no bits: bitmap_zstd without a frame", b""),
        (
            "many-blocks",
            "signs of no bits: an RLE block of 128 KiB",
            zf.header(0, window=WINDOW_8M, field=4) + zf.rle_blocks(0, 1 << 17),
        ),
        ("no-last", "signs of no bits: no last block", zf.header(0) + zf.block(0, 0, b"")),
    ):
        suite.invalid(f"707-of-nothing-{name}", "TSW-707", why, empty, content=_payload(frame, 1))


def _with_first_block(frame: bytes, literals: int) -> bytes:
    """The frame with the kind of the first block's literals changed."""
    content = zf.blocks_of(frame)[0][1]
    at = frame.index(content)
    return frame[:at] + bytes([content[0] & 0xFC | literals]) + frame[at + 1 :]


def _sequences(modes: int, size: int) -> bytes:
    """A block of one raw literal and one sequence whose modes byte is wrong."""
    content = b"\x08x" + bytes([1, modes, 1, 0, 32]) + b"\x01"
    return zf.block(2, len(content), content) + zf.raw_blocks(bytes(size - 36))


def _far(size: int) -> bytes:
    """A literal and a match from 900 bytes before."""
    content = b"\x08x" + zf.sequences(1, 1, 900, size - 1)
    return zf.block(2, len(content), content, last=True)


def _xxh64_low(data: bytes) -> bytes:
    """The lowest four bytes of XXH64 with seed 0: a frame's content checksum."""
    mask = (1 << 64) - 1
    p1, p2, p3, p4, p5 = (
        11400714785074694791,
        14029467366897019727,
        1609587929392839161,
        9650029242287828579,
        2870177450012600261,
    )

    def turn(x: int, by: int) -> int:
        return (x << by | x >> 64 - by) & mask

    def mix(lane: int, word: int) -> int:
        return turn((lane + word * p2) & mask, 31) * p1 & mask

    lanes = [(p1 + p2) & mask, p2, 0, -p1 & mask]
    at = 0
    while at + 32 <= len(data):
        lanes = [mix(lane, word) for lane, word in zip(lanes, struct.unpack_from("<4Q", data, at), strict=True)]
        at += 32
    out = p5
    if at:
        out = sum(turn(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
        for lane in lanes:
            out = ((out ^ mix(0, lane)) * p1 + p4) & mask
    out = (out + len(data)) & mask
    while at + 8 <= len(data):
        out = (turn(out ^ mix(0, struct.unpack_from("<Q", data, at)[0]), 27) * p1 + p4) & mask
        at += 8
    if at + 4 <= len(data):
        out = (turn(out ^ struct.unpack_from("<I", data, at)[0] * p1 & mask, 23) * p2 + p3) & mask
        at += 4
    for byte in data[at:]:
        out = turn(out ^ byte * p5 & mask, 11) * p1 & mask
    out = (out ^ out >> 33) * p2 & mask
    out = (out ^ out >> 29) * p3 & mask
    return struct.pack("<Q", out ^ out >> 32)[:4]


def _digests(suite: Suite) -> None:
    other = Tensor("b", "F32", (2, 3))
    third = Tensor("c", "U8", (9,))
    switch = Ternary(W, (0, 3, 4, 9), (3, 9), factor_dtype="u8", rows=b"\1\2", columns=b"\1\2\3\4\5")
    full = File([W, other, third], [Task("t", [switch, Dense(other), Removed(third)])], content_id=False)

    def digest(number: int, value: bytes) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.entries[0][number]["sha256"] = value

        return change

    order = [entry.kind for entry in full.ordered(full.tasks[0])]
    for kind in ("ternary", "dense", "removed"):
        number = order.index(kind)
        suite.invalid(
            f"801-{kind}",
            "TSW-801",
            f"another digest of a {kind} entry",
            full,
            placed=digest(number, bytes(31) + b"\1"),
        )
    number = order.index("ternary")
    for name, why, entry in (
        ("knob", "of a knob of the other sign", replace(switch, knob=0xBF000000)),
        ("sign", "of one sign more", replace(switch, negative=(3, 4, 9))),
        ("mask", "of another mask", replace(switch, active=(0, 3, 5, 9))),
        ("row-factor", "of another row factor", replace(switch, rows=b"\1\3")),
        ("column-factor", "of another column factor", replace(switch, columns=b"\1\2\3\4\6")),
        ("dtype", "of another dtype", replace(switch, dtype="F16")),
        ("dimensions", "of the same elements in another shape", replace(switch, tensor=Tensor("w", "F32", (5, 2)))),
    ):
        suite.invalid(
            f"801-of-other-{name}", "TSW-801", f"the digest {why}", full, placed=digest(number, entry.sha256 or b"")
        )
    hashed = hashlib.sha256(
        b"TSW1-entry\0" + struct.pack("<BBB2Q", 1, 12, 2, 2, 5) + switch.hashed()[:5] + b"\7" + switch.hashed()[6:]
    )
    suite.invalid(
        "801-with-flag",
        "TSW-801",
        "a digest made with bit 0 of the flags",
        full,
        placed=digest(number, hashed.digest()),
    )
    # Content ids.
    file = File([W, other], [Task("t", [Ternary(W)])], aliases={"tied": "w"})

    def named(value: bytes) -> Callable[[dict[str, Any]], None]:
        return lambda doc: doc.update(content_id=value)

    suite.invalid("802-zeros", "TSW-802", "a content id of zeros", file, document=named(bytes(32)))
    variants: list[tuple[str, str, File]] = [
        ("alias", "without the alias", replace(file, aliases={})),
        ("alias-name", "with another name of the alias", replace(file, aliases={"tied2": "w"})),
        ("alias-target", "with another target of the alias", replace(file, aliases={"tied": "b"})),
        ("task-name", "with another name of the task", replace(file, tasks=[Task("u", file.tasks[0].entries)])),
        ("task-more", "with a task more", replace(file, tasks=[*file.tasks, Task("u")])),
        ("entry", "without the entry", replace(file, tasks=[Task("t")])),
        ("base-name", "with another name of a base tensor", replace(file, base=[W, replace(other, name="bb")])),
        ("base-shape", "with another shape of a base tensor", replace(file, base=[W, replace(other, shape=(3, 2))])),
        ("base-dtype", "with another dtype of a base tensor", replace(file, base=[W, replace(other, dtype="I32")])),
        (
            "base-digest",
            "with another digest of a base tensor",
            replace(file, base=[W, replace(other, data=bytes(24))]),
        ),
    ]
    for name, why, variant in variants:
        suite.invalid(
            f"802-{name}",
            "TSW-802",
            f"the content id of the file {why}",
            file,
            document=named(variant.content_digest or b""),
        )
    for name, without in (
        ("base", File([W, replace(other, sha256=False)], [Task("t", [Ternary(W)])])),
        ("entry", File([W], [Task("t", [Ternary(W, digest=False)])])),
        ("second-task", File([W], [Task("t", [Ternary(W)]), Task("u", [Removed(W, digest=False)])])),
        ("sampled-only", File([Tensor("w", "U8", (3,), sha256=False)])),
    ):
        suite.invalid(f"803-{name}", "TSW-803", f"a content id, and a digest is absent: {name}", without)
