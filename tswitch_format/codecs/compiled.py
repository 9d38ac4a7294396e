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
_16, _32, _48, _255 = (np.uint64(n) for n in (16, 32, 48, 255))
_BYTES, _TOPS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_EVEN, _LANES, _LANE = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0001000100010001), np.uint64(0xFFFF)


def gap_positions(steps: NDArray[np.uint8], start: int, out: NDArray[np.int64]) -> int:
    """Where gap bytes (k = 0) lead from `start`; how many are below 255, or -1 where `out` has no room for all of them."""
    return int(gap_places(steps, 0, steps.size, start, out))


def bit_positions(packed: NDArray[np.uint8], start: int, out: NDArray[np.int64]) -> int:
    """Positions of the ones of a bit string, plus `start`; their number, or -1 where `out` has no room for all."""
    return int(bit_places(packed, 0, packed.size, start, out))


def gap_sums(codes: NDArray[np.uint8], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each run of `size` gap bytes: how many are below 255, and their sum."""
    runs = -(-codes.size // size)
    ends, sums = np.empty(runs, np.int64), np.empty(runs, np.int64)
    _gap_sums(codes, size, ends, sums)
    return ends, sums


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
def _gap_sums(codes: Any, size: int, ends: Any, sums: Any) -> None:
    for run in range(ends.size):
        some = codes[run * size : (run + 1) * size]
        below, total = np.int64(0), np.int64(0)
        for code in some:
            below += code < 255
            total += np.int64(code)
        ends[run], sums[run] = below, total
