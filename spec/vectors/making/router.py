"""Valid files with a router."""

from __future__ import annotations

import struct

from making.masked import vector
from making.material import BARE, W, kept, mixed, raw_frame, rle_frame
from making.model import CHUNK, RAW, Coding, Dense, Features, File, Masked, Router, Task, Tensor, Ternary, noise
from making.suite import Suite

MOST = 1 << 20  # neighbours


def add(suite: Suite) -> None:
    """Add all of them."""
    _keys(suite)
    _tasks(suite)
    _arrays(suite)
    _others(suite)


def samples(
    task: str,
    seed: str = "",
    shape: tuple[int, ...] = (3, 4),
    dtype: str = "F32",
    coding: Coding = RAW,
    data: bytes | None = None,
) -> Features:
    """Features of a task, of content that follows from the seed."""
    size = Tensor(task, dtype, shape).nbytes
    return Features(Tensor(task, dtype, shape, data=noise(f"features {seed}", size) if data is None else data), coding)


def _one(router: Router) -> File:
    return File([W], [Task("t", [Ternary(W)])], router=router)


def _keys(suite: Suite) -> None:
    one = [samples("t")]
    suite.valid("router-one", _one(Router(one)), "a router of one task")
    suite.valid("router-cosine", _one(Router(one, metric="cosine")), "the metric cosine")
    for name, k in (("1", 1), ("128", 128), ("65536", 65536), ("most", MOST)):
        suite.valid(f"router-k-{name}", _one(Router(one, k=k)), f"{k:,} neighbours, whatever the number of samples")
    suite.valid("router-no-texts", _one(Router(one, extractor="", preprocessing="")), "no words on the features")
    wide = Router(one, extractor="größe.重み \U0001f600", preprocessing="e\u0301\n\u202e\0")
    suite.valid(
        "router-wide-texts", _one(wide), "words that are not ASCII, not in form NFC and with controls: free text"
    )
    long = Router(one, extractor="x" * 300, preprocessing="é" * 150)
    suite.valid("router-long-texts", _one(long), "two texts of 300 bytes")
    same = Router(one, extractor="cosine", preprocessing="euclidean")
    suite.valid("router-texts-like-metrics", _one(same), "words that are the names of metrics")


def _tasks(suite: Suite) -> None:
    some = [Task("b", [Ternary(W)]), Task("a", [Ternary(W, (1,), ())]), Task("c")]
    router = Router([samples("b", "b"), samples("c", "c", (1, 4))])
    suite.valid(
        "router-some-tasks", File([W], some, router=router), "tasks with, without and without anything but features"
    )
    every = Router([samples(task.name, task.name) for task in some])
    suite.valid("router-all-tasks", File([W], some, router=every), "features of all tasks, which are in another order")
    equal = Router([samples(task.name, "equal") for task in some])
    suite.valid("router-same-samples", File([W], some, router=equal), "three tasks with the same samples")
    alone = File([], [Task("t")], router=Router([samples("t")]))
    suite.valid("router-alone", alone, "a router, and neither tensors nor entries")
    names = ["a", "A", "aa", "a.b", "a-b", "\u00e9", "\uffee", "\U00010000", "../x"]
    router = Router([samples(name, name, (2, 3), "F16") for name in names])
    suite.valid(
        "router-names", File([], [Task(name) for name in names], router=router), "names ascend by their UTF-8 bytes"
    )


def _arrays(suite: Suite) -> None:
    suite.valid("router-f16", _one(Router([samples("t", dtype="F16")])), "features of F16")
    mixed_dtypes = Router([samples("t", dtype="F16"), samples("u", shape=(5, 4))])
    file = File([W], [Task("t", [Ternary(W)]), Task("u", [Ternary(W)])], router=mixed_dtypes)
    suite.valid("router-mixed-dtypes", file, "features of F16 and of F32, of as many numbers a sample")
    for name, shape in (("1x1", (1, 1)), ("1x50", (1, 50)), ("50x1", (50, 1))):
        suite.valid(f"router-{name}", _one(Router([samples("t", shape=shape)])), f"features of shape {list(shape)}")
    tasks, features = [], []
    for name, content, coding in (
        ("frame", noise("frame", 400), Coding("zstd", 0, raw_frame)),
        ("level-3", bytes(b & 3 for b in noise("low", 400)), Coding("zstd", 0, kept("level 3"))),
        ("mixed", b"\x3c" * 128 + noise("mixed", 272), Coding("zstd", 0, mixed)),
        ("raw", noise("raw", 400), RAW),
        ("rle", b"\x3c" * 400, Coding("zstd", 0, rle_frame)),
    ):
        tasks.append(Task(name))
        features.append(samples(name, shape=(10, 20), dtype="F16", coding=coding, data=content))
    suite.valid("router-codecs", File([], tasks, router=Router(features)), "features as they are and in zstd frames")
    shape = (CHUNK // 512 + 1, 512)
    long = samples("t", shape=shape, dtype="F16", coding=Coding("zstd", 0, rle_frame), data=bytes(2 * shape[0] * 512))
    suite.valid("router-chunks", _one(Router([long])), "features of two chunks, cut within no sample")
    numbers = (0.0, -0.0, 1e-45, -1e-45, 3.4028234663852886e38, 1.0, float("inf"), -float("inf"))
    odd = struct.pack("<8fIIII", *numbers, 0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFFFFFFF)
    why = "features of zeros, subnormals, infinities and NaNs: their values do not matter to a reader"
    suite.valid("router-values", _one(Router([samples("t", data=odd)])), why)


def _others(suite: Suite) -> None:
    named = [Task("w", [Ternary(W)]), Task("head", [Ternary(W, (2,), ())]), Task("x", [Dense(Tensor("x", "U8", (3,)))])]
    file = File([W], named, aliases={"head": "w"}, router=Router([samples(task.name, task.name) for task in named]))
    suite.valid(
        "router-names-of-tensors", file, "tasks and features with the names of a tensor, an alias and an extra tensor"
    )
    v = Tensor("v", "BF16", (7,))
    tasks = [
        Task("a", [Masked(W, vector(W)), Masked(v, vector(v), (0, 6))]),
        Task("z", [Masked(W, vector(W, "other"))]),
        Task("vv"),
    ]
    router = Router([samples(task.name, task.name, (2, 5)) for task in tasks])
    file = File([W, v], tasks, router=router)
    suite.valid("router-masked", file, "vectors and features, in the order of their names")
    tasks = [
        Task("w", [Masked(W, vector(W)), Masked(v, vector(v), (0, 6))]),
        Task("v", [Masked(W, vector(W, "other"))]),
    ]
    for name, dtype in (("first", "F16"), ("between", "F32")):
        router = Router([samples("w", "w", (2, 5), dtype), samples("v", "v", (1, 5), dtype)])
        why = f"features with name and {'shape' if dtype == 'F16' else 'dtype and shape'} of vectors"
        suite.valid(f"router-masked-{name}", File([W, v], tasks, router=router), why)
    loose = File([BARE], [Task("t", [Ternary(BARE, digest=False)])], content_id=False, router=Router([samples("t")]))
    suite.valid("router-no-digests", loose, "no digest but that of the features")
    large = samples("u", shape=(4100, 4), data=bytes(65_600))
    tasks = [Task("t", [Masked(W, vector(W))]), Task("u", [Ternary(W)])]
    file = File([W], tasks, profile="mapped", router=Router([samples("t"), large]))
    suite.valid("router-mapped", file, "the mapped profile: features at 64 and, from 65,536 bytes on, 4,096")
    small = File([W], [Task("t", [Ternary(W)])], profile="mapped", router=Router([samples("t", shape=(3, 3))]))
    suite.valid("router-mapped-small", small, "padding between features and a mask")
