"""BitDelta's diff.pt: what is in it comes in, goes out again, and restores to base + coefficient * sign."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importers_slow import bitdelta_mask, random_signs

import tswitch_format as tsw
from tswitch_format.atomic import AtomicFile
from tswitch_format.checkpoint import DTYPE_BY_NAME, ArrayCheckpoint, open_checkpoint
from tswitch_tools.exporters import bitdelta as exporter
from tswitch_tools.importers import ImportOptions
from tswitch_tools.importers import bitdelta as importer

Tensors = dict[str, torch.Tensor]

RNG = np.random.default_rng(5)
BASE = {
    "l.0.q_proj.weight": RNG.standard_normal((24, 64)).astype(np.float32),
    "l.0.up_proj.weight": RNG.standard_normal((5, 32)).astype(np.float16),
    "l.0.narrow.weight": RNG.standard_normal((4, 33)).astype(np.float32),
    "l.0.norm.weight": np.ones(24, np.float32),
    "l.0.mask": np.zeros(3, np.float32),
    "head.weight": RNG.standard_normal((3, 24)).astype(np.float32),
    "same": np.arange(4),
}
SIGNS = {name: random_signs(BASE[f"{name}.weight"].shape, 1, 1) for name in ("l.0.q_proj", "l.0.up_proj")}


def good() -> Tensors:
    """A diff of BASE, with a coefficient of each sign, and tensors of other types and names."""
    return {
        "l.0.q_proj.mask": bitdelta_mask(SIGNS["l.0.q_proj"]),
        "l.0.q_proj.coeff": torch.nn.Parameter(torch.tensor(0.0123)),
        "l.0.up_proj.mask": bitdelta_mask(SIGNS["l.0.up_proj"]).T.contiguous().T,
        "l.0.up_proj.coeff": torch.tensor(-0.5),
        "l.0.norm.weight": torch.full((24,), 2.0),
        "l.0.mask": torch.ones(3),  # the base's own
        "head.weight": torch.randn(3, 24).bfloat16(),
        "new.scalar": torch.tensor(3, dtype=torch.int64),
        "new.empty": torch.empty(0, 2),
        "new.bool": torch.tensor([True, False]),
    }


def convert(diff: Any, folder: Path, base: Any = None, **options: Any) -> Path:
    """Save and import."""
    torch.save(diff, folder / "diff.pt")
    reader = ArrayCheckpoint(BASE if base is None else base)
    importer.convert(folder / "diff.pt", reader, folder / "x.tsw", ImportOptions(**options))
    return folder / "x.tsw"


def exported(file: Path) -> Tensors:
    with tsw.open(file) as opened:
        remarks = exporter.convert(opened, opened.tasks[0], file.parent / "out.pt")
    assert len(remarks) == 2
    loaded: Tensors = torch.load(file.parent / "out.pt", weights_only=True)
    return loaded


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def test_round_trip_and_restored_expert(tmp_path: Path) -> None:
    diff = good()
    file = convert({**diff, "same": torch.arange(4)}, tmp_path, task="chat", base_id="org/base", threads=2)
    assert_same(exported(file), diff)  # without what equals the base
    assert tsw.validate(file, level="full").ok
    with tsw.open(file) as opened:
        assert (opened.tasks, opened.base.id) == (["chat"], "org/base")
        kinds = {name: opened.switch(name).kind for name in opened.keys("chat")}
        assert kinds == {
            **dict.fromkeys(BASE.keys() - {"l.0.narrow.weight", "same"}, "dense"),
            **dict.fromkeys(("new.scalar", "new.empty", "new.bool"), "dense"),
            **dict.fromkeys((f"{name}.weight" for name in SIGNS), "ternary"),
        }
        for name, signs in SIGNS.items():
            assert np.array_equal(opened.switch(f"{name}.weight").sign(), signs)
    tsw.restore(BASE, file, tmp_path / "expert.safetensors")
    reader = open_checkpoint(tmp_path / "expert.safetensors")
    for name, coefficient in (("l.0.q_proj", 0.0123), ("l.0.up_proj", -0.5)):
        base = BASE[f"{name}.weight"]
        wanted = (base.astype(np.float32) + np.float32(coefficient) * SIGNS[name]).astype(base.dtype)
        raw = np.empty(wanted.nbytes, np.uint8)
        reader.read_into(f"{name}.weight", 0, raw)
        assert np.array_equal(raw.view(base.dtype).reshape(base.shape), wanted)
    reader.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_any_bits_come_back(tmp_path: Path, rows: int, words: int, seed: int, coefficient: float) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).integers(-(2**31), 2**31, (words, rows)).astype(np.int32))
    diff = {"m.mask": mask, "m.coeff": torch.tensor(coefficient)}
    file = convert(diff, tmp_path, {"m.weight": np.zeros((rows, 32 * words), np.float32)})
    assert_same(exported(file), diff)
    with tsw.open(file) as opened:
        sign = opened.switch("m.weight").sign()
    assert torch.equal(bitdelta_mask(sign), mask)


@pytest.mark.parametrize("shape", [(1030, 1056), (3, 1 << 19), (2, (1 << 20) + 32)])
def test_matrices_of_several_chunks(tmp_path: Path, shape: tuple[int, int]) -> None:
    words = RNG.integers(-(2**31), 2**31, (shape[1] // 32, shape[0])).astype(np.int32)
    diff = {"m.mask": torch.from_numpy(words), "m.coeff": torch.tensor(1.0)}
    file = convert(diff, tmp_path, {"m.weight": np.zeros(shape, np.float16)}, profile="mapped")
    assert_same(exported(file), diff)
    bits = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), bitorder="little").reshape(shape)
    with tsw.open(file) as opened:
        assert np.array_equal(opened.switch("m.weight").sign() > 0, bits == 1)


def test_tied_tensors(tmp_path: Path) -> None:
    shared = np.zeros((2, 3), np.float32)
    base = {"m.weight": np.zeros((2, 32), np.float32), "a": shared, "b": shared}
    diff = {"m.mask": torch.zeros(1, 2, dtype=torch.int32), "m.coeff": torch.tensor(1.0)}
    tied = torch.ones(2, 3)
    file = convert({**diff, "a": tied, "b": tied}, tmp_path, base)
    with tsw.open(file) as opened:
        assert sorted(opened.keys()) == ["a", "m.weight"]
    convert({**diff, "a": tied, "b": tied.clone()}, tmp_path, base)
    with pytest.raises(tsw.CheckpointError, match="one tied tensor of the base, found another"):
        convert({**diff, "a": tied, "b": torch.zeros(2, 3)}, tmp_path, base)


MASK = torch.zeros(2, 24, dtype=torch.int32)
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("diff", "error", "message"),
    [
        ({"l.0.q_proj.mask": MASK}, tsw.CheckpointError, "expected 'l.0.q_proj.coeff' beside 'l.0.q_proj.mask'"),
        ({"l.0.q_proj.coeff": ONE}, tsw.CheckpointError, "expected 'l.0.q_proj.mask' beside 'l.0.q_proj.coeff'"),
        ({"head.weight": ONE}, tsw.CheckpointError, "found none; if it is a checkpoint, use 'tsw pack'"),
        (
            {"l.0.p_proj.mask": MASK, "l.0.p_proj.coeff": ONE},
            tsw.UnknownNameError,
            "did you mean .*'l.0.q_proj.weight'",
        ),
        (
            {"l.0.q_proj.mask": MASK.long(), "l.0.q_proj.coeff": ONE},
            tsw.CheckpointError,
            r"expected I32\[2, 24\] for 'l.0.q_proj.weight' of \[24, 64\], found I64\[2, 24\]; give the base",
        ),
        ({"l.0.q_proj.mask": MASK.T, "l.0.q_proj.coeff": ONE}, tsw.CheckpointError, r"found I32\[24, 2\]"),
        ({"l.0.narrow.mask": MASK, "l.0.narrow.coeff": ONE}, tsw.CheckpointError, "a multiple of 32 columns"),
        ({"l.0.norm.mask": MASK, "l.0.norm.coeff": ONE}, tsw.CheckpointError, "a multiple of 32 columns"),
        ({"l.0.q_proj.mask": MASK, "l.0.q_proj.coeff": ONE.half()}, tsw.CheckpointError, r"one finite number.*F16\[\]"),
        ({"l.0.q_proj.mask": MASK, "l.0.q_proj.coeff": torch.ones(2)}, tsw.CheckpointError, r"F32\[2\]"),
        ({"l.0.q_proj.mask": MASK, "l.0.q_proj.coeff": ONE * torch.inf}, tsw.CheckpointError, "found inf"),
        (
            {"l.0.q_proj.mask": MASK, "l.0.q_proj.coeff": ONE, "l.0.q_proj.weight": torch.ones(24, 64)},
            tsw.OptionError,
            "given twice",
        ),
        ([1], tsw.CheckpointError, "expected a dict of name to tensor"),
        ({"l.0.q_proj.mask": MASK, "l.0.q_proj.coeff": 1.0}, tsw.CheckpointError, "found float under"),
    ],
)
def test_what_is_refused(tmp_path: Path, diff: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(diff, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diff.pt"]


def test_options_and_sources_that_make_no_sense(tmp_path: Path) -> None:
    for options in ({"knob": 0.0}, {"scales": tmp_path}, {"expert": ArrayCheckpoint(BASE)}):
        with pytest.raises(tsw.OptionError, match="coefficients of their own"):
            convert(good(), tmp_path, **options)
    reader = ArrayCheckpoint(BASE)
    with pytest.raises(tsw.OptionError, match="found a folder or none"):
        importer.convert(tmp_path, reader, tmp_path / "x.tsw", ImportOptions())
    with pytest.raises(tsw.OutputError, match="one of the inputs"):
        importer.convert(tmp_path / "diff.pt", reader, tmp_path / "diff.pt", ImportOptions())
    with pytest.raises(tsw.OptionError, match="profile"):
        convert(good(), tmp_path, profile="tiny")
    (tmp_path / "diff.pt").write_bytes((tmp_path / "diff.pt").read_bytes()[:500])
    with pytest.raises(tsw.CheckpointError, match=r"expected a file of tensors by torch\.save"):
        importer.convert(tmp_path / "diff.pt", reader, tmp_path / "x.tsw", ImportOptions())


# Export of what did not come from such a file


def built(folder: Path, switches: dict[str, tsw.GivenSwitch], dense: dict[str, np.ndarray] | None = None) -> Path:
    whole = ArrayCheckpoint(dense or {})
    task = tsw.GivenTask("t", switches, {name: (whole, name) for name in whole.specs})
    tsw.build(BASE, folder / "x.tsw", [task])
    return folder / "x.tsw"


FULL = tsw.GivenSwitch.of_signs(np.ones((24, 64)), 1.0)


@pytest.mark.parametrize(
    ("name", "switch", "message"),
    [
        ("l.0.q_proj.weight", tsw.GivenSwitch.of_signs(np.eye(24, 64), 1.0), "found 24 of 1536; pack with --density 1"),
        ("l.0.q_proj.weight", tsw.GivenSwitch(1.0, FULL.chunk, np.ones(24, np.float32)), "found factors of rows"),
        ("l.0.q_proj.weight", tsw.GivenSwitch(1.0, FULL.chunk, None, np.ones(64, np.float32)), "found factors of rows"),
        (
            "l.0.narrow.weight",
            tsw.GivenSwitch.of_signs(np.ones((4, 33)), 1.0),
            r"found \[4, 33\]; pack it with --dense",
        ),
        ("l.0.norm.weight", tsw.GivenSwitch.of_signs(np.ones(24), 1.0), r"found \[24\]; pack it with --dense"),
        ("l.0.mask", tsw.GivenSwitch.of_signs(np.ones(3), 1.0), "named '{module}.weight', found another"),
    ],
)
def test_switches_that_such_a_file_cannot_hold(
    tmp_path: Path, name: str, switch: tsw.GivenSwitch, message: str
) -> None:
    file = built(tmp_path, {name: switch})
    with pytest.raises(tsw.OptionError, match=message) as caught:
        exported(file)
    assert f"tensor {name!r}" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tsw"]


def test_tensors_that_would_be_read_as_something_else(tmp_path: Path) -> None:
    for name in ("l.0.q_proj.mask", "other.coeff"):
        file = built(tmp_path, {"l.0.q_proj.weight": FULL}, {name: np.ones(1)})
        with pytest.raises(tsw.OptionError, match=f"{name}|no tensor of its module"):
            exported(file)


def test_removed_tensors_and_other_types_are_refused(tmp_path: Path) -> None:
    expert = {name: array for name, array in BASE.items() if name != "same"}
    tsw.pack(BASE, expert, tmp_path / "x.tsw", on_mismatch="dense")
    with pytest.raises(tsw.OptionError, match="tensor 'same': expected a tensor that the expert has"):
        exported(tmp_path / "x.tsw")
    wide = tsw.GivenSwitch(1.0, FULL.chunk, dtype=DTYPE_BY_NAME["F64"])
    file = built(tmp_path, {"l.0.q_proj.weight": wide})
    with pytest.raises(tsw.OptionError, match="the base's type F32, found F64"):
        exported(file)


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = convert(good(), tmp_path)

    def fail(self: AtomicFile, data: object) -> None:
        raise tsw.OutputError("no space")

    monkeypatch.setattr(AtomicFile, "write", fail)
    with pytest.raises(tsw.OutputError, match="no space"):
        exported(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diff.pt", "x.tsw"]


def test_accepts_looks_inside(tmp_path: Path) -> None:
    torch.save(good(), tmp_path / "any.name")
    torch.save(good(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a.weight": ONE}, tmp_path / "checkpoint.pt")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"x.mask x.coeff" * 100)
    accepted = {path.name for path in tmp_path.iterdir() if importer.accepts(path)}
    assert accepted == {"any.name", "old.pt"}
    assert not importer.accepts(tmp_path) and not importer.accepts(tmp_path / "none")
    importer.convert(tmp_path / "old.pt", ArrayCheckpoint(BASE), tmp_path / "x.tsw", ImportOptions())
    assert_same({**exported(tmp_path / "x.tsw"), "head.weight": ONE}, {**good(), "head.weight": ONE})
