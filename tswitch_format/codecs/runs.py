"""Random access into planes: what one must know of each run of their bytes to begin there.

run_table    of gap bytes (spec section 9.3 with k = 0) or bitmaps, chunk after chunk
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format.codecs.gaps import ESCAPE
from tswitch_format.codecs.loops import loops

BYTE, START, RANK, SIGN = range(4)  # columns of the table


@dataclass(frozen=True, slots=True)
class RunTable:
    """Runs of the planes of some chunks, which begin anew with each chunk.

    `rows` i64[runs, 4]: of each run its first byte, the element that this one counts from, the rank of its first active
    element, and the bit of that one's sign. `stops` i64[chunks]: runs up to the end of each chunk. `ends` i64[chunks, 2]: how
    many elements are active in each chunk, and how far its bytes lead.
    """

    rows: NDArray[np.int64]
    stops: NDArray[np.int64]
    ends: NDArray[np.int64]


def run_table(
    codes: NDArray[np.uint8], sizes: Sequence[int], signs: Sequence[int], size: int, *, gaps: bool
) -> RunTable:
    """Cut the masks of chunks into runs of at most `size` bytes.

    `codes`: masks one after the other, gap bytes or bitmaps, of so many bytes each; `signs`: bytes of each chunk's signs.
    """
    lengths, sign_lengths = np.array(sizes, np.int64), np.array(signs, np.int64)
    stops = np.cumsum(-(-lengths // size))
    rows, ends = np.empty((int(stops[-1]), 4), np.int64), np.empty((lengths.size, 2), np.int64)
    compiled = loops()
    fill = _fill if compiled is None else compiled.fill_table
    fill(gaps, codes, lengths, sign_lengths, size, lay.CHUNK, rows, ends)
    return RunTable(rows, stops, ends)


def _fill(
    gaps: bool,
    codes: NDArray[np.uint8],
    sizes: NDArray[np.int64],
    signs: NDArray[np.int64],
    size: int,
    chunk: int,
    rows: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> None:
    """As `compiled.fill_table` does it."""
    done = byte = rank = sign = 0
    for number, length in enumerate(sizes.tolist()):
        first = np.arange(0, length, size)
        table = rows[done : done + first.size]
        moves, found = np.zeros(first.size, np.int64), np.zeros(first.size, np.int64)
        if first.size:
            here = codes[byte : byte + length]
            found[:] = np.add.reduceat(here < ESCAPE if gaps else np.bitwise_count(here), first, dtype=np.int64)
            moves[:] = np.add.reduceat(here, first, dtype=np.int64) + found if gaps else 8 * size
        before = np.cumsum(found) - found
        table[:, BYTE] = first + byte
        table[:, START] = np.cumsum(moves) - moves + number * chunk
        table[:, RANK] = before + rank
        table[:, SIGN] = before + sign
        ends[number] = found.sum(), moves.sum() if gaps else 8 * length
        done += first.size
        byte += length
        rank += int(ends[number, 0])
        sign += 8 * int(signs[number])
