"""Invalid files: tables of tensors and entries, names (rules 310, 4xx and 5xx)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from making.material import BARE, W, plain
from making.model import Dense, Entry, File, Removed, Task, Tensor, Ternary
from making.suite import Suite
from making.writing import Draft, edit

_FILE = plain()
_EMPTY = File(content_id=False)
_NAN, _INFINITY = 0x7FC00000, 0x7F800000


def add(suite: Suite) -> None:
    """Add all of them."""
    _tables(suite)
    _names(suite)
    _dtypes(suite)
    _order(suite)
    _flags(suite)
    _aliases_and_extra(suite)
    _entries(suite)
    _ternary(suite)
    _whole_entries(suite)


def _tables(suite: Suite) -> None:
    def longer(*path: Any, by: int) -> Callable[[dict[str, Any]], None]:
        def change(doc: Any) -> None:
            for step in path[:-1]:
                doc = doc[step]
            doc[path[-1]] = doc[path[-1]] + bytes(by) if by > 0 else doc[path[-1]][:by]

        return change

    for name, path in (
        ("tensors", ("base", "tensors")),
        ("extra", ("extra", "tensors")),
        ("entries", ("tasks", 0, "entries")),
        ("segments", ("tasks", 0, "segments")),
    ):
        suite.invalid(f"310-{name}-longer", "TSW-310", f"a byte more in {name}", _FILE, document=longer(*path, by=1))
        if name != "extra":
            suite.invalid(
                f"310-{name}-shorter", "TSW-310", f"a byte less in {name}", _FILE, document=longer(*path, by=-1)
            )
    for name, path, by in (
        ("names-longer", ("base", "names"), 1),
        ("names-shorter", ("base", "names"), -1),
        ("dims-longer", ("base", "dims"), 8),
        ("dims-shorter", ("base", "dims"), -8),
        ("dims-one-byte", ("base", "dims"), 1),
        ("extra-names", ("extra", "names"), 1),
        ("extra-dims", ("extra", "dims"), 8),
    ):
        suite.invalid(
            f"401-{name}", "TSW-401", f"{name}: not as long as the records say", _FILE, document=longer(*path, by=by)
        )


def _names(suite: Suite) -> None:
    forbidden = {
        "nul": 0x00,
        "unit-separator": 0x1F,
        "newline": 0x0A,
        "tab": 0x09,
        "escape": 0x1B,
        "delete": 0x7F,
        "c1-first": 0x80,
        "next-line": 0x85,
        "c1-last": 0x9F,
        "line-separator": 0x2028,
        "paragraph-separator": 0x2029,
        "arabic-letter-mark": 0x061C,
        "left-to-right-mark": 0x200E,
        "right-to-left-mark": 0x200F,
        "embedding-202a": 0x202A,
        "override-202b": 0x202B,
        "pop-202c": 0x202C,
        "override-202d": 0x202D,
        "override-202e": 0x202E,
        "isolate-2066": 0x2066,
        "isolate-2067": 0x2067,
        "isolate-2068": 0x2068,
        "pop-isolate-2069": 0x2069,
    }
    texts = {name: f"a{chr(code)}b" for name, code in forbidden.items()}
    texts |= {
        "not-nfc": "e\u0301",
        "not-nfc-angstrom": "\u212b",
        "not-nfc-hangul": "\u1100\u1161",
        "not-nfc-order": "a\u0301\u0327",
        "not-nfc-ohm": "10\u2126",
        "not-nfc-composition-excluded": "\u0958",
        "only-nul": "\0",
    }
    for name, text in texts.items():
        why = f"a name with {', '.join(f'U+{ord(c):04X}' for c in text)}"
        suite.invalid(f"402-{name}", "TSW-402", why, File([Tensor(text, "U8", (1,)).bare()], content_id=False))
    for name, blob in (
        ("utf-8-cut", b"\xc3"),
        ("utf-8-continuation", b"\x80"),
        ("utf-8-surrogate", b"\xed\xa0\x80"),
        ("utf-8-overlong", b"\xc1\xbf"),
        ("utf-8-beyond", b"\xf4\x90\x80\x80"),
    ):

        def rename(draft: Draft, blob: bytes = blob) -> None:
            draft.names["base"] = blob
            draft.lists["base"][0]["name_length"] = len(blob)

        suite.invalid(f"402-{name}", "TSW-402", f"a name of the bytes {blob.hex(' ')}", _FILE, placed=rename)
    two = File([Tensor("a\u00fc", "U8", (1,)).bare(), Tensor("b", "U8", (1,)).bare()], content_id=False)

    def torn(draft: Draft) -> None:
        draft.lists["base"][0]["name_length"] -= 1
        draft.lists["base"][1]["name_length"] += 1

    suite.invalid(
        "402-torn", "TSW-402", "two names that are cut within a letter: together they are UTF-8", two, placed=torn
    )
    suite.invalid("402-empty", "TSW-402", "an empty name", File([Tensor("", "U8", (1,)).bare()], content_id=False))
    bad_extra = Tensor("x\u202e", "U8", (1,))
    file = File([], [Task("t", [Dense(bad_extra, digest=False)])], content_id=False)
    suite.invalid("402-extra", "TSW-402", "a bidirectional control in the name of an extra tensor", file)
    for name, text in (
        ("empty", ""),
        ("control", "a\n"),
        ("bidi", "\u2067"),
        ("not-nfc", "e\u0301"),
        ("separator", "\u2028"),
    ):
        suite.invalid(
            f"407-name-{name}",
            "TSW-407",
            f"an alias with an improper name: {name}",
            replace(_FILE, aliases={text: "w"}),
        )
        suite.invalid(
            f"501-{name}", "TSW-501", f"a task with an improper name: {name}", replace(_FILE, tasks=[Task(text)])
        )
    suite.invalid(
        "501-twice", "TSW-501", "two tasks of one name", replace(_FILE, tasks=[Task("t"), Task("u"), Task("t")])
    )


def _dtypes(suite: Suite) -> None:
    for dtype in (0, 21, 128, 255):
        suite.invalid(
            f"404-{dtype}", "TSW-404", f"dtype {dtype} in a tensor record", _FILE, placed=edit("base", dtype=dtype)
        )
        untouched = replace(_FILE, tasks=[])
        suite.invalid(
            f"404-{dtype}-unused",
            "TSW-404",
            f"dtype {dtype} of a tensor without an entry",
            untouched,
            placed=edit("base", dtype=dtype),
        )
    for name, dtype, shape in (
        ("f4-of-1", "F4", (1,)),
        ("f4-of-odd", "F4", (3, 5)),
        ("f6-of-2", "F6_E2M3", (2,)),
        ("f6-of-scalar", "F6_E3M2", ()),
    ):
        thin = Tensor("w", dtype, shape, data=b"").bare()
        suite.invalid(
            f"404-{name}", "TSW-404", f"{dtype} elements that do not fill bytes", File([thin], content_id=False)
        )
    extra = Tensor("x", "U8", (1,))
    file = File([], [Task("t", [Dense(extra, digest=False)])], content_id=False)
    suite.invalid(
        "404-extra",
        "TSW-404",
        "dtype 99 of an extra tensor",
        file,
        placed=lambda d: (edit("extra", dtype=99)(d), edit("entries", dtype=99)(d))[0],
    )
    for dtype in (0, 21, 255):
        suite.invalid(
            f"404-entry-{dtype}", "TSW-404", f"dtype {dtype} in an entry", _FILE, placed=edit("entries", dtype=dtype)
        )


def _order(suite: Suite) -> None:
    three = File([Tensor(n, "U8", (1,)).bare() for n in "abc"], content_id=False)

    def named(*names: str) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.names["base"] = "".join(names).encode()
            for record, name in zip(draft.lists["base"], names, strict=True):
                record["name_length"] = len(name.encode())

        return change

    for name, names in (
        ("descending", ("b", "a", "c")),
        ("twice", ("a", "b", "b")),
        ("last-first", ("z", "a", "b")),
        ("longer-first", ("aa", "a", "b")),
        ("ignoring-case", ("a", "B", "c")),
        ("numbers-as-numbers", ("a.2", "a.10", "b")),
        ("utf-16", ("a", "\U00010000", "\uffee")),
    ):
        suite.invalid(
            f"405-{name}",
            "TSW-405",
            f"base tensors in the order {', '.join(map(ascii, names))}",
            three,
            placed=named(*names),
        )
    both = [Dense(Tensor("x", "F32", (3,)), digest=False)], [Dense(Tensor("x", "F64", (3,)), digest=False)]
    file = File([], [Task("a", both[0]), Task("b", both[1])], content_id=False)

    def exchanged(draft: Draft) -> None:
        draft.lists["extra"].reverse()
        draft.entries[0][0]["tensor"], draft.entries[1][0]["tensor"] = 1, 0

    suite.invalid(
        "405-extra-dtype", "TSW-405", "extra tensors of one name whose dtypes descend", file, placed=exchanged
    )

    def reordered(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[File, Callable[[Draft], None]]:
        tensors = [Tensor("x", "U8", one), Tensor("x", "U8", two)]
        made = File(
            [],
            [Task("a", [Dense(tensors[0], digest=False)]), Task("b", [Dense(tensors[1], digest=False)])],
            content_id=False,
        )

        def change(draft: Draft) -> None:
            exchanged(draft)
            draft.dims["extra"] = struct.pack(f"<{len(two)}Q", *two) + struct.pack(f"<{len(one)}Q", *one)

        return made, change

    for name, pair in (
        ("ndim", ((9,), (1, 2))),
        ("dimension", ((3,), (4,))),
        ("second-dimension", ((2, 3), (2, 4))),
        ("dimension-as-bytes", ((2,), (257,))),
    ):
        made, change = reordered(*pair)
        suite.invalid(
            f"405-extra-{name}", "TSW-405", f"extra tensors of one name and dtype: {name} descends", made, placed=change
        )
    same = Tensor("x", "U8", (3,))
    file = File([], [Task("a", [Dense(same, digest=False)]), Task("b", [Dense(same, digest=False)])], content_id=False)

    def doubled(draft: Draft) -> None:
        draft.lists["extra"] *= 2
        draft.names["extra"] *= 2
        draft.dims["extra"] *= 2
        draft.entries[1][0]["tensor"] = 1

    suite.invalid("405-extra-twice", "TSW-405", "an extra record twice", file, placed=doubled)


def _flags(suite: Suite) -> None:
    extra = Tensor("x", "U8", (1,))
    full = File([W], content_id=False)
    for bit in (2, 8, 31):
        flags = 1 << bit
        suite.invalid(
            f"406-tensor-bit-{bit}",
            "TSW-406",
            f"flag {bit} of a tensor record",
            full,
            placed=edit("base", flags=3 | flags),
        )
    why = "a digest that is said to be absent and is not zero"
    suite.invalid("406-tensor-sha256", "TSW-406", f"sha256: {why}", full, placed=edit("base", flags=2))
    suite.invalid("406-tensor-sampled", "TSW-406", f"sampled: {why}", full, placed=edit("base", flags=1))
    suite.invalid(
        "406-tensor-last-byte",
        "TSW-406",
        f"the last byte of sha256: {why}",
        _FILE,
        placed=edit("base", sha256=bytes(31) + b"\x01"),
    )
    file = File([], [Task("t", [Dense(extra, digest=False)])], content_id=False)
    suite.invalid(
        "406-extra-sha256",
        "TSW-406",
        "an extra record with a SHA-256",
        file,
        placed=edit("extra", flags=1, sha256=extra.digest),
    )
    suite.invalid(
        "406-extra-sampled",
        "TSW-406",
        "an extra record with a sampled digest",
        file,
        placed=edit("extra", flags=2, sampled=extra.sampled_digest),
    )
    suite.invalid(
        "406-extra-bytes",
        "TSW-406",
        "an extra record with a digest that its flags do not name",
        file,
        placed=edit("extra", sha256=extra.digest),
    )
    for bit in (3, 5, 7):
        suite.invalid(
            f"406-entry-bit-{bit}",
            "TSW-406",
            f"flag {bit} of an entry",
            _FILE,
            placed=edit("entries", flags=1 << bit),
        )
    suite.invalid(
        "406-entry-sha256",
        "TSW-406",
        f"an entry's sha256: {why}",
        _FILE,
        placed=edit("entries", sha256=bytes(31) + b"\x80"),
    )
    suite.invalid("107-entry", "TSW-107", "the reserved field of an entry", _FILE, placed=edit("entries", vector=1))
    suite.invalid(
        "107-entry-high",
        "TSW-107",
        "the last bit of the reserved field of an entry",
        _FILE,
        placed=edit("entries", vector=1 << 31),
    )
    suite.invalid(
        "107-segment", "TSW-107", "the reserved field of a segment", _FILE, placed=edit("segments", reserved=128)
    )


def _aliases_and_extra(suite: Suite) -> None:
    for name, number in (("one-beyond", 1), ("large", 1 << 20), ("64-bits", (1 << 64) - 1)):
        suite.invalid(
            f"407-number-{name}",
            "TSW-407",
            f"an alias of tensor {number} of one",
            _FILE,
            document=lambda doc, n=number: doc["base"]["aliases"].update(a=n),
        )
    added = replace(_FILE, tasks=[Task("t", [Dense(Tensor("x", "U8", (1,)), digest=False)])])
    suite.invalid(
        "407-number-of-extra",
        "TSW-407",
        "an alias of an extra tensor",
        added,
        document=lambda doc: doc["base"]["aliases"].update(a=1),
    )
    suite.invalid(
        "407-name-of-tensor",
        "TSW-407",
        "an alias with the name of a base tensor",
        _FILE,
        document=lambda doc: doc["base"]["aliases"].update(w=0),
    )
    suite.invalid(
        "407-without-tensors",
        "TSW-407",
        "an alias where there is no tensor",
        _EMPTY,
        document=lambda doc: doc["base"]["aliases"].update(a=0),
    )

    def surplus(draft: Draft) -> None:
        draft.lists["extra"].append(
            {"name_length": 1, "dtype": 2, "ndim": 0, "flags": 0, "sampled": bytes(8), "sha256": bytes(32)}
        )
        draft.names["extra"] += b"y"

    suite.invalid("408-one-unused", "TSW-408", "an extra record that no entry uses", added, placed=surplus)
    suite.invalid("408-without-tasks", "TSW-408", "an extra record and no task", _EMPTY, placed=surplus)


def _entries(suite: Suite) -> None:
    tensors = [Tensor(n, "F32", (10,)).bare() for n in "abc"]
    file = File(tensors, [Task("t", [Ternary(t, digest=False) for t in tensors])], content_id=False)

    def numbers(*wanted: int) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            for record, number in zip(draft.entries[0], wanted, strict=True):
                record["tensor"] = number

        return change

    for wanted in ((0, 2, 1), (2, 1, 0), (0, 1, 1), (0, 0, 2)):
        suite.invalid(
            f"502-{''.join(map(str, wanted))}", "TSW-502", f"entries of tensors {wanted}", file, placed=numbers(*wanted)
        )
    for wanted in ((0, 1, 3), (0, 1, 0xFFFFFFFF)):
        suite.invalid(
            f"502-tensor-{wanted[-1]}",
            "TSW-502",
            f"an entry of tensor {wanted[-1]} of 3",
            file,
            placed=numbers(*wanted),
        )
    changed = Tensor("w", "F16", (2, 5))
    pair: list[Entry] = [Ternary(BARE, digest=False), Dense(changed, digest=False)]
    suite.invalid(
        "502-base-and-extra",
        "TSW-502",
        "a base tensor and an extra tensor of one name",
        File([BARE], [Task("t", pair)], content_id=False),
    )
    pair = [Removed(BARE, digest=False), Dense(changed, digest=False)]
    suite.invalid(
        "502-removed-and-extra",
        "TSW-502",
        "a tensor is removed and made anew",
        File([BARE], [Task("t", pair)], content_id=False),
    )
    pair = [Dense(changed, digest=False), Dense(Tensor("w", "F64", (2, 5)), digest=False)]
    suite.invalid(
        "502-two-of-extra",
        "TSW-502",
        "two extra tensors of one name in one task",
        File([BARE], [Task("t", pair)], content_id=False),
    )
    for kind in (0, 5, 128, 255):
        suite.invalid(f"503-{kind}", "TSW-503", f"kind {kind}", _FILE, placed=edit("entries", kind=kind))


def _ternary(suite: Suite) -> None:
    def bad(name: str, why: str, file: File = _FILE, **hooks: Any) -> None:
        suite.invalid(f"504-{name}", "TSW-504", why, file, **hooks)

    for name, knob in (
        ("nan", _NAN),
        ("signalling-nan", 0x7F800001),
        ("infinity", _INFINITY),
        ("minus-infinity", 0xFF800000),
        ("negative-nan", 0xFFFFFFFF),
    ):
        bad(f"knob-{name}", f"the knob is {name}", placed=edit("entries", knob=knob))
    for dtype in ("BOOL", "U8", "I32", "I64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"):
        tensor = Tensor("w", dtype, (2, 5)).bare()
        made = File([tensor], [Task("t", [Ternary(tensor, dtype="F32", digest=False)])], content_id=False)
        bad(f"base-{dtype.lower()}", f"a switch of a {dtype} tensor", made)
        bad(f"entry-{dtype.lower()}", f"a switch that makes {dtype}", plain(Ternary(BARE, dtype=dtype, digest=False)))
    added = Tensor("x", "F32", (2, 5))
    bad(
        "extra",
        "a switch of an extra tensor",
        File([BARE], [Task("t", [Ternary(added, digest=False)])], content_id=False),
    )
    for shape, name in (((10,), "one-dimension"), ((), "scalar")):
        tensor = Tensor("w", "F32", shape).bare()
        for which in ("row", "column"):
            entry = Ternary(
                tensor,
                (0,),
                (),
                factor_dtype="u8",
                digest=False,
                rows=b"\1" * (shape[0] if shape else 1) if which == "row" else None,
                columns=b"\1" if which == "column" else None,
            )
            bad(
                f"{which}-factors-{name}",
                f"{which} factors of a tensor of {len(shape)} dimensions",
                File([tensor], [Task("t", [entry])], content_id=False),
            )
    for shape in ((3, 0), (0, 3)):
        empty = Tensor("w", "F32", shape, data=b"").bare()
        entry = Ternary(empty, (), (), factor_dtype="u8", rows=b"\1" * shape[0], digest=False)
        bad(
            f"row-factors-{shape[0]}x{shape[1]}",
            "row factors of an empty tensor",
            File([empty], [Task("t", [entry])], content_id=False),
        )
        entry = Ternary(empty, (), (), factor_dtype="u8", columns=b"", digest=False)
        bad(
            f"column-factors-{shape[0]}x{shape[1]}",
            "column factors of an empty tensor",
            File([empty], [Task("t", [entry])], content_id=False),
        )
    for number in (1, 2, 3, 4, 255):
        bad(
            f"factor-dtype-{number}-without",
            f"factor dtype {number} and no factors",
            placed=edit("entries", factor_dtype=number),
        )
    with_factors = plain(Ternary(BARE, factor_dtype="u8", rows=b"\1\2", digest=False))
    for number in (0, 4, 255):
        bad(
            f"factor-dtype-{number}-with",
            f"row factors of factor dtype {number}",
            with_factors,
            placed=edit("entries", factor_dtype=number),
        )
    for active in (3, 5, 0, 10):
        bad(f"active-{active}", f"active {active}, but the mask has 4", placed=edit("entries", active=active))
    for active in (11, (1 << 64) - 4, (1 << 32) + 4):
        bad(f"active-{active}", f"active {active} of 10 elements", placed=edit("entries", active=active))
    empty = Tensor("w", "F32", (0,), data=b"").bare()
    made = File([empty], [Task("t", [Ternary(empty, (), (), digest=False)])], content_id=False)
    bad("active-of-empty", "active 1 of an empty tensor", made, placed=edit("entries", active=1))


def _whole_entries(suite: Suite) -> None:
    dense = File([BARE], [Task("t", [Dense(BARE, digest=False)])], content_id=False)
    removed = File([BARE], [Task("t", [Removed(BARE, digest=False)])], content_id=False)
    for rule, what, file in (("505", "dense", dense), ("506", "removed", removed)):
        for name, fields in (
            ("knob", {"knob": 0x3F000000}),
            ("knob-minus-zero", {"knob": 0x80000000}),
            ("knob-subnormal", {"knob": 1}),
            ("active", {"active": 1}),
            ("active-high", {"active": 1 << 63}),
            ("factor-dtype", {"factor_dtype": 1}),
            ("row-flag", {"flags": 2}),
            ("column-flag", {"flags": 4}),
            ("dtype-float", {"dtype": 13}),
            ("dtype-of-same-size", {"dtype": 6}),
        ):
            suite.invalid(
                f"{rule}-{name}",
                f"TSW-{rule}",
                f"a {what} entry with {name}",
                file,
                placed=edit("entries", **fields),
            )
    added = File([BARE], [Task("t", [Dense(Tensor("x", "U8", (0,)), digest=False)])], content_id=False)
    suite.invalid("506-extra", "TSW-506", "an extra tensor is removed", added, placed=edit("entries", kind=4))
