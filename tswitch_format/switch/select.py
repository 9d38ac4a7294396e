"""Which elements stay: exact thresholds on keys (magnitudes or external scores). Design section 7, methods.md.

Ties at a threshold are kept, so the result depends on no order. All thresholds are found on non-zero keys: an element that
equals the base is never active.

    Rule             what selects: by sign or not, how much, the authors' quirk
    select_tensor    one tensor: a guess from a sample, one pass, the exact threshold of its survivors
    RadixSelect      the q-th largest over any number of streamed blocks: 16 bits of the bit patterns a pass
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tswitch_format._dtypes import Floats
from tswitch_format.switch.options import Amount, authors_quota
from tswitch_format.switch.survivors import Statistics
from tswitch_format.switch.task_vector import TaskVector

_SAMPLE = 1 << 15  # elements
_SMALL = (
    1 << 20
)  # elements: of tensors up to here all non-zero elements are kept for the exact step, no sample is needed
_MARGIN = 1.3  # survivors wanted for each element that stays
_DIGIT = 16  # bits a pass of RadixSelect


@dataclass(frozen=True, slots=True)
class Rule:
    """Selection inside one tensor. `signed`: positive and negative entries apart; `paper`: a sign whose quota is 0 keeps all
    its entries, as the authors' code does."""

    amount: Amount
    signed: bool = False
    paper: bool = False

    @property
    def counts(self) -> bool:
        """Whether the quotas depend on the numbers of non-zero elements, beyond that no more can stay."""
        return self.signed or self.amount.discard is not None

    def quotas(self, elements: int, positive: int, negative: int) -> tuple[int, ...]:
        """How many stay: (of all,) or, by sign, (of the positive, of the negative)."""
        if not self.signed:
            return (self.amount.quota(elements, positive + negative),)
        return tuple(self._of_sign(elements, count, positive + negative) for count in (positive, negative))

    def _of_sign(self, elements: int, count: int, nonzero: int) -> int:
        if count == 0:
            return 0
        if self.paper:
            return authors_quota(count, self.amount.discard or 0.0) or count
        if self.amount.density is not None:
            return min(count, -(-self.amount.quota(elements, nonzero) * count // nonzero))
        return self.amount.quota(count, count)

    def share(self) -> float:
        """Upper bound of the share of the non-zero elements of a group that stay, but for those that a quirk keeps."""
        return self.amount.density if self.amount.density is not None else 1 - (self.amount.discard or 0.0)


def select_tensor(vector: TaskVector, rule: Rule, *, rows: bool, columns: bool) -> Statistics:
    """Statistics of a tensor, with exactly the active elements as survivors. Raises NonFiniteError."""
    floor = _sample_floor(vector, rule)
    found = vector.scan(floor, rows=rows, columns=columns, counts=rule.counts)
    groups, quotas = _groups(found, rule, vector.elements)
    wanted = quotas if rule.counts else rule.quotas(vector.elements, vector.elements, 0)
    if floor and any(_count(keys) < quota for keys, quota in zip(groups, wanted, strict=True)):
        # The sample misled: its runs met smaller differences than the rest has. Find the thresholds by histogram.
        floor = min(_streamed_threshold(vector, sign, quota) for sign, quota in _signs(wanted) if quota)
        found = vector.scan(floor, rows=rows, columns=columns, counts=rule.counts)
        groups, quotas = _groups(found, rule, vector.elements)
    limits = [_nth_largest(keys, quota, vector.loops) for keys, quota in zip(groups, quotas, strict=True)]
    found.survivors.keep(limits[0], limits[-1])
    return found


def _groups(found: Statistics, rule: Rule, elements: int) -> tuple[list[Sequence[Floats]], tuple[int, ...]]:
    """What the survivors' keys are the magnitudes of, all or by sign, in pieces; with their quotas."""
    survivors = found.survivors
    # Where nothing is counted, the survivors are all non-zero elements, or more than the quota.
    positive = found.positive if rule.counts else survivors.count()
    quotas = rule.quotas(elements, positive, found.negative)
    keys = survivors.keys or survivors.tau
    if not rule.signed:
        return [keys], quotas
    return [
        [piece[(tau > 0) == positive] for piece, tau in zip(keys, survivors.tau, strict=True)]
        for positive in (True, False)
    ], quotas


def _count(pieces: Sequence[Floats]) -> int:
    return sum(piece.size for piece in pieces)


def _signs(quotas: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(sign, quota); sign 0 is both."""
    return zip((0,) if len(quotas) == 1 else (1, -1), quotas, strict=True)


def _nth_largest(pieces: Sequence[Floats], quota: int, loops: ModuleType | None) -> float:
    """The `quota`-th largest magnitude; infinity for a quota of 0. `loops`: `compiled_pack`, which knows f32, or None."""
    if quota == 0:
        return float("inf")
    if loops is not None:
        return float(loops.nth_largest(pieces, quota))
    keys: Floats = np.abs(np.concatenate(pieces))
    keys.partition(keys.size - quota)
    return float(keys[keys.size - quota])


def _sample_floor(vector: TaskVector, rule: Rule) -> float:
    """A key that a little more than the wanted share reaches, judged by a sample; 0 for small tensors."""
    if vector.elements <= _SMALL:
        return 0.0
    signed = vector.sample(_SAMPLE)
    floors = []
    for keys in (signed[signed > 0], signed[signed < 0]) if rule.signed else (signed,):
        wanted = int(np.ceil(keys.size * rule.share() * _MARGIN)) + 8
        if wanted >= keys.size:
            return 0.0
        floors.append(_nth_largest([keys], wanted, None))
    return min(floors)


def _streamed_threshold(vector: TaskVector, sign: int, quota: int) -> float:
    chosen = RadixSelect(wide=vector.type == np.float64)
    for number in range(chosen.passes):
        for tau, keys in vector.blocks():
            chosen.count(keys if sign == 0 else keys[(tau > 0) == (sign > 0)])
        quota = min(quota, int(chosen.counts.sum())) if number == 0 else quota
        if not quota:
            return 0.0  # nothing differs
        chosen.advance(quota)
    return chosen.threshold


class RadixSelect:
    """The q-th largest of many keys, exactly, without keeping them: by the bit patterns, which order as the non-negative
    numbers do, 16 bits a pass from the top. f32 keys take two passes, f64 keys (`wide`) four.

    In each of `passes` passes: `count` all blocks, then `advance(quota)`. Then `threshold` is the key. Zero keys do not count.
    """

    def __init__(self, *, wide: bool = False) -> None:
        self._type = np.dtype(np.uint64 if wide else np.uint32)
        self.passes = self._type.itemsize * 8 // _DIGIT
        self._shift = (self.passes - 1) * _DIGIT
        self._prefix = 0
        self._above = 0  # keys that are larger than all with the prefix
        self.counts = np.zeros(1 << _DIGIT, np.int64)

    def count(self, keys: Floats) -> None:
        """Count the keys of one block."""
        self.counts += self.histogram(keys)

    def histogram(self, keys: Floats) -> NDArray[np.int64]:
        """The counts of one block, to be added to `counts`: for threads."""
        wanted = np.float64 if self._type.itemsize == 8 else np.float32
        bits = keys.astype(wanted, copy=False).view(self._type)
        if self._shift + _DIGIT < self._type.itemsize * 8:
            bits = bits[bits >> (self._shift + _DIGIT) == self._prefix]
        some = bits.view(f"i{self._type.itemsize}") > 0  # not -0.0 either, whose bits are above all others'
        digits = (bits[some] >> self._shift) & ((1 << _DIGIT) - 1)
        return np.bincount(digits.astype(np.int64), minlength=self.counts.size)

    def advance(self, quota: int) -> None:
        """End a pass. `quota`: 1 to the number of non-zero keys."""
        from_above = np.cumsum(self.counts[::-1]) + self._above
        nth = int(np.searchsorted(from_above, quota))
        self._above = int(from_above[nth - 1]) if nth else self._above
        self._prefix = self._prefix << _DIGIT | (self.counts.size - 1 - nth)
        self._shift -= _DIGIT
        self.counts[:] = 0

    @property
    def threshold(self) -> float:
        """The key that was found, after the last pass."""
        return float(np.array(self._prefix, self._type).view(np.float64 if self._type.itemsize == 8 else np.float32))
