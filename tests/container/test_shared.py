"""Shared arrays and masked entries: findings at their bytes, what the writer refuses, and files that are put together."""

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
from tswitch_format.container.digest import EntryDigest
from tswitch_format.container.index import Index
from tswitch_format.container.reader import Container
from tswitch_format.container.segments import EncodedArray, EncodedEntry, EncodedSegment
from tswitch_format.container.tensors import TensorList
from tswitch_format.container.writer import ContainerWriter
from tswitch_format.errors import FormatError, TswError, UnsupportedError

BASE = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(7, np.float16), "n": np.arange(3)}
Arrays = dict[str, NDArray[Any]]


def vectors(seed: int) -> Arrays:
    """Vectors of both float tensors: `a` has one of F16, `b` one of F32."""
    rng = np.random.default_rng(seed)
    return {"a": rng.standard_normal((3, 4)).astype(np.float16), "b": rng.standard_normal(7).astype(np.float32)}


def make(path: Path, *tasks: str, seed: int = 0, only: str = "ab", **options: Any) -> Path:
    """Tasks of masks over the vectors of a seed."""
    given = {name: tsw.GivenVector.of_array(array) for name, array in vectors(seed).items() if name in only}
    made = []
    for number, task in enumerate(tasks or ("t",)):
        flags = {name: np.arange(BASE[name].size).reshape(BASE[name].shape) % (number + 2) == 0 for name in given}
        masks = {name: tsw.GivenMask.of_flags(on, 1 + number) for name, on in flags.items()}
        made.append(tsw.GivenTask(task, masks))
    tsw.build(BASE, path, made, vectors=given, threads=1, **options)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source.tsw", "t", "u")


def shared_tensors(file: Edited) -> Any:
    return file.table(lay.TENSOR, "shared", "tensors")


def field(name: str, value: Any, number: int = 0) -> Callable[[Edited], None]:
    """A field of the record of a shared array."""

    def change(file: Edited) -> None:
        with shared_tensors(file) as table:
            table[name][number] = value

    return change


def key(name: str, value: Any) -> Callable[[Edited], None]:
    """A key of `shared`."""

    def change(file: Edited) -> None:
        file.doc["shared"][name] = value

    return change


def entry(name: str, value: Any, number: int = 0) -> Callable[[Edited], None]:
    """A field of an entry of the first task."""

    def change(file: Edited) -> None:
        with file.entries() as table:
            table[name][number] = value

    return change


def segment(name: str, value: int) -> Callable[[Edited], None]:
    """A field of the first segment of the shared arrays."""

    def change(file: Edited) -> None:
        with file.table(lay.SEGMENT, "shared", "segments") as table:
            table[name][0] = value

    return change


CASES = [
    pytest.param(field("flags", 0), "TSW-406", "shared.tensors[0].flags", 4, id="no sha256"),
    pytest.param(field("flags", 3, 1), "TSW-406", "shared.tensors[1].flags", 4, id="a sampled digest"),
    pytest.param(field("dtype", 5, 1), "TSW-409", "shared.tensors[1]", 0, id="an integer vector"),
    pytest.param(entry("vector", 1), "TSW-507", "tasks[0].entries[0].vector", 12, id="the vector of another tensor"),
    pytest.param(entry("vector", 2, 1), "TSW-507", "tasks[0].entries[1].vector", 12, id="no such vector"),
    pytest.param(entry("knob", np.inf), "TSW-507", "tasks[0].entries[0].knob", 8, id="an infinite knob"),
    pytest.param(entry("active", 13), "TSW-507", "tasks[0].entries[0].active", 16, id="active beyond"),
    pytest.param(entry("dtype", 7), "TSW-507", "tasks[0].entries[0].dtype", 5, id="an integer dtype"),
    pytest.param(entry("tensor", 2, 1), "TSW-507", "tasks[0].entries[1].tensor", 0, id="an integer tensor"),
    pytest.param(segment("count", 3), "TSW-602", "shared.segments[0].count", 16, id="a count"),
    pytest.param(segment("role", 1), "TSW-601", "shared.segments[0].role", 20, id="a role"),
    pytest.param(segment("codec", 2), "TSW-606", "shared.segments[0].codec", 21, id="a codec"),
    pytest.param(segment("offset", 65), "TSW-603", "shared.segments[0].offset", 0, id="an offset"),
    pytest.param(segment("reserved", 1), "TSW-107", "shared.segments[0].reserved", 23, id="a reserved field"),
]
TABLES = {"shared.tensors": (lay.TENSOR, "shared", "tensors"), "shared.segments": (lay.SEGMENT, "shared", "segments")}
TABLES["tasks[0].entries"] = (lay.ENTRY, "tasks", "entries")


@pytest.mark.parametrize(("change", "rule", "name", "within"), CASES)
def test_what_is_wrong_is_found_at_its_byte(
    change: Callable[[Edited], None], rule: str, name: str, within: int, source: Path, tmp_path: Path
) -> None:
    out = edit(source, tmp_path / "out.tsw", change)
    found = next(f for f in tsw.validate(out, "structure").findings if f.rule == rule)
    assert found.field == name
    table, _, row = name.partition("[") if name.startswith("shared") else (name[:16], "", name[17:])
    record, *place = TABLES[table]
    doc = Edited(out).doc
    held = doc["shared"][place[1]] if place[0] == "shared" else doc["tasks"][0]["entries"]
    number = int(row.partition("]")[0])
    assert found.offset == out.read_bytes().index(held) + number * record.itemsize + within


@pytest.mark.parametrize(
    ("change", "rule", "kind"),
    [
        pytest.param(key("roles", b"\1\4"), "TSW-409", UnsupportedError, id="role 4"),
        pytest.param(key("roles", b"\1\3"), "TSW-409", FormatError, id="coefficients of one dimension"),
        pytest.param(key("roles", b"\1\2"), "TSW-409", FormatError, id="features of no task"),
        pytest.param(key("roles", b"\0\1"), "TSW-409", UnsupportedError, id="role 0"),
        pytest.param(key("roles", b"\1"), "TSW-409", FormatError, id="too few roles"),
        pytest.param(key("roles", b"\1\1\1"), "TSW-409", FormatError, id="too many roles"),
        pytest.param(key("names", b"ac"), "TSW-409", FormatError, id="no such tensor"),
        pytest.param(key("names", b"ba"), "TSW-405", FormatError, id="names descend"),
        pytest.param(key("more", 0), "TSW-307", FormatError, id="another key"),
        pytest.param(entry("factor_dtype", 1), "TSW-507", FormatError, id="a factor type"),
        pytest.param(entry("kind", 9), "TSW-503", UnsupportedError, id="kind 9"),
        pytest.param(lambda file: file.doc.pop("shared"), "TSW-507", FormatError, id="nothing shared"),
    ],
)
def test_such_a_file_does_not_open(
    change: Callable[[Edited], None], rule: str, kind: type[FormatError], source: Path, tmp_path: Path
) -> None:
    refused(edit(source, tmp_path / "out.tsw", change), rule, kind)


def test_an_unused_array_is_named(source: Path, tmp_path: Path) -> None:
    def change(file: Edited) -> None:
        for task in range(2):
            with file.entries(task) as table:
                table["vector"] = 0

    out = edit(source, tmp_path / "out.tsw", change)
    assert {finding.rule for finding in tsw.validate(out).findings} == {"TSW-507"}  # of the wrong tensor before all

    def without(file: Edited) -> None:
        for task in range(2):
            with file.entries(task) as table:
                table["kind"][1], table["vector"][1], table["knob"][1], table["active"][1] = lay.Kind.REMOVED, 0, 0, 0

    out = edit(source, tmp_path / "out.tsw", without)
    found = tsw.validate(out, "structure").findings[0]
    assert (found.rule, found.field) == ("TSW-410", "shared.tensors[1]")
    assert found.offset == out.read_bytes().index(Edited(out).doc["shared"]["tensors"]) + lay.TENSOR.itemsize


def test_a_vector_of_other_content_is_found_when_it_is_decoded(source: Path, tmp_path: Path) -> None:
    out = edit(source, tmp_path / "out.tsw", field("sha256", np.void(bytes(32))))
    for level, rules in (("structure", []), ("checksums", []), ("full", ["TSW-804"])):
        found = tsw.validate(out, level).findings  # type: ignore[arg-type]
        assert [finding.rule for finding in found if finding.rule != "TSW-801"] == rules
    finding = next(one for one in tsw.validate(out).findings if one.rule == "TSW-804")
    assert finding.field == "shared.tensors[0].sha256"
    assert finding.expected == bytes(32).hex() and finding.found == sha256(vectors(0)["a"].tobytes()).hex()
    with pytest.raises(FormatError, match="TSW-80"):
        tsw.open(out, verify="full")


def test_later_minor_versions_may_add_to_shared(source: Path, tmp_path: Path) -> None:
    def newer(file: Edited) -> None:
        file.prologue["minor"] = 3
        file.doc["shared"]["more"] = [1]
        with shared_tensors(file) as table:
            table["flags"] |= 1 << 31

    out = edit(source, tmp_path / "out.tsw", newer)
    assert tsw.validate(out).ok
    edit(source, out, newer, key("roles", b"\1\5"))
    refused(out, "TSW-409", UnsupportedError)


# --- writing ---------------------------------------------------------------------------------------------------------


def encoded(name: str, raw: bytes, dtype: str = "F32") -> EncodedArray:
    """A vector of two elements."""
    spec = TensorSpec(name, DTYPE_BY_NAME[dtype], (2,))
    parts = [EncodedSegment.make(lay.Role.DATA, lay.Codec.RAW, 0, 2, raw)]
    return EncodedArray(lay.SharedRole.VECTOR, spec, sha256(raw), parts)


def masked(name: str, vector: int, array: EncodedArray) -> EncodedEntry:
    """A mask of the first of two elements."""
    spec = TensorSpec(name, DTYPE_BY_NAME["F32"], (2,))
    digest = EntryDigest(lay.Kind.MASKED, spec.dtype, spec.shape)
    digest.masked(np.float32(1), array.spec.dtype.id, array.sha256)
    digest.update(b"\1")
    parts = [EncodedSegment.make(lay.Role.MASK, lay.Codec.BITMAP, 0, 1, b"\1")]
    return EncodedEntry(
        spec, lay.Kind.MASKED, spec.dtype, parts, digest.digest(), knob=np.float32(1), active=1, vector=vector
    )


def write(path: Path, arrays: list[EncodedArray], tasks: list[list[tuple[str, int]]]) -> Path:
    """A file of a base of `a` and `b` with these vectors, and tasks of (tensor, vector)."""
    specs = [TensorSpec(name, DTYPE_BY_NAME["F32"], (2,)) for name in "ab"]
    with ContainerWriter(path, Index(TensorList.build(specs), writer="test")) as writer:
        for number, array in enumerate(arrays):
            assert writer.add_shared(array) == number
        for number, entries in enumerate(tasks):
            writer.begin_task(str(number), recipe={}, checkpoint={}, metadata={})
            for name, vector in entries:
                writer.add(masked(name, vector, arrays[min(vector, len(arrays) - 1)]))
        writer.finish()
        writer.commit()
    return path


ONE, TWO = sorted([encoded("a", bytes(8)), encoded("a", b"\0\0\0\0\0\0\x80\x3f")], key=lambda array: array.sha256)
OF_B, SHORT = encoded("b", bytes(8)), encoded("a", bytes(4), "F16")


def test_the_writer_keeps_the_order_that_it_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsw", [SHORT, ONE, TWO, OF_B], [[("a", 0)], [("a", 1), ("b", 3)], [("a", 2)]])
    assert tsw.validate(path).ok
    container = Container(path)
    try:
        assert [array.spec.name for array in container.shared_arrays()] == ["a", "a", "a", "b"]
        assert [array.sha256 for array in container.shared_arrays()] == [x.sha256 for x in (SHORT, ONE, TWO, OF_B)]
        shared, first = container.index.shared.segments, container.index.tasks[0].segments
        assert shared["offset"][0] == lay.FRAME and first["offset"][0] == shared["offset"][-1] + 8
    finally:
        container.close()


@pytest.mark.parametrize(
    ("arrays", "tasks", "rule"),
    [
        pytest.param([TWO, ONE], [[("a", 0)], [("a", 1)]], "TSW-405", id="by SHA-256"),
        pytest.param([ONE, ONE], [[("a", 0)], [("a", 1)]], "TSW-405", id="twice"),
        pytest.param([ONE, SHORT], [[("a", 0)], [("a", 1)]], "TSW-405", id="by dtype"),
        pytest.param([OF_B, ONE], [[("a", 1), ("b", 0)]], "TSW-405", id="by name"),
        pytest.param([ONE, TWO], [[("a", 0)]], "TSW-410", id="unused"),
        pytest.param([ONE], [], "TSW-410", id="no task"),
        pytest.param([encoded("c", bytes(8))], [], "TSW-409", id="no such tensor"),
        pytest.param([encoded("a", bytes(8), "I32")], [[("a", 0)]], "TSW-409", id="integers"),
        pytest.param([ONE], [[("b", 0)]], "TSW-507", id="the vector of another"),
        pytest.param([ONE], [[("a", 1)]], "TSW-507", id="no such vector"),
    ],
)
def test_the_writer_makes_nothing_that_a_reader_would_refuse(
    arrays: list[EncodedArray], tasks: list[list[tuple[str, int]]], rule: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tsw"
    with pytest.raises(TswError, match=rule):
        write(path, arrays, tasks)
    assert list(tmp_path.iterdir()) == []


# --- files put together ------------------------------------------------------------------------------------------------


def names_and_digests(path: Path) -> list[tuple[str, bytes]]:
    container = Container(path)
    try:
        return [(array.spec.name, array.sha256 or b"") for array in container.shared_arrays()]
    finally:
        container.close()


def applied(path: Path, task: str) -> dict[str, bytes]:
    with tsw.open(path) as file:
        return {name: file.switch(name, task).apply(BASE[name]).tobytes() for name in file.keys(task)}


@pytest.mark.parametrize("profile", lay.PROFILES)
def test_equal_vectors_are_stored_once(profile: str, tmp_path: Path) -> None:
    one = make(tmp_path / "one.tsw", "t", "u", profile=profile)
    two = make(tmp_path / "two.tsw", "v", profile=profile)
    other = make(tmp_path / "other.tsw", "w", seed=1, only="a", profile=profile)
    out = tsw.bundle([one, two, other], tmp_path / "all.tsw")
    assert tsw.validate(out).ok
    found = names_and_digests(out)
    assert len(found) == 3 and found == sorted(found)
    assert set(found) == {*names_and_digests(one), *names_and_digests(other)}
    for path, task in ((one, "t"), (one, "u"), (two, "v"), (other, "w")):
        assert applied(out, task) == applied(path, task)


def test_an_extracted_task_has_its_own_vectors_only(tmp_path: Path) -> None:
    one = make(tmp_path / "one.tsw", "t", only="a")
    two = make(tmp_path / "two.tsw", "u", seed=1)
    both = tsw.bundle([one, two], tmp_path / "both.tsw")
    for task, path in (("t", one), ("u", two)):
        out = tmp_path / f"{task}.tsw"
        tsw.extract(both, task, out)
        assert names_and_digests(out) == names_and_digests(path) and tsw.validate(out).ok
        with tsw.open(out) as a, tsw.open(path) as b:
            assert a.content_id == b.content_id is not None


def test_the_profile_changes_nothing_in_the_content(source: Path, tmp_path: Path) -> None:
    mapped, back = tmp_path / "mapped.tsw", tmp_path / "back.tsw"
    tsw.repack(source, mapped, profile="mapped", threads=1)
    tsw.repack(mapped, back, profile="archive", threads=1)
    assert back.read_bytes() == source.read_bytes()
    assert names_and_digests(mapped) == names_and_digests(source)
    with tsw.open(mapped) as a, tsw.open(source) as b:
        assert a.content_id == b.content_id is not None


def test_a_knob_of_one_gives_what_base_and_vector_add_up_to(source: Path) -> None:
    with tsw.open(source) as file:
        for name, vector in vectors(0).items():
            switch = file.switch(name, "t")
            base = BASE[name].astype(np.float32)
            wanted = (base + switch.mask() * vector.astype(np.float32)).astype(BASE[name].dtype)
            assert switch.apply(BASE[name]).tobytes() == wanted.tobytes()
