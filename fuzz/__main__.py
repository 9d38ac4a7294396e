"""`python -m fuzz`: run harnesses, replay inputs, print what was found.

python -m fuzz NAME [--seconds N] [--runs N] [libFuzzer options]
python -m fuzz all --runs 10000000 --jobs 2 --record
python -m fuzz replay NAME FILE...    python -m fuzz lines    python -m fuzz table    python -m fuzz list
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fuzz import campaign

_USUAL_SECONDS = 60.0


def main() -> int:
    """Run the command; 1 where a harness failed."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a harness, several with commas, 'all', or a command of the above")
    parser.add_argument("files", nargs="*", help="of replay: the harness, then its inputs")
    parser.add_argument("--runs", type=int, help="executions, of all harnesses together")
    parser.add_argument(
        "--seconds", type=float, help=f"for all harnesses together; {_USUAL_SECONDS:.0f} if neither is given"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--record", nargs="?", type=Path, const=campaign.RESULTS, help="write what was done as JSON (fuzz/results.json)"
    )
    given, options = parser.parse_known_args()
    if given.name == "lines":  # before the library is imported
        print(campaign.measure_lines())
        return 0
    if given.name == "table":
        campaign.write_table()
        return 0
    from fuzz.child import run_once  # noqa: PLC0415 - after `lines`
    from fuzz.targets import TARGETS  # noqa: PLC0415

    if given.name == "list":
        print("\n".join(f"{one.name:20} {(one.run.__doc__ or '').strip()}" for one in TARGETS.values()))
        return 0
    if given.name == "replay":
        name, *files = given.files or [""]
        if name not in TARGETS or not files:
            parser.error("replay: expected the name of a harness and files")
        for file in files:
            run_once(TARGETS[name], Path(file).read_bytes())
            print(f"{file}: passed")
        return 0
    names = list(TARGETS) if given.name == "all" else given.name.split(",")
    unknown = [name for name in names if name not in TARGETS]
    if unknown or given.files:
        parser.error(f"expected one of {', '.join(TARGETS)} or all, found {', '.join(unknown or given.files)}")
    if campaign.engine() == "random":
        print(
            "Atheris is not installed: inputs are mutated at random, without regard to coverage (pip install '.[fuzz]')"
        )
    seconds = given.seconds if given.seconds or given.runs else _USUAL_SECONDS
    results = campaign.run(
        names,
        runs=given.runs,
        seconds=seconds,
        shares={name: one.share for name, one in TARGETS.items()},
        jobs=given.jobs,
        seed=given.seed,
        options=options,
    )
    if given.record:
        campaign.record(given.record, results, given.jobs)
    return int(any(result.failed for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
