"""Lists of tensors as the index keeps them: names, dtypes, shapes and digests in tables (spec section 5.3)."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container.document import Value
from tswitch_format.container.report import Report

# Categories Cc, Zl and Zp, and bidirectional controls. One pattern: a look-up a character took seconds for a hostile index.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BITS = np.array([DTYPES[i].bits if i in DTYPES else 0 for i in range(256)], np.int64)


@dataclass(frozen=True, slots=True)
class Digests:
    """Full (32 bytes) and sampled (8 bytes) digest of a base tensor; None where absent."""

    sha256: bytes | None
    sampled: bytes | None


@dataclass(frozen=True)
class TensorList:
    """Tensors by number. `names`, `records` (TENSOR), `dims` (u64, all tensors) and `starts` (of each in `dims`)."""

    names: Sequence[str] = ()
    records: NDArray[Any] = field(default_factory=lambda: np.zeros(0, lay.TENSOR))
    dims: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    @classmethod
    def build(cls, specs: Sequence[TensorSpec], digests: Sequence[Digests] | None = None) -> TensorList:
        """The list of these tensors, which must be in the order that the specification asks for."""
        records = np.zeros(len(specs), lay.TENSOR)
        records["name_length"] = [len(spec.name.encode()) for spec in specs]
        records["dtype"] = [spec.dtype.id for spec in specs]
        records["ndim"] = [len(spec.shape) for spec in specs]
        for record, digest in zip(records, digests or (), strict=bool(digests)):
            if digest.sha256 is not None:
                record["flags"] |= lay.HAS_SHA256
                record["sha256"] = np.void(digest.sha256)
            if digest.sampled is not None:
                record["flags"] |= lay.HAS_SAMPLED
                record["sampled"] = np.void(digest.sampled)
        dims = np.array([size for spec in specs for size in spec.shape], np.uint64)
        return cls([spec.name for spec in specs], records, dims)

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each tensor's dimensions begin in `dims`."""
        ndim = self.records["ndim"].astype(np.int64)
        return np.cumsum(ndim) - ndim

    @cached_property
    def elements(self) -> NDArray[np.int64]:
        """Number of elements of each tensor."""
        return self._products(self.dims).astype(np.int64)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """First dimension of each tensor, 1 for those without dimensions."""
        rows = np.ones(len(self), np.int64)
        some = self.records["ndim"] > 0
        rows[some] = self.dims[self.starts[some]]
        return rows

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Name -> number, for lists whose names differ."""
        return {name: number for number, name in enumerate(self.names)}

    def shape(self, number: int) -> tuple[int, ...]:
        """Shape of one tensor."""
        start = int(self.starts[number])
        return tuple(int(size) for size in self.dims[start : start + int(self.records["ndim"][number])])

    def spec(self, number: int) -> TensorSpec:
        """Name, dtype and shape of one tensor."""
        return TensorSpec(self.names[number], DTYPES[int(self.records["dtype"][number])], self.shape(number))

    def digests(self, number: int) -> Digests:
        """Digests of one tensor."""
        record = self.records[number]
        flags = int(record["flags"])
        return Digests(
            record["sha256"].tobytes() if flags & lay.HAS_SHA256 else None,
            record["sampled"].tobytes() if flags & lay.HAS_SAMPLED else None,
        )

    def nbytes(self) -> int:
        """Bytes of all tensors' elements."""
        # Python's integers: the sum of many large tensors is above 64 bits.
        elements, bits = self.elements.tolist(), _BITS[self.records["dtype"]].tolist()
        return sum(int(e) * int(b) for e, b in zip(elements, bits, strict=True)) // 8

    def document(self) -> dict[str, Value]:
        """The keys of a tensor list in the index."""
        return {
            "dims": self.dims.astype("<u8").tobytes(),
            "names": "".join(self.names).encode(),
            "tensors": self.records.tobytes(),
        }

    def _products(self, dims: NDArray[Any]) -> NDArray[Any]:
        # A one before each tensor's dimensions gives reduceat something to start from, also where there are none.
        starts = self.starts + np.arange(len(self))
        padded = np.ones(dims.size + len(self), dims.dtype)
        mask = np.ones(padded.size, np.bool_)
        mask[starts] = False
        padded[mask] = dims
        return np.multiply.reduceat(padded, starts) if len(self) else padded

    def check(self, field: str, report: Report, *, base: bool, minor: int) -> None:
        """Check everything that section 5.3 says of the records, but for names, which `parse` has checked."""
        records = self.records
        if records["ndim"].max(initial=0) > lay.MAX_DIMENSIONS:
            raise report.fatal("TSW-403", f"{field}.ndim", f"at most {lay.MAX_DIMENSIONS}", str(records["ndim"].max()))
        # Floats first: exact below 2^53, and free of the wrap-around that would let a huge product look small.
        products = self._products(self.dims.astype(np.float64))
        if self.dims.max(initial=0) > lay.MAX_SIZE or products.max(initial=0) > lay.MAX_SIZE:
            raise report.fatal("TSW-403", f"{field}.dims", "dimensions and elements up to 2^48", "more")
        bits = _BITS[records["dtype"]]
        if (bits == 0).any():
            worst = int(np.argmax(bits == 0))
            raise report.newer(
                "TSW-404", f"{field}.tensors[{worst}].dtype", "a known dtype", str(records["dtype"][worst])
            )
        ragged = (self.elements % 8 * bits) % 8 != 0
        if ragged.any():
            report.finding(
                "TSW-404", f"{field}.tensors[{int(np.argmax(ragged))}]", "elements that fill whole bytes", "a rest"
            )
        known = lay.HAS_SHA256 | lay.HAS_SAMPLED if base else 0
        flags = records["flags"]
        if minor <= lay.MINOR and (flags & ~np.uint32(known)).any():
            report.finding("TSW-406", f"{field}.flags", f"no bits but 0x{known:X}", "others")
        for name, flag in (("sha256", lay.HAS_SHA256), ("sampled", lay.HAS_SAMPLED)):
            absent = np.ascontiguousarray(records[name][(flags & flag) == 0])
            if np.frombuffer(absent.tobytes(), np.uint8).any():
                report.finding("TSW-406", f"{field}.{name}", "zero where absent", "something else")
        # Code points order str as their UTF-8 bytes do.
        keys: Iterable[Any] = self.names
        if not base:  # one at a time, since the first that is out of order ends it
            keys = ((s.name, s.dtype.id, len(s.shape), s.shape) for s in map(self.spec, range(len(self))))
        for number, (before, after) in enumerate(itertools.pairwise(keys), 1):
            if before >= after:
                report.finding(
                    "TSW-405",
                    f"{field}.tensors[{number}]",
                    f"a record after {self.names[number - 1]!r}",
                    repr(self.names[number]),
                )
                break


def parse_names(blob: bytes, lengths: NDArray[Any], field: str, report: Report) -> list[str]:
    """Cut and check the names of a tensor list."""
    ends = np.cumsum(lengths, dtype=np.int64)
    if int(ends[-1] if ends.size else 0) != len(blob):
        raise report.fatal("TSW-401", f"{field}.names", f"{ends[-1] if ends.size else 0} bytes", str(len(blob)))
    starts = ends - lengths
    spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
    short = lengths.min(initial=1) > 0 and lengths.max(initial=0) <= lay.MAX_NAME
    if short and blob.isascii() and (text := blob.decode()).isprintable():  # almost all files: checked at once
        return [text[start:end] for start, end in spans]
    names: list[str] = []
    for start, end in spans:
        try:
            name = blob[start:end].decode()
        except UnicodeDecodeError as error:
            raise report.fatal("TSW-402", f"{field}.names[{len(names)}]", "UTF-8", str(error)) from error
        wrong = name_problem(name)
        if wrong:
            raise report.fatal("TSW-402", f"{field}.names[{len(names)}]", "a proper name", f"{wrong}: {name[:80]!r}")
        names.append(name)
    return names


def name_problem(name: str) -> str | None:
    """What is wrong with a name of a tensor or task (section 5.3), or None."""
    if name.isascii():
        if not 1 <= len(name) <= lay.MAX_NAME:
            return f"{len(name)} bytes instead of 1 to {lay.MAX_NAME}"
        return None if name.isprintable() else "a control character"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "a lone surrogate"
    if length > lay.MAX_NAME:
        return f"{length} bytes instead of 1 to {lay.MAX_NAME}"
    if not unicodedata.is_normalized("NFC", name):
        return "not in normal form NFC"
    if _FORBIDDEN.search(name):
        return "a control, separator or bidi character"
    return None
