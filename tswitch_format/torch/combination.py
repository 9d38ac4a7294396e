"""Experts with coefficients -> what happens to each weight (spec section 10, several tasks)."""

from __future__ import annotations

from collections.abc import Sequence

from tswitch_format.errors import OptionError
from tswitch_format.switch.apply import proper_coefficient
from tswitch_format.torch.activation import Change
from tswitch_format.torch.checkpoint import dtype_of_tensor
from tswitch_format.torch.expert import Expert
from tswitch_format.torch.packed import PackedSwitch
from tswitch_format.torch.weights import ModelWeights


def changes(weights: ModelWeights, chosen: Sequence[tuple[str, Expert, float]]) -> list[Change]:
    """The changes that experts (name, expert, coefficient) make together, added in their order.

    Coefficients do not act on dense entries; one of 0 drops the expert's switches. Raises OptionError for a coefficient
    that is not finite, or experts that give one tensor different dense content.
    """
    terms: dict[str, list[tuple[PackedSwitch, float]]] = {}
    labels: dict[str, str] = {}  # who gave a tensor its first term
    dense: dict[str, tuple[str, Expert]] = {}
    for label, expert, coefficient in chosen:
        for name, switch in expert.switches.items():
            dtype = dtype_of_tensor(weights[name]) or switch.base
            proper = proper_coefficient(coefficient, dtype, f"expert {label!r}: tensor {name!r}")
            if proper != 0:
                terms.setdefault(name, []).append((switch, proper))
                labels.setdefault(name, label)
        for name in expert.dense:
            before, other = dense.setdefault(name, (label, expert))
            if other.contents[name] != expert.contents[name]:
                raise _conflict(name, before, label)
    for name in terms.keys() & dense.keys():
        raise _conflict(name, dense[name][0], labels[name])
    matrices = {name: matrix for _, expert, _ in chosen for name, matrix in expert.matrices.items()}
    made = [Change(name, weights[name], matrices[name], found) for name, found in terms.items()]
    whole = [
        Change(name, weights[name], matrices[name], dense=expert.dense[name]) for name, (_, expert) in dense.items()
    ]
    return made + whole


def _conflict(name: str, one: str, other: str) -> OptionError:
    return OptionError(
        f"tensor {name!r}: experts {one!r} and {other!r} give it different dense content; activate them one by one [TSW-903]"
    )
