"""RFC 8878, section 4: the two entropy coders of Zstandard, FSE and Huffman, decoding only.

Streams of both are read backward, from the highest bit of the last byte down. `Backward` holds such a stream as text of
0 and 1 in the order of reading, so that reading n bits is taking the next n characters.
"""

from __future__ import annotations

from dataclasses import dataclass


class ZstdError(Exception):
    """A frame is not as RFC 8878 and section 9.5 want it: what was expected, what found, at which byte of the frame."""

    def __init__(self, expected: str, found: str, offset: int) -> None:
        self.expected = expected
        self.found = found
        self.offset = offset
        super().__init__(f"byte {offset} of the frame: expected {expected}, found {found}")


class Backward:
    """A bitstream that is read backward; its highest one bit marks the end and is no content."""

    def __init__(self, data: bytes, offset: int) -> None:
        if not data or data[-1] == 0:
            raise ZstdError("a bitstream whose last byte is not zero", "none", offset)
        self.text = format(int.from_bytes(data, "little"), "b")[1:]
        self.position = 0
        self.offset = offset

    def read(self, count: int) -> int:
        """The next bits as a number; more than there are is an error."""
        if count == 0:
            return 0
        start = self.position
        self.position = start + count
        if self.position > len(self.text):
            raise ZstdError("more bits in the bitstream", "its end", self.offset)
        return int(self.text[start : self.position], 2)

    def read_padded(self, count: int) -> int:
        """The next bits as a number; bits beyond the end count as zeros, and `exhausted` says so afterwards."""
        start = self.position
        self.position = start + count
        bits = self.text[start : self.position].ljust(count, "0")
        return int(bits, 2) if count else 0

    @property
    def exhausted(self) -> bool:
        """Whether more was read than there was."""
        return self.position > len(self.text)

    def finish(self) -> None:
        """Every bit must have been read, and none more."""
        if self.position != len(self.text):
            found = f"{self.position} of {len(self.text)} bits read"
            raise ZstdError("a bitstream that is consumed entirely and exactly", found, self.offset)


@dataclass(frozen=True, slots=True)
class FseTable:
    """For each state its symbol, and the bits to read and the baseline to add them to for the next state."""

    accuracy: int
    symbols: list[int]
    bits: list[int]
    baselines: list[int]


def fse_table(probabilities: list[int], accuracy: int) -> FseTable:
    """The decoding table of a distribution; -1 stands for the probability "less than 1"."""
    size = 1 << accuracy
    symbols = [-1] * size
    top = size
    for symbol, probability in enumerate(probabilities):
        if probability == -1:
            top -= 1
            symbols[top] = symbol
    position = 0
    for symbol, probability in enumerate(probabilities):
        for _ in range(max(probability, 0)):
            symbols[position] = symbol
            position = _next_cell(position, size)
            while position >= top:
                position = _next_cell(position, size)
    seen = [max(probability, 1) for probability in probabilities]
    bits, baselines = [], []
    for symbol in symbols:
        number = seen[symbol]
        seen[symbol] += 1
        width = accuracy + 1 - number.bit_length()
        bits.append(width)
        baselines.append((number << width) - size)
    return FseTable(accuracy, symbols, bits, baselines)


def _next_cell(position: int, size: int) -> int:
    return (position + (size >> 1) + (size >> 3) + 3) & (size - 1)


def rle_table(symbol: int) -> FseTable:
    """The table of one symbol that takes no bits."""
    return FseTable(0, [symbol], [0], [0])


def read_fse_table(data: bytes, offset: int, most_accuracy: int, last_symbol: int) -> tuple[FseTable, int]:
    """A table description at the start of `data`, and how many bytes it takes."""
    # A description has at most 256 symbols of less than 16 bits: what comes behind need not become part of the number.
    window = data[:512]
    stream = int.from_bytes(window, "little")
    accuracy = (stream & 15) + 5
    if accuracy > most_accuracy:
        raise ZstdError(f"an accuracy log of at most {most_accuracy}", str(accuracy), offset)
    at = 4
    remaining = 1 << accuracy
    probabilities: list[int] = []
    while remaining > 0:
        width = (remaining + 1).bit_length()
        few = (1 << width) - 1 - (remaining + 1)
        value = stream >> at & ((1 << width) - 1)
        low = value & ((1 << (width - 1)) - 1)
        if low < few:
            value = low
            at += width - 1
        else:
            value -= few if value >= 1 << (width - 1) else 0
            at += width
        probability = value - 1
        remaining -= abs(probability)
        probabilities.append(probability)
        if probability == 0:
            repeat = 3
            while repeat == 3:
                repeat = stream >> at & 3
                at += 2
                probabilities += [0] * repeat
        if remaining and len(probabilities) > last_symbol:
            raise ZstdError(f"symbols up to {last_symbol}", f"probabilities for {len(probabilities)} and more", offset)
    length = (at + 7) // 8
    if length > len(data):
        raise ZstdError("a whole table description", f"the end after {len(data)} bytes", offset)
    if len(probabilities) > last_symbol + 1:
        raise ZstdError(f"symbols up to {last_symbol}", f"{len(probabilities)} probabilities", offset)
    if sum(probability != 0 for probability in probabilities) < 2:
        raise ZstdError("at least two symbols in a table description", "one", offset)
    return fse_table(probabilities, accuracy), length


@dataclass(frozen=True, slots=True)
class HuffmanTable:
    """For each text of `depth` bits the symbol that it begins with, and how many of the bits are that symbol's."""

    depth: int
    codes: dict[str, tuple[int, int]]


def read_huffman_table(data: bytes, offset: int) -> tuple[HuffmanTable, int]:
    """A tree description at the start of `data`, and how many bytes it takes."""
    if not data:
        raise ZstdError("a Huffman tree description", "the end of the literals section", offset)
    header = data[0]
    if header >= 128:
        count = header - 127
        length = (count + 1) // 2
        listed = data[1 : 1 + length]
        if len(listed) < length:
            raise ZstdError(f"{length} bytes of weights", str(len(listed)), offset)
        weights = [nibble for byte in listed for nibble in (byte >> 4, byte & 15)][:count]
        return huffman_table(weights, offset), 1 + length
    listed = data[1 : 1 + header]
    if len(listed) < header:
        raise ZstdError(f"{header} bytes of weights", str(len(listed)), offset)
    return huffman_table(_fse_weights(listed, offset + 1), offset), 1 + header


def _fse_weights(data: bytes, offset: int) -> list[int]:
    """Weights by two interleaved states that share a table; they end when a state asks for more bits than there are."""
    table, length = read_fse_table(data, offset, 6, 255)
    stream = Backward(data[length:], offset + length)
    current, other = stream.read(table.accuracy), stream.read(table.accuracy)
    weights: list[int] = []
    while True:
        weights.append(table.symbols[current])
        if len(weights) > 254:
            raise ZstdError("at most 255 weights", "more", offset)
        current = table.baselines[current] + stream.read_padded(table.bits[current])
        current, other = other, current
        if stream.exhausted:
            return [*weights, table.symbols[current]]


def huffman_table(weights: list[int], offset: int) -> HuffmanTable:
    """The decoding table of the listed weights and of the last one, which completes their sum to a power of two."""
    if max(weights) > 11:
        raise ZstdError("weights of at most 11", str(max(weights)), offset)
    total = sum(1 << (weight - 1) for weight in weights if weight)
    if total == 0:
        raise ZstdError("a weight that is not zero", "none", offset)
    depth = total.bit_length()
    rest = (1 << depth) - total
    if depth > 11 or rest & (rest - 1):
        raise ZstdError("weights that one more completes to a power of two of at most 2^11", str(total), offset)
    every = [*weights, rest.bit_length()]
    if every.count(1) < 2:
        raise ZstdError("at least two symbols of weight 1", str(every.count(1)), offset)
    codes = {}
    code = 0
    for weight in range(1, depth + 1):
        for symbol, own in enumerate(every):
            if own == weight:
                for _ in range(1 << (weight - 1)):
                    codes[format(code, f"0{depth}b")] = (symbol, depth + 1 - weight)
                    code += 1
    return HuffmanTable(depth, codes)


def huffman_decode(table: HuffmanTable, data: bytes, count: int, offset: int) -> bytes:
    """So many symbols from one stream, which they must use up exactly."""
    stream = Backward(data, offset)
    text = stream.text + "0" * table.depth
    depth, codes = table.depth, table.codes
    position, end = 0, len(stream.text)
    result = bytearray()
    for _ in range(count):
        if position >= end:
            break
        symbol, length = codes[text[position : position + depth]]
        result.append(symbol)
        position += length
    if len(result) != count:
        raise ZstdError(f"{count} literals in the stream", f"{len(result)}", offset)
    stream.position = position
    stream.finish()
    return bytes(result)
