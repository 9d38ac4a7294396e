"""Does a model use a changed parameter past its module? Then no stand-in acts there, and the base's would be taken silently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from tswitch_format.errors import OptionError

# What tells nothing of the elements: attributes and methods by name.
_HARMLESS = frozenset(
    {
        "dtype",
        "device",
        "shape",
        "ndim",
        "layout",
        "requires_grad",
        "is_leaf",
        "itemsize",
        "nbytes",
        "grad",
        "size",
        "dim",
    }
    | {"is_cuda", "is_cpu", "is_meta", "is_quantized", "is_sparse", "is_nested", "is_floating_point", "is_complex"}
    | {"numel", "stride", "is_contiguous", "element_size", "data_ptr", "storage_offset", "is_inference"}
    | {"__len__", "__hash__", "__repr__"}
)


class Guard(TorchFunctionMode):
    """Raises OptionError where a torch function gets one of these tensors outside `allowing`. `names`: by id of a tensor."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self._allowed: frozenset[int] = frozenset()

    @contextmanager
    def allowing(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """A stand-in accounts for these inside."""
        before = self._allowed
        self._allowed = before | {id(tensor) for tensor in tensors}
        try:
            yield
        finally:
            self._allowed = before

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _name_of(func) not in _HARMLESS:
            for tensor in _tensors((args, kwargs)):
                if id(tensor) in self._names and id(tensor) not in self._allowed:
                    raise OptionError(
                        f"forward_mixed: parameter {self._names[id(tensor)]!r}: expected it to be used by its own module "
                        f"only, found it in {_name_of(func)}() elsewhere; run such a model one expert at a time"
                    )
        return func(*args, **(kwargs or {}))


def _name_of(func: Callable[..., Any]) -> str:
    """Of an attribute its own name, not that of its getter."""
    name = getattr(func, "__name__", "")
    return getattr(func.__self__, "__name__", "") if name == "__get__" and hasattr(func, "__self__") else name


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
