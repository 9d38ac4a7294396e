"""Threads over work whose heavy parts release the GIL (NumPy, zstd, SHA-256, reads and writes)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tswitch_format.errors import OptionError

_T = TypeVar("_T")
_R = TypeVar("_R")


def thread_count(threads: int | None) -> int:
    """`threads`, or as many as this process may use."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise OptionError(f"threads: expected at least 1, found {threads}")
    return threads


# Results that wait to be taken: at least so many a thread; more while they are small, so that threads need not wait for one
# large item at the front (an embedding is a fifth of a model, and sorts first).
_WAITING = 4
_WAITING_SMALL = 64
_WAITING_BYTES = 1 << 26


def ordered_map(
    function: Callable[[_T], _R], items: Iterable[_T], threads: int, *, nbytes: Callable[[_R], int] | None = None
) -> Iterator[_R]:
    """`map` over threads: results in the order of `items`, whatever the number of threads.

    Memory is bounded however many items there are: few are begun and not taken yet, more only while the results that wait
    are small, judged by `nbytes`. The first error ends it: nothing more is begun, what runs is waited for.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pending: deque[Future[_R]] = deque()

    def full() -> bool:
        if len(pending) < _WAITING * threads:
            return False
        if nbytes is None or len(pending) >= _WAITING_SMALL * threads:
            return True
        done = [future for future in pending if future.done()]
        return any(future.exception() for future in done) or sum(nbytes(f.result()) for f in done) > _WAITING_BYTES

    with ThreadPoolExecutor(threads, thread_name_prefix="tsw") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                while full():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
