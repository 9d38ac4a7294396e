"""The loops of decoding, compiled: one pass without the GIL where NumPy takes several. `loops.py` says when.

Import it only where numba is installed (the extra `fast`). What comes out is what NumPy gives; tests compare them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_ONE = np.uint64(1)


def gap_positions(steps: NDArray[np.uint8], start: int, out: NDArray[np.int64]) -> None:
    """Where gap bytes (k = 0) lead from `start`. `out` has a place for each byte below 255, and the last byte is one."""
    _gap_positions(steps, start, out)


def bit_positions(packed: NDArray[np.uint8], start: int, out: NDArray[np.int64]) -> int:
    """Positions of the ones of a bit string, plus `start`; their number, or -1 where `out` has no room for all."""
    whole = packed.size // 8 * 8
    rest = np.zeros(8, np.uint8)
    rest[: packed.size - whole] = packed[whole:]
    count = int(_bit_positions(packed[:whole].view(np.uint64), start, out, 0))
    return count if count < 0 else int(_bit_positions(rest.view(np.uint64), start + 8 * whole, out, count))


def gap_sums(codes: NDArray[np.uint8], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each run of `size` gap bytes: how many are below 255, and their sum."""
    runs = -(-codes.size // size)
    ends, sums = np.empty(runs, np.int64), np.empty(runs, np.int64)
    _gap_sums(codes, size, ends, sums)
    return ends, sums


@njit(nogil=True, cache=True)
def _gap_positions(steps: Any, start: int, out: Any) -> None:
    place = start - 1
    count = 0
    for i in range(steps.size):
        step = int(steps[i])
        place += step + 1 - (step == 255)
        out[count] = place  # without a branch: what an escape puts here the next byte overwrites
        count += step < 255


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
def _bit_positions(words: Any, start: int, out: Any, count: int) -> int:
    """Four ones of a word at a time, whether it has so many or not: a loop over those that it has ends where no processor
    expects it, and then takes twice as long at 5 %."""
    most = out.size
    for i in range(words.size):
        word = words[i]
        if not word:
            continue
        first = np.uint64(start + 64 * i)
        found = int(_ones(word))
        if count + found > most:
            return -1
        if count + 64 > most:
            for k in range(found):
                out[count + k] = np.int64(first + _trailing_zeros(word))
                word &= word - _ONE
        else:
            for four in range(0, found, 4):
                for k in range(4):
                    out[count + four + k] = np.int64(first + _trailing_zeros(word))
                    word &= word - _ONE
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
