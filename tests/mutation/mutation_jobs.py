"""Flipping bits of a file, as a function that a pool of processes can call."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from mutation_files import SMALL, Patch, Victim, why_unnamed

from tswitch_format import _layout as lay

SEED = 1
SAMPLE = 20_000  # bits of a file above SMALL
SAMPLE_OF_LARGE = 1000  # bits of one that takes up to half a second to look at
_PART = 4000  # bits of a job: small, so that no process is left with a long one


def all_bits(victim: Victim) -> list[int]:
    """Every bit of a small file; of others a sample."""
    bits = 8 * len(victim.data)
    if victim.large:
        return _some(victim, min(SAMPLE_OF_LARGE, bits))
    return list(range(bits)) if len(victim.data) <= SMALL else _some(victim, SAMPLE)


def few_bits(victim: Victim) -> list[int]:
    """A bit of every field of prologue and trailer and of every region (of many segments: of some), and some more."""
    rng = random.Random(f"{SEED} {victim.name}")
    regions = victim.regions
    if victim.large:
        chosen = regions if len(regions) < 6 else [*regions[:3], *regions[-3:]]
        return [rng.randrange(8 * region.start, 8 * region.end) for region in chosen]
    end = len(victim.data) - lay.FRAME
    runs = [(region.start, region.end) for region in regions]
    for record, start in ((lay.PROLOGUE, 0), (lay.TRAILER, end)):
        for field in record.names or ():
            first, last = lay.span(record, field)
            runs.append((start + first, start + last))
    chosen = rng.sample(runs, min(60, len(runs))) if len(runs) > 80 else runs
    bits = [rng.randrange(8 * first, 8 * last) for first, last in chosen]
    return bits + [rng.randrange(8 * len(victim.data)) for _ in range(20)]


def _some(victim: Victim, number: int) -> list[int]:
    return random.Random(f"{SEED} {victim.name}").sample(range(8 * len(victim.data)), number)


def flip(path: Path, bits: Iterable[int]) -> tuple[int, list[str]]:
    """Flip bits one at a time; how many, and those that are not refused and named."""
    victim = Victim(path)
    patch = Patch(victim.data)
    done = 0
    wrong = []
    try:
        for bit in bits:
            byte = bit >> 3
            region = victim.region(byte)
            why = why_unnamed(patch.flip(bit), region, byte)
            if why is not None:
                wrong.append(f"{victim.name}: bit {bit & 7} of byte {byte}, in {region}: {why}")
            done += 1
        if not patch.whole():
            wrong.append(f"{victim.name}: the file is not as it was")
    finally:
        patch.close()
    return done, wrong


def jobs(victims: list[Victim]) -> list[tuple[Path, list[int]]]:
    """What a pool is to do, the slow files first."""
    found = []
    for victim in sorted(victims, key=lambda victim: not victim.large):
        bits = all_bits(victim)
        part = _PART if not victim.large else SAMPLE_OF_LARGE // 4
        found += [(victim.path, bits[first : first + part]) for first in range(0, len(bits), part)]
    return found
