"""The inputs of the harnesses as Hypothesis strategies: it finds other ones than a fuzzer does, and makes them small."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import tswitch_format as tsw
from fuzz import mutation, seeds
from fuzz.memory import Slot, written_to_memory
from fuzz.parts import Parts
from tswitch_format import _layout as lay
from tswitch_format.container.names import name_problem

Arrays = dict[str, NDArray[Any]]
_DTYPES = ("<f2", "<f4", "<f8", "<i8", "u1", "?")
_SCALES = [("projection", "row-col")]
_SCALES += [(knob, per) for knob in ("projection", "norm", "rms", "mean") for per in ("tensor", "row")]
_slot = Slot("strategy")


def names() -> st.SearchStrategy[str]:
    """Names that tensors and tasks may have, most of them plain."""
    any_text = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=4)
    return st.text("abc.0_", min_size=1, max_size=6) | any_text.filter(lambda name: name_problem(name) is None)


@st.composite
def arrays(draw: st.DrawFn, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """A small array of any finite values."""
    kind = np.dtype(draw(st.sampled_from(_DTYPES)) if dtype is None else dtype)
    dims = draw(st.lists(st.integers(0, 5), max_size=3).map(tuple)) if shape is None else shape
    size = int(np.prod(dims, dtype=int))
    if kind.kind != "f":
        values = draw(st.lists(st.integers(0, 1 if kind.kind == "b" else 255), min_size=size, max_size=size))
    else:
        width: Any = 8 * kind.itemsize
        numbers = st.floats(-8, 8, width=width)
        values = draw(st.lists(numbers, min_size=size, max_size=size))  # type: ignore[arg-type]
    return np.array(values, kind).reshape(dims)


@st.composite
def models(draw: st.DrawFn) -> tuple[Arrays, Arrays]:
    """A base and an expert: changed, equal, added, removed and reshaped tensors."""
    base: Arrays = {}
    tuned: Arrays = {}
    for name in draw(st.lists(names(), min_size=1, max_size=4, unique=True)):
        array = base[name] = draw(arrays())
        match draw(st.sampled_from(("changed", "equal", "removed", "reshaped", "added"))):
            case "changed":
                tuned[name] = draw(arrays(array.dtype.str, array.shape))
            case "equal":
                tuned[name] = array
            case "reshaped":
                tuned[name] = draw(arrays())
            case "added":
                tuned[name] = base.pop(name)
    return base, tuned


def options() -> st.SearchStrategy[dict[str, Any]]:
    """Options of pack."""
    scales = st.sampled_from(_SCALES).map(lambda pair: dict(zip(("knob", "knob_per"), pair, strict=True)))
    others = st.fixed_dictionaries(
        {
            "density": st.floats(0.01, 1),
            "select": st.sampled_from(("tensor", "tensor-signed", "global")),
            "knob_dtype": st.sampled_from(("u8", "f16", "f32")),
            "profile": st.sampled_from(lay.PROFILES),
        }
    )
    return st.builds(lambda one, other: one | other, scales, others)


@st.composite
def packed(draw: st.DrawFn) -> bytes:
    """A valid file, packed."""
    base, tuned = draw(models())
    with written_to_memory():
        tsw.pack(base, tuned, _slot.path, on_mismatch="dense", threads=1, **draw(options()))
    return _slot.get()


@st.composite
def masked(draw: st.DrawFn) -> bytes:
    """A valid file of masks of one or more tasks over shared vectors; maybe also of a task with a vector of its own,
    and maybe with a router and tables of coefficients."""
    base = {name: draw(arrays()) for name in draw(st.lists(names(), min_size=1, max_size=4, unique=True))}
    floats = {name: array for name, array in base.items() if array.dtype.kind == "f"}
    profile = draw(st.sampled_from(lay.PROFILES))
    with written_to_memory():
        made = []
        for part in range(draw(st.integers(1, 2))):
            vectors = {
                name: tsw.GivenVector.of_array(draw(arrays(draw(st.sampled_from(_DTYPES[:3])), array.shape)))
                for name, array in floats.items()
            }
            tasks = []
            for number in range(draw(st.integers(1, 2))):
                masks = {
                    name: tsw.GivenMask.of_flags(draw(arrays("?", array.shape)), draw(st.sampled_from((1, -0.5, 0))))
                    for name, array in floats.items()
                }
                tasks.append(tsw.GivenTask(f"{part} {number}", masks))
            made.append(Slot(f"part{part}"))
            tsw.build(base, made[-1].path, tasks, vectors=vectors, profile=profile, threads=1)
        tsw.bundle([slot.path for slot in made], _slot.path)
        if not draw(st.booleans()):
            return _slot.get()
        with tsw.open(_slot.path) as file:
            tasks = draw(st.lists(st.sampled_from(file.tasks), min_size=1, unique=True))
        stored, width = draw(st.sampled_from(_DTYPES[:2])), draw(st.integers(1, 3))
        samples = {task: draw(arrays(stored, (draw(st.integers(1, 3)), width))) for task in tasks}
        routed = Slot("routed")
        options: Any = {"k": draw(st.integers(1, 9)), "metric": draw(st.sampled_from(lay.METRICS))}
        tsw.add_router(_slot.path, routed.path, samples, **options)
        if not draw(st.booleans()):
            return routed.get()
        rows = draw(st.lists(st.sampled_from(sorted(base)), min_size=1, unique=True))
        values = draw(st.lists(_coefficients(), min_size=len(rows) * len(tasks), max_size=len(rows) * len(tasks)))
        clamp = draw(st.none() | st.tuples(_coefficients(), _coefficients()).map(lambda pair: (min(pair), max(pair))))
        matrix = np.array(values, np.float32).reshape(len(rows), len(tasks))
        name = draw(names())
        tsw.add_table(routed.path, _slot.path, name, matrix, rows=rows, tasks=tasks, clamp=clamp)
    return _slot.get()


def _coefficients() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False, width=32)


def files() -> st.SearchStrategy[bytes]:
    """Valid files."""
    return packed() | masked() | st.sampled_from(seeds.files())


def _randoms() -> st.SearchStrategy[random.Random]:
    """Seeded generators. Not `st.randoms`, whose draws depend on the list that is chosen from, and turn out flaky."""
    return st.integers(0, (1 << 32) - 1).map(random.Random)


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """A file with one to three changes, most of them behind right checksums."""
    data = draw(files())
    for _ in range(draw(st.integers(1, 3))):
        data = mutation.of_file(data, draw(_randoms()), mutation.of_bytes)
    return data


@st.composite
def with_payload(draw: st.DrawFn) -> bytes:
    """A file one of whose segments has other bytes and fields, with right checksums."""
    apart = Parts.of(draw(st.sampled_from(seeds.templates())))
    mutation.change_payload(apart, draw(_randoms()), mutation.of_bytes)
    apart.forget_digests()
    apart.sign_shared()  # theirs cannot be left out
    return apart.build()


def _texts() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]))


def documents() -> st.SearchStrategy[Any]:
    """What a MessagePack document of the format may hold."""
    leaves = st.integers(0, (1 << 64) - 1) | _texts() | st.binary(max_size=300)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=20) | st.dictionaries(_texts(), inner, max_size=20),
        max_leaves=40,
    )


@st.composite
def planes(draw: st.DrawFn) -> tuple[NDArray[np.int64], int]:
    """Positions of the ones of a plane, and its bits."""
    n = draw(st.integers(1, 3000) | st.sampled_from((8, 64, 255, 256, 1000, 65536, lay.CHUNK)))
    positions = draw(st.lists(st.integers(0, n - 1), max_size=200, unique=True))
    return np.array(sorted(positions), np.int64), n
