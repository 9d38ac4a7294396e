"""Many files, each result in its turn. Processes, not threads: of small files most of the work holds the interpreter's lock
(two threads were slower than one), and a process that crashes, or is killed for its memory, costs one file and not the run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from tswitch_tools.validation.checker import Checker
from tswitch_tools.validation.result import Result
from tswitch_tools.validation.targets import Target

_AHEAD = 4  # files for each worker that may be done before their turn: bounds what is kept


def check_all(targets: Sequence[Target], checker: Checker, jobs: int) -> Iterator[Result]:
    """The results of all targets, in their order. One job is done in this process."""
    jobs = min(jobs, len(targets))
    if jobs <= 1:
        yield from map(checker, targets)
        return
    workers: list[_Worker] = []
    try:
        workers += (_Worker(checker) for _ in range(jobs))
        yield from _in_order(targets, workers)
    finally:
        for worker in workers:
            worker.stop()


def _in_order(targets: Sequence[Target], workers: Sequence[_Worker]) -> Iterator[Result]:
    done: dict[int, Result] = {}
    given = 0
    for turn in range(len(targets)):
        while turn not in done:
            for worker in workers:
                if worker.number is None and given < min(len(targets), turn + _AHEAD * len(workers)):
                    worker.give(given, targets[given])
                    given += 1
            busy = {worker.connection: worker for worker in workers if worker.number is not None}
            for connection in wait(list(busy)):
                number, result = busy[connection].take()  # type: ignore[index]  # only connections were waited for
                done[number] = result
        yield done.pop(turn)


class _Worker:
    """A process that checks one file at a time, and is replaced when it dies. Where `number` is None it is idle."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._target: Target | None = None
        self.number: int | None = None
        self._start()

    def _start(self) -> None:
        # Not by a fork: it would copy the locks of other threads, such as that of the progress bar.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_work, args=(theirs, self._checker), daemon=True)
        # Ctrl-C goes to all processes and is for the parent, which ends the workers: they are born with it blocked. The
        # tracker comes first, since the start of a process would begin it, and that unblocks the signal.
        resource_tracker.ensure_running()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()  # so that its death closes the pipe

    def give(self, number: int, target: Target) -> None:
        """Begin with a file."""
        self.number, self._target = number, target
        with contextlib.suppress(OSError):  # it is dead: `take` finds that out
            self.connection.send(target)

    def take(self) -> tuple[int, Result]:
        """The result of the file given last. A dead process has an unreadable one, and a successor."""
        if self.number is None or self._target is None:
            raise RuntimeError("this worker was given nothing")
        number, self.number = self.number, None
        try:
            result: Result = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            result = Result.unread(self._target.name, self._obituary(), self._checker.level)
            self.connection.close()
            self._start()
        return number, result

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.terminate()
        self._process.join()
        self.connection.close()

    def _obituary(self) -> str:
        code = self._process.exitcode or 0
        names = {member.value: member.name for member in signal.Signals}
        how = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with exit code {code}"
        return (
            f"could not be checked: the process that did it {how}, for want of memory perhaps; "
            "check this file on its own, with more memory"
        )


def _work(connection: Connection, checker: Checker) -> None:
    """What a worker does until its parent closes the pipe."""
    while True:
        try:
            target = connection.recv()
        except EOFError:
            return
        connection.send(checker(target))
