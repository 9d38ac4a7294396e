"""Which elements the masks of several tasks share: the statistics that people look at before they merge tasks.

    overlap          a file -> Overlap
    Overlap          the chosen tasks, every tensor that is counted, and sums over them
    TensorOverlap    one tensor: elements by the number of tasks in which they are active, and pairs of tasks

Masks stay packed, 64 elements a word. How many tasks an element is active in is counted for a word at once, in bit-sliced
counters (one bit plane for each binary digit), and so is what two masks have in common (`and`, then population count).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES
from tswitch_format._parallel import ordered_map, thread_count
from tswitch_format.container.reader import Container, Entry
from tswitch_format.errors import OptionError, TswError
from tswitch_format.switch.file import SwitchFile

Progress = Callable[[int, int], None]
Counts = NDArray[np.int64]
Words = NDArray[np.uint64]

# Words that are counted at a time, so that the masks of some 20 tasks stay in a core's cache: 64 KiB a mask.
# benchmarks/results/overlap.md has other sizes.
_BLOCK = 8192
_MOST = (1 << 63) - 1


@dataclass(frozen=True, eq=False)
class TensorOverlap:
    """One tensor. `shared` i64[T + 1]: number of elements that are active in exactly 0, 1, ... T tasks. `pairs` i64[T, T]:
    number of elements that are active in both tasks; on the diagonal, in the one.
    """

    name: str
    elements: int
    shared: Counts
    pairs: Counts


@dataclass(frozen=True, eq=False)
class Overlap:
    """Masks of `tasks`, T of them, compared. `tensors` are those that are counted, in the file's order. `whole`: tensors that
    tasks do not mask but store whole, add or remove, by name, with the names of these tasks.
    """

    tasks: Sequence[str]
    tensors: Sequence[TensorOverlap]
    whole: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def elements(self) -> int:
        """Number of elements of all tensors that are counted."""
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def shared(self) -> Counts:
        """Number of elements that are active in exactly 0, 1, ... T tasks: i64[T + 1]."""
        total = np.zeros(len(self.tasks) + 1, np.int64)
        for tensor in self.tensors:
            total += tensor.shared
        return total

    @cached_property
    def pairs(self) -> Counts:
        """Number of elements that are active in both tasks, on the diagonal in the one: i64[T, T]."""
        total = np.zeros((len(self.tasks), len(self.tasks)), np.int64)
        for tensor in self.tensors:
            total += tensor.pairs
        return total

    @property
    def catastrophic(self) -> int:
        """Number of elements that are active in no task."""
        return int(self.shared[0])

    @property
    def selfish(self) -> int:
        """Number of elements that are active in exactly one task."""
        return int(self.shared[1])

    @property
    def active(self) -> Counts:
        """Number of elements that are active in each task: i64[T]."""
        return self.pairs.diagonal()

    @property
    def jaccard(self) -> NDArray[np.float64]:
        """Share of the elements that are active in either task which are active in both: f64[T, T]. 0 where there are none."""
        both = self.pairs
        either = self.active[:, None] + self.active[None, :] - both
        share: NDArray[np.float64] = np.divide(both, either, out=np.zeros(both.shape), where=either > 0)
        return share


def overlap(
    file: str | PathLike[str] | SwitchFile,
    tasks: Sequence[str] | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Overlap:
    """Compare the masks of `tasks`, in that order, or of all tasks of the file.

    Counted are the elements of the base's float tensors, also those that no task changes: these are active in 0 tasks. A task
    that stores a tensor whole or removes it has no mask there; such tensors are in `whole`, with their tasks. They are counted
    only where another task masks them, and then as not active in the former. A tied tensor is counted once.

    Reads masks only, and none where the index says enough: of chunks in which at most one task has active elements. Memory:
    packed masks of one chunk of all tasks (128 KiB each) for each thread, and 8 T^2 bytes for each tensor with masks.

    `progress` gets chunks done and in all. Raises OptionError, UnknownNameError, FormatError, or TswError for a file that
    cannot be read.
    """
    count = thread_count(threads)
    if isinstance(file, SwitchFile):
        return _overlap(file, tasks, count, progress)
    with SwitchFile(file) as opened:
        return _overlap(opened, tasks, count, progress)


def _overlap(file: SwitchFile, tasks: Sequence[str] | None, threads: int, progress: Progress | None) -> Overlap:
    names = _chosen(file, tasks)
    masks, whole = _sorted_entries(file.container, names)
    counted = [_Tensor(file, number, len(names), masks.get(number, {})) for number in _counted(file, masks, whole)]
    total = sum(tensor.elements for tensor in counted)
    if total > _MOST:
        raise TswError(
            f"{file.path}: expected a base of at most {_MOST} elements, found {total}; check where the file comes from"
        )
    chunks = sum(len(tensor.chunks) for tensor in counted)
    jobs = ((tensor, chunk) for tensor in counted for chunk in tensor.chunks)
    for done, (tensor, part) in enumerate(ordered_map(lambda job: (job[0], job[0].count(job[1])), jobs, threads), 1):
        tensor.add(part)
        if progress:
            progress(done, chunks)
    return Overlap(names, [tensor.finish() for tensor in counted], whole)


def _chosen(file: SwitchFile, tasks: Sequence[str] | None) -> list[str]:
    """Names of the tasks to compare, checked."""
    if isinstance(tasks, str):
        raise OptionError(f"tasks: expected a list of names, found the name {tasks!r}; write [{tasks!r}]")
    names = file.tasks if tasks is None else list(tasks)
    for name in names:
        file.container.find(name)
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise OptionError(f"tasks: expected each task once, found {twice!r} twice; leave one out")
    if not names:
        found = "an empty list" if tasks is not None else "a file without tasks"
        raise OptionError(f"{file.path}: expected at least one task whose masks to count, found {found}; name one")
    return names


def _sorted_entries(
    container: Container, tasks: Sequence[str]
) -> tuple[dict[int, dict[int, Entry]], dict[str, list[str]]]:
    """Entries with a mask, by tensor number and place of the task; and names of the other entries with their tasks."""
    masks: dict[int, dict[int, Entry]] = {}
    whole: dict[str, list[str]] = {}
    for place, task in enumerate(tasks):
        for entry in container.entries(container.find(task)):
            if entry.kind in lay.SWITCH_KINDS:
                masks.setdefault(entry.tensor, {})[place] = entry
            else:
                changed = whole.setdefault(container.index.name(entry.tensor), [])
                if changed[-1:] != [task]:  # two tensors that are added may have one name
                    changed.append(task)
    return masks, {name: whole[name] for name in sorted(whole)}


def _counted(file: SwitchFile, masks: Mapping[int, object], whole: Mapping[str, object]) -> Iterator[int]:
    """Numbers of the tensors to count: those with a mask, and float ones that no task touches."""
    base = file.base.tensor_list
    for number, (name, dtype) in enumerate(zip(base.names, base.records["dtype"].tolist(), strict=True)):
        if number in masks or (name not in whole and DTYPES[dtype].is_float):
            yield number


@dataclass(frozen=True, slots=True)
class _Part:
    """Counts of one chunk. `places`: tasks with active elements there, to which `pairs` refers."""

    shared: Counts
    places: Sequence[int]
    pairs: Counts


class _Tensor:
    """One tensor while it is counted. `count` may be called from several threads at once, `add` may not."""

    def __init__(self, file: SwitchFile, number: int, tasks: int, entries: Mapping[int, Entry]) -> None:
        self._name = file.base.tensor_list.names[number]
        self.elements = int(file.base.tensor_list.elements[number])
        self._entries = entries
        self._shared = np.zeros(tasks + 1, np.int64)
        self._pairs = np.zeros((tasks, tasks), np.int64) if entries else np.broadcast_to(np.int64(0), (tasks, tasks))
        if not entries:  # there may be a million, and they take no matrix each
            self._shared[0] = self.elements

    @property
    def chunks(self) -> range:
        """Numbers of the chunks to count."""
        return range(lay.chunks_of(self.elements) if self._entries else 0)

    def count(self, chunk: int) -> _Part:
        """Counts of one chunk."""
        n = min(lay.CHUNK, self.elements - chunk * lay.CHUNK)
        counts = {place: entry.mask_count(chunk) for place, entry in self._entries.items()}
        places = [place for place, ones in counts.items() if ones]
        ones = np.array([counts[place] for place in places], np.int64)
        if len(places) < 2:
            active = int(ones.sum())
            return _Part(np.array([n - active, active], np.int64), places, np.diag(ones))
        words = np.zeros((len(places), -(-n // 64)), np.uint64)
        for row, place in zip(words, places, strict=True):
            packed = self._entries[place].mask_packed(chunk)
            row.view(np.uint8)[: packed.size] = packed
        shared, pairs = count_words(words, n)
        np.fill_diagonal(pairs, ones)
        return _Part(shared, places, pairs)

    def add(self, part: _Part) -> None:
        """Add the counts of a chunk."""
        self._shared[: part.shared.size] += part.shared
        self._pairs[np.ix_(part.places, part.places)] += part.pairs

    def finish(self) -> TensorOverlap:
        """What was counted."""
        return TensorOverlap(self._name, self.elements, self._shared, self._pairs)


def count_words(masks: Words, n: int, block: int = _BLOCK) -> tuple[Counts, Counts]:
    """Masks of `n` elements as words, [L, W]: elements in exactly 0 ... L of them, and in both of any two, [L, L].

    The diagonal of the latter is 0: how many ones each has is known.
    """
    subsets = np.zeros(1 << len(masks).bit_length(), np.int64)
    pairs = np.zeros((len(masks), len(masks)), np.int64)
    for start in range(0, masks.shape[1], block):
        part = np.ascontiguousarray(masks[:, start : start + block])
        _add_subsets(subsets, _digits(part))
        for a in range(len(part) - 1):
            pairs[a, a + 1 :] += _ones(part[a + 1 :] & part[a])
    subsets[0] = n
    # An element whose count is j is in the planes of all of j's digits, and so in all subsets of them. From the highest set
    # down: what is in a set of planes and in one more is not in that set alone.
    for digit in range(len(masks).bit_length()):
        halves = subsets.reshape(-1, 2, 1 << digit)
        halves[:, 0] -= halves[:, 1]
    return subsets[: len(masks) + 1], pairs + pairs.T


def _digits(masks: Words) -> list[Words]:
    """For each element, how many of the masks have it, as binary digits: plane k has digit k of all counts."""
    planes: list[Words] = []
    for number, mask in enumerate(masks, 1):
        carry = mask
        for k, plane in enumerate(planes):
            planes[k] = plane ^ carry
            carry = plane & carry
        if number & (number - 1) == 0:  # the count may now have one digit more
            planes.append(carry)
    return planes


def _add_subsets(subsets: Counts, planes: Sequence[Words]) -> None:
    """Add to `subsets[s]`, for every set s > 0 of planes (a bit each), the number of elements that are in all of them."""

    def visit(members: int, first: int, common: Words | None) -> None:
        for k in range(first, len(planes)):
            both = planes[k] if common is None else common & planes[k]
            ones = int(_ones(both))
            if ones:  # else no larger set has any
                subsets[members | 1 << k] += ones
                visit(members | 1 << k, k + 1, both)

    visit(0, 0, None)


def _ones(words: Words) -> NDArray[np.uint32]:
    """Number of ones along the last axis of a block."""
    counted: NDArray[np.uint32] = np.bitwise_count(words).sum(axis=-1, dtype=np.uint32)  # faster than to 64 bits
    return counted
