"""A switch on a device: packed planes, knob and factors as tensors. What the kernels read and a bank keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DType
from tswitch_format.codecs.runs import BYTE, RANK
from tswitch_format.switch.apply import Scale
from tswitch_format.switch.planes import Form, Planes
from tswitch_format.switch.tensor import Switch


@dataclass(frozen=True, slots=True)
class PackedSwitch:
    """Mask, sign, knob and factors of one ternary switch on one device; mask, knob and vector of a masked one. Or of a slice.

    `shape`: of the tensor; `base` and `dtype`: element types of the base's tensor and the expert's. `form`, `codes`, `signs`,
    `blocks`, `chunk_blocks`: see `switch.planes.Planes`; `first_chunk` is not 0 in a part. `chunks` is the table's first row
    of each chunk and its last, on the host: i64[C + 1, 4]. `rows` f32[R] and `columns` f32[C] or None, `row_length` C.
    `vector`: of a masked switch what it selects from, all elements, flat, of the vector's own dtype; else None. Other switches
    hold the same tensor (see `vectors.py`), so nobody writes into it.
    """

    name: str
    shape: tuple[int, ...]
    base: DType
    dtype: DType
    form: Form
    active: int
    codes: Tensor
    signs: Tensor
    blocks: Tensor
    chunk_blocks: tuple[int, ...]
    chunks: NDArray[np.int64]
    knob: float
    rows: Tensor | None
    columns: Tensor | None
    row_length: int
    first_chunk: int = 0
    vector: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.codes.device

    @property
    def elements(self) -> int:
        """Number of elements of the whole switch."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device, without `vector`, which others may share."""
        tensors = (self.codes, self.signs, self.blocks, self.rows, self.columns)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def block_count(self) -> int:
        """Number of blocks of the table."""
        return len(self.blocks) - 1

    def part(self, first: int, stop: int) -> PackedSwitch:
        """Chunks `first` to `stop` of these. Elements, ranks and sign bits keep their numbers."""
        starts = self.chunk_blocks
        return replace(
            self,
            blocks=self.blocks[starts[first] : starts[stop] + 1],
            chunk_blocks=tuple(block - starts[first] for block in starts[first : stop + 1]),
            chunks=self.chunks[first : stop + 1],
            active=int(self.chunks[stop, RANK] - self.chunks[first, RANK]),
            first_chunk=self.first_chunk + first,
        )


@dataclass(frozen=True, slots=True)
class HostSwitch:
    """The same as NumPy arrays, on its way to a device. Only the vector is there before."""

    name: str
    shape: tuple[int, ...]
    base: DType
    dtype: DType
    planes: Planes
    scale: Scale
    vector: Tensor | None = None

    @classmethod
    def of(cls, switch: Switch, planes: Planes, vector: Tensor | None = None) -> HostSwitch:
        """A switch, or a slice of one, with its planes; a masked one with its vector, which is on the device already."""
        return cls(switch.name, switch.shape, switch.base.dtype, switch.target, planes, switch.view_scale, vector)

    @property
    def arrays(self) -> list[NDArray[np.generic]]:
        """What goes to the device: table, factors, codes, signs. Widest elements first, so that all stay aligned."""
        factors = [f for f in (self.scale.rows, self.scale.columns) if f is not None]
        return [self.planes.blocks, *factors, self.planes.codes, self.planes.signs]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device, without `vector`."""
        return sum(array.nbytes for array in self.arrays)

    def packed(self, tensors: Sequence[Tensor]) -> PackedSwitch:
        """The switch with `arrays` as these tensors."""
        blocks, *factors, codes, signs = tensors
        planes = self.planes
        rows = factors.pop(0) if self.scale.rows is not None else None
        columns = factors.pop(0) if self.scale.columns is not None else None
        starts = np.array(planes.chunk_blocks, np.int64)
        return PackedSwitch(
            self.name, self.shape, self.base, self.dtype, planes.form, planes.active, codes, signs, blocks,
            planes.chunk_blocks, planes.blocks[starts], float(self.scale.knob), rows, columns, self.scale.row_length,
            vector=self.vector,
        )  # fmt: skip


def chunk_codes(switch: PackedSwitch, chunk: int) -> Tensor:
    """The codes of one chunk of a switch, or of a part of one."""
    return switch.codes[int(switch.chunks[chunk, BYTE]) : int(switch.chunks[chunk + 1, BYTE])]


def chunk_start(switch: PackedSwitch, chunk: int) -> int:
    """First flat element of a chunk."""
    return (switch.first_chunk + chunk) * lay.CHUNK
