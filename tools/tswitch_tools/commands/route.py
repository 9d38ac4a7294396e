"""`tsw route`: which tasks of a file a sample needs (Auto-Switch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

import tswitch_format as tsw
from tswitch_format.errors import OptionError
from tswitch_tools.arrays import read_array
from tswitch_tools.commands import options
from tswitch_tools.tables import output_console, print_in_blocks
from tswitch_tools.text import printable, rounded, size

_SAMPLES = "the samples of a task"


@click.group()
def route() -> None:
    """Auto-Switch: which tasks a sample needs, by its nearest neighbours among stored ones.

    \b
    Examples:
      tsw route build all.tsw -o routed.tsw --features math=math.npy --features code=code.npy
      tsw route query routed.tsw questions.npy
    """


def _features(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for value in values:
        task, equals, path = value.partition("=")
        if not (task and equals and path):
            raise click.BadParameter(f"expected TASK=FILE, found {value!r}")
        if task in found:
            raise click.BadParameter(f"expected each task once, found {task!r} twice; put its samples into one file")
        found[task] = Path(path)
    return found


@route.command()
@click.argument("file", type=options.PATH)
@options.output
@click.option(
    "--features",
    multiple=True,
    required=True,
    callback=_features,
    metavar="TASK=FILE",
    help="Samples of a task, [n, D]: .npy, or .safetensors with one tensor. Repeat for each task.",
)
@click.option("-k", type=int, metavar="K", help="How many neighbours count.  [default: 10]")
@click.option("--metric", type=click.Choice(["euclidean", "cosine"]), help="What is near.  [default: euclidean]")
@click.option("--extractor", metavar="TEXT", help="What made the features: model, revision, which output.")
@click.option("--preprocessing", metavar="TEXT", help="What was done with inputs before.")
@click.option("--half", is_flag=True, help="Store the features in f16.")
@options.quiet
def build(
    *,
    file: Path,
    out: Path,
    features: Mapping[str, Path],
    k: int | None,
    metric: str | None,
    extractor: str | None,
    preprocessing: str | None,
    half: bool,
    quiet: bool,
) -> None:
    """Write a file anew with samples of its tasks, by which later ones are routed.

    The paper takes 100 training samples a task and features of the pretrained encoder. Tasks that have samples already keep
    them: to add a task, the others' data are not needed, and 'tsw bundle' puts routers together as it does tasks.

    \b
    Examples:
      tsw route build all.tsw -o routed.tsw --features math=math.npy --features code=code.npy
      tsw route build routed.tsw -o more.tsw --features law=law.safetensors
    """
    given = {task: read_array(path, _SAMPLES) for task, path in features.items()}
    if half:
        given = {task: samples.astype(np.float16) for task, samples in given.items()}
    tsw.add_router(file, out, given, k=k, metric=metric, extractor=extractor, preprocessing=preprocessing)
    if quiet:
        return
    with tsw.open(out) as opened:
        router = opened.router
    samples = sum(len(part) for part in router.features.values()) if router else 0
    click.echo(f"{printable(out)}: {size(out.stat().st_size)}, router of {samples} samples of {len(given)} tasks added")


@route.command()
@click.argument("file", type=options.PATH)
@click.argument("features", type=options.PATH)
@click.option(
    "--mode",
    type=click.Choice(["sample", "mean", "hard"]),
    default="sample",
    show_default=True,
    help="Weights of each sample, their mean, or the largest of the mean alone.",
)
@options.as_json
def query(*, file: Path, features: Path, mode: str, as_json: bool) -> None:
    """Print the weights of tasks for samples.

    FEATURES: [n, D], made as the router says that its own were made: .npy, or .safetensors with one tensor.

    \b
    Examples:
      tsw route query routed.tsw questions.npy
      tsw route query routed.tsw questions.npy --mode mean --json
    """
    with tsw.open(file) as opened:
        router = opened.router
    if router is None:
        raise OptionError(f"{file}: expected a file with a router, found one without; make it with 'tsw route build'")
    weights = router.weights(read_array(features, _SAMPLES))
    if mode != "sample":
        weights = weights.mean(axis=0, keepdims=True)
    if mode == "hard":
        weights = (np.arange(weights.shape[1]) == weights.argmax(axis=1, keepdims=True)).astype(np.float32)
    if as_json:
        described = {"k": router.k, "metric": router.metric, "extractor": router.extractor}
        described["preprocessing"] = router.preprocessing
        options.print_json({"router": described, "tasks": list(router.tasks), "weights": weights.tolist()})
        return
    first = "sample" if mode == "sample" else "batch"
    rows = [
        [str(number) if mode == "sample" else mode, *map(rounded, row.tolist())] for number, row in enumerate(weights)
    ]
    print_in_blocks(output_console(), [first, *map(printable, router.tasks)], rows, left=[first])
