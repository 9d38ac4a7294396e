"""Sections 3 and 4: prologue and trailer, checked in the order that section 3 demands."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from .crc32c import crc32c
from .errors import BrokenError
from .layout import LARGEST_INDEX, PROLOGUE, TRAILER

MAGIC = bytes.fromhex("895453570D0A1A0A")
END_MAGIC = bytes.fromhex("5753540A")
MAJOR = 1
MINOR = 0
"""The newest minor version that this reader knows."""

_PROLOGUE = struct.Struct("<8sHHIQQQQQB3sI")
_TRAILER = struct.Struct("<QQIB3s32sI4s")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the index is and how it is stored, and the file's minor version."""

    minor: int
    index_offset: int
    index_length: int
    index_decoded_length: int
    index_encoding: int

    @property
    def newer(self) -> bool:
        """Whether the file has a minor version that this reader does not know (section 13)."""
        return self.minor > MINOR


def read_frame(data: bytes) -> Frame:
    """Check prologue, trailer and the index's digest."""
    if data[:8] != MAGIC[: len(data)]:
        raise BrokenError("TSW-101", f"the magic {MAGIC.hex(' ')}", data[:8].hex(" "), "prologue", 0)
    if len(data) < PROLOGUE + TRAILER:
        raise BrokenError("TSW-100", "at least 128 bytes", str(len(data)), "file")
    fields = _PROLOGUE.unpack_from(data)
    _, major, minor, decoded_length, required, _, file_length, offset, length, encoding, reserved, checksum = fields
    if major != MAJOR:
        raise BrokenError("TSW-102", "major version 1", str(major), "prologue", 8)
    _check_crc32c("TSW-104", data[:60], checksum, "prologue", 60)
    if required:
        bits = ", ".join(str(bit) for bit in range(64) if required >> bit & 1)
        raise BrokenError("TSW-103", "no required feature, as version 1.0 defines none", f"bit {bits}", "prologue", 16)
    if file_length != len(data):
        raise BrokenError("TSW-105", f"{file_length} bytes as the prologue says", str(len(data)), "file", 32)
    frame = Frame(minor, offset, length, decoded_length, encoding)
    _check_geometry(frame, len(data))
    if not frame.newer and any(reserved):
        raise BrokenError("TSW-107", "zero reserved bytes", reserved.hex(" "), "prologue", 57)
    _check_trailer(data, frame)
    return frame


def _check_geometry(frame: Frame, file_length: int) -> None:
    decoded, length = frame.index_decoded_length, frame.index_length
    if not 1 <= decoded <= LARGEST_INDEX:
        raise BrokenError("TSW-108", f"index_decoded_length 1 to {LARGEST_INDEX}", str(decoded), "prologue", 12)
    end = frame.index_offset + length + TRAILER
    if frame.index_offset < PROLOGUE or length < 1 or end != file_length:
        found = f"{length} bytes at {frame.index_offset}"
        expected = f"an index from {PROLOGUE} on that ends at {file_length - TRAILER}"
        raise BrokenError("TSW-203", expected, found, "prologue", 40)
    if frame.index_encoding > 1:
        raise BrokenError("TSW-106", "index_encoding 0 or 1", str(frame.index_encoding), "prologue", 56)
    most = decoded + decoded // 256 + 1024
    if length > most or (frame.index_encoding == 0 and length != decoded):
        expected = f"index_length {decoded}" if frame.index_encoding == 0 else f"index_length of at most {most}"
        raise BrokenError("TSW-108", expected, str(length), "prologue", 48)


def _check_trailer(data: bytes, frame: Frame) -> None:
    start = len(data) - TRAILER
    offset, length, decoded, encoding, reserved, sha256, checksum, magic = _TRAILER.unpack_from(data, start)
    if magic != END_MAGIC:
        raise BrokenError("TSW-201", f"the end magic {END_MAGIC.hex(' ')}", magic.hex(" "), "trailer", start + 60)
    _check_crc32c("TSW-202", data[start : start + 56], checksum, "trailer", start + 56)
    prologue = (frame.index_offset, frame.index_length, frame.index_decoded_length, frame.index_encoding)
    if (offset, length, decoded, encoding) != prologue:
        found = str((offset, length, decoded, encoding))
        raise BrokenError("TSW-205", f"the prologue's index fields {prologue}", found, "trailer", start)
    if not frame.newer and any(reserved):
        raise BrokenError("TSW-107", "zero reserved bytes", reserved.hex(" "), "trailer", start + 21)
    digest = hashlib.sha256(data[frame.index_offset : start]).digest()
    if digest != sha256:
        raise BrokenError("TSW-204", f"index_sha256 {sha256.hex()}", digest.hex(), "trailer", start + 24)


def _check_crc32c(rule: str, covered: bytes, stored: int, where: str, offset: int) -> None:
    computed = crc32c(covered)
    if computed != stored:
        raise BrokenError(rule, f"CRC32C {stored:08X}", f"{computed:08X}", where, offset)
