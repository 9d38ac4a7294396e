"""What pipelines take from this repository: the pre-commit hook, and the GitHub Action with the script that it runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from validate_files import Files

from tswitch_tools.cli import tsw as command

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with the `tsw` of this very Python, where the action installs it."""
    script = tmp_path / "tsw-validate" / "bin" / "tsw"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tswitch_tools "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script.parent


def yaml(name: str) -> Any:
    """A document of the repository's root."""
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text())


# pre-commit


def hook() -> Any:
    """The one hook that there is."""
    (found,) = yaml(".pre-commit-hooks.yaml")
    return found


def test_the_hook_takes_tsw_files_and_installs_the_command_line() -> None:
    found = hook()
    assert (found["id"], found["language"]) == ("tsw-validate", "python")
    matches = re.compile(found["files"]).search  # as pre-commit does
    assert matches("experts/math.tsw") and not matches("math.tsw.txt") and not matches("tsw/README.md")
    assert found["additional_dependencies"] == [".[cli]"]
    assert "cli" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_hook_passes_good_files_and_names_bad_ones(files: Files, programs: Path) -> None:
    def commit(*names: Path) -> subprocess.CompletedProcess[str]:
        line = [*shlex.split(hook()["entry"]), *hook()["args"], *map(str, names)]
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    good = commit(files.good)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    bad = commit(files.good, files.bad)
    assert bad.returncode == 1
    assert bad.stdout.startswith(f"{files.bad}: byte 64: ") and bad.stdout.endswith("2 files: 1 valid, 1 invalid\n")


# The GitHub Action


def step() -> Any:
    """The step of the action that validates."""
    (found,) = (step for step in yaml("action.yml")["runs"]["steps"] if step.get("id") == "validate")
    return found


def act(files: str, programs: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the step as GitHub does: bash, in this folder, all inputs in the environment."""
    action = yaml("action.yml")
    given = {name: value.get("default", "") for name, value in action["inputs"].items()} | {"files": files} | inputs
    environment = dict(os.environ)
    for name, value in step()["env"].items():
        (asked,) = re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", value).groups()  # type: ignore[union-attr]
        environment[name] = given[asked]
    folder = programs.parents[1]
    environment |= {"RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(folder / "output")}
    script = folder / "script.sh"
    script.write_text(step()["run"])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_action_is_as_its_schema_says() -> None:
    arguments = ["--builtin-schema", "vendor.github-actions", ROOT / "action.yml"]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_action_writes_no_input_into_a_script() -> None:
    action = yaml("action.yml")
    assert all("${{" not in step.get("run", "") for step in action["runs"]["steps"])
    assert {value[len("${{ inputs.") : -len(" }}")] for value in step()["env"].values()} == set(action["inputs"]) - {
        "python-version"
    }


def test_the_action_offers_what_the_command_offers() -> None:
    choices = {option.name: option.type for option in command.commands["validate"].params}
    inputs = yaml("action.yml")["inputs"]
    for name, known in (("level", choices["level"].choices), ("format", choices["form"].choices)):  # type: ignore[attr-defined]
        assert inputs[name]["default"] in known
        assert all(choice in inputs[name]["description"] for choice in known)


def test_the_action_installs_this_repository(tmp_path: Path) -> None:
    (install,) = (step for step in yaml("action.yml")["runs"]["steps"] if step.get("name") == "Install tsw")
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"; printf \'#!/bin/sh\\necho pip "$@"\\n\' > "$3/bin/pip"; chmod +x "$3/bin/pip"\n'
    )
    fake.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path / "a b"), "GITHUB_ACTION_PATH": "/x y",
        "TSW_PYTHON": str(fake),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", install["run"]], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("pip install --quiet /x y[cli]\n", "")


def test_the_action_passes_good_files_and_fails_for_bad_ones(files: Files, programs: Path) -> None:
    output = programs.parents[1] / "output"
    good = act(f"{files.good}\r\n\n", programs)
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{files.good}: valid\n", "")
    assert output.read_text() == "exit-code=0\n"
    bad = act(f"{files.good}\n{files.bad}", programs, report="report.sarif", jobs="2")
    assert bad.returncode == 1 and "[TSW-701]" in bad.stdout
    assert output.read_text() == "exit-code=0\nexit-code=1\n"
    assert len(json.loads((programs.parents[1] / "report.sarif").read_text())["runs"][0]["results"]) == 1
    assert act(str(files.bad), programs, base=str(files.missing), level="structure").returncode == 3
    assert act("", programs).returncode == 2


def test_the_action_takes_inputs_as_values_only(programs: Path) -> None:
    """A program in the place of `tsw` shows what it is given."""
    (programs / "tsw").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    mark = programs.parents[1] / "mark"
    for evil in (f"$(touch {mark})", f"`touch {mark}`", f'"; touch {mark}; "', f"'; touch {mark} #", "--help", "a  *"):
        done = act(f"{evil}\n{evil}", programs, level=evil, base=evil, format=evil, report=evil, jobs=evil)
        options = ["--level", evil, "--jobs", evil, "--base", evil, "--format", evil, "--out", evil]
        assert done.stdout.split("\0")[:-1] == ["validate", *options, "--", evil, evil]
        assert (done.returncode, done.stderr) == (0, "")
    assert not mark.exists()
