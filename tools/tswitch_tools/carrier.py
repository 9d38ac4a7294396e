"""A whole .tsw file as one .safetensors file: names of its tensors, and the document that says what they are.

    Carried, CarriedTask, CarriedEntry, CarriedArray   what a carrier holds beside the tensors' bytes
    entry_tensors, array_tensor, all_tensors           the tensors of it, by name, dtype and shape
    to_json                                             the document; `carrier_document.from_json` is the way back

`spec/safetensors-carrier.md` is the description for those who have no library of ours. In short: `__metadata__` has
`tsw_carrier`, the layout's version "1", and `tsw`, a JSON document of everything but planes, factors and data. Those are
tensors. With `{task}` and `{tensor}` names in which % is written %25 and / is written %2F, N the tensor's elements:

    {task}/{tensor}/mask            U8 [ceil(N / 8)]       a bit for each element, least significant first
    {task}/{tensor}/sign            U8 [ceil(active / 8)]  a bit for each active element of the whole tensor, 1 = negative
    {task}/{tensor}/row_factors     U8, F16 or F32 [R]     as stored
    {task}/{tensor}/column_factors  U8, F16 or F32 [C]
    {task}/{tensor}/data            of a dense entry, in its own dtype and shape
    shared/{number}/{name}/data     a shared vector, of the name of a tensor, samples of the task of that name, or the
                                    coefficients of the table of that name

Names of three parts and of four never meet, nor do two of three, since no part has a / of its own. Dtypes that older
safetensors lack (RAW) are carried as their bytes, U8 [bytes].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tswitch_format.checkpoint import DTYPE_BY_NAME, DType, TensorSpec
from tswitch_format.container.tensors import Digests

VERSION = "1"
VERSION_KEY = "tsw_carrier"  # of __metadata__
DOCUMENT_KEY = "tsw"

MASK, SIGN, ROW_FACTORS, COLUMN_FACTORS, DATA = "mask", "sign", "row_factors", "column_factors", "data"
FACTOR_DTYPES = {name.lower(): DTYPE_BY_NAME[name] for name in ("U8", "F16", "F32")}
VECTOR, FEATURES, COEFFICIENTS = "vector", "features", "coefficients"
ROLES = (VECTOR, FEATURES, COEFFICIENTS)
RAW = frozenset({"C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"})
CHUNK = 1 << 20  # elements: what .tsw files are cut into, and what is moved at once

_U8 = DTYPE_BY_NAME["U8"]


@dataclass(frozen=True, slots=True)
class CarriedEntry:
    """One tensor of a task. `spec`: name, dtype and shape in the expert; `added`: of a dense entry whose tensor is none of the
    base's, or of another dtype or shape. The fields of switches are empty for others."""

    spec: TensorSpec
    kind: str
    sha256: bytes | None
    added: bool = False
    knob: float = 0.0
    active: int = 0
    factors: Sequence[str] = ()  # ROW_FACTORS, COLUMN_FACTORS
    factor_dtype: str | None = None
    vector: int = 0


@dataclass(frozen=True, slots=True)
class CarriedTask:
    """One task, its entries in the order of a .tsw file."""

    name: str
    entries: Sequence[CarriedEntry]
    recipe: Mapping[str, str]
    checkpoint: Mapping[str, str]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CarriedArray:
    """One shared array: its number in the file, which is in its tensor's name; `role`: one of ROLES."""

    number: int
    spec: TensorSpec
    sha256: bytes
    role: str = VECTOR


@dataclass(frozen=True, slots=True)
class CarriedRouter:
    """What says which tasks a sample needs; the samples are shared arrays of role FEATURES."""

    k: int
    metric: str
    extractor: str
    preprocessing: str


@dataclass(frozen=True, slots=True)
class CarriedTable:
    """What is said of a table of coefficients: names of base tensors and of tasks, least and greatest or None. Its elements
    are a shared array of role COEFFICIENTS."""

    rows: Sequence[str]
    tasks: Sequence[str]
    clamp: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Carried:
    """Everything that a carrier holds but the bytes of its tensors. `aliases`: further names of base tensors."""

    base: Sequence[TensorSpec]
    digests: Sequence[Digests]
    aliases: Mapping[str, str]
    base_id: str | None
    base_revision: str | None
    metadata: Mapping[str, str]
    shared: Sequence[CarriedArray]
    tasks: Sequence[CarriedTask]
    content_id: bytes | None
    router: CarriedRouter | None = None
    tables: Mapping[str, CarriedTable] = field(default_factory=dict)


def escaped(name: str) -> str:
    """A name of a task or tensor as one part of a carrier's name."""
    return name.replace("%", "%25").replace("/", "%2F")


def tensor_name(task: str, tensor: str, what: str) -> str:
    """The name of a plane, of factors or of data."""
    return f"{escaped(task)}/{escaped(tensor)}/{what}"


def entry_tensors(task: str, entry: CarriedEntry) -> dict[str, TensorSpec]:
    """The carrier's tensors of an entry, by what they are."""
    spec = entry.spec
    made: dict[str, TensorSpec] = {}

    def add(what: str, dtype: DType, *shape: int) -> None:
        made[what] = TensorSpec(tensor_name(task, spec.name, what), dtype, shape)

    if entry.kind in ("ternary", "masked"):
        for what in entry.factors:
            add(what, FACTOR_DTYPES[entry.factor_dtype or ""], factor_count(spec, what))
        add(MASK, _U8, bit_bytes(spec.elements))
        if entry.kind == "ternary":
            add(SIGN, _U8, bit_bytes(entry.active))
    elif entry.kind == "dense":
        made[DATA] = _whole(tensor_name(task, spec.name, DATA), spec)
    return made


def array_tensor(vector: CarriedArray) -> TensorSpec:
    """The carrier's tensor of a shared array."""
    return _whole(f"shared/{vector.number}/{escaped(vector.spec.name)}/{DATA}", vector.spec)


def all_tensors(carried: Carried) -> Iterator[TensorSpec]:
    """All tensors of a carrier, in the order of the document."""
    yield from map(array_tensor, carried.shared)
    for task in carried.tasks:
        for entry in task.entries:
            yield from entry_tensors(task.name, entry).values()


def factor_count(spec: TensorSpec, what: str) -> int:
    """How many row or column factors a tensor has."""
    return spec.shape[0] if what == ROW_FACTORS else spec.elements // spec.shape[0]


def bit_bytes(bits: int) -> int:
    """Bytes of a bit string."""
    return (bits + 7) // 8


def _whole(name: str, spec: TensorSpec) -> TensorSpec:
    if spec.dtype.name in RAW:
        return TensorSpec(name, _U8, (spec.nbytes,))
    return TensorSpec(name, spec.dtype, spec.shape)


def to_json(carried: Carried) -> str:
    """The document: what is absent has no key."""
    base: dict[str, Any] = {}
    if carried.base_id is not None:
        base["id"] = carried.base_id
    if carried.base_revision is not None:
        base["revision"] = carried.base_revision
    base["tensors"] = [
        {**_spec(spec), **_hex("sha256", digests.sha256), **_hex("sampled", digests.sampled)}
        for spec, digests in zip(carried.base, carried.digests, strict=True)
    ]
    base["aliases"] = dict(carried.aliases)
    document = {
        **_hex("content_id", carried.content_id),
        "base": base,
        "metadata": dict(carried.metadata),
        **({} if carried.router is None else {"router": asdict(carried.router)}),
        **({"coefficients": {name: _table(table) for name, table in carried.tables.items()}} if carried.tables else {}),
        "shared": [{"role": one.role, **_spec(one.spec), **_hex("sha256", one.sha256)} for one in carried.shared],
        "tasks": [
            {
                "name": task.name,
                "recipe": dict(task.recipe),
                "checkpoint": dict(task.checkpoint),
                "metadata": dict(task.metadata),
                "entries": [_entry(entry) for entry in task.entries],
            }
            for task in carried.tasks
        ],
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _table(table: CarriedTable) -> dict[str, Any]:
    clamp = {} if table.clamp is None else {"clamp": list(table.clamp)}
    return {**clamp, "rows": list(table.rows), "tasks": list(table.tasks)}


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}


def _hex(key: str, digest: bytes | None) -> dict[str, str]:
    return {} if digest is None else {key: digest.hex()}


def _entry(entry: CarriedEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {**_spec(entry.spec), "kind": entry.kind}
    if entry.kind in ("ternary", "masked"):
        fields |= {"knob": entry.knob, "active": entry.active}
    if entry.factors:
        fields |= {"factors": list(entry.factors), "factor_dtype": entry.factor_dtype}
    if entry.kind == "masked":
        fields["vector"] = entry.vector
    if entry.added:
        fields["added"] = True
    return fields | _hex("sha256", entry.sha256)
