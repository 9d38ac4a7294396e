"""The files that are mutated, where their parts lie, and a file in memory of which single bytes change.

Victim       an accepted file, and its regions: prologue, segments, padding, index, trailer
Patch        the file in memory that the validator reads
why_unnamed  what is wrong with a report on a file of which one bit was flipped
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import tswitch_format as tsw
from fuzz.memory import Slot
from tswitch_format import _layout as lay
from tswitch_format.container.reader import Container
from tswitch_format.container.verify import ValidationReport

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "spec" / "vectors"
SMALL = 8192  # bytes: files up to here are mutated everywhere
RULES = {
    "prologue": {"TSW-101", "TSW-102", "TSW-104"},
    "segment": {"TSW-701"},
    "padding": {"TSW-702"},
    "index": {"TSW-204"},
    "trailer": {"TSW-201", "TSW-202"},
}
"""The first finding's rule, where one bit of such a region is wrong."""


class Region(NamedTuple):
    """A run of bytes of a file. `field` is how the validator calls a segment, of a task or of the shared arrays."""

    kind: str
    start: int
    end: int
    field: str = ""


class Victim:
    """A file that every reader accepts. `large`: it decodes to many megabytes, so each look at it takes long."""

    def __init__(self, path: Path, *, large: bool = False) -> None:
        self.path = path
        self.large = large
        self.name = f"{path.parent.name}/{path.name}"
        self.data = path.read_bytes()

    @cached_property
    def regions(self) -> list[Region]:
        """All bytes of the file, in order; regions of no bytes are left out."""
        container = Container(self.path, backend="pread")
        try:
            tables = [("shared", container.index.shared.segments)]
            tables += [(f"tasks[{task}]", table.segments) for task, table in enumerate(container.index.tasks)]
            segments = [
                Region("segment", int(offset), int(offset) + int(length), f"{field}.segments[{number}]")
                for field, table in tables
                for number, (offset, length) in enumerate(table[["offset", "length"]].tolist())
            ]
            index = container.frame.index_offset
        finally:
            container.close()
        found = [Region("prologue", 0, lay.FRAME)]
        for region in [*segments, Region("index", index, len(self.data) - lay.FRAME)]:
            if found[-1].end < region.start:
                found.append(Region("padding", found[-1].end, region.start))
            found.append(region)
        found.append(Region("trailer", len(self.data) - lay.FRAME, len(self.data)))
        return [region for region in found if region.start < region.end]

    @cached_property
    def _starts(self) -> list[int]:
        return [region.start for region in self.regions]

    def region(self, byte: int) -> Region:
        """That of a byte."""
        return self.regions[bisect_right(self._starts, byte) - 1]

    @property
    def borders(self) -> list[int]:
        """Where regions end."""
        return [region.end for region in self.regions]


def victims() -> list[Victim]:
    """Every accepted file of the conformance suite, those of newer versions among them, and the golden files."""
    records = json.loads((VECTORS / "manifest.json").read_text())
    suite = [
        Victim(VECTORS / record["path"], large=record.get("large", False))
        for record in records
        if record["verdict"] == "accept" and record["path"].endswith(".tsw")
    ]
    return suite + [Victim(path) for path in sorted((ROOT / "tests" / "golden").glob("*.tsw"))]


class Patch:
    """A file in memory. `flip` shows the validator the file with one bit flipped: a byte is written, and written back."""

    def __init__(self, data: bytes) -> None:
        self._slot = Slot("mutation")
        self._data = data
        self._slot.put(data)
        self._file = self._slot.path.open("r+b", buffering=0)

    def close(self) -> None:
        """Release it."""
        self._file.close()

    def flip(self, bit: int) -> ValidationReport:
        """The report on the file with one bit flipped."""
        byte = bit >> 3
        self._put(byte, self._data[byte] ^ 1 << (bit & 7))
        report = tsw.validate(self._slot.path)
        self._put(byte, self._data[byte])
        return report

    def _put(self, at: int, value: int) -> None:
        self._file.seek(at)
        self._file.write(bytes([value]))

    def whole(self) -> bool:
        """Whether the file is as it was at first, and valid."""
        return self._slot.get() == self._data and tsw.validate(self._slot.path).ok


def why_unnamed(report: ValidationReport, region: Region, byte: int) -> str | None:
    """Why a report does not name a flipped bit of `byte`, or None: where all of this is so.

    The file could be read and has findings. The first one has a rule of the region and lies in it. What follows it are
    consequences: there are some only of prologue, index and trailer, behind which the validator reads on. A segment is
    named by task and number, and padding by the very byte. Only another major version asks for a newer reader.
    """
    if report.unreadable is not None or report.ok:
        return f"accepted, or not read: {report.unreadable}"
    first = report.findings[0]
    if report.newer != (first.rule == "TSW-102"):
        return f"newer is {report.newer}"
    if first.rule not in RULES[region.kind]:
        return f"the first rule is {first.rule}"
    if first.offset is None or not region.start <= first.offset < region.end:
        return f"the first finding lies at {first.offset}"
    if region.kind == "segment" and {finding.field for finding in report.findings} != {region.field}:
        return f"of {[finding.field for finding in report.findings]}"
    if region.kind == "padding" and (first.offset != byte or len(report.findings) > 1):
        return f"{len(report.findings)} findings, the first at {first.offset}"
    return None
