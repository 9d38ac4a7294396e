"""Files that break one rule of the index (spec sections 5, 7, 8): the rule is named on opening, and `validate` lists it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import Change, Edited, edit, refused

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format.errors import UnsupportedError

# The entries of `archive` and `mapped` (see `checkpoints`): five ternary, two of them without factors; then
DENSE, REMOVED, RESHAPED, ADDED = 5, 6, 7, 8


def at(*keys: Any) -> Callable[[dict[str, Any]], Any]:
    """A member of the document."""

    def find(doc: dict[str, Any]) -> Any:
        for key in keys:
            doc = doc[key]
        return doc

    return find


def put(*keys: Any, value: Any) -> Change:
    """Set a member of the document."""
    return lambda file: operator.setitem(at(*keys[:-1])(file.doc), keys[-1], value)


def drop(*keys: Any) -> Change:
    """Remove a member of the document."""
    return lambda file: operator.delitem(at(*keys[:-1])(file.doc), keys[-1])


def tensor(number: int, which: str = "base", **fields: Any) -> Change:
    """Set fields of a tensor record."""
    return _record(lambda file: file.tensors(which), number, fields)


def entry(number: int, **fields: Any) -> Change:
    """Set fields of an entry of the first task."""
    return _record(lambda file: file.entries(), number, fields)


def segment(number: int, **fields: Any) -> Change:
    """Set fields of a segment of the first task."""
    return _record(lambda file: file.segments(), number, fields)


def _record(table_of: Callable[[Edited], Any], number: int, fields: dict[str, Any]) -> Change:
    def change(file: Edited) -> None:
        with table_of(file) as table:
            for name, value in fields.items():
                table[name][number] = np.void(value) if isinstance(value, bytes) else value

    return change


def dims(which: str = "base", **places: int) -> Change:
    """Set dimensions by their place: d0=5."""

    def change(file: Edited) -> None:
        with file.dims(which) as table:
            for place, value in places.items():
                table[int(place[1:])] = value

    return change


def raw_name(name: bytes, number: int = 0, which: str = "base") -> Change:
    """Give a tensor another name; the order of names stays only if the new one fits."""

    def change(file: Edited) -> None:
        with file.tensors(which) as table:
            lengths = table["name_length"].tolist()
            start = sum(lengths[:number])
            names = file.doc[which]["names"]
            file.doc[which]["names"] = names[:start] + name + names[start + lengths[number] :]
            table["name_length"][number] = len(name)

    return change


def only_base(count: int, dtype: int, *shape: int) -> Change:
    """A file of `count` base tensors of one shape and no tasks."""

    def change(file: Edited) -> None:
        file.body = bytearray()
        file.doc["tasks"] = []
        file.doc["extra"] = {"dims": b"", "names": b"", "tensors": b""}
        names = [f"{number:07}" for number in range(count)]
        records = np.zeros(count, lay.TENSOR)
        records["name_length"], records["dtype"], records["ndim"] = 7, dtype, len(shape)
        file.doc["base"] = {
            "aliases": {},
            "dims": np.tile(np.array(shape, "<u8"), count).tobytes(),
            "names": "".join(names).encode(),
            "tensors": records.tobytes(),
        }
        file.doc.pop("content_id", None)

    return change


def swap(table_of: Callable[[Edited], Any], a: int, b: int) -> Change:
    """Exchange two records."""

    def change(file: Edited) -> None:
        with table_of(file) as table:
            table[[a, b]] = table[[b, a]]

    return change


def second_task(**members: Any) -> Change:
    """A second task without entries."""
    empty = {"checkpoint": {}, "entries": b"", "metadata": {}, "name": "two", "recipe": {}, "segments": b""}
    return lambda file: file.doc["tasks"].append({**empty, **members})


def two_added_of_one_name(file: Edited) -> None:
    """Which the order of `extra` allows, since their dtypes differ."""
    raw_name(b"j.reshaped", 1, "extra")(file)
    tensor(1, "extra", dtype=13)(file)
    entry(ADDED, dtype=13)(file)


MAPS: dict[str, tuple[Any, ...]] = {"index": (), "base": ("base",), "extra": ("extra",), "task": ("tasks", 0)}
REQUIRED: dict[str, dict[str, type]] = {
    "index": {"base": dict, "extra": dict, "metadata": dict, "profile": str, "tasks": list, "writer": str},
    "base": {"aliases": dict, "dims": bytes, "names": bytes, "tensors": bytes},
    "extra": {"dims": bytes, "names": bytes, "tensors": bytes},
    "task": {"checkpoint": dict, "entries": bytes, "metadata": dict, "name": str, "recipe": dict, "segments": bytes},
}
OPTIONAL: dict[str, dict[str, type]] = {"index": {"content_id": bytes}, "base": {"id": str, "revision": str}}
OTHERS: dict[type, Any] = {dict: {}, str: "a", bytes: b"a", list: [], int: 1}
ALL_KEYS = [
    (where, key, kind)
    for keys in (REQUIRED, OPTIONAL)
    for where, members in keys.items()
    for key, kind in members.items()
]


@pytest.mark.parametrize(("where", "key"), [(where, key) for where in REQUIRED for key in REQUIRED[where]])
def test_a_missing_key_is_refused(where: str, key: str, archive: Path, out: Path) -> None:
    error = refused(edit(archive, out, drop(*MAPS[where], key)), "TSW-307")
    assert error.field.endswith(f".{key}")
    assert error.found == "none"


@pytest.mark.parametrize(("where", "key", "kind"), ALL_KEYS)
def test_a_value_of_another_type_is_refused(where: str, key: str, kind: type, archive: Path, out: Path) -> None:
    for other, value in OTHERS.items():
        if other is not kind:
            error = refused(edit(archive, out, put(*MAPS[where], key, value=value)), "TSW-307")
            assert error.field.endswith(f".{key}")


@pytest.mark.parametrize("where", MAPS)
def test_an_unknown_key_is_refused_in_a_known_version(where: str, archive: Path, out: Path) -> None:
    error = refused(edit(archive, out, put(*MAPS[where], "zz", value=1)), "TSW-307")
    assert error.field.endswith("['zz']")


@pytest.mark.parametrize(
    "keys", [("metadata",), ("tasks", 0, "metadata"), ("tasks", 0, "recipe"), ("tasks", 0, "checkpoint")]
)
@pytest.mark.parametrize("value", [1, b"x", [], {}])
def test_remarks_are_texts(keys: tuple[Any, ...], value: Any, archive: Path, out: Path) -> None:
    assert refused(edit(archive, out, put(*keys, "zz", value=value)), "TSW-307").field.endswith("['zz']")


@pytest.mark.parametrize(
    ("change", "rule", "kind"),
    [
        pytest.param(lambda file: setattr(file, "index", b"\x90"), "TSW-307", None, id="an array for the index"),
        pytest.param(put("tasks", value=[1]), "TSW-307", None, id="a number for a task"),
        pytest.param(put("content_id", value=bytes(31)), "TSW-307", None, id="a short content id"),
        pytest.param(put("profile", value="other"), "TSW-308", UnsupportedError, id="another profile"),
        pytest.param(put("base", "tensors", value=bytes(47)), "TSW-310", None, id="part of a tensor record"),
        pytest.param(put("extra", "tensors", value=bytes(1)), "TSW-310", None, id="part of an extra record"),
        pytest.param(put("tasks", 0, "entries", value=bytes(57)), "TSW-310", None, id="part of an entry"),
        pytest.param(put("tasks", 0, "segments", value=bytes(23)), "TSW-310", None, id="part of a segment"),
        pytest.param(tensor(0, name_length=5), "TSW-401", None, id="names longer than told"),
        pytest.param(tensor(0, name_length=7), "TSW-401", None, id="names shorter than told"),
        pytest.param(tensor(0, ndim=1), "TSW-401", None, id="dims more than told"),
        pytest.param(tensor(0, ndim=3), "TSW-401", None, id="dims fewer than told"),
        pytest.param(put("base", "dims", value=bytes(7)), "TSW-401", None, id="part of a dimension"),
        pytest.param(put("extra", "names", value=b""), "TSW-401", None, id="no names for extra"),
        pytest.param(only_base(1, 12, *[1] * 17), "TSW-403", None, id="17 dimensions"),
        pytest.param(only_base(1, 12, (1 << 48) + 1), "TSW-403", None, id="a dimension above 2^48"),
        pytest.param(only_base(1, 12, (1 << 48) + 1, 0), "TSW-403", None, id="such a dimension of an empty tensor"),
        pytest.param(only_base(1, 12, (1 << 64) - 1), "TSW-403", None, id="a dimension of 2^64 - 1"),
        pytest.param(only_base(1, 12, 1 << 24, (1 << 24) + 1), "TSW-403", None, id="elements above 2^48"),
        pytest.param(only_base(1, 12, *[1 << 16] * 4), "TSW-403", None, id="elements that wrap around to 0"),
        pytest.param(only_base(1, 12, *[1 << 48] * 16), "TSW-403", None, id="elements beyond everything"),
        pytest.param(only_base((1 << 20) + 1, 12), "TSW-403", None, id="too many tensors"),
        pytest.param(tensor(0, dtype=0), "TSW-404", UnsupportedError, id="dtype 0"),
        pytest.param(tensor(0, dtype=21), "TSW-404", UnsupportedError, id="dtype 21"),
        pytest.param(tensor(0, "extra", dtype=255), "TSW-404", UnsupportedError, id="dtype 255 of extra"),
        pytest.param(only_base(1, 17, 3), "TSW-404", None, id="3 elements of 4 bits"),
        pytest.param(only_base(1, 18, 3, 2), "TSW-404", None, id="6 elements of 6 bits"),
        pytest.param(only_base(1, 19), "TSW-404", None, id="a scalar of 6 bits"),
        pytest.param(raw_name(b"z.tied"), "TSW-405", None, id="names out of order"),
        pytest.param(raw_name(b"a.tied", 1), "TSW-405", None, id="a name twice"),
        pytest.param(raw_name(b"z", 0, "extra"), "TSW-405", None, id="names of extra out of order"),
        pytest.param(tensor(0, flags=7), "TSW-406", None, id="an unknown tensor flag"),
        pytest.param(tensor(0, flags=1 << 31), "TSW-406", None, id="the highest tensor flag"),
        pytest.param(tensor(0, flags=1), "TSW-406", None, id="a sampled digest without its flag"),
        pytest.param(tensor(0, flags=2), "TSW-406", None, id="a digest without its flag"),
        pytest.param(tensor(0, "extra", flags=1), "TSW-406", None, id="a digest flag in extra"),
        pytest.param(tensor(0, "extra", sha256=bytes(31) + b"\1"), "TSW-406", None, id="a digest in extra"),
        pytest.param(entry(0, flags=0x0F), "TSW-406", None, id="an unknown entry flag"),
        pytest.param(entry(0, flags=0x06), "TSW-406", None, id="an entry digest without its flag"),
        pytest.param(put("base", "aliases", "b.weight", value=0), "TSW-407", None, id="an alias that is a tensor"),
        pytest.param(put("base", "aliases", "x\n", value=0), "TSW-407", None, id="an alias with a line feed"),
        pytest.param(put("base", "aliases", "x", value=10), "TSW-407", None, id="an alias of no base tensor"),
        pytest.param(put("base", "aliases", "x", value="a"), "TSW-307", None, id="an alias of a text"),
        pytest.param(
            lambda file: file.doc["tasks"].clear() or setattr(file, "body", bytearray()),
            "TSW-408",
            None,
            id="extra unused",
        ),
        pytest.param(put("tasks", 0, "name", value=""), "TSW-501", None, id="a task without a name"),
        pytest.param(put("tasks", 0, "name", value="a\u202eb"), "TSW-501", None, id="a task with a bidi name"),
        pytest.param(put("tasks", 0, "name", value="x" * 1025), "TSW-501", None, id="a task with a long name"),
        pytest.param(second_task(name="one"), "TSW-501", None, id="two tasks of one name"),
        pytest.param(entry(ADDED, tensor=12), "TSW-502", None, id="an entry of no tensor"),
        pytest.param(entry(ADDED, tensor=(1 << 32) - 1), "TSW-502", None, id="an entry of tensor 2^32 - 1"),
        pytest.param(swap(lambda file: file.entries(), 0, 1), "TSW-502", None, id="entries out of order"),
        pytest.param(entry(1, tensor=0), "TSW-502", None, id="two entries of one tensor"),
        pytest.param(entry(REMOVED, tensor=9), "TSW-502", None, id="a base tensor and an added one of one name"),
        pytest.param(two_added_of_one_name, "TSW-502", None, id="two added ones of one name"),
        pytest.param(entry(0, kind=0), "TSW-503", UnsupportedError, id="kind 0"),
        pytest.param(entry(0, kind=2), "TSW-507", None, id="kind masked"),
        pytest.param(entry(0, kind=5), "TSW-503", UnsupportedError, id="kind 5"),
        pytest.param(entry(DENSE, kind=1), "TSW-504", None, id="a switch of integers"),
        pytest.param(entry(ADDED, kind=1), "TSW-504", None, id="a switch of an added tensor"),
        pytest.param(entry(0, dtype=9), "TSW-504", None, id="a switch to integers"),
        pytest.param(entry(0, dtype=14), "TSW-504", None, id="a switch to float8"),
        pytest.param(entry(0, dtype=0), "TSW-404", UnsupportedError, id="a switch to dtype 0"),
        pytest.param(entry(0, knob=np.inf), "TSW-504", None, id="an infinite knob"),
        pytest.param(entry(0, knob=np.nan), "TSW-504", None, id="a knob that is no number"),
        pytest.param(entry(3, flags=3, factor_dtype=1), "TSW-504", None, id="row factors of a vector"),
        pytest.param(entry(4, flags=5, factor_dtype=1), "TSW-504", None, id="column factors of a scalar"),
        pytest.param(entry(0, factor_dtype=0), "TSW-504", None, id="factors without a dtype"),
        pytest.param(entry(0, factor_dtype=4), "TSW-504", None, id="factors of dtype 4"),
        pytest.param(entry(3, factor_dtype=1), "TSW-504", None, id="a factor dtype without factors"),
        pytest.param(entry(0, active=49), "TSW-504", None, id="more active than elements"),
        pytest.param(entry(0, active=(1 << 64) - 1), "TSW-504", None, id="2^64 - 1 active"),
        pytest.param(entry(0, active=21), "TSW-504", None, id="more active than the masks have"),
        pytest.param(entry(0, active=0), "TSW-504", None, id="fewer active than the masks have"),
        pytest.param(entry(DENSE, dtype=8), "TSW-505", None, id="a dense entry of another dtype"),
        pytest.param(entry(DENSE, knob=1), "TSW-505", None, id="a dense entry with a knob"),
        pytest.param(entry(DENSE, knob=-0.0), "TSW-505", None, id="a dense entry with a knob of -0"),
        pytest.param(entry(DENSE, active=1), "TSW-505", None, id="a dense entry with active elements"),
        pytest.param(entry(DENSE, factor_dtype=1), "TSW-505", None, id="a dense entry with a factor dtype"),
        pytest.param(entry(DENSE, flags=3), "TSW-505", None, id="a dense entry with row factors"),
        pytest.param(entry(RESHAPED, flags=5), "TSW-505", None, id="a dense entry with column factors"),
        pytest.param(entry(REMOVED, dtype=10), "TSW-506", None, id="a removed entry of another dtype"),
        pytest.param(entry(REMOVED, knob=1), "TSW-506", None, id="a removed entry with a knob"),
        pytest.param(entry(REMOVED, active=1), "TSW-506", None, id="a removed entry with active elements"),
        pytest.param(entry(REMOVED, factor_dtype=3), "TSW-506", None, id="a removed entry with a factor dtype"),
        pytest.param(entry(REMOVED, flags=3), "TSW-506", None, id="a removed entry with factors"),
        pytest.param(entry(ADDED, kind=4), "TSW-506", None, id="a removed entry of an added tensor"),
        pytest.param(entry(DENSE, kind=4), "TSW-601", None, id="a removed entry with segments"),
        pytest.param(entry(0, flags=3), "TSW-601", None, id="a segment more than the entries ask for"),
        pytest.param(entry(REMOVED, kind=3), "TSW-601", None, id="a segment fewer than the entries ask for"),
        pytest.param(put("tasks", 0, "segments", value=b""), "TSW-601", None, id="no segments"),
        pytest.param(segment(0, role=4), "TSW-601", None, id="a column factor for a row factor"),
        pytest.param(segment(2, role=2), "TSW-601", None, id="a sign for a mask"),
        pytest.param(segment(2, role=0), "TSW-601", None, id="role 0"),
        pytest.param(segment(0, role=6), "TSW-601", None, id="role 6"),
        pytest.param(second_task(segments=bytes(24)), "TSW-601", None, id="a segment of no entry"),
        pytest.param(segment(0, count=7), "TSW-602", None, id="a row factor too few"),
        pytest.param(segment(1, count=7), "TSW-602", None, id="a column factor too many"),
        pytest.param(segment(2, count=49), "TSW-602", None, id="more ones than elements"),
        pytest.param(segment(3, count=21), "TSW-602", None, id="more signs than active elements"),
        pytest.param(segment(2, count=(1 << 32) - 1), "TSW-602", None, id="2^32 - 1 ones"),
        pytest.param(segment(16, count=8), "TSW-602", None, id="data of fewer elements"),
        pytest.param(segment(0, offset=65), "TSW-603", None, id="a hole before the first segment"),
        pytest.param(segment(0, offset=63), "TSW-603", None, id="a segment in the prologue"),
        pytest.param(segment(2, offset=77), "TSW-603", None, id="an overlap"),
        pytest.param(segment(2, length=7), "TSW-603", None, id="a segment too long"),
        pytest.param(segment(2, offset=(1 << 64) - 1), "TSW-603", None, id="an offset of 2^64 - 1"),
        pytest.param(segment(2, offset=1 << 62), "TSW-603", None, id="an offset of 2^62"),
        pytest.param(segment(18, length=(1 << 32) - 1), "TSW-604", None, id="a last segment of 2^32 - 1 bytes"),
        pytest.param(segment(18, length=43), "TSW-604", None, id="a last segment too short"),
        pytest.param(lambda file: setattr(file, "padding", b"\0"), "TSW-604", None, id="a byte before the index"),
        pytest.param(
            lambda file: setattr(file, "body", file.body[:-1]), "TSW-604", None, id="an index that begins too early"
        ),
        pytest.param(segment(2, codec=6), "TSW-606", UnsupportedError, id="codec 6"),
        pytest.param(segment(2, codec=255), "TSW-606", UnsupportedError, id="codec 255"),
        pytest.param(segment(2, codec=16), "TSW-606", None, id="a raw mask"),
        pytest.param(segment(0, codec=2), "TSW-606", None, id="a bitmap of factors"),
        pytest.param(segment(0, codec=18), "TSW-606", UnsupportedError, id="codec 18"),
        pytest.param(segment(2, parameter=1), "TSW-606", None, id="a parameter of a bitmap"),
        pytest.param(segment(3, parameter=21), "TSW-606", None, id="k = 21"),
        pytest.param(segment(0, parameter=1), "TSW-606", None, id="a parameter of raw factors"),
        pytest.param(entry(0, vector=1), "TSW-107", None, id="the vector of an entry that has none"),
        pytest.param(segment(0, reserved=1), "TSW-107", None, id="a reserved field of a segment"),
    ],
)
def test_a_broken_rule_is_named(change: Change, rule: str, kind: Any, archive: Path, out: Path) -> None:
    error = refused(edit(archive, out, change), rule, kind or tsw.FormatError)
    assert error.offset is not None


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        pytest.param(segment(2, codec=3), "TSW-605", id="a compressed bitmap"),
        pytest.param(segment(2, codec=5, parameter=2), "TSW-605", id="a Rice code"),
        pytest.param(segment(16, codec=17), "TSW-605", id="compressed data"),
        pytest.param(segment(0, codec=17), "TSW-605", id="compressed factors"),
        pytest.param(segment(1, offset=129), "TSW-603", id="not aligned"),
        pytest.param(segment(1, offset=192), "TSW-603", id="aligned, but later than need be"),
        pytest.param(lambda file: setattr(file, "padding", bytes(64)), "TSW-604", id="the index later than need be"),
        pytest.param(lambda file: setattr(file, "padding", b"\0"), "TSW-604", id="the index not aligned"),
    ],
)
def test_a_broken_rule_of_the_mapped_profile_is_named(change: Change, rule: str, mapped: Path, out: Path) -> None:
    refused(edit(mapped, out, change), rule)


def test_an_archive_is_not_a_mapped_file_by_name_only(archive: Path, out: Path) -> None:
    refused(edit(archive, out, put("profile", value="mapped")), "TSW-605")


BAD_NAMES = {
    "empty": b"",
    "long": b"a" * 1025,
    "not UTF-8": b"\xff\xfe",
    "a surrogate": b"\xed\xa0\x80",
    "a line feed": b"a\nb",
    "NUL": b"a\0",
    "DEL": b"a\x7f",
    "C1": "a\x85".encode(),
    "NFD": "e\u0301".encode(),
    "a compatibility form that NFC changes": "\u212b".encode(),
    "a line separator": "a\u2028b".encode(),
    "a paragraph separator": "a\u2029b".encode(),
    **{
        f"bidi {code:x}": f"a{chr(code)}".encode()
        for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    },
}


@pytest.mark.parametrize("why", BAD_NAMES)
def test_an_improper_name_is_refused(why: str, archive: Path, out: Path) -> None:
    error = refused(edit(archive, out, raw_name(BAD_NAMES[why])), "TSW-402")
    assert error.field == "base.names[0]"
    assert "\n" not in str(error)
    assert "\u202e" not in str(error)


@pytest.mark.parametrize(
    "name", ["A", "a" * 1024, "a b", "../../etc/passwd", "é", "模型.層", "a\u00a0b", "a\u200db", "A😀"]
)
def test_a_proper_name_is_taken(name: str, tiny: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        raw_name(name.encode())(file)
        del file.doc["content_id"]

    edit(tiny, out, change)
    assert tsw.validate(out).ok
    with tsw.open(out) as file:
        assert file.keys() == [name]
        assert file.switch(name).active == 2


def test_factors_of_an_empty_matrix_are_refused(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        with file.entries() as table:
            table[4]["tensor"], table[4]["flags"], table[4]["factor_dtype"] = 5, 3, 1

    refused(edit(archive, out, change), "TSW-504")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_file_of_empty_and_scalar_tensors_opens(count: int, tiny: Path, out: Path) -> None:
    for shape in ((), (0,), (1 << 48, 0), (0, 1 << 48, 1 << 48)):
        edit(tiny, out, only_base(count, 12, *shape))
        assert tsw.validate(out).ok
        with tsw.open(out) as file:
            assert file.base.tensors == count
            assert file.base.params == (count if shape == () else 0)


def test_as_many_tensors_as_the_limit_allows_open(tiny: Path, out: Path) -> None:
    edit(tiny, out, only_base(1 << 20, 12))
    with tsw.open(out) as file:
        assert file.base.tensors == 1 << 20


def test_the_validator_lists_several_broken_rules_at_once(archive: Path, out: Path) -> None:
    def change(file: Edited) -> None:
        put("zz", value=1)(file)
        put("tasks", 0, "name", value="")(file)
        entry(0, active=19)(file)
        tensor(0, "extra", sha256=b"\1" * 32)(file)
        file.padding = b"\0"

    report = tsw.validate(edit(archive, out, change), "structure")
    assert [finding.rule for finding in report.findings] == ["TSW-307", "TSW-406", "TSW-501", "TSW-504", "TSW-604"]
    assert all(str(out) in finding.message and finding.severity == "error" for finding in report.findings)
    assert not report.newer
    assert report.unreadable is None


def test_an_unknown_level_is_an_option_error(archive: Path) -> None:
    with pytest.raises(tsw.OptionError, match="level: expected structure, checksums, full, found 'deep'"):
        tsw.validate(archive, "deep")  # type: ignore[arg-type]
