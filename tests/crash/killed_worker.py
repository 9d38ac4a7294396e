"""Runs `tsw` commands in copies of itself and kills them. A program: one JSON request a line comes in, one answer goes out.

    {"arguments": [...], "after": seconds}     kill it by then
    {"arguments": [...], "call": n}            it kills itself at its n-th call, even n before it and odd n after
    answer: {"status": exit status, or minus the signal, "seconds": time it ran}

All is imported once, before the copies are made, so that a run takes only the time of its work.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from tswitch_tools.cli import tsw

CALLS = ("close", "fsync", "mkdir", "open", "pwrite", "rename", "replace", "rmdir", "unlink")


def die_at(moment: int) -> None:
    """Count the calls from the first that makes something on, and end at one of them."""
    count = 0

    def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            if count == 0 and name != "mkdir" and not (name == "open" and args[1] & os.O_CREAT):
                return real(*args, **options)
            number, count = count, count + 1
            if number == moment // 2 and moment % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **options)
            if number == moment // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name), name))


def run(arguments: Sequence[str], after: float | None, call: int | None) -> dict[str, float]:
    begin = time.perf_counter()
    alive, held = os.pipe()  # the copy holds an end of it, until it is gone
    child = os.fork()
    if child == 0:
        os.close(alive)
        if call is not None:
            die_at(call)
        try:
            tsw(arguments, standalone_mode=False)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a copy must never return into the loop below
            traceback.print_exc()
            os._exit(1)
    os.close(held)
    if after is not None and not select.select([alive], [], [], max(0.0, begin + after - time.perf_counter()))[0]:
        os.kill(child, signal.SIGKILL)  # our own, and not waited for yet: its number is nobody else's
    _, status = os.waitpid(child, 0)
    os.close(alive)
    return {"status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request["arguments"], request.get("after"), request.get("call"))), flush=True)
