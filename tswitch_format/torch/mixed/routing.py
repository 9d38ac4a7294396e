"""Which task each row of a batch uses. Made once a forward, on the host, where the names of tasks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tswitch_format._dtypes import F32
from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.switch.apply import proper_coefficient

BASE = -1  # the number of no task

TaskId = str | int | None | tuple[str | int, float]
TaskIds = Sequence[TaskId] | Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a batch that use the same task with the same coefficient. `index` i64[rows], on the routing's device."""

    task: int
    coefficient: float
    rows: tuple[int, ...]
    index: Tensor

    @property
    def switches(self) -> bool:
        """Whether ternary switches act here (spec section 10: with a coefficient of 0 there are none)."""
        return self.task != BASE and self.coefficient != 0


@dataclass(frozen=True, slots=True)
class Tiles:
    """Work of a kernel: runs of at most so many tokens of one group, where tokens are counted group after group.

    `spans` i32[n, 3]: task, first token, and the one after the last of the group. `coefficients` f32[n].
    """

    spans: Tensor
    coefficients: Tensor


class Routing:
    """`tasks`: for each row the number of a task, or -1 for the base. `coefficients`: for each row, 1 unless given.

    Nothing here waits for a device; tensors on it are made when they are first wanted.
    """

    def __init__(self, tasks: Sequence[int], device: torch.device, coefficients: Sequence[float] | None = None) -> None:
        self.tasks = tuple(tasks)
        self.device = device
        self.coefficients = (1.0,) * len(self.tasks) if coefficients is None else tuple(coefficients)
        if len(self.coefficients) != len(self.tasks):
            raise OptionError(
                f"coefficients: expected {len(self.tasks)}, one a row, found {len(self.coefficients)}; give as many"
            )
        self._tiles: dict[tuple[int, int], Tiles] = {}
        self._parts: dict[tuple[int, ...], Routing] = {}
        self._indices: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def of(cls, task_ids: TaskIds, names: Sequence[str] | int, device: torch.device) -> Routing:
        """Read task ids: names (of `names`), their numbers, None or -1 for the base, pairs with a coefficient, or an integer
        tensor [B] (one on another device is waited for once). `names` may be a number of tasks without names.

        Raises OptionError for what is none of these, UnknownNameError for a name that is not there.
        """
        if isinstance(task_ids, Tensor):
            if task_ids.ndim != 1 or task_ids.is_floating_point() or task_ids.is_complex():
                raise OptionError(
                    f"task_ids: expected integers of shape [B], found {task_ids.dtype} {list(task_ids.shape)}; "
                    "give one number a row"
                )
            task_ids = [int(number) for number in task_ids.tolist()]
        if isinstance(task_ids, str) or not isinstance(task_ids, Sequence):
            raise OptionError(
                f"task_ids: expected one for each row, found {type(task_ids).__name__}; give a list of task names"
            )
        known = () if isinstance(names, int) else tuple(names)
        numbers = {name: number for number, name in enumerate(known)}
        count = names if isinstance(names, int) else len(known)
        tasks, coefficients = [], []
        for row, task in enumerate(task_ids):
            name, coefficient = task if isinstance(task, tuple) and len(task) == 2 else (task, 1.0)
            tasks.append(_number(name, numbers, count, row))
            coefficients.append(proper_coefficient(coefficient, F32, f"task_ids[{row}]"))
        return cls(tasks, device, coefficients)

    @property
    def size(self) -> int:
        """Number of rows, B."""
        return len(self.tasks)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Groups in order of task and coefficient; rows of a group in order."""
        found: dict[tuple[int, float], list[int]] = {}
        for row, key in enumerate(zip(self.tasks, self.coefficients, strict=True)):
            found.setdefault((key[0], 1.0) if key[0] == BASE else key, []).append(row)
        return tuple(
            Group(task, coefficient, tuple(rows), self.index(tuple(rows)))
            for (task, coefficient), rows in sorted(found.items())
        )

    @cached_property
    def order(self) -> Tensor:
        """i32: rows in which switches act, group after group, as `tiles` counts them."""
        rows = [row for group in self.groups if group.switches for row in group.rows]
        return torch.tensor(rows, dtype=torch.int32, device=self.device)

    @property
    def longest(self) -> int:
        """Rows of the largest group in which switches act."""
        return max((len(group.rows) for group in self.groups if group.switches), default=0)

    def tiles(self, tokens: int, size: int) -> Tiles:
        """Tiles of at most `size` tokens, where each row has `tokens` of them."""
        if (tokens, size) not in self._tiles:
            self._tiles[tokens, size] = self._cut(tokens, size)
        return self._tiles[tokens, size]

    def _cut(self, tokens: int, size: int) -> Tiles:
        spans, coefficients, start = [], [], 0
        for group in self.groups:
            if group.switches:
                stop = start + tokens * len(group.rows)
                firsts = range(start, stop, size)
                spans += [(group.task, first, stop) for first in firsts]
                coefficients += [group.coefficient] * len(firsts)
                start = stop
        return Tiles(
            torch.tensor(spans, dtype=torch.int32, device=self.device).view(-1, 3),
            torch.tensor(coefficients, dtype=torch.float32, device=self.device),
        )

    def part(self, rows: tuple[int, ...]) -> Routing:
        """The routing of some rows alone; the same object whenever they are asked for."""
        if rows not in self._parts:
            tasks, coefficients = [self.tasks[row] for row in rows], [self.coefficients[row] for row in rows]
            self._parts[rows] = Routing(tasks, self.device, coefficients)
        return self._parts[rows]

    def index(self, rows: tuple[int, ...]) -> Tensor:
        """Rows as i64 on the device; the same tensor whenever they are asked for, for a copy to it takes microseconds."""
        if rows not in self._indices:
            self._indices[rows] = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return self._indices[rows]


def _number(task: object, numbers: Mapping[str, int], count: int, row: int) -> int:
    if task is None:
        return BASE
    if isinstance(task, str):
        if task not in numbers:
            raise UnknownNameError("task", task, numbers, where=f"task_ids[{row}]")
        return numbers[task]
    if isinstance(task, int) and not isinstance(task, bool):
        if BASE <= task < count:
            return task
        raise OptionError(
            f"task_ids[{row}]: expected -1 (the base) to {count - 1}, found {task}; number the tasks from 0"
        )
    raise OptionError(
        f"task_ids[{row}]: expected a name, a number, a pair with a coefficient, or None, found {str(task)[:40]!r}; "
        "give one of these"
    )
