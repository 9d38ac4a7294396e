"""Runs of elements of factors and dense tensors, raw or as one zstd frame (spec section 9)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tswitch_format._layout import Codec
from tswitch_format.codecs import zstd
from tswitch_format.errors import PayloadError

_LEVEL = 3


def encode(data: NDArray[np.uint8], *, mapped: bool = False) -> tuple[Codec, bytes]:
    """The smaller of raw and zstd; raw if `mapped`."""
    if not mapped and data.size:
        packed = zstd.compress(data.data, _LEVEL)
        if len(packed) < data.size:
            return Codec.ZSTD, packed
    return Codec.RAW, data.tobytes()


def decode(codec: int, data: memoryview, nbytes: int) -> NDArray[np.uint8]:
    """The elements' `nbytes` bytes. For raw it is a view of `data`, valid as long as that is."""
    if codec == Codec.ZSTD:
        return np.frombuffer(zstd.decompress(data, nbytes), np.uint8)
    if codec != Codec.RAW:
        raise PayloadError(rule="TSW-606", expected="codec raw or zstd", found=f"codec {codec}")
    if len(data) != nbytes:
        raise PayloadError(rule="TSW-706", expected=f"{nbytes} bytes", found=str(len(data)))
    return np.frombuffer(data, np.uint8)
