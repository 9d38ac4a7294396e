"""Both readers on files as they are: the conformance suite, the golden files, files packed from seeded models."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from differential_models import make
from differential_readers import SLOT, Tally, compare, library
from mutation_sealing import body_of, sealed
from tsw_reference import describe, read
from tsw_reference.digest import content_digest, entry_digest
from tsw_reference.layout import DTYPES as REFERENCE_DTYPES

from fuzz.parts import Parts, pack
from tswitch_format._dtypes import DTYPES
from tswitch_format.container.reader import Container

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "spec" / "vectors"
RECORDS = [r for r in json.loads((VECTORS / "manifest.json").read_text()) if r["path"].endswith(".tsw")]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.tsw"))
GENERATED = 60


def digests_agree(data: bytes) -> None:
    """The digests of all entries and the content id are the same, computed by both, present in the file or not."""
    file = read(data)
    container = Container(SLOT.put(data))
    try:
        for number, task in enumerate(file.tasks):
            for theirs, ours in zip(task.entries, container.entries(number), strict=True):
                assert entry_digest(file, theirs) == ours.content_digest()
        if file.content_id is not None:
            assert content_digest(file) == container.index.content_id
    finally:
        container.close()


def check_suite(records: list[dict[str, Any]]) -> Tally:
    """Both readers agree on files of the suite, and with its manifest."""
    tally = Tally()
    for record in records:
        assert compare((VECTORS / record["path"]).read_bytes(), tally) == (record["verdict"] == "accept"), record[
            "path"
        ]
    return tally


@pytest.mark.parametrize("part", ["valid", "newer", "invalid"])
def test_suite(part: str) -> None:
    records = [record for record in RECORDS if record["path"].startswith(part) and not record.get("large")]
    tally = check_suite(records)
    assert tally.total == len(records) and not tally.permitted


@pytest.mark.slow
def test_large_files_of_the_suite() -> None:
    print(f"\nlarge files of the suite: {check_suite([record for record in RECORDS if record.get('large')])}")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_golden(path: Path) -> None:
    data = path.read_bytes()
    assert compare(data)
    digests_agree(data)


@pytest.mark.parametrize("seed", range(GENERATED))
def test_generated(seed: int, tmp_path: Path) -> None:
    data = make(seed, tmp_path).data
    assert compare(data)
    digests_agree(data)


def test_generated_with_chunks(tmp_path: Path) -> None:
    for seed in (0, 6):
        made = make(seed, tmp_path, chunks=True)
        assert compare(made.data)
        digests_agree(made.data)


@pytest.mark.slow
def test_many_generated(tmp_path: Path) -> None:
    tally = Tally()
    for seed in range(GENERATED, 1500):
        assert compare(make(seed, tmp_path).data, tally), seed
    for seed in range(1500, 1540):
        assert compare(make(seed, tmp_path, chunks=True).data, tally), seed
    print(f"\ngenerated: {tally}")


@pytest.mark.parametrize("minor", [0, 1, 65535])
@pytest.mark.parametrize("path", [GOLDEN[1], GOLDEN[-1]], ids=lambda path: path.name)
def test_of_another_minor_version(path: Path, minor: int) -> None:
    data = path.read_bytes()
    assert compare(sealed(body_of(data), pack(Parts.of(data).document), minor=minor))
    assert library.decode(SLOT.path)["version"] == f"1.{minor}"


def test_two_descriptions_of_one_bit_differ() -> None:
    """The comparison sees a single bit: of a mask, of a knob, of a name."""
    path = ROOT / "tests" / "golden" / "bare.tsw"
    before = describe(read(path.read_bytes()))
    for change in ("payload", "knob", "name"):
        apart = Parts.of(path.read_bytes())
        apart.forget_digests()
        entries = apart.table(0, "entries")
        if change == "payload":
            apart.payloads[0][-1] = bytes([apart.payloads[0][-1][0] ^ 1]) + apart.payloads[0][-1][1:]
        elif change == "knob":
            bits = struct.unpack("<I", entries["knob"][:1].tobytes())[0] ^ 1
            entries["knob"][:1].view("<u4")[0] = bits
            apart.put_table(0, "entries", entries)
        else:
            apart.document["tasks"][0]["name"] = "u"
        data = apart.build()
        assert compare(data)
        assert describe(read(data)) != before


def test_every_dtype_is_known() -> None:
    assert {i: (d.name, d.bits) for i, d in DTYPES.items()} == {i: tuple(d) for i, d in REFERENCE_DTYPES.items()}
