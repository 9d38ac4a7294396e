"""Reading touches what is asked for and no more, and checks it when it is touched first."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import Edited, content, edit, make_wide

import tswitch_format as tsw
from tswitch_format.container import reader
from tswitch_format.container.source import PreadSource
from tswitch_format.errors import FormatError, OptionError, TruncatedError, TswError

BACKENDS = ["pread", "mmap"]
Ranges = list[tuple[int, int]]


class CountingSource(PreadSource):
    """Remembers what is read."""

    reads: Ranges

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads = []

    def read(self, offset: int, length: int) -> memoryview:
        self.reads.append((offset, length))
        return super().read(offset, length)

    def read_into(self, offset: int, room: memoryview) -> None:
        self.reads.append((offset, len(room)))
        super().read_into(offset, room)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Ranges:
    """The ranges that are read from the file that is opened next."""
    ranges: Ranges = []

    def open_source(path: Path, backend: str) -> CountingSource:
        source = CountingSource(path)
        source.reads = ranges
        return source

    monkeypatch.setattr(reader, "open_source", open_source)
    return ranges


def segment_ranges(path: Path) -> Ranges:
    with Edited(path).segments() as table:
        return [(int(record["offset"]), int(record["length"])) for record in table]


def flip(source: Path, out: Path, at: int, bit: int = 0) -> Path:
    data = bytearray(source.read_bytes())
    data[at] ^= 1 << bit
    out.write_bytes(data)
    return out


def test_opening_reads_prologue_trailer_and_index_only(wide: Path, reads: Ranges) -> None:
    size = wide.stat().st_size
    with tsw.open(wide) as file:
        index = (file.container.frame.index_offset, file.container.frame.index_length)
        assert reads == [(0, 64), (size - 64, 64), index]
        assert repr(file.switch("wide")).startswith("<Switch 'wide'")
        assert file.switch("wide").shape == (5, 1 << 19)
        assert file.switch("wide").active == 3000
        assert file.switch("wide").knob > 0
        assert (file.keys(), file.base.params, file.profile) == (["wide", "x"], 5 * (1 << 19) + 9, "archive")
        assert len(reads) == 3


def test_opening_makes_as_few_calls_of_pread(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Ranges = []
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        calls.append((offset, length))
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    with tsw.open(wide) as file:
        assert len(calls) == 3
        file.switch("x").mask()
        assert len(calls) == 4  # its signs are all ones, which take no bytes


# Segments of `wide`: the masks of its three chunks, their signs, then mask and sign of x.
@pytest.mark.parametrize(
    ("rows", "chunks"),
    [
        (slice(0, 1), [0]),
        (slice(1, 2), [0]),
        (slice(2, 4), [1]),
        (slice(1, 3), [0, 1]),
        (slice(4, 5), [2]),
        (slice(0, 5), [0, 1, 2]),
        (slice(-1, None), [2]),
        (slice(3, 3), []),
        (slice(4, 1), []),
    ],
)
def test_a_slice_reads_its_chunks_only(rows: slice, chunks: list[int], wide: Path, reads: Ranges) -> None:
    segments = segment_ranges(wide)
    with tsw.open(wide) as file:
        reads.clear()
        part = file.switch("wide")[rows]
        assert reads == []
        mask = part.mask()
        assert reads == [segments[chunk] for chunk in chunks]
        reads.clear()
        sign = part.sign()
        assert reads == [segments[number] for chunk in chunks for number in (chunk, chunk + 3)]
        np.testing.assert_array_equal(mask, file.switch("wide").mask()[rows])
        np.testing.assert_array_equal(mask, sign != 0)


def test_a_tensor_reads_its_segments_only(wide: Path, reads: Ranges) -> None:
    with tsw.open(wide) as file:
        reads.clear()
        assert np.abs(file.switch("x").sign()).sum() == 8
        assert reads == segment_ranges(wide)[6:]


def test_a_structure_check_reads_no_segments(wide: Path, reads: Ranges) -> None:
    assert tsw.validate(wide, "structure").ok
    assert len(reads) == 3
    assert tsw.validate(wide, "checksums").ok
    assert sum(length for _, length in reads[3:]) == wide.stat().st_size  # each byte once


@pytest.mark.parametrize("name", ["archive", "mapped"])
def test_both_backends_and_all_levels_of_checking_give_the_same(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    expected = content(path)
    for backend in BACKENDS:
        for verify in ("lazy", "full", "off"):
            with tsw.open(path, backend=backend, verify=verify) as file:  # type: ignore[arg-type]
                assert file.backend == backend
                for task, tensor in expected:
                    if expected[task, tensor][0] == "ternary":
                        assert file.switch(tensor, task).sign().tobytes() == expected[task, tensor][3]


def test_the_backend_follows_the_profile(archive: Path, mapped: Path) -> None:
    with tsw.open(archive) as a, tsw.open(mapped) as m:
        assert (a.backend, m.backend) == ("pread", "mmap")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [0, 2, 3, 5])
def test_a_damaged_segment_is_found_when_it_is_touched_first(number: int, backend: Any, wide: Path, out: Path) -> None:
    offset, length = segment_ranges(wide)[number]
    flip(wide, out, offset + length // 2)
    with tsw.open(out, backend=backend) as file:
        switch = file.switch("wide")
        good = {0: slice(2, 5), 1: slice(0, 2), 2: slice(0, 4)}[number % 3]
        assert switch[good].mask().any()
        assert file.switch("x").mask().sum() == 8
        for _ in range(2):
            with pytest.raises(FormatError) as caught:
                switch.sign()
            error = caught.value
            assert (error.rule, error.offset, error.field) == ("TSW-701", offset, f"tasks[0].segments[{number}]")
            assert f"at byte {offset}: expected CRC32C" in str(error)
            assert error.expected != f"CRC32C {error.found}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_verification_finds_damage_on_opening_and_off_does_not(backend: Any, mapped: Path, out: Path) -> None:
    flip(mapped, out, segment_ranges(mapped)[0][0])  # a row factor: any byte is one
    with pytest.raises(FormatError, match="TSW-701"):
        tsw.open(out, backend=backend, verify="full")
    with tsw.open(out, backend=backend, verify="off") as file:
        assert file.switch("a.tied").mask().sum() == 20
        assert not np.array_equal(file.switch("a.tied").row_factors, _row_factors(mapped))  # type: ignore[arg-type]
    with tsw.open(out, backend=backend) as file, pytest.raises(FormatError, match="TSW-701"):
        _ = file.switch("a.tied").row_factors


def _row_factors(path: Path) -> Any:
    with tsw.open(path) as file:
        return file.switch("a.tied").row_factors


def test_full_verification_finds_damaged_padding(mapped: Path, out: Path) -> None:
    offset, length = segment_ranges(mapped)[0]
    flip(mapped, out, offset + length)
    with pytest.raises(FormatError, match="TSW-702") as caught:
        tsw.open(out, verify="full")
    assert caught.value.offset == offset + length
    with tsw.open(out) as file:
        assert file.switch("a.tied").mask().sum() == 20


@pytest.mark.parametrize("span", [1, 200, 1 << 22])
def test_the_validator_lists_every_damaged_segment(
    archive: Path, out: Path, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_SPAN", span)  # bytes that are read at once
    data = bytearray(archive.read_bytes())
    ranges = segment_ranges(archive)
    for number in (0, 3, 8, 16):
        data[ranges[number][0]] ^= 0x40
    out.write_bytes(data)
    for level in ("checksums", "full"):
        report = tsw.validate(out, level)  # type: ignore[arg-type]
        assert [finding.offset for finding in report.findings] == [ranges[number][0] for number in (0, 3, 8, 16)]
        assert {finding.rule for finding in report.findings} == {"TSW-701"}


@pytest.mark.parametrize("left", [0, 64, 70])
def test_a_file_cut_while_it_is_open_is_truncated(left: int, wide: Path, out: Path) -> None:
    out.write_bytes(wide.read_bytes())
    with tsw.open(out, backend="pread") as file:
        os.truncate(out, left)
        with pytest.raises(TruncatedError) as caught:
            file.switch("wide").mask()
        assert caught.value.rule == "TSW-105"
        assert "found its end: it was cut after it was opened" in str(caught.value)


def test_a_replaced_file_is_read_on_as_it_was(wide: Path, out: Path) -> None:
    out.write_bytes(wide.read_bytes())
    with tsw.open(out, backend="pread") as file:
        make_wide(out, rows=3)
        assert file.switch("wide").mask().shape == (5, 1 << 19)
        assert file.switch("wide").mask().sum() == 3000


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_stay_and_switches_do_not_after_closing(backend: Any, mapped: Path) -> None:
    with tsw.open(mapped, backend=backend) as file:
        switch = file.switch("a.tied")
        dense = file.switch("g.counts").data()
        mask = switch.mask()
    assert mask.sum() == 20
    assert dense.tolist() == list(range(1, 10))
    with pytest.raises(TswError, match="the file is closed; open it again"):
        switch.mask()
    file.close()


def test_threads_read_the_same(archive: Path) -> None:
    expected = content(archive)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(content, [archive] * 8))
    with tsw.open(archive) as file, ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda _: file.switch("b.weight").sign().tobytes(), range(16)))
    assert set(masks) == {expected["one", "b.weight"][3]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "http"}, "backend: expected 'auto', 'mmap' or 'pread', found 'http'"),
        ({"verify": "maybe"}, "verify: expected 'lazy', 'full' or 'off', found 'maybe'"),
    ],
)
def test_unknown_options_are_named(options: Any, message: str, tiny: Path) -> None:
    with pytest.raises(OptionError, match=message):
        tsw.open(tiny, **options)


@pytest.mark.parametrize("change", [None, lambda file: setattr(file, "encoding", 1)])
def test_a_raw_and_a_compressed_index_read_alike(change: Any, archive: Path, out: Path) -> None:
    edit(archive, out, *([change] if change else []))
    assert content(out) == content(archive)
    assert out.read_bytes()[56] == (1 if change else 0)
