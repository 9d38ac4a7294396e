"""Valid files with tables of coefficients."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from making.masked import vector
from making.material import BARE, W, kept, mixed, raw_frame, rle_frame
from making.model import (
    CHUNK,
    ONE,
    RAW,
    Coding,
    Coefficients,
    Dense,
    File,
    Masked,
    Removed,
    Router,
    Table,
    Task,
    Tensor,
    Ternary,
    noise,
)
from making.router import samples
from making.suite import Suite

V = Tensor("v", "F16", (4,))
TASKS = [Task("t", [Ternary(W), Ternary(V, (0,), ())]), Task("u", [Ternary(W, (1,), ())])]


def add(suite: Suite) -> None:
    """Add all of them."""
    _tables(suite)
    _meaning(suite)
    _arrays(suite)
    _others(suite)


def table(
    name: str = "c",
    rows: Sequence[str] = ("v", "w"),
    tasks: Sequence[str] = ("t", "u"),
    clamp: tuple[int, int] | None = None,
    *,
    seed: str = "",
    coding: Coding = RAW,
    data: bytes | None = None,
) -> Table:
    """A table of finite elements that follow from the seed."""
    count = len(rows) * len(tasks)
    if data is None:
        data = struct.pack(f"<{count}f", *(byte / 64 - 1 for byte in noise(f"coefficients {seed}", count)))
    array = Tensor(name, "F32", (len(rows), len(tasks)), data=data)
    return Table(Coefficients(array, coding), rows, tasks, clamp)


def _of(*tables: Table, tasks: Sequence[Task] = TASKS) -> File:
    return File([W, V], tasks, tables=tables)


def _tables(suite: Suite) -> None:
    suite.valid("table-one", _of(table()), "a table of two tensors and two tasks")
    clamps = {
        "equal": (ONE, ONE),
        "widest": (0xFF7FFFFF, 0x7F7FFFFF),
        "subnormal": (0x80000001, 1),
        "zeros": (0x80000000, 0),
        "zeros-exchanged": (0, 0x80000000),
    }
    suite.valid(
        "table-clamps",
        _of(*(table(name, clamp=clamp) for name, clamp in clamps.items())),
        "clamps: equal bounds, the widest, subnormal, zeros of both signs in either order",
    )
    suite.valid("table-1x1", _of(table(rows=["w"], tasks=["t"])), "one element")
    flat = (table("row", rows=["w"]), table("column", tasks=["u"]))
    suite.valid("table-flat", _of(*flat), "tables of one row and of one column")
    names = ["a", "A", "aa", "\u00e9", "\uffee", "\U00010000", "../x"]
    suite.valid("table-names", _of(*(table(name, seed=name) for name in names)), "names ascend by their UTF-8 bytes")
    suite.valid("table-same-elements", _of(table("a"), table("b")), "two tables of the same elements")


def _meaning(suite: Suite) -> None:
    tasks = [Task("b", [Ternary(W)]), Task("a", [Ternary(V, (1,), ())]), Task("none"), Task("outside", [Ternary(W)])]
    given = (table("one", tasks=["none", "b", "a"]), table("two", tasks=["a", "none"]))
    suite.valid("table-columns", _of(*given, tasks=tasks), "columns in other orders than the file's; not all tasks")
    base = [W, V, Tensor("empty", "F32", (0, 3)), Tensor("number", "I64", ()), Tensor("z", "BF16", (3,))]
    file = File(base, TASKS, tables=[table(rows=["empty", "number", "w", "z"])])
    suite.valid("table-rows", file, "rows of empty tensors, of integers and of tensors without entries; not of all")
    entries = [Dense(Tensor("head", "F32", (2,))), Dense(Tensor("x", "U8", (3,))), Removed(V), Ternary(W)]
    file = File([W, V], [Task("t", entries), Task("u")], aliases={"head": "w"})
    named = [table(name, seed=name) for name in ("head", "t", "w", "x")]
    why = "tables with the names of an alias, a task, a tensor and an extra tensor; entries of other kinds"
    suite.valid("table-names-of-others", File(file.base, file.tasks, file.aliases, tables=named), why)


def _arrays(suite: Suite) -> None:
    rows, tasks = [f"r{number}" for number in range(20)], [f"t{number}" for number in range(10)]
    tables = [
        table(name, rows, tasks, coding=coding, data=content)
        for name, content, coding in (
            ("frame", None, Coding("zstd", 0, raw_frame)),
            ("level-3", bytes(b & 3 for b in noise("low", 800)), Coding("zstd", 0, kept("level 3"))),
            ("mixed", b"\x3c" * 128 + bytes(range(112)) * 6, Coding("zstd", 0, mixed)),
            ("raw", None, RAW),
            ("rle", b"\x3c" * 800, Coding("zstd", 0, rle_frame)),
        )
    ]
    base = [Tensor(name, "F32", (), sha256=False, sampled=False) for name in rows]
    file = File(base, [Task(name) for name in tasks], content_id=False, tables=tables)
    suite.valid("table-codecs", file, "elements as they are and in zstd frames")
    numbers = (0.0, -0.0, 1e-45, -1e-45, 1.1754943508222875e-38, 3.4028234663852886e38, -3.4028234663852886e38, 1.0)
    odd = table(rows=["v", "w"], tasks=["t", "u", "x", "y"], data=struct.pack("<8f", *numbers))
    more = [*TASKS, Task("x"), Task("y")]
    suite.valid("table-values", _of(odd, tasks=more), "zeros, subnormals and the largest elements")
    rows, tasks = [f"{number:03x}" for number in range(1025)], [f"{number:x}" for number in range(CHUNK // 1024)]
    base = [Tensor(name, "BOOL", (), sha256=False, sampled=False) for name in rows]
    long = table(rows=rows, tasks=tasks, coding=Coding("zstd", 0, rle_frame), data=b"\x3c" * (4 * 1025 * 1024))
    file = File(base, [Task(name) for name in tasks], content_id=False, tables=[long])
    why = "a table of two chunks"
    suite.valid("table-chunks", file, why, large=True, verdict_only=True, stored=kept("level 19"))


def _others(suite: Suite) -> None:
    alone = File([W], [Task("t")], tables=[table(rows=["w"], tasks=["t"])])
    suite.valid("table-alone", alone, "a table, and no entries")
    loose = File(
        [BARE],
        [Task("t", [Ternary(BARE, digest=False)])],
        content_id=False,
        tables=[table(rows=["w"], tasks=["t"], clamp=(0, ONE))],
    )
    suite.valid("table-no-digests", loose, "no digest but that of the elements")
    rows, tasks = ["v", "w"], ["v", "w", "x", "y", "z"]
    router = Router([samples(name, name, (2, 5)) for name in ("v", "w")])
    masks = [Task("v", [Masked(W, vector(W))]), Task("w", [Masked(W, vector(W, "other"))])]
    given = (table("w", rows, tasks, seed="w"), table("v", rows, tasks, seed="v"), table("u", rows, tasks))
    file = File([W, V], [*masks, *map(Task, "xyz")], router=router, tables=given)
    why = "tables, features and vectors of the same names, dtypes and shapes, in the order of their SHA-256"
    suite.valid("table-router-masked", file, why)
    small = File([W, V], TASKS, profile="mapped", tables=[table(), table("d", rows=["w"])])
    suite.valid("table-mapped", small, "the mapped profile: tables at 64 and a mask")
