"""How much time and memory one input may take.

Time is the process's CPU time, so that a busy machine is no finding. Memory is address space, which Linux limits exactly: what
would take more fails with MemoryError, and that is a finding. Elsewhere only time is checked.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 1.0  # for any input
MEMORY = 200 << 20  # bytes, for any input
THROUGHPUT = (
    20_000_000  # bytes decoded a second: a tenth of what the slowest codec does, and Atheris slows down threefold
)
DECODED = 64 << 20  # bytes: files that declare more are opened, and not decoded

_LINUX = sys.platform == "linux"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


class BrokenPromiseError(Exception):
    """The library does what it says it never does."""


def promise(kept: object, text: str) -> None:
    """Raise BrokenPromiseError unless it is kept."""
    if not kept:
        raise BrokenPromiseError(text)


@contextlib.contextmanager
def limited(decoded: int = 0) -> Iterator[None]:
    """Check that the block keeps the limits, where what it decodes may take `decoded` bytes."""
    most = SECONDS + decoded / THROUGHPUT
    before = time.process_time()
    try:
        with _address_space(MEMORY + 8 * decoded):
            yield
    except MemoryError as error:
        raise BrokenPromiseError(f"asked for more than {MEMORY + 8 * decoded} bytes") from error
    taken = time.process_time() - before
    promise(taken <= most, f"took {taken:.2f} s of CPU time, more than {most:.2f}")


@contextlib.contextmanager
def _address_space(growth: int) -> Iterator[None]:
    if not _LINUX:
        yield
        return
    used = int(_STATM.read_bytes().split()[0]) * _PAGE
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + growth, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
