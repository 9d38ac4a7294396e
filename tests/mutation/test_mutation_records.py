"""Records and payloads that change places, come twice, are left out or have a bit flipped, behind right checksums.

What the change breaks is refused, by its rule. What it leaves legal is another content: with the digests as they were it is
refused by them (801, 802); with digests made anew it is a valid file of another content id.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mutation_files import Victim, victims
from mutation_sealing import body_of, sealed
from numpy.typing import NDArray
from tsw_reference import File, read
from tsw_reference.digest import content_digest, entry_digest

import tswitch_format as tsw
from fuzz.memory import Slot
from fuzz.parts import Parts, pack
from tswitch_format import _layout as lay

SLOT = Slot("records")
SEED = 3
FEW = 12  # of one kind of change of one file


def _fit(victim: Victim) -> bool:
    """Whether a file has digests and segments to change, and is decoded in a moment."""
    if victim.large or "chunks" in victim.name or len(victim.data) > 16_384:
        return False
    apart = Parts.of(victim.data)
    return "content_id" in apart.document and any(apart.payloads) and "minor" not in apart.frame


VICTIMS = [victim for victim in victims() if _fit(victim)]
each_victim = pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)


def rules(data: bytes) -> set[str]:
    """The rules that the validator finds broken."""
    report = tsw.validate(SLOT.put(data))
    assert report.unreadable is None
    return {finding.rule for finding in report.findings}


def is_other_content(victim: Victim, apart: Parts) -> bool:
    """Whether the changed file, its digests made anew, is valid and has another content id; both readers compute it."""
    apart = copy.deepcopy(apart)
    apart.forget_digests()
    plain = read(apart.build())
    for number, task in enumerate(plain.tasks):
        entries = apart.table(number, "entries")
        for row, entry in enumerate(task.entries):
            entries["flags"][row] |= lay.HAS_SHA256
            entries["sha256"][row] = np.void(entry_digest(plain, entry))
        apart.put_table(number, "entries", entries)
    apart.document["content_id"] = content_digest(read(apart.build()))
    data = apart.build()
    assert not rules(data)
    return read(data).content_id != Parts.of(victim.data).document["content_id"]


def planes(file: File) -> list[tuple[object, ...]]:
    """What the segments of all shared arrays and entries decode to."""
    return [tuple(map(file.content, holder.segments)) for holder in file.holders()]


def pairs(apart: Parts) -> Iterator[tuple[int, int]]:
    """Task (or SHARED) and number of some segments that have one after them there."""
    found = [(owner, at) for owner in apart.owners() for at in range(len(apart.payloads_of(owner)) - 1)]
    yield from found[:: 1 + len(found) // FEW]


def entries(apart: Parts, file: File) -> Iterator[tuple[int, int, slice]]:
    """Task, number and segments of some entries."""
    found = []
    for number, task in enumerate(file.tasks):
        ends = [0, *itertools.accumulate(len(list(entry.segments)) for entry in task.entries)]
        found += [(number, at, slice(*ends[at : at + 2])) for at in range(len(task.entries))]
    yield from found[:: 1 + len(found) // FEW]


@each_victim
def test_swapped_payloads_under_the_same_table(victim: Victim) -> None:
    segments = [region for region in victim.regions if region.kind == "segment"]
    for first, second in itertools.pairwise(segments):
        a, b = victim.data[first.start : first.end], victim.data[second.start : second.end]
        between = victim.data[first.end : second.start]
        changed = victim.data[: first.start] + b + between + a + victim.data[second.end :]
        if changed == victim.data:
            continue
        findings = tsw.validate(SLOT.put(changed)).findings
        wrong = {finding.field for finding in findings if finding.rule == "TSW-701"}
        assert wrong <= {first.field, second.field} and {f.rule for f in findings} <= {"TSW-701", "TSW-702"}
        assert findings and (len(a) != len(b) or wrong == {first.field, second.field})


def under_another_table(apart: Parts, task: int, table: NDArray[Any]) -> bytes:
    """The file as it is but for the segment records of a task: no place is put right, all checksums are."""
    body = body_of(apart.build())
    apart.put_table(task, "segments", table)
    return sealed(body, pack(apart.document))


@each_victim
def test_swapped_records(victim: Victim) -> None:
    """The table says that the second segment comes first; its bytes do not."""
    before = planes(read(victim.data))
    for task, at in pairs(Parts.of(victim.data)):
        apart = Parts.of(victim.data)
        table = apart.table(task, "segments")
        one, other = table[at].copy(), table[at + 1].copy()
        table[at], table[at + 1] = other, one
        data = under_another_table(apart, task, table)
        broken = rules(data)
        if one["length"] or other["length"]:
            # A record in the wrong place has a wrong role or count, else a wrong offset.
            assert broken & {"TSW-601", "TSW-602", "TSW-603", "TSW-606"}
        elif not broken:  # planes without bytes that are the same
            assert planes(read(data)) == before


@each_victim
def test_swapped_segments(victim: Victim) -> None:
    """Both records and bytes: refused where roles or counts do not fit, else by the digests, else other content."""
    before = read(victim.data)
    for task, at in pairs(Parts.of(victim.data)):
        apart = Parts.of(victim.data)
        table, payloads = apart.table(task, "segments"), apart.payloads_of(task)
        one, other = table[at].copy(), table[at + 1].copy()
        table[at], table[at + 1] = other, one
        payloads[at], payloads[at + 1] = payloads[at + 1], payloads[at]
        apart.put_table(task, "segments", table)
        broken = rules(apart.build())
        plain = copy.deepcopy(apart)
        plain.forget_digests()
        legal = not rules(plain.build())
        if one["role"] != other["role"]:
            assert "TSW-601" in broken and not legal
        elif legal:
            same = planes(read(plain.build())) == planes(before)
            assert broken == (set() if same else {"TSW-801"})
            assert is_other_content(victim, apart) != same
        else:
            assert broken


@each_victim
def test_doubled_and_dropped_segments(victim: Victim) -> None:
    """The number of segments follows from the entries."""
    for task, at in pairs(Parts.of(victim.data)):
        for times in (0, 2):
            apart = Parts.of(victim.data)
            table, payloads = apart.table(task, "segments"), apart.payloads_of(task)
            apart.put_table(
                task, "segments", np.concatenate([table[:at], *[table[at : at + 1]] * times, table[at + 1 :]])
            )
            payloads[at : at + 1] = [payloads[at]] * times
            assert rules(apart.build()) == {"TSW-601"}


@each_victim
def test_doubled_entries(victim: Victim) -> None:
    """An entry twice, its segments too."""
    for task, at, own in entries(Parts.of(victim.data), read(victim.data)):
        apart = Parts.of(victim.data)
        table, segments, payloads = apart.table(task, "entries"), apart.table(task, "segments"), apart.payloads[task]
        apart.put_table(task, "entries", np.concatenate([table[: at + 1], table[at:]]))
        apart.put_table(task, "segments", np.concatenate([segments[: own.stop], segments[own], segments[own.stop :]]))
        payloads[own.stop : own.stop] = payloads[own]
        assert rules(apart.build()) == {"TSW-502"}


@each_victim
def test_dropped_entries(victim: Victim) -> None:
    """Without its segments too it is other content, unless its extra tensor or its vector is of no use to another entry."""
    file = read(victim.data)
    for task, at, own in entries(Parts.of(victim.data), file):
        apart = Parts.of(victim.data)
        tensor = int(apart.table(task, "entries")["tensor"][at])
        apart.put_table(task, "entries", np.delete(apart.table(task, "entries"), at))
        last = sum(int(entry.tensor.number == tensor) for entry in file.all_entries()) == 1
        unused = {"TSW-408"} if last and tensor >= len(file.base.tensors) else set()
        vector = file.tasks[task].entries[at].vector
        if vector is not None and sum(entry.vector is vector for entry in file.all_entries()) == 1:
            unused = {"TSW-410"}
        if own.start < own.stop:
            assert "TSW-601" in rules(apart.build()) or unused
        apart.put_table(task, "segments", np.delete(apart.table(task, "segments"), own))
        del apart.payloads[task][own]
        broken = rules(apart.build())
        assert broken and broken | {"TSW-802"} == unused | {"TSW-802"}  # what is of no use may end the reading
        assert unused or is_other_content(victim, apart)


@each_victim
def test_doubled_and_dropped_tasks(victim: Victim) -> None:
    """A name comes once. Under another name, or left out, it is other content, unless extra tensors or vectors are of no use
    then."""
    for task in range(min(FEW, len(Parts.of(victim.data).payloads))):
        apart = Parts.of(victim.data)
        apart.document["tasks"].append(dict(apart.document["tasks"][task]))
        apart.payloads.append(apart.payloads[task])
        assert rules(apart.build()) == {"TSW-501"}
        apart.document["tasks"][-1]["name"] = "another name"
        assert rules(apart.build()) == {"TSW-802"} and is_other_content(victim, apart)
        apart = Parts.of(victim.data)
        del apart.document["tasks"][task], apart.payloads[task]
        broken = rules(apart.build())
        unused = {"TSW-408", "TSW-409", "TSW-410", "TSW-412"} & broken
        assert broken and broken - unused <= {"TSW-802"}
        assert unused or is_other_content(victim, apart)


FIELD_RULES = {
    "offset": {"TSW-603"},
    "length": {"TSW-603", "TSW-604"},
    "crc32c": {"TSW-701"},
    "count": {"TSW-504", "TSW-507", "TSW-602", "TSW-606", "TSW-704", "TSW-706", "TSW-707"},
    "role": {"TSW-601"},
    "codec": {"TSW-605", "TSW-606", "TSW-703", "TSW-704", "TSW-706", "TSW-707", "TSW-801"},
    "parameter": {"TSW-606", "TSW-703", "TSW-704", "TSW-706", "TSW-707", "TSW-801"},
    "reserved": {"TSW-107"},
}
"""The rules of which one is broken, at least, where one bit of a field of a segment record is another."""


@each_victim
def test_every_field_of_segment_records(victim: Victim) -> None:
    """One bit of each field, behind right checksums. Only a codec or parameter may say the same in another way."""
    rng = random.Random(f"{SEED} {victim.name}")
    before = planes(read(victim.data))
    for (task, at), (field, expected) in itertools.product(pairs(Parts.of(victim.data)), FIELD_RULES.items()):
        apart = Parts.of(victim.data)
        table = apart.table(task, "segments")
        first, last = lay.span(lay.SEGMENT, field)
        table[at : at + 1].view(np.uint8)[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        data = under_another_table(apart, task, table)
        broken = rules(data)
        if broken or field not in ("codec", "parameter"):
            assert broken & expected, (task, at, field)
        else:
            assert planes(read(data)) == before
