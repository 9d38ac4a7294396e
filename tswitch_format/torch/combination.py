"""Experts with coefficients -> what happens to each weight (spec section 10, several tasks, with a table or without).

Tint          a table of coefficients, and whose layers go with it
Combination   what a bank can be made
shares        a combination -> what of each expert counts
changes       that -> changes of weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tswitch_format.errors import OptionError
from tswitch_format.switch.apply import proper_coefficient
from tswitch_format.switch.tables import CoefficientTable, Share, shares_of
from tswitch_format.torch.activation import Change
from tswitch_format.torch.checkpoint import dtype_of_tensor
from tswitch_format.torch.expert import Expert
from tswitch_format.torch.packed import PackedSwitch
from tswitch_format.torch.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class Tint:
    """Experts added up by a table (Model Tinting, arXiv 2412.19098): each weight with its own coefficients of all of them.

    The experts of a bank have the names of the table's tasks. `layers`: the one expert whose own tensors count, such as its
    head, with a column or not; None for those of all columns, which must agree. Raises OptionError for other types.
    """

    table: CoefficientTable
    layers: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.table, CoefficientTable):
            raise OptionError(
                f"tint: expected a CoefficientTable, found {type(self.table).__name__}; open(path).tables has those of a file"
            )
        if not isinstance(self.layers, str | None):
            raise OptionError(f"tint: layers: expected the name of an expert, found {self.layers!r}")


Combination = dict[str, float] | Tint


def shares(combination: Combination) -> list[Share]:
    """What of each expert counts, in the order in which they are added."""
    if isinstance(combination, Tint):
        return shares_of(combination.table, combination.layers)
    return [Share(name, coefficient) for name, coefficient in combination.items()]


def same(one: Combination, other: Combination) -> bool:
    """Whether two combinations give the same bits for sure: the order counts."""
    if isinstance(one, Tint) or isinstance(other, Tint):
        return one == other
    return list(one.items()) == list(other.items())


def check_rows(table: CoefficientTable, experts: Mapping[str, Expert]) -> None:
    """Raise OptionError for a table none of whose rows is that of a tensor which an expert changes: it is another base's."""
    names = {switch.name for task in table.tasks for switch in experts[task].switches.values()}
    if names and not names.intersection(table.rows):
        raise OptionError(
            f"table {table.name!r}: expected rows of the experts' tensors, such as {min(names)!r}, found {table.rows[0]!r} "
            "and others; give the table of these experts"
        )


def changes(weights: ModelWeights, chosen: Sequence[tuple[Share, Expert]]) -> list[Change]:
    """The changes that experts make together, added in their order; `Share.task` is what errors call them.

    Coefficients do not act on dense entries; one of 0 drops the expert's switches. Where the entry of an alias counts, those of
    its target do not act on it. Raises OptionError for a coefficient that is not finite, or experts that give one tensor
    different dense content.
    """
    untied = {name for share, expert in chosen if share.layers for name in expert.untied}
    terms: dict[str, list[tuple[PackedSwitch, float]]] = {}
    labels: dict[str, str] = {}  # who gave a tensor its first term
    dense: dict[str, tuple[str, Expert]] = {}
    for share, expert in chosen:
        label = share.task
        apart = untied & (expert.borrowed | expert.tied.keys())
        for name, switch in (*expert.switches.items(), *(() if share.layers else expert.tied.items())):
            if name in apart:
                continue
            dtype = dtype_of_tensor(weights[name]) or switch.base
            proper = proper_coefficient(share.of(switch.name), dtype, f"expert {label!r}: tensor {name!r}")
            if proper != 0:
                terms.setdefault(name, []).append((switch, proper))
                labels.setdefault(name, label)
        for name in expert.dense if share.layers else ():
            if name in untied & expert.borrowed:
                continue
            before, other = dense.setdefault(name, (label, expert))
            if other.contents[name] != expert.contents[name]:
                raise _conflict(name, before, label)
    for name in terms.keys() & dense.keys():
        replacing, changing = dense[name][0], labels[name]
        raise OptionError(
            f"tensor {name!r}: expert {replacing!r} replaces it, expert {changing!r} changes it; activate them one by one, or "
            f"by a table in which {changing!r} has 0 for it, or with the layers of another expert [TSW-903]"
        )
    matrices = {name: matrix for _, expert in chosen for name, matrix in expert.matrices.items()}
    made = [Change(name, weights[name], matrices[name], found) for name, found in terms.items()]
    whole = [
        Change(name, weights[name], matrices[name], dense=expert.dense[name]) for name, (_, expert) in dense.items()
    ]
    return made + whole


def _conflict(name: str, one: str, other: str) -> OptionError:
    return OptionError(
        f"tensor {name!r}: experts {one!r} and {other!r} give it different dense content; activate them one by one, or "
        "with a table say whose layers count [TSW-903]"
    )
