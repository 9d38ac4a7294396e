"""Files at every limit of section 15, and files one beyond.

Levels of nesting can be reached by keys of a later version only: they are in `newer.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from making import zstd_frames as zf
from making.material import BARE, WINDOW_8M, W, kept, plain, raw_frame, rle_frame
from making.model import CHUNK, Coding, Dense, File, Masked, Task, Tensor, Ternary, Vector
from making.suite import Suite
from making.writing import TENSOR, write

INDEX = 1 << 26
MEMBERS = 4096
VALUES = 1 << 18
TENSORS = 1 << 20
WIDE_NAMES = 1 << 20
TEXTS = 1 << 22


def add(suite: Suite) -> None:
    """Add all of them."""
    _index_length(suite)
    _members(suite)
    _tensors(suite)
    _names(suite)
    _texts(suite)
    _sizes(suite)
    _windows(suite)


def _index_length(suite: Suite) -> None:
    bare = File(writer="", content_id=False)
    why = "an index of 67,108,864 bytes"
    suite.valid("limit-index-bytes", bare, why, large=True, verdict_only=True, **_of_length(INDEX))
    why = "an index of one byte more than 2^26"
    suite.invalid("limit-index-bytes", "TSW-108", why, bare, large=True, **_of_length(INDEX + 1))

    def stretched(extra: int) -> dict[str, Any]:
        """The index in a frame as long as is allowed, and `extra` more: blocks of one byte, empty ones, longer fields."""

        def stored(plain: bytes) -> bytes:
            target = len(plain) + len(plain) // 256 + 1024 + extra
            for window, field in product((None, WINDOW_8M), (2, 4, 8)):
                start = zf.header(len(plain), window=window, field=field) + zf.raw_blocks(plain, last=False)
                rest = target - len(start)
                if rest % 3 == 0:
                    return start + zf.block(0, 0, b"") * (rest // 3 - 1) + zf.block(0, 0, b"", last=True)
            raise ValueError("no frame of that length")

        return {"stored": stored}

    file = File([W], [Task("t", [Ternary(W)])])
    suite.valid(
        "limit-index-stored", file, "a stored index as much longer than the decoded as is allowed", **stretched(0)
    )
    suite.invalid(
        "limit-index-stored", "TSW-108", "a stored index one byte longer than is allowed", file, **stretched(1)
    )
    suite.invalid(
        "limit-index-stored-3", "TSW-108", "a stored index three bytes longer than is allowed", file, **stretched(3)
    )


def encode_of(file: File, **hooks: Any) -> bytes:
    """The index of a file."""
    found: list[bytes] = []

    def take(index: bytes) -> bytes:
        found.append(index)
        return index

    write(file, index=take, **hooks)
    return found[0]


def values_of(value: Any) -> int:
    """Maps, arrays and their members."""
    if isinstance(value, dict | list):
        members = value.values() if isinstance(value, dict) else value
        return 1 + len(members) + sum(map(values_of, members))
    return 0


def _members(suite: Suite) -> None:
    def texts(count: int) -> dict[str, str]:
        return {f"{i:04}": "" for i in range(count)}

    squeezed = {"stored": kept("level 9")}
    for what, make in (
        ("metadata", lambda n: File([W], metadata=texts(n))),
        ("aliases", lambda n: File([W], aliases=dict.fromkeys(texts(n), "w"))),
        ("tasks", lambda n: File(tasks=[Task(name) for name in texts(n)])),
        ("recipe", lambda n: File(tasks=[Task("t", recipe=texts(n))])),
    ):
        suite.valid(f"limit-members-{what}", make(MEMBERS), f"4,096 members of {what}", **squeezed)
        suite.invalid(f"limit-members-{what}", "TSW-305", f"4,097 members of {what}", make(MEMBERS + 1), **squeezed)

    def full(extra: int) -> dict[str, Any]:
        """63 tasks of full metadata, and as many texts as are missing."""

        def document(doc: dict[str, Any]) -> None:
            left = VALUES + extra - values_of(doc)
            for task in doc["tasks"]:
                for key in ("checkpoint", "metadata", "recipe"):
                    count = min(MEMBERS, left)
                    task[key] = texts(count)
                    left -= count
            if left:
                raise ValueError("more tasks are needed")

        return {"document": document, **squeezed}

    tasks = [Task(f"{i:02}") for i in range(22)]
    why = "maps, arrays and members: 262,144 all together"
    suite.valid("limit-values", File(tasks=tasks), why, large=True, verdict_only=True, **full(0))
    suite.invalid(
        "limit-values",
        "TSW-305",
        "maps, arrays and members: 262,145 all together",
        File(tasks=tasks),
        large=True,
        **full(1),
    )


def _tensors(suite: Suite) -> None:
    empty = File(content_id=False)
    suite.valid("limit-tensors", empty, "1,048,576 tensors", large=True, verdict_only=True, **_listed(TENSORS))
    suite.invalid("limit-tensors", "TSW-403", "1,048,577 tensors", empty, large=True, **_listed(TENSORS + 1))
    listed = _listed(TENSORS)

    def one_more(doc: dict[str, Any]) -> None:
        listed["document"](doc)
        record = TENSOR.pack(8, 12, 0, 1, bytes(8), bytes(32))
        shared = {"dims": b"", "names": b"00000000", "roles": b"\1", "segments": b"", "tensors": record}
        doc["shared"] = shared

    suite.invalid(
        "limit-tensors-shared",
        "TSW-403",
        "1,048,576 tensors of the base and a shared array",
        empty,
        large=True,
        **{**listed, "document": one_more},
    )


def _listed(count: int, *, ndim: int = 0, text: int = 0, window: int | None = None) -> dict[str, Any]:
    """Empty tensors of that many dimensions, and a `writer` of `text` bytes.

    Names have eight digits, the first of base 64, the others of base 4. All is compressed by hand: real compression of the
    names takes much more. Only their first group is from zstandard, so nothing before it may have a sequence.
    """
    firsts = [chr(48 + i) for i in range(65)]
    group = "".join("".join(name) for name in product("0123", repeat=7)).encode()
    names = b"".join(
        first.encode().join([b"", *(group[i : i + 7] for i in range(0, len(group), 7))]) for first in firsts
    )
    record = TENSOR.pack(8, 1, ndim, 0, bytes(8), bytes(32))
    blob, table, dims = names[: count * 8], record * count, bytes(8 * ndim * count)

    def document(doc: dict[str, Any]) -> None:
        doc["base"].update(names=blob, tensors=table, dims=dims)
        doc["writer"] = "a" * text

    def stored(plain: bytes) -> bytes:
        at = plain.index(blob[:16])
        table_at = plain.index(record * 2, at + len(blob))
        dims_at = plain.index(b"dims") + 4 + 5 if dims else 0
        size = 16384 * 8
        out = zf.header(len(plain), window=window) + zf.raw_blocks(plain[:dims_at], last=False)
        out += zf.rle_blocks(0, len(dims), last=False) if dims else b""
        out += zf.raw_blocks(plain[dims_at + len(dims) : at], last=False)
        out += _blocks(kept("level 9")(blob[:size]))
        for start in range(size, len(blob), size):
            left = min(len(blob) - start, size) // 8
            # Each name is its first digit and what lies one group before: said five times, then repeated.
            for names_here, offset in ((5, size), (left - 5, None)) if start == size else ((left, None),):
                if left == 1:
                    out += zf.block(0, 8, blob[start:])
                    break
                content = zf.rle_literals(blob[start], names_here) + zf.sequences(names_here, 1, offset, 7)
                out += zf.block(2, len(content), content)
        out += zf.raw_blocks(plain[at + len(blob) : table_at + len(record)], last=False)
        out += zf.repeat_blocks(len(record), len(table) - len(record))
        rest = plain[table_at + len(table) : len(plain) - text]
        return out + (zf.raw_blocks(rest, last=False) + zf.rle_blocks(97, text) if text else zf.raw_blocks(rest))

    return {"document": document, "stored": stored}


def _of_length(length: int, *, window: int | None = None) -> dict[str, Any]:
    """An index of that many bytes: tensors of 16 dimensions, and a text of what is missing."""
    count = (length - 4096) // (8 + 48 + 16 * 8)
    bare = File(writer="", content_id=False)
    without = len(encode_of(bare, **_listed(count, ndim=16, window=window)))
    text = length - without - 2  # its own length takes three bytes instead of one
    return _listed(count, ndim=16, text=text, window=window)


def _names(suite: Suite) -> None:
    """2^20 bytes of names that are not ASCII: of tensors first, and the last ones also of an alias or a task."""
    names = [f"{number:04}" + "\u00e9" * 510 for number in range(WIDE_NAMES // 1024)]
    tensors = [Tensor(name, "BOOL", (), data=b"\0").bare() for name in names]
    ascii_too = [Tensor("A" * 1024, "BOOL", (), data=b"\0").bare()]
    squeezed: dict[str, Any] = {"stored": kept("level 9"), "large": True}
    full = File(tensors + ascii_too, content_id=False)
    suite.valid("limit-names", full, "1,048,576 bytes of names that are not ASCII", verdict_only=True, **squeezed)
    for what, file in (
        ("a tensor", File([*tensors, Tensor("\u00e9", "BOOL", (), data=b"\0").bare()], content_id=False)),
        ("an alias", File(tensors, aliases={"\u00e9": names[0]}, content_id=False)),
        ("a task", File(tensors, [Task("\u00e9")], content_id=False)),
    ):
        why = f"names that are not ASCII take 1,048,576 bytes, and those of {what} more"
        suite.invalid(f"limit-names-{what.split()[-1]}", "TSW-403", why, file, **squeezed)
    floats = [Tensor(name, "F32", (), data=bytes(4)).bare() for name in names]
    file = File(floats, [Task("t", [Masked(floats[0], Vector(floats[0]), (0,), digest=False)])], content_id=False)
    why = "names that are not ASCII take 1,048,576 bytes, and that of a vector more"
    suite.invalid("limit-names-vector", "TSW-403", why, file, **squeezed)


def _texts(suite: Suite) -> None:
    """2^22 bytes of str, keys among them."""

    def bytes_of(value: Any) -> int:
        if isinstance(value, dict):
            return sum(bytes_of(key) + bytes_of(member) for key, member in value.items())
        if isinstance(value, list):
            return sum(map(bytes_of, value))
        return len(value.encode()) if isinstance(value, str) else 0

    def full(extra: int) -> dict[str, Any]:
        def document(doc: dict[str, Any]) -> None:
            doc["tasks"][0]["recipe"]["key"] = ""
            doc["tasks"][0]["recipe"]["key"] = "x" * (TEXTS + extra - bytes_of(doc))

        return {"document": document, "stored": kept("level 9"), "large": True}

    file = File([W], [Task("t", recipe={"key": ""})], content_id=False)
    suite.valid("limit-texts", file, "4,194,304 bytes of str", verdict_only=True, **full(0))
    suite.invalid("limit-texts", "TSW-305", "4,194,305 bytes of str", file, **full(1))


def _blocks(frame: bytes) -> bytes:
    return b"".join(zf.block(kind, len(content), content) for kind, content in zf.blocks_of(frame))


def _sizes(suite: Suite) -> None:
    top = 1 << 48
    shapes: list[tuple[int, ...]] = [
        (top,),
        (1 << 24, 1 << 24),
        (1, top, 1),
        (0, top),
        (top, top, 0),
        (top, top, 0, top),
        (2,) * 16,
    ]
    tensors = [Tensor(f"t{i}", "U8", shape, data=b"").bare() for i, shape in enumerate(shapes)]
    suite.valid(
        "limit-sizes", File(tensors, content_id=False), "dimensions and elements of 2^48, also beside a dimension of 0"
    )
    wide = Tensor("wide", "C64", (top,), data=b"").bare()
    suite.valid("limit-bytes-of-a-tensor", File([wide], content_id=False), "2^48 elements of 64 bits")
    for name, shape in (
        ("dimension", (top + 1,)),
        ("dimension-beside-zero", (0, top + 1)),
        ("elements", (1 << 24, (1 << 24) + 1)),
        ("elements-wrap-to-zero", (1 << 32, 1 << 32)),
        ("elements-wrap-to-one", ((1 << 48) - 1, (1 << 48) - 1)),
        ("dimension-of-64-bits", ((1 << 64) - 1,)),
        ("elements-of-16-dimensions", (1 << 48,) * 16),
        ("dimensions", (1,) * 17),
    ):
        big = Tensor("w", "U8", shape, data=b"").bare()
        why = (
            f"a shape beyond the limits: {'x'.join(map(str, shape)) if len(shape) < 16 else f'{len(shape)} dimensions'}"
        )
        suite.invalid(f"limit-{name}", "TSW-403", why, File([big], content_id=False))
    suite.invalid(
        "limit-dimensions-of-255",
        "TSW-403",
        "255 dimensions",
        File([Tensor("w", "U8", (1,) * 255).bare()], content_id=False),
    )
    added = _Hollow(Tensor("w", "U8", (top, 2), data=b""), digest=False)
    suite.invalid(
        "limit-elements-of-extra", "TSW-403", "2^49 elements in extra", File([], [Task("t", [added])], content_id=False)
    )
    long = Tensor("n" * 1025, "U8", (1,)).bare()
    suite.invalid("limit-name", "TSW-402", "a name of 1,025 bytes", File([long], content_id=False))
    wide_name = Tensor("ü" * 512 + "n", "U8", (1,)).bare()
    suite.invalid(
        "limit-name-in-bytes", "TSW-402", "a name of 513 letters and 1,025 bytes", File([wide_name], content_id=False)
    )
    suite.invalid(
        "limit-alias", "TSW-407", "an alias of 1,025 bytes", File([W], aliases={"n" * 1025: "w"}, content_id=False)
    )
    suite.invalid(
        "limit-task-name", "TSW-501", "a task's name of 1,025 bytes", File([W], [Task("n" * 1025)], content_id=False)
    )
    # k = 20 is in valid/codecs-rice and valid/codecs-gaps.
    for codec in ("rice", "gaps_zstd"):
        coding = Coding(codec, 21, raw_frame if codec == "gaps_zstd" else None)
        file = plain(Ternary(BARE, masks=coding, digest=False))
        suite.invalid(f"limit-k-{codec}", "TSW-606", f"{codec} with k = 21", file)
    big = Tensor("w", "F16", (CHUNK + 1,), sha256=False, sampled=False)
    suite.invalid(
        "limit-chunk",
        "TSW-601",
        "a chunk of 2^20 + 1 elements",
        File([big], [Task("t", [Ternary(big, (0,), (), masks=Coding("rice", 20), digest=False)])], content_id=False),
        content=_one_chunk,
    )


class _Hollow(Dense):
    """A dense entry of which nothing is written: its tensor is too large."""

    def segments(self) -> list[Any]:
        return []


def _one_chunk(draft: Any) -> None:
    for records in (draft.segments[0], draft.payloads[0]):
        del records[3], records[1]


def _windows(suite: Suite) -> None:
    tensor = Tensor("w", "U8", (100,)).bare()

    def dense(data: bytes, compress: Any) -> File:
        entry = Dense(replace(tensor, shape=(len(data),), data=data), coding=Coding("zstd", 0, compress), digest=False)
        return File([entry.tensor], [Task("t", [entry])], content_id=False)

    small = tensor.content
    at_most = partial(zf.raw, window=WINDOW_8M)
    suite.valid("limit-window", dense(small, at_most), "a window of 8 MiB around 100 bytes")
    beyond = partial(zf.raw, window=WINDOW_8M + 1)
    suite.invalid("limit-window", "TSW-707", "a window of 9 MiB around 100 bytes", dense(small, beyond))
    suite.invalid(
        "limit-window-largest",
        "TSW-707",
        "the largest window that a frame can name",
        dense(small, partial(zf.raw, window=255)),
    )
    eight = Tensor("w", "U64", (CHUNK,), data=bytes(8 * CHUNK)).bare()
    for name, window in (("single-segment", None), ("window", WINDOW_8M)):
        entry = Dense(eight, coding=Coding("zstd", 0, partial(rle_frame, window=window)), digest=False)
        why = "a segment that decodes to 8 MiB"
        suite.valid(f"limit-segment-{name}", File([eight], [Task("t", [entry])], content_id=False), why, large=True)
    # An index larger than 8 MiB may have a window as large as itself, 9 MiB = 8 MiB and an eighth.
    nine = 9 << 20
    window = WINDOW_8M + 1
    file = File(writer="", content_id=False)
    why = "an index of 9 MiB with a window of 9 MiB"
    suite.valid("limit-window-of-index", file, why, large=True, verdict_only=True, **_of_length(nine, window=window))
    why = "an index of 9 MiB less one byte with a window of 9 MiB"
    suite.invalid("limit-window-of-index", "TSW-707", why, file, large=True, **_of_length(nine - 1, window=window))
