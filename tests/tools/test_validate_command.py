"""`tsw validate`: exit codes, what counts as a file, several processes, reports that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from validate_files import Files, validate

from tswitch_tools.validation.checker import Checker
from tswitch_tools.validation.pool import check_all
from tswitch_tools.validation.result import Result
from tswitch_tools.validation.targets import Target, find_targets

TSW = [sys.executable, "-m", "tswitch_tools", "validate"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


def names(*given: object) -> list[str]:
    """The names of what `find_targets` finds."""
    return [target.name for target in find_targets([str(name) for name in given])]


# Exit codes


def test_the_worst_of_several_wins(files: Files, tmp_path: Path) -> None:
    good, bad, newer, missing = files.good, files.bad, files.newer, files.missing
    for given, code in (
        ([good], 0),
        ([bad], 1),
        ([newer], 4),
        ([missing], 3),
        ([tmp_path], 5),
        ([good, newer], 4),
        ([newer, bad, good], 1),
        ([newer, bad, missing, good], 3),
        ([good, "--base", files.base], 0),
        ([good, "--base", files.other_base], 1),
        ([good, "--base", files.missing], 3),
        ([bad, "--level", "structure"], 0),
        ([bad, "--level", "checksums"], 1),
        ([], 2),
        ([good, "--level", "all"], 2),
        ([good, "--jobs", 0], 2),
        ([good, "-o", good], 2),
    ):
        assert validate(*given).exit_code == code, given


def test_no_files_is_said_and_reported(files: Files, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    result = validate(tmp_path, "--format", "json", "--base", files.missing)
    assert result.exit_code == 5
    assert json.loads(result.stdout)["summary"]["files"] == 0
    assert result.stderr == "tsw: error: no .tsw files in what was named; check the path\n"


def test_a_base_that_cannot_be_read_keeps_nothing_from_being_checked(files: Files) -> None:
    result = validate(files.good, files.bad, "--base", files.missing)
    first, second, third, last = result.stdout.splitlines()
    problem = f"its base could not be opened: {files.missing}: no such file or folder; check the path"
    assert first == f"{files.good}: {problem}"
    assert "[TSW-701]" in second
    assert third == f"{files.bad}: {problem}"
    assert last == "2 files: 2 unreadable"
    assert (result.exit_code, result.stderr) == (3, "")


def test_a_base_that_turns_out_damaged_is_said_for_each_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = files.made("damaged.safetensors", files.base.read_bytes()[:-100])
    monkeypatch.setattr("tswitch_tools.commands.validate.base_problem", lambda base: None)
    result = validate(files.good, "--base", damaged)
    assert result.exit_code == 3
    assert result.stdout.startswith(f"{files.good}: could not be checked: {damaged}: ")


# What is a file


def test_files_are_checked_once_in_the_order_in_which_they_were_named(files: Files, tmp_path: Path) -> None:
    for name in ("z.tsw", "b/c.tsw", "b-c.tsw", "a/d/e.tsw", "no.txt", "a.tsw/f.tsw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inside = [str(tmp_path / name) for name in ("a/d/e.tsw", "a.tsw/f.tsw", "b/c.tsw", "b-c.tsw", "z.tsw")]
    assert names(tmp_path) == inside
    assert names(tmp_path / "z.tsw", tmp_path, f"{tmp_path}/b/../z.tsw", tmp_path) == [inside[4], *inside[:4]]
    assert names("x", "-", "./x", "-", "./-") == ["x", "-", "./-"]


def test_links_are_followed_to_files_and_never_round(tmp_path: Path) -> None:
    (tmp_path / "blob").touch()
    (tmp_path / "link.tsw").symlink_to("blob")
    (tmp_path / "gone.tsw").symlink_to("nothing")
    (tmp_path / "itself.tsw").symlink_to("itself.tsw")
    (tmp_path / "round").symlink_to(".")
    (tmp_path / "round.tsw").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.tsw")  # would be waited for
    assert names(tmp_path) == [str(tmp_path / f"{name}.tsw") for name in ("gone", "itself", "link")]
    assert names(tmp_path / "round") == [str(tmp_path / "round" / f"{name}.tsw") for name in ("gone", "itself", "link")]
    result = validate(tmp_path)
    assert result.exit_code == 3 and "gone.tsw: could not be read: No such file" in result.stdout


def test_folders_that_cannot_be_listed_are_unreadable(files: Files, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.tsw").write_bytes(files.good.read_bytes())
    scandir = os.scandir

    def scan(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    result = validate(tmp_path)
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        f"{tmp_path}/a.tsw: valid",
        f"{tmp_path}/closed: the folder could not be listed: Permission denied; check its permissions",
        "2 files: 1 valid, 1 unreadable",
    ]


def test_files_that_vanish_after_the_listing_are_unreadable(files: Files, tmp_path: Path) -> None:
    (tmp_path / "gone.tsw").touch()
    targets = find_targets([str(tmp_path)])
    (tmp_path / "gone.tsw").unlink()
    (result,) = check_all(targets, Checker("full"), 1)
    assert result.status == "unreadable" and result.reason is not None and "No such file" in result.reason
    assert targets[0].size == 0


def test_paths_that_no_system_has_are_unreadable(files: Files) -> None:
    for name in ("", "x" * 5000):
        assert validate(name, files.good).exit_code == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_standard_input(files: Files, jobs: int) -> None:
    good, bad = files.good, files.bad
    assert validate("-", stdin=good.read_bytes()).stdout == "-: valid\n"
    result = validate(good, "-", bad, "--format", "json", "--jobs", jobs, stdin=bad.read_bytes())
    found = json.loads(result.stdout)["files"]
    assert [(file["file"], file["status"]) for file in found] == [
        (str(good), "valid"), ("-", "invalid"), (str(bad), "invalid")
    ]  # fmt: skip
    assert found[1]["findings"][0]["file"] == "-"
    assert found[1]["findings"][0]["message"].startswith("-: byte 64: ")
    assert validate("-", stdin=b"").exit_code == 1


def test_standard_input_that_cannot_be_kept(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    result = validate("-", files.good, stdin=b"")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[:2] == [
        "-: could not be copied to a temporary file: No such file or directory; save it to a file, and name that",
        f"{files.good}: valid",
    ]


def test_closed_streams_are_one_line(files: Files) -> None:
    shell = f"{sys.executable} -m tswitch_tools validate"
    for command, where in ((f"{shell} - <&-", "stdout"), (f"{shell} {files.good} >&-", "stderr")):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert getattr(done, where).count("\n") == 1 and "it is closed" in getattr(done, where)


# Several processes


class Mortal:
    """Checks by name: what is named "kill" dies, "exit" ends, "sleep" is late."""

    level = "full"

    def __call__(self, target: Target) -> Result:
        if target.name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if target.name == "exit":
            os._exit(7)
        if target.name == "sleep":
            time.sleep(0.3)
        return Result.unread(target.name, str(os.getpid()))


def test_a_process_that_dies_costs_one_file() -> None:
    given = ["sleep", *"abcdef", "kill", *"ghi", "exit", "j"]
    results = list(check_all([Target(name, name) for name in given], Mortal(), 2))  # type: ignore[arg-type]
    assert [result.name for result in results] == given
    reasons = {result.name: result.reason or "" for result in results}
    assert "was killed by SIGKILL" in reasons["kill"] and "ended with exit code 7" in reasons["exit"]
    assert all(reason.isdigit() for name, reason in reasons.items() if name not in ("kill", "exit"))


def test_processes_that_cannot_be_started_are_no_files_fault(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, reason in (
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavailable; try again, with"),
        (MemoryError(), "not enough memory; use"),
    ):

        def start(_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
        result = validate(files.good, files.bad, "--jobs", 2)
        assert result.exit_code == 3
        assert result.stderr == f"tsw: error: the check could not be finished: {reason} fewer --jobs\n"


def test_processes_find_the_same(files: Files) -> None:
    folder = files.folder
    alone = validate(folder, "--base", files.other_base, "--format", "json")
    together = validate(folder, "--base", files.other_base, "--format", "json", "--jobs", 2)
    assert together.stdout == alone.stdout
    assert together.exit_code == alone.exit_code == 1
    assert alone.stdout.count('"rule": "TSW-902"') == 2


def test_want_of_memory_is_the_files_own(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("tswitch_tools.validation.checker.validate", hungry)
    result = validate(files.good)
    assert result.exit_code == 3
    assert result.stdout == (
        f"{files.good}: could not be checked: there is not enough memory; give more, or use fewer --jobs\n"
    )


def ended(group: int) -> bool:
    """Whether a group has no process any more, or soon has none: multiprocessing's tracker of resources goes last."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_ends_all_processes_and_leaves_no_half_report(files: Files, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tsw"
    os.mkfifo(pipe)  # opening it waits for ever
    out = tmp_path / "report.json"
    command = [*TSW, files.good, pipe, "--jobs", "2", "--format", "json", "-o", out]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"{files.good}: valid\n"
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "tsw: interrupted\n")
    assert list(tmp_path.iterdir()) == [pipe]
    assert ended(process.pid)


# Where the report goes


def test_text_comes_as_files_are_checked(files: Files, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tsw"
    os.mkfifo(pipe)
    process = subprocess.Popen([*TSW, files.good, pipe], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{files.good}: valid\n"  # while the second is still waited for
    process.kill()
    process.communicate()


def test_a_report_file_comes_with_text_on_standard_output(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    out.write_text("of yesterday")
    result = validate(files.good, files.bad, "--format", "json", "-o", out)
    assert result.exit_code == 1
    assert result.stdout == validate(files.good, files.bad).stdout
    assert out.read_text() == validate(files.good, files.bad, "--format", "json").stdout
    result = validate(files.good, "--format", "json", "-o", out, "-q")
    assert (result.output, json.loads(out.read_text())["summary"]["files"]) == ("", 1)


def test_a_report_file_that_cannot_be_made_is_said_before_anything_is_checked(files: Files, tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "none" / "report.json"):
        result = validate(files.good, "-o", out)
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr.startswith(f"tsw: error: {out}") and result.stderr.count("\n") == 1


def test_a_report_never_takes_the_place_of_a_file_to_check(files: Files) -> None:
    before = files.good.read_bytes()
    result = validate(files.folder, "-o", files.good)
    assert result.exit_code == 2
    assert result.stderr == (
        f"tsw: error: -o: {files.good} is one of the files to check; name another file for the report\n"
    )
    assert files.good.read_bytes() == before
    assert validate(files.bad, "--base", files.base, "-o", files.base).exit_code == 2


def test_a_full_disk_is_one_line_and_the_other_report_is_whole(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*TSW, files.good, files.bad, "--format", "json", "-o", out],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == (
        "tsw: error: standard output: the report could not be written: No space left on device; "
        "make room, or name another place with -o\n"
    )
    assert json.loads(out.read_text())["summary"] == {
        "files": 2, "valid": 1, "invalid": 1, "newer": 0, "unreadable": 0, "findings": 1, "exit_code": 1
    }  # fmt: skip


def test_a_closed_pipe_ends_the_run_with_one_line(files: Files) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*TSW, files.good], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1 and "Broken pipe" in done.stderr


def test_nothing_is_kept_of_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process asks for the next file only when the result before was taken."""
    checked: list[str] = []

    def check(target: Target) -> Result:
        checked.append(target.name)
        return Result.unread(target.name, "no reason")

    targets: Sequence[Target] = [Target(str(number), str(number)) for number in range(100)]
    results = check_all(targets, check, 1)  # type: ignore[arg-type]
    next(results)
    assert checked == ["0"]


def test_a_report_is_not_written_over_a_device(files: Files) -> None:
    """`-o /dev/stdout` would replace that link for all programs, where the user may."""
    refused = validate(files.good, "-o", "/dev/tsw-report")
    assert refused.exit_code == 3
    assert (
        "/dev/tsw-report: expected the name of a file to write, found a device; name a file in another"
        in refused.stderr
    )
    refused = validate(files.good, "-o", "-")
    assert refused.exit_code == 2
    assert "leave -o out, and the report goes to standard output" in refused.stderr
