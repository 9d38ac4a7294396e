"""What was named on the command line -> the files to check: each once, in order, folders as the .tsw files below them.

Links to files are followed, as caches of models are made of them; links to folders are not, so that no loop is endless.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Target:
    """One file: `name` as the user knows it, `path` where it lies, `problem` why it need not be tried."""

    name: str
    path: str
    problem: str | None = None

    @property
    def size(self) -> int:
        """Bytes, for the progress bar: 0 where nobody knows."""
        try:
            return Path(self.path).stat().st_size
        except OSError:
            return 0


def find_targets(names: Sequence[str]) -> list[Target]:
    """The files that the names stand for. A folder that cannot be listed is a target with a problem."""
    found: dict[str, Target] = {}
    for name in names:
        targets = _below(name) if name != STDIN and _is_folder(name) else [Target(name, name)]
        for target in targets:
            key = STDIN if target.name == STDIN else os.path.abspath(target.path)  # noqa: PTH100  # a link is a name of its own
            found.setdefault(key, target)
    return list(found.values())


@contextmanager
def standard_input(targets: Sequence[Target]) -> Iterator[list[Target]]:
    """The targets with standard input, where it is one of them, as a temporary file: checking reads here and there."""
    if all(target.name != STDIN for target in targets):
        yield list(targets)
        return
    with ExitStack() as stack:
        path, problem = STDIN, None
        try:
            path = _spool(stack)
        except OSError as error:
            reason = error.strerror or error
            problem = f"could not be copied to a temporary file: {reason}; save it to a file, and name that"
        yield [Target(STDIN, path, problem) if target.name == STDIN else target for target in targets]


def _spool(stack: ExitStack) -> str:
    if sys.stdin is None:
        raise OSError(errno.EBADF, "it is closed")
    spool = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".tsw"))  # noqa: SIM115  # the stack closes it
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    return spool.name


def _is_folder(name: str) -> bool:
    try:
        return stat.S_ISDIR(Path(name).stat().st_mode)
    except OSError:  # whoever opens it says what is wrong
        return False


def _below(folder: str) -> list[Target]:
    """All .tsw files below a folder, sorted by the parts of their paths."""
    found: list[Target] = []
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.name.endswith(".tsw") and _may_be_file(entry):
                        path = str(Path(entry.path))
                        found.append(Target(path, path))
        except OSError as error:
            problem = f"the folder could not be listed: {error.strerror or error}; check its permissions"
            found.append(Target(current, current, problem))
    return sorted(found, key=lambda target: Path(target.path).parts)


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """Files, and links to files or to nothing: a broken link is worth a word. Not pipes, which would wait for ever."""
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:  # a link to itself
        return True
