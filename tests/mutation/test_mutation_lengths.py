"""A file that is cut anywhere, or longer than it says, is refused, and the report says that its length is wrong."""

from __future__ import annotations

import random

import pytest
from mutation_files import SMALL, Victim, victims

import tswitch_format as tsw
from fuzz.memory import Slot
from tswitch_format import _layout as lay

VICTIMS = victims()
SLOT = Slot("lengths")
SEED = 2
EDGE = 4096  # bytes: of long files, every length within so much of either end
SAMPLE = 2000  # other lengths of a long file
FEW = 40


def lengths(victim: Victim, *, every: bool) -> list[int]:
    """Lengths to cut a file to: all regions' borders and the bytes beside them, and all lengths or some."""
    size = len(victim.data)
    found = {border + near for border in victim.borders for near in (-1, 0, 1)} | {0, 1, 7, 8, 9, 127, 128, 129}
    rng = random.Random(f"{SEED} {victim.name}")
    if every and size <= SMALL:
        found |= set(range(size))
    elif every:
        found |= {*range(EDGE), *range(size - EDGE, size), *rng.sample(range(size), SAMPLE)}
    else:
        found |= set(rng.sample(range(size), min(FEW, size)))
    return sorted(length for length in found if 0 <= length < size)


def cut(victim: Victim, *, every: bool) -> int:
    """Cut the file to all these lengths; how many."""
    chosen = lengths(victim, every=every)
    for length in chosen:
        report = tsw.validate(SLOT.put(victim.data[:length]))
        assert report.unreadable is None
        assert len(report.findings) == 1, length
        finding = report.findings[0]
        # Section 3: 128 bytes are the least that a file has, and beyond that the prologue knows how many there are.
        expected = ("TSW-105", 32, str(length)) if length >= 2 * lay.FRAME else ("TSW-100", 0, str(length))
        assert (finding.rule, finding.offset, finding.found) == expected
    return len(chosen)


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_some_cuts(victim: Victim) -> None:
    assert cut(victim, every=False)


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_more_bytes(victim: Victim) -> None:
    """One byte of several values, or many: the first finding is of the length, and no byte more is decoded than before."""
    trailer = victim.data[-lay.FRAME :]
    tails = [bytes([value]) for value in (0, 10, 13, 26, 0x57, 255)] + [bytes(64), bytes(4096), trailer, victim.data]
    for tail in tails[:: 5 if victim.large else 1]:
        report = tsw.validate(SLOT.put(victim.data + tail))
        assert report.unreadable is None
        assert [(finding.rule, finding.offset) for finding in report.findings] == [("TSW-105", 32)]


@pytest.mark.slow
def test_every_cut() -> None:
    """Every length of files up to 8 KiB; of longer ones both ends, all borders and 2,000 others."""
    total = sum(cut(victim, every=True) for victim in VICTIMS)
    print(f"\ncuts: {total:,} of {len(VICTIMS)} files")
