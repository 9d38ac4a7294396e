"""Files that lie in memory, so that a harness reads and writes real descriptors without touching a disk.

Linux keeps them (memfd); elsewhere they are files in a temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tswitch_format.container import writer
from tswitch_format.errors import TruncatedError


class Slot:
    """A file at `path` whose content is set anew for each input."""

    def __init__(self, name: str) -> None:
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create(name)
            self.path = Path(f"/proc/self/fd/{self._fd}")
        else:
            self._fd, path = tempfile.mkstemp(suffix=name)
            self.path = Path(path)

    def put(self, data: bytes) -> Path:
        """Make `data` the content. Arrays that map the content before must be gone."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)
        return self.path

    def get(self) -> bytes:
        """The content."""
        return self.path.read_bytes()


class MemorySource:
    """Bytes as a `tswitch_format.container.source.Source`."""

    backend = "pread"

    def __init__(self, data: bytes) -> None:
        self.name = "input"
        self.length = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> memoryview:
        """See `Source.read`."""
        if offset + length > self.length:
            raise TruncatedError(
                rule="TSW-105", file=self.name, offset=offset, field="segment", expected=f"{length} bytes", found="less"
            )
        return memoryview(self._data)[offset : offset + length]

    def close(self) -> None:
        """Nothing to release."""


class _Output:
    """Takes the place of `AtomicFile`, whose fsync and renaming are no matter of these harnesses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def write_at(self, offset: int, data: bytes) -> None:
        self._data[offset : offset + len(data)] = data

    def commit(self) -> None:
        self.path.write_bytes(self._data)

    def abort(self) -> None:
        self._data.clear()


@contextlib.contextmanager
def written_to_memory() -> Iterator[None]:
    """Within the block .tsw files are written without temporary files: to slots."""
    with mock.patch.object(writer, "AtomicFile", _Output):
        yield
