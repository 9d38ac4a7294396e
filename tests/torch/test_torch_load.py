"""Switches as tensors: the bits of the NumPy reference on every device, from no more chunks than they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_models import (
    GOLDEN,
    NEEDS_CUDA,
    SHAPES,
    TORCH,
    assert_same,
    chunks_of_rows,
    damaged,
    files,
    one_line,
    random_bits,
    raw,
    segments,
    tensor_of,
    tensors,
    tuned,
)

import tswitch_format as tsw
import tswitch_format.torch as tsw_torch
from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.container.reader import Container
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import Job, run
from tswitch_format.torch.packed import PackedSwitch

BACKENDS = ("mmap", "pread")
MASKS, ROWS, COLUMNS = (lay.Role.MASK, lay.Role.SIGN), lay.Role.ROW_FACTORS, lay.Role.COLUMN_FACTORS

FEW_BITS = ("F4", "F6_E2M3", "F6_E3M2")  # that torch lacks
LARGE = 100_000  # elements of a tensor for which fewer cases are enough

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("load")


@pytest.fixture(scope="module")
def chunks(folder: Path) -> dict[str, Path]:
    """Tensors of several chunks in both profiles."""
    tsw.repack(GOLDEN / "chunks.tsw", folder / "chunks-mapped.tsw", profile="mapped")
    return {"archive": GOLDEN / "chunks.tsw", "mapped": folder / "chunks-mapped.tsw"}


@pytest.fixture(scope="module")
def shapes(folder: Path) -> dict[str, Path]:
    """A file of all shapes for each float type and profile, with factors of various types."""
    made = {}
    for number, (name, dtype) in enumerate(TORCH.items()):
        for profile in lay.PROFILES:
            options: dict[str, Any] = {
                "knob_dtype": ("u8", "f16", "f32")[number % 3],
                "density": (0.3, 0.02)[number % 2] if profile == "archive" else 0.1,
            }
            base = tensors(dtype)
            made[f"{name}-{profile}"] = folder / f"{name}-{profile}.tsw"
            tsw.pack(
                base, tuned(base), made[f"{name}-{profile}"], select="tensor", profile=profile, threads=1, **options
            )
    return made


def reading(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """From now on the segments that are read: (task, number)."""
    found: list[tuple[int, int]] = []
    segment = Container.segment

    def recording(self: Container, task: int, number: int) -> memoryview:
        found.append((task, number))
        return segment(self, task, number)

    monkeypatch.setattr(Container, "segment", recording)
    return found


# ------------------------------------------------------------------------------------------------ bits of the reference


@pytest.mark.parametrize("path", list(files()))
def test_every_file_gives_what_numpy_gives(path: Path, device: str) -> None:
    some: Any = BACKENDS if path.parent == GOLDEN else BACKENDS[len(path.stem) % 2 :][:1]
    for backend in some:
        with tsw.open(path) as theirs, tsw_torch.open(path, device=device, backend=backend) as ours:
            assert ours.tasks == theirs.tasks
            assert dict(ours.metadata) == dict(theirs.metadata)
            assert ours.base.keys() == theirs.base.keys()
            for task in theirs.tasks:
                assert ours.keys(task) == theirs.keys(task)
                for number, name in enumerate(theirs.keys(task)[:60]):
                    assert_alike(theirs.switch(name, task), ours.switch(name, task), device, seed=number)


def assert_alike(theirs: tsw.Switch, ours: tsw_torch.TorchSwitch, device: str, seed: int = 0) -> None:
    assert (ours.name, ours.task, ours.kind, ours.knob) == (theirs.name, theirs.task, theirs.kind, theirs.knob)
    assert tuple(ours.shape) == theirs.shape
    assert not theirs.is_additive or ours.density == theirs.density
    assert ours.device.type == device
    if theirs.is_additive:
        assert_additive(theirs, ours, device, seed)
        return
    for act in (ours.delta, ours.mask, ours.sign, ours.packed):
        with pytest.raises(tsw.OptionError, match=f"is {theirs.kind}: it has no mask"):
            act()
    if theirs.kind == "removed":
        with pytest.raises(tsw.OptionError, match="removed"):
            ours.apply_(torch.zeros(theirs.shape, device=device))
        with pytest.raises(tsw.OptionError, match="not dense"):
            ours.data()
    elif theirs.dtype in FEW_BITS:
        for act in (ours.data, lambda: ours.dtype):
            with pytest.raises(tsw.OptionError, match=f"no dtype {theirs.dtype}"):
                act()
    else:
        data = ours.data()
        assert_same(data, theirs.data())
        assert data.dtype == ours.dtype and data.device.type == device
        weight = torch.zeros_like(data)
        assert ours.apply_(weight, 0.3) is weight
        assert_same(weight, theirs.data())


def assert_additive(theirs: tsw.Switch, ours: tsw_torch.TorchSwitch, device: str, seed: int) -> None:
    base = theirs.base.dtype
    sign, mask = ours.sign(), ours.mask()
    assert_same(sign, theirs.sign())
    assert_same(mask, theirs.mask())
    assert (sign.dtype, mask.dtype, ours.dtype) == (torch.int8, torch.bool, TORCH[theirs.dtype])
    assert sign.device.type == mask.device.type == device
    for coefficient in (1, -0.5, 0, 1 / 3) if theirs.elements < LARGE else (1 / 3,):
        delta = ours.delta(coefficient)
        assert_same(delta, theirs.delta(coefficient))
        assert delta.dtype == (torch.float64 if base.name == "F64" else torch.float32)
        assert delta.device.type == device
        if theirs.target is not base:
            continue
        array = random_bits(base.name, theirs.shape, seed)
        weight = tensor_of(array, TORCH[base.name], device)
        assert ours.apply_(weight, coefficient, check_base=False) is weight
        assert_same(weight, theirs.apply(array, coefficient, check_base=False), but_nan=True)
        idle = ~theirs.mask()
        assert_same(weight.cpu()[torch.from_numpy(np.asarray(idle))], array[idle])
    if theirs.target is not base:
        weight = tensor_of(random_bits(base.name, theirs.shape, seed), TORCH[base.name], device)
        before = raw(weight)
        with pytest.raises((tsw.OptionError, tsw.BaseMismatchError)):
            ours.apply_(weight)
        assert raw(weight) == before


def test_the_files_cover_every_form_of_a_switch() -> None:
    codecs, factors, dtypes, profiles, counts = set(), set(), set(), set(), set()
    for parameter in files():
        container = Container(parameter.values[0])
        profiles.add(container.index.profile)
        for task in container.index.tasks:
            ternary = task.entries[task.entries["kind"] == lay.Kind.TERNARY]
            dtypes |= {container.index.spec(int(t)).dtype.name for t in ternary["tensor"]}
            flags = ternary["flags"] & (lay.HAS_ROW_FACTORS | lay.HAS_COLUMN_FACTORS)
            factors |= set(zip(ternary["factor_dtype"].tolist(), flags.tolist(), strict=True))
            codecs |= set(task.segments["codec"].tolist())
            counts |= {lay.chunks_of(container.index.spec(int(t)).elements) for t in ternary["tensor"]}
        container.close()
    assert codecs == set(lay.Codec)
    assert dtypes == set(TORCH)
    assert profiles == set(lay.PROFILES)
    assert {kind for kind, _ in factors} == set(lay.FactorDType)
    assert {flag for _, flag in factors} == {0, 2, 4, 6}
    assert {0, 1, 2, 3} <= counts


@pytest.mark.parametrize("profile", lay.PROFILES)
@pytest.mark.parametrize("dtype", TORCH)
def test_every_shape_in_every_dtype(shapes: dict[str, Path], dtype: str, profile: str, device: str) -> None:
    base = tensors(TORCH[dtype])
    with tsw.open(shapes[f"{dtype}-{profile}"]) as theirs, tsw_torch.open(theirs.path, device=device) as ours:
        names = ours.keys()
        assert set(names) == {name for name, tensor in base.items() if tensor.numel()}
        for name in names:
            assert_alike(theirs.switch(name), ours.switch(name), device)
            array = np.frombuffer(raw(base[name]), DTYPE_BY_NAME[dtype].storage).reshape(base[name].shape)
            weight = base[name].clone().to(device)
            assert ours.switch(name).apply_(weight) is weight  # with the check of its content
            assert_same(weight, theirs.switch(name).apply(array))


@pytest.mark.parametrize("dtype", TORCH)
def test_weights_of_another_float_dtype(shapes: dict[str, Path], dtype: str, device: str) -> None:
    for source in TORCH:
        with tsw.open(shapes[f"{source}-archive"]) as theirs, tsw_torch.open(theirs.path, device=device) as ours:
            array = random_bits(dtype, SHAPES["matrix"])
            weight = tensor_of(array, TORCH[dtype], device)
            if dtype != source:
                with pytest.raises(tsw.BaseMismatchError, match=f"expected dtype {source}, found torch"):
                    ours.switch("matrix").apply_(weight)
                assert_same(weight, array)
            given: Any = array
            if dtype == "BF16":  # NumPy knows it by ml_dtypes only; the compute type is f32 in both
                wide = tensor_of(array, torch.bfloat16).float()
                expected = (wide + torch.from_numpy(theirs.switch("matrix").delta(0.7).astype(np.float32))).bfloat16()
                mask = torch.from_numpy(theirs.switch("matrix").mask())
                given = (
                    tensor_of(array, torch.bfloat16).view(torch.int16).where(~mask, expected.view(torch.int16)).numpy()
                )
                if source == "F64":
                    continue  # its delta is rounded to f64 before
            else:
                given = theirs.switch("matrix").apply(array, 0.7, check_base=False)
            ours.switch("matrix").apply_(weight, 0.7, check_base=False)
            assert_same(weight, given, but_nan=True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("profile", lay.PROFILES)
def test_threads_change_nothing(chunks: dict[str, Path], profile: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tsw.open(chunks[profile]) as theirs, tsw_torch.open(chunks[profile], threads=threads) as ours:
            names = theirs.keys()
            for name in names:
                assert_alike(theirs.switch(name), ours.switch(name), "cpu")
    finally:
        torch.set_num_threads(before)


def test_one_file_from_several_threads(shapes: dict[str, Path]) -> None:
    with tsw.open(shapes["F32-archive"]) as theirs, tsw_torch.open(theirs.path, threads=2) as ours:
        names = [*theirs.keys()] * 8
        barrier = threading.Barrier(4)

        def load(part: int) -> list[Tensor]:
            barrier.wait()
            return [ours.switch(name).delta() for name in names[part::4]]

        with ThreadPoolExecutor(4) as pool:
            for part, found in enumerate(pool.map(load, range(4))):
                for name, delta in zip(names[part::4], found, strict=True):
                    assert_same(delta, theirs.switch(name).delta())


@pytest.mark.parametrize("state", ["float64", "meta", "deterministic"])
def test_global_settings_of_torch_change_nothing(shapes: dict[str, Path], state: str) -> None:
    for dtype in TORCH:
        array = random_bits(dtype, SHAPES["matrix"])
        weight = tensor_of(array, TORCH[dtype])
        path = shapes[f"{dtype}-archive"]
        with tsw.open(path) as theirs, tsw_torch.open(path) as ours:
            switch, expected = ours.switch("matrix"), theirs.switch("matrix")
            if state == "float64":
                torch.set_default_dtype(torch.float64)
            elif state == "meta":
                torch.set_default_device("meta")
            else:
                torch.use_deterministic_algorithms(True)
            try:
                found = [switch.delta(0.3), switch.sign(), switch.mask()]
                switch.apply_(weight, 0.3, check_base=False)
            finally:
                torch.set_default_dtype(torch.float32)
                torch.set_default_device(None)
                torch.use_deterministic_algorithms(False)
            for tensor, made in zip(found, [expected.delta(0.3), expected.sign(), expected.mask()], strict=True):
                assert tensor.device.type == "cpu"
                assert_same(tensor, made)
            assert_same(weight, expected.apply(array, 0.3, check_base=False), but_nan=True)


# ------------------------------------------------------------------------------------------------------------- slices

CUTS: list[Any] = [
    slice(3, 5), slice(0, 0), slice(-2, None), slice(None), (slice(None), slice(2, 5)), (slice(1, 4), slice(0, 3)),
    (slice(2, 2), slice(1, 3)), (slice(None), slice(4, 4)), (slice(1, None), slice(-2, None)), slice(100, 200),
    (slice(None), slice(None)), (slice(0, 1), slice(1, 2)), slice(4, 1),
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("dtype", TORCH)
def test_a_slice_is_the_same_cut_of_the_whole(shapes: dict[str, Path], dtype: str, cut: Any, device: str) -> None:
    for profile, names in zip(lay.PROFILES, (("matrix", "cube", "vector"), ("matrix", "four", "one")), strict=True):
        with tsw.open(shapes[f"{dtype}-{profile}"]) as theirs, tsw_torch.open(theirs.path, device=device) as ours:
            for name in names:
                if len(SHAPES[name]) < (len(cut) if isinstance(cut, tuple) else 1):
                    continue
                whole, part = ours.switch(name), ours.switch(name)[cut]
                assert_alike(theirs.switch(name)[cut], part, device)
                for act in ("delta", "sign", "mask"):
                    assert torch.equal(getattr(part, act)(), getattr(whole, act)()[cut])
                array = random_bits(dtype, SHAPES[name])
                weight = tensor_of(array, TORCH[dtype], device)
                view = weight[cut]
                expected = array.copy()
                expected[cut] = theirs.switch(name).apply(array, check_base=False)[cut]
                try:
                    view.view(view.shape[0], -1 if view.numel() else 0)
                except RuntimeError:  # columns of three dimensions and more are no matrix in the whole's memory
                    with pytest.raises(tsw.OptionError, match="make it contiguous first"):
                        part.apply_(view, check_base=False)
                    expected = array
                else:
                    part.apply_(view, check_base=False)  # and nothing beside it
                assert_same(weight, expected, but_nan=True)


def test_slices_of_slices_add_up(shapes: dict[str, Path], device: str) -> None:
    with tsw_torch.open(shapes["F32-archive"], device=device) as file:
        whole = file.switch("matrix")
        part = whole[5:30, 10:40][2:9][:, 3:8]
        assert tuple(part.shape) == (7, 5)
        assert torch.equal(part.delta(), whole.delta()[5:30, 10:40][2:9][:, 3:8])
        assert part.density == int(part.sign().count_nonzero()) / 35


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 60])
def test_shards_put_together_are_the_whole(shapes: dict[str, Path], world_size: int, device: str) -> None:
    with tsw_torch.open(shapes["BF16-archive"], device=device) as file:
        for name, dims in (("matrix", (0, 1)), ("cube", (0, 1)), ("four", (0, 1)), ("vector", (0,))):
            for dim in dims:
                parts = [file.switch(name).shard(rank, world_size, dim).delta(0.3) for rank in range(world_size)]
                assert torch.equal(torch.cat(parts, dim), file.switch(name).delta(0.3))


@pytest.mark.parametrize("profile", lay.PROFILES)
def test_slices_of_several_chunks(chunks: dict[str, Path], profile: str, device: str) -> None:
    cuts = {
        "long": [slice(5, lay.CHUNK), slice(lay.CHUNK - 3, lay.CHUNK + 5), slice(lay.CHUNK + 4, None)],
        "tall": [slice(0, 3), slice(lay.CHUNK // 2 - 1, lay.CHUNK // 2 + 1), slice(lay.CHUNK, None),
                 (slice(None), slice(1, 2)), (slice(lay.CHUNK - 1, None), slice(0, 1))],
        "wide": [(slice(None), slice(0, 5000)), (slice(None), slice(lay.CHUNK - 2, None)), slice(0, 1)],
        "exact": [slice(1, 2), (slice(0, 2), slice(7, 9)), (slice(1, 2), slice(lay.CHUNK // 2 - 1, None))],
        "data": [slice(lay.CHUNK - 1, None), slice(0, 3)],
    }  # fmt: skip
    with tsw.open(chunks[profile]) as theirs, tsw_torch.open(chunks[profile], device=device) as ours:
        for name, wanted in cuts.items():
            for cut in wanted:
                assert_alike(theirs.switch(name)[cut], ours.switch(name)[cut], device)


def test_slices_of_dense_entries(device: str) -> None:
    with tsw.open(GOLDEN / "archive.tsw") as theirs, tsw_torch.open(GOLDEN / "archive.tsw", device=device) as ours:
        for name in ("dense.F32", "dense.BF16", "dense.BOOL", "dense.C64"):
            for cut in (slice(0, 1), slice(1, 1), (slice(None), slice(1, 3)), (slice(1, 2), slice(0, 0))):
                assert_alike(theirs.switch(name, "eins")[cut], ours.switch(name, "eins")[cut], device)


@pytest.mark.parametrize(
    "key", [3, slice(0, 4, 2), slice(None, None, -1), (slice(0, 1), 2), (slice(0, 1),) * 3, (), "rows", ..., None]
)
def test_other_keys_are_refused(shapes: dict[str, Path], key: Any) -> None:
    with tsw_torch.open(shapes["F32-archive"]) as file, pytest.raises(tsw.OptionError, match="slices") as caught:
        file.switch("cube")[key]
    one_line(caught.value)


def test_a_tensor_as_a_key_is_refused_in_one_line(shapes: dict[str, Path]) -> None:
    with tsw_torch.open(shapes["F32-archive"]) as file, pytest.raises(tsw.OptionError, match="slices") as caught:
        file.switch("matrix")[torch.zeros(SHAPES["matrix"]) > 0]  # type: ignore[index]
    one_line(caught.value)


@pytest.mark.parametrize("arguments", [(2, 2), (-1, 2), (0, 0), (0, 2, 2), (0, 2, -1)])
def test_shards_that_make_no_sense_are_refused(shapes: dict[str, Path], arguments: tuple[int, ...]) -> None:
    with tsw_torch.open(shapes["F32-archive"]) as file, pytest.raises(tsw.OptionError, match="expected"):
        file.switch("matrix").shard(*arguments)


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf"), 1e39, 10**400, "x", None, [1.0], torch.zeros(2)])
def test_coefficients_that_are_no_finite_numbers(shapes: dict[str, Path], coefficient: Any) -> None:
    weight = tensors(torch.float32)["matrix"]
    before = raw(weight)
    with tsw_torch.open(shapes["F32-archive"]) as file:
        for act in (file.switch("matrix").delta, lambda a: file.switch("matrix").apply_(weight, a)):
            with pytest.raises(tsw.OptionError, match="finite coefficient") as caught:
                act(coefficient)
            one_line(caught.value)
    assert raw(weight) == before


@pytest.mark.parametrize(
    "coefficient", [True, np.float32(0.5), np.array(0.25), torch.tensor(-2.0), torch.tensor([2.0])]
)
def test_coefficients_of_other_types(shapes: dict[str, Path], coefficient: Any) -> None:
    with tsw_torch.open(shapes["F32-archive"]) as file:
        switch = file.switch("matrix")
        assert torch.equal(switch.delta(coefficient), switch.delta(float(coefficient)))


# ---------------------------------------------------------------------------------------------------- no more than needed


def test_nothing_is_read_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    read = reading(monkeypatch)
    with tsw_torch.open(GOLDEN / "archive.tsw", device=device) as file:
        for task in file.tasks:
            for name in file.keys(task):
                switch = file.switch(name, task)
                assert switch.name == name and switch.kind in repr(switch) and repr(file)
                assert switch.density >= 0 and switch.knob < 10 and switch.task == task
                if switch.shape and switch.shape[0] > 1:
                    assert switch[1:].shard(0, 2).shape
        assert not read


@pytest.mark.parametrize("profile", lay.PROFILES)
@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("long", slice(0, 7)),
        ("long", slice(lay.CHUNK, None)),
        ("long", slice(lay.CHUNK - 1, lay.CHUNK + 1)),
        ("long", slice(3, 3)),
        ("tall", slice(0, 1)),
        ("tall", slice(lay.CHUNK // 2, lay.CHUNK)),
        ("tall", slice(lay.CHUNK, None)),
        ("tall", (slice(5, 6), slice(1, 2))),
        ("exact", slice(1, 2)),
        ("data", slice(lay.CHUNK, None)),
        ("data", slice(0, 4)),
    ],
    ids=str,
)
def test_a_slice_reads_the_chunks_of_its_rows_alone(
    chunks: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    name: str,
    cut: Any,
    device: str,
) -> None:
    """Recorded, and shown by destroying all other segments."""
    path = chunks[profile]
    with tsw.open(path) as file:
        shape = file.switch(name).shape
        part = file.switch(name)[cut]
        expected = part.data() if name == "data" else part.delta()
    first, stop, _ = (cut if isinstance(cut, slice) else cut[0]).indices(shape[0])
    inside = chunks_of_rows(shape, first, stop)
    rows = range(first // lay.CHUNK, -(-stop // lay.CHUNK)) if stop > first else range(0)
    needed = {
        s.key
        for s in segments(path)
        if s.name == name and s.chunk in {ROWS: rows, COLUMNS: range(lay.MAX_TENSORS)}.get(lay.Role(s.role), inside)
    }
    others = [s for s in segments(path) if s.key not in needed and s.length]
    assert others
    broken = damaged(path, tmp_path / "x.tsw", [s.offset + s.length // 2 for s in others])
    read = reading(monkeypatch)
    with tsw_torch.open(broken, device=device) as ours:
        switch = ours.switch(name)[cut]
        made = switch.data() if name == "data" else switch.delta()
        assert_same(made, expected)
        assert set(read) <= needed
        if name != "data":
            assert int(switch.sign().count_nonzero()) == np.count_nonzero(expected)
            switch.apply_(torch.zeros(part.shape, dtype=switch.dtype, device=device), check_base=False)
            assert set(read) <= needed


def test_one_tensor_reads_its_own_segments_alone(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    path = GOLDEN / "archive.tsw"
    found = segments(path)
    read = reading(monkeypatch)
    with tsw_torch.open(path, device=device) as file:
        for name in file.keys("eins"):
            switch = file.switch(name, "eins")
            if switch.kind == "ternary":
                read.clear()
                switch.delta()
                own = [s.key for s in found if s.key[0] == 0 and s.name == name]
                assert sorted(set(read)) == own


def test_a_coefficient_of_zero_needs_no_payload(chunks: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read = reading(monkeypatch)
    with tsw_torch.open(chunks["archive"]) as file:
        weight = torch.zeros(lay.CHUNK + 5, dtype=torch.float16)
        file.switch("long").apply_(weight, 0, check_base=False)
    assert not weight.any() and not read


# ---------------------------------------------------------------------------------------------------------- lifetime


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_tensors_outlive_their_file(chunks: dict[str, Path], tmp_path: Path, backend: Any, device: str) -> None:
    """Closed, overwritten in place (a view of the mapping would change), deleted."""
    for source in (chunks["mapped"], GOLDEN / "mapped.tsw", GOLDEN / "archive.tsw"):
        path = tmp_path / "x.tsw"
        shutil.copy(source, path)
        made: list[tuple[Tensor, np.ndarray[Any, Any]]] = []
        with tsw.open(source) as theirs, tsw_torch.open(path, device=device, backend=backend) as ours:
            task = theirs.tasks[0]
            for name in theirs.keys(task):
                switch, reference = ours.switch(name, task), theirs.switch(name, task)
                if switch.kind == "ternary":
                    made += [(switch.delta(), reference.delta()), (switch.sign(), reference.sign())]
                    made += [(switch.mask(), reference.mask())]
                elif switch.kind == "dense" and reference.dtype not in FEW_BITS:
                    made.append((switch.data(), reference.data()))
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(bytes(size))
        path.unlink()
        for tensor, expected in made:
            assert_same(tensor, expected)
            tensor.zero_()  # writable, and the caller's own


def test_packed_switches_outlive_their_file(chunks: dict[str, Path], tmp_path: Path, device: str) -> None:
    path = tmp_path / "x.tsw"
    shutil.copy(chunks["mapped"], path)
    with tsw_torch.open(path, device=device) as ours:
        names = [name for name in list(ours.keys()) if ours.switch(name).kind == "ternary"]
        loaded = ours.load(names)
    path.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    with tsw.open(chunks["mapped"]) as theirs:
        for name in names:
            assert_same(delta_of(loaded[name]), theirs.switch(name).delta())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_file_says_so(shapes: dict[str, Path], backend: Any) -> None:
    weight = tensors(torch.float32)["matrix"]
    before = raw(weight)
    file = tsw_torch.open(shapes["F32-archive"], backend=backend)
    switch = file.switch("matrix")
    file.close()
    file.close()
    for act in (switch.delta, switch.mask, lambda: switch.apply_(weight), file.load, switch[1:3].sign):
        with pytest.raises(tsw.TswError, match="is closed; open it again"):
            act()
    assert raw(weight) == before


def test_each_call_makes_new_tensors(shapes: dict[str, Path], device: str) -> None:
    with tsw_torch.open(shapes["F32-archive"], device=device) as file:
        switch = file.switch("matrix")
        expected = switch.delta()
        for act in (switch.delta, switch.sign, switch.mask):
            act().zero_()
        assert torch.equal(switch.delta(), expected)


# --------------------------------------------------------------------------------------------------------------- load


def delta_of(switch: PackedSwitch | Tensor) -> Tensor:
    assert isinstance(switch, PackedSwitch)
    out = torch.zeros(
        switch.elements, dtype=torch.float64 if switch.base.name == "F64" else torch.float32, device=switch.device
    )
    run([Job(Mode.VALUES, out, switch)])
    return out.view(switch.shape)


@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize("profile", lay.PROFILES)
def test_load_gives_everything(chunks: dict[str, Path], profile: str, threads: int | None, device: str) -> None:
    for path, task in (
        (chunks[profile], None),
        (GOLDEN / f"{profile}.tsw", "Übersetzung 翻訳"),
        (GOLDEN / f"{profile}.tsw", "empty"),
    ):
        if not path.exists():
            continue
        with tsw.open(path) as theirs, tsw_torch.open(path, device=device, threads=threads) as ours:
            loaded = ours.load(task=task)
            assert list(loaded) == [n for n in theirs.keys(task) if theirs.switch(n, task).kind != "removed"]
            for name, found in loaded.items():
                reference = theirs.switch(name, task)
                assert found.device.type == device
                if reference.kind == "dense":
                    assert isinstance(found, Tensor)
                    assert_same(found, reference.data())
                else:
                    assert isinstance(found, PackedSwitch)
                    assert_same(delta_of(found), reference.delta())
                    assert (found.active, found.knob) == (reference.active, reference.knob)
                    assert tuple(found.shape) == reference.shape


def test_load_of_some(shapes: dict[str, Path]) -> None:
    with tsw_torch.open(shapes["F32-archive"]) as file:
        assert list(file.load(["vector", "cube"])) == ["vector", "cube"]
        assert list(file.load(name for name in ("vector",))) == ["vector"]
        assert file.load([]) == {}
        with pytest.raises(tsw.UnknownNameError, match="did you mean 'matrix'"):
            file.load(["vector", "matrx"])


def test_load_by_an_alias_gives_that_name() -> None:
    with tsw_torch.open(GOLDEN / "archive.tsw") as file:
        assert file.base.aliases == {"tied": "f32", "größe.tied": "größe.重み"}
        expected = file.switch("f32", "eins").delta()
        assert torch.equal(file.switch("tied", "eins").delta(), expected)
        loaded = file.load(["tied"], "eins")
        assert list(loaded) == ["tied"]
        assert torch.equal(delta_of(loaded["tied"]), expected)


def test_load_asks_which_task() -> None:
    with tsw_torch.open(GOLDEN / "archive.tsw") as file:
        for act in (file.load, file.keys, lambda: file.switch("f32"), lambda: file.load(["f32"])):
            with pytest.raises(tsw.OptionError, match=r"it has 3 tasks: eins, .*; name one with task="):
                act()
        with pytest.raises(tsw.UnknownNameError, match="did you mean 'eins'"):
            file.load(task="ein")
        with pytest.raises(tsw.UnknownNameError, match="leaves this tensor as the base has it"):
            file.switch("gone", "empty")


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("profile", lay.PROFILES)
def test_damage_shows_when_it_is_first_touched(
    chunks: dict[str, Path], tmp_path: Path, profile: str, device: str
) -> None:
    path = chunks[profile]
    kinds = {s.role for s in segments(path) if s.length}
    assert kinds == set(lay.Role)
    for segment in segments(path):
        if not segment.length:
            continue
        broken = damaged(path, tmp_path / "x.tsw", [segment.offset + segment.length - 1])
        with tsw_torch.open(broken, device=device) as file:
            other = "long" if segment.name == "exact" else "exact"
            assert file.switch(other).sign().any()
            switch = file.switch(segment.name)
            weight = torch.zeros(switch.shape, dtype=switch.dtype, device=device)
            acts: list[Callable[[], Any]] = [switch.data if switch.kind == "dense" else switch.sign, file.load]
            for act in (*acts, partial(switch.apply_, weight, check_base=False)):
                with pytest.raises(tsw.FormatError, match="CRC32C") as caught:
                    act()
                assert (caught.value.rule, caught.value.offset) == ("TSW-701", segment.offset)
                one_line(caught.value)
            assert not weight.any()
            assert file.switch(other).sign().any()
        if segment.chunk == 0:
            with pytest.raises(tsw.FormatError, match="CRC32C"):
                tsw_torch.open(broken, device=device, verify="full")


def test_verify_off_and_full(shapes: dict[str, Path]) -> None:
    for verify in ("off", "full", "lazy"):
        with tsw.open(shapes["F32-archive"]) as theirs, tsw_torch.open(theirs.path, verify=verify) as ours:
            assert_same(ours.switch("matrix").delta(), theirs.switch("matrix").delta())


def test_unverified_damage_is_refused_or_read_as_numpy_reads_it(tmp_path: Path) -> None:
    """Payloads that no checksum guards: an error or the reference's elements, never memory beside the weight."""
    rng = np.random.default_rng(0)
    places = [s for s in segments(GOLDEN / "archive.tsw") if s.length and s.key[0] == 0]
    refused = 0
    for number in range(120):
        segment = places[rng.integers(len(places))]
        path = damaged(GOLDEN / "archive.tsw", tmp_path / "x.tsw", [segment.offset + int(rng.integers(segment.length))])
        with tsw.open(path, verify="off") as theirs, tsw_torch.open(path, verify="off") as ours:
            reference = theirs.switch(segment.name, "eins")
            if reference.kind != "ternary" or reference.target is not reference.base.dtype:
                continue
            array = random_bits(reference.dtype, reference.shape, number)
            memory = tensor_of(np.pad(array.reshape(-1), 4096), TORCH[reference.dtype])
            before = raw(memory)
            weight = memory[4096 : memory.numel() - 4096].view(reference.shape)
            try:
                expected = reference.apply(array, check_base=False)
            except tsw.FormatError:
                with pytest.raises(tsw.FormatError):
                    ours.switch(segment.name, "eins").apply_(weight, check_base=False)
                assert raw(memory) == before
                refused += 1
            else:
                ours.switch(segment.name, "eins").apply_(weight, check_base=False)
                assert_same(weight, expected, but_nan=True)
                assert not memory[:4096].any() and not memory[-4096:].any()
    assert refused > 20


def test_a_file_that_was_cut_meanwhile(shapes: dict[str, Path], tmp_path: Path) -> None:
    weight = tensors(torch.float32)["matrix"]
    before = raw(weight)
    for backend in BACKENDS:
        shutil.copy(shapes["F32-archive"], tmp_path / "x.tsw")
        with tsw_torch.open(tmp_path / "x.tsw", backend=backend) as file:
            os.truncate(tmp_path / "x.tsw", 70)
            with pytest.raises(tsw.TruncatedError, match="cut"):
                file.switch("matrix").apply_(weight)
    assert raw(weight) == before


# ------------------------------------------------------------------------------------------------------------ backends


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("profile", lay.PROFILES)
def test_the_backend_that_is_reported_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str, backend: Any
) -> None:
    path = tmp_path / "x.tsw"
    shutil.copy(GOLDEN / f"{profile}.tsw", path)
    calls = 0
    pread = os.pread

    def counting(*arguments: int) -> bytes:
        nonlocal calls
        calls += 1
        return pread(*arguments)

    with tsw_torch.open(path, backend=backend) as file:
        monkeypatch.setattr(os, "pread", counting)
        file.switch("f32", "eins").delta()
        expected = backend if backend != "auto" else "mmap" if profile == "mapped" else "pread"
        assert file.backend == expected
        assert (str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")) == (expected == "mmap")
        assert (calls > 0) == (expected == "pread")
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ options and their errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device: expected one such as 'cpu' or 'cuda:0', found 'gpu'"),
        ({"device": ""}, "device: expected one such as"),
        ({"device": "cuda:-1"}, "device: expected one such as"),
        ({"device": "cuda:99"}, r"device: expected one of \d+ CUDA devices, found 'cuda:99'; use 'cpu'"),
        ({"device": "meta"}, "device: expected one with memory, found 'meta'"),
        ({"device": torch.device("meta")}, "device: expected one with memory"),
        ({"backend": "read"}, "backend: expected 'auto', 'mmap' or 'pread', found 'read'"),
        ({"verify": True}, "verify: expected 'lazy', 'full' or 'off', found True"),
        ({"threads": 0}, "threads: expected a number from 1 up, found 0"),
        ({"staging_bytes": 5}, "staging_bytes: expected at least 8192 bytes, found 5"),
    ],
)
def test_options_are_refused_when_the_file_is_opened(
    shapes: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(tsw.OptionError, match=message) as caught:
        tsw_torch.open(shapes["F32-archive"], **options)
    one_line(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without")
def test_cuda_without_cuda(shapes: dict[str, Path]) -> None:
    with pytest.raises(tsw.OptionError, match="expected one of 0 CUDA devices, found 'cuda'; use 'cpu'"):
        tsw_torch.open(shapes["F32-archive"], device="cuda")


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "xla"])
def test_other_devices_that_are_not_there(shapes: dict[str, Path], device: str) -> None:
    """Known to torch by name, but not on this machine: said when the file is opened, by an error of this library."""
    if getattr(getattr(torch, device, None), "is_available", lambda: False)():
        pytest.skip("it is there")
    with (
        pytest.raises(tsw.OptionError, match=f"device: .*{device}") as caught,
        tsw_torch.open(shapes["F32-archive"], device=device) as file,
    ):
        file.switch("matrix").delta()
    one_line(caught.value)


@pytest.mark.parametrize("device", [None, 3.5, ["cpu"]])
def test_devices_that_are_no_devices(shapes: dict[str, Path], device: Any) -> None:
    with pytest.raises(tsw.OptionError, match="device: expected"):
        tsw_torch.open(shapes["F32-archive"], device=device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_the_cpu_has_several_names(shapes: dict[str, Path], device: Any) -> None:
    weight = tensors(torch.float32)["matrix"]
    with tsw_torch.open(shapes["F32-archive"], device=device) as file:
        file.switch("matrix").apply_(weight)
    assert raw(weight) != raw(tensors(torch.float32)["matrix"])


@pytest.mark.parametrize("path", ["none.tsw", ".", "text.tsw", "empty.tsw"])
def test_paths_that_are_no_tsw_files(tmp_path: Path, path: str) -> None:
    (tmp_path / "text.tsw").write_text("no such thing " * 20)
    (tmp_path / "empty.tsw").touch()
    with pytest.raises(tsw.TswError, match=str(tmp_path)) as caught:
        tsw_torch.open(tmp_path / path)
    one_line(caught.value)


# ------------------------------------------------------------------------------------------ weights of TorchSwitch.apply_


def unfit() -> Iterator[Any]:
    """Weights for the switch "matrix" that cannot be changed in place: (weight, what the message says)."""
    whole = tensors(torch.float32)["matrix"]
    rows, columns = whole.shape
    yield "meta", whole.to("meta"), "meta device, which has no data"
    yield "array", whole.numpy(), "expected a torch tensor, found ndarray"
    yield "none", None, "expected a torch tensor, found NoneType"
    yield "sparse", whole.to_sparse(), "found a sparse_coo tensor"
    yield "shape", whole[:5], r"expected shape \[37, 50\], found \[5, 50\]"
    yield "flat", whole.reshape(-1), r"expected shape \[37, 50\], found \[1850\]"
    yield "turned", whole.t(), r"expected shape \[37, 50\], found \[50, 37\]"
    yield "integers", whole.int(), "found torch.int32"
    yield "flags", whole > 0, "found torch.bool"
    yield "complex", whole.to(torch.complex64), "found torch.complex64"
    yield "eight", whole.to(torch.float8_e4m3fn), "found torch.float8_e4m3fn"
    yield "half", whole.half(), "expected dtype F32, found torch.float16"
    yield "content", whole + 1, "expected the recorded content, found another"
    yield "grad", whole.clone().requires_grad_(), r"it requires grad.*requires_grad_\(False\)"
    yield "parameter", torch.nn.Parameter(whole.clone()), "it requires grad"
    yield "graph", whole.clone().requires_grad_() * 1, "it requires grad"
    yield "subclass", whole.as_subclass(_Subclass), "found a _Subclass"
    yield "rows", torch.zeros(1, columns).expand(rows, columns), "make it contiguous first"
    yield "columns", torch.zeros(rows, 1).expand(rows, columns), "make it contiguous first"
    yield "point", torch.zeros(()).expand(rows, columns), "make it contiguous first"
    yield "overlap", torch.zeros(rows + columns).as_strided((rows, columns), (1, 1)), "make it contiguous first"
    yield "windows", torch.zeros(rows * 7 + columns).as_strided((rows, columns), (7, 1)), "make it contiguous first"


class _Subclass(Tensor):
    pass


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("weight", "message"), [pytest.param(w, m, id=name) for name, w, m in unfit()])
def test_weights_that_are_refused(shapes: dict[str, Path], weight: Any, message: str, check: bool) -> None:
    if not check and ("float16" in message or "content" in message):
        return  # that is what it is for
    plain = isinstance(weight, Tensor) and not weight.is_meta and weight.layout is torch.strided
    before = raw(weight.as_subclass(Tensor)) if plain else b""
    expected = message if check else "matrix"
    with tsw_torch.open(shapes["F32-archive"]) as file:
        with pytest.raises((tsw.OptionError, tsw.BaseMismatchError), match=expected) as caught:
            file.switch("matrix").apply_(weight, check_base=check)
        assert "matrix" in one_line(caught.value)
    assert not plain or raw(weight.as_subclass(Tensor)) == before


def test_weights_of_unusual_layouts_are_refused(shapes: dict[str, Path]) -> None:
    whole = tensors(torch.float32)["matrix"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what will change
        unusual = [
            whole.to_sparse_csr(),
            torch.quantize_per_tensor(whole, 0.1, 0, torch.qint8),
            torch.nested.nested_tensor([whole[0], whole[1]], layout=torch.jagged),
        ]
    if torch.backends.mkldnn.is_available():
        unusual.append(whole.to_mkldnn())
    with tsw_torch.open(shapes["F32-archive"]) as file:
        for weight in unusual:
            for check in (True, False):
                with pytest.raises(tsw.OptionError, match="expected a dense tensor with memory of its own") as caught:
                    file.switch("matrix").apply_(weight, check_base=check)
                one_line(caught.value)


@pytest.mark.parametrize("kind", ["uninitialised", "nested"])
def test_weights_without_sizes_are_refused(shapes: dict[str, Path], kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    weight = torch.nn.parameter.UninitializedParameter(requires_grad=False) if kind == "uninitialised" else nested
    with tsw_torch.open(shapes["F32-archive"]) as file, pytest.raises(tsw.OptionError, match="matrix"):
        file.switch("matrix").apply_(weight)


def test_what_cannot_help_is_not_advised(shapes: dict[str, Path]) -> None:
    """check_base=False does not make another shape or integers fit."""
    whole = tensors(torch.float32)["matrix"]
    with tsw_torch.open(shapes["F32-archive"]) as file:
        for weight in (whole[:5], whole.int()):
            for check in (True, False):
                with pytest.raises(tsw.BaseMismatchError) as caught:
                    file.switch("matrix").apply_(weight, check_base=check)
                assert "check_base=False" not in str(caught.value)


@pytest.mark.gpu
@NEEDS_CUDA[1]
def test_weights_on_another_device_are_refused(shapes: dict[str, Path]) -> None:
    whole = tensors(torch.float32)["matrix"]
    for device, other in (("cuda", "cpu"), ("cpu", "cuda")):
        expected = pytest.raises(tsw.OptionError, match=f"expected it on {device}.*found it on {other}")
        with tsw_torch.open(shapes["F32-archive"], device=device) as file, expected:
            file.switch("matrix").apply_(whole.to(other))


# ----------------------------------------------------------------------------------------------------------- strides


def strided(array: np.ndarray[Any, Any], dtype: torch.dtype, how: str, device: str) -> tuple[Tensor, Tensor]:
    """Memory, and a view of parts of it that holds the array's elements."""
    rows, columns = array.shape
    element = tensor_of(array, dtype, device)
    if how == "transposed":
        memory = torch.full((columns, rows), 7, dtype=dtype, device=device)
        view = memory.t()
    elif how == "columns":
        memory = torch.full((rows, columns + 9), 7, dtype=dtype, device=device)
        view = memory[:, 4 : 4 + columns]
    elif how == "steps":
        memory = torch.full((rows * 3, columns * 2), 7, dtype=dtype, device=device)
        view = memory[1::3, ::2]
    elif how == "transposed columns":
        memory = torch.full((columns + 2, rows + 5), 7, dtype=dtype, device=device)
        view = memory[1:-1, 2:-3].t()
    else:
        memory = torch.full((rows, 4, columns), 7, dtype=dtype, device=device)
        view = memory[:, 2]
    view.copy_(element)
    return memory, view


@pytest.mark.parametrize("how", ["transposed", "columns", "steps", "transposed columns", "middle"])
@pytest.mark.parametrize("dtype", TORCH)
def test_strided_matrices_change_and_nothing_between(
    shapes: dict[str, Path], dtype: str, how: str, device: str
) -> None:
    path = shapes[f"{dtype}-archive"]
    base = tensors(TORCH[dtype])["matrix"]
    array = np.frombuffer(raw(base), DTYPE_BY_NAME[dtype].storage).reshape(base.shape)
    with tsw.open(path) as theirs, tsw_torch.open(path, device=device) as ours:
        expected, _ = strided(theirs.switch("matrix").apply(array, 0.3), TORCH[dtype], how, device)
        memory, view = strided(array, TORCH[dtype], how, device)
        assert not view.is_contiguous()
        assert ours.switch("matrix").apply_(view, 0.3) is view
        assert raw(memory) == raw(expected)


def test_a_large_strided_matrix(folder: Path, device: str) -> None:
    """Several chunks, and places that are not in the order of memory."""
    for dtype in (torch.float32, torch.float16):
        generator = torch.Generator().manual_seed(0)
        base = {"w": torch.randn(1100, 1000, generator=generator).to(dtype)}
        path = folder / f"large-{base['w'].element_size()}.tsw"
        tsw.pack(base, tuned(base), path, density=0.01)
        with tsw_torch.open(path, device=device) as file:
            expected = file.switch("w").apply_(base["w"].clone().to(device))
            weight = base["w"].t().contiguous().to(device).t()
            file.switch("w").apply_(weight)
            assert raw(weight) == raw(expected)
            memory = torch.zeros(1100, 1003, dtype=dtype, device=device)
            memory[:, 1:-2] = base["w"].to(device)
            file.switch("w").apply_(memory[:, 1:-2])
            assert raw(memory[:, 1:-2]) == raw(expected)
            assert not memory[:, :1].any() and not memory[:, -2:].any()


def test_strided_tensors_of_other_dimensions(shapes: dict[str, Path], device: str) -> None:
    base = tensors(torch.float32)
    with tsw_torch.open(shapes["F32-archive"], device=device) as file:
        expected = file.switch("vector").apply_(base["vector"].clone().to(device))
        memory = torch.full((900,), 7.0, device=device)
        memory[1::3] = base["vector"].to(device)
        file.switch("vector").apply_(memory[1::3])
        assert torch.equal(memory[1::3], expected)
        assert (memory.view(-1, 3)[:, [0, 2]] == 7).all()

        scalar = torch.full((5,), 7.0, device=device)
        scalar[3] = base["scalar"]
        file.switch("scalar").apply_(scalar[3])
        assert (scalar[[0, 1, 2, 4]] == 7).all() and scalar[3] != base["scalar"].to(device)

        four = base["four"].to(device, memory_format=torch.channels_last)
        before = raw(four)
        with pytest.raises(
            tsw.OptionError, match=r"strides \(12, 1, 6, 3\) of shape \[4, 3, 2, 2\]; make it contiguous first"
        ):
            file.switch("four").apply_(four)
        assert raw(four) == before
        images = torch.full((4, 5, 2, 2), 7.0, device=device)
        images[:, 1:4] = base["four"].to(device)
        file.switch("four").apply_(images[:, 1:4])
        assert torch.equal(images[:, 1:4], file.switch("four").apply_(base["four"].clone().to(device)))
        assert (images[:, [0, 4]] == 7).all()


def test_views_with_pending_negation(shapes: dict[str, Path]) -> None:
    """`imag` of a conjugate: its memory holds the numbers negated. Refused or right, never wrong."""
    base = tensors(torch.float32)["matrix"]
    view = torch.complex(torch.zeros_like(base), -base).conj().imag
    assert view.is_neg() and torch.equal(view, base)
    with tsw_torch.open(shapes["F32-archive"]) as file:
        expected = file.switch("matrix").apply_(base.clone())
        try:
            file.switch("matrix").apply_(view)
        except tsw.OptionError:
            assert torch.equal(view, base)
        else:
            assert torch.equal(view, expected)


# ------------------------------------------------------------------------------------------------- autograd and modes


MODES = {"plain": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", TORCH)
def test_modes_of_torch(shapes: dict[str, Path], dtype: str, mode: str, device: str) -> None:
    base = tensors(TORCH[dtype])["matrix"].to(device)
    with tsw_torch.open(shapes[f"{dtype}-archive"], device=device) as file:
        switch = file.switch("matrix")
        expected = switch.delta(), switch.sign(), switch.mask(), switch.apply_(base.clone())
        with torch.inference_mode():
            inference = base.clone()
        normal = base.clone()
        with MODES[mode]():
            found = switch.delta(), switch.sign(), switch.mask(), switch.apply_(normal)
            switch.apply_(inference)
        for one, other in zip((*found, inference), (*expected, expected[-1]), strict=True):
            assert raw(one) == raw(other)
        assert not normal.is_inference() and not normal.requires_grad
        assert [t.is_inference() for t in found[:3]] == [mode == "inference"] * 3
        with torch.inference_mode():  # its own memory, or the caller's view
            memory = torch.zeros(37, 60, dtype=TORCH[dtype], device=device)
            memory[:, 5:55] = base
            switch.apply_(memory[:, 5:55])
            assert raw(memory[:, 5:55]) == raw(expected[-1])


def test_deltas_take_part_in_autograd(shapes: dict[str, Path], device: str) -> None:
    with tsw_torch.open(shapes["F32-archive"], device=device) as file:
        delta = file.switch("matrix").delta()
    a = torch.tensor(2.0, requires_grad=True, device=device)
    (a * delta).sum().backward()
    assert torch.allclose(a.grad, delta.sum())


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("how", ["whole", "view", "transposed", "slice"])
def test_autograd_notices_the_change(shapes: dict[str, Path], dtype: str, how: str, device: str) -> None:
    weight = tensors(TORCH[dtype])["matrix"].to(device)
    if how == "transposed":
        weight = weight.t().contiguous().t()
    x = torch.ones(weight.shape, dtype=weight.dtype, device=device, requires_grad=True)
    y = (x * weight).sum()
    with tsw_torch.open(shapes[f"{dtype}-archive"], device=device) as file:
        switch = file.switch("matrix")
        if how == "slice":
            switch[3:9].apply_(weight[3:9])
        else:
            switch.apply_(weight.view(weight.shape) if how == "view" else weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_autograd_notices_a_dense_change(device: str) -> None:
    with tsw_torch.open(GOLDEN / "archive.tsw", device=device) as file:
        switch = file.switch("dense.F32", "eins")
        weight = torch.ones(switch.shape, device=device)
        x = torch.ones(switch.shape, device=device, requires_grad=True)
        y = (x * weight).sum()
        switch.apply_(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


# ------------------------------------------------------------------------------------------------------------- imports


def fresh(program: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = "print(sorted({'torch', 'numba', 'triton', 'transformers'} & sys.modules.keys()))"


def test_the_library_does_not_import_torch(tmp_path: Path) -> None:
    program = f"""
import sys
import tswitch_format as tsw
{HEAVY}
import tswitch_format.torch, tswitch_format.torch as t
assert hasattr(t, '__all__') and t.__doc__
try: t.nothing
except AttributeError as error: assert 'nothing' in str(error)
else: raise SystemExit('no error')
{HEAVY}
import numpy as np
base = {{'w': np.ones((4, 4), np.float32)}}
tsw.pack(base, {{'w': 2 * base['w']}}, {str(tmp_path / "x.tsw")!r})
with tsw.open({str(tmp_path / "x.tsw")!r}) as file: file.switch('w').delta()
{HEAVY}
t.open
print('torch' in sys.modules, 'triton' in sys.modules, 'numba' in sys.modules)
"""
    lines = fresh(program).splitlines()
    assert lines[:3] == ["[]"] * 3
    assert lines[3].startswith("True"), "and then it works"


def test_the_names_of_the_package_are_all_there() -> None:
    for name in tsw_torch.__all__:
        assert getattr(tsw_torch, name).__name__
    assert tsw_torch.open is tsw_torch.SwitchTensors
    with pytest.raises(ImportError):
        exec("from tswitch_format.torch import nothing")


def test_without_torch_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules['torch'] = None
import tswitch_format.torch as t
try: t.open
except ImportError as error: print(type(error).__name__, error)
"""
    assert "torch" in fresh(program)
