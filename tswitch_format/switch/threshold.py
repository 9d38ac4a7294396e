"""One threshold for many task vectors: the key that exactly the quota of all their elements reach.

    common_threshold    of `pack --select spectral` and `global`
    _bracketed          two keys that a sample says it is between; one pass counts above both and keeps what is between
    _by_histograms      by bit patterns, 16 bits a pass: where the sample misled, or the quota depends on what is counted

Vectors are read in blocks and by several threads; memory is the sample, 2^17 keys, and the keys between the two, about a
quarter of those that stay. At low densities positions are kept too, so that nobody need look for them again: twice those keys,
and a byte or a little more for each that stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import Floats
from tswitch_format._parallel import ordered_map
from tswitch_format.errors import NonFiniteError
from tswitch_format.switch.options import Amount
from tswitch_format.switch.select import RadixSelect
from tswitch_format.switch.survivors import Kept
from tswitch_format.switch.task_vector import TaskVector

_SAMPLE = 1 << 17  # elements, of all vectors together
_LEAST_SAMPLE = 1 << 12  # of each
_POSITIONS_TO = 0.05  # density up to which positions are kept
_SMALL = 1 << 20  # elements: up to here all keys are kept, no sample is needed
_MARGIN = 0.08  # of the quota, to both sides, at least
_DEVIATIONS = 6  # of a sample's count of elements that stay


@dataclass(frozen=True, slots=True)
class Common:
    """A threshold, infinite where nothing stays; names of tensors that are not finite, which it does not count; and of those
    vectors whose sums are given, by name, what it may leave, if that was found on the way."""

    threshold: float
    not_finite: frozenset[str] = frozenset()
    kept: dict[str, Kept] = field(default_factory=dict)


def common_threshold(vectors: Sequence[TaskVector], amount: Amount, *, threads: int, tolerant: bool) -> Common:
    """Of the elements of all `vectors`, those with a key of at least the threshold are `amount`, and more only where several
    have that very key. `tolerant`: leave out vectors that are not finite, where it raises NonFiniteError else."""
    if amount.density is not None:
        found = _bracketed(vectors, amount, threads, tolerant)
        if found is not None:
            return found
    return _by_histograms(vectors, amount, threads, tolerant)


def _bracketed(vectors: Sequence[TaskVector], amount: Amount, threads: int, tolerant: bool) -> Common | None:
    """None where it is not between the two keys."""
    low, high = _bracket(vectors, amount, threads, tolerant)
    positions = (amount.density or 1.0) <= _POSITIONS_TO

    def count(vector: TaskVector) -> tuple[int, list[Floats], Kept] | None:
        """How many keys are above both, those between, and where all of these are if that is of use."""
        above, between, kept = 0, [], Kept()
        try:
            for places, keys in vector.keys_from(low):
                if positions and vector.has_sums:
                    kept.add(places, keys, high)
                    some = kept.keys[-1]
                else:
                    some = keys[keys < np.float64(high)]  # which may come from a wider type than these keys have
                above += keys.size - some.size
                between.append(some)
        except NonFiniteError:
            if not tolerant:
                raise
            return None
        return above, between, kept

    above, elements = 0, 0
    between: list[Floats] = [np.empty(0, np.float32)]
    skipped = set()
    kept = {}
    for vector, counted in zip(vectors, ordered_map(count, vectors, threads), strict=True):
        if counted is None:
            skipped.add(vector.name)
            continue
        above += counted[0]
        between += counted[1]
        if positions and vector.has_sums:
            kept[vector.name] = counted[2]
        elements += vector.elements
    keys: Floats = np.concatenate(between)  # type: ignore[assignment]  # the widest of float types
    seen = above + keys.size
    # What is seen is all that is not zero, where the lower key is 0; if not, and it is less than the quota, that is of no use.
    quota = amount.quota(elements, seen if low == 0 else elements)
    if quota == 0:
        return Common(math.inf, frozenset(skipped))
    if not above < quota <= seen:
        return None
    nth = seen - quota
    keys.partition(nth)
    return Common(float(keys[nth]), frozenset(skipped), kept)


def _bracket(vectors: Sequence[TaskVector], amount: Amount, threads: int, tolerant: bool) -> tuple[float, float]:
    """(0, infinity) for few elements."""
    elements = sum(vector.elements for vector in vectors)
    if elements <= _SMALL:
        return 0.0, math.inf

    def sampled(vector: TaskVector) -> NDArray[np.float64]:
        try:
            return np.abs(vector.sample(max(_LEAST_SAMPLE, _SAMPLE * vector.elements // elements)))
        except NonFiniteError:
            if not tolerant:
                raise
            return np.empty(0)

    some = [vector for vector in vectors if vector.elements]
    samples = list(ordered_map(sampled, some, threads))
    keys = np.concatenate(samples)
    stand_for = np.repeat(
        [vector.elements / max(sample.size, 1) for vector, sample in zip(some, samples, strict=True)],
        [sample.size for sample in samples],
    )
    order = np.argsort(-keys)
    reached = np.cumsum(stand_for[order])
    quota = amount.quota(elements, elements)
    margin = max(_MARGIN, _DEVIATIONS / math.sqrt(max(quota * keys.size / elements, 1)))
    places = np.searchsorted(reached, [quota * (1 - margin), quota * (1 + margin)])
    high, low = (float(keys[order[place]]) if place < keys.size else 0.0 for place in places)
    return low, high


def _by_histograms(vectors: Sequence[TaskVector], amount: Amount, threads: int, tolerant: bool) -> Common:
    chosen = RadixSelect(wide=any(vector.type == np.float64 for vector in vectors))
    skipped: set[str] = set()
    quota = 0

    def histogram(vector: TaskVector) -> NDArray[np.int64] | None:
        counts = np.zeros_like(chosen.counts)
        try:
            for _, keys in vector.blocks():
                counts += chosen.histogram(keys)
        except NonFiniteError:
            if not tolerant:
                raise
            return None
        return counts

    for number in range(chosen.passes):
        for vector, counts in zip(vectors, ordered_map(histogram, vectors, threads), strict=True):
            if counts is None:
                skipped.add(vector.name)
            else:
                chosen.counts += counts
        if number == 0:
            elements = sum(vector.elements for vector in vectors if vector.name not in skipped)
            quota = amount.quota(elements, int(chosen.counts.sum()))
            if quota == 0:
                return Common(math.inf, frozenset(skipped))
        chosen.advance(quota)
    return Common(chosen.threshold, frozenset(skipped))
