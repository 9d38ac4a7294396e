"""The library passes the suite: every file in this process, a handful through run.py as others would run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"
RUN = [sys.executable, str(FOLDER / "run.py")]
DECODER = [sys.executable, str(FOLDER / "decoders" / "library.py")]


def failures(runner, library, records, folder):
    out = []
    for record in records:
        path = FOLDER / record["path"]
        try:
            if record["path"].startswith("apply/"):
                made = library.apply(json.loads(path.read_bytes())["input"], folder)
            else:
                made = library.decode(path)
        except library.RefusedError as error:
            answer = runner.Answer(1, b"", str(error))
        else:
            answer = runner.Answer(0, json.dumps(made).encode(), "")
        problem = runner.problem(record, answer, rules=True)
        if problem:
            out.append((record, problem))
    return out


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow to infinity is what some cases are about
@pytest.mark.parametrize("part", ["valid", "newer", "invalid", "apply"])
def test_the_library_passes(runner, library, records, tmp_path, part):
    picked = runner.chosen(records, [part], large=False)
    found = failures(runner, library, picked, tmp_path)
    assert len(picked) > 50
    assert not found, "\n" + runner.table(found)


@pytest.mark.slow
def test_the_library_passes_large_files(runner, library, records, tmp_path):
    picked = [r for r in records if r.get("large")]
    found = failures(runner, library, picked, tmp_path)
    assert len(picked) > 10
    assert not found, "\n" + runner.table(found)


def run(*arguments):
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, timeout=100, check=False)


def test_run_passes_a_decoder_that_is_right():
    done = run(
        "--rules",
        "--jobs",
        "2",
        "--match",
        "smallest",
        "--match",
        "refused-shape",
        "--match",
        "701-crc",
        "--",
        *DECODER,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 of 3 files pass\n", "")


def test_run_names_what_fails(tmp_path):
    decoder = tmp_path / "decoder.py"
    decoder.write_text("print('{}')")
    done = run("--match", "valid/smallest", "--match", "invalid/701-crc", "--", sys.executable, str(decoder))
    assert done.returncode == 1
    assert "0 of 2 files pass" in done.stdout
    assert ".base: missing" in done.stdout
    assert "expected exit code 1 and TSW-701, found exit code 0" in done.stdout


def test_run_asks_for_the_rule_only_with_the_option(tmp_path):
    decoder = tmp_path / "decoder.py"
    decoder.write_text("import sys; sys.exit('no')")
    arguments = ("--match", "invalid/701-crc", "--", sys.executable, str(decoder))
    assert run(*arguments).returncode == 0
    done = run("--rules", *arguments)
    assert done.returncode == 1 and "expected TSW-701 on standard error, found: 'no'" in done.stdout


def test_run_ends_a_decoder_that_takes_too_long(tmp_path):
    decoder = tmp_path / "decoder.py"
    decoder.write_text("import time; time.sleep(60)")
    done = run("--limit", "0.5", "--match", "valid/smallest", "--", sys.executable, str(decoder))
    assert done.returncode == 1 and "within 0.5 s" in done.stdout


def test_run_without_a_decoder_that_starts():
    done = run("--match", "valid/smallest", "--", "./no-such-decoder")
    assert done.returncode == 2 and "no-such-decoder" in done.stderr
    assert run().returncode == 2
    assert run("--match", "no such file", "--", "true").returncode == 2
    assert run("--help").returncode == 0


def test_documents_are_compared_by_value(runner):
    assert runner.difference({"a": 1, "b": [None]}, {"b": [None], "a": 1}) is None
    assert runner.difference({"a": 1}, {"a": True})
    assert runner.difference({"a": None}, {})
    assert runner.difference([1], [1, 2])


def test_all_nans_are_one(runner):
    def tensor(bits):
        return runner._comparable({"w": {"dtype": "F16", "shape": [1], "data": {"hex": bits}}})

    assert tensor("007e") == tensor("01fc")
    assert tensor("007c") != tensor("007e")
    assert tensor("0080") != tensor("0000")
