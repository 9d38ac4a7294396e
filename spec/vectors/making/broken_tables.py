"""Invalid files: tables of coefficients and their arrays."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from making.masked import vector
from making.material import BARE, W, raw_frame
from making.model import (
    ONE,
    Coding,
    Coefficients,
    Dense,
    File,
    Masked,
    Router,
    Table,
    Task,
    Tensor,
    Ternary,
    tables_hashed,
)
from making.router import samples
from making.suite import Suite
from making.tables import table
from making.writing import Draft, assign, edit

_V = Tensor("v", "F16", (4,)).bare()
_TASK = Task("t", [Ternary(BARE, digest=False)])
_TASKS = [_TASK, Task("u"), Task("x")]
_ONE = table(clamp=(0, ONE))
_FILE = File([BARE, _V], _TASKS, aliases={"head": "w"}, content_id=False, tables=[_ONE])
_TWO = replace(_FILE, tables=[_ONE, table("d", seed="d")])
_MAPPED = replace(_FILE, profile="mapped")
_MASKED = Task("t", [Masked(BARE, vector(W, "one"), digest=False)])
_INFINITE, _NAN = 0x7F800000, 0x7FC00000


def add(suite: Suite) -> None:
    """Add all of them."""

    def bad(rule: str, name: str, why: str, file: File = _FILE, **hooks: Any) -> None:
        suite.invalid(f"{rule}-{name}", f"TSW-{rule}", why, file, **hooks)

    for group in (_keys, _presence, _rows, _columns, _clamps, _shapes, _records, _segments, _content, _digests):
        group(bad)


def _of(array: Tensor) -> File:
    """The usual table over another array."""
    return replace(_FILE, tables=[Table(Coefficients(array), _ONE.rows, _ONE.tasks)])


def _zeros(dtype: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor("c", dtype, shape, data=bytes(Tensor("c", dtype, shape).nbytes))


def _keys(bad: Callable[..., None]) -> None:
    for key in ("rows", "tasks"):
        gone = {"document": lambda doc, key=key: doc["coefficients"]["c"].pop(key)}
        bad("307", f"table-no-{key}", f"a table without `{key}`", **gone)
    for name, path, value in (
        ("key", ("c", "more"), ""),
        ("array", (), []),
        ("rows-array", ("c", "rows"), [0, 1]),
        ("tasks-map", ("c", "tasks"), {"t": 0, "u": 1}),
        ("tasks-number", ("c", "tasks"), ["t", 1]),
        ("clamp-array", ("c", "clamp"), [0, 1]),
    ):
        why = "a key that is none" if name == "key" else f"{'.'.join(('coefficients', *path))} of another type"
        bad("307", f"table-{name}", why, document=assign("coefficients", *path, value=value))


def _presence(bad: Callable[..., None]) -> None:
    bare = replace(_FILE, tables=[])
    keys = {"c": _ONE.keys(_FILE.base_numbers)}
    bad("412", "empty", "`coefficients` without a table", bare, document=assign("coefficients", value={}))
    bad("412", "nothing-shared", "a table without its array", bare, document=assign("coefficients", value=keys))
    features = replace(bare, router=Router([samples("t", shape=(2, 2))]))
    named = assign("coefficients", value={"t": keys["c"]})
    bad("412", "of-features", "a table with the name of features", features, document=named)
    over = replace(bare, tasks=[_MASKED, *_TASKS[1:]])
    named = assign("coefficients", value={"w": keys["c"]})
    bad("412", "of-vector", "a table with the name of a vector", over, document=named)
    more = assign("coefficients", "d", value=keys["c"])
    bad("412", "more", "two tables, one array", document=more)
    gone = {"document": lambda doc: doc.pop("coefficients")}
    bad("412", "no-tables", "an array without its table", **gone)
    gone = {"document": lambda doc: doc["coefficients"].pop("d")}
    bad("412", "fewer", "two arrays, one table", _TWO, **gone)


def _rows(bad: Callable[..., None]) -> None:
    def rows(*numbers: int, form: str = "I") -> bytes:
        return struct.pack(f"<{len(numbers)}{form}", *numbers)

    more = replace(_FILE, tasks=[*_TASKS, Task("y", [Dense(Tensor("y", "U8", (3,)), digest=False)])])
    for name, value, why in (
        ("fewer", rows(0), "one row of two"),
        ("shorter", rows(0, 1)[:-1], "rows of 7 bytes"),
        ("u64", rows(0, 1, form="Q"), "rows as u64"),
        ("descend", rows(1, 0), "rows that descend"),
        ("twice", rows(1, 1), "a row twice"),
        ("extra", rows(0, 2), "a row of an extra tensor"),
        ("beyond", rows(0, 3), "a row of no tensor"),
    ):
        bad("412", f"rows-{name}", why, more, document=assign("coefficients", "c", "rows", value=value))


def _columns(bad: Callable[..., None]) -> None:
    for name, value, why in (
        ("fewer", ["t"], "one column of two"),
        ("more", ["t", "u", "x"], "three columns of two"),
        ("unknown", ["t", "T"], "a column of no task"),
        ("twice", ["u", "u"], "a task twice"),
    ):
        bad("412", f"tasks-{name}", why, document=assign("coefficients", "c", "tasks", value=value))


def _clamps(bad: Callable[..., None]) -> None:
    for name, *bounds in (
        ("nan-least", _NAN, ONE),
        ("nan-greatest", 0, _NAN),
        ("infinite", 0, _INFINITE),
        ("minus-infinite", _INFINITE | 1 << 31, 0),
        ("reversed", ONE, ONE - 1),
        ("reversed-subnormal", 1, 0x80000001),
        ("one", 0),
    ):
        value = struct.pack(f"<{len(bounds)}I", *bounds)
        bad("412", f"clamp-{name}", f"a clamp: {name}", document=assign("coefficients", "c", "clamp", value=value))
    bad("412", "clamp-7-bytes", "a clamp: 7 bytes", document=assign("coefficients", "c", "clamp", value=bytes(7)))


def _shapes(bad: Callable[..., None]) -> None:
    for dtype in ("F16", "F64", "U32"):
        bad("409", f"table-{dtype.lower()}", f"coefficients of {dtype}", _of(_zeros(dtype, (2, 2))))
    for shape in ((), (4,), (2, 2, 1), (0, 2), (2, 0)):
        what = "x".join(map(str, shape)) or "scalar"
        given = _of(_zeros("F32", shape)).tables[0]
        if 0 in shape:
            given = replace(given, rows=given.rows[: shape[0]], tasks=given.tasks[: shape[1]])
        bad("409", f"table-{what}", f"coefficients of shape {list(shape)}", replace(_FILE, tables=[given]))
    again = _of(_zeros("F32", (2, 2))).tables[0]
    bad("409", "table-twice", "two arrays of one name", replace(_FILE, tables=[_ONE, again]))
    wide = replace(_FILE, tables=[_ONE, table(tasks=["t", "u", "x"])])
    bad("409", "table-twice-shapes", "two arrays of one name and of other shapes", wide)


def _records(bad: Callable[..., None]) -> None:
    bare = edit("shared", flags=0, sha256=bytes(32))
    bad("406", "table-no-sha256", "coefficients without their sha256", placed=bare)
    sampled = edit("shared", flags=3, sampled=_ONE.array.tensor.sampled_digest)
    bad("406", "table-sampled", "a sampled digest of coefficients", placed=sampled)

    def exchanged(draft: Draft) -> None:
        draft.lists["shared"].reverse()
        draft.names["shared"] = draft.names["shared"][::-1]
        draft.shared_payloads.reverse()

    bad("405", "table", "coefficients whose names descend", _TWO, content=exchanged)
    same = Task("t", [Masked(BARE, vector(W, "one"), digest=False)])
    content = vector(W, "one").tensor
    given = Table(Coefficients(content), ["v", "w"], list("tuxyz"))
    file = File([BARE, _V], [same, *map(Task, "uxyz")], content_id=False, tables=[given])
    bad("405", "table-as-vector", "coefficients with name, dtype, shape and content of a vector", file)
    other = Table(Coefficients(replace(content, data=bytes(40))), ["v", "w"], list("tuxyz"))
    file = replace(file, tables=[other])
    place = next(number for number, one in enumerate(file.shared) if one.role == "coefficients")

    def pointed(draft: Draft) -> None:
        draft.entries[0][0]["vector"] = place

    file = replace(file, tasks=[*file.tasks, replace(_MASKED, name="second")])
    bad("507", "table", "a masked entry that selects from coefficients", file, placed=pointed)


def _segments(bad: Callable[..., None]) -> None:
    def without(draft: Draft) -> None:
        draft.shared_segments.clear()
        draft.shared_payloads.clear()

    bad("601", "table-none", "coefficients without data", content=without)
    bad("602", "table-3", "coefficients of 4 elements that count 3", content=edit("shared_segments", count=3))
    framed = replace(_MAPPED, tables=[table(coding=Coding("zstd", 0, raw_frame))])
    bad("605", "table-zstd", "mapped: coefficients in a zstd frame", framed)
    bad("606", "table-codec-2", "coefficients with codec 2", content=edit("shared_segments", codec=2))


def _content(bad: Callable[..., None]) -> None:
    def elements(*bits: int) -> File:
        return _of(Tensor("c", "F32", (2, 2), data=struct.pack("<4I", *bits)))

    for name, bits in (
        ("nan", (_NAN, 0, 0, 0)),
        ("infinite", (0, 0, 0, _INFINITE)),
        ("minus-infinite", (0, 0, _INFINITE | 1 << 31, 0)),
    ):
        bad("705", f"table-{name}", f"an element of a table: {name}", elements(*bits))
    clamped = replace(elements(_INFINITE, 0, 0, 0).tables[0], clamp=(0, ONE))
    bad("705", "table-clamped", "an infinite element of a table with a clamp", replace(_FILE, tables=[clamped]))
    nan = table("d", data=struct.pack("<4I", 0, 0, 0, _NAN))
    bad("705", "table-second", "a NaN in the second table", replace(_FILE, tables=[_ONE, nan]))

    def other(draft: Draft) -> None:
        draft.shared_payloads[0] = bytes(16)

    bad("804", "table", "coefficients of other bytes than those of their SHA-256", content=other)

    def shorter(draft: Draft) -> None:
        draft.shared_payloads[0] = draft.shared_payloads[0][:15]

    bad("706", "table-shorter", "15 bytes of coefficients of 16", content=shorter)


def _digests(bad: Callable[..., None]) -> None:
    one, two = table("c", tasks=["u", "t"], clamp=(0, ONE)), table("d", rows=["w"], seed="d")
    router = Router([samples("t")])
    base = [W, Tensor("v", "F16", (4,))]
    file = File(base, [Task("t", [Ternary(W)]), Task("u")], router=router, tables=[one, two])
    before, of_router, right = file.hashed(), router.hashed(), tables_hashed([one, two])
    head = right[:22]
    first = before + right + of_router
    for name, covered in (
        ("without", b""),
        ("without-mark", right[18:]),
        ("without-count", head[:18] + right[22:]),
        ("descending", head + two.hashed() + one.hashed()),
        ("columns-of-file", tables_hashed([replace(one, tasks=["t", "u"]), two])),
        ("other-rows", tables_hashed([one, replace(two, rows=["v"])])),
        ("no-clamp", tables_hashed([replace(one, clamp=None), two])),
        ("other-clamp", tables_hashed([replace(one, clamp=(1 << 31, ONE)), two])),
        ("other-elements", tables_hashed([one, table("d", rows=["w"])])),
        ("before-router", None),
    ):
        if covered == right:
            raise ValueError(f"the content id {name!r} is right; it should be wrong")
        digest = hashlib.sha256(first if covered is None else before + of_router + covered).digest()
        wrong = assign("content_id", value=digest)
        bad("802", f"table-{name}", f"the content id, as to tables: {name}", file, document=wrong)
    loose = File([BARE], [Task("t")], tables=[table(rows=["w"], tasks=["t"])])
    bad("803", "table", "a content id, a table, and a base tensor without digest", loose)
