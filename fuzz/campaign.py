"""Harnesses in processes of their own, several at once: what they did is counted, recorded and printed.

Each process has a part of a harness's executions, so that memory that it loses does not add up; the corpus goes on in a folder.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fuzz.child import CORPUS, HERE

README = HERE / "README.md"
RESULTS = HERE / "results.json"
_PART = 500_000  # executions of one process
_PATIENCE = 120  # seconds beyond its time until a process is ended
_MARKS = ("<!-- results -->", "<!-- end of results -->")
_VERSIONS = ("tswitch-format", "numpy", "zstandard", "msgpack", "crc32c", "torch", "atheris")


@dataclass
class Result:
    """What one harness did. `edges`: of the library's branches, as Atheris counts them; 0 where nobody counted."""

    executions: int = 0
    seconds: float = 0.0
    edges: int = 0
    inputs: int = 0
    failed: bool = False


def engine() -> str:
    """Atheris where it is installed, else random mutation."""
    return "atheris" if importlib.util.find_spec("atheris") else "random"


def run(
    names: Sequence[str],
    *,
    runs: int | None,
    seconds: float | None,
    shares: Mapping[str, int],
    jobs: int,
    seed: int,
    options: Sequence[str] = (),
) -> dict[str, Result]:
    """Run harnesses, `jobs` at a time. `runs` are split in proportion to `shares`; `seconds` evenly, for all together."""
    total = sum(shares[name] for name in names)
    each = None if seconds is None else seconds * min(jobs, len(names)) / len(names)

    def one(name: str) -> tuple[str, Result]:
        share = None if runs is None else -(-runs * shares[name] // total)
        result = _run_one(name, share, each, seed, options)
        rate = result.executions / max(result.seconds, 1)
        state = "FAILED" if result.failed else "passed"
        print(
            f"{name:20} {state}  {result.executions:>10,} executions  {rate:>7,.0f} /s  {result.edges or '-':>5} edges",
            flush=True,
        )
        return name, result

    with ThreadPoolExecutor(jobs) as pool:
        return dict(pool.map(one, names))


def _run_one(name: str, runs: int | None, seconds: float | None, seed: int, options: Sequence[str]) -> Result:
    result = Result()
    begin = time.monotonic()
    while True:
        spent = time.monotonic() - begin
        left = None if seconds is None else seconds - spent
        part = _PART if runs is None else min(_PART, runs - result.executions)
        if part <= 0 or (left is not None and left < 1) or result.failed:
            break
        _add(result, *_process(name, part, left, seed + result.executions, options))
        if runs is None and seconds is None:
            break
    result.seconds = round(time.monotonic() - begin, 1)
    folder = CORPUS / name
    result.inputs = len(list(folder.iterdir())) if folder.is_dir() else 0
    return result


def _process(name: str, runs: int, seconds: float | None, seed: int, options: Sequence[str]) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "fuzz.child", name, engine(), "--runs", str(runs)]
    command += [] if seconds is None else ["--seconds", f"{seconds:.1f}"]
    command += [f"-seed={1 + seed % (1 << 30)}", *options] if engine() == "atheris" else ["--seed", str(seed)]
    try:
        done = subprocess.run(
            command,
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=None if seconds is None else seconds + _PATIENCE,
        )
    except subprocess.TimeoutExpired as late:
        return 1, "", f"no end after {late.timeout:.0f} s"
    return done.returncode, done.stdout, done.stderr


def _add(result: Result, code: int, out: str, err: str) -> None:
    """Add what one process did."""
    if code:
        result.failed = True
        print(_without_noise(out + err), file=sys.stderr, flush=True)
    if engine() == "random":
        counted = json.loads(out.splitlines()[-1]) if out.strip() and not code else {"executions": 0}
        result.executions += counted["executions"]
        return
    units = re.findall(r"stat::number_of_executed_units: (\d+)", err)
    result.executions += int(units[-1]) if units else 0
    result.edges = max([result.edges, *map(int, re.findall(r" cov: (\d+)", err))])


def _without_noise(text: str) -> str:
    """The end of what a process said, without libFuzzer's progress."""
    lines = [line for line in text.splitlines() if not line.startswith(("#", "INFO:", "WARNING:", '"'))]
    return "\n".join(lines[-60:])


def record(path: Path, results: Mapping[str, Result], jobs: int) -> None:
    """Write what was done as JSON, added to what is there of earlier runs."""
    before = json.loads(path.read_text(encoding="utf-8"))["harnesses"] if path.exists() else {}
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "engine": engine(),
        "jobs": jobs,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "versions": dict(_versions()),
        "harnesses": before | {name: _added(before.get(name), asdict(result)) for name, result in results.items()},
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _added(before: Mapping[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    if before is None:
        return now
    return {
        "executions": before["executions"] + now["executions"],
        "seconds": round(before["seconds"] + now["seconds"], 1),
        "edges": max(before["edges"], now["edges"]),
        "inputs": max(before["inputs"], now["inputs"]),
        "failed": before["failed"] or now["failed"],
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in _VERSIONS:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def table(document: Mapping[str, Any]) -> str:
    """What was recorded as a Markdown table."""
    rows = ["| harness | executions | a second | edges | inputs | failures |", "| --- | --- | --- | --- | --- | --- |"]
    total = 0
    for name, result in document["harnesses"].items():
        total += result["executions"]
        rate = result["executions"] / max(result["seconds"], 1)
        cells = (f"{result['executions']:,}", f"{rate:,.0f}", result["edges"] or "-", result["inputs"] or "-")
        rows.append(f"| {name} | {' | '.join(map(str, cells))} | {int(result['failed'])} |")
    rows.append(f"| all | {total:,} | | | | {sum(r['failed'] for r in document['harnesses'].values())} |")
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = f"{document['lines']}\n\n" if "lines" in document else ""
    return (
        "\n".join(rows)
        + f"\n\n{document['date']}, engine {document['engine']}, {document['jobs']} processes, "
        + f"{document['machine']}, {versions}."
        + f"\n\n{lines}".rstrip()
    )


def write_table(path: Path = RESULTS) -> None:
    """Put the table between the marks in README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    made = table(json.loads(path.read_text(encoding="utf-8")))
    README.write_text(f"{before}{_MARKS[0]}\n{made}\n{_MARKS[1]}{after}", encoding="utf-8")


def measure_lines(path: Path = RESULTS) -> str:
    """Replay every corpus and count the lines of the library that are run; it must not be imported yet. Kept in the results."""
    import coverage  # noqa: PLC0415 - optional

    watched = coverage.Coverage(source=["tswitch_format", "tswitch_tools.checkpoints"], data_file=None, branch=False)
    watched.start()
    from fuzz.child import inputs  # noqa: PLC0415 - the library comes with them
    from fuzz.limits import BrokenPromiseError  # noqa: PLC0415
    from fuzz.targets import TARGETS  # noqa: PLC0415

    count = 0
    for one in TARGETS.values():
        for data in inputs(one):
            with contextlib.suppress(BrokenPromiseError):
                one.run(data)
            count += 1
    watched.stop()
    rows = []
    for package in (
        "tswitch_format/container",
        "tswitch_format/codecs",
        "tswitch_format/switch",
        "tools/tswitch_tools/checkpoints",
    ):
        run, every = 0, 0
        for file in sorted((HERE.parent / package).glob("*.py")):
            _, lines, _, missing, _ = watched.analysis2(str(file))
            every += len(lines)
            run += len(lines) - len(missing)
        rows.append(f"{package} {100 * run / max(every, 1):.0f} %")
    text = f"Lines run by {count:,} inputs (seeds and corpus): {', '.join(rows)}."
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8")) | {"lines": text}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return text
