"""`python -m fuzz.attack_cost`: what the files of `attacks.py` cost whoever reads them.

python -m fuzz.attack_cost [NAME...] [--level structure] [--limit 120] [--runs 3] [--write]
python -m fuzz.attack_cost --table                # the table of spec/security.md, from fuzz/attack_cost.json

Each file is checked in a process of its own, which is warm: it has checked a small file before. Counted are wall time, CPU
time, and by how much the largest resident size of the process grew. With several runs the median of each is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import tswitch_format as tsw
from fuzz.attacks import ATTACKS, LARGEST, smallest
from tswitch_format.container.verify import Level

RESULTS = Path(__file__).with_name("attack_cost.json")
LEVELS: tuple[Level, ...] = get_args(Level)
SECONDS = 1.0  # of CPU time, and
MEMORY = 200 << 20  # bytes: the bound at level "structure"

_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that ru_maxrss counts in
# Processes are forked from a small one, so that nothing of this one's memory counts.
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Cost:
    """What checking one file took. `seconds` is None, and so are the others, where it was ended at the limit."""

    seconds: float | None = None
    cpu: float | None = None
    peak: int | None = None
    findings: int | None = None
    rules: tuple[str, ...] = ()
    unreadable: str | None = None

    @property
    def within(self) -> bool:
        """Whether it keeps the bound of level "structure"."""
        return self.cpu is not None and self.peak is not None and self.cpu <= SECONDS and self.peak <= MEMORY


def measure(data: bytes, level: Level, limit: float) -> Cost:
    """Check a file of these bytes in a new process, which is ended after `limit` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path, warm = Path(folder, "attack.tsw"), Path(folder, "smallest.tsw")
        path.write_bytes(data)
        warm.write_bytes(smallest())
        receive, send = _CONTEXT.Pipe(duplex=False)
        child = _CONTEXT.Process(target=_check, args=(path, warm, level, send))
        child.start()
        send.close()
        try:
            found: Cost | None = receive.recv() if receive.poll(limit) else None
        except EOFError as error:
            child.join()
            raise RuntimeError(f"the process that checked the file ended with {child.exitcode}") from error
        finally:
            child.kill()
            child.join()
    return found or Cost()


def _check(path: Path, warm: Path, level: Level, send: Connection) -> None:
    tsw.validate(warm, level)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    report = tsw.validate(path, level)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _UNIT
    rules = tuple(sorted({finding.rule for finding in report.findings}))
    send.send(Cost(wall, cpu, peak, len(report.findings), rules, report.unreadable))


def median(costs: Sequence[Cost]) -> Cost:
    """Of several runs of the same file: the median of each number."""
    done = [cost for cost in costs if cost.cpu is not None and cost.seconds is not None and cost.peak is not None]
    if len(done) < len(costs):
        return Cost()
    seconds, cpu = (statistics.median(getattr(cost, name) for cost in done) for name in ("seconds", "cpu"))
    last = done[-1]
    return Cost(seconds, cpu, int(statistics.median(cost.peak or 0 for cost in done)), last.findings, last.rules)


def table(results: dict[str, Any]) -> str:
    """The table of a document, the dearest first."""
    lines = [
        f"Measured {results['date'][:10]} on {results['machine']}, median of {results['runs']} runs.",
        "",
        "| file | bytes | rule | structure, CPU s | MiB | checksums, CPU s | MiB | full, CPU s | MiB |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in sorted(results["files"].items(), key=lambda item: -(item[1]["structure"]["cpu"] or 1e9)):
        cells = [_cells(one.get(level), results["limit"]) for level in LEVELS]
        lines.append(f"| {name} | {one['bytes']:,} | {one['rule'] or 'valid'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(cost: dict[str, Any] | None, limit: float) -> str:
    if cost is None:
        return " | "
    if cost["cpu"] is None:
        return f"> {limit:g} | "
    return f"{cost['cpu']:.2f} | {cost['peak'] >> 20}"


def machine() -> str:
    """The processor and what runs on it."""
    model = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def run(names: Iterable[str], levels: Sequence[Level], limit: float, runs: int) -> dict[str, Any]:
    """Measure these files, a line for each as it is done."""
    _CONTEXT.set_forkserver_preload([__name__])
    files: dict[str, Any] = {}
    for name in names:
        rule, make = ATTACKS[name]
        data = make()
        if len(data) >= LARGEST:
            raise ValueError(f"{name}: expected a file below {LARGEST} bytes, found {len(data)}; make it smaller")
        files[name] = {"bytes": len(data), "rule": rule}
        for level in levels:
            cost = median([measure(data, level, limit) for _ in range(runs if level == "structure" else 1)])
            files[name][level] = asdict(cost)
            took = "over the limit" if cost.cpu is None else f"{cost.cpu:6.2f} s CPU {(cost.peak or 0) >> 20:4} MiB"
            mark = " ABOVE THE BOUND" if level == "structure" and not cost.within else ""
            print(f"{name:24} {len(data):8,} bytes  {level:9} {took}  {cost.findings} {cost.rules}{mark}", flush=True)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": machine(), "limit": limit, "runs": runs, "files": files}


def main() -> int:
    """Run the command; 1 where a file is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to measure; all if none is named")
    parser.add_argument("--level", action="append", choices=LEVELS, help="may be repeated; all if none is named")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one file at one level")
    parser.add_argument("--runs", type=int, default=3, help="runs at level structure; the other levels have one")
    parser.add_argument("--write", action="store_true", help=f"keep the results in fuzz/{RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the table of the results that were kept")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(RESULTS.read_text())))
        return 0
    unknown = set(given.names) - ATTACKS.keys()
    if unknown:
        parser.error(f"expected names of {', '.join(ATTACKS)}, found {', '.join(sorted(unknown))}")
    results = run(given.names or ATTACKS, given.level or LEVELS, given.limit, given.runs)
    if given.write:
        if given.names and RESULTS.exists():  # the others stay
            results["files"] = {**json.loads(RESULTS.read_text())["files"], **results["files"]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    costs = [one["structure"] for one in results["files"].values() if "structure" in one]
    return int(not all(Cost(**cost).within for cost in costs))


if __name__ == "__main__":
    sys.exit(main())
