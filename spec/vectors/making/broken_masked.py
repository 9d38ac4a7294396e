"""Invalid files: shared arrays and masked entries."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from making.masked import vector
from making.material import BARE, W, raw_frame
from making.model import CHUNK, HALF, Coding, Dense, Entry, File, Masked, Task, Tensor, Ternary, Vector
from making.suite import Suite
from making.writing import Draft, assign, edit

_ONE = vector(W, "one")
_SHORT = vector(W, "short", "F16")
_FILE = File([BARE], [Task("t", [Masked(BARE, _ONE, digest=False)])], content_id=False)
_MAPPED = replace(_FILE, profile="mapped")
_TWO = File(
    [BARE],
    [Task("a", [Masked(BARE, _ONE, digest=False)]), Task("b", [Masked(BARE, vector(W, "two"), digest=False)])],
    content_id=False,
)
_V, _X = Tensor("v", "F32", (2, 5)).bare(), Tensor("x", "F32", (2, 5)).bare()
_NAMES = File([_V, _X], [Task("t", [Masked(t, vector(t), digest=False) for t in (_V, _X)])], content_id=False)
_EMPTY_LIST = {"dims": b"", "names": b"", "roles": b"", "segments": b"", "tensors": b""}
_FLOAT_NOT = ("BOOL", "U8", "I32", "U64", "F8_E4M3", "F8_E8M0", "C64")


def add(suite: Suite) -> None:
    """Add all of them."""

    def bad(rule: str, name: str, why: str, file: File = _FILE, **hooks: Any) -> None:
        suite.invalid(f"{rule}-{name}", f"TSW-{rule}", why, file, **hooks)

    for group in (
        _document,
        _lists,
        _arrays,
        _order,
        _unused,
        _entries,
        _segments,
        _shared_segments,
        _places,
        _content,
        _digests,
    ):
        group(bad)


def _document(bad: Callable[..., None]) -> None:
    for key in _EMPTY_LIST:
        bad(
            "307",
            f"no-shared-{key}",
            f"`shared.{key}` is missing",
            document=lambda doc, key=key: doc["shared"].pop(key),
        )
    bad("307", "shared-unknown-key", "there is a key shared.more", document=assign("shared", "more", value=""))
    bad("307", "shared-aliases", "there is a key shared.aliases", document=assign("shared", "aliases", value={}))
    for name, path, value in (
        ("shared-array", ("shared",), []),
        ("shared-bin", ("shared",), b""),
        ("shared-number", ("shared",), 0),
        ("shared-roles-str", ("shared", "roles"), "\1"),
        ("shared-roles-array", ("shared", "roles"), [1]),
        ("shared-segments-array", ("shared", "segments"), []),
        ("shared-tensors-str", ("shared", "tensors"), ""),
        ("shared-names-str", ("shared", "names"), "w"),
        ("shared-dims-array", ("shared", "dims"), [2, 5]),
    ):
        bad("307", name, f"{'.'.join(path)} is of another type", document=assign(*path, value=value))


def _lists(bad: Callable[..., None]) -> None:
    def longer(key: str, by: int) -> Callable[[dict[str, Any]], None]:
        def change(doc: Any) -> None:
            found = doc["shared"][key]
            doc["shared"][key] = found + bytes(by) if by > 0 else found[:by]

        return change

    for key in ("tensors", "segments"):
        for by, what in ((1, "longer"), (-1, "shorter")):
            bad("310", f"shared-{key}-{what}", f"a byte {what} in shared.{key}", document=longer(key, by))
    for key, by in (("names", 1), ("names", -1), ("dims", 8), ("dims", -8), ("dims", 1)):
        name = f"shared-{key}-{by}".replace("--", "-less-")
        bad("401", name, f"shared.{key}: not as long as the records say", document=longer(key, by))

    def renamed(name: bytes) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.names["shared"] = name
            draft.lists["shared"][0]["name_length"] = len(name)

        return change

    for what, name in (("control", b"w\n"), ("bidi", "w\u202e".encode()), ("utf-8", b"w\xff"), ("empty", b"")):
        bad("402", f"shared-{what}", f"an improper name of a shared array: {what}", placed=renamed(name))
    for dtype in (0, 21, 255):
        bad("404", f"shared-{dtype}", f"dtype {dtype} of a shared array", placed=edit("shared", dtype=dtype))
    why = "a shared array without its sha256"
    bad("406", "shared-no-sha256", why, placed=edit("shared", flags=0, sha256=bytes(32)))
    bad("406", "shared-sha256-unsaid", "a shared array's flags do not name its sha256", placed=edit("shared", flags=0))
    sampled = _ONE.tensor.sampled_digest
    bad("406", "shared-sampled", "a sampled digest of a shared array", placed=edit("shared", flags=3, sampled=sampled))
    bad("406", "shared-sampled-zero", "a sampled digest of zeros", placed=edit("shared", flags=3))
    bad("406", "shared-sampled-unsaid", "an absent digest that is not zero", placed=edit("shared", sampled=sampled))
    for bit in (2, 31):
        bad("406", f"shared-bit-{bit}", f"flag {bit} of a shared array", placed=edit("shared", flags=1 | 1 << bit))


def _arrays(bad: Callable[..., None]) -> None:
    for name, roles in (("none", b""), ("two", b"\1\1"), ("zero-more", b"\1\0")):
        bad("409", f"roles-{name}", f"{len(roles)} roles of one array", document=assign("shared", "roles", value=roles))
    for role in (0, 2, 5, 255):
        why = "features of no task" if role == 2 else f"an array of role {role}"
        bad("409", f"role-{role}", why, document=assign("shared", "roles", value=bytes([role])))
    second = assign("shared", "roles", value=b"\1\2")
    bad("409", "role-of-second", "the second array is features of no task", _TWO, document=second)

    def called(name: str) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.names["shared"] = name.encode()
            draft.lists["shared"][0]["name_length"] = len(name)

        return change

    bad("409", "name-unknown", "a vector of a name that the base has not", placed=called("v"))
    bad("409", "name-longer", "a vector of a name that begins as one of the base", placed=called("w.0"))
    tied = replace(_FILE, aliases={"head": "w"})
    bad("409", "name-of-alias", "a vector with the name of an alias", tied, placed=called("head"))
    added = Task("u", [Dense(Tensor("x", "F32", (2, 5)), digest=False)])
    extra = replace(_FILE, tasks=[*_FILE.tasks, added])
    bad("409", "name-of-extra", "a vector with the name of an extra tensor", extra, placed=called("x"))
    for shape in ((10,), (5, 2), (2, 5, 1), (1, 10), (2, 4), (2, 6), (), (0,)):
        other = Tensor("w", "F32", shape)
        file = replace(_FILE, tasks=[Task("t", [Masked(BARE, vector(other), digest=False)])])
        what = "x".join(map(str, shape)) or "scalar"
        bad("409", f"shape-{what}", f"a vector of shape {list(shape)} of a tensor of shape [2, 5]", file)
    for dtype in _FLOAT_NOT:
        file = replace(_FILE, tasks=[Task("t", [Masked(BARE, vector(W, dtype=dtype), digest=False)])])
        bad("409", f"dtype-{dtype.lower()}", f"a vector of {dtype}", file)
        base = Tensor("w", dtype, (2, 5)).bare()
        entry = Masked(base, _ONE, digest=False, dtype="F32")
        file = File([base], [Task("t", [entry])], content_id=False)
        bad("409", f"base-{dtype.lower()}", f"a vector of a {dtype} tensor of the base", file)


def _order(bad: Callable[..., None]) -> None:
    def exchanged(draft: Draft) -> None:
        """The two arrays in the other order, and everything that follows from that."""
        draft.lists["shared"].reverse()
        draft.names["shared"] = draft.names["shared"][::-1]
        draft.shared_segments.reverse()
        draft.shared_payloads.reverse()
        for records in draft.entries:
            for record in records:
                record["vector"] = 1 - record["vector"]

    bad("405", "shared-name", "vectors whose names descend", _NAMES, content=exchanged)
    bad("405", "shared-sha256", "vectors of one name whose SHA-256 descend", _TWO, content=exchanged)
    file = replace(
        _FILE,
        tasks=[Task("a", [Masked(BARE, _ONE, digest=False)]), Task("b", [Masked(BARE, _SHORT, digest=False)])],
    )
    bad("405", "shared-dtype", "vectors of one name whose dtypes descend", file, content=exchanged)

    def doubled(draft: Draft) -> None:
        for key in ("names", "dims"):
            getattr(draft, key)["shared"] *= 2
        draft.lists["shared"] *= 2
        draft.roles *= 2
        draft.shared_segments = [dict(record) for record in draft.shared_segments * 2]
        draft.shared_payloads *= 2
        draft.entries[1][0]["vector"] = 1

    both = replace(_FILE, tasks=[_FILE.tasks[0], replace(_FILE.tasks[0], name="u")])
    bad("405", "shared-twice", "the same vector twice", both, content=doubled)
    # Last bit of the last byte: what comes first decides, not a sum.
    three = [vector(W, seed) for seed in "abc"]
    tasks = [Task(str(n), [Masked(BARE, found, digest=False)]) for n, found in enumerate(three)]

    def rotated(draft: Draft) -> None:
        for table in (draft.lists["shared"], draft.shared_segments, draft.shared_payloads):
            table.append(table.pop(0))
        for records in draft.entries:
            records[0]["vector"] = (records[0]["vector"] + 2) % 3

    file = replace(_FILE, tasks=tasks)
    bad("405", "shared-last-first", "three vectors of one name, of which the first comes last", file, content=rotated)


def _unused(bad: Callable[..., None]) -> None:
    empty = assign("shared", value=_EMPTY_LIST)
    switched = File([BARE], [Task("t", [Ternary(BARE, digest=False)])], content_id=False)
    bad("410", "empty", "`shared` without an array", switched, document=empty)
    bad("410", "empty-without-tasks", "`shared` without an array, and no task", File(content_id=False), document=empty)

    def first(draft: Draft) -> None:
        for records in draft.entries:
            records[0]["vector"] = 0

    bad("410", "second", "a second vector that no entry uses", _TWO, placed=first)

    def last(draft: Draft) -> None:
        for records in draft.entries:
            records[0]["vector"] = 1

    bad("410", "first", "a first vector that no entry uses", _TWO, placed=last)
    hollow = Tensor("w", "F32", (0,), data=b"").bare()
    unused = File([hollow], [Task("t", [Masked(hollow, vector(hollow), (), digest=False)])], content_id=False)

    def not_masked(draft: Draft) -> None:
        draft.entries[0][0].update(kind=1)

    bad("410", "ternary", "a vector whose number only a ternary entry names", unused, placed=not_masked)

    def no_task(draft: Draft) -> None:
        draft.entries[0].clear()

    bad("410", "without-entries", "a vector and no entry", unused, placed=no_task)


def _entries(bad: Callable[..., None]) -> None:
    for number in (1, 2, 255, 0xFFFFFFFF):
        bad("507", f"vector-{number}", f"vector {number} of one", placed=edit("entries", vector=number))
    hollow = Tensor("w", "F32", (0,), data=b"").bare()
    file = File([hollow], [Task("t", [Masked(hollow, vector(hollow), (), digest=False)])], content_id=False)
    without = {"document": lambda doc: doc.pop("shared")}
    bad("507", "without-shared", "a masked entry in a file without shared arrays", file, **without)

    def crossed(draft: Draft) -> None:
        for record in draft.entries[0]:
            record["vector"] = 1 - record["vector"]

    bad(
        "507", "vector-of-other", "masked entries of two tensors with the vectors of each other", _NAMES, placed=crossed
    )
    other = Tensor("w", "F32", (2, 6))
    file = File([BARE], [Task("t", [Masked(other, _ONE, digest=False)])], content_id=False)
    bad("507", "extra", "a masked entry of an extra tensor", file)
    same = Tensor("w", "F32", (2, 5))
    file = File([BARE], [Task("t", [Masked(same, _ONE, digest=False)])], content_id=False)
    bad("507", "extra-like-base", "a masked entry of an extra tensor like one of the base", file)
    whole = Tensor("a", "I32", (2, 5)).bare()
    entries: list[Entry] = [Masked(whole, _ONE, dtype="F32", digest=False), Masked(BARE, _ONE, digest=False)]
    file = File([whole, BARE], [Task("t", entries)], content_id=False)
    bad("507", "base-i32", "a masked entry of an I32 tensor", file)
    for dtype in _FLOAT_NOT:
        file = replace(_FILE, tasks=[Task("t", [Masked(BARE, _ONE, dtype=dtype, digest=False)])])
        bad("507", f"entry-{dtype.lower()}", f"a masked entry that makes {dtype}", file)
    for name, knob in (
        ("nan", 0x7FC00000),
        ("signalling-nan", 0x7F800001),
        ("infinity", 0x7F800000),
        ("minus-infinity", 0xFF800000),
    ):
        bad("507", f"knob-{name}", f"the knob is {name}", placed=edit("entries", knob=knob))
    for number in (1, 2, 3, 4, 255):
        bad("507", f"factor-dtype-{number}", f"factor dtype {number}", placed=edit("entries", factor_dtype=number))
    for name, flags in (("row", 2), ("column", 4), ("both", 6)):
        bad("507", f"{name}-flag", f"the flag of {name} factors", placed=edit("entries", flags=flags))
    bad("507", "factors", "u8 row factors", placed=edit("entries", flags=2, factor_dtype=1))
    for active in (0, 3, 5, 10):
        bad("507", f"active-{active}", f"active {active}, but the mask has 4", placed=edit("entries", active=active))
    for active in (11, (1 << 32) + 4, (1 << 64) - 4):
        bad("507", f"active-{active}", f"active {active} of 10 elements", placed=edit("entries", active=active))
    file = File([hollow], [Task("t", [Masked(hollow, vector(hollow), (), digest=False)])], content_id=False)
    bad("507", "active-of-empty", "active 1 of an empty tensor", file, placed=edit("entries", active=1))
    for name, entry in (
        ("ternary", Ternary(BARE, digest=False)),
        ("dense", Dense(BARE, digest=False)),
    ):
        file = File([BARE], [Task("t", [entry])], content_id=False)
        bad("107", f"vector-{name}", f"a vector's number in a {name} entry", file, placed=edit("entries", vector=1))
    shared: list[Entry] = [Masked(_V, vector(_V), digest=False), Ternary(_X, digest=False)]
    file = File([_V, _X, BARE], [Task("t", [*shared, Masked(BARE, _ONE, digest=False)])], content_id=False)
    why = "a ternary entry that names a vector that is there"
    bad("107", "vector-there", why, file, placed=lambda d: d.entries[0][2].update(vector=1))


def _stray(role: int, count: int) -> dict[str, int]:
    return {"offset": 0, "length": 0, "crc32c": 0, "count": count, "role": role} | {
        "codec": 2 if role < 3 else 16,
        "parameter": 0,
        "reserved": 0,
    }


def _segments(bad: Callable[..., None]) -> None:
    def more(role: int, count: int, data: bytes, *, first: bool = False) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            at = 0 if first else len(draft.segments[0])
            draft.segments[0].insert(at, _stray(role, count))
            draft.payloads[0].insert(at, data)

        return change

    bad("601", "masked-sign", "a masked entry with signs", content=more(2, 4, b"\0"))
    bad("601", "masked-factors", "a masked entry with row factors", content=more(3, 2, b"\1\1", first=True))
    bad("601", "masked-data", "a masked entry with data of its own", content=more(5, 10, bytes(40)))
    bad("601", "masked-two-masks", "a masked entry with two masks", content=more(1, 4, b"\x19\x02"))

    def without(draft: Draft) -> None:
        draft.segments[0].clear()
        draft.payloads[0].clear()

    bad("601", "masked-none", "a masked entry without a mask", content=without)
    for role in (2, 5, 0, 6):
        fields = {"role": role, "codec": 16, "count": 10} if role == 5 else {"role": role}
        bad("601", f"masked-role-{role}", f"role {role} where a mask is due", placed=edit("segments", **fields))


def _shared_segments(bad: Callable[..., None]) -> None:
    def shared_without(draft: Draft) -> None:
        draft.shared_segments.clear()
        draft.shared_payloads.clear()

    bad("601", "shared-none", "a vector without data", content=shared_without)

    def shared_more(draft: Draft) -> None:
        draft.shared_segments.append(_stray(5, 10))
        draft.shared_payloads.append(bytes(40))

    bad("601", "shared-more", "a segment more than follows from the vectors", content=shared_more)

    def moved(draft: Draft) -> None:
        draft.segments[0].insert(0, draft.shared_segments.pop())
        draft.payloads[0].insert(0, draft.shared_payloads.pop())

    bad("601", "shared-in-task", "the vector's data is a segment of the task", content=moved)
    for role in (0, 1, 3, 6, 255):
        fields = {"role": role, "codec": 2} if role == 1 else {"role": role}
        why = f"role {role} where a vector's data is due"
        bad("601", f"shared-role-{role}", why, placed=edit("shared_segments", **fields))
    two = Tensor("w", "F16", (CHUNK + 1,), data=bytes(2 * CHUNK + 2)).bare()
    wide = Vector(two, Coding("zstd", 0, raw_frame))
    entry = Masked(two, wide, (0, CHUNK), masks=[Coding("rice", 20), Coding("bitmap")], digest=False)
    file = File([two], [Task("t", [entry])], content_id=False)

    def chunkless(draft: Draft) -> None:
        draft.shared_segments.pop()
        draft.shared_payloads.pop()
        draft.shared_payloads[0] = b""  # nobody gets so far, and the file stays short

    bad("601", "shared-chunk-missing", "the second chunk of a vector is missing", file, content=chunkless)
    for count in (0, 9, 11, 40):
        why = f"a vector of 10 elements that counts {count}"
        bad("602", f"shared-{count}", why, content=edit("shared_segments", count=count))
    bad("602", "masked", "a mask of 10 bits with 11 ones", content=edit("segments", count=11))
    bad("107", "shared-segment", "the reserved field of a vector's segment", placed=edit("shared_segments", reserved=1))
    for codec in (0, 2, 3, 5, 15, 18):
        why = f"a vector's data with codec {codec}"
        bad("606", f"shared-codec-{codec}", why, content=edit("shared_segments", codec=codec))
    bad("606", "shared-parameter", "raw with parameter 1", content=edit("shared_segments", parameter=1))
    bad("606", "masked-codec-16", "a mask of a masked entry with codec 16", content=edit("segments", codec=16))
    framed = Vector(_ONE.tensor, Coding("zstd", 0, raw_frame))
    file = replace(_MAPPED, tasks=[Task("t", [Masked(BARE, framed, digest=False)])])
    bad("605", "shared-zstd", "mapped: a vector in a zstd frame", file)
    entry = Masked(BARE, _ONE, masks=Coding("rice", 2), digest=False)
    bad(
        "605",
        "masked-rice",
        "mapped: a mask of a masked entry in Rice codes",
        replace(_MAPPED, tasks=[Task("t", [entry])]),
    )


def _places(bad: Callable[..., None]) -> None:
    for name, offset in (("first-later", 65), ("zero", 0), ("far", 1 << 40), ("wraps", (1 << 64) - 1)):
        why = f"the vector's data at {offset}"
        bad("603", f"shared-{name}", why, placed=edit("shared_segments", offset=offset))
    for name, offset in (("overlaps", 103), ("same", 64), ("later", 105)):
        bad(
            "603",
            f"masked-{name}",
            f"the mask at {offset}, behind data that ends at 104",
            placed=edit("segments", offset=offset),
        )

    def behind(draft: Draft) -> None:
        mask, data = bytes(draft.body[40:42]), bytes(draft.body[:40])
        draft.body[:] = mask + data
        draft.segments[0][0]["offset"], draft.shared_segments[0]["offset"] = 64, 66

    bad("603", "shared-behind", "the vector's data behind the mask of the task", placed=behind)

    def both(draft: Draft) -> None:
        draft.shared_segments[1]["offset"] = 64
        draft.shared_segments[1]["crc32c"] = draft.shared_segments[0]["crc32c"]
        del draft.body[40:80]
        for records in draft.segments:
            records[0]["offset"] -= 40

    bad("603", "shared-overlap", "two vectors with the same bytes of the file", _TWO, placed=both)
    bad(
        "603",
        "shared-longer",
        "the vector's data is longer than to the mask",
        placed=edit("shared_segments", length=41),
    )

    def gap(draft: Draft) -> None:
        draft.body[40:40] = b"\0"
        draft.segments[0][0]["offset"] += 1

    bad("603", "shared-gap", "a byte between a vector and a mask in the archive profile", placed=gap)

    def unaligned(draft: Draft) -> None:
        mask = bytes(draft.body[64:66])
        draft.body[40:] = mask + bytes(22)
        draft.segments[0][0]["offset"] = 104

    bad("603", "shared-mapped", "mapped: the mask directly after the vector", _MAPPED, placed=unaligned)

    def padded(draft: Draft) -> None:
        draft.body[50] = 1

    bad("702", "shared", "a byte of the padding behind a vector is not zero", _MAPPED, placed=padded)


def _content(bad: Callable[..., None]) -> None:
    def flip(at: int, bits: int) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.body[at] ^= bits

        return change

    bad("701", "shared", "a byte of a vector is another", placed=flip(39, 0x80))
    bad("701", "masked", "a byte of a masked entry's mask is another", placed=flip(40, 0x03))

    def shared(data: bytes, **fields: int) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.shared_payloads[0] = data
            draft.shared_segments[0].update(fields)

        return change

    def mask(data: bytes) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.payloads[0][0] = data

        return change

    whole = _ONE.tensor.content
    bad("706", "shared-shorter", "39 bytes of a vector of 40", content=shared(whole[:39]))
    bad("706", "shared-longer", "41 bytes of a vector of 40", content=shared(whole + b"\0"))
    bad(
        "706",
        "shared-as-base",
        "a F16 vector in as many bytes as the F32 tensor",
        replace(_FILE, tasks=[Task("t", [Masked(BARE, _SHORT, digest=False)])]),
        content=shared(whole),
    )
    bad("707", "shared-shorter", "a frame of 39 bytes", content=shared(raw_frame(whole[:39]), codec=17))
    bad("707", "shared-longer", "a frame of 41 bytes", content=shared(raw_frame(whole + b"\0"), codec=17))
    bad("707", "shared-bytes-behind", "a byte behind the frame", content=shared(raw_frame(whole) + b"\0", codec=17))
    bad("703", "masked", "an unused bit of a masked entry's mask is one", content=mask(b"\x19\x06"))
    bad("704", "masked-more", "a mask of 5 ones that counts 4", content=mask(b"\x1b\x02"))
    bad("704", "masked-less", "a mask of 3 ones that counts 4", content=mask(b"\x19\x00"))
    bad("706", "masked-longer", "a mask of 10 bits in 3 bytes", content=mask(b"\x19\x02\x00"))


def _digests(bad: Callable[..., None]) -> None:
    signed = File([W], [Task("t", [Masked(W, _ONE)])], content_id=False)
    digest = _ONE.tensor.digest

    def recorded(found: bytes) -> dict[str, Any]:
        return {"placed": edit("shared", sha256=found)}

    bad("804", "zeros", "a SHA-256 of zeros", **recorded(bytes(32)))
    bad("804", "last-bit", "the last bit of the SHA-256", **recorded(digest[:-1] + bytes([digest[-1] ^ 0x80])))
    bad("804", "of-nothing", "the SHA-256 of no bytes", **recorded(hashlib.sha256().digest()))
    encoded = raw_frame(_ONE.tensor.content)
    framed = replace(
        _FILE, tasks=[Task("t", [Masked(BARE, Vector(_ONE.tensor, Coding("zstd", 0, raw_frame)), digest=False)])]
    )
    bad("804", "of-frame", "the SHA-256 of the bytes as stored", framed, **recorded(hashlib.sha256(encoded).digest()))

    def other(draft: Draft) -> None:
        draft.shared_payloads[0] = bytes(40)

    bad("804", "content", "a vector of other bytes than those of its SHA-256", content=other)
    bad(
        "804",
        "content-signed",
        "the same where the entry's digest is there, and right for the record",
        signed,
        content=other,
    )

    def exchanged(draft: Draft) -> None:
        draft.shared_payloads.reverse()

    bad("804", "exchanged", "two vectors, each with the bytes of the other", _TWO, content=exchanged)

    def entry(kind: int, dtype: int, tail: bytes) -> dict[str, Any]:
        head = b"TSW1-entry\0" + struct.pack("<BBBQQ", kind, dtype, 2, 2, 5)
        return {"placed": edit("entries", sha256=hashlib.sha256(head + tail).digest())}

    knob, mask = struct.pack("<f", 1), b"\x19\x02"
    for name, kind, tail in (
        ("as-ternary", 1, knob + b"\x0c" + digest + mask),
        ("without-knob", 2, b"\x0c" + digest + mask),
        ("without-dtype", 2, knob + digest + mask),
        ("without-sha256", 2, knob + b"\x0c" + mask),
        ("without-mask", 2, knob + b"\x0c" + digest),
        ("sha256-first", 2, knob + digest + b"\x0c" + mask),
        ("factor-fields", 2, knob + b"\0\0\x0c" + digest + mask),
        ("vector-number", 2, knob + bytes(4) + digest + mask),
    ):
        bad("801", f"masked-{name}", f"a masked entry's digest made otherwise: {name}", signed, **entry(kind, 12, tail))

    def knobbed(draft: Draft) -> None:
        draft.entries[0][0]["knob"] = HALF

    bad("801", "masked-knob", "a masked entry's digest is that of another knob", signed, placed=knobbed)
    full = replace(signed, content_id=True)
    other_vector = replace(full, tasks=[Task("t", [Masked(W, vector(W, "two"))])])
    wrong = other_vector.content_digest
    bad("802", "masked", "the content id is that of another vector", full, document=assign("content_id", value=wrong))
