"""BitDelta's diff.pt: `tswitch_tools.importers.bitdelta` says what is in it.

    convert   the exporter

torch.save takes all tensors at once, so memory is what is written, beside one tensor that is being packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import Switch, SwitchFile
from tswitch_format.atomic import AtomicFile, check_output
from tswitch_format.checkpoint import DTYPE_BY_NAME
from tswitch_format.errors import CheckpointError
from tswitch_format.torch.checkpoint import torch_dtype
from tswitch_tools.exporters import fitting, problem_of
from tswitch_tools.importers.bitdelta import COEFFICIENT, MASK, WEIGHT, WORD

if TYPE_CHECKING:
    import torch

NAME = "bitdelta"
SUMMARY = "diff.pt of BitDelta: matrices in which every element is active, other tensors whole; needs torch"


def convert(
    file: SwitchFile,
    task: str,
    out: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sequence[str]:
    """See `Exporter.convert`."""
    switches = fitting(file, task, lambda switch, others: _problem(file, switch, others))
    check_output(out, [file.path])
    try:
        import torch  # noqa: PLC0415 - only users of such files need torch
    except ImportError as error:
        raise CheckpointError(
            f"{out}: torch is needed to write this file; run pip install 'tswitch-format[torch]'"
        ) from error
    with AtomicFile(out) as output:
        tensors: dict[str, torch.Tensor] = {}
        for done, (name, switch) in enumerate(switches.items(), 1):
            if switch.kind == "dense":
                tensors[name] = _whole(switch)
            else:
                module = name.removesuffix(WEIGHT)
                tensors[module + MASK] = torch.from_numpy(_words(switch))
                tensors[module + COEFFICIENT] = torch.tensor(switch.knob, dtype=torch.float32)
            if progress:
                progress(done, len(switches))
        torch.save(tensors, _Sink(output))  # type: ignore[arg-type]  # all that torch calls is here
        output.commit()
    base = f" ({'@'.join(part for part in (file.base.id, file.base.revision) if part)})" if file.base.id else ""
    return [
        f"{out} does not say which base it is of{base}: note that beside it",
        "tensors that equal the base's are not in it: it is to be loaded over the base",
    ]


def _problem(file: SwitchFile, switch: Switch, switches: Mapping[str, Switch]) -> str | None:
    """Why such a file cannot hold a tensor, or None."""
    if switch.kind == "dense":
        if switch.name.endswith((MASK, COEFFICIENT)) and switch.name not in file.base:
            return (
                f"expected a name that ends in neither {MASK} nor {COEFFICIENT}, which mean something there; rename it"
            )
        return None
    wrong = problem_of(file, switch)
    if wrong is not None:
        return wrong
    shape = list(switch.shape)
    if not switch.name.endswith(WEIGHT) or switch.name == WEIGHT:
        return f"expected a switch of a tensor named '{{module}}{WEIGHT}', found another; pack it with --dense"
    if len(shape) != 2 or shape[1] % WORD or not switch.elements:
        return f"expected a switch of a matrix with a multiple of {WORD} columns, found {shape}; pack it with --dense"
    if switch.active != switch.elements:
        return (
            f"expected every element to be active, found {switch.active} of {switch.elements}; "
            "pack with --density 1 --knob-per tensor, or use 'tsw restore'"
        )
    for suffix in (MASK, COEFFICIENT):
        if switch.name.removesuffix(WEIGHT) + suffix in switches:
            return f"expected no tensor of its module named {suffix}, found one; rename it"
    return None


def _words(switch: Switch) -> NDArray[np.int32]:
    """The mask: i32 [columns / 32, rows]."""
    rows, columns = switch.shape
    packed = np.empty(switch.elements // 8, np.uint8)
    for chunk in switch.chunks():  # chunks begin at whole bytes
        part = np.packbits(~switch.negative(chunk), bitorder="little")
        packed[chunk.start // 8 : chunk.start // 8 + part.size] = part
    return np.ascontiguousarray(packed.view("<i4").reshape(rows, columns // WORD).T)


def _whole(switch: Switch) -> torch.Tensor:
    import torch  # noqa: PLC0415 - loaded already

    dtype = torch_dtype(DTYPE_BY_NAME[switch.dtype])
    if not switch.elements:
        return torch.empty(switch.shape, dtype=dtype)
    raw = np.ascontiguousarray(switch.data()).reshape(-1).view(np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(switch.shape)


class _Sink:
    """An output as torch.save writes to it."""

    def __init__(self, output: AtomicFile) -> None:
        self._output = output

    def write(self, data: Any) -> int:
        """Append bytes."""
        view = memoryview(data)
        self._output.write(view)
        return view.nbytes

    def flush(self) -> None:
        """Nothing to do before the commit."""
