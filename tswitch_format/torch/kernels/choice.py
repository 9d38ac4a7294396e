"""Which kernels run on a device: the fastest that are there and can start, else plain torch, which always can."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tswitch_format._optional import start

# Kind of device, package that it needs, module in a folder of kernels.
_FAST = (("cuda", "triton", "fused"), ("cpu", "numba", "compiled"))


def choose(folder: str, kind: str) -> ModuleType:
    """The module of the package `folder` that runs on devices of a kind: `fused`, `compiled` or `reference`."""
    for device, package, name in _FAST:
        if kind == device:
            found = start(f"{folder}.{name}", package, instead="plain torch")
            if found is not None:
                return found
    return import_module(f"{folder}.reference")
