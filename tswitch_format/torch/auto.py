"""A model that chooses its experts by what it is given: router, bank and model in one call (Auto-Switch, arXiv 2412.00054)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tswitch_format.errors import OptionError
from tswitch_format.torch.bank import SwitchBank
from tswitch_format.torch.checkpoint import unusual
from tswitch_format.torch.mixed.grouped import put_rows, take_rows
from tswitch_format.torch.router import Mode, Router, check_mode

_WHERE = "AutoSwitch"


class AutoSwitch:
    """`model`, each batch with the experts that a router finds for it (spec section 5.6).

        bank = SwitchBank(model)
        for task in ("cars", "dtd"):
            bank.add(task, "all.tsw")
        auto = AutoSwitch(model, bank, Router.open("all.tsw", device), encode)
        auto(images)

    `model`: what is called, on whose weights `bank` is; experts have the names of the router's tasks. `extractor`: called with
    the same arguments, gives features [n, D], f16, bf16, f32 or f64 on the router's device, as its stored samples were made; it
    sees the base's weights. `mode`, as in `Router.weights`:

        mean    one combination for the batch: each task with its mean weight
        hard    one expert for the batch: that with the largest mean weight
        sample  rows with equal weights together, a run for each of these groups, outputs in the batch's order

    A task of weight 0 has no part; dense entries are not weighted (spec section 10), and where two experts of one combination
    have different ones, the bank refuses it. The weights are copied to the host once a batch.

    Between calls the model is the base, for its extractor may be a part of it. `separate=True` says that the extractor has
    weights of its own (of an nn.Module, or a method of one, this is checked): then a combination stays active after a call, and
    is not made anew where the next batch has the same, to the last bit. Whatever raises in a call, an interrupt too, leaves
    the base.

    Threads: a call holds the bank until it is over, as a block of `bank.active` does. Inference only: calls run under
    torch.no_grad, and there are no gradients.

    A new task needs no training: `bank.add(name, path)`, then `auto.router = Router.open(path)`. `mode` may be set too.

    Raises OptionError for another mode, for a router with samples of tasks that are no experts of the bank, for a model
    that has none of the bank's weights, or an extractor that is called separate and has some.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        bank: SwitchBank,
        router: Router,
        extractor: Callable[..., Tensor],
        mode: Mode = "mean",
        *,
        separate: bool = False,
    ) -> None:
        if not isinstance(bank, SwitchBank):
            raise OptionError(f"bank: expected a SwitchBank, found {type(bank).__name__}")
        for what, given in (("model", model), ("extractor", extractor)):
            if not callable(given):
                raise OptionError(f"{what}: expected something to call, found {type(given).__name__}")
        rooms = _rooms(bank._weights[name] for name in bank._weights)
        if isinstance(model, nn.Module) and not rooms & _rooms(_tensors(model)):
            raise OptionError(
                "model: expected that of the bank, found one without any of its weights; make the bank of this"
            )
        module = extractor if isinstance(extractor, nn.Module) else getattr(extractor, "__self__", None)
        if separate and isinstance(module, nn.Module) and rooms & _rooms(_tensors(module)):
            raise OptionError(
                "extractor: expected weights of its own, found some that the bank has; leave separate=True out"
            )
        self._model = model
        self._bank = bank
        self._extractor = extractor
        self._separate = separate
        self.mode = mode
        self.router = router

    @property
    def router(self) -> Router:
        """What finds the experts. Set another one, such as that of a file with more tasks; the next call uses it."""
        return self._router

    @router.setter
    def router(self, router: Router) -> None:
        if not isinstance(router, Router):
            raise OptionError(
                f"router: expected a tswitch_format.torch.Router, found {type(router).__name__}; use Router.open(path)"
            )
        missing = [task for task in router.tasks_with_samples if task not in self._bank.experts]
        if missing:
            raise OptionError(
                f"router: expected an expert in the bank for each task with samples, found none for {missing[0]!r}; "
                f"bank.add({missing[0]!r}, path) first"
            )
        self._router = router

    @property
    def mode(self) -> Mode:
        """How weights of samples become combinations."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        check_mode(mode)
        self._mode = mode

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`model(*args, **kwargs)` with the experts that the extractor's features of the same arguments choose.

        "mean" and "hard" pass arguments and outputs as they are. "sample" cuts them: every tensor in arguments (in tuples,
        lists and dicts too) has the batch in dimension 0, or 1 there, or no dimension; outputs are tensors [rows, ...], or
        tuples, lists, dicts and ModelOutputs of these. A batch of no rows runs on the base.

        Raises OptionError for features or, in "sample", arguments and outputs of other kinds, and what the bank raises:
        UnknownNameError where an expert was removed, OptionError where weights were changed by something else.
        """
        with self._using():
            router, mode = self._router, self._mode
            weights = self._weights(router, mode, args, kwargs).tolist()
            if mode == "sample" and weights:
                return self._run_groups(router.tasks, weights, args, kwargs)
            self._activate(_combination(router.tasks, weights))
            return self._model(*args, **kwargs)

    def route(self, *args: Any, **kwargs: Any) -> Tensor:
        """The weights alone: f32 [T], or [n, T] in mode "sample", on the router's device; columns are `router.tasks`."""
        with self._using():
            return self._weights(self._router, self._mode, args, kwargs)

    def __repr__(self) -> str:
        return f"<AutoSwitch {self._mode} {self._router!r} {self._bank!r}>"

    @contextmanager
    def _using(self) -> Iterator[None]:
        """The bank for this thread; then the model is the base again, unless what is active may stay."""
        with torch.no_grad(), self._bank._using():
            try:
                yield
                if not self._separate:
                    self._bank.deactivate()
            except BaseException as error:
                try:
                    self._bank.deactivate()
                except Exception as other:  # noqa: BLE001 - the call's own error says more
                    error.add_note(f"and the bank could not be switched back to the base: {other}")
                raise

    def _weights(self, router: Router, mode: Mode, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        if not self._separate and self._bank.current:
            self._bank.deactivate()
        return router.weights(self._extractor(*args, **kwargs), mode)

    def _activate(self, combination: Mapping[str, float]) -> None:
        if combination:
            self._bank.activate(combination)  # does nothing where it is active
        else:
            self._bank.deactivate()

    def _run_groups(
        self, tasks: Sequence[str], weights: Sequence[Sequence[float]], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """A run for each group of rows with equal weights; that whose combination is active comes first."""
        groups: dict[tuple[float, ...], list[int]] = {}
        for row, found in enumerate(weights):
            groups.setdefault(tuple(found), []).append(row)
        active = self._bank.current
        outputs, indices = [], []
        for found, rows in sorted(groups.items(), key=lambda group: _combination(tasks, group[0]) != active):
            index = torch.tensor(rows)  # on the host: then it cuts tensors of every device
            given = take_rows((tuple(args), dict(kwargs)), index, len(weights), _WHERE)
            self._activate(_combination(tasks, found))
            outputs.append(self._model(*given[0], **given[1]))
            indices.append(index)
        return put_rows(outputs, indices, len(weights), _WHERE)


def _combination(tasks: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    return {task: weight for task, weight in zip(tasks, weights, strict=False) if weight}


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _rooms(tensors: Iterator[Tensor]) -> set[tuple[torch.device, int]]:
    """Where tensors' memory is."""
    usual = (tensor for tensor in tensors if unusual(tensor) is None and tensor.numel())
    return {(tensor.device, tensor.untyped_storage().data_ptr()) for tensor in usual}
