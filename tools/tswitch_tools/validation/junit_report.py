"""JUnit's XML: a test case for each file, a failure for its findings, an error where it could not be read."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from tswitch_tools.validation.result import Result, Status, Tally
from tswitch_tools.validation.writer import plain


class JunitReport:
    """Writes one suite, at the end, as its counts stand in front of its cases."""

    def __init__(self) -> None:
        self._cases: list[str] = []

    def begin(self) -> str:
        """Nothing yet."""
        return ""

    def add(self, result: Result) -> str:
        """Nothing yet."""
        self._cases.append(_case(result))
        return ""

    def end(self, tally: Tally) -> str:
        """The whole report."""
        counts = {
            "tests": tally.files,
            "failures": tally.counts[Status.INVALID] + tally.counts[Status.NEWER],
            "errors": tally.counts[Status.UNREADABLE],
            "skipped": 0,
            "time": f"{tally.seconds:.3f}",
        }
        attributes = "".join(f' {name}="{value}"' for name, value in counts.items())
        cases = _ascii("".join(self._cases))
        head = f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites name="tsw validate"{attributes}>\n'
        return f'{head}<testsuite name="tsw validate"{attributes}>\n{cases}</testsuite>\n</testsuites>\n'


def _case(result: Result) -> str:
    start = f'<testcase classname="tsw.validate" name={_attribute(result.name)} time="{result.seconds:.3f}"'
    if result.status is Status.VALID:
        return f"{start}/>\n"
    if result.status is Status.UNREADABLE:
        tag, kind, message = "error", "unreadable", result.reason or ""
    else:
        first = result.report.findings[0]
        more = len(result.report.findings) - 1
        tag, kind = "failure", first.rule
        message = result.describe(first) + (f" (and {more} more)" if more else "")
    lines = "\n".join(escape(plain(line)) for line in result.lines())
    return f"{start}>\n<{tag} type={_attribute(kind)} message={_attribute(message)}>{lines}</{tag}>\n</testcase>\n"


def _attribute(text: str) -> str:
    return quoteattr(plain(text))  # XML 1.0 has no control characters, not even as references


def _ascii(text: str) -> str:
    """All else as references: the report is the same in every encoding."""
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")
