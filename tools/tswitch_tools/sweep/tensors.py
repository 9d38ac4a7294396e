"""Checkpoints as torch tensors on the CPU, and tensors as .safetensors files, by the library's own readers and writers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tswitch_format.checkpoint import CheckpointReader, TensorSpec, borrow_checkpoint, create_checkpoint
from tswitch_format.torch.checkpoint import torch_dtype


def read_tensors(source: Any) -> dict[str, Tensor]:
    """All tensors of a path, a mapping or an nn.Module by name, in memory of their own; tied names share one tensor.

    Raises CheckpointError, and OptionError where this torch lacks a dtype.
    """
    with borrow_checkpoint(source) as reader:
        found = {spec.name: _read(reader, spec) for spec in reader.specs.values()}
        return found | {alias: found[name] for alias, name in reader.aliases.items()}


def write_tensors(source: Any, path: Path, names: Collection[str] = ()) -> None:
    """Write a mapping, or whatever else can be read, to a .safetensors file.

    Tied tensors are written once, by the first of their names in sorted order, or under those of them that are among `names`.
    Raises CheckpointError or OutputError; then nothing is written.
    """
    with borrow_checkpoint(source) as reader:
        sources = dict(_written(reader, names))
        specs = [replace(reader.specs[stored], name=name) for name, stored in sources.items()]
        writer = create_checkpoint(path, like=reader, specs=specs, metadata={"format": "pt"})
        try:
            for spec in specs:
                data = np.empty(spec.nbytes, np.uint8)
                reader.read_into(sources[spec.name], 0, data)
                writer.write_from(spec.name, 0, data)
            writer.commit()
        finally:
            writer.abort()


def _read(reader: CheckpointReader, spec: TensorSpec) -> Tensor:
    data = torch.empty(spec.nbytes, dtype=torch.uint8)
    reader.read_into(spec.name, 0, data.numpy())
    return data.view(torch_dtype(spec.dtype)).reshape(spec.shape)


def _written(reader: CheckpointReader, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Names in the file, and where the reader has each."""
    for stored in reader.specs:
        tied = [stored, *(alias for alias, name in reader.aliases.items() if name == stored)]
        for name in [name for name in tied if name in names] or [stored]:
            yield name, stored
