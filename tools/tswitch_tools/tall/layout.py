"""Where the tensors of a model lie in the vector that TALL masks are of.

    VectorLayout   first element and number of elements of each tensor

The vector is the whole state dict, buffers and integers too, keys sorted as Python sorts strings, each tensor flattened in C
order. A tied tensor is in it under each of its names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tswitch_format import SwitchFile
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_tools.importers import names_of


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """`tensors`: all names in the vector's order, each with the record it has in the checkpoint or file (whose name differs for
    tied ones). `starts`: first element by name. `elements`: of the whole vector."""

    tensors: Mapping[str, TensorSpec]
    starts: Mapping[str, int]
    elements: int

    @classmethod
    def of_checkpoint(cls, reader: CheckpointReader) -> VectorLayout:
        """That of a base as a checkpoint."""
        return cls._of({name: reader.specs[stored] for name, stored in names_of(reader).items()})

    @classmethod
    def of_file(cls, file: SwitchFile) -> VectorLayout:
        """That of the base that a file was made from."""
        return cls._of({name: file.base.spec(name) for name in (*file.base.keys(), *file.base.aliases)})

    @classmethod
    def _of(cls, tensors: Mapping[str, TensorSpec]) -> VectorLayout:
        starts = {}
        end = 0
        for name in sorted(tensors):
            starts[name] = end
            end += tensors[name].elements
        return cls({name: tensors[name] for name in starts}, starts, end)
