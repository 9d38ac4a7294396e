"""Hostile files of masks: nothing of theirs runs, each is refused in one line that names what is wrong, in little memory."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tswitch_format.errors import CheckpointError
from tswitch_tools.tall.reading import open_masks

# ---- an assembler ----

P2, P4 = b"\x80\x02", b"\x80\x04"
CANARY = "pwned"
CODE = f"__import__('os').mkdir('{CANARY}')"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def args(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *values: bytes) -> bytes:
    return function + args(*values) + b"R"


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
NDARRAY = name("numpy", "ndarray")
DTYPE = name("numpy", "dtype")
NUMBERS = b"NNN" + b"J\xff\xff\xff\xff" * 2


def dtype(code: str = "u1", state: bytes | None = None, order: str = "|") -> bytes:
    made = call(DTYPE, text(code), b"\x89", b"\x88")
    return made + (args(b"K\x03", text(order), NUMBERS, b"K\0") if state is None else state) + b"b"


def array(
    shape: bytes = args(b"K\x04"), kind: bytes = dtype(), data: bytes = raw(b"abcd"), fortran: bytes = b"\x89"
) -> bytes:
    blank = call(RECONSTRUCT, NDARRAY, args(b"K\0"), raw(b"b"))
    return blank + args(b"K\x01", shape, kind, fortran, data) + b"b"


def masks(value: bytes, key: bytes = text("task")) -> bytes:
    return P4 + b"}" + key + value + b"s."


def stored(
    kind: bytes = name("torch", "ByteStorage"),
    key: bytes = text("0"),
    size: bytes = b"K\x04",
    first: bytes = text("storage"),
) -> bytes:
    return args(first, kind, key, text("cpu"), size) + b"Q"


def tensor(
    storage: bytes = stored(),
    offset: bytes = b"K\0",
    shape: bytes = args(b"K\x04"),
    strides: bytes = args(b"K\x01"),
    hooks: bytes = b"}",
) -> bytes:
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, b"\x89", hooks)


def archive(code: bytes, storage: bytes | None = b"abcd", method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("a/data.pkl", code)
        file.writestr("a/version", "3\n")
        if storage is not None:
            file.writestr("a/data/0", storage)
    return out.getvalue()


def npy(code: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + code


class Runs:
    """Runs a function when it is loaded by a careless reader."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class State:
    """Has a state that a careless reader would set."""

    def __setstate__(self, state: Any) -> None:
        os.mkdir(CANARY)  # noqa: PTH102


# ---- what is hostile in any file ----

MKDIR = text(CANARY)
O8 = dtype("O8", args(b"K\3", text("|"), NUMBERS, b"K?"))
BLANK = call(RECONSTRUCT, NDARRAY, args(b"K\0"), raw(b"b"))
SCALAR = name("numpy.core.multiarray", "scalar")
BUFFER = name("numpy.core.numeric", "_frombuffer")
BUFFER_2 = name("numpy._core.numeric", "_frombuffer")
ENCODE = name("_codecs", "encode")
PARAMETER = name("torch._utils", "_rebuild_parameter")
DICT = name("collections", "OrderedDict")
SPARSE = name("torch._utils", "_rebuild_sparse_tensor")
SUBCLASS = name("torch._utils", "_rebuild_wrapper_subclass")
EVIL = {
    "os.system": (P2 + call(name("os", "system"), text(f"mkdir {CANARY}")) + b".", r"os\.system"),
    "posix.system": (P2 + call(name("posix", "system"), text(f"mkdir {CANARY}")) + b".", r"posix\.system"),
    "nt.system": (P2 + call(name("nt", "system"), text("dir")) + b".", r"nt\.system"),
    "os.mkdir as an object": (pickle.dumps({"a": Runs(os.mkdir, CANARY)}), r"posix\.mkdir|nt\.mkdir"),
    "builtins.eval": (P2 + call(name("builtins", "eval"), text(CODE)) + b".", r"builtins\.eval"),
    "builtins.exec": (P2 + call(name("builtins", "exec"), text(CODE)) + b".", r"builtins\.exec"),
    "__builtin__.eval": (P2 + call(name("__builtin__", "eval"), text(CODE)) + b".", r"__builtin__\.eval"),
    "builtins.getattr": (
        P2 + call(name("builtins", "getattr"), name("os", "x"), text("system")) + b".",
        r"builtins\.getattr",
    ),
    "builtins.__import__": (
        P2 + call(name("builtins", "__import__"), text("antigravity")) + b".",
        r"builtins\.__import__",
    ),
    "builtins.open": (P2 + call(name("builtins", "open"), MKDIR, text("w")) + b".", r"builtins\.open"),
    "builtins.bytearray": (P2 + call(name("builtins", "bytearray"), number(1 << 40)) + b".", r"builtins\.bytearray"),
    "builtins.bytes": (P2 + call(name("builtins", "bytes"), number(1 << 40)) + b".", r"builtins\.bytes"),
    "builtins.complex": (pickle.dumps(1j), r"builtins\.complex"),
    "subprocess.Popen": (
        P2 + call(name("subprocess", "Popen"), args(text("mkdir"), MKDIR)) + b".",
        r"subprocess\.Popen",
    ),
    "functools.partial": (
        P2 + call(name("functools", "partial"), name("os", "mkdir"), MKDIR) + b"N)RR.",
        r"functools\.partial",
    ),
    "operator.attrgetter": (P2 + call(name("operator", "attrgetter"), text("system")) + b".", r"operator\.attrgetter"),
    "operator.methodcaller": (P2 + call(name("operator", "methodcaller"), text("x")) + b".", r"operator\.methodcaller"),
    "pickle.loads": (
        P2 + call(name("_pickle", "loads"), raw(pickle.dumps(Runs(os.mkdir, CANARY)))) + b".",
        r"_pickle\.loads",
    ),
    "pickle in a pickle": (pickle.dumps(Runs(pickle.loads, pickle.dumps(Runs(os.mkdir, CANARY)))), r"_pickle\.loads"),
    "reduce in reduce": (pickle.dumps(Runs(list, Runs(map, os.mkdir, [CANARY]))), r"builtins\.(list|map)"),
    "runpy": (P2 + call(name("runpy", "_run_code"), text(CODE)) + b".", r"runpy\._run_code"),
    "types.CodeType": (P2 + name("types", "CodeType") + b".", r"types\.CodeType"),
    "codecs.decode": (P2 + call(name("_codecs", "decode"), text("a"), text("zip")) + b".", r"_codecs\.decode"),
    "copyreg._reconstructor": (
        pickle.dumps(State(), 1).replace(b"ccopy_reg", P2 + b"ccopy_reg", 1),
        r"copy_reg\._reconstructor",
    ),
    "numpy.load": (P2 + call(name("numpy", "load"), MKDIR) + b".", r"numpy\.load"),
    "numpy.memmap": (P2 + call(name("numpy", "memmap"), MKDIR, text("u1"), text("w+")) + b".", r"numpy\.memmap"),
    "numpy.fromfile": (
        P2 + call(name("numpy", "fromfile"), text("/etc/passwd"), text("u1")) + b".",
        r"numpy\.fromfile",
    ),
    "numpy.testing": (
        P2 + call(name("numpy.testing._private.utils", "runstring"), text(CODE)) + b".",
        r"utils\.runstring",
    ),
    "numpy.lib exec": (P2 + name("numpy.f2py.crackfortran", "myeval") + b".", r"crackfortran\.myeval"),
    "torch.load": (P2 + call(name("torch", "load"), MKDIR) + b".", r"torch\.load"),
    "torch.storage._load_from_bytes": (
        P2 + call(name("torch.storage", "_load_from_bytes"), raw(b"x")) + b".",
        r"_load_from_bytes",
    ),
    "torch untyped storage": (P2 + name("torch.storage", "UntypedStorage") + b".", r"torch\.storage\.UntypedStorage"),
    "torch.jit": (P2 + name("torch.jit._script", "unpackage_script_module") + b".", r"unpackage_script_module"),
    "dots in a name": (
        P2 + name("numpy", "ndarray.__init__.__globals__") + b".",
        r"numpy\.ndarray\.__init__\.__globals__",
    ),
    "dots shared otherwise": (P2 + name("numpy.core", "multiarray._reconstruct") + b".", r"multiarray\._reconstruct"),
    "dots in STACK_GLOBAL": (P4 + text("numpy") + text("dtype.type") + b"\x93.", r"numpy\.dtype\.type"),
    "evil in STACK_GLOBAL": (
        P4 + text("posix") + text("system") + b"\x93" + args(text("true")) + b"R.",
        r"posix\.system",
    ),
    "STACK_GLOBAL of numbers": (P4 + b"K\1K\2\x93.", r"texts for STACK_GLOBAL.* found 1 and 2"),
    "STACK_GLOBAL of bytes": (
        P4 + raw(b"os") + raw(b"system") + b"\x93.",
        r"texts for STACK_GLOBAL.* found 2 bytes and 6 bytes",
    ),
    "unprintable name": (P2 + name("o\x1b[2Js", "system") + b".", r"o\\x1b\[2Js\.system"),
    "long name": (P2 + name("o" * 300, "x") + b".", r"the line of a name"),
    "name that is no UTF-8": (P2 + b"c\xff\xfe\nx\n.", r"a text in UTF-8"),
    # opcodes
    "INST": (P2 + b"(" + text("x") + b"iposix\nsystem\n.", r"found INST"),
    "OBJ": (P2 + b"(" + name("numpy", "dtype") + b"o.", r"found OBJ"),
    "NEWOBJ": (P2 + name("numpy", "dtype") + b")\x81.", r"found NEWOBJ"),
    "NEWOBJ_EX": (P4 + name("numpy", "dtype") + b")}\x92.", r"found NEWOBJ_EX"),
    "EXT1": (P2 + b"\x82\x01.", r"found EXT1"),
    "EXT2": (P2 + b"\x83\x01\0.", r"found EXT2"),
    "EXT4": (P2 + b"\x84\x01\0\0\0.", r"found EXT4"),
    "PERSID": (P2 + b"Pmodule\n.", r"found PERSID"),
    "DUP": (P2 + b"]2\x86.", r"found DUP"),
    "POP": (P2 + b"]]0.", r"found POP"),
    "frozenset": (pickle.dumps(frozenset({1}), 4), r"found FROZENSET"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", r"found NEXT_BUFFER"),
    "INT": (P2 + b"I1\n.", r"found INT"),
    "LONG4": (P2 + b"\x8b\xff\xff\xff\x7f", r"found LONG4"),
    "PROTO twice": (P2 + P2 + b"N.", r"found PROTO"),
    "no opcode": (P2 + b"\xff.", r"found byte 0xff"),
    "protocol 6": (b"\x80\x06N.", r"protocol 2 to 5.* found 80 06"),
    # numbers that lie
    "LONG1 of 255 bytes": (P2 + b"\x8a\xff" + b"\x01" * 255 + b".", r"a number of at most 8 bytes, found one of 255"),
    "BINUNICODE8": (
        P4 + b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
        r"expected 4611686018427387904 bytes or more, found 4",
    ),
    "BINBYTES8": (
        P4 + b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"abc.",
        r"18446744073709551615 bytes or more, found 4",
    ),
    "BYTEARRAY8": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", r"1099511627776 bytes or more, found 1"),
    "BINBYTES": (P4 + b"B\xff\xff\xff\xff.", r"4294967295 bytes or more, found 1"),
    "memo 2^31": (P2 + b"]r\0\0\0\x80.", r"a place in the memo of at most .* found 2147483648"),
    "memo not filled": (P2 + b"j\xff\xff\xff\x7f.", r"a place in the memo that was filled, found 2147483647"),
    "frame too long": (P4 + b"\x95" + struct.pack("<Q", 1 << 60) + b"N.", r"a frame of at most 2 bytes, found one of"),
    "frame too short": (P4 + b"\x95" + struct.pack("<Q", 3) + text("abcdef") + b".", r"to the end of the frame"),
    "frame past the end": (P4 + b"\x95" + struct.pack("<Q", 4) + b"N.NN", r"the end of the frame at byte 15"),
    "frame in a frame": (
        P4 + b"\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 1) + b"N.",
        r"one inside it",
    ),
    "empty frame": (P4 + b"\x95" + bytes(8) + b"N.", r"found one of 0"),
    # the stack
    "no STOP": (P2 + b"N", r"expected 1 bytes or more, found 0"),
    "only a start": (P2, r"expected 1 bytes or more, found 0"),
    "garbage after STOP": (masks(array()) + b"garbage", r"nothing after the end of the pickle, found 7 bytes"),
    "two pickles": (masks(array()) * 2, r"nothing after the end of the pickle"),
    "two values": (P2 + b"NN.", r"one value at the end of the pickle, found 2"),
    "mark at the end": (P2 + b"N(N.", r"one value at the end of the pickle"),
    "empty stack": (P2 + b".", r"a value on the stack, found none"),
    "value under a mark": (P2 + b"](R.", r"a value on the stack, found none"),
    "no mark": (P2 + b"]t.", r"a mark on the stack, found none"),
    "odd items": (P2 + b"}(NNNu.", r"a dict to put keys and values into, found a dict of 0 and 3"),
    "items of a list": (P2 + b"]" + text("a") + b"Ns.", r"a dict to put keys and values into, found a list of 0"),
    "append to a dict": (P2 + b"}Na.", r"a list to append to, found a dict"),
    "append to a tuple": (P2 + b")Na.", r"a list to append to, found a tuple"),
    # containers
    "tuples a million deep": (P2 + b"N" + b"\x85" * 900_000 + b".", r"found a tuple of 1"),
    "lists very deep": (P2 + b"]" * 150_000 + b"a" * 149_999 + b".", r"found a list of 1"),
    "dicts very deep": (P2 + (b"}" + text("a")) * 50_000 + b"}" + b"s" * 50_000 + b".", r"found a dict of 1"),
    "deep tuple as a key": (P2 + b"}N" + b"\x85" * 500_000 + b"Ns.", r"a text as a key, .* found a tuple"),
    "deep tuple as arguments": (
        P2 + DTYPE + b"N" + b"\x85" * 500_000 + b"R.",
        r"a tuple of 3 arguments for numpy\.dtype",
    ),
    "deep tuple as a shape": (masks(array(shape=b"N" + b"\x85" * 500_000)), r"a shape of sizes from 0 on"),
    "marks without end": (P2 + b"(" * 900_000 + b".", r"at most 200000 values at once"),
    "values without end": (P2 + b"N" * 900_000 + b".", r"at most 200000 values at once"),
    "opcodes without end": (P2 + b"]" + b"Na" * 600_000 + b".", r"at most 1000000 opcodes"),
    "memo without end": (P2 + b"N" + b"\x94" * 1_100_000 + b".", r"at most 1000000 opcodes"),
    "list in itself": (P2 + b"]q\0h\0a.", r"found a list of 1"),
    "dict in itself": (P2 + b"}q\0" + text("a") + b"h\0s.", r"found a dict of 1"),
    "a billion laughs": (
        P2 + b"]q\0" + b"".join(b"]q%c(" % i + b"h%c" % (i - 1) * 10 + b"e" for i in range(1, 40)) + b"\x86" * 39 + b".",
        r"found a tuple of 2",
    ),
    "key of numbers": (masks(array(), b"K\x07"), r"a text as a key, .* found 7"),
    "key of None": (masks(array(), b"N"), r"a text as a key, .* found None"),
    "key of bytes": (masks(array(), raw(b"task")), r"a text as a key, .* found 4 bytes"),
    "key of a long text": (masks(array(), text("a" * 5000)), r"a text as a key, .* found a value of kind LongText"),
    "key twice": (P2 + b"}(" + (text("a") + array()) * 2 + b"u.", r"each key of a dict once, found 'a' twice"),
    "key of surrogates": (P2 + b"}X\3\0\0\0\xed\xa0\x80Ns.", r"a text in UTF-8"),
    # arrays
    "shape 2^60": (
        masks(array(shape=args(number(1 << 60)))),
        r"at most 281474976710656 elements, found 1152921504606846976",
    ),
    "shape that overflows": (masks(array(shape=args(*[number(1 << 32)] * 3))), r"at most 281474976710656 elements"),
    "shape 2^40": (masks(array(shape=args(number(1 << 40)))), r"1099511627776 bytes for an array .* found 4 bytes"),
    "negative shape": (masks(array(shape=args(number(-4)))), r"sizes from 0 on .* found -4"),
    "shape of two negatives": (masks(array(shape=args(number(-2), number(-2)))), r"sizes from 0 on .* found -2, -2"),
    "shape of bools": (masks(array(shape=args(b"\x88"))), r"sizes from 0 on .* found True"),
    "shape of floats": (masks(array(shape=args(b"G" + struct.pack(">d", 4.0)))), r"sizes from 0 on .* found 4\.0"),
    "shape of a list": (masks(array(shape=b"]")), r"a tuple of at most 32 sizes, found a list of 0"),
    "33 dimensions": (
        masks(array(shape=args(*[b"K\1"] * 33), data=raw(b"a"))),
        r"at most 32 sizes, found a tuple of 33",
    ),
    "too few bytes": (masks(array(data=raw(b"abc"))), r"4 bytes for an array of shape \(4\), found 3 bytes"),
    "text as bytes": (masks(array(data=text("abcd"))), r"the bytes of an array, found 'abcd'"),
    "list as bytes": (masks(array(data=b"]")), r"the bytes of an array, found a list"),
    "dtype O": (masks(array(kind=O8, data=b"]")), r"found the type 'O8'"),
    "dtype O without state": (masks(array(kind=call(DTYPE, text("O8"), b"\x89", b"\x88"))), r"found the type 'O8'"),
    "dtype without state": (
        masks(array(kind=call(DTYPE, text("u1"), b"\x89", b"\x88"))),
        r"an array of type .* found the type",
    ),
    "dtype V": (masks(dtype("V8")), r"the type 'b1' or 'u1' .* found the type 'V8'"),
    "dtype of names": (masks(dtype("i4,O")), r"found the type 'i4,O'"),
    "dtype u2": (masks(dtype(">u2")), r"found the type '>u2'"),
    "dtype of a class": (masks(call(DTYPE, NDARRAY, b"\x89", b"\x88")), r"found the type numpy\.ndarray"),
    "dtype with fields": (
        masks(dtype(state=args(b"K\3", text("|"), b"N", args(text("a")), b"}", b"J\xff\xff\xff\xff" * 2, b"K\0"))),
        r"without byte order, fields and metadata, found 3, '\|', None, a tuple of 1",
    ),
    "dtype with metadata": (
        masks(dtype(state=args(b"K\4", text("|"), NUMBERS, b"K\0", b"}"))), r"without .* metadata, found 4"
    ),
    "dtype of byte order": (masks(dtype(order=">")), r"without byte order, .* found 3, '>'"),
    "dtype with flags": (masks(dtype(state=args(b"K\3", text("|"), NUMBERS, b"K?"))), r"without byte order, .* 63"),
    "dtype filled twice": (
        masks(dtype() + args(b"K\3", text("|"), NUMBERS, b"K\0") + b"b"),
        r"only of an array or a type, once",
    ),
    "array filled twice": (
        masks(array() + args(b"K\1", args(b"K\0"), dtype(), b"\x89", raw(b"")) + b"b"),
        r"only of an array",
    ),
    "array never filled": (masks(BLANK), r"found one without content"),
    "array of an unknown version": (masks(BLANK + args(b"K\2", b"NNNN") + b"b"), r"the state of an array"),
    "subclass of ndarray": (
        masks(call(RECONSTRUCT, name("numpy", "matrix"), args(b"K\0"), raw(b"b"))),
        r"numpy\.matrix",
    ),
    "_reconstruct of dtype": (masks(call(RECONSTRUCT, DTYPE, args(b"K\0"), raw(b"b"))), r"found numpy\.dtype"),
    "_reconstruct of a large shape": (
        masks(call(RECONSTRUCT, NDARRAY, args(number(1 << 40)), raw(b"b"))),
        r"_reconstruct of numpy\.ndarray",
    ),
    "_reconstruct of objects": (
        masks(call(RECONSTRUCT, NDARRAY, args(b"K\0"), raw(b"O"))),
        r"_reconstruct of numpy\.ndarray",
    ),
    "_reconstruct of nothing": (
        masks(call(RECONSTRUCT)),
        r"a tuple of 3 arguments for numpy\.core\.multiarray\._reconstruct",
    ),
    "scalar of objects": (masks(call(SCALAR, O8, raw(b"12345678"))), r"type 'O8'"),
    "scalar too long": (masks(call(SCALAR, dtype(), raw(b"12345678"))), r"1 bytes for an array"),
    "_frombuffer too long": (
        masks(call(BUFFER_2, raw(b"abc"), dtype(), args(number(1 << 30)), text("C"))), r"found 3 bytes"
    ),
    "_frombuffer in no order": (masks(call(BUFFER, raw(b"a"), dtype(), args(b"K\1"), text("K"))), r"found 'K'"),
    "call of a class": (masks(call(NDARRAY, args(number(1 << 40)))), r"a call of .* found one of numpy\.ndarray"),
    "call of a text": (masks(call(text("os.system"), text("x"))), r"found one of 'os\.system'"),
    "call of an array": (masks(call(array(), text("x"))), r"found one of a value of kind Array"),
    "call with a list": (masks(DTYPE + b"]R"), r"arguments for numpy\.dtype, found a list"),
    "OrderedDict of pairs": (masks(call(DICT, b"]")), r"0 arguments for collections\.OrderedDict"),
    # states
    "state of a dict": (
        P2 + b"}}" + text("__class__") + b"Nsb.",
        r"only of an array or a type, once, found one of a dict",
    ),
    "state of a list": (P2 + b"]}b.", r"found one of a list"),
    "state of a function": (
        P2 + RECONSTRUCT + b"}" + text("__code__") + b"Nsb.",
        r"found one of numpy\.core\.multiarray",
    ),
    "state of a class": (P2 + NDARRAY + b"}b.", r"found one of numpy\.ndarray"),
    "state with __setstate__": (pickle.dumps({"a": State()}, 4), r"State"),
    "attributes of OrderedDict": (P2 + call(DICT) + b"}" + text("keys") + b"Nsb.", r"found one of a dict"),
    # bytes as text
    "encode with zip": (masks(call(ENCODE, raw(b"a"), text("zip"))), r"with 'latin1', .* found 'zip'"),
    "encode with rot13": (masks(call(ENCODE, text("a"), text("rot13"))), r"found 'rot13'"),
    "encode of bytes": (masks(call(ENCODE, raw(b"a"), text("latin1"))), r"a text for _codecs\.encode, found 1 bytes"),
    "encode of other letters": (masks(call(ENCODE, text("\u4e2d"), text("latin1"))), r"one with other characters"),
    "encode of damage": (
        masks(call(ENCODE, b"X\x88\x13\0\0" + b"\xc3" * 5000, text("latin1"))),
        r"one that is no UTF-8",
    ),
    "encode again and again": (
        P2 + ENCODE + b"q\0" + text("a" * 4000) + text("latin1") + b"\x86q\1]" + b"h\0h\1Ra" * 9999 + b".",
        r"each text made into bytes once",
    ),
    # torch
    "persistent id of nothing": (P2 + b"NQ.", r"the persistent id of a storage, found None"),
    "persistent id of a text": (P2 + text("../../etc/passwd") + b"Q.", r"the persistent id of a storage, found '\.\./"),
    "persistent id of a module": (
        P2 + stored(first=text("module")) + b".",
        r"the persistent id of a storage, found a tuple of 5",
    ),
    "storage of a class": (
        P2 + stored(kind=NDARRAY) + b".",
        r"kind, key, device and length of a storage, found numpy\.ndarray",
    ),
    "storage of a function": (P2 + stored(kind=name("os", "system")) + b".", r"os\.system"),
    "storage of doubles": (
        P2 + stored(kind=name("torch", "DoubleStorage")) + b".",
        r"torch\.DoubleStorage, of another type",
    ),
    "storage without key": (P2 + stored(key=b"K\0") + b".", r"kind, key, device and length"),
    "storage of length True": (P2 + stored(size=b"\x88") + b".", r"kind, key, device and length"),
    "tensor of a list": (P2 + tensor(b"]") + b".", r"_rebuild_tensor_v2 of a storage"),
    "tensor of an array": (P2 + tensor(array()) + b".", r"_rebuild_tensor_v2 of a storage"),
    "_rebuild_tensor": (P2 + name("torch._utils", "_rebuild_tensor") + b".", r"torch\._utils\._rebuild_tensor"),
    "_rebuild_tensor_v3": (
        P2 + name("torch._utils", "_rebuild_tensor_v3") + b".",
        r"torch\._utils\._rebuild_tensor_v3",
    ),
    "_rebuild_sparse_tensor": (P2 + SPARSE + b".", r"_rebuild_sparse_tensor"),
    "_rebuild_wrapper_subclass": (P2 + SUBCLASS + b".", r"_rebuild_wrapper_subclass"),
    "_rebuild_from_type_v2": (P2 + name("torch._tensor", "_rebuild_from_type_v2") + b".", r"_rebuild_from_type_v2"),
    "parameter of nothing": (P2 + call(PARAMETER, b"N", b"\x88", b"}") + b".", r"of a tensor, without hooks"),
    "parameter with hooks": (
        P2 + call(PARAMETER, array(), b"\x88", b"}" + text("a") + name("os", "system") + b"s") + b".", r"os\.system"
    ),
}  # fmt: skip

CARRIERS: dict[str, Callable[[bytes], bytes]] = {"pickle": bytes, "npy": npy, "zip": archive}


def refused(data: bytes, folder: Path, message: str) -> None:
    """Check that a file is refused with that message, and that there is nothing but the file afterwards."""
    modules = set(sys.modules)
    (folder / "m.npy").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_masks(Path("m.npy"))
    line = str(caught.value)
    assert line.startswith("m.npy: ")
    assert "expected " in line and ", found " in line and "; " in line
    assert line.isprintable() and len(line) < 600
    assert [path.name for path in folder.iterdir()] == ["m.npy"]
    assert set(sys.modules) == modules


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "case", ["builtins.eval", "builtins.exec", "os.mkdir as an object", "pickle in a pickle", "numpy.memmap"]
)
def test_these_would_run_elsewhere(case: str, tmp_path: Path) -> None:
    # What has the canary in it shows that the checks below would see it.
    code = EVIL[case][0]
    if case == "numpy.memmap":
        with pytest.raises(ValueError, match=r"mode|shape"):
            pickle.loads(code)
        return
    pickle.loads(code)
    assert (tmp_path / CANARY).exists()


def is_slow(case: str) -> bool:
    return "deep" in case or "without end" in case


@pytest.mark.parametrize(
    ("case", "carrier"),
    [(case, carrier) for case in EVIL for carrier in CARRIERS if carrier == "zip" or not is_slow(case)],
)
def test_hostile_pickles(case: str, carrier: str, tmp_path: Path) -> None:
    code, message = EVIL[case]
    if carrier == "npy" and message.startswith("found "):  # refused only because of what it is as a whole
        message = f"({message}|expected an array of one dict, found)"
    refused(CARRIERS[carrier](code), tmp_path, message)


def test_the_assembler_makes_masks_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(masks(array()))
    (tmp_path / "b").write_bytes(archive(masks(tensor())))
    for path in ("a", "b"):
        mask: Any = open_masks(Path(path)).tasks["task"]
        assert mask.data.tobytes() == b"abcd"


def boxed(content: bytes, shape: bytes = b")") -> bytes:
    return BLANK + args(b"K\1", shape, O8, b"\x89", content) + b"b"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        pytest.param(P2 + boxed(b"]" + boxed(b"]Na") + b"a") + b".", r"found the type 'O8'", id="box in a box"),
        pytest.param(masks(boxed(b"]Na")), r"found the type 'O8'", id="box in a dict"),
        pytest.param(
            P2 + boxed(b"]Na") + b"\x85.", r"expected an array of one dict, found a tuple of 1", id="box in a tuple"
        ),
        pytest.param(P2 + boxed(b"]") + b".", r"one dict in an array of objects, found a list of 0", id="empty"),
        pytest.param(P2 + boxed(b"](NNe") + b".", r"one dict in an array of objects, found a list of 2", id="two"),
        pytest.param(P2 + boxed(b"}") + b".", r"one dict in an array of objects, found a dict", id="no list"),
        pytest.param(P2 + boxed(b"]Na", args(b"K\1")) + b".", r"of shape a tuple of 1", id="one dimension"),
        pytest.param(P2 + boxed(b"]Na") + b".", r"a dict of them, found None", id="None"),
    ],
)
def test_boxes(code: bytes, message: str, tmp_path: Path) -> None:
    refused(npy(code), tmp_path, message)


# ---- zips ----

GOOD = masks(tensor())


def renamed(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for member, content in members.items():
            file.writestr(member, content)
    return out.getvalue()


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def twice() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for content in (GOOD, pickle.dumps(None)):
            file.writestr("a/data.pkl", content)
    return out.getvalue()


ZIP = archive(GOOD)
DIRECTORY = ZIP.index(b"PK\x01\x02")
SECOND = ZIP.index(b"PK\x01\x02", DIRECTORY + 4)
END = ZIP.index(b"PK\x05\x06")
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (lambda: archive(GOOD, bytes(10**7), zipfile.ZIP_DEFLATED), r"'a/data\.pkl', which is compressed"),
    "lzma": (lambda: archive(GOOD, bytes(10**7), zipfile.ZIP_LZMA), r"which is compressed"),
    "bomb in a member that is not used": (
        lambda: patched(ZIP, SECOND + 10, b"\x08"), r"'a/version', which is compressed"
    ),
    "compressed in the member alone": (lambda: patched(ZIP, 8, b"\x08"), r"another name or method"),
    "encrypted": (lambda: patched(ZIP, DIRECTORY + 8, b"\x01"), r"'a/data\.pkl', which is encrypted"),
    "member twice": (twice, r"'a/data\.pkl' twice"),
    "two pickles": (lambda: renamed({"a/data.pkl": GOOD, "b/data.pkl": GOOD}), r"one data\.pkl .* found 2"),
    "no pickle": (lambda: renamed({"a/data/0": b"abcd"}), r"one data\.pkl .* found 0"),
    "pickle elsewhere": (lambda: renamed({"../a/data.pkl": GOOD}), r"one data\.pkl .* found 0"),
    "empty pickle": (lambda: archive(b""), r"a pickle of protocol 2 to 5, .* found nothing"),
    "script": (
        lambda: renamed({"a/data.pkl": GOOD, "a/constants.pkl": b"", "a/code/x.py": b""}),
        r"the storage '0' in the file, found none",
    ),
    "missing storage": (lambda: archive(GOOD, None), r"the storage '0' in the file, found none"),
    "storage elsewhere": (
        lambda: archive(masks(tensor(stored(key=text("../version"))))),
        r"the storage '\.\./version' .* found none",
    ),
    "storage too short": (lambda: archive(GOOD, b"abc"), r"4 bytes in the storage '0', found 3"),
    "storage too long": (lambda: archive(GOOD, b"abcde"), r"4 bytes in the storage '0', found 5"),
    "storage of 2^62": (
        lambda: archive(masks(tensor(stored(size=number(1 << 62))))),
        r"4611686018427387904 bytes in the storage",
    ),
    "storage of -1": (lambda: archive(masks(tensor(stored(size=number(-1))))), r"-1 bytes in the storage '0', found 4"),
    "view past the end": (
        lambda: archive(masks(tensor(offset=b"K\1"))),
        r"4 elements in a storage of 4, found them from 1 on",
    ),
    "view before the start": (lambda: archive(masks(tensor(offset=number(-1)))), r"found them from -1 on"),
    "view far past": (
        lambda: archive(masks(tensor(offset=number((1 << 63) - 1)))),
        r"found them from 9223372036854775807",
    ),
    "view too large": (
        lambda: archive(masks(tensor(shape=args(number(1 << 47))))),
        r"140737488355328 elements in a storage of 4",
    ),
    "view much too large": (
        lambda: archive(masks(tensor(shape=args(number(1 << 62))))),
        r"at most 281474976710656 elements",
    ),
    "view of offset True": (lambda: archive(masks(tensor(offset=b"\x88"))), r"found them from True on"),
    "negative stride": (lambda: archive(masks(tensor(strides=args(number(-1))))), r"a stride of 1 .* found -1"),
    "stride 0": (lambda: archive(masks(tensor(strides=args(b"K\0")))), r"a stride of 1 .* found 0"),
    "stride of a text": (lambda: archive(masks(tensor(strides=args(text("x"))))), r"a stride of 1 .* found 'x'"),
    "strides missing": (lambda: archive(masks(tensor(strides=b")"))), r"1 strides of a tensor, found a tuple of 0"),
    "negative size": (lambda: archive(masks(tensor(shape=args(number(-4))))), r"sizes from 0 on .* found -4"),
    "hooks": (lambda: archive(masks(tensor(hooks=b"}" + text("a") + b"Ns"))), r"without hooks, found"),
    "damaged storage": (lambda: ZIP.replace(b"abcd", b"abcx"), r"the checksum of the member 'a/data/0'"),
    "damaged pickle": (lambda: ZIP.replace(b"task", b"tusk"), r"the checksum of the member 'a/data\.pkl'"),
    "cut": (lambda: ZIP[:-30], r"none of its directory"),
    "cut at the end": (lambda: ZIP[:-1], r"none of its directory"),
    "bytes after the end": (lambda: ZIP + b"x", r"the end of a zip at byte \d+, found that of the file at"),
    "only a header": (lambda: b"PK\x03\x04", r"none of its directory"),
    "entry missing": (lambda: patched(ZIP, END + 8, b"\x04\0\x04\0"), r"an entry of the directory"),
    "entry too many": (lambda: patched(ZIP, END + 8, b"\x02\0\x02\0"), r"its 2 members in"),
    "counts differ": (lambda: patched(ZIP, END + 8, b"\x02\0"), r"a zip in one part"),
    "many parts": (lambda: patched(ZIP, END + 4, b"\x01\0"), r"a zip in one part"),
    "member of another part": (lambda: patched(ZIP, DIRECTORY + 34, b"\x01\0"), r"'a/data\.pkl' in part 1"),
    "directory elsewhere": (lambda: patched(ZIP, END + 16, b"\0\0\0\x10"), r"a directory from byte"),
    "member of 4 GiB": (
        lambda: patched(ZIP, DIRECTORY + 20, b"\xfe\xff\xff\xff" * 2),
        r"4294967294 bytes of the member",
    ),
    "member without size": (
        lambda: patched(ZIP, DIRECTORY + 20, b"\xff\xff\xff\xff" * 2),
        r"the size and place of the member",
    ),
    "member elsewhere": (
        lambda: patched(ZIP, DIRECTORY + 42, b"\x01"),
        r"the member 'a/data\.pkl' at byte 1, found none there",
    ),
    "members over each other": (
        lambda: patched(ZIP, DIRECTORY + 20, struct.pack("<2L", *[len(GOOD) + 1] * 2)), r"'a/version' inside another"
    ),
    "another name": (lambda: patched(ZIP, DIRECTORY + 46, b"b"), r"the member 'b/data\.pkl' as the directory has it"),
    "name that is no UTF-8": (lambda: patched(ZIP, DIRECTORY + 46, b"\xff"), r"names of members in UTF-8"),
    "long name": (lambda: patched(ZIP, DIRECTORY + 28, b"\xff\xff"), r"longer than the directory"),
    "large zip without its directory": (
        lambda: ZIP[:END] + b"PK\x06\x07" + bytes(4) + struct.pack("<QL", 1 << 60, 1) + ZIP[END:],
        r"the directory of a large zip",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ZIPS)
def test_hostile_zips(case: str, tmp_path: Path) -> None:
    make, message = ZIPS[case]
    refused(make(), tmp_path, message)


def test_large_zips_are_read(tmp_path: Path) -> None:
    # A directory as of a file of more than 4 GiB.
    count, size = struct.unpack("<H", ZIP[END + 10 : END + 12])[0], END - DIRECTORY
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, DIRECTORY)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, END, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "a").write_bytes(ZIP[:END] + record + locator + end)
    assert list(open_masks(Path("a")).tasks) == ["task"]


@pytest.mark.parametrize(
    "case",
    [
        "values without end",
        "opcodes without end",
        "memo without end",
        "encode again and again",
        "shape 2^40",
        "BINBYTES",
    ],
)
def test_memory_is_bounded(case: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(EVIL[case][0])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            open_masks(Path("a"))
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_a_pickle_of_a_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    out = io.BytesIO()
    torch.save(OrderedDict(a=np.float64(3)), out)
    refused(out.getvalue(), tmp_path, r"found the type 'f8'")
