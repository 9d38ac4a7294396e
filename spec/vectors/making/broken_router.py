"""Invalid files: routers and their features."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from making.masked import vector
from making.material import BARE, W, raw_frame
from making.model import Coding, Dense, File, Masked, Router, Task, Tensor, Ternary
from making.router import MOST, samples
from making.suite import Suite
from making.writing import Draft, assign, edit, splice

_ONE = samples("t")
_TASK = Task("t", [Ternary(BARE, digest=False)])
_FILE = File([BARE], [_TASK], content_id=False, router=Router([_ONE]))
_MAPPED = replace(_FILE, profile="mapped")
_TASKS = [_TASK, replace(_TASK, name="u"), Task("v")]
_TWO = replace(_FILE, tasks=_TASKS, router=Router([_ONE, samples("u", "u")]))
_SIGNED = File(
    [W],
    [Task("t", [Masked(W, vector(W, "one"))]), Task("u")],
    router=Router([_ONE, samples("u", "u", (1, 4))], k=3, metric="cosine"),
)


def add(suite: Suite) -> None:
    """Add all of them."""

    def bad(rule: str, name: str, why: str, file: File = _FILE, **hooks: Any) -> None:
        suite.invalid(f"{rule}-{name}", f"TSW-{rule}", why, file, **hooks)

    for group in (_keys, _presence, _names, _shapes, _records, _masks, _segments, _content, _digests):
        group(bad)


def _with(*features: Any, file: File = _TWO) -> File:
    return replace(file, router=Router(features))


def _keys(bad: Callable[..., None]) -> None:
    for key in ("extractor", "k", "metric", "preprocessing"):
        missing = {"document": lambda doc, key=key: doc["router"].pop(key)}
        bad("307", f"no-router-{key}", f"`router.{key}` is missing", **missing)
    for name, key in (("unknown-key", "more"), ("unknown-key-first", "a"), ("features", "features")):
        bad("307", f"router-{name}", f"there is a key router.{key}", document=assign("router", key, value=""))
    for name, path, value in (
        ("array", (), []),
        ("str", (), "euclidean"),
        ("bin", (), b""),
        ("number", (), 10),
        ("empty", (), {}),
        ("k-str", ("k",), "10"),
        ("k-bin", ("k",), b"\n"),
        ("k-array", ("k",), [10]),
        ("k-map", ("k",), {}),
        ("metric-number", ("metric",), 1),
        ("metric-bin", ("metric",), b"cosine"),
        ("metric-array", ("metric",), ["cosine"]),
        ("extractor-bin", ("extractor",), b""),
        ("extractor-number", ("extractor",), 0),
        ("preprocessing-map", ("preprocessing",), {}),
        ("preprocessing-bin", ("preprocessing",), b""),
    ):
        what = "router has no keys" if name == "empty" else f"{'.'.join(('router', *path))} is of another type"
        bad("307", f"router-{name}", what, document=assign("router", *path, value=value))
    bad("301", "router-k-negative", "k is -1", document=assign("router", "k", value=-1))
    bad("301", "router-k-float", "k is 10.0", document=assign("router", "k", value=10.0))
    bad("301", "router-k-nil", "k is nil", document=assign("router", "k", value=None))
    bad("302", "router-k-long", "k in a byte more than it takes", index=splice(b"\xa1k\x0a", b"\xa1k\xcc\x0a"))
    swapped = splice(b"\xa1k\x0a\xa6metric\xa9euclidean", b"\xa6metric\xa9euclidean\xa1k\x0a")
    bad("303", "router-keys", "keys of the router descend", index=swapped)
    broken = splice(b"\xacan extractor", b"\xacan extract\xffr")
    bad("304", "router-extractor", "the extractor is no UTF-8", index=broken)
    for k in (0, MOST + 1, (1 << 32) + 1, (1 << 64) - 1):
        bad("411", f"k-{k}", f"k is {k:,}", document=assign("router", "k", value=k))
    for name, metric in (
        ("manhattan", "manhattan"),
        ("empty", ""),
        ("upper", "Euclidean"),
        ("longer", "cosine "),
        ("shorter", "cosin"),
        ("zero", "cosine\0"),
    ):
        bad("411", f"metric-{name}", f"the metric {metric!r}", document=assign("router", "metric", value=metric))


def _presence(bad: Callable[..., None]) -> None:
    keys = Router([]).keys()
    bad(
        "411",
        "nothing-shared",
        "a router and no shared arrays",
        replace(_FILE, router=None),
        document=assign("router", value=keys),
    )
    masked = File([BARE], [Task("t", [Masked(BARE, vector(W), digest=False)])], content_id=False)
    bad(
        "411",
        "only-vectors",
        "a router, and no shared arrays but vectors",
        masked,
        document=assign("router", value=keys),
    )
    empty = File(content_id=False)
    bad("411", "nothing-else", "a router in a file of nothing", empty, document=assign("router", value=keys))
    gone = {"document": lambda doc: doc.pop("router")}
    bad("411", "no-router", "features without a router", **gone)
    both = replace(masked, router=Router([_ONE]))
    bad("411", "no-router-masked", "features beside a vector, without a router", both, **gone)


def _names(bad: Callable[..., None]) -> None:
    tied = replace(_FILE, aliases={"head": "w"})
    added = replace(_FILE, tasks=[_TASK, Task("u", [Dense(Tensor("x", "F32", (2, 5)), digest=False)])])
    for what, name, file in (
        ("nobody", "nobody", _FILE),
        ("tensor", "w", _FILE),
        ("alias", "head", tied),
        ("extra", "x", added),
        ("longer", "t2", _FILE),
        ("other-case", "T", _FILE),
    ):
        bad("409", f"features-of-{what}", f"features of {name!r}, which is no task", _with(samples(name), file=file))
    bad("409", "features-of-second", "the second features are of no task", _with(_ONE, samples("x", "u")))
    bad("409", "features-without-tasks", "features in a file without tasks", replace(_FILE, tasks=[]))
    twice = _with(_ONE, samples("t", "again"))
    bad("409", "features-twice", "two arrays of features of one task", twice)
    bad("409", "features-twice-dtypes", "features of one task in F16 and F32", _with(_ONE, samples("t", dtype="F16")))
    shapes = _with(_ONE, samples("t", "again", (5, 4)), samples("u", "u"))
    bad("409", "features-twice-shapes", "two arrays of features of one task, with other numbers of samples", shapes)


def _shapes(bad: Callable[..., None]) -> None:
    for dtype in ("BOOL", "U8", "I8", "U16", "I32", "I64", "BF16", "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"):
        bad("409", f"features-{dtype.lower()}", f"features of {dtype}", _with(samples("t", dtype=dtype), file=_FILE))
    bad("409", "features-bf16-second", "the second features are of BF16", _with(_ONE, samples("u", dtype="BF16")))
    for shape in ((), (12,), (4,), (3, 4, 1), (1, 3, 4), (2, 3, 2), (1,) * 16, (0, 4), (3, 0), (0, 0), (0,), (3, 0, 4)):
        what = "x".join(map(str, shape)) if len(shape) < 16 else "16d"
        file = _with(samples("t", shape=shape), file=_FILE)
        bad("409", f"features-{what or 'scalar'}", f"features of shape {list(shape)}", file)
    bad("409", "features-0x4-second", "the second features are of no sample", _with(_ONE, samples("u", shape=(0, 4))))
    for width in (1, 3, 5, 12):
        why = f"samples of 4 and of {width} numbers"
        bad("409", f"features-width-{width}", why, _with(_ONE, samples("u", shape=(3, width))))
    why = "samples of 4, of 4 and of 3 numbers: 12 in each array"
    last = _with(_ONE, samples("u", "u"), samples("v", shape=(4, 3)))
    bad("409", "features-width-of-third", why, last)
    for role in (0, 4, 255):
        roles = assign("shared", "roles", value=bytes([role]))
        bad("409", f"features-role-{role}", f"role {role} in place of features", document=roles)
    bad("409", "features-role-1", "role vector in place of features", document=assign("shared", "roles", value=b"\1"))
    for name, roles in (("none", b""), ("more", b"\2\2")):
        bad(
            "409",
            f"features-roles-{name}",
            f"{len(roles)} roles of one array",
            document=assign("shared", "roles", value=roles),
        )


def _records(bad: Callable[..., None]) -> None:
    why = "features without their sha256"
    bad("406", "features-no-sha256", why, placed=edit("shared", flags=0, sha256=bytes(32)))
    sampled = _ONE.tensor.sampled_digest
    bad("406", "features-sampled", "a sampled digest of features", placed=edit("shared", flags=3, sampled=sampled))
    bad("406", "features-bit-2", "flag 2 of features", placed=edit("shared", flags=5))

    def exchanged(draft: Draft) -> None:
        draft.lists["shared"].reverse()
        draft.names["shared"] = draft.names["shared"][::-1]
        draft.shared_segments.reverse()
        draft.shared_payloads.reverse()

    bad("405", "features", "features whose names descend", _TWO, content=exchanged)

    def doubled(draft: Draft) -> None:
        for key in ("names", "dims"):
            getattr(draft, key)["shared"] *= 2
        draft.lists["shared"] *= 2
        draft.roles *= 2
        draft.shared_segments = [dict(record) for record in draft.shared_segments * 2]
        draft.shared_payloads *= 2

    bad("405", "features-twice", "the same features twice", content=doubled)


def _masks(bad: Callable[..., None]) -> None:
    over = vector(W, "one")
    named = Task("w", [Masked(BARE, over, digest=False)])
    last = Task("z", [Masked(BARE, over, digest=False)])
    for name, dtype in (("f16", "F16"), ("f32", "F32")):
        router = Router([samples("w", "w", (2, 5), dtype)])
        file = File([BARE], [named, last], content_id=False, router=router)
        place = next(number for number, one in enumerate(file.shared) if one.role == "features")

        def pointed(draft: Draft, place: int = place) -> None:
            draft.entries[1][0]["vector"] = place

        why = f"a masked entry of a tensor that selects from {dtype} features with the tensor's name and shape"
        bad("507", f"features-{name}", why, file, placed=pointed)
    masked = Task("t", [Masked(BARE, over, digest=False)])
    file = File([BARE], [masked, Task("a")], content_id=False, router=Router([samples("a")]))
    second = Task("u", [Masked(BARE, over, digest=False)])
    file = replace(file, tasks=[masked, Task("a"), second])

    def other(draft: Draft) -> None:
        draft.entries[2][0]["vector"] = 0

    bad("507", "features-of-task", "a masked entry that selects from features of another name", file, placed=other)

    def unused(draft: Draft) -> None:
        draft.entries[0].clear()
        draft.segments[0].clear()
        draft.payloads[0].clear()

    beside = File([BARE], [masked], content_id=False, router=Router([_ONE]))
    bad("410", "beside-router", "a vector that no entry uses, beside features", beside, content=unused)


def _segments(bad: Callable[..., None]) -> None:
    def without(draft: Draft) -> None:
        draft.shared_segments.clear()
        draft.shared_payloads.clear()

    bad("601", "features-none", "features without data", content=without)

    def second(draft: Draft) -> None:
        draft.shared_segments.pop()
        draft.shared_payloads.pop()

    bad("601", "features-second", "the second features without data", _TWO, content=second)
    for role in (0, 1, 3, 6):
        fields = {"role": role, "codec": 2} if role == 1 else {"role": role}
        bad(
            "601",
            f"features-role-{role}",
            f"role {role} where features are due",
            placed=edit("shared_segments", **fields),
        )
    for count in (0, 3, 11, 13, 48):
        bad(
            "602",
            f"features-{count}",
            f"features of 12 elements that count {count}",
            content=edit("shared_segments", count=count),
        )
    for codec in (0, 2, 5, 15, 18):
        bad(
            "606",
            f"features-codec-{codec}",
            f"features with codec {codec}",
            content=edit("shared_segments", codec=codec),
        )
    bad("606", "features-parameter", "raw with parameter 1", content=edit("shared_segments", parameter=1))
    bad("107", "features-segment", "the reserved field of a segment", placed=edit("shared_segments", reserved=1))
    framed = samples("t", coding=Coding("zstd", 0, raw_frame))
    bad("605", "features-zstd", "mapped: features in a zstd frame", _with(framed, file=_MAPPED))
    for name, offset in (("later", 65), ("zero", 0), ("far", 1 << 40)):
        bad("603", f"features-{name}", f"features at {offset}", placed=edit("shared_segments", offset=offset))

    def behind(draft: Draft) -> None:
        data, planes = bytes(draft.body[:48]), bytes(draft.body[48:])
        draft.body[:] = planes + data
        at = 64
        for record in draft.segments[0]:
            record["offset"] = at
            at += record["length"]
        draft.shared_segments[0]["offset"] = at

    bad("603", "features-behind", "features behind the segments of the task", placed=behind)

    def padded(draft: Draft) -> None:
        draft.body[50] = 1

    bad("702", "features", "a byte of the padding behind features is not zero", _MAPPED, placed=padded)


def _content(bad: Callable[..., None]) -> None:
    def flip(draft: Draft) -> None:
        draft.body[47] ^= 0x80

    bad("701", "features", "a byte of features is another", placed=flip)

    def data(content: bytes, **fields: int) -> Callable[[Draft], None]:
        def change(draft: Draft) -> None:
            draft.shared_payloads[0] = content
            draft.shared_segments[0].update(fields)

        return change

    whole = _ONE.tensor.content
    bad("706", "features-shorter", "47 bytes of features of 48", content=data(whole[:47]))
    bad("706", "features-longer", "49 bytes of features of 48", content=data(whole + b"\0"))
    half = _with(samples("t", dtype="F16"), file=_FILE)
    bad("706", "features-as-f32", "F16 features in as many bytes as F32 takes", half, content=data(whole))
    bad("707", "features-shorter", "a frame of 47 bytes", content=data(raw_frame(whole[:47]), codec=17))
    bad("707", "features-longer", "a frame of 49 bytes", content=data(raw_frame(whole + b"\0"), codec=17))
    bad("804", "features-content", "features of other bytes than those of their SHA-256", content=data(bytes(48)))

    def exchanged(draft: Draft) -> None:
        draft.shared_payloads.reverse()

    bad("804", "features-exchanged", "features of two tasks, each with the bytes of the other", _TWO, content=exchanged)


def _digests(bad: Callable[..., None]) -> None:
    digest = _ONE.tensor.digest
    for name, found in (
        ("zeros", bytes(32)),
        ("last-bit", digest[:-1] + bytes([digest[-1] ^ 0x80])),
        ("of-nothing", hashlib.sha256().digest()),
    ):
        bad("804", f"features-{name}", f"the SHA-256 of features: {name}", placed=edit("shared", sha256=found))
    router = _SIGNED.router
    if router is None:
        raise ValueError("a router is what this is about")
    before, right = _SIGNED.hashed(), router.hashed()

    def text(*given: str, form: str = "<I") -> bytes:
        return b"".join(struct.pack(form, len(one.encode())) + one.encode() for one in given)

    k = struct.pack("<I", router.k)
    texts = text(router.metric, router.extractor, router.preprocessing)
    arrays = right.removesuffix(k + texts)
    other = replace(router, k=4)
    for name, part in (
        ("without", b""),
        ("without-k", arrays + texts),
        ("without-texts", arrays + k),
        ("without-features", k + texts),
        ("without-count", right[4:]),
        ("without-metric", arrays + k + text(router.extractor, router.preprocessing)),
        ("no-features", bytes(4) + k + texts),
        ("k-first", k + arrays + texts),
        ("k-u64", arrays + struct.pack("<Q", router.k) + texts),
        ("lengths-u16", arrays + k + text(router.metric, router.extractor, router.preprocessing, form="<H")),
        ("no-lengths", arrays + k + (router.metric + router.extractor + router.preprocessing).encode()),
        ("order-of-index", arrays + text(router.extractor) + k + text(router.metric, router.preprocessing)),
        ("texts-exchanged", arrays + k + text(router.metric, router.preprocessing, router.extractor)),
        ("count-of-shared", struct.pack("<I", 3) + right[4:]),
        ("other-k", other.hashed()),
        ("other-metric", replace(router, metric="euclidean").hashed()),
        ("other-extractor", replace(router, extractor="another").hashed()),
        ("other-preprocessing", replace(router, preprocessing="").hashed()),
        ("other-features", replace(router, features=[samples("t", "other"), *router.features[1:]]).hashed()),
        ("fewer-features", replace(router, features=router.features[:1]).hashed()),
        ("twice", right + right),
    ):
        wrong = hashlib.sha256(before + part).digest()
        bad(
            "802",
            f"router-{name}",
            f"the content id, as to its router: {name}",
            _SIGNED,
            document=assign("content_id", value=wrong),
        )
    first = before.replace(b"TSW1-content\0", b"TSW1-content\0" + right)
    wrong = hashlib.sha256(first).digest()
    bad(
        "802",
        "router-first",
        "the content id with the router first",
        _SIGNED,
        document=assign("content_id", value=wrong),
    )
