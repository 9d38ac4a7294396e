"""The tables of numbers and names of the specification: element types, kinds, roles, codecs, limits."""

from __future__ import annotations

CHUNK = 1 << 20
PROLOGUE = 64
TRAILER = 64

LARGEST_INDEX = 1 << 26
MOST_TENSORS = 1 << 20
MOST_DIMENSIONS = 16
MOST_ELEMENTS = 1 << 48
LONGEST_NAME = 1024
MOST_WIDE_NAME_BYTES = 1 << 20
LARGEST_PARAMETER = 20

# Section 5.5.
VECTOR, FEATURES, COEFFICIENTS = 1, 2, 3
SHARED_ROLES = {VECTOR: "vector", FEATURES: "features", COEFFICIENTS: "coefficients"}

# Section 5.6.
METRICS = ("euclidean", "cosine")
MOST_NEIGHBOURS = 1 << 20

# Section 6: id, name, bits of an element.
DTYPES = {
    1: ("BOOL", 8),
    2: ("U8", 8),
    3: ("I8", 8),
    4: ("U16", 16),
    5: ("I16", 16),
    6: ("U32", 32),
    7: ("I32", 32),
    8: ("U64", 64),
    9: ("I64", 64),
    10: ("F16", 16),
    11: ("BF16", 16),
    12: ("F32", 32),
    13: ("F64", 64),
    14: ("F8_E4M3", 8),
    15: ("F8_E5M2", 8),
    16: ("F8_E8M0", 8),
    17: ("F4", 4),
    18: ("F6_E2M3", 6),
    19: ("F6_E3M2", 6),
    20: ("C64", 64),
}
F16, BF16, F32, F64 = 10, 11, 12, 13
FLOATS = (F16, BF16, F32, F64)
OF_FEATURES = (F16, F32)

# Section 7.
TERNARY, MASKED, DENSE, REMOVED = 1, 2, 3, 4
KINDS = {TERNARY: "ternary", MASKED: "masked", DENSE: "dense", REMOVED: "removed"}
SWITCHES = (TERNARY, MASKED)
"""Kinds that change a base tensor, each element by itself, and on which coefficients act."""
HAS_SHA256, HAS_ROW_FACTORS, HAS_COLUMN_FACTORS = 1, 2, 4

# Id, name, bytes of a stored factor.
FACTOR_DTYPES = {0: ("none", 0), 1: ("u8", 1), 2: ("f16", 2), 3: ("f32", 4)}

# Section 8.
MASK, SIGN, ROW_FACTORS, COLUMN_FACTORS, DATA = 1, 2, 3, 4, 5
ROLES = {MASK: "mask", SIGN: "sign", ROW_FACTORS: "row_factors", COLUMN_FACTORS: "column_factors", DATA: "data"}
PLANES = (MASK, SIGN)

# Section 9.
ZEROS, ONES, BITMAP, BITMAP_ZSTD, GAPS_ZSTD, RICE, RAW, ZSTD = 0, 1, 2, 3, 4, 5, 16, 17
CODECS = {
    ZEROS: "zeros",
    ONES: "ones",
    BITMAP: "bitmap",
    BITMAP_ZSTD: "bitmap_zstd",
    GAPS_ZSTD: "gaps_zstd",
    RICE: "rice",
    RAW: "raw",
    ZSTD: "zstd",
}


def align(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not less than `value`."""
    return -(-value // step) * step


def chunk_count(elements: int) -> int:
    """Into how many chunks so many elements are cut."""
    return -(-elements // CHUNK)


def chunk_sizes(elements: int) -> list[int]:
    """Elements of each chunk."""
    return [min(CHUNK, elements - start) for start in range(0, elements, CHUNK)]
