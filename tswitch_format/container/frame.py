"""Prologue and trailer: spec sections 3 and 4."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c
from tswitch_format.container.report import Report, StopReading
from tswitch_format.container.source import Source
from tswitch_format.errors import FormatError, NotTswError, TruncatedError

_SHARED = ("index_offset", "index_length", "index_decoded_length", "index_encoding")
_BROKEN_MAGIC = (
    bytes.fromhex("89545357 0A1A0A"),
    bytes.fromhex("89545357 0D0A1A0D0A"),
    bytes.fromhex("89545357 0D0D0A1A0D0A"),
    bytes.fromhex("0954 53570D0A1A0A"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the index is, and what it takes to read it."""

    index_offset: int
    index_length: int
    index_decoded_length: int
    index_encoding: int
    index_sha256: bytes | None = None  # not known where the trailer is damaged
    minor: int = lay.MINOR

    @property
    def file_length(self) -> int:
        """Length of the whole file in bytes."""
        return self.index_offset + self.index_length + lay.FRAME


def build(frame: Frame) -> tuple[bytes, bytes]:
    """The bytes of prologue and trailer."""
    prologue = np.zeros((), lay.PROLOGUE)
    trailer = np.zeros((), lay.TRAILER)
    prologue["magic"] = lay.MAGIC
    prologue["major"] = lay.MAJOR
    prologue["minor"] = frame.minor
    prologue["file_length"] = frame.file_length
    for record in (prologue, trailer):
        for name in _SHARED:
            record[name] = getattr(frame, name)
    prologue["crc32c"] = crc32c(prologue.tobytes()[:-4])
    trailer["index_sha256"] = np.void(frame.index_sha256 or bytes(32))
    trailer["end_magic"] = np.void(lay.END_MAGIC)
    trailer["crc32c"] = crc32c(trailer.tobytes()[:-8])
    return prologue.tobytes(), trailer.tobytes()


def read(source: Source, report: Report) -> Frame:
    """Read and check both. Raises FormatError where the index cannot be found for sure.

    Where the report collects, one of the two is enough: if the other is damaged, that is reported and reading goes on.
    """
    head = bytes(source.read(0, min(lay.FRAME, source.length)))
    _check_magic(head, source, report)
    if source.length < 2 * lay.FRAME:
        raise _truncated(report, "TSW-100", "file", f"at least {2 * lay.FRAME} bytes", f"{source.length}", 0)
    prologue = np.frombuffer(head, lay.PROLOGUE)[0]
    if int(prologue["major"]) != lay.MAJOR:
        raise report.newer("TSW-102", "major version", str(lay.MAJOR), str(prologue["major"]), offset=8)
    computed = crc32c(head[:-4])
    if computed != prologue["crc32c"]:
        report.finding("TSW-104", "prologue.crc32c", f"{prologue['crc32c']:08x}", f"{computed:08x}", offset=60)
        trailer = _read_trailer(source, source.length, report)
        if trailer is None:
            raise StopReading
        return _checked(_frame_of(trailer), source.length, source.length - lay.FRAME, report)
    unknown = int(prologue["required_features"]) & ~lay.KNOWN_REQUIRED_FEATURES
    if unknown:
        names = ", ".join(str(bit) for bit in range(64) if unknown >> bit & 1)
        raise report.newer("TSW-103", "required features", "only known bits", f"bit {names}", offset=16)
    length = int(prologue["file_length"])
    expected = f"{length} bytes as the prologue says"
    if length > source.length:
        raise _truncated(report, "TSW-105", "file length", expected, str(source.length), 32)
    if length < source.length:
        report.finding("TSW-105", "file length", expected, str(source.length), offset=32)
    frame = replace(_frame_of(prologue), minor=int(prologue["minor"]))
    if frame.minor <= lay.MINOR and prologue["reserved"].tobytes() != bytes(3):
        report.finding("TSW-107", "prologue.reserved", "zero", prologue["reserved"].tobytes().hex(), offset=57)
    frame = _checked(frame, length, 0, report)
    trailer = _read_trailer(source, length, report)
    if trailer is None:
        return frame
    return _compared(frame, trailer, length - lay.FRAME, report)


def _frame_of(record: np.void) -> Frame:
    """What a prologue or trailer says of the index."""
    digest = record["index_sha256"].tobytes() if record.dtype == lay.TRAILER else None
    return Frame(**{name: int(record[name]) for name in _SHARED}, index_sha256=digest)


def _checked(frame: Frame, length: int, start: int, report: Report) -> Frame:
    """A frame whose index is in a file of `length` bytes; its record begins at `start`."""
    record = lay.TRAILER if start else lay.PROLOGUE

    def offset(name: str) -> int:
        return start + lay.span(record, name)[0]

    if frame.index_encoding not in tuple(lay.Encoding):
        found = str(frame.index_encoding)
        raise report.newer("TSW-106", "index encoding", "0 or 1", found, offset=offset("index_encoding"))
    decoded = frame.index_decoded_length
    raw = frame.index_encoding == lay.Encoding.RAW
    if not 1 <= decoded <= lay.MAX_INDEX or (raw and decoded != frame.index_length):
        expected = f"1 to {lay.MAX_INDEX}, and the stored length if raw"
        at = offset("index_decoded_length")
        raise report.fatal("TSW-108", "index decoded length", expected, str(decoded), offset=at)
    if frame.index_offset < lay.FRAME or frame.index_length < 1 or frame.file_length != length:
        expected = f"an index from byte {lay.FRAME} on that ends at {length - lay.FRAME}"
        found = f"{frame.index_length} bytes from {frame.index_offset} on"
        raise report.fatal("TSW-203", "index offset and length", expected, found, offset=offset("index_offset"))
    most = decoded + (decoded >> 8) + 1024
    if frame.index_length > most:
        at = offset("index_length")
        raise report.fatal("TSW-108", "index length", f"at most {most} bytes", str(frame.index_length), offset=at)
    return frame


def _read_trailer(source: Source, length: int, report: Report) -> np.void | None:
    """The trailer of a file of `length` bytes, or None if it is damaged, which is reported."""
    start = length - lay.FRAME
    tail = bytes(source.read(start, lay.FRAME))
    trailer: np.void = np.frombuffer(tail, lay.TRAILER)[0]
    magic = trailer["end_magic"].tobytes()
    if magic != lay.END_MAGIC:
        expected = lay.END_MAGIC.hex(" ")
        report.finding("TSW-201", "trailer.end_magic", expected, magic.hex(" "), offset=start + 60)
    computed = crc32c(tail[:-8])
    if computed != trailer["crc32c"]:
        expected = f"{trailer['crc32c']:08x}"
        report.finding("TSW-202", "trailer.crc32c", expected, f"{computed:08x}", offset=start + 56)
        return None
    return trailer


def _compared(frame: Frame, trailer: np.void, start: int, report: Report) -> Frame:
    """The prologue's frame with the digest of a trailer that begins at `start`."""
    for name in _SHARED:
        if int(trailer[name]) != getattr(frame, name):
            expected = f"{getattr(frame, name)} as in the prologue"
            offset = start + lay.span(lay.TRAILER, name)[0]
            report.finding("TSW-205", f"trailer.{name}", expected, str(trailer[name]), offset=offset)
    reserved = trailer["reserved"].tobytes()
    if frame.minor <= lay.MINOR and reserved != bytes(3):
        report.finding("TSW-107", "trailer.reserved", "zero", reserved.hex(), offset=start + 21)
    return replace(frame, index_sha256=_frame_of(trailer).index_sha256)


def _check_magic(head: bytes, source: Source, report: Report) -> None:
    if head.startswith(lay.MAGIC):
        return
    advice = "check that this is the file that you meant"
    found = head[:8].hex(" ")
    if lay.MAGIC.startswith(head[:8]):
        raise _truncated(report, "TSW-100", "file", f"at least {2 * lay.FRAME} bytes", f"{source.length}", 0)
    if any(head.startswith(broken) for broken in _BROKEN_MAGIC):
        advice = "it was damaged by a transfer in text mode: transfer it again in binary mode"
    elif head.startswith(b"version https://git-lfs"):
        found, advice = "a Git LFS pointer", "run 'git lfs pull' to get the file itself"
    raise NotTswError(
        rule="TSW-101",
        file=report.file,
        offset=0,
        field="magic",
        expected=f"a TSW file ({lay.MAGIC.hex(' ')})",
        found=found,
        advice=advice,
    )


def _truncated(report: Report, rule: str, field: str, expected: str, found: str, offset: int) -> FormatError:
    return TruncatedError(
        rule=rule,
        file=report.file,
        offset=offset,
        field=field,
        expected=expected,
        found=found,
        advice="the file is incomplete: get it again from where it was published",
    )
