"""Which kernels run on a device: the fastest that are there and can start, else plain torch, which always can.

`TSW_KERNELS=reference` in the environment takes plain torch at once.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# Kind of device, package that it needs, module in a folder of kernels.
_FAST = (("cuda", "triton", "fused"), ("cpu", "numba", "compiled"))


def choose(folder: str, kind: str) -> ModuleType:
    """The module of the package `folder` that runs on devices of a kind: `fused`, `compiled` or `reference`.

    One that does not start (no place for numba's cache, no C compiler for Triton, a version that refuses another) is reported
    in one warning. A module's `probe()`, where it has one, finds that out.
    """
    if os.environ.get("TSW_KERNELS") != "reference":
        for device, package, name in _FAST:
            if kind == device and find_spec(package):
                try:
                    found = import_module(f"{folder}.{name}")
                    getattr(found, "probe", lambda: None)()
                except Exception as error:  # noqa: BLE001 - whatever it is, plain torch does without
                    reason = " ".join(str(error).split())[:200]
                    warnings.warn(
                        f"{package} is installed but does not start ({type(error).__name__}: {reason}); plain torch, which is "
                        "slower, takes its place. TSW_KERNELS=reference asks for that without this warning",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                else:
                    return found
    return import_module(f"{folder}.reference")
