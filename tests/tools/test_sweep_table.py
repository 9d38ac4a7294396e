"""The table of a sweep: summary, frontier, Markdown, JSON, plot."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import tswitch_format as tsw
from tswitch_tools.sweep import Failure, Row, SweepTable


def row(method: str, task: str, nbytes: float, score: float, *, run: str = "", expert: float = 0.5) -> Row:
    chosen = {"scale": f"{score:g}"} if method == "merged" else {}
    family = method.split(",", maxsplit=1)[0] if "," in method else ""
    return Row(method, task, nbytes, nbytes / 100, score, expert, 0.1, nbytes / 1e6, chosen, run, family)


def one_run(run: str = "", shift: float = 0.0) -> SweepTable:
    """Of `merged` both are worse than of `rank, 2`; `rank, 1` is smaller."""
    return SweepTable(
        [
            row("full", "math", 10_000, 0.5, run=run),
            row("full", "co|de", 10_000, 0.5, run=run),
            row("rank, 1", "math", 100, 0.4 + shift, run=run),
            row("rank, 1", "co|de", 100, 0.3, run=run),
            row("rank, 2", "math", 200, 0.5, run=run),
            row("rank, 2", "co|de", 200, 0.45, run=run),
            row("merged", "math", 5_000, 0.2, run=run),
            row("merged", "co|de", 5_000, 0.4, run=run),
        ],
        [Failure("bad\n", "no | such", run)],
    )


def test_summary_and_frontier() -> None:
    rows = {found.method: found for found in one_run().summary()}
    assert list(rows) == ["full", "rank, 1", "rank, 2", "merged"]
    found = rows["rank, 1"]
    assert (found.kept, found.spread, found.worst, found.worst_task) == (70.0, None, 60.0, "co|de")
    assert (found.nbytes, found.percent_of_fp32, found.switch_seconds, found.family) == (100, 1, 1e-4, "rank")
    assert rows["merged"].chosen == "scale 0.2, 0.4"
    assert [found.method for found in one_run().frontier()] == ["full", "rank, 1", "rank, 2"]


def test_runs_are_joined() -> None:
    table = one_run("seed 0") + one_run("seed 1", 0.1)
    found = next(found for found in table.summary() if found.method == "rank, 1")
    assert (found.kept, found.worst) == (pytest.approx(75), pytest.approx(60))  # runs 70 and 80
    assert found.spread == pytest.approx(math.sqrt(50))
    assert len(table.failures) == 2 and len(SweepTable.join([table]).rows) == 16
    message = "rows: expected one of each method, task and run, found two of method 'full', task 'math', run 'seed 0'"
    with pytest.raises(tsw.OptionError, match=re.escape(message)):
        table + one_run("seed 0")


def test_kept_of_an_expert_that_scores_nothing() -> None:
    table = SweepTable(
        [row("full", "a", 1, 0.0, expert=0.0), row("full", "b", 1, 0.25), row("x", "a", 1, 1, expert=-1)]
    )
    full, other = table.summary()
    assert (full.kept, full.worst, full.worst_task) == (50.0, 50.0, "b")
    assert math.isnan(other.kept) and math.isnan(other.worst) and other.spread is None
    assert [found.method for found in table.frontier()] == ["full"]
    assert [r["kept"] for r in json.loads(table.as_json())["rows"]] == [None, 50.0, None]


def test_markdown() -> None:
    assert (one_run() + SweepTable([])).markdown() == (
        "|  | method | kept % | spread | worst task | a task | % of fp32 | to switch | chosen |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| * | full | 100.0 | - | 100.0 (math) | 10 kB | 100 | 10 ms | - |\n"
        "| * | rank, 1 | 70.0 | - | 60.0 (co\\|de) | 100 B | 1 | 0.1 ms | - |\n"
        "| * | rank, 2 | 95.0 | - | 90.0 (co\\|de) | 200 B | 2 | 0.2 ms | - |\n"
        "|  | merged | 60.0 | - | 40.0 (math) | 5 kB | 50 | 5 ms | scale 0.2, 0.4 |\n"
        "\n\\* no other keeps as much in as few bytes\n"
        "\nbad\\n failed: no \\| such\n"
    )
    assert "| 75.0 | 7.1 |" in (one_run("a") + one_run("b", 0.1)).markdown()
    assert SweepTable([]).markdown().count("\n") == 2


def test_json_there_and_back(tmp_path: Path) -> None:
    table = one_run("seed 0")
    table.save(tmp_path / "t.json")
    assert SweepTable.load(tmp_path / "t.json") == table
    document = json.loads(table.as_json())
    assert (document["format"], document["version"]) == ("tsw-sweep", 1)


def test_json_that_is_none_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    document = json.loads(one_run().as_json())
    for text, message in (
        ("{", "expected JSON, found something else"),
        ("[]", 'expected a table with "format": "tsw-sweep", found none'),
        (json.dumps(document | {"version": 2}), "expected version 1 of the table, found 2; update tswitch-format"),
        (json.dumps(document | {"rows": {}}), "expected a list of rows, found dict"),
        (json.dumps(document | {"rows": [{"method": 3}]}), "row 0: method: expected str, found int"),
        (json.dumps(document | {"failures": [3]}), "failure 0: method: expected str, found NoneType"),
    ):
        path.write_text(text)
        with pytest.raises(tsw.TswError, match=re.escape(f"{path}: {message}")):
            SweepTable.load(path)
    with pytest.raises(tsw.TswError, match="could not be read: No such file"):
        SweepTable.load(tmp_path / "none.json")


def test_plots(tmp_path: Path) -> None:
    table = one_run() + SweepTable([row("_$x$ <y>", "a", 0.5, 0.3), row("nothing", "a", 1, 0.0, expert=0.0)])
    for name in ("a.svg", "b.svg", "c.png"):
        table.plot(tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    texts = [text for text in ET.parse(tmp_path / "a.svg").getroot().itertext() if text.strip()]
    assert {"full", "rank", "merged", "$x$ <y>"} <= set(texts) and "nothing" not in texts
    SweepTable([]).plot(tmp_path / "empty.png")
    with pytest.raises(tsw.OptionError, match="expected the name of a picture"):
        table.plot(tmp_path / "a.jpg")
