"""`tsw pack`: base + expert -> file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_tools.commands import options
from tswitch_tools.progress import progress_bar
from tswitch_tools.text import printable, rounded, size


def _metadata(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"expected KEY=VALUE, found {value!r}")
        if key in found:
            raise click.BadParameter(f"the key {key!r} comes twice; give it once")
        found[key] = text
    return found


@click.command()
@click.argument("base", type=options.PATH)
@click.argument("finetuned", type=options.PATH)
@options.output
@click.option("--task", default="task", show_default=True, metavar="NAME", help="Name of the task in the file.")
@click.option("--density", type=float, metavar="D", help="Share of elements to keep, as a fraction. [default: 0.015]")
@click.option("--discard", type=float, metavar="A", help="Share of non-zero elements to drop, as a fraction.")
@click.option("--target-size", type=float, metavar="PERCENT", help="Size of the file in percent of fp32.")
@click.option(
    "--select",
    type=click.Choice(["spectral", "tensor", "tensor-signed", "global"]),
    help="What carries the directions in which a tensor changes most, or the largest of a tensor, of a tensor and sign, "
    "of the model. [default: spectral; with --score: tensor]",
)
@click.option(
    "--knob",
    type=click.Choice(["projection", "norm", "rms", "mean"]),
    help="How the switches are scaled. [default: projection]",
)
@click.option(
    "--knob-per",
    type=click.Choice(["tensor", "row", "row-col"]),
    help="Knob only, or with factors of rows, or of rows and columns. [default: row-col]",
)
@click.option(
    "--knob-dtype",
    type=click.Choice(["u4", "u8", "f16", "f32"]),
    default="u4",
    show_default=True,
    help="How factors are stored; u4: 16 levels.",
)
@click.option("--preset", type=click.Choice(["paper"]), help="'paper': the T-Switch authors' own rule.")
@click.option(
    "--score",
    type=options.PATH,
    metavar="FILE",
    help="Choose elements by these scores, not by magnitude; of a tensor without scores still by magnitude.",
)
@click.option("--dense", multiple=True, metavar="PATTERN", help="Store such tensors whole, e.g. 'head.*'. Repeatable.")
@click.option(
    "--on-mismatch",
    type=click.Choice(["error", "dense"]),
    default="error",
    show_default=True,
    help="Changed tensors that cannot be switches (integers, other shapes): refuse, or store whole.",
)
@click.option(
    "--nonfinite",
    type=click.Choice(["error", "dense"]),
    default="error",
    show_default=True,
    help="Tensors with NaN or infinity: refuse, or store whole.",
)
@options.profile
@options.base_id
@click.option(
    "--meta", callback=_metadata, multiple=True, metavar="KEY=VALUE", help="A remark on the file. Repeatable."
)
@options.threads
@options.quiet
@options.as_json
def pack(
    *,
    base: Path,
    finetuned: Path,
    out: Path,
    task: str,
    density: float | None,
    discard: float | None,
    target_size: float | None,
    select: str | None,
    knob: str | None,
    knob_per: str | None,
    knob_dtype: str,
    preset: str | None,
    score: Path | None,
    dense: tuple[str, ...],
    on_mismatch: str,
    nonfinite: str,
    profile: str,
    base_id: tuple[str | None, str | None],
    meta: dict[str, str],
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Store what a fine-tuned model changes in its base.

    BASE and FINETUNED: a .safetensors file, a folder or index.json of shards, a Hugging Face model folder, or a .bin,
    .pt or .pth file. Give one of --density, --discard and --target-size, or none.

    \b
    Examples:
      tsw pack base/ finetuned/ -o math.tsw --task math --base-id org/model@main
      tsw pack base.safetensors expert.safetensors -o expert.tsw --density 0.01
      tsw pack base/ finetuned/ -o math.tsw --dense 'lm_head.*' --on-mismatch dense
    """
    with progress_bar("pack", quiet=quiet) as progress:
        result = tsw.pack(
            base,
            finetuned,
            out,
            task=task,
            density=density,
            discard=discard,
            target_size=target_size,
            select=select,
            knob=knob,
            knob_per=knob_per,
            knob_dtype=knob_dtype,
            preset=preset,
            score=score,
            dense=dense,
            on_mismatch=on_mismatch,
            nonfinite=nonfinite,
            profile=profile,
            base_id=base_id[0],
            base_revision=base_id[1],
            metadata=meta or None,
            threads=threads,
            progress=progress,
        )
    if as_json:
        options.print_json({**asdict(result), "path": str(result.path)})
    elif not quiet:
        click.echo(
            f"{printable(result.path)}: {size(result.file_bytes)}, {rounded(result.percent_of_fp32)} % of fp32, "
            f"density {rounded(result.density)} ({result.switches} switches, {result.dense} dense, "
            f"{result.unchanged} unchanged, {result.removed} removed)"
        )
