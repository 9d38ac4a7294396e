"""`tsw info --overlap`: tables, JSON and heat maps."""

from __future__ import annotations

import io
import json
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import tswitch_format as tsw
from tswitch_format.checkpoint import ArrayCheckpoint
from tswitch_tools import heat_map, overlap_report, pictures
from tswitch_tools.cli import tsw as command
from tswitch_tools.text import rounded

Run = Callable[..., Result]

NAMES = ("math", "co$d$e_<x>", "数学[red]")
MASKS = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]], np.int8)


@pytest.fixture
def run() -> Run:
    """Run `tsw` in this process."""

    def call(*arguments: object) -> Result:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], prog_name="tsw")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three tasks with masks of one tensor; another tensor has none, one is stored whole."""
    base = {"w": np.zeros((2, 4), np.float32), "bias": np.zeros(2, np.float32), "ids": np.arange(3)}
    head = ArrayCheckpoint({"ids": np.arange(3) + 1})
    tasks = [
        tsw.GivenTask(
            name, {"w": tsw.GivenSwitch.of_signs(mask, 1.0)}, {"ids": (head, "ids")} if name == "math" else {}
        )
        for name, mask in zip(NAMES, MASKS, strict=True)
    ]
    tsw.build(base, tmp_path / "all.tsw", tasks)
    return tmp_path / "all.tsw"


def failed(result: Result, code: int) -> str:
    """The one line that a failure is."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("tsw: error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_json(run: Run, bundle: Path) -> None:
    whole = json.loads(run("info", bundle, "--overlap", "--tensors", "--json").stdout)
    assert whole["tasks"][0]["entries"]  # the rest is there as well
    found = whole["overlap"]
    tensors = found.pop("tensors")
    assert found == {
        "tasks": list(NAMES),
        "totals": {"elements": 10, "catastrophic": 5, "selfish": 3, "shared": [5, 3, 1, 1], "active": [4, 3, 1]},
        "pairs": [[4, 2, 1], [2, 3, 1], [1, 1, 1]],
        "jaccard": [[1, 2 / 5, 1 / 4], [2 / 5, 1, 1 / 3], [1 / 4, 1 / 3, 1]],
        "whole": {"ids": ["math"]},
    }
    assert tensors == [
        {"name": "bias", "elements": 2, "shared": [2, 0, 0, 0], "pairs": [[0] * 3] * 3},
        {"name": "w", "elements": 8, "shared": [3, 3, 1, 1], "pairs": found["pairs"]},
    ]
    assert json.loads(run("info", bundle, "--overlap", "--json").stdout)["overlap"] == found
    assert "overlap" not in json.loads(run("info", bundle, "--json").stdout)


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_tables(run: Run, bundle: Path) -> None:
    text = run("info", bundle, "--overlap").stdout
    assert "overlap of the masks of 3 tasks over 10 elements\n" in text
    found = lines(text)
    for row in (
        "0 tasks (catastrophic) 5 50", "1 task (selfish) 3 30", "2 tasks 1 10", "3 tasks 1 10",
        "task active 1 2 3", "1 math 4 - 40 25", "2 co$d$e_<x> 3 40 - 33.3", "3 数学[red] 1 25 33.3 -",
        "no masks, as tasks store them whole, add or remove them: 1 tensors",
    ):  # fmt: skip
        assert row.split() in found, text
    assert "bias" not in text
    text = run("info", bundle, "--overlap", "--tensors").stdout
    for row in (
        "tensor elements catastrophic selfish 2 3", "bias 2 100 0 0 0", "w 8 37.5 37.5 12.5 12.5", "ids: math"
    ):  # fmt: skip
        assert row.split() in lines(text), text
    assert "overlap" not in run("info", bundle, "--tensors").stdout


@pytest.mark.parametrize("width", [80, 200, 4096, 20])
@pytest.mark.parametrize("length", [4, 70])
def test_no_number_is_cut_on_a_terminal(width: int, length: int) -> None:
    """Every pair of 20 tasks, every tensor's shares and every name are there, in lines that fit."""
    names = [f"{number:02}-" + "n" * (length - 3) for number in range(20)]
    pairs = np.random.default_rng(5).integers(1_000_000, 9_000_000, (20, 20))
    pairs = np.minimum(pairs, pairs.T)
    np.fill_diagonal(pairs, 9_999_999)
    shared = np.random.default_rng(6).integers(0, 9_000_000, 21)
    found = tsw.Overlap(names, [tsw.TensorOverlap(f"layer.{'t' * length}", int(shared.sum()), shared, pairs)])
    console = Console(width=width, file=io.StringIO(), markup=False, highlight=False, emoji=False)
    overlap_report.show(found, console, tensors=True)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    rest = text.split("pairs:", 1)[1]
    matrix, tensors = rest.split("% of each tensor's", 1)
    cells: dict[tuple[int, int], str] = {}
    end = len("20  ") + min(length, max(8, width // 3))  # of the column of names
    for block in matrix[matrix.index("    task") :].rstrip("\n").split("\n\n"):
        header, *rows = block.splitlines()
        columns = [int(word) for word in header[end:].split() if word.isdigit()]
        folded: list[str] = []
        for row in rows:
            if row[:2].strip():
                folded.append("")
                shares = row[end:].split()[int("active" in header) :]
                cells |= {(int(row[:2]), other): share for other, share in zip(columns, shares, strict=True)}
            folded[-1] += row[4:end].strip()
        assert folded == names
    shares = {(a + 1, b + 1): rounded(100 * share) for (a, b), share in np.ndenumerate(found.jaccard)}
    assert cells == {(a, b): "-" if a == b else share for (a, b), share in shares.items()}
    for share in (rounded(100 * count / shared.sum()) for count in shared.tolist()):
        assert share in tensors.split()
    assert all(str(count) in tensors.split() for count in range(2, 21)) and f"{shared.sum():,}" in tensors
    if width > 20:
        assert max(map(len, (matrix + tensors).splitlines())) <= width
    if width == 4096:
        assert matrix.count("task ") == 1


def test_files_without_masks(run: Run, tmp_path: Path) -> None:
    """Nothing is divided by nothing, in tables and pictures."""
    base = {"w": np.zeros(0, np.float32), "ids": np.arange(3)}
    tsw.build(base, tmp_path / "a.tsw", [tsw.GivenTask(name, {}) for name in ("one", "two")])
    result = run("info", tmp_path / "a.tsw", "--overlap", "--tensors", "--heat-map", tmp_path / "a.svg")
    assert result.exit_code == 0
    assert ["0", "tasks", "(catastrophic)", "0", "-"] in lines(result.stdout) and (tmp_path / "a.svg").exists()
    tsw.build(base, tmp_path / "b.tsw", [])
    assert "expected at least one task" in failed(run("info", tmp_path / "b.tsw", "--overlap"), 2)


# Heat maps


def test_svg_has_names_and_shares(run: Run, bundle: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "map.svg"
    out.write_bytes(b"before")
    result = run("info", bundle, "--overlap", "--heat-map", out, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    texts = [element.text for element in ET.parse(out).iter("{http://www.w3.org/2000/svg}text")]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    for name in NAMES:
        assert texts.count(name) == 2
    assert all(texts.count(share) >= 2 for share in ("40", "25", "33.3"))  # and some beside the colours
    first = out.read_bytes()
    run("info", bundle, "--overlap", "--heat-map", out)
    assert out.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.tsw", "map.svg"]


@pytest.mark.parametrize("tasks", [1, 2, 40])
def test_png_of_any_number_of_tasks(tasks: int) -> None:
    pytest.importorskip("matplotlib")
    pairs = np.full((tasks, tasks), 3)
    np.fill_diagonal(pairs, 10)
    tensor = tsw.TensorOverlap("w", 1000, np.zeros(tasks + 1, np.int64), pairs)
    found = tsw.Overlap([f"{number} " + "x" * 200 for number in range(tasks)], [tensor])
    data = heat_map.draw(found, "png")
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data == heat_map.draw(found, "png")
    width, height = struct.unpack(">II", data[16:24])
    assert min(width, height) > 200 and max(width, height) < 41 * 150


def test_pictures_that_make_no_sense(run: Run, bundle: Path, tmp_path: Path) -> None:
    for name in ("map.pdf", "map", "svg"):
        line = failed(run("info", bundle, "--overlap", "--heat-map", tmp_path / name), 2)
        assert f"{name}: expected" in line and ".png or .svg" in line
    assert "--overlap" in failed(run("info", bundle, "--heat-map", tmp_path / "map.png"), 2)
    assert "none" in failed(run("info", bundle, "--overlap", "--heat-map", tmp_path / "none" / "map.png"), 1)
    picture = bundle.rename(tmp_path / "all.svg")
    before = picture.read_bytes()
    assert "one of the inputs" in failed(run("info", picture, "--overlap", "--heat-map", picture), 1)
    assert picture.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["all.svg"]


def test_without_matplotlib(run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    line = failed(run("info", bundle, "--overlap", "--heat-map", tmp_path / "map.png"), 1)
    assert "matplotlib is needed" in line and "pip install 'tswitch-format[plots]'" in line
    assert run("info", bundle, "--overlap").exit_code == 0
