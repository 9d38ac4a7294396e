"""The bytes of a file, by mapping it or by pread."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from tswitch_format.errors import OptionError, TruncatedError, TswError

Backend = Literal["auto", "mmap", "pread"]
_T = TypeVar("_T")


class Source(Protocol):
    """Random access to the bytes of a file that does not change. Thread-safe."""

    name: str
    length: int
    backend: str

    def read(self, offset: int, length: int) -> memoryview:
        """`length` bytes from `offset` on. Raises TruncatedError where the file is shorter by now."""
        ...

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room`, which may be used again, with the bytes from `offset` on. Raises TruncatedError."""
        ...

    def close(self) -> None:
        """Release the file. Memory that `read` gave out stays valid."""
        ...


class PreadSource:
    """Reads what is asked for, and no more. A file cut meanwhile gives an error, never a signal."""

    backend = "pread"
    _fd = -1  # where opening fails, __del__ still finds it
    _close = staticmethod(os.close)  # at the interpreter's end `os` may be gone before an open file is

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        # Without O_NONBLOCK opening a named pipe would wait for somebody to write into it.
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise TswError(f"{path}: expected a regular file, found something else; save it as a file first")
        self.length = status.st_size

    def mapped(self) -> MmapSource:
        """The same file as a mapping, also if its name means another one by now."""
        return MmapSource(self.name, self._fd, self.length)

    def read(self, offset: int, length: int) -> memoryview:
        """See `Source.read`."""
        self._check(offset, length)
        parts: list[bytes] = []
        while length:
            part = self._call(os.pread, length, offset)
            if not part:
                raise _cut(self.name, offset, length)
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))

    def read_into(self, offset: int, room: memoryview) -> None:
        """See `Source.read_into`."""
        self._check(offset, len(room))
        while room:
            count = self._call(os.preadv, [room], offset)
            if not count:
                raise _cut(self.name, offset, len(room))
            offset += count
            room = room[count:]

    def _check(self, offset: int, length: int) -> None:
        if self._fd < 0:
            raise TswError(f"{self.name}: the file is closed; open it again")
        if offset + length > self.length:  # before a buffer is allocated for it
            raise _cut(self.name, offset, offset + length - self.length)

    def _call(self, function: Callable[[int, Any, int], _T], what: object, offset: int) -> _T:
        try:
            return function(self._fd, what, offset)
        except OSError as error:
            raise TswError(
                f"{self.name}: byte {offset} could not be read: {error.strerror or error}; check the disk"
            ) from error

    def close(self) -> None:
        """See `Source.close`."""
        if self._fd >= 0:
            self._close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class MmapSource:
    """Maps the file, so that planes are used as they lie.

    If another program cuts the file, `read` says so. Touching a lost part of what was read before still kills the process
    (SIGBUS): TSW files are published by rename and never changed, so do not write into them.
    """

    backend = "mmap"

    def __init__(self, name: str, fd: int, length: int) -> None:
        self.name = name
        self.length = length
        try:
            self._map = mmap.mmap(fd, length, access=mmap.ACCESS_READ) if length else None
        except (OSError, ValueError) as error:
            raise TswError(f"{name}: could not be mapped into memory: {error}; open it with backend='pread'") from error
        self._closed = False

    def read(self, offset: int, length: int) -> memoryview:
        """See `Source.read`. A view of the mapping, no copy."""
        if self._closed:
            raise TswError(f"{self.name}: the file is closed; open it again")
        if self._map is None:
            return memoryview(b"")
        if self._map.size() < offset + length:  # of the file, as it is by now: 0.3 us, measured once
            raise _cut(self.name, offset, offset + length - self._map.size())
        return memoryview(self._map)[offset : offset + length]

    def read_into(self, offset: int, room: memoryview) -> None:
        """See `Source.read_into`."""
        room[:] = self.read(offset, len(room))

    def close(self) -> None:
        """See `Source.close`. The mapping goes with the last view of it."""
        self._closed = True
        if self._map is not None:
            with contextlib.suppress(BufferError):  # views are alive: the garbage collector unmaps after them
                self._map.close()
            self._map = None


def _cut(name: str, offset: int, missing: int) -> TruncatedError:
    return TruncatedError(
        rule="TSW-105",
        file=name,
        offset=offset,
        field="file",
        expected=f"{missing} more bytes",
        found="its end: it was cut after it was opened",
    )


def open_source(path: Path, backend: Backend) -> Source:
    """Open `path`. "auto" reads with pread; a reader that finds the mapped profile switches to the mapping."""
    if backend not in ("auto", "mmap", "pread"):
        raise OptionError(f"backend: expected 'auto', 'mmap' or 'pread', found {backend!r}")
    try:
        if path.is_dir():
            raise TswError(f"{path}: expected a .tsw file, found a folder; name a file in it")
        source = PreadSource(path)
    except OSError as error:
        reason = error.strerror or error
        raise TswError(f"{path}: could not be read: {reason}; check the path and its permissions") from error
    except ValueError as error:  # a path with a zero byte
        raise TswError(f"{str(path)!r}: could not be read: {error}; check the path") from error
    if backend != "mmap":
        return source
    try:
        return source.mapped()
    finally:
        source.close()
