"""Turn a model in memory into an expert, in place and for good: `apply_`. To switch back and forth, see `bank.py`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from torch import Tensor, nn

from tswitch_format.container.source import Backend
from tswitch_format.switch.tables import Share
from tswitch_format.torch.activation import Activation, Store
from tswitch_format.torch.combination import changes
from tswitch_format.torch.expert import load_expert
from tswitch_format.torch.staging import DEFAULT_BYTES
from tswitch_format.torch.weights import ModelWeights


def apply_(
    model: nn.Module | Mapping[str, Tensor],
    path: str | PathLike[str],
    *,
    task: str | None = None,
    coefficient: float = 1.0,
    check_base: bool = True,
    backend: Backend = "auto",
    staging_bytes: int = DEFAULT_BYTES,
    threads: int = 1,
) -> None:
    """Apply a task to a model that holds its base, or to its state dict: spec section 10, in place, on the tensors' devices.

    `task` may be left out where the file has one only. Names, shapes, dtypes, sampled digests of the base and every byte of
    the task are checked before the first element changes; on any error the model is as it was. `check_base=False` goes on
    where digests differ, or where weights are of another float type. Extra memory: the packed task, and the original values
    of the touched elements until it is over.

    Raises BaseMismatchError, UnknownNameError, OptionError, CheckpointError or FormatError.
    """
    weights = ModelWeights(model)
    expert = load_expert(
        weights, path, task, check_base=check_base, backend=backend, staging_bytes=staging_bytes, threads=threads
    )
    activation = Activation(changes(weights, [(Share(expert.task, coefficient), expert)]), Store())
    try:
        activation.make()
    except BaseException:
        activation.undo()
        raise
