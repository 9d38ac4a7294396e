"""Routers: findings at their bytes, what is refused, what the writer does not make, and what is read of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import Edited, edit, refused
from numpy.typing import NDArray

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format._checksum import sha256
from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container.index import Index, RouterKeys
from tswitch_format.container.reader import Container
from tswitch_format.container.segments import EncodedArray, EncodedSegment
from tswitch_format.container.tensors import TensorList
from tswitch_format.container.writer import ContainerWriter
from tswitch_format.errors import FormatError, TswError, UnsupportedError

Change = Callable[[Edited], None]
KEYS = RouterKeys(3, "cosine", "größe", "")
VECTORS = Path(__file__).parents[2] / "spec" / "vectors" / "valid"


def features(task: str, shape: tuple[int, ...] = (3, 2), dtype: str = "F32", seed: int = 0) -> EncodedArray:
    """Samples of a task."""
    spec = TensorSpec(task, DTYPE_BY_NAME[dtype], shape)
    raw = np.random.default_rng(seed).integers(0, 60, spec.nbytes, np.uint8).tobytes()
    parts = [EncodedSegment.make(lay.Role.DATA, lay.Codec.RAW, 0, spec.elements, raw)] if spec.elements else []
    return EncodedArray(lay.SharedRole.FEATURES, spec, sha256(raw), parts)


def write(
    path: Path, arrays: list[EncodedArray], keys: RouterKeys | None = KEYS, tasks: tuple[str, ...] = ("t", "u")
) -> Path:
    """A file of two tensors, empty tasks and these arrays."""
    specs = [TensorSpec(name, DTYPE_BY_NAME["F32"], (2,)) for name in "aw"]
    with ContainerWriter(path, Index(TensorList.build(specs), writer="test", router=keys)) as writer:
        for array in arrays:
            writer.add_shared(array)
        for name in tasks:
            writer.begin_task(name, recipe={}, checkpoint={}, metadata={})
        writer.finish()
        writer.commit()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source.tsw", [features("t"), features("u", (1, 2), "F16")])


def field(name: str, value: Any, number: int = 0) -> Change:
    """A field of the record of an array."""

    def change(file: Edited) -> None:
        with file.table(lay.TENSOR, "shared", "tensors") as table:
            table[name][number] = value

    return change


def dims(*values: int) -> Change:
    def change(file: Edited) -> None:
        file.doc["shared"]["dims"] = np.array(values, "<u8").tobytes()

    return change


def key(name: str, value: Any, part: str = "router") -> Change:
    def change(file: Edited) -> None:
        file.doc[part][name] = value

    return change


def gone(*names: str) -> Change:
    def change(file: Edited) -> None:
        part = file.doc
        for name in names[:-1]:
            part = part[name]
        part.pop(names[-1])

    return change


def newer(file: Edited) -> None:
    file.prologue["minor"] = 3


def both(*changes: Change) -> Change:
    def change(file: Edited) -> None:
        for one in changes:
            one(file)

    return change


ARRAY = "shared.tensors[{}]".format
FINDINGS = [
    pytest.param(key("k", 0), "TSW-411", "router.k", None, id="k 0"),
    pytest.param(key("k", (1 << 20) + 1), "TSW-411", "router.k", None, id="k beyond"),
    pytest.param(key("k", (1 << 64) - 1), "TSW-411", "router.k", None, id="k of 64 bits"),
    pytest.param(gone("router"), "TSW-411", "router", None, id="no router"),
    pytest.param(gone("shared"), "TSW-411", "router", None, id="nothing shared"),
    pytest.param(key("names", b"tx", "shared"), "TSW-409", ARRAY(1), 48, id="of no task"),
    pytest.param(key("names", b"tw", "shared"), "TSW-409", ARRAY(1), 48, id="of a tensor"),
    pytest.param(field("dtype", 11), "TSW-409", ARRAY(0), 0, id="BF16"),
    pytest.param(field("dtype", 13, 1), "TSW-409", ARRAY(1), 48, id="F64"),
    pytest.param(field("dtype", 2), "TSW-409", ARRAY(0), 0, id="U8"),
    pytest.param(dims(3, 2, 0, 2), "TSW-409", ARRAY(1), 48, id="no sample"),
    pytest.param(dims(3, 0, 1, 0), "TSW-409", ARRAY(0), 0, id="no numbers"),
    pytest.param(dims(3, 2, 1, 3), "TSW-409", ARRAY(1), 48, id="another width"),
    pytest.param(field("flags", 0, 1), "TSW-406", ARRAY(1) + ".flags", 52, id="no sha256"),
    pytest.param(field("flags", 3), "TSW-406", ARRAY(0) + ".flags", 4, id="a sampled digest"),
]


@pytest.mark.parametrize(("change", "rule", "name", "within"), FINDINGS)
def test_what_is_wrong_is_found_at_its_field(
    change: Change, rule: str, name: str, within: int | None, source: Path, tmp_path: Path
) -> None:
    out = edit(source, tmp_path / "out.tsw", change)
    report = tsw.validate(out, "structure")
    found = next(f for f in report.findings if f.rule == rule)
    assert found.field == name and not report.newer
    if within is not None:
        assert found.offset == out.read_bytes().index(Edited(out).doc["shared"]["tensors"]) + within
    with pytest.raises(FormatError) as caught:
        tsw.open(out)
    assert (caught.value.rule, caught.value.field) == (rule, name)


@pytest.mark.parametrize(
    ("change", "rule", "kind"),
    [
        pytest.param(key("metric", "manhattan"), "TSW-411", UnsupportedError, id="a metric"),
        pytest.param(key("metric", ""), "TSW-411", UnsupportedError, id="no metric"),
        pytest.param(both(newer, key("metric", "manhattan")), "TSW-411", UnsupportedError, id="a metric of 1.3"),
        pytest.param(both(newer, key("k", 0)), "TSW-411", FormatError, id="k 0 of 1.3"),
        pytest.param(key("roles", b"\2\4", "shared"), "TSW-409", UnsupportedError, id="role 4"),
        pytest.param(key("roles", b"\2\1", "shared"), "TSW-409", FormatError, id="a vector of no tensor"),
        pytest.param(key("k", "3"), "TSW-307", FormatError, id="k is a str"),
        pytest.param(key("k", b"3"), "TSW-307", FormatError, id="k is a bin"),
        pytest.param(key("metric", 1), "TSW-307", FormatError, id="metric is a number"),
        pytest.param(key("extractor", b""), "TSW-307", FormatError, id="extractor is a bin"),
        pytest.param(key("more", ""), "TSW-307", FormatError, id="a key"),
        pytest.param(gone("router", "extractor"), "TSW-307", FormatError, id="no extractor"),
        pytest.param(gone("router", "k"), "TSW-307", FormatError, id="no k"),
        pytest.param(key("names", b"tt", "shared"), "TSW-405", FormatError, id="one task twice, which descends"),
        pytest.param(key("tasks", [], "top"), "TSW-409", FormatError, id="no tasks"),
    ],
)
def test_such_a_file_does_not_open(
    change: Change, rule: str, kind: type[FormatError], source: Path, tmp_path: Path
) -> None:
    edited = Edited(source)
    edited.doc["top"] = edited.doc  # so that `key` can set a key of the document itself
    change(edited)
    edited.doc.pop("top")
    refused(edited.write(tmp_path / "out.tsw"), rule, kind)


@pytest.mark.parametrize(
    "k",
    [
        (1 << 20) + 1,
        (1 << 32) - 1,
        1 << 32,
        (1 << 64) - 1,
    ],
)
def test_a_k_beyond_beside_a_content_id(k: int, tmp_path: Path) -> None:
    out = edit(VECTORS / "router-one.tsw", tmp_path / "out.tsw", key("k", k))
    for level in ("structure", "full"):
        assert "TSW-411" in {one.rule for one in tsw.validate(out, level).findings}  # type: ignore[arg-type]


def test_all_that_is_wrong_with_features_is_named(source: Path, tmp_path: Path) -> None:
    out = edit(source, tmp_path / "out.tsw", field("dtype", 11), key("names", b"tx", "shared"), key("k", 0))
    found = [(one.rule, one.field) for one in tsw.validate(out, "structure").findings]
    assert {("TSW-409", "shared.tensors[0]"), ("TSW-409", "shared.tensors[1]"), ("TSW-411", "router.k")} <= set(found)


def test_later_minor_versions_may_add_to_the_router(source: Path, tmp_path: Path) -> None:
    out = edit(source, tmp_path / "out.tsw", newer, key("more", [1]))
    assert tsw.validate(out).ok


def test_samples_of_other_content_are_found_when_they_are_decoded(source: Path, tmp_path: Path) -> None:
    out = edit(source, tmp_path / "out.tsw", field("sha256", np.void(bytes(32)), 1))
    for level, rules in (("structure", []), ("checksums", []), ("full", ["TSW-804"])):
        found = tsw.validate(out, level).findings  # type: ignore[arg-type]
        assert [finding.rule for finding in found if finding.rule != "TSW-802"] == rules
    finding = next(one for one in tsw.validate(out).findings if one.rule == "TSW-804")
    assert finding.field == "shared.tensors[1].sha256"


@pytest.mark.parametrize(
    ("arrays", "keys", "rule"),
    [
        pytest.param([], KEYS, "TSW-411", id="a router without features"),
        pytest.param([features("t")], None, "TSW-411", id="features without a router"),
        pytest.param([features("t")], RouterKeys(0, "cosine", "", ""), "TSW-411", id="k 0"),
        pytest.param([features("t")], RouterKeys(1, "dot", "", ""), "TSW-411", id="a metric"),
        pytest.param([features("x")], KEYS, "TSW-409", id="of no task"),
        pytest.param([features("a")], KEYS, "TSW-409", id="of a tensor"),
        pytest.param([features("t"), features("t", (4, 2))], KEYS, "TSW-409", id="a task twice"),
        pytest.param([features("t", dtype="F16"), features("t")], KEYS, "TSW-409", id="a task twice, other types"),
        pytest.param([features("t", dtype="F64")], KEYS, "TSW-409", id="F64"),
        pytest.param([features("t", (6,))], KEYS, "TSW-409", id="one dimension"),
        pytest.param([features("t", ())], KEYS, "TSW-409", id="no dimension"),
        pytest.param([features("t", (3, 2, 1))], KEYS, "TSW-409", id="three dimensions"),
        pytest.param([features("t", (0, 2))], KEYS, "TSW-409", id="no sample"),
        pytest.param([features("t", (3, 0))], KEYS, "TSW-409", id="no number"),
        pytest.param([features("t"), features("u", (2, 3))], KEYS, "TSW-409", id="another width"),
        pytest.param([features("u"), features("t")], KEYS, "TSW-405", id="names descend"),
    ],
)
def test_the_writer_makes_nothing_that_a_reader_would_refuse(
    arrays: list[EncodedArray], keys: RouterKeys | None, rule: str, tmp_path: Path
) -> None:
    with pytest.raises(TswError, match=rule):
        write(tmp_path / "a.tsw", arrays, keys)
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_says_of_its_router(source: Path) -> None:
    container = Container(source)
    try:
        assert container.index.router == KEYS
        assert container.features("x") is None and container.features("a") is None
        for task, shape in (("t", (3, 2)), ("u", (1, 2))):
            found = container.features(task)
            assert found is not None and found.spec.shape == shape and found.role is lay.SharedRole.FEATURES
    finally:
        container.close()


@pytest.mark.parametrize("name", sorted(path.stem for path in VECTORS.glob("router-*.tsw")))
def test_samples_are_those_of_the_arrays(name: str) -> None:
    container = Container(VECTORS / f"{name}.tsw")
    try:
        wanted: dict[str, NDArray[Any]] = {
            array.spec.name: np.concatenate([array.data(chunk) for chunk in range(array.chunks)])
            for array in container.shared_arrays()
            if array.role is lay.SharedRole.FEATURES
        }
    finally:
        container.close()
    with tsw.open(VECTORS / f"{name}.tsw") as file:
        router = file.router
        assert router is not None
        assert {task: array.tobytes() for task, array in router.features.items()} == {
            task: array.tobytes() for task, array in wanted.items()
        }
        assert {array.shape[1] for array in router.features.values()} == {router.width}


@pytest.mark.parametrize("profile", lay.PROFILES)
@pytest.mark.parametrize("name", ["router-masked", "router-masked-first", "router-masked-between", "router-codecs"])
def test_another_profile_has_the_same_content(name: str, profile: str, tmp_path: Path) -> None:
    out = tmp_path / "out.tsw"
    tsw.repack(VECTORS / f"{name}.tsw", out, profile=profile, threads=1)
    assert tsw.validate(out).ok
    with tsw.open(out) as found, tsw.open(VECTORS / f"{name}.tsw") as before:
        assert found.content_id == before.content_id is not None
        assert found.router is not None


def test_the_content_id_depends_on_the_router(source: Path, tmp_path: Path) -> None:
    ids = []
    for keys in (KEYS, RouterKeys(4, "cosine", "größe", ""), RouterKeys(3, "euclidean", "größe", ""), None):
        out = tmp_path / f"{len(ids)}.tsw"
        specs = [TensorSpec("a", DTYPE_BY_NAME["F32"], (0,))]
        records = TensorList.build(specs)
        records.records["flags"], records.records["sha256"] = lay.HAS_SHA256, np.void(sha256(b""))
        with ContainerWriter(out, Index(records, writer="test", router=keys)) as writer:
            if keys is not None:
                writer.add_shared(features("t"))
            writer.begin_task("t", recipe={}, checkpoint={}, metadata={})
            writer.finish()
            writer.commit()
        assert tsw.validate(out).ok
        with tsw.open(out) as file:
            ids.append(file.content_id)
    assert None not in ids and len(set(ids)) == len(ids)
