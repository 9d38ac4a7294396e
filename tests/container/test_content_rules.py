"""Segments and digests that break one rule (spec sections 8, 9, 11): found on first touch, and by `validate`."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from container_files import Change, Edited, content, edit, make

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.errors import FormatError

# Segments of `archive` (see `checkpoints`): a.tied has row factors, column factors, mask and sign in 0 to 3.
ROWS, COLUMNS, MASK, SIGN, DATA = 0, 1, 2, 3, 16


def found_late(path: Path, rule: str, number: int | None = None) -> FormatError:
    """`path` opens, its whole content does not, by that rule; `validate` lists it, and only at the level that decodes."""
    with tsw.open(path):
        pass
    assert tsw.validate(path, "structure").ok
    with pytest.raises(FormatError, match=rule) as caught:
        tsw.open(path, verify="full")
    error = caught.value
    assert error.rule == rule
    report = tsw.validate(path)
    assert [finding.rule for finding in report.findings] == [rule], report.findings
    assert str(error).startswith(report.findings[0].message)  # without the advice to validate
    if number is not None:
        assert error.field == f"tasks[0].segments[{number}]"
        assert error.offset == report.findings[0].offset
    return error


def payload(number: int, data: bytes, **fields: int) -> Change:
    return lambda file: file.set_payload(number, data, **fields)


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=False).compress(data)


ONES20 = ((1 << 20) - 1).to_bytes(6, "little")  # 20 ones among 48 elements
ONES20_OF_44 = bytes(5) + b"\x01"  # one only


@pytest.mark.parametrize(
    ("change", "rule", "number"),
    [
        pytest.param(payload(MASK, ONES20 + b"\0", codec=2), "TSW-706", MASK, id="a bitmap too long"),
        pytest.param(payload(MASK, ONES20[:-1], codec=2), "TSW-706", MASK, id="a bitmap too short"),
        pytest.param(payload(MASK, ONES20_OF_44, codec=2), "TSW-704", MASK, id="a bitmap with fewer ones"),
        pytest.param(payload(MASK, b"", codec=0), "TSW-704", MASK, id="zeros for a mask with ones"),
        pytest.param(payload(MASK, b"", codec=1), "TSW-704", MASK, id="ones for a mask with zeros"),
        pytest.param(payload(MASK, b"\0", codec=0), "TSW-706", MASK, id="zeros with a byte"),
        pytest.param(payload(MASK, b"", codec=5), "TSW-706", MASK, id="an empty Rice code"),
        pytest.param(payload(MASK, frame(ONES20) + b"\0", codec=3), "TSW-707", MASK, id="a byte after a frame"),
        pytest.param(payload(MASK, ONES20, codec=3), "TSW-707", MASK, id="no frame"),
        pytest.param(payload(SIGN, bytes(2) + b"\xff", codec=2), "TSW-703", SIGN, id="unused bits of a sign"),
        pytest.param(payload(SIGN, bytes(3), codec=2), "TSW-704", SIGN, id="signs without ones"),
        pytest.param(payload(ROWS, bytes(9), codec=16), "TSW-706", ROWS, id="a factor more"),
        pytest.param(payload(COLUMNS, frame(bytes(5)), codec=17), "TSW-707", COLUMNS, id="a factor fewer in a frame"),
        pytest.param(payload(DATA, bytes(71), codec=16), "TSW-706", DATA, id="data too short"),
    ],
)
def test_a_payload_that_breaks_a_rule_is_found(
    change: Change, rule: str, number: int, archive: Path, out: Path
) -> None:
    edit(archive, out, change)
    found_late(out, rule, number)
    name = "g.counts" if number == DATA else "a.tied"
    with tsw.open(out) as file:
        switch = file.switch(name)
        with pytest.raises(FormatError, match=rule) as caught:
            switch.data() if number == DATA else switch.delta()
        assert caught.value.field == f"tasks[0].segments[{number}]"
        assert file.switch("b.weight").mask().sum() == 24


@pytest.mark.parametrize("knob_dtype", ["f16", "f32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_factors_that_are_not_finite_are_found(knob_dtype: str, value: float, out: Path, tmp_path: Path) -> None:
    source = make(tmp_path / "factors.tsw", knob_dtype=knob_dtype)
    factors = np.ones(8, {"f16": np.float16, "f32": np.float32}[knob_dtype])
    factors[3] = value
    edit(source, out, payload(ROWS, factors.tobytes(), codec=16))
    assert found_late(out, "TSW-705", ROWS).expected == "finite factors"


def test_the_other_content_of_an_entry_is_found(archive: Path, out: Path) -> None:
    edit(archive, out, payload(ROWS, bytes(range(8)), codec=16))
    error = found_late(out, "TSW-801")
    assert error.field == "tasks[0].entries[0].sha256"


def change_entry(field: str, value: Any) -> Change:
    def change(file: Edited) -> None:
        with file.entries() as table:
            table[field][0] = value

    return change


@pytest.mark.parametrize(("field", "value"), [("knob", 2.0), ("dtype", 11), ("factor_dtype", 1)])
def test_the_digest_of_an_entry_is_over_its_fields_too(field: str, value: Any, archive: Path, out: Path) -> None:
    edit(archive, out, change_entry(field, value))
    if field == "factor_dtype":  # the value that it has
        assert tsw.validate(out).ok
    else:
        found_late(out, "TSW-801")


@pytest.mark.parametrize("number", [5, 6])
def test_the_digests_of_dense_and_removed_entries_are_checked(number: int, archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        with file.entries() as table:
            table["sha256"][number] = np.void(bytes(32))
        del file.doc["content_id"]

    edit(archive, out, change)
    assert found_late(out, "TSW-801").field == f"tasks[0].entries[{number}].sha256"


def test_another_content_id_is_found(archive: Path, out: Path) -> None:
    edit(archive, out, lambda file: file.doc.update(content_id=bytes(32)))
    assert found_late(out, "TSW-802").field == "content_id"


@pytest.mark.parametrize("which", ["tensors", "entries"])
def test_a_content_id_without_all_digests_is_found(which: str, archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        with getattr(file, which)() as table:
            table["flags"][0] &= 0xFE
            table["sha256"][0] = np.void(bytes(32))

    edit(archive, out, change)
    assert found_late(out, "TSW-803").field == "content_id"
    edit(archive, out, change, lambda file: file.doc.pop("content_id"))
    assert tsw.validate(out).ok
    assert content(out) == content(archive)


def spec_entry_digest(entry: Any, shape: tuple[int, ...], parts: list[bytes]) -> bytes:
    """Section 11.3, word by word."""
    head = b"TSW1-entry\0" + struct.pack("<BBB", entry["kind"], entry["dtype"], len(shape))
    head += b"".join(struct.pack("<Q", size) for size in shape)
    if entry["kind"] == 1:
        head += entry["knob"].tobytes() + bytes([int(entry["factor_dtype"]), int(entry["flags"]) & 0xFE])
    return hashlib.sha256(head + b"".join(parts)).digest()


def test_entry_digests_and_content_id_are_those_of_the_specification(archive: Path) -> None:
    edited = Edited(archive)
    with tsw.open(archive) as file, edited.entries() as entries, edited.tensors() as tensors:
        container = file.container
        whole = hashlib.sha256(b"TSW1-content\0" + struct.pack("<I", len(tensors)))
        for number, record in enumerate(tensors):
            spec = container.index.spec(number)
            name = spec.name.encode()
            whole.update(struct.pack("<H", len(name)) + name + bytes([spec.dtype.id, len(spec.shape)]))
            whole.update(b"".join(struct.pack("<Q", size) for size in spec.shape) + record["sha256"].tobytes())
        whole.update(struct.pack("<IH", 1, 8) + b"a.weight" + struct.pack("<I", 0))
        whole.update(struct.pack("<IH", 1, 3) + b"one" + struct.pack("<I", len(entries)))
        for record, entry in zip(entries, container.entries(0), strict=True):
            parts: list[bytes] = []
            if entry.kind is lay.Kind.TERNARY:
                codes = [entry.factor_codes(role) for role in (lay.Role.ROW_FACTORS, lay.Role.COLUMN_FACTORS)]
                parts += [code.tobytes() for code in codes if code is not None]
                sign = file.switch(entry.spec.name).sign().ravel()
                parts.append(np.packbits(sign != 0, bitorder="little").tobytes())
                parts.append(np.packbits(sign[sign != 0] < 0, bitorder="little").tobytes())
            elif entry.kind is lay.Kind.DENSE:
                parts.append(file.switch(entry.spec.name).data().tobytes())
            assert spec_entry_digest(record, entry.spec.shape, parts) == record["sha256"].tobytes()
            name = entry.spec.name.encode()
            whole.update(struct.pack("<H", len(name)) + name + record["sha256"].tobytes())
        assert file.content_id == whole.hexdigest()
