"""The loops of decoding, compiled: one pass without the GIL where NumPy takes several. `loops.py` says when.

Import it only where numba is installed (the extra `fast`). What comes out is what NumPy gives; tests compare them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

_1, _2, _3, _4, _5, _6, _7, _8 = (np.uint64(n) for n in range(1, 9))
_LOW, _LOW32 = np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
_16, _32, _48, _255 = (np.uint64(n) for n in (16, 32, 48, 255))
_BYTES, _TOPS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_EVEN, _LANES, _LANE = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0001000100010001), np.uint64(0xFFFF)


def gap_positions(steps: NDArray[np.uint8], start: int, out: NDArray[np.int64]) -> int:
    """Where gap bytes (k = 0) lead from `start`; how many are below 255, or -1 where `out` has no room for all of them."""
    return int(gap_places(steps, 0, steps.size, start, out))


def bit_positions(packed: NDArray[np.uint8], start: int, out: NDArray[np.int64]) -> int:
    """Positions of the ones of a bit string, plus `start`; their number, or -1 where `out` has no room for all."""
    return int(bit_places(packed, 0, packed.size, start, out))


def gap_bytes(gaps: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Gaps as gap bytes (k = 0), 255 for "255 further, nothing here"."""
    out = np.empty(gaps.size + int(gaps.sum()) // 255, np.uint8)  # or a little more
    return out[: int(_gap_bytes(gaps, out))]


def count_ones(packed: NDArray[np.uint8]) -> int:
    """Number of ones in a bit string."""
    return int(_count_ones(packed, 0, packed.size))


@intrinsic
def _load(_context: Any, codes: Any, index: Any) -> Any:
    """Eight bytes from an index of a contiguous u8 array on, wherever that lies, as a u64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, arguments[0])  # type: ignore[no-untyped-call]
        place = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(codes, index), generate


@njit(nogil=True, cache=True)
def gap_places(codes: Any, begin: int, end: int, start: int, out: Any) -> int:
    """Where gap bytes (k = 0) from `begin` to `end` lead from `start`, in front of `out`; how many of them are below 255, or -1
    where it has no room for all.

    Eight at a time: their running sums are 16 bits each, in two words, and come of one multiplication. Unsigned, as is every
    index, so that none is looked at from behind.
    """
    most = np.uint64(out.size)
    place, count = np.uint64(start), np.uint64(0)
    i = begin
    while i < end:
        if i + 8 <= end and count + _8 <= most:
            word: np.uint64 = _load(codes, i)  # type: ignore[call-arg]  # numba gives the context
            if not (~word - _BYTES) & word & _TOPS:  # none of them is 255
                odd = (word >> _8) & _EVEN
                after = ((word & _EVEN) + odd) * _LANES  # sums of 2, 4, 6 and 8 of them
                before = after - odd  # of 1, 3, 5 and 7
                all_eight = after >> _48
                out[count] = np.int64(place + (before & _LANE))
                out[count + _1] = np.int64(place + (after & _LANE) + _1)
                out[count + _2] = np.int64(place + ((before >> _16) & _LANE) + _2)
                out[count + _3] = np.int64(place + ((after >> _16) & _LANE) + _3)
                out[count + _4] = np.int64(place + ((before >> _32) & _LANE) + _4)
                out[count + _5] = np.int64(place + ((after >> _32) & _LANE) + _5)
                out[count + _6] = np.int64(place + (before >> _48) + _6)
                out[count + _7] = np.int64(place + all_eight + _7)
                place += all_eight + _8
                count += _8
                i += 8
                continue
        stop = min(i + 8, end)
        for at in range(i, stop):
            step = np.uint64(codes[at])
            place += step
            if step < _255:
                if count == most:
                    return -1
                out[count] = np.int64(place)
                count += _1
                place += _1
        i = stop
    return np.int64(count)  # type: ignore[return-value]  # an int to numba


def _of_word(name: str) -> Any:
    """An instruction that counts bits of a u64."""

    @intrinsic
    def count(_context: Any, _word: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            flags = [ir.Constant(ir.IntType(1), 0)] if name == "cttz" else []  # 0: of zero it is 64
            return getattr(builder, name)(arguments[0], *flags)

        return types.uint64(types.uint64), generate

    return count


_trailing_zeros, _ones = _of_word("cttz"), _of_word("ctpop")


@njit(nogil=True, cache=True)
def bit_places(codes: Any, begin: int, end: int, start: int, out: Any) -> int:
    """Where the ones of a bitmap's bytes from `begin` to `end` are, counted from `start`, in front of `out`; their number, or
    -1 where it has no room for all.

    Four ones of a word at a time, whether it has so many or not: a loop over those that it has ends where no processor
    expects it, and then takes twice as long at 5 %.
    """
    most = out.size
    count = 0
    for i in range(begin, end, 8):
        word = np.uint64(0)
        if i + 8 <= end:
            word = _load(codes, i)  # type: ignore[call-arg]  # numba gives the context
        else:
            for at in range(i, end):
                word |= np.uint64(codes[at]) << np.uint64(8 * (at - i))
        if not word:
            continue
        first = np.uint64(start + 8 * (i - begin))
        found = int(_ones(word))
        if count + found > most:
            return -1
        if count + 64 > most:
            for k in range(found):
                out[count + k] = np.int64(first + _trailing_zeros(word))
                word &= word - _1
        else:
            for four in range(0, found, 4):
                for k in range(4):
                    out[count + four + k] = np.int64(first + _trailing_zeros(word))
                    word &= word - _1
        count += found
    return count


@njit(nogil=True, cache=True)
def _gap_sum(codes: Any, begin: int, end: int) -> Any:
    """Of gap bytes from `begin` to `end`: how many are below 255, and their sum.

    Eight at a time, of which vector instructions take several: sums in lanes of 16 bits, bytes of 255 counted in lanes of 8,
    which hold what 128 words give.
    """
    total, escapes = np.uint64(0), np.uint64(0)
    i = begin
    while i + 8 <= end:
        words = min((end - i) >> 3, 128)
        sums, found = np.uint64(0), np.uint64(0)
        for word in range(words):
            eight: np.uint64 = _load(codes, i + 8 * word)  # type: ignore[call-arg]  # numba gives the context
            sums += (eight & _EVEN) + ((eight >> _8) & _EVEN)
            found += ((eight & ((eight & ~_TOPS) + _BYTES)) & _TOPS) >> _7
        sums = (sums & _LOW) + ((sums >> _16) & _LOW)
        total += (sums >> _32) + (sums & _LOW32)
        found = (found & _EVEN) + ((found >> _8) & _EVEN)
        escapes += (found * _LANES) >> _48
        i += 8 * words
    for at in range(i, end):
        total += np.uint64(codes[at])
        escapes += np.uint64(codes[at] == 255)
    return np.int64(end - begin) - np.int64(escapes), np.int64(total)


@njit(nogil=True, cache=True)
def _count_ones(codes: Any, begin: int, end: int) -> Any:
    count = np.uint64(0)
    words = (end - begin) >> 3
    for word in range(words):
        count += _ones(_load(codes, begin + 8 * word))  # type: ignore[call-arg]  # numba gives the context
    for at in range(begin + 8 * words, end):
        count += _ones(np.uint64(codes[at]))
    return np.int64(count)


@njit(nogil=True, cache=True)
def fill_table(gaps: bool, codes: Any, sizes: Any, signs: Any, size: int, chunk: int, rows: Any, ends: Any) -> None:
    """The table of `runs.run_table`: `sizes` and `signs` are bytes of each chunk's mask and signs, `size` those of a run."""
    run = byte = rank = sign = 0
    for number in range(sizes.size):
        end, first, reach = byte + sizes[number], rank, 0
        for begin in range(byte, end, size):
            stop = min(begin + size, end)
            rows[run, 0] = begin
            rows[run, 1] = number * chunk + reach
            rows[run, 2] = rank
            rows[run, 3] = sign + rank - first
            if gaps:
                found, total = _gap_sum(codes, begin, stop)
                reach += found + total
            else:
                found = _count_ones(codes, begin, stop)
                reach += 8 * (stop - begin)
            rank += found
            run += 1
        ends[number, 0], ends[number, 1] = rank - first, reach
        byte = end
        sign += 8 * signs[number]


@njit(nogil=True, cache=True)
def _gap_bytes(gaps: Any, out: Any) -> int:
    count = 0
    for gap in gaps:
        rest = gap
        while rest >= 255:
            out[count] = 255
            count += 1
            rest -= 255
        out[count] = rest
        count += 1
    return count
