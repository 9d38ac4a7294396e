"""`tsw import` and `tsw export`, and how a format is found."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importers_slow import authors_folder, bitdelta_mask, random_signs
from safetensors.numpy import load_file, save_file

import tswitch_format as tsw
from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_tools import exporters, importers
from tswitch_tools.cli import tsw as command
from tswitch_tools.text import size

Run = Callable[..., Result]

BASE = {"q.weight": np.ones((4, 32), np.float32), "b": np.zeros(8, np.float32)}
SIGNS = random_signs((4, 32), 1, 1)


@pytest.fixture
def run() -> Run:
    """Run `tsw` in this process."""

    def call(*arguments: object) -> Result:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="tsw")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_file(BASE, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def diff(tmp_path: Path) -> Path:
    torch.save({"q.mask": bitdelta_mask(SIGNS), "q.coeff": torch.tensor(0.5), "b": torch.ones(8)}, tmp_path / "diff.pt")
    return tmp_path / "diff.pt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = authors_folder(tmp_path / "in", "math", {"q.weight": SIGNS})
    return authors_folder(source, "code", {"q.weight": -SIGNS})


def failed(result: Result, code: int) -> str:
    """The one line that a failure is."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("tsw: error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_bitdelta_in_and_out(run: Run, base: Path, diff: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "x.tsw", tmp_path / "out.pt"
    done = run("import", diff, "-o", file, "--base", base, "--task", "chat", "--base-id", "org/m@v1", "--threads", 1)
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout == f"{file}: {size(file.stat().st_size)}, from bitdelta (1 switches, 1 dense)\n"
    with tsw.open(file) as opened:
        assert (opened.tasks, opened.base.id, opened.base.revision, opened.profile) == (
            ["chat"],
            "org/m",
            "v1",
            "archive",
        )
    done = run("export", file, "-o", out, "--to", "bitdelta")
    assert done.exit_code == 0 and done.stdout == f"{out}: task chat as bitdelta\n"
    assert "base it is of (org/m@v1)" in done.stderr
    assert all(line.startswith("tsw: note: ") for line in done.stderr.splitlines())
    first, second = (torch.load(path, weights_only=True) for path in (diff, out))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    run("restore", base, file, "-o", tmp_path / "e.safetensors", "-q")
    assert np.array_equal(load_file(tmp_path / "e.safetensors")["q.weight"], 1 + np.float32(0.5) * SIGNS)


def test_authors_in_and_out(run: Run, base: Path, folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "x.tsw", tmp_path / "out"
    expert = {**BASE, "q.weight": BASE["q.weight"] + np.float32(0.5) * SIGNS}
    save_file(expert, tmp_path / "expert.safetensors")
    options = ("-o", file, "--base", base, "--profile", "mapped", "--quiet")
    assert run("import", folder, *options, "--knob", 2).output == ""
    with tsw.open(file) as opened:
        assert (opened.tasks, opened.profile) == (["code", "math"], "mapped")
    assert "it has 2 tasks: code, math; name one with --task" in failed(
        run("export", file, "-o", out, "--to", "tswitch-authors"), 2
    )
    assert "no task named 'maths'" in failed(
        run("export", file, "-o", out, "--to", "tswitch-authors", "--task", "maths"), 1
    )
    done = run("export", file, "-o", out, "--to", "tswitch-authors", "--task", "math", "-q")
    assert (done.exit_code, done.output) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["math_knobs.json", "math_q.weight_compressed.bin"]
    name = "math_q.weight_compressed.bin"
    assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((out / "math_knobs.json").read_text()) == {"q.weight": 2.0}
    done = run("import", folder, *options, "--task", "math", "--expert", tmp_path / "expert.safetensors")
    assert done.exit_code == 0, done.output
    run("restore", base, file, "-o", tmp_path / "e.safetensors", "-q")
    assert np.array_equal(load_file(tmp_path / "e.safetensors")["q.weight"], expert["q.weight"])
    done = run("import", folder, *options, "--task", "math", "--scales", out / "math_knobs.json")
    assert done.exit_code == 0, done.output
    assert "expected the file diff.pt" in failed(run("import", folder, *options, "--format", "bitdelta"), 2)


def test_lists(run: Run) -> None:
    for name, known in (("import", importers.formats()), ("export", exporters.formats())):
        done = run(name, "--list")
        assert done.exit_code == 0 and done.stderr == ""
        for module in known:
            assert f"{module.NAME} " in done.stdout and module.SUMMARY in done.stdout
    assert [i.NAME for i in importers.formats()] == [e.NAME for e in exporters.formats()]


def test_errors_are_one_line(run: Run, base: Path, diff: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.tsw"
    assert "found none; name it with --format" in failed(run("import", base, "-o", file, "--base", base), 2)
    assert "expected one of bitdelta, tswitch-authors" in failed(
        run("import", diff, "-o", file, "--base", base, "--format", "bit"), 2
    )
    for extra in ((), ("--format", "bitdelta")):
        assert "no such file" in failed(run("import", tmp_path / "none", "-o", file, "--base", base, *extra), 2)
    assert "no such file" in failed(run("import", diff, "-o", file, "--base", tmp_path / "none"), 1)
    assert "one of the inputs" in failed(run("import", diff, "-o", base, "--base", base), 1)
    assert "torch.save" in failed(run("import", base, "-o", file, "--base", base, "--format", "bitdelta"), 1)
    assert run("import", diff, "-o", file, "--base", base, "--base-id", "org/m@").exit_code == 2
    assert run("import", diff, "-o", file).exit_code == 2
    assert not file.exists()
    run("import", diff, "-o", file, "--base", base)
    assert "see 'tsw export --list'" in failed(run("export", file, "-o", tmp_path / "o", "--to", "bit"), 2)
    assert "one of the inputs" in failed(run("export", file, "-o", file, "--to", "bitdelta"), 1)
    assert "stored whole" in failed(run("export", file, "-o", tmp_path / "o", "--to", "tswitch-authors"), 2)
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    run("import", authors_folder(tmp_path / "in", "d", {"b": np.ones(8)}), "-o", file, "--base", base, "--knob", 1)
    assert "does not exist yet or is empty" in failed(run("export", file, "-o", full, "--to", "tswitch-authors"), 1)
    assert sorted(path.name for path in full.iterdir()) == ["x"]


@pytest.mark.parametrize("option", [["--experts", "a=x.pt"], ["--multi-task", "x.pt"], ["--ties"]])
def test_what_is_for_tall_masks_alone_is_refused(
    run: Run, base: Path, diff: Path, tmp_path: Path, option: list[str]
) -> None:
    message = failed(run("import", diff, "-o", tmp_path / "x.tsw", "--base", base, *option), 2)
    assert f"{option[0]}: it is for TALL masks" in message


def test_progress_counts_up_to_the_end(base: Path, diff: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    options = importers.ImportOptions(progress=lambda done, total: seen.append((done, total)))
    with borrow_checkpoint(base) as reader:
        importers.find(diff).convert(diff, reader, tmp_path / "x.tsw", options)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_the_command_line_loads_torch_only_for_files_that_need_it(base: Path, folder: Path, tmp_path: Path) -> None:
    code = """
import sys
from tswitch_tools.cli import tsw
tsw(sys.argv[1:], standalone_mode=False)
assert "torch" not in sys.modules
"""
    for arguments in (
        ["import", "--list"],
        ["import", folder, "-o", tmp_path / "x.tsw", "--base", base, "--knob", "1"],
        ["export", tmp_path / "x.tsw", "-o", tmp_path / "out", "--to", "tswitch-authors", "--task", "math"],
    ):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)


# Looking into files


def test_each_format_is_found(diff: Path, folder: Path) -> None:
    assert importers.find(diff).NAME == "bitdelta"
    assert importers.find(folder).NAME == "tswitch-authors"


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"q.mask q.coeff " + data)
    return out.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 3),
)
def test_looking_raises_nothing(tmp_path: Path, data: bytes, flips: list[tuple[int, int]], kind: int) -> None:
    if kind:
        changed = bytearray(zipped(data))
        for place, value in flips:
            changed[place % len(changed)] = value
        data = bytes(changed[: len(changed) - (kind - 1) * 7])
    path = tmp_path / "x"
    path.write_bytes(data)
    for importer in importers.formats():
        assert importer.accepts(path) in (False, True)


def test_looking_at_odd_paths_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "d_w_compressed.bin").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "shut").mkdir(mode=0)
    odd = [Path("a\0b"), Path("n" * 5000), tmp_path / "none", tmp_path, *tmp_path.iterdir()]
    for importer in importers.formats():
        assert not any(importer.accepts(path) for path in odd)
    (tmp_path / "shut").chmod(0o700)


def test_looking_into_what_is_no_stored_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"q.mask q.coeff" * 1000)
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("a/other", b"q.mask q.coeff")
    assert not any(i.accepts(tmp_path / name) for i in importers.formats() for name in ("x.pt", "y.pt"))
