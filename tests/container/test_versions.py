"""Files of a newer minor version (spec section 13): what is not known is ignored, what cannot be decoded is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from container_files import Edited, content, edit, refused

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.errors import UnsupportedError


def newer(file: Edited) -> None:
    """Minor version 1, with something new wherever there may be."""
    file.prologue = {"minor": 1, "optional_features": 1 << 7, "reserved": b"\1\2\3"}
    file.trailer = {"reserved": b"\1\2\3"}
    for where in (file.doc, file.doc["base"], file.doc["extra"], *file.doc["tasks"]):
        where["a new key"] = {"with": [1, b"anything", "in it"]}
    with file.entries() as table:
        table["vector"], table["flags"] = 77, table["flags"] | 0x88
    with file.segments() as table:
        table["reserved"] = 9
    for which in ("base", "extra"):
        with file.tensors(which) as table:
            table["flags"] |= 1 << 31


@pytest.mark.parametrize("name", ["archive", "mapped"])
def test_a_newer_minor_version_is_read(name: str, request: pytest.FixtureRequest, out: Path) -> None:
    source: Path = request.getfixturevalue(name)
    edit(source, out, newer)
    assert content(out) == content(source)
    with tsw.open(out, verify="off") as file, tsw.open(source) as before:
        assert file.content_id == before.content_id
        assert file.base.keys() == before.base.keys()


@pytest.mark.parametrize("minor", [1, 2, 65535])
def test_the_number_of_a_minor_version_alone_changes_nothing(minor: int, archive: Path, out: Path) -> None:
    edit(archive, out, lambda file: setattr(file, "prologue", {"minor": minor}))
    assert tsw.validate(out).ok
    assert content(out) == content(archive)


def test_what_is_new_is_refused_in_the_version_that_is_known(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        newer(file)
        file.prologue["minor"] = 0

    report = tsw.validate(edit(archive, out, change), "structure")
    assert {"TSW-107", "TSW-307", "TSW-406"} <= {finding.rule for finding in report.findings}


def test_a_newer_minor_version_with_a_required_bit_is_refused_by_the_bit(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        newer(file)
        file.prologue["required_features"] = 1 << 12

    assert refused(edit(archive, out, change), "TSW-103", UnsupportedError).found == "bit 12"


@pytest.mark.parametrize(
    ("table", "field", "value", "rule"),
    [
        ("entries", "kind", 5, "TSW-503"),
        ("entries", "kind", 77, "TSW-503"),
        ("segments", "codec", 77, "TSW-606"),
        ("tensors", "dtype", 77, "TSW-404"),
    ],
)
def test_what_a_newer_file_needs_is_refused_by_its_number(
    table: str, field: str, value: int, rule: str, archive: Path, out: Path
) -> None:
    def change(file: Edited) -> None:
        file.prologue = {"minor": 1}
        records: Any
        with getattr(file, table)() as records:
            records[field][0] = value

    error = refused(edit(archive, out, change), rule, UnsupportedError)
    assert error.found == str(value)
    assert "update tswitch-format" in str(error)


@pytest.mark.parametrize("key", ["profile", "tasks", "writer"])
def test_a_newer_file_still_has_the_keys_of_this_version(key: str, archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.prologue = {"minor": 1}
        del file.doc[key]

    assert refused(edit(archive, out, change), "TSW-307").field == f"index.{key}"


def test_a_newer_index_is_still_canonical(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.prologue = {"minor": 1}
        file.doc["new"] = -1

    refused(edit(archive, out, change), "TSW-301")


def test_known_flags_keep_their_rules_in_a_newer_version(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        file.prologue = {"minor": 1}
        with file.tensors("extra") as table:
            table["flags"][0] = 4 | lay.HAS_SAMPLED

    refused(edit(archive, out, change), "TSW-406")
