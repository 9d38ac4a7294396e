"""The bytes of a file, by mapping it or by pread."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Literal, Protocol

from tswitch_format.errors import OptionError, TruncatedError, TswError

Backend = Literal["auto", "mmap", "pread"]


class Source(Protocol):
    """Random access to the bytes of a file that does not change. Thread-safe."""

    name: str
    length: int
    backend: str

    def read(self, offset: int, length: int) -> memoryview:
        """`length` bytes from `offset` on. Raises TruncatedError where the file is shorter by now."""
        ...

    def close(self) -> None:
        """Release the file. Memory that `read` gave out stays valid."""
        ...


class PreadSource:
    """Reads what is asked for, and no more. A file cut meanwhile gives an error, never a signal."""

    backend = "pread"
    _fd = -1  # where opening fails, __del__ still finds it

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.length = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> memoryview:
        """See `Source.read`."""
        if self._fd < 0:
            raise TswError(f"{self.name}: the file is closed; open it again")
        parts = []
        while length:
            part = os.pread(self._fd, length, offset)
            if not part:
                raise TruncatedError(
                    rule="TSW-105",
                    file=self.name,
                    offset=offset,
                    field="segment",
                    expected=f"{length} more bytes",
                    found="the end of the file",
                )
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        """See `Source.close`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class MmapSource:
    """Maps the file, so that planes are used as they lie. If another program cuts the file meanwhile, touching the lost
    part kills the process (SIGBUS): TSW files are published by rename and never changed, so do not write into them."""

    backend = "mmap"

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self.length = os.fstat(fd).st_size
            self._map = mmap.mmap(fd, self.length, access=mmap.ACCESS_READ) if self.length else None
        finally:
            os.close(fd)
        self._closed = False

    def read(self, offset: int, length: int) -> memoryview:
        """See `Source.read`. A view of the mapping, no copy."""
        if self._closed:
            raise TswError(f"{self.name}: the file is closed; open it again")
        return memoryview(self._map or b"")[offset : offset + length]

    def close(self) -> None:
        """See `Source.close`. The mapping goes with the last view of it."""
        self._closed = True
        if self._map is not None:
            with contextlib.suppress(BufferError):  # views are alive: the garbage collector unmaps after them
                self._map.close()
            self._map = None


def open_source(path: Path, backend: Backend) -> Source:
    """Open `path`. "auto" reads with pread; a reader that finds the mapped profile switches to the mapping."""
    if backend not in ("auto", "mmap", "pread"):
        raise OptionError(f"backend: expected 'auto', 'mmap' or 'pread', found {backend!r}")
    try:
        if path.is_dir():
            raise TswError(f"{path}: expected a .tsw file, found a folder; name a file in it")
        return MmapSource(path) if backend == "mmap" else PreadSource(path)
    except OSError as error:
        raise TswError(
            f"{path}: could not be read: {error.strerror or error}; check the path and its permissions"
        ) from error
