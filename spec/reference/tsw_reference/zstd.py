"""RFC 8878, section 3, and section 9.5 of the TSW specification: one zstd frame, its blocks, literals and sequences.

`frame_header` reads what a frame declares, `decompress` gives its content. Both raise ZstdError. What is decoded never
grows beyond the declared size, and that is compared with the wanted one first.
"""

from __future__ import annotations

from dataclasses import dataclass

from .zstd_entropy import (
    Backward,
    FseTable,
    HuffmanTable,
    ZstdError,
    fse_table,
    huffman_decode,
    read_fse_table,
    read_huffman_table,
    rle_table,
)

MAGIC = bytes.fromhex("28B52FFD")
LARGEST_BLOCK = 1 << 17
LARGEST_WINDOW = 1 << 23
"""Of frames whose content is not larger (section 9.5)."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame's header declares; `length` is where its blocks begin."""

    content_size: int
    window: int
    length: int


def frame_header(frame: bytes) -> FrameHeader:
    """The header of a frame, after the checks of section 9.5 that need nothing else."""
    if frame[:4] != MAGIC:
        raise ZstdError(f"the magic {MAGIC.hex()} of a zstd frame", frame[:4].hex() or "no byte", 0)
    descriptor = _number(frame, 4, 1)
    if descriptor & 8:
        raise ZstdError("a zero reserved bit of the frame header descriptor", f"{descriptor:02x}", 4)
    if descriptor & 4:
        raise ZstdError("no content checksum", f"the frame header descriptor {descriptor:02x}", 4)
    single_segment = bool(descriptor & 32)
    at = 5
    window = 0
    if not single_segment:
        value = _number(frame, at, 1)
        base = 1 << (10 + (value >> 3))
        window = base + (base // 8) * (value & 7)
        at += 1
    id_bytes = (0, 1, 2, 4)[descriptor & 3]
    dictionary = _number(frame, at, id_bytes)
    if dictionary:
        raise ZstdError("no dictionary", f"the dictionary id {dictionary}", at)
    at += id_bytes
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if size_bytes == 0:
        raise ZstdError("a declared content size", "none", 4)
    size = _number(frame, at, size_bytes) + (256 if size_bytes == 2 else 0)
    at += size_bytes
    if single_segment:
        window = size
    if window > max(size, LARGEST_WINDOW):
        raise ZstdError(f"a window of at most {max(size, LARGEST_WINDOW)} bytes", str(window), 5)
    return FrameHeader(size, window, at)


def decompress(frame: bytes, size: int) -> bytes:
    """The content of a frame that fills `frame` exactly and has `size` bytes of content."""
    header = frame_header(frame)
    if header.content_size != size:
        raise ZstdError(f"a content size of {size}", str(header.content_size), 4)
    decoder = _Decoder(header)
    at = header.length
    last = False
    while not last:
        block = _number(frame, at, 3)
        last = bool(block & 1)
        at = decoder.block(frame, at + 3, block >> 1 & 3, block >> 3)
    if len(decoder.content) != size:
        raise ZstdError(f"{size} bytes of content", f"{len(decoder.content)} in all blocks", at)
    if at != len(frame):
        raise ZstdError("nothing after the last block", f"{len(frame) - at} bytes", at)
    return bytes(decoder.content)


def _number(data: bytes, at: int, length: int, origin: int = 0) -> int:
    """A number of `length` bytes; `origin` is where `data` begins in the frame."""
    if at + length > len(data):
        raise ZstdError(f"{length} more bytes", f"the end after {max(len(data) - at, 0)}", origin + at)
    return int.from_bytes(data[at : at + length], "little")


def _codes(direct: int, first: int, extra: tuple[int, ...]) -> list[tuple[int, int]]:
    """Baseline and extra bits of each length code: `direct` codes without bits from `first` on, then those with bits."""
    table = [(first + code, 0) for code in range(direct)]
    baseline = first + direct
    for bits in extra:
        table.append((baseline, bits))
        baseline += 1 << bits
    return table


# The last literals length and match length codes jump to the next power of two (RFC 8878, 3.1.1.3.2.1.1).
LITERALS_LENGTHS = _codes(16, 0, (1, 1, 1, 1, 2, 2, 3, 3, 4)) + [(1 << bits, bits) for bits in range(6, 17)]
MATCH_LENGTHS = _codes(32, 3, (1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5)) + [((1 << bits) + 3, bits) for bits in range(7, 17)]

_DEFAULT_LITERALS_LENGTHS = fse_table([4, 3, *[2] * 11, 1, 1, 1, *[2] * 9, 3, 2, *[1] * 5, *[-1] * 4], 6)
_DEFAULT_OFFSETS = fse_table([*[1] * 6, 2, 2, 2, *[1] * 15, *[-1] * 5], 5)
_DEFAULT_MATCH_LENGTHS = fse_table([1, 4, 3, *[2] * 6, *[1] * 37, *[-1] * 7], 6)


@dataclass(frozen=True, slots=True)
class _Symbols:
    """One of the three symbol types of sequences: its name, largest accuracy, last code and default table."""

    name: str
    accuracy: int
    last: int
    default: FseTable


_SYMBOLS = (
    _Symbols("literals lengths", 9, 35, _DEFAULT_LITERALS_LENGTHS),
    _Symbols("offsets", 8, 31, _DEFAULT_OFFSETS),
    _Symbols("match lengths", 9, 52, _DEFAULT_MATCH_LENGTHS),
)


class _Decoder:
    """What the blocks of a frame share: the content so far, the last tables and the three recent offsets."""

    def __init__(self, header: FrameHeader) -> None:
        self.size = header.content_size
        self.window = header.window
        self.largest_block = min(header.window, LARGEST_BLOCK)
        self.content = bytearray()
        self.huffman: HuffmanTable | None = None
        self.tables: list[FseTable | None] = [None, None, None]
        self.recent = [1, 4, 8]

    def block(self, frame: bytes, at: int, kind: int, size: int) -> int:
        """Decode one block; where the next one begins."""
        if kind == 3:
            raise ZstdError("a raw, RLE or compressed block", "the reserved block type 3", at - 3)
        if size > self.largest_block:
            raise ZstdError(f"a block of at most {self.largest_block} bytes", str(size), at - 3)
        stored = 1 if kind == 1 else size
        if at + stored > len(frame):
            raise ZstdError(f"{stored} bytes of a block", f"the end after {len(frame) - at}", at)
        content = frame[at : at + stored]
        room = min(self.largest_block, self.size - len(self.content))
        if kind == 2:
            self.compressed(content, at, room)
        else:
            if size > room:
                raise ZstdError(f"at most {room} bytes of content", f"a block of {size}", at - 3)
            self.content += content * size if kind == 1 else content
        return at + stored

    def compressed(self, block: bytes, offset: int, room: int) -> None:
        """Decode a compressed block of at most `room` bytes of content."""
        literals, at = self.literals(block, offset, room)
        count, modes_at = _sequence_count(block, at, offset)
        start = len(self.content)
        if count == 0:
            if modes_at != len(block):
                raise ZstdError("nothing after the count of no sequences", f"{len(block) - modes_at} bytes", offset)
            self.content += literals
            return
        taken = self.sequences(block, modes_at, offset, count, literals, room)
        self.content += literals[taken:]
        if len(self.content) - start > room:
            raise ZstdError(f"at most {room} bytes of content in the block", str(len(self.content) - start), offset)

    def literals(self, block: bytes, offset: int, room: int) -> tuple[bytes, int]:
        """The literals of a compressed block, and where its sequences section begins."""
        first = _number(block, 0, 1, offset)
        kind, size_format = first & 3, first >> 2 & 3
        if kind < 2:
            header = (1, 2, 1, 3)[size_format]
            size = _number(block, 0, header, offset) >> (3 if header == 1 else 4)
            stored = size if kind == 0 else 1
        else:
            header, width = ((3, 10), (3, 10), (4, 14), (5, 18))[size_format]
            fields = _number(block, 0, header, offset) >> 4
            size, stored = fields & ((1 << width) - 1), fields >> width
        if size > room:
            raise ZstdError(f"at most {room} literals", str(size), offset)
        end = header + stored
        if end > len(block):
            raise ZstdError(f"{stored} bytes of literals", f"the block's end after {len(block) - header}", offset)
        data = block[header:end]
        if kind == 0:
            return data, end
        if kind == 1:
            return data * size, end
        return self.huffman_literals(data, offset + header, kind == 3, 1 if size_format == 0 else 4, size), end

    def huffman_literals(self, data: bytes, offset: int, treeless: bool, streams: int, size: int) -> bytes:
        """Literals in one or four Huffman-coded streams, after the tree if there is one."""
        if treeless:
            if self.huffman is None:
                raise ZstdError("a Huffman tree in an earlier block", "none", offset)
        else:
            self.huffman, length = read_huffman_table(data, offset)
            data, offset = data[length:], offset + length
        if streams == 1:
            return huffman_decode(self.huffman, data, size, offset)
        if size < 6:
            raise ZstdError("at least 6 literals in four streams", str(size), offset)
        sizes = [_number(data, 2 * number, 2, offset) for number in range(3)]
        part = (size + 3) // 4
        counts = [part, part, part, size - 3 * part]
        if counts[3] < 0 or 6 + sum(sizes) >= len(data):
            raise ZstdError("a jump table within the literals section", f"sizes {sizes} of {len(data)} bytes", offset)
        result = b""
        at = 6
        for count, length in zip(counts, [*sizes, len(data) - 6 - sum(sizes)], strict=True):
            result += huffman_decode(self.huffman, data[at : at + length], count, offset + at)
            at += length
        return result

    def sequences(self, block: bytes, at: int, offset: int, count: int, literals: bytes, room: int) -> int:
        """Decode and execute the sequences; how many of the literals they take."""
        lengths, offsets, matches, at = self.read_tables(block, at, offset)
        stream = Backward(block[at:], offset + at)
        read = stream.read
        length_state, offset_state, match_state = (read(table.accuracy) for table in (lengths, offsets, matches))
        content = self.content
        limit = len(content) + room
        taken = 0
        for number in range(count):
            code = offsets.symbols[offset_state]
            value = (1 << code) + read(code)
            baseline, bits = MATCH_LENGTHS[matches.symbols[match_state]]
            match = baseline + read(bits)
            baseline, bits = LITERALS_LENGTHS[lengths.symbols[length_state]]
            length = baseline + read(bits)
            if taken + length > len(literals):
                raise ZstdError(f"{length} literals for a sequence", f"{len(literals) - taken}", offset)
            if len(content) + length + match > limit:
                raise ZstdError(f"at most {room} bytes of content in the block", "more", offset)
            content += literals[taken : taken + length]
            taken += length
            self.copy(self.offset_of(value, length), match, offset)
            if number + 1 < count:
                length_state = lengths.baselines[length_state] + read(lengths.bits[length_state])
                match_state = matches.baselines[match_state] + read(matches.bits[match_state])
                offset_state = offsets.baselines[offset_state] + read(offsets.bits[offset_state])
        stream.finish()
        return taken

    def read_tables(self, block: bytes, at: int, offset: int) -> tuple[FseTable, FseTable, FseTable, int]:
        """The tables of literals lengths, offsets and match lengths, and where the bitstream begins."""
        modes = _number(block, at, 1, offset)
        if modes & 3:
            raise ZstdError("zero reserved bits of the symbol compression modes", f"{modes:02x}", offset + at)
        at += 1
        tables: list[FseTable] = []
        for place, symbols in enumerate(_SYMBOLS):
            mode = modes >> (6 - 2 * place) & 3
            table: FseTable | None
            if mode == 0:
                table = symbols.default
            elif mode == 1:
                symbol = _number(block, at, 1, offset)
                if symbol > symbols.last:
                    raise ZstdError(f"a code of {symbols.name} up to {symbols.last}", str(symbol), offset + at)
                table = rle_table(symbol)
                at += 1
            elif mode == 2:
                table, length = read_fse_table(block[at:], offset + at, symbols.accuracy, symbols.last)
                at += length
            else:
                table = self.tables[place]
                if table is None:
                    raise ZstdError(f"a table of {symbols.name} in an earlier block", "none", offset + at)
            tables.append(table)
        self.tables = [*tables]
        return tables[0], tables[1], tables[2], at

    def offset_of(self, value: int, literals_length: int) -> int:
        """The distance that an offset value means, by the recent offsets, which it changes."""
        first, second, third = self.recent
        if value > 3:
            self.recent = [value - 3, first, second]
            return self.recent[0]
        choice = value - 1 if literals_length else value
        if choice == 1:
            self.recent = [second, first, third]
        elif choice == 2:
            self.recent = [third, first, second]
        elif choice == 3:
            self.recent = [first - 1, first, second]
        return self.recent[0]

    def copy(self, distance: int, length: int, offset: int) -> None:
        """Append `length` bytes from `distance` bytes back; the copy may overlap what it makes."""
        content = self.content
        if not 0 < distance <= min(len(content), self.window):
            found = f"{distance} after {len(content)} bytes with a window of {self.window}"
            raise ZstdError("an offset within the content so far and the window", found, offset)
        start = len(content) - distance
        if distance >= length:
            content += content[start : start + length]
        else:
            pattern = bytes(content[start:])
            content += (pattern * (length // distance + 1))[:length]


def _sequence_count(block: bytes, at: int, offset: int) -> tuple[int, int]:
    """Number of sequences, and where the byte after it is."""
    if at >= len(block):
        raise ZstdError("a number of sequences", "the block's end", offset + at)
    first = block[at]
    if first < 128:
        return first, at + 1
    if first < 255:
        return (first - 128 << 8) + _number(block, at + 1, 1, offset), at + 2
    return _number(block, at + 1, 2, offset) + 0x7F00, at + 3
