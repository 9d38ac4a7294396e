"""A writer and the place where its text goes. A place that fails is left alone from then on, and remembered."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO, Protocol

from tswitch_format.atomic import AtomicFile
from tswitch_tools.validation.result import Result, Tally
from tswitch_tools.validation.writer import Writer


class Sink(Protocol):
    """Where text goes. Both methods may raise OSError."""

    name: str

    def write(self, text: str) -> None:
        """Write, so that whoever reads the other end sees it now."""
        ...

    def commit(self) -> None:
        """It was all."""
        ...


class StandardOutput:
    """Standard output, past whatever a progress bar does to it."""

    name = "standard output"

    def __init__(self) -> None:
        self._stream = None if sys.stdout is None else sys.stdout.buffer
        self._encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    def write(self, text: str) -> None:
        """Write and flush. What the encoding lacks comes as escapes."""
        if self._stream is None:
            raise OSError(errno.EBADF, "it is closed")
        try:
            self._stream.write(text.encode(self._encoding, "backslashreplace"))
            self._stream.flush()
        except OSError:
            self._silence(self._stream)
            raise

    def commit(self) -> None:
        """Nothing is left to do."""

    @staticmethod
    def _silence(stream: BinaryIO) -> None:
        """Let Python, when it ends, flush what could not be written to where it can."""
        with contextlib.suppress(OSError, ValueError):  # no real stream
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class ReportFile:
    """A file, there only when it is whole."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._file = AtomicFile(Path(path))

    def write(self, text: str) -> None:
        """Append."""
        self._file.write(text.encode("utf-8", "backslashreplace"))

    def commit(self) -> None:
        """Make it visible."""
        self._file.commit()

    def abort(self) -> None:
        """Remove what is not committed."""
        self._file.abort()


class Channel:
    """Takes the steps of a report. `problem` says what went wrong, if something did; then nothing more is written."""

    def __init__(self, sink: Sink, writer: Writer) -> None:
        self._sink = sink
        self._writer = writer
        self.problem: str | None = None

    def begin(self) -> None:
        """The report begins."""
        self._put(self._writer.begin())

    def add(self, result: Result) -> None:
        """A result comes."""
        self._put(self._writer.add(result))

    def end(self, tally: Tally) -> None:
        """That was all."""
        self._put(self._writer.end(tally), last=True)

    def _put(self, text: str, *, last: bool = False) -> None:
        if self.problem is not None:
            return
        try:
            if text:
                self._sink.write(text)
            if last:
                self._sink.commit()
        except OSError as error:
            reason = (error.strerror or str(error)).removeprefix(f"{self._sink.name}: could not be written: ")
            self.problem = f"{self._sink.name}: the report could not be written: {reason}"
