"""Tables of coefficients: findings at their bytes, what is refused, what the writer does not make, and the content id."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from container_files import Edited, edit, refused

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format._checksum import sha256
from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container.index import CoefficientKeys, Index
from tswitch_format.container.reader import Container
from tswitch_format.container.segments import EncodedArray, EncodedSegment
from tswitch_format.container.tensors import Digests, TensorList
from tswitch_format.container.writer import ContainerWriter
from tswitch_format.errors import FormatError, TswError, UnknownNameError, UnsupportedError

Change = Callable[[Edited], None]
BASE = ("a", "b", "w")
TABLE, LESS = "tint", "näh"  # of four bytes each


def array(name: str, shape: tuple[int, ...] = (2, 2), dtype: str = "F32", values: Any = None) -> EncodedArray:
    """Elements of a table: 0, 1, 2 and so on, or those given."""
    spec = TensorSpec(name, DTYPE_BY_NAME[dtype], shape)
    made = np.arange(spec.elements) if values is None else np.array(values)
    raw = made.astype(spec.dtype.storage).tobytes()
    parts = [EncodedSegment.make(lay.Role.DATA, lay.Codec.RAW, 0, spec.elements, raw)] if spec.elements else []
    return EncodedArray(lay.SharedRole.COEFFICIENTS, spec, sha256(raw), parts)


def keys(rows: Sequence[int] = (0, 2), tasks: Sequence[str] = ("t", "u"), clamp: Any = None) -> CoefficientKeys:
    return CoefficientKeys(np.array(rows, "<u4"), tuple(tasks), clamp)


def write(
    path: Path,
    arrays: Sequence[EncodedArray],
    tables: Mapping[str, CoefficientKeys],
    *,
    tasks: Sequence[str] = ("t", "u"),
    digests: bool = False,
) -> Path:
    """A file of three tensors, empty tasks and these tables."""
    specs = [TensorSpec(name, DTYPE_BY_NAME["F32"], (0,)) for name in BASE]
    base = TensorList.build(specs, [Digests(sha256(b""), None)] * len(specs) if digests else None)
    with ContainerWriter(path, Index(base, writer="test", coefficients=tables)) as writer:
        for one in arrays:
            writer.add_shared(one)
        for name in tasks:
            writer.begin_task(name, recipe={}, checkpoint={}, metadata={})
        writer.finish()
        writer.commit()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of two tables, the first by name of one row and without a clamp."""
    tables = {TABLE: keys(clamp=(0, 1)), LESS: keys((1,), ("u",))}
    return write(tmp_path / "source.tsw", [array(LESS, (1, 1)), array(TABLE)], tables)


def said(what: str, value: Any, table: str = TABLE) -> Change:
    """Another value in the map of a table; None takes it out."""

    def change(file: Edited) -> None:
        if value is None:
            del file.doc["coefficients"][table][what]
        else:
            file.doc["coefficients"][table][what] = value

    return change


def field(name: str, value: Any, number: int = 1) -> Change:
    """A field of the record of an array; that of TABLE is the second."""

    def change(file: Edited) -> None:
        with file.table(lay.TENSOR, "shared", "tensors") as table:
            table[name][number] = value

    return change


def shared(name: str, value: Any) -> Change:
    def change(file: Edited) -> None:
        file.doc["shared"][name] = value

    return change


def dims(*values: int) -> Change:
    return shared("dims", np.array(values, "<u8").tobytes())


def whole(value: Any) -> Change:
    def change(file: Edited) -> None:
        file.doc["coefficients"] = value

    return change


def renamed(file: Edited) -> None:
    file.doc["coefficients"]["other"] = file.doc["coefficients"].pop(TABLE)


def more(file: Edited) -> None:
    file.doc["coefficients"]["more"] = file.doc["coefficients"][TABLE]


def one_less(file: Edited) -> None:
    del file.doc["coefficients"][TABLE]


def gone(name: str) -> Change:
    def change(file: Edited) -> None:
        del file.doc[name]

    return change


def newer(file: Edited) -> None:
    file.prologue["minor"] = 3


def rows(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def clamp(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


ARRAY = "shared.tensors[{}]".format
OF = f"coefficients[{TABLE!r}]"
FINDINGS = [
    pytest.param(said("rows", rows(0, 3)), "TSW-412", f"{OF}.rows[1]", "rows", 4, id="a row of no tensor"),
    pytest.param(said("rows", rows(2, 0)), "TSW-412", f"{OF}.rows[1]", "rows", 4, id="rows descend"),
    pytest.param(said("rows", rows(2, 2)), "TSW-412", f"{OF}.rows[1]", "rows", 4, id="a row twice"),
    pytest.param(said("rows", rows((1 << 32) - 1, 0)), "TSW-412", f"{OF}.rows[0]", "rows", 0, id="a row far beyond"),
    pytest.param(said("rows", rows(0)), "TSW-412", f"{OF}.rows", "rows", 0, id="too few rows"),
    pytest.param(said("rows", rows(0, 1, 2)), "TSW-412", f"{OF}.rows", "rows", 0, id="too many rows"),
    pytest.param(said("rows", b""), "TSW-412", f"{OF}.rows", None, None, id="no rows"),
    pytest.param(said("rows", rows(0, 2) + b"\0"), "TSW-412", f"{OF}.rows", "rows", 0, id="rows and a byte"),
    pytest.param(said("tasks", ["t"]), "TSW-412", f"{OF}.tasks", None, None, id="too few tasks"),
    pytest.param(said("tasks", ["t", "u", "u"]), "TSW-412", f"{OF}.tasks", None, None, id="too many tasks"),
    pytest.param(said("tasks", []), "TSW-412", f"{OF}.tasks", None, None, id="no tasks"),
    pytest.param(said("tasks", ["t", "t"]), "TSW-412", f"{OF}.tasks[1]", None, None, id="a task twice"),
    pytest.param(said("tasks", ["x", "u"]), "TSW-412", f"{OF}.tasks[0]", None, None, id="no task of the file"),
    pytest.param(said("tasks", ["t", "w"]), "TSW-412", f"{OF}.tasks[1]", None, None, id="a tensor for a task"),
    pytest.param(said("clamp", clamp(1, 0)), "TSW-412", f"{OF}.clamp", None, None, id="a clamp the wrong way"),
    pytest.param(said("clamp", clamp(0, np.inf)), "TSW-412", f"{OF}.clamp", None, None, id="a clamp to infinity"),
    pytest.param(said("clamp", clamp(-np.inf, 0)), "TSW-412", f"{OF}.clamp", None, None, id="a clamp from infinity"),
    pytest.param(said("clamp", clamp(np.nan, 1)), "TSW-412", f"{OF}.clamp", None, None, id="a clamp from NaN"),
    pytest.param(said("clamp", clamp(0)), "TSW-412", f"{OF}.clamp", "clamp", 0, id="half a clamp"),
    pytest.param(said("clamp", clamp(0, 1) + b"\0"), "TSW-412", f"{OF}.clamp", "clamp", 0, id="a clamp and a byte"),
    pytest.param(said("clamp", b""), "TSW-412", f"{OF}.clamp", None, None, id="an empty clamp"),
    pytest.param(one_less, "TSW-412", ARRAY(1), "tensors", 48, id="an array without a table"),
    pytest.param(gone("coefficients"), "TSW-412", ARRAY(0), "tensors", 0, id="no tables"),
    pytest.param(whole({}), "TSW-412", "coefficients", None, None, id="empty"),
    pytest.param(more, "TSW-412", "coefficients['more']", None, None, id="a table without an array"),
    pytest.param(renamed, "TSW-412", ARRAY(1), "tensors", 48, id="a table of another name"),
    pytest.param(gone("shared"), "TSW-412", f"coefficients[{LESS!r}]", None, None, id="nothing shared"),
    pytest.param(field("dtype", 10), "TSW-409", ARRAY(1), "tensors", 48, id="F16"),
    pytest.param(field("dtype", 13), "TSW-409", ARRAY(1), "tensors", 48, id="F64"),
    pytest.param(field("dtype", 6), "TSW-409", ARRAY(1), "tensors", 48, id="U32"),
    pytest.param(dims(1, 1, 0, 2), "TSW-409", ARRAY(1), "tensors", 48, id="no row in the array"),
    pytest.param(dims(1, 1, 2, 0), "TSW-409", ARRAY(1), "tensors", 48, id="no column in the array"),
    pytest.param(shared("names", LESS.encode() * 2), "TSW-409", ARRAY(1), "tensors", 48, id="two of one name"),
    pytest.param(field("flags", 0), "TSW-406", ARRAY(1) + ".flags", "tensors", 52, id="no sha256"),
]


@pytest.mark.parametrize(("change", "rule", "name", "near", "within"), FINDINGS)
def test_what_is_wrong_is_found_at_its_field(
    change: Change, rule: str, name: str, near: str | None, within: int | None, source: Path, tmp_path: Path
) -> None:
    out = edit(source, tmp_path / "out.tsw", change)
    report = tsw.validate(out, "structure")
    found = next(f for f in report.findings if f.rule == rule)
    assert found.field == name and not report.newer
    if near is not None and within is not None:
        doc = Edited(out).doc
        part: bytes = doc["shared"]["tensors"] if near == "tensors" else doc["coefficients"][TABLE][near]
        head = msgpack.packb(near) + msgpack.packb(part)[: -len(part)]
        assert found.offset == out.read_bytes().index(head + part) + len(head) + within
    with pytest.raises(FormatError) as caught:
        tsw.open(out)
    assert (caught.value.rule, caught.value.field) == (rule, name)


@pytest.mark.parametrize(
    ("change", "rule", "kind"),
    [
        pytest.param(whole([]), "TSW-307", FormatError, id="tables are an array"),
        pytest.param(whole(b""), "TSW-307", FormatError, id="tables are a bin"),
        pytest.param(whole({TABLE: [], LESS: []}), "TSW-307", FormatError, id="a table is an array"),
        pytest.param(said("rows", [0, 2]), "TSW-307", FormatError, id="rows are an array"),
        pytest.param(said("rows", None), "TSW-307", FormatError, id="no key rows"),
        pytest.param(said("tasks", b"tu"), "TSW-307", FormatError, id="tasks are a bin"),
        pytest.param(said("tasks", None), "TSW-307", FormatError, id="no key tasks"),
        pytest.param(said("tasks", ["t", 1]), "TSW-307", FormatError, id="a task is a number"),
        pytest.param(said("tasks", ["t", b"u"]), "TSW-307", FormatError, id="a task is a bin"),
        pytest.param(said("clamp", [0, 1]), "TSW-307", FormatError, id="a clamp is an array"),
        pytest.param(said("clamp", 0), "TSW-307", FormatError, id="a clamp is a number"),
        pytest.param(said("more", ""), "TSW-307", FormatError, id="a key"),
        pytest.param(shared("roles", b"\3\4"), "TSW-409", UnsupportedError, id="role 4"),
        pytest.param(shared("roles", b"\3\2"), "TSW-409", FormatError, id="features of no task"),
        pytest.param(shared("roles", b"\3\1"), "TSW-409", FormatError, id="a vector of no tensor"),
        pytest.param(shared("names", b"tintn\xc3\xa4h"), "TSW-405", FormatError, id="names descend"),
    ],
)
def test_such_a_file_does_not_open(
    change: Change, rule: str, kind: type[FormatError], source: Path, tmp_path: Path
) -> None:
    refused(edit(source, tmp_path / "out.tsw", change), rule, kind)


def test_later_minor_versions_may_add_to_a_table(source: Path, tmp_path: Path) -> None:
    assert tsw.validate(edit(source, tmp_path / "out.tsw", newer, said("more", [1]))).ok
    refused(edit(source, tmp_path / "bad.tsw", newer, said("rows", rows(2, 0))), "TSW-412")


def test_all_that_is_wrong_with_a_table_is_named(source: Path, tmp_path: Path) -> None:
    changes = (said("rows", rows(3, 0)), said("tasks", ["x", "x"]), said("clamp", clamp(2, 1)))
    out = edit(source, tmp_path / "out.tsw", *changes)
    found = [(one.rule, one.field) for one in tsw.validate(out, "structure").findings]
    places = ("rows[0]", "rows[1]", "tasks[0]", "tasks[1]", "clamp")
    assert found == [("TSW-412", f"{OF}.{place}") for place in places]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_coefficients_that_are_not_finite_are_found_when_they_are_decoded(wrong: float, tmp_path: Path) -> None:
    out = write(tmp_path / "a.tsw", [array(TABLE, values=[0, 1, wrong, 1])], {TABLE: keys()})
    for level in ("structure", "checksums"):
        assert tsw.validate(out, level).ok  # type: ignore[arg-type]
    [finding] = tsw.validate(out).findings
    assert (finding.rule, finding.field, finding.offset) == ("TSW-705", "shared.segments[0]", 64)
    assert (finding.expected, finding.found) == ("finite coefficients", "NaN or infinity")
    with tsw.open(out) as file, pytest.raises(FormatError, match="TSW-705"):
        file.tables[TABLE]
    for make in (lambda new: tsw.repack(out, new, profile="mapped"), lambda new: tsw.open(out, verify="full")):
        with pytest.raises(FormatError, match="TSW-705"):
            make(tmp_path / "new.tsw")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tsw"]


def test_coefficients_of_other_content_are_found_when_they_are_decoded(source: Path, tmp_path: Path) -> None:
    out = edit(source, tmp_path / "out.tsw", field("sha256", np.void(bytes(32))))
    for level, found in (("structure", []), ("checksums", []), ("full", ["TSW-804"])):
        assert [one.rule for one in tsw.validate(out, level).findings] == found  # type: ignore[arg-type]
    assert tsw.validate(out).findings[0].field == "shared.tensors[1].sha256"


@pytest.mark.parametrize(
    ("arrays", "tables", "rule"),
    [
        pytest.param([], {TABLE: keys()}, "TSW-412", id="a table without an array"),
        pytest.param([array(TABLE)], {}, "TSW-412", id="an array without a table"),
        pytest.param([array(TABLE)], {TABLE: keys(), "x": keys()}, "TSW-412", id="one array for two tables"),
        pytest.param([array(TABLE)], {TABLE: keys((0, 3))}, "TSW-412", id="a row of no tensor"),
        pytest.param([array(TABLE)], {TABLE: keys((2, 0))}, "TSW-412", id="rows descend"),
        pytest.param([array(TABLE)], {TABLE: keys((0,))}, "TSW-412", id="too few rows"),
        pytest.param([array(TABLE)], {TABLE: keys(tasks=("t", "x"))}, "TSW-412", id="a task of no file"),
        pytest.param([array(TABLE)], {TABLE: keys(tasks=("t", "t"))}, "TSW-412", id="a task twice"),
        pytest.param([array(TABLE)], {TABLE: keys(clamp=(1, 0))}, "TSW-412", id="a clamp the wrong way"),
        pytest.param([array(TABLE)], {TABLE: keys(clamp=(0, np.nan))}, "TSW-412", id="a clamp to NaN"),
        pytest.param([array(TABLE), array(TABLE, (3, 2))], {TABLE: keys()}, "TSW-409", id="two of one name"),
        pytest.param([array(TABLE, dtype="F16")], {TABLE: keys()}, "TSW-409", id="F16"),
        pytest.param([array(TABLE, (4,))], {TABLE: keys()}, "TSW-409", id="one dimension"),
        pytest.param([array(TABLE, ())], {TABLE: keys()}, "TSW-409", id="no dimension"),
        pytest.param([array(TABLE, (2, 2, 1))], {TABLE: keys()}, "TSW-409", id="three dimensions"),
        pytest.param([array(TABLE, (0, 2))], {TABLE: keys(())}, "TSW-409", id="no row"),
        pytest.param([array(TABLE, (2, 0))], {TABLE: keys(tasks=())}, "TSW-409", id="no column"),
        pytest.param([array(TABLE), array(LESS)], {TABLE: keys(), LESS: keys()}, "TSW-405", id="names descend"),
        pytest.param([array("a\0")], {"a\0": keys()}, "TSW-402", id="no proper name"),
    ],
)
def test_the_writer_makes_nothing_that_a_reader_would_refuse(
    arrays: list[EncodedArray], tables: Mapping[str, CoefficientKeys], rule: str, tmp_path: Path
) -> None:
    for digests in (False, True):
        with pytest.raises(TswError, match=rule):
            write(tmp_path / "a.tsw", arrays, tables, digests=digests)
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_says_of_its_tables(source: Path) -> None:
    container = Container(source)
    try:
        index = container.index
        assert list(index.coefficients) == [LESS, TABLE]
        assert index.coefficients[TABLE].rows.tolist() == [0, 2] and index.coefficients[TABLE].clamp == (0.0, 1.0)
        assert index.coefficients[LESS].clamp is None
        assert container.coefficients(TABLE).role is lay.SharedRole.COEFFICIENTS
        assert container.features("t") is None
        with pytest.raises(UnknownNameError, match=r"no table named 'tin' among 2; did you mean 'tint'\?"):
            container.coefficients("tin")
    finally:
        container.close()


def test_tables_may_have_the_names_of_tensors_and_of_tasks(tmp_path: Path) -> None:
    tables = {"a": keys(), "t": keys((1,), ("u",))}
    out = write(tmp_path / "a.tsw", [array("a"), array("t", (1, 1))], tables)
    assert tsw.validate(out).ok
    with tsw.open(out) as file:
        assert file.router is None
        assert file.tables["t"].values.tolist() == [[0]]
        assert file.tables["a"].values.tolist() == [[0, 1], [2, 3]]


def test_a_table_may_be_of_several_chunks(tmp_path: Path) -> None:
    """A million coefficients, and one more column: read whole, and found where they are not finite."""
    tasks = [f"{number:04}" for number in range(1025)]
    specs = [TensorSpec(f"{number:04}", DTYPE_BY_NAME["F32"], (0,)) for number in range(1024)]
    values = np.random.default_rng(0).standard_normal((1024, 1025), np.float32)
    flat = values.reshape(-1)
    parts = [
        EncodedSegment.make(lay.Role.DATA, lay.Codec.RAW, 0, part.size, part.tobytes())
        for part in (flat[: lay.CHUNK], flat[lay.CHUNK :])
    ]
    spec = TensorSpec(TABLE, DTYPE_BY_NAME["F32"], values.shape)
    header = Index(TensorList.build(specs), writer="test", coefficients={TABLE: keys(range(1024), tasks[::-1])})
    with ContainerWriter(tmp_path / "a.tsw", header) as writer:
        writer.add_shared(EncodedArray(lay.SharedRole.COEFFICIENTS, spec, sha256(flat.tobytes()), parts))
        for task in tasks:
            writer.begin_task(task, recipe={}, checkpoint={}, metadata={})
        writer.finish()
        writer.commit()
    assert tsw.validate(tmp_path / "a.tsw").ok
    with tsw.open(tmp_path / "a.tsw") as file:
        assert file.tables[TABLE].values.tobytes() == values.tobytes()
        assert file.tables[TABLE].coefficient("0000", "1023") == values[1023, 1024]


def test_the_content_id_is_that_of_the_text(tmp_path: Path) -> None:
    """Section 11.4, written from it."""
    tables = {TABLE: keys(clamp=(-0.5, 1)), LESS: keys((1,), ("u",))}
    out = write(tmp_path / "a.tsw", [array(LESS, (1, 1)), array(TABLE)], tables, digests=True)
    nothing = hashlib.sha256(b"").digest()

    def name(text: str) -> bytes:
        return struct.pack("<H", len(text.encode())) + text.encode()

    content = b"TSW1-content\0" + struct.pack("<I", 3)
    for tensor in BASE:
        content += name(tensor) + struct.pack("<BBQ", 12, 1, 0) + nothing
    content += struct.pack("<I", 0) + struct.pack("<I", 2)
    for task in ("t", "u"):
        content += name(task) + struct.pack("<I", 0)
    content += b"TSW1-coefficients\0" + struct.pack("<I", 2)
    content += name(LESS) + struct.pack("<II", 1, 1) + name("b") + name("u") + b"\0"
    content += hashlib.sha256(struct.pack("<f", 0)).digest()
    content += name(TABLE) + struct.pack("<II", 2, 2) + name("a") + name("w") + name("t") + name("u")
    content += b"\1" + struct.pack("<ff", -0.5, 1) + hashlib.sha256(struct.pack("<4f", 0, 1, 2, 3)).digest()
    with tsw.open(out) as file:
        assert file.content_id == hashlib.sha256(content).hexdigest()
    assert tsw.validate(out).ok


def test_the_content_id_depends_on_all_of_a_table(tmp_path: Path) -> None:
    different = [
        ([array(TABLE)], {TABLE: keys()}),
        ([array("other")], {"other": keys()}),
        ([array(TABLE, values=[0, 1, 2, 4])], {TABLE: keys()}),
        ([array(TABLE)], {TABLE: keys((0, 1))}),
        ([array(TABLE)], {TABLE: keys(tasks=("u", "t"))}),
        ([array(TABLE)], {TABLE: keys(clamp=(0, 1))}),
        ([array(TABLE)], {TABLE: keys(clamp=(-0.0, 1))}),
        ([array(LESS, (1, 1)), array(TABLE)], {TABLE: keys(), LESS: keys((1,), ("u",))}),
        ([], {}),
    ]
    ids = []
    for number, (arrays, tables) in enumerate(different):
        out = write(tmp_path / f"{number}.tsw", arrays, tables, digests=True)
        assert tsw.validate(out).ok
        with tsw.open(out) as file:
            ids.append(file.content_id)
    assert None not in ids and len(set(ids)) == len(ids)


def test_a_content_id_of_another_table_is_found(tmp_path: Path) -> None:
    out = write(tmp_path / "a.tsw", [array(TABLE)], {TABLE: keys(clamp=(0, 1))}, digests=True)
    for number, change in enumerate((said("clamp", clamp(0, 2)), said("rows", rows(1, 2)), said("tasks", ["u", "t"]))):
        found = tsw.validate(edit(out, tmp_path / f"{number}.tsw", change)).findings
        assert [one.rule for one in found] == ["TSW-802"]
