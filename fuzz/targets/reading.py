"""Files, and the parts that opening reads."""

from __future__ import annotations

import importlib
import itertools
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tswitch_format as tsw
from fuzz import parts
from fuzz.limits import DECODED, limited, promise
from fuzz.memory import MemorySource, Slot
from tswitch_format import _layout as lay
from tswitch_format.container import document as documents
from tswitch_format.container import frame as framing
from tswitch_format.container.frame import Frame
from tswitch_format.container.index import Index
from tswitch_format.container.parse import parse
from tswitch_format.container.reader import Container
from tswitch_format.container.report import Report, StopReading
from tswitch_format.container.verify import Level, ValidationReport
from tswitch_format.errors import FormatError, TswError
from tswitch_format.rules import RULES

Backend = Literal["pread", "mmap"]
BACKENDS: tuple[Backend, ...] = ("pread", "mmap")
_LEVELS: tuple[Level, ...] = ("structure", "checksums", "full")
_REFERENCE = 1 << 20  # bytes decoded by a program in plain Python


@cache
def slot() -> Slot:
    """The file that all harnesses put their input into."""
    return Slot("input")


def frame(data: bytes) -> None:
    """Prologue and trailer, with right checksums: what is accepted is built again to the same bytes."""
    data = parts.sign(data)
    with limited():
        found, errors = _both_ways(lambda report: framing.read(MemorySource(data), report), len(data))
    if found is None or errors:
        return
    promise(found.file_length == len(data) and found.index_offset >= lay.FRAME, "a frame that does not fit the file")
    head = np.frombuffer(data, lay.PROLOGUE, 1)[0]
    if found.minor == lay.MINOR and not head["optional_features"]:
        promise(
            framing.build(found) == (data[: lay.FRAME], data[-lay.FRAME :]), "build gives other bytes than were read"
        )


def document(data: bytes) -> None:
    """A MessagePack document: what is accepted is canonical, and spec/reference agrees on what is."""

    def fail(rule: str, expected: str, found: str, position: int) -> Exception:
        promise(rule in RULES and 0 <= position <= len(data), f"{rule} at byte {position} of {len(data)}")
        return _Refused(rule, expected, found)

    value: Any = None
    refused = None
    with limited():
        try:
            value = documents.decode(data, fail)
        except _Refused as error:
            refused = error
    reader = reference_reader("msgpack")
    try:
        same = reader.decode(data)
    except reader.BrokenError as error:
        promise(refused, f"accepted, but the reference says {error}")
        return
    promise(not refused, f"refused by {refused}, but the reference accepts it")
    promise(_copied(value) == same, "another value than the reference's")
    promise(documents.encode(value) == data, "encode gives other bytes than were decoded")


def _copied(value: Any) -> Any:
    """A document whose bins are bytes instead of views."""
    if isinstance(value, dict):
        return {key: _copied(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_copied(member) for member in value]
    return bytes(value) if isinstance(value, memoryview) else value


class _Refused(Exception):  # noqa: N818  # a verdict
    pass


def index(data: bytes) -> None:
    """Where the index begins (u32), minor version (u16), then the decoded index: accepted documents are built again."""
    if len(data) < 6:
        return
    start, minor = struct.unpack_from("<IH", data)
    text = data[6:]
    frame = Frame(start, len(text), len(text), lay.Encoding.RAW, minor=minor)
    with limited():
        found, errors = _both_ways(lambda report: parse(text, frame, report), frame.file_length)
        if found is None or errors:
            return
        look_around(found)
    if minor <= lay.MINOR:
        promise(found.encode() == text, "the index is built again to other bytes")


def look_around(index: Index) -> None:
    """Ask an accepted index for everything that it can say."""
    for number in range(len(index.base) + len(index.extra)):
        spec = index.spec(number)
        promise(spec.name == index.name(number) and 0 <= spec.elements <= lay.MAX_SIZE, "a tensor beyond the limits")
    promise(index.base.nbytes() >= 0, "a base of negative size")
    for number in range(len(index.shared)):
        spec = index.shared.arrays.spec(number)
        owners: Any = {
            lay.SharedRole.VECTOR: index.base.numbers,
            lay.SharedRole.FEATURES: index.task_numbers,
            lay.SharedRole.COEFFICIENTS: index.coefficients,
        }
        promise(spec.name in owners[index.shared.roles[number]], "a shared array of nothing")
    for table in index.coefficients.values():
        promise(set(table.tasks) <= index.task_numbers.keys(), "a column of nothing")
        promise(int(table.rows.max()) < len(index.base), "a row of nothing")
    for task in index.tasks:
        promise(int(index.segment_counts(task.entries).sum()) == len(task.segments), "another number of segments")


def open_file(data: bytes) -> None:
    """A whole file: both backends give the same or the same error, in bounded memory; `validate` at structure agrees."""
    path = slot().put(data)
    outcomes = []
    for backend in BACKENDS:
        with limited():
            outcomes.append(_opened(path, backend, len(data)))
    promise(outcomes[0] == outcomes[1], f"pread gives {outcomes[0]}, mmap {outcomes[1]}")
    with limited():
        report = tsw.validate(path, "structure")
    check_report(report, len(data))
    refused = outcomes[0].startswith("TSW-")
    promise(report.ok != refused, f"open says {outcomes[0]}, validate {[str(f.rule) for f in report.findings]}")


def _opened(path: Path, backend: Backend, length: int) -> str:
    try:
        with tsw.open(path, backend=backend) as file:
            seen: list[Any] = [file.tasks, file.metadata, file.profile, file.content_id, file.version, file.base.keys()]
            seen += [file.base.params, file.base.nbytes, file.base.aliases, repr(file)]
            for task in file.tasks:
                seen += [file.keys(task), file.recipe(task)]
                seen += [repr(file.switch(name, task)) for name in file.keys(task)]
            look_around(file.container.index)
            return f"opened {seen}"
    except FormatError as error:
        check_error(error, length)
        return str(error.rule)


def validate(data: bytes) -> None:
    """All levels: never an exception; findings are well-formed and grow with the level; full agrees with decoding."""
    path = slot().put(data)
    reports = {}
    size = 0
    for level in _LEVELS:
        with limited(size):
            reports[level] = tsw.validate(path, level)
        check_report(reports[level], len(data))
        if level == "structure" and reports[level].ok:
            size = declared(path)
            if size > DECODED:
                return
    for less, more in itertools.pairwise(_LEVELS):
        missing = {f.rule for f in reports[less].findings} - {f.rule for f in reports[more].findings}
        promise(not missing, f"{less} finds {missing}, {more} does not")
    if reports["structure"].ok:
        broken = _first_error(path)
        full = [finding.rule for finding in reports["full"].findings]
        promise(reports["full"].ok == (broken is None), f"validate finds {full}, open(verify='full') raises {broken}")
        promise(broken is None or broken in full, f"validate finds {full}, open(verify='full') raises {broken}")


def _first_error(path: Path) -> str | None:
    try:
        with tsw.open(path, verify="full"):
            return None
    except FormatError as error:
        return str(error.rule)


def decode(data: bytes) -> None:
    """Everything that an accepted file holds: masks, signs, deltas, data and rows agree with each other, on both backends."""
    path = slot().put(data)
    try:
        size = declared(path)
    except TswError:
        return
    if size > DECODED:
        return
    outcomes = []
    for backend in BACKENDS:
        with limited(size):
            outcomes.append(_decoded(path, backend, len(data)))
    promise(outcomes[0] == outcomes[1], "pread and mmap decode to something else")


def decode_once(data: bytes) -> None:
    """A file without digests: `validate` accepts it if and only if all of it decodes."""
    path = slot().put(data)
    with limited(DECODED // 16):
        report = tsw.validate(path)
    check_report(report, len(data))
    try:
        outcomes = _decoded(path, "pread", len(data))
    except FormatError as error:
        promise(error.rule in {finding.rule for finding in report.findings}, f"open raises {error}, validate does not")
        return
    broken = {outcome[2] for outcome in outcomes if outcome[2] in RULES}
    found = {finding.rule for finding in report.findings}
    # A mask that does not decode keeps its signs from being decoded, so validate may know more.
    promise(broken <= found and bool(broken) == bool(found), f"decoding raises {broken}, validate finds {found}")


def _decoded(path: Path, backend: Backend, length: int) -> list[Any]:
    """Content or broken rule of each entry, of the router if there is one, and of tables."""
    found: list[Any] = []
    with tsw.open(path, backend=backend) as file:
        for task in file.tasks:
            for name in file.keys(task):
                try:
                    found.append((task, name, *_content(file.switch(name, task))))
                except FormatError as error:
                    check_error(error, length)
                    found.append((task, name, error.rule))
        try:
            router = file.router
        except FormatError as error:
            check_error(error, length)
            found.append(("", "router", error.rule))
        else:
            samples = router.features if router is not None else {}
            found += [(task, "router", array.shape, array.tobytes()) for task, array in samples.items()]
        for name in file.tables:
            try:
                table = file.tables[name]
            except FormatError as error:
                check_error(error, length)
                found.append(("", name, error.rule))
            else:
                found.append((name, table.rows, table.tasks, table.clamp, table.values.tobytes()))
    return found


def _content(switch: tsw.Switch) -> tuple[Any, ...]:
    if switch.kind == "removed":
        return (switch.kind,)
    if switch.kind == "dense":
        data = switch.data()
        promise(data.nbytes == switch.target.nbytes(switch.elements), "data of another size")
        return switch.kind, data.tobytes()
    mask, sign, delta, indices = switch.mask(), switch.sign(), switch.delta(), switch.indices()
    promise(mask.shape == sign.shape == delta.shape == switch.shape, "another shape")
    promise(np.array_equal(np.flatnonzero(mask), indices), "mask and indices differ")
    if switch.kind == "masked":  # an active element of its vector may be 0
        promise(not sign[~mask].any(), "something has a sign where nothing is active")
        promise(switch.vector().shape == switch.shape, "a vector of another shape")
    else:
        promise(np.array_equal(mask, sign != 0), "mask and sign differ")
    promise(switch.active == indices.size, "active and indices differ")
    promise(not delta[~mask].any(), "something is added where nothing is active")
    if switch.shape:
        middle = switch.shape[0] // 2
        promise(np.array_equal(switch[middle:].sign(), sign[middle:]), "rows differ from the whole")
        promise(switch[middle:].delta().tobytes() == delta[middle:].tobytes(), "deltas of rows differ from the whole")
    return switch.kind, sign.tobytes(), delta.tobytes(), switch.content


def reference(data: bytes) -> None:
    """A whole file: `validate` accepts it if and only if spec/reference, a program that shares nothing with ours, does."""
    path = slot().put(data)
    with limited():
        report = tsw.validate(path, "structure")
    if report.ok and declared(path) > _REFERENCE:
        return
    report = tsw.validate(path)
    other = reference_reader("")
    try:
        other.read(data)
    except other.BrokenError as error:
        # Section 9.5: what libzstd decodes although RFC 8878 calls it corrupted may be accepted.
        promise(not report.ok or error.rule == "TSW-707", f"accepted, but the reference says {error}")
        return
    promise(report.ok, f"the reference accepts it, validate says {[finding.message for finding in report.findings]}")


@cache
def reference_reader(module: str) -> Any:
    """The package spec/reference/tsw_reference, or a module of it."""
    folder = str(Path(__file__).parents[2] / "spec" / "reference")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(f"tsw_reference.{module}".rstrip("."))
    finally:
        sys.path.remove(folder)


def declared(path: Path) -> int:
    """Bytes that the entries of a file decode to, as its index says. Raises TswError where it does not open."""
    container = Container(path)
    try:
        total = 8 * sum(container.index.shared.arrays.elements.tolist())
        for task in container.index.tasks:
            given = task.entries["kind"] != lay.Kind.REMOVED
            # Python's integers: the sum of many large tensors is above 64 bits.
            total += 8 * sum(container.index.elements[task.entries["tensor"][given]].tolist())
        return total
    finally:
        container.close()


def check_report(report: ValidationReport, length: int) -> None:
    """A report about a file of `length` bytes that can be read."""
    promise(report.unreadable is None, f"could not be checked: {report.unreadable}")
    for finding in report.findings:
        promise(finding.rule in RULES, f"no such rule: {finding.rule!r}")
        texts = (finding.message, finding.field, finding.expected, finding.found, finding.file)
        promise(all(isinstance(text, str) and text for text in texts), f"a finding without words: {finding}")
        promise(finding.offset is None or 0 <= finding.offset <= length, f"a finding outside the file: {finding}")
    promise(report.ok == (not report.findings), "ok and findings disagree")


def check_error(error: FormatError, length: int) -> None:
    """An error about a file of `length` bytes."""
    promise(error.rule in RULES, f"no such rule: {error.rule!r}")
    promise(
        f"[{error.rule}]" in str(error) and "\n" not in str(error), f"a message that is no line with its rule: {error}"
    )
    promise(error.offset is None or 0 <= error.offset <= length, f"an offset outside the file: {error}")


def _both_ways(read: Any, length: int) -> tuple[Any, list[str]]:
    """What is read, or None, and the rules found: the first that is raised is the first that is collected."""
    raised = None
    found = None
    try:
        found = read(Report("input"))
    except FormatError as error:
        check_error(error, length)
        raised = str(error.rule)
    report = Report("input", collect=True)
    try:
        again = read(report)
        promise(report.findings or again is not None, "nothing is read and nothing wrong")
    except StopReading:
        promise(report.findings, "stopped without a finding")
    except FormatError as error:
        report.findings.append(error)
    rules = [str(collected.rule) for collected in report.findings]
    for collected in report.findings:
        check_error(collected, length)
    promise((raised is None) == (not rules), f"raises {raised}, collects {rules}")
    promise(raised is None or raised in rules, f"raises {raised}, collects {rules}")
    return found, rules
