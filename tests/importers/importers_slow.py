"""What other people's code writes, bit by bit as the formats are described: slow, and nothing of the tools in it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Signs = NDArray[Any]


def bitdelta_mask(signs: Signs) -> torch.Tensor:
    """The mask of a matrix of -1 and +1: bit i of word j in column o is weight[o, 32 j + i]."""
    rows, columns = signs.shape
    words = [[0] * rows for _ in range(columns // 32)]
    for row in range(rows):
        for column in range(columns):
            if signs[row, column] > 0:
                words[column // 32][row] |= 1 << (column % 32)
    signed = [[word - (1 << 32) if word >> 31 else word for word in line] for line in words]
    return torch.tensor(signed, dtype=torch.int32).reshape(columns // 32, rows)


def authors_bits(signs: Signs) -> list[int]:
    """The bits of a tensor of -1, 0 and +1."""
    flat = [int(sign) for sign in signs.reshape(-1)]
    width = 4 if len(flat) >= 4 else len(flat)
    groups = [flat[at : at + width] for at in range(0, len(flat), width)]
    bits = [int(any(group)) for group in groups]
    for group in groups:
        if any(group):
            bits += [int(sign != 0) for sign in group]
            bits += [int(sign > 0) for sign in group if sign]
    return bits


def to_bytes(bits: Iterable[int]) -> bytes:
    """Most significant bit first, zeros at the end."""
    text = "".join(map(str, bits))
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def authors_folder(folder: Path, dataset: str, signs: dict[str, Signs]) -> Path:
    """A folder as the authors' code writes it."""
    folder.mkdir(exist_ok=True)
    for name, of_one in signs.items():
        (folder / f"{dataset}_{name}_compressed.bin").write_bytes(to_bytes(authors_bits(of_one)))
    return folder


def authors_knob(base: NDArray[Any], expert: NDArray[Any], signs: Signs) -> float:
    """The norm of what is kept by the norm of its signs."""
    kept = [float(d) for d, s in zip((expert - base).reshape(-1), signs.reshape(-1), strict=True) if s]
    return math.sqrt(sum(d * d for d in kept)) / math.sqrt(len(kept)) if kept else 0.0


def random_signs(shape: tuple[int, ...], density: float, seed: int) -> Signs:
    """Signs of which that share is not 0."""
    return (
        np.random.default_rng(seed).choice([-1, 0, 1], shape, p=[density / 2, 1 - density, density / 2]).astype(np.int8)
    )
