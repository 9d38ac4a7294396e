"""What a pickle of masks says, without running anything of it.

    load   a pickle -> dicts, lists, tuples, numbers, texts, and what `building` makes

An interpreter of our own, of those opcodes only that Python's picklers write for such content in protocols 2 to 5. Not a
subclass of `pickle.Unpickler` with its own `find_class`: that one obeys all opcodes (calls, states and attributes of any
object, extension codes, dicts with any keys), believes lengths that a file announces, keeps any number of values, copies all
bytes, and raises any exception at all on damaged files. Nor `pickletools.genops`, which copies all bytes as well. Here bytes
are views of the file, and what is made in Python's memory is bounded by the numbers below, whatever a file says.

Stricter than Python: frames end where they say, nothing comes after STOP, dicts have texts as keys, each once.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable

from tswitch_format.errors import CheckpointError
from tswitch_tools.tall import building
from tswitch_tools.tall.building import Bytes, LongText, Name, OutOfPlaceError, Raw, Storages, shown

MOST_OPCODES = 1_000_000  # 20 tasks of 700 tensors take 500,000; worth at most 180 MB, whatever they make
MOST_VALUES = 200_000  # on the stack at once, and marks; picklers put down 2000 at a time
LONGEST_NAME = 4096  # bytes of UTF-8 of a name
_LONGEST_LINE = 256  # bytes of a module or of a name in it
_LONGEST_NUMBER = 8  # bytes
_PROTOCOLS = range(2, 6)
_ADVICE = "nothing of it was run; save the masks again as a dict of arrays or tensors, or get the file again"

_CODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def load(data: Bytes, where: str, storages: Storages | None = None) -> object:
    """What the pickle in `data`, u8[any number], holds; arrays in it are views of `data` or of a storage.

    `storages`: what torch.save keeps beside the pickle. The whole may be a `building.Boxed`. Raises CheckpointError, which
    begins with `where` and names what has no place in such a file.
    """
    machine = _Machine(data, storages)
    try:
        return machine.run()
    except OutOfPlaceError as problem:
        raise CheckpointError(
            f"{where}: byte {machine.at} of the pickle: expected {problem.expected}, found {problem.found}; {_ADVICE}"
        ) from None


class _Machine:
    """One run. `at` is where the opcode is that it has come to."""

    def __init__(self, data: Bytes, storages: Storages | None) -> None:
        self.at = 0
        self._data = data
        self._size = data.size
        self._view = data.data  # quicker for a few bytes
        self._next = 0
        self._frame = 0  # where the last one ends
        self._storages = storages
        self._stack: list[object] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, object] = {}
        self._encoded = 0  # bytes out of texts

    def run(self) -> object:
        """The value at STOP."""
        start = self._data[:2].tobytes()
        if len(start) < 2 or start[0] != 0x80 or start[1] not in _PROTOCOLS:
            raise OutOfPlaceError(
                "a pickle of protocol 2 to 5, which begins with 80 and 02 to 05", start.hex(" ") or "nothing"
            )
        self._next = 2
        for _ in range(MOST_OPCODES):
            self.at = self._next
            if self._next >= self._frame:
                self._frame = 0
            code = self._number(1)
            if code == ord("."):
                return self._stop()
            step = _STEPS.get(code)
            if step is None:
                raise OutOfPlaceError(
                    "no opcode but those of arrays, tensors and dicts", f"{_CODE_NAMES.get(code, f'byte 0x{code:02x}')}"
                )
            step(self)
            if len(self._stack) > MOST_VALUES or len(self._marks) > MOST_VALUES:
                raise OutOfPlaceError(f"at most {MOST_VALUES} values at once", "more")
        raise OutOfPlaceError(f"at most {MOST_OPCODES} opcodes", "more")

    def _stop(self) -> object:
        value = self._pop()
        if self._stack or self._marks:
            raise OutOfPlaceError(
                "one value at the end of the pickle", f"{len(self._stack) + 1} and {len(self._marks)} marks"
            )
        if self._frame > self._next:
            raise OutOfPlaceError(f"the end of the frame at byte {self._frame}", f"that of the pickle at {self._next}")
        if self._next != self._size:
            raise OutOfPlaceError("nothing after the end of the pickle", f"{self._size - self._next} bytes")
        return value

    def _skip(self, count: int) -> slice:
        """Where the next bytes are, which count as read."""
        start, end = self._next, self._next + count
        limit = self._frame or self._size
        if end > limit:
            whole = "frame" if self._frame else "pickle"
            raise OutOfPlaceError(f"{count} bytes or more", f"{limit - start} to the end of the {whole}")
        self._next = end
        return slice(start, end)

    def _bytes(self, count: int) -> Bytes:
        return self._data[self._skip(count)]

    def _number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._view[self._skip(size)], "little", signed=signed)

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise OutOfPlaceError("a value on the stack", "none")
        return self._stack.pop()

    def _top(self) -> object:
        value = self._pop()
        self._stack.append(value)
        return value

    def _to_mark(self) -> list[object]:
        """What lies above the last mark, taken away with it."""
        if not self._marks:
            raise OutOfPlaceError("a mark on the stack", "none")
        height = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values

    def push(self, value: object) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def frame(self) -> None:
        if self._frame:
            raise OutOfPlaceError("a frame after the one before has ended", f"one inside it, to byte {self._frame}")
        length = self._number(8)
        if not length or length > self._size - self._next:
            raise OutOfPlaceError(f"a frame of at most {self._size - self._next} bytes", f"one of {length}")
        self._frame = self._next + length

    def integer(self, size: int, *, signed: bool = False) -> None:
        self.push(self._number(size, signed=signed))

    def long(self) -> None:
        length = self._number(1)
        if length > _LONGEST_NUMBER:
            raise OutOfPlaceError(f"a number of at most {_LONGEST_NUMBER} bytes", f"one of {length}")
        self.integer(length, signed=True)

    def real(self) -> None:
        self.push(struct.unpack(">d", self._bytes(8).tobytes())[0])

    def text(self, width: int) -> None:
        utf8 = self._bytes(self._number(width))
        self.push(LongText(utf8) if utf8.size > LONGEST_NAME else _decoded(utf8))

    def raw(self, width: int) -> None:
        self.push(Raw(self._bytes(self._number(width))))

    def make_tuple(self, count: int | None = None) -> None:
        values = self._to_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self.push(tuple(values))

    def append(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise OutOfPlaceError("a list to append to", shown(target))
        target.extend(values)

    def set_items(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise OutOfPlaceError("a dict to put keys and values into", f"{shown(target)} and {len(values)} of them")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise OutOfPlaceError("a text as a key, the name of a task or tensor", shown(key))
            if key in target:
                raise OutOfPlaceError("each key of a dict once", f"{shown(key)} twice")
            target[key] = value

    def put(self, index: int) -> None:
        if index > MOST_OPCODES:
            raise OutOfPlaceError(f"a place in the memo of at most {MOST_OPCODES}", str(index))
        self._memo[index] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise OutOfPlaceError("a place in the memo that was filled", str(index))
        self.push(self._memo[index])

    def name_in_lines(self) -> None:
        self.push(building.resolve(self._line(), self._line()))

    def _line(self) -> str:
        ahead = self._data[self._next : self._next + _LONGEST_LINE].tobytes()
        length = ahead.find(b"\n")
        if length < 0:
            raise OutOfPlaceError("the line of a name", f"none within {len(ahead)} bytes")
        return _decoded(self._bytes(length + 1)[:-1])

    def name_from_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise OutOfPlaceError("texts for STACK_GLOBAL, a module and a name", f"{shown(module)} and {shown(name)}")
        self.push(building.resolve(module, name))

    def reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        made = building.call(called, arguments)
        if called is Name.ENCODE and isinstance(made, Raw):
            self._encoded += made.data.size
            if self._encoded > self._size:
                raise OutOfPlaceError("each text made into bytes once", "more bytes than the pickle has")
        self.push(made)

    def build(self) -> None:
        state, target = self._pop(), self._pop()
        self.push(building.fill(target, state, whole=not self._stack and not self._marks))

    def storage(self) -> None:
        self.push(building.storage(self._pop(), self._storages))


def _decoded(utf8: Bytes) -> str:
    try:
        return utf8.tobytes().decode()
    except UnicodeDecodeError:
        raise OutOfPlaceError("a text in UTF-8", f"other bytes, {ascii(utf8[:16].tobytes())[2:-1]}") from None


_Step = Callable[[_Machine], None]
_STEPS: dict[int, _Step] = {
    ord(code): step
    for code, step in {
        "\x95": _Machine.frame,
        "(": _Machine.mark,
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "K": lambda m: m.integer(1),
        "M": lambda m: m.integer(2),
        "J": lambda m: m.integer(4, signed=True),
        "\x8a": _Machine.long,
        "G": _Machine.real,
        "\x8c": lambda m: m.text(1),
        "X": lambda m: m.text(4),
        "\x8d": lambda m: m.text(8),
        "C": lambda m: m.raw(1),
        "B": lambda m: m.raw(4),
        "\x8e": lambda m: m.raw(8),
        "\x96": lambda m: m.raw(8),  # a bytearray
        ")": lambda m: m.make_tuple(0),
        "\x85": lambda m: m.make_tuple(1),
        "\x86": lambda m: m.make_tuple(2),
        "\x87": lambda m: m.make_tuple(3),
        "t": _Machine.make_tuple,
        "]": lambda m: m.push([]),
        "a": lambda m: m.append([m._pop()]),
        "e": lambda m: m.append(m._to_mark()),
        "}": lambda m: m.push({}),
        "s": lambda m: m.set_items([m._pop(), m._pop()][::-1]),
        "u": lambda m: m.set_items(m._to_mark()),
        "q": lambda m: m.put(m._number(1)),
        "r": lambda m: m.put(m._number(4)),
        "\x94": lambda m: m.put(len(m._memo)),
        "h": lambda m: m.get(m._number(1)),
        "j": lambda m: m.get(m._number(4)),
        "c": _Machine.name_in_lines,
        "\x93": _Machine.name_from_stack,
        "R": _Machine.reduce,
        "b": _Machine.build,
        "Q": _Machine.storage,
    }.items()
}
