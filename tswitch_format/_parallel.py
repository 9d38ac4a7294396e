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


def ordered_map(function: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[_R]:
    """`map` over threads: results in the order of `items`, of which at most 4 a thread are begun and not taken yet.

    So results do not depend on the number of threads, and memory is bounded however many items there are. The first error
    ends it: nothing more is begun, what runs is waited for.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pending: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="tsw") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
