"""The JSON that `spec/validate-report.schema.json` describes. A file a line, ASCII only."""

from __future__ import annotations

import json
from typing import Any

from tswitch_format import FORMAT_VERSION, Finding, __version__
from tswitch_tools.validation.result import Result, Status, Tally
from tswitch_tools.validation.writer import unicode


class JsonReport:
    """Writes the report of a run at `level`."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._between = "\n"

    def begin(self) -> str:
        """The head."""
        tool = {"name": "tsw", "version": __version__, "format": FORMAT_VERSION}
        head = f'"version": 1,\n"tool": {json.dumps(tool)},\n"level": {json.dumps(self._level)}'
        return f'{{\n{head},\n"files": ['

    def add(self, result: Result) -> str:
        """One member of `files`."""
        reason = result.reason
        document = {
            "file": unicode(result.name),
            "status": result.status,
            "ok": result.status is Status.VALID,
            "unreadable": None if reason is None else unicode(reason),
            "findings": [_finding(result, finding) for finding in result.report.findings],
        }
        between, self._between = self._between, ",\n"
        return between + json.dumps(document)

    def end(self, tally: Tally) -> str:
        """The summary."""
        counts = {str(status): tally.counts[status] for status in Status}
        summary = {"files": tally.files, **counts, "findings": tally.findings, "exit_code": tally.code}
        return f'\n],\n"summary": {json.dumps(summary)}\n}}\n'


def _finding(result: Result, finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "file": unicode(result.name),
        "offset": finding.offset,
        "field": unicode(finding.field),
        "expected": unicode(finding.expected),
        "found": unicode(finding.found),
        "message": unicode(result.line(finding)),
    }
