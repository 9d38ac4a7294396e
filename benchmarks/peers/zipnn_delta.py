"""The difference compressed by ZipNN, tensor by tensor in safetensors: in f32, and rounded to bf16.

As ZipNN's README recommends it and its script `zipnn_compress_safetensors.py` does it: what does not become smaller stays as
it is, and the file's metadata names the others. `method` is left at its default; floats are Huffman-coded whatever it says.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from zipnn import ZipNN
from zipnn.util_safetensors import (
    build_compressed_tensor_info,
    get_compressed_tensors_metadata,
    set_compressed_tensors_metadata,
)

from benchmarks.peers.examples import Example, Weights
from benchmarks.peers.peer import Keeps, Peer


def write(dtype: torch.dtype, example: Example, path: Path) -> None:
    """The difference, compressed."""
    found: dict[str, Tensor] = {}
    compressed = {}
    for name, tensor in example.difference.items():
        found[name] = tensor.to(dtype)
        data = ZipNN(input_format="torch", threads=1).compress(found[name].clone())  # it may change what it is given
        if len(data) < found[name].nbytes:
            compressed[name] = build_compressed_tensor_info(found[name])
            found[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    metadata = {"format": "pt"}
    set_compressed_tensors_metadata(compressed, metadata)
    save_file(found, path, metadata)


def apply(path: Path, weights: Weights) -> None:
    """Decompress each tensor and add it."""
    zipnn = ZipNN(input_format="torch", threads=torch.get_num_threads())
    with safe_open(path, "pt") as file:
        compressed = get_compressed_tensors_metadata(file.metadata())
        for name in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_tensor(name)
            if name in compressed:
                tensor = zipnn.decompress(tensor.numpy())
            weights[name].add_(tensor)


PEERS = [
    Peer("ZipNN, difference f32", Keeps.DIFFERENCE, partial(write, torch.float32), apply),
    Peer("ZipNN, difference bf16", Keeps.ROUNDED, partial(write, torch.bfloat16), apply),
]
