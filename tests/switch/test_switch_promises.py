"""Same bytes however it is done, nothing lost when it fails, and options that are refused with what to do."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from switch_models import Arrays, files_in, load, model, save, tuned

import tswitch_format as tsw


def everything() -> tuple[Arrays, Arrays]:
    """A pair with switches, ties, dense, added and removed tensors."""
    base = {**model(), "gone": np.ones(4, np.float32), "a.head": np.ones((2, 2), np.float32)}
    base["tied"] = base["layer.weight"]
    expert = {**tuned(base), "new.b": np.arange(3), "new.a": np.arange(5, dtype=np.float32)}
    expert["tied"] = expert["layer.weight"]
    expert["a.head"] = np.ones((3, 2), np.float32)
    del expert["gone"]
    return base, expert


# --- P8: deterministic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["archive", "mapped"])
@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
def test_the_bytes_depend_on_neither_order_nor_threads(tmp_path: Path, select: str, profile: str) -> None:
    base, expert = everything()
    packed, restored = set(), set()
    for number, threads in enumerate((1, 2, 3, 1, 3)):
        backwards = number >= 3
        sources = [dict(reversed(source.items())) if backwards else source for source in (base, expert)]
        options: dict[str, Any] = {"select": select, "profile": profile, "density": 0.2, "on_mismatch": "dense"}
        tsw.pack(*sources, tmp_path / "x.tsw", threads=threads, **options)
        packed.add((tmp_path / "x.tsw").read_bytes())
        tsw.restore(sources[0], tmp_path / "x.tsw", tmp_path / "out.safetensors", threads=threads)
        restored.add((tmp_path / "out.safetensors").read_bytes())
    assert len(packed) == 1
    assert len(restored) == 1


def test_the_bytes_do_not_depend_on_the_order_in_a_file(tmp_path: Path) -> None:
    base, expert = model(), tuned(model())
    made = set()
    for number in range(2):
        sources = [dict(reversed(s.items())) if number else s for s in (base, expert)]
        files = [save(tmp_path / f"{i}.safetensors", source) for i, source in enumerate(sources)]
        tsw.pack(*files, tmp_path / "x.tsw")
        made.add((tmp_path / "x.tsw").read_bytes())
    assert len(made) == 1


def test_the_bytes_do_not_depend_on_the_seed_of_hashes(tmp_path: Path) -> None:
    program = "\n".join(
        [
            "import sys; sys.path.insert(0, sys.argv[1])",
            "from test_switch_promises import everything; import tswitch_format as tsw",
            "tsw.pack(*everything(), sys.argv[2] + '/x.tsw', on_mismatch='dense', metadata={'b': '1', 'a': '2'})",
            "tsw.restore(everything()[0], sys.argv[2] + '/x.tsw', sys.argv[2] + '/out.safetensors')",
        ]
    )
    digests = set()
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        digests.add(hashlib.sha256(b"".join(files_in(tmp_path)[n] for n in ("x.tsw", "out.safetensors"))).digest())
    assert len(digests) == 1


def test_the_content_id_is_the_same_in_both_profiles(tmp_path: Path) -> None:
    base, expert = everything()
    found = set()
    for profile in ("archive", "mapped"):
        result = tsw.pack(
            base, expert, tmp_path / f"{profile}.tsw", profile=profile, on_mismatch="dense", base_id=profile
        )
        found.add(result.content_id)
        assert tsw.validate(tmp_path / f"{profile}.tsw").ok
    assert len(found) == 1


# --- P4: nothing lost -----------------------------------------------------------------------------------------


class StopError(Exception):
    """Raised by a progress callback."""


def stop(done: int, total: int) -> None:
    raise StopError


def fails_from(call: Callable[..., Any], number: int) -> Callable[..., Any]:
    """`call`, with a disk that is full from the call of that number on."""
    calls = itertools.count(1)

    def failing(*arguments: Any) -> Any:
        if next(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments)

    return failing


def pack_with_nan(base: Path, expert: Path, folder: Path) -> None:
    broken = load(expert)
    broken["wide"] = broken["wide"].copy()
    broken["wide"][0, 0] = np.nan
    tsw.pack(base, broken, folder / "x.tsw")


def pack_stopped(base: Path, expert: Path, folder: Path) -> None:
    tsw.pack(base, expert, folder / "x.tsw", progress=stop)


def restore_stopped(base: Path, expert: Path, folder: Path) -> None:
    tsw.restore(base, folder / "x.tsw", folder / "out.safetensors", progress=stop)


def restore_damaged(base: Path, expert: Path, folder: Path) -> None:
    with tsw.open(folder / "damaged.tsw"):  # opens: the damage lies in a segment
        pass
    tsw.restore(base, folder / "damaged.tsw", folder / "out.safetensors")


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (pack_with_nan, tsw.NonFiniteError),
        (pack_stopped, StopError),
        (restore_stopped, StopError),
        (restore_damaged, tsw.FormatError),
    ],
)
@pytest.mark.parametrize("old", [True, False])
def test_failing_leaves_the_old_output_and_nothing_else(
    tmp_path: Path, act: Callable[[Path, Path, Path], None], error: type[Exception], old: bool
) -> None:
    base, expert = save(tmp_path / "b.safetensors", model()), save(tmp_path / "e.safetensors", tuned(model()))
    tsw.pack(base, expert, tmp_path / "x.tsw")
    damaged = bytearray((tmp_path / "x.tsw").read_bytes())
    damaged[70] ^= 255
    (tmp_path / "damaged.tsw").write_bytes(damaged)
    if old:
        (tmp_path / "out.safetensors").write_bytes(b"old")
    elif act is not restore_damaged and act is not restore_stopped:
        (tmp_path / "x.tsw").unlink()
    before = files_in(tmp_path)
    with pytest.raises(error):
        act(base, expert, tmp_path)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("where", "call", "number"),
    [
        (os, "pwrite", 1),
        (os, "pwrite", 2),
        (os, "fsync", 1),
        (Path, "replace", 1),
    ],
)
def test_a_full_disk_leaves_the_old_output_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, call: str, number: int
) -> None:
    base, expert = save(tmp_path / "b.safetensors", model()), save(tmp_path / "e.safetensors", tuned(model()))
    tsw.pack(base, expert, tmp_path / "x.tsw")
    (tmp_path / "out.safetensors").write_bytes(b"old")
    before = files_in(tmp_path)
    real = getattr(where, call)
    monkeypatch.setattr(where, call, fails_from(real, number))
    with pytest.raises(tsw.OutputError, match=r"x\.tsw.*No space left.*what was there before is unchanged"):
        tsw.pack(base, model(), tmp_path / "x.tsw")
    monkeypatch.setattr(where, call, fails_from(real, number))
    with pytest.raises(tsw.OutputError, match=r"out\.safetensors.*No space left"):
        tsw.restore(base, tmp_path / "x.tsw", tmp_path / "out.safetensors", threads=1)
    monkeypatch.undo()
    assert files_in(tmp_path) == before


def test_the_output_must_not_be_an_input(tmp_path: Path) -> None:
    base, expert = save(tmp_path / "b.safetensors", model()), save(tmp_path / "e.safetensors", tuned(model()))
    score = save(tmp_path / "s.safetensors", {n: np.abs(a) for n, a in model().items() if a.dtype.kind == "f"})
    tsw.pack(base, expert, tmp_path / "x.tsw")
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "hard").hardlink_to(expert)
    before = files_in(tmp_path)
    for out in (base, expert, score, tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(tsw.OutputError, match="the output is one of the inputs"):
            tsw.pack(base, expert, out, score=score)
    for out in (base, tmp_path / "x.tsw", tmp_path / "link"):
        with pytest.raises(tsw.OutputError, match="the output is one of the inputs"):
            tsw.restore(base, tmp_path / "x.tsw", out)
    for act in (
        lambda: tsw.bundle([tmp_path / "x.tsw"], tmp_path / "x.tsw"),
        lambda: tsw.extract(tmp_path / "x.tsw", "task", tmp_path / "x.tsw"),
        lambda: tsw.repack(tmp_path / "x.tsw", tmp_path / "x.tsw", profile="mapped"),
    ):
        with pytest.raises(tsw.OutputError, match="the output is one of the inputs"):
            act()
    assert files_in(tmp_path) == before


def test_an_output_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(tsw.OutputError, match="does not exist; make it first"):
        tsw.pack(model(), tuned(model()), tmp_path / "no" / "x.tsw")


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0}, r"density: expected a number above 0 and at most 1, found 0"),
        ({"density": 1.5}, r"density: expected .* found 1\.5"),
        ({"density": float("nan")}, r"density: expected .* found nan"),
        ({"density": "0.1"}, r"density: expected .* found '0\.1'"),
        ({"discard": 1}, r"discard: expected a number at least 0 and below 1, found 1"),
        ({"discard": -0.1}, r"discard: expected .* found -0\.1"),
        ({"target_size": 0}, r"target-size: expected a percentage above 0 and at most 100, found 0"),
        ({"target_size": 101}, r"target-size: expected .* found 101"),
        ({"density": 0.1, "discard": 0.1}, r"density, discard and target-size exclude each other"),
        ({"select": "best"}, r"select: expected spectral, tensor, tensor-signed, global, found 'best'"),
        ({"knob": "max"}, r"knob: expected projection, norm, rms, mean, found 'max'"),
        ({"knob_per": "column"}, r"knob-per: expected tensor, row, row-col, found 'column'"),
        ({"knob_dtype": "f64"}, r"knob-dtype: expected u4, u8, f16, f32, found 'f64'"),
        ({"knob": "rms", "knob_per": "row-col"}, r"knob-per row-col .* found knob rms; use knob-per row"),
        ({"preset": "theirs"}, r"preset: expected paper, found 'theirs'"),
        ({"preset": "paper", "density": 0.1}, r"preset paper fixes selection and knob"),
        ({"preset": "paper", "knob": "norm"}, r"preset paper fixes selection and knob"),
        ({"profile": "small"}, r"profile: expected archive, mapped, found 'small'"),
        ({"on_mismatch": "ignore"}, r"on-mismatch: expected error, dense, found 'ignore'"),
        ({"nonfinite": "zero"}, r"nonfinite: expected error, dense, found 'zero'"),
        ({"dense": "head.*"}, r"dense: expected a list of patterns, found the string 'head\.\*'"),
        ({"threads": 0}, r"threads: expected a number from 1 up, found 0"),
    ],
)
def test_options_are_refused_with_what_was_expected_and_found(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(tsw.OptionError, match=message):
        tsw.pack(model(), tuned(model()), tmp_path / "x.tsw", **options)
    assert not files_in(tmp_path)


def test_sources_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(tsw.CheckpointError, match="no such file"):
        tsw.pack(tmp_path / "none.safetensors", model(), tmp_path / "x.tsw")
    with pytest.raises(tsw.CheckpointError, match="found int"):
        tsw.pack(model(), 7, tmp_path / "x.tsw")


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tsw.pack(model(), tuned(model()), tmp_path / "x.tsw", progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    seen.clear()
    tsw.restore(model(), tmp_path / "x.tsw", tmp_path / "o.safetensors", progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] == sum(array.nbytes for array in model().values())
