"""SARIF 2.1.0, as the standard has it and with what GitHub code scanning demands beyond: every result has lines, though a
.tsw file has none, and a fingerprint; every rule has all three of its descriptions.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tswitch_format import Finding, __version__
from tswitch_format.rules import RULES
from tswitch_tools.validation.result import Result, Status, Tally
from tswitch_tools.validation.targets import STDIN
from tswitch_tools.validation.writer import plain

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "SRCROOT"  # what relative URIs are relative to: the working directory
_REPORTED = {rule: text for rule, text in RULES.items() if rule <= "TSW-902"}  # those beyond are on programs alone
_INDEX = {rule: index for index, rule in enumerate(_REPORTED)}
_NO_LINES = {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1}


class SarifReport:
    """Writes one run. Results come as they are found; files that cannot be read are told of in `invocations`, at the end."""

    def __init__(self) -> None:
        self._between = "\n"
        self._unread: list[dict[str, Any]] = []
        self._folder = Path.cwd().as_uri() + "/"

    def begin(self) -> str:
        """The tool with its rules."""
        driver = {"name": "tsw validate", "version": __version__, "rules": [_rule(*rule) for rule in _REPORTED.items()]}
        bases = {_ROOT: {"uri": self._folder}}
        head = f'"$schema": {json.dumps(_SCHEMA)},\n"version": "2.1.0",\n"runs": [{{\n'
        head += f'"tool": {json.dumps({"driver": driver})},\n"originalUriBaseIds": {json.dumps(bases)},\n'
        return f'{{\n{head}"results": ['

    def add(self, result: Result) -> str:
        """The results of one file."""
        if result.reason is not None:
            self._unread.append(_notification(result, result.reason))
        text = ""
        for finding in result.report.findings:
            text += self._between + json.dumps(_result(result, finding))
            self._between = ",\n"
        return text

    def end(self, tally: Tally) -> str:
        """How the run went."""
        invocation = {
            "executionSuccessful": not tally.counts[Status.UNREADABLE],
            "exitCode": tally.code,
            "workingDirectory": {"uri": self._folder},
            "toolExecutionNotifications": self._unread,
        }
        return f'\n],\n"invocations": [{json.dumps(invocation)}]\n}}]\n}}\n'


def _rule(rule: str, text: str) -> dict[str, Any]:
    return {
        "id": rule,
        "shortDescription": {"text": text},
        "fullDescription": {
            "text": f"A .tsw file {'fits a base' if rule >= 'TSW-900' else 'is valid'} only if {text}."
        },
        "help": {"text": f"Rule {rule} of the TSW format: {text}. See spec/tsw-1.md, section 14, in its repository."},
        "defaultConfiguration": {"level": "error"},
    }


def _result(result: Result, finding: Finding) -> dict[str, Any]:
    region: dict[str, int] = dict(_NO_LINES)
    if finding.offset is not None:
        region["byteOffset"] = finding.offset  # without a length: a finding says where it begins, not where it ends
    return {
        "ruleId": finding.rule,
        "ruleIndex": _INDEX[finding.rule],
        "level": finding.severity,
        "message": {"text": plain(result.describe(finding))},
        "locations": [{"physicalLocation": {"artifactLocation": _artifact(result.name), "region": region}}],
        "partialFingerprints": {"primaryLocationLineHash": _fingerprint(finding)},
    }


def _notification(result: Result, reason: str) -> dict[str, Any]:
    return {
        "level": "error",
        "message": {"text": plain(f"{result.name}: {reason}")},
        "locations": [{"physicalLocation": {"artifactLocation": _artifact(result.name)}}],
    }


def _artifact(name: str) -> dict[str, Any]:
    """A URI of any file name: percent-encoded bytes, a colon too, which would end a scheme."""
    if name == STDIN:
        return {"uri": STDIN, "description": {"text": "standard input"}}
    path = os.path.normpath(name)
    if Path(path).is_absolute():
        return {"uri": "file://" + quote(os.fsencode(path))}
    return {"uri": quote(os.fsencode(path)), "uriBaseId": _ROOT}


def _fingerprint(finding: Finding) -> str:
    """The same finding in the same file has the same fingerprint in every run."""
    what = f"{finding.rule}\0{finding.field}\0{finding.offset}"
    return hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[:16] + ":1"
