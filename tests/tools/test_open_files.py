"""Checkpoints of more files than a process may open: few are open at once, and none is read that became another."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tswitch_format.checkpoint import CheckpointReader, open_checkpoint
from tswitch_format.errors import CheckpointError
from tswitch_tools.checkpoints import open_files
from tswitch_tools.checkpoints.open_files import ReadFile

SHARDS = 300


def shards(folder: Path, count: int) -> Path:
    """A folder of `count` files of one tensor each, full of the file's number."""
    folder.mkdir()
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        save_file({f"{number}": np.full(8, number, np.float32)}, folder / name)
    index = {"weight_map": {f"{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def value(reader: CheckpointReader, number: int) -> float:
    out = np.empty(32, np.uint8)
    reader.read_into(f"{number}", 0, out)
    (found,) = set(out.view(np.float32).tolist())
    return float(found)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """At most two files are open and idle."""
    monkeypatch.setattr(open_files, "_idle", {})
    monkeypatch.setattr(open_files, "MOST", 2)
    yield
    assert not open_files._idle  # every reader was closed


def open_now() -> int:
    return len(list(Path("/dev/fd").iterdir()))


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
import tswitch_format as tsw
from tswitch_tools.cli import tsw as command
base, expert, out = (sys.argv[1] + name for name in ("/base", "/expert", "/out.tsw"))
tsw.pack(base, expert, out, threads=4)
command(["restore", base, out, "-o", sys.argv[1] + "/whole.safetensors", "-q"], standalone_mode=False)
"""


def test_more_shards_than_files_that_may_be_open(tmp_path: Path) -> None:
    shards(tmp_path / "base", SHARDS)
    expert = shards(tmp_path / "expert", SHARDS)
    for number, path in enumerate(sorted(expert.glob("*.safetensors"))):
        save_file({f"{number}": np.full(8, number + 1, np.float32)}, path)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reader = open_checkpoint(tmp_path / "whole.safetensors")
    assert [value(reader, number) for number in range(SHARDS)] == [number + 1 for number in range(SHARDS)]
    reader.close()


def test_few_are_open_and_all_are_read(few: None, tmp_path: Path) -> None:
    before = open_now()
    reader = open_checkpoint(shards(tmp_path / "m", 20))
    assert open_now() <= before + 2
    for _ in range(2):
        assert [value(reader, number) for number in range(20)] == list(range(20))
        assert open_now() <= before + 2
    reader.close()
    reader.close()
    assert open_now() == before
    with pytest.raises(CheckpointError, match="it is closed; open it again"):
        value(reader, 3)


def test_the_one_read_last_stays_open(few: None, tmp_path: Path) -> None:
    files = []
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
        files.append(ReadFile(tmp_path / name))
        with files[0].opened():
            pass
    assert [file.path.name for file in open_files._idle] == ["c", "a"]
    for file in files:
        file.close()


def test_threads_never_lose_their_file(few: None, tmp_path: Path) -> None:
    reader = open_checkpoint(shards(tmp_path / "m", 24))
    numbers = [int(n) for n in np.random.default_rng(1).integers(0, 24, 4000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: value(reader, number), numbers)) == numbers
    reader.close()


def test_a_file_that_is_read_is_closed_after_that(few: None, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    file = ReadFile(tmp_path / "a")
    with file.opened() as fd:
        closing = threading.Thread(target=file.close)
        closing.start()
        closing.join()
        for number in range(5):  # others come and go
            (tmp_path / f"{number}").write_bytes(b"")
            other = ReadFile(tmp_path / f"{number}")
            other.close()
        assert os.pread(fd, 3, 0) == b"abc"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(CheckpointError, match="a: cannot be read, it is closed; open it again"), file.opened():
        pass


@pytest.mark.parametrize("how", ["replaced", "longer", "touched", "gone"])
def test_a_file_that_became_another_is_noticed(few: None, how: str, tmp_path: Path) -> None:
    reader = open_checkpoint(shards(tmp_path / "m", 5))
    path = sorted((tmp_path / "m").glob("*.safetensors"))[0]
    state = path.stat()
    if how == "replaced":
        (tmp_path / "m" / ".new").write_bytes(path.read_bytes())
        os.utime(tmp_path / "m" / ".new", ns=(state.st_atime_ns, state.st_mtime_ns))
        (tmp_path / "m" / ".new").rename(path)
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif how == "touched":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    else:
        path.unlink()
    expected = "cannot be opened: No such file" if how == "gone" else "changed or replaced meanwhile; leave it alone"
    before = open_now()
    with pytest.raises(CheckpointError, match=expected) as caught:
        value(reader, 0)
    assert path.name in str(caught.value)
    assert value(reader, 1) == 1
    assert open_now() <= before + 1
    reader.close()


def test_relative_paths_stay_where_they_were(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "m", 5)
    monkeypatch.chdir(tmp_path)
    reader = open_checkpoint(Path("m"))
    monkeypatch.chdir("/")
    assert [value(reader, number) for number in range(5)] == list(range(5))
    reader.close()


def test_advice_where_no_file_may_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"Too many open files; raise the number .* \(ulimit -n\), or close"):
            ReadFile(tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_idle_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the limit is lower than it was on loading, what is idle is closed."""
    monkeypatch.setattr(open_files, "_idle", {})
    reader = open_checkpoint(shards(tmp_path / "m", 40))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "a").write_bytes(b"")
    resource.setrlimit(resource.RLIMIT_NOFILE, (10, limits[1]))
    try:
        made = ReadFile(tmp_path / "a")
        made.close()
    except CheckpointError:  # this process has ten other files open
        assert not open_files._idle
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [value(reader, number) for number in range(40)] == list(range(40))
    reader.close()
