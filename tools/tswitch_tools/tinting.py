"""What Model Tinting's code saves (arXiv 2412.19098) -> a file of its experts with the table and the layers.

    import_tinting   EXPERTS.tsw + TINTING.pth -> a file with both
    read_rows        names of tensors in the order of a matrix's rows

The .pth is a state dict of torch.save: `lambdas_raw`, F32 [tensors, tasks], which the code clamps to 0..1 when it uses it; and
for each dataset its own layers, `classifier_{dataset}.weight` and `.bias`, with surgery two projections more. Rows are in the
order of the model's `named_parameters()`, columns in that of a list in the code: neither is in the file, so both are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tswitch_format import add_table
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader
from tswitch_format.errors import CheckpointError, OptionError
from tswitch_tools.checkpoints import torch_files
from tswitch_tools.importers import floats, names_of

MATRIX = "lambdas_raw"
CLAMP = (0.0, 1.0)
TASK = "{task}"  # in the names of layers, which users rename

_Layers = dict[str, dict[str, tuple[CheckpointReader, str]]]


def import_tinting(
    experts: Path,
    tinting: Path,
    out: Path,
    *,
    rows: Sequence[str],
    tasks: Sequence[str],
    name: str = "tinting",
    layer_names: Sequence[tuple[str, str]] = (),
) -> Mapping[str, Sequence[str]]:
    """Write the file `experts` anew with the table of the state dict at `tinting`, and with the layers of each dataset as
    tensors of the task of its name.

    `rows`: the base's tensors, `tasks`: the file's tasks, in the order of the matrix. `layer_names`: pairs of how names of
    layers begin and what is put there instead, in both `{task}` for the task. Returns the names of the layers by task.

    Raises CheckpointError for a file that is something else, UnknownNameError, OptionError, FormatError or OutputError; then
    nothing is written.
    """
    if not tasks:
        raise OptionError("tasks: expected those of the matrix's columns, found none")
    check_output(out, [experts, tinting])
    with contextlib.closing(torch_files.open_reader(tinting)) as reader:
        stored = dict(names_of(reader))
        if MATRIX not in stored:
            raise CheckpointError(
                f"{tinting}: expected the tensor {MATRIX!r}, which Model Tinting's code saves, found none; of a matrix alone "
                "make a table with 'tsw tint add'"
            )
        matrix = stored.pop(MATRIX)
        spec = reader.specs[matrix]
        if spec.dtype.name != "F32" or len(spec.shape) != 2:
            raise CheckpointError(f"{tinting}: tensor {MATRIX!r}: expected F32[tensors, tasks], found {spec}")
        values = floats(reader, matrix, 0, spec.elements).reshape(spec.shape)
        layers = _layers(reader, stored, tasks, layer_names)
        add_table(experts, out, name, values, rows=rows, tasks=tasks, clamp=CLAMP, layers=layers)
    return {task: list(named) for task, named in layers.items()}


def _layers(
    reader: CheckpointReader, stored: Mapping[str, str], tasks: Sequence[str], layer_names: Sequence[tuple[str, str]]
) -> _Layers:
    """The layers of each task, under the names that they get."""
    found: _Layers = {}
    unused = dict.fromkeys(layer_names)
    for name, place in stored.items():
        task = _task_of(name, tasks)
        if task is None:
            raise CheckpointError(
                f"{reader.location}: tensor {name!r}: expected a layer of {', '.join(map(repr, tasks))}, such as "
                f"'classifier_{TASK}.weight', found that of no task; name all columns with --tasks"
            )
        renamed = name
        for old, new in layer_names:
            begin = old.replace(TASK, task)
            if name.startswith(begin):
                renamed = new.replace(TASK, task) + name.removeprefix(begin)
                unused.pop((old, new), None)
                break
        of_task = found.setdefault(task, {})
        if renamed in of_task:
            raise OptionError(
                f"layer names: expected different ones for the layers of {task!r}, found {renamed!r} twice"
            )
        of_task[renamed] = (reader, place)
    for old, _ in unused:
        raise OptionError(
            f"layer names: expected layers that begin with {old!r}, found none among {', '.join(sorted(stored))}"
        )
    for task in tasks:
        if found and task not in found:
            raise CheckpointError(
                f"{reader.location}: expected layers of each task, found none of {task!r}; compare --tasks with the list that "
                "the code was run with"
            )
    return found


def _task_of(name: str, tasks: Sequence[str]) -> str | None:
    """The task that a part of a layer's name ends with."""
    parts = name.split(".")
    fitting = [task for task in tasks if any(part == task or part.endswith(f"_{task}") for part in parts)]
    return max(fitting, key=len, default=None)


def read_rows(path: Path) -> list[str]:
    """Names of tensors: lines of a text file, or the names in a file of torch.save in their order there, tied ones once.

    Raises CheckpointError.
    """
    if path.is_dir() or path.name.endswith((".safetensors", ".json")):
        raise CheckpointError(
            f"{path}: expected a text file with a name a line, or a state dict of torch.save, found something in which names "
            "have lost the model's order; write those of named_parameters()"
        )
    if path.name.endswith(torch_files.SUFFIXES):
        with contextlib.closing(torch_files.open_reader(path)) as reader:
            stored = names_of(reader)
            first: dict[str, str] = {}
            for names in reader.layout.files.values():
                for name in names:
                    first.setdefault(stored[name], name)
            return list(first.values())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: expected UTF-8 text, a name a line, found other bytes at {error.start}"
        ) from error
    return [line.strip() for line in lines if line.strip()]
