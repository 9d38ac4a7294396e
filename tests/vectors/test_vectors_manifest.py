"""The suite's manifest is true, and the suite has what it promises: every rule, every form, small files."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "spec" / "vectors"


@pytest.fixture(scope="module")
def rules():
    text = (ROOT / "spec" / "tsw-1.md").read_text(encoding="utf-8")
    table = text.partition("<!-- table: rules -->")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| (TSW-\d{3}) \|", table, re.MULTILINE))


def test_files_are_as_the_manifest_says(runner, records):
    assert runner.damage(records) == []
    assert all((FOLDER / r["path"]).stat().st_size == r["length"] for r in records)


def test_every_file_is_in_the_manifest_once(runner, records):
    named = Counter(path for r in records for path in (r["path"], r.get("content")) if path)
    assert set(named.values()) == {1}
    present = {f"{part}/{p.name}" for part in ("valid", "newer", "invalid", "apply") for p in (FOLDER / part).iterdir()}
    assert present == set(named)


def test_records_have_the_keys_of_their_verdict(records, rules):
    for r in records:
        assert r["reason"], r
        if r["verdict"] == "refuse":
            assert r["rule"] in rules and "content" not in r, r
        else:
            assert r["verdict"] == "accept" and "rule" not in r, r
            assert ("content" in r) == (not r["path"].startswith("apply/")), r
            assert r.get("content", "") is not None or r.get("large"), "only large files go without content"
        assert r.get("newer", False) == r["path"].startswith("newer/"), r


def test_every_rule_on_files_is_broken_by_a_file(records, rules):
    broken = {r["rule"] for r in records if r["path"].startswith("invalid/")}
    assert len(rules) > 50
    assert broken == {rule for rule in rules if rule < "TSW-900"}


def test_every_rule_on_applying_is_broken_by_a_case(records, rules):
    broken = {r["rule"] for r in records if r["path"].startswith("apply/") and r["verdict"] == "refuse"}
    assert broken == {"TSW-901", "TSW-902", "TSW-903"}, "the later ones are on programs alone"


def test_what_a_later_version_may_bring_is_refused_by_its_number(records):
    refused = {r["rule"] for r in records if r.get("newer") and r["verdict"] == "refuse"}
    assert {
        "TSW-102",
        "TSW-103",
        "TSW-106",
        "TSW-308",
        "TSW-404",
        "TSW-409",
        "TSW-503",
        "TSW-601",
        "TSW-606",
    } <= refused


def test_the_suite_stays_small():
    sizes = {p: p.stat().st_size for p in FOLDER.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert max(sizes.values()) < 384 * 1024, max(sizes, key=sizes.__getitem__)
    assert sum(sizes.values()) < 5 * 1024 * 1024


def test_damage_is_found(runner, records, tmp_path):
    record = next(r for r in records if r.get("content"))
    for path in (record["path"], record["content"]):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((FOLDER / path).read_bytes())
    assert runner.damage([record], tmp_path) == []
    (tmp_path / record["content"]).write_bytes(b"{}")
    assert runner.damage([record], tmp_path)[0].startswith(record["content"])
    (tmp_path / record["path"]).unlink()
    assert len(runner.damage([record], tmp_path)) == 2
