"""zstd frames as spec section 9.5 wants them: one plain frame, size declared, nothing after it."""

from __future__ import annotations

import threading

import zstandard

from tswitch_format._layout import MAX_WINDOW
from tswitch_format.errors import PayloadError

_FRAME_MAGIC = bytes.fromhex("28B52FFD")
_STEP = 64  # bytes
_contexts = threading.local()  # zstandard's contexts are not to be shared between threads


def compress(data: bytes | memoryview, level: int) -> bytes:
    """One frame of `data` at a zstd level, without checksum, its content size declared."""
    try:
        compressors: dict[int, zstandard.ZstdCompressor] = _contexts.compressors
    except AttributeError:
        compressors = _contexts.compressors = {}
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
    return compressors[level].compress(data)


def content_size(data: bytes | memoryview) -> int:
    """The content size that a frame declares, in bytes, after checking its header."""
    if bytes(data[:4]) != _FRAME_MAGIC:
        raise PayloadError(
            rule="TSW-707", expected="a zstd frame (28 B5 2F FD)", found=bytes(data[:4]).hex(" ") or "nothing"
        )
    try:
        header = zstandard.get_frame_parameters(data)
        size = zstandard.frame_content_size(data)
    except zstandard.ZstdError as error:
        raise PayloadError(rule="TSW-707", expected="a zstd frame header", found=str(error)) from error
    if size < 0:
        raise PayloadError(rule="TSW-707", expected="a declared content size", found="none")
    if header.has_checksum or header.dict_id:
        raise PayloadError(rule="TSW-707", expected="no checksum and no dictionary", found="one of them")
    if header.window_size > max(size, MAX_WINDOW):
        raise PayloadError(
            rule="TSW-707", expected=f"a window of at most {max(size, MAX_WINDOW)} bytes", found=str(header.window_size)
        )
    return size


def decompress(data: bytes | memoryview, size: int) -> bytes:
    """The content of one frame, which must declare and have exactly `size` bytes."""
    declared = content_size(data)
    if declared != size:
        raise PayloadError(rule="TSW-707", expected=f"a frame of {size} bytes", found=f"one of {declared}")
    return content(data, size)


def content(data: bytes | memoryview, size: int) -> bytes:
    """The same of a frame of which `content_size` said `size`."""
    if size == 0:
        _check_empty(data)
        return b""
    try:
        decompressor: zstandard.ZstdDecompressor = _contexts.decompressor
    except AttributeError:
        decompressor = _contexts.decompressor = zstandard.ZstdDecompressor()
    try:
        found = decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError(rule="TSW-707", expected="one whole zstd frame", found=str(error)) from error
    if len(found) != size:
        raise PayloadError(rule="TSW-707", expected=f"{size} bytes in the frame", found=str(len(found)))
    return found


def _check_empty(data: bytes | memoryview) -> None:
    """Check a frame that declares no content: zstandard's `decompress` returns at once then, without a look at its blocks."""
    stream = zstandard.ZstdDecompressor().decompressobj()
    content = b""
    read = 0
    try:
        # In small steps: blocks that do have content must not have much of it before it is seen.
        while read < len(data) and not stream.eof and not content:
            content = stream.decompress(data[read : read + _STEP])
            read += _STEP
    except zstandard.ZstdError as error:
        raise PayloadError(rule="TSW-707", expected="one whole zstd frame", found=str(error)) from error
    if content or not stream.eof or stream.unused_data or read < len(data):
        raise PayloadError(rule="TSW-707", expected="an empty zstd frame and nothing after it", found="something else")
