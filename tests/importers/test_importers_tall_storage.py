"""The storage table of TALL-masks (arXiv 2405.07813): "57 Gb -> 8.2 Gb" are gigabits, of a CLIP ViT-B/32 with 20 tasks.

    individual experts   32 (20 P + F)         each trained parameter 20 times in f32, each frozen one once
    TALL-masks           (64 + 20) P + 32 F    base and vector in f32, a bit for each task

P trained (the image encoder), F frozen (what is left of the text encoder). Once by arithmetic for the full shapes, and once
with files: widths, vocabulary and elements of a patch by 8, so matrices by 64. `pytest -s` shows the figures.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import save_file

import tswitch_format as tsw
from tswitch_tools.cli import tsw as command

TASKS = 20
Shapes = dict[str, tuple[int, ...]]


def shapes(by: int) -> tuple[Shapes, Shapes]:
    """Trained and frozen tensors of a CLIP ViT-B/32 without its text transformer, widths divided by `by`."""
    width, text, hidden = 768 // by, 512 // by, 3072 // by
    trained: Shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (50, width),
        "visual.proj": (width, text),
        "visual.conv1.weight": (width, 3, 32, 32 // by),
    }
    for norm in ("ln_pre", "ln_post"):
        trained |= {f"visual.{norm}.weight": (width,), f"visual.{norm}.bias": (width,)}
    for block in range(12):
        of_block: Shapes = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "mlp.c_fc.weight": (hidden, width),
            "mlp.c_fc.bias": (hidden,),
            "mlp.c_proj.weight": (width, hidden),
            "mlp.c_proj.bias": (width,),
        }
        for norm in ("ln_1", "ln_2"):
            of_block |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        trained |= {f"visual.transformer.resblocks.{block}.{name}": shape for name, shape in of_block.items()}
    frozen: Shapes = {
        "logit_scale": (),
        "positional_embedding": (77, text),
        "text_projection": (text, text),
        "token_embedding.weight": (49408 // by, text),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
    }
    return trained, frozen


def elements(of: Shapes) -> int:
    return sum(map(math.prod, of.values()))


def individual(trained: int, frozen: int) -> int:
    """Bits of 20 experts in f32."""
    return 32 * (TASKS * trained + frozen)


def table(trained: int, frozen: int) -> int:
    """Bits of base, vector and masks."""
    return (64 + TASKS) * trained + 32 * frozen


def test_the_table_of_the_paper_by_arithmetic() -> None:
    trained, frozen = (elements(of) for of in shapes(1))
    assert (trained, frozen) == (87_849_216, 25_599_489)
    assert trained + frozen == 113_448_705  # elements of the vector that the published masks are of
    assert round(individual(trained, frozen) / 1e9, 2) == 57.04
    assert round(table(trained, frozen) / 1e9, 2) == 8.20


def model(random: np.random.Generator, of: Shapes) -> dict[str, NDArray[np.float32]]:
    return {n: np.asarray(0.02 * random.standard_normal(s, np.float32), np.float32) for n, s in of.items()}


@pytest.mark.parametrize(("shared", "vector_bits"), [("f32", 32), ("bf16", 16)])
def test_the_table_of_the_paper_with_files(tmp_path: Path, shared: str, vector_bits: int) -> None:
    random = np.random.default_rng(5)
    trained, frozen = shapes(8)
    p, f = elements(trained), elements(frozen)
    full_p, full_f = (elements(of) for of in shapes(1))
    assert abs(p / full_p * 64 - 1) < 0.03  # biases and norms are divided by 8 only
    assert abs((f / p) / (full_f / full_p) - 1) < 0.03
    base = model(random, trained | frozen)
    save_file(base, tmp_path / "base.safetensors")
    names = [f"t{number:02}" for number in range(TASKS)]
    for name in names:
        # Tasks go different ways, and tensors and elements far and less far.
        expert = dict(base)
        for tensor, shape in trained.items():
            far = 3e-4 * np.float32(2.0 ** random.uniform(-1, 1))
            noise = random.standard_normal(shape, np.float32) * random.gamma(1.0, 1.0, shape).astype(np.float32)
            expert[tensor] = base[tensor] + far * noise
        save_file(expert, tmp_path / f"{name}.safetensors")
    experts = [str(tmp_path / f"{name}.safetensors") for name in names]
    out = tmp_path / "all.tsw"
    arguments = ["tall", "make", str(tmp_path / "base.safetensors"), *experts, "-o", str(out), "--shared-dtype", shared]
    made = CliRunner().invoke(command, arguments)
    assert made.exit_code == 0, made.output

    with tsw.open(out) as file:
        index = file.container.index
        vector = 8 * int(index.shared.segments["length"].sum(dtype=np.int64))
        masks = 8 * sum(int(task.segments["length"].sum(dtype=np.int64)) for task in index.tasks)
        active = [sum(file.switch(n, t).active for n in file.keys(t)) / p for t in names]
    size = 8 * out.stat().st_size
    rest = size - vector - masks  # prologue, index, trailer
    whole = 32 * (p + f) + size
    wanted = table(p, f) - (32 - vector_bits) * p
    print(
        f"\n{shared}: P {p:,}, F {f:,}, {TASKS} tasks; experts {individual(p, f) / 1e6:.2f} Mbit, table {wanted / 1e6:.2f}, "
        f"ours {whole / 1e6:.2f} ({100 * whole / wanted:.1f} %): vector {vector / p:.2f} bits an element, masks "
        f"{masks / p / TASKS:.3f} (densities {min(active):.2f} to {max(active):.2f}), index {rest / 8e3:.0f} kB"
    )
    assert 0.1 < min(active) <= max(active) < 0.6
    assert vector <= vector_bits * p
    assert whole <= wanted + rest
    assert whole < wanted  # with all that is ours alone
    assert masks / p / TASKS < 1
