"""Seeded models and files of them: dtypes, shapes, densities, profiles, factors, tasks, shared vectors, routers, tables of
coefficients, tied, new and removed tensors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import tswitch_format as tsw
from fuzz.memory import written_to_memory
from tswitch_format.checkpoint import DTYPE_BY_NAME, ShardLayout, TensorSpec

SHAPES = ((30, 41), (7,), (3, 2, 5, 4), (), (0, 3), (1, 1), (2000,), (64, 1), (1, 64), (5, 5), (1025,))
FLOATS = ("F16", "BF16", "F32", "F64")
WHOLE = ("I64", "U8", "BOOL", "I16")
DENSITIES = (1e-4, 3e-3, 0.02, 0.1, 0.4, 0.8, 1.0)
_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U8": "u1", "BOOL": "u1", "I16": "<i2"}


class Tensor(NamedTuple):
    """The name of a dtype, a shape and the elements' bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def case(self) -> dict[str, Any]:
        """As the suite's cases of applying write it."""
        return {"dtype": self.dtype, "shape": list(self.shape), "data": {"hex": self.data.hex()}}


Model = dict[str, Tensor]


class Checkpoint:
    """A model as the library reads one (`tswitch_format.checkpoint`), since NumPy has no BF16. `tied`: name to name."""

    paths: tuple[Path, ...] = ()

    def __init__(self, model: Model, tied: dict[str, str]) -> None:
        self.location = "a model of a test"
        self.specs = {name: TensorSpec(name, DTYPE_BY_NAME[t.dtype], t.shape) for name, t in sorted(model.items())}
        self.aliases = tied
        self.metadata: dict[str, str] = {}
        self.layout = ShardLayout()
        self._model = model

    def read_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """See `CheckpointReader.read_into`."""
        out[:] = np.frombuffer(self._model[name].data, np.uint8, out.size, start)

    def close(self) -> None:
        """Nothing to release."""


class Made(NamedTuple):
    """A base and a file of tasks on it, maybe with tables of coefficients of these names."""

    base: Model
    tasks: list[str]
    data: bytes
    tables: list[str]


def _bytes(values: NDArray[np.float64], dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    kept = np.abs(values * 8) % 2 if dtype == "BOOL" else values if dtype in FLOATS else values * 8
    return kept.astype(np.int64 if dtype in WHOLE else _NUMPY[dtype]).astype(_NUMPY[dtype]).tobytes()


def make(seed: int, folder: Path, *, chunks: bool = False) -> Made:
    """The file of a seed; with `chunks` its first tensor has more than one chunk."""
    rng = np.random.default_rng(seed)
    shapes = [SHAPES[at] for at in rng.choice(len(SHAPES), rng.integers(1, 6))]
    shapes[:1] = [((1 << 20) + 77,)] if chunks else shapes[:1]
    floats = FLOATS[seed % len(FLOATS)]
    values = {f"t{at}{'.ä' * (at == 1)}": rng.normal(size=shape) for at, shape in enumerate(shapes)}
    dtypes = {name: floats if at < 3 else str(rng.choice(FLOATS + WHOLE)) for at, name in enumerate(values)}
    base = {name: Tensor(dtypes[name], array.shape, _bytes(array, dtypes[name])) for name, array in values.items()}
    tied = {"z.tied": "t0"} if seed % 3 == 0 else {}
    names = [f"task {number}" for number in range(1 + seed % 5 // 3)]
    options: dict[str, Any] = {
        "density": 1e-4 if chunks else float(rng.choice(DENSITIES)),
        "knob_per": ("tensor", "row", "row-col")[seed // 2 % 3],
        "knob_dtype": ("u8", "f16", "f32")[seed // 3 % 3],
        "profile": ("archive", "mapped")[seed // 4 % 2],
        "base_id": "somebody/base" if seed % 2 else None,
    }
    masks = ["masked", "also masked"][: seed % 7 // 3]
    parts = [folder / f"{number}.tsw" for number in range(len(names) + bool(masks))]
    made, more = folder / "whole.tsw", [folder / f"more {number}.tsw" for number in range(3)]
    tables = ["table", *names[:1]][: seed % 3]
    with written_to_memory():
        for task, path in zip(names, parts, strict=False):
            tuned = _tuned(rng, values, dtypes)
            still_tied = {name: target for name, target in tied.items() if target in tuned}
            tsw.pack(
                Checkpoint(base, tied),
                Checkpoint(tuned, still_tied),
                path,
                task=task,
                on_mismatch="dense",
                threads=1,
                **options,
            )
        if masks:
            _build_masks(Checkpoint(base, tied), base, masks, parts[-1], options["profile"], options["base_id"], seed)
        tsw.bundle(parts, made)
        if seed % 4 == 1:
            _add_router(made, more[2], names + masks, seed)
            made = more[2]
        for number, table in enumerate(tables):
            _add_table(made, more[number], table, list(base), names + masks, seed + number)
            made = more[number]
    return Made(base, names + masks, made.read_bytes(), tables)


def _add_router(path: Path, out: Path, tasks: list[str], seed: int) -> None:
    """Samples of some of the tasks. Its own generator, as that of masks."""
    rng = np.random.default_rng([seed, 2])
    width = int(rng.choice([1, 2, 7]))
    samples = {}
    for task in rng.permutation(tasks)[: rng.integers(1, len(tasks) + 1)].tolist():
        values = rng.normal(size=(int(rng.choice([1, 3, 20])), width)) * rng.choice([0, 1, 1e-3])
        samples[task] = values.astype(rng.choice(["<f2", "<f4"]))
    tsw.add_router(
        path,
        out,
        samples,
        k=int(rng.choice([1, 5, 1 << 20])),
        metric=str(rng.choice(["euclidean", "cosine"])),
        extractor=str(rng.choice(["", "somebody/extractor", "\u00e9\n"])),
        preprocessing=str(rng.choice(["", "none"])),
    )


def _add_table(path: Path, out: Path, name: str, tensors: list[str], tasks: list[str], seed: int) -> None:
    """Coefficients of some of the tensors and of some of the tasks. Its own generator, as that of masks."""
    rng = np.random.default_rng([seed, 3])
    rows = sorted(rng.permutation(tensors)[: rng.integers(1, len(tensors) + 1)].tolist(), key=str.encode)
    columns = rng.permutation(tasks)[: rng.integers(1, len(tasks) + 1)].tolist()
    values = rng.normal(size=(len(rows), len(columns))) * rng.choice([0, 1, 1, 1e-3, 1e-40], (len(rows), len(columns)))
    values = np.where(rng.random(values.shape) < 0.2, 1, values).astype("<f4")
    clamp = (None, (0.0, 1.0), (-0.5, 0.25), (0.0, 0.0))[rng.integers(4)]
    tsw.add_table(path, out, name, values, rows=rows, tasks=columns, clamp=clamp)


def _build_masks(
    checkpoint: Checkpoint, base: Model, tasks: list[str], path: Path, profile: str, base_id: str | None, seed: int
) -> None:
    """Masks of several tasks over shared vectors of some of the float tensors. Its own generator: other tasks stay the same."""
    rng = np.random.default_rng([seed, 1])
    masked = [name for name, tensor in base.items() if tensor.dtype in FLOATS and rng.random() < 0.8]
    vectors = {}
    for name in masked:
        dtype, shape = str(rng.choice(FLOATS)), base[name].shape
        values = rng.normal(size=shape) * rng.choice([0, 1, 1e-3, 1e3])
        stored = DTYPE_BY_NAME[dtype]
        flat = np.frombuffer(_bytes(values, dtype), stored.storage)
        vectors[name] = tsw.GivenVector(stored, partial(_chunk, flat))
    given = []
    for task in tasks:
        share, knob = float(rng.choice([0, 1e-3, 0.1, 0.5, 1])), float(rng.choice([1, 1, -1, 0.5, 1e-3, 0]))
        flags = {name: rng.random(base[name].shape) < share for name in masked}
        given.append(tsw.GivenTask(task, {name: tsw.GivenMask.of_flags(on, knob) for name, on in flags.items()}))
    tsw.build(checkpoint, path, given, vectors=vectors, profile=profile, base_id=base_id, threads=1)


def _chunk(flat: NDArray[np.generic], number: int) -> NDArray[np.generic]:
    return flat[number << 20 : (number + 1) << 20]


def _tuned(rng: np.random.Generator, values: dict[str, NDArray[np.float64]], dtypes: dict[str, str]) -> Model:
    """Changed, equal, removed, reshaped and added tensors."""
    model = {}
    for name, array in values.items():
        fate = rng.random()
        if fate < 0.08:
            continue
        if fate < 0.16:
            changed = rng.normal(size=(2, 3))
        elif fate < 0.25:
            changed = array
        else:
            changed = array + rng.normal(size=array.shape) * rng.choice([0, 1], array.shape)
        dtype = "F32" if 0.25 <= fate < 0.32 and dtypes[name] in FLOATS else dtypes[name]
        model[name] = Tensor(dtype, changed.shape, _bytes(changed, dtype))
    if rng.random() < 0.3:
        model["added"] = Tensor("F16", (4,), _bytes(rng.normal(size=4), "F16"))
    return model
