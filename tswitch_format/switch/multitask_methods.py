"""How task vectors become one vector and masks: the arithmetic of `multitask.py`, block by block, without files.

    Method, MethodTensor    what one has
    Tall                    TALL-masks (arXiv 2405.07813), over the sum of task vectors (Sum) or their TIES merge (Ties)
    Given                   masks that somebody else made, over such a vector
    Emr                     EMR-Merging (arXiv 2405.17461)
    total_of                a sum of rows as torch adds them

All in f32, or f64 for F64 tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import F64, Floats
from tswitch_format._parallel import ordered_map
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.switch.build import checked_bits
from tswitch_format.switch.experts import Experts, blocks
from tswitch_format.switch.select import RadixSelect

_TIES_SHARE = 0.2  # of each task vector stays, as in the published code
_SUMMANDS = 16  # torch adds the rows of a matrix in runs of so many, then the runs' sums; published sums are torch's

_Result = TypeVar("_Result")


@np.errstate(over="ignore", invalid="ignore")  # a vector that is not finite is refused when it is rounded
def total_of(rows: Sequence[Floats]) -> Floats:
    """The sum of equally long rows, in the order in which torch adds them (seen for 2 to 50 rows, on x86).

    But of a whole state dict as one vector, torch adds the last elements, of N of them N mod 32, in another order, from 5 rows
    on: there the last bit may differ.
    """
    runs = [rows[first : first + _SUMMANDS] for first in range(0, len(rows), _SUMMANDS)]
    sums = []
    for run in runs:
        total = run[0] + 0  # as torch begins: -0 becomes +0
        for row in run[1:]:
            total += row
        sums.append(total)
    whole = sums[0]
    for total in sums[1:]:
        whole += total
    return whole


def _kept(tau: Floats, where: NDArray[np.bool_]) -> Floats:
    """tau * where, which makes -0 of some."""
    made: Floats = np.multiply(tau, where, dtype=tau.dtype)
    return made


def _packed(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(mask, bitorder="little")


class MethodTensor(Protocol):
    """One tensor on its way through a method, block by block and in order; blocks but the last are whole bytes of bits."""

    def block(
        self, base: Floats, tuned: Sequence[Floats], taus: Sequence[Floats]
    ) -> tuple[Floats, list[NDArray[np.uint8]]]:
        """The vector's elements, and for each expert its mask as a bit string."""
        ...


class Method(Protocol):
    """What makes vectors and masks. Methods of it may be called from several threads."""

    def tensor(self, spec: TensorSpec, numbers: Sequence[int]) -> MethodTensor:
        """Begin a tensor that the experts of these numbers have."""
        ...

    def knobs(self, tensors: Sequence[MethodTensor], tasks: int) -> list[float]:
        """The knob of each task, once all tensors are done; they come in the file's order."""
        ...


class Sum:
    """Task arithmetic: the sum of all task vectors."""

    def merge(self, taus: Sequence[Floats], numbers: Sequence[int]) -> Floats:
        """The multi-task vector of a block."""
        return total_of(taus)


class Ties:
    """TIES (arXiv 2306.01708) as the TALL-masks code has it: of each task vector the largest 20 % of the whole model stay
    (those at the threshold too), the sign of their sum is elected, and those of that sign are added. A tied tensor counts
    once for each of its names, as a state dict has it."""

    def __init__(self, experts: Experts, threads: int, progress: Callable[[int, int], None]) -> None:
        self._experts = experts
        self._specs = [experts.base.specs[name] for name in experts.terms]
        self._threads = threads
        self._wide = any(spec.dtype is F64 for spec in self._specs)
        self._steps = (RadixSelect(wide=self._wide).passes + 1) * len(self._specs)
        self._done = 0
        self._progress = progress
        elements = sum(spec.elements * experts.times[name] for name, spec in experts.base.specs.items())
        self._thresholds = self._find_thresholds(int(elements * _TIES_SHARE) + 1)
        self._majority = self._find_majority()

    def _each(self, work: Callable[[TensorSpec], _Result]) -> Iterator[_Result]:
        """One pass over all tensors."""
        for found in ordered_map(work, self._specs, self._threads):
            yield found
            self._done += 1
            self._progress(self._done, self._steps)

    def _find_thresholds(self, quota: int) -> list[float]:
        experts = self._experts
        selects = [RadixSelect(wide=self._wide) for _ in experts.names]
        locks = [threading.Lock() for _ in experts.names]

        def count(spec: TensorSpec) -> None:
            for start, size in blocks(0, spec.elements):
                _, _, taus = experts.vectors(spec, start, size)
                for term, tau in zip(experts.terms[spec.name], taus, strict=True):
                    # One histogram of 0.5 MiB a thread at a time: of every expert for every tensor they would be gigabytes.
                    found = selects[term.number].histogram(np.abs(tau)) * experts.times[spec.name]
                    with locks[term.number]:
                        selects[term.number].counts += found

        wanted = [0] * len(selects)
        for number in range(selects[0].passes):
            for _ in self._each(count):
                pass
            if number == 0:
                # Zeros are not counted; a threshold of 0 keeps everything.
                wanted = [quota if quota <= int(select.counts.sum()) else 0 for select in selects]
            for select, some in zip(selects, wanted, strict=True):
                if some:
                    select.advance(some)
        return [select.threshold if some else 0.0 for select, some in zip(selects, wanted, strict=True)]

    def _find_majority(self) -> int:
        """The sign of most sums in the model: it is elected where a sum is 0."""

        experts = self._experts

        def balance(spec: TensorSpec) -> int:
            found = 0
            for start, count in blocks(0, spec.elements):
                _, _, taus = experts.vectors(spec, start, count)
                total = total_of(self._trimmed(taus, [term.number for term in experts.terms[spec.name]]))
                found += int(np.count_nonzero(total > 0)) - int(np.count_nonzero(total < 0))
            return found * experts.times[spec.name]

        return int(np.sign(sum(self._each(balance))))

    def _trimmed(self, taus: Sequence[Floats], numbers: Sequence[int]) -> list[Floats]:
        return [tau * (np.abs(tau) >= np.float64(self._thresholds[n])) for tau, n in zip(taus, numbers, strict=True)]

    def merge(self, taus: Sequence[Floats], numbers: Sequence[int]) -> Floats:
        """The multi-task vector of a block."""
        trimmed = self._trimmed(taus, numbers)
        elected = np.sign(total_of(trimmed))
        elected[elected == 0] = self._majority
        up = elected > 0
        return total_of([_kept(tau, np.where(up, tau > 0, tau < 0)) for tau in trimmed])


@dataclass(frozen=True, slots=True)
class Tall:
    """TALL-masks. `lambdas`: of each expert, by its number."""

    merge: Sum | Ties
    lambdas: Sequence[float]

    def tensor(self, spec: TensorSpec, numbers: Sequence[int]) -> MethodTensor:
        """See `Method`."""
        return _TallTensor(self, numbers)

    def knobs(self, tensors: Sequence[MethodTensor], tasks: int) -> list[float]:
        """See `Method`: the vector is added as it is."""
        return [1.0] * tasks


@dataclass(frozen=True, slots=True)
class _TallTensor:
    method: Tall
    numbers: Sequence[int]

    def block(
        self, base: Floats, tuned: Sequence[Floats], taus: Sequence[Floats]
    ) -> tuple[Floats, list[NDArray[np.uint8]]]:
        vector = self.method.merge.merge(taus, self.numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            return vector, self._masks(base + vector, tuned, taus)

    def _masks(self, multi: Floats, tuned: Sequence[Floats], taus: Sequence[Floats]) -> list[NDArray[np.uint8]]:
        masks = []
        for number, expert, tau in zip(self.numbers, tuned, taus, strict=True):
            far = np.abs(multi - expert)
            far *= multi.dtype.type(self.method.lambdas[number])
            masks.append(_packed(np.abs(tau) > far))  # |base - expert| is |expert - base|, to the bit
        return masks


class Given:
    """Masks that are there already, over a merge of the task vectors. `mask(expert, tensor, chunk)`: a chunk's bit string."""

    def __init__(self, merge: Sum | Ties, mask: Callable[[int, str, int], NDArray[np.uint8]]) -> None:
        self.merge = merge
        self.mask = mask

    def tensor(self, spec: TensorSpec, numbers: Sequence[int]) -> MethodTensor:
        """See `Method`."""
        return _GivenTensor(self, spec, numbers)

    def knobs(self, tensors: Sequence[MethodTensor], tasks: int) -> list[float]:
        """See `Method`: the vector is added as it is."""
        return [1.0] * tasks


class _GivenTensor:
    def __init__(self, method: Given, spec: TensorSpec, numbers: Sequence[int]) -> None:
        self._method = method
        self._spec = spec
        self._numbers = numbers
        self._at = 0
        self._chunk: list[NDArray[np.uint8]] = []

    def block(
        self, base: Floats, tuned: Sequence[Floats], taus: Sequence[Floats]
    ) -> tuple[Floats, list[NDArray[np.uint8]]]:
        chunk, first = divmod(self._at, lay.CHUNK)
        if not first:
            elements = min(lay.CHUNK, self._spec.elements - self._at)
            where = f"tensor {self._spec.name!r}: mask of chunk {chunk}"
            self._chunk = [
                checked_bits(self._method.mask(number, self._spec.name, chunk), elements, where)
                for number in self._numbers
            ]
        self._at += base.size
        masks = [packed[first // 8 : -(-(first + base.size) // 8)] for packed in self._chunk]
        return self._method.merge.merge(taus, self._numbers), masks


class Emr:
    """EMR-Merging. `times`: how often each tensor counts in the scales."""

    def __init__(self, times: Mapping[str, int]) -> None:
        self._times = times

    def tensor(self, spec: TensorSpec, numbers: Sequence[int]) -> MethodTensor:
        """See `Method`."""
        return _EmrTensor(spec.elements, numbers, self._times[spec.name])

    def knobs(self, tensors: Sequence[MethodTensor], tasks: int) -> list[float]:
        """See `Method`: of each task the ratio of the sums over tensors of mean magnitudes, before and after."""
        own, kept = np.zeros(tasks), np.zeros(tasks)
        for tensor in tensors:
            if isinstance(tensor, _EmrTensor):
                own[tensor.numbers] += tensor.times * tensor.own / max(tensor.elements, 1)
                kept[tensor.numbers] += tensor.times * tensor.kept / max(tensor.elements, 1)
        return [float(a / b) if b else 1.0 for a, b in zip(own, kept, strict=True)]


class _EmrTensor:
    """`own`, `kept`: for each expert the sums of |tau| and of |vector * mask|, in f64."""

    def __init__(self, elements: int, numbers: Sequence[int], times: int) -> None:
        self.elements = elements
        self.times = times
        self.numbers = list(numbers)
        self.own, self.kept = np.zeros(len(numbers)), np.zeros(len(numbers))

    def block(
        self, base: Floats, tuned: Sequence[Floats], taus: Sequence[Floats]
    ) -> tuple[Floats, list[NDArray[np.uint8]]]:
        # A mean may be 0 where the sum is not: the division counts.
        above = total_of(taus) / base.dtype.type(len(taus)) > 0
        flag: Floats = np.where(above, base.dtype.type(1), base.dtype.type(-1))
        masks = [tau * flag > 0 for tau in taus]
        largest = np.zeros_like(base)
        for tau, mask in zip(taus, masks, strict=True):
            np.maximum(largest, np.abs(tau), out=largest, where=mask)
        for number, (tau, mask) in enumerate(zip(taus, masks, strict=True)):
            self.own[number] += np.abs(tau).sum(dtype=np.float64)
            self.kept[number] += largest[mask].sum(dtype=np.float64)
        return largest * flag, list(map(_packed, masks))
