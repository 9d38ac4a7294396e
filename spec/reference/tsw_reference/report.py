"""What a file holds, as the tagged JSON of the conformance suite (spec/vectors/README.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from .layout import DENSE, DTYPES, FACTOR_DTYPES, KINDS, SHARED_ROLES, TERNARY
from .model import Entry, File, Router, Segment, Shared, Table, Task

MOST_HEX_BYTES = 4096


def describe(file: File) -> dict[str, Any]:
    """The JSON document of a file."""
    base = file.base
    tensors = [
        {
            "name": tensor.name,
            "dtype": DTYPES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "sha256": _bytes_or_none(tensor.sha256),
            "sampled": _bytes_or_none(tensor.sampled),
        }
        for tensor in base.tensors
    ]
    extra = [
        {"name": tensor.name, "dtype": DTYPES[tensor.dtype][0], "shape": list(tensor.shape)} for tensor in file.extra
    ]
    return {
        "version": file.version,
        "profile": file.profile,
        "writer": file.writer,
        "metadata": file.metadata,
        "content_id": _bytes_or_none(file.content_id),
        "base": {"id": base.id, "revision": base.revision, "aliases": base.aliases, "tensors": tensors},
        "extra": extra,
        **({"shared": [_shared(file, array) for array in file.shared]} if file.shared else {}),
        **({"coefficients": {table.name: _table(table) for table in file.tables}} if file.tables else {}),
        **({"router": _router(file, file.router)} if file.router is not None else {}),
        "tasks": [_task(file, task) for task in file.tasks],
    }


def _shared(file: File, array: Shared) -> dict[str, Any]:
    return {
        "name": array.tensor.name,
        "role": SHARED_ROLES[array.role],
        "dtype": DTYPES[array.tensor.dtype][0],
        "shape": list(array.tensor.shape),
        "sha256": tagged([array.sha256]),
        "data": _content(file, array.data),
    }


def _router(file: File, router: Router) -> dict[str, Any]:
    return {
        "extractor": router.extractor,
        "k": router.k,
        "metric": router.metric,
        "preprocessing": router.preprocessing,
        "features": {array.tensor.name: tagged([array.sha256]) for array in file.features()},
    }


def _table(table: Table) -> dict[str, Any]:
    clamp = table.clamp
    return {
        "rows": [tensor.name for tensor in table.rows],
        "tasks": [task.name for task in table.tasks],
        "clamp": None if clamp is None else [{"f32": bound[::-1].hex()} for bound in (clamp[:4], clamp[4:])],
        "sha256": tagged([table.array.sha256]),
    }


def _task(file: File, task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "recipe": task.recipe,
        "checkpoint": task.checkpoint,
        "metadata": task.metadata,
        "entries": [_entry(file, entry) for entry in task.entries],
    }


def _entry(file: File, entry: Entry) -> dict[str, Any]:
    result: dict[str, Any] = {
        "tensor": entry.tensor.number,
        "kind": KINDS[entry.kind],
        "dtype": DTYPES[entry.dtype][0],
        "sha256": _bytes_or_none(entry.sha256),
    }
    if entry.kind == TERNARY:
        result |= {
            "knob": {"f32": entry.knob[::-1].hex()},
            "active": entry.active,
            "factor_dtype": FACTOR_DTYPES[entry.factor_dtype][0],
            "row_factors": _content(file, entry.row_factors) if entry.row_factors else None,
            "column_factors": _content(file, entry.column_factors) if entry.column_factors else None,
            "mask": _content(file, entry.masks),
            "signs": [_content(file, [sign]) for sign in entry.signs],
        }
    elif entry.vector is not None:
        result |= {
            "knob": {"f32": entry.knob[::-1].hex()},
            "active": entry.active,
            "vector": entry.vector.tensor.number,
            "mask": _content(file, entry.masks),
        }
    elif entry.kind == DENSE:
        result["data"] = _content(file, entry.data)
    return result


def _content(file: File, segments: list[Segment]) -> dict[str, Any]:
    return tagged(file.content(segment) for segment in segments)


def _bytes_or_none(data: bytes | None) -> dict[str, Any] | None:
    return None if data is None else tagged([data])


def tagged(parts: Iterable[bytes]) -> dict[str, Any]:
    """Bytes as the suite writes them: themselves where they are few, else their SHA-256; never all of them at once."""
    sha256 = hashlib.sha256()
    start = b""
    length = 0
    for part in parts:
        sha256.update(part)
        length += len(part)
        start += part[: MOST_HEX_BYTES - len(start)]
    if length <= MOST_HEX_BYTES:
        return {"hex": start.hex()}
    return {"sha256": sha256.hexdigest(), "bytes": length}
