"""A small vision transformer for 8x8 images: what base and experts share, tensor by tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.demo.data import CLASSES, SIDE

PATCH = (4, 4)  # pixels down and across


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then a two-layer perceptron, both added to their input."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, tokens, width] to tokens of the same shape."""
        n, tokens, width = x.shape
        heads = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class DigitTransformer(nn.Module):
    """A vision transformer: a token for each patch of pixels, learned positions, blocks, the mean of the tokens, ten outputs.

    1.8 M parameters with the sizes given here. Few tokens leave more of a CPU's minute for steps of training.
    """

    def __init__(
        self, width: int = 192, depth: int = 4, heads: int = 6, ratio: int = 4, patch: tuple[int, int] = PATCH
    ) -> None:
        super().__init__()
        self._patch = patch
        self.embed = nn.Linear(patch[0] * patch[1], width)
        self.position = nn.Parameter(0.5 * torch.randn(SIDE // patch[0] * (SIDE // patch[1]), width))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 8, 8] to one score for each label [n, 10]."""
        down, across = self._patch
        patches = (3 * images - 1).view(-1, SIDE // down, down, SIDE // across, across).transpose(2, 3)
        x = self.embed(patches.reshape(-1, len(self.position), down * across)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))
