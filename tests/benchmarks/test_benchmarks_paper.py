"""The experiment's data and tables: parts that share nothing, what is dropped, figures that are the rows'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from benchmarks.common import Result  # noqa: E402
from benchmarks.paper import ideas, pulse, report  # noqa: E402
from benchmarks.paper.__main__ import prepared  # noqa: E402
from benchmarks.paper.data import BY_NAME, PLAIN, TASKS, turned  # noqa: E402
from benchmarks.paper.evaluation import training_batches  # noqa: E402
from benchmarks.paper.train import new_model  # noqa: E402
from tswitch_tools.sweep import Row, SweepTable  # noqa: E402

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_parts_share_no_sample(task: object, seed: int) -> None:
    parts = BY_NAME[task.name].parts(seed)  # type: ignore[attr-defined]
    rows = {split: {tuple(image.flatten().tolist()) for image in parts[split].inputs} for split in SPLITS}
    assert not rows["train"] & rows["test"]
    assert not rows["train"] & rows["validation"]
    assert not rows["validation"] & rows["test"]


@pytest.mark.parametrize("seed", [0, 1])
def test_tasks_on_digits_have_the_same_images_in_the_same_part(seed: int) -> None:
    for name in ("rotated", "mirrored", "flipped", "inverted", "relabelled"):
        for split in SPLITS:
            assert torch.equal(BY_NAME[name].parts(seed)[split].inputs, PLAIN.parts(seed)[split].inputs)


def test_seeds_have_one_test_part_and_cut_the_rest_otherwise() -> None:
    for name in ("rotated", "tumours"):
        one, other = (BY_NAME[name].parts(seed) for seed in (0, 1))
        assert torch.equal(one["test"].labels, other["test"].labels)
        assert not torch.equal(one["validation"].inputs, other["validation"].inputs)
    assert torch.equal(*(BY_NAME["rotated"].samples(seed, "test").inputs for seed in (0, 2)))


def test_every_class_is_everywhere() -> None:
    for task in TASKS:
        classes = set(task.samples(0, "train").labels.tolist())
        assert all(set(task.samples(0, split).labels.tolist()) == classes for split in SPLITS)


def test_tumours_are_standardised_by_the_training_part_and_within_the_range() -> None:
    images = BY_NAME["tumours"].samples(0, "test").inputs
    assert images.shape[1:] == (8, 8)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images[:, 0, 0], images[:, 0, 1])
    assert not images.flatten(1)[:, 60:].any()


def test_symmetries_are_eight(seed: int = 0) -> None:
    image = torch.arange(64.0).view(1, 8, 8).expand(400, 8, 8)
    images, which = turned(image, torch.Generator().manual_seed(seed))
    assert {tuple(one.flatten().tolist()) for one in images}.__len__() == 8
    assert set(which.tolist()) == set(range(8))


def test_training_batches_are_of_the_training_part() -> None:
    batches = training_batches("tumours", 0, 3)
    assert [len(batch.labels) for batch in batches] == [32, 32, 32]
    train = {tuple(x.flatten().tolist()) for x in BY_NAME["tumours"].samples(0, "train").inputs}
    assert all(tuple(x.flatten().tolist()) in train for batch in batches for x in batch.inputs)


def test_a_new_run_removes_the_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    for name in ("seed0/base.safetensors", "seed2/auto/all.tsw", "theses/mine.txt", "seeds.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert prepared(tmp_path, keep=True) == tmp_path
    assert sorted(tmp_path.rglob("*")) == before
    assert prepared(tmp_path, keep=False) == tmp_path
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine.txt", "seeds.txt", "theses"]
    assert prepared(tmp_path / "new", keep=False) == tmp_path / "new"


def test_the_model_has_at_least_five_million_parameters() -> None:
    assert sum(p.numel() for p in new_model().parameters()) >= 5_000_000


@pytest.mark.parametrize("kind", pulse.KINDS)
def test_pulse_drops_the_share_that_it_says(kind: str) -> None:
    tau = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    stays = pulse._stays(tau, kind, 0.9, torch.Generator().manual_seed(1))
    assert int(stays.sum()) == 200
    magnitudes = tau.abs()
    if kind == "low magnitude":
        assert magnitudes[stays].min() > magnitudes[~stays].max()
    if kind == "high magnitude":
        assert magnitudes[stays].max() < magnitudes[~stays].min()


@pytest.mark.parametrize(("name", "rule"), ideas.ideas().items())
def test_ideas_keep_the_projection_and_the_size(name: str, rule: ideas.Rule) -> None:
    random = torch.Generator().manual_seed(2)
    base = {"a": torch.zeros(100, 80), "b": torch.zeros(40, 60), "vector": torch.zeros(100)}
    taus = {name: torch.randn(before.shape, generator=random) * (1 + before.dim()) for name, before in base.items()}
    sizes = (3.0, 5.0)
    for percent, (weights, size) in zip(sizes, ideas.of_size(base, taus, rule, sizes), strict=True):
        assert size == pytest.approx(percent, rel=0.05) or "rank 2" in name
        for tensor, made in weights.items():
            share = float((made * taus[tensor]).sum() / taus[tensor].square().sum())
            assert share == pytest.approx(1, abs=2e-2) or not made.any(), name


def rows(method: str, percent: float, kept: Mapping[str, float]) -> list[Row]:
    return [
        Row(method, task, 1000.0, percent, score, 1.0, 0.1, 0.001, run=run)
        for run in ("0", "1")
        for task, score in kept.items()
    ]


def test_targets_are_the_rows(tmp_path: Path) -> None:
    table = SweepTable(
        [*rows("a", 0.4, {"rotated": 1.0, "mirrored": 0.98}), *rows("b", 0.1, {"rotated": 0.5, "mirrored": 0.9})]
    )
    result = Result("x", "y", "z", {})
    report.targets_table(result, table, [["a", "c"], ["b"]])
    report.methods_table(result, "Methods", table)
    assert result.tables[0].rows == [
        ("a", 0.4, 0.5, 99.0, 99.5, 98.0, 97.0, False),
        ("c", None, 0.5, None, 99.5, None, 97.0, False),
        ("b", 0.1, 0.2, 70.0, 98.0, 50.0, None, False),
    ]
    assert [row[0] for row in result.tables[1].rows] == ["b *", "a *"]
    points = [pulse.Point(kind, r, "rotated", 0, 50.0) for kind in pulse.KINDS for r in (0.2, 0.9)]
    report.pulse_table(result, points, tmp_path)
    report.merging_table(result, {2: table, 3: table}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"paper-pulse.svg", "paper-merging.svg"}
