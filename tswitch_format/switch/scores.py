"""External scores for selection: which tensors of a checkpoint are whose scores, and what the recipe says of them.

Tensors without scores are selected by magnitude, each by itself: buffers, for one, have no gradient to be scored by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tswitch_format import _layout as lay
from tswitch_format.checkpoint import CheckpointReader
from tswitch_format.errors import CheckpointError, near_hint
from tswitch_format.switch.base import stored_name
from tswitch_format.switch.pairing import Pairing

METHOD_KEY = "score_method"  # in the metadata of a file of scores, and in the recipe (spec section 12)


@dataclass(frozen=True, slots=True)
class Scores:
    """A checkpoint of scores; `names`: name of a pair -> name in `reader.specs`, for the pairs that have scores."""

    reader: CheckpointReader
    names: Mapping[str, str]

    @classmethod
    def match(
        cls, reader: CheckpointReader, base: CheckpointReader, tuned: CheckpointReader, pairing: Pairing
    ) -> Scores:
        """Find the scores of each pair that may become a switch.

        Raises CheckpointError where scores are of no tensor of either side, have another shape, or are no floats, and where
        there are none.
        """
        known = {name for side in (base, tuned) for name in (*side.specs, *side.aliases)}
        tied = _by_target(reader.aliases)
        for name in reader.specs:
            if name not in known and not known.intersection(tied.get(name, ())):
                raise CheckpointError(
                    f"{reader.location}: scores of {name!r}: expected a tensor of that name in the base or the expert, found "
                    f"none{near_hint(name, sorted(known))}; make the scores with this base, or rename them"
                )
        switches = [pair for pair in pairing.pairs if pair.kind is lay.Kind.TERNARY and pair.base is not None]
        pairs = {pair.name for pair in pairing.pairs}
        base_ties, tuned_ties = _by_target(pairing.aliases), _by_target(tuned.aliases)
        names: dict[str, str] = {}
        for pair in switches:
            # Ties that only the expert has may be tensors of their own in the base.
            of_tuned = {pair.tuned_stored, *tuned_ties.get(pair.tuned_stored, ())} - pairs
            for name in (pair.name, *base_ties.get(pair.name, ()), *sorted(of_tuned)):
                stored = stored_name(reader, name)
                if stored is not None:
                    names[pair.name] = stored
                    break
        for pair in switches:
            found = reader.specs.get(names.get(pair.name, ""))
            if pair.base is not None and found and (found.shape != pair.base.shape or not found.dtype.is_float):
                raise CheckpointError(
                    f"{reader.location}: scores of {pair.name!r}: expected a float tensor {list(pair.base.shape)}, "
                    f"found {found}; make the scores with this base and expert"
                )
        if switches and not names:
            raise CheckpointError(
                f"{reader.location}: scores of {switches[0].name!r}, or of another of the {len(switches)} float tensors: "
                "expected some, found none; give a checkpoint with a tensor of scores under the name of each"
            )
        return cls(reader, names)

    def of(self, name: str) -> tuple[CheckpointReader, str] | None:
        """Where the scores of a pair are, or None."""
        return (self.reader, self.names[name]) if name in self.names else None

    def recipe(self) -> dict[str, str]:
        """Where the scores came from, and what they are as their file says."""
        found = {"score": Path(self.reader.location).name}
        if METHOD_KEY in self.reader.metadata:
            found[METHOD_KEY] = self.reader.metadata[METHOD_KEY]
        return found


def _by_target(aliases: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for alias, target in aliases.items():
        found.setdefault(target, []).append(alias)
    return found
