"""Records what a program does to the files below a folder, while it does it; and fails calls, to see what happens.

    Recorder     puts itself in the place of the functions of `os` that change files
    Call         one such call, as the recorder shows it to the function that may fail it

After every change the real folder is compared with the recorded one, so nothing passes by unrecorded. A way to change
files that the recorder does not know is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from crash_disk import ROOT, Change, Disk, Link, Remove, Rename, Resize, SyncFile, SyncFolder, Write

# Other ways to change files: whoever begins to use one has to teach it to the recorder.
UNKNOWN = (
    "copy_file_range", "dup", "dup2", "link", "posix_fallocate", "pwritev", "removexattr", "renames", "sendfile",
    "setxattr", "splice", "symlink", "sync", "truncate", "write", "writev",
)  # fmt: skip
KNOWN = (
    "close", "fdatasync", "fsync", "ftruncate", "mkdir", "open", "pwrite", "remove", "rename", "replace", "rmdir", "unlink",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Call:
    """A call about to be made: "open", "open folder", "pwrite", "fsync", "fsync folder", "rename", "close", ..."""

    number: int
    kind: str
    length: int = 0  # of what is written


class Recorder:
    """Use as a context manager around what writes. `log` then has the changes, `calls` the calls, failed ones included.

    `interfere` is called before each call and may raise an error in its place; for "pwrite" it may also return how many
    bytes to write at most. A close is done before it fails, as systems do it.
    """

    def __init__(self, root: Path, interfere: Callable[[Call], int | None] | None = None) -> None:
        self.root = Path(os.path.realpath(root))
        self.before = Disk.read(self.root)
        self.disk = self.before.copy()
        self.log: list[Change] = []
        self.calls: list[Call] = []
        self._interfere = interfere
        self._nodes: dict[int, int] = {}  # node by descriptor
        self._lock = threading.RLock()
        self._real: dict[str, Any] = {}
        self._next = 1 + max(*self.disk.folders, *self.disk.files, ROOT)

    @property
    def left_open(self) -> int:
        """Descriptors below the folder that were not closed."""
        return len(self._nodes)

    def __enter__(self) -> Self:
        for name in (*KNOWN, *UNKNOWN):
            if hasattr(os, name):
                self._real[name] = getattr(os, name)
                known = getattr(self, f"_{name}") if name in KNOWN else self._refuse(name)
                setattr(os, name, known)
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        self._compare()

    # The calls

    def _refuse(self, name: str) -> Callable[..., None]:
        def refused(*_: Any, **__: Any) -> None:
            raise AssertionError(f"os.{name} was called: the recorder does not know what it does; teach it")

        return refused

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._lock:
            place = self._find(path, dir_fd)
            if place is None:
                if flags & _WRITING and not os.fsdecode(path).startswith("/dev/"):
                    raise AssertionError(f"{path}: opened for writing outside of {self.root}")
                return self._call("open", path, flags, mode, dir_fd=dir_fd)
            folder, name = place
            node = self.disk.folders[folder].get(name, -1) if name else folder
            self._announce("open folder" if node in self.disk.folders else "open")
            fd = self._call("open", path, flags, mode, dir_fd=dir_fd)
            if node < 0:
                node = self._new()
                self._change(Link(folder, name, node))
            elif flags & os.O_TRUNC:
                self._change(Resize(node, 0))
            self._nodes[fd] = node
            return fd

    def _close(self, fd: int) -> None:
        with self._lock:
            watched = self._nodes.pop(fd, None)
            self._call("close", fd)
            if watched is not None:
                self._announce("close folder" if watched in self.disk.folders else "close")

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        with self._lock:
            if fd not in self._nodes:
                raise AssertionError("os.pwrite to a file that was not opened below the folder")
            limit = self._announce("pwrite", len(data))
            count = self._call("pwrite", fd, data[:limit], offset) if limit != 0 else 0
            if count:
                self._change(Write(self._nodes[fd], offset, bytes(data[:count])))
            return int(count)

    def _ftruncate(self, fd: int, length: int) -> None:
        with self._lock:
            self._announce("ftruncate")
            self._call("ftruncate", fd, length)
            self._change(Resize(self._nodes[fd], length))

    def _fsync(self, fd: int) -> None:
        with self._lock:
            node = self._nodes[fd]
            folder = node in self.disk.folders
            self._announce("fsync folder" if folder else "fsync")
            self._call("fsync", fd)
            self._change(SyncFolder(node) if folder else SyncFile(node))

    _fdatasync = _fsync  # the length of a file is part of its data

    def _rename(self, source: Any, target: Any) -> None:
        with self._lock:
            (folder, old), (target_folder, name) = self._place(source), self._place(target)
            assert folder == target_folder, "a rename from one folder to another is not one change of one folder"
            self._announce("rename")
            self._call("rename", source, target)
            self._change(Rename(folder, old, name, self.disk.folders[folder][old]))

    _replace = _rename

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            folder, name = self._place(path, dir_fd)
            self._announce("mkdir")
            self._call("mkdir", path, mode, dir_fd=dir_fd)
            node = self._new()
            self.disk.folders[node] = {}
            self.before.folders[node] = {}
            self._change(Link(folder, name, node))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._take_away("unlink", path, dir_fd)

    _remove = _unlink

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._take_away("rmdir", path, dir_fd)

    def _take_away(self, kind: str, path: Any, dir_fd: int | None) -> None:
        with self._lock:
            folder, name = self._place(path, dir_fd)
            self._announce(kind)
            self._call(kind, path, dir_fd=dir_fd)
            self._change(Remove(folder, name))

    # The record

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return self._real[name](*args, **options)

    def _announce(self, kind: str, length: int = 0) -> int | None:
        call = Call(len(self.calls), kind, length)
        self.calls.append(call)
        return self._interfere(call) if self._interfere else None

    def _change(self, change: Change) -> None:
        self.disk.apply(change)
        self.log.append(change)
        self._compare()

    def _compare(self) -> None:
        found, expected = Disk.read(self.root).tree(), self.disk.tree()
        different = sorted(name for name in {*found, *expected} if found.get(name, 0) != expected.get(name, 0))
        assert not different, f"changed without being recorded: {different}"

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    def _place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str]:
        place = self._find(path, dir_fd)
        assert place is not None, f"{path}: changed outside of {self.root}"
        return place

    def _find(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """Folder and name of a path (no name for the root), None if it is not below the root."""
        text = os.fsdecode(path)
        if dir_fd is not None:
            return (self._nodes[dir_fd], text) if dir_fd in self._nodes else None
        full = Path(os.path.realpath(Path(text).parent), Path(text).name)
        if full == self.root:
            return ROOT, ""
        if self.root not in full.parents:
            return None
        folder = ROOT
        for part in full.relative_to(self.root).parts[:-1]:
            folder = self.disk.folders[folder][part]
        return folder, full.name
