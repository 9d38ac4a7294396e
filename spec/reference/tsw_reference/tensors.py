"""Section 5.3: the tensor lists of base, extra and shared, names and aliases."""

from __future__ import annotations

import math
import struct
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from .errors import BrokenError, shown
from .fields import Fields
from .layout import DTYPES, LONGEST_NAME, MOST_DIMENSIONS, MOST_ELEMENTS, MOST_TENSORS, MOST_WIDE_NAME_BYTES
from .model import Tensor

RECORD = struct.Struct("<HBBI8s32s")
LIST_KEYS = {"dims", "names", "tensors"}

_FORBIDDEN_CATEGORIES = ("Cc", "Zl", "Zp")
_BIDIRECTIONAL = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def name_fault(name: str) -> str | None:
    """What is wrong with a name, or None."""
    length = len(name.encode("utf-8"))
    if not 1 <= length <= LONGEST_NAME:
        return f"a name of {length} bytes"
    if name.isascii() and name.isprintable():
        return None  # what nearly all names are, and there may be a million
    for character in name:
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES or character in _BIDIRECTIONAL:
            return f"the character U+{ord(character):04X} in {shown(name)}"
    if not unicodedata.is_normalized("NFC", name):
        return f"{shown(name)}, which is not in form NFC"
    return None


NAME_EXPECTED = f"a name of 1 to {LONGEST_NAME} bytes of NFC UTF-8 without controls, separators and bidi marks"


def read_lists(
    base: Fields, extra: Fields, shared: Fields | None, newer: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The tensors of all lists; those of base and extra with their numbers, those of shared numbered from 0."""
    lists = (base, extra) if shared is None else (base, extra, shared)
    tables = [fields.table("tensors", RECORD.size) for fields in lists]
    total = sum(map(len, tables)) // RECORD.size
    if total > MOST_TENSORS:
        raise BrokenError("TSW-403", f"at most {MOST_TENSORS} tensors", str(total), "index, all tensor lists")
    tensors = _read_list(base, tables[0], 0, newer)
    more = _read_list(extra, tables[1], len(tensors), newer)
    _check_order(tensors, more)
    for tensor in more:
        if tensor.sha256 is not None or tensor.sampled is not None:
            raise BrokenError(
                "TSW-406", "no digests in extra", "some", str(_Place(extra.where, tensor.number - len(tensors)))
            )
    return tensors, more, [] if shared is None else _read_list(shared, tables[2], 0, newer)


class _Place(NamedTuple):
    """Where a tensor record is; text only where it is asked for."""

    where: str
    number: int

    def __str__(self) -> str:
        return f"{self.where}, tensor record {self.number}"


def _read_list(fields: Fields, table: bytes, first_number: int, newer: bool) -> list[Tensor]:
    names, dims = fields.binary("names"), fields.binary("dims")
    for what, stored, needed in (
        ("names", len(names), sum(record[0] for record in RECORD.iter_unpack(table))),
        ("dims", len(dims), 8 * sum(record[2] for record in RECORD.iter_unpack(table))),
    ):
        if stored != needed:
            raise BrokenError("TSW-401", f"{needed} bytes of {what}", str(stored), f"{fields.where}, {what}")
    tensors = []
    name_at = dim_at = 0
    for number, (name_length, dtype, ndim, flags, sampled, sha256) in enumerate(RECORD.iter_unpack(table)):
        where = _Place(fields.where, number)
        name = _name(names[name_at : name_at + name_length], where)
        shape = struct.unpack_from(f"<{ndim}Q", dims, dim_at)
        name_at += name_length
        dim_at += 8 * ndim
        elements = _elements(shape, where)
        if dtype not in DTYPES:
            raise BrokenError("TSW-404", "a dtype of section 6", str(dtype), str(where))
        bits = elements * DTYPES[dtype][1]
        if bits % 8:
            raise BrokenError("TSW-404", "elements that fill whole bytes", f"{bits} bits", str(where))
        if flags > 3 and not newer:
            raise BrokenError("TSW-406", "flags of bits 0 and 1", f"{flags:#x}", str(where))
        tensors.append(
            Tensor(
                first_number + number,
                name,
                dtype,
                shape,
                elements,
                optional_digest(sha256, bool(flags & 1), where),
                optional_digest(sampled, bool(flags & 2), where),
            )
        )
    return tensors


def check_wide_names(names: Iterable[str]) -> None:
    """The limit on names that are not ASCII, of tensors, aliases and tasks together."""
    total = sum(len(name.encode("utf-8")) for name in names if not name.isascii())
    if total > MOST_WIDE_NAME_BYTES:
        expected = f"at most {MOST_WIDE_NAME_BYTES} bytes of names that are not ASCII"
        raise BrokenError("TSW-403", expected, str(total), "index, names")


def optional_digest(stored: bytes, present: bool, where: object) -> bytes | None:
    """A digest that a flag says is present; zero where it is not."""
    if present:
        return stored
    if any(stored):
        raise BrokenError("TSW-406", "an absent digest that is zero", stored.hex(), str(where))
    return None


def _name(encoded: bytes, where: _Place) -> str:
    try:
        name = encoded.decode("utf-8")
    except UnicodeDecodeError:
        found = f"bytes that are not UTF-8: {encoded[:40].hex()}"
        raise BrokenError("TSW-402", NAME_EXPECTED, found, str(where)) from None
    fault = name_fault(name)
    if fault:
        raise BrokenError("TSW-402", NAME_EXPECTED, fault, str(where))
    return name


def _elements(shape: tuple[int, ...], where: _Place) -> int:
    if len(shape) > MOST_DIMENSIONS:
        raise BrokenError("TSW-403", f"at most {MOST_DIMENSIONS} dimensions", str(len(shape)), str(where))
    elements = math.prod(shape)
    if max(shape, default=0) > MOST_ELEMENTS or elements > MOST_ELEMENTS:
        raise BrokenError("TSW-403", f"dimensions and elements up to {MOST_ELEMENTS}", str(list(shape)), str(where))
    return elements


def _check_order(base: list[Tensor], extra: list[Tensor]) -> None:
    for before, tensor in pairwise(base):
        if before.name.encode("utf-8") >= tensor.name.encode("utf-8"):
            found = f"{shown(tensor.name)} after {shown(before.name)}"
            raise BrokenError("TSW-405", "names that ascend strictly", found, "index, base")
    for before, tensor in pairwise(extra):
        if order_in_list(before) >= order_in_list(tensor):
            found = f"{shown(tensor.name)} after {shown(before.name)}"
            raise BrokenError("TSW-405", "names, dtypes and shapes that ascend strictly", found, "index, extra")


def order_in_list(tensor: Tensor) -> tuple[bytes, int, int, tuple[int, ...]]:
    """What the records of extra ascend by, and first of all those of shared."""
    return tensor.name.encode("utf-8"), tensor.dtype, len(tensor.shape), tensor.shape


def check_aliases(aliases: dict[str, int], base: list[Tensor]) -> None:
    """The rules on aliases (TSW-407)."""
    names = {tensor.name for tensor in base}
    for alias, number in aliases.items():
        where = f"index, base, aliases, {shown(alias)}"
        fault = name_fault(alias)
        if fault:
            raise BrokenError("TSW-407", NAME_EXPECTED, fault, where)
        if alias in names:
            raise BrokenError("TSW-407", "a name that no base tensor has", "that of one", where)
        if number >= len(base):
            raise BrokenError("TSW-407", f"a base tensor's number, below {len(base)}", str(number), where)
