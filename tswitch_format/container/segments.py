"""Encoded entries on their way into a file or from one file to another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c
from tswitch_format._dtypes import DType
from tswitch_format.checkpoint import TensorSpec


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """One segment: what its record says, and its bytes. `crc32c` is that of `data`."""

    role: lay.Role
    codec: int
    parameter: int
    count: int
    data: bytes | memoryview
    crc32c: int

    @classmethod
    def make(cls, role: lay.Role, codec: int, parameter: int, count: int, data: bytes) -> EncodedSegment:
        """A segment of freshly encoded bytes."""
        return cls(role, codec, parameter, count, data, crc32c(data))


@dataclass(frozen=True, slots=True)
class EncodedEntry:
    """One entry, encoded. `spec` is the tensor's record: that of the base, or one to put into `extra` if `added`.

    `segments` are in the order of section 8; they may come from an iterator, so that they need not all be in memory.
    """

    spec: TensorSpec
    kind: lay.Kind
    dtype: DType
    segments: Iterable[EncodedSegment]
    sha256: bytes | None
    added: bool = False
    knob: np.float32 = field(default_factory=lambda: np.float32(0))
    factor_dtype: lay.FactorDType = lay.FactorDType.NONE
    flags: int = 0
    active: int = 0
    vector: int = 0  # number of a masked entry's shared vector


@dataclass(frozen=True, slots=True)
class EncodedArray:
    """One shared array, encoded: what it is for, its record, the SHA-256 of its bytes, and its segments in order."""

    role: lay.SharedRole
    spec: TensorSpec
    sha256: bytes
    segments: Iterable[EncodedSegment]
