"""A file of any body and index, with right lengths and checksums. (`fuzz.parts` also puts the segments' places right.)"""

from __future__ import annotations

import struct

from fuzz.parts import sign
from tswitch_format import _layout as lay


def sealed(body: bytes, index: bytes, *, minor: int = 0, encoding: int = 0, decoded_length: int | None = None) -> bytes:
    """Prologue, `body`, `index` as it is stored, trailer."""
    decoded = len(index) if decoded_length is None else decoded_length
    place = struct.pack("<QQ", lay.FRAME + len(body), len(index))
    length = 2 * lay.FRAME + len(body) + len(index)
    head = struct.pack("<8sHHIQQQ", lay.MAGIC, 1, minor, decoded, 0, 0, length) + place + bytes([encoding]) + bytes(7)
    tail = place + struct.pack("<IB", decoded, encoding) + bytes(43)
    return sign(head + body + index + tail, index)


def body_of(data: bytes) -> bytes:
    """What lies between the prologue and the index of a right file."""
    return data[lay.FRAME : int.from_bytes(data[40:48], "little")]
