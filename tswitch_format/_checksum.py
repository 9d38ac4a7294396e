"""CRC32C, SHA-256 and the sampled digest (spec sections 3 and 11)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import crc32c as _crc32c
import numpy as np
from numpy.typing import NDArray

from tswitch_format._layout import SAMPLE_BLOCK, SAMPLE_BLOCKS, SAMPLE_WHOLE


def crc32c(data: bytes | memoryview, value: int = 0) -> int:
    """CRC32C of bytes, going on from `value`."""
    return int(_crc32c.crc32c(data, value))


def sha256(*parts: bytes | memoryview) -> bytes:
    """SHA-256 of the parts one after the other, 32 bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def sampled_digest(nbytes: int, read: Callable[[int, NDArray[np.uint8]], None]) -> bytes:
    """Sampled digest of a tensor of `nbytes` bytes, 8 bytes; `read(start, out)` fills `out` from byte `start` on."""
    digest = hashlib.sha256(nbytes.to_bytes(8, "little"))
    if nbytes <= SAMPLE_WHOLE:
        block = np.empty(nbytes, np.uint8)
        read(0, block)
        digest.update(block.data)
    else:
        block = np.empty(SAMPLE_BLOCK, np.uint8)
        for i in range(SAMPLE_BLOCKS):
            read(i * (nbytes - SAMPLE_BLOCK) // (SAMPLE_BLOCKS - 1), block)
            digest.update(block.data)
    return digest.digest()[:8]
