"""Both readers on changed files: they accept the same ones, and find the same in them."""

from __future__ import annotations

import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import differential_mutation as mutation
import pytest
import zstandard
from differential_readers import Tally, compare

from fuzz.parts import Parts
from tswitch_format import _layout as lay

FEW = 2000
MANY = 200_000
WORKERS = 2
RARE = 0.01  # share of the mutants with changed frames that section 9.5 permits to differ
BARE = Path(__file__).parents[1] / "golden" / "bare.tsw"


def check(tallies: dict[str, Tally], wrong: list[str], number: int) -> None:
    """No disagreement; permitted differences only where frames were changed, and few; both outcomes of most kinds."""
    assert not wrong[:10], f"{len(wrong)} disagreements"
    assert sum(tally.total for tally in tallies.values()) == number
    for kind, tally in tallies.items():
        assert tally.outcomes["refused"], kind
        assert bool(tally.outcomes["accepted"]) == (kind != "raw"), kind
        permitted = tally.permitted.total()
        assert permitted <= RARE * tally.total if kind in ("payload", "zstd") else permitted == 0


def test_some_mutants() -> None:
    check(*mutation.run(0, FEW), FEW)


@pytest.mark.slow
def test_many_mutants() -> None:
    began = time.monotonic()
    tallies: dict[str, Tally] = {}
    wrong: list[str] = []
    firsts = range(FEW, FEW + MANY, 4000)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context) as pool:
        for part, found in pool.map(mutation.run, firsts, [first + 4000 for first in firsts]):
            wrong += found
            for kind, tally in part.items():
                tallies.setdefault(kind, Tally()).add(tally)
    for kind, tally in tallies.items():
        print(f"\nmutants, {kind}: {tally}", end="")
    print(f"\nmutants in all: {MANY:,}, {len(wrong)} disagreements, {time.monotonic() - began:,.0f} s")
    check(tallies, wrong, MANY)


@pytest.mark.parametrize("codec", [codec for codec in lay.Codec if codec < lay.Codec.RAW])
def test_payloads_made_at_random(codec: lay.Codec) -> None:
    """Bytes, count and parameter of the mask of ten elements."""
    rng = random.Random(int(codec))
    apart = Parts.of(BARE.read_bytes())
    assert len(apart.payloads[0]) == 3  # a mask of ten elements, its signs, the data of "b"
    tally = Tally()
    data = apart.payloads[0][2]
    for number in range(250):
        # Bytes that are right now and then: ten bits, and a count that is theirs.
        payload = bytes(byte & rng.choice((3, 255)) for byte in rng.randbytes(rng.choice((0, 2, rng.randrange(6)))))
        ones = sum(map(int.bit_count, payload))
        if codec in mutation.ZSTD_CODECS and number % 4:
            payload = rng.randbytes(rng.choice((0, 0, 1))) + zstandard.compress(payload)
        segments, entries = apart.table(0, "segments"), apart.table(0, "entries")
        segments["codec"][0], segments["parameter"][0] = codec, rng.choice([0, 0, 0, 1, 2, 20, 21])
        segments["count"][0] = entries["active"][0] = rng.choice((min(ones, 10), 10, rng.randrange(11)))
        # Signs of no ones fit whatever the mask is.
        segments["codec"][1], segments["count"][1] = lay.Codec.ZEROS, 0
        apart.put_table(0, "segments", segments)
        apart.put_table(0, "entries", entries)
        apart.payloads[0] = [payload, b"", data]
        compare(apart.build(), tally)
    assert not tally.permitted and all(tally.outcomes[outcome] for outcome in ("accepted", "refused"))


@pytest.mark.parametrize("name", ["bare.tsw", "smallest.tsw"])
def test_each_byte_of_the_index(name: str) -> None:
    """Each in turn with another value: the random mutants miss some."""
    rng = random.Random(5)
    data = BARE.with_name(name).read_bytes()
    apart = Parts.of(data)
    index = mutation.pack(apart.document)
    for at in range(len(index)):
        for value in {index[at] ^ 1 << rng.randrange(8), rng.randrange(256)} - {index[at]}:
            changed = index[:at] + bytes([value]) + index[at + 1 :]
            compare(mutation.sealed(mutation.body_of(data), changed))
