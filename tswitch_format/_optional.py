"""Modules that need a package of an extra: compiled loops and kernels. Whoever asks does without where there is none.

`TSW_KERNELS=reference` in the environment does without at once.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def start(name: str, package: str, *, instead: str) -> ModuleType | None:
    """The module `name`, which needs `package`; None where that is not installed.

    One that does not start (no place for numba's cache, no C compiler for Triton, a version that refuses another) is reported
    in one warning, and None too. `instead`: what takes its place. A module's `probe()`, where it has one, finds that out.
    """
    if os.environ.get("TSW_KERNELS") == "reference" or not find_spec(package):
        return None
    try:
        found = import_module(name)
        getattr(found, "probe", lambda: None)()
    except Exception as error:  # noqa: BLE001 - whatever it is, there is a way without
        reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"{package} is installed but does not start ({type(error).__name__}: {reason}); {instead}, which is "
            "slower, takes its place. TSW_KERNELS=reference asks for that without this warning",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return found
