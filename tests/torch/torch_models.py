"""Bits of tensors, files to read, models to switch: for the tests of loading, applying and staging beside this file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.container.reader import Container

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
VECTORS = ROOT / "spec" / "vectors"

NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}

Array = NDArray[Any]


# ---------------------------------------------------------------------------------------------------------------- bits


def raw(tensor: Tensor) -> bytes:
    """The elements' bytes in C order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tensor_of(array: Array, dtype: torch.dtype, device: str | torch.device = "cpu") -> Tensor:
    """A tensor of its own memory with an array's bytes (BF16 as uint16)."""
    made = torch.empty(array.shape, dtype=dtype)
    if made.numel():
        made.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    return made.to(device)


def random_bits(dtype: str, shape: Iterable[int], seed: int = 0) -> Array:
    """Elements of any bits: NaNs with payloads, infinities, subnormals, both zeros; a few of them ordinary numbers."""
    shape = tuple(shape)
    storage = DTYPE_BY_NAME[dtype].storage
    count = int(np.prod(shape, dtype=np.int64))
    rng = np.random.default_rng(seed)
    elements = np.frombuffer(rng.bytes(count * storage.itemsize), storage).copy()
    plain = raw(torch.from_numpy(rng.standard_normal(count)).to(TORCH[dtype]))
    ordinary = rng.random(count) < 0.5
    elements[ordinary] = np.frombuffer(plain, storage)[ordinary]
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64).to(TORCH[dtype])
    elements[: min(count, 5)] = np.frombuffer(raw(special), storage)[: min(count, 5)]
    return elements.reshape(shape)


def assert_same(tensor: Tensor, array: Array, *, but_nan: bool = False) -> None:
    """Same shape and bits. `but_nan`: where both are NaN, any NaN."""
    assert tuple(tensor.shape) == array.shape
    if raw(tensor) == np.ascontiguousarray(array).tobytes():
        return
    expected = tensor_of(array, tensor.dtype)
    found = tensor.detach().cpu()
    differ = torch.from_numpy(_elements(found) != _elements(expected))
    if but_nan:
        differ &= ~(found.isnan() & expected.isnan()).reshape(-1)
    assert not differ.any(), f"{int(differ.sum())} of {differ.numel()} elements, first {int(differ.nonzero()[0])}"


def _elements(tensor: Tensor) -> Array:
    return np.frombuffer(raw(tensor), np.dtype(f"u{tensor.element_size()}"))


def one_line(error: BaseException) -> str:
    """The message, which is one line and not a whole tensor."""
    message = str(error)
    assert "\n" not in message, message
    assert len(message) < 1000, message
    return message


# --------------------------------------------------------------------------------------------------------------- files


def golden() -> list[Path]:
    """The golden files."""
    return sorted(GOLDEN.glob("*.tsw"))


def vectors() -> list[Path]:
    """Accepted files of the conformance suite, newer ones too; not those that decode to many megabytes."""
    records = json.loads((VECTORS / "manifest.json").read_text(encoding="utf-8"))
    paths = [VECTORS / r["path"] for r in records if r["verdict"] == "accept" and not r.get("large")]
    return sorted(path for path in paths if path.suffix == ".tsw")


def files() -> Iterator[Any]:
    """All of them, as parameters."""
    for path in (*golden(), *vectors()):
        yield pytest.param(path, id=f"{path.parent.name}/{path.stem}")


class Segment:
    """Where a segment lies in a file and what it holds: `chunk` counts those of its role."""

    def __init__(self, task: int, name: str, number: int, role: int, chunk: int, offset: int, length: int) -> None:
        self.key = task, number
        self.name, self.role, self.chunk = name, role, chunk
        self.offset, self.length = offset, length


def segments(path: Path) -> list[Segment]:
    """All segments of a file in order."""
    container = Container(path)
    found = []
    for task in range(len(container.index.tasks)):
        for entry in container.entries(task):
            counts: dict[int, int] = {}
            for number in entry.segments:
                record = container.index.tasks[task].segments[number]
                role = int(record["role"])
                chunk = counts[role] = counts.get(role, -1) + 1
                place = int(record["offset"]), int(record["length"])
                found.append(Segment(task, entry.spec.name, number, role, chunk, *place))
    container.close()
    return found


def damaged(path: Path, out: Path, offsets: Iterable[int]) -> Path:
    """A copy with other bytes at these offsets."""
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset] ^= 0x55
    out.write_bytes(content)
    return out


def chunks_of_rows(shape: tuple[int, ...], first: int, stop: int) -> range:
    """Chunks of a tensor in which elements of rows `first` to `stop` lie."""
    length = int(np.prod(shape[1:], dtype=np.int64))
    return range(first * length // lay.CHUNK, -(-stop * length // lay.CHUNK)) if stop > first and length else range(0)


# -------------------------------------------------------------------------------------------------------------- models


SHAPES = {
    "scalar": (), "vector": (300,), "matrix": (37, 50), "cube": (5, 6, 7), "four": (4, 3, 2, 2), "one": (1, 1),
    "empty": (0, 4), "empty.columns": (3, 0),
}  # fmt: skip


def tensors(dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """A tensor of each shape."""
    generator = torch.Generator().manual_seed(seed)
    made = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    return {name: (tensor * scale).to(dtype) for name, tensor in made.items()}


def tuned(base: Mapping[str, Tensor], seed: int = 1, scale: float = 0.1) -> dict[str, Tensor]:
    """The base with every float element changed. Ties stay."""
    generator = torch.Generator().manual_seed(seed)
    done: dict[int, Tensor] = {}
    for tensor in base.values():
        if tensor.data_ptr() not in done or not tensor.numel():
            step = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale
            made = (tensor.double() + step).to(tensor.dtype) if tensor.is_floating_point() else tensor.clone()
            done[tensor.data_ptr()] = made
    return {name: done[t.data_ptr()] if t.numel() else t.clone() for name, t in base.items()}


class Network(nn.Module):
    """Tied embeddings, convolution, a norm with counters, parameters without dimensions and elements, four float types."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.conv = nn.Conv2d(3, 4, 2)
        self.low = nn.Linear(16, 8).half()
        self.brain = nn.Linear(16, 8).bfloat16()
        self.wide = nn.Linear(8, 5).double()
        self.norm = nn.BatchNorm1d(8)
        self.temperature = nn.Parameter(torch.tensor(0.0))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.head = nn.Linear(16, 30, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        self.head.weight = self.embedding.weight
        self.requires_grad_(False)

    def forward(self, indices: Tensor) -> Tensor:
        found: Tensor = self.head(self.embedding(indices))
        return found


def state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, bytes]:
    """Every tensor's bytes by name."""
    held = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: raw(tensor) for name, tensor in held.items()}
