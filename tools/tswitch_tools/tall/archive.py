"""The members of a file of torch.save, a zip, as views of it.

    is_archive     whether bytes begin as such a file
    open_archive   its members by name

torch.save stores members as they are, so a compressed one is refused, not inflated. Names, lengths and places are compared
between the directory and the members, which must not lie over each other. Checksums are compared when a member is asked for.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from tswitch_format.errors import CheckpointError
from tswitch_tools.tall.building import Bytes, shown

MOST_MEMBERS = 100_000
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_WORD, _HALF = 0xFFFFFFFF, 0xFFFF  # what stands for a number that is too large
_LONGEST_COMMENT = 0xFFFF
_ENCRYPTED = 1
_ADVICE = "save the file again with torch.save, or get it again"


@dataclass(frozen=True, slots=True)
class _Member:
    start: int  # of its local header
    size: int
    checksum: int


def is_archive(data: Bytes) -> bool:
    """Whether they begin with a member of a zip."""
    return data[:4].tobytes() == b"PK\x03\x04"


class Archive:
    """The members of a zip. Made by `open_archive`."""

    def __init__(self, data: Bytes, where: str, members: dict[str, slice], checksums: dict[str, int]) -> None:
        self._data = data
        self._where = where
        self._members = members
        self._checksums = checksums
        self._compared: set[str] = set()

    @property
    def names(self) -> list[str]:
        """In the directory's order."""
        return list(self._members)

    def get(self, name: str) -> Bytes | None:
        """The bytes of a member, u8[its size], or None where there is none. Raises CheckpointError for damaged ones."""
        if name not in self._members:
            return None
        content = self._data[self._members[name]]
        if name not in self._compared:
            if zlib.crc32(content.data) != self._checksums[name]:
                raise _problem(self._where, f"the checksum of the member {shown(name)}", "another, so it is damaged")
            self._compared.add(name)
        return content


def _problem(where: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{where}: expected {expected}, found {found}; {_ADVICE}")


def open_archive(data: Bytes, where: str) -> Archive:
    """The members of the zip in `data`. Raises CheckpointError, which begins with `where`."""
    start, end, count = _directory(data, where)
    entries: dict[str, _Member] = {}
    at = start
    for _ in range(count):
        at = _read_entry(data, at, end, where, entries)
    if at != end:
        raise _problem(where, f"a directory of {end - start} bytes", f"its {count} members in {at - start}")
    members: dict[str, slice] = {}
    last = 0
    for name, member in sorted(entries.items(), key=lambda item: item[1].start):
        place = _content(data, name, member, start, where)
        if member.start < last:
            raise _problem(where, "members one after the other", f"{shown(name)} inside another")
        last = place.stop
        members[name] = place
    return Archive(
        data, where, {name: members[name] for name in entries}, {n: member.checksum for n, member in entries.items()}
    )


def _directory(data: Bytes, where: str) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many entries it has."""
    tail = data[-(_END.size + _LONGEST_COMMENT) :].tobytes()
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _END.size:
        raise _problem(where, "a zip by torch.save", "none of its directory, so it ends early or is another file")
    at = data.size - len(tail) + found
    _, disk, first_disk, on_disk, count, size, start, comment = _END.unpack_from(tail, found)
    if at + _END.size + comment != data.size:
        raise _problem(
            where, f"the end of a zip at byte {at + _END.size + comment}", f"that of the file at {data.size}"
        )
    limit = at
    locator = data[max(at - _LOCATOR.size, 0) : at].tobytes()
    if locator[:4] == b"PK\x06\x07" and len(locator) == _LOCATOR.size:
        _, _, limit, _ = _LOCATOR.unpack(locator)
        record = data[limit : limit + _END64.size].tobytes() if limit < at else b""
        if len(record) < _END64.size or record[:4] != b"PK\x06\x06":
            raise _problem(where, "the directory of a large zip", "none where it should be")
        _, _, _, _, disk, first_disk, on_disk, count, size, start = _END64.unpack(record)
    if disk or first_disk or on_disk != count or count > MOST_MEMBERS:
        raise _problem(where, f"a zip in one part with at most {MOST_MEMBERS} members", f"{count} of them")
    if start + size != limit:
        raise _problem(where, f"a directory from byte {start} to {start + size}", f"its end at {limit}")
    return start, limit, count


def _read_entry(data: Bytes, at: int, end: int, where: str, entries: dict[str, _Member]) -> int:
    """Put down one entry of the directory. Returns where the next one begins."""
    header = data[at : min(at + _ENTRY.size, end)].tobytes()
    if len(header) < _ENTRY.size or header[:4] != b"PK\x01\x02":
        raise _problem(where, f"an entry of the directory at byte {at}", "something else")
    _, _, _, flags, method, _, _, checksum, packed, size, n, e, c, disk, _, _, start = _ENTRY.unpack(header)
    following: int = at + _ENTRY.size + n + e + c
    if following > end:
        raise _problem(where, f"an entry of the directory at byte {at}", "one that is longer than the directory")
    name = _name(data[at + _ENTRY.size : at + _ENTRY.size + n], where)
    extra = data[at + _ENTRY.size + n : at + _ENTRY.size + n + e].tobytes()
    size, packed, start = _large_numbers(extra, [size, packed, start], name, where)
    if name in entries:
        raise _problem(where, "each member once", f"{shown(name)} twice")
    if flags & _ENCRYPTED:
        raise _problem(where, "members as torch.save stores them", f"{shown(name)}, which is encrypted")
    if method or packed != size:
        raise _problem(where, "members as torch.save stores them", f"{shown(name)}, which is compressed")
    if disk:
        raise _problem(where, "a zip in one part", f"{shown(name)} in part {disk}")
    entries[name] = _Member(start, size, checksum)
    return following


def _name(raw: Bytes, where: str) -> str:
    try:
        return raw.tobytes().decode()
    except UnicodeDecodeError:
        raise _problem(where, "names of members in UTF-8", "other bytes") from None


def _large_numbers(extra: bytes, numbers: list[int], name: str, where: str) -> list[int]:
    """Those of the three that do not fit into their fields stand in an extra field of kind 1, in this order."""
    missing = [index for index, number in enumerate(numbers) if number == _WORD]
    at = 0
    while missing and at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + size]
        if kind == 1 and len(field) >= 8 * len(missing):
            for index, number in zip(missing, struct.unpack_from(f"<{len(missing)}Q", field), strict=True):
                numbers[index] = number
            return numbers
        at += 4 + size
    if missing:
        raise _problem(where, f"the size and place of the member {shown(name)}", "none")
    return numbers


def _content(data: Bytes, name: str, member: _Member, directory: int, where: str) -> slice:
    """Where the bytes of a member are."""
    header = data[member.start : member.start + _LOCAL.size].tobytes() if member.start < directory else b""
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise _problem(where, f"the member {shown(name)} at byte {member.start}", "none there")
    *_, method, _, _, _, _, _, n, e = _LOCAL.unpack(header)
    start = member.start + _LOCAL.size + n + e
    own = data[member.start + _LOCAL.size : member.start + _LOCAL.size + n].tobytes()
    if own != name.encode() or method:
        raise _problem(where, f"the member {shown(name)} as the directory has it", "another name or method")
    if start + member.size > directory:
        raise _problem(where, f"{member.size} bytes of the member {shown(name)}", f"{max(directory - start, 0)}")
    return slice(start, start + member.size)
