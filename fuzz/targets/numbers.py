"""What is written, read and computed: the input is a list of choices, taken byte by byte."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tswitch_format as tsw
from fuzz.limits import DECODED, limited, promise
from fuzz.memory import Slot, written_to_memory
from fuzz.modules import load
from fuzz.targets.reading import declared, slot
from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.codecs import plane
from tswitch_format.errors import CheckpointError, FormatError, TswError
from tswitch_format.switch.apply import Codes, Scale, apply_chunk, factor_values, signed_values, vector_values

Array = NDArray[Any]
FLOATS = ("F16", "BF16", "F32", "F64")
_FACTORS = {1: ("u8", "u1"), 2: ("f16", "<f2"), 3: ("f32", "<f4")}
_ARRAYS = ("<f2", "<f4", "<f8", "<i8", "u1", "?")
_SCALES = [{"knob": "projection", "knob_per": "row-col"}]
_SCALES += [{"knob": k, "knob_per": p} for k in ("projection", "norm", "rms", "mean") for p in ("tensor", "row")]
_BITS = 20_000  # of the planes that `encode` makes


class Choices:
    """Numbers from bytes; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found.ljust(size, b"\0")

    def below(self, most: int) -> int:
        """A number from 0 to most - 1."""
        return int.from_bytes(self.take(2), "little") % most

    def array(self, dtype: str, shape: tuple[int, ...]) -> Array:
        """An array of any bits."""
        kind = np.dtype(dtype)
        raw = np.frombuffer(self.take(math.prod(shape) * kind.itemsize), kind if kind != np.bool_ else "u1")
        return (raw & 1 if kind == np.bool_ else raw).astype(kind).reshape(shape)

    def flags(self, count: int) -> NDArray[np.bool_]:
        """Booleans, a bit each."""
        raw = np.frombuffer(self.take(-(-count // 8)), np.uint8)
        return np.unpackbits(raw, count=count, bitorder="little").view(np.bool_)


def encode(data: bytes) -> None:
    """A plane of any positions: encoded for either profile it decodes to the same, in at most the bytes of a bitmap."""
    choices = Choices(data)
    n = choices.below(_BITS)
    repeats = 1 + choices.below(1 + n // 64)
    flags = np.tile(choices.flags(min(n, 8 * len(data))), repeats)[:n]
    positions = np.flatnonzero(flags)
    with limited():
        for mapped in (False, True):
            made = plane.encode(positions, n, mapped=mapped)
            promise(
                made.count == positions.size and len(made.data) <= -(-n // 8), "another count, or more than a bitmap"
            )
            arguments = (made.codec, made.parameter, memoryview(made.data), n, made.count)
            promise(np.array_equal(plane.decode_positions(*arguments), positions), "decodes to other positions")
            flags = np.zeros(n, np.bool_)
            flags[positions] = True
            packed = plane.decode_packed(*arguments)
            promise(np.array_equal(packed, np.packbits(flags, bitorder="little")), "decodes to another bit string")


def apply(data: bytes) -> None:
    """Any elements, factors and coefficient: the library gives the bits of tests/conformance/slow_reference.py."""
    choices = Choices(data)
    base, target = (FLOATS[choices.below(4)] for _ in range(2))
    rows, columns = 1 + choices.below(4), 1 + choices.below(4)
    kind = choices.below(4)
    having = choices.below(4) if kind else 0
    knob = _finite(np.frombuffer(choices.take(4), "<f4"))[0]
    coefficient = _coefficient(choices, base)
    codes = [_codes(choices, kind, size) if having >> i & 1 else None for i, size in enumerate((rows, columns))]
    mask = choices.flags(rows * columns)
    positions = np.flatnonzero(mask)
    negative = choices.flags(positions.size)
    storage = DTYPE_BY_NAME[base].storage
    elements = np.frombuffer(choices.take(rows * columns * storage.itemsize), storage)
    with limited(), np.errstate(all="ignore"):
        row_values, column_values = (None if one is None else factor_values(one) for one in codes)
        scale = Scale(knob, row_values, column_values, columns)
        dtypes = DTYPE_BY_NAME[base], DTYPE_BY_NAME[target]
        terms = [(positions, signed_values(scale, coefficient, dtypes[0], 0, positions, negative))]
        found = apply_chunk(elements.copy(), *dtypes, terms)
    reference = slow_reference()
    stored = [None if one is None else [int.from_bytes(c.tobytes(), "little") for c in one] for one in codes]
    switch = reference.Knob(float(knob), _FACTORS[kind][0] if having else "none", *stored)
    entry = reference.Entry("ternary", target, (rows, columns), mask.tolist(), negative.tolist(), switch)
    tensor = reference.Tensor(base, (rows, columns), elements.tobytes())
    expected = np.frombuffer(reference.apply_entries(tensor, [(entry, coefficient)]).data, found.dtype)
    _promise_same(found, expected, target, mask if base == target else np.ones(mask.size, np.bool_))


def masks(data: bytes) -> None:
    """Any elements, vector, knobs and coefficients of two tasks over one vector: the bits of the slow reference again."""
    choices = Choices(data)
    base, target, stored = (FLOATS[choices.below(4)] for _ in range(3))
    shape = (1 + choices.below(4), 1 + choices.below(4))
    size = shape[0] * shape[1]
    dtypes = [DTYPE_BY_NAME[name] for name in (base, target, stored)]
    elements, vector = (
        np.frombuffer(choices.take(size * one.storage.itemsize), one.storage) for one in (dtypes[0], dtypes[2])
    )
    reference = slow_reference()
    shared = reference.Tensor(stored, shape, vector.tobytes())
    terms, entries, touched = [], [], np.zeros(size, np.bool_)
    for _ in range(1 + choices.below(2)):
        knob = np.float32(1) if choices.below(2) else _finite(np.frombuffer(choices.take(4), "<f4"))[0]
        coefficient, mask = _coefficient(choices, base), choices.flags(size)
        positions = np.flatnonzero(mask)
        with limited(), np.errstate(all="ignore"):
            values = vector_values(knob, coefficient, dtypes[0], vector[positions], dtypes[2])
        terms.append((positions, values))
        entry = reference.Entry("masked", target, shape, mask.tolist(), knob=reference.Knob(float(knob)), vector=shared)
        entries.append((entry, coefficient))
        touched |= mask
    with limited(), np.errstate(all="ignore"):
        found = apply_chunk(elements.copy(), dtypes[0], dtypes[1], terms)
    made = reference.apply_entries(reference.Tensor(base, shape, elements.tobytes()), entries)
    expected = np.frombuffer(made.data, found.dtype)
    _promise_same(found, expected, target, touched if base == target else np.ones(size, np.bool_))


def _promise_same(found: Array, expected: Array, dtype: str, touched: NDArray[np.bool_]) -> None:
    """The same bits, but for NaNs of what was computed."""
    same = _bits(found) == _bits(expected)
    nan = _is_nan(found, dtype) & _is_nan(expected, dtype)
    promise(bool((same | nan & touched).all()), "other bits than the slow reference")


def _coefficient(choices: Choices, base: str) -> float:
    if choices.below(2):
        return 1.0
    value = float(_finite(np.frombuffer(choices.take(8), "<f8"))[0])
    if base != "F64":
        with np.errstate(over="ignore"):
            value = value if np.isfinite(np.float32(value)) else 0.5
    return value or 2.0  # 0 is not for the arithmetic: nothing is done then


def _codes(choices: Choices, kind: int, size: int) -> Codes:
    return _finite(choices.array(_FACTORS[kind][1], (size,)))


def _finite(values: Array) -> Array:
    return values if values.dtype.kind == "u" else np.where(np.isfinite(values), values, values.dtype.type(1.5))


def _bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


def _is_nan(values: Array, name: str) -> NDArray[np.bool_]:
    wide = (_bits(values).astype(np.uint32) << 16).view(np.float32) if name == "BF16" else values
    return np.asarray(np.isnan(wide))


def roundtrip(data: bytes) -> None:
    """Any small model and expert: what is packed is valid, and applies to what the base and the switch say."""
    choices = Choices(data)
    base, tuned = {}, {}
    for number in range(1 + choices.below(4)):
        dtype = _ARRAYS[choices.below(len(_ARRAYS))]
        shape = tuple(choices.below(5) for _ in range(choices.below(4)))
        name = f"t{number}"
        base[name] = choices.array(dtype, shape)
        change = choices.array(dtype, shape) if choices.below(3) else base[name]
        tuned[name] = change
        if not choices.below(8):
            del (base, tuned)[choices.below(2)][name]
    options: dict[str, Any] = {
        "density": (choices.below(100) + 1) / 100,
        "select": ("tensor", "tensor-signed", "global")[choices.below(3)],
        **_SCALES[choices.below(len(_SCALES))],
        "knob_dtype": ("u8", "f16", "f32")[choices.below(3)],
        "profile": lay.PROFILES[choices.below(2)],
        "nonfinite": ("error", "dense")[choices.below(2)],
    }
    out = _output().path
    # NumPy warns of what overflows on the way to the error for it.
    with written_to_memory(), limited(), np.errstate(all="ignore"):
        try:
            tsw.pack(base, tuned, out, on_mismatch="dense", threads=1, **options)
        except CheckpointError:
            return
    check_packed(base, tuned, out)


def check_packed(base: dict[str, Array], tuned: dict[str, Array], out: Path) -> None:
    """What packing `base` and `tuned` into the file `out` promises."""
    promise(tsw.validate(out).ok, "what was packed is not valid")
    with tsw.open(out) as file, np.errstate(all="ignore"):
        names = set(file.keys("task"))
        for name in base.keys() | tuned.keys():
            if name not in names:
                kept = name in tuned and name in base and tuned[name].dtype.kind == "f"
                promise(kept or tuned[name].tobytes() == base[name].tobytes(), f"a change of {name} is not packed")
                continue
            switch = file.switch(name)
            promise((switch.kind == "removed") == (name not in tuned), "another tensor is removed")
            if switch.kind == "dense":
                promise(switch.data().tobytes() == tuned[name].tobytes(), "dense data differ")
            elif switch.kind == "ternary":
                applied = switch.apply(base[name])
                promise(applied.dtype == tuned[name].dtype, "another type than the expert's")
                rest = ~switch.mask()
                same = applied[rest].tobytes() == base[name][rest].astype(applied.dtype).tobytes()
                promise(same, "an element changed that is not active")
                promise(switch.apply(base[name], 0).tobytes() == base[name].tobytes(), "coefficient 0 changed the base")


def repack(data: bytes) -> None:
    """A whole file: repacked, and taken to pieces and bundled, it keeps its content id; a bad one is refused."""
    path = slot().put(data)
    try:
        if declared(path) > DECODED // 8:
            return
    except TswError:
        return
    valid = tsw.validate(path).ok
    with tsw.open(path) as file:
        if file.version != tsw.FORMAT_VERSION:  # what this version does not know may have no place in what it writes
            return
        before, tasks, profile = file.content_id, file.tasks, file.profile
        tables = list(file.container.index.coefficients.values())
        digests = all(bool((t.entries["flags"] & lay.HAS_SHA256).all()) for t in file.container.index.tasks)
    other = lay.PROFILES[1 - lay.PROFILES.index(profile)]
    outputs = [_output(number) for number in range(3)]
    with written_to_memory():
        try:
            with limited(declared(path)):
                tsw.repack(path, outputs[0].path, profile=other, threads=1)
                tsw.repack(outputs[0].path, outputs[1].path, profile=profile, threads=1)
        except FormatError:
            promise(not valid, "a valid file cannot be repacked")
            return
        for one in outputs[:2]:
            promise(tsw.validate(one.path).ok, "what was repacked is not valid")
            with tsw.open(one.path) as again:
                # A file may leave its content id out; repacking gives one where there are digests.
                promise(before is None or not valid or again.content_id == before, "repacking changed the content id")
                promise(again.tasks == tasks, "repacking changed the tasks")
        if not (valid and digests and tasks):
            return
        pieces = [_output(3 + number) for number in range(min(len(tasks), 4))]
        for task, piece in zip(tasks, pieces, strict=False):
            tsw.extract(path, task, piece.path)
            promise(tsw.validate(piece.path).ok, "what was extracted is not valid")
        if len(pieces) == len(tasks):
            tsw.bundle([piece.path for piece in pieces], outputs[2].path)
            with tsw.open(outputs[2].path) as again:
                left = len(again.tables)
                promise(left == sum(len(table.tasks) == 1 for table in tables), "bundling has other tables")
                same = left < len(tables) or before is None or again.content_id == before
                promise(same, "bundling changed the content id")


@cache
def _output(number: int = 0) -> Slot:
    return Slot(f"output{number}")


@cache
def slow_reference() -> Any:
    """tests/conformance/slow_reference.py."""
    return load("tests/conformance/slow_reference.py")
