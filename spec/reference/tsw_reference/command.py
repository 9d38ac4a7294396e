"""The command line: decode a file, run a case of `apply`, restore an expert from its base.

decode   a file on standard input, what it holds as JSON on standard output (spec/vectors/README.md)
apply    a case's input as JSON on standard input, its output as JSON on standard output (the same)
restore  BASE.safetensors FILE.tsw OUT.safetensors [TASK[=COEFFICIENT] ...]
table    BASE.safetensors FILE.tsw OUT.safetensors TABLE [TASK]
         the tasks of a table of coefficients; with TASK, its layers and no others

Exit 0 where all is well, 1 where the file, the base or the wish is wrong, 2 where the command is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .application import Array, apply, apply_table
from .errors import BrokenError, UsageError, shown
from .model import File
from .reader import read
from .report import describe
from .safetensors import read_safetensors, write_safetensors


def main(arguments: list[str]) -> int:
    """Run a command; what to exit with."""
    try:
        match arguments:
            case [] | ["decode"]:
                _print(describe(read(sys.stdin.buffer.read())))
            case ["apply"]:
                _print(_apply_case(sys.stdin.buffer.read()))
            case ["restore", base, file, out, *tasks]:
                _restore(Path(base), Path(file), Path(out), tasks)
            case ["table", base, file, out, table, *layers] if len(layers) < 2:
                made = apply_table(read(Path(file).read_bytes()), read_safetensors(Path(base)), table, *layers)
                write_safetensors(Path(out), made, {})
            case _:
                sys.stderr.write(__doc__ or "")
                return 2
    except (BrokenError, UsageError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'input or output'}: {error.strerror}; check the path\n")
        return 1
    return 0


def _print(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")


def _apply_case(text: bytes) -> dict[str, Any]:
    try:
        case = json.loads(text)
        file = bytes.fromhex(case["file"]["hex"])
        base = {
            name: Array(fields["dtype"], tuple(fields["shape"]), bytes.fromhex(fields["data"]["hex"]))
            for name, fields in case["base"].items()
        }
        tasks = [(name, _coefficient(text)) for name, text in case.get("tasks", ())]
        table, layers = None if "tasks" in case else case["table"], case.get("layers")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"expected a case with file, base, and tasks or table, found {type(error).__name__}: {error}"
        ) from None
    made = apply(read(file), base, tasks) if table is None else apply_table(read(file), base, table, layers)
    return {
        name: {"dtype": array.dtype, "shape": list(array.shape), "data": {"hex": array.data.hex()}}
        for name, array in made.items()
    }


def _coefficient(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"expected a decimal number as coefficient, found {shown(text)}; write it as 0.5") from None


def _restore(base: Path, path: Path, out: Path, arguments: list[str]) -> None:
    file = read(path.read_bytes())
    chosen = [_chosen(file, argument) for argument in arguments] or [_only_task(file)]
    checkpoint = next(task.checkpoint for task in file.tasks if task.name == chosen[0][0]) if len(chosen) == 1 else {}
    write_safetensors(out, apply(file, read_safetensors(base), chosen), checkpoint)


def _chosen(file: File, argument: str) -> tuple[str, float]:
    """A task's name, or a name, `=` and a coefficient; a name may have a `=` of its own."""
    names = [task.name for task in file.tasks]
    if argument in names:
        return argument, 1.0
    name, _, coefficient = argument.rpartition("=")
    if name not in names:
        raise UsageError(f"expected TASK or TASK=COEFFICIENT, {_listed(names)}, found {shown(argument)}")
    return name, _coefficient(coefficient)


def _only_task(file: File) -> tuple[str, float]:
    names = [task.name for task in file.tasks]
    if len(names) != 1:
        raise UsageError(
            f"expected a file of one task or the name of a task, {_listed(names)}; name the one to restore"
        )
    return names[0], 1.0


def _listed(names: list[str]) -> str:
    return f"where the file has {', '.join(map(shown, names)) or 'no task'}"
