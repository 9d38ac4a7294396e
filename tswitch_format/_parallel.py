"""Threads over work whose heavy parts release the GIL (NumPy, zstd, SHA-256, reads and writes).

ordered_map        `map` over threads
one_blas_thread    while NumPy does linear algebra in one of them
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from tswitch_format.errors import OptionError

_T = TypeVar("_T")
_R = TypeVar("_R")


def thread_count(threads: int | None) -> int:
    """`threads`, or as many as this process may use."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(threads, int) or threads < 1:
        raise OptionError(f"threads: expected a number from 1 up, found {threads!r}")
    return threads


# Items that are begun and not taken: so many a thread; more while their results are small, so that threads need not wait for
# one large item at the front (an embedding is a fifth of a model, and sorts first), fewer where they are large.
_WAITING = 4
_WAITING_SMALL = 64
_WAITING_BYTES = 1 << 26


def ordered_map(
    function: Callable[[_T], _R], items: Iterable[_T], threads: int, *, nbytes: Callable[[_T], int] | None = None
) -> Iterator[_R]:
    """`map` over threads: results in the order of `items`, whatever the number of threads.

    Memory is bounded however many items there are: few are begun and not taken yet; with `nbytes`, what each result will take
    at most, many small ones or one more than threads of large ones. The first error ends it: nothing more is begun, what runs
    is waited for.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pending: deque[tuple[Future[_R], int]] = deque()

    def full() -> bool:
        if nbytes is None:
            return len(pending) >= _WAITING * threads
        if len(pending) <= threads:  # what runs, and what is taken next
            return False
        return len(pending) >= _WAITING_SMALL * threads or sum(size for _, size in pending) > _WAITING_BYTES

    with ThreadPoolExecutor(threads, thread_name_prefix="tsw") as pool:
        try:
            for item in items:
                pending.append((pool.submit(function, item), nbytes(item) if nbytes else 0))
                while full():
                    yield pending.popleft()[0].result()
            while pending:
                yield pending.popleft()[0].result()
        finally:
            for future, _ in pending:
                future.cancel()


_blas_lock = threading.Lock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's BLAS start no threads, where threadpoolctl is there to tell it (extra `fast`): they would spin for some 20 ms
    after they are done, and take processors from ours. A setting of the process: one of our threads has it at a time."""
    with _blas_lock, _blas_limit() or contextlib.nullcontext():
        yield


def _blas_limit() -> contextlib.AbstractContextManager[object] | None:
    controller = _blas_controller()
    return None if controller is None else controller.limit(limits=1, user_api="blas")


@cache
def _blas_controller() -> Any:
    """Made once: it looks through all libraries that are loaded."""
    return import_module("threadpoolctl").ThreadpoolController() if find_spec("threadpoolctl") else None
