"""Switches of one matrix, task by task, as products read them: a bit of mask and a bit of sign an element, row by row.

Packed switches (`torch/packed.py`) are read from end to end. A tile of a product instead begins at any row and column, so
here each row begins in a 32-bit word of its own. That takes 2 bits an element at every density.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tswitch_format.errors import OptionError
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import Job, run
from tswitch_format.torch.kernels.reference import active_elements
from tswitch_format.torch.packed import PackedSwitch

WORD = 4  # bytes that a row is filled up to: kernels read words of 32 elements


@dataclass(frozen=True, slots=True)
class TaskPlanes:
    """Planes of P of the tasks for a matrix of `outputs` N rows and `inputs` K columns, all on one device.

    `plane_of`: for each task the number of its planes, or -1 where it leaves the matrix as it is; `places` the same as
    i32[T]. `active`: active elements of each of the P. `bits` u8[P, N, 2, S], S = 4 ceil(K / 32): of each row the mask, then
    the sign bits (1 = negative, and 0 where the mask is); element k is bit k mod 8 of byte k // 8, as in spec section 9.
    `knobs` f32[P]; `rows` f32[P, N] and `columns` f32[P, K] factors, or None where no task has any; `biases` f32[P, N], what
    the tasks add to the bias, or None.
    """

    outputs: int
    inputs: int
    plane_of: tuple[int, ...]
    active: tuple[int, ...]
    places: Tensor
    bits: Tensor
    knobs: Tensor
    rows: Tensor | None
    columns: Tensor | None
    biases: Tensor | None

    @classmethod
    def build(
        cls, switches: Sequence[PackedSwitch | None], *, keep: Iterable[int] = (), transposed: bool = False
    ) -> TaskPlanes:
        """Planes of the switches of one weight, one a task (None: the task does not change it).

        `keep`: tasks that get planes in any case, for `with_biases`. `transposed`: the weight is kept as [K, N]. Works chunk by
        chunk, with some tens of MB beside the result. Raises OptionError where shapes or devices differ, or there is none.
        """
        shape, device = _same_place([switch for switch in switches if switch is not None])
        outputs, inputs = (shape[1], shape[0]) if transposed else shape
        kept = set(keep)
        chosen = [task for task, switch in enumerate(switches) if switch is not None or task in kept]
        found = [switches[task] for task in chosen]
        bits = torch.zeros(len(chosen), outputs, 2, WORD * (-(-inputs // (8 * WORD))), dtype=torch.uint8, device=device)
        for plane, switch in enumerate(found):
            if switch is not None:
                _fill(bits[plane], switch, transposed)
        plane_of = [-1] * len(switches)
        for plane, task in enumerate(chosen):
            plane_of[task] = plane
        down = [None if switch is None else switch.rows for switch in found]
        along = [None if switch is None else switch.columns for switch in found]
        rows, columns = (along, down) if transposed else (down, along)
        return cls(
            outputs,
            inputs,
            tuple(plane_of),
            tuple(0 if switch is None else switch.active for switch in found),
            torch.tensor(plane_of, dtype=torch.int32, device=device),
            bits,
            torch.tensor([0.0 if switch is None else switch.knob for switch in found], device=device),
            _stacked(rows, outputs, 1.0, device),
            _stacked(columns, inputs, 1.0, device),
            None,
        )

    def with_biases(self, biases: Sequence[Tensor | None]) -> TaskPlanes:
        """The same planes with what each task adds to the bias, f32[N], or None. Tasks that add need planes (`keep`)."""
        found: list[Tensor | None] = [None] * len(self.knobs)
        for task, bias in enumerate(biases):
            if bias is not None:
                _check_bias(bias, self, task)
                found[self.plane_of[task]] = bias
        return replace(self, biases=_stacked(found, self.outputs, 0.0, self.device))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.bits.device

    @property
    def tensors(self) -> list[Tensor]:
        """All that they hold on the device."""
        parts = (self.places, self.bits, self.knobs, self.rows, self.columns, self.biases)
        return [part for part in parts if part is not None]

    @property
    def nbytes(self) -> int:
        """Bytes that they take on the device."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def changes(self, tasks: Iterable[int]) -> bool:
        """Whether one of these tasks changes the matrix or its bias."""
        return any(task >= 0 and self.plane_of[task] >= 0 for task in tasks)


def check_ternary(switch: PackedSwitch, where: str | None = None) -> None:
    """Raise OptionError for a masked switch: planes hold signs, not the numbers of a vector."""
    if switch.vector is not None:
        raise OptionError(
            f"{where or f'tensor {switch.name!r}'}: expected ternary entries, found a masked one, which mixed batches cannot "
            "use; activate one expert at a time, or leave masked experts out"
        )


def _same_place(switches: Sequence[PackedSwitch]) -> tuple[tuple[int, int], torch.device]:
    if not switches:
        raise OptionError("switches: expected at least one of a task, found none; leave the module as it is")
    first = switches[0]
    for switch in switches:
        check_ternary(switch)
        if len(switch.shape) != 2 or switch.shape != first.shape or switch.device != first.device:
            raise OptionError(
                f"tensor {switch.name!r}: expected a matrix {list(first.shape)} on {first.device} for every task, found "
                f"{list(switch.shape)} on {switch.device}; load all tasks of one base to one device"
            )
    return (first.shape[0], first.shape[1]), first.device


def _check_bias(bias: Tensor, planes: TaskPlanes, task: int) -> None:
    if planes.plane_of[task] < 0 or tuple(bias.shape) != (planes.outputs,):
        raise OptionError(
            f"biases[{task}]: expected shape [{planes.outputs}] of a task with planes, found {list(bias.shape)}; give the "
            "switch of this layer's bias, and keep=[...] to build()"
        )


def _stacked(parts: Sequence[Tensor | None], length: int, fill: float, device: torch.device) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    stack = torch.full((len(parts), length), fill, device=device)
    for row, part in zip(stack, parts, strict=True):
        if part is not None:
            row.copy_(part)
    return stack


def _fill(bits: Tensor, switch: PackedSwitch, transposed: bool) -> None:
    """Set the bits of one task, u8[N, 2, S]."""
    flat, stride = bits.view(-1), bits.shape[2]
    for chunk in range(len(switch.chunks) - 1):
        elements, negative = active_elements(switch, chunk)
        rows = elements // switch.row_length
        columns = elements - rows * switch.row_length
        if transposed:
            rows, columns = columns, rows
        places = (2 * stride) * rows + columns // 8
        values = (1 << (columns % 8)).to(torch.uint8)
        # Each bit is met once, so sums of bytes are their unions.
        flat.index_add_(0, places, values)
        flat.index_add_(0, places[negative] + stride, values[negative])


def values_of(switch: PackedSwitch, coefficient: float = 1.0) -> Tensor:
    """What a ternary switch adds, f32 of its shape: for vectors such as biases. Raises OptionError for a masked one."""
    check_ternary(switch)
    out = torch.zeros(switch.elements, device=switch.device)
    run([Job(Mode.VALUES, out, switch, coefficient)])
    return out.view(switch.shape)
