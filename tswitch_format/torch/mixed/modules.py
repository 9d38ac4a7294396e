"""What stands in for the forward of each changed module during a mixed batch.

Changed           a tensor of the model that tasks change, and what they make of it
Turn              the routing of the rows that are under way
GroupedStandIn    any module: run once a task, with the task's tensors in place of the base's
AttentionStandIn  nn.MultiheadAttention, likewise
LinearStandIn     nn.Linear, Conv1D of transformers: the base's product, then what the tasks add
EmbeddingStandIn  nn.Embedding: the base's rows, then what the tasks add
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tswitch_format.errors import OptionError
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import Job, run
from tswitch_format.torch.kernels.job import matrix_of
from tswitch_format.torch.mixed.embedding import add_rows_
from tswitch_format.torch.mixed.grouped import batched, put_rows, take_rows
from tswitch_format.torch.mixed.guard import Guard
from tswitch_format.torch.mixed.linear import add_delta_, check_inputs
from tswitch_format.torch.mixed.planes import TaskPlanes, values_of
from tswitch_format.torch.mixed.routing import BASE, Group, Routing
from tswitch_format.torch.packed import PackedSwitch

Entry = PackedSwitch | Tensor
_KEPT = 1 << 16  # elements up to which an expert's tensor is kept once it is made: norms, biases, tokens


@dataclass(eq=False)
class Changed:
    """A tensor of the model, the name it has there, and for each task its switch, its whole tensor, or None."""

    name: str
    tensor: Tensor
    entries: list[Entry | None]
    _kept: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    _planes: dict[tuple[bool, tuple[int, ...]], TaskPlanes] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """What is held on the device beside the entries."""
        found = [tensor for _, tensor in self._kept.values()]
        return found + [tensor for planes in self._planes.values() for tensor in planes.tensors]

    def acts(self, group: Group) -> bool:
        """Whether the rows of a group need another tensor than the base's."""
        entry = self.entries[group.task] if group.task != BASE else None
        return isinstance(entry, Tensor) or (entry is not None and group.switches)

    @property
    def tasks(self) -> frozenset[int]:
        """Tasks that change it."""
        return frozenset(task for task, entry in enumerate(self.entries) if entry is not None)

    @property
    def whole(self) -> frozenset[int]:
        """Tasks that give the whole tensor."""
        return frozenset(task for task, entry in enumerate(self.entries) if isinstance(entry, Tensor))

    def planes(self, keep: frozenset[int], *, transposed: bool) -> TaskPlanes:
        """Planes of the switches, and of the tasks `keep`. Tied modules share them."""
        switches = [entry if isinstance(entry, PackedSwitch) else None for entry in self.entries]
        chosen = tuple(task for task, switch in enumerate(switches) if switch is not None or task in keep)
        if (transposed, chosen) not in self._planes:
            self._planes[transposed, chosen] = TaskPlanes.build(switches, keep=keep, transposed=transposed)
        return self._planes[transposed, chosen]

    def difference(self, task: int) -> Tensor | None:
        """What a task adds to a vector, f32."""
        entry = self.entries[task]
        if isinstance(entry, PackedSwitch):
            return values_of(entry)
        return None if entry is None else entry.float() - self.tensor.detach().float()

    def made(self, group: Group) -> Tensor:
        """The tensor for the rows of a group, as applying makes it; the base's own where nothing acts."""
        entry = self.entries[group.task] if self.acts(group) else None
        if not isinstance(entry, PackedSwitch):
            return self.tensor if entry is None else entry
        small = self.tensor.numel() <= _KEPT and group.coefficient == 1 and not self.tensor.is_inference()
        version = self.tensor._version if small else 0  # what was kept is stale once the base has changed
        kept = self._kept.get(group.task)
        if small and kept is not None and kept[0] == version:
            return kept[1]
        made = self.tensor.detach().clone(memory_format=torch.contiguous_format)
        matrix = matrix_of(made)
        run([Job(Mode.ADD, made if matrix is None else matrix, entry, group.coefficient)])
        if small:
            self._kept[group.task] = version, made
        return made


class Turn:
    """The routing of the rows that are under way, and the guard, while there is one."""

    def __init__(self) -> None:
        self.routing = Routing((), torch.device("cpu"))
        self.guard: Guard | None = None

    @contextmanager
    def of(self, routing: Routing) -> Iterator[None]:
        """Rows of this routing inside."""
        before, self.routing = self.routing, routing
        try:
            yield
        finally:
            self.routing = before

    def allowing(self, tensors: Sequence[Tensor]) -> AbstractContextManager[None]:
        """A stand-in accounts for these tensors inside."""
        return nullcontext() if self.guard is None else self.guard.allowing(tensors)


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor that a stand-in accounts for: where the model keeps it."""

    module: nn.Module
    attribute: str
    changed: Changed

    @property
    def store(self) -> dict[str, Any]:
        """The dict of the module that holds it."""
        parameters = self.module._parameters
        return parameters if self.attribute in parameters else self.module._buffers


@contextmanager
def put_in_place(tensors: Sequence[tuple[Place, Tensor]]) -> Iterator[None]:
    """Other tensors in the places of the model's, inside."""
    before = [(place, place.store[place.attribute]) for place, _ in tensors]
    try:
        for place, tensor in tensors:
            place.store[place.attribute] = tensor
        yield
    finally:
        for place, tensor in before:
            place.store[place.attribute] = tensor


class GroupedStandIn:
    """Runs a module once for each group of rows whose tensors differ, with these in place; a batch of one group as it is."""

    def __init__(self, name: str, module: nn.Module, places: Sequence[Place], turn: Turn) -> None:
        self.module = module
        self.forward: Callable[..., Any] = module.forward
        self.places = places
        self.turn = turn
        self.where = f"forward_mixed: module {name!r} (parameter {places[0].changed.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        routing = self.turn.routing
        parts = self._parts(routing)
        if len(parts) == 1:
            return self._run(parts[0][0], args, kwargs)
        outputs = []
        for group, rows, index in parts:
            with self.turn.of(routing.part(rows)):
                outputs.append(self._run(group, *self._cut(args, kwargs, index, routing.size)))
        return put_rows(outputs, [index for _, _, index in parts], routing.size, self.where)

    def rows_of(self, group: Group, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs for one group's rows alone."""
        routing = self.turn.routing
        with self.turn.of(routing.part(group.rows)):
            return self._run(group, *self._cut(args, kwargs, group.index, routing.size))

    def _cut(self, args: Any, kwargs: Any, index: Tensor, size: int) -> tuple[Any, Any]:
        return take_rows(args, index, size, self.where), take_rows(kwargs, index, size, self.where)

    def _parts(self, routing: Routing) -> list[tuple[Group, tuple[int, ...], Tensor]]:
        """Groups with their rows; those that leave this module as it is are one."""
        acting = [group for group in routing.groups if any(place.changed.acts(group) for place in self.places)]
        rest = sorted({*range(routing.size)} - {row for group in acting for row in group.rows})
        parts = [(group, group.rows, group.index) for group in acting]
        if rest or not parts:
            index = routing.index(tuple(rest))
            parts.append((Group(BASE, 1.0, tuple(rest), index), tuple(rest), index))
        return parts

    def _run(self, group: Group, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        acting = [place for place in self.places if place.changed.acts(group)]
        others = [place.store[place.attribute] for place in self.places if place not in acting]
        with self.turn.allowing([place.store[place.attribute] for place in acting]):
            tensors = [(place, place.changed.made(group)) for place in acting]
        with put_in_place(tensors), self.turn.allowing(others):
            return self.forward(*args, **kwargs)


class AttentionStandIn(GroupedStandIn):
    """nn.MultiheadAttention, with its output projection: a mask of two dimensions is the same for all rows."""

    def _cut(self, args: Any, kwargs: Any, index: Tensor, size: int) -> tuple[Any, Any]:
        given = inspect.signature(self.forward).bind(*args, **kwargs).arguments
        mask = given.pop("attn_mask", None)
        if mask is not None and mask.ndim != 2:
            raise OptionError(
                f"{self.where}: expected an attn_mask of two dimensions, found {list(mask.shape)}; run one expert at a time"
            )
        return (), {**take_rows(dict(given), index, size, self.where), "attn_mask": mask}


class LinearStandIn:
    """Adds what the tasks add to outputs of the base. Tasks that give the weight whole are run as groups; a bias that is given
    whole is a difference, but for rows with another coefficient than 1, which does not act on it."""

    def __init__(self, name: str, module: nn.Module, places: Sequence[Place], turn: Turn, *, transposed: bool) -> None:
        self.grouped = GroupedStandIn(name, module, places, turn)
        self.turn = turn
        self.where = self.grouped.where
        changed = {place.attribute: place.changed for place in places}
        weight, bias = changed["weight"], changed.get("bias")
        self.whole = weight.whole
        self.whole_bias = frozenset() if bias is None else bias.whole
        if weight.tensor.dtype == torch.float64:  # differences are f32
            self.whole |= self.whole_bias
        self.planes = weight.planes(frozenset() if bias is None else bias.tasks - self.whole, transposed=transposed)
        if bias is not None:
            added = [None if task in self.whole else bias.difference(task) for task in range(len(bias.entries))]
            self.planes = self.planes.with_biases(added)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's forward."""
        routing, places = self.turn.routing, self.grouped.places
        with self.turn.allowing([place.store[place.attribute] for place in places]):
            y: Tensor = self.grouped.forward(*args, **kwargs)
        whole = [group for group in routing.groups if self._is_whole(group)]
        if not whole and not self.planes.changes(routing.tasks):
            return y
        (x,) = (*args, *kwargs.values())
        x = batched(x, routing.size, self.where)
        check_inputs(x, self.planes, routing, self.where)
        y = add_delta_(batched(y, routing.size, self.where), x, self.planes, routing)
        for group in whole:
            y[group.index] = self.grouped.rows_of(group, (x,), {})
        return y

    def _is_whole(self, group: Group) -> bool:
        return group.task in self.whole or (group.task in self.whole_bias and group.coefficient != 1)


class EmbeddingStandIn:
    """Adds what the tasks add to looked-up rows of the base. Tasks with a whole table are run as groups."""

    def __init__(self, name: str, module: nn.Module, places: Sequence[Place], turn: Turn) -> None:
        self.grouped = GroupedStandIn(name, module, places, turn)
        self.turn = turn
        self.where = self.grouped.where
        self.whole = places[0].changed.whole
        self.planes = places[0].changed.planes(frozenset(), transposed=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's forward."""
        routing, places = self.turn.routing, self.grouped.places
        with self.turn.allowing([place.store[place.attribute] for place in places]):
            y: Tensor = self.grouped.forward(*args, **kwargs)
        whole = [group for group in routing.groups if group.task in self.whole]
        if not whole and not self.planes.changes(routing.tasks):
            return y
        (ids,) = (*args, *kwargs.values())
        ids = batched(ids, routing.size, self.where)
        y = batched(y, routing.size, self.where).contiguous()
        add_rows_(y, ids, self.planes, routing)
        for group in whole:
            y[group.index] = self.grouped.rows_of(group, (ids,), {})
        return y
