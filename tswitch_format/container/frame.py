"""Prologue and trailer: spec sections 3 and 4."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format._checksum import crc32c
from tswitch_format.container.report import Report
from tswitch_format.container.source import Source
from tswitch_format.errors import FormatError, NotTswError, TruncatedError

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
    index_sha256: bytes = b""
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
        for name in ("index_offset", "index_length", "index_decoded_length", "index_encoding"):
            record[name] = getattr(frame, name)
    prologue["crc32c"] = crc32c(prologue.tobytes()[:-4])
    trailer["index_sha256"] = np.void(frame.index_sha256)
    trailer["end_magic"] = np.void(lay.END_MAGIC)
    trailer["crc32c"] = crc32c(trailer.tobytes()[:-8])
    return prologue.tobytes(), trailer.tobytes()


def read(source: Source, report: Report) -> Frame:
    """Read and check both. Raises FormatError where the index cannot be found for sure."""
    head = bytes(source.read(0, min(lay.FRAME, source.length)))
    _check_magic(head, source, report)
    if source.length < 2 * lay.FRAME:
        raise _truncated(report, "TSW-100", "file", f"at least {2 * lay.FRAME} bytes", f"{source.length}", 0)
    prologue = np.frombuffer(head, lay.PROLOGUE)[0]
    major, minor = int(prologue["major"]), int(prologue["minor"])
    if major != lay.MAJOR:
        raise report.newer("TSW-102", "major version", str(lay.MAJOR), str(major), offset=8)
    if crc32c(head[:-4]) != prologue["crc32c"]:
        raise report.fatal(
            "TSW-104", "prologue.crc32c", f"{crc32c(head[:-4]):08x}", f"{prologue['crc32c']:08x}", offset=60
        )
    unknown = int(prologue["required_features"]) & ~lay.KNOWN_REQUIRED_FEATURES
    if unknown:
        names = ", ".join(str(bit) for bit in range(64) if unknown >> bit & 1)
        raise report.newer("TSW-103", "required features", "only known bits", f"bit {names}", offset=16)
    if int(prologue["file_length"]) < source.length:
        raise report.fatal(
            "TSW-105",
            "file length",
            f"{prologue['file_length']} bytes as the prologue says",
            str(source.length),
            offset=32,
        )
    if int(prologue["file_length"]) > source.length:
        raise _truncated(
            report,
            "TSW-105",
            "file length",
            f"{prologue['file_length']} bytes as the prologue says",
            str(source.length),
            32,
        )
    if minor <= lay.MINOR and prologue["reserved"].tobytes() != bytes(3):
        report.finding("TSW-107", "prologue.reserved", "zero", prologue["reserved"].tobytes().hex(), offset=57)
    frame = Frame(
        int(prologue["index_offset"]),
        int(prologue["index_length"]),
        int(prologue["index_decoded_length"]),
        int(prologue["index_encoding"]),
        minor=minor,
    )
    if frame.index_encoding not in tuple(lay.Encoding):
        raise report.newer("TSW-106", "index encoding", "0 or 1", str(frame.index_encoding), offset=56)
    if not 1 <= frame.index_decoded_length <= lay.MAX_INDEX or (
        frame.index_encoding == lay.Encoding.RAW and frame.index_decoded_length != frame.index_length
    ):
        raise report.fatal(
            "TSW-108",
            "index decoded length",
            f"1 to {lay.MAX_INDEX}, and the stored length if raw",
            str(frame.index_decoded_length),
            offset=12,
        )
    if frame.index_offset < lay.FRAME or frame.index_length < 1 or frame.file_length != source.length:
        raise report.fatal(
            "TSW-203",
            "index offset and length",
            f"an index from byte {lay.FRAME} on that ends at {source.length - lay.FRAME}",
            f"{frame.index_length} bytes from {frame.index_offset} on",
            offset=40,
        )
    most = frame.index_decoded_length + (frame.index_decoded_length >> 8) + 1024
    if frame.index_length > most:
        raise report.fatal("TSW-108", "index length", f"at most {most} bytes", str(frame.index_length), offset=48)
    return _read_trailer(source, frame, report)


def _read_trailer(source: Source, frame: Frame, report: Report) -> Frame:
    start = source.length - lay.FRAME
    tail = bytes(source.read(start, lay.FRAME))
    trailer = np.frombuffer(tail, lay.TRAILER)[0]
    if trailer["end_magic"].tobytes() != lay.END_MAGIC:
        raise report.fatal(
            "TSW-201",
            "trailer.end_magic",
            lay.END_MAGIC.hex(" "),
            trailer["end_magic"].tobytes().hex(" "),
            offset=start + 60,
        )
    if crc32c(tail[:-8]) != trailer["crc32c"]:
        raise report.fatal(
            "TSW-202", "trailer.crc32c", f"{crc32c(tail[:-8]):08x}", f"{trailer['crc32c']:08x}", offset=start + 56
        )
    for name in ("index_offset", "index_length", "index_decoded_length", "index_encoding"):
        if int(trailer[name]) != getattr(frame, name):
            raise report.fatal(
                "TSW-205",
                f"trailer.{name}",
                f"{getattr(frame, name)} as in the prologue",
                str(trailer[name]),
                offset=start,
            )
    if frame.minor <= lay.MINOR and trailer["reserved"].tobytes() != bytes(3):
        report.finding("TSW-107", "trailer.reserved", "zero", trailer["reserved"].tobytes().hex(), offset=start + 21)
    return replace(frame, index_sha256=trailer["index_sha256"].tobytes())


def _check_magic(head: bytes, source: Source, report: Report) -> None:
    if head.startswith(lay.MAGIC):
        return
    advice = "check that this is the file that you meant"
    found = head[:8].hex(" ") or "an empty file"
    if lay.MAGIC.startswith(head[:8]) and head:
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
