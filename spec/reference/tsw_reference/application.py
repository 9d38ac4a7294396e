"""Section 10: apply tasks of a file to a base. Everything is checked before anything is made."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .bits import positions_of_ones
from .digest import entry_digest, sampled_digest, tensor_digest
from .errors import BrokenError, UsageError, shown
from .layout import CHUNK, DENSE, DTYPES, F32, F64, SWITCHES
from .model import Entry, File, Segment, Shared, Table, Task, Tensor
from .numerics import decode, decode_factors, encode, fl32, fl64


@dataclass(frozen=True, slots=True)
class Array:
    """A tensor of a checkpoint: the name of its dtype, its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Change = tuple[float, Entry]
"""An entry, and the coefficient of its task for its tensor."""


def find_task(file: File, name: str) -> Task:
    """The task of a name."""
    return _named(file.tasks, "task", name)


def find_table(file: File, name: str) -> Table:
    """The table of coefficients of a name."""
    return _named(file.tables, "table", name)


Named = TypeVar("Named", Task, Table)


def _named(those: Iterable[Named], what: str, name: str) -> Named:
    by_name = {one.name: one for one in those}
    if name in by_name:
        return by_name[name]
    there = ", ".join(map(shown, by_name)) or "none"
    raise UsageError(f"expected a {what} of the file ({there}), found {shown(name)}; name one of the file's {what}s")


def apply(file: File, base: dict[str, Array], chosen: list[tuple[str, float]]) -> dict[str, Array]:
    """The expert that tasks, each with its coefficient, make of a base; every name of it, aliases of the base too."""
    for name, coefficient in chosen:
        if not math.isfinite(coefficient):
            raise UsageError(f"expected a finite coefficient of {shown(name)}, found {coefficient}; give a number")
    tasks = [(find_task(file, name), coefficient) for name, coefficient in chosen]
    check_base(file, base)
    return _expert(
        file,
        base,
        (
            (coefficient, entry)
            for task, coefficient in tasks
            for entry in task.entries
            if entry.kind not in SWITCHES or coefficient != 0
        ),
    )


def apply_table(file: File, base: dict[str, Array], name: str, layers: str | None = None) -> dict[str, Array]:
    """The expert that a table of coefficients makes of a base; `layers`: the task whose dense and removed entries count, in
    place of those of all tasks of the table."""
    table = find_table(file, name)
    whole = table.tasks if layers is None else (find_task(file, layers),)
    check_base(file, base)
    return _expert(file, base, _by_table(file, table, whole))


def _by_table(file: File, table: Table, whole: tuple[Task, ...]) -> Iterator[Change]:
    """Entries and their coefficients: dense and removed ones of the tasks `whole`, the others as the table says."""
    values = _coefficients(file, table)
    rows = {tensor.number: row for row, tensor in enumerate(table.rows)}
    for task in whole:
        for entry in task.entries:
            if entry.kind not in SWITCHES:
                yield 1.0, entry
    for column, task in enumerate(table.tasks):
        for entry in task.entries:
            row = rows.get(entry.tensor.number)
            if entry.kind in SWITCHES and row is not None:
                coefficient = values[row * len(table.tasks) + column]
                if coefficient != 0:
                    yield coefficient, entry


def _coefficients(file: File, table: Table) -> list[float]:
    """The elements of a table, row by row, within its clamp."""
    values = [value for segment in table.array.data for value in decode(F32, file.content(segment))]
    if table.clamp is None:
        return values
    least, greatest = struct.unpack("<2f", table.clamp)
    return [min(max(value, least), greatest) for value in values]


def _expert(file: File, base: dict[str, Array], changing_all: Iterable[Change]) -> dict[str, Array]:
    """The base after these entries, each with its coefficient, in this order."""
    changes: dict[str, list[Change]] = {}
    for coefficient, entry in changing_all:
        changes.setdefault(entry.tensor.name, []).append((coefficient, entry))
    for name, changing in changes.items():
        _check_agreement(file, name, changing)
    result = {tensor.name: base[tensor.name] for tensor in file.base.tensors if tensor.name not in changes}
    for name, changing in changes.items():
        entry = changing[0][1]
        if entry.kind in SWITCHES:
            result[name] = _change(file, base[name], changing)
        elif entry.kind == DENSE:
            data = b"".join(file.content(segment) for segment in entry.data)
            result[name] = Array(DTYPES[entry.dtype][0], entry.tensor.shape, data)
    for alias, number in file.base.aliases.items():
        target = file.base.tensors[number].name
        if alias not in changes and target in result:
            result[alias] = result[target]
    return result


def check_base(file: File, base: dict[str, Array]) -> None:
    """Rules 901 and 902, with all digests that there are."""
    tensors = file.base.tensors
    wanted = {tensor.name: tensor for tensor in tensors}
    aliases = {alias: tensors[number] for alias, number in file.base.aliases.items()}
    for name in wanted:
        if name not in base:
            raise BrokenError("TSW-901", f"a base tensor {shown(name)}", "none", "base")
    for name, array in base.items():
        tensor = wanted.get(name) or aliases.get(name)
        if tensor is None:
            raise BrokenError("TSW-901", "only tensors of the file's base", shown(name), "base")
        _check_shape(name, tensor, array)
    for name, array in base.items():
        _check_digests(name, wanted.get(name) or aliases[name], array)


def _check_shape(name: str, tensor: Tensor, array: Array) -> None:
    dtype, bits = DTYPES[tensor.dtype]
    length = tensor.elements * bits // 8
    if (array.dtype, array.shape, len(array.data)) != (dtype, tensor.shape, length):
        expected = f"{dtype} of shape {list(tensor.shape)} in {length} bytes"
        found = f"{shown(array.dtype)} of shape {list(array.shape)} in {len(array.data)} bytes"
        raise BrokenError("TSW-901", expected, found, f"base tensor {shown(name)}")


def _check_digests(name: str, tensor: Tensor, array: Array) -> None:
    for what, stored, digest in (
        ("sampled digest", tensor.sampled, sampled_digest),
        ("SHA-256", tensor.sha256, tensor_digest),
    ):
        if stored is not None and digest(array.data) != stored:
            found = digest(array.data).hex()
            raise BrokenError("TSW-902", f"the {what} {stored.hex()}", found, f"base tensor {shown(name)}")


def _check_agreement(file: File, name: str, changes: list[Change]) -> None:
    """Rule 903: switches of one dtype, or entries of one content."""
    where = f"the tasks' entries for {shown(name)}"
    entries = [entry for _, entry in changes]
    if all(entry.kind in SWITCHES for entry in entries):
        dtypes = {DTYPES[entry.dtype][0] for entry in entries}
        if len(dtypes) > 1:
            raise BrokenError("TSW-903", "one dtype", " and ".join(sorted(dtypes)), where)
    elif len(entries) > 1 and len({entry_digest(file, entry) for entry in entries}) > 1:
        raise BrokenError("TSW-903", "the same content where one is dense or removed", "different content", where)


def _change(file: File, base: Array, changes: list[Change]) -> Array:
    """A base tensor after the ternary and masked entries of one or more tasks."""
    first = changes[0][1]
    tensor, dtype = first.tensor, first.dtype
    rounded = fl64 if tensor.dtype == F64 else fl32
    steps = [_step(file, entry, coefficient, rounded) for coefficient, entry in changes]
    width = DTYPES[tensor.dtype][1] // 8
    parts = []
    for chunk in range(len(first.masks)):
        stored = base.data[chunk * CHUNK * width : (chunk + 1) * CHUNK * width]
        values = decode(tensor.dtype, stored)
        active: dict[int, float] = {}
        for (_, entry), step in zip(changes, steps, strict=True):
            mask = entry.masks[chunk]
            negative = set()
            if entry.signs:
                sign = entry.signs[chunk]
                negative = set(positions_of_ones(file.content(sign), sign.size))
            for number, position in enumerate(positions_of_ones(file.content(mask), mask.size)):
                value = step(chunk * CHUNK + position)
                before = active.get(position, values[position])
                active[position] = rounded(before - value if number in negative else before + value)
        if dtype == tensor.dtype:
            changed = bytearray(stored)
            for position, value in active.items():
                changed[position * width : (position + 1) * width] = encode(dtype, value)
            parts.append(bytes(changed))
        else:
            parts.append(b"".join(encode(dtype, active.get(i, value)) for i, value in enumerate(values)))
    return Array(DTYPES[dtype][0], tensor.shape, b"".join(parts))


def _step(file: File, entry: Entry, coefficient: float, rounded: Callable[[float], float]) -> Callable[[int], float]:
    """How far an active element moves, by its number: knob, row factor, column factor, coefficient, in this order."""
    (knob,) = struct.unpack("<f", entry.knob)
    if entry.vector is not None:
        return _masked_step(file, entry.vector, knob, coefficient, rounded)
    rows = _factors(file, entry, entry.row_factors)
    columns = _factors(file, entry, entry.column_factors)
    row_length = entry.tensor.elements // entry.tensor.shape[0] if rows or columns else 1

    def step(element: int) -> float:
        value: float = knob
        if rows:
            value = rounded(value * rows[element // row_length])
        if columns:
            value = rounded(value * columns[element % row_length])
        if coefficient != 1:
            value = rounded(value * rounded(coefficient))
        return value

    if rows or columns:
        return step
    same = step(0)
    return lambda element: same


def _masked_step(
    file: File, vector: Shared, knob: float, coefficient: float, rounded: Callable[[float], float]
) -> Callable[[int], float]:
    """The same of a masked entry: element of the vector, knob, coefficient, in this order."""
    kept: dict[int, list[float]] = {}
    scales = [rounded(scale) for scale in (knob, coefficient) if scale != 1]

    def step(element: int) -> float:
        chunk, place = divmod(element, CHUNK)
        if chunk not in kept:
            kept.clear()
            kept[chunk] = decode(vector.tensor.dtype, file.content(vector.data[chunk]))
        value = rounded(kept[chunk][place])
        for scale in scales:
            value = rounded(value * scale)
        return value

    return step


def _factors(file: File, entry: Entry, segments: list[Segment]) -> list[float]:
    return [factor for segment in segments for factor in decode_factors(entry.factor_dtype, file.content(segment))]
