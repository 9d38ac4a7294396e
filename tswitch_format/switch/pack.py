"""base + expert -> file, in streamed passes over both: memory is the largest tensor's active elements a thread, and what one
threshold for all tensors needs.

Tensors are the unit of the threads' work. Their results are written in the file's order, so the bytes do not depend on
the number of threads.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format._optional import start
from tswitch_format._parallel import ordered_map, thread_count
from tswitch_format._version import WRITER
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader, borrow_checkpoint
from tswitch_format.container.index import Index
from tswitch_format.container.segments import EncodedEntry
from tswitch_format.container.tensors import Digests, TensorList
from tswitch_format.container.writer import ContainerWriter
from tswitch_format.errors import CheckpointError, NonFiniteError, OptionError, OutputError
from tswitch_format.switch import knob
from tswitch_format.switch.base import base_digests
from tswitch_format.switch.blocks import BlockPool
from tswitch_format.switch.encode import encode_dense, encode_removed, encode_ternary
from tswitch_format.switch.options import DEFAULT_KNOB_DTYPE, Amount, PackOptions
from tswitch_format.switch.pairing import Pair, Pairing, pair_checkpoints, same_bytes
from tswitch_format.switch.scores import Scores
from tswitch_format.switch.select import Rule, select_tensor
from tswitch_format.switch.spectral import WHOLE, Spectrum, spectrum_of
from tswitch_format.switch.survivors import Statistics
from tswitch_format.switch.task_vector import BLOCK, TaskVector
from tswitch_format.switch.threshold import Common, common_threshold

Progress = Callable[[int, int], None]

_SIZE_TOLERANCE = 0.98  # a target size is met between this share of it and itself
_SIZE_ROUNDS = 16
_SPECTRUM_READS = 2
_COMMON = ("spectral", "global")  # select by one threshold for all tensors, which takes a read

# Elements from which on compiled loops pay for importing numba, about half a second: they save most of the time of `spectral`,
# and little of the other ways' (decision 16). Where it is there already they always do.
_COMPILED_FROM = {"spectral": 1 << 24}
_COMPILED_FROM_ELSE = 1 << 28


@dataclass(frozen=True, slots=True)
class PackResult:
    """What was written.

    `density`: share of active elements in all switches; `percent_of_fp32`: the file's bytes in % of 4 bytes for each element
    of the base; `switches`, `dense`, `removed`: number of entries of these kinds; `unchanged`: of tensors without one.
    """

    path: Path
    file_bytes: int
    content_id: str
    density: float
    percent_of_fp32: float
    switches: int
    dense: int
    removed: int
    unchanged: int


def pack(
    base: Any,
    finetuned: Any,
    path: str | PathLike[str],
    *,
    task: str = "task",
    density: float | None = None,
    discard: float | None = None,
    target_size: float | None = None,
    select: str | None = None,
    knob: str | None = None,
    knob_per: str | None = None,
    knob_dtype: str = DEFAULT_KNOB_DTYPE,
    preset: str | None = None,
    score: Any = None,
    dense: Sequence[str] = (),
    on_mismatch: str = "error",
    nonfinite: str = "error",
    profile: str = "archive",
    base_id: str | None = None,
    base_revision: str | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PackResult:
    """Write to `path` what `finetuned` changes in `base`, as task `task`.

    `base`, `finetuned`: paths, mappings of arrays, or nn.Modules.
    How much stays: `density` (share of all elements, default 0.015), `discard` (share of the non-zero differences that goes)
    or `target_size` (file size in % of fp32, met within 2 % from below; packs several times).
    What stays: `select` "spectral" (default: what carries the directions in which a tensor changes most, by one threshold for
    all matrices, and vectors whole; spectral.py), "tensor", "tensor-signed" or "global" (the largest magnitudes). With the
    checkpoint `score` the highest scores stay instead, what has the score 0 never does, and a tensor without scores is
    selected by magnitude, by itself also where `select` is "global" (`tswitch_format.torch.importance` makes scores).
    How it is scaled: `knob`, `knob_per`, `knob_dtype` (knob.py; u4: 16 levels). `preset="paper"`: the T-Switch authors' rule
    exactly. `dense`: patterns of names to store whole. `on_mismatch="dense"`: store whole (or as removed) what does not pair.
    `nonfinite="dense"`: store tensors with NaN or infinity whole. `progress` gets bytes done and in all.

    Raises OptionError, CheckpointError (NonFiniteError), OutputError; then nothing is written.
    """
    options = PackOptions.of(
        density=density,
        discard=discard,
        target_size=target_size,
        select=select,
        knob=knob,
        knob_per=knob_per,
        knob_dtype=knob_dtype,
        preset=preset,
        dense=dense,
        on_mismatch=on_mismatch,
        nonfinite=nonfinite,
        profile=profile,
        scored=score is not None,
    )
    count = thread_count(threads)
    path = Path(path)
    with contextlib.ExitStack() as opened:
        sources = (base, finetuned, *([] if score is None else [score]))
        readers = [opened.enter_context(borrow_checkpoint(source)) for source in sources]
        scores = readers[2] if score is not None else None
        check_output(path, (file for reader in readers for file in reader.paths))
        pairing = pair_checkpoints(readers[0], readers[1], options)
        matched = None if scores is None else Scores.match(scores, readers[0], readers[1], pairing)
        job = _Job(readers[0], readers[1], matched, pairing, options, count, progress)
        header = Index(
            TensorList.build(pairing.base),
            profile=options.profile,
            aliases=job.alias_numbers(),
            base_id=base_id,
            base_revision=base_revision,
            metadata=dict(metadata or {}),
            writer=WRITER,
        )
        return job.run(path, task, header)


class _Job:
    """One pack: the checkpoints, and what is known of them."""

    def __init__(
        self,
        base: CheckpointReader,
        tuned: CheckpointReader,
        scores: Scores | None,
        pairing: Pairing,
        options: PackOptions,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.base = base
        self.tuned = tuned
        self.scores = scores
        self.pairing = pairing
        self.options = options
        self.threads = threads
        self.progress = progress
        self.pool = BlockPool(BLOCK, self._loops())
        self._spectra: dict[str, Spectrum] = {}
        self._done = self._total = 0

    def _loops(self) -> ModuleType | None:
        """Compiled loops, if they are there and there is work for them."""
        elements = sum(spec.elements for spec in self.pairing.base)
        if "numba" not in sys.modules and elements < _COMPILED_FROM.get(self.options.select, _COMPILED_FROM_ELSE):
            return None
        return start("tswitch_format.switch.compiled_pack", "numba", instead="NumPy")

    def alias_numbers(self) -> dict[str, int]:
        """Aliases as the index keeps them."""
        numbers = {spec.name: number for number, spec in enumerate(self.pairing.base)}
        return {alias: numbers[target] for alias, target in self.pairing.aliases.items()}

    def run(self, path: Path, task: str, header: Index) -> PackResult:
        """Pack once, or until the size is met."""
        options = self.options
        if options.target_size is None:
            result = self._pack(path, task, header, Amount(options.density, options.discard), lambda size: True)
            if result is None:  # cannot be: every size is accepted
                raise OutputError(f"{path}: nothing was written")
            return result
        return self._meet_size(path, task, header, options.target_size)

    def _meet_size(self, path: Path, task: str, header: Index, percent: float) -> PackResult:
        """Search the density whose file has `percent` of fp32: the size grows with it, so a bracket closes in."""
        params = sum(spec.elements for spec in self.pairing.base)
        target = percent / 100 * 4 * params
        low, high = 0.0, 1.0  # too small or just right; too large, or 1.0 and not tried yet
        density = min(1.0, _density_of(8 * target / max(params, 1)))
        sizes: list[int] = []

        def accept(size: int) -> bool:
            sizes.append(size)
            return size <= target and (size >= _SIZE_TOLERANCE * target or density == 1.0)

        for _ in range(_SIZE_ROUNDS):
            result = self._pack(path, task, header, Amount(density, None), accept)
            if result is not None:
                return result
            if sizes[-1] <= target:
                low = density
            else:
                high = density
            # Size is nearly proportional to density; aim at the middle of the tolerance, inside the bracket.
            aim = min(1.0, density * 0.99 * target / sizes[-1])
            density = aim if low < aim < high or (aim == high == 1.0 and low < 1.0) else (low + high) / 2
            if high - low < 1e-3 * high and low:
                break
        if not low:
            smaller = "--select tensor" if self.options.select == "spectral" else "--knob-per tensor"
            raise OptionError(
                f"target-size {percent} % of fp32 is {int(target)} bytes: expected at least what the smallest file takes, "
                f"{min(sizes)} bytes were needed; ask for more, or use {smaller}"
            )
        result = self._pack(path, task, header, Amount(low, None), lambda size: True)
        if result is None:  # cannot be, as above
            raise OutputError(f"{path}: nothing was written")
        return result

    def _pack(
        self, path: Path, task: str, header: Index, amount: Amount, accept: Callable[[int], bool]
    ) -> PackResult | None:
        """Pack at one amount; None, and no file, where its size is not accepted."""
        rule = Rule(amount, self.options.select == "tensor-signed", self.options.paper)
        digests: dict[str, Digests] = {}
        kinds = dict.fromkeys(lay.Kind, 0)
        active = switched = unchanged = 0
        self._begin_counting()
        with ContainerWriter(path, header) as writer:
            writer.begin_task(
                task,
                recipe=self.options.recipe(amount.density) | (self.scores.recipe() if self.scores else {}),
                checkpoint=dict(self.tuned.metadata),
                metadata={},
            )
            self._find_spectra()
            common = self._threshold(amount)
            made = ordered_map(
                lambda pair: self._encode(pair, rule, common),
                self.pairing.pairs,
                self.threads,
                nbytes=lambda pair: self._most_bytes(pair, rule),
            )
            for pair, (entry, digest) in zip(self.pairing.pairs, made, strict=True):
                if pair.base is not None and digest is not None:
                    digests[pair.name] = digest
                if entry is None:
                    unchanged += 1
                else:
                    writer.add(entry)
                    kinds[entry.kind] += 1
                    if entry.kind is lay.Kind.TERNARY:
                        active += entry.active
                        switched += entry.spec.elements
                self._count(pair)
            specs = self.pairing.base
            size = writer.finish(TensorList.build(specs, [digests[spec.name] for spec in specs]))
            if not accept(size):
                return None
            content_id = writer.commit()
        params = sum(spec.elements for spec in specs)
        return PackResult(
            path,
            size,
            content_id.hex() if content_id else "",
            active / switched if switched else 0.0,
            100 * size / (4 * params) if params else 0.0,
            kinds[lay.Kind.TERNARY],
            kinds[lay.Kind.DENSE],
            kinds[lay.Kind.REMOVED],
            unchanged,
        )

    def _begin_counting(self) -> None:
        """What `progress` is told: bytes of all pairs, as often as they are read."""
        reads = 1 + (self.options.select in _COMMON)
        if self.options.select == "spectral" and not self._spectra:
            reads += _SPECTRUM_READS
        self._done = 0
        self._total = reads * sum(map(_bytes_of, self.pairing.pairs))

    def _count(self, pair: Pair, times: int = 1) -> None:
        """A pair was read."""
        self._done += times * _bytes_of(pair)
        if self.progress:
            self.progress(self._done, self._total)

    def _most_bytes(self, pair: Pair, rule: Rule) -> int:
        """About the most that the encoded entry of a pair takes."""
        spec = pair.tuned or pair.base
        if pair.kind is not lay.Kind.TERNARY or spec is None:
            return spec.nbytes if spec else 0
        share = min(1.0, rule.share())
        bits = 1 + share if self.options.profile == "mapped" else _bits_of(share)
        return int(spec.elements * bits / 8)

    def _vector(self, pair: Pair) -> TaskVector:
        scores = self.scores.of(pair.name) if self.scores else None
        vector = TaskVector(pair, self.base, self.tuned, scores, rounded=self.options.paper, pool=self.pool)
        spectrum = self._spectra.get(pair.name)
        if spectrum is not None:
            vector.select_by(spectrum.keys, spectrum.row_squares, spectrum.column_squares)
        return vector

    def _find_spectra(self) -> None:
        """Of all matrices; once, though `target_size` packs several times."""
        if self.options.select != "spectral" or self._spectra:
            return
        for pair, found in zip(
            self.pairing.pairs, ordered_map(self._spectrum, self.pairing.pairs, self.threads), strict=True
        ):
            if found is not None:
                self._spectra[pair.name] = found
            self._count(pair, _SPECTRUM_READS)

    def _spectrum(self, pair: Pair) -> Spectrum | None:
        return spectrum_of(self._vector(pair)) if pair.kind is lay.Kind.TERNARY else None

    def _compared(self, pair: Pair) -> bool:
        """Whether one threshold selects from it and from other tensors: by spectrum what has one; globally all but magnitudes
        where there are scores."""
        if self.options.select == "spectral":
            return pair.name in self._spectra
        return self.options.select == "global" and (self.scores is None or self.scores.of(pair.name) is not None)

    def _threshold(self, amount: Amount) -> Common | None:
        """Of all tensors that are compared; None where each has its own."""
        if self.options.select not in _COMMON:
            return None
        pairs = [pair for pair in self.pairing.pairs if pair.kind is lay.Kind.TERNARY and self._compared(pair)]
        vectors = [self._vector(pair) for pair in pairs]
        found = common_threshold(vectors, amount, threads=self.threads, tolerant=self.options.dense_nonfinite)
        for pair in self.pairing.pairs:
            self._count(pair)
        return found

    def _encode(self, pair: Pair, rule: Rule, common: Common | None) -> tuple[EncodedEntry | None, Digests | None]:
        """The entry of one pair, None where nothing changes, and the digests of its base tensor."""
        if pair.kind is lay.Kind.TERNARY and (common is None or pair.name not in common.not_finite):
            try:
                return self._encode_switch(pair, rule, common)
            except NonFiniteError:
                if not self.options.dense_nonfinite:
                    raise
        digests = self._digests(pair)
        mapped = self.options.profile == "mapped"
        if pair.kind is lay.Kind.REMOVED and pair.base is not None:
            return encode_removed(pair.base), digests
        if pair.tuned is None:
            return None, digests
        spec = pair.tuned
        same = pair.base is not None and (pair.base.dtype, pair.base.shape) == (spec.dtype, spec.shape)
        if same and same_bytes(self.base, pair.base_stored, self.tuned, pair.tuned_stored, spec.nbytes):
            return None, digests
        return encode_dense(spec, self.tuned, pair.tuned_stored, added=not same, mapped=mapped), digests

    def _digests(self, pair: Pair) -> Digests | None:
        return None if pair.base is None else base_digests(self.base, pair.base, pair.base_stored)

    def _encode_switch(
        self, pair: Pair, rule: Rule, common: Common | None
    ) -> tuple[EncodedEntry | None, Digests | None]:
        if pair.base is None or pair.tuned is None:
            raise CheckpointError(f"tensor {pair.name!r}: expected it on both sides; this is a bug, please report it")
        options = self.options
        vector = self._vector(pair)
        if options.select == "spectral" and _kept_whole(pair):
            rule = Rule(Amount(1.0, None))
        shaped = len(pair.base.shape) > 1 and options.knob_per != "tensor"
        wanted = {"rows": shaped, "columns": shaped and options.knob_per == "row-col"}
        if common is None or not self._compared(pair):
            found = select_tensor(vector, rule, **wanted)
        elif pair.name in common.kept:
            found = vector.pick(common.kept.pop(pair.name), common.threshold, **wanted)
        else:
            found = vector.scan(common.threshold, **wanted, counts=False)
            found.survivors.keep(common.threshold, common.threshold)
        same = pair.base.dtype is pair.tuned.dtype
        if same and found.squares == 0 and not found.survivors.count():
            return None, found.digests
        fitted = self._fit(found, pair)
        survivors = found.survivors
        entry = encode_ternary(
            pair.base,
            pair.tuned.dtype,
            fitted.knob,
            fitted.rows,
            fitted.columns,
            options.knob_dtype.stored,
            (survivors.chunk(number) for number in range(lay.chunks_of(pair.base.elements))),
            mapped=options.profile == "mapped",
        )
        if same and entry.active == 0:
            return None, found.digests  # the common threshold left nothing of it
        return entry, found.digests

    def _fit(self, found: Statistics, pair: Pair) -> knob.FittedKnob:
        if pair.base is None or not found.survivors.count():
            return knob.FittedKnob(np.float32(0))
        options = self.options
        like = pair.base.dtype if options.paper else None
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = knob.fit(found, pair.base.shape, options.knob, options.knob_per, options.knob_dtype, like)
        if not np.isfinite(fitted.knob):
            raise NonFiniteError(
                f"tensor {pair.name!r}: expected differences that a 32-bit knob can scale, found larger ones; "
                "store such tensors whole with --nonfinite dense",
                tensor=pair.name,
            )
        return fitted


def _bytes_of(pair: Pair) -> int:
    return sum(spec.nbytes for spec in (pair.base, pair.tuned) if spec is not None)


def _kept_whole(pair: Pair) -> bool:
    """Whether selection by spectrum leaves nothing out of it."""
    spec = pair.base
    return spec is not None and len(spec.shape) < 2 and spec.elements <= WHOLE


def _bits_of(density: float) -> float:
    """H(p) + p: the least bits an element that a random mask of density p with signs takes."""
    p = density
    return p - sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def _density_of(bits: float) -> float:
    """The density up to 0.5 at which a random mask with signs takes `bits` bits an element."""
    low, high = 0.0, 0.5
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _bits_of(middle) < bits else (low, middle)
    return low
