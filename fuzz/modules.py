"""Programs of this repository that belong to no package, as modules: decoders, runners, slow references."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load(place: str) -> ModuleType:
    """The module in a file, `place` seen from the repository's root; made once."""
    path = ROOT / place
    name = "_".join(path.relative_to(ROOT).with_suffix("").parts)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path}: expected a module, found none")
        sys.modules[name] = importlib.util.module_from_spec(spec)  # its dataclasses look for it there
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
