"""Section 5.7: tables of coefficients, but for their elements, which are shared arrays."""

from __future__ import annotations

import math
import struct
from itertools import pairwise

from .errors import BrokenError, shown
from .fields import Fields
from .layout import COEFFICIENTS
from .model import Shared, Table, Task, Tensor
from .msgpack import Value

REQUIRED = {"rows", "tasks"}
OPTIONAL = {"clamp"}


def read_map(value: Value, newer: bool) -> dict[str, Fields]:
    """The maps of all tables by name; their values are not yet checked."""
    # The keys of this map are names, whatever the file's version.
    tables = Fields(value, "index, coefficients", set(), set(), newer=True).map
    if not tables:
        raise BrokenError("TSW-412", "at least one table, or no key `coefficients`", "none", "index, coefficients")
    return {
        name: Fields(table, f"index, coefficients, {shown(name)}", REQUIRED, OPTIONAL, newer)
        for name, table in tables.items()
    }


def read_tables(maps: dict[str, Fields], shared: list[Shared], base: list[Tensor], tasks: list[Task]) -> list[Table]:
    """The tables, checked, in the order of their arrays, which is that of their names."""
    arrays = {array.tensor.name: array for array in shared if array.role == COEFFICIENTS}
    for name, fields in maps.items():
        if name not in arrays:
            raise _wrong(f"a shared array of role coefficients called {shown(name)}", "none", fields.where)
    for name, array in arrays.items():
        if name not in maps:
            raise _wrong(f"a table called {shown(name)}", "none in `coefficients`", array.where)
    by_name = {task.name: task for task in tasks}
    return [
        Table(array, _rows(maps[name], array, base), _tasks(maps[name], array, by_name), _clamp(maps[name]))
        for name, array in arrays.items()
    ]


def _wrong(expected: str, found: str, where: str) -> BrokenError:
    return BrokenError("TSW-412", expected, found, where)


def _rows(fields: Fields, array: Shared, base: list[Tensor]) -> tuple[Tensor, ...]:
    where = f"{fields.where}, rows"
    stored, count = fields.binary("rows"), array.tensor.shape[0]
    if len(stored) != 4 * count:
        raise _wrong(f"{4 * count} bytes, a u32 for each of {count} rows", str(len(stored)), where)
    numbers = struct.unpack(f"<{count}I", stored)
    for before, number in pairwise(numbers):
        if before >= number:
            raise _wrong("numbers that ascend strictly", f"{number} after {before}", where)
    if numbers[-1] >= len(base):
        raise _wrong(f"numbers of base tensors, below {len(base)}", str(numbers[-1]), where)
    return tuple(base[number] for number in numbers)


def _tasks(fields: Fields, array: Shared, by_name: dict[str, Task]) -> tuple[Task, ...]:
    where = f"{fields.where}, tasks"
    names, count = fields.array_of_texts("tasks"), array.tensor.shape[1]
    if len(names) != count:
        raise _wrong(f"a task for each of {count} columns", str(len(names)), where)
    seen: set[str] = set()
    for name in names:
        if name not in by_name:
            raise _wrong("names of tasks of the file", shown(name), where)
        if name in seen:
            raise _wrong("each task once", f"{shown(name)} a second time", where)
        seen.add(name)
    return tuple(by_name[name] for name in names)


def _clamp(fields: Fields) -> bytes | None:
    if "clamp" not in fields.map:
        return None
    where = f"{fields.where}, clamp"
    stored = fields.binary("clamp")
    if len(stored) != 8:
        raise _wrong("8 bytes, two f32", str(len(stored)), where)
    least, greatest = struct.unpack("<2f", stored)
    if not math.isfinite(least) or not math.isfinite(greatest) or least > greatest:
        raise _wrong("two finite numbers, the first not above the second", f"{least} and {greatest}", where)
    return stored
