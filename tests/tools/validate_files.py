"""Files of every kind for the tests of `tsw validate`: good, damaged, newer, none at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.numpy import save_file

import tswitch_format as tsw
from tswitch_tools.cli import tsw as command

Run = Callable[..., Result]
FIELDS = {"rule", "severity", "file", "offset", "field", "expected", "found", "message"}


def validate(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run `tsw validate` in this process."""
    result = CliRunner().invoke(
        command, ["validate", *(str(argument) for argument in arguments)], prog_name="tsw", input=stdin
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def arrays(seed: int = 0) -> dict[str, NDArray[Any]]:
    """A base of three tensors."""
    random = np.random.default_rng(seed)
    return {
        "a": random.standard_normal((64, 48)).astype(np.float32),
        "b": random.standard_normal((32, 64)).astype(np.float16),
        "c": np.arange(8, dtype=np.int64),
    }


class Files:
    """Makes files in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = folder / "base.safetensors"
        self.other_base = folder / "other.safetensors"
        self.good = folder / "good.tsw"
        save_file(arrays(), self.base)
        save_file(arrays(7), self.other_base)
        expert = arrays()
        expert["a"] = expert["a"] + np.float32(0.01) * arrays(1)["a"]
        expert["b"] = (expert["b"] + 0.01 * arrays(1)["b"]).astype(np.float16)
        tsw.pack(arrays(), expert, self.good, task="t", threads=1)
        self.bad = self.changed("bad.tsw", 70)
        self.newer = self.changed("newer.tsw", 8, by=3)
        self.missing = folder / "missing.tsw"

    def changed(self, name: str, *places: int, by: int = 1) -> Path:
        """A copy of the good file with other bits at these places."""
        data = bytearray(self.good.read_bytes())
        for place in places:
            data[place] ^= by
        return self.made(name, bytes(data))

    def made(self, name: str, data: bytes) -> Path:
        """A file of these bytes."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path
