"""Invalid files: the index as a document (rules 3xx)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from making.material import kept, plain, raw_frame
from making.model import File, Task, Tensor
from making.suite import Suite
from making.writing import encode, splice

_FILE = plain()
_EMPTY = File(content_id=False)


def add(suite: Suite) -> None:
    """Add all of them."""
    _types(suite)
    _shortest(suite)
    _keys(suite)
    _document(suite)


def _writer(value: bytes) -> Callable[[bytes], bytes]:
    return splice(b"\xa6writer\xa4hand", b"\xa6writer" + value)


def _types(suite: Suite) -> None:
    for name, value in (
        ("nil", b"\xc0"),
        ("false", b"\xc2"),
        ("true", b"\xc3"),
        ("negative-fixint", b"\xff"),
        ("negative-fixint-32", b"\xe0"),
        ("int8", b"\xd0\x80"),
        ("int16", b"\xd1\x80\x00"),
        ("int32", b"\xd2\x80\x00\x00\x00"),
        ("int64", b"\xd3" + b"\x80" + bytes(7)),
        ("float32", b"\xca\x3f\x80\x00\x00"),
        ("float64", b"\xcb\x3f\xf0" + bytes(6)),
        *((f"fixext{1 << n}", bytes([0xD4 + n, 1]) + bytes(1 << n)) for n in range(5)),
        ("ext8", b"\xc7\x03\x01abc"),
        ("ext16", b"\xc8\x01\x00\x01" + bytes(256)),
        ("ext32", b"\xc9\x00\x01\x00\x00\x01" + bytes(65536)),
        ("timestamp32", b"\xd6\xff" + bytes(4)),
        ("timestamp64", b"\xd7\xff" + bytes(8)),
        ("timestamp96", b"\xc7\x0c\xff" + bytes(12)),
    ):
        extra = {"stored": kept("level 3")} if len(value) > 9999 else {}
        suite.invalid(
            f"301-{name}",
            "TSW-301",
            f"the value of `writer` is a MessagePack {name}",
            _FILE,
            index=_writer(value),
            **extra,
        )
    metadata = replace(_FILE, metadata={"k": "v"})
    suite.invalid(
        "301-nil-in-metadata",
        "TSW-301",
        "a nil as a value of `metadata`",
        metadata,
        index=splice(b"\xa1k\xa1v", b"\xa1k\xc0"),
    )
    aliases = replace(_FILE, aliases={"a": "w"})
    suite.invalid(
        "301-positive-int8",
        "TSW-301",
        "an alias's number as int8",
        aliases,
        index=splice(b"\xa1a\x00", b"\xa1a\xd0\x00"),
    )


def _shortest(suite: Suite) -> None:
    def bad(name: str, why: str, file: File, old: bytes, new: bytes, **more: Any) -> None:
        suite.invalid(f"302-{name}", "TSW-302", why, file, index=splice(old, new), **more)

    for name, head in (("str8", b"\xd9\x04"), ("str16", b"\xda\x00\x04"), ("str32", b"\xdb\x00\x00\x00\x04")):
        bad(name, f"a str of 4 bytes as {name}", _FILE, b"\xa6writer\xa4hand", b"\xa6writer" + head + b"hand")
        key = head[:-1] + b"\x06writer"
        bad(f"key-{name}", f"a key of 6 bytes as {name}", _FILE, b"\xa6writer\xa4hand", key + b"\xa4hand")
    texts = (
        (31, b"\xbf", b"\xd9\x1f"),
        (255, b"\xd9\xff", b"\xda\x00\xff"),
        (65535, b"\xda\xff\xff", b"\xdb\x00\x00\xff\xff"),
    )
    for length, short, long in texts:
        text = b"x" * length
        more = {"stored": kept("level 3")} if length > 9999 else {}
        file = replace(_FILE, writer=text.decode())
        bad(f"str-of-{length}", f"a str of {length} bytes one form too long", file, short + text, long + text, **more)
    for name, head in (("bin16", b"\xc5\x00\x30"), ("bin32", b"\xc6\x00\x00\x00\x30")):
        bad(name, f"a bin of 48 bytes as {name}", _FILE, b"\xa7tensors\xc4\x30", b"\xa7tensors" + head)
    tensors = [Tensor("n" * 255, "U8", (1,)).bare()]
    bad(
        "bin-of-255",
        "a bin of 255 bytes as bin16",
        File(tensors, content_id=False),
        b"\xc4\xffnnnn",
        b"\xc5\x00\xffnnnn",
    )
    names = [f"{i:01023}" + "n" * (i < 63) for i in range(64)]  # 65,535 bytes of names
    file = File([Tensor(n, "U8", (1,)).bare() for n in names], content_id=False)
    stored = kept("level 3")
    bad(
        "bin-of-65535",
        "a bin of 65,535 bytes as bin32",
        file,
        b"\xa5names\xc5\xff\xff",
        b"\xa5names\xc6\x00\x00\xff\xff",
        stored=stored,
    )
    bad("array16", "an array of 1 as array16", _FILE, b"\xa5tasks\x91", b"\xa5tasks\xdc\x00\x01")
    bad("array32", "an array of 1 as array32", _FILE, b"\xa5tasks\x91", b"\xa5tasks\xdd\x00\x00\x00\x01")
    bad("array16-empty", "an array of 0 as array16", _EMPTY, b"\xa5tasks\x90", b"\xa5tasks\xdc\x00\x00")
    fifteen = replace(_EMPTY, tasks=[Task(f"{i:02}") for i in range(15)])
    bad("array16-of-15", "an array of 15 as array16", fifteen, b"\xa5tasks\x9f", b"\xa5tasks\xdc\x00\x0f")
    sixteen = replace(_EMPTY, tasks=[Task(f"{i:02}") for i in range(16)])
    bad(
        "array32-of-16",
        "an array of 16 as array32",
        sixteen,
        b"\xa5tasks\xdc\x00\x10",
        b"\xa5tasks\xdd\x00\x00\x00\x10",
    )
    bad("map16", "a map of 0 as map16", _FILE, b"\xa8metadata\x80\xa7profile", b"\xa8metadata\xde\x00\x00\xa7profile")
    bad(
        "map32",
        "a map of 0 as map32",
        _FILE,
        b"\xa8metadata\x80\xa7profile",
        b"\xa8metadata\xdf\x00\x00\x00\x00\xa7profile",
    )
    one = replace(_EMPTY, metadata={f"{i:02}": "" for i in range(15)})
    bad("map16-of-15", "a map of 15 as map16", one, b"\xa8metadata\x8f", b"\xa8metadata\xde\x00\x0f")
    two = replace(_EMPTY, metadata={f"{i:02}": "" for i in range(16)})
    bad("map32-of-16", "a map of 16 as map32", two, b"\xa8metadata\xde\x00\x10", b"\xa8metadata\xdf\x00\x00\x00\x10")
    aliased = replace(_FILE, aliases={"a": "w"})
    for name, number in (
        ("uint8", b"\xcc\x00"),
        ("uint16", b"\xcd\x00\x00"),
        ("uint32", b"\xce" + bytes(4)),
        ("uint64", b"\xcf" + bytes(8)),
    ):
        bad(name, f"0 as {name}", aliased, b"\xa1a\x00", b"\xa1a" + number)
    some = [Tensor(f"{i:04}", "U8", (1,)).bare() for i in range(257)]
    for value, old, new in (
        (127, b"\x7f", b"\xcc\x7f"),
        (255, b"\xcc\xff", b"\xcd\x00\xff"),
        (256, b"\xcd\x01\x00", b"\xce\x00\x00\x01\x00"),
    ):
        file = File(some, aliases={"alias": f"{value:04}"}, content_id=False)
        bad(
            f"number-{value}",
            f"{value} one form too long",
            file,
            b"\xa5alias" + old,
            b"\xa5alias" + new,
            stored=kept("level 3"),
        )
    cut = {
        "cut-by-one": lambda data: data[:-1],
        "cut-in-half": lambda data: data[: len(data) // 2],
        "cut-to-one-byte": lambda data: data[:1],
        "cut-before-last-value": lambda data: data[:-5],
        "cut-in-key": lambda data: data[:4],
        "member-missing": lambda data: b"\x87" + data[1:],
        "bin-beyond-end": splice(b"\xa7tensors\xc4\x30", b"\xa7tensors\xc6\xff\xff\xff\xff"),
        "str-beyond-end": _writer(b"\xdb\xff\xff\xff\xffhand"),
        "length-cut": _writer(b"\xda\x01"),
        "never-used-byte": _writer(b"\xc1"),
    }
    for name, change in cut.items():
        suite.invalid(f"302-{name}", "TSW-302", "the document is not whole or not well-formed", _FILE, index=change)


def _keys(suite: Suite) -> None:
    two = replace(_FILE, metadata={"a": "1", "b": "2"})
    pairs = b"\xa8metadata\x82\xa1a\xa11\xa1b\xa12"
    head = b"\xa8metadata\x82"
    for name, why, new in (
        ("descending", "keys descend", b"\xa1b\xa12\xa1a\xa11"),
        ("twice", "a key comes twice", b"\xa1a\xa11\xa1a\xa12"),
        ("twice-the-same", "a key comes twice with one value", b"\xa1a\xa11\xa1a\xa11"),
        ("number", "a key is a number", b"\x01\xa11\xa1b\xa12"),
        ("bin", "a key is a bin", b"\xc4\x01a\xa11\xa1b\xa12"),
        ("array", "a key is an array", b"\x90\xa11\xa1b\xa12"),
        ("map", "a key is a map", b"\x80\xa11\xa1b\xa12"),
        ("longer-first", "a longer key before its beginning", b"\xa2aa\xa11\xa1a\xa12"),
        ("lower-before-upper", "a lower-case letter before an upper-case one", b"\xa1a\xa11\xa1B\xa12"),
    ):
        suite.invalid(f"303-{name}", "TSW-303", f"{why} in `metadata`", two, index=splice(pairs, head + new))
    wide = b"\xa4\xf0\x90\x80\x80\xa11\xa3\xef\xbf\xae\xa12"  # U+10000 before U+FFEE: the order of UTF-16
    suite.invalid(
        "303-utf-16-order", "TSW-303", "keys in the order of UTF-16 code units", two, index=splice(pairs, head + wide)
    )

    def swapped(data: bytes) -> bytes:
        writer = b"\xa6writer\xa4hand"
        return splice(b"\xa7profile", writer + b"\xa7profile")(splice(writer, b"")(data))

    suite.invalid("303-document", "TSW-303", "the document's own keys are out of order", _FILE, index=swapped)
    for name, text in (
        ("continuation", b"\x80"),
        ("cut-2", b"\xc3"),
        ("cut-3", b"\xe2\x82"),
        ("cut-4", b"\xf0\x9f\x98"),
        ("overlong-2", b"\xc0\xaf"),
        ("overlong-3", b"\xe0\x80\xaf"),
        ("overlong-4", b"\xf0\x80\x80\xaf"),
        ("surrogate", b"\xed\xa0\x80"),
        ("surrogate-low", b"\xed\xbf\xbf"),
        ("surrogate-pair", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("beyond-unicode", b"\xf4\x90\x80\x80"),
        ("five-bytes", b"\xf8\x88\x80\x80\x80"),
        ("byte-fe", b"\xfe"),
        ("byte-ff", b"\xff"),
        ("latin-1", b"\xfcber"),
    ):
        value = bytes([0xA0 + len(text)]) + text
        suite.invalid(f"304-{name}", "TSW-304", f"`writer` is the bytes {text.hex(' ')}", _FILE, index=_writer(value))
    bad_key = splice(pairs, head + b"\xa1a\xa11\xa1\xff\xa12")
    suite.invalid("304-key", "TSW-304", "a key of `metadata` is no UTF-8", two, index=bad_key)
    for name, more in (
        ("zero", b"\0"),
        ("nil", b"\xc0"),
        ("newline", b"\n"),
        ("document", b"\x80"),
        ("never-used", b"\xc1"),
        ("text", b"\xa4more"),
    ):
        suite.invalid(
            f"306-{name}", "TSW-306", "something follows the document", _FILE, index=lambda data, more=more: data + more
        )
    suite.invalid(
        "306-in-frame",
        "TSW-306",
        "a byte follows the document within the frame",
        _FILE,
        index=lambda data: data + b"\0",
        stored=raw_frame,
    )
    suite.invalid(
        "306-number-first", "TSW-306", "a number and then the document", _FILE, index=lambda data: b"\x00" + data
    )
    # Levels beyond 8 and what else 305 forbids: limits.py and newer.py. In this version they break 307 as well.
    deep = b"\xa1a" + b"\x91" * 7
    suite.invalid(
        "305-depth-9",
        "TSW-305",
        "`metadata` holds seven arrays, one in the other: nine levels",
        two,
        index=splice(pairs, b"\xa8metadata\x82" + deep + b"\xa11\xa1b\xa12"),
    )
    deeper = b"\xa1a" + b"\x91" * 100_000
    suite.invalid(
        "305-depth-100000",
        "TSW-305",
        "`metadata` holds 100,000 levels",
        two,
        index=splice(pairs, b"\xa8metadata\x82" + deeper + b"\xa11\xa1b\xa12"),
        stored=kept("level 3"),
    )
    row = b"\xdc\x10\x01" + b"\x00" * 4097
    suite.invalid(
        "305-array-of-4097",
        "TSW-305",
        "an array of 4,097 numbers",
        two,
        index=splice(pairs, b"\xa8metadata\x82\xa1a" + row + b"\xa1b\xa12"),
    )
    rows = b"\xdc\x10\x00" + (b"\xdc\x10\x00" + b"\x00" * 4096) * 4096
    suite.invalid(
        "305-many-numbers",
        "TSW-305",
        "16 million numbers in 4,096 arrays",
        two,
        large=True,
        index=splice(pairs, b"\xa8metadata\x82\xa1a" + rows + b"\xa1b\xa12"),
        stored=kept("level 3"),
    )
    nested = b"\xdc\x10\x00" + b"\x91\x90" * 4096
    rest = b"".join(b"\xa4%04d" % i + nested for i in range(40))
    suite.invalid(
        "305-many-arrays",
        "TSW-305",
        "327,680 small arrays",
        replace(_FILE, metadata={"a": "1", "b": "2"}),
        large=True,
        index=splice(pairs, b"\xa8metadata\xde\x00\x28" + rest),
        stored=kept("level 3"),
    )


def _document(suite: Suite) -> None:
    def bad(name: str, why: str, change: Callable[[dict[str, Any]], None], file: File = _FILE) -> None:
        suite.invalid(f"307-{name}", "TSW-307", why, file, document=change)

    def set_(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
        def change(doc: Any) -> None:
            for step in path[:-1]:
                doc = doc[step]
            doc[path[-1]] = value

        return change

    def drop(path: tuple[Any, ...]) -> Callable[[dict[str, Any]], None]:
        def change(doc: Any) -> None:
            for step in path[:-1]:
                doc = doc[step]
            del doc[path[-1]]

        return change

    for key in ("base", "extra", "metadata", "profile", "tasks", "writer"):
        bad(f"no-{key}", f"`{key}` is missing", drop((key,)))
    for key in ("aliases", "dims", "names", "tensors"):
        bad(f"no-base-{key}", f"`base.{key}` is missing", drop(("base", key)))
    for key in ("dims", "names", "tensors"):
        bad(f"no-extra-{key}", f"`extra.{key}` is missing", drop(("extra", key)))
    for key in ("checkpoint", "entries", "metadata", "name", "recipe", "segments"):
        bad(f"no-task-{key}", f"`{key}` of a task is missing", drop(("tasks", 0, key)))
    for name, path in (
        ("", ("more",)),
        ("base-", ("base", "more")),
        ("extra-", ("extra", "more")),
        ("task-", ("tasks", 0, "more")),
        ("extra-id-", ("extra", "id")),
        ("extra-aliases-", ("extra", "aliases")),
    ):
        bad(
            f"{name}unknown-key",
            f"there is a key {'.'.join(map(str, path))}",
            set_(path, {} if path[-1] == "aliases" else ""),
        )
    for name, path, value in (
        ("base-array", ("base",), []),
        ("extra-bin", ("extra",), b""),
        ("metadata-array", ("metadata",), []),
        ("metadata-number", ("metadata", "a"), 1),
        ("metadata-bin", ("metadata", "a"), b"v"),
        ("metadata-map", ("metadata", "a"), {}),
        ("profile-bin", ("profile",), b"archive"),
        ("profile-number", ("profile",), 0),
        ("tasks-map", ("tasks",), {}),
        ("tasks-bin", ("tasks",), b""),
        ("task-bin", ("tasks", 0), b""),
        ("task-array", ("tasks", 0), []),
        ("task-name-bin", ("tasks", 0, "name"), b"t"),
        ("task-recipe-number", ("tasks", 0, "recipe", "a"), 5),
        ("task-checkpoint-array", ("tasks", 0, "checkpoint", "a"), []),
        ("task-metadata-bin", ("tasks", 0, "metadata", "a"), b""),
        ("writer-bin", ("writer",), b"hand"),
        ("writer-number", ("writer",), 7),
        ("content-id-str", ("content_id",), "x" * 32),
        ("content-id-31", ("content_id",), bytes(31)),
        ("content-id-33", ("content_id",), bytes(33)),
        ("content-id-empty", ("content_id",), b""),
        ("id-bin", ("base", "id"), b""),
        ("revision-number", ("base", "revision"), 1),
        ("aliases-array", ("base", "aliases"), []),
        ("names-str", ("base", "names"), "w"),
        ("dims-array", ("base", "dims"), [2, 5]),
        ("tensors-str", ("base", "tensors"), ""),
        ("alias-number-str", ("base", "aliases", "a"), "0"),
    ):
        bad(name, f"{'.'.join(map(str, path))} is of another type or size", set_(path, value))
    for name, value in (("array", []), ("bin", b""), ("str", "doc"), ("number", 7)):
        suite.invalid(
            f"307-document-{name}", "TSW-307", "the document is no map", _FILE, index=lambda _, v=value: encode(v)
        )
    profiles = {"empty": "", "upper-case": "Archive", "space": "archive ", "nul": "mapped\0", "other": "other"}
    for name, profile in profiles.items():
        suite.invalid(f"308-{name}", "TSW-308", f"profile {profile!r}", replace(_FILE, profile=profile))
