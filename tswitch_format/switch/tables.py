"""How much of each task goes into each tensor: tables of coefficients (AdaMerging, arXiv 2310.02575; Model Tinting, arXiv
2412.19098; spec section 5.7).

CoefficientTable   coefficients by tensor and task
Share, shares_of   what of each task goes into a model, by one coefficient or by a table
add_table          a file -> a new one with a table, and with layers of its tasks that were trained for it
TablesOf           the tables of a file, each read when it is asked for
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import F32
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.container.index import CoefficientKeys, Index
from tswitch_format.container.names import name_problem
from tswitch_format.container.reader import Container
from tswitch_format.container.segments import EncodedArray, EncodedEntry
from tswitch_format.errors import CheckpointError, OptionError, UnknownNameError
from tswitch_format.switch.encode import encode_dense, encode_vector
from tswitch_format.switch.transfer import bare_header, copy_tasks, entry_order, open_whole

Layers = Mapping[str, Mapping[str, tuple[CheckpointReader, str]]]


@dataclass(frozen=True, eq=False, repr=False)
class CoefficientTable:
    """Coefficients of tasks by tensor.

    `values`: f32 [R, C], finite, a row a tensor and a column a task, as they were trained. `rows`: names of base tensors; one
    that has no row stays the base's. `tasks`: those of the columns, in the order in which they are added. `clamp`: least and
    greatest, f32 values, into which coefficients are brought when they are used, or None.

    f16 and f64 are turned into f32; the array is copied, and cannot be written; names may come in any sequence. Raises
    OptionError for anything else.
    """

    name: str
    values: NDArray[np.float32]
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        where = f"table {str(self.name)[:80]!r}"
        wrong = name_problem(self.name) if isinstance(self.name, str) else "no str"
        if wrong:
            raise OptionError(f"{where}: {wrong}; choose a name of 1 to {lay.MAX_NAME} bytes of plain text")
        for what, names in (("rows", self.rows), ("tasks", self.tasks)):
            object.__setattr__(self, what, _names(where, what, names))
        object.__setattr__(self, "values", _values(where, self.values, len(self.rows), len(self.tasks)))
        object.__setattr__(self, "clamp", _clamp(where, self.clamp))

    def coefficient(self, task: str, tensor: str) -> float:
        """How much of a task goes into a base tensor, clamped: an f32 value; 0 where the tensor has no row.

        `tensor`: its name in the file's base; aliases have none here. Raises UnknownNameError for a task without a column.
        """
        column = self._columns.get(task)
        if column is None:
            raise UnknownNameError("task", task, self.tasks, where=f"table {self.name!r}")
        row = self._row_numbers.get(tensor)
        if row is None:
            return 0.0
        value = float(self.values[row, column])
        return value if self.clamp is None else min(max(value, self.clamp[0]), self.clamp[1])

    def __repr__(self) -> str:
        clamp = "" if self.clamp is None else f" clamp {self.clamp}"
        return f"<CoefficientTable {self.name!r} {len(self.rows)} tensors, tasks {list(self.tasks)}{clamp}>"

    @cached_property
    def _columns(self) -> Mapping[str, int]:
        return {task: number for number, task in enumerate(self.tasks)}

    @cached_property
    def _row_numbers(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.rows)}


def _names(where: str, what: str, given: Sequence[str]) -> tuple[str, ...]:
    names = () if isinstance(given, str) else tuple(given)
    if not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f"{where}: {what}: expected names, at least one, found {str(given)[:80]!r}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise OptionError(f"{where}: {what}: expected each name once, found {name!r} twice")
        seen.add(name)
    return names


def _values(where: str, given: NDArray[Any], rows: int, columns: int) -> NDArray[np.float32]:
    found = np.asarray(given)
    if found.dtype.kind != "f" or found.dtype.itemsize > np.dtype(np.float64).itemsize:
        raise OptionError(f"{where}: expected f32 numbers, found {found.dtype}; convert them")
    if found.shape != (rows, columns):
        raise OptionError(
            f"{where}: expected a row for each of {rows} tensors and a column for each of {columns} tasks, "
            f"{[rows, columns]}, found {list(found.shape)}"
        )
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = np.array(found, "<f4", order="C")
    if not np.isfinite(values).all():
        raise OptionError(f"{where}: expected finite numbers in f32, found NaN, infinity or larger ones")
    values.flags.writeable = False
    return values


def _clamp(where: str, given: Sequence[float] | None) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        with np.errstate(over="ignore"):
            least, greatest = (float(np.float32(number)) for number in given)
    except (TypeError, ValueError, OverflowError):
        least, greatest = np.nan, np.nan
    if not (np.isfinite([least, greatest]).all() and least <= greatest):
        found = " ".join(repr(given).split())[:60]
        raise OptionError(f"{where}: clamp: expected two finite numbers, the first not above the second, found {found}")
    return least, greatest


@dataclass(frozen=True, slots=True)
class Share:
    """What of a task goes into a model: its switches with a coefficient, one for all or by tensor as a table says, and if
    `layers` its dense and removed entries."""

    task: str
    coefficient: float | CoefficientTable
    layers: bool = True

    def of(self, tensor: str) -> float:
        """The coefficient of the switch of a base tensor."""
        if isinstance(self.coefficient, CoefficientTable):
            return self.coefficient.coefficient(self.task, tensor)
        return self.coefficient


def shares_of(table: CoefficientTable, layers: str | None) -> list[Share]:
    """What of each task goes into a model by a table: `layers` is the task whose dense and removed entries count, with a column
    or not, or None for those of all columns."""
    shares = [Share(task, table, layers in (None, task)) for task in table.tasks]
    return shares if layers is None or layers in table.tasks else [*shares, Share(layers, 0.0)]


class TablesOf(Mapping[str, CoefficientTable]):
    """The tables of an open file by name; each is read when it is asked for, every time."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def __getitem__(self, name: str) -> CoefficientTable:
        """Raises UnknownNameError for a name that the file has not, FormatError for damaged coefficients."""
        container = self._container
        stored = container.coefficients(name)
        keys = container.index.coefficients[name]
        parts = [stored.data(chunk) for chunk in range(stored.chunks)]
        values = np.concatenate(parts).view(F32.storage).reshape(stored.spec.shape)
        rows = tuple(container.index.base.names[row] for row in keys.rows.tolist())
        return CoefficientTable(name, values, rows, tuple(keys.tasks), keys.clamp)

    def __iter__(self) -> Iterator[str]:
        return iter(self._container.index.coefficients)

    def __len__(self) -> int:
        return len(self._container.index.coefficients)


def add_table(
    path: str | PathLike[str],
    out: str | PathLike[str],
    name: str,
    values: NDArray[Any],
    *,
    rows: Sequence[str],
    tasks: Sequence[str],
    clamp: tuple[float, float] | None = None,
    layers: Layers | None = None,
) -> Path:
    """Write the file at `path` anew with one more table of coefficients, or with this one in place of that of its name; nothing
    else changes, nothing is decoded.

    `values`, `tasks`, `clamp`: as in `CoefficientTable`. `rows`: a tensor of the file's base for each row, in any order; an
    alias stands for its target. `layers`: tensors that tasks get beside, stored whole: for a task, name -> (reader, the name
    in its specs); a task that has an entry of that name already is an error.

    Raises UnknownNameError for a tensor or a task that the file lacks, OptionError, CheckpointError, FormatError or
    OutputError; then nothing is written.
    """
    container = open_whole(Path(path))
    try:
        table = CoefficientTable(name, values, rows, tasks, clamp)  # type: ignore[arg-type]  # which makes tuples of them
        for task in (*table.tasks, *(layers or {})):
            container.find(task)
        keys, array = _encoded(container.index, table, str(path))
        copy_tasks(
            Path(out),
            bare_header(container.index),
            [(container, number) for number in range(len(container.index.tasks))],
            None,
            coefficients={name: keys},
            arrays=[array],
            layers={task: _layers(container, task, given) for task, given in (layers or {}).items()},
        )
    finally:
        container.close()
    return Path(out)


def _encoded(index: Index, table: CoefficientTable, where: str) -> tuple[CoefficientKeys, EncodedArray]:
    """What the index says of a table, and its elements, rows in the order of the base."""
    numbers: dict[int, str] = {}
    for name in table.rows:
        number = index.aliases.get(name, index.base.numbers.get(name))
        if number is None:
            raise UnknownNameError("tensor", name, index.base.names, where=f"{where}: table {table.name!r}: rows")
        if number in numbers:
            raise OptionError(
                f"{where}: table {table.name!r}: rows {numbers[number]!r} and {name!r} are one tensor of the base; give it "
                "one row"
            )
        numbers[number] = name
    order = np.argsort(list(numbers))
    keys = CoefficientKeys(np.array(sorted(numbers), "<u4"), table.tasks, table.clamp)
    spec = TensorSpec(table.name, F32, table.values.shape)
    flat = table.values[order].reshape(-1)
    chunks = (flat[start : start + lay.CHUNK] for start in range(0, flat.size, lay.CHUNK))
    made = encode_vector(spec, chunks, mapped=index.mapped)
    return keys, replace(made, role=lay.SharedRole.COEFFICIENTS)


def _layers(container: Container, task: str, given: Mapping[str, tuple[CheckpointReader, str]]) -> list[EncodedEntry]:
    """Tensors that are stored whole, as entries of a task in the order of a file."""
    index, made = container.index, []
    there = container.entry_numbers(container.find(task))
    for name, (reader, stored) in given.items():
        wrong = name_problem(name)
        if wrong:
            raise CheckpointError(
                f"{reader.location}: tensor {name[:80]!r}: expected a proper name, found one that is {wrong}"
            )
        if name in there:
            raise OptionError(
                f"{container.path}: task {task!r} has tensor {name!r} already; give the layer another name, or take the file "
                "as it was before"
            )
        spec = TensorSpec(name, reader.specs[stored].dtype, reader.specs[stored].shape)
        number = index.base.numbers.get(name)
        added = number is None or index.base.spec(number) != spec
        made.append(encode_dense(spec, reader, stored, added=added, mapped=index.mapped))
    return sorted(made, key=entry_order)
