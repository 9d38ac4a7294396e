"""The methods that a sweep compares if nobody says which."""

from __future__ import annotations

from tswitch_tools.sweep.low_rank import LowRank
from tswitch_tools.sweep.method import Method
from tswitch_tools.sweep.packed import Packed, Whole
from tswitch_tools.sweep.together import Consensus, Emr, Sum, Tall, Ties

DENSITIES = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
RANKS = (1, 2, 4, 8, 16)


def default_methods() -> list[Method]:
    """The full expert; the authors' rule; the default rule of `pack` at densities of 0.1 to 20 %; merged models; TALL-masks
    and EMR; low ranks in int8 and f16. New objects, to be added to or left out."""
    return [
        Whole(),
        Packed(preset="paper"),
        *(Packed(density=density) for density in DENSITIES),
        Sum(),
        Ties(),
        Consensus(),
        Tall(),
        Emr(),
        *(LowRank(rank, "int8") for rank in RANKS),
        *(LowRank(rank, "f16") for rank in RANKS),
    ]
