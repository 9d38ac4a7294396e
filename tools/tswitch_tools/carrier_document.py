"""The document of a carrier, checked: its JSON -> `carrier.Carried`.

The file may be hostile, so nothing is taken as it comes: keys, types, names, sizes, and the order of everything. What a .tsw
file asks for beyond that is checked when it is written.
"""

from __future__ import annotations

import itertools
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tswitch_format.checkpoint import DTYPE_BY_NAME, TensorSpec
from tswitch_format.container.names import name_problem
from tswitch_format.container.tensors import Digests
from tswitch_format.errors import CheckpointError
from tswitch_tools.carrier import (
    COLUMN_FACTORS,
    DOCUMENT_KEY,
    FACTOR_DTYPES,
    ROLES,
    ROW_FACTORS,
    VECTOR,
    Carried,
    CarriedArray,
    CarriedEntry,
    CarriedRouter,
    CarriedTable,
    CarriedTask,
)

AGAIN = "get the file again, or export it again with 'tsw export --to safetensors'"

_MAX_DIMENSIONS = 16
_MAX_SIZE = 1 << 48  # of a dimension, and elements of a tensor
_MAX_WIDE_NAMES = 1 << 20  # bytes
_KINDS = {  # keys beside those of every entry: needed, and optional
    "ternary": (("knob", "active"), ("factors", "factor_dtype")),
    "masked": (("knob", "active", "vector"), ()),
    "dense": ((), ("added",)),
    "removed": ((), ()),
}


def from_json(text: str, path: Path) -> Carried:
    """What a document says. Raises CheckpointError that names the place in it."""
    return _Document(path).read(text)


class _Document:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._proper: set[str] = set()
        self._wide_left = _MAX_WIDE_NAMES

    def read(self, text: str) -> Carried:
        try:
            document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self._fail("", "JSON", f"something else: {error}")
        top = self._map("", document, ("base", "metadata", "shared", "tasks"), ("content_id", "coefficients", "router"))
        base = self._map("base", top["base"], ("tensors", "aliases"), ("id", "revision"))
        specs, digests = [], []
        for where, item in self._list("base.tensors", base["tensors"]):
            fields = self._map(where, item, ("name", "dtype", "shape"), ("sha256", "sampled"))
            specs.append(self._spec(where, fields))
            digests.append(
                Digests(self._digest(where, fields, "sha256", 32), self._digest(where, fields, "sampled", 8))
            )
        self._ascending("base.tensors", [spec.name for spec in specs])
        known = {spec.name: spec for spec in specs}
        aliases = self._strings("base.aliases", base["aliases"])
        for alias, target in aliases.items():
            self._name("base.aliases", alias)
            if target not in known:
                self._fail(f"base.aliases.{alias!r}", "the name of a tensor of the base", repr(target))
        shared = self._list("shared", top["shared"])
        arrays = [self._array(where, number, item) for number, (where, item) in enumerate(shared)]
        self._ascending("shared", [(*_order(one.spec), one.sha256) for one in arrays])
        tasks = [self._task(where, item, known, arrays) for where, item in self._list("tasks", top["tasks"])]
        return Carried(
            base=specs,
            digests=digests,
            aliases=aliases,
            base_id=self._string("base.id", base["id"]) if "id" in base else None,
            base_revision=self._string("base.revision", base["revision"]) if "revision" in base else None,
            metadata=self._strings("metadata", top["metadata"]),
            shared=arrays,
            tasks=tasks,
            content_id=self._digest("", top, "content_id", 32),
            router=self._router("router", top["router"]) if "router" in top else None,
            tables=self._tables("coefficients", top["coefficients"], known) if "coefficients" in top else {},
        )

    def _array(self, where: str, number: int, item: Any) -> CarriedArray:
        fields = self._map(where, item, ("role", "name", "dtype", "shape", "sha256"))
        if fields["role"] not in ROLES:
            self._fail(f"{where}.role", " or ".join(map(repr, ROLES)), reprlib.repr(fields["role"]))
        spec = self._spec(where, fields)
        if not spec.dtype.is_float:
            self._fail(f"{where}.dtype", "F16, BF16, F32 or F64", spec.dtype.name)
        return CarriedArray(number, spec, self._digest(where, fields, "sha256", 32) or b"", fields["role"])

    def _router(self, where: str, item: Any) -> CarriedRouter:
        fields = self._map(where, item, ("k", "metric", "extractor", "preprocessing"))
        texts = {key: self._string(f"{where}.{key}", fields[key]) for key in ("metric", "extractor", "preprocessing")}
        return CarriedRouter(self._number(f"{where}.k", fields["k"], _MAX_SIZE), **texts)

    def _tables(self, where: str, value: Any, base: Mapping[str, TensorSpec]) -> dict[str, CarriedTable]:
        if not isinstance(value, dict) or not value:
            self._fail(where, "a map of tables, or no such key", reprlib.repr(value))
        return {self._string(where, name): self._table(f"{where}.{name!r}", item, base) for name, item in value.items()}

    def _table(self, where: str, item: Any, base: Mapping[str, TensorSpec]) -> CarriedTable:
        fields = self._map(where, item, ("rows", "tasks"), ("clamp",))
        rows, tasks = (
            [self._string(at, name) for at, name in self._list(f"{where}.{key}", fields[key])]
            for key in ("rows", "tasks")
        )
        for name in rows:
            if name not in base:
                self._fail(f"{where}.rows", "names of tensors of the base", repr(name[:80]))
        clamp = None
        if "clamp" in fields:
            numbers = [self._exact(at, number) for at, number in self._list(f"{where}.clamp", fields["clamp"])]
            if len(numbers) != 2:
                self._fail(f"{where}.clamp", "two numbers", str(len(numbers)))
            clamp = numbers[0], numbers[1]
        return CarriedTable(rows, tasks, clamp)

    def _task(
        self, where: str, item: Any, base: Mapping[str, TensorSpec], vectors: Sequence[CarriedArray]
    ) -> CarriedTask:
        fields = self._map(where, item, ("name", "entries", "recipe", "checkpoint", "metadata"))
        name = self._name(f"{where}.name", fields["name"])
        entries = [
            self._entry(at, entry, base, vectors) for at, entry in self._list(f"{where}.entries", fields["entries"])
        ]
        names = [entry.spec.name for entry in entries]
        if len(set(names)) < len(names):
            twice = next(one for one, other in itertools.pairwise(sorted(names)) if one == other)
            self._fail(f"{where}.entries", "each tensor once", f"{twice!r} twice")
        # Numbers of base tensors ascend as their names do.
        self._ascending(f"{where}.entries", [(entry.added, *_order(entry.spec)) for entry in entries])
        maps = {key: self._strings(f"{where}.{key}", fields[key]) for key in ("recipe", "checkpoint", "metadata")}
        return CarriedTask(name, entries, **maps)

    def _entry(
        self, where: str, item: Any, base: Mapping[str, TensorSpec], vectors: Sequence[CarriedArray]
    ) -> CarriedEntry:
        kind = item.get("kind") if isinstance(item, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            self._fail(f"{where}.kind", f"one of {', '.join(_KINDS)}", reprlib.repr(kind))
        needed, optional = _KINDS[kind]
        fields = self._map(where, item, ("name", "dtype", "shape", "kind", *needed), ("sha256", *optional))
        spec = self._spec(where, fields)
        sha256 = self._digest(where, fields, "sha256", 32)
        if "added" in fields:
            if fields["added"] is not True:
                self._fail(f"{where}.added", "true, or no such key", reprlib.repr(fields["added"]))
            return CarriedEntry(spec, kind, sha256, added=True)
        there = base.get(spec.name)
        if there is None or there.shape != spec.shape:
            found = "none" if there is None else str(there)
            self._fail(f"{where} ({spec.name!r})", f"a tensor of the base of shape {list(spec.shape)}", found)
        if kind in ("dense", "removed"):
            if there.dtype is not spec.dtype:
                self._fail(f"{where} ({spec.name!r}).dtype", there.dtype.name, spec.dtype.name)
            return CarriedEntry(spec, kind, sha256)
        if not there.dtype.is_float or not spec.dtype.is_float:
            self._fail(f"{where} ({spec.name!r})", "float types in base and expert", f"{there} and {spec}")
        knob = self._exact(f"{where}.knob", fields["knob"])
        active = self._number(f"{where}.active", fields["active"], spec.elements)
        if kind == "masked":
            number = self._number(f"{where}.vector", fields["vector"], len(vectors) - 1)
            of_it = vectors[number].spec.name == spec.name and vectors[number].spec.shape == spec.shape
            if vectors[number].role != VECTOR or not of_it:
                found = f"that of {vectors[number].spec.name!r}, {vectors[number].spec}"
                self._fail(f"{where} ({spec.name!r}).vector", "the number of a vector of the tensor", found)
            return CarriedEntry(spec, kind, sha256, knob=knob, active=active, vector=number)
        factors, factor_dtype = self._factors(where, fields, spec), fields.get("factor_dtype")
        return CarriedEntry(spec, kind, sha256, knob=knob, active=active, factors=factors, factor_dtype=factor_dtype)

    def _factors(self, where: str, fields: Mapping[str, Any], spec: TensorSpec) -> Sequence[str]:
        if "factors" not in fields and "factor_dtype" not in fields:
            return ()
        known = ([ROW_FACTORS], [COLUMN_FACTORS], [ROW_FACTORS, COLUMN_FACTORS])
        factors, dtype = fields.get("factors"), fields.get("factor_dtype")
        if factors not in known:
            self._fail(f"{where}.factors", f"one of {', '.join(map(str, known))}", reprlib.repr(factors))
        if not isinstance(dtype, str) or dtype not in FACTOR_DTYPES:
            self._fail(f"{where}.factor_dtype", f"one of {', '.join(FACTOR_DTYPES)}", reprlib.repr(dtype))
        if len(spec.shape) < 2 or not spec.elements:
            self._fail(f"{where}.factors", f"none for the shape {list(spec.shape)}", str(factors))
        return tuple(factors)

    def _exact(self, where: str, value: Any) -> float:
        number = float(value) if type(value) is float or (type(value) is int and abs(value) < 1 << 53) else math.nan
        with np.errstate(over="ignore"):
            exact = float(np.float32(number)) == number
        if not math.isfinite(number) or not exact:
            self._fail(where, "a finite number that binary32 has", reprlib.repr(value))
        return number

    def _spec(self, where: str, fields: Mapping[str, Any]) -> TensorSpec:
        name = self._name(f"{where}.name", fields["name"])
        dtype, shape = fields["dtype"], fields["shape"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BY_NAME:
            self._fail(f"{where}.dtype", f"one of {', '.join(DTYPE_BY_NAME)}", reprlib.repr(dtype))
        if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
            self._fail(f"{where}.shape", f"a list of at most {_MAX_DIMENSIONS} dimensions", reprlib.repr(shape))
        spec = TensorSpec(
            name, DTYPE_BY_NAME[dtype], tuple(self._number(f"{where}.shape", n, _MAX_SIZE) for n in shape)
        )
        if spec.elements > _MAX_SIZE or spec.elements * spec.dtype.bits % 8:
            self._fail(f"{where}.shape", f"at most {_MAX_SIZE} elements that fill whole bytes", str(spec))
        return spec

    def _name(self, where: str, value: Any) -> str:
        name = self._string(where, value)
        if name in self._proper:
            return name
        if not name.isascii():  # normalising takes time
            self._wide_left -= len(name.encode())
            if self._wide_left < 0:
                self._fail(where, f"at most {_MAX_WIDE_NAMES} bytes of names that are not ASCII", "more")
        wrong = name_problem(name)
        if wrong:
            self._fail(where, "a proper name", f"{wrong}: {name[:80]!r}")
        self._proper.add(name)
        return name

    def _digest(self, where: str, fields: Mapping[str, Any], key: str, nbytes: int) -> bytes | None:
        value = fields.get(key)
        if key not in fields:
            return None
        if not isinstance(value, str) or len(value) != 2 * nbytes or set(value) - set("0123456789abcdef"):
            self._fail(f"{where}.{key}", f"{2 * nbytes} hexadecimal digits, a to f small", reprlib.repr(value))
        return bytes.fromhex(value)

    def _number(self, where: str, value: Any, most: int) -> int:
        if type(value) is not int or not 0 <= value <= most:
            self._fail(where, f"an integer from 0 to {most}", reprlib.repr(value))
        return value

    def _string(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            self._fail(where, "a string", reprlib.repr(value))
        try:
            value.encode()
        except UnicodeEncodeError:
            self._fail(where, "valid Unicode", ascii(value[:80]))
        return value

    def _strings(self, where: str, value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            self._fail(where, "a map of string to string", reprlib.repr(value))
        return {self._string(where, key): self._string(where, text) for key, text in value.items()}

    def _list(self, where: str, value: Any) -> list[tuple[str, Any]]:
        """The members of a list, each with what to call it."""
        if not isinstance(value, list):
            self._fail(where, "a list", reprlib.repr(value))
        return [(f"{where}[{number}]", item) for number, item in enumerate(value)]

    def _map(self, where: str, value: Any, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(where, "a map", reprlib.repr(value))
        missing, unknown = set(needed) - value.keys(), value.keys() - {*needed, *optional}
        if missing or unknown:
            found = f"no {min(missing)!r}" if missing else f"the unknown key {reprlib.repr(min(unknown))}"
            self._fail(where, f"the keys {', '.join(needed)}", found)
        return value

    def _ascending(self, where: str, keys: Sequence[Any]) -> None:
        for number, (before, key) in enumerate(itertools.pairwise(keys), 1):
            if before >= key:
                self._fail(f"{where}[{number}]", "members in the order of a .tsw file, each once", "another order")

    def _fail(self, where: str, expected: str, found: str) -> NoReturn:
        place = f"{DOCUMENT_KEY}.{where}" if where else DOCUMENT_KEY
        raise CheckpointError(f"{self._path}: __metadata__.{place}: expected {expected}, found {found}; {AGAIN}")


def _order(spec: TensorSpec) -> tuple[Any, ...]:
    """What tensors of a list ascend by (spec section 5.3)."""
    return spec.name.encode(), spec.dtype.id, len(spec.shape), spec.shape


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
