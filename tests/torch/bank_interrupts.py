"""KeyboardInterrupt at chosen lines and at random times, for the tests of banks beside this file."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bank_models import bits

from tswitch_format.torch import SwitchBank, Tint

State = tuple[tuple[str, float], ...] | Tint

WATCHED = ("torch/bank.py", "torch/activation.py")


def state(bank: SwitchBank) -> State:
    """What is active, as a key."""
    return bank.current if isinstance(bank.current, Tint) else tuple(bank.current.items())


class Interrupts:
    """KeyboardInterrupt at the line of number `at` that this thread begins in the watched files."""

    def __init__(self, at: int, watched: tuple[str, ...] = WATCHED) -> None:
        self.at = at
        self.watched = watched
        self.lines = 0
        self.place = ""

    def __enter__(self) -> Interrupts:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.replace("\\", "/").endswith(self.watched) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            number, self.lines = self.lines, self.lines + 1
            if number == self.at:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def interrupted_at_random(
    bank: SwitchBank,
    model: Any,
    combinations: Sequence[dict[str, float] | Tint],
    known: Mapping[State, Mapping[str, bytes]],
    *,
    turns: int,
    seconds: float,
) -> int:
    """Switch to and fro, with a timer that interrupts within `seconds`; each time the model must be what the bank says, by
    `known`, and go back to the base. Returns how often it was interrupted; seed 1."""
    armed, interrupted, rng = False, 0, random.Random(1)

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(turns):
            bank.activate(combinations[turn % 2])
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, max(1e-5, rng.random() * seconds))
                bank.activate(combinations[1 - turn % 2])
                armed = False
            except (KeyboardInterrupt, RuntimeError) as error:
                armed = False
                # An interrupt inside of Condition.wait comes out of CPython 3.11 as "cannot release un-acquired lock".
                assert isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert bits(model) == known[state(bank)], turn
            bank.deactivate()
            assert bits(model) == known[()], turn
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return interrupted
