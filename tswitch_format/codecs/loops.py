"""Whether decoding has compiled loops: where numba is loaded already.

Importing it takes half a second, in which NumPy decodes more than a hundred million positions; so decoding does not begin that.
Whoever applies switches on the CPU has it loaded (`tswitch_format.torch`, extra `fast`), and so has a large `pack`.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from tswitch_format._optional import start


def loops() -> ModuleType | None:
    """The module `compiled`, which takes bytes as numbers of this machine's order, or None for NumPy."""
    return _start() if "numba" in sys.modules and sys.byteorder == "little" else None


@cache
def _start() -> ModuleType | None:
    return start("tswitch_format.codecs.compiled", "numba", instead="NumPy")
