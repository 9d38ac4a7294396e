"""The T-Switch authors' folders: what a slow writer writes comes in, goes out again bit by bit, and is base + knob * sign."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importers_slow import authors_bits, authors_folder, authors_knob, random_signs, to_bytes
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tswitch_format as tsw
from tswitch_format.checkpoint import ArrayCheckpoint, borrow_checkpoint
from tswitch_tools.exporters import tswitch_authors as exporter
from tswitch_tools.importers import CHUNK, ImportOptions
from tswitch_tools.importers import tswitch_authors as importer

Arrays = dict[str, NDArray[Any]]

RNG = np.random.default_rng(7)
BASE: Arrays = {
    "enc.in_proj_weight": RNG.standard_normal((12, 10)).astype(np.float32),
    "enc.bias": RNG.standard_normal(8).astype(np.float32),
    "half": RNG.standard_normal((4, 4)).astype(np.float16),
    "scale": np.ones(3, np.float32),
    "odd": np.ones(6, np.float32),
    "scalar": np.float32(1).reshape(()),
    "ids": np.arange(8),
}
SIGNS = {
    "enc.in_proj_weight": random_signs((12, 10), 0.4, 1),
    "enc.bias": random_signs((8,), 0.9, 2),
    "half": random_signs((4, 4), 0.5, 3),
    "scale": np.array([0, -1, 1], np.int8),
}
KNOBS = {"enc.in_proj_weight": 0.25, "enc.bias": 0.1, "half": 3.0, "scale": 1e-3}


def convert(source: Path, base: Arrays | None = None, **options: Any) -> Path:
    out = source.parent / "x.tsw"
    importer.convert(source, ArrayCheckpoint(BASE if base is None else base), out, ImportOptions(**options))
    return out


def exported(file: Path, task: str, name: str = "out") -> Path:
    with tsw.open(file) as opened:
        assert len(exporter.convert(opened, task, file.parent / name)) == 2
    return file.parent / name


def contents(folder: Path, suffix: str = ".bin") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(suffix)}


def tuned(base: Arrays, signs: Arrays, seed: int = 1) -> Arrays:
    """An expert whose task vector has these signs where they are not 0."""
    random = np.random.default_rng(seed)
    expert = dict(base)
    for name, of_one in signs.items():
        sizes = random.uniform(0.25, 1, of_one.shape)
        away = np.where(of_one, of_one * sizes, random.normal(0, 0.05, of_one.shape))
        expert[name] = (base[name] + away).astype(base[name].dtype)
    return expert


def test_round_trip_and_restored_expert(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", "sun_397", SIGNS)
    (tmp_path / "knobs.json").write_text(json.dumps(KNOBS))
    file = convert(source, scales=tmp_path / "knobs.json", base_id="org/base", threads=2)
    assert tsw.validate(file, level="full").ok
    with tsw.open(file) as opened:
        assert opened.tasks == ["sun_397"]
        assert opened.recipe() == {"imported_from": "tswitch-authors", "knobs_from": "scales"}
        assert {name: opened.switch(name).sign().tolist() for name in SIGNS} == {
            n: s.tolist() for n, s in SIGNS.items()
        }
    out = exported(file, "sun_397")
    assert contents(out) == contents(source)
    assert json.loads((out / "sun_397_knobs.json").read_text()) == {n: float(np.float32(k)) for n, k in KNOBS.items()}
    again = importer.convert(out, ArrayCheckpoint(BASE), tmp_path / "y.tsw", ImportOptions())  # with the knobs beside
    with tsw.open(file) as opened:
        assert again.content_id == opened.content_id
    tsw.restore(BASE, file, tmp_path / "expert.safetensors")
    expert = load_file(tmp_path / "expert.safetensors")
    for name, base in BASE.items():
        wanted = base
        if name in SIGNS:
            wanted = (base.astype(np.float32) + np.float32(KNOBS[name]) * SIGNS[name]).astype(base.dtype)
        assert np.array_equal(expert[name], wanted), name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.integers(1, 4), st.integers(1, 60).map(lambda n: 4 * n)),
    st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]),
    st.integers(0, 2**32),
)
def test_any_signs_come_back(tmp_path: Path, elements: int, density: float, seed: int) -> None:
    signs = random_signs((elements,), density, seed)
    source = authors_folder(tmp_path / "in", "d", {"w": signs})
    file = convert(source, {"w": np.zeros(elements, np.float32)}, knob=0.5)
    with tsw.open(file) as opened:
        assert np.array_equal(opened.switch("w").sign(), signs)
        data = exporter._stream(opened.switch("w"))
    assert data == (source / "d_w_compressed.bin").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.integers(1, 4), st.integers(1, 8).map(lambda n: 4 * n)), st.binary(max_size=12))
def test_of_any_bytes_those_that_come_in_go_out_the_same(tmp_path: Path, elements: int, data: bytes) -> None:
    """Nothing is read that the authors' code does not write."""
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / "d_w_compressed.bin").write_bytes(data)
    try:
        file = convert(tmp_path / "in", {"w": np.zeros(elements, np.float32)}, knob=0.5)
    except tsw.CheckpointError:
        return
    with tsw.open(file) as opened:
        assert to_bytes(authors_bits(opened.switch("w").sign())) == data


@pytest.mark.parametrize("density", [0.003, 0.4, 1.0])
def test_tensors_of_several_chunks(tmp_path: Path, density: float) -> None:
    """Chunks, blocks of the walk and bytes end at different places. The writer is a slow one but for its last step."""
    shape = (CHUNK // 1024 + 1, 2060)
    signs = random_signs(shape, density, 4)
    groups = signs.reshape(-1, 4)
    marked = groups[groups.any(axis=1)]
    text = "".join(
        "".join("01"[bool(s)] for s in group) + "".join("01"[s > 0] for s in group if s) for group in marked.tolist()
    )
    text = "".join("01"[bit] for bit in groups.any(axis=1).tolist()) + text
    text += "0" * (-len(text) % 8)
    source = tmp_path / "in"
    source.mkdir()
    (source / "d_w_compressed.bin").write_bytes(int(text, 2).to_bytes(len(text) // 8, "big"))
    file = convert(source, {"w": np.zeros(shape, np.float16)}, knob=1.0, profile="mapped", threads=1)
    with tsw.open(file) as opened:
        assert np.array_equal(opened.switch("w").sign(), signs)
    assert contents(exported(file, "d")) == contents(source)


def test_chunks_in_any_order(tmp_path: Path) -> None:
    signs = random_signs((3 * CHUNK,), 0.1, 5)
    tsw.build(
        {"w": np.zeros(signs.shape, np.float16)},
        tmp_path / "x.tsw",
        [tsw.GivenTask("d", {"w": tsw.GivenSwitch.of_signs(signs, 1.0)})],
    )
    path = exported(tmp_path / "x.tsw", "d") / "d_w_compressed.bin"
    spec = ArrayCheckpoint({"w": np.zeros(signs.shape, np.float16)}).specs["w"]
    stream = importer.Stream(path, spec, "w")
    for number in (1, 0, 2, 2, 0, 1):
        positions, negative = stream.chunk(number)
        part = signs[number * CHUNK : (number + 1) * CHUNK]
        assert np.array_equal(positions, np.flatnonzero(part))
        assert np.array_equal(negative, part[positions] < 0)


# Names


def test_all_datasets_or_the_one_that_is_named(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", "mnist", SIGNS)
    authors_folder(source, "sun_397", {"half": SIGNS["half"]})
    (source / "scaling_factor_dict.pt").write_bytes(b"of another task")
    with tsw.open(convert(source, knob=1.0)) as opened:
        assert opened.tasks == ["mnist", "sun_397"]
        assert opened.keys("sun_397") == ["half"]
    with tsw.open(convert(source, knob=1.0, task="sun_397")) as opened:
        assert (opened.tasks, opened.keys()) == (["sun_397"], ["half"])
    with pytest.raises(tsw.UnknownNameError, match="no dataset named 'sun397' among 2; did you mean 'sun_397'"):
        convert(source, knob=1.0, task="sun397")
    with pytest.raises(tsw.OptionError, match="is of one task, found several datasets; add --task"):
        convert(source, expert=ArrayCheckpoint(BASE))
    for task in (None, "sun_397"):  # whose scales they are, nobody knows
        with pytest.raises(tsw.OptionError, match=r"expected knobs.*is of one of several datasets"):
            convert(source, task=task)


def test_names_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    base = {"weight": np.zeros(4, np.float32), "proj_weight": np.zeros(4, np.float32)}
    one = np.ones(4, np.int8)
    source = authors_folder(tmp_path / "in", "d", {"proj_weight": one})
    with pytest.raises(tsw.OptionError, match=r"found 'proj_weight' of 'd' or 'weight' of 'd_proj'; add --task"):
        convert(source, base, knob=1.0)
    with tsw.open(convert(source, base, knob=1.0, task="d_proj")) as opened:
        assert opened.keys() == ["weight"]
    with tsw.open(convert(authors_folder(source, "d", {"weight": one}), base, knob=1.0)) as opened:
        assert (opened.tasks, opened.keys()) == (["d"], ["proj_weight", "weight"])


def test_unknown_names_show_near_ones(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", "d", {"enc.in_proj.weight": SIGNS["half"]})
    for task in (None, "d"):
        with pytest.raises(tsw.UnknownNameError, match=r"'enc\.in_proj\.weight'.*'enc\.in_proj_weight'"):
            convert(source, knob=1.0, task=task)


def test_tied_tensors(tmp_path: Path) -> None:
    base = {"a": np.zeros((2, 4), np.float32)}
    base["b"] = base["a"]
    source = authors_folder(tmp_path / "in", "d", {"a": np.ones((2, 4)), "b": np.ones((2, 4))})
    with tsw.open(convert(source, base, knob=1.0)) as opened:
        assert opened.keys() == ["a"]
    authors_folder(source, "d", {"b": -np.ones((2, 4))})
    with pytest.raises(tsw.CheckpointError, match="both are one tied tensor of the base"):
        convert(source, base, knob=1.0)


# Knobs


def test_knobs_of_the_expert_follow_the_authors_rule(tmp_path: Path) -> None:
    expert = tuned(BASE, SIGNS)
    source = authors_folder(tmp_path / "in", "d", {**SIGNS, "scale": np.zeros(3, np.int8)})
    with tsw.open(convert(source, expert=ArrayCheckpoint(expert))) as opened:
        assert opened.recipe()["knobs_from"] == "expert"
        for name in ("enc.in_proj_weight", "enc.bias"):
            assert opened.switch(name).knob == pytest.approx(
                authors_knob(BASE[name], expert[name], SIGNS[name]), rel=1e-6
            )
        half = opened.switch("half").knob
        assert half == np.float16(half)
        assert half == pytest.approx(authors_knob(BASE["half"], expert["half"], SIGNS["half"]), rel=2e-3)
        assert opened.switch("scale").knob == 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_packed_by_the_same_rule_and_imported_again_is_the_same(tmp_path: Path, kind: torch.dtype) -> None:
    torch.manual_seed(3)
    base = {"w": torch.randn(64, 48).to(kind), "v": torch.randn(256).to(kind)}
    expert = {name: (tensor + 0.02 * torch.randn_like(tensor)).to(kind) for name, tensor in base.items()}
    torch.save(base, tmp_path / "base.pt")
    torch.save(expert, tmp_path / "expert.pt")
    packed = tsw.pack(base, expert, tmp_path / "x.tsw", task="d", preset="paper", discard=0.6)
    source = exported(tmp_path / "x.tsw", "d")
    with borrow_checkpoint(expert) as e, borrow_checkpoint(base) as b:
        again = importer.convert(source, b, tmp_path / "y.tsw", ImportOptions(expert=e))
    assert again.content_id == packed.content_id


def test_scales_of_torch_beside_the_files_or_named(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", "d", SIGNS)
    scales = {name: torch.tensor(knob, dtype=torch.bfloat16) for name, knob in KNOBS.items()}
    torch.save({**scales, "half": torch.tensor([2.0], dtype=torch.float64)}, source / "scaling_factor_dict.pt")
    for options in ({}, {"scales": source / "scaling_factor_dict.pt"}):
        with tsw.open(convert(source, **options)) as opened:
            assert opened.switch("half").knob == 2
            assert opened.switch("enc.bias").knob == scales["enc.bias"].item()


def broken_scales(folder: Path, text: str) -> dict[str, Any]:
    (folder / "k.json").write_text(text)
    return {"scales": folder / "k.json"}


def torch_scales(folder: Path, value: Any) -> dict[str, Any]:
    torch.save({"half": value}, folder / "k.pt")
    return {"scales": folder / "k.pt"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda _: {}, "expected knobs, which these files do not have, found none; add --expert"),
        (lambda _: {"knob": float("nan")}, "finite in f32, found nan"),
        (
            lambda _: {"knob": 1.0, "expert": ArrayCheckpoint(BASE)},
            "one origin of the knobs, found --expert and --knob",
        ),
        (lambda f: broken_scales(f, "[1]"), "JSON object of name to finite number, found a list"),
        (lambda f: broken_scales(f, "{"), "found something else"),
        (lambda f: broken_scales(f, '{"half": "1"}'), "found '1' under 'half'"),
        (lambda f: broken_scales(f, '{"half": 1e99}'), r"found '1e\+99' under 'half'"),
        (lambda f: broken_scales(f, '{"half": 1' + "0" * 400 + "}"), "under 'half'"),
        (lambda f: broken_scales(f, '{"half": true}'), "found 'True' under 'half'"),
        (lambda f: broken_scales(f, '{"halve": 1}'), "no scale named 'half' among 1; did you mean 'halve'"),
        (lambda f: {"scales": f / "none.json"}, "cannot be read"),
        (lambda f: torch_scales(f, torch.ones(2)), r"one finite number under 'half', found F32\[2\]"),
        (lambda f: torch_scales(f, torch.tensor(1)), r"found I64\[\]"),
        (lambda f: torch_scales(f, torch.tensor(float("nan"))), "found nan"),
        (lambda f: torch_scales(f, [1.0]), "found list under 'half'"),
        (lambda _: {"expert": ArrayCheckpoint({"halb": BASE["half"]})}, "no tensor named 'half' among 1"),
        (lambda _: {"expert": ArrayCheckpoint({"half": BASE["scale"]})}, r"shape \[4, 4\], found F32\[3\]"),
        (lambda _: {"expert": ArrayCheckpoint({"half": np.ones((4, 4), int)})}, r"found I64\[4, 4\]"),
        (lambda _: {"expert": ArrayCheckpoint(BASE)}, "found others in . of . active elements; give the base and"),
    ],
)
def test_knobs_that_are_not_there_or_make_no_sense(
    tmp_path: Path, options: Callable[[Path], dict[str, Any]], message: str
) -> None:
    source = authors_folder(tmp_path / "in", "d", {"half": SIGNS["half"]})
    with pytest.raises(tsw.TswError, match=message):
        convert(source, **options(tmp_path))
    assert not (tmp_path / "x.tsw").exists()


# Streams that are wrong


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("enc.bias", b"", "expected 1 to 3 bytes, found 0"),
        ("enc.bias", bytes(4), "expected 1 to 3 bytes, found 4"),
        ("enc.bias", bytes(2), "expected 1 bytes, as its groups take, found 2"),
        ("enc.bias", b"\x01", "expected zeros after the last group"),
        ("enc.bias", b"\x40\x00", "active elements in every marked group, found none in group 1"),
        ("enc.bias", b"\x80", "active elements in every marked group, found none in group 0"),
        ("enc.bias", b"\xff", "bits for all marked groups, found the end of the file"),
        ("enc.bias", b"\xff\xff", "bits for all marked groups, found the end of the file"),
        ("odd", b"\x00", "1 to 4 elements or a multiple of 4, found 6, for which the authors' code writes no file"),
        ("ids", b"\x00", "expected a float tensor"),
    ],
)
def test_streams_that_their_code_does_not_write(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    source = authors_folder(tmp_path / "in", "d", {})
    (source / f"d_{name}_compressed.bin").write_bytes(data)
    with pytest.raises(tsw.TswError, match=message) as caught:
        convert(source, knob=1.0)
    assert name in str(caught.value)
    assert not (tmp_path / "x.tsw").exists()


def test_sources_and_outputs_that_make_no_sense(tmp_path: Path) -> None:
    source = authors_folder(tmp_path / "in", "d", {"half": SIGNS["half"]})
    reader = ArrayCheckpoint(BASE)
    inside = source / "d_half_compressed.bin"
    with pytest.raises(tsw.OptionError, match="cannot be listed"):
        importer.convert(inside, reader, tmp_path / "x.tsw", ImportOptions(knob=1.0))
    with pytest.raises(tsw.OutputError, match="one of the inputs"):
        importer.convert(source, reader, inside, ImportOptions(knob=1.0))
    with pytest.raises(tsw.OptionError, match="found none; check the path"):
        importer.convert(tmp_path, reader, tmp_path / "x.tsw", ImportOptions(knob=1.0))


# Export of what did not come from such a folder


def refused(folder: Path, task: tsw.GivenTask) -> str:
    tsw.build(BASE, folder / "x.tsw", [task])
    with pytest.raises(tsw.OptionError) as caught:
        exported(folder / "x.tsw", task.name)
    assert [path.name for path in folder.iterdir()] == ["x.tsw"]
    return str(caught.value)


def test_what_such_a_folder_cannot_hold(tmp_path: Path) -> None:
    def ones(name: str) -> tsw.GivenSwitch:
        return tsw.GivenSwitch.of_signs(np.ones(BASE[name].shape), 1.0)

    found = refused(tmp_path, tsw.GivenTask("t", {"odd": ones("odd"), "scalar": ones("scalar")}))
    assert (
        "tensor 'odd': expected 1 to 4 elements or a multiple of 4, found 6, at which the authors' code fails" in found
    )
    assert "first of 2 such tensors" in found
    assert "found a scalar" in refused(tmp_path, tsw.GivenTask("t", {"scalar": ones("scalar")}))
    whole = ArrayCheckpoint({"half": BASE["half"] + 1})
    assert "stored whole" in refused(tmp_path, tsw.GivenTask("t", {}, {"half": (whole, "half")}))
    rows = tsw.GivenSwitch(1.0, ones("half").chunk, np.ones(4, np.float32))
    assert "factors of rows or columns" in refused(tmp_path, tsw.GivenTask("t", {"half": rows}))
    for name in ("a/b", "n" * 250):
        assert "can be one of a file" in refused(tmp_path, tsw.GivenTask(name, {"half": ones("half")}))


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = convert(authors_folder(tmp_path / "in", "d", SIGNS), knob=1.0)
    monkeypatch.setattr(exporter, "_stream", lambda switch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exported(file, "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.tsw"]
