"""Cases of applying masked entries (section 10)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from making.applying import SPREAD, case, of
from making.floats import FORMATS
from making.material import half_of, scattered
from making.model import HALF, ONE, Dense, File, Masked, Task, Tensor, Ternary, Vector
from making.suite import Suite

Values = Sequence[float | Fraction | str]
_VECTOR: Values = (0.1, -0.2, 3.0, 0.0, -0.0, 1e-5, -7.0, 0.3333, 1.0, -1.0, 0.015625, 60000.0, -0.7, 2.0, 1e-7, 0.9)
_ACTIVE = (0, 1, 3, 4, 5, 8, 9, 11, 12, 15)


def add(suite: Suite) -> None:
    """Add all of them."""
    _dtypes(suite)
    _edges(suite)
    _several(suite)
    _names(suite)
    _refused(suite)


def _vector(tensor: Tensor, dtype: str, values: Values) -> Vector:
    return Vector(Tensor(tensor.name, dtype, tensor.shape, data=of(dtype, *values)))


def _dtypes(suite: Suite) -> None:
    for here in FORMATS:
        for shared in FORMATS:
            tensors = [Tensor(name, here, (16,), data=of(here, *SPREAD)) for name in ("knob", "one")]
            vectors = [_vector(tensor, shared, _VECTOR) for tensor in tensors]
            knobs = (0xBE99999A, ONE)
            masks = [Masked(t, v, _ACTIVE, knob=k) for t, v, k in zip(tensors, vectors, knobs, strict=True)]
            for text in ("1", "-0.7"):
                name = f"masked-{shared}-on-{here}".lower() + ("" if text == "1" else "-coefficient")
                why = f"a vector of {shared} on a base of {here}, knobs 1 and -0.3, coefficient {text}"
                suite.apply(name, case(File(tensors, [Task("t", masks)]), [("t", text)]), why)
        tensor = Tensor("w", here, (16,), data=of(here, *SPREAD))
        for there in FORMATS:
            if there != here:
                file = File(
                    [tensor], [Task("t", [Masked(tensor, _vector(tensor, "F32", _VECTOR), _ACTIVE, dtype=there)])]
                )
                why = f"a masked entry that makes {there} of {here}"
                suite.apply(f"masked-{here}-to-{there}".lower(), case(file, [("t", "1")]), why)


def _edges(suite: Suite) -> None:
    def special(
        name: str,
        why: str,
        base: tuple[str, Values],
        shared: tuple[str, Values],
        *,
        knob: int = ONE,
        text: str = "1",
        idle: int = 0,
        dtype: str | None = None,
    ) -> None:
        tensor = Tensor("w", base[0], (len(base[1]),), data=of(*(base[0], *base[1])))
        entry = Masked(tensor, _vector(tensor, *shared), range(len(base[1]) - idle), knob=knob, dtype=dtype)
        suite.apply(f"masked-{name}", case(File([tensor], [Task("t", [entry])]), [("t", text)]), why)

    zeros: Values = (0.0, -0.0, 0.0, -0.0, -0.0)
    others: Values = (0.0, 0.0, -0.0, -0.0, 0.0)
    special("zeros", "-0 + 0 is +0, -0 + -0 is -0; the last one is not active", ("F32", zeros), ("F32", others), idle=1)
    special("zeros-knob", "knob -1 on zeros", ("F32", zeros), ("F32", others), knob=0xBF800000, idle=1)
    special("zeros-knob-0", "knob 0: 0 is added", ("F32", zeros), ("F32", (1.0, 1.0, -1.0, -1.0, 1.0)), knob=0, idle=1)
    special(
        "rounds-to-0", "a coefficient that T rounds to 0", ("F32", zeros), ("F32", (1.0,) * 5), text="1e-60", idle=1
    )
    special(
        "rounds-to-1", "a coefficient that T rounds to 1", ("F32", (1.0,)), ("F32", (0.1,)), text="1.0000000000000002"
    )
    special("next-to-1", "the same where T is binary64", ("F64", (1e-20,)), ("F64", (0.1,)), text="1.0000000000000002")
    special(
        "coefficient-0", "coefficient 0 keeps bits and dtype", ("F32", zeros), ("F32", others), text="0", dtype="F16"
    )
    wide = ("3ff0000010000000", "3ff0000010000001", "3ff0000030000000", "36a0000000000000", "3690000000000001")
    special("rounded-to-t", "binary64 elements are rounded to binary32 first", ("F32", (0.0,) * 5), ("F64", wide))
    special("kept-in-t", "binary64 elements on a base of F64 are not", ("F64", (0.0,) * 5), ("F64", wide))
    far: Values = (1e300, -1e300, 3.4028235677973366e38, 3.4028235677973362e38, 1e-300)
    special(
        "out-of-range",
        "binary64 elements beyond binary32, then a small knob",
        ("F32", (1.0,) * 5),
        ("F64", far),
        knob=1,
    )
    special(
        "overflow", "sums beyond the range of F16", ("F16", (65504.0, -65504.0, 1.0)), ("F16", (65504.0, -16.0, 1e-7))
    )
    special("overflow-knob", "a product beyond the range", ("F32", (1.0,)), ("F32", (1e30,)), knob=0x7F7FFFFF)
    tiny: Values = ("00000001", "807fffff", "00800000")
    special("subnormal", "subnormal elements and sums", ("F32", tiny), ("F32", tiny[::-1]))
    special(
        "subnormal-knob",
        "products that are subnormal",
        ("F32", (0.0,) * 3),
        ("F32", (1e-38, 3e-38, -1e-40)),
        knob=0x3E99999A,
    )
    special(
        "order",
        "knob, then coefficient: each is rounded",
        ("F32", (0.0,)),
        ("F32", (1e-38,)),
        knob=0x3DCCCCCD,
        text="1e30",
    )
    ties: Values = ("3f800000", "3f800001", "bf800001")
    special("ties", "ties to even", ("F32", ties), ("F64", (2.0**-24, 2.0**-24, -(2.0**-24))))
    special("twice-rounded", "a tie in F16 only after binary32", ("F16", ("3c00", "3c01")), ("F32", ("39800001",) * 2))
    special(
        "idle-converted",
        "what is not active is converted",
        ("F32", (1.0, 0.1, 1e10, -0.0)),
        ("F16", (1.0,) * 4),
        idle=3,
        dtype="BF16",
    )
    special(
        "idle-nan", "a NaN that is not active keeps its bits", ("F32", (1.0, "7f801234")), ("F16", (1.0, 1.0)), idle=1
    )
    infinite: Values = ("7f800000", "ff800000", "7f800000", "7fc00000", 1.0)
    odd: Values = ("7f800000", "7f800000", "ff800000", 1.0, "7fc00001")
    special("nan-infinity", "NaN and infinities in both", ("F32", infinite), ("F32", odd))
    special("infinity-knob-0", "infinity times a knob of 0", ("F32", (1.0,)), ("F32", ("7f800000",)), knob=0)
    special("all", "all elements", ("BF16", SPREAD), ("BF16", _VECTOR))
    special("none", "no element", ("BF16", SPREAD), ("BF16", _VECTOR), idle=16)
    empty, scalar = Tensor("e", "F32", (0, 3)), Tensor("s", "F16", (), data=of("F16", 1.0))
    entries = [
        Masked(empty, _vector(empty, "F64", ()), (), dtype="F16"),
        Masked(scalar, _vector(scalar, "F32", (0.5,)), (0,)),
    ]
    file = File([empty, scalar], [Task("t", entries)])
    suite.apply("masked-empty-and-scalar", case(file, [("t", "2")]), "an empty tensor and a scalar")


def _several(suite: Suite) -> None:
    for here in FORMATS:
        values = [((37 * i) % 129 - 64) / 61 for i in range(60)]
        tensor = Tensor("w", here, (6, 10), data=of(here, *values))
        one = _vector(tensor, "F32", [Fraction(i * i % 97 - 48, 31) for i in range(60)])
        two = _vector(tensor, "BF16", [Fraction(i * i % 89 - 44, 7) for i in range(60)])
        masks = [scattered(f"masked {number}", 60, 140) for number in range(3)]
        tasks = [
            Task("a", [Masked(tensor, one, masks[0])]),
            Task("b", [Masked(tensor, one, masks[1], knob=0xBEAAAAAB)]),
            Task("c", [Masked(tensor, two, masks[2], knob=HALF)]),
            Task("s", [Ternary(tensor, masks[1], half_of(masks[1]), knob=0x3F2AAAAB)]),
        ]
        file = File([tensor], tasks)
        for name, chosen in (
            ("one-vector", [("a", "1"), ("b", "1")]),
            ("two-vectors", [("a", "1"), ("b", "-0.5"), ("c", "0.1")]),
            ("backward", [("c", "0.1"), ("b", "-0.5"), ("a", "1")]),
            ("with-switch", [("s", "0.3"), ("a", "1")]),
            ("before-switch", [("a", "1"), ("s", "0.3")]),
            ("one-zero", [("a", "1"), ("b", "0")]),
        ):
            why = f"several tasks over shared vectors, {name}, base of {here}"
            suite.apply(f"masked-{name}-{here.lower()}", case(file, chosen), why)


def _names(suite: Suite) -> None:
    w, v = Tensor("w", "F32", (2,), data=of("F32", 1.0, 2.0)), Tensor("v", "F32", (1,), data=of("F32", 5.0))
    one, two = _vector(w, "F32", (0.5, 0.25)), _vector(w, "F32", (7.0, 8.0))
    tasks = [Task("a", [Masked(w, one, (0, 1))]), Task("b", [Masked(w, two, (1,))]), Task("c")]
    file = File([w, v], tasks, aliases={"head": "w"})
    suite.apply("masked-alias", case(file, [("a", "1")]), "an alias follows its tensor")
    suite.apply("masked-own-vector", case(file, [("b", "1")]), "each task has its own vector of the same name")
    suite.apply("masked-without-entry", case(file, [("a", "1"), ("c", "1")]), "a task without an entry does nothing")
    untied = Task("u", [Masked(w, one, (0,)), Dense(Tensor("head", "F16", (3,)))])
    file = File([w, v], [untied], aliases={"head": "w"})
    suite.apply("masked-untied", case(file, [("u", "1")]), "a task that masks a tensor and unties its alias")


def _refused(suite: Suite) -> None:
    w = Tensor("w", "F32", (2, 3), data=of("F32", 1, 2, 3, 4, 5, 6))
    vector = _vector(w, "F32", (1, 1, 1, 1, 1, 1))
    file = File(
        [w],
        [
            Task("f16", [Masked(w, vector, (0,), dtype="F16")]),
            Task("f32", [Masked(w, vector, (0,))]),
            Task("switch", [Ternary(w, (0,), (), dtype="BF16")]),
            Task("dense", [Dense(w, data=bytes(24))]),
        ],
    )
    for one, two, why in (
        ("f16", "f32", "masked entries make a tensor of different dtypes"),
        ("f16", "switch", "a masked and a ternary entry make a tensor of different dtypes"),
        ("f32", "dense", "one task gives the tensor whole, the other masks it"),
        ("dense", "f32", "one task masks the tensor, the other gives it whole"),
    ):
        refused: dict[str, Any] = case(file, [(one, "1"), (two, "1")], rule="TSW-903")
        suite.apply(f"refused-masked-{one}-and-{two}", refused, why)
