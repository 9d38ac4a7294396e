"""Valid files: every dtype, kind, codec, form of zstd frame, shape, name and option of the format, a few to a file."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial

from making import zstd_frames as zf
from making.material import (
    WINDOW_1K,
    WINDOW_128K,
    W,
    gaps,
    half_of,
    kept,
    mixed,
    plain,
    prose,
    raw_frame,
    rice,
    rle_frame,
    scattered,
    windowed,
)
from making.model import (
    BITMAP,
    CHUNK,
    DTYPES,
    Coding,
    Compress,
    Dense,
    Entry,
    File,
    Removed,
    Task,
    Tensor,
    Ternary,
    noise,
)
from making.suite import Suite

ZEROS, ONES = Coding("zeros"), Coding("ones")
FLOATS = ("F16", "BF16", "F32", "F64")


def add(suite: Suite) -> None:
    """Add all of them."""
    _basics(suite)
    _dtypes(suite)
    _plane_codecs(suite)
    _frames(suite)
    _factors(suite)
    _shapes(suite)
    _chunks(suite)
    _names(suite)
    _structure(suite)
    _mapped(suite)
    _index(suite)


def _basics(suite: Suite) -> None:
    suite.valid("nothing", File(), "no tensor, no task")
    suite.valid("nothing-without-content-id", File(content_id=False, writer=""), "nothing in it, an empty writer")
    suite.valid("base-only", File([W, Tensor("v", "I8", (3,))]), "a base and no task")
    suite.valid("task-without-entries", File([W], [Task("t")]), "a task that changes nothing")
    suite.valid("smallest", File([W], [Task("t", [Ternary(W)])]), "one switch, bitmaps")
    knobs = {
        "minus-zero": 0x80000000,
        "zero": 0,
        "negative": 0xBF000000,
        "subnormal": 1,
        "negative-subnormal": 0x807FFFFF,
        "largest": 0x7F7FFFFF,
        "last-bit": 0x3F800001,
    }
    base = [Tensor(f"k.{name}", "F32", (9,)) for name in knobs]
    entries = [Ternary(t, (1, 8), (8,), knob=bits) for t, bits in zip(base, knobs.values(), strict=True)]
    suite.valid(
        "knobs", File(base, [Task("t", entries)]), "knobs: zeros of both signs, subnormals, the largest, the last bit"
    )


def _dtypes(suite: Suite) -> None:
    # Eight elements fill whole bytes whatever the bits.
    base = [Tensor(f"t{number:02}", name, (8,)) for name, (number, _) in DTYPES.items()]
    suite.valid(
        "dtypes-dense",
        File(base, [Task("t", [Dense(t, data=noise(f"new {t.name}", t.nbytes)) for t in base])]),
        "every dtype as a base tensor and as a dense entry",
    )
    extra = [Tensor(t.name, name, (4, 4)) for t, name in zip(base, reversed(DTYPES), strict=True)]
    suite.valid(
        "dtypes-extra",
        File(base, [Task("t", [Dense(t) for t in extra])]),
        "every dtype as an extra tensor that takes a base tensor's name with another dtype and shape",
    )
    suite.valid(
        "dtypes-removed", File(base, [Task("t", [Removed(t) for t in base])]), "every dtype as a tensor that is removed"
    )
    switches, tensors = [], []
    for here in FLOATS:
        for there in FLOATS:
            tensor = Tensor(f"{here}-{there}", here, (3, 4))
            tensors.append(tensor)
            switches.append(Ternary(tensor, (0, 5, 11), (5,), dtype=there))
    suite.valid("dtypes-ternary", File(tensors, [Task("t", switches)]), "every float dtype of base and of entry")
    thin = [
        Tensor("f4", "F4", (2,)),
        Tensor("f6", "F6_E2M3", (4, 3)),
        Tensor("f6e", "F6_E3M2", (0,)),
        Tensor("f4long", "F4", (3, 2)),
    ]
    suite.valid(
        "dtypes-of-few-bits", File(thin, [Task("t", [Dense(t) for t in thin])]), "the fewest elements that fill bytes"
    )


def _plane_codecs(suite: Suite) -> None:
    tensors: list[Tensor] = []
    entries: list[Entry] = []

    def take(
        name: str, elements: int, active: list[int], mask: Coding, sign: Coding, negative: list[int] | None = None
    ) -> None:
        tensor = Tensor(name, "BF16", (elements,))
        tensors.append(tensor)
        entries.append(
            Ternary(tensor, active, half_of(active) if negative is None else negative, masks=mask, signs=sign)
        )

    def done(name: str, why: str) -> None:
        suite.valid(name, File(tuple(tensors), [Task("t", tuple(entries))]), why)
        tensors.clear()
        entries.clear()

    every = list(range(13))
    take("a", 13, [], ZEROS, ZEROS)
    take("b", 13, [], BITMAP, BITMAP)
    take("c", 13, [], Coding("bitmap_zstd", 0, raw_frame), Coding("bitmap_zstd", 0, raw_frame))
    take("d", 13, [], ZEROS, ONES)
    take("e", 13, every, ONES, ZEROS, [])
    take("f", 13, every, ONES, ONES, every)
    take("g", 13, every, BITMAP, BITMAP, every)
    take("h", 13, every, Coding("rice", 0), Coding("rice", 3), every)
    take("i", 13, every, gaps(0), gaps(2), every)
    take("j", 16, list(range(16)), BITMAP, BITMAP)
    take("k", 17, [16], BITMAP, BITMAP)
    take("l", 13, [], ZEROS, Coding("bitmap_zstd", 0, partial(zf.raw, window=WINDOW_1K, field=4)))
    done("codecs-simple", "zeros, ones and bitmaps, for masks and for signs, also of no bits")
    wide = scattered("rice", 2000, 40)
    for k in (0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 19, 20):
        take(f"k{k:02}", 2000, wide, rice(k), rice(min(k, 20)), half_of(wide))
    take("last", 2000, [1999], rice(3), rice(0), [1999])
    take("first", 2000, [0], rice(0), rice(20), [0])
    done("codecs-rice", "Rice codes with many k for masks and signs")
    few = scattered("gaps", 3000, 12)
    for k in (0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 19, 20):
        take(f"k{k:02}", 3000, few, gaps(k), gaps(k), half_of(few))
    done("codecs-gaps", "gap bytes with many k for masks and signs")
    for gap in (253, 254, 255, 256, 509, 510, 511, 700, 764, 765, 766):
        take(f"gap{gap}", 3000, [gap, 2 * gap + 1], gaps(0), BITMAP, [gap])
        take(f"half{gap}", 3000, [2 * gap, 2999], gaps(1), BITMAP, [])
    take("end", 3000, [2999], gaps(0), BITMAP, [])
    done("codecs-gap-escapes", "gaps around multiples of 255, k = 0 and 1")
    clustered = [i for i in range(6000) if noise("cluster", 24)[i // 250] & 1 and noise("in", 6000)[i] < 90]
    for name, recipe in (
        ("one", "level 1"),
        ("nine", "level 9"),
        ("nineteen", "level 19"),
        ("flush", "level 9 flush 300"),
    ):
        mask = Coding("bitmap_zstd", 0, kept(recipe))
        take(f"bitmap-{name}", 6000, clustered, mask, Coding("bitmap_zstd", 0, kept("level 3")))
        take(f"gaps-{name}", 6000, clustered, gaps(0, kept(recipe)), gaps(1, kept("level 3")))
        take(f"gaps3-{name}", 6000, clustered, gaps(3, kept(recipe)), BITMAP)
    done("codecs-compressed", "bitmap_zstd and gaps_zstd with real compression")


def frame_cases() -> list[tuple[str, bytes, Compress]]:
    """Name, content and frame of each form of zstd frame."""
    text = prose("text", 6000)
    long = b"".join(text[turn:] + text[: turn // 2] + prose(str(turn), 90) for turn in range(17, 6000, 167))
    same = b"\x2a" * 300_000
    low = bytes(b & 3 for b in noise("low", 3000))
    mid = bytes(min(b & 15, b >> 4) for b in noise("mid", 900))
    wide = bytes(min(b & 31, b >> 3) for b in noise("wide", 20_000))
    return [
        ("raw", text[:100], raw_frame),
        ("raw-window", text[:100], windowed),
        ("raw-small-window", text[:5000], partial(zf.raw, window=WINDOW_1K, step=1024)),
        ("raw-odd-window", text[:5000], partial(zf.raw, window=0x0D, step=1024)),
        ("rle", same[:100], rle_frame),
        ("rle-one-byte", same[:1], rle_frame),
        ("rle-many-blocks", same, rle_frame),
        ("rle-window", same, partial(rle_frame, window=WINDOW_128K)),
        ("mixed", text[:200] + same[:500] + text[:50], mixed),
        ("mixed-window", text[:200] + same[:500] + text[:50], partial(mixed, window=WINDOW_1K)),
        ("blocks-of-one", text[:300], partial(zf.raw, step=1)),
        *((f"field-{size}", text[:200], partial(zf.raw, field=size)) for size in (1, 4, 8)),
        *((f"field-{size}-long", text[:300], partial(zf.raw, field=size)) for size in (2, 4, 8)),
        *((f"field-{size}-window", text[:300], partial(zf.raw, field=size, window=WINDOW_1K)) for size in (2, 4, 8)),
        ("size-255", text[:255], raw_frame),
        ("size-256", text[:256], raw_frame),
        ("no-dictionary-named", text[:50], lambda data: zf.header(50, dictionary=b"\0") + zf.raw_blocks(data)),
        ("no-dictionary-in-4", text[:50], lambda data: zf.header(50, dictionary=bytes(4)) + zf.raw_blocks(data)),
        *(
            (f"literals-{name}-{width}", data, partial(_literals, kind=kind, width=width))
            for kind, name, data in ((0, "raw", _stretched(text[:30])), (1, "rle", same[:30]))
            for width in (1, 2, 3)
        ),
        ("literals-raw-long", _stretched(text), partial(_literals, kind=0, width=3)),
        ("literals-rle-long", same[:100_000], partial(_literals, kind=1, width=3)),
        ("sequences-40000", bytes(120_008), lambda data: _many_sequences(40_000)),
        ("literals-20000", wide, kept("level 1")),
        ("repeat-by-hand", b"abc" * 50_000, lambda data: _repeating(data[:3], len(data))),
        ("low-entropy", low, kept("level 3")),
        ("low-entropy-short", low[:180], kept("level 3")),
        ("low-entropy-40k", bytes(b & b >> 3 & 3 for b in noise("low", 40_000)), kept("level 3")),
        ("middle", mid, kept("level 3")),
        ("bytes", bytes(min(a, b) for a, b in zip(*[iter(noise("bytes", 12000))] * 2, strict=True)), kept("level 3")),
        *(
            (f"text-{recipe.replace(' ', '-')}", text, kept(recipe))
            for recipe in ("level 1", "level 3", "level 7", "level 19", "level 1 window 10", "level 7 window 10")
        ),
        *((f"flush-{level}", text, kept(f"level {level} flush 700")) for level in (1, 6, 9, 16, 19)),
        ("flush-low", low, kept("level 9 flush 500")),
        ("long-19", long, kept("level 19")),
        ("long-3", long[:140_000], kept("level 3 window 17")),
        ("long-1", prose("dense", 20_000), kept("level 1")),
        ("runs", b"".join(bytes([b]) * (b % 23 + 1) for b in noise("runs", 900)), kept("level 9")),
        ("zeros-then-text", bytes(200_000) + text[:100], kept("level 3")),
    ]


def _frames(suite: Suite) -> None:
    cases = frame_cases()
    tensors = [Tensor(name, "U8", (len(data),), data=bytes(len(data))) for name, data, _ in cases]
    for part in range(0, len(cases), 10):
        entries = [
            Dense(tensor, data=data, coding=Coding("zstd", 0, compress))
            for tensor, (_, data, compress) in list(zip(tensors, cases, strict=True))[part : part + 10]
        ]
        used = [entry.tensor for entry in entries]
        suite.valid(
            f"zstd-frames-{part // 10 + 1}", File(used, [Task("t", entries)]), "dense data in zstd frames of many forms"
        )


def _repeating(unit: bytes, size: int) -> bytes:
    """A raw block of the unit, then matches."""
    blocks = zf.block(0, len(unit), unit) + zf.repeat_blocks(len(unit), size - len(unit), last=True)
    return zf.header(size) + blocks


def _stretched(data: bytes) -> bytes:
    """The data with its 15th byte forty times more: compressed blocks must be smaller than what they hold."""
    return data[:15] + data[14:15] * 40 + data[15:]


def _literals(data: bytes, *, kind: int, width: int) -> bytes:
    """A compressed block with a header of literals of `width` bytes: RLE alone, or raw and the match of `_stretched`."""
    if kind:
        content = zf.literals_header(kind, len(data), width) + data[:1] + b"\0"
    else:
        literals = data[:15] + data[55:]
        content = zf.literals_header(kind, len(literals), width) + literals + zf.sequences(1, 15, 1, 40)
    return zf.header(len(data)) + zf.block(2, len(content), content, last=True)


def _many_sequences(count: int) -> bytes:
    """Eight zeros, then sequences of three zeros each without literals: whatever offset they repeat, it holds zeros."""
    content = b"\0" + zf.sequences(count, 0, None, 3)
    return zf.header(8 + 3 * count) + zf.rle_blocks(0, 8, last=False) + zf.block(2, len(content), content, last=True)


def _factors(suite: Suite) -> None:
    shape = (4, 6)
    codes = {
        "u8": (bytes([0, 255, 1, 85]), bytes([255, 0, 128, 84, 86, 254])),
        "f16": (struct.pack("<4e", 1, -0.5, 0, -0.0), struct.pack("<6H", 1, 0x8001, 0x7BFF, 0xFBFF, 0x3C00, 0x3C01)),
        "f32": (
            struct.pack("<4f", 1, -2.5, 0, -0.0),
            struct.pack("<6I", 1, 0x80000001, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800001, 0),
        ),
    }
    tensors, entries = [], []
    for factor, (rows, columns) in codes.items():
        for which in ("row", "column", "both"):
            tensor = Tensor(f"{factor}.{which}", "F32", shape)
            tensors.append(tensor)
            entries.append(
                Ternary(
                    tensor,
                    (0, 7, 13, 23),
                    (7,),
                    factor_dtype=factor,
                    rows=rows if which != "column" else None,
                    columns=columns if which != "row" else None,
                    factors=Coding("zstd", 0, raw_frame) if which == "both" else Coding("raw"),
                )
            )
    suite.valid(
        "factors",
        File(tensors, [Task("t", entries)]),
        "row and column factors of every dtype, edge codes, raw and zstd",
    )
    many = [Tensor("three", "F16", (2, 3, 4)), Tensor("five", "F32", (3, 1, 1, 2, 1)), Tensor("narrow", "F64", (5, 1))]
    codes_of = {"three": (2, 12), "five": (3, 2), "narrow": (5, 1)}
    entries = [
        Ternary(
            t,
            (0,),
            (),
            factor_dtype="u8",
            rows=noise("r", codes_of[t.name][0]),
            columns=noise("c", codes_of[t.name][1]),
        )
        for t in many
    ]
    suite.valid(
        "factors-of-many-dimensions",
        File(many, [Task("t", entries)]),
        "rows are the first dimension, columns all others",
    )
    wide = Tensor("wide", "F16", (1, CHUNK + 1), sha256=False, sampled=False)
    entry = Ternary(wide, (0, CHUNK), (CHUNK,), factor_dtype="u8", rows=b"\x55", columns=b"\x55" * (CHUNK + 1))
    entry = replace(entry, masks=rice(20), signs=BITMAP, factors=Coding("zstd", 0, rle_frame))
    suite.valid(
        "factors-of-two-chunks",
        File([wide], [Task("t", [entry])], content_id=False),
        "column factors of more than one chunk",
    )
    none = [Tensor("all-row-factors", "F32", (3, 2))]
    suite.valid(
        "factors-without-active",
        File(
            none, [Task("t", [Ternary(none[0], (), (), factor_dtype="f32", rows=bytes(12), masks=ZEROS, signs=ZEROS)])]
        ),
        "factors where no element is active",
    )


def _shapes(suite: Suite) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "d00": (),
        "d01": (7,),
        "d02": (2, 3),
        "d03": (2, 1, 3),
        "d16": (1, 2) * 2 + (1,) * 12,
        "one": (1,),
        "one-by-one": (1, 1),
        "e1": (0,),
        "e2": (3, 0),
        "e3": (0, 3),
        "e16": (0,) * 16,
    }
    tensors = [Tensor(name, "F32", shape) for name, shape in shapes.items()]
    first = [Ternary(t, (0,) if t.elements else (), ()) for t in tensors]
    last = [Dense(t, data=noise(t.name + "!", t.nbytes)) for t in tensors]
    gone = [Removed(t) for t in tensors]
    tasks = [Task("ternary", first), Task("dense", last), Task("removed", gone)]
    suite.valid(
        "shapes", File(tensors, tasks), "0, 1, 2, 3 and 16 dimensions, scalars and empty tensors, of every kind"
    )
    more = [Tensor(t.name, "U16", t.shape) for t in tensors]
    suite.valid("shapes-extra", File(tensors, [Task("t", [Dense(t) for t in more])]), "the same shapes in extra")


def _chunks(suite: Suite) -> None:
    size = CHUNK + 1
    big = Tensor("big", "U8", (size,), data=bytes(size))
    two = Tensor("two", "F16", (2, CHUNK // 2 + 3), data=bytes(2 * (CHUNK + 6)))
    exact = Tensor("exact", "BF16", (CHUNK,), data=bytes(2 * CHUNK))
    active = [0, 1, CHUNK - 1, CHUNK, CHUNK + 5]
    some = scattered("chunk", 4000, 20)
    tasks = [
        Task(
            "rice",
            [
                Ternary(two, active, (1, CHUNK), masks=rice(18), signs=BITMAP),
                Ternary(exact, some, half_of(some), masks=rice(2)),
            ],
        ),
        Task(
            "gaps",
            [Ternary(two, active, (), masks=gaps(12), signs=ZEROS), Ternary(exact, [CHUNK - 1], [], masks=gaps(20))],
        ),
        Task(
            "mixed",
            [
                Ternary(two, [CHUNK + 5], [CHUNK + 5], masks=[ZEROS, BITMAP], signs=[ZEROS, ONES]),
                Ternary(exact, some, (), masks=Coding("bitmap_zstd", 0, kept("level 3")), signs=ZEROS),
            ],
        ),
        Task("dense", [Dense(big, data=b"\x07" * size, coding=Coding("zstd", 0, rle_frame))]),
        Task("long", [Ternary(exact, [CHUNK - 1], [], masks=gaps(0, kept("level 3")))]),
    ]
    suite.valid(
        "chunks", File([big, two, exact], tasks), "tensors of one and two chunks, the last of one element and of six"
    )
    full = Tensor("full", "F16", (2, CHUNK), sha256=False, sampled=False)
    entry = Ternary(full, range(2 * CHUNK), (), masks=[ONES, ONES], signs=ZEROS, digest=False)
    suite.valid(
        "chunks-all-active",
        File([full], [Task("t", [entry])], content_id=False),
        "every element of two chunks is active",
    )
    every_second = range(0, CHUNK, 2)
    entry = Ternary(
        exact, every_second, (), masks=Coding("bitmap_zstd", 0, rle_frame), signs=Coding("bitmap_zstd", 0, rle_frame)
    )
    suite.valid(
        "chunk-of-alternating-bits", File([exact], [Task("t", [entry])]), "a full chunk as one RLE block of 128 KiB"
    )


def _names(suite: Suite) -> None:
    names = [
        "../../etc/passwd",
        "/",
        "C:\\x",
        "a/b",
        "a\\b",
        ".",
        "..",
        "CON",
        "NUL.txt",
        " ",
        " leading and trailing ",
        "~",
        "%s%n",
        "$HOME",
        "'; DROP TABLE tensors; --",
        "<script>alert(1)</script>",
        "{}",
        "__proto__",
        "constructor",
        "null",
        "0",
        "-1",
        "Über",
        "\u00c5ngstr\u00f6m",
        "\u0430dam",  # a Cyrillic letter that looks like the Latin one
        "adam",
        "ﬁ",  # a ligature: NFC keeps it
        "\u1e9b\u0323",
        "重み.層.0",
        "가중치",
        "وزن",
        "משקל",
        "👍🏽",
        "👩\u200d💻",  # a zero width joiner is no bidirectional control
        "zero\u200bwidth\u200cspaces",
        "\u00a0no-break",
        "soft\u00adhyphen",
        "\ufeffbyte order mark",
        "\u200d",
        "\u2027\u202f",
        "\u2065\u206a",
        "\u061b\u061d",
        "\u200b\u2010",
        "\u00a0\u007e",
        "\U0010ffff",
        "\ue000 private",
        "\uffff",
        "q\u0323\u0301",  # marks that stay apart: there is no such letter
        "n" * 1024,
        "ü" * 512,
        "\U0001d4b3" * 256,
        "n" * 1023 + "m",
    ]
    tensors = [Tensor(name, "U8", (1,)) for name in names]
    suite.valid(
        "names",
        File(tensors),
        "names that look like paths, scripts, look-alikes, of 1,024 bytes, next to what is forbidden",
    )
    as_aliases = File([W], [Task("t", [Ternary(W)])], aliases=dict.fromkeys(names, "w"))
    suite.valid("names-aliases", as_aliases, "the same as aliases")
    suite.valid("names-tasks", File([W], [Task(name) for name in names]), "the same as names of tasks")
    order = ["a", "A", "aa", "a.b", "a-b", "a0", "b", "\u00e9", "\uffee", "\U00010000", "z", "~", "a b"]
    suite.valid(
        "names-order",
        File([Tensor(n, "U8", (2,)) for n in order]),
        "names ascend by UTF-8 bytes: U+FFEE lies before U+10000",
    )


def _structure(suite: Suite) -> None:
    base = [W, Tensor("b", "F32", (4,)), Tensor("c", "I64", (2,))]
    metadata = {
        "": "",
        "key": "value",
        "zwei": "Zeilen\nhier\0\x1b[31m",
        "rtl": "\u202eabc",
        "long": "x" * 700,
        "emoji": "🧪",
    }
    tasks = [
        Task(
            "zeta",
            [Ternary(W)],
            recipe={"select": "global", "density": "0.1"},
            checkpoint={"format": "pt"},
            metadata=metadata,
        ),
        Task("alpha", [Removed(base[1]), Dense(base[2])], checkpoint={"": "empty key"}),
        Task("mid", [], recipe={"x": "y" * 300}),
    ]
    suite.valid(
        "metadata",
        File(
            base,
            tasks,
            id="models/\u202eevil",
            revision="main\n",
            metadata=metadata,
            writer="hand \x1b[0m\u2028 " + "w" * 300,
        ),
        "metadata, recipe, checkpoint, id, revision and writer with controls; tasks out of order",
    )
    suite.valid("id-without-revision", File(base, id="models/base"), "id, no revision")
    suite.valid("revision-without-id", File(base, revision=""), "an empty revision, no id")
    added = [
        Tensor("new", "F32", (3,)),
        Tensor("new", "F32", (3, 1)),
        Tensor("new", "F64", (3,)),
        Tensor("new", "U8", (9,)),
    ]
    longer = [Tensor("new", "F32", (4,)), Tensor("n", "F32", (3,))]
    suite.valid(
        "extra-same-name",
        File(base, [Task(f"t{i}", [Dense(t)]) for i, t in enumerate([*added, *longer])]),
        "extra tensors of one name in several dtypes and shapes, in the order of dtype, ndim, dimensions",
    )
    shared = Tensor("new", "F32", (3,))
    suite.valid(
        "extra-shared",
        File(base, [Task("a", [Dense(shared)]), Task("b", [Dense(shared, data=noise("other", 12))])]),
        "one extra tensor that two tasks make",
    )
    same = Tensor("w", W.dtype, W.shape)
    suite.valid(
        "extra-like-base",
        File([W], [Task("t", [Dense(same)])]),
        "an extra tensor with name, dtype and shape of a base tensor: writers should not, readers must read it",
    )
    tied = {"head": "w", "tail": "w", "also b": "b"}
    suite.valid("aliases", File(base, [Task("t", [Ternary(W)])], aliases=tied), "aliases")
    suite.valid(
        "aliases-untied",
        File(base, [Task("t", [Ternary(W), Dense(Tensor("head", W.dtype, W.shape))]), Task("u", [])], aliases=tied),
        "a task that unties an alias",
    )
    suite.valid("aliases-removed", File(base, [Task("t", [Removed(W)])], aliases=tied), "a removed tensor with aliases")
    suite.valid(
        "aliases-removed-but-one",
        File(base, [Task("t", [Removed(W), Dense(Tensor("tail", "F16", (2, 2)))])], aliases=tied),
        "the tensor is removed, one of its aliases lives on with another dtype and shape",
    )
    mix = [
        Tensor("none", "U8", (5,)).bare(),
        Tensor("full", "U8", (5,), sampled=False),
        Tensor("sampled", "U8", (5,), sha256=False),
    ]
    tasks = [Task("t", [Dense(mix[0], digest=False), Dense(mix[1]), Dense(mix[2])])]
    suite.valid("digests-partly", File(mix, tasks, content_id=False), "digests of some tensors and of some entries")
    suite.valid(
        "digests-all-but-content-id",
        File(base, [Task("t", [Ternary(W)])], content_id=False),
        "all digests, no content id",
    )
    big = [Tensor(f"n{n}", "U8", (n,)) for n in (65535, 65536, 65537, 70_000, 200_000)]
    suite.valid("digests-sampled", File(big), "sampled digests on both sides of 65,536 bytes")
    suite.valid(
        "bundle",
        File([W, base[1]], [Task(f"task {i:03}", [Ternary(W, (i % 10,), ())]) for i in range(40)]),
        "forty tasks",
    )
    suite.valid("no-digests", plain(), "no digest at all")


def _mapped(suite: Suite) -> None:
    a, b = Tensor("a", "F32", (9, 9)), Tensor("b", "F16", (100_000,))
    c, d = Tensor("c", "F64", (CHUNK + 3,), data=bytes(8 * (CHUNK + 3))), Tensor("d", "F32", (0,))
    few = list(range(0, 100_000, 7))
    zeroed = b"\0" * 140_000
    entries = [
        Ternary(a, (0, 80), (80,), factor_dtype="u8", rows=noise("r", 9), columns=noise("c", 9)),
        Ternary(b, few, few[::3]),
        Ternary(d, (), ()),
        Dense(Tensor("x", "U8", (3,))),
        Dense(Tensor("y", "U8", (65_535,), data=zeroed[:65_535])),
        Dense(Tensor("z", "U8", (65_536,), data=zeroed[:65_536])),
        Dense(Tensor("zz", "U8", (0,))),
    ]
    tasks = [Task("t", entries), Task("u", [Ternary(a, (), ()), Removed(b)]), Task("v")]
    suite.valid(
        "mapped",
        File([a, b, d], tasks, profile="mapped"),
        "the mapped profile: segments at 64 and, from 65,536 bytes on, 4,096",
    )
    suite.valid("mapped-nothing", File(profile="mapped"), "the mapped profile without segments")
    suite.valid(
        "mapped-one-byte", File([W], [Task("t", [Ternary(W, (0,), ())])], profile="mapped"), "padding up to the index"
    )
    two = Ternary(c, [0, CHUNK - 1, CHUNK, CHUNK + 2], [CHUNK])
    suite.valid(
        "mapped-chunks", File([c], [Task("t", [two])], profile="mapped"), "two chunks of a mask, the first of 128 KiB"
    )


def _index(suite: Suite) -> None:
    file = File([W, Tensor("b", "F32", (4,))], [Task("t", [Ternary(W)])], metadata={"note": "n" * 500})
    for name, compress in (
        ("raw-block", raw_frame),
        ("window", windowed),
        ("level-3", kept("level 3")),
        ("level-19", kept("level 19")),
        ("field-8", partial(zf.raw, field=8)),
        ("blocks", partial(zf.raw, step=50)),
    ):
        suite.valid(f"index-zstd-{name}", file, "the index as one zstd frame", stored=compress)
    suite.valid("index-of-one-key-maps", File([W], [Task("t")], metadata={"a": "b"}), "small maps")
    many = {f"key {i:05}": "v" * (i % 40) for i in range(300)}
    lengths = {"x" * n: "y" * n for n in (0, 1, 31, 32, 255, 256)} | {"65535": "y" * 65535, "x" * 65536: "65536"}
    suite.valid(
        "index-lengths",
        File([W], [Task("t")], metadata=lengths),
        "texts on both sides of every length form",
        stored=kept("level 3"),
    )
    suite.valid("index-map-of-300", File([W], [Task("t")], metadata=many), "a map of 300 keys")
    for count in (15, 16):
        metadata = {chr(97 + i): "v" for i in range(count)}
        file = File([W], [Task(f"t{i:02}") for i in range(count)], metadata=metadata)
        suite.valid(f"index-{count}-members", file, f"a map and an array of {count} members")
    tensors = [Tensor(f"{i:05}", "U8", (1,)).bare() for i in range(300)]
    aliases = {f"alias {n}": f"{n:05}" for n in (0, 127, 128, 255, 256, 299)}
    suite.valid(
        "index-numbers",
        File(tensors, aliases=aliases, content_id=False),
        "integers on both sides of their forms",
        stored=kept("level 19"),
    )
    for count in (5, 6, 1365, 1366):  # names and tables around 255 and 65,535 bytes
        some = [Tensor(f"{i:04}", "U8", ()).bare() for i in range(count)]
        suite.valid(
            f"index-table-of-{count}",
            File(some, content_id=False),
            "tables on both sides of a length form",
            stored=kept("level 19"),
        )
    suite.valid(
        "optional-feature",
        File([W], [Task("t", [Ternary(W)])]),
        "an optional feature that no reader knows",
        prologue={"optional_features": 1 << 63 | 5},
    )
