"""Masks over shared vectors: what comes out is what section 10 says, computed here anew; what does not fit is refused."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from switch_models import files_in

import tswitch_format as tsw
from tswitch_format.checkpoint import ArrayCheckpoint

Array = NDArray[Any]
FLOATS = ("F16", "BF16", "F32", "F64")
STORAGE = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}
CHUNK = 1 << 20
RNG = np.random.default_rng(11)


# Section 10, anew


def number(raw: Array, dtype: str) -> NDArray[np.float64]:
    """Raw elements as numbers."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)


def nearest_bf16(values: Array) -> NDArray[np.uint16]:
    """To nearest, ties to even, by looking at both neighbours."""
    out = np.empty(values.shape, np.uint16)
    for index, value in np.ndenumerate(values.astype(np.float64)):
        size = abs(float(value))
        low, high = 0, 0x7F80  # bit patterns, infinity the highest

        def of(pattern: int) -> float:
            return 2.0**128 if pattern == 0x7F80 else struct.unpack("<f", struct.pack("<I", pattern << 16))[0]

        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if of(middle) <= size else (low, middle)
        up = size - of(low) > of(high) - size or (size - of(low) == of(high) - size and low % 2 == 1)
        out[index] = (high if up or size >= of(high) else low) | (0x8000 if np.signbit(value) else 0)
    return out


def stored(values: Array, dtype: str) -> Array:
    """Rounded once to a float type, as raw elements."""
    if dtype == "BF16":
        return nearest_bf16(values)
    with np.errstate(over="ignore"):
        return values.astype(STORAGE[dtype])


def section_10(base: Array, base_dtype: str, dtype: str, tasks: list[tuple[Array, Array, str, float, float]]) -> Array:
    """`tasks`: mask, vector, its type, knob, coefficient."""
    kind = np.float64 if base_dtype == "F64" else np.float32
    s = number(base, base_dtype).astype(kind)
    touched = np.zeros(base.shape, np.bool_)
    for mask, vector, vector_dtype, knob, a in tasks:
        with np.errstate(all="ignore"):
            v = number(vector, vector_dtype).astype(kind)
            if np.float32(knob) != 1:
                v = v * kind(np.float32(knob))
            if a != 1:
                v = v * kind(a)
            s = np.where(mask, s + v, s)
        touched |= mask
    made = stored(s, dtype)
    return np.where(touched, made, base) if dtype == base_dtype else made


def save(path: Path, tensors: Mapping[str, tuple[str, Array]]) -> Path:
    """A .safetensors file of raw elements."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for _, a in tensors.values()))
    return path


def load(path: Path) -> dict[str, tuple[str, Array]]:
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    return {
        name: (
            of["dtype"],
            np.frombuffer(raw[8 + length :][slice(*of["data_offsets"])], STORAGE[of["dtype"]]).reshape(of["shape"]),
        )
        for name, of in header.items()
        if name != "__metadata__"
    }


def values(shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """Numbers of very different sizes, with zeros of both signs among them."""
    made = RNG.standard_normal(shape) * 10.0 ** RNG.integers(-6, 3, shape) * scale
    return np.where(RNG.random(shape) < 0.1, np.copysign(0.0, made), made)


def vector_of(raw: Array, dtype: str) -> tsw.GivenVector:
    found = tsw.GivenVector.of_array(np.zeros(1, np.float32) if dtype == "BF16" else raw)
    if dtype != "BF16":
        return found
    flat = raw.reshape(-1)
    return tsw.GivenVector(
        tsw.GivenVector.of_floats(
            ArrayCheckpoint({"x": raw.astype(np.float32)}).specs["x"], "BF16", lambda n: np.zeros(1, np.float32)
        ).dtype,
        lambda n: flat[n * CHUNK : (n + 1) * CHUNK],
    )


def mask_of(mask: Array, knob: float = 1.0, dtype: str | None = None) -> tsw.GivenMask:
    plain = tsw.GivenMask.of_flags(mask, knob)
    if dtype is None:
        return plain
    return tsw.GivenMask(plain.chunk, knob, vector_of(np.zeros(1, STORAGE[dtype]), dtype).dtype)


def equal(a: Array, b: Array) -> bool:
    """The same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("vector_dtype", "base_dtype", "dtype"), list(itertools.product(FLOATS, repeat=3)))
def test_what_is_applied_is_section_10_to_the_bit(
    tmp_path: Path, vector_dtype: str, base_dtype: str, dtype: str
) -> None:
    shape = (9, 31)
    raw = stored(values(shape), base_dtype)
    shared = stored(values(shape, 0.1), vector_dtype)
    masks = [RNG.random(shape) < density for density in (0.4, 0.8, 0.0)]
    knobs = [1.0, 0.3, -1.7]
    base = save(tmp_path / "base.safetensors", {"w": (base_dtype, raw), "other": ("F32", np.zeros(3, "<f4"))})
    tasks = [
        tsw.GivenTask(str(i), {"w": mask_of(m, k, dtype)}) for i, (m, k) in enumerate(zip(masks, knobs, strict=True))
    ]
    tsw.build(base, tmp_path / "a.tsw", tasks, vectors={"w": vector_of(shared, vector_dtype)})
    assert tsw.validate(tmp_path / "a.tsw", level="full").ok
    with tsw.open(tmp_path / "a.tsw") as file:
        for i, a in itertools.product(range(3), (1.0, 0.7, -2.5, 1e-60)):
            switch = file.switch("w", str(i))
            assert (switch.kind, switch.is_additive, switch.dtype) == ("masked", True, dtype)
            assert switch.active == np.count_nonzero(masks[i])
            wanted = section_10(raw, base_dtype, dtype, [(masks[i], shared, vector_dtype, knobs[i], a)])
            assert equal(switch.apply(raw.copy(), a), wanted)
            if dtype == base_dtype:
                place = raw.copy()
                assert switch.apply(place, a, out=place) is place
                assert equal(place, wanted)
            out = np.empty(shape, STORAGE[dtype])
            assert switch.apply(raw, a, out=out) is out
            assert equal(out, wanted)
            for key in (np.s_[2:7], np.s_[:, 3:17], np.s_[1:8, 30:], np.s_[4:4]):
                part = np.ascontiguousarray(raw[key])
                assert equal(switch[key].apply(part, a), np.ascontiguousarray(wanted[key]))
        assert equal(file.switch("w", "0").vector(), shared)
    for order in (["0", "1"], ["1", "0"], [("0", 0.5), ("2", 3.0), ("1", -1.5)], [("0", 0.0), ("1", 1.0)]):
        tsw.restore(base, tmp_path / "a.tsw", tmp_path / "out.safetensors", tasks=order)
        chosen = [t if isinstance(t, tuple) else (t, 1.0) for t in order]
        terms = [(masks[int(t)], shared, vector_dtype, knobs[int(t)], a) for t, a in chosen if a != 0]
        assert load(tmp_path / "out.safetensors")["w"][0] == dtype
        assert equal(load(tmp_path / "out.safetensors")["w"][1], section_10(raw, base_dtype, dtype, terms))


def test_knob_1_gives_the_expression_of_the_paper_but_for_minus_zero(tmp_path: Path) -> None:
    base, vector = values((40, 50)).astype(np.float32), values((40, 50)).astype(np.float32)
    mask = RNG.random((40, 50)) < 0.5
    tsw.build(
        {"w": base},
        tmp_path / "a.tsw",
        [tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(mask)})],
        vectors={"w": tsw.GivenVector.of_array(vector)},
    )
    with tsw.open(tmp_path / "a.tsw") as file:
        made = file.switch("w").apply(base)
        assert np.array_equal(made, base + mask * vector)
        assert np.signbit(made[~mask]).tobytes() == np.signbit(base[~mask]).tobytes()  # kept, +0 in the expression


def test_a_coefficient_of_0_keeps_bits_and_type(tmp_path: Path) -> None:
    base = save(tmp_path / "base.safetensors", {"w": ("F32", np.array([-0.0, 1.0], "<f4"))})
    task = tsw.GivenTask("t", {"w": mask_of(np.ones(2), 1.0, "F64")})
    tsw.build(base, tmp_path / "a.tsw", [task], vectors={"w": vector_of(np.ones(2, "<f2"), "F16")})
    tsw.restore(base, tmp_path / "a.tsw", tmp_path / "o.safetensors", tasks={"t": 0.0})
    assert load(tmp_path / "o.safetensors")["w"][0] == "F32"
    assert load(tmp_path / "o.safetensors")["w"][1].tobytes() == np.array([-0.0, 1.0], "<f4").tobytes()
    with tsw.open(tmp_path / "a.tsw") as file:
        array = np.array([-0.0, 1.0], "<f4")
        assert file.switch("w").apply(array, 0).tobytes() == array.tobytes()


def test_views_say_what_the_whole_says(tmp_path: Path) -> None:
    shape = (12, 5, 3)
    base, vector = values(shape), values(shape).astype(np.float16)
    mask = RNG.random(shape) < 0.4
    tsw.build(
        {"w": base},
        tmp_path / "a.tsw",
        [tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(mask, 0.5)})],
        vectors={"w": tsw.GivenVector.of_array(vector)},
    )
    delta = np.where(mask, vector.astype(np.float64) * 0.5, 0)
    sign = np.where(mask, np.sign(vector.astype(np.float64)), 0).astype(np.int8)
    with tsw.open(tmp_path / "a.tsw") as file:
        whole = file.switch("w")
        views = [(whole[k], k) for k in (np.s_[:], np.s_[3:9], np.s_[:, 1:4], np.s_[2:5, 4:], np.s_[5:5])]
        views += [(whole.shard(r, 5), np.s_[r * 12 // 5 : (r + 1) * 12 // 5]) for r in range(5)]
        views += [(whole.shard(r, 2, 1), np.s_[:, r * 5 // 2 : (r + 1) * 5 // 2]) for r in range(2)]
        for view, key in views:
            assert np.array_equal(view.mask(), mask[key])
            assert np.array_equal(view.delta(), delta[key])
            assert np.array_equal(view.delta(-3.0), delta[key] * -3.0)
            assert np.array_equal(view.sign(), sign[key])
            assert np.array_equal(view.vector(), vector[key])
            assert np.array_equal(view.indices(), np.flatnonzero(mask[key]))
            assert view.active == np.count_nonzero(mask[key])
        assert (whole.knob, whole.row_factors, whole.column_factors) == (0.5, None, None)
        with pytest.raises(tsw.OptionError, match="not dense"):
            whole.data()


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_shapes_without_elements_without_dimensions_and_of_several_chunks(tmp_path: Path, profile: str) -> None:
    shapes = {"none": (0, 4), "one": (), "edge": (CHUNK,), "large": (3, 700_001)}
    base = {n: RNG.standard_normal(s).astype(np.float32).reshape(s) for n, s in shapes.items()}
    vectors = {n: RNG.standard_normal(s).astype(np.float32).reshape(s) for n, s in shapes.items()}
    masks = {n: RNG.random(s) < 0.3 for n, s in shapes.items()} | {"one": np.ones((), np.bool_)}
    task = tsw.GivenTask("t", {n: tsw.GivenMask.of_flags(m) for n, m in masks.items()})
    given = {n: tsw.GivenVector.of_array(v) for n, v in vectors.items()}
    contents = set()
    for threads in (1, 3):
        result = tsw.build(base, tmp_path / "a.tsw", [task], vectors=given, profile=profile, threads=threads)
        contents.add((tmp_path / "a.tsw").read_bytes())
    assert len(contents) == 1
    assert result.switches == 4
    assert tsw.validate(tmp_path / "a.tsw", level="full").ok
    with tsw.open(tmp_path / "a.tsw") as file:
        for name, array in base.items():
            made = file.switch(name).apply(array)
            assert equal(made, np.where(masks[name], array + vectors[name], array).reshape(array.shape))
        view = file.switch("large")[1:2, 100:600_000]
        assert np.array_equal(view.mask(), masks["large"][1:2, 100:600_000])
        assert np.array_equal(view.vector(), vectors["large"][1:2, 100:600_000])


def test_both_profiles_have_the_same_content(tmp_path: Path) -> None:
    base = {"w": RNG.standard_normal(CHUNK + 77).astype(np.float32)}
    task = tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(RNG.random(CHUNK + 77) < 0.1)})
    vector = {"w": tsw.GivenVector.of_array(RNG.standard_normal(CHUNK + 77).astype(np.float16))}
    ids = {
        p: tsw.build(base, tmp_path / f"{p}.tsw", [task], vectors=vector, profile=p).content_id
        for p in ("archive", "mapped")
    }
    assert len(set(ids.values())) == 1
    for other, profile in (("archive", "mapped"), ("mapped", "archive")):
        tsw.repack(tmp_path / f"{other}.tsw", tmp_path / "r.tsw", profile=profile)
        assert (tmp_path / "r.tsw").read_bytes() == (tmp_path / f"{profile}.tsw").read_bytes()


@pytest.mark.parametrize("table", ["vector", "mask"])
def test_only_chunks_that_a_view_needs_are_touched(tmp_path: Path, table: str) -> None:
    base = {"w": np.zeros((3, CHUNK), np.float32)}
    vector = RNG.standard_normal((3, CHUNK)).astype(np.float32)
    mask = RNG.random((3, CHUNK)) < 0.3
    path = tmp_path / "a.tsw"
    tsw.build(
        base,
        path,
        [tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(mask)})],
        vectors={"w": tsw.GivenVector.of_array(vector)},
    )
    with tsw.open(path) as file:
        index = file.container.index
        segments = index.shared.segments if table == "vector" else index.tasks[0].segments
        offset = int(segments["offset"][1]) + 1000
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)
    with tsw.open(path) as file:
        switch = file.switch("w")
        for row in (0, 2):
            view = switch[row : row + 1]
            assert np.array_equal(view.delta(), (mask * vector)[row : row + 1])
            assert np.array_equal(view.vector(), vector[row : row + 1])
        if table == "vector":
            assert np.array_equal(switch.mask(), mask)  # a mask needs no vector
        with pytest.raises(tsw.FormatError, match="TSW-701"):
            switch.delta()
        array = np.ones((3, CHUNK), np.float32)
        with pytest.raises(tsw.FormatError):
            switch.apply(array, out=array, check_base=False)
        assert (array == 1).all()  # nothing half applied


def test_arrays_of_any_layout_are_taken(tmp_path: Path) -> None:
    vector = values((6, 5)).astype(np.float32)
    mask = RNG.random((6, 5)) < 0.5
    packed = np.packbits(mask, bitorder="little")
    ids = set()
    for given in (vector, np.asfortranarray(vector), np.repeat(vector, 2, 1)[:, ::2], vector.astype(">f4")):
        for bits in (packed, np.repeat(packed, 2)[::2]):
            task = tsw.GivenTask("t", {"w": tsw.GivenMask(lambda n, bits=bits: bits)})
            of = {"w": tsw.GivenVector.of_array(given)}
            ids.add(tsw.build({"w": np.zeros((6, 5), np.float32)}, tmp_path / "a.tsw", [task], vectors=of).content_id)
    assert len(ids) == 1


def test_the_sign_of_nan_is_0_and_is_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    vector = np.array([np.nan, -np.inf, np.inf, -0.0], np.float32)
    task = tsw.GivenTask("t", {"w": tsw.GivenMask.of_flags(np.ones(4))})
    tsw.build(
        {"w": np.zeros(4, np.float32)}, tmp_path / "a.tsw", [task], vectors={"w": tsw.GivenVector.of_array(vector)}
    )
    with tsw.open(tmp_path / "a.tsw") as file:
        assert file.switch("w").sign().tolist() == [0, -1, 1, 0]
    assert not recwarn.list


# What is refused

BASE = {"w": np.zeros((6, 5), np.float32), "wt": np.zeros(0), "ids": np.arange(4), "h": np.zeros(4, np.float16)}
BASE["wt"] = BASE["w"]
ONES = tsw.GivenVector.of_array(np.ones((6, 5), np.float32))
ALL = tsw.GivenMask.of_flags(np.ones((6, 5)))
F32 = ONES.dtype


def mask(chunk: Callable[[int], Any]) -> tsw.GivenMask:
    return tsw.GivenMask(chunk)


def vector(chunk: Callable[[int], Any]) -> tsw.GivenVector:
    return tsw.GivenVector(F32, chunk)


@pytest.mark.parametrize(
    ("vectors", "masks", "message"),
    [
        ({"w": ONES}, {"w": mask(lambda n: np.zeros(3, np.uint8))}, r"'w'.*chunk 0: expected uint8\[4\].*uint8\[3\]"),
        ({"w": ONES}, {"w": mask(lambda n: np.zeros(5, np.uint8))}, "found uint8"),
        ({"w": ONES}, {"w": mask(lambda n: np.zeros((4, 1), np.uint8))}, r"found uint8\[4, 1\]"),
        ({"w": ONES}, {"w": mask(lambda n: np.zeros(4, np.int64))}, "found int64"),
        ({"w": ONES}, {"w": mask(lambda n: np.full(4, 255, np.uint8))}, "'w'.*chunk 0"),
        ({"w": vector(lambda n: np.zeros(29, np.float32))}, {"w": ALL}, r"chunk 0: expected 30 elements.*\[29\]"),
        ({"w": vector(lambda n: np.zeros((6, 5), np.float32))}, {"w": ALL}, r"found float32\[6, 5\]"),
        ({"w": vector(lambda n: np.zeros(30))}, {"w": ALL}, "found float64"),
        ({}, {"w": ALL}, "'w' has a mask, but no vector; give one in vectors"),
        ({"w": ONES}, {}, "'w': no task has a mask for it; leave it out"),
        ({"w": ONES, "wt": ONES}, {"w": ALL}, "one tied tensor"),
        ({"w": ONES}, {"w": ALL, "wt": ALL}, "one tied tensor"),
        ({"ids": vector(lambda n: np.ones(4, np.float32))}, {"ids": ALL}, "expected a float type for a float tensor"),
        ({"w": ONES}, {"w": ALL, "ids": ALL}, "'ids': expected a float tensor"),
        ({"w": ONES}, {"w": tsw.GivenMask.of_flags(np.ones(30), float("nan"))}, "finite in f32, found nan"),
        ({"w": ONES}, {"w": tsw.GivenMask.of_flags(np.ones(30), 1e39)}, "finite in f32"),
        ({"no": ONES}, {"w": ALL}, "no tensor named 'no'"),
        ({"w": ONES}, {"no": ALL}, "no tensor named 'no'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(
    tmp_path: Path, vectors: dict[str, Any], masks: dict[str, Any], message: str, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "a.tsw").write_bytes(b"before")
    with pytest.raises(tsw.TswError, match=message):
        tsw.build(BASE, tmp_path / "a.tsw", [tsw.GivenTask("t", masks)], vectors=vectors)
    assert files_in(tmp_path) == {"a.tsw": b"before"}
    assert not recwarn.list


def test_a_vector_of_integers_is_refused() -> None:
    with pytest.raises(tsw.OptionError, match="expected an array of floats, found int64"):
        tsw.GivenVector.of_array(np.arange(3))


def test_a_tied_name_is_as_good_as_the_other(tmp_path: Path) -> None:
    ids = {
        tsw.build(BASE, tmp_path / "a.tsw", [tsw.GivenTask("t", {m: ALL})], vectors={v: ONES}).content_id
        for m in ("w", "wt")
        for v in ("w", "wt")
    }
    assert len(ids) == 1


# Bundle, extract, repack


def file_of(folder: Path, task: str, vectors: Mapping[str, float], profile: str = "archive") -> Path:
    """A task with a mask for each of some tensors, over a vector that is one number."""
    base = {n: np.zeros(50 + i, np.float32) for i, n in enumerate("abc")}
    masks = {n: tsw.GivenMask.of_flags(np.arange(base[n].size) % (len(task) + 2) == 0) for n in vectors}
    given = {n: tsw.GivenVector.of_array(np.full(base[n].size, v, np.float32)) for n, v in vectors.items()}
    path = folder / f"{task}.tsw"
    tsw.build(base, path, [tsw.GivenTask(task, masks)], vectors=given, profile=profile)
    return path


def shared_names(path: Path) -> list[str]:
    with tsw.open(path) as file:
        return list(file.container.index.shared.arrays.names)


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_bundles_have_equal_vectors_once_and_others_beside_each_other(tmp_path: Path, profile: str) -> None:
    paths = [
        file_of(tmp_path, "x", {"a": 1, "c": 3}, profile),
        file_of(tmp_path, "yy", {"a": 1, "b": 2}, profile),
        file_of(tmp_path, "zzz", {"a": 9, "c": 3}, profile),
        file_of(tmp_path, "none", {}, profile),
    ]
    out = tsw.bundle(paths, tmp_path / "all.tsw")
    assert tsw.validate(out, level="full").ok
    assert shared_names(out) == ["a", "a", "b", "c"]
    contents = set()
    for order in (paths, paths[::-1]):
        tsw.bundle(order, tmp_path / "other.tsw")
        with tsw.open(tmp_path / "other.tsw") as file:
            contents.add(file.content_id)
    assert len(contents) == 1
    with tsw.open(out) as file:
        for path in paths:
            with tsw.open(path) as alone:
                (task,) = alone.tasks
                assert file.keys(task) == alone.keys(task)
                for name in alone.keys(task):
                    assert np.array_equal(file.switch(name, task).delta(), alone.switch(name, task).delta())
    for path in paths:
        back = tsw.extract(out, path.stem, tmp_path / "back.tsw")
        assert back.read_bytes() == path.read_bytes()
    other = "mapped" if profile == "archive" else "archive"
    tsw.repack(out, tmp_path / "r.tsw", profile=other)
    assert shared_names(tmp_path / "r.tsw") == ["a", "a", "b", "c"]
    tsw.repack(tmp_path / "r.tsw", tmp_path / "rr.tsw", profile=profile)
    assert (tmp_path / "rr.tsw").read_bytes() == out.read_bytes()


def test_repack_refuses_a_vector_that_is_not_what_its_digest_says(tmp_path: Path) -> None:
    path = file_of(tmp_path, "x", {"a": 1.5}, "mapped")
    with tsw.open(path) as file:
        offset = int(file.container.index.shared.segments["offset"][0])
    data = bytearray(path.read_bytes())
    data[offset + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(tsw.FormatError):
        tsw.repack(path, tmp_path / "r.tsw", profile="archive")
    assert not tsw.validate(path, level="full").ok
    assert sorted(files_in(tmp_path)) == ["x.tsw"]


@pytest.mark.parametrize("what", ["signs", "flags", "vector"])
def test_an_array_of_another_shape_is_refused(tmp_path: Path, what: str) -> None:
    """Also where the elements that are too many would begin another chunk, which nobody asks for."""
    base = {"w": np.zeros((1, 1 << 20), np.float32)}
    long, fits = np.ones((2, 1 << 20), np.float32), np.ones((1, 1 << 20), np.float32)
    switch: tsw.GivenSwitch | tsw.GivenMask = tsw.GivenMask.of_flags(long if what == "flags" else fits)
    if what == "signs":
        switch = tsw.GivenSwitch.of_signs(long, 1.0)
    vectors = {"w": tsw.GivenVector.of_array(long if what == "vector" else fits)}
    with pytest.raises(tsw.OptionError, match=r"expected shape \[1, 1048576\], found \[2, 1048576\]"):
        tsw.build(
            base,
            tmp_path / "x.tsw",
            [tsw.GivenTask("t", {"w": switch})],
            vectors={} if what == "signs" else vectors,
        )
    assert not list(tmp_path.iterdir())
