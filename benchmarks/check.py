"""Has anything become slower? Ratios of a quick subset of the benchmarks against those that are committed.

Absolute times are never compared. The subset is what `imports`, `speed` and `reading` measure, with small models, a warm
page cache and fewer rounds. Where a ratio is worse than the committed one by more than its margin, the subset runs once more,
and what is worse both times is a failure.

**The margin** of a ratio comes from its own spread. `--update` runs the subset `RUNS` times, each in a fresh process, as a
check does. The reference is the median of the runs' medians; the margin is `FACTOR` times the largest distance of a run from
it, as a factor, and at least `LEAST_MARGIN`, since less than 10 % is nothing to look for on a machine that others use.
`chance` computes how often a ratio that has not changed then fails, twice in a row, by noise alone; results/check.md has
that figure, the references, the spreads and the margins. A loss that is smaller than its margin is seen by `make bench` only.

Ratios depend on the machine too (memory bandwidth, instructions, disk). Where another one fails, see whether the commit that
was committed with the ratios fails there as well.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import common, importing, reading, speed, synthetic, workloads
from benchmarks.common import Ratio

FACTOR = 3.0
LEAST_MARGIN = 0.10
RUNS = 7
TASKS = 20
REFERENCE = common.COMMITTED / "check.json"
RUN = "check-run"  # the result of one run of the subset


@dataclass(frozen=True, slots=True)
class Guard:
    """A committed ratio: `medians` of the runs that it was derived from, `reference`, their median, and the margin, a share."""

    label: str
    higher_is_better: bool
    reference: float
    margin: float
    medians: Sequence[float]

    @classmethod
    def of(cls, label: str, runs: Sequence[Ratio]) -> Guard:
        """From the same ratio in several runs."""
        medians = [run.median for run in runs]
        reference = statistics.median(medians)
        spread = max(max(value / reference, reference / value) for value in medians) - 1
        return cls(label, runs[0].higher_is_better, reference, max(LEAST_MARGIN, FACTOR * spread), medians)

    def loss(self, value: float) -> float:
        """How much worse `value` is than the reference, as a share; below 0 where it is better."""
        return (self.reference / value if self.higher_is_better else value / self.reference) - 1

    def complaint(self, value: float | None) -> str | None:
        """What is wrong with what was measured, if anything; None: it was not."""
        if value is None:
            return f"{self.label}: not measured any more, or under another name; commit new ratios with --update"
        if self.loss(value) <= self.margin:
            return None
        return (
            f"{self.label}: {value:.3g} where {self.reference:.3g} is committed, {100 * self.loss(value):.0f} % worse; "
            f"at most {100 * self.margin:.0f} % is allowed"
        )


def derive(runs: Sequence[Sequence[Ratio]]) -> list[Guard]:
    """Guards from several runs of the subset, in its order. Figures that are no ratios are left out."""
    found: dict[str, list[Ratio]] = {}
    for ratio in (ratio for run in runs for ratio in run if ratio.peer is not None):
        found.setdefault(label(ratio), []).append(ratio)
    return [Guard.of(name, ratios) for name, ratios in found.items()]


def label(ratio: Ratio) -> str:
    """What it is called in both files."""
    return f"{ratio.where}: {ratio.label}"


def complaints(guards: Sequence[Guard], run: Sequence[Ratio]) -> dict[str, str]:
    """What is wrong with a run, by label."""
    values = {label(ratio): ratio.median for ratio in run}
    found = {guard.label: guard.complaint(values.get(guard.label)) for guard in guards}
    return {name: text for name, text in found.items() if text}


def chance(runs: int, factor: float, draws: int = 100_000) -> float:
    """How often normal noise alone takes a ratio beyond its margin in two runs one after another; without LEAST_MARGIN, so at
    most that often. Drawn: medians of `runs` runs to derive a margin from, for each of which the chance is exact."""
    medians = np.random.default_rng(0).standard_normal((draws, runs))
    reference = np.median(medians, axis=1)
    limits = reference + factor * np.abs(medians - reference[:, None]).max(axis=1)
    normal = statistics.NormalDist()
    return statistics.fmean(normal.cdf(-limit) ** 2 for limit in limits.tolist())


def measure(folder: Path, out: Path) -> None:
    """Run the subset and save its result in `out`."""
    result = common.Result(
        RUN,
        "the quick subset that `make bench-check` compares",
        "python -m benchmarks check",
        {"page cache": "warm", "density": workloads.DENSITY},
    )
    importing.measure(result, 11, others=False)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        model = synthetic.make_named(place / "model", synthetic.similar(0.03))
        small = synthetic.make_named(place / "small", synthetic.similar(0.005))
        common.read_once([path for each in (model, small) for side in ("base", "expert") for path in each.shards(side)])
        speed.pack_speed(result, model, place / "model.tsw", speed.MAGNITUDE, 9)
        speed.pack_speed(result, small, place / "small.tsw", speed.DEFAULT, 5)
        speed.restore_to_memory(result, model, place / "model.tsw", 9)
        many = workloads.make(place / "many", "small tensors", workloads.shapes_small(0.1))
        bundle = workloads.make(place / "bundle", "bundle", workloads.shapes_24m(0.2), tasks=TASKS)
        large = workloads.make(place / "large", "large model", workloads.shapes_100m(0.2))
        for work in (many, bundle, large):
            reading.open_and_decode(result, work, 15)
            reading.validate_levels(result, work, 15, levels=("checksums", "full") if work is large else ("checksums",))
        reading.apply_whole(result, large, 15)
        reading.decode_speed(result, large, 15)
        reading.switch_tasks(result, bundle, 25)
    result.save(out)


def measure_apart(folder: Path, out: Path) -> list[Ratio]:
    """The ratios of one run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks", "check", "--folder", str(folder), "--measure", str(out)]
    subprocess.run(command, check=True)
    return common.ratios_of(json.loads((out / f"{RUN}.json").read_text()))


def update(runs: Sequence[Sequence[Ratio]]) -> common.Result:
    """What is committed: guards for programs, and a table of them."""
    result = common.Result(
        "check",
        "the ratios that `make bench-check` compares with, and how much worse they may become",
        "python -m benchmarks check --update" + (f" --runs {len(runs)}" if len(runs) != RUNS else ""),
        {"runs": len(runs), "margin": f"{FACTOR:g} x spread, at least {LEAST_MARGIN:g}"},
        warnings=["The machine was shared with other work while this ran."],
    )
    table = result.table(
        "References and margins",
        "ratio",
        "reference",
        "least of the runs",
        "most",
        "spread %",
        "margin %",
        "better is",
    )
    guards = derive(runs)
    at_most = chance(len(runs), FACTOR)
    table.note = (
        "reference: median of the runs' medians; spread: the largest distance of a run from it; margin: benchmarks/check.py. "
        f"By normal noise alone a ratio fails in at most {100 * at_most:.2g} % of the checks, any of these {len(guards)} in at "
        f"most {100 * at_most * len(guards):.2g} %."
    )
    for guard in guards:
        spread = max(max(value / guard.reference, guard.reference / value) for value in guard.medians) - 1
        better = "higher" if guard.higher_is_better else "lower"
        low, high = min(guard.medians), max(guard.medians)
        table.add(guard.label, guard.reference, low, high, 100 * spread, 100 * guard.margin, better)
    result.raw["guards"] = [asdict(guard) for guard in guards]
    return result


def read_guards(content: Mapping[str, Any]) -> list[Guard]:
    """The guards of a committed file."""
    return [Guard(**guard) for guard in content["raw"]["guards"]]


@click.command()
@common.folder_option
@click.option("--update", "updating", is_flag=True, help="Derive new references and margins, and write them.")
@click.option("--runs", type=click.IntRange(2), default=RUNS, show_default=True, help="Of the subset, for --update.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Leave what was measured in this folder.")
@click.option(
    "--measure", "only", type=click.Path(file_okay=False, path_type=Path), help="Only measure, into this folder."
)
def main(folder: Path, updating: bool, runs: int, out: Path | None, only: Path | None) -> None:
    """Compare ratios with the committed ones; exit code 1 where one is worse by more than its margin."""
    folder.mkdir(parents=True, exist_ok=True)
    if only:
        measure(folder, only)
        return
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = out or Path(temporary)
        if updating:
            common.finish(update([measure_apart(folder, place / str(run)) for run in range(runs)]), save=True)
            return
        if not REFERENCE.exists():
            raise click.ClickException(f"{REFERENCE} is not there; make it with --update")
        content = json.loads(REFERENCE.read_text())
        sys.exit(check(content, folder, place))


def check(content: Mapping[str, Any], folder: Path, out: Path) -> int:
    """Measure, once more where it is worse, and say what is worse both times; the exit code."""
    guards = read_guards(content)
    where, here = content["machine"], common.machine()
    print(f"committed: {where['date']}, {where['processor']}; here: {here['processor']}")
    worse = complaints(guards, measure_apart(folder, out / "1"))
    if worse:
        print(f"{len(worse)} of {len(guards)} ratios are worse by more than their margin; once more:")
        print("\n".join(worse.values()), flush=True)
        again = complaints(guards, measure_apart(folder, out / "2"))
        worse = {name: text for name, text in again.items() if name in worse}
    for text in worse.values():
        print(f"FAILED {text}")
    print(
        f"{len(guards) - len(worse)} of {len(guards)} ratios are as good as the committed ones, within their margins."
    )
    return 1 if worse else 0
