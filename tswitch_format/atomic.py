"""Files and folders that appear whole or not at all.

    AtomicFile     temporary file in the same folder -> fsync -> rename -> fsync of the folder
    AtomicFolder   the same for a folder of files
    WritableFile   one file of either: written in any order, from any thread
    check_output   what can be known of an output before any work

Until `commit` nothing is visible under the final name; whatever stood there stays. `abort`, which an error in `commit`
calls too, takes the temporary file away. A process that is killed leaves it: a name that begins with a dot and ends in .tmp,
new in every run, so no later one trips over it; none removes it either, as its owner may be alive. A symbolic link under the
final name is replaced itself, what it points to stays. Permissions are as umask says. Every OSError comes out as OutputError
with the path in it. tests/crash shows what is left after a crash at any moment, and that no fsync here can go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tswitch_format.errors import OutputError

# Writes are cut at this, since Linux moves at most 2^31 - 4096 bytes a call.
_MAX_WRITE = 1 << 30
# After so many bytes the system is told to begin writing them out. Left to the last moment, fsync waits for the whole file:
# 800 MB took 0.53 s (0.18 s to write, the rest in fsync), and 0.39 s begun 32 MiB at a time; less, and it waits each time (1.0
# s at 2 MiB). Measured once, on 2026-11-20, on an SSD. With other work to do meanwhile, most of that time is free.
_WRITE_BEHIND = 1 << 25

_DEVICES = ("/dev", "/dev/fd")

_WHAT_TO_DO = {
    "free some space, or name another output": (errno.ENOSPC, errno.EDQUOT),
    "name an output on a file system that takes files of this size": (errno.EFBIG,),
    "check the permissions of its folder, or name another output": (errno.EACCES, errno.EPERM, errno.EROFS),
    "check that its folder is still there, then run it again": (errno.ENOENT,),
    "raise the number of files that may be open, or close other programs": (errno.EMFILE, errno.ENFILE),
    "name another output": (
        errno.EBUSY, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY
    ),
}  # fmt: skip
_ADVICE = {number: advice for advice, numbers in _WHAT_TO_DO.items() for number in numbers}


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside into an OutputError that names `path`, and says what is left and what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        advice = _ADVICE.get(error.errno or 0, "check the disk, then run it again")
        raise OutputError(
            f"{path}: could not be written: {reason}; what was there before is unchanged; {advice}"
        ) from error


class WritableFile:
    """A new file, filled in any order. All methods but `close` may be called from several threads at once.

    `shown` is the name to give in messages. Raises OutputError.
    """

    def __init__(self, path: Path, shown: Path) -> None:
        self._shown = shown
        self._lock = threading.Lock()
        self._fresh = 0  # bytes written since writing out was begun last, and where they lie
        self._low, self._high = sys.maxsize, 0
        with output_errors(shown):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset."""
        view = memoryview(data)
        if view.nbytes == 0:
            return
        if self._fd < 0:
            raise OutputError(f"{self._shown}: already committed or aborted; open a new output")
        view = view.cast("B")
        begin = offset
        with output_errors(self._shown):
            while view.nbytes:
                written = os.pwrite(self._fd, view[:_MAX_WRITE], offset)
                if not written:  # no regular file does this; going on would be going on for ever
                    raise OSError(errno.EIO, "the system wrote none of the bytes it was given")
                view = view[written:]
                offset += written
            self._write_behind(begin, offset)

    def _write_behind(self, begin: int, end: int) -> None:
        with self._lock:
            self._fresh += end - begin
            self._low, self._high = min(self._low, begin), max(self._high, end)
            if self._fresh < _WRITE_BEHIND:
                return
            low, high = self._low, self._high
            self._fresh, self._low, self._high = 0, sys.maxsize, 0
        if hasattr(os, "posix_fadvise"):  # on Linux, "not needed" begins to write dirty pages out, and waits for none
            with contextlib.suppress(OSError):  # advice only
                os.posix_fadvise(self._fd, low, high - low, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make what was written durable."""
        if self._fd < 0:
            raise OutputError(f"{self._shown}: already committed or aborted; open a new output")
        with output_errors(self._shown):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close it. Safe to call twice. No writing may be under way."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with output_errors(self._shown):
                os.close(fd)


class AtomicFile:
    """A new file, written under a temporary name beside `path`.

    `write` appends; `write_at` fills any place, from any thread. Usable as a context manager: leaving it without
    `commit` aborts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with output_errors(path):
            _check_name(path)
            if path.is_dir():
                raise OutputError(f"{path}: expected the name of a file to write, found a folder; name a file in it")
            if path.exists() and not path.is_file():  # a device or pipe would be replaced, not written to
                raise OutputError(f"{path}: expected a regular file or none, found a special one; name another output")
        self._temporary = _temporary(path)
        self._file = WritableFile(self._temporary, path)
        self._end = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self.write_at(self._end, data)
        self._end += memoryview(data).nbytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset, without moving the end that `write` appends to. Thread-safe."""
        self._file.write_at(offset, data)

    def commit(self) -> None:
        """Make the file durable, then visible under its name. On an error nothing is visible."""
        try:
            self._file.sync()
            self._file.close()
            with output_errors(self.path):
                self._temporary.replace(self.path)
        except OutputError:
            self.abort()
            raise
        _make_name_durable(self.path)

    def abort(self) -> None:
        """Remove the temporary file. Does nothing after `commit`."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class AtomicFolder:
    """A new folder, filled under a temporary name beside `path`. `path` must not exist, or be an empty folder.

    `open` begins a file in it; `commit` syncs them all and renames the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with output_errors(path):
            _check_name(path)
            if path.name in ("", ".."):  # what cannot be renamed is found out now, not when all has been written
                raise OutputError(f"{path}: expected the name of a folder, found a way to one; give its name")
            if path.is_symlink():
                raise OutputError(
                    f"{path}: expected a folder that does not exist yet or is empty, found a symbolic link; "
                    "name the folder it points to"
                )
            if path.exists() and not (path.is_dir() and not any(path.iterdir())):
                raise OutputError(
                    f"{path}: expected a folder that does not exist yet or is empty; name another, or remove it first"
                )
        self._temporary = _temporary(path)
        self._files: list[WritableFile] = []
        self._committed = False
        with output_errors(path):
            self._temporary.mkdir()

    def open(self, name: str) -> WritableFile:
        """Begin the file of that name."""
        file = WritableFile(self._temporary / name, self.path)
        self._files.append(file)
        return file

    def commit(self) -> None:
        """Make all files durable, then the folder visible under its name. On an error nothing is visible."""
        if self._committed:
            raise OutputError(f"{self.path}: already committed or aborted; open a new output")
        try:
            for file in self._files:
                file.sync()
                file.close()
            with output_errors(self.path):
                sync_folder(self._temporary)
                self._temporary.rename(self.path)
        except OutputError:
            self.abort()
            raise
        self._committed = True
        _make_name_durable(self.path)

    def abort(self) -> None:
        """Remove the temporary folder. Does nothing after `commit`."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Find out before any work what could not be written, or would overwrite one of the inputs. Raises OutputError."""
    with output_errors(path):
        _check_name(path)
        if path.exists() and any(file.exists() and path.samefile(file) for file in inputs):
            raise OutputError(f"{path}: the output is one of the inputs; name another output")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Does nothing on file systems that say they have no such operation."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # as some shared folders of virtual machines answer; then there is no way
            raise
    finally:
        os.close(fd)


def _make_name_durable(path: Path) -> None:
    """The last step of a commit: the new content is visible already, only a power failure could still lose its name."""
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: written whole and in place, but its folder could not be synced: {error.strerror or error}; "
            "check the disk, a power failure now could bring back what was there before"
        ) from error


def _check_name(path: Path) -> None:
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r}: expected a path, found a zero byte in it; name another output")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if os.path.normpath(path.parent.absolute()) in _DEVICES:  # whoever may would replace /dev/stdout for all programs
        raise OutputError(
            f"{path}: expected the name of a file to write, found a device; name a file in another folder"
        )


def _temporary(path: Path) -> Path:
    start = os.fsencode(path.name)[:100].decode(errors="ignore")  # names have at most 255 bytes
    return path.parent / f".{start}.{secrets.token_hex(6)}.tmp"
