"""Several experts of one base, read beside it: what `multitask.py` makes vectors and masks of.

    Experts    which tensors each expert has as floats, which are to be stored whole; reads blocks of all of them at once
    blocks     a tensor in blocks that fit the cache

A tensor pairs with the base's by name, as in `pack`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format._closing import Closing
from tswitch_format._dtypes import DType, Floats, compute_dtype, to_float
from tswitch_format.checkpoint import CheckpointReader, TensorSpec, borrow_checkpoint
from tswitch_format.errors import NonFiniteError, OptionError
from tswitch_format.switch.options import PackOptions
from tswitch_format.switch.pairing import Pair, pair_checkpoints, same_bytes

_BLOCK = 1 << 16  # elements: with 20 experts, weights, task vectors and masks of a block take 12 MB


@dataclass(frozen=True, slots=True)
class Term:
    """An expert's side of one tensor: which expert, and where it has it."""

    number: int
    reader: CheckpointReader
    stored: str
    dtype: DType


class Experts(Closing):
    """The base, the experts, and how their tensors pair.

    `names`: the tasks. `terms`: for each float tensor of the base, the experts that have it as one of floats, in order.
    `dense`: for each task what is to be stored whole, as `GivenTask.dense` has it. `times`: how often a state dict has each
    tensor, which is once for each of its names.
    """

    def __init__(self, base: Any, experts: Mapping[str, Any], dense: Sequence[str], on_mismatch: str) -> None:
        if not experts:
            raise OptionError("experts: expected at least one, found none")
        options = PackOptions.of(dense=dense, on_mismatch=on_mismatch)
        self.names = list(experts)
        self.terms: dict[str, list[Term]] = {}
        self.dense: dict[str, dict[str, tuple[CheckpointReader, str]]] = {name: {} for name in experts}
        with contextlib.ExitStack() as opened:
            self.base = opened.enter_context(borrow_checkpoint(base))
            self.readers = [opened.enter_context(borrow_checkpoint(expert)) for expert in experts.values()]
            for number, reader in enumerate(self.readers):
                self._pair(number, reader, options)
            self.times = Counter([*self.base.specs, *self.base.aliases.values()])
            self._opened = opened.pop_all()

    def _pair(self, number: int, reader: CheckpointReader, options: PackOptions) -> None:
        pairing = pair_checkpoints(self.base, reader, options)
        for alias in self.base.aliases.keys() - pairing.aliases.keys():
            raise OptionError(
                f"{reader.location}: tensor {alias!r} is tied in the base and one of its own here; expected experts that tie "
                "what the base ties"
            )
        for pair in pairing.pairs:
            if pair.tuned is None:
                raise OptionError(
                    f"{reader.location}: expected tensor {pair.name!r}, which the base has, found none; 'tsw pack' records that"
                )
            if pair.kind is lay.Kind.TERNARY:
                term = Term(number, reader, pair.tuned_stored, pair.tuned.dtype)
                self.terms.setdefault(pair.base_stored, []).append(term)
            elif not self._same(pair, reader):
                self.dense[self.names[number]][pair.name] = (reader, pair.tuned_stored)

    def _same(self, pair: Pair, reader: CheckpointReader) -> bool:
        """Whether a tensor that is no switch equals the base's."""
        if pair.added or pair.base is None:
            return False
        return same_bytes(self.base, pair.base_stored, reader, pair.tuned_stored, pair.base.nbytes)

    def vectors(self, spec: TensorSpec, start: int, count: int) -> tuple[Floats, list[Floats], list[Floats]]:
        """Elements of the base, of each expert that has the tensor, and their differences. Raises NonFiniteError."""
        kind = compute_dtype(spec.dtype)
        base = _read(self.base, spec.name, spec.dtype, start, count, kind)
        tuned = [_read(t.reader, t.stored, t.dtype, start, count, kind) for t in self.terms[spec.name]]
        with np.errstate(invalid="ignore", over="ignore"):
            taus = [expert - base for expert in tuned]
        for term, tau in zip(self.terms[spec.name], taus, strict=True):
            if not np.isfinite(tau).all():
                raise NonFiniteError(
                    f"{self.base.location} and {term.reader.location}: tensor {spec.name!r}: expected finite weights and "
                    f"differences, found NaN or infinity among elements {start} to {start + count}; repair the checkpoint, or "
                    "store it whole with --dense",
                    tensor=spec.name,
                )
        return base, tuned, taus

    def close(self) -> None:
        """Close all checkpoints that were opened here."""
        self._opened.close()


def _read(reader: CheckpointReader, name: str, dtype: DType, start: int, count: int, kind: np.dtype[Any]) -> Floats:
    raw = np.empty(dtype.nbytes(count), np.uint8)
    reader.read_into(name, dtype.nbytes(start), raw)
    out: Floats = np.empty(count, kind)
    to_float(raw.view(dtype.storage), dtype, out)
    return out


def blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Start and length of each block."""
    for at in range(start, stop, _BLOCK):
        yield at, min(_BLOCK, stop - at)
