"""zstd frames for the vectors: written by hand, block by block, or made by zstandard once and kept in `frames.json`.

Hand-made frames have the same bytes wherever they are made. Real compression differs from version to version, so those
frames are kept; `make_vectors.py --frames` makes the ones that are missing. `features` tells what a frame is made of, so
that a test can say that the suite has every form of block, literals and sequences.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import zstandard

MAGIC = bytes.fromhex("28B52FFD")
BLOCK = 1 << 17
KEPT = Path(__file__).parent / "frames.json"

# Lower bound and number of extra bits of the match length codes 32 to 52; codes below stand for 3 to 34 themselves.
_MATCH_CODES = (
    *((35, 1), (37, 1), (39, 1), (41, 1), (43, 2), (47, 2), (51, 3), (59, 3), (67, 4), (83, 4), (99, 5)),
    *(
        (131, 7),
        (259, 8),
        (515, 9),
        (1027, 10),
        (2051, 11),
        (4099, 12),
        (8195, 13),
        (16387, 14),
        (32771, 15),
        (65539, 16),
    ),
)
_MODES = ("predefined", "rle", "fse", "repeat")
_LITERALS = ("raw", "rle", "huffman", "treeless")


# --------------------------------------------------------------------------------------------------------------- by hand


def header(
    size: int | None,
    *,
    window: int | None = None,
    field: int | None = None,
    checksum: bool = False,
    dictionary: bytes = b"",
    reserved: bool = False,
) -> bytes:
    """A frame header. `window`: the window descriptor's byte, None for a single segment; `field`: bytes of the size."""
    if size is None:
        field = 0
    elif field is None:
        field = 1 if size < 256 and window is None else 2 if 256 <= size < 65792 else 4 if size < 1 << 32 else 8
    flag = {0: 0, 1: 0, 2: 1, 4: 2, 8: 3}[field]
    descriptor = (
        flag << 6 | (window is None) << 5 | reserved << 3 | checksum << 2 | {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    )
    out = MAGIC + bytes([descriptor]) + (b"" if window is None else bytes([window])) + dictionary
    if size is not None:
        out += (size - 256 if field == 2 else size).to_bytes(field, "little")
    return out


def block(kind: int, size: int, content: bytes, *, last: bool = False) -> bytes:
    """A block: kind 0 raw, 1 RLE, 2 compressed, 3 reserved."""
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + content


def raw_blocks(data: bytes, *, last: bool = True, step: int = BLOCK) -> bytes:
    """`data` in raw blocks of at most `step` bytes."""
    starts = range(0, len(data), step) if data else (0,)
    return b"".join(
        block(0, len(p), p, last=last and s + step >= len(data)) for s in starts for p in (data[s : s + step],)
    )


def rle_blocks(byte: int, size: int, *, last: bool = True) -> bytes:
    """`size` times one byte."""
    return b"".join(
        block(1, min(BLOCK, size - s), bytes([byte]), last=last and s + BLOCK >= size) for s in range(0, size, BLOCK)
    )


def raw(data: bytes, *, window: int | None = None, field: int | None = None, step: int = BLOCK) -> bytes:
    """A frame of raw blocks."""
    return header(len(data), window=window, field=field) + raw_blocks(data, step=step)


def rle(byte: int, size: int, *, window: int | None = None) -> bytes:
    """A frame of RLE blocks."""
    return header(size, window=window) + rle_blocks(byte, size)


def repeat_blocks(offset: int, size: int, *, last: bool = False) -> bytes:
    """What lies `offset` bytes before, repeated for `size` bytes: compressed blocks of one sequence each, all codes RLE."""
    out = b""
    while size:
        step = BLOCK if size >= BLOCK + 3 or size == BLOCK else size if size < BLOCK else size - 3
        size -= step
        content = b"\x00" + sequences(1, 0, offset, step)
        out += block(2, len(content), content, last=last and not size)
    return out


def sequences(count: int, literals: int, offset: int | None, match: int) -> bytes:
    """A sequences section of equal sequences, all codes in RLE mode. `offset` None: that of the sequence before.

    `literals`: 0 to 15 a sequence.
    """
    code, extra, bits = match - 3, 0, 0
    if match > 34:
        code, (low, bits) = next(
            (31 + n, found) for n, found in reversed([*enumerate(_MATCH_CODES, 1)]) if found[0] <= match
        )
        extra = match - low
    value = 1 if offset is None else offset + 3
    offset_code = value.bit_length() - 1
    each = (value - (1 << offset_code)) << bits | extra
    stream = 1  # marks the stream's end; it is read from there
    for _ in range(count if offset_code + bits else 0):
        stream = stream << offset_code + bits | each
    if count < 0x7F00:
        number = bytes([count]) if count < 128 else bytes([(count >> 8) + 128, count & 255])
    else:
        number = b"\xff" + struct.pack("<H", count - 0x7F00)
    return (
        number + bytes([0x54, literals, offset_code, code]) + stream.to_bytes((stream.bit_length() + 7) // 8, "little")
    )


def rle_literals(byte: int, count: int) -> bytes:
    """A literals section: one byte, `count` times."""
    return literals_header(1, count, 1 if count < 32 else 3) + bytes([byte])


def literals_header(kind: int, count: int, width: int) -> bytes:
    """The header of raw (0) or RLE (1) literals in `width` bytes."""
    word = {1: count << 3, 2: 1 << 2 | count << 4, 3: 3 << 2 | count << 4}[width]
    return (kind | word).to_bytes(width, "little")


# ------------------------------------------------------------------------------------------------------------------ kept


class Kept:
    """Frames by recipe and content. A recipe: words of `level N`, `window LOG`, `flush BYTES`."""

    def __init__(self, path: Path = KEPT) -> None:
        self._path = path
        self._frames: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        self._used: set[str] = set()
        self.make = False

    def frame(self, recipe: str, data: bytes) -> bytes:
        """The kept frame. Raises KeyError, saying what to do, where there is none."""
        key = f"{recipe}: {hashlib.sha256(data).hexdigest()[:32]}"
        self._used.add(key)
        if key not in self._frames:
            if not self.make:
                raise KeyError(f"{self._path.name} has no frame {key!r}; run make_vectors.py --frames")
            self._frames[key] = base64.b64encode(_compress(recipe, data)).decode()
        return base64.b64decode(self._frames[key])

    def save(self) -> None:
        """Write the frames that were asked for."""
        kept = {key: self._frames[key] for key in sorted(self._used)}
        self._path.write_text(json.dumps(kept, indent=0) + "\n")

    @property
    def frames(self) -> Sequence[bytes]:
        """All of them."""
        return [base64.b64decode(text) for text in self._frames.values()]


def _compress(recipe: str, data: bytes) -> bytes:
    words = recipe.split()
    options = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        options["level"],
        source_size=len(data),
        **({"window_log": options["window"]} if "window" in options else {}),
        write_content_size=1,
        write_checksum=0,
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(data))
    step = options.get("flush", len(data) or 1)
    parts = []
    for start in range(0, len(data), step):
        parts.append(stream.compress(data[start : start + step]))
        if start + step < len(data):
            parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return b"".join([*parts, stream.flush()])


KEEPER = Kept()


# ------------------------------------------------------------------------------------------------------------- inspection


def blocks_of(frame: bytes) -> list[tuple[int, bytes]]:
    """Kind and content of each block."""
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + ((1 if single else 0), 2, 4, 8)[descriptor >> 6]
    out = []
    while True:
        word = int.from_bytes(frame[at : at + 3], "little")
        kind, size = word >> 1 & 3, 1 if word >> 1 & 3 == 1 else word >> 3
        out.append((kind, frame[at + 3 : at + 3 + size]))
        at += 3 + size
        if word & 1:
            return out


def features(frame: bytes) -> set[str]:
    """What a frame of this suite is made of, in words such as `literals huffman 4 streams`."""
    descriptor = frame[4]
    out = {"single segment" if descriptor & 32 else "window descriptor", f"size field {descriptor >> 6}"}
    blocks = blocks_of(frame)
    out.add("one block" if len(blocks) == 1 else "several blocks")
    for kind, content in blocks:
        out.add("block " + ("raw", "rle", "compressed")[kind])
        if kind == 2:
            out |= _block_features(content)
    return out


def _block_features(content: bytes) -> set[str]:
    kind, form = content[0] & 3, content[0] >> 2 & 3
    name = f"literals {_LITERALS[kind]}"
    if kind < 2:
        head = (1, 2, 1, 3)[form]
        size = int.from_bytes(content[:head], "little") >> (3 if head == 1 else 4)
        at = head + (1 if kind == 1 else size)
        out = {name, f"{name} size form {head}"}
    else:
        head, bits = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
        word = int.from_bytes(content[:head], "little")
        at = head + (word >> 4 + bits)
        out = {f"{name} {1 if form == 0 else 4} streams", f"{name} size form {form}"}
        if kind == 2:
            out.add("huffman weights " + ("direct" if content[head] >= 128 else "fse"))
    first = content[at]
    if not first:
        return out | {"no sequences"}
    wide = 1 if first < 128 else 2 if first < 255 else 3
    modes = content[at + wide]
    out.add(f"number of sequences in {wide} bytes")
    return out | {
        f"{what} {_MODES[modes >> shift & 3]}" for what, shift in (("lengths", 6), ("offsets", 4), ("matches", 2))
    }
