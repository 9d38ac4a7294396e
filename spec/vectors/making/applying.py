"""Cases of applying (section 10). Outputs come from exact arithmetic on fractions, rounded where the specification rounds."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from making import floats
from making.floats import FORMATS, Format, Number
from making.material import half_of, rice, scattered
from making.model import DTYPES, Dense, Entry, File, Masked, Removed, Task, Tensor, Ternary, noise
from making.suite import Suite
from making.writing import write

Chosen = Sequence[tuple[str, str]]
Term = tuple[Entry, str]
"""An entry and its coefficient: a decimal, or a quotient of integers."""


@dataclass(frozen=True)
class Made:
    """A tensor of an expert."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def document(self) -> dict[str, Any]:
        """As in a case."""
        return {"dtype": self.dtype, "shape": list(self.shape), "data": {"hex": self.data.hex()}}


def elements(data: bytes, form: Format) -> list[int]:
    """The bits of each element."""
    step = form.bits // 8
    return [int.from_bytes(data[i : i + step], "little") for i in range(0, len(data), step)]


def packed(bits: Sequence[int], form: Format) -> bytes:
    """Elements of these bits."""
    return b"".join(b.to_bytes(form.bits // 8, "little") for b in bits)


def of(dtype: str, *values: float | Fraction | str) -> bytes:
    """Elements nearest to these values; a str is bits in hexadecimal."""
    form = FORMATS[dtype]
    bits = []
    for value in values:
        if isinstance(value, str):
            bits.append(int(value, 16))
        else:
            number = floats.exact(Fraction(value))
            minus_zero = isinstance(value, float) and value == 0 and str(value)[0] == "-"
            bits.append(form.encode(floats.opposite(number) if minus_zero else number))
    return packed(bits, form)


def _factors(entry: Ternary) -> tuple[list[Number], list[Number]]:
    def decoded(codes: bytes | None) -> list[Number]:
        if codes is None:
            return []
        if entry.factor_dtype == "u8":
            return [floats.F32.round(floats.exact(Fraction(3 * q, 255))) for q in codes]
        form = floats.F16 if entry.factor_dtype == "f16" else floats.F32
        return [form.decode(bits) for bits in elements(codes, form)]

    return decoded(entry.rows), decoded(entry.columns)


def _steps(tensor: Tensor, entry: Ternary | Masked, coefficient: Number) -> list[Number]:
    """What is added to each active element."""
    wide = floats.F64 if tensor.dtype == "F64" else floats.F32
    knob = wide.round(floats.F32.decode(entry.knob))
    out = []
    if isinstance(entry, Masked):
        form = FORMATS[entry.vector.tensor.dtype]
        vector = [wide.round(form.decode(bits)) for bits in elements(entry.vector.tensor.content, form)]
        scales = [scale for scale in (knob, coefficient) if scale.signed != 1 or scale.kind != "finite"]
        for element in entry.active:
            value = vector[element]
            for scale in scales:
                value = wide.round(floats.product(value, wide.round(scale)))
            out.append(value)
        return out
    rows, columns = _factors(entry)
    row_length = max(tensor.elements // max(tensor.shape[0] if tensor.shape else 1, 1), 1)
    down = set(entry.negative)
    for element in entry.active:
        value = knob
        if rows:
            value = wide.round(floats.product(value, rows[element // row_length]))
        if columns:
            value = wide.round(floats.product(value, columns[element % row_length]))
        if coefficient.signed != 1:
            value = wide.round(floats.product(value, wide.round(coefficient)))
        out.append(floats.opposite(value) if element in down else value)
    return out


def switched(tensor: Tensor, data: bytes, terms: Sequence[tuple[Ternary | Masked, str]]) -> Made:
    """One tensor with one switch or mask or several, each with a coefficient."""
    form = FORMATS[tensor.dtype]
    wide = floats.F64 if tensor.dtype == "F64" else floats.F32
    bits = elements(data, form)
    sums = [wide.round(form.decode(b)) for b in bits]
    touched: set[int] = set()
    target = terms[0][0].dtype or tensor.dtype
    for entry, text in terms:
        coefficient = floats.F64.round(floats.exact(Fraction(text)))
        for element, value in zip(entry.active, _steps(tensor, entry, coefficient), strict=True):
            sums[element] = wide.round(floats.total(sums[element], value))
            touched.add(element)
    to = FORMATS[target]
    out = [to.encode(s) if e in touched or target != tensor.dtype else bits[e] for e, s in enumerate(sums)]
    return Made(target, tensor.shape, packed(out, to))


def expert(file: File, chosen: Chosen) -> dict[str, Made]:
    """What applying makes, for combinations that are allowed."""
    tasks = {task.name: task for task in file.tasks}
    return made_of(
        file,
        [
            (entry, coefficient)
            for name, coefficient in chosen
            for entry in tasks[name].entries
            if not (isinstance(entry, Ternary | Masked) and Fraction(coefficient) == 0)
        ],
    )


def made_of(file: File, changing: Sequence[Term]) -> dict[str, Made]:
    """What the base becomes by these entries, each with a coefficient, in this order."""
    entries: dict[str, list[Term]] = {}
    for entry, coefficient in changing:
        entries.setdefault(entry.tensor.name, []).append((entry, coefficient))
    base = {tensor.name: tensor for tensor in file.base}
    out: dict[str, Made] = {}
    for name in sorted({*base, *file.aliases, *entries}):
        tensor = base.get(file.aliases.get(name, name))
        terms = entries.get(name, entries.get(file.aliases.get(name, name), []))
        changes = [(entry, a) for entry, a in terms if isinstance(entry, Ternary | Masked)]
        if changes and tensor:
            out[name] = switched(tensor, tensor.content, changes)
        elif terms and isinstance(terms[0][0], Dense):
            dense = terms[0][0]
            out[name] = Made(dense.tensor.dtype, dense.tensor.shape, dense.content)
        elif not terms and tensor:
            out[name] = Made(tensor.dtype, tensor.shape, tensor.content)
    return out


def case(
    file: File,
    chosen: Chosen,
    *,
    base: Mapping[str, Made | None] | None = None,
    rule: str | None = None,
    same: Mapping[str, Made] | None = None,
) -> dict[str, Any]:
    """A case. `base`: tensors that are other than the file's, or None where they are missing; `same`: aliases among them."""
    given = {**given_of(file, base or {}, same or {}), "tasks": [list(pair) for pair in chosen]}
    return {"input": given, "rule": rule} if rule else finished(given, expert(file, chosen))


def given_of(file: File, base: Mapping[str, Made | None], same: Mapping[str, Made]) -> dict[str, Any]:
    """File and base of a case; `base` and `same` as there."""
    given: dict[str, Made] = {t.name: Made(t.dtype, t.shape, t.content) for t in file.base}
    for name, tensor in base.items():
        if tensor is None:
            given.pop(name)
        else:
            given[name] = tensor
    given.update(same)
    return {
        "file": {"hex": write(file).hex()},
        "base": {name: tensor.document() for name, tensor in sorted(given.items())},
    }


def finished(given: dict[str, Any], made: Mapping[str, Made]) -> dict[str, Any]:
    """A case that is allowed."""
    return {"input": given, "output": {name: tensor.document() for name, tensor in made.items()}}


def add(suite: Suite) -> None:
    """Add all of them."""
    _arithmetic(suite)
    _coefficients(suite)
    _factor_cases(suite)
    _several(suite)
    _whole(suite)
    _names(suite)
    _refused(suite)


def _one(tensor: Tensor, **fields: Any) -> File:
    return File([tensor], [Task("t", [Ternary(tensor, **fields)])])


SPREAD: tuple[float | str, ...] = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.1,
    -3.5,
    1000.0,
    1e-7,
    0.333,
    -0.75,
    2.5,
    5.0,
    1.5,
    7.0,
    0.25,
    -64.0,
)


def _arithmetic(suite: Suite) -> None:
    every = range(16)
    for here in FORMATS:
        tensor = Tensor("w", here, (16,), data=of(here, *SPREAD))
        for there in FORMATS:
            file = _one(tensor, active=every[::2], negative=every[::4], knob=0x3DCCCCCD, dtype=there)
            suite.apply(
                f"{here}-to-{there}".lower(),
                case(file, [("t", "1")]),
                f"a base of {here}, an entry of {there}, knob 0.1",
            )

    def special(
        name: str,
        why: str,
        dtype: str,
        values: Sequence[float | str],
        knob: int,
        *,
        target: str | None = None,
        negative: Sequence[int] = (),
        idle: int = 0,
    ) -> None:
        tensor = Tensor("w", dtype, (len(values),), data=of(dtype, *values))
        file = _one(tensor, active=range(len(values) - idle), negative=negative, knob=knob, dtype=target)
        suite.apply(name, case(file, [("t", "1")]), why)

    special(
        "zeros", "-0 + 0 is +0, -0 - 0 is -0, with knobs 0 and -0", "F32", (0.0, -0.0, 0.0, -0.0), 0, negative=(2, 3)
    )
    special("zeros-minus-knob", "the same with knob -0", "F32", (0.0, -0.0, 0.0, -0.0), 0x80000000, negative=(2, 3))
    special("cancel", "x - x is +0", "F32", (0.5, -0.5, 0.5, -0.5), 0x3F000000, negative=(0, 2))
    special("idle-minus-zero", "an element that is not active keeps -0", "F16", (0.0, -0.0, -0.0), 0, idle=1)
    special(
        "idle-converted",
        "elements that are not active are converted",
        "F32",
        (1.0, 0.1, 65520.0, 1e-8, -0.0, 1e10),
        0x3F800000,
        target="F16",
        idle=5,
    )
    special(
        "subnormal-knob",
        "a subnormal knob on subnormal elements",
        "F32",
        ("00000001", "80000001", "007fffff", "00800000", "80800000"),
        3,
        negative=(1, 3),
    )
    special(
        "subnormal-f16",
        "sums that are subnormal in F16",
        "F16",
        ("0001", "8001", "03ff", "0400", 0.0, "0002"),
        0x33000000,
        negative=(3,),
    )
    special(
        "subnormal-bf16",
        "sums that are subnormal in BF16",
        "BF16",
        ("0001", "8001", "007f", "0080", 0.0),
        0x00018000,
        negative=(3,),
    )
    special(
        "subnormal-f64",
        "a binary32 knob on subnormal binary64 elements",
        "F64",
        ("0000000000000001", "8000000000000001", 0.0),
        1,
    )
    special(
        "overflow-f32",
        "sums beyond the range",
        "F32",
        ("7f7fffff", "ff7fffff", 1.0, "7f7fffff"),
        0x7F7FFFFF,
        negative=(1,),
    )
    special(
        "overflow-edge-f32",
        "sums half a unit beyond the largest, and just below",
        "F32",
        ("7f7fffff", "7f7fffff", "7f7ffffe"),
        0x73000000,
    )
    special("overflow-below-f32", "a sum just below half a unit beyond the largest", "F32", ("7f7fffff",), 0x72FFFFFF)
    special(
        "overflow-f16",
        "sums beyond the range of F16",
        "F16",
        (65504.0, -65504.0, 65472.0, 32768.0),
        0x41800000,
        negative=(1,),
    )
    special("overflow-below-f16", "a sum just below 65,520", "F16", (65504.0, -65504.0), 0x417FFFFF, negative=(1,))
    special(
        "overflow-bf16", "sums beyond the range of BF16", "BF16", ("7f7f", "ff7f", "7f7e"), 0x7B000000, negative=(1,)
    )
    special(
        "overflow-f64-to-f32",
        "binary64 sums beyond the range of F32",
        "F64",
        (1e300, -1e300, 3.4028235677973366e38, 3.4028235677973362e38),
        0,
        target="F32",
    )
    special(
        "overflow-f32-to-f16",
        "F32 to F16 around 65,520",
        "F32",
        (65519.996, 65520.0, 65536.0, -65520.0),
        0,
        target="F16",
    )
    special(
        "ties-f32",
        "ties to even in F32",
        "F32",
        ("3f800000", "3f800001", "bf800000", "bf800001", "3f800002"),
        0x33800000,
        negative=(2, 3),
    )
    special("ties-f16", "ties to even in F16", "F16", ("3c00", "3c01", "bc00", "bc01"), 0x3A000000, negative=(2, 3))
    special("ties-bf16", "ties to even in BF16", "BF16", ("3f80", "3f81", "bf80", "bf81"), 0x3B800000, negative=(2, 3))
    special("near-ties-bf16", "just above and below ties in BF16", "BF16", ("3f80", "3f81"), 0x3B800001)
    special(
        "twice-rounded-f32",
        "a sum that is a tie in F16 only after binary32 rounds it",
        "F16",
        ("3c00", "3c01"),
        0x39800001 | 1,
    )
    special(
        "no-double-rounding-f64-to-bf16",
        "binary64 to BF16 is rounded once",
        "F64",
        (
            "3ff0100000000001",
            "3ff00fffffffffff",
            "3ff0100000000000",
            "3ff0300000000000",
            "3ff02fffffffffff",
            "bff0100000000001",
        ),
        0,
        target="BF16",
    )
    special(
        "no-double-rounding-f64-to-f16",
        "binary64 to F16 is rounded once",
        "F64",
        ("3ff0020000000001", "3ff001ffffffffff", "3ff0020000000000", "3ff0060000000000"),
        0,
        target="F16",
    )
    special(
        "once-rounded-f64-to-f32",
        "binary64 to F32 is rounded once",
        "F64",
        (
            "3ff0000010000000",
            "3ff0000010000001",
            "3ff000000fffffff",
            "3ff0000030000000",
            "36a0000000000000",
            "3690000000000001",
            "3690000000000000",
        ),
        0,
        target="F32",
        idle=3,
    )
    special(
        "f32-to-bf16-idle",
        "F32 to BF16: ties, subnormals, carry into infinity",
        "F32",
        ("3f808000", "3f818000", "3f808001", "7f7fffff", "00008000", "00018000", "80000001"),
        0,
        target="BF16",
        idle=7,
    )
    special("nan", "NaN stays NaN, active or not", "F32", ("7fc00000", "ffc00001", 1.0, "7f800001"), 0x3F800000, idle=1)
    for here in FORMATS:
        form = FORMATS[here]
        top = (1 << form.exponent) - 1 << form.fraction
        nan, infinity, minus = top | 1, top, top | 1 << form.bits - 1
        values = [f"{b:0{form.bits // 4}x}" for b in (nan, infinity, minus, infinity, minus, nan, infinity)]
        special(
            f"nan-infinity-{here.lower()}",
            f"NaN and infinities in {here}, active and not",
            here,
            values,
            0x7F7FFFFF,
            negative=(3, 4),
            idle=3,
        )
        there = "BF16" if here != "BF16" else "F16"
        special(
            f"nan-infinity-{here.lower()}-to-{there.lower()}",
            f"NaN and infinities of {here} to {there}",
            here,
            values,
            0x7F7FFFFF,
            target=there,
            negative=(3, 4),
            idle=3,
        )
    special("idle-nan-bits", "a NaN that is not active", "F32", (1.0, "7f801234", "ffffffff"), 0x3F800000, idle=2)


def _coefficients(suite: Suite) -> None:
    for here in FORMATS:
        tensor = Tensor("w", here, (16,), data=of(here, *SPREAD))
        file = _one(tensor, active=range(0, 16, 1), negative=range(0, 16, 3), knob=0x3E99999A)
        for text in (
            "-0.5",
            "0",
            "0.1",
            "1e-40",
            "-1",
            "2",
            "0.3333333333333333",
            "1.0000000000000002",
            "1e-60",
            "3e38",
        ):
            name = text.replace("-", "m").replace(".", "p")
            suite.apply(
                f"coefficient-{name}-{here.lower()}",
                case(file, [("t", text)]),
                f"coefficient {text} on a base of {here}",
            )
    other = _one(
        Tensor("w", "F32", (4,), data=of("F32", -0.0, 1.0, 0.1, "7f800001")), active=(0, 1), negative=(), dtype="F16"
    )
    suite.apply(
        "coefficient-0-keeps-dtype", case(other, [("t", "0")]), "coefficient 0: the tensor keeps its bits and its dtype"
    )
    zero = _one(Tensor("w", "F32", (2,), data=of("F32", -0.0, -0.0)), active=(0,), negative=(), knob=0x3F800000)
    suite.apply(
        "coefficient-rounds-to-0",
        case(zero, [("t", "1e-60")]),
        "a coefficient that is not 0 but rounds to 0 in binary32",
    )
    suite.apply("coefficient-minus-0", case(zero, [("t", "-0.0")]), "coefficient -0 is 0")


def _factor_cases(suite: Suite) -> None:
    shape = (3, 4)
    values = [((37 * i) % 129 - 64) / 64 for i in range(12)]
    rows = {
        "u8": bytes([0, 255, 85]),
        "f16": struct.pack("<3e", -0.5, 0.0999755859375, 0.0),
        "f32": struct.pack("<3f", -0.1, 1e-20, -0.0),
    }
    columns = {
        "u8": bytes([1, 254, 100, 0]),
        "f16": struct.pack("<4e", 1, -2, 6e-8, 65504),
        "f32": struct.pack("<4f", 0.3, -1e-25, 3e38, 1),
    }
    for here in FORMATS:
        for factor in ("u8", "f16", "f32"):
            for which in ("row", "column", "both"):
                tensor = Tensor("w", here, shape, data=of(here, *values))
                file = _one(
                    tensor,
                    active=(0, 1, 2, 4, 5, 6, 7, 8, 11),
                    negative=(1, 6, 11),
                    knob=0x3F19999A,
                    factor_dtype=factor,
                    rows=rows[factor] if which != "column" else None,
                    columns=columns[factor] if which != "row" else None,
                )
                for text in ("1", "-0.7"):
                    if text == "1" or which == "both":
                        name = f"factors-{factor}-{which}-{here.lower()}" + ("" if text == "1" else "-coefficient")
                        suite.apply(
                            name,
                            case(file, [("t", text)]),
                            f"{which} factors of {factor}, base of {here}, coefficient {text}",
                        )
    every = Tensor("w", "F64", (256, 1), data=bytes(8 * 256))
    file = _one(every, active=range(256), negative=(), knob=0x3F800000, factor_dtype="u8", rows=bytes(range(256)))
    suite.apply("factors-u8-all-codes", case(file, [("t", "1")]), "all 256 codes: fl32(3 q / 255)")
    deep = Tensor("w", "F32", (2, 2, 3), data=of("F32", *values))
    file = _one(
        deep,
        active=range(12),
        negative=(5,),
        factor_dtype="u8",
        rows=b"\x10\xff",
        columns=bytes([9, 80, 85, 90, 170, 255]),
    )
    suite.apply("factors-of-three-dimensions", case(file, [("t", "1")]), "columns are all dimensions but the first")
    high = replace(file.tasks[0].entries[0], knob=0x7F7FFFFF)  # type: ignore[type-var]
    suite.apply(
        "factors-overflow",
        case(replace(file, tasks=[Task("t", [high])]), [("t", "1")]),
        "a knob times its factors is beyond the range",
    )
    order = _one(
        Tensor("w", "F32", (1, 1), data=of("F32", 0.0)),
        active=(0,),
        negative=(),
        knob=0x3F8CCCCD,
        factor_dtype="f32",
        rows=struct.pack("<f", 1e-38),
        columns=struct.pack("<f", 1e30),
    )
    suite.apply(
        "factors-order",
        case(order, [("t", "0.1")]),
        "row, then column, then coefficient: each product is rounded, the first is subnormal",
    )


def _several(suite: Suite) -> None:
    for here in FORMATS:
        tensor = Tensor("w", here, (200,), data=of(here, *[((37 * i) % 129 - 64) / 61 for i in range(200)]))
        tasks = []
        for number, knob in enumerate((0x3DCCCCCD, 0x3F2AAAAB, 0x4B000001)):
            active = scattered(f"several {number}", 200, 140)
            tasks.append(Task(f"t{number}", [Ternary(tensor, active, half_of(active), knob=knob, masks=rice(0))]))
        file = File([tensor], tasks)
        orders = [("t0", "1"), ("t1", "-0.5"), ("t2", "0.1")]
        for name, chosen in (
            ("forward", orders),
            ("backward", orders[::-1]),
            ("two", orders[:2]),
            ("one-zero", [("t0", "1"), ("t1", "0")]),
        ):
            suite.apply(
                f"several-{name}-{here.lower()}",
                case(file, chosen),
                f"several tasks, {name}, base of {here}: sums are rounded in order",
            )
    tensor = Tensor("w", "F32", (6,), data=of("F32", 1.0, 2.0, 0.1, -0.0, 0.3, -0.0))
    one = Ternary(tensor, (0, 1, 3), (1,), dtype="F16")
    two = Ternary(tensor, (1, 2), (), dtype="F16", knob=0x3DCCCCCD)
    other = Tensor("v", "F32", (2,), data=of("F32", 1.0, 2.0))
    file = File([tensor, other], [Task("a", [one]), Task("b", [two, Ternary(other, (0,), ())]), Task("c")])
    suite.apply(
        "several-of-one-dtype",
        case(file, [("a", "1"), ("b", "2")]),
        "two tasks that make F16 of F32: rounded to F16 once",
    )
    suite.apply(
        "several-one-without-entry", case(file, [("a", "1"), ("c", "1")]), "a task without an entry does nothing"
    )
    suite.apply("none", case(file, []), "no task: the base")


def _whole(suite: Suite) -> None:
    w, v = Tensor("w", "F32", (3,), data=of("F32", 1.0, 2.0, -0.0)), Tensor("v", "I32", (2,))
    given = Dense(v, data=bytes(range(8)))
    changed, new = Tensor("w", "F64", (2, 2)), Tensor("new", "BF16", (5,))
    file = File(
        [w, v],
        [
            Task("a", [Ternary(w, (0,), ()), given]),
            Task("b", [given, Dense(new)]),
            Task("c", [Dense(changed), Removed(v)]),
            Task("d", [Removed(v)]),
            Task("e", [Dense(Tensor("empty", "F8_E4M3", (0, 4))), Dense(Tensor("scalar", "C64", ()))]),
        ],
    )
    suite.apply("dense", case(file, [("a", "1")]), "a dense entry of a base tensor")
    suite.apply(
        "dense-twice",
        case(file, [("a", "0.5"), ("b", "3")]),
        "the same dense content in both tasks; coefficients do not act on it",
    )
    suite.apply("dense-zero", case(file, [("b", "0")]), "coefficient 0 does not act on dense entries")
    suite.apply("dense-other-shape", case(file, [("c", "1")]), "another dtype and shape, and a tensor removed")
    suite.apply(
        "removed-twice", case(file, [("c", "2"), ("d", "0")]), "both tasks remove it; coefficients do not act on that"
    )
    suite.apply(
        "dense-empty-and-scalar", case(file, [("e", "1")]), "new tensors without elements and without dimensions"
    )
    every = [Tensor(f"t{number:02}", name, (8,)) for name, (number, _) in DTYPES.items()]
    file = File(every, [Task("t", [Dense(t, data=noise(f"applied {t.name}", t.nbytes)) for t in every[::2]])])
    suite.apply("dtypes", case(file, [("t", "1")]), "base tensors of every dtype, every second given anew")
    empty = [Tensor("e", "F32", (0, 3)), Tensor("s", "F16", (), data=of("F16", 1.0))]
    file = File(empty, [Task("t", [Ternary(empty[0], (), (), dtype="F16"), Ternary(empty[1], (0,), (0,))])])
    suite.apply("empty-and-scalar", case(file, [("t", "1")]), "switches of an empty tensor and of a scalar")


def _names(suite: Suite) -> None:
    w, v = Tensor("w", "F32", (2,), data=of("F32", 1.0, 2.0)), Tensor("v", "F32", (1,), data=of("F32", 5.0))
    tied = {"head": "w", "tail": "w"}
    switch = Ternary(w, (0,), ())
    dense = Dense(Tensor("head", "F16", (3,)))
    same = Dense(Tensor("head", "F32", (2,)))
    tasks = [
        Task("switch", [switch]),
        Task("untied", [switch, dense]),
        Task("alone", [same]),
        Task("gone", [Removed(w)]),
        Task("kept", [Removed(w), dense]),
    ]
    file = File([w, v], tasks, aliases=tied)
    for name, chosen, why in (
        ("switch", [("switch", "1")], "aliases follow their tensor"),
        ("untied", [("untied", "1")], "a task unties an alias: a name of its own"),
        ("alone", [("alone", "1")], "an alias is given whole, its tensor stays"),
        ("gone", [("gone", "1")], "a removed tensor takes its aliases along"),
        ("kept", [("kept", "1")], "the tensor is removed, an alias stays"),
        ("mixed", [("switch", "1"), ("alone", "1")], "one task switches the tensor, the other unties an alias"),
        ("nothing", [], "aliases of a base as it is"),
        ("zero", [("untied", "0")], "coefficient 0: the switch does nothing, the alias is untied"),
    ):
        suite.apply(f"aliases-{name}", case(file, chosen), why)
    there = {name: Made(w.dtype, w.shape, w.content) for name in tied}
    suite.apply("aliases-in-base", case(file, [("switch", "1")], same=there), "a base that has its aliases as tensors")
    paths = [
        Tensor(n, "F32", (1,), data=of("F32", 1.0))
        for n in ("../../etc/passwd", "C:\\x", "ü", "__proto__", "a b", "👍")
    ]
    file = File(paths, [Task("t", [Ternary(t, (0,), ()) for t in paths])])
    suite.apply("names", case(file, [("t", "1")]), "names that look like paths")


def _refused(suite: Suite) -> None:
    w, v = Tensor("w", "F32", (2, 3)), Tensor("v", "F16", (4,))
    w, v = replace(w, data=of("F32", 1, 2, 3, 4, 5, 6)), replace(v, data=of("F16", 1, 2, 3, 4))
    file = File([w, v], [Task("t", [Ternary(w, (0,), ())])], aliases={"head": "w"})
    good = Made(w.dtype, w.shape, w.content)

    def bad(name: str, rule: str, why: str, chosen: Chosen = (("t", "1"),), file: File = file, **more: Any) -> None:
        suite.apply(f"refused-{name}", case(file, chosen, rule=f"TSW-{rule}", **more), why)

    bad("missing", "901", "a base tensor with an entry is missing", base={"w": None})
    bad("missing-without-entry", "901", "a base tensor without an entry is missing", base={"v": None})
    bad("dtype", "901", "a base tensor has another dtype", base={"w": replace(good, dtype="I32")})
    bad(
        "dtype-and-size",
        "901",
        "a base tensor has another dtype, of another size",
        base={"v": Made("F32", (4,), bytes(16))},
    )
    bad("shape", "901", "a base tensor has another shape", base={"w": replace(good, shape=(3, 2))})
    bad("rank", "901", "a base tensor has another number of dimensions", base={"w": replace(good, shape=(6,))})
    bad("surplus", "901", "the base has a tensor more", base={"x": good})
    bad("surplus-empty", "901", "the base has an empty tensor more", base={"x": Made("F32", (0,), b"")})
    bad("nothing", "901", "the base has no tensor", base={"w": None, "v": None})
    bad("other-data", "902", "another bit in a base tensor", base={"w": replace(good, data=good.data[:-1] + b"\x01")})
    bad(
        "other-data-without-entry",
        "902",
        "another bit in a base tensor that has no entry",
        base={"v": Made("F16", (4,), bytes(8))},
    )
    bad(
        "other-data-without-task",
        "902",
        "another bit in a base tensor, and no task",
        chosen=(),
        base={"v": Made("F16", (4,), bytes(8))},
    )
    bad(
        "minus-zero",
        "902",
        "-0 where the base has 0",
        file=_one(Tensor("w", "F32", (1,), data=bytes(4)), active=(0,), negative=()),
        base={"w": Made("F32", (1,), of("F32", -0.0))},
    )
    bad(
        "alias-dtype",
        "901",
        "an alias that is a tensor of its own has another dtype",
        same={"head": replace(good, dtype="U32")},
    )
    bad(
        "alias-shape",
        "901",
        "an alias that is a tensor of its own has another shape",
        same={"head": replace(good, shape=(1, 6))},
    )
    bad(
        "alias-data",
        "902",
        "an alias that is a tensor of its own has other data",
        same={"head": replace(good, data=bytes(24))},
    )
    made = File(
        [w, v],
        [
            Task("f16", [Ternary(w, (0,), (), dtype="F16")]),
            Task("f32", [Ternary(w, (1,), ())]),
            Task("dense", [Dense(w, data=bytes(24))]),
            Task("dense2", [Dense(w, data=bytes(23) + b"\1")]),
            Task("gone", [Removed(w)]),
            Task("shape", [Dense(Tensor("w", "F32", (3, 2)), data=bytes(24))]),
            Task("new", [Dense(Tensor("x", "F32", (2,)))]),
            Task("new2", [Dense(Tensor("x", "F32", (2,)), data=bytes(8))]),
        ],
    )
    for one, two, why in (
        ("f16", "f32", "the tasks make a tensor of different dtypes"),
        ("dense", "dense2", "dense contents differ"),
        ("dense", "f32", "one task gives the tensor whole, the other switches it"),
        ("f32", "dense", "one task switches the tensor, the other gives it whole"),
        ("gone", "dense", "one task removes the tensor, the other gives it"),
        ("f32", "gone", "one task switches the tensor, the other removes it"),
        ("dense", "shape", "the same bytes in different shapes"),
        ("new", "new2", "new tensors of one name differ"),
    ):
        bad(f"{one}-and-{two}", "903", why, chosen=((one, "1"), (two, "1")), file=made)
