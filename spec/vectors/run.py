"""Run a decoder against the conformance suite; README.md says what it gets and what it must print.

    python spec/vectors/run.py [--rules] [--no-large] [--only PART] [--match TEXT] [--jobs N] -- DECODER [ARGUMENT...]

Exit code: 0 all pass, 1 some fail, 2 the suite is damaged, there is no such decoder, or the command line is wrong.
Python's standard library is all that it needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

HERE = Path(__file__).parent
PARTS = ("decode", "valid", "newer", "invalid", "apply")
_FRACTION_BITS = {"F16": 10, "BF16": 7, "F32": 23, "F64": 52}

Record: TypeAlias = dict[str, Any]
Run: TypeAlias = Callable[[Record], str | None]


@dataclass(frozen=True)
class Answer:
    """What a decoder said: its exit code, or None where it had none, and both outputs."""

    code: int | None
    out: bytes
    err: str


def load(folder: Path = HERE) -> list[Record]:
    """The manifest's records."""
    records: list[Record] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return records


def damage(records: Sequence[Record], folder: Path = HERE) -> list[str]:
    """Files that are not what the manifest says, a line each."""
    out = []
    for record in records:
        for path, digest in ((record["path"], record["sha256"]), (record.get("content"), record.get("content_sha256"))):
            if path is None:
                continue
            try:
                found = hashlib.sha256((folder / path).read_bytes()).hexdigest()
            except OSError as error:
                out.append(f"{path}: {error.strerror}")
                continue
            if found != digest:
                out.append(f"{path}: expected SHA-256 {digest}, found {found}")
    return out


def problem(record: Record, answer: Answer, *, rules: bool, folder: Path = HERE) -> str | None:
    """What is wrong with a decoder's answer to one file, or None."""
    if answer.code is None:
        return answer.err
    if record["verdict"] == "refuse":
        if answer.code != 1:
            return f"expected exit code 1 and {record['rule']}, found exit code {answer.code}: {_last(answer.err)}"
        if rules and record["rule"] not in answer.err:
            return f"expected {record['rule']} on standard error, found: {_last(answer.err)}"
        return None
    if answer.code != 0:
        return f"expected exit code 0, found {answer.code}: {_last(answer.err)}"
    try:
        found = json.loads(answer.out)
    except ValueError as error:
        return f"expected one JSON document, found none: {error}"
    if record["path"].startswith("apply/"):
        case = json.loads((folder / record["path"]).read_bytes())
        return difference(_comparable(case["output"]), _comparable(found))
    if record["content"] is None:
        return None
    return difference(json.loads((folder / record["content"]).read_bytes()), found)


def difference(expected: Any, found: Any, where: str = "") -> str | None:
    """The first place where two documents differ, or None. Members may come in any order; 1 is not true."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            if key not in found or key not in expected:
                which = "missing" if key not in found else "surplus"
                return f"{where}.{key}: {which}"
            inner = difference(expected[key], found[key], f"{where}.{key}")
            if inner:
                return inner
        return None
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next((d for i, (a, b) in pairs if (d := difference(a, b, f"{where}[{i}]"))), None)
    if type(expected) is type(found) and expected == found:
        return None
    return f"{where}: expected {_short(expected)}, found {_short(found)}"


def _comparable(output: Any) -> Any:
    """An expert with all NaNs the same."""
    if not isinstance(output, dict):
        return output
    return {
        name: {**tensor, "data": {"hex": _one_nan(tensor["dtype"], tensor["data"]["hex"])}}
        if isinstance(tensor, dict) and tensor.get("dtype") in _FRACTION_BITS and "hex" in tensor.get("data", {})
        else tensor
        for name, tensor in output.items()
    }


def _one_nan(dtype: str, text: str) -> str:
    width = {"F64": 8, "F32": 4}.get(dtype, 2)
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return text
    if len(data) % width:
        return text
    words = struct.unpack(f"<{len(data) // width}{ {2: 'H', 4: 'I', 8: 'Q'}[width] }", data)
    fraction = _FRACTION_BITS[dtype]
    infinity = (1 << 8 * width - 1) - (1 << fraction)
    magnitude = (1 << 8 * width - 1) - 1
    return " ".join("nan" if word & magnitude > infinity else f"{word:x}" for word in words)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return ascii(lines[-1][:300]) if lines else "nothing on standard error"


def ask(decoder: Sequence[str], record: Record, limit: float, folder: Path = HERE) -> Answer:
    """Give one file to the decoder."""
    data = (folder / record["path"]).read_bytes()
    arguments = list(decoder)
    if record["path"].startswith("apply/"):
        arguments.append("apply")
        data = json.dumps(json.loads(data)["input"]).encode()
    try:
        done = subprocess.run(arguments, input=data, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Answer(None, b"", f"expected an answer within {limit:g} s, found none")
    if done.returncode < 0:
        return Answer(None, b"", f"expected exit code 0 or 1, found signal {-done.returncode}")
    return Answer(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))


def chosen(records: Sequence[Record], parts: Sequence[str], *, large: bool, words: Sequence[str] = ()) -> list[Record]:
    """The records of these parts (`decode` is all but `apply`) whose paths have one of the words."""

    def wanted(record: Record) -> bool:
        part = record["path"].split("/")[0]
        named = not parts or part in parts or ("decode" in parts and part != "apply")
        matches = not words or any(word in record["path"] for word in words)
        return named and matches and (large or not record.get("large"))

    return [record for record in records if wanted(record)]


def table(failures: Sequence[tuple[Record, str]]) -> str:
    """Failures for people: path, what the suite says, what was wrong."""
    width = max((len(record["path"]) for record, _ in failures), default=0)
    lines = []
    for record, text in failures:
        lines.append(f"{record['path']:<{width}}  {record['verdict']} {record.get('rule', ''):<7}  {text}")
        lines.append(f"{'':<{width}}  ({record['reason']})")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rules", action="store_true", help="the rule's id must be on standard error of a refusal")
    parser.add_argument("--no-large", action="store_true", help="leave out files that decode to many megabytes")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given several times")
    parser.add_argument(
        "--match", action="append", metavar="TEXT", help="files with this in their path; several times: any"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="decoders at a time (1)")
    parser.add_argument("--limit", type=float, default=20, metavar="S", help="seconds for a file (20)")
    parser.add_argument("--limit-large", type=float, default=60, metavar="S", help="seconds for a large file (60)")
    parser.add_argument("decoder", nargs="+", metavar="DECODER", help="program and arguments, after --")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    options = _parser().parse_args(arguments)
    if options.jobs < 1 or not math.isfinite(options.limit + options.limit_large):
        print("run.py: expected --jobs of 1 or more and finite limits", file=sys.stderr)  # noqa: T201
        return 2
    try:
        records = load()
    except (OSError, ValueError) as error:
        print(f"run.py: manifest.json cannot be read: {error}; get the suite again", file=sys.stderr)  # noqa: T201
        return 2
    damaged = damage(records)
    if damaged:
        text = "\n".join(damaged)
        print(f"{text}\nrun.py: the suite is damaged; get these files again", file=sys.stderr)  # noqa: T201
        return 2
    picked = chosen(records, options.only or (), large=not options.no_large, words=options.match or ())
    if not picked:
        print("run.py: no file of the suite is asked for; check --only, --match and --no-large", file=sys.stderr)  # noqa: T201
        return 2

    def check(record: Record) -> str | None:
        limit = options.limit_large if record.get("large") else options.limit
        return problem(record, ask(options.decoder, record, limit), rules=options.rules)

    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(check, picked))
    except OSError as error:
        print(f"run.py: {options.decoder[0]}: {error.strerror}; name a program that starts", file=sys.stderr)  # noqa: T201
        return 2
    failures = [(record, text) for record, text in zip(picked, found, strict=True) if text]
    if failures:
        print(table(failures))  # noqa: T201
    print(f"{len(picked) - len(failures)} of {len(picked)} files pass")  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
