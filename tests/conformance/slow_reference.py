"""The numbers of TSW once more, plain and slow, written from the specification and the design, not from the library.

Everything here is done element by element with Python's own floats (binary64), integers and fractions. Nothing of
tswitch_format is imported, nor NumPy. Sections are those of spec/tsw-1.md.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

DTYPE_IDS = {"BOOL": 1, "U8": 2, "I8": 3, "U16": 4, "I16": 5, "U32": 6, "I32": 7, "U64": 8, "I64": 9} | {
    "F16": 10,
    "BF16": 11,
    "F32": 12,
    "F64": 13,
    "C64": 20,
}
KIND_IDS = {"ternary": 1, "masked": 2, "dense": 3, "removed": 4}
FACTOR_IDS = {"none": 0, "u8": 1, "f16": 2, "f32": 3}
CHUNK = 1 << 20

# name: (bits of the significand with the hidden one, bits of the exponent, bytes)
FORMATS = {"F16": (11, 5, 2), "BF16": (8, 8, 2), "F32": (24, 8, 4), "F64": (53, 11, 8)}


@dataclass(frozen=True)
class Tensor:
    """A tensor as the format sees it: a dtype's name, dimensions, little-endian bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


# --- rounding -------------------------------------------------------------------------------------------------


def encode_float(value: float, dtype: str) -> int:
    """The bits of `value` rounded once to `dtype`: to nearest, ties to even, beyond the range to infinity."""
    significand, exponent_bits, size = FORMATS[dtype]
    if dtype == "F64":
        return int.from_bytes(struct.pack("<d", value), "little")
    fraction_bits = significand - 1
    sign = (1 if math.copysign(1.0, value) < 0 else 0) << (8 * size - 1)
    infinity = ((1 << exponent_bits) - 1) << fraction_bits
    if math.isnan(value):
        return sign | infinity | (1 << (fraction_bits - 1))
    if math.isinf(value):
        return sign | infinity
    if value == 0.0:
        return sign
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = max(math.frexp(abs(value))[1] - 1, 1 - bias)  # of the binade, not below that of the subnormals
    quantum = Fraction(2) ** (exponent - fraction_bits)
    steps = round(Fraction(abs(value)) / quantum)  # of a fraction: ties to even
    bits = ((exponent + bias - 1) << fraction_bits) + steps  # a carry goes into the exponent by itself
    return sign | min(bits, infinity)


def decode_float(bits: int, dtype: str) -> float:
    """The value of a float's bits, which a Python float holds exactly."""
    if dtype == "BF16":
        return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    letters = {"F16": ("<H", "<e"), "F32": ("<I", "<f"), "F64": ("<Q", "<d")}[dtype]
    return float(struct.unpack(letters[1], struct.pack(letters[0], bits))[0])


def fl32(value: float) -> float:
    """`value` rounded to binary32."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return decode_float(encode_float(value, "F32"), "F32")


def working(value: float, base_dtype: str) -> float:
    """`value` rounded to T: binary64 for an F64 base, else binary32.

    Products and sums of two binary32 numbers, computed in binary64 and then rounded to binary32, are rounded as if
    once: a product is exact, and for a sum 53 >= 2 * 24 + 2 bits are enough.
    """
    return value if base_dtype == "F64" else fl32(value)


def elements(tensor: Tensor) -> list[int]:
    """The elements' bits."""
    size = FORMATS[tensor.dtype][2]
    letter = {2: "H", 4: "I", 8: "Q"}[size]
    return list(struct.unpack(f"<{len(tensor.data) // size}{letter}", tensor.data))


def values(tensor: Tensor) -> list[float]:
    """The elements' values."""
    if tensor.dtype == "BF16":
        return [decode_float(bits, "BF16") for bits in elements(tensor)]
    size = FORMATS[tensor.dtype][2]
    return list(struct.unpack(f"<{len(tensor.data) // size}{ {2: 'e', 4: 'f', 8: 'd'}[size] }", tensor.data))


def from_bits(bits: Iterable[int], dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of elements' bits."""
    size = FORMATS[dtype][2]
    return Tensor(dtype, shape, b"".join(one.to_bytes(size, "little") for one in bits))


def from_values(numbers: Iterable[float], dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of values, each rounded once."""
    return from_bits((encode_float(number, dtype) for number in numbers), dtype, shape)


def task_vector(base: Tensor, expert: Tensor) -> list[float]:
    """The expert less the base, in the T of the base; an expert of a wider type is rounded to T first."""
    pairs = zip(values(base), values(expert), strict=True)
    return [working(working(new, base.dtype) - old, base.dtype) for old, new in pairs]


def paper_task_vector(base: Tensor, expert: Tensor) -> list[float]:
    """The same, rounded to the parameter's dtype, where both have the same, as tensors subtract in the authors' code."""
    tau = task_vector(base, expert)
    if base.dtype != expert.dtype:
        return tau
    return [decode_float(encode_float(one, base.dtype), base.dtype) for one in tau]


# --- selection (design, section 7; methods, T-Switch) ---------------------------------------------------------


def quota_by_density(density: str, total: int, nonzero: int) -> int:
    """How many elements a density keeps: its share of all, rounded up exactly, at most the non-zero ones."""
    return min(math.ceil(Fraction(Decimal(density)) * total), nonzero)


def quota_by_discard(discard: str, nonzero: int) -> int:
    """How many elements a discard ratio keeps: the authors' Python arithmetic, but at least one of the non-zero ones."""
    return min(max(int(nonzero * (1 - float(discard))), 1), nonzero)


def threshold(keys: Sequence[float], quota: int) -> float:
    """The smallest of the `quota` largest of the non-zero keys."""
    ranked = sorted((key for key in keys if key != 0.0), reverse=True)
    return ranked[quota - 1] if quota else math.inf


def kept_by_threshold(keys: Sequence[float], limit: float) -> list[bool]:
    """Every non-zero key at the limit or above; so ties stay."""
    return [key != 0.0 and key >= limit for key in keys]


def quota_of(keys: Sequence[float], total: int, *, density: str | None, discard: str | None) -> int:
    """The quota of a set of keys, by density or by discard."""
    nonzero = sum(key != 0.0 for key in keys)
    if density is not None:
        return quota_by_density(density, total, nonzero)
    assert discard is not None
    return quota_by_discard(discard, nonzero)


def select_tensor(tau: Sequence[float], *, density: str | None = None, discard: str | None = None) -> list[bool]:
    """One threshold a tensor."""
    keys = [abs(one) for one in tau]
    return kept_by_threshold(keys, threshold(keys, quota_of(keys, len(keys), density=density, discard=discard)))


def select_signed(tau: Sequence[float], *, density: str | None = None, discard: str | None = None) -> list[bool]:
    """One threshold a tensor and sign."""
    kept = [False] * len(tau)
    nonzero = sum(one != 0.0 for one in tau)
    for sign in (1.0, -1.0):
        keys = [max(sign * one, 0.0) for one in tau]
        count = sum(key != 0.0 for key in keys)
        if count == 0:
            continue
        if density is not None:
            quota = quota_by_density(density, len(tau), nonzero)
            share = min(math.ceil(Fraction(quota * count, nonzero)), count)
        else:
            assert discard is not None
            share = quota_by_discard(discard, count)
        kept = [a or b for a, b in zip(kept, kept_by_threshold(keys, threshold(keys, share)), strict=True)]
    return kept


def select_global(
    taus: Mapping[str, Sequence[float]], *, density: str | None = None, discard: str | None = None
) -> dict[str, list[bool]]:
    """One threshold over the model."""
    everything = [abs(one) for tau in taus.values() for one in tau]
    quota = quota_of(everything, len(everything), density=density, discard=discard)
    limit = threshold(everything, quota)
    return {name: kept_by_threshold([abs(one) for one in tau], limit) for name, tau in taus.items()}


def select_paper(tau: Sequence[float], discard: str) -> list[bool]:
    """The authors' rule with its quirk: where a sign's quota is 0, all of that sign is kept."""
    kept = [False] * len(tau)
    for sign in (1.0, -1.0):
        keys = [max(sign * one, 0.0) for one in tau]
        count = sum(key != 0.0 for key in keys)
        quota = int(count * (1 - float(discard)))
        if count:
            limit = threshold(keys, quota if quota else count)
            kept = [a or b for a, b in zip(kept, kept_by_threshold(keys, limit), strict=True)]
    return kept


# --- knobs (design, section 7) --------------------------------------------------------------------------------


@dataclass
class Knob:
    """The knob and its factors as stored: codes for u8, bits for f16 and f32, and what they mean."""

    knob: float
    dtype: str = "none"
    rows: list[int] | None = None
    columns: list[int] | None = None


def encode_factor(value: float, dtype: str) -> int:
    """A factor as it is stored."""
    if dtype == "u8":
        return round(Fraction(value) * 85)  # value = code * 3 / 255
    return encode_float(value, dtype.upper())


def decode_factor(code: int, dtype: str) -> float:
    """What a stored factor means (section 7)."""
    if dtype == "u8":
        return fl32(3 * code / 255)
    return decode_float(code, dtype.upper())


def grid(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns: the first dimension times all others."""
    total = math.prod(shape)
    return shape[0], total // shape[0]


def _ratio(rule: str, tau: Sequence[float], kept: Sequence[bool], weights: Sequence[float]) -> float:
    """The number k for which k * weight on the kept elements follows the rule; 0 without kept elements.

    projection: sum tau^2 / sum_S w |tau|; norm and rms: the norm of k w on S is that of tau, or of tau on S; mean:
    least squares on S. With all weights 1 these are the design's formulas.
    """
    chosen = [(abs(t), w) for t, on, w in zip(tau, kept, weights, strict=True) if on]
    whole = math.fsum(t * t for t in tau)
    products = math.fsum(w * t for t, w in chosen)
    squares = math.fsum(w * w for _, w in chosen)
    if rule == "projection":
        return whole / products if products else 0.0
    if not squares:
        return 0.0
    if rule == "norm":
        return math.sqrt(whole / squares)
    if rule == "rms":
        return math.sqrt(math.fsum(t * t for t, _ in chosen) / squares)
    return products / squares


def plain_knob(rule: str, tau: Sequence[float], kept: Sequence[bool]) -> float:
    """The knob without factors, not rounded."""
    return _ratio(rule, tau, kept, [1.0] * len(tau))


def has_factors(per: str, shape: Sequence[int], kept: Sequence[bool]) -> bool:
    """Whether there are factors: only from two dimensions on, and where something is active."""
    return per != "tensor" and len(shape) >= 2 and any(kept)


def row_factors(rule: str, tau: Sequence[float], kept: Sequence[bool], shape: Sequence[int]) -> list[float]:
    """The rule on each row, in units of the plain knob, at most 3; not rounded."""
    rows, columns = grid(shape)
    whole = plain_knob(rule, tau, kept)
    lines = [slice(i * columns, (i + 1) * columns) for i in range(rows)]
    return [min(3.0, plain_knob(rule, tau[line], kept[line]) / whole) for line in lines]


def column_factors(
    tau: Sequence[float], kept: Sequence[bool], shape: Sequence[int], rows: Sequence[float]
) -> list[float]:
    """Projection on each column with the stored factors of the rows in it, in units of the plain knob, at most 3."""
    columns = grid(shape)[1]
    whole = plain_knob("projection", tau, kept)
    lines = [slice(j, None, columns) for j in range(columns)]
    return [min(3.0, _ratio("projection", tau[line], kept[line], rows) / whole) for line in lines]


def final_knob(
    rule: str,
    tau: Sequence[float],
    kept: Sequence[bool],
    shape: Sequence[int],
    rows: Sequence[float] | None,
    columns: Sequence[float] | None,
) -> float:
    """The knob set anew, so that its rule holds with the factors as they are stored; binary32."""
    if rows is None:
        return fl32(plain_knob(rule, tau, kept))
    weights = [r * c for r in rows for c in columns or [1.0] * grid(shape)[1]]
    return fl32(_ratio(rule, tau, kept, weights))


def paper_knob(tau: Sequence[float], kept: Sequence[bool], dtype: str) -> float:
    """RMS of the survivors as a quotient of two norms, each result rounded to the parameter's dtype."""

    def rounded(number: float) -> float:
        return decode_float(encode_float(number, dtype), dtype)

    survivors = [one for one, on in zip(tau, kept, strict=True) if on]
    if not survivors:
        return 0.0
    norm = rounded(math.sqrt(math.fsum(one * one for one in survivors)))
    return fl32(rounded(norm / rounded(math.sqrt(len(survivors)))))


# --- entries and applying (sections 7, 10) --------------------------------------------------------------------


@dataclass
class Entry:
    """An entry of a task: what it makes of the tensor that it names."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    mask: Sequence[bool] = ()
    negative: Sequence[bool] = ()  # of the active elements, in order
    knob: Knob = field(default_factory=lambda: Knob(0.0))
    data: bytes = b""
    vector: Tensor | None = None  # what a masked entry selects from


def ternary_steps(entry: Entry, coefficient: float, base: Tensor) -> list[float]:
    """What a ternary entry adds to each active element, in order."""
    rows, columns = entry.knob.rows, entry.knob.columns
    width = grid(base.shape)[1] if len(base.shape) >= 2 and entry.mask else 1
    signs = iter(entry.negative)
    steps = []
    for at, active in enumerate(entry.mask):
        if not active:
            continue
        step = working(entry.knob.knob, base.dtype)
        if rows is not None:
            step = working(step * decode_factor(rows[at // width], entry.knob.dtype), base.dtype)
        if columns is not None:
            step = working(step * decode_factor(columns[at % width], entry.knob.dtype), base.dtype)
        if coefficient != 1:
            step = working(step * working(coefficient, base.dtype), base.dtype)
        steps.append(-step if next(signs) else step)
    return steps


def masked_steps(entry: Entry, coefficient: float, base: Tensor) -> list[float]:
    """What a masked entry adds to each active element, in order: of the vector, times knob, times coefficient."""
    assert entry.vector is not None and entry.vector.shape == base.shape
    steps = []
    for one, active in zip(values(entry.vector), entry.mask, strict=True):
        if not active:
            continue
        step = working(one, base.dtype)
        for scale in (entry.knob.knob, coefficient):
            if scale != 1:
                step = working(step * working(scale, base.dtype), base.dtype)
        steps.append(step)
    return steps


def apply_entries(base: Tensor, entries: Sequence[tuple[Entry, float]]) -> Tensor:
    """What several ternary and masked entries with their coefficients make of a base tensor, element by element."""
    entries = [(entry, coefficient) for entry, coefficient in entries if coefficient != 0]
    if not entries:
        return base
    dtype = entries[0][0].dtype
    assert all(entry.kind in ("ternary", "masked") and entry.dtype == dtype for entry, _ in entries)
    bits = elements(base)
    sums = values(base)
    touched = [False] * len(bits)
    for entry, coefficient in entries:
        steps = ternary_steps if entry.kind == "ternary" else masked_steps
        places = [at for at, active in enumerate(entry.mask) if active]
        for at, step in zip(places, steps(entry, coefficient, base), strict=True):
            sums[at] = working(sums[at] + step, base.dtype)
            touched[at] = True
    if dtype == base.dtype:
        bits = [encode_float(s, dtype) if on else b for s, on, b in zip(sums, touched, bits, strict=True)]
        return from_bits(bits, dtype, base.shape)
    return from_values(sums, dtype, base.shape)


# --- digests (section 11) -------------------------------------------------------------------------------------


def tensor_digest(tensor: Tensor) -> bytes:
    """11.1."""
    return hashlib.sha256(tensor.data).digest()


def sampled_digest(tensor: Tensor) -> bytes:
    """11.2."""
    length = len(tensor.data)
    sample = tensor.data
    if length > 65536:
        starts = [b * (length - 4096) // 15 for b in range(16)]
        sample = b"".join(tensor.data[start : start + 4096] for start in starts)
    return hashlib.sha256(struct.pack("<Q", length) + sample).digest()[:8]


def bit_string(bits: Sequence[bool]) -> bytes:
    """Least significant bit first."""
    packed = bytearray((len(bits) + 7) // 8)
    for at, bit in enumerate(bits):
        if bit:
            packed[at // 8] |= 1 << (at % 8)
    return bytes(packed)


def entry_digest(entry: Entry) -> bytes:
    """11.3."""
    head = b"TSW1-entry\0" + bytes([KIND_IDS[entry.kind], DTYPE_IDS[entry.dtype], len(entry.shape)])
    head += struct.pack(f"<{len(entry.shape)}Q", *entry.shape)
    if entry.kind == "dense":
        return hashlib.sha256(head + entry.data).digest()
    if entry.kind == "removed":
        return hashlib.sha256(head).digest()
    knob = entry.knob
    if entry.kind == "masked":
        assert entry.vector is not None
        body = struct.pack("<fB", knob.knob, DTYPE_IDS[entry.vector.dtype]) + tensor_digest(entry.vector)
        for start in range(0, len(entry.mask), CHUNK):
            body += bit_string(entry.mask[start : start + CHUNK])
        return hashlib.sha256(head + body).digest()
    flags = (2 if knob.rows is not None else 0) | (4 if knob.columns is not None else 0)
    body = struct.pack("<fBB", knob.knob, FACTOR_IDS[knob.dtype], flags)
    size = {"none": 0, "u8": 1, "f16": 2, "f32": 4}[knob.dtype]
    for codes in (knob.rows, knob.columns):
        body += b"".join(code.to_bytes(size, "little") for code in codes or [])
    signs = list(entry.negative)
    for start in range(0, len(entry.mask), CHUNK):
        part = entry.mask[start : start + CHUNK]
        count = sum(part)
        body += bit_string(part) + bit_string(signs[:count])
        signs = signs[count:]
    return hashlib.sha256(head + body).digest()


def _named(name: str) -> bytes:
    raw = name.encode("utf-8")
    return struct.pack("<H", len(raw)) + raw


def _is_extra(tensor: Tensor | None, entry: Entry) -> bool:
    """Whether an entry makes a tensor that the base has not, or not with that dtype and shape."""
    if tensor is None:
        return True
    return entry.kind == "dense" and (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape)


def content_id(
    base: Mapping[str, Tensor],
    tasks: Mapping[str, Mapping[str, Entry]],
    aliases: Mapping[str, str] | None = None,
) -> bytes:
    """11.4."""
    names = sorted(base, key=lambda name: name.encode("utf-8"))
    content = b"TSW1-content\0" + struct.pack("<I", len(names))
    for name in names:
        tensor = base[name]
        content += _named(name) + bytes([DTYPE_IDS[tensor.dtype], len(tensor.shape)])
        content += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + tensor_digest(tensor)
    content += struct.pack("<I", len(aliases or {}))
    for alias in sorted(aliases or {}, key=lambda name: name.encode("utf-8")):
        content += _named(alias) + struct.pack("<I", names.index((aliases or {})[alias]))
    content += struct.pack("<I", len(tasks))
    for task in sorted(tasks, key=lambda name: name.encode("utf-8")):
        # tensors of the base come first, in their order; then those of `extra`, in order of names
        order = sorted(
            tasks[task],
            key=lambda name, made=tasks[task]: (_is_extra(base.get(name), made[name]), name.encode("utf-8")),
        )
        content += _named(task) + struct.pack("<I", len(order))
        for name in order:
            content += _named(name) + entry_digest(tasks[task][name])
    return hashlib.sha256(content).digest()
