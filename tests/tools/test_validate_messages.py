"""What `tsw validate` says to people, line by line: where, what was expected, what was found, what to do.

The files are copies of a golden file, which never changes, so that the lines are exact to the last checksum.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from validate_files import Files, arrays, validate

import tswitch_format as tsw
from tswitch_tools.validation.result import Result, Tally
from tswitch_tools.validation.text_report import TextReport

GOLDEN = Path(__file__).parents[1] / "golden" / "archive.tsw"
AGAIN = "do not use the file; get it again from where it was published"
FAULTY = "the program that made the file is at fault; make it again, and report this to its publisher"
THIS_BASE = "give the base that the file was made from; 'tsw info' says which"
CUT = "the file is incomplete: get it again from where it was published"
NOT_TSW = "check that this is the file that you meant"
MAGIC = "byte 0: magic: expected a TSW file (89 54 53 57 0d 0a 1a 0a), found"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


def said(*arguments: object) -> list[str]:
    """The lines on standard output. Nothing is on standard error."""
    result = validate(*arguments)
    assert result.stderr == ""
    return result.stdout.splitlines()


def flipped(*places: int, by: int = 1) -> Callable[[bytes], bytes]:
    """Change bits at places; those below 0 count from the end."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for place in places:
            changed[place] ^= by
        return bytes(changed)

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda data: b"", f"byte 0: file: expected at least 128 bytes, found 0 [TSW-100]; {CUT}"),
        (lambda data: data[:100], f"byte 0: file: expected at least 128 bytes, found 100 [TSW-100]; {CUT}"),
        (flipped(0), f"{MAGIC} 88 54 53 57 0d 0a 1a 0a [TSW-101]; {NOT_TSW}"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 10792\n",
            f"{MAGIC} a Git LFS pointer [TSW-101]; run 'git lfs pull' to get the file itself",
        ),
        (
            lambda data: data.replace(b"\r\n", b"\n"),
            f"{MAGIC} 89 54 53 57 0a 1a 0a 01 [TSW-101]; it was damaged by a transfer in text mode: transfer it again in "
            "binary mode",
        ),
        (
            flipped(8, by=3),
            "byte 8: major version: expected 1, found 2 [TSW-102]; update tswitch-format to read this file",
        ),
        (flipped(12), f"byte 60: prologue.crc32c: expected d9b7d437, found c59ec933 [TSW-104]; {AGAIN}"),
        (
            lambda data: data[:-9],
            f"byte 32: file length: expected 10792 bytes as the prologue says, found 10783 [TSW-105]; {CUT}",
        ),
        (flipped(70), f"byte 64: tasks[0].segments[0]: expected CRC32C 0d9c0abd, found c6ca7118 [TSW-701]; {AGAIN}"),
        (
            flipped(-100),
            "byte 5349: index SHA-256: expected 8601a4ae6bd8eb40ffcf2151e70a4aa80973f9aa1b594997bd9c6e211e934ae9, found "
            f"f6f045121dd2f6fc342e65c48a2af1e6173786a53c3f9b26c7721df6b683d6f7 [TSW-204]; {AGAIN}",
        ),
        (flipped(-60), f"byte 10784: trailer.crc32c: expected 2a3faa0b, found 8e515ea1 [TSW-202]; {AGAIN}"),
        (flipped(-1), f"byte 10788: trailer.end_magic: expected 57 53 54 0a, found 57 53 54 0b [TSW-201]; {AGAIN}"),
    ],
)
def test_lines_of_bad_files(tmp_path: Path, change: Callable[[bytes], bytes], line: str) -> None:
    path = tmp_path / "file.tsw"
    path.write_bytes(change(GOLDEN.read_bytes()))
    first, *more = said(path)  # what is wrong beyond may follow from the first
    assert first == f"{path}: {line}"
    assert all(other.endswith(first[first.rindex("; ") :]) for other in more)


def test_every_finding_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "file.tsw"
    data = bytearray(GOLDEN.read_bytes())
    for place in (70, 5000):
        data[place] ^= 1
    path.write_bytes(data)
    lines = said(path)
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: byte ") and line.endswith(f"[TSW-701]; {AGAIN}") for line in lines)


def test_lines_of_a_wrong_base(files: Files, tmp_path: Path) -> None:
    base = arrays()
    del base["a"]
    base["b"] = base["b"][:3]
    base["d"] = base["c"]
    save_file(base, tmp_path / "base.safetensors")
    assert said(files.good, "--base", tmp_path / "base.safetensors") == [
        f"{files.good}: base tensor 'd': expected no tensor of that name, found one [TSW-901]; {THIS_BASE}",
        f"{files.good}: base tensor 'a': expected the tensor, found none [TSW-901]; {THIS_BASE}",
        f"{files.good}: base tensor 'b': expected F16[32, 64], found F16[3, 64] [TSW-901]; {THIS_BASE}",
    ]


def test_lines_of_files_that_cannot_be_read(files: Files) -> None:
    assert said(files.missing) == [
        f"{files.missing}: could not be read: No such file or directory; check the path and its permissions"
    ]
    assert said(files.good, "--base", GOLDEN) == [
        f"{files.good}: its base could not be opened: {GOLDEN}: expected a .safetensors file, a folder or index.json of "
        "shards, or a .bin, .pt or .pth file; found none of them; convert the checkpoint to safetensors",
    ]


def test_faults_of_the_program_that_made_the_file() -> None:
    finding = tsw.Finding("TSW-303", "error", "x", 70, "index", "keys that ascend", "b before a", "")
    result = Result("x.tsw", tsw.ValidationReport("x", "full", (finding,)))
    assert TextReport().add(result) == (
        f"x.tsw: byte 70: index: expected keys that ascend, found b before a [TSW-303]; {FAULTY}\n"
    )


def test_several_files_have_a_sum(files: Files) -> None:
    good, bad = files.good, files.bad
    assert said(good) == [f"{good}: valid"]
    assert said(good, bad, files.newer, files.missing)[-1] == "4 files: 1 valid, 1 invalid, 1 newer, 1 unreadable"
    again = files.made("again.tsw", good.read_bytes())
    assert said(good, again) == [f"{good}: valid", f"{again}: valid", "2 files: 2 valid"]
    assert said(good, again, "-q") == []
    quiet = said(good, bad, "-q")
    assert len(quiet) == 2 and quiet[0].startswith(f"{bad}: byte 64: ") and quiet[1] == "2 files: 1 valid, 1 invalid"


def test_names_never_break_a_line(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"a\n\x1b[31m\xff\xe2\x80\xae.tsw")
    files.made(name, files.good.read_bytes())
    monkeypatch.chdir(files.folder)
    assert said(name) == ["a\\n\\x1b[31m\\xff\\u202e.tsw: valid"]
    assert TextReport().end(Tally()) == ""
