"""One file -> Result. Whatever is wrong with it, or with reading it, becomes part of the result."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from tswitch_format import TswError, ValidationReport, validate
from tswitch_format.checkpoint import CheckpointReader, borrow_checkpoint, open_checkpoint
from tswitch_format.container.verify import Level
from tswitch_tools.validation.result import Result
from tswitch_tools.validation.targets import Target


def base_problem(base: str) -> str | None:
    """Why nothing can be compared with this base, or None."""
    try:
        with borrow_checkpoint(base):
            return None
    except (TswError, OSError) as error:
        return str(error).removeprefix(f"{base}: ")
    except MemoryError:
        return "there is not enough memory to open it; give more"


@dataclass(slots=True)
class Checker:
    """Checks files at `level`, and against the checkpoint at `base`, which is opened once in each process."""

    level: Level
    base: str | None = None
    _reader: CheckpointReader | None = field(default=None, init=False, repr=False)

    def __call__(self, target: Target) -> Result:
        """Check one."""
        if target.problem is not None:
            return Result.unread(target.name, target.problem, self.level)
        start = time.perf_counter()
        try:
            report = self._validate(target.path)
        except (TswError, OSError) as error:  # a base that turns out bad
            return Result.unread(target.name, f"could not be checked: {error}", self.level)
        except MemoryError:
            reason = "could not be checked: there is not enough memory; give more, or use fewer --jobs"
            return Result.unread(target.name, reason, self.level)
        return Result(target.name, report, time.perf_counter() - start)

    def _validate(self, path: str) -> ValidationReport:
        if self.base is not None and self._reader is None:
            self._reader = open_checkpoint(self.base)
        return validate(Path(path), self.level, base=self._reader)
