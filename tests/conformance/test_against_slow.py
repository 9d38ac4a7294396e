"""The library against the slow reference: every selection, knob, bit and digest, on small models of all float types."""

from __future__ import annotations

import itertools
import json
import math
import random
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_reference as slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow_reference import Entry, Knob, Tensor

import tswitch_format as tsw
from tswitch_format.checkpoint import DTYPE_BY_NAME

Model = dict[str, Tensor]
STORAGE = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
FLOATS = tuple(STORAGE)
KNOBS = [("projection", "tensor"), ("projection", "row"), ("projection", "row-col")] + [
    (knob, per) for knob in ("norm", "rms", "mean") for per in ("tensor", "row")
]


# --- models and files -----------------------------------------------------------------------------------------


def write_model(path: Path, model: Mapping[str, Tensor]) -> Path:
    """A .safetensors file, made by hand."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.items():
        offsets = [end, end + len(tensor.data)]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in model.values()))
    return path


def read_model(path: Path) -> Model:
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Elements in NumPy's storage type: BF16 as uint16."""
    return np.frombuffer(tensor.data, STORAGE[tensor.dtype]).reshape(tensor.shape).copy()


def random_value(rng: random.Random, dtype: str, style: str) -> float:
    if style == "ties":
        return rng.randint(-8, 8) / 8
    if style == "gauss":
        return rng.gauss(0, 0.02)
    size = slow.FORMATS[dtype][2]
    while True:  # any bits, but nothing whose sums leave the range of binary32
        value = slow.decode_float(rng.getrandbits(8 * size), dtype)
        if math.isfinite(value) and abs(value) < 1e18 and (dtype != "F64" or abs(value) > 1e-18 or value == 0):
            return value


def random_pair(
    rng: random.Random, dtypes: tuple[str, str], shape: tuple[int, ...], style: str
) -> tuple[Tensor, Tensor]:
    """Base and expert; of the expert a random share of the elements differs."""
    base_dtype, expert_dtype = dtypes
    share = rng.choice([0.0, 0.1, 0.5, 1.0])
    old = [random_value(rng, base_dtype, style) for _ in range(math.prod(shape))]
    step = {"ties": 1.0, "gauss": 0.1, "wild": 1.0}[style]
    new = [x + step * random_value(rng, base_dtype, style) if rng.random() < share else x for x in old]
    return slow.from_values(old, base_dtype, shape), slow.from_values(new, expert_dtype, shape)


# --- the comparison -------------------------------------------------------------------------------------------


@dataclass
class Options:
    select: str = "tensor"
    knob: str = "projection"
    per: str = "tensor"
    knob_dtype: str = "u8"
    density: str | None = None
    discard: str | None = None
    profile: str = "archive"
    paper: bool = False

    def arguments(self) -> dict[str, Any]:
        amounts = {
            name: float(value) for name, value in (("density", self.density), ("discard", self.discard)) if value
        }
        if self.paper:
            return {"preset": "paper", "profile": self.profile, **amounts}
        return {
            "select": self.select,
            "knob": self.knob,
            "knob_per": self.per,
            "knob_dtype": self.knob_dtype,
            "profile": self.profile,
            **amounts,
        }


def slow_masks(
    base: Model, expert: Model, options: Options, scores: Model
) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    """Task vectors and masks of all tensors that can be switches; of those with scores, by these."""
    amount = {"density": options.density, "discard": options.discard}
    if options.paper:
        assert options.discard is not None
        names = [name for name in base if base[name].shape]
        taus = {name: slow.paper_task_vector(base[name], expert[name]) for name in names}
        return taus, {name: slow.select_paper(tau, options.discard) for name, tau in taus.items()}
    taus = {name: slow.task_vector(base[name], expert[name]) for name in base}
    # The rules take magnitudes and signs: those of tau, or the scores with the signs of tau.
    keys = dict(taus)
    for name, tensor in scores.items():
        pairs = zip(slow.values(tensor), taus[name], strict=True)
        keys[name] = [math.copysign(score, tau) if tau else 0.0 for score, tau in pairs]
    masks = {}
    if options.select == "global":
        compared = {name: found for name, found in keys.items() if name in scores or not scores}
        masks = slow.select_global(compared, **amount)
    rule = slow.select_signed if options.select == "tensor-signed" else slow.select_tensor
    return taus, masks | {name: rule(found, **amount) for name, found in keys.items() if name not in masks}


def ulps_apart(a: float, b: float) -> int:
    """Steps between two non-negative binary32 numbers."""
    return abs(slow.encode_float(a, "F32") - slow.encode_float(b, "F32"))


def check_factors(found: list[float], exact: list[float], dtype: str) -> list[int]:
    """Stored factors are the exact ones rounded to nearest (a tie, seen through the last digits, may fall either way)."""
    codes = []
    for value, wanted in zip(found, exact, strict=True):
        if dtype == "u8":
            code = round(value * 85)
            assert slow.decode_factor(code, "u8") == value
            assert abs(code - wanted * 85) <= 0.5 + 2e-4
        elif dtype == "f16":
            code = slow.encode_float(value, "F16")
            assert slow.decode_float(code, "F16") == value
            step = 2.0 ** max(math.frexp(wanted)[1] - 11, -24)
            assert abs(value - wanted) <= step / 2 + 1e-6 * wanted
        else:
            code = slow.encode_float(value, "F32")
            assert ulps_apart(value, wanted) <= 8
        codes.append(code)
    return codes


def check_knob(switch: tsw.Switch, tau: list[float], kept: list[bool], base_dtype: str, options: Options) -> Knob:
    """The stored knob and factors are the slow ones; each stage is judged with what is stored of the one before."""
    if options.paper:
        wanted = slow.paper_knob(tau, kept, base_dtype)
        assert ulps_apart(switch.knob, wanted) <= (1 if base_dtype in ("F32", "F64") else 0)
        assert switch.row_factors is None
        return Knob(switch.knob)
    shape, rule = switch.shape, options.knob
    if not slow.has_factors(options.per, shape, kept):
        assert switch.row_factors is None
        assert switch.column_factors is None
        assert ulps_apart(switch.knob, slow.final_knob(rule, tau, kept, shape, None, None)) <= 4
        return Knob(switch.knob)
    assert switch.row_factors is not None
    rows = [float(x) for x in switch.row_factors]
    row_codes = check_factors(rows, slow.row_factors(rule, tau, kept, shape), options.knob_dtype)
    columns = column_codes = None
    if options.per == "row-col":
        assert switch.column_factors is not None
        columns = [float(x) for x in switch.column_factors]
        exact = slow.column_factors(tau, kept, shape, rows)
        column_codes = check_factors(columns, exact, options.knob_dtype)
    else:
        assert switch.column_factors is None
    assert ulps_apart(switch.knob, slow.final_knob(rule, tau, kept, shape, rows, columns)) <= 4
    return Knob(switch.knob, options.knob_dtype, row_codes, column_codes)


def check_views(switch: tsw.Switch, base: Tensor, entry: Entry) -> None:
    """mask, sign, indices, delta and apply of a switch and of its rows are those of the entry."""
    kept = np.array(entry.mask, bool).reshape(base.shape)
    signs = np.zeros(base.shape, np.int8)
    signs[kept] = [-1 if negative else 1 for negative in entry.negative]
    zeros = slow.from_values([0.0] * kept.size, "F64" if base.dtype == "F64" else "F32", base.shape)
    step = slow.apply_entries(zeros, [(Entry(**{**vars(entry), "dtype": zeros.dtype}), 1.0)])
    cuts: list[slice | None] = [None]
    if base.shape:
        cuts += [slice(0, 0), slice(0, 1), slice(1, None), slice(1, 3), slice(None, -1)]
    array = as_array(base)
    for cut in cuts:
        view, at = (switch, ...) if cut is None else (switch[cut], cut)
        assert view.shape == kept[at].shape
        assert view.active == kept[at].sum()
        assert np.array_equal(view.mask(), kept[at])
        assert np.array_equal(view.sign(), signs[at])
        assert np.array_equal(view.indices(), np.flatnonzero(kept[at]))
        assert np.array_equal(view.delta(), as_array(step)[at])
        for coefficient in (1.0, -0.5):
            made = as_array(slow.apply_entries(base, [(entry, coefficient)]))[at]
            found = view.apply(array[at].copy(), coefficient)
            assert found.tobytes() == made.tobytes()
            if entry.dtype == base.dtype:
                inside = array[at].copy()
                assert view.apply(inside, coefficient, out=inside) is inside
                assert inside.tobytes() == made.tobytes()
    assert switch.apply(array, 0).tobytes() == base.data


def check_model(base: Model, expert: Model, options: Options, folder: Path, scores: Model | None = None) -> None:
    """Pack, look at everything, restore with several coefficients, and compare with the slow reference."""
    base_file = write_model(folder / "base.safetensors", base)
    expert_file = write_model(folder / "expert.safetensors", expert)
    path = folder / "x.tsw"
    score_file = write_model(folder / "scores.safetensors", scores) if scores else None
    result = tsw.pack(base_file, expert_file, path, threads=1, score=score_file, **options.arguments())
    taus, masks = slow_masks(base, expert, options, scores or {})
    entries: dict[str, Entry] = {}
    with tsw.open(path, verify="full") as file:
        for name in base:
            assert file.base.digests(name).sha256 == slow.tensor_digest(base[name])
            assert file.base.digests(name).sampled == slow.sampled_digest(base[name])
            if name not in masks:  # the paper's tensors without dimensions
                if base[name] != expert[name]:
                    entries[name] = Entry("dense", expert[name].dtype, expert[name].shape, data=expert[name].data)
                continue
            if not any(masks[name]) and base[name].dtype == expert[name].dtype:
                continue
            switch = file.switch(name)
            kept, tau = masks[name], taus[name]
            assert switch.mask().reshape(-1).tolist() == kept, name
            negative = [t < 0 for t, on in zip(tau, kept, strict=True) if on]
            knob = check_knob(switch, tau, kept, base[name].dtype, options)
            entries[name] = Entry("ternary", expert[name].dtype, base[name].shape, kept, negative, knob)
            assert (switch.kind, switch.dtype) == ("ternary", expert[name].dtype)
            check_views(switch, base[name], entries[name])
        assert sorted(file.keys()) == sorted(entries)
        wanted_id = slow.content_id(base, {"task": entries}).hex()
        assert file.content_id == result.content_id == wanted_id
    for coefficient in (1, -0.5, 2, 0):
        out = folder / "out.safetensors"
        tsw.restore(base_file, path, out, tasks={"task": coefficient}, threads=1)
        made = {}
        for name in base:
            entry = entries.get(name)
            if entry is None:
                made[name] = base[name]
            elif entry.kind == "dense":
                made[name] = Tensor(entry.dtype, entry.shape, entry.data)
            else:
                made[name] = slow.apply_entries(base[name], [(entry, coefficient)])
        assert read_model(out) == made


# --- tests ----------------------------------------------------------------------------------------------------


def mixed_model(seed: int, *, changed_types: bool = False) -> tuple[Model, Model]:
    """Every float type in every number of dimensions; with `changed_types` the expert's types differ from the base's."""
    rng = random.Random(seed)
    shapes = [(), (1,), (0,), (13,), (5, 7), (1, 9), (9, 1), (3, 0), (2, 3, 4)]
    base, expert = {}, {}
    for number, (shape, style) in enumerate(itertools.product(shapes, ("ties", "gauss"))):
        dtype = FLOATS[(number + seed) % 4]
        other = FLOATS[(number + seed + 1 + number // 4) % 4] if changed_types else dtype
        name = f"{number}.{dtype}.{other}.{style}"
        base[name], expert[name] = random_pair(rng, (dtype, other), shape, style)
    return base, expert


@pytest.mark.parametrize("profile", ["archive", "mapped"])
@pytest.mark.parametrize(("knob", "per"), KNOBS)
@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
def test_every_selection_and_knob(tmp_path: Path, select: str, knob: str, per: str, profile: str) -> None:
    seed = KNOBS.index((knob, per)) + 10 * (profile == "mapped") + 20 * len(select)
    base, expert = mixed_model(seed)
    knob_dtype = ("u8", "f16", "f32")[seed % 3]
    check_model(base, expert, Options(select, knob, per, knob_dtype, density="0.2", profile=profile), tmp_path)


@pytest.mark.parametrize("knob_dtype", ["u8", "f16", "f32"])
@pytest.mark.parametrize("per", ["row", "row-col"])
def test_every_type_of_factors(tmp_path: Path, per: str, knob_dtype: str) -> None:
    base, expert = mixed_model(3)
    check_model(base, expert, Options("tensor", "projection", per, knob_dtype, density="0.4"), tmp_path)


@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
@pytest.mark.parametrize("amount", ["density 1", "density 1e-05", "discard 0", "discard 0.9", "discard 0.35"])
def test_every_amount(tmp_path: Path, select: str, amount: str) -> None:
    name, value = amount.split()
    base, expert = mixed_model(5)
    check_model(base, expert, Options(select, **{name: value}), tmp_path)


@pytest.mark.parametrize(("knob", "per"), KNOBS)
@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
@pytest.mark.parametrize("amount", ["density 0.2", "discard 0.35"])
def test_external_scores(tmp_path: Path, select: str, knob: str, per: str, amount: str) -> None:
    """Ties, zeros, numbers of any size; a quarter of the tensors has no scores. Knobs are fitted to what the scores chose."""
    base, expert = mixed_model(11 + KNOBS.index((knob, per)))
    rng = random.Random(amount + select)
    scores = {}
    for number, (name, tensor) in enumerate(base.items()):
        draw = rng.choice([lambda: rng.randint(0, 6) / 8, lambda: rng.choice([0.0, 2.0 ** rng.uniform(-140, 100)])])
        if number % 4:
            scores[name] = slow.from_values([draw() for _ in slow.elements(tensor)], "F32", tensor.shape)
    kind, value = amount.split()
    check_model(base, expert, Options(select, knob, per, **{kind: value}), tmp_path, scores)


@pytest.mark.parametrize("seed", range(4))
def test_expert_of_other_types(tmp_path: Path, seed: int) -> None:
    base, expert = mixed_model(seed, changed_types=True)
    check_model(base, expert, Options("tensor", "projection", "row-col", density="0.3"), tmp_path)


@pytest.mark.parametrize("discard", ["0.6", "0.9"])
@pytest.mark.parametrize("changed_types", [False, True])
def test_the_papers_preset(tmp_path: Path, discard: str, changed_types: bool) -> None:
    base, expert = mixed_model(7, changed_types=changed_types)
    check_model(base, expert, Options(paper=True, discard=discard), tmp_path)


TENSORS = st.tuples(
    st.sampled_from(FLOATS),
    st.one_of(st.none(), st.sampled_from(FLOATS)),
    st.lists(st.integers(0, 6), max_size=4).map(tuple),
    st.sampled_from(["ties", "gauss", "wild"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tensors=st.lists(TENSORS, min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    select=st.sampled_from(["tensor", "tensor-signed", "global"]),
    knob=st.sampled_from(KNOBS),
    knob_dtype=st.sampled_from(["u8", "f16", "f32"]),
    amount=st.sampled_from([("density", "0.02"), ("density", "0.3"), ("density", "0.999"), ("discard", "0.7")]),
    profile=st.sampled_from(["archive", "mapped"]),
)
def test_any_small_model(
    tensors: list[tuple[str, str | None, tuple[int, ...], str]],
    seed: int,
    select: str,
    knob: tuple[str, str],
    knob_dtype: str,
    amount: tuple[str, str],
    profile: str,
) -> None:
    rng = random.Random(seed)
    base, expert = {}, {}
    for number, (dtype, wanted, shape, style) in enumerate(tensors):
        # a narrower type would make infinities of wild values
        other = dtype if wanted is None or style == "wild" else wanted
        base[f"t{number}"], expert[f"t{number}"] = random_pair(rng, (dtype, other), shape, style)
    values = [v for model in (base, expert) for t in model.values() for v in slow.values(t)]
    if not all(math.isfinite(v) for v in values):  # f16 values near its end, changed
        return
    options = Options(select, *knob, knob_dtype, profile=profile, **dict([amount]))
    with tempfile.TemporaryDirectory() as folder:
        check_model(base, expert, options, Path(folder))


@pytest.mark.parametrize("dtype", FLOATS)
def test_several_tasks_are_added_in_order_and_rounded_once(tmp_path: Path, dtype: str) -> None:
    rng = random.Random(11)
    base = {"w": random_pair(rng, (dtype, dtype), (6, 11), "gauss")[0]}
    base_file = write_model(tmp_path / "base.safetensors", base)
    files = []
    for task in "abc":
        expert = slow.from_values([v + rng.gauss(0, 0.3) for v in slow.values(base["w"])], dtype, (6, 11))
        expert_file = write_model(tmp_path / f"{task}.safetensors", {"w": expert})
        files.append(tmp_path / f"{task}.tsw")
        tsw.pack(base_file, expert_file, files[-1], task=task, density=0.6, threads=1)
    bundle = tsw.bundle(files, tmp_path / "all.tsw")
    entries: dict[str, Entry] = {}
    with tsw.open(bundle) as file:
        for task in file.tasks:
            switch = file.switch("w", task)
            kept = switch.mask().reshape(-1).tolist()
            negative = (switch.sign()[switch.mask()] < 0).tolist()
            assert switch.row_factors is not None
            assert switch.column_factors is not None
            codes = [[round(float(x) * 85) for x in found] for found in (switch.row_factors, switch.column_factors)]
            entries[task] = Entry("ternary", dtype, (6, 11), kept, negative, Knob(switch.knob, "u8", *codes))
        tasks = {task: {"w": entry} for task, entry in entries.items()}
        assert file.content_id == slow.content_id(base, tasks).hex()
    results = set()
    coefficients = {"a": 0.7, "b": -0.5, "c": 2.0}
    for order in itertools.permutations("abc"):
        chosen = [(task, coefficients[task]) for task in order]
        tsw.restore(base_file, bundle, tmp_path / "out.safetensors", tasks=chosen, threads=1)
        made = slow.apply_entries(base["w"], [(entries[task], coefficient) for task, coefficient in chosen])
        assert read_model(tmp_path / "out.safetensors") == {"w": made}
        results.add(made.data)
    if dtype in ("F32", "F64"):
        assert len(results) > 1  # so that the order was worth a look


def given_masked(entry: Entry) -> tsw.GivenMask:
    assert entry.vector is not None
    return tsw.GivenMask.of_flags(np.array(entry.mask), entry.knob.knob)


def given_vector(vector: Tensor) -> tsw.GivenVector:
    if vector.dtype == "BF16":
        flat = as_array(vector).reshape(-1)
        chunk = 1 << 20
        return tsw.GivenVector(DTYPE_BY_NAME["BF16"], lambda number: flat[number * chunk : (number + 1) * chunk])
    return tsw.GivenVector.of_array(as_array(vector))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_masks_over_a_shared_vector(tmp_path: Path, dtype: str, stored: str, profile: str) -> None:
    rng = random.Random(f"{dtype} {stored}")
    shapes: dict[str, tuple[int, ...]] = {"v": (7,), "w": (5, 9), "x": (2, 0), "y": ()}
    base = {
        name: slow.from_values([rng.gauss(0, 1) for _ in range(math.prod(shape))], dtype, shape)
        for name, shape in shapes.items()
    }
    vectors = {
        name: slow.from_values([rng.gauss(0, 0.3) for _ in range(math.prod(shape))], stored, shape)
        for name, shape in shapes.items()
    }
    tasks: dict[str, dict[str, Entry]] = {}
    for task, knob, share in (("a", 1.0, 0.5), ("b", slow.fl32(-0.3), 0.2), ("none", 2.0, 0.0), ("all", 0.0, 1.0)):
        tasks[task] = {
            name: Entry(
                "masked",
                dtype,
                shape,
                [rng.random() < share for _ in range(math.prod(shape))],
                knob=Knob(knob),
                vector=vectors[name],
            )
            for name, shape in shapes.items()
        }
    base_file = write_model(tmp_path / "base.safetensors", base)
    path, out = tmp_path / "file.tsw", tmp_path / "out.safetensors"
    given_tasks = [
        tsw.GivenTask(task, {name: given_masked(entry) for name, entry in entries.items()})
        for task, entries in tasks.items()
    ]
    given = {name: given_vector(vector) for name, vector in vectors.items()}
    tsw.build(base_file, path, given_tasks, vectors=given, profile=profile, threads=1)
    assert tsw.validate(path).ok
    with tsw.open(path) as file:
        assert file.content_id == slow.content_id(base, tasks).hex()
    chosen: list[list[tuple[str, float]]] = [[("a", 1.0)], [("b", 1.0)], [("all", 1.0)], [("none", 2.0)], [("a", 0.0)]]
    chosen += [[("a", 0.7), ("b", -0.5)], [("b", -0.5), ("a", 0.7), ("all", 1.0)]]
    for terms in chosen:
        tsw.restore(base_file, path, out, tasks=terms, threads=1)
        for name, made in read_model(out).items():
            entries = [(tasks[task][name], coefficient) for task, coefficient in terms]
            assert made == slow.apply_entries(base[name], entries), (name, terms)


def test_more_than_one_chunk(tmp_path: Path) -> None:
    """2^20 + 3 * 1031 elements in rows that the chunks cut; all but some thousand equal the base."""
    rows, columns = 1020, 1031
    rng = np.random.default_rng(0)
    before = rng.standard_normal((rows, columns)).astype(np.float32)
    after = before.copy()
    changed = rng.choice(before.size, 4000, replace=False)
    changed = np.concatenate([changed, np.arange((1 << 20) - 5, (1 << 20) + 5), [0, before.size - 1]])
    after.reshape(-1)[changed] += rng.standard_normal(changed.size).astype(np.float32)
    assert before.size > 1 << 20
    base = {"w": Tensor("F32", (rows, columns), before.tobytes())}
    base_file = write_model(tmp_path / "base.safetensors", base)
    expert_file = write_model(tmp_path / "expert.safetensors", {"w": Tensor("F32", (rows, columns), after.tobytes())})
    tau = [slow.fl32(float(x)) for x in (after - before).reshape(-1)]
    kept = slow.select_tensor(tau, density="0.003")
    for profile in ("archive", "mapped"):
        path = tmp_path / f"{profile}.tsw"
        tsw.pack(base_file, expert_file, path, density=0.003, profile=profile, select="tensor", knob_dtype="u8")
        with tsw.open(path) as file:
            switch = file.switch("w")
            assert switch.mask().reshape(-1).tolist() == kept
            assert switch.row_factors is not None
            assert switch.column_factors is not None
            found = [[round(float(x) * 85) for x in f] for f in (switch.row_factors, switch.column_factors)]
            negative = [t < 0 for t, on in zip(tau, kept, strict=True) if on]
            entry = Entry("ternary", "F32", (rows, columns), kept, negative, Knob(switch.knob, "u8", *found))
            assert file.content_id == slow.content_id(base, {"task": {"w": entry}}).hex()
            made = slow.apply_entries(base["w"], [(entry, 2.0)])
            whole = as_array(made)
            for cut in (slice(0, 3), slice(1010, 1020), slice(1016, 1018), slice(5, 1019)):
                view = switch[cut]
                assert view.apply(before[cut], 2.0).tobytes() == whole[cut].tobytes()
                inside = before[cut].copy()
                view.apply(inside, 2.0, out=inside)
                assert inside.tobytes() == whole[cut].tobytes()
                assert np.array_equal(view.mask(), np.array(kept).reshape(rows, columns)[cut])
                assert np.array_equal(view.indices(), np.flatnonzero(view.mask()))
        tsw.restore(base_file, path, tmp_path / "out.safetensors", tasks={"task": 2.0})
        assert read_model(tmp_path / "out.safetensors") == {"w": made}


def test_the_hand_made_rounding_agrees_with_ieee() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        value = slow.decode_float(rng.getrandbits(64), "F64")
        value = math.ldexp(math.frexp(value)[0], rng.randint(-160, 140)) if math.isfinite(value) else value
        with np.errstate(over="ignore"):
            wanted = {"F16": np.float64(value).astype("<f2"), "F32": np.float64(value).astype("<f4")}
        for dtype, number in wanted.items():
            if not math.isnan(value):
                assert slow.encode_float(value, dtype) == int.from_bytes(number.tobytes(), "little")
        if not math.isnan(value):
            assert slow.fl32(value) == float(wanted["F32"])


def test_f64_goes_to_bf16_in_one_rounding() -> None:
    halfway = 1 + 2.0**-8  # between two numbers of BF16; a bit above it, so little that binary32 loses it
    assert slow.encode_float(halfway + 2.0**-40, "BF16") == 0x3F81
    assert slow.encode_float(slow.fl32(halfway + 2.0**-40), "BF16") == 0x3F80


def test_f64_to_bf16_in_the_library_rounds_once(tmp_path: Path) -> None:
    base = {"w": slow.from_values([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, -1 - 3 * 2.0**-8, 5.0], "F64", (4,))}
    expert = {"w": slow.from_values([*slow.values(base["w"])[:3], 7.0], "BF16", (4,))}
    check_model(base, expert, Options(density="0.25"), tmp_path)
