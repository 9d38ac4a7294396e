"""The masks of one task, and windows of their bits in the order of a .tsw file.

Mask        FlatMask or NamedMask
FlatMask    one run of bits: a bool for each, or packed as np.packbits does
NamedMask   a run of bits for each tensor
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tswitch_format.errors import CheckpointError, OptionError

# Bits that are turned round at once. Blocks that stay in the cache make 14 Gbit/s, whole masks of 100 M bits 3.5 (one thread of
# the machine where this was written). In blocks, shifts and masks of 64-bit words make 13 to 16, and bytes.translate, which
# holds the GIL, as many; tables of reversed bytes or 16-bit words 4 to 10. So NumPy's own two loops: vectorized, and no tails.
_BLOCK = 1 << 19
_CHECKED = 1 << 22  # bools that are looked at in one go


@dataclass(frozen=True, slots=True, eq=False)
class FlatMask:
    """One run of bits. `data` u8[n], often read-only: a byte of 0 or 1 for each bit, or, where `packed`, eight bits in each,
    the first one the most significant, zeros after the last."""

    data: NDArray[np.uint8]
    packed: bool

    @property
    def bits(self) -> int | None:
        """Their number, or None where they are packed and up to seven of the last byte are padding."""
        return None if self.packed else self.data.size

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, there or not."""
        return self.data.size if self.packed else -(-self.data.size // 8)

    def window(self, start: int, count: int) -> NDArray[np.uint8]:
        """Bits `start` to `start + count` as u8[ceil(count / 8)]: the first one the least significant, zeros after the last.

        Needs memory for the result and a block. Raises OptionError where the mask has no such bits.
        """
        capacity = self.data.size * (8 if self.packed else 1)
        if start < 0 or count < 0 or start + count > capacity:
            raise OptionError(
                f"window: expected bits of 0 to {capacity}, found {count} from {start} on; check the length of the mask first"
            )
        out = np.empty(-(-count // 8), np.uint8)
        for done in range(0, count, _BLOCK):
            size = min(_BLOCK, count - done)
            first = start + done
            if self.packed:
                whole = np.unpackbits(self.data[first // 8 : -(-(first + size) // 8)])
                block = whole[first % 8 : first % 8 + size]
            else:
                block = self.data[first : first + size]
            out[done // 8 : -(-(done + size) // 8)] = np.packbits(block, bitorder="little")
        return out

    def check(self, elements: int, where: str) -> None:
        """Raise CheckpointError unless it is the mask of so many elements: their number, no bits after the last, bools 0 or 1.
        `where`: what the message begins with."""
        if self.packed:
            self._check_packed(elements, where)
            return
        if self.data.size != elements:
            raise CheckpointError(
                f"{where}: expected a mask of {elements} elements, found {self.data.size}; "
                "give the base that the masks were made from"
            )
        for start in range(0, elements, _CHECKED):
            largest = int(self.data[start : start + _CHECKED].max())
            if largest > 1:
                raise CheckpointError(
                    f"{where}: expected bools, bytes of 0 or 1, found one of {largest}; get the file again"
                )

    def _check_packed(self, elements: int, where: str) -> None:
        expected = -(-elements // 8)
        if self.data.size != expected:
            raise CheckpointError(
                f"{where}: expected {expected} bytes, the packed mask of {elements} elements, found {self.data.size}; "
                "give the base that the masks were made from"
            )
        padding = -elements % 8
        tail = int(self.data[-1]) & ((1 << padding) - 1) if expected else 0
        if tail:
            raise CheckpointError(
                f"{where}: expected {padding} zero bits after the last of {elements} elements, found {tail:0{padding}b}; "
                "give the base that the masks were made from"
            )


@dataclass(frozen=True, slots=True, eq=False)
class NamedMask:
    """A mask for each of some tensors, of bools always: `tensors` and `shapes` have the same names in the file's order."""

    tensors: Mapping[str, FlatMask]
    shapes: Mapping[str, tuple[int, ...]]


Mask: TypeAlias = FlatMask | NamedMask
