"""The JSON, SARIF and JUnit reports of `tsw validate`, each read by a schema or program that others made.

SARIF is checked against `pydantic-sarif`, models that were generated from the public schema of SARIF 2.1.0 and take no
member that is not in it, and then for what they leave out and for what GitHub code scanning asks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from xml.etree import ElementTree

import jsonschema
import junitparser
import pytest
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifModel
from validate_files import FIELDS, Files, validate

import tswitch_format as tsw
from tswitch_format.rules import RULES
from tswitch_tools.validation.json_report import JsonReport
from tswitch_tools.validation.junit_report import JunitReport
from tswitch_tools.validation.result import Result, Tally
from tswitch_tools.validation.sarif_report import SarifReport

SCHEMA = json.loads((Path(__file__).parents[2] / "spec" / "validate-report.schema.json").read_text())
ODD = os.fsdecode(b"a b%\n\x1b\xff\xe2\x80\xae\xc3\xa9&<\"'>.tsw")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = Files(tmp_path_factory.mktemp("files"))
    made.made(ODD, made.bad.read_bytes())
    made.changed("many.tsw", *range(64, 300))
    return made


def runs(files: Files) -> Iterator[tuple[list[object], bytes | None]]:
    """Arguments, and standard input, for reports of every kind."""
    many = files.folder / "many.tsw"
    yield [files.good], None
    yield [files.bad], None
    yield [many, "--level", "checksums"], None
    yield [files.newer], None
    yield [files.missing], None
    yield [files.folder / ODD, files.good], None
    yield [files.good, files.bad, many, files.newer, files.missing, "--level", "structure"], None
    yield [files.good, "--base", files.other_base], None
    yield [files.good, "--base", files.missing], None
    yield ["-"], files.bad.read_bytes()
    yield ["-", files.good], b""
    yield [files.folder, "--jobs", 2], None


def reports(files: Files, form: str) -> Iterator[tuple[str, int]]:
    """The reports of all those runs, with their exit codes. Each is ASCII."""
    for arguments, stdin in runs(files):
        result = validate(*arguments, "--format", form, stdin=stdin)
        assert result.stderr == "" and result.stdout.isascii()
        yield result.stdout, result.exit_code


# JSON


def test_the_json_schema_is_a_strict_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def objects(schema: Any) -> Iterator[dict[str, Any]]:
        for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            yield from objects(value)
        if isinstance(schema, dict) and schema.get("type") == "object":
            yield schema

    found = list(objects(SCHEMA))
    assert len(found) == 5
    for schema in found:
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == set(schema["properties"])
    assert set(SCHEMA["$defs"]["finding"]["required"]) == FIELDS


def test_json_is_as_its_schema_says(files: Files) -> None:
    codes = set()
    for text, code in reports(files, "json"):
        document = json.loads(text)
        jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
        summary = document["summary"]
        assert summary["exit_code"] == code
        statuses = [file["status"] for file in document["files"]]
        assert summary["files"] == len(statuses)
        assert {status: summary[status] for status in ("valid", "invalid", "newer", "unreadable")} == {
            status: statuses.count(status) for status in ("valid", "invalid", "newer", "unreadable")
        }
        assert summary["findings"] == sum(len(file["findings"]) for file in document["files"])
        codes.add(code)
    assert codes == {0, 1, 3, 4}


def test_the_json_schema_refuses_what_is_wrong(files: Files) -> None:
    changes: list[Callable[[Any], Any]] = [
        lambda d: d.update(more=1),
        lambda d: d.update(version=2),
        lambda d: d.update(level="all"),
        lambda d: d["files"][0].update(ok=True),
        lambda d: d["files"][0].update(status="valid"),
        lambda d: d["files"][0].update(unreadable="why"),
        lambda d: d["files"][0].pop("findings"),
        lambda d: d["files"][0]["findings"].clear(),
        lambda d: d["files"][0]["findings"][0].update(rule="TSW-1"),
        lambda d: d["files"][0]["findings"][0].update(offset=-1),
        lambda d: d["files"][0]["findings"][0].update(severity="fatal"),
        lambda d: d["files"][0]["findings"][0].pop("expected"),
        lambda d: d["summary"].update(exit_code=2),
    ]
    text = validate(files.bad, "--format", "json").stdout
    for change in changes:
        document = json.loads(text)
        jsonschema.validate(document, SCHEMA)
        change(document)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, SCHEMA)


def test_json_has_everything_of_a_finding(files: Files) -> None:
    (file,) = json.loads(validate(files.bad, "--format", "json").stdout)["files"]
    (finding,) = file["findings"]
    (original,) = tsw.validate(files.bad).findings
    for name in FIELDS - {"message"}:
        assert finding[name] == getattr(original, name)
    assert finding["message"] + "\n" == validate(files.bad).stdout


def test_json_names_are_those_of_the_files_where_they_are_text(files: Files) -> None:
    (file,) = json.loads(validate(files.made("ä\n\x01.tsw", b""), "--format", "json").stdout)["files"]
    assert file["file"] == str(files.folder / "ä\n\x01.tsw")
    (file,) = json.loads(validate(files.folder / ODD, "--format", "json").stdout)["files"]
    assert file["file"] == f"{files.folder}/a b%\n\x1b\\xff\u202eé&<\"'>.tsw"


# SARIF


def sarif_problems(document: Any) -> Iterator[str]:
    """What the public schema forbids and the models allow: objects that need one of several members, lists with doubles."""
    if isinstance(document, list):
        for member in document:
            yield from sarif_problems(member)
    if not isinstance(document, dict):
        return
    needs = {
        "message": {"text", "id"},
        "region": {"startLine", "charOffset", "byteOffset"},
        "physicalLocation": {"artifactLocation", "address"},
        "descriptor": {"index", "guid", "id"},
    }
    for name, value in document.items():
        if name in needs and not needs[name] & set(value):
            yield f"{name} has none of {needs[name]}"
        if name in ("rules", "artifacts", "toolExecutionNotifications", "locations") and len(
            {json.dumps(member, sort_keys=True) for member in value}
        ) != len(value):
            yield f"{name} has doubles"
        yield from sarif_problems(value)


def sarif(text: str) -> Any:
    """The one run of a SARIF report that is as the standard says."""
    document = json.loads(text)
    SarifModel.model_validate_json(text)
    assert list(sarif_problems(document)) == []
    assert document["version"] == "2.1.0" and document["$schema"].endswith("/sarif-schema-2.1.0.json")
    (run,) = document["runs"]
    return run


def test_sarif_is_as_the_standard_says(files: Files) -> None:
    for text, code in reports(files, "sarif"):
        run = sarif(text)
        (invocation,) = run["invocations"]
        assert invocation["exitCode"] == code
        assert invocation["executionSuccessful"] == (code != 3)
        assert bool(invocation["toolExecutionNotifications"]) == (code == 3)
        assert bool(run["results"]) or code in (0, 3)


def test_the_sarif_models_refuse_what_is_wrong(files: Files) -> None:
    text = validate(files.bad, "--format", "sarif").stdout
    for wrong in (
        text.replace('"ruleIndex"', '"ruleindex"'),
        text.replace('"level": "error"', '"level": "fatal"'),
        text.replace('"2.1.0"', '"2.0.0"'),
        text.replace('"driver"', '"program"'),
        text.replace('"startLine": 1', '"startLine": 0'),
        text.replace('"executionSuccessful"', '"successful"'),
    ):
        assert wrong != text
        with pytest.raises(ValueError, match="validation error"):
            SarifModel.model_validate_json(wrong)


def test_sarif_results_are_what_github_asks_for(files: Files) -> None:
    run = sarif(validate(files.folder, "--base", files.other_base, "--format", "sarif").stdout)
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule for rule in RULES if rule <= "TSW-902"]
    for rule in rules:
        assert rule["shortDescription"]["text"] == RULES[rule["id"]]
        assert all(0 < len(rule[name]["text"]) < 1024 for name in ("shortDescription", "fullDescription", "help"))
    found = set()
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] == "error" and "expected" in result["message"]["text"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        region = place["region"]
        assert (region["startLine"], region["startColumn"], region["endLine"], region["endColumn"]) == (1, 1, 1, 1)
        assert ("byteOffset" in region) == (result["ruleId"] != "TSW-902")
        found.add((place["artifactLocation"]["uri"], *result["partialFingerprints"].items()))
    assert len(found) == len(run["results"]) >= 6
    assert {result["ruleId"] for result in run["results"]} >= {"TSW-102", "TSW-701", "TSW-902"}


def test_sarif_uris_are_those_of_the_files(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files.folder)
    run = sarif(validate("./" + ODD, "c:d.tsw", files.folder / ODD, "--format", "sarif").stdout)
    root = run["originalUriBaseIds"]["SRCROOT"]["uri"]
    assert root == run["invocations"][0]["workingDirectory"]["uri"] == f"file://{files.folder}/"
    (result,) = run["results"]  # the same file by both names
    artifact = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert artifact["uriBaseId"] == "SRCROOT" and artifact["uri"].isascii()
    assert unquote_to_bytes(artifact["uri"]) == os.fsencode(ODD)
    (notification,) = run["invocations"][0]["toolExecutionNotifications"]
    uri = notification["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert urlsplit(uri).scheme == "" and unquote_to_bytes(uri) == b"c:d.tsw"
    (result,) = sarif(validate(files.folder / ODD, "--format", "sarif").stdout)["results"]
    artifact = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert urlsplit(artifact["uri"]).scheme == "file" and "uriBaseId" not in artifact
    assert unquote_to_bytes(urlsplit(artifact["uri"]).path) == os.fsencode(files.folder / ODD)
    (result,) = sarif(validate("-", "--format", "sarif", stdin=b"").stdout)["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "-"


def test_sarif_fingerprints_stay_where_files_are_the_same(files: Files) -> None:
    def prints(*arguments: object) -> list[str]:
        results = sarif(validate(*arguments, "--format", "sarif").stdout)["results"]
        return [result["partialFingerprints"]["primaryLocationLineHash"] for result in results]

    many = files.folder / "many.tsw"
    assert prints(many) == prints(files.bad, many)[1:]


# JUnit


def test_junit_counts_are_those_of_its_cases(files: Files) -> None:
    for text, code in reports(files, "junit"):
        report = junitparser.JUnitXml.fromstring(text)
        (suite,) = report
        cases = list(suite)
        tags = [result._tag for case in cases for result in case.result]
        for counted in (report, suite):
            assert (counted.tests, counted.failures, counted.errors, counted.skipped) == (
                len(cases), tags.count("failure"), tags.count("error"), 0
            )  # fmt: skip
            assert counted.time == pytest.approx(sum(case.time for case in cases), abs=0.001 * len(cases) + 0.001)
        assert bool(tags) == (code != 0)


def test_junit_has_the_lines_of_the_text(files: Files) -> None:
    arguments = [files.good, files.folder / "many.tsw", files.newer, files.missing, files.folder / ODD]
    (suite,) = junitparser.JUnitXml.fromstring(validate(*arguments, "--format", "junit").stdout)
    lines = [line for case in suite for result in case.result for line in result.text.splitlines()]
    assert lines == validate(*arguments, "-q").stdout.splitlines()[:-1]
    valid, many, newer, missing, odd = suite
    assert valid.name == str(files.good) and valid.is_passed
    assert many.result[0].type == "TSW-701" and "(and " in many.result[0].message
    assert newer.result[0].type == "TSW-102"
    assert missing.result[0].type == "unreadable"
    assert odd.name == f"{files.folder}/a b%\\n\\x1b\\xff\\u202eé&<\"'>.tsw"


# All of them


def test_files_that_turn_out_unreadable_keep_their_findings() -> None:
    finding = tsw.Finding("TSW-701", "error", "x", 70, "segment", "one", "another", "")
    result = Result("x", tsw.ValidationReport("x", "full", (finding,), unreadable="x: byte 9 could not be read: why"))
    tally = Tally()
    tally.add(result)
    assert result.reason == "byte 9 could not be read: why"
    texts = {}
    for name, writer in (("json", JsonReport("full")), ("sarif", SarifReport()), ("junit", JunitReport())):
        texts[name] = writer.begin() + writer.add(result) + writer.end(tally)
    document = json.loads(texts["json"])
    jsonschema.validate(document, SCHEMA)
    assert (document["files"][0]["status"], len(document["files"][0]["findings"])) == ("unreadable", 1)
    run = sarif(texts["sarif"])
    assert len(run["results"]) == len(run["invocations"][0]["toolExecutionNotifications"]) == 1
    (suite,) = junitparser.JUnitXml.fromstring(texts["junit"])
    (error,) = next(iter(suite)).result
    assert error.text.splitlines() == list(result.lines()) and len(list(result.lines())) == 2


@pytest.mark.parametrize("text", ["\0\x1b\x7f\ud800\udcff\ufffe\uffff\u2028]]>&<\"'\\", os.fsdecode(b"\xed\xa0\x80")])
def test_no_text_breaks_a_format(text: str) -> None:
    """Findings quote what stands in files that others made."""
    finding = tsw.Finding("TSW-706", "error", text, 3, text, text, text, text)
    result = Result(ODD, tsw.ValidationReport(text, "full", (finding,)))
    unread = Result.unread(ODD, text)
    tally = Tally()
    for one in (result, unread):
        tally.add(one)
    whole = {}
    for name, writer in (("json", JsonReport("full")), ("sarif", SarifReport()), ("junit", JunitReport())):
        whole[name] = writer.begin() + writer.add(result) + writer.add(unread) + writer.end(tally)
        assert whole[name].isascii()
    document = json.loads(whole["json"])
    jsonschema.validate(document, SCHEMA)
    json.dumps(document, ensure_ascii=False).encode()  # no lone surrogates
    json.dumps(sarif(whole["sarif"]), ensure_ascii=False).encode()
    assert len(ElementTree.fromstring(whole["junit"])[0]) == 2
