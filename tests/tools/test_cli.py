"""The `tsw` command: outputs, exit codes, JSON keys, and errors in one line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import tswitch_format as tsw
from tswitch_format.switch.recalibrate import calibrated_recipe, with_knobs
from tswitch_tools.cli import tsw as command
from tswitch_tools.text import count, printable, rounded, size

Run = Callable[..., Result]
Arrays = dict[str, NDArray[Any]]

TASK_KEYS = {
    "name", "tensors", "params", "active", "density", "bytes", "shared_bytes", "percent_of_fp32", "percent_of_source",
    "source_dtypes",
    "bits_per_param", "entropy_bits_per_param", "select", "knob", "recipe",
}  # fmt: skip
ENTRY_KEYS = {"name", "kind", "dtype", "shape", "active", "density", "knob", "bytes", "codecs"}


def arrays(seed: int = 0) -> Arrays:
    """A base: two matrices, a bias, integers."""
    random = np.random.default_rng(seed)
    return {
        "layer.0.weight": random.standard_normal((64, 48)).astype(np.float32),
        "layer.1.weight": random.standard_normal((32, 64)).astype(np.float16),
        "layer.1.bias": np.zeros(32, np.float32),
        "position_ids": np.arange(16, dtype=np.int64),
    }


def tuned(base: Mapping[str, NDArray[Any]], seed: int) -> Arrays:
    """An expert: both matrices changed."""
    random = np.random.default_rng(seed)
    expert = dict(base)
    for name in ("layer.0.weight", "layer.1.weight"):
        noise = random.standard_normal(base[name].shape) * 0.01
        expert[name] = (base[name] + noise).astype(base[name].dtype)
    return expert


@pytest.fixture
def run() -> Run:
    """Run `tsw` in this process."""

    def call(*arguments: object, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="tsw", input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_file(arrays(), tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def pack(run: Run, base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make an expert and pack it."""

    def make(name: str, *options: object, expert: Arrays | None = None, seed: int = 1) -> Path:
        checkpoint = tmp_path / f"{name}.safetensors"
        save_file(expert or tuned(arrays(), seed), checkpoint)
        out = tmp_path / f"{name}.tsw"
        result = run("pack", base, checkpoint, "-o", out, "--task", name, "--threads", 1, *options)
        assert result.exit_code == 0, result.stderr
        return out

    return make


def failed(result: Result, code: int = 1) -> str:
    """The one line that a failure is."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("tsw: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python on its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


# Help, version, usage


def test_help_names_every_command_once_and_has_examples(run: Run) -> None:
    text = run("--help").stdout
    for name in command.commands:
        assert text.count(f"\n  {name} ") == 1
    assert "Examples:" in text and "Exit codes:" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", command.commands)
def test_help_of_commands_has_examples(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"\n    tsw {name} " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_version_is_of_library_and_format(run: Run) -> None:
    assert run("--version").stdout == f"tsw {tsw.__version__}, TSW format {tsw.FORMAT_VERSION}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["pack", "a", "b"],
        ["pack", "a", "b", "-o", "c", "--select", "nonsense"],
        ["pack", "a", "b", "-o", "c", "--threads", "0"],
        ["pack", "a", "b", "-o", "c", "--meta", "nothing"],
        ["pack", "a", "b", "-o", "c", "--meta", "k=1", "--meta", "k=2"],
        ["pack", "a", "b", "-o", "c", "--base-id", "org/model@"],
        ["restore", "a", "b", "-o", "c", "--task", "math=much"],
        ["validate"],
        ["repack", "a", "-o", "b"],
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr and result.stdout == ""


def test_missing_click_or_rich_is_one_line() -> None:
    for missing in ("click", "rich"):
        code = f"import sys; sys.modules[{missing!r}] = None; from tswitch_tools.__main__ import main; main()"
        done = python("-c", code)
        assert done.returncode == 1
        assert done.stderr == (
            "tsw: the command line needs click and rich; install them with: pip install 'tswitch-format[cli]'\n"
        )


# pack and restore


def test_pack_says_one_line(run: Run, pack: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    pack("math")
    out = tmp_path / "again.tsw"
    result = run("pack", base, tmp_path / "math.safetensors", "-o", out)
    assert result.stderr == "" and result.stdout.count("\n") == 1
    assert result.stdout.startswith(f"{out}: {size(out.stat().st_size)}, ")
    assert "% of fp32, density " in result.stdout
    assert run("pack", base, tmp_path / "math.safetensors", "-o", out, "--quiet").output == ""


def test_pack_json(run: Run, pack: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    math = pack("math")
    out = tmp_path / "again.tsw"
    done = run("pack", base, tmp_path / "math.safetensors", "-o", out, "--task", "math", "--json")
    found = json.loads(done.stdout)
    assert set(found) == {
        "path", "file_bytes", "content_id", "density", "percent_of_fp32", "switches", "dense", "unchanged", "removed"
    }  # fmt: skip
    assert found["path"] == str(out)
    assert found["file_bytes"] == out.stat().st_size
    assert (found["switches"], found["dense"], found["unchanged"], found["removed"]) == (2, 0, 2, 0)
    assert out.read_bytes() == math.read_bytes()


def test_pack_passes_options_on(run: Run, pack: Callable[..., Path]) -> None:
    path = pack(
        "math", "--density", 0.1, "--select", "global", "--knob", "rms", "--knob-per", "tensor", "--profile", "mapped",
        "--base-id", "org/model@main", "--meta", "licence=MIT", "--meta", "a=b=c", "--dense", "layer.1.*",
    )  # fmt: skip
    with tsw.open(path) as file:
        assert (file.base.id, file.base.revision, file.profile) == ("org/model", "main", "mapped")
        assert dict(file.metadata) == {"licence": "MIT", "a": "b=c"}
        recipe = file.recipe()
        assert (recipe["select"], recipe["knob"], recipe["knob_per"]) == ("global", "rms", "tensor")
        assert file.switch("layer.1.weight").kind == "dense"
        assert file.switch("layer.0.weight").density == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    "options", [["--density", "2"], ["--density", "0.1", "--discard", "0.5"], ["--preset", "paper", "--knob", "mean"]]
)
def test_pack_refuses_options_that_make_no_sense(
    run: Run, base: Path, pack: Callable[..., Path], tmp_path: Path, options: list[str]
) -> None:
    pack("math")
    out = tmp_path / "out.tsw"
    failed(run("pack", base, tmp_path / "math.safetensors", "-o", out, *options), 2)
    assert not out.exists()


def test_pack_leaves_what_is_there_when_it_fails(run: Run, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsw"
    out.write_bytes(b"precious")
    expert = arrays()
    expert["layer.0.weight"] = expert["layer.0.weight"].copy()
    expert["layer.0.weight"][3, 3] = np.nan
    save_file(expert, tmp_path / "nan.safetensors")
    assert "layer.0.weight" in failed(run("pack", base, tmp_path / "nan.safetensors", "-o", out))
    assert "none.safetensors" in failed(run("pack", base, tmp_path / "none.safetensors", "-o", out))
    expert = {**arrays(), "position_ids": np.arange(1, 17, dtype=np.int64)}
    save_file(expert, tmp_path / "integers.safetensors")
    assert "position_ids" in failed(run("pack", base, tmp_path / "integers.safetensors", "-o", out))
    assert out.read_bytes() == b"precious"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".safetensors"] * 3 + [".tsw"]


@pytest.mark.parametrize("coefficient", [None, 0.5, -1.0])
def test_restore_is_what_apply_makes(
    run: Run, base: Path, pack: Callable[..., Path], tmp_path: Path, coefficient: float | None
) -> None:
    math = pack("math")
    out = tmp_path / "out.safetensors"
    task = [] if coefficient is None else ["--task", f"math={coefficient}"]
    result = run("restore", base, math, "-o", out, *task)
    assert result.stdout == f"{out}: 4 tensors, 16.6 kB\n"
    expected = arrays()
    with tsw.open(math) as file:
        for name in file.keys():  # noqa: SIM118
            expected[name] = file.switch(name).apply(expected[name], 1.0 if coefficient is None else coefficient)
    found = load_file(out)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype
        assert array.tobytes() == found[name].tobytes()
    assert run("restore", base, math, "-o", out, "-q").output == ""


def test_restore_errors_leave_the_output(run: Run, base: Path, pack: Callable[..., Path], tmp_path: Path) -> None:
    math, code = pack("math"), pack("code", seed=2)
    both = tmp_path / "both.tsw"
    run("bundle", math, code, "-o", both)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    assert "maths" in failed(run("restore", base, math, "-o", out, "--task", "maths"))
    assert "math, code" in failed(run("restore", base, both, "-o", out), 2)
    save_file(arrays(seed=7), tmp_path / "other.safetensors")
    assert "wrong base" in failed(run("restore", tmp_path / "other.safetensors", math, "-o", out))
    assert out.read_bytes() == b"precious"
    assert run("restore", tmp_path / "other.safetensors", math, "-o", out, "--no-check-base").exit_code == 0
    assert load_file(out).keys() == arrays().keys()


# info


def test_info_json(run: Run, pack: Callable[..., Path]) -> None:
    path = pack("math", "--base-id", "org/model@main", "--dense", "layer.1.weight", "--meta", "a=b")
    found = json.loads(run("info", path, "--json").stdout)
    elements = 64 * 48 + 32 * 64 + 32 + 16
    source = 4 * 64 * 48 + 2 * 32 * 64 + 4 * 32 + 8 * 16
    assert found["version"] == "1.0"
    assert found["profile"] == "archive"
    assert found["metadata"] == {"a": "b"}
    assert found["file_bytes"] == path.stat().st_size
    with tsw.open(path) as file:
        assert found["content_id"] == file.content_id
    assert found["base"] == {
        "id": "org/model", "revision": "main", "tensors": 4, "params": elements, "bytes": source,
        "bytes_fp32": 4 * elements,
    }  # fmt: skip
    (task,) = found["tasks"]
    assert set(task) == TASK_KEYS
    assert (task["name"], task["tensors"], task["params"]) == ("math", 2, elements)
    assert task["bytes"] == found["file_bytes"]
    assert task["percent_of_fp32"] == pytest.approx(100 * task["bytes"] / (4 * elements))
    assert task["percent_of_source"] == pytest.approx(100 * task["bytes"] / source)
    assert task["source_dtypes"] == ["F32", "F16", "I64"]
    assert task["bits_per_param"] == pytest.approx(8 * task["bytes"] / elements)
    p = task["active"] / (64 * 48)
    assert task["density"] == pytest.approx(p)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert task["entropy_bits_per_param"] == pytest.approx((entropy + p) * 64 * 48 / elements)
    assert (task["select"], task["knob"]) == ("spectral", "projection")


def test_info_lists_tensors(run: Run, pack: Callable[..., Path]) -> None:
    path = pack("math", "--dense", "layer.1.weight")
    (task,) = json.loads(run("info", path, "--tensors", "--json").stdout)["tasks"]
    switch, dense = task["entries"]
    assert set(switch) == set(dense) == ENTRY_KEYS
    with tsw.open(path) as file:
        real = file.switch("layer.0.weight")
        assert (switch["active"], switch["knob"], switch["density"]) == (real.active, real.knob, real.density)
        assert [entry["bytes"] for entry in task["entries"]] == [
            file.switch(entry["name"]).stored_bytes for entry in task["entries"]
        ]
    assert (switch["name"], switch["kind"], switch["dtype"], switch["shape"]) == (
        "layer.0.weight",
        "ternary",
        "F32",
        [64, 48],
    )
    assert (dense["kind"], dense["dtype"], dense["density"], dense["knob"]) == ("dense", "F16", None, None)
    assert set(dense["codecs"]) <= {"raw", "zstd"}


def test_info_names_knobs_that_were_calibrated(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    path = pack("math")
    with tsw.open(path) as file:
        recipe = calibrated_recipe(file.recipe(), "4 batches, validation 0.5 -> 0.75")
    with_knobs(path, tmp_path / "out.tsw", "math", {}, recipe)
    (task,) = json.loads(run("info", tmp_path / "out.tsw", "--json").stdout)["tasks"]
    assert set(task) == TASK_KEYS
    assert (task["select"], task["knob"]) == ("spectral", "calibrated")
    assert task["recipe"] == recipe
    assert task["recipe"]["calibrated_from"] == "projection"
    assert "spectral calibrated row-col u4" in run("info", tmp_path / "out.tsw").stdout


def test_info_shares_the_rest_of_a_bundle(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    run("bundle", pack("math"), pack("code", "--density", 0.2, seed=2), "-o", tmp_path / "all.tsw")
    found = json.loads(run("info", tmp_path / "all.tsw", "--json").stdout)
    assert [task["name"] for task in found["tasks"]] == ["math", "code"]
    assert sum(task["bytes"] for task in found["tasks"]) == pytest.approx(found["file_bytes"], abs=1)


def test_info_counts_the_source_of_changed_shapes(
    run: Run, base: Path, pack: Callable[..., Path], tmp_path: Path
) -> None:
    """A head of another size replaces the base's, an added tensor is counted, a removed one is not."""
    expert = tuned(arrays(), 1)
    expert["layer.1.bias"] = np.ones(40, np.float32)
    expert["head"] = np.ones((4, 4), np.float32)
    del expert["position_ids"]
    found = json.loads(run("info", pack("math", "--on-mismatch", "dense", expert=expert), "--json").stdout)
    (task,) = found["tasks"]
    source = sum(array.nbytes for array in expert.values())
    assert task["percent_of_source"] == pytest.approx(100 * task["bytes"] / source)
    assert task["source_dtypes"] == ["F32", "F16"]


def test_info_names_baselines_and_cuts_nothing_in_a_pipe(run: Run, pack: Callable[..., Path]) -> None:
    name = "a" * 100
    text = run(
        "info", pack(name, "--base-id", "org/[red]model", "--meta", "a=\x1b[31mred\n:smile:"), "--tensors"
    ).stdout
    assert "% of fp32" in text and "% of F32+F16+I64 source" in text
    assert name in text and "layer.0.weight" in text
    assert "org/[red]model" in text
    assert "a: \\x1b[31mred\\n:smile:" in text and "\x1b" not in text
    assert "spectral projection row-col u4" in text


def flipped(path: Path, at: int, name: str = "bad.tsw", by: int = 1) -> Path:
    """A copy with other bits at one place."""
    data = bytearray(path.read_bytes())
    data[at] ^= by
    made = path.parent / name
    made.write_bytes(data)
    return made


# bundle, extract, repack, digest, diff


def test_files_to_files(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    math, code = pack("math"), pack("code", seed=2)
    both, back, mapped = (tmp_path / name for name in ("all.tsw", "back.tsw", "mapped.tsw"))
    assert run("bundle", math, code, "-o", both).stdout == f"{both}: {size(both.stat().st_size)}\n"
    assert run("extract", both, "--task", "math", "-o", back).stdout.startswith(f"{back}: ")
    assert run("repack", math, "-o", mapped, "--profile", "mapped", "-q").output == ""
    digests = run("digest", math, back, mapped, both).stdout.splitlines()
    assert [line.split("  ")[1] for line in digests] == [str(path) for path in (math, back, mapped, both)]
    ids = [line.split("  ")[0] for line in digests]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert all(len(bytes.fromhex(found)) == 32 for found in ids)
    found = json.loads(run("digest", math, "--json").stdout)
    assert found == {"files": [{"file": str(math), "content_id": ids[0]}]}
    assert run("validate", both, back, mapped).exit_code == 0
    assert "mat" in failed(run("extract", both, "--task", "mat", "-o", tmp_path / "none.tsw"))
    assert run("bundle", math, back, "-o", both).exit_code in (1, 2)  # two tasks of one name
    assert json.loads(run("info", both, "--json").stdout)["content_id"] == ids[3]


def test_diff_of_the_same_content(run: Run, pack: Callable[..., Path], tmp_path: Path) -> None:
    math, mapped = pack("math"), tmp_path / "mapped.tsw"
    run("repack", math, "-o", mapped, "--profile", "mapped")
    result = run("diff", math, mapped)
    assert result.exit_code == 0
    assert result.stdout == "base: same\ntask math: same (2 tensors the same, 0 differ)\n"


def test_diff_counts_elements(run: Run, base: Path, tmp_path: Path) -> None:
    zeros = {name: np.zeros((50, 40), np.float32) for name in ("dense", "mask", "same", "sign", "knob", "one")}
    save_file(zeros, base)
    first = {name: array.copy() for name, array in zeros.items()}
    for array in first.values():
        array.flat[:40] = 1
    second = {name: array.copy() for name, array in first.items()}
    second["sign"].flat[:3] = -1
    second["mask"].flat[:5] = 0
    second["mask"].flat[100:105] = 1
    second["knob"] *= 2
    second["dense"] += 1
    second["one"] = zeros["one"]
    paths = []
    for name, expert in (("a", first), ("b", second)):
        save_file(expert, tmp_path / "expert.safetensors")
        paths.append(tmp_path / f"{name}.tsw")
        options = ["--density", "0.02", "--knob-per", "tensor", "--dense", "dense", "--task", "t"]
        assert run("pack", base, tmp_path / "expert.safetensors", "-o", paths[-1], *options).exit_code == 0
    result = run("diff", *paths, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["same"], found["same_base"]) == (False, True)
    (task,) = found["tasks"]
    assert (task["name"], task["status"], task["same"]) == ("t", "differs", 1)
    assert {tensor["name"]: tensor["differs"] for tensor in task["tensors"]} == {
        "dense": ["dense"], "mask": ["mask"], "sign": ["sign"], "knob": ["knob"], "one": ["only in a"]
    }  # fmt: skip
    by_name = {tensor["name"]: tensor for tensor in task["tensors"]}
    assert (by_name["mask"]["mask_elements"], by_name["mask"]["sign_elements"]) == (10, 0)
    assert (by_name["sign"]["mask_elements"], by_name["sign"]["sign_elements"]) == (0, 3)
    text = run("diff", *paths).stdout
    assert "  mask: mask differs in 10 elements\n" in text and "  one: only in a\n" in text


def test_diff_of_other_bases_and_tasks(run: Run, base: Path, pack: Callable[..., Path], tmp_path: Path) -> None:
    math, code = pack("math"), pack("code")
    result = run("diff", math, code)
    assert result.exit_code == 1
    assert result.stdout == "base: same\ntask math: only in a\ntask code: only in b\n"
    save_file(arrays(seed=7), base)
    assert run("diff", math, pack("other", "--task", "math")).stdout.startswith("base: differs\n")


# Every command: errors in one line, quiet pipes


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "{bad}"],
        ["info", "{missing}"],
        ["info", "{folder}"],
        ["digest", "{good}", "{bad}"],
        ["diff", "{good}", "{missing}"],
        ["bundle", "{good}", "{bad}", "-o", "{out}"],
        ["extract", "{missing}", "--task", "math", "-o", "{out}"],
        ["repack", "{bad}", "--profile", "mapped", "-o", "{out}"],
        ["repack", "{good}", "--profile", "mapped", "-o", "{folder}/none/out.tsw"],
        ["restore", "{base}", "{bad}", "-o", "{out}"],
        ["restore", "{missing}", "{good}", "-o", "{out}"],
    ],
)
def test_errors_are_one_line(
    run: Run, base: Path, pack: Callable[..., Path], tmp_path: Path, arguments: list[str]
) -> None:
    good = pack("math")
    names = {
        "base": base,
        "good": good,
        "bad": flipped(good, good.stat().st_size - 1),
        "missing": tmp_path / "missing.tsw",
        "folder": tmp_path,
        "out": tmp_path / "out.tsw",
    }
    names["out"].write_bytes(b"precious")
    failed(run(*(argument.format(**names) for argument in arguments)))
    assert names["out"].read_bytes() == b"precious"


def test_unexpected_system_errors_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, text in (
        (OSError(28, "No space left on device", "place"), "place: No space left on device"),
        (MemoryError(), "not enough memory"),
        (tsw.TswError("one\ntwo\x1b[31m"), "one\\ntwo\\x1b[31m"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(tsw, "open", fail)
        assert text in failed(run("info", "file"))


def test_interrupt_is_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tsw, "open", interrupt)
    result = run("info", "file")
    assert result.exit_code == 130
    assert result.stderr == "tsw: interrupted\n"


def test_module_runs_and_prints_no_traceback(tmp_path: Path) -> None:
    done = python("-m", "tswitch_tools", "info", tmp_path / "missing.tsw")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tsw: error: ") and done.stderr.count("\n") == 1


def test_closed_pipe_is_quiet(pack: Callable[..., Path]) -> None:
    path = pack("math")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "tswitch_tools", "info", path, "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.stderr == b""


def test_progress_on_a_terminal_only(base: Path, pack: Callable[..., Path], tmp_path: Path) -> None:
    math = pack("math")
    arguments = [sys.executable, "-m", "tswitch_tools", "restore", base, math, "-o", tmp_path / "out.safetensors"]
    shown = {}
    for options in ([], ["--quiet"]):
        reading, writing = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        subprocess.run([*arguments, *options], stdout=subprocess.DEVNULL, stderr=writing, env=environment, check=True)
        os.write(writing, b"end")
        shown[len(options)] = os.read(reading, 1 << 16)
        os.close(writing)
        os.close(reading)
    assert b"restore" in shown[0]
    assert shown[1] == b"end"
    assert subprocess.run(arguments, capture_output=True, check=True).stderr == b""


def test_numbers_and_names_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 999_600, 1_234_567, 22.7e9)] == [
        "0 B", "999 B", "1 kB", "1 MB", "1.23 MB", "22.7 GB"
    ]  # fmt: skip
    assert count(22_700_000) == "22.7 M"
    assert [rounded(x) for x in (0.60312, 12.54, 12345.6, 0)] == ["0.603", "12.5", "12346", "0"]
    assert printable("Größe\n\x1b\u202e\udc80") == "Größe\\n\\x1b\\u202e\\udc80"


def test_commands_are_plain_click_commands() -> None:
    assert all(isinstance(member, click.Command) and member.help for member in command.commands.values())
