"""Base and expert by name: which tensors become switches, which are dense or removed, which do not fit.

Tensors pair by name, never by position (design section 5). All that does not fit is found before anything is read.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.container.names import name_problem
from tswitch_format.container.writer import in_file_order
from tswitch_format.errors import CheckpointError, OptionError
from tswitch_format.switch.options import PackOptions

_BLOCK = 1 << 21  # bytes


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor. `base` and `tuned`: its specs on both sides, None where it is missing; `base_stored`, `tuned_stored`: the
    names under which the readers have it; `kind`: TERNARY is a candidate, which may turn out to be unchanged."""

    name: str
    base: TensorSpec | None
    tuned: TensorSpec | None
    base_stored: str
    tuned_stored: str
    kind: lay.Kind

    @property
    def added(self) -> bool:
        """Whether the tensor that the entry makes is not one of the base's, with its dtype and shape."""
        if self.base is None or self.tuned is None:
            return self.base is None
        return self.kind is lay.Kind.DENSE and (self.base.dtype, self.base.shape) != (
            self.tuned.dtype,
            self.tuned.shape,
        )


@dataclass(frozen=True, slots=True)
class Pairing:
    """All pairs in the order of their entries: tensors of the base, then added ones, which are also those that have another
    dtype or shape than in the base. `aliases`: alias -> name of a base tensor."""

    pairs: Sequence[Pair]
    aliases: dict[str, str]

    @property
    def base(self) -> list[TensorSpec]:
        """The base's tensors in the file's order."""
        specs = {pair.name: pair.base for pair in self.pairs if pair.base is not None}
        return [specs[name] for name in in_file_order(specs)]


def pair_checkpoints(base: CheckpointReader, tuned: CheckpointReader, options: PackOptions) -> Pairing:
    """Pair two checkpoints. Raises CheckpointError that names every tensor that does not fit (the first five)."""
    tuned_names = {**{name: name for name in tuned.specs}, **tuned.aliases}
    # A name that the base ties and the expert does not is a tensor of its own.
    aliases = {
        alias: target
        for alias, target in base.aliases.items()
        if alias not in tuned_names or tuned_names[alias] == tuned_names.get(target, tuned_names[alias])
    }
    base_names = {name: name for name in base.specs} | {a: t for a, t in base.aliases.items() if a not in aliases}
    pairs: list[Pair] = []
    problems: list[str] = []
    for name in in_file_order(base_names):
        stored = tuned_names.get(name) or next(
            (tuned_names[alias] for alias, target in aliases.items() if target == name and alias in tuned_names), None
        )
        _pair(name, base_names[name], stored, base, tuned, options, pairs, problems)
    for pattern in options.dense:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in (*base_names, *base.aliases, *tuned_names)):
            raise OptionError(f"dense: pattern {pattern!r} matches none of the tensors; correct it or leave it out")
    paired = {pair.tuned_stored for pair in pairs}
    # Further names of tensors that are paired already are ties that the base does not list: they follow their tensor.
    for name in in_file_order(set(tuned.specs) - paired):
        if not (options.dense_mismatch or _matches(name, options)):
            problems.append(f"{name!r} is in the expert only")
        pairs.append(Pair(name, None, tuned.specs[name], "", name, lay.Kind.DENSE))
    for pair in pairs:
        wrong = name_problem(pair.name)
        if wrong:
            raise CheckpointError(f"tensor {pair.name[:80]!r}: {wrong}; rename it, a .tsw file cannot hold it")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{tuned.location} does not fit {base.location}: {'; '.join(problems[:5])}{more}; "
            "give the right base, or store such tensors whole with --dense PATTERN or --on-mismatch dense (which also records "
            "that tensors of the base are missing)"
        )
    ordered = [p for p in pairs if not p.added] + sorted((p for p in pairs if p.added), key=lambda p: p.name.encode())
    return Pairing(ordered, aliases)


def _pair(
    name: str,
    base_stored: str,
    stored: str | None,
    base: CheckpointReader,
    tuned: CheckpointReader,
    options: PackOptions,
    pairs: list[Pair],
    problems: list[str],
) -> None:
    spec = TensorSpec(name, base.specs[base_stored].dtype, base.specs[base_stored].shape)
    if stored is None:
        if not options.dense_mismatch:
            problems.append(f"{name!r} is in the base only")
        pairs.append(Pair(name, spec, None, base_stored, "", lay.Kind.REMOVED))
        return
    found = TensorSpec(name, tuned.specs[stored].dtype, tuned.specs[stored].shape)
    named = any(
        _matches(n, options) for n in (name, *(a for a, target in base.aliases.items() if target == base_stored))
    )
    allowed = options.dense_mismatch or named
    kind = lay.Kind.DENSE
    if spec.shape != found.shape:
        if not allowed:
            problems.append(f"{name!r} is {spec} in the base and {found} in the expert")
    elif spec.dtype.is_float and found.dtype.is_float:
        if not named and not (options.paper and spec.shape == ()):  # the authors keep 0-d tensors whole
            kind = lay.Kind.TERNARY
    elif not allowed:
        if spec.dtype is not found.dtype:
            problems.append(f"{name!r} is {spec} in the base and {found} in the expert")
        elif not same_bytes(base, base_stored, tuned, stored, spec.nbytes):
            problems.append(f"{name!r} ({spec}) is not a float tensor and differs")
    pairs.append(Pair(name, spec, found, base_stored, stored, kind))


def same_bytes(a: CheckpointReader, a_name: str, b: CheckpointReader, b_name: str, nbytes: int) -> bool:
    """Whether two tensors have the same bytes."""
    left, right = np.empty(min(nbytes, _BLOCK), np.uint8), np.empty(min(nbytes, _BLOCK), np.uint8)
    for start in range(0, nbytes, _BLOCK):
        size = min(_BLOCK, nbytes - start)
        a.read_into(a_name, start, left[:size])
        b.read_into(b_name, start, right[:size])
        if not np.array_equal(left[:size], right[:size]):
            return False
    return True


def _matches(name: str, options: PackOptions) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in options.dense)
