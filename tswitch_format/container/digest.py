"""Entry digests and the content id: spec sections 11.3 and 11.4."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DType
from tswitch_format.container.index import Index, RouterKeys
from tswitch_format.container.tensors import TensorList


class EntryDigest:
    """SHA-256 over the decoded content of one entry; what it covers is given in the order of section 11.3."""

    def __init__(self, kind: lay.Kind, dtype: DType, shape: Sequence[int]) -> None:
        self._sha256 = hashlib.sha256(lay.ENTRY_DOMAIN)
        self._sha256.update(struct.pack(f"<BBB{len(shape)}Q", kind, dtype.id, len(shape), *shape))

    def ternary(self, knob: np.float32, factor_dtype: int, flags: int) -> None:
        """The fields of a ternary entry; factors and planes come after them."""
        fields = struct.pack("<BB", factor_dtype, flags & ~lay.HAS_SHA256)
        self._sha256.update(np.array(knob, "<f4").tobytes() + fields)

    def masked(self, knob: np.float32, vector_dtype: int, vector_sha256: bytes) -> None:
        """The fields of a masked entry; planes come after them."""
        self._sha256.update(np.array(knob, "<f4").tobytes() + struct.pack("<B", vector_dtype) + vector_sha256)

    def update(self, data: bytes | memoryview | NDArray[Any]) -> None:
        """Factors, planes or data."""
        self._sha256.update(data.data if isinstance(data, np.ndarray) else data)

    def digest(self) -> bytes:
        """32 bytes."""
        return self._sha256.digest()


def content_id(index: Index) -> bytes | None:
    """The content id of what an index says, or None where a digest is absent, or where tables have no arrays or no such rows:
    who writes such an index finds that when it is checked."""
    every = [index.base.records["flags"], *(task.entries["flags"] for task in index.tasks)]
    if not all((flags & lay.HAS_SHA256).all() for flags in every):
        return None
    arrays = dict(index.shared.named(lay.SharedRole.COEFFICIENTS))
    for name, table in index.coefficients.items():
        if name not in arrays or (table.rows >= len(index.base)).any():
            return None
    out = hashlib.sha256(lay.CONTENT_DOMAIN)
    _base(out, index.base)
    out.update(struct.pack("<I", len(index.aliases)))
    for name in sorted(index.aliases, key=str.encode):
        out.update(_name(name) + struct.pack("<I", index.aliases[name]))
    out.update(struct.pack("<I", len(index.tasks)))
    for task in sorted(index.tasks, key=lambda task: task.name.encode()):
        out.update(_name(task.name) + struct.pack("<I", len(task.entries)))
        for tensor, sha256 in zip(task.entries["tensor"].tolist(), task.entries["sha256"], strict=True):
            out.update(_name(index.name(tensor)) + sha256.tobytes())
    if index.router is not None:
        _router(out, index, index.router)
    if index.coefficients:
        _coefficients(out, index, arrays)
    return out.digest()


def _coefficients(out: Any, index: Index, arrays: Mapping[str, int]) -> None:
    out.update(lay.COEFFICIENTS_DOMAIN + struct.pack("<I", len(index.coefficients)))
    encoded = [_name(tensor) for tensor in index.base.names]  # once: a hostile file has a hundred rows for each
    for name in sorted(index.coefficients, key=str.encode):
        table = index.coefficients[name]
        out.update(_name(name) + struct.pack("<II", len(table.rows), len(table.tasks)))
        out.update(b"".join(map(encoded.__getitem__, table.rows.tolist())))
        for task in table.tasks:
            out.update(_name(task))
        clamp = table.clamp_bytes
        out.update(b"\0" if clamp is None else b"\1" + clamp)
        out.update(index.shared.arrays.records["sha256"][arrays[name]].tobytes())


def _router(out: Any, index: Index, router: RouterKeys) -> None:
    shared = index.shared
    features = np.flatnonzero(shared.roles == lay.SharedRole.FEATURES).tolist()
    out.update(struct.pack("<I", len(features)))
    for number in features:
        spec = shared.arrays.spec(number)
        out.update(
            _name(spec.name) + struct.pack(f"<BB{len(spec.shape)}Q", spec.dtype.id, len(spec.shape), *spec.shape)
        )
        out.update(shared.arrays.records["sha256"][number].tobytes())
    out.update(struct.pack("<I", router.k))
    for text in (router.metric, router.extractor, router.preprocessing):
        out.update(struct.pack("<I", len(text.encode())) + text.encode())


def _base(out: Any, base: TensorList) -> None:
    out.update(struct.pack("<I", len(base)))
    dims = base.dims.astype("<u8").tobytes()
    for name, record, start in zip(base.names, base.records, base.starts.tolist(), strict=True):
        ndim = int(record["ndim"])
        out.update(_name(name) + struct.pack("<BB", record["dtype"], ndim))
        out.update(dims[start * 8 : (start + ndim) * 8] + record["sha256"].tobytes())


def _name(name: str) -> bytes:
    data = name.encode()
    return struct.pack("<H", len(data)) + data
