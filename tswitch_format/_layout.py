"""Every number and record of `spec/tsw-1.md`, once.

The records are NumPy structured types, in the order and with the names of the specification's tables (a test compares
them), so that whole tables of a hostile file are checked and read without a Python loop.
"""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Size = TypeVar("Size", int, NDArray[np.int64])

MAJOR = 1
MINOR = 0
FORMAT_VERSION = f"{MAJOR}.{MINOR}"
MAGIC = bytes.fromhex("8954 5357 0D0A 1A0A")
END_MAGIC = bytes.fromhex("5753 540A")
KNOWN_REQUIRED_FEATURES = 0

CHUNK = 1 << 20  # elements

# Limits. Each keeps a small hostile file from asking for much memory or time.
MAX_INDEX = 1 << 26  # bytes, decoded
MAX_TENSORS = 1 << 20
MAX_TASKS = 4096
MAX_MEMBERS = 4096  # of a map or array in the index
MAX_VALUES = 1 << 18  # maps, arrays and members of both in the index, all together
MAX_DEPTH = 8
MAX_DIMENSIONS = 16
MAX_SIZE = 1 << 48  # of a dimension, and elements of a tensor
MAX_NAME = 1024  # bytes
MAX_WIDE_NAMES = 1 << 20  # bytes of names that are not ASCII, of tensors, aliases and tasks together
MAX_TEXT = 1 << 22  # bytes of all str in the index together
MAX_WINDOW = 1 << 23  # bytes, of a zstd frame longer than that
MAX_PARAMETER = 20  # k of gaps and rice

MAPPED_SMALL = 64  # bytes: alignment in the mapped profile
MAPPED_LARGE = 4096  # bytes: the same for segments from MAPPED_FROM bytes up
MAPPED_FROM = 65536

SAMPLE_WHOLE = 65536  # bytes: tensors up to here are sampled whole
SAMPLE_BLOCKS = 16
SAMPLE_BLOCK = 4096  # bytes

PROLOGUE = np.dtype(
    [
        ("magic", "S8"),
        ("major", "<u2"),
        ("minor", "<u2"),
        ("index_decoded_length", "<u4"),
        ("required_features", "<u8"),
        ("optional_features", "<u8"),
        ("file_length", "<u8"),
        ("index_offset", "<u8"),
        ("index_length", "<u8"),
        ("index_encoding", "u1"),
        ("reserved", "V3"),
        ("crc32c", "<u4"),
    ]
)
TRAILER = np.dtype(
    [
        ("index_offset", "<u8"),
        ("index_length", "<u8"),
        ("index_decoded_length", "<u4"),
        ("index_encoding", "u1"),
        ("reserved", "V3"),
        ("index_sha256", "V32"),
        ("crc32c", "<u4"),
        ("end_magic", "V4"),
    ]
)
TENSOR = np.dtype(
    [
        ("name_length", "<u2"),
        ("dtype", "u1"),
        ("ndim", "u1"),
        ("flags", "<u4"),
        ("sampled", "V8"),
        ("sha256", "V32"),
    ]
)
ENTRY = np.dtype(
    [
        ("tensor", "<u4"),
        ("kind", "u1"),
        ("dtype", "u1"),
        ("factor_dtype", "u1"),
        ("flags", "u1"),
        ("knob", "<f4"),
        ("vector", "<u4"),
        ("active", "<u8"),
        ("sha256", "V32"),
    ]
)
SEGMENT = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("crc32c", "<u4"),
        ("count", "<u4"),
        ("role", "u1"),
        ("codec", "u1"),
        ("parameter", "u1"),
        ("reserved", "u1"),
    ]
)


def span(record: np.dtype[Any], field: str) -> tuple[int, int]:
    """Where a field of a record begins and ends, in bytes from the record's first."""
    kind, offset = (record.fields or MappingProxyType({}))[field][:2]
    return offset, offset + kind.itemsize


FRAME = PROLOGUE.itemsize  # the prologue, and the trailer: 64 bytes


class Encoding(IntEnum):
    """How the index is stored."""

    RAW = 0
    ZSTD = 1


class Kind(IntEnum):
    """What an entry says of its tensor (section 7)."""

    TERNARY = 1
    MASKED = 2
    DENSE = 3
    REMOVED = 4


SWITCH_KINDS = (Kind.TERNARY, Kind.MASKED)  # those that have a mask, and add to the base


class SharedRole(IntEnum):
    """What a shared array is for (section 5.5)."""

    VECTOR = 1
    FEATURES = 2
    COEFFICIENTS = 3


class Role(IntEnum):
    """What a segment holds (section 8)."""

    MASK = 1
    SIGN = 2
    ROW_FACTORS = 3
    COLUMN_FACTORS = 4
    DATA = 5


class Codec(IntEnum):
    """How a segment is encoded (section 9)."""

    ZEROS = 0
    ONES = 1
    BITMAP = 2
    BITMAP_ZSTD = 3
    GAPS_ZSTD = 4
    RICE = 5
    RAW = 16
    ZSTD = 17


class FactorDType(IntEnum):
    """Stored type of row and column factors."""

    NONE = 0
    U8 = 1
    F16 = 2
    F32 = 3


# Flags of a tensor record.
HAS_SHA256 = 1
HAS_SAMPLED = 2
# Flags of an entry record; HAS_SHA256 is bit 0 there too.
HAS_ROW_FACTORS = 2
HAS_COLUMN_FACTORS = 4

PROFILES = ("archive", "mapped")
METRICS = ("euclidean", "cosine")
MAX_NEIGHBOURS = 1 << 20
FEATURE_DIMENSIONS = 2
TABLE_DIMENSIONS = 2

ENTRY_DOMAIN = b"TSW1-entry\0"
CONTENT_DOMAIN = b"TSW1-content\0"
COEFFICIENTS_DOMAIN = b"TSW1-coefficients\0"


def chunks_of(elements: Size) -> Size:
    """Number of chunks of a tensor or array of `elements` elements."""
    return -(-elements // CHUNK)


def align(offset: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is >= `offset`."""
    return -(-offset // alignment) * alignment


def segment_alignment(length: int, *, mapped: bool) -> int:
    """Alignment in bytes of a segment of `length` bytes (section 8)."""
    if not mapped:
        return 1
    return MAPPED_LARGE if length >= MAPPED_FROM else MAPPED_SMALL
