"""Masks over a shared vector: how fast are they made, read from other people's files and written? How large, in what memory?"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import tswitch_format as tsw
from benchmarks import common
from benchmarks.children import peak
from tswitch_format.checkpoint import open_checkpoint
from tswitch_tools.importers import CHUNK, ImportOptions, tall_masks
from tswitch_tools.tall.exporting import export_masks

Arrays = Mapping[str, NDArray[np.float32]]

WIDTH, LAYERS = 768, 7  # 50 M parameters, as 7 of the 12 layers of a ViT-B
LAMBDA = 0.4
READ_BOUND = 200  # M bits a second


def shapes(scale: float) -> dict[str, tuple[int, ...]]:
    """A vision transformer's; the name that sorts first has one element, so that every other tensor begins within a byte."""
    found: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    for layer in range(max(1, round(LAYERS * scale))):
        name = f"visual.{layer:02}"
        found[f"{name}.qkv.weight"] = (3 * WIDTH, WIDTH)
        found[f"{name}.out.weight"] = (WIDTH, WIDTH)
        found[f"{name}.fc1.weight"] = (4 * WIDTH, WIDTH)
        found[f"{name}.fc2.weight"] = (WIDTH, 4 * WIDTH)
        found[f"{name}.fc1.bias"] = (4 * WIDTH,)
    return found


def make_models(folder: Path, tasks: int, scale: float, seed: int) -> tuple[Path, dict[str, Path]]:
    """A base and its experts as safetensors. Differences are normal, with a scale of its own for each row of a task."""
    random = np.random.default_rng(seed)
    base = {name: random.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes(scale).items()}
    base = {name: np.asarray(value, np.float32) for name, value in base.items()}
    save_file(base, folder / "base.safetensors")
    experts = {}
    for task in range(tasks):
        expert = {}
        for name, value in base.items():
            rows = value.shape[:1] + (1,) * (value.ndim - 1)
            spread = 1e-3 * np.exp(random.standard_normal(rows, np.float32))
            expert[name] = np.asarray(value + spread * random.standard_normal(value.shape, np.float32), np.float32)
        experts[f"task{task}"] = folder / f"task{task}.safetensors"
        save_file(expert, experts[f"task{task}"])
    return folder / "base.safetensors", experts


def _flat(arrays: Arrays) -> NDArray[np.float32]:
    return np.concatenate([arrays[name].reshape(-1) for name in sorted(arrays)])


def published(base: Path, experts: Mapping[str, Path], out: Path) -> None:
    """What the published code does, in NumPy, on whole vectors: masks to a file. Its differences are added in its order."""
    start = _flat(load_file(base))
    tuned = [_flat(load_file(path)) for path in experts.values()]
    multi = start + np.sum([expert - start for expert in tuned], axis=0)
    masks = {
        task: np.packbits(np.abs(start - expert) > np.abs(multi - expert) * np.float32(LAMBDA))
        for task, expert in zip(experts, tuned, strict=True)
    }
    np.save(out, masks, allow_pickle=True)  # type: ignore[arg-type]


def read_windows(masks: tall_masks.Masks) -> None:
    """The mask of every tensor of every task."""
    for task in masks.tasks:
        for name, spec in masks.layout.tensors.items():
            for number in range(-(-spec.elements // CHUNK)):
                masks.chunk(task, name, number)


@click.command()
@common.folder_option
@click.option("--tasks", type=click.IntRange(2), default=8, show_default=True)
@click.option(
    "--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Share of the layers."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(folder: Path, tasks: int, scale: float, rounds: int, seed: int) -> None:
    """Make, import, export and weigh TALL masks of synthetic experts."""
    settings = {"tasks": tasks, "scale": scale, "rounds": rounds, "seed": seed, "lambda": LAMBDA}
    result = common.Result("tall", (__doc__ or "").strip(), "python -m benchmarks tall", settings)
    folder = folder / "tall"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measure(result, folder, make_models(folder, tasks, scale, seed), rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    common.finish(result, save=scale == 1)


def measure(result: common.Result, folder: Path, models: tuple[Path, dict[str, Path]], rounds: int) -> None:
    """All tables."""
    base, experts = models
    masks, made, given, vector = (
        folder / name for name in ("masks.npy", "made.tsw", "given.tsw", "vector.safetensors")
    )
    published(base, experts, masks)
    tsw.make_tall(base, experts, made, lambdas=LAMBDA)
    with tsw.open(made) as file:
        save_file({name: file.switch(name, task).vector() for task in file.tasks for name in file.keys(task)}, vector)
        density = np.mean([file.switch(name, task).density for task in file.tasks for name in file.keys(task)])
        own = sum(file.switch(name, task).stored_bytes for task in file.tasks for name in file.keys(task))
    reader = open_checkpoint(base)

    def import_masks(threads: int) -> None:
        options = ImportOptions(multi_task=vector, threads=threads)
        tall_masks.convert(masks, reader, given, options)

    def export(file: tsw.SwitchFile) -> None:
        export_masks(file, file.tasks, folder / "out.npy", 2)

    with tsw.open(made) as file:
        candidates = {
            "read masks by tensor": common.Candidate(lambda: read_windows(tall_masks.Masks(masks, reader))),
            "import masks and vector, 1 thread": common.Candidate(lambda: import_masks(1)),
            "import masks and vector, 2 threads": common.Candidate(lambda: import_masks(2)),
            "export": common.Candidate(lambda: export(file)),
            "make, 1 thread": common.Candidate(lambda: tsw.make_tall(base, experts, made, lambdas=LAMBDA, threads=1)),
            "make, 2 threads": common.Candidate(lambda: tsw.make_tall(base, experts, made, lambdas=LAMBDA, threads=2)),
            "the formula in NumPy, masks alone": common.Candidate(lambda: published(base, experts, masks)),
        }
        times = common.interleave(candidates, rounds)
    elements = sum(spec.elements for spec in reader.specs.values())
    bits = elements * len(experts)
    table = result.table(
        "Time",
        "what",
        "seconds",
        "least",
        "most",
        "M mask bits/s",
        f"at least {READ_BOUND}",
        "ratio to the formula in NumPy",
        note=(
            f"{elements:,} parameters, {len(experts)} tasks, f32, page cache warm, files synced; {rounds} rounds, medians. "
            "Every tensor but the first begins within a byte. 'import' writes vector and masks, and reads the whole base for "
            "its digests; 'make' reads all experts."
        ),
    )
    for name in candidates:
        seconds = times.summary(name)
        rate = bits / 1e6 / seconds.median
        bound = READ_BOUND if name.startswith(("read", "import")) else None
        least, most = (bits / 1e6 / taken for taken in (seconds.most, seconds.least))
        held = result.hold(
            common.Ratio(table.title, f"{name}, M mask bits/s", None, rate, least, most, bound, higher_is_better=True)
        )
        ratio = times.ratio(name, "the formula in NumPy, masks alone").median
        table.add(name, seconds.median, seconds.least, seconds.most, round(rate), held, ratio)
    result.raw["seconds"] = dict(times.seconds)
    _sizes(result, bits, own, float(density), made, masks)
    _memory(result, folder, base, experts)


def _sizes(result: common.Result, bits: int, own: int, density: float, made: Path, masks: Path) -> None:
    entropy = -density * np.log2(density) - (1 - density) * np.log2(1 - density)
    table = result.table(
        "Size",
        "what",
        "bytes",
        "bits a mask element",
        note=f"Mean density {density:.3f}, whose entropy is {entropy:.3f} bits an element. The vector is stored in f32.",
    )
    table.add("masks in the .tsw file", own, 8 * own / bits)
    table.add("TALL_mask_{n}task.npy", masks.stat().st_size, 8 * masks.stat().st_size / bits)
    table.add(".tsw file, vector and index too", made.stat().st_size, 8 * made.stat().st_size / bits)


def _memory(result: common.Result, folder: Path, base: Path, experts: Mapping[str, Path]) -> None:
    table = result.table(
        "Peak resident memory of tsw tall make",
        "experts",
        "threads",
        "MiB",
        note=f"Each of them has {base.stat().st_size / 2**20:,.0f} MiB on disk, as the base; its largest tensor has 9 MiB.",
    )
    paths = [f"{name}={path}" for name, path in experts.items()]
    for count in (2, len(paths)):
        for threads in (1, 2):
            command = [
                "tall",
                "make",
                str(base),
                *paths[:count],
                "-o",
                str(folder / "x.tsw"),
                "--threads",
                str(threads),
                "-q",
            ]
            table.add(count, threads, round(peak(command, folder)[0]))


if __name__ == "__main__":
    main()
