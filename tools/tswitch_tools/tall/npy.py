"""TALL mask files as np.save writes them, to the byte, of either generation of NumPy, whichever is installed.

    write_masks   what np.save(path, {task: np.packbits(mask)}) writes

128 bytes of NPY 1.0 header, then the pickle of the 0-d object array that holds the dict. NumPy 1 pickles by protocol 3 and
calls its module numpy.core.multiarray; NumPy 2 by protocol 4, numpy._core.multiarray. Within a generation all write the same:
1.24 to 1.26 under Python 3.8 to 3.12, 2.0 to 2.5 under 3.10 to 3.13, as tests/importers/make_tall_fixtures.py found.

A pickle can say one thing in many ways; which one is that of CPython's pickler in C:

- Every object but numbers, None and the empty tuple gets the next number when it is complete, and what comes again is named by
  its number. "Again" means the same object: globals, dtypes, what CPython has only one of (bytes strings of at most one byte,
  strings of one character), and names that stand in sources. So all empty masks are one, a mask of the byte b"b" is the
  type code that NumPy has put there, and a task "numpy" is the module's name, which in protocol 4 is a string.
- A dict of one item has no batch. Others come in batches of 1000, and behind a full one comes another, be it empty.
- Protocol 4 puts opcodes in frames. One ends where an object begins, once it has 64 KiB, and before a string that has as much
  by itself and stands in no frame; less than 4 bytes get no frame.

In memory is one frame, thus less than 128 KiB, and the piece of a mask in hand.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tswitch_format.errors import CheckpointError, OptionError

Write = Callable[[bytes | memoryview], Any]
Pieces = Callable[[str], Iterable[NDArray[np.uint8]]]

_HEADER = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
_MAX_BYTES = (1 << 32) - 1  # of a bytes string in protocol 3

_FRAME = 1 << 16
_MIN_FRAME = 4
_BATCH = 1000
_BYTES = (b"C", b"B", b"\x8e")  # SHORT_BINBYTES, BINBYTES, BINBYTES8: the last is not in protocol 3
_TUPLES = (b")", b"\x85", b"\x86", b"\x87")
_NAMED_AGAIN = ("|", "numpy")  # strings of the pickle itself that CPython has one of: a character, and what is interned


def write_masks(write: Write, tasks: Sequence[str], nbytes: int, mask: Pieces, numpy: Literal[1, 2]) -> None:
    """Write the file of that generation of NumPy. `mask` gives the packed mask of a task in pieces, each of which is written
    before the next is asked for; together they have `nbytes`.

    Raises CheckpointError where a mask has another length or is too long for the generation, OptionError where a task comes
    twice.
    """
    if len(set(tasks)) != len(tasks):
        twice = next(task for number, task in enumerate(tasks) if task in tasks[:number])
        raise OptionError(f"tasks: expected each once, found {twice!r} twice; name it once")
    if numpy == 1 and nbytes > _MAX_BYTES:
        raise CheckpointError(
            f"masks: expected at most {_MAX_BYTES} bytes each, which is what NumPy 1 can write, found {nbytes}; "
            "write the file of NumPy 2"
        )
    masks: dict[str, _Value] = {task: _Array(_UINT8, (nbytes,), _Mask(task, nbytes, mask)) for task in tasks}
    pickler = _Pickler(write, numpy)
    pickler.save(_Array(_OBJECT, (), [masks]))
    pickler.close()


@dataclass(frozen=True)
class _Global:
    module: str
    name: str


@dataclass(frozen=True)
class _DType:
    """Pickled as a call of numpy.dtype and a state."""

    name: str
    flags: int

    @property
    def state(self) -> tuple[_Value, ...]:
        """What its __reduce__ gives last."""
        return 3, "|", None, None, None, -1, -1, self.flags


@dataclass(frozen=True)
class _Array:
    """Pickled as a call of _reconstruct and a state."""

    dtype: _DType
    shape: tuple[int, ...]
    content: _Mask | list[_Value]

    @property
    def state(self) -> tuple[_Value, ...]:
        """What its __reduce__ gives last."""
        return 1, self.shape, self.dtype, False, self.content


@dataclass(frozen=True)
class _Mask:
    """A bytes string that is made while it is written."""

    task: str
    nbytes: int
    mask: Pieces

    def pieces(self) -> Iterator[memoryview]:
        """All of it. Nothing is given that would be too much."""
        left = self.nbytes
        for piece in self.mask(self.task):
            left -= piece.nbytes
            if left < 0:
                break
            yield np.ascontiguousarray(piece).reshape(-1).data
        if left:
            found = self.nbytes - left
            raise CheckpointError(
                f"mask of task {self.task!r}: expected {self.nbytes} bytes in all, found {found}{' or more' * (left < 0)}; "
                "give the masks of one model"
            )


# What is pickled here, and nothing else.
_Object: TypeAlias = _Global | _DType | _Array | _Mask
_Value: TypeAlias = "int | str | bytes | tuple[_Value, ...] | list[_Value] | dict[str, _Value] | _Object | None"

_UINT8 = _DType("u1", 0)
_OBJECT = _DType("O8", 63)
_NDARRAY = _Global("numpy", "ndarray")
_DTYPE = _Global("numpy", "dtype")
_RECONSTRUCT = {
    1: _Global("numpy.core.multiarray", "_reconstruct"),
    2: _Global("numpy._core.multiarray", "_reconstruct"),
}


class _Pickler:
    """CPython's pickler in C, as far as it is needed here. Comments name opcodes as pickletools does."""

    def __init__(self, write: Write, numpy: Literal[1, 2]) -> None:
        self._write = write
        self._reconstruct = _RECONSTRUCT[numpy]
        self._framed = numpy == 2  # protocol 4
        self._opcodes = bytearray()  # of the frame in hand; protocol 3 is written in the same portions
        self._numbered = 0
        self._numbers: dict[object, int] = {}  # only of what can come again
        write(_HEADER + (b"\x80\x04" if self._framed else b"\x80\x03"))

    def save(self, value: _Value) -> None:
        """An object and all that is in it."""
        if len(self._opcodes) >= _FRAME:
            self._flush()
        if _comes_again(value) and value in self._numbers:
            self._opcodes += _sized(self._numbers[value], b"h", b"j")  # BINGET, LONG_BINGET
            return
        match value:
            case None | int():
                self._opcodes += _constant(value)
            case tuple():
                self._save_tuple(value)
            case str():
                data = value.encode("utf-8", "surrogatepass")
                short = b"\x8c" if self._framed else b""
                self._save_string(value, _sized(len(data), short, b"X"), len(data), [data])
            case bytes():
                self._save_string(value, _sized(len(value), *_BYTES), len(value), [value])
            case _Mask() if value.nbytes <= 1:  # may be one that is there already
                self.save(b"".join(value.pieces()))
            case _Mask():
                self._save_string(value, _sized(value.nbytes, *_BYTES), value.nbytes, value.pieces())
            case _Global():
                self._save_global(value)
            case _DType():
                self._save_object(value, _DTYPE, (value.name, False, True), value.state)
            case _Array():
                self._save_object(value, self._reconstruct, (_NDARRAY, (0,), b"b"), value.state)
            case list() | dict():
                self._save_container(value)

    def close(self) -> None:
        """End the pickle."""
        self._opcodes += b"."
        self._flush()

    def _save_object(
        self, value: _DType | _Array, call: _Global, arguments: tuple[_Value, ...], state: tuple[_Value, ...]
    ) -> None:
        self.save(call)
        self.save(arguments)
        self._opcodes += b"R"  # REDUCE
        self._number(value)
        self.save(state)
        self._opcodes += b"b"  # BUILD

    def _save_tuple(self, value: tuple[_Value, ...]) -> None:
        short = len(value) < len(_TUPLES)
        if not short:
            self._opcodes += b"("  # MARK
        self._save_all(value)
        self._opcodes += _TUPLES[len(value)] if short else b"t"
        if value:
            self._number()

    def _save_string(self, value: object, head: bytes, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        if size < _FRAME:
            self._opcodes += head
            for piece in pieces:
                self._opcodes += piece
        else:
            self._flush()
            self._write(head)
            for piece in pieces:
                self._write(piece)
        self._number(value)

    def _save_global(self, value: _Global) -> None:
        if self._framed:
            self.save(value.module)
            self.save(value.name)
            self._opcodes += b"\x93"  # STACK_GLOBAL
        else:
            self._opcodes += f"c{value.module}\n{value.name}\n".encode()
        self._number(value)

    def _save_container(self, value: list[_Value] | dict[str, _Value]) -> None:
        self._opcodes += b"]" if isinstance(value, list) else b"}"
        self._number()
        if isinstance(value, list):  # of one item, the only one here
            self._save_all(value)
            self._opcodes += b"a"  # APPEND
            return
        items = list(value.items())
        if len(items) == 1:
            self._save_all(items[0])
            self._opcodes += b"s"  # SETITEM
        elif items:
            for first in range(0, len(items) + 1, _BATCH):
                self._opcodes += b"("
                self._save_all(itertools.chain(*items[first : first + _BATCH]))
                self._opcodes += b"u"  # SETITEMS

    def _save_all(self, values: Iterable[_Value]) -> None:
        for value in values:
            self.save(value)

    def _number(self, value: object = None) -> None:
        if _comes_again(value):
            self._numbers[value] = self._numbered
        # MEMOIZE, or BINPUT and LONG_BINPUT
        self._opcodes += b"\x94" if self._framed else _sized(self._numbered, b"q", b"r")
        self._numbered += 1

    def _flush(self) -> None:
        if self._framed and len(self._opcodes) >= _MIN_FRAME:
            self._write(b"\x95" + struct.pack("<Q", len(self._opcodes)))
        if self._opcodes:
            self._write(bytes(self._opcodes))
            self._opcodes.clear()


def _comes_again(value: object) -> bool:
    """Whether two that are equal are one object."""
    if isinstance(value, bytes):
        return len(value) <= 1
    return isinstance(value, _Global | _DType) or (isinstance(value, str) and value in _NAMED_AGAIN)


def _sized(size: int, one: bytes, four: bytes, eight: bytes = b"") -> bytes:
    """The opcode for a size of so many bytes, and the size. Where there is no opcode for one byte, four are taken."""
    if one and size < 1 << 8:
        return one + struct.pack("<B", size)
    return four + struct.pack("<I", size) if size < 1 << 32 else eight + struct.pack("<Q", size)


def _constant(value: int | None) -> bytes:
    """The opcode for what gets no number; bools are among the ints."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if 0 <= value < 1 << 8:
        return b"K" + struct.pack("<B", value)  # BININT1
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)  # BININT2
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)  # BININT
    size = value.bit_length() // 8 + 1
    return b"\x8a" + struct.pack("<B", size) + value.to_bytes(size, "little", signed=True)  # LONG1
