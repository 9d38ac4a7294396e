"""Canonical MessagePack, spec section 5.1: encoding, and decoding that accepts nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

import msgpack

from tswitch_format._layout import MAX_DEPTH, MAX_MEMBERS, MAX_VALUES

Value: TypeAlias = "dict[str, Value] | list[Value] | str | bytes | int"
Fail: TypeAlias = Callable[[str, str, str], Exception]  # (rule, expected, found) -> error to raise


def encode(value: Value) -> bytes:
    """The canonical bytes of a document."""
    packed: bytes = msgpack.packb(_sorted(value), use_bin_type=True)
    return packed


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=str.encode)}
    if isinstance(value, list):
        return [_sorted(member) for member in value]
    return value


def decode(data: bytes | memoryview, fail: Fail) -> Value:
    """The document of canonical bytes. Raises what `fail` makes of a broken rule.

    The limits keep a hostile document from asking for more memory than a small multiple of its size.
    """
    budget = _Budget()
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=False,  # `_map` checks the keys
            max_array_len=MAX_MEMBERS,
            max_map_len=MAX_MEMBERS,
            ext_hook=_refuse_extension,
            object_pairs_hook=budget.map,
            list_hook=budget.array,
        )
    except msgpack.ExtraData as error:
        raise fail("TSW-306", "one document", f"{len(error.extra)} bytes after it") from error
    except msgpack.StackError as error:
        raise fail("TSW-305", f"nesting of at most {MAX_DEPTH}", "deeper nesting") from error
    except UnicodeDecodeError as error:
        raise fail("TSW-304", "UTF-8", str(error)) from error
    except _BudgetError as error:
        raise fail("TSW-305", f"at most {MAX_VALUES} members in all", "more") from error
    except _KeysError as error:
        raise fail("TSW-303", *error.args) from error
    except _ExtensionError as error:
        raise fail("TSW-301", "map, array, str, bin or unsigned integer", str(error)) from error
    except ValueError as error:  # msgpack raises it, and subclasses, for all else
        rule = "TSW-305" if "max_" in str(error) else "TSW-302"
        raise fail(rule, "one whole document within the limits", str(error) or type(error).__name__) from error
    _check(value, 1, fail)
    if encode(value) != data:
        raise fail("TSW-302", "shortest forms", "another encoding of the same content")
    typed: Value = value
    return typed


class _ExtensionError(Exception):
    pass


class _KeysError(Exception):
    """(expected, found)."""


class _BudgetError(Exception):
    pass


class _Budget:
    """Ends the decoding of documents of very many tiny values, which take a hundred times their size in memory."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        """For each map when it is complete."""
        self._spend(len(pairs))
        return _map(pairs)

    def array(self, members: list[Any]) -> list[Any]:
        """For each array when it is complete."""
        self._spend(len(members))
        return members

    def _spend(self, members: int) -> None:
        self._left -= members + 1
        if self._left < 0:
            raise _BudgetError


def _refuse_extension(code: int, data: bytes) -> Any:
    raise _ExtensionError(f"extension type {code}")


def _map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    for key, _ in pairs:
        if not isinstance(key, str):
            raise _KeysError("keys that are str", type(key).__name__)
    for (before, _), (key, _) in pairwise(pairs):
        if before >= key:  # the order of code points is that of UTF-8 bytes
            raise _KeysError("keys that ascend strictly", f"{key[:80]!r} after {before[:80]!r}")
    return dict(pairs)


def _check(value: Any, depth: int, fail: Fail) -> None:
    if isinstance(value, (dict, list)):
        if depth > MAX_DEPTH:
            raise fail("TSW-305", f"nesting of at most {MAX_DEPTH}", "deeper nesting")
        for member in value.values() if isinstance(value, dict) else value:
            _check(member, depth + 1, fail)
    elif isinstance(value, bool) or not isinstance(value, (str, bytes, int)) or (isinstance(value, int) and value < 0):
        raise fail("TSW-301", "map, array, str, bin or unsigned integer", repr(value)[:40])
