"""What one would do without TSW: keep what fine-tuning changed in each matrix as two thin ones, in a .safetensors file.

Of each tensor of the base that changed, the file has
    left/NAME, right/NAME                   factors [first, rank] and [rank, others], f16 or int8
    left-scale/NAME, right-scale/NAME       of int8 factors: f32 [rank], value = code * scale of its singular vector
    delta/NAME, delta-scale/NAME            where factors would be larger, vectors and small matrices: f16, or int8 with f32 [1]
    whole/NAME                              tensors that are not floats
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tswitch_format.errors import CheckpointError, NonFiniteError, OptionError
from tswitch_tools.sweep.method import Job, Kept
from tswitch_tools.sweep.tensors import read_tensors, write_tensors

_DTYPES = {"int8": torch.int8, "f16": torch.float16}
_MOST = 127  # the largest int8 code that has a negative


@dataclass(frozen=True)
class LowRank:
    """The best approximation of each matrix of expert - base by one of a rank, factors balanced: both have sqrt(sigma).

    Tensors of more than two dimensions are taken as (first, all others). Made and added in f32 (f64 for f64), cast once. The
    whole file counts. Raises OptionError.
    """

    rank: int
    dtype: Literal["int8", "f16"] = "int8"

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise OptionError(f"rank: expected a number from 1 up, found {self.rank!r}")
        if self.dtype not in _DTYPES:
            raise OptionError(f"dtype: expected {' or '.join(_DTYPES)}, found {self.dtype!r}")

    @property
    def name(self) -> str:
        """Rank and type: "SVD int8, rank 4"."""
        return f"{self.family}, rank {self.rank}"

    @property
    def family(self) -> str:
        """The type: "SVD int8"."""
        return f"SVD {self.dtype}"

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`. Raises CheckpointError where tensors do not pair, NonFiniteError where one has no finite difference."""
        kept = {}
        for task in job.experts:
            path = job.path(task, ".safetensors")
            expert = job.load_expert(task)
            if expert.keys() != job.tensors.keys():
                raise CheckpointError(
                    f"{job.experts[task]}: expected the tensors of the base, found "
                    f"{sorted(expert.keys() ^ job.tensors.keys())[0]!r} in one of the two only; factors are for equal shapes"
                )
            parts: dict[str, Tensor] = {}
            for name in job.names:
                made = self._parts(name, job.tensors[name], expert[name])
                parts |= {f"{kind}/{name}": part for kind, part in made.items()}
            write_tensors(parts, path)
            kept[task] = Kept(path.stat().st_size, partial(_add, path))
        return kept

    def _parts(self, name: str, base: Tensor, expert: Tensor) -> dict[str, Tensor]:
        if (base.dtype, base.shape) != (expert.dtype, expert.shape):
            raise CheckpointError(
                f"tensor {name!r}: expected {base.dtype}{list(base.shape)} as in the base, found "
                f"{expert.dtype}{list(expert.shape)}; factors are for equal shapes"
            )
        if torch.equal(base, expert):
            return {}
        if not base.is_floating_point() or base.element_size() == 1:
            return {"whole": expert}
        wide = torch.promote_types(base.dtype, torch.float32)
        delta = expert.to(wide) - base.to(wide)
        parts = self._factors(delta) if self._pays(delta) else self._whole(delta)
        if not all(part.isfinite().all() for part in (delta, *parts.values())):
            raise NonFiniteError(
                f"tensor {name!r}: expected differences from the base that f16 can hold, found larger ones, NaN or infinity; "
                "check the expert",
                tensor=name,
            )
        return parts

    def _whole(self, delta: Tensor) -> dict[str, Tensor]:
        if self.dtype == "f16":
            return {"delta": delta.half()}
        codes, scale = _codes(delta.reshape(-1, 1), 0)
        return {"delta": codes.reshape(delta.shape), "delta-scale": scale}

    def _pays(self, delta: Tensor) -> bool:
        """Whether factors are smaller than the difference itself in their type."""
        if delta.dim() < 2 or not delta.numel() or not delta.isfinite().all():
            return False
        rank = min(self.rank, len(delta), delta[0].numel())
        scales = 2 * 4 * rank if self.dtype == "int8" else 0
        nbytes = rank * (len(delta) + delta[0].numel()) * _DTYPES[self.dtype].itemsize + scales
        return nbytes < _DTYPES[self.dtype].itemsize * delta.numel()

    def _factors(self, delta: Tensor) -> dict[str, Tensor]:
        left, right = factors(delta.flatten(1), self.rank)
        if self.dtype == "f16":
            return {"left": left.half(), "right": right.half()}
        left_codes, left_scale = _codes(left, 0)
        right_codes, right_scale = _codes(right, 1)
        return {"left": left_codes, "left-scale": left_scale, "right": right_codes, "right-scale": right_scale}


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """u * sqrt(sigma) [rows, rank] and sqrt(sigma) * v [rank, columns] of a matrix's largest singular values, in f64; of less
    than `rank` where the matrix has fewer."""
    # From the smaller Gram matrix: many times faster than an SVD, and in f64 exact enough for the largest of f32 values.
    tall = matrix.shape[0] > matrix.shape[1]
    work = (matrix.T if tall else matrix).double()
    values, vectors = torch.linalg.eigh(work @ work.T)  # ascending
    vectors = vectors[:, -rank:].flip(1)
    root = values[-rank:].flip(0).clamp(min=0) ** 0.25
    short = vectors * root
    long = vectors.T @ work / torch.where(root > 0, root, torch.inf)[:, None]
    return (long.T, short.T) if tall else (short, long)


def _codes(factor: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """int8 codes, and the f32 scale of each singular vector, whose elements lie along one dimension."""
    scale = (factor.abs().amax(along) / _MOST).float()
    divisor = torch.where(scale > 0, scale, torch.inf).double().unsqueeze(along)
    return (factor / divisor).round().clamp(-_MOST, _MOST).to(torch.int8), scale


def _add(path: Path, weights: dict[str, Tensor]) -> None:
    """Add a file's differences to the base in place."""
    parts = read_tensors(path)
    for key, part in parts.items():
        kind, name = key.split("/", 1)
        weight = weights[name]
        wide = torch.promote_types(weight.dtype, torch.float32) if kind != "whole" else weight.dtype
        match kind:
            case "whole":
                weight.copy_(part)
            case "delta":
                scale = parts.get(f"delta-scale/{name}")
                weight.copy_(weight.to(wide) + (part if scale is None else part.to(wide) * scale.item()))
            case "left":
                left, right = part.to(wide), parts[f"right/{name}"].to(wide)
                if part.dtype is torch.int8:
                    left = left * parts[f"left-scale/{name}"]
                    right = right * parts[f"right-scale/{name}"][:, None]
                weight.copy_(weight.to(wide) + (left @ right).reshape(weight.shape))
