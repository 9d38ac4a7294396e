"""What the validator finds: everything that it can, each where it is, and no more than a person reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from container_files import Edited, edit

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.container.report import Report


def rules(path: Path, level: str = "full") -> list[tuple[str, int | None]]:
    """Rule and offset of each finding."""
    return [(found.rule, found.offset) for found in tsw.validate(path, level).findings]  # type: ignore[arg-type]


def damaged(path: Path, out: Path, *places: int) -> Path:
    """A copy in which one bit of each of these bytes is another; negative places count from the end."""
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    out.write_bytes(data)
    return out


def test_a_damaged_prologue_does_not_hide_a_damaged_segment(archive: Path, out: Path) -> None:
    assert rules(damaged(archive, out, 60, 64)) == [("TSW-104", 60), ("TSW-701", 64)]


def test_a_damaged_trailer_does_not_hide_a_damaged_segment(archive: Path, out: Path) -> None:
    end = archive.stat().st_size
    assert rules(damaged(archive, out, -8, 64)) == [("TSW-202", end - 8), ("TSW-701", 64)]
    assert rules(damaged(archive, out, -1, -8, 64)) == [("TSW-201", end - 4), ("TSW-202", end - 8), ("TSW-701", 64)]


def test_a_damaged_prologue_and_trailer_leave_nothing_to_read(archive: Path, out: Path) -> None:
    end = archive.stat().st_size
    assert rules(damaged(archive, out, 60, -8, 64)) == [("TSW-104", 60), ("TSW-202", end - 8)]


def test_the_index_is_read_where_the_trailer_says_if_the_prologue_is_damaged(archive: Path, out: Path) -> None:
    edited = Edited(archive)
    edited.prologue["crc32c"] = 1
    edited.trailer["index_offset"] = 63
    edited.write(out)
    end = out.stat().st_size
    assert rules(out) == [("TSW-104", 60), ("TSW-203", end - 64)]


def test_appended_bytes_do_not_hide_a_damaged_segment(archive: Path, out: Path) -> None:
    damaged(archive, out, 64)
    with out.open("ab") as file:
        file.write(b"more")
    assert rules(out) == [("TSW-105", 32), ("TSW-701", 64)]


def test_a_damaged_index_is_read_on_as_far_as_it_goes(archive: Path, out: Path) -> None:
    edited = Edited(archive)
    edited.trailer["index_sha256"] = bytes(32)
    edited.write(out)
    data = bytearray(out.read_bytes())
    data[64] ^= 1
    out.write_bytes(data)
    assert [rule for rule, _ in rules(out)] == ["TSW-204", "TSW-701"]


def test_a_damaged_file_does_not_open(archive: Path, out: Path) -> None:
    for place in (60, -8, -1, -70):
        with pytest.raises(tsw.FormatError):
            tsw.open(damaged(archive, out, place))


def test_every_bad_payload_of_one_entry_is_found(wide: Path, out: Path) -> None:
    edited = Edited(wide)
    with edited.segments() as table:
        masks = np.flatnonzero(table["role"] == lay.Role.MASK)[:3].tolist()
    for number in masks:
        edited.set_payload(number, b"\0\0")
    edited.write(out)
    with tsw.open(out) as file:
        offsets = file.container.index.tasks[0].segments["offset"][masks].tolist()
    assert [offset for _, offset in rules(out)] == offsets
    assert {rule for rule, _ in rules(out)} <= {"TSW-706", "TSW-707", "TSW-704"}


def test_every_wrong_row_of_a_table_is_found_at_its_byte(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        with file.entries() as table:
            table["knob"][:2] = np.nan
            table["vector"][3] = 7

    edit(archive, out, change)
    data = out.read_bytes()
    found = tsw.validate(out, "structure").findings
    assert [(f.rule, f.field) for f in found] == [
        ("TSW-107", "tasks[0].entries[3].vector"),
        ("TSW-504", "tasks[0].entries[0].knob"),
        ("TSW-504", "tasks[0].entries[1].knob"),
    ]
    for finding in found:
        assert finding.offset is not None
        at = finding.offset
        expected = np.float32(np.nan).tobytes() if finding.field.endswith("knob") else b"\7\0\0\0"
        assert data[at : at + 4] == expected


def test_of_very_many_wrong_rows_the_first_are_listed_and_the_rest_counted(tiny: Path, out: Path) -> None:
    count = 3 * Report.LISTED

    def change(file: Edited) -> None:
        records = np.zeros(count, lay.TENSOR)
        records["name_length"], records["dtype"], records["flags"] = 3, 12, 64
        file.doc["tasks"], file.body = [], bytearray()
        file.doc.pop("content_id", None)
        names = "".join(f"{number:03}" for number in range(count)).encode()
        file.doc["base"] = {"aliases": {}, "dims": b"", "names": names, "tensors": records.tobytes()}

    found = tsw.validate(edit(tiny, out, change), "structure").findings
    assert len(found) == Report.LISTED
    assert found[0].found == "64"
    assert found[-1].found == f"64 (and {2 * Report.LISTED} more such rows)"


def test_findings_before_an_unreadable_end_are_kept(archive: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tswitch_format.container.verify._check_content_id", fail)
    report = tsw.validate(damaged(archive, out, 64))
    assert [finding.rule for finding in report.findings] == ["TSW-701"]
    assert report.unreadable is not None
    assert not report.ok


def test_a_damaged_index_does_not_ask_for_a_newer_reader(archive: Path, out: Path) -> None:
    """What a damaged file seems to need is not what it needs."""
    edited = Edited(archive)
    with edited.entries() as table:
        table["kind"][0] = 77
    edited.trailer["index_sha256"] = bytes(32)
    report = tsw.validate(edited.write(out))
    assert [finding.rule for finding in report.findings] == ["TSW-204", "TSW-503"]
    assert not report.newer


def test_a_report_that_is_full_says_so(archive: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "MOST", 3)

    def change(file: Edited) -> None:
        for key in "zyxw":
            file.doc["metadata"][key] = 1

    found = tsw.validate(edit(archive, out, change)).findings
    assert [finding.field for finding in found] == ["metadata['w']", "metadata['x']", "metadata['y']"]
    assert found[-1].found == "unsigned integer (the check ended at 3 findings)"


def test_findings_against_a_base_are_limited_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "MOST", 2)
    others = {f"t{number}": np.zeros(1, np.float32) for number in range(5)}
    assert len(tsw.validate(tiny, base=others).findings) == 2


def test_unknown_keys_are_found_in_their_order(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.doc.update(dict.fromkeys(("zz", "za", "zm"), 1))

    assert [found.field for found in tsw.validate(edit(archive, out, change), "structure").findings] == [
        "index['za']",
        "index['zm']",
        "index['zz']",
    ]
