"""Valid files with shared vectors and masked entries."""

from __future__ import annotations

from making.floats import FORMATS
from making.material import W, gaps, half_of, kept, mixed, raw_frame, rice, rle_frame, scattered
from making.model import (
    BITMAP,
    CHUNK,
    HALF,
    ONE,
    Coding,
    Dense,
    Entry,
    File,
    Masked,
    Removed,
    Task,
    Tensor,
    Ternary,
    Vector,
    noise,
)
from making.suite import Suite

ZEROS, ONES = Coding("zeros"), Coding("ones")


def add(suite: Suite) -> None:
    """Add all of them."""
    _kinds(suite)
    _vectors(suite)
    _masks(suite)
    _codecs(suite)
    _shapes(suite)
    _chunks(suite)
    _profiles(suite)


def vector(tensor: Tensor, seed: str = "", dtype: str | None = None, coding: Coding | None = None) -> Vector:
    """A vector of a tensor, of content that follows from the seed."""
    made = Tensor(tensor.name, dtype or tensor.dtype, tensor.shape)
    made = Tensor(made.name, made.dtype, made.shape, data=noise(f"vector {tensor.name} {seed}", made.nbytes))
    return Vector(made, coding or Coding("raw"))


def _kinds(suite: Suite) -> None:
    suite.valid("masked-one", File([W], [Task("t", [Masked(W, vector(W))])]), "one mask over one shared vector")
    knobs = {
        "one": ONE,
        "half": HALF,
        "negative": 0xBF800000,
        "zero": 0,
        "minus-zero": 0x80000000,
        "subnormal": 1,
        "largest": 0x7F7FFFFF,
        "last-bit": 0x3F800001,
    }
    base = [Tensor(f"k.{name}", "BF16", (9,)) for name in knobs]
    entries = [Masked(t, vector(t), (1, 8), knob=bits) for t, bits in zip(base, knobs.values(), strict=True)]
    why = "knobs of masked entries: one, negative, zeros of both signs, subnormal, the largest, the last bit"
    suite.valid("masked-knobs", File(base, [Task("t", entries)]), why)
    tensors, masks = [], []
    for here in FORMATS:
        for shared in FORMATS:
            tensor = Tensor(f"{here}.{shared}", here, (3, 4))
            tensors.append(tensor)
            masks.append(Masked(tensor, vector(tensor, dtype=shared), (0, 5, 11)))
    suite.valid("masked-dtypes", File(tensors, [Task("t", masks)]), "every float dtype of base and of vector")
    tensors, masks = [], []
    for here in FORMATS:
        for there in FORMATS:
            tensor = Tensor(f"{here}-{there}", here, (3, 4))
            tensors.append(tensor)
            masks.append(Masked(tensor, vector(tensor, dtype="F32"), (0, 5, 11), dtype=there))
    suite.valid("masked-to-dtypes", File(tensors, [Task("t", masks)]), "every float dtype of base and of entry")
    a, b, c, d = (Tensor(name, "F32", (6,)) for name in "abcd")
    every: list[Entry] = [Ternary(a, (0,), ()), Masked(b, vector(b), (1, 2)), Dense(c), Removed(d)]
    every.append(Dense(Tensor("e", "I8", (3,))))
    suite.valid("masked-and-others", File([a, b, c, d], [Task("t", every)]), "all kinds of entry in one task")
    tied = File([W], [Task("t", [Masked(W, vector(W))])], aliases={"head": "w"})
    suite.valid("masked-aliases", tied, "a masked entry of a tensor that has an alias")


def _vectors(suite: Suite) -> None:
    v = Tensor("v", "BF16", (7,))
    one, two, three = vector(W, "one"), vector(W, "two"), vector(W, "three")
    tasks = [
        Task(name, [Masked(W, one, active), Masked(v, vector(v), active[:2])])
        for name, active in (("z", (0, 1, 2)), ("a", (3, 4)), ("m", (5, 6, 9)))
    ]
    suite.valid("shared-several-tasks", File([W, v], tasks), "three tasks over the same two vectors")
    tasks = [Task(name, [Masked(W, found)]) for name, found in (("a", one), ("b", two), ("c", three))]
    why = "three vectors of one name, dtype and shape, in the order of their SHA-256"
    suite.valid("shared-same-name", File([W], tasks), why)
    typed = [vector(W, "typed", dtype) for dtype in FORMATS]
    tasks = [Task(str(number), [Masked(W, found)]) for number, found in enumerate([*typed, *typed[::-1], two])]
    suite.valid("shared-same-name-dtypes", File([W], tasks), "vectors of one name: dtypes come before SHA-256")
    names = ["a", "A", "aa", "a.b", "a-b", "\u00e9", "\uffee", "\U00010000", "../x"]
    tensors = [Tensor(name, "F16", (2,)) for name in names]
    masks = [Masked(t, vector(t), (0,)) for t in tensors]
    suite.valid("shared-names", File(tensors, [Task("t", masks)]), "names of vectors ascend by their UTF-8 bytes")
    zero = Vector(Tensor("w", "F32", (2, 5), data=bytes(40)))
    nan = Vector(Tensor("w", "F32", (2, 5), data=b"\xff" * 40))
    tasks = [Task("zero", [Masked(W, zero)]), Task("nan", [Masked(W, nan)])]
    suite.valid("shared-values", File([W], tasks), "vectors of zeros and of NaNs: their values do not matter")
    bare = W.bare()
    loose = File([bare], [Task("t", [Masked(bare, one, digest=False)])], content_id=False)
    suite.valid("masked-no-digests", loose, "no digest but that of the vector")
    first = [Masked(W, one, (0,)), Masked(v, vector(v), (1,))]
    tasks = [Task("a", first[:1]), Task("b", first[1:]), Task("none")]
    suite.valid("shared-one-task-each", File([W, v], tasks), "each vector is used by one task, and one task uses none")


def _masks(suite: Suite) -> None:
    tensor = Tensor("w", "F16", (50, 40))
    shared = vector(tensor)
    sparse, dense = scattered("sparse", 2000, 3), scattered("dense", 2000, 200)
    tasks = [
        Task("none", [Masked(tensor, shared, (), masks=ZEROS)]),
        Task("none-bitmap", [Masked(tensor, shared, ())]),
        Task("all", [Masked(tensor, shared, range(2000), masks=ONES)]),
        Task("all-bitmap", [Masked(tensor, shared, range(2000))]),
        Task("first", [Masked(tensor, shared, (0,), masks=rice(0))]),
        Task("last", [Masked(tensor, shared, (1999,), masks=gaps(3))]),
        Task("sparse", [Masked(tensor, shared, sparse, masks=rice(6))]),
        Task("dense", [Masked(tensor, shared, dense, masks=rice(0))]),
    ]
    suite.valid("masked-masks", File([tensor], tasks), "masks of no, one, few, many and all elements over one vector")


def _codecs(suite: Suite) -> None:
    tensor = Tensor("w", "BF16", (3000,))
    active = half_of(scattered("masked", 3000, 60))
    shared = vector(tensor, coding=Coding("zstd", 0, raw_frame))
    codings = {
        "bitmap": BITMAP,
        "bitmap-zstd": Coding("bitmap_zstd", 0, kept("level 3")),
        **{f"gaps-{k}": gaps(k, kept("level 9") if k == 1 else raw_frame) for k in (0, 1, 4, 20)},
        **{f"rice-{k}": rice(k) for k in (0, 3, 20)},
    }
    tasks = [Task(name, [Masked(tensor, shared, active, masks=coding)]) for name, coding in codings.items()]
    suite.valid("masked-codecs", File([tensor], tasks), "one mask with every codec over one vector")
    tensors, masks = [], []
    for name, content, coding in (
        ("raw", noise("raw", 400), Coding("raw")),
        ("frame", noise("frame", 400), Coding("zstd", 0, raw_frame)),
        ("rle", b"\x3c" * 400, Coding("zstd", 0, rle_frame)),
        ("mixed", b"\x3c" * 128 + noise("mixed", 272), Coding("zstd", 0, mixed)),
        ("level-3", bytes(b & 3 for b in noise("low", 400)), Coding("zstd", 0, kept("level 3"))),
    ):
        tensor = Tensor(name, "F32", (10, 20))
        tensors.append(tensor)
        masks.append(Masked(tensor, Vector(Tensor(name, "F16", tensor.shape, data=content), coding), (0, 199)))
    suite.valid("shared-codecs", File(tensors, [Task("t", masks)]), "vectors as they are and in zstd frames")


def _shapes(suite: Suite) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "d00": (),
        "d01": (7,),
        "d03": (2, 1, 3),
        "d16": (1, 2) * 2 + (1,) * 12,
        "e1": (0,),
        "e2": (3, 0),
        "e16": (0,) * 16,
    }
    tensors = [Tensor(name, "F32", shape) for name, shape in shapes.items()]
    masks = [Masked(t, vector(t, dtype="F64"), (0,) if t.elements else ()) for t in tensors]
    why = "masked entries of scalars, empty tensors, of 1, 3 and 16 dimensions"
    suite.valid("masked-shapes", File(tensors, [Task("t", masks)]), why)
    only = Tensor("w", "F16", (0, 4))
    suite.valid("masked-empty", File([only], [Task("t", [Masked(only, vector(only), ())])]), "only an empty vector")


def _chunks(suite: Suite) -> None:
    two = Tensor("two", "F16", (2, CHUNK // 2 + 3), data=bytes(2 * (CHUNK + 6)))
    exact = Tensor("exact", "BF16", (CHUNK,), data=bytes(2 * CHUNK))
    rle = Coding("zstd", 0, rle_frame)
    shared = Vector(Tensor("two", "BF16", two.shape, data=b"\x3c" * two.nbytes), rle)
    whole = Vector(Tensor("exact", "F16", exact.shape, data=b"\x3c" * (2 * CHUNK)), rle)
    active = [0, 1, CHUNK - 1, CHUNK, CHUNK + 5]
    tasks = [
        Task("rice", [Masked(two, shared, active, masks=rice(18)), Masked(exact, whole, [CHUNK - 1], masks=rice(20))]),
        Task("mixed", [Masked(two, shared, [CHUNK + 5], masks=[ZEROS, BITMAP])]),
        Task("all", [Masked(two, shared, range(two.elements), masks=ONES)]),
    ]
    suite.valid("masked-chunks", File([two, exact], tasks), "vectors and masks of one and two chunks")


def _profiles(suite: Suite) -> None:
    a, b, c = Tensor("a", "F32", (9, 9)), Tensor("b", "F16", (33_000,)), Tensor("c", "F32", (0,))
    zeroed = Vector(Tensor("b", "F16", b.shape, data=bytes(66_000)))
    few = list(range(0, 33_000, 7))
    tasks = [
        Task("t", [Masked(a, vector(a), (0, 80)), Masked(b, zeroed, few), Masked(c, vector(c), ())]),
        Task("u", [Masked(a, vector(a, "other"), (3,)), Ternary(b, (1,), ())]),
        Task("v", [Masked(b, zeroed, range(33_000), knob=HALF)]),
    ]
    file = File([a, b, c], tasks, profile="mapped")
    suite.valid("masked-mapped", file, "the mapped profile: vectors at 64 and, from 65,536 bytes on, 4,096")
    small = File([W], [Task("t", [Masked(W, vector(W))])], profile="mapped")
    suite.valid("masked-mapped-small", small, "padding between a vector and a mask")
