"""Compile the kernel of mixed products for Hopper, which takes no GPU, and print one line a variant. Not in the interpreter."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tswitch_format.torch.mixed import fused

POINTERS = {
    **dict.fromkeys(("bits", "places", "order", "spans"), "*i32"),
    **dict.fromkeys(("knobs", "rows", "columns", "biases", "coefficients"), "*fp32"),
}
NUMBERS = dict.fromkeys(("outputs", "tokens", "words"), "i32")


def main() -> None:
    """Print which instruction multiplies."""
    names = fused._add_delta.arg_names
    for kind, pieces in (("bf16", 1), ("fp16", 2), ("fp32", 3)):
        for height, width, depth, warps in fused._TILES:
            constants = {
                **{"inputs": 200, "pieces": pieces, "height": height, "width": width, "depth": depth},
                **dict.fromkeys(("has_rows", "has_columns", "has_biases"), pieces > 1),
                "interpreted": False,
                **({"tokens": 1} if pieces == 1 else {}),  # Triton makes a constant of each number that is 1
            }
            types = {**POINTERS, **NUMBERS, "x": f"*{kind}", "y": f"*{kind}", **dict.fromkeys(constants, "constexpr")}
            source = ASTSource(
                fused._add_delta,
                {name: types[name] for name in names},
                constexprs={(names.index(name),): value for name, value in constants.items()},
            )
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
            sys.stdout.write("wgmma\n" if "wgmma.mma_async" in compiled.asm["ptx"] else "other\n")


if __name__ == "__main__":
    main()
