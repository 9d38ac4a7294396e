"""Products with the planes of many tasks in Triton, on CUDA (and in its interpreter): as `reference.py`.

A program makes a tile of features x tokens of one task, as grouped GEMMs of mixtures of experts do. Features are the rows of
its product, so that few tokens (decoding) still fill tensor cores, and the planes, which are what is read most, are unpacked
in registers into the operand that may stay there.

S is exact in bf16. x * c is an f32 number, cut into bf16 pieces that add up to it: 3 for f32 inputs, 2 for 16-bit inputs (to
2^-16 of it), 1 for bf16 inputs without column factors. So tensor cores lose nothing that matters, and nothing overflows that
f32 holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tswitch_format.torch.mixed.planes import TaskPlanes
from tswitch_format.torch.mixed.routing import Routing

# Features, tokens and inputs of a tile, and warps, for groups of at most so many tokens. As large as they fit in registers.
_TILES = (64, 16, 128, 4), (64, 64, 64, 4), (128, 128, 64, 8)


def add_delta_(y: Tensor, x: Tensor, planes: TaskPlanes, routing: Routing) -> None:
    """As `reference.add_delta_`. `y` and `x` of F32, BF16 or F16, both contiguous."""
    tokens = x.shape[1]
    longest = routing.longest * tokens
    height, width, depth, warps = next(tile for tile in _TILES if longest <= tile[1] or tile is _TILES[-1])
    tiles = routing.tiles(tokens, width)
    if not len(tiles.spans) or not y.numel():
        return
    none = planes.knobs  # a pointer that is not read
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        _add_delta[len(tiles.spans), triton.cdiv(planes.outputs, height)](
            y,
            x,
            planes.bits.view(torch.int32),
            planes.places,
            planes.knobs,
            none if planes.rows is None else planes.rows,
            none if planes.columns is None else planes.columns,
            none if planes.biases is None else planes.biases,
            routing.order,
            tiles.spans,
            tiles.coefficients,
            planes.outputs,
            planes.inputs,
            tokens,
            planes.bits.shape[3] // 4,
            has_rows=planes.rows is not None,
            has_columns=planes.columns is not None,
            has_biases=planes.biases is not None,
            pieces=_pieces(x.dtype, planes),
            height=height,
            width=width,
            depth=depth,
            interpreted=y.device.type == "cpu",
            num_warps=warps,
        )


def _pieces(dtype: torch.dtype, planes: TaskPlanes) -> int:
    if dtype == torch.float32:
        return 3
    return 1 if dtype == torch.bfloat16 and planes.columns is None else 2


@triton.jit  # type: ignore[untyped-decorator]
def _add_delta(
    y: tl.tensor,
    x: tl.tensor,
    bits: tl.tensor,
    places: tl.tensor,
    knobs: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    biases: tl.tensor,
    order: tl.tensor,
    spans: tl.tensor,
    coefficients: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.constexpr,  # of which a model has few; the interpreter knows no loops to a number that it must load
    tokens: tl.tensor,
    words: tl.tensor,
    has_rows: tl.constexpr,
    has_columns: tl.constexpr,
    has_biases: tl.constexpr,
    pieces: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    tile = tl.program_id(0)
    plane = tl.load(places + tl.load(spans + 3 * tile)).to(tl.int64)
    if plane < 0:
        return
    counted = tl.load(spans + 3 * tile + 1) + tl.arange(0, width)
    live = counted < tl.load(spans + 3 * tile + 2)
    token = tl.load(order + counted // tokens, mask=live, other=0).to(tl.int64) * tokens + counted % tokens
    feature = tl.program_id(1) * height + tl.arange(0, height)
    there = feature < outputs

    mask_row = bits + (plane * outputs + feature)[:, None] * (2 * words)
    input_column = x + token[None, :] * inputs
    sums = tl.zeros((height, width), tl.float32)
    for first in range(0, inputs, depth):
        word = first // 32 + tl.arange(0, depth // 32)[None, :]
        inside = there[:, None] & (word < words)
        mask = tl.load(mask_row + word, mask=inside, other=0)
        sign = tl.load(mask_row + words + word, mask=inside, other=0)
        signs = _unpack(mask, sign, height, depth)

        column = first + tl.arange(0, depth)
        found = tl.load(input_column + column[:, None], mask=(column < inputs)[:, None] & live[None, :], other=0.0).to(
            tl.float32
        )
        if has_columns:
            found *= tl.load(columns + plane * inputs + column, mask=column < inputs, other=0.0)[:, None]
        piece = found.to(tl.bfloat16)
        sums = _dot(signs, piece, sums, interpreted)
        if pieces > 1:
            found -= piece.to(tl.float32)
            piece = found.to(tl.bfloat16)
            sums = _dot(signs, piece, sums, interpreted)
        if pieces > 2:
            found -= piece.to(tl.float32)
            sums = _dot(signs, found.to(tl.bfloat16), sums, interpreted)

    coefficient = tl.load(coefficients + tile)
    sums *= tl.load(knobs + plane) * coefficient
    if has_rows:
        sums *= tl.load(rows + plane * outputs + feature, mask=there, other=0.0)[:, None]
    if has_biases:
        sums += (tl.load(biases + plane * outputs + feature, mask=there, other=0.0) * coefficient)[:, None]
    target = y + token[None, :] * outputs + feature[:, None]
    inside = there[:, None] & live[None, :]
    sums += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _unpack(mask: tl.tensor, sign: tl.tensor, height: tl.constexpr, depth: tl.constexpr) -> tl.tensor:
    """Words [height, depth / 32] -> bf16 [height, depth] of -1, 0, 1, made of bits: 0x3F80 is 1, its upper bit the sign."""
    place = tl.arange(0, 32)[None, None, :]
    one = (mask[:, :, None] >> place) & 1
    negative = (sign[:, :, None] >> place) & 1
    number = ((one * 0x3F80) | (negative << 15)).to(tl.int16)
    return tl.reshape(number, (height, depth)).to(tl.bfloat16, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _dot(signs: tl.tensor, piece: tl.tensor, sums: tl.tensor, interpreted: tl.constexpr) -> tl.tensor:
    if interpreted:  # Triton's interpreter multiplies the bits of bf16 as integers
        signs = signs.to(tl.float32)
        piece = piece.to(tl.float32)
    return tl.dot(signs, piece, sums)
