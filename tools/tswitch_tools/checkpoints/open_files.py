"""Files that are read in places, of which few are open at once however many there are.

    ReadFile   a file that is opened when it is read, and closed again when many others were read since

A merge of 20 experts of 60 files each has 1,200 of them, and a process may often open 1,024. Not more than `MOST` stay open
without being read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from tswitch_format.errors import CheckpointError

_SOFT = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
MOST = max(8, min(256, _SOFT // 4 if _SOFT > 0 else 256))  # the rest is for others, such as what is written

_MORE_FILES = "raise the number of files that may be open (ulimit -n), or close other programs"

_lock = threading.Lock()
_idle: dict[ReadFile, None] = {}  # open and not being read, the one that has not been read longest first


class ReadFile:
    """A regular file. It is opened at once, and later again where it has been closed; it must be the same then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._absolute = path.absolute()  # where it stays should the current folder change
        self._fd = -1
        self._readers = 0
        self._closed = False
        self._identity: tuple[int, ...] = ()
        with self.opened():
            pass

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Its descriptor, which stays open for the length of the block. From any thread. Raises CheckpointError."""
        with _lock:
            if self._fd < 0:
                self._open()
            _idle.pop(self, None)
            self._readers += 1
        try:
            yield self._fd
        finally:
            with _lock:
                self._readers -= 1
                if not self._readers:
                    _idle[self] = None
                    if self._closed:
                        self._shut()
                while len(_idle) > MOST:
                    next(iter(_idle))._shut()

    def close(self) -> None:
        """Close it, once nobody reads it any more. Safe to call twice."""
        with _lock:
            self._closed = True
            if self in _idle:
                self._shut()

    def _open(self) -> None:
        if self._closed:
            raise CheckpointError(f"{self.path}: cannot be read, it is closed; open it again")
        fd = self._descriptor()
        found = os.fstat(fd)
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        problem = None
        if not stat.S_ISREG(found.st_mode):
            problem = "expected a regular file, found another kind; pass a file"
        elif self._identity not in ((), identity):
            problem = (
                "expected the file that was opened before, found one that was changed or replaced meanwhile; leave it "
                "alone while it is read, then run it again"
            )
        if problem:
            os.close(fd)
            raise CheckpointError(f"{self.path}: {problem}")
        self._fd, self._identity = fd, identity

    def _descriptor(self) -> int:
        while True:
            try:
                # Without waiting, should it be a pipe; that has no effect on regular files.
                return os.open(self._absolute, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            except OSError as error:
                full = error.errno in (errno.EMFILE, errno.ENFILE)
                if full and _idle:
                    next(iter(_idle))._shut()
                    continue
                advice = _MORE_FILES if full else "check the path and its permissions"
                raise CheckpointError(f"{self.path}: cannot be opened: {error.strerror}; {advice}") from error

    def _shut(self) -> None:
        """Close it for now. It is idle."""
        del _idle[self]
        fd, self._fd = self._fd, -1
        os.close(fd)
