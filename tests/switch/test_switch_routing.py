"""Routers: weights by nearest neighbours, samples in files, files put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

import tswitch_format as tsw

TASKS = ("law", "art", "biology")  # in the file's order


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A file of three tasks over a base with a tensor that has the name of one of them."""
    random = np.random.default_rng(0)
    base = {"w": np.zeros((8, 6), np.float32), "art": np.zeros(5, np.float32)}
    for task in TASKS:
        expert = {name: random.standard_normal(value.shape, np.float32) for name, value in base.items()}
        tsw.pack(base, expert, tmp_path / f"{task}.tsw", task=task, density=0.5)
    return tsw.bundle([tmp_path / f"{task}.tsw" for task in TASKS], tmp_path / "all.tsw")


def samples(seed: int, count: int = 30, width: int = 12, dtype: Any = np.float32) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    return (random.standard_normal((count, width)) + 0.2 * seed).astype(dtype)


def routed(
    bundle: Path, out: str = "routed.tsw", tasks: tuple[str, ...] = TASKS, **options: Any
) -> tuple[Path, tsw.Router]:
    features = {task: samples(TASKS.index(task), 30 + TASKS.index(task)) for task in tasks}
    path = tsw.add_router(bundle, bundle.parent / out, features, **options)
    with tsw.open(path) as file:
        assert file.router is not None
        return path, file.router


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 10, 93])
def test_weights_are_those_of_scikit_learn(bundle: Path, metric: str, k: int) -> None:
    _, router = routed(bundle, k=k, metric=metric)
    known = np.concatenate([router.features[task] for task in TASKS])
    labels = np.repeat(range(3), [len(router.features[task]) for task in TASKS])
    classifier = KNeighborsClassifier(k, metric=metric).fit(known, labels)
    queries = samples(1, 200)
    found = router.weights(queries)
    assert found.dtype == np.float32 and found.shape == (200, 3)
    np.testing.assert_allclose(found, classifier.predict_proba(queries), atol=1e-6)


def test_more_neighbours_than_samples_are_all_of_them(bundle: Path) -> None:
    _, router = routed(bundle, k=1000)
    sizes = np.array([30, 31, 32], np.float32)
    np.testing.assert_allclose(router.weights(samples(0, 3)), np.tile(sizes / sizes.sum(), (3, 1)), rtol=1e-6)


def test_of_equal_distances_the_first_task_and_row_count() -> None:
    row = np.ones((4, 2), np.float32)
    router = tsw.Router(("a", "b", "c"), {"c": row, "b": row}, 5, "euclidean", "", "")
    np.testing.assert_allclose(router.weights(np.zeros((1, 2))), [[0, 0.8, 0.2]], rtol=1e-6)


def test_a_sample_of_zeros_is_equally_far_from_all_by_cosine() -> None:
    router = tsw.Router(
        ("a", "b"), {"a": np.eye(2, dtype=np.float32), "b": -np.eye(2, dtype=np.float32)}, 2, "cosine", "", ""
    )
    assert router.weights(np.zeros((1, 2))).tolist() == [[1, 0]]


def test_large_batches_come_in_blocks(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    _, router = routed(bundle)
    queries = samples(0, 50)
    whole = router.weights(queries)
    monkeypatch.setattr("tswitch_format.switch.routing._BLOCK_BYTES", 8 * 93 * 7)
    assert np.array_equal(router.weights(queries), whole)


def test_what_was_stored_comes_back(bundle: Path) -> None:
    path, router = routed(bundle, k=3, metric="cosine", extractor="org/encoder@1, CLS", preprocessing="resized")
    assert (router.tasks, router.k, router.metric) == (TASKS, 3, "cosine")
    assert (router.extractor, router.preprocessing) == ("org/encoder@1, CLS", "resized")
    for number, task in enumerate(TASKS):
        assert np.array_equal(router.features[task], samples(number, 30 + number))
    assert tsw.validate(path).ok
    with tsw.open(path) as file, tsw.open(bundle) as before:
        assert file.content_id != before.content_id
        for task in TASKS:
            assert file.switch("w", task).content == before.switch("w", task).content
        assert before.router is None


def test_half_floats_stay_half_floats_and_wide_ones_are_rounded(bundle: Path) -> None:
    given = {"law": samples(0, dtype=np.float16), "art": samples(1, dtype=np.float64)}
    path = tsw.add_router(bundle, bundle.parent / "x.tsw", given)
    with tsw.open(path) as file:
        router = file.router
    assert router is not None
    assert {task: part.dtype for task, part in router.features.items()} == {"law": np.float16, "art": np.float32}
    assert router.weights(samples(2))[:, 2].max() == 0  # no samples, no weight


def test_a_task_is_added_without_the_data_of_others(bundle: Path) -> None:
    path, before = routed(bundle, tasks=("law", "art"), k=4, extractor="e")
    more = tsw.add_router(path, bundle.parent / "more.tsw", {"biology": samples(2)})
    with tsw.open(more) as file:
        router = file.router
    assert router is not None
    assert (router.k, router.extractor, set(router.features)) == (4, "e", set(TASKS))
    assert np.array_equal(router.features["law"], before.features["law"])
    replaced = tsw.add_router(more, bundle.parent / "replaced.tsw", {"law": samples(7, 3)}, k=9)
    with tsw.open(replaced) as file:
        router = file.router
    assert router is not None
    assert (router.k, len(router.features["law"]), len(router.features["art"])) == (9, 3, 31)


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_files_are_taken_apart_and_put_together(bundle: Path, tmp_path: Path, profile: str) -> None:
    path, _ = routed(bundle, k=2, extractor="e", preprocessing="p")
    path = tsw.repack(path, tmp_path / "repacked.tsw", profile=profile)
    parts = [tsw.extract(path, task, tmp_path / f"part-{task}.tsw") for task in TASKS]
    with tsw.open(parts[1]) as file:
        alone = file.router
    assert alone is not None and (alone.tasks, alone.k, set(alone.features)) == (("art",), 2, {"art"})
    again = tsw.bundle(parts, tmp_path / "again.tsw")
    assert again.read_bytes() == path.read_bytes()
    assert tsw.validate(again).ok


def test_files_without_a_router_join_those_with_one(bundle: Path, tmp_path: Path) -> None:
    path, _ = routed(bundle, tasks=("law",))
    law = tsw.extract(path, "law", tmp_path / "routed-law.tsw")
    art = tsw.extract(path, "art", tmp_path / "plain-art.tsw")
    both = tsw.bundle([art, law], tmp_path / "both.tsw")
    with tsw.open(art) as file, tsw.open(both) as together:
        assert file.router is None
        assert together.router is not None
        assert (together.router.tasks, set(together.router.features)) == (("art", "law"), {"law"})


@pytest.mark.parametrize("other", [{"k": 11}, {"metric": "cosine"}, {"extractor": "x"}, {"preprocessing": "x"}])
def test_other_routers_are_not_mixed(bundle: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    one, _ = routed(bundle, "one.tsw", tasks=("law",))
    two, _ = routed(bundle, "two.tsw", tasks=("art",), **other)
    parts = [tsw.extract(one, "law", tmp_path / "1.tsw"), tsw.extract(two, "art", tmp_path / "2.tsw")]
    with pytest.raises(tsw.OptionError, match="expected the router of"):
        tsw.bundle(parts, tmp_path / "both.tsw")
    assert not (tmp_path / "both.tsw").exists()


def test_samples_of_other_widths_are_not_mixed(bundle: Path, tmp_path: Path) -> None:
    one, _ = routed(bundle, "one.tsw", tasks=("law",))
    two = tsw.add_router(bundle, tmp_path / "two.tsw", {"art": samples(1, width=5)})
    parts = [tsw.extract(one, "law", tmp_path / "1.tsw"), tsw.extract(two, "art", tmp_path / "2.tsw")]
    with pytest.raises(tsw.OptionError, match=r"12 numbers a sample.*5 numbers a sample"):
        tsw.bundle(parts, tmp_path / "both.tsw")


NAN = np.full((2, 3), np.nan, np.float32)
BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "at least one task"),
    ({"other": samples(0)}, {}, "no task named 'other'"),
    ({"law": samples(0)[0]}, {}, r"samples as rows, .*found \[12\]"),
    ({"law": samples(0)[:0]}, {}, "from 1 up"),
    ({"law": NAN}, {}, "finite"),
    ({"law": np.zeros((2, 3), np.int64)}, {}, "f16 or f32"),
    ({"law": np.zeros((2, 3), ">f4")}, {}, "f16 or f32"),
    ({"law": samples(0), "art": samples(1, width=5)}, {}, "'law' 12, 'art' 5"),
    ({"law": samples(0)}, {"k": 0}, "from 1 to"),
    ({"law": samples(0)}, {"k": 1.5}, "from 1 to"),
    ({"law": samples(0)}, {"metric": "manhattan"}, "euclidean or cosine"),
]


@pytest.mark.parametrize(("features", "options", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_samples_are_refused(
    bundle: Path, tmp_path: Path, features: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(tsw.TswError, match=message):
        tsw.add_router(bundle, tmp_path / "x.tsw", features, **options)
    assert not (tmp_path / "x.tsw").exists()


def test_words_of_other_samples_are_not_changed(bundle: Path, tmp_path: Path) -> None:
    path, _ = routed(bundle, tasks=("law",), extractor="e")
    with pytest.raises(tsw.OptionError, match="expected that of the other tasks' samples, 'e', found 'f'"):
        tsw.add_router(path, tmp_path / "x.tsw", {"art": samples(1)}, extractor="f")
    tsw.add_router(path, tmp_path / "x.tsw", {"law": samples(1)}, extractor="f")


def test_queries_of_another_width_are_refused(bundle: Path) -> None:
    _, router = routed(bundle, extractor="org/encoder")
    with pytest.raises(tsw.OptionError, match=r"samples of 12 numbers.*found \[4, 5\].*'org/encoder'"):
        router.weights(np.zeros((4, 5)))
    with pytest.raises(tsw.OptionError, match="NaN"):
        router.weights(np.full((1, 12), np.nan))


def test_a_file_is_not_written_over_itself(bundle: Path) -> None:
    with pytest.raises(tsw.OutputError):
        tsw.add_router(bundle, bundle, {"law": samples(0)})
