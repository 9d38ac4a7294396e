"""`python -m benchmarks peers`: sizes and times of all peers, on random planes and on a real expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import click
import torch

from benchmarks import common
from benchmarks.peers import all_peers, pictures
from benchmarks.peers.examples import SHAPES, every_sign, random_planes, real_expert
from benchmarks.peers.measuring import Measured, measure
from benchmarks.peers.peer import Peer
from benchmarks.peers.tsw import OURS
from tswitch_format.torch.kernels import backend_of

DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
THREADS = 1
_PACKAGES = ("numba", "scipy", "pyroaring", "zipnn")  # beside those that every result names


def example_table(result: common.Result, measured: Measured) -> None:
    """All that was found of one example."""
    table = result.table(
        measured.name,
        "what",
        "keeps",
        "bytes",
        "% of f32",
        "bytes / entropy",
        "ms",
        "least",
        "most",
        "ms / ours",
        "least",
        "most",
        "G elements/s",
        note=f"{measured.elements:,} elements; density {100 * measured.density:.4g} %, entropy bound "
        f"{measured.entropy_bytes:,.0f} bytes. ours: {OURS}. ms: from the file to applied weights.",
    )
    for name in measured.times.seconds:
        keeps, nbytes = measured.keeps.get(name), measured.nbytes.get(name)
        taken, ratio = measured.times.summary(name), measured.times.ratio(name, OURS)
        table.add(
            name,
            keeps.value if keeps else None,
            nbytes,
            None if nbytes is None else 100 * nbytes / (4 * measured.elements),
            measured.over_entropy(name),
            *(1000 * seconds for seconds in (taken.median, taken.least, taken.most)),
            *(ratio.median, ratio.least, ratio.most),
            measured.elements / taken.median / 1e9,
        )
    result.raw[measured.name] = {name: list(seconds) for name, seconds in measured.times.seconds.items()}


def by_density(
    result: common.Result,
    title: str,
    found: Sequence[Measured],
    value: Callable[[Measured, str], float | None],
    note: str,
) -> pictures.Curves:
    """A row for each peer and limit, a column for each density; the same as curves."""
    densities = [100 * measured.density for measured in found]
    table = result.table(title, "what", *(f"{density:.3g} %" for density in densities), note=note, main=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in found[0].times.seconds:
        values = [value(measured, name) for measured in found]
        if None not in values:
            table.add(name, *values)
            curves[name] = [(d, v) for d, v in zip(densities, values, strict=True) if v is not None]
    return curves


def _peers() -> list[Peer]:
    """All of them, or an error that says what to install."""
    if backend_of(torch.device("cpu")) != "compiled":
        raise click.ClickException("the extra fast is missing, or does not start; run pip install '.[fast]'")
    try:
        return all_peers()
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error}; run pip install '.[bench]'") from error


@click.command()
@common.folder_option
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/paper/seed0"),
    show_default=True,
    help="Of make paper; what is missing is trained, and left there.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--layers",
    type=click.IntRange(1, len(SHAPES)),
    default=len(SHAPES),
    show_default=True,
    help="Of random planes, 2 M elements each. Results of fewer are not saved.",
)
def main(folder: Path, checkpoints: Path, rounds: int, layers: int) -> None:
    """Sizes and times of the library and its peers, interleaved."""
    peers = _peers()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    real, trained = real_expert(checkpoints)
    result = common.Result(
        "peers",
        "bytes, and time from a file to applied weights, of the library, its peers and the limits",
        "python -m benchmarks peers",
        {
            "rounds": rounds,
            "threads": THREADS,
            "page cache": "warm, files read once before",
            "weights": "f32, set back to the base before each measurement, untimed",
            "checkpoints": "trained for this run" if trained else "of an earlier run",
            **{package: version(package) for package in _PACKAGES},
        },
        warnings=["The machine was shared with other work while this ran. Ratios are made within a round."],
    )
    shapes = dict(list(SHAPES.items())[:layers])
    with torch.inference_mode():
        by_chance = [measure(random_planes(density, shapes=shapes), peers, folder, rounds) for density in DENSITIES]
        others = [measure(example, peers, folder, rounds) for example in (real, every_sign(real))]
    panels = {
        "bytes / entropy bound": by_density(
            result,
            "Random planes: bytes / entropy bound, by density",
            by_chance,
            Measured.over_entropy,
            "Of peers that keep the switch. Entropy bound: H(p) + p bits an element, p the density of a tensor.",
        ),
        f"ms for {by_chance[0].elements:,} elements": by_density(
            result,
            "Random planes: ms from the file to applied weights, by density",
            by_chance,
            lambda measured, name: 1000 * measured.times.summary(name).median,
            "Medians.",
        ),
    }
    by_density(
        result,
        f"Random planes: time / {OURS}, by density",
        by_chance,
        lambda measured, name: measured.times.ratio(name, OURS).median,
        "Medians of the ratios within a round. Above 1: slower than ours.",
    )
    for measured in [*others, *by_chance]:
        example_table(result, measured)
    if layers == len(SHAPES):
        pictures.save(common.RESULTS / "peers.svg", panels)
    common.finish(result, save=layers == len(SHAPES))


if __name__ == "__main__":
    main()
