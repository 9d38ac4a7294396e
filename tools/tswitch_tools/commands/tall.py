"""`tsw tall` and `tsw emr`: experts of one base -> one vector and a mask for each; TALL masks of other people, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

import tswitch_format as tsw
from tswitch_tools import importers
from tswitch_tools.commands import options
from tswitch_tools.commands.import_ import import_source
from tswitch_tools.importers import ImportOptions, tall_masks
from tswitch_tools.progress import progress_bar
from tswitch_tools.tall.exporting import export_masks
from tswitch_tools.text import printable, size


@click.group()
def tall() -> None:
    """TALL-masks: one vector for all tasks, and for each the mask of what is its own.

    \b
    Examples:
      tsw tall make base.safetensors math.safetensors code.safetensors -o all.tsw
      tsw tall import TALL_mask_8task.npy --base base.pt --multi-task mtl.safetensors -o all.tsw
      tsw tall export all.tsw -o TALL_mask_8task.npy
    """


@click.group()
def emr() -> None:
    """EMR-Merging: one unified vector, and for each task a mask and a scale.

    \b
    Examples:
      tsw emr make base.safetensors math.safetensors code.safetensors -o all.tsw
    """


def _lambdas(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[float | None, dict[str, float]]:
    """X for all tasks, or None, and NAME=X for one."""
    default: float | None = None
    named: dict[str, float] = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            if equals:
                named[name] = float(number)
            else:
                default = float(number)
        except ValueError:
            raise click.BadParameter(f"expected X or NAME=X with a number X, found {value!r}") from None
    return default, named


_experts = click.argument(
    "experts", nargs=-1, required=True, metavar="EXPERT...", callback=options.named_paths, type=click.STRING
)
_dense = click.option(
    "--dense", multiple=True, metavar="PATTERN", help="Store tensors of such names whole, for each task. Repeatable."
)
_on_mismatch = click.option(
    "--on-mismatch",
    type=click.Choice(["error", "dense"]),
    default="error",
    show_default=True,
    help="Store whole what does not fit the base's tensor.",
)


@tall.command("make")
@click.argument("base", type=options.PATH)
@_experts
@options.output
@click.option(
    "--lambda",
    "lambdas",
    multiple=True,
    callback=_lambdas,
    metavar="[NAME=]X",
    help="Smaller ones select more; for all tasks, or for one. Repeatable.  [default: 0.4]",
)
@click.option("--ties", is_flag=True, help="Merge the task vectors by TIES instead of adding them.")
@options.shared_dtype
@_dense
@_on_mismatch
@options.profile
@options.base_id
@options.threads
@options.quiet
def tall_make(
    *,
    base: Path,
    experts: Mapping[str, Path],
    out: Path,
    lambdas: tuple[float | None, dict[str, float]],
    ties: bool,
    shared_dtype: str,
    dense: tuple[str, ...],
    on_mismatch: str,
    profile: str,
    base_id: tuple[str | None, str | None],
    threads: int | None,
    quiet: bool,
) -> None:
    """Keep several experts as masks over the sum of their task vectors (arXiv 2405.07813).

    EXPERT is a checkpoint, named by its file or folder, or NAME=PATH. An element is in an expert's mask where |base - expert| >
    |(base + vector) - expert| * lambda. The paper tries lambdas of 0.2 to 0.6 for each task on validation data.

    While it is made, masks wait beside OUT: a bit an element of the base for each expert. --ties reads all experts four times.

    \b
    Examples:
      tsw tall make base.safetensors math.safetensors code.safetensors -o all.tsw
      tsw tall make base/ math=a/ code=b/ -o all.tsw --lambda 0.4 --lambda math=0.3 --shared-dtype bf16
    """
    default, named = lambdas
    with progress_bar("tall make", quiet=quiet, unit="tensors") as progress:
        result = tsw.make_tall(
            base,
            experts,
            out,
            lambdas=named if default is None else dict.fromkeys(experts, default) | named,
            ties=ties,
            shared_dtype=shared_dtype,
            dense=dense,
            on_mismatch=on_mismatch,
            profile=profile,
            base_id=base_id[0],
            base_revision=base_id[1],
            threads=threads,
            progress=progress,
        )
    _say(result, len(experts), quiet)


@emr.command("make")
@click.argument("base", type=options.PATH)
@_experts
@options.output
@options.shared_dtype
@_dense
@_on_mismatch
@options.profile
@options.base_id
@options.threads
@options.quiet
def emr_make(
    *,
    base: Path,
    experts: Mapping[str, Path],
    out: Path,
    shared_dtype: str,
    dense: tuple[str, ...],
    on_mismatch: str,
    profile: str,
    base_id: tuple[str | None, str | None],
    threads: int | None,
    quiet: bool,
) -> None:
    """Keep several experts as masks over their unified vector, each with a scale (arXiv 2405.17461).

    EXPERT is a checkpoint, named by its file or folder, or NAME=PATH. The vector has the sign of the mean of the task vectors
    and the largest entry that agrees; a mask has the elements in which its expert agrees.

    \b
    Examples:
      tsw emr make base.safetensors math.safetensors code.safetensors -o all.tsw
    """
    with progress_bar("emr make", quiet=quiet, unit="tensors") as progress:
        result = tsw.make_emr(
            base,
            experts,
            out,
            shared_dtype=shared_dtype,
            dense=dense,
            on_mismatch=on_mismatch,
            profile=profile,
            base_id=base_id[0],
            base_revision=base_id[1],
            threads=threads,
            progress=progress,
        )
    _say(result, len(experts), quiet)


@tall.command("import")
@click.argument("masks", type=options.PATH)
@options.output
@click.option("--base", required=True, type=options.PATH, metavar="BASE", help="The checkpoint that the masks are of.")
@options.experts
@options.multi_task
@options.ties
@options.shared_dtype
@options.profile
@options.base_id
@options.threads
@options.quiet
def tall_import(
    *,
    masks: Path,
    out: Path,
    base: Path,
    experts: Mapping[str, Path],
    multi_task: Path | None,
    ties: bool,
    shared_dtype: str,
    profile: str,
    base_id: tuple[str | None, str | None],
    threads: int | None,
    quiet: bool,
) -> None:
    """Make a file of masks that the TALL-masks code wrote: TALL_mask_{n}task.npy, in all the forms it is passed on in.

    MASKS holds no vector: give the experts, whose task vectors are added in the order of the masks, or the vector itself.

    \b
    Examples:
      tsw tall import TALL_mask_2task.npy --base base.pt --experts MNIST=mnist.pt --experts SVHN=svhn.pt -o all.tsw
      tsw tall import TALL_mask_8task.npy --base base.pt --multi-task mtl.safetensors -o all.tsw
    """
    wanted = ImportOptions(
        experts=experts,
        multi_task=multi_task,
        ties=ties,
        shared_dtype=shared_dtype,
        profile=profile,
        base_id=base_id[0],
        base_revision=base_id[1],
        threads=threads,
    )
    result = import_source(importers.find(masks, tall_masks.NAME), masks, base, out, wanted, quiet=quiet)
    if not quiet:
        click.echo(f"{printable(result.path)}: {size(result.nbytes)}, {result.switches} masks")


@tall.command("export")
@click.argument("file", type=options.PATH)
@options.output
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="A task to write; all if left out. Repeatable.")
@click.option(
    "--numpy",
    type=click.Choice(["1", "2"]),
    default="1",
    show_default=True,
    help="The NumPy whose np.save it equals to the byte. The published files are of 1; 1 and 2 read both.",
)
@options.quiet
def tall_export(*, file: Path, out: Path, tasks: tuple[str, ...], numpy: str, quiet: bool) -> None:
    """Write the tasks' masks as the TALL-masks code keeps them.

    What such a file does not keep is said on standard error.

    \b
    Examples:
      tsw tall export all.tsw -o TALL_mask_8task.npy
    """
    generation: Literal[1, 2] = 1 if numpy == "1" else 2
    with (
        tsw.open(file) as opened,
        progress_bar("tall export", quiet=quiet, unit="tensors") as progress,
    ):
        chosen = list(tasks or opened.tasks)
        remarks = export_masks(opened, chosen, out, generation, progress=progress)
    if quiet:
        return
    for remark in remarks:
        click.echo(f"tsw: note: {printable(remark)}", err=True)
    click.echo(f"{printable(out)}: masks of {len(chosen)} tasks, as NumPy {numpy} writes them")


def _say(result: tsw.BuildResult, tasks: int, quiet: bool) -> None:
    if not quiet:
        click.echo(
            f"{printable(result.path)}: {size(result.nbytes)}, {tasks} tasks, {result.switches} masks, {result.dense} dense"
        )
