"""Invalid files: which segments there are, where they lie, how they are stored (rules 6xx)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from making import zstd_frames as zf
from making.material import BARE, plain, raw_frame, windowed
from making.model import BITMAP, CHUNK, Coding, Dense, Entry, File, Removed, Task, Tensor, Ternary
from making.suite import Suite
from making.writing import Draft, edit

_FILE = plain()
_EMPTY = File(content_id=False)
_MAPPED = replace(_FILE, profile="mapped")
_DENSE = File([BARE], [Task("t", [Dense(BARE, digest=False)])], content_id=False)
_FACTORS = plain(Ternary(BARE, factor_dtype="u8", rows=b"\1\2", columns=bytes(5), digest=False))
_ONE_UP = plain(Ternary(BARE, (0,), (), masks=BITMAP, signs=Coding("zeros"), digest=False))


def add(suite: Suite) -> None:
    """Add all of them."""

    def bad(rule: str, name: str, why: str, file: File = _FILE, **hooks: Any) -> None:
        suite.invalid(f"{rule}-{name}", f"TSW-{rule}", why, file, **hooks)

    for group in (_roles, _counts, _places, _mapped_places, _index_place, _mapped_codecs, _codecs):
        group(bad)


def _without(number: int) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        del draft.segments[0][number], draft.payloads[0][number]

    return change


def _again(number: int) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.segments[0].append(dict(draft.segments[0][number]))
        draft.payloads[0].append(draft.payloads[0][number])

    return change


def _exchanged(one: int, two: int) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        for table in (draft.segments[0], draft.payloads[0]):
            table[one], table[two] = table[two], table[one]

    return change


def _roles(bad: Callable[..., None]) -> None:
    bad("601", "no-mask", "the mask is missing", content=_without(0))
    bad("601", "no-sign", "the signs are missing", content=_without(1))
    bad("601", "one-more", "a segment more than follows from the entry", content=_again(1))
    bad("601", "sign-first", "the signs before the mask", content=_exchanged(0, 1))
    for role in (0, 1, 3, 5, 6, 255):
        bad("601", f"role-{role}", f"role {role} where signs are due", placed=edit("segments", 1, role=role))
    bad("601", "dense-role", "dense data with the role of a mask", _DENSE, placed=edit("segments", role=1, codec=2))
    bad("601", "dense-none", "a dense entry without data", _DENSE, content=_without(0))
    removed = File([BARE, Tensor("x", "F32", (10,)).bare()], content_id=False)
    both: list[Entry] = [Removed(removed.base[0], digest=False), Ternary(removed.base[1], digest=False)]
    removed = replace(removed, tasks=[Task("t", both)])
    bad("601", "removed", "a segment of a removed entry", removed, content=_again(0))
    bad("601", "columns-before-rows", "column factors before row factors", _FACTORS, content=_exchanged(0, 1))
    bad("601", "factors-after-mask", "column factors after the mask", _FACTORS, content=_exchanged(1, 2))
    bad("601", "no-row-factors", "row factors are missing", _FACTORS, content=_without(0))
    empty = Tensor("e", "F32", (0,), data=b"").bare()
    file = File(
        [BARE, empty],
        [Task("t", [Ternary(BARE, digest=False), Ternary(empty, (), (), digest=False)])],
        content_id=False,
    )
    bad("601", "empty", "segments of an empty tensor", file, content=lambda d: (_again(0)(d), _again(1)(d))[0])
    two = Tensor("w", "F16", (CHUNK + 1,), sha256=False, sampled=False)
    entry = Ternary(two, (0, CHUNK), (), masks=[Coding("rice", 20), BITMAP], signs=Coding("zeros"), digest=False)
    wide = File([two], [Task("t", [entry])], content_id=False)
    bad("601", "chunk-missing", "the second chunk of the mask is missing", wide, content=_without(1))
    bad("601", "by-chunk", "mask, signs, mask, signs instead of masks and then signs", wide, content=_exchanged(1, 2))
    bad(
        "601",
        "without-entries",
        "a segment and no entry",
        replace(_FILE, tasks=[Task("t")]),
        content=_stray,
    )


def _counts(bad: Callable[..., None]) -> None:
    full = plain(Ternary(BARE, (0, 1, 2, 3), (0, 1, 2, 3), digest=False))
    bad("602", "mask", "a mask of 10 bits with 11 ones", content=edit("segments", count=11))
    bad("602", "mask-largest", "a mask of 10 bits with 2^32 - 1 ones", content=edit("segments", count=0xFFFFFFFF))
    bad("602", "sign", "signs of 4 bits with 5 ones", full, content=edit("segments", 1, count=5))
    bad("602", "dense-less", "dense data of 10 elements that count 9", _DENSE, content=edit("segments", count=9))
    bad("602", "dense-more", "dense data of 10 elements that count 11", _DENSE, content=edit("segments", count=11))
    bad("602", "dense-bytes", "dense data counted in bytes", _DENSE, content=edit("segments", count=40))
    bad("602", "factors", "2 row factors that count 1", _FACTORS, content=edit("segments", count=1))
    bad("602", "factors-none", "5 column factors that count 0", _FACTORS, content=edit("segments", 1, count=0))


def _places(bad: Callable[..., None]) -> None:
    for name, number, offset in (
        ("first-later", 0, 65),
        ("first-earlier", 0, 63),
        ("first-zero", 0, 0),
        ("second-overlaps", 1, 65),
        ("second-same", 1, 64),
        ("second-later", 1, 67),
        ("far", 1, 1 << 40),
        ("wraps", 1, (1 << 64) - 1),
        ("half", 1, 1 << 63),
    ):
        bad("603", name, f"segment {number} at {offset}", placed=edit("segments", number, offset=offset))

    def gap(draft: Draft) -> None:
        draft.body[2:2] = b"\0"
        draft.segments[0][1]["offset"] += 1

    bad("603", "gap", "a byte between two segments in the archive profile", placed=gap)

    def early(draft: Draft) -> None:
        draft.body[0:0] = b"\0"
        for record in draft.segments[0]:
            record["offset"] += 1

    bad("603", "gap-before-first", "a byte before the first segment", placed=early)
    bad("603", "lengths-overlap", "the first segment is longer than to the second", placed=edit("segments", length=3))
    shared = replace(_FILE, tasks=[Task("a", _FILE.tasks[0].entries), Task("b", _FILE.tasks[0].entries)])

    def same_bytes(draft: Draft) -> None:
        draft.segments[1] = [dict(record) for record in draft.segments[0]]
        del draft.body[3:]

    bad("603", "shared", "two tasks that share their segments", shared, placed=same_bytes)
    bad(
        "603",
        "tasks-exchanged",
        "the segments of the second task lie before those of the first",
        shared,
        placed=lambda d: d.segments.reverse(),
    )


def _mapped_places(bad: Callable[..., None]) -> None:

    def move(number: int, by: int) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            at = draft.segments[0][number]["offset"] - 64
            draft.body[at:at] = bytes(by)
            for record in draft.segments[0][number:]:
                record["offset"] += by

        return change

    bad("603", "mapped-64-later", "mapped: 64 bytes more than are needed", _MAPPED, placed=move(1, 64))
    bad("603", "mapped-4096-later", "mapped: a small segment at the next page", _MAPPED, placed=move(1, 4096 - 128))

    def unaligned(draft: Draft) -> None:
        del draft.body[3:64]
        draft.segments[0][1]["offset"] = 66
        draft.body[2:3] = b"\x0a"
        draft.body += bytes(-len(draft.body) % 64)

    bad("603", "mapped-unaligned", "mapped: a segment directly after another", _MAPPED, placed=unaligned)
    large = Tensor("x", "U8", (65536,), data=bytes(65536)).bare()
    page = File([large], [Task("t", [Dense(large, digest=False)])], profile="mapped", content_id=False)

    def at_64(draft: Draft) -> None:
        del draft.body[: 4096 - 64]
        draft.segments[0][0]["offset"] = 64

    bad("603", "mapped-large-at-64", "mapped: a segment of 65,536 bytes at 64", page, placed=at_64)
    bad("603", "empty-segment", "a segment of no bytes with offset 0", _ONE_UP, placed=edit("segments", 1, offset=0))
    bad(
        "603",
        "empty-segment-later",
        "a segment of no bytes one further",
        _ONE_UP,
        placed=edit("segments", 1, offset=67),
    )


def _index_place(bad: Callable[..., None]) -> None:
    for count in (1, 64):
        bad(
            "604",
            f"{count}-more",
            f"{count} bytes between the last segment and the index",
            placed=lambda d, n=count: d.body.extend(bytes(n)),
        )
    bad("604", "nothing-more", "64 bytes and no segment", _EMPTY, placed=lambda d: d.body.extend(bytes(64)))
    bad(
        "604",
        "mapped-more",
        "mapped: 64 bytes more before the index",
        _MAPPED,
        placed=lambda d: d.body.extend(bytes(64)),
    )
    bad(
        "604",
        "mapped-unaligned",
        "mapped: the index directly after the last segment",
        _MAPPED,
        placed=lambda d: d.body.__delitem__(slice(65, None)),
    )

    def cut(draft: Draft) -> None:
        del draft.body[-1:]

    bad("604", "overlap", "the last segment reaches into the index", placed=cut)


def _mapped_codecs(bad: Callable[..., None]) -> None:
    for name, entry in (
        ("mask-zeros", Ternary(BARE, (), (), masks=Coding("zeros"), digest=False)),
        ("sign-zeros", Ternary(BARE, (0,), (), signs=Coding("zeros"), digest=False)),
        ("mask-rice", Ternary(BARE, masks=Coding("rice", 2), digest=False)),
        ("mask-zstd", Ternary(BARE, masks=Coding("bitmap_zstd", 0, raw_frame), digest=False)),
        ("mask-gaps", Ternary(BARE, masks=Coding("gaps_zstd", 0, raw_frame), digest=False)),
        (
            "factors-zstd",
            Ternary(BARE, factor_dtype="u8", rows=b"\1\2", factors=Coding("zstd", 0, raw_frame), digest=False),
        ),
    ):
        bad("605", name, f"mapped: {name}", replace(plain(entry), profile="mapped"))
    squeezed = Dense(BARE, coding=Coding("zstd", 0, windowed), digest=False)
    bad(
        "605",
        "data-zstd",
        "mapped: data in a zstd frame",
        File([BARE], [Task("t", [squeezed])], profile="mapped", content_id=False),
    )


def _codecs(bad: Callable[..., None]) -> None:
    for codec in (6, 15, 16, 17, 18, 255):
        bad("606", f"mask-codec-{codec}", f"a mask with codec {codec}", content=edit("segments", codec=codec))
    for codec in (0, 1, 2, 3, 4, 5, 15, 18):
        bad("606", f"data-codec-{codec}", f"data with codec {codec}", _DENSE, content=edit("segments", codec=codec))
        bad(
            "606",
            f"factors-codec-{codec}",
            f"row factors with codec {codec}",
            _FACTORS,
            content=edit("segments", codec=codec),
        )
    for codec, coding in (("zeros", None), ("bitmap", None), ("bitmap_zstd", raw_frame)):
        entry = Ternary(
            BARE,
            () if codec == "zeros" else (0,),
            (),
            masks=Coding(codec, 0, coding),
            signs=Coding("zeros"),
            digest=False,
        )
        bad(
            "606",
            f"parameter-{codec}",
            f"{codec} with parameter 1",
            plain(entry),
            content=edit("segments", parameter=1),
        )
    bad(
        "606",
        "parameter-ones",
        "ones with parameter 1",
        plain(Ternary(BARE, range(10), (), masks=Coding("ones"), digest=False)),
        content=edit("segments", parameter=1),
    )
    bad("606", "parameter-raw", "raw with parameter 1", _DENSE, content=edit("segments", parameter=1))
    framed = Dense(BARE, coding=Coding("zstd", 0, raw_frame), digest=False)
    bad(
        "606",
        "parameter-zstd",
        "zstd with parameter 255",
        File([BARE], [Task("t", [framed])], content_id=False),
        content=edit("segments", parameter=255),
    )
    none = plain(Ternary(BARE, (), (), masks=Coding("zeros"), signs=Coding("zeros"), digest=False))

    def without_ones(codec: int, data: bytes) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.segments[0][0].update(codec=codec)
            draft.payloads[0][0] = data

        return change

    bad("606", "rice-without-ones", "rice for a plane without ones", none, content=without_ones(5, b""))
    bad("606", "gaps-without-ones", "gaps_zstd for a plane without ones", none, content=without_ones(4, zf.raw(b"")))

    def signs_without_ones(draft: Draft) -> None:
        draft.segments[0][1].update(codec=5)

    bad(
        "606",
        "rice-signs-without-ones",
        "rice for signs of which none is negative",
        _ONE_UP,
        content=signs_without_ones,
    )


def _stray(draft: Draft) -> None:
    draft.segments[0].append(
        {"offset": 64, "length": 0, "crc32c": 0, "count": 0, "role": 1, "codec": 2, "parameter": 0, "reserved": 0}
    )
    draft.payloads[0].append(b"")
