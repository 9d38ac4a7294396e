"""One base model in memory, many experts, switched in place and back exactly: `SwitchBank`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tswitch_format._dtypes import F64
from tswitch_format.container.source import Backend
from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.switch.apply import proper_coefficient
from tswitch_format.torch.activation import Activation, Change, Store, add_sizes
from tswitch_format.torch.combination import Combination, Tint, changes, check_rows, same, shares
from tswitch_format.torch.expert import Expert, load_expert
from tswitch_format.torch.mixed import MixedModel
from tswitch_format.torch.mixed.routing import TaskIds
from tswitch_format.torch.staging import DEFAULT_BYTES
from tswitch_format.torch.weights import ModelWeights

Wanted = str | Mapping[str, float] | Tint
Stamp = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Bytes beside the model's own, by device: packed `experts` by name, and the memory for original values,
    `kept` for the next activation too. `mixed`: of what `forward_mixed` has made for itself, on all devices. `vectors`: what
    masked experts select from, each vector once, however many of the experts hold it; another bank may hold it too."""

    experts: Mapping[str, Mapping[torch.device, int]]
    kept: Mapping[torch.device, int]
    mixed: int
    vectors: Mapping[torch.device, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(sum(sizes.values()) for sizes in (*self.experts.values(), self.kept, self.vectors)) + self.mixed


class SwitchBank:
    """Experts of one base, packed beside a model that holds the base, and switched in place.

        bank = SwitchBank(model)                        # model.requires_grad_(False) before
        bank.add("math", "math.tsw")
        with bank.active("math"):                       # or activate() and deactivate()
            model(...)
        bank.activate({"math": 0.6, "code": 0.4})
        bank.activate(Tint(table, layers="math"))       # for each weight its own coefficients
        bank.forward_mixed(x, task_ids=["math", "code", None])  # each row of a batch with its own

    `model`: an nn.Module or a mapping of name to tensor, on one device or several. Each expert's switches lie packed on the
    device of the weight that they change; of a vector that masked experts select from there is one copy for all. Weights keep
    their storages, so compiled graphs and CUDA graphs stay valid; tied weights are changed once. Switching
    back is exact: the original values of touched elements are kept, not subtracted.

    Threads: every method may be called from any thread; one waits for the other. `active` holds the bank until its block is
    over, so blocks of several threads follow one another. What a model computes while another thread calls `activate` is
    undefined, so use `active` around it. `add` reads its file beside all that. On CUDA, work is queued on the current streams
    of the calling thread, which wait for what other threads' streams did through the bank before.

    What something else changed in place between two switches is noticed and refused, but for changes through `.data` and
    of inference tensors, which torch does not count.

    Raises OptionError or CheckpointError for what is no model. Weights that cannot be changed in place, such as those that
    require grad, are refused when an expert is added that would change them.
    """

    def __init__(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        self._lock = threading.RLock()
        self._weights = ModelWeights(model)
        for name in self._weights:  # now, while the model is the base
            self._weights.sampled(name)
        self._experts: dict[str, Expert] = {}
        self._current: Combination = {}
        self._blocks: list[_Block] = []  # of `active`, that are open
        self._under_way = False  # whether a mixed batch is
        self._events: dict[torch.device, torch.cuda.Event] = {}  # the last thing done on each CUDA device
        self._activation: Activation | None = None  # from before it is made until it is undone
        self._store = Store()
        self._mixed: MixedModel | None = None  # made when it is first used
        self._touched: list[str] = []
        self._stamps: dict[str, Stamp] = {name: _stamp(self._weights[name]) for name in self._weights}

    @property
    def experts(self) -> list[str]:
        """Names of the experts, in the order in which they were added."""
        return list(self._experts)

    @property
    def current(self) -> Mapping[str, float] | Tint:
        """What is active: expert -> coefficient, or the Tint; empty after `deactivate`."""
        return self._current if isinstance(self._current, Tint) else MappingProxyType(dict(self._current))

    def add(
        self,
        name: str,
        path: str | PathLike[str],
        *,
        task: str | None = None,
        check_base: bool = True,
        backend: Backend = "auto",
        staging_bytes: int = DEFAULT_BYTES,
        threads: int = 1,
    ) -> None:
        """Read a task of a file, packed, to the model's devices. The model is not changed.

        `task` may be left out where the file has one only, or one that is called `name`. Names, shapes, dtypes and sampled
        digests are compared with the model as it was when the bank was made, and every byte of the task is checked.
        `check_base=False` goes on where digests differ, or where weights are of another float type.

        Raises OptionError where there is an expert of that name, BaseMismatchError, UnknownNameError or FormatError.
        """
        if not isinstance(name, str) or not name:
            raise OptionError(f"bank: expected a name for the expert, found {name!r}")
        self._check_new(name)
        expert = load_expert(  # without the lock: others may switch meanwhile
            self._weights,
            path,
            task,
            preferred=name,
            check_base=check_base,
            backend=backend,
            staging_bytes=staging_bytes,
            threads=threads,
        )
        for device in self._weights.cuda_devices:  # so that it may be used on any stream
            torch.cuda.current_stream(device).synchronize()
        with self._using():
            self._check_new(name)
            self._experts[name] = expert
            self._mixed = None

    def remove(self, name: str) -> None:
        """Forget an expert. Raises UnknownNameError, or OptionError while it is active."""
        with self._using():
            self._expert(name)
            if any(name in _names(held) for held in (self._current, *(block.before for block in self._blocks))):
                raise OptionError(
                    f"bank: expert {name!r} is active, or a block returns to it; deactivate() before remove()"
                )
            self._finish()
            del self._experts[name]
            self._mixed = None

    def activate(self, combination: Wanted) -> None:
        """Make the model this expert, or this sum of experts with coefficients, or with a table with those of each weight,
        whatever it was before.

        Everything is checked before anything changes; where it fails, the model is made what it was again, or, if that fails
        too, the base. Raises UnknownNameError, OptionError.
        """
        with self._using():
            self._activate(self._wanted(combination))

    def deactivate(self) -> None:
        """Make the model the base again, bit for bit."""
        with self._using():
            self._switch({})

    @contextmanager
    def active(self, combination: Wanted) -> Iterator[None]:
        """Activate for the length of a block, then what was active before. Other threads wait for the end of the block; tasks
        of asyncio cannot wait in one thread, so another task's block there is refused (OptionError)."""
        with self._using():
            block = _Block(self._current, _task())
            self._blocks.append(block)
            try:
                self._activate(self._wanted(combination))
                yield
            except BaseException as error:
                try:
                    self._leave(block)
                except Exception as other:  # noqa: BLE001 - the block's own error says more
                    error.add_note(f"and the bank could not be switched back: {other}")
                raise
            else:
                self._leave(block)

    def _leave(self, block: _Block) -> None:
        self._blocks.remove(block)
        self._activate(block.before)

    def forward_mixed(self, *args: Any, task_ids: TaskIds, **kwargs: Any) -> Any:
        """`model(*args, **kwargs)` for one batch, each row of which uses another expert; the model stays the base.

        `task_ids`: for each row an expert's name, a pair of name and coefficient, or None for the base. For inference only;
        see `mixed.MixedModel` for what a model must be like. Takes 2 bits an element of each linear layer that an expert
        changes, made on the first call and held until an expert is added or removed.

        Raises OptionError while an expert is active, where an expert of the bank has masked entries, or for a model that
        cannot be run by rows; UnknownNameError.
        """
        with self._mixing() as model:
            return model(*args, task_ids=task_ids, **kwargs)

    @contextmanager
    def mixed(self, task_ids: TaskIds) -> Iterator[None]:
        """The same for all calls of the model in a block, such as those that `model.generate` makes."""
        with self._mixing() as model, model.using(task_ids):
            yield

    @contextmanager
    def _mixing(self) -> Iterator[MixedModel]:
        with self._using():
            if self._current:
                raise OptionError(
                    f"forward_mixed: expected the base, found {', '.join(_names(self._current))} active; deactivate() first"
                )
            if not isinstance(self._weights.model, nn.Module):
                raise OptionError(
                    f"forward_mixed: expected a bank of an nn.Module, found one of a {type(self._weights.model).__name__}"
                )
            self._check_untouched({name for expert in self._experts.values() for name in expert.entries})
            if self._mixed is None:
                experts = {name: expert.entries for name, expert in self._experts.items()}
                self._mixed = MixedModel(self._weights.model, experts)
            self._under_way = True
            try:
                yield self._mixed
            finally:
                self._under_way = False

    def release(self) -> None:
        """Give back memory that is held for next times: for original values, and planes of `forward_mixed`.

        Raises OptionError while an expert is active.
        """
        with self._using():
            if self._current:
                raise OptionError(f"bank: {', '.join(_names(self._current))} is active; deactivate() before release()")
            self._finish()
            self._store.clear()
            self._mixed = None

    def memory_report(self) -> MemoryReport:
        """What the bank holds beside the model."""
        with self._lock:
            kept = self._store.nbytes
            for device, size in (self._activation.dense_nbytes if self._activation else {}).items():
                kept[device] = kept.get(device, 0) + size
            experts = {name: expert.nbytes() for name, expert in self._experts.items()}
            vectors = {id(vector): vector for expert in self._experts.values() for vector in expert.vectors}
            return MemoryReport(experts, kept, self._mixed.nbytes if self._mixed else 0, add_sizes(vectors.values()))

    def __repr__(self) -> str:
        return f"<SwitchBank experts {self.experts} active {self._current}>"

    @contextmanager
    def _using(self) -> Iterator[None]:
        """The bank for this thread, with its devices: their current streams wait for what was done before, on whatever
        streams that was."""
        with self._lock:
            if self._under_way:
                raise OptionError("bank: a mixed batch is under way in this thread; wait until it is over")
            if self._blocks and self._blocks[-1].task is not _task():
                raise OptionError(
                    "bank: another task of this thread has an `active` block open; let its block end first"
                )
            for device, event in self._events.items():
                torch.cuda.current_stream(device).wait_event(event)
            try:
                yield
            finally:
                for device in self._weights.cuda_devices:
                    self._events[device] = torch.cuda.current_stream(device).record_event()

    def _finish(self) -> None:
        """Wait until devices are done: memory that is let go may be given to others at once."""
        for device in self._weights.cuda_devices:
            torch.cuda.synchronize(device)

    def _expert(self, name: str) -> Expert:
        if not isinstance(name, str):
            raise OptionError(f"bank: expected the name of an expert, found {name!r}")
        try:
            return self._experts[name]
        except KeyError:
            raise UnknownNameError("expert", name, self._experts, where="bank") from None

    def _check_new(self, name: str) -> None:
        if name in self._experts:
            raise OptionError(f"bank: there is an expert {name!r} already; remove it first, or choose another name")

    def _wanted(self, combination: Wanted) -> Combination:
        if isinstance(combination, Tint):
            for name in _names(combination):
                self._expert(name)
            check_rows(combination.table, self._experts)
            return combination
        if isinstance(combination, str):
            combination = {combination: 1.0}
        if not isinstance(combination, Mapping) or not combination:
            raise OptionError(
                f"activate: expected an expert's name, or a mapping of names to coefficients, or a Tint, found "
                f"{combination!r}; deactivate() gives the base"
            )
        for name in combination:
            self._expert(name)
        # In the widest arithmetic; in that of each tensor when changes are made of it.
        return {name: proper_coefficient(value, F64, f"expert {name!r}") for name, value in combination.items()}

    def _changes(self, wanted: Combination) -> list[Change]:
        return changes(self._weights, [(share, self._experts[share.task]) for share in shares(wanted)])

    def _activate(self, wanted: Combination) -> None:
        if same(wanted, self._current):
            self._check_untouched(self._touched)
        else:
            self._switch(wanted)

    def _switch(self, wanted: Combination) -> None:
        """From what is active to what is wanted. Whatever fails, and wherever an interrupt comes, what was active is made
        again; `_activation` always knows what to undo, for it is there before anything changes."""
        made = self._changes(wanted)
        self._check_untouched({*self._touched, *(change.name for change in made)})
        before = self._current
        try:
            self._undo()
            self._make(wanted, made)
        except BaseException:
            self._undo()
            self._make(before, self._changes(before))
            raise

    def _make(self, wanted: Combination, made: list[Change]) -> None:
        if made:
            activation = Activation(made, self._store)
            self._touched = [change.name for change in made]
            self._activation = activation
            try:
                activation.make()
            finally:
                self._stamp_touched()
        self._current = wanted

    def _undo(self) -> None:
        self._current = {}  # first: whatever interrupts this, nothing is taken for active that is not
        if self._activation is not None:
            try:
                self._activation.undo()
            finally:
                self._stamp_touched()
        self._activation = None
        self._touched = []

    def _stamp_touched(self) -> None:
        for name in self._weights.neighbours(self._touched):
            self._stamps[name] = _stamp(self._weights[name])

    def _check_untouched(self, names: Iterable[str]) -> None:
        """Raise OptionError where something else moved, replaced or changed a weight: it is the base's no more."""
        self._weights.check_there(names)
        for name in names:
            weight = self._weights[name]
            if _stamp(weight) != self._stamps[name]:
                raise OptionError(
                    f"bank: tensor {name!r} was moved or changed by something else since the bank last changed it; load the "
                    "base anew and make a new bank"
                )
            if weight.requires_grad:
                raise OptionError(f"bank: tensor {name!r} requires grad by now; call model.requires_grad_(False) first")


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A block of `active`: what it returns to, and the asyncio task that it belongs to, if any."""

    before: Combination
    task: object


def _names(combination: Combination) -> list[str]:
    """The experts that have a part in a combination."""
    return [share.task for share in shares(combination)]


def _task() -> object:
    """The asyncio task that runs in this thread, or None."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop here
        return None


def _stamp(tensor: Tensor) -> Stamp:
    """Where a tensor's elements are, and how often they were changed in place as far as torch knows."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.shape, tensor.stride()
