"""Files and folders that appear whole or not at all (design P4).

    AtomicFile     temporary file in the same folder -> fsync -> rename -> fsync of the folder
    AtomicFolder   the same for a folder of files

Until `commit` nothing is visible under the final name; whatever stood there stays. After `abort`, or an error, no partial
file is left. Permissions are as umask says. Every OSError comes out as OutputError with the path in it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tswitch_format.errors import OutputError

# Writes are cut at this, since Linux moves at most 2^31 - 4096 bytes a call.
_MAX_WRITE = 1 << 30


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside into an OutputError that names `path` and says what is left."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: could not be written: {reason}; what was there before is unchanged, no partial file is left"
        ) from error


class AtomicFile:
    """A new file, written under a temporary name beside `path`.

    `write` appends; `write_at` fills any place, from any thread. Usable as a context manager: leaving it without
    `commit` aborts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise OutputError(f"{path}: expected the name of a file to write, found a folder; name a file in it")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist; make it first")
        self._temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.tmp"
        self._fd: int | None = None
        with output_errors(path):
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._end = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self.write_at(self._end, data)
        self._end += memoryview(data).nbytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset, without moving the end that `write` appends to. Thread-safe."""
        if self._fd is None:
            raise OutputError(f"{self.path}: already committed or aborted; open a new output")
        view = memoryview(data)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        with output_errors(self.path):
            while view.nbytes:
                written = os.pwrite(self._fd, view[:_MAX_WRITE], offset)
                view = view[written:]
                offset += written

    def commit(self) -> None:
        """Make the file durable, then visible under its name. On an error nothing is visible."""
        if self._fd is None:
            raise OutputError(f"{self.path}: already committed or aborted; open a new output")
        try:
            with output_errors(self.path):
                os.fsync(self._fd)
                os.close(self._fd)
                self._fd = None
                self._temporary.replace(self.path)
                sync_folder(self.path.parent)
        except OutputError:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove the temporary file. Does nothing after `commit`."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None
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

    Write files into `temporary`; `commit` syncs them all and renames the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(
                f"{path}: expected a folder that does not exist yet or is empty; name another, or remove it first"
            )
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist; make it first")
        self.temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.tmp"
        with output_errors(path):
            self.temporary.mkdir()

    def commit(self) -> None:
        """Make all files durable, then the folder visible under its name."""
        try:
            with output_errors(self.path):
                for file in self.temporary.iterdir():
                    fd = os.open(file, os.O_RDONLY)
                    try:
                        os.fsync(fd)
                    finally:
                        os.close(fd)
                sync_folder(self.temporary)
                self.temporary.rename(self.path)
                sync_folder(self.path.parent)
        except OutputError:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove the temporary folder. Does nothing after `commit`."""
        shutil.rmtree(self.temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
