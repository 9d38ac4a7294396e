"""A whole model in which each row of a batch uses another expert.

    MixedModel       a model, experts, and their planes, built once
    forward_mixed    one batch

Linear layers take what experts add from packed planes (linear.py), embeddings likewise (embedding.py); other modules that own
changed parameters, such as norms, run once for each task of the batch. The model keeps the base's weights throughout; each
row's result is that of the model with this row's expert applied, but for rounding (tolerance of linear layers: linear.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.torch.mixed.guard import Guard
from tswitch_format.torch.mixed.modules import (
    AttentionStandIn,
    Changed,
    EmbeddingStandIn,
    Entry,
    GroupedStandIn,
    LinearStandIn,
    Place,
    Turn,
)
from tswitch_format.torch.mixed.planes import check_ternary
from tswitch_format.torch.mixed.routing import Routing, TaskIds
from tswitch_format.torch.packed import PackedSwitch

Experts = Mapping[str, Mapping[str, Entry]]


def forward_mixed(
    model: nn.Module,
    experts: Experts,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    task_ids: TaskIds,
) -> Any:
    """`model(*args, **kwargs)`, where row i of the batch uses the expert `task_ids[i]`. See `MixedModel`, which keeps
    planes from call to call."""
    return MixedModel(model, experts)(*args, task_ids=task_ids, **(kwargs or {}))


class MixedModel:
    """`model`, with the base's weights, and `experts` by name: for each parameter that one changes its packed switch, or the
    whole tensor (of the parameter's shape and dtype), under its name in `model.state_dict()`, on its device.

    Every tensor that reaches a changed module must have the batch in dimension 0, or 1 there. Calls are for inference: no
    gradients; set `model.eval()`. One call at a time. Make this anew when experts or base change, or when the model is moved.

    The first call is guarded: it refuses a model that uses a changed parameter past its module (guard.py), which takes some
    microseconds an operation. What cannot be seen: tensors whose dimension 0 is no batch (tokens sorted for a mixture of
    experts, positions against positions) are refused, unless it happens to be as long as the batch.

    Raises UnknownNameError for a parameter that is not there; OptionError for a masked switch, for one that does not fit its
    parameter, and for modules that cannot be run by rows: nn.RNN and its kind, nn.MultiheadAttention without batch_first,
    scripted ones.
    """

    def __init__(self, model: nn.Module, experts: Experts) -> None:
        self.model = model
        self.names = tuple(experts)
        self._turn = Turn()
        self._changed, places = _find_changes(model, experts)
        self._watched = {id(p.store[p.attribute]): p.changed.name for found in places.values() for p in found}
        self._stand_ins = _stand_ins(model, places, self._turn)
        self._device = _one_device(self._changed)
        self._lock = Lock()
        self._guarded = False

    @property
    def nbytes(self) -> int:
        """Bytes of planes, factors and small tensors held on the device beside model and experts."""
        tensors = [tensor for changed in self._changed for tensor in changed.tensors]
        for stand_in in self._stand_ins.values():
            tensors += stand_in.planes.tensors if isinstance(stand_in, LinearStandIn) else []
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def __call__(self, *args: Any, task_ids: TaskIds, **kwargs: Any) -> Any:
        """`model(*args, **kwargs)` with a task for each row: a name, its number in `names`, None or -1 for the base, or a pair
        of name and coefficient. Raises OptionError where the batch or a module does not fit, UnknownNameError."""
        routing = Routing.of(task_ids, self.names, self._device)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
        if not any(len(tensor) == routing.size for tensor in tensors):
            raise OptionError(
                f"task_ids: expected one for each row of the batch, found {routing.size} for arguments of shapes "
                f"{[list(tensor.shape) for tensor in tensors][:4]}; give as many as there are rows"
            )
        with self.using(routing):
            return self.model(*args, **kwargs)

    @contextmanager
    def using(self, task_ids: TaskIds | Routing) -> Iterator[None]:
        """All calls of the model inside, also those of its methods such as `generate`, are of batches with these tasks."""
        routing = task_ids if isinstance(task_ids, Routing) else Routing.of(task_ids, self.names, self._device)
        if not self._lock.acquire(blocking=False):
            raise OptionError("forward_mixed: expected one call at a time, found another under way; wait for it")
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(_no_fast_path())
                for module, stand_in in self._stand_ins.items():
                    stack.enter_context(_standing_in(module, stand_in))
                stack.enter_context(self._turn.of(routing))
                stack.enter_context(self._guarding())
                yield
            self._guarded = True
        finally:
            self._lock.release()

    @contextmanager
    def _guarding(self) -> Iterator[None]:
        if self._guarded:
            yield
            return
        self._turn.guard = Guard(self._watched)
        try:
            with self._turn.guard:
                yield
        finally:
            self._turn.guard = None


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward of a module, inside. Its hooks stay around it."""
    missing = object()
    before = module.__dict__.get("forward", missing)
    module.forward = forward
    try:
        yield
    finally:
        if before is missing:
            del module.forward
        else:
            module.forward = before


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """torch's transformer layers have a path in which they call no modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _find_changes(model: nn.Module, experts: Experts) -> tuple[list[Changed], dict[nn.Module, list[Place]]]:
    """Tensors that an expert changes, and by module the places where they are. Tied tensors are one."""
    holders: dict[str, tuple[nn.Module, str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                holders[f"{prefix}.{attribute}" if prefix else attribute] = module, attribute
    found: dict[object, Changed] = {}
    for task, (name, entries) in enumerate(experts.items()):
        for parameter, entry in entries.items():
            if parameter not in holders:
                raise UnknownNameError("parameter", parameter, holders, where=f"experts[{name!r}]")
            module, attribute = holders[parameter]
            tensor = getattr(module, attribute)
            where = f"experts[{name!r}]: parameter {parameter!r}"
            _check_entry(entry, tensor, where)
            changed = found.setdefault(_memory(tensor), Changed(parameter, tensor, [None] * len(experts)))
            _check_tie(changed, task, entry, where)
            changed.entries[task] = entry
    places: dict[nn.Module, list[Place]] = {}
    for module, attribute in dict.fromkeys(holders.values()):
        tensor_changed = found.get(_memory(getattr(module, attribute)))
        if tensor_changed is not None:
            places.setdefault(module, []).append(Place(module, attribute, tensor_changed))
    return list(found.values()), places


def _one_device(changed: Sequence[Changed]) -> torch.device:
    for found in changed:
        if found.tensor.device != changed[0].tensor.device:
            raise OptionError(
                f"forward_mixed: expected a model on one device, found {changed[0].name!r} on {changed[0].tensor.device} and "
                f"{found.name!r} on {found.tensor.device}; move it to one"
            )
    return changed[0].tensor.device if changed else torch.device("cpu")


def _memory(tensor: Tensor) -> object:
    """What tied tensors have in common."""
    if not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _check_tie(changed: Changed, task: int, entry: Entry, where: str) -> None:
    if changed.entries[task] is not None and changed.entries[task] is not entry:
        raise OptionError(
            f"{where}: expected one switch for what the model ties, found another under {changed.name!r}; untie the model's "
            "parameters, or leave one out"
        )


def _check_entry(entry: Entry, tensor: Tensor, where: str) -> None:
    if not isinstance(entry, PackedSwitch | Tensor):
        raise OptionError(f"{where}: expected a packed switch or a tensor, found {type(entry).__name__}; see load()")
    if isinstance(entry, PackedSwitch):
        check_ternary(entry, where)
    same_type = tensor.is_floating_point() if isinstance(entry, PackedSwitch) else entry.dtype == tensor.dtype
    if tuple(entry.shape) != tuple(tensor.shape) or entry.device != tensor.device or not same_type:
        kind = entry.dtype.name if isinstance(entry, PackedSwitch) else entry.dtype
        raise OptionError(
            f"{where}: expected {tensor.dtype} {list(tensor.shape)} on {tensor.device}, found {kind} {list(entry.shape)} on "
            f"{entry.device}; load the experts of this model to its device"
        )


def _stand_ins(
    model: nn.Module, places: Mapping[nn.Module, Sequence[Place]], turn: Turn
) -> dict[nn.Module, Callable[..., Any]]:
    names = {module: name for name, module in model.named_modules()}
    # Attention reads the tensors of its output projection itself.
    within = {inner: m for m in model.modules() if isinstance(m, nn.MultiheadAttention) for inner in m.modules()}
    owned: dict[nn.Module, list[Place]] = {}
    for module, found in places.items():
        owned.setdefault(within.get(module, module), []).extend(found)
    return {module: _stand_in(names[module], module, found, turn) for module, found in owned.items()}


def _stand_in(name: str, module: nn.Module, places: Sequence[Place], turn: Turn) -> Callable[..., Any]:
    _check_module(name, module, places[0].changed.name)
    weight = {place.attribute: place.changed for place in places if place.module is module}.get("weight")
    switched = weight is not None and any(isinstance(entry, PackedSwitch) for entry in weight.entries)
    forward = type(module).forward
    if switched and (forward is nn.Linear.forward or _is_conv1d(module)):
        return LinearStandIn(name, module, places, turn, transposed=_is_conv1d(module))
    if switched and isinstance(module, nn.Embedding) and forward is nn.Embedding.forward and module.max_norm is None:
        return EmbeddingStandIn(name, module, places, turn)
    kind = AttentionStandIn if isinstance(module, nn.MultiheadAttention) else GroupedStandIn
    return kind(name, module, places, turn)


def _is_conv1d(module: nn.Module) -> bool:
    """The linear layer of GPT-2, whose weight is [inputs, outputs]. Known by name: transformers is not imported here."""
    return (type(module).__module__, type(module).__name__) == ("transformers.pytorch_utils", "Conv1D")


def _check_module(name: str, module: nn.Module, parameter: str) -> None:
    reason = None
    if isinstance(module, nn.RNNBase):
        reason = f"a {type(module).__name__}, which keeps its weights in a list of its own"
    elif isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        reason = "attention with the batch in dimension 1"
    elif isinstance(module, torch.jit.ScriptModule):
        reason = "a scripted module"
    if reason is not None:
        raise OptionError(
            f"forward_mixed: module {name!r} (parameter {parameter!r}): expected a module that can be run by rows, found "
            f"{reason}; run such a model one expert at a time"
        )
