"""Every flipped bit of every accepted file is found, and the report says where it was."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import mutation_jobs as work
import pytest
from mutation_files import ROOT, Patch, Victim, victims, why_unnamed

WORKERS = 2
VICTIMS = victims()


@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_some_flipped_bits_of_every_file(victim: Victim) -> None:
    done, wrong = work.flip(victim.path, work.few_bits(victim))
    assert done and not wrong


def test_the_sample_hits_every_region() -> None:
    hit = {victim.region(bit >> 3).kind for victim in VICTIMS for bit in work.few_bits(victim)}
    assert hit == {"prologue", "segment", "padding", "index", "trailer"}


def test_a_flip_that_is_not_found_would_be_told() -> None:
    """The proof can fail: told that another region was hit, it says so."""
    smallest = Victim(ROOT / "tests" / "golden" / "smallest.tsw")
    mask, sign = smallest.regions[1:3]
    regions = [
        smallest.regions[0],
        mask._replace(field=sign.field),
        sign._replace(field=mask.field),
        *smallest.regions[3:],
    ]
    patch = Patch(smallest.data)
    try:
        for region in regions:
            report = patch.flip(8 * region.start)
            found = why_unnamed(report, region, region.start)
            assert (found is not None) == (region.kind == "segment")
            elsewhere = region._replace(start=region.end, end=region.end + 1)
            assert why_unnamed(report, elsewhere, region.end) is not None
    finally:
        patch.close()


@pytest.mark.slow
def test_every_flipped_bit() -> None:
    """All bits of files up to 8 KiB, 20,000 of longer ones, 1,000 of those that decode to many megabytes."""
    began = time.monotonic()
    total = 0
    wrong: list[str] = []
    context = multiprocessing.get_context("spawn")  # what a fork of a process with threads does is left to chance
    with ProcessPoolExecutor(WORKERS, context) as pool:
        for done, found in pool.map(work.flip, *zip(*work.jobs(VICTIMS), strict=True)):
            total += done
            wrong += found
    seconds = time.monotonic() - began
    print(f"\nflipped bits: {total:,} of {len(VICTIMS)} files, {len(wrong)} not refused and named, {seconds:,.0f} s")
    assert not wrong[:20]
    assert total == sum(len(work.all_bits(victim)) for victim in VICTIMS)
