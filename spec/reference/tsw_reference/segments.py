"""Section 8: segment records, and what each must be like."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import BrokenError, shown
from .fields import Fields
from .layout import CODECS, DATA, DTYPES, GAPS_ZSTD, LARGEST_PARAMETER, PLANES, RICE, ROLES, chunk_sizes
from .model import Segment, Tensor

SEGMENT = struct.Struct("<QIIIBBBB")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a segment belongs, and what it must be like: `size` as in model.Segment, `elements` of its chunk."""

    tensor: Tensor
    role: int
    group: list[Segment]
    chunk: int
    elements: int
    size: int


class Records:
    """The segment records of a table one after the other; there must be as many as follow from what they belong to."""

    def __init__(self, fields: Fields, counts: Sequence[int], newer: bool) -> None:
        table = fields.table("segments", SEGMENT.size)
        found, needed = len(table) // SEGMENT.size, sum(counts)
        if needed != found:
            raise BrokenError("TSW-601", f"{needed} segment records", str(found), f"{fields.where}, segments")
        self._where = fields.where
        self._newer = newer
        self._records = enumerate(SEGMENT.iter_unpack(table))

    def fill(self, places: Iterator[Place]) -> None:
        """Check the next records against their places, and put the segments there."""
        for place in places:
            number, record = next(self._records)
            _add(place, record, f"{self._where}, segment {number}", self._newer)


def data_places(tensor: Tensor, dtype: int, group: list[Segment]) -> Iterator[Place]:
    """The chunks of elements of a dtype."""
    bits = DTYPES[dtype][1]
    for chunk, elements in enumerate(chunk_sizes(tensor.elements)):
        yield Place(tensor, DATA, group, chunk, elements, elements * bits // 8)


def _add(place: Place, record: tuple[int, ...], where: str, newer: bool) -> None:
    offset, length, crc32c, count, role, codec, parameter, reserved = record
    where = f"{where}, {ROLES[place.role]} {place.chunk} of {shown(place.tensor.name)}"
    if role != place.role:
        raise BrokenError("TSW-601", f"role {ROLES[place.role]}", ROLES.get(role, str(role)), where)
    if reserved and not newer:
        raise BrokenError("TSW-107", "a zero reserved field", str(reserved), where)
    plane = role in PLANES
    if count > place.elements or (not plane and count != place.elements):
        expected = f"a count of {'at most ' if plane else ''}{place.elements}"
        raise BrokenError("TSW-602", expected, str(count), where)
    if codec not in CODECS or (codec < 16) != plane:
        expected = f"a codec for {'planes' if plane else 'elements'}"
        raise BrokenError("TSW-606", expected, CODECS.get(codec, str(codec)), where)
    gaps = codec in (GAPS_ZSTD, RICE)
    if gaps and count == 0:
        raise BrokenError("TSW-606", "a codec for a plane without ones", CODECS[codec], where)
    most = LARGEST_PARAMETER if gaps else 0
    if parameter > most:
        raise BrokenError("TSW-606", f"a parameter of at most {most}", str(parameter), where)
    place.group.append(Segment(offset, length, crc32c, count, role, codec, parameter, place.size, where))
