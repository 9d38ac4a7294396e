"""What the names in a pickle of masks stand for: arrays over bytes that are there, and nothing else.

    resolve   a name that a pickle uses -> what stands for it
    call      what calling such a name gives
    fill      the second half of an array or of a type, that pickles give after the first
    storage   a storage of torch.save, by its persistent id
    Array, Boxed, Raw, Type, Storage, LongText, Name   what there is beside Python's own values
    OutOfPlaceError                                    anything else

Not one function of NumPy's or torch's pickling is called. All types have one byte an element, so a shape is a number of bytes
as well, compared with those that are there before anything is made of it. Values of these classes compare by identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Storages: TypeAlias = Callable[[str], Bytes | None]  # a key -> the bytes under it, if there are any

_MOST_DIMENSIONS = 32
_MOST_ELEMENTS = 1 << 48
_SHOWN = 80  # characters of what a file says, in a message
_LISTED = 9  # values
_NOT_LATIN1 = 0xC4  # the least first byte, in UTF-8, of a character that latin1 has not


class OutOfPlaceError(Exception):
    """What was expected and what was found; who catches it knows where."""

    def __init__(self, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(expected, found)


class Name(Enum):
    """A name that pickles of masks use, as NumPy 1 and torch call it."""

    RECONSTRUCT = "numpy.core.multiarray._reconstruct"
    SCALAR = "numpy.core.multiarray.scalar"
    FROM_BUFFER = "numpy.core.numeric._frombuffer"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    ENCODE = "_codecs.encode"
    ORDERED_DICT = "collections.OrderedDict"
    TENSOR = "torch._utils._rebuild_tensor_v2"
    PARAMETER = "torch._utils._rebuild_parameter"
    BOOL_STORAGE = "torch.BoolStorage"
    BYTE_STORAGE = "torch.ByteStorage"


_NUMPY_2 = {name.value.replace(".core.", "._core."): name for name in (Name.RECONSTRUCT, Name.SCALAR, Name.FROM_BUFFER)}
_NAMES = {**{name.value: name for name in Name}, **_NUMPY_2}
_DTYPE_STATE = (
    3,
    "|",
    None,
    None,
    None,
    -1,
    -1,
)  # version, byte order, no parts, no names, no fields, sizes; then come flags
_FLAGS = {"b1": 0, "u1": 0, "O8": 63}  # of NumPy's types
_STORAGES = (Name.BOOL_STORAGE, Name.BYTE_STORAGE)


@dataclass(slots=True, eq=False)
class Raw:
    """Bytes."""

    data: Bytes


@dataclass(slots=True, eq=False)
class LongText:
    """A text that is too long for a name. It is decoded only where it is bytes in disguise (see `Name.ENCODE`)."""

    utf8: Bytes


@dataclass(slots=True, eq=False)
class Type:
    """A type, by NumPy's short name for it."""

    code: str
    filled: bool = False


@dataclass(slots=True, eq=False)
class Array:
    """An array of bools or u8 in C order. `data` u8[product of shape]; None before it is filled."""

    data: Bytes | None = None
    is_bool: bool = False
    shape: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Boxed:
    """An array without dimensions of one object, which np.save makes of a dict."""

    content: object


@dataclass(slots=True, eq=False)
class Storage:
    """The bytes of a storage."""

    data: Bytes
    is_bool: bool


def shown(value: object) -> str:
    """What a message says of a value: names and short texts as they are, of most else only what it is."""
    if isinstance(value, str):
        return ascii(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
    if isinstance(value, Name):
        return value.value
    if isinstance(value, bool | int | float | None):
        return repr(value)  # numbers have at most 8 bytes
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Raw):
        return f"{value.data.size} bytes"
    if isinstance(value, Type):
        return f"the type {value.code!r}"
    return f"a value of kind {type(value).__name__}"


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(shown, values[:_LISTED])) + (", ..." if len(values) > _LISTED else "")


def resolve(module: str, name: str) -> Name:
    """What the name stands for. Raises OutOfPlaceError for all but those above."""
    whole = f"{module}.{name}"
    known = None if "." in name else _NAMES.get(whole)  # with a dot in it, pickle would look for a part of a part
    if known is not None:
        return known
    found = whole if whole.isascii() and whole.isprintable() and len(whole) <= _SHOWN else shown(whole)
    if module == "torch" and name.endswith("Storage"):
        raise OutOfPlaceError("tensors of bool or, packed, uint8", f"{found}, of another type")
    raise OutOfPlaceError("nothing but arrays, tensors and dicts of them", found)


def call(called: object, arguments: object) -> object:
    """What comes of it. Raises OutOfPlaceError unless it is a name from `resolve`, called as pickles of masks do."""
    known = _MAKERS.get(called) if isinstance(called, Name) else None
    if known is None:
        raise OutOfPlaceError("a call of what makes an array, tensor or dict", f"one of {shown(called)}")
    count, make = known
    if not isinstance(arguments, tuple) or len(arguments) != count:
        raise OutOfPlaceError(f"a tuple of {count} arguments for {shown(called)}", shown(arguments))
    return make(*arguments)


def fill(target: object, state: object, *, whole: bool) -> object:
    """What takes the target's place: itself, now filled, or a Boxed, if it is the `whole` pickle. Raises OutOfPlaceError unless
    it is an array or a type from `call`, not filled yet, and the state one that NumPy gives it."""
    if isinstance(target, Type) and not target.filled:
        if state != (*_DTYPE_STATE, _FLAGS[target.code]):
            found = _listed(state) if isinstance(state, tuple) else shown(state)
            raise OutOfPlaceError(f"the type {target.code!r} without byte order, fields and metadata", found)
        target.filled = True
        return target
    if not isinstance(target, Array) or target.data is not None:
        raise OutOfPlaceError("a state (opcode BUILD) only of an array or a type, once", f"one of {shown(target)}")
    if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1:
        raise OutOfPlaceError("the state of an array: 1, shape, type, order, bytes", shown(state))
    _, shape, kind, fortran, data = state
    if whole and isinstance(kind, Type) and kind.filled and kind.code == "O8":
        if shape != () or not isinstance(data, list) or len(data) != 1:
            raise OutOfPlaceError("one dict in an array of objects", f"{shown(data)} of shape {shown(shape)}")
        return Boxed(data[0])
    if type(fortran) is not bool:
        raise OutOfPlaceError("True or False, the order of an array", shown(fortran))
    made = _array(shape, kind, data, fortran=fortran)
    target.data, target.is_bool, target.shape = made.data, made.is_bool, made.shape
    return target


def storage(identity: object, storages: Storages | None) -> Storage:
    """The storage of a persistent id: ("storage", kind, key, location, elements). Raises OutOfPlaceError."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise OutOfPlaceError("the persistent id of a storage", shown(identity))
    _, kind, key, location, elements = identity
    if kind not in _STORAGES or not isinstance(key, str) or not isinstance(location, str) or type(elements) is not int:
        raise OutOfPlaceError("kind, key, device and length of a storage", _listed(identity[1:]))
    if storages is None:
        raise OutOfPlaceError("a pickle with all that it holds", f"one of torch.save, without its storage {shown(key)}")
    data = storages(key)
    if data is None:
        raise OutOfPlaceError(f"the storage {shown(key)} in the file", "none")
    if data.size != elements:
        raise OutOfPlaceError(f"{shown(elements)} bytes in the storage {shown(key)}", f"{data.size}")
    return Storage(data, kind is Name.BOOL_STORAGE)


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise OutOfPlaceError(f"a shape, a tuple of at most {_MOST_DIMENSIONS} sizes", shown(shape))
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise OutOfPlaceError(f"a shape of sizes from 0 on and at most {_MOST_ELEMENTS} elements", _listed(shape))
    return shape


def _array(shape: object, kind: object, data: object, *, fortran: bool) -> Array:
    sizes = _shape(shape)
    if not isinstance(kind, Type) or not kind.filled or kind.code == "O8":
        raise OutOfPlaceError("an array of type 'b1' or 'u1' (bool or uint8)", shown(kind))
    if not isinstance(data, Raw):
        raise OutOfPlaceError("the bytes of an array", shown(data))
    if fortran and sum(size != 1 for size in sizes) > 1:
        raise OutOfPlaceError("an array in C order (save it after np.ascontiguousarray)", "one in Fortran order")
    if data.data.size != math.prod(sizes):
        raise OutOfPlaceError(f"{math.prod(sizes)} bytes for an array of shape ({_listed(sizes)})", shown(data))
    return Array(data.data, kind.code == "b1", sizes)


def _reconstruct(kind: object, shape: object, code: object) -> Array:
    is_code = isinstance(code, Raw) and code.data.size == 1 and code.data[0] == ord("b")
    if kind is not Name.NDARRAY or shape != (0,) or not is_code:
        raise OutOfPlaceError(f"{Name.RECONSTRUCT.value} of numpy.ndarray, (0,) and b'b'", _listed((kind, shape, code)))
    return Array()


def _dtype(code: object, align: object, copy: object) -> Type:
    if not isinstance(code, str) or code not in _FLAGS:
        raise OutOfPlaceError("the type 'b1' or 'u1' (bool or uint8)", f"the type {shown(code)}")
    if align != False or copy != True:  # noqa: E712 - older NumPy wrote 0 and 1
        raise OutOfPlaceError("a type with False and True", _listed((align, copy)))
    return Type(code)


def _scalar(kind: object, data: object) -> Array:
    return _array((), kind, data, fortran=False)


def _from_buffer(data: object, kind: object, shape: object, order: object) -> Array:
    if order not in ("C", "F"):
        raise OutOfPlaceError("the order 'C' or 'F' of an array", shown(order))
    return _array(shape, kind, data, fortran=order == "F")


def _encode(text: object, codec: object) -> Raw:
    if codec not in ("latin1", "latin-1"):
        raise OutOfPlaceError(f"{Name.ENCODE.value} with 'latin1', how protocol 2 has bytes", shown(codec))
    if isinstance(text, str):
        utf8 = np.frombuffer(text.encode(), np.uint8)
    elif isinstance(text, LongText):
        utf8 = text.utf8
    else:
        raise OutOfPlaceError(f"a text for {Name.ENCODE.value}", shown(text))
    if utf8.size and int(utf8.max()) >= _NOT_LATIN1:  # known before it is decoded, to four times its size
        raise OutOfPlaceError(f"a text of latin1 for {Name.ENCODE.value}", "one with other characters")
    try:
        return Raw(np.frombuffer(utf8.tobytes().decode().encode("latin-1"), np.uint8))
    except UnicodeError:
        raise OutOfPlaceError(f"a text for {Name.ENCODE.value}", "one that is no UTF-8") from None


def _ordered_dict() -> dict[str, object]:
    return {}  # which is ordered too


def _tensor(
    stored: object, offset: object, shape: object, strides: object, needs_gradient: object, hooks: object
) -> Array:
    sizes = _shape(shape)
    if not isinstance(stored, Storage) or type(needs_gradient) is not bool or hooks != {}:
        raise OutOfPlaceError(
            f"{Name.TENSOR.value} of a storage, without hooks", _listed((stored, needs_gradient, hooks))
        )
    if not isinstance(strides, tuple) or len(strides) != len(sizes):
        raise OutOfPlaceError(f"{len(sizes)} strides of a tensor", shown(strides))
    elements, step = math.prod(sizes), 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if type(stride) is not int or (elements and size > 1 and stride != step):
            raise OutOfPlaceError(f"a stride of {step} in a tensor (save it after .contiguous())", shown(stride))
        step *= size
    if type(offset) is not int or not 0 <= offset <= stored.data.size - elements:
        raise OutOfPlaceError(
            f"the tensor's {elements} elements in a storage of {stored.data.size}", f"them from {shown(offset)} on"
        )
    return Array(stored.data[offset : offset + elements], stored.is_bool, sizes)


def _parameter(data: object, needs_gradient: object, hooks: object) -> Array:
    if not isinstance(data, Array) or type(needs_gradient) is not bool or hooks != {}:
        raise OutOfPlaceError(
            f"{Name.PARAMETER.value} of a tensor, without hooks", _listed((data, needs_gradient, hooks))
        )
    return data


_MAKERS: dict[Name, tuple[int, Callable[..., object]]] = {
    Name.RECONSTRUCT: (3, _reconstruct),
    Name.DTYPE: (3, _dtype),
    Name.SCALAR: (2, _scalar),
    Name.FROM_BUFFER: (4, _from_buffer),
    Name.ENCODE: (2, _encode),
    Name.ORDERED_DICT: (0, _ordered_dict),
    Name.TENSOR: (6, _tensor),
    Name.PARAMETER: (3, _parameter),
}
