"""Files of version 1.7: what a reader of 1.0 reads all the same, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from making.masked import vector
from making.material import BARE, W, plain, raw_frame
from making.model import Dense, File, Masked, Router, Task, Tensor, Ternary
from making.router import samples
from making.suite import Suite
from making.tables import table
from making.writing import assign, edit, splice

_FILE = replace(plain(), minor=7)
_WITH_DIGESTS = File([W], [Task("t", [Ternary(W)])], minor=7)


def add(suite: Suite) -> None:
    """Add all of them."""
    _read(suite)
    _shared(suite)
    _router(suite)
    _tables(suite)
    _refused(suite)


def _nested(levels: int) -> Any:
    """Arrays, so many one in the other."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def _read(suite: Suite) -> None:
    suite.newer("nothing-new", _WITH_DIGESTS, "a later minor version that uses nothing new")
    suite.newer("largest-minor", replace(_FILE, minor=65535), "minor version 65,535")
    for name, path in (
        ("document", ("another",)),
        ("document-first", ("aaa",)),
        ("document-last", ("zzz",)),
        ("base", ("base", "another")),
        ("extra", ("extra", "another")),
        ("task", ("tasks", 0, "another")),
    ):
        for kind, value in (
            ("number", 1 << 40),
            ("map", {"a": [b"", "", 7, {"b": {}}]}),
            ("bin", bytes(300)),
            ("str", "text"),
            ("array", [[]] * 20),
        ):
            if name in ("document", "task") or kind == "map":
                suite.newer(
                    f"key-in-{name}-{kind}",
                    _FILE,
                    f"an unknown key in {name}: {kind}",
                    document=assign(*path, value=value),
                )
    suite.newer(
        "depth-8",
        _FILE,
        "an unknown key whose value reaches the eighth level",
        document=assign("another", value=_nested(7)),
    )
    suite.newer(
        "array-of-4096", _FILE, "an unknown key with 4,096 numbers", document=assign("another", value=list(range(4096)))
    )
    for bit in (0, 1, 63):
        suite.newer(
            f"optional-feature-{bit}", _FILE, f"optional feature {bit}", prologue={"optional_features": 1 << bit}
        )
    suite.newer("reserved-prologue", _FILE, "reserved bytes of the prologue", prologue={"reserved": b"\1\2\3"})
    suite.newer("reserved-trailer", _FILE, "reserved bytes of the trailer", trailer={"reserved": b"\xff\xff\xff"})
    suite.newer("reserved-entry", _FILE, "the reserved field of an entry", placed=edit("entries", vector=0xDEADBEEF))
    suite.newer("reserved-segment", _FILE, "the reserved field of a segment", placed=edit("segments", 1, reserved=9))
    suite.newer("flags-tensor", _FILE, "unknown flags of a tensor record", placed=edit("base", flags=0xFFFFFFFC))
    suite.newer("flags-entry", _FILE, "unknown flags of an entry", placed=edit("entries", flags=0xF8))
    added = replace(_FILE, tasks=[Task("t", [Dense(Tensor("x", "U8", (3,)), digest=False)])])
    suite.newer("flags-extra", added, "unknown flags of an extra record", placed=edit("extra", flags=0x80000000))


def _shared(suite: Suite) -> None:
    bare = Masked(BARE, vector(W), digest=False)
    file = File([BARE], [Task("t", [bare])], content_id=False, minor=7)
    suite.newer("masked", file, "a masked entry and its vector")
    for kind, value in (("number", 7), ("map", {"a": [b""]})):
        why = f"an unknown key in shared: {kind}"
        suite.newer(f"key-in-shared-{kind}", file, why, document=assign("shared", "another", value=value))
    suite.newer("flags-shared", file, "unknown flags of a vector's record", placed=edit("shared", flags=0xFFFFFFFD))
    suite.newer(
        "reserved-shared-segment",
        file,
        "the reserved field of a vector's segment",
        placed=edit("shared_segments", reserved=7),
    )
    for name, rule, why, hooks in (
        ("shared-role", "409", "features of no task", {"document": assign("shared", "roles", value=b"\2")}),
        ("shared-role-4", "409", "a shared array of role 4", {"document": assign("shared", "roles", value=b"\4")}),
        ("shared-dtype", "404", "dtype 21 of a vector", {"placed": edit("shared", dtype=21)}),
        ("shared-sampled", "406", "a sampled digest of a vector", {"placed": edit("shared", flags=3)}),
        (
            "shared-no-sha256",
            "406",
            "a vector without its sha256",
            {"placed": edit("shared", flags=0, sha256=bytes(32))},
        ),
        (
            "shared-key-missing",
            "307",
            "`shared.roles` is missing",
            {"document": lambda doc: doc["shared"].pop("roles")},
        ),
        ("vector", "507", "vector 1 of one", {"placed": edit("entries", vector=1)}),
        ("masked-sign", "601", "role sign where a mask is due", {"placed": edit("segments", role=2)}),
        ("shared-codec", "606", "data codec 18 of a vector", {"content": edit("shared_segments", codec=18)}),
    ):
        suite.newer(name, file, why, rule=f"TSW-{rule}", **hooks)


def _router(suite: Suite) -> None:
    given = Router([samples("t")])
    file = File([BARE], [Task("t", [Ternary(BARE, digest=False)])], content_id=False, minor=7, router=given)
    suite.newer("router", file, "a router")
    signed = File([W], [Task("t", [Ternary(W)])], minor=7, router=given)
    suite.newer("router-content-id", signed, "a router and a content id")
    for kind, value in (("number", 7), ("map", {"a": [b""]}), ("str", "more")):
        why = f"an unknown key in router: {kind}"
        suite.newer(f"key-in-router-{kind}", file, why, document=assign("router", "another", value=value))
    suite.newer(
        "flags-features", file, "unknown flags of a record of features", placed=edit("shared", flags=0xFFFFFFFD)
    )
    for name, rule, why, hooks in (
        ("router-metric", "411", "metric `manhattan`", {"document": assign("router", "metric", value="manhattan")}),
        ("router-k-0", "411", "k is 0", {"document": assign("router", "k", value=0)}),
        ("router-k-more", "411", "k is 1,048,577", {"document": assign("router", "k", value=(1 << 20) + 1)}),
        ("router-k-str", "307", "k is a str", {"document": assign("router", "k", value="10")}),
        (
            "router-key-missing",
            "307",
            "`router.metric` is missing",
            {"document": lambda doc: doc["router"].pop("metric")},
        ),
        ("router-missing", "411", "features without a router", {"document": lambda doc: doc.pop("router")}),
        ("features-role-4", "409", "a shared array of role 4", {"document": assign("shared", "roles", value=b"\4")}),
        ("features-dtype", "404", "dtype 21 of features", {"placed": edit("shared", dtype=21)}),
    ):
        suite.newer(name, file, why, rule=f"TSW-{rule}", **hooks)
    wide = replace(file, router=Router([samples("t", dtype="F64")]))
    suite.newer("features-f64", wide, "features of F64", rule="TSW-409")


def _tables(suite: Suite) -> None:
    given = table(rows=["w"], tasks=["t"])
    file = File([BARE], [Task("t", [Ternary(BARE, digest=False)])], content_id=False, minor=7, tables=[given])
    suite.newer("table", file, "a table of coefficients")
    why = "an unknown key in a table"
    suite.newer("key-in-table", file, why, document=assign("coefficients", "c", "another", value=[{"a": b""}]))
    for name, rule, why, path, value in (
        ("table-more", "412", "a table without its array", ("d",), given.keys(file.base_numbers)),
        ("table-key", "307", "a key beside the tables, which is a table that is none", ("another",), 7),
        ("table-rows", "412", "rows as u64", ("c", "rows"), bytes(8)),
    ):
        suite.newer(name, file, why, rule=f"TSW-{rule}", document=assign("coefficients", *path, value=value))


def _refused(suite: Suite) -> None:
    def bad(name: str, rule: str, why: str, file: File = _FILE, **hooks: Any) -> None:
        suite.newer(f"{name}", file, why, rule=f"TSW-{rule}", **hooks)

    for bit in (0, 40):
        bad(f"required-feature-{bit}", "103", f"required feature {bit}", prologue={"required_features": 1 << bit})
    bad(
        "both-features",
        "103",
        "an optional and a required feature",
        prologue={"required_features": 1 << 5, "optional_features": 2},
    )
    bad("next-major", "102", "version 2.0", replace(_FILE, minor=0), prologue={"major": 2})
    bad("next-major-other-crc", "102", "version 2.7 whose prologue has no CRC32C", prologue={"major": 2, "crc32c": 0})
    bad("index-encoding", "106", "index encoding 2", prologue={"index_encoding": 2})
    bad("profile", "308", "profile `streamed`", replace(_FILE, profile="streamed"))
    bad(
        "dtype",
        "404",
        "dtype 21 of a base tensor without an entry",
        replace(_FILE, tasks=[]),
        placed=edit("base", dtype=21),
    )
    bad("dtype-entry", "404", "dtype 21 of an entry", placed=edit("entries", dtype=21))
    bad("kind", "503", "kind 5", placed=edit("entries", kind=5))
    bad("role", "601", "role 6", placed=edit("segments", 1, role=6))
    bad("codec-plane", "606", "plane codec 6", placed=edit("segments", codec=6))
    dense = File([BARE], [Task("t", [Dense(BARE, digest=False)])], content_id=False, minor=7)
    bad("codec-data", "606", "data codec 18", dense, placed=edit("segments", codec=18))
    # All other rules hold.
    bad("crc", "104", "the prologue's CRC32C", prologue={"crc32c": 0})
    bad("key-missing", "307", "`writer` is missing", document=lambda doc: doc.pop("writer"))
    bad("value-of-other-type", "307", "`metadata` is an array", document=assign("metadata", value=[]))
    bad("absent-digest", "406", "an absent digest that is not zero", placed=edit("base", sampled=bytes(7) + b"\1"))
    bad(
        "depth-9",
        "305",
        "an unknown key whose value reaches the ninth level",
        document=assign("another", value=_nested(8)),
    )
    bad("array-of-4097", "305", "an unknown key with 4,097 numbers", document=assign("another", value=[0] * 4097))
    bad(
        "map-of-4097",
        "305",
        "an unknown key with 4,097 keys",
        document=assign("another", value={f"{i:04}": 0 for i in range(4097)}),
        stored=raw_frame,
    )
    for name, value in (("nil", None), ("true", True), ("negative", -1), ("float", 1.5)):
        bad(f"type-{name}", "301", f"an unknown key with {name}", document=assign("another", value=value))
    bad(
        "type-in-depth",
        "301",
        "a nil deep in the value of an unknown key",
        document=assign("another", value=[{"a": [None]}]),
    )
    for name, value, short, long in (
        ("65535", 65535, b"\xcd\xff\xff", b"\xce\x00\x00\xff\xff"),
        ("65536", 65536, b"\xce\x00\x01\x00\x00", b"\xcf" + bytes(5) + b"\x01\x00\x00"),
        ("4294967295", (1 << 32) - 1, b"\xce\xff\xff\xff\xff", b"\xcf" + bytes(4) + b"\xff" * 4),
    ):
        bad(
            f"long-{name}",
            "302",
            f"{value} one form too long in an unknown key",
            document=assign("another", value=value),
            index=splice(b"\xa7another" + short, b"\xa7another" + long),
        )
    bad(
        "keys-descend",
        "303",
        "keys descend in an unknown map",
        document=assign("another", value={"a": 1, "b": 2}),
        index=splice(b"\xa1a\x01\xa1b\x02", b"\xa1b\x02\xa1a\x01"),
    )
    bad(
        "key-number",
        "303",
        "a number as a key in an unknown map",
        document=assign("another", value={"a": 1}),
        index=splice(b"\xa7another\x81\xa1a\x01", b"\xa7another\x81\x05\x01"),
    )
    bad(
        "not-utf-8",
        "304",
        "a text of an unknown key is no UTF-8",
        document=assign("another", value="abcde"),
        index=splice(b"\xa5abcde", b"\xa5ab\xffde"),
    )
    bad(
        "digest",
        "801",
        "an entry's digest is another",
        _WITH_DIGESTS,
        document=lambda doc: doc.pop("content_id"),
        placed=edit("entries", sha256=bytes(32)),
    )
