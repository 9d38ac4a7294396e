"""What `make bench` and `make bench-check` compute from measurements: exponents, bounds, margins, pages; and the workflow."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import bench, check, common, latest, memory, synthetic
from benchmarks.__main__ import BENCHMARKS
from benchmarks.common import Ratio, Result, Times
from benchmarks.growth import fit_exponent

ROOT = Path(__file__).parents[2]


def ratio(median: float, *, higher: bool = False, bound: float | None = None, peer: str | None = "peer") -> Ratio:
    return Ratio("table", "ours", peer, median, median, median, bound, higher)


# Exponents


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_that_power(power: float) -> None:
    assert fit_exponent([(x, 3 * x**power) for x in (1e6, 1e7, 1e8, 1e9)]) == pytest.approx(power)


def test_the_exponent_is_that_of_least_squares() -> None:
    points = [(1.0, 1.0), (math.e, math.e), (math.e**2, 1.0)]
    assert fit_exponent(points) == pytest.approx(0)  # slopes 1 and -1 cancel


def test_models_of_a_family_have_about_the_parameters_that_are_asked_for() -> None:
    whole = sum(math.prod(shape) for shape in synthetic.shapes(1).values())
    assert synthetic.similar(1) == synthetic.shapes(1)
    for share in (0.001, 0.01, 0.1):
        found = sum(math.prod(shape) for shape in synthetic.similar(share).values())
        assert found / whole == pytest.approx(share, rel=0.35)


# Bounds


@pytest.mark.parametrize(
    ("median", "bound", "higher", "met"),
    [(2, 2, False, True), (2.1, 2, False, False), (2, 2, True, True), (1.9, 2, True, False), (1, None, True, None)],
)
def test_a_bound_is_met_by_the_median(median: float, bound: float | None, higher: bool, met: bool | None) -> None:
    assert ratio(median, bound=bound, higher=higher).met is met


def test_ratios_are_in_the_table_and_in_the_json(tmp_path: Path) -> None:
    result = Result("one", "question?", "command", {})
    times = Times({"ours": [1.0, 2.0, 3.0], "peer": [1.0, 1.0, 2.0]})
    common.ratio_table(result, "title", times, [("ours", "peer")], 1.4, higher_is_better=True, target=True)
    result.save(tmp_path)
    content = json.loads((tmp_path / "one.json").read_text())
    assert content["ratios"] == [
        {
            "where": "title", "name": "ours", "peer": "peer", "median": 1.5, "least": 1.0, "most": 2.0, "bound": 1.4,
            "higher_is_better": True, "target": True, "met": True,
        }
    ]  # fmt: skip
    assert common.ratios_of(content) == result.ratios
    assert "| ours / peer | 1.5 | 1 | 2 | at least 1.4 | yes |" in (tmp_path / "one.md").read_text()
    assert {"seconds", "machine"} <= set(content) and "started" not in content


def test_results_from_before_there_were_ratios_have_none() -> None:
    assert common.ratios_of({"tables": []}) == []


def test_rounds_take_every_name_once_and_leave_the_first_out() -> None:
    calls: list[str] = []

    def measured(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    times = common.in_rounds(["a", "b", "c"], measured, 3)
    assert all(sorted(calls[start : start + 3]) == ["a", "b", "c"] for start in range(0, 12, 3))
    assert sorted(second for seconds in times.seconds.values() for second in seconds) == [*range(4, 13)]


# Margins


def test_a_margin_is_a_multiple_of_the_spread_of_the_runs() -> None:
    guard = check.Guard.of("name", [ratio(value) for value in (1.0, 1.1, 1.25)])
    assert guard.reference == 1.1
    assert guard.margin == pytest.approx(check.FACTOR * (1.25 / 1.1 - 1))


def test_wider_margins_and_more_runs_make_false_alarms_rarer() -> None:
    chances = [check.chance(runs, factor, 5000) for runs, factor in ((5, 2.0), (5, 3.0), (9, 3.0))]
    assert chances == sorted(chances, reverse=True) and chances[-1] < 1e-3
    assert check.chance(3, 0.0, 5000) > 0.2  # no margin at all: the square of about a half, and more


def test_a_margin_is_never_below_the_least() -> None:
    assert check.Guard.of("name", [ratio(1.0), ratio(1.01)]).margin == check.LEAST_MARGIN


@pytest.mark.parametrize(("value", "higher", "bad"), [(2.3, False, True), (2.1, False, False), (0.1, False, False),
                                                      (1.7, True, True), (1.9, True, False), (9.0, True, False)])  # fmt: skip
def test_only_a_loss_above_the_margin_is_a_complaint(value: float, higher: bool, bad: bool) -> None:
    guard = check.Guard("name", higher, 2.0, 0.1, [])
    text = guard.complaint(value)
    assert bool(text) == bad
    if text:
        assert "name" in text and "2 is committed" in text and "at most 10 %" in text


def test_what_is_not_measured_any_more_is_a_complaint_and_what_is_new_is_not() -> None:
    guards = check.derive([[ratio(1.0)]])
    assert check.complaints(guards, []).keys() == {"table: ours / peer"}
    assert not check.complaints(guards, [ratio(1.05), Ratio("table", "new", "peer", 9, 9, 9)])


def test_figures_that_are_no_ratios_are_not_compared() -> None:
    assert check.derive([[ratio(5.0, peer=None)]]) == []


def test_guards_come_back_from_the_file(tmp_path: Path) -> None:
    result = check.update([[ratio(1.0)], [ratio(1.2)]])
    result.save(tmp_path)
    content = json.loads((tmp_path / "check.json").read_text())
    assert check.read_guards(content) == check.derive([[ratio(1.0)], [ratio(1.2)]])


def test_a_loss_counts_where_it_comes_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: object) -> None:
    content = {"raw": check.update([[ratio(1.0)], [ratio(1.0)]]).raw, "machine": common.machine()}
    for values, code in (([1.0], 0), ([1.5, 1.0], 0), ([1.5, 1.5], 1)):
        given = iter(values)
        monkeypatch.setattr(check, "measure_apart", lambda folder, out, given=given: [ratio(next(given))])
        assert check.check(json.loads(json.dumps(content, default=vars)), tmp_path, tmp_path) == code
        assert next(given, None) is None
    assert "FAILED table: ours / peer: 1.5" in capsys.readouterr().out  # type: ignore[attr-defined]


# Plans and pages


def test_all_steps_are_benchmarks_and_only_the_last_of_the_large_model_deletes_it() -> None:
    steps = bench.plan(True, 1)
    assert {step[0] for step in steps} <= set(BENCHMARKS) | {"peers"}
    assert steps[-1] == ["latest"]
    assert [step for step in steps if "--keep" in step] == [["speed", "--keep"], ["memory", "--keep", "--all"]]


def test_a_quick_run_has_small_models_and_leaves_the_results_of_the_repository_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "STEPS", (("imports",), ("speed", "--keep")))
    monkeypatch.setattr(common, "RESULTS", common.COMMITTED)
    assert bench.plan(False, 0.1) == [["imports", "--no-save"], ["speed", "--keep", "--scale", "0.1"], ["latest"]]
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert bench.plan(False, 0.1)[0] == ["imports"]


def test_the_first_pack_that_is_weighed_is_the_default_and_all_adds_to_the_others() -> None:
    few, every = memory.plan(2, 8, False), memory.plan(2, 8, True)
    assert next(command for command in few if "pack" in command).endswith("--threads 2")
    assert set(few) < set(every) and len(set(every)) == len(every)


def test_the_page_shows_targets_bounds_runs_and_what_is_missing(tmp_path: Path) -> None:
    result = Result("speed", "how fast?", "python -m benchmarks speed", {})
    times = Times({"ours": [3.0], "peer": [1.0]})
    common.ratio_table(result, "a target", times, [("ours", "peer")], 2, target=True)
    common.ratio_table(result, "a bound", times, [("peer", "ours")], 2, main=True)
    common.ratio_table(result, "watched", times, [("peer", "ours")])
    result.save(tmp_path)
    (tmp_path / "speed-x.svg").touch()
    text = latest.write(tmp_path).read_text()
    assert "0 of 1 are met.\n\n| what |" in text and "| a target: ours / peer | 3 | 3 | 3 | 2 | NO | speed |" in text
    assert "1 of 1 are met.\n\n## Runs" in text
    assert "### a bound" in text and "### watched" not in text
    assert "![speed-x.svg](speed-x.svg)" in text and "([all tables](speed.md))" in text
    assert "No results: imports, size, peers" in text


def test_the_workflow_is_as_its_schema_says_and_may_only_read() -> None:
    path = ROOT / ".github" / "workflows" / "bench.yml"
    arguments = ["--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = path.read_text()
    assert "permissions:\n  contents: read\njobs:" in text and "make bench-check" in text
    assert "bench-check:" in (ROOT / "Makefile").read_text()
