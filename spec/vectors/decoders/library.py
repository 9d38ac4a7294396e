"""The suite's decoder for tswitch_format: one file on standard input, one JSON document on standard output.

    python spec/vectors/run.py --rules -- python spec/vectors/decoders/library.py

With the argument `apply` it takes and prints what `apply/` holds. `decode` and `apply` can be called without a process.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES
from tswitch_format.checkpoint import DTYPE_BY_NAME, ShardLayout, TensorSpec
from tswitch_format.container.index import RouterKeys
from tswitch_format.container.reader import Container, Entry, SharedArray
from tswitch_format.container.tensors import TensorList


class RefusedError(Exception):
    """The file breaks rules, or cannot be applied: messages that name rule ids."""


def decode(path: Path) -> dict[str, Any]:
    """What a file holds. Raises RefusedError."""
    report = tsw.validate(path)
    if not report.ok:
        raise RefusedError("\n".join(finding.message for finding in report.findings) or str(report.unreadable))
    container = Container(path)
    try:
        made = _document(container)
    finally:
        container.close()
    if "coefficients" in {array["role"] for array in made.get("shared", ())}:
        with tsw.open(path) as file:
            made["coefficients"] = {name: _table(table) for name, table in file.tables.items()}
    return made


def _document(container: Container) -> dict[str, Any]:
    index = container.index
    return {
        "version": f"{lay.MAJOR}.{container.frame.minor}",
        "profile": index.profile,
        "writer": index.writer,
        "metadata": dict(index.metadata),
        "content_id": _tagged(index.content_id),
        "base": {
            "id": index.base_id,
            "revision": index.base_revision,
            "aliases": dict(index.aliases),
            "tensors": [
                {
                    **described,
                    "sha256": _tagged(sha256.tobytes() if flags & lay.HAS_SHA256 else None),
                    "sampled": _tagged(sampled.tobytes() if flags & lay.HAS_SAMPLED else None),
                }
                for described, flags, sha256, sampled in zip(
                    _described(index.base),
                    index.base.records["flags"].tolist(),
                    index.base.records["sha256"],
                    index.base.records["sampled"],
                    strict=True,
                )
            ],
        },
        "extra": _described(index.extra),
        **({"shared": [_shared(array) for array in container.shared_arrays()]} if len(index.shared) else {}),
        **({} if index.router is None else {"router": _router(container, index.router)}),
        "tasks": [
            {
                "name": task.name,
                "recipe": dict(task.recipe),
                "checkpoint": dict(task.checkpoint),
                "metadata": dict(task.metadata),
                "entries": [_entry(entry) for entry in container.entries(number)],
            }
            for number, task in enumerate(index.tasks)
        ],
    }


def _shared(array: SharedArray) -> dict[str, Any]:
    return {
        "name": array.spec.name,
        "role": array.role.name.lower(),
        "dtype": array.dtype.name,
        "shape": list(array.spec.shape),
        "sha256": _tagged(array.sha256),
        "data": _data(array),
    }


def _router(container: Container, router: RouterKeys) -> dict[str, Any]:
    features = (array for array in container.shared_arrays() if array.role is lay.SharedRole.FEATURES)
    return {
        "extractor": router.extractor,
        "k": router.k,
        "metric": router.metric,
        "preprocessing": router.preprocessing,
        "features": {array.spec.name: _tagged(array.sha256) for array in features},
    }


def _table(table: Any) -> dict[str, Any]:
    bounds = None if table.clamp is None else [struct.pack(">f", bound).hex() for bound in table.clamp]
    return {
        "rows": list(table.rows),
        "tasks": list(table.tasks),
        "clamp": None if bounds is None else [{"f32": bound} for bound in bounds],
        "sha256": _tagged(hashlib.sha256(table.values.astype("<f4").tobytes()).digest()),
    }


def _described(tensors: TensorList) -> list[dict[str, Any]]:
    """Whole columns at once: there may be a million tensors."""
    dims = tensors.dims.tolist()
    columns = (
        tensors.names,
        tensors.records["dtype"].tolist(),
        tensors.records["ndim"].tolist(),
        tensors.starts.tolist(),
    )
    return [
        {"name": name, "dtype": DTYPES[dtype].name, "shape": dims[start : start + ndim]}
        for name, dtype, ndim, start in zip(*columns, strict=True)
    ]


def _entry(entry: Entry) -> dict[str, Any]:
    kind = entry.kind
    out: dict[str, Any] = {
        "tensor": entry.tensor,
        "kind": kind.name.lower(),
        "dtype": entry.dtype.name,
        "sha256": _tagged(entry.sha256),
    }
    if kind is lay.Kind.DENSE:
        out["data"] = _data(entry)
    elif kind is lay.Kind.MASKED:
        out |= {
            "knob": {"f32": f"{int(entry.knob.view(np.uint32)):08x}"},
            "active": entry.active,
            "vector": int(entry.record["vector"]),
            "mask": _mask(entry),
        }
    elif kind is lay.Kind.TERNARY:
        out |= {
            "knob": {"f32": f"{int(entry.knob.view(np.uint32)):08x}"},
            "active": entry.active,
            "factor_dtype": entry.factor_dtype.name.lower(),
            "row_factors": _tagged(entry.factor_codes(lay.Role.ROW_FACTORS)),
            "column_factors": _tagged(entry.factor_codes(lay.Role.COLUMN_FACTORS)),
            "mask": _mask(entry),
            "signs": [_tagged(entry.sign_packed(chunk)) for chunk in range(entry.chunks)],
        }
    return out


def _data(entry: Entry) -> dict[str, Any] | None:
    return _tagged(b"".join(entry.data(chunk).tobytes() for chunk in range(entry.chunks)))


def _mask(entry: Entry) -> dict[str, Any] | None:
    return _tagged(b"".join(entry.mask_packed(chunk).tobytes() for chunk in range(entry.chunks)))


def _tagged(data: bytes | NDArray[Any] | None) -> dict[str, Any] | None:
    if data is None:
        return None
    plain = data if isinstance(data, bytes) else data.tobytes()
    if len(plain) <= 4096:
        return {"hex": plain.hex()}
    return {"sha256": hashlib.sha256(plain).hexdigest(), "bytes": len(plain)}


class _Given:
    """A case's base as a checkpoint: NumPy has no arrays for some of its dtypes, so the library reads bytes."""

    location = "the case's base"
    paths: tuple[Path, ...] = ()

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.specs = {
            name: TensorSpec(name, DTYPE_BY_NAME[t["dtype"]], tuple(t["shape"])) for name, t in sorted(tensors.items())
        }
        self.aliases: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.layout = ShardLayout()
        self._bytes = {name: np.frombuffer(bytes.fromhex(t["data"]["hex"]), np.uint8) for name, t in tensors.items()}

    def read_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """See `CheckpointReader.read_into`."""
        out[:] = self._bytes[name][start : start + out.size]

    def close(self) -> None:
        """Nothing to release."""


def apply(case: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The expert of an `input`. Raises RefusedError."""
    path, out = folder / "case.tsw", folder / "case.safetensors"
    path.write_bytes(bytes.fromhex(case["file"]["hex"]))
    out.unlink(missing_ok=True)
    wish: dict[str, Any] = (
        {"table": case["table"], "layers": case.get("layers")}
        if "table" in case
        else {"tasks": [(name, float(coefficient)) for name, coefficient in case["tasks"]]}
    )
    try:
        tsw.restore(_Given(case["base"]), path, out, threads=1, **wish)
        with tsw.open(path) as file:
            aliases = dict(file.base.aliases)
    except tsw.TswError as error:
        raise RefusedError(str(error)) from error
    made = _read_safetensors(out)
    # A checkpoint that leaves out the names of tied tensors gets a restored one that does so too.
    for alias, target in aliases.items():
        if alias not in made and target in made and alias not in case["base"]:
            made[alias] = made[target]
    return made


def _read_safetensors(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: {
            "dtype": found["dtype"],
            "shape": found["shape"],
            "data": {"hex": data[start + found["data_offsets"][0] : start + found["data_offsets"][1]].hex()},
        }
        for name, found in header.items()
        if name != "__metadata__"
    }


def main() -> int:
    """Run it as `run.py` does."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            if sys.argv[1:] == ["apply"]:
                made = apply(json.load(sys.stdin), Path(folder))
            else:
                path = Path(folder) / "case.tsw"
                path.write_bytes(sys.stdin.buffer.read())
                made = decode(path)
        except RefusedError as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 1
    sys.stdout.write(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
