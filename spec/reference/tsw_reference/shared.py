"""Section 5.5: arrays that belong to no task."""

from __future__ import annotations

from itertools import pairwise

from .errors import BrokenError, shown
from .fields import Fields
from .layout import COEFFICIENTS, DTYPES, F32, FEATURES, FLOATS, OF_FEATURES, SHARED_ROLES, VECTOR, chunk_count
from .model import Entry, Shared, Task, Tensor
from .segments import Records, data_places
from .tensors import order_in_list

MORE_KEYS = {"roles", "segments"}
"""Keys beside those of a tensor list."""


def read_shared(fields: Fields, tensors: list[Tensor], base: list[Tensor], tasks: set[str]) -> list[Shared]:
    """The arrays, checked but for their segments and whether they are used. `tensors`: the records of the list; `tasks`: the
    names of all tasks."""
    if not tensors:
        raise BrokenError("TSW-410", "at least one shared array, or no key `shared`", "none", fields.where)
    roles = fields.binary("roles")
    if len(roles) != len(tensors):
        raise BrokenError("TSW-409", f"{len(tensors)} roles", str(len(roles)), f"{fields.where}, roles")
    by_name = {tensor.name: tensor for tensor in base}
    arrays = []
    for tensor, role in zip(tensors, roles, strict=True):
        where = f"{fields.where}, tensor record {tensor.number}"
        if role not in SHARED_ROLES:
            expected = " or ".join(f"{name} ({number})" for number, name in SHARED_ROLES.items())
            raise BrokenError("TSW-409", f"the role {expected}", str(role), where)
        if tensor.sha256 is None or tensor.sampled is not None:
            found = "no sha256" if tensor.sha256 is None else "a sampled digest"
            raise BrokenError("TSW-406", "a sha256 and no sampled digest of a shared array", found, where)
        if role == VECTOR:
            _check_vector(tensor, by_name.get(tensor.name), where)
        arrays.append(Shared(tensor, role, tensor.sha256, where))
    for before, array in pairwise(arrays):
        if (order_in_list(before.tensor), before.sha256) >= (order_in_list(array.tensor), array.sha256):
            found = f"{shown(array.tensor.name)} after {shown(before.tensor.name)}"
            expected = "names, dtypes, shapes and SHA-256 that ascend strictly"
            raise BrokenError("TSW-405", expected, found, array.where)
    _check_features([array for array in arrays if array.role == FEATURES], tasks)
    _check_coefficients([array for array in arrays if array.role == COEFFICIENTS])
    return arrays


def _check_vector(tensor: Tensor, base: Tensor | None, where: str) -> None:
    def wrong(expected: str, found: str) -> BrokenError:
        return BrokenError("TSW-409", expected, found, where)

    if base is None:
        raise wrong("the name of a base tensor", shown(tensor.name))
    if base.shape != tensor.shape:
        raise wrong(f"the base tensor's shape {list(base.shape)}", str(list(tensor.shape)))
    for whose, dtype in (("the base tensor", base.dtype), ("the vector", tensor.dtype)):
        if dtype not in FLOATS:
            raise wrong(f"{whose} to be F16, BF16, F32 or F64", DTYPES[dtype][0])


def _check_features(arrays: list[Shared], tasks: set[str]) -> None:
    seen: set[str] = set()
    for array in arrays:
        tensor = array.tensor
        found = shown(tensor.name)
        if tensor.name not in tasks:
            raise BrokenError("TSW-409", "features with the name of a task", found, array.where)
        if tensor.name in seen:
            raise BrokenError("TSW-409", "one array of features for a task", f"a second for {found}", array.where)
        seen.add(tensor.name)
        if tensor.dtype not in OF_FEATURES:
            raise BrokenError("TSW-409", "features of F16 or F32", DTYPES[tensor.dtype][0], array.where)
        _check_matrix(array)
        width = arrays[0].tensor.shape[1]
        if tensor.shape[1] != width:
            expected = f"features of {width} numbers a sample, as those before"
            raise BrokenError("TSW-409", expected, str(tensor.shape[1]), array.where)


def _check_coefficients(arrays: list[Shared]) -> None:
    for array in arrays:
        if array.tensor.dtype != F32:
            raise BrokenError("TSW-409", "coefficients of F32", DTYPES[array.tensor.dtype][0], array.where)
        _check_matrix(array)
    for before, array in pairwise(arrays):
        if before.tensor.name == array.tensor.name:
            found = f"a second for {shown(array.tensor.name)}"
            raise BrokenError("TSW-409", "one array of coefficients of a name", found, array.where)


def _check_matrix(array: Shared) -> None:
    shape = array.tensor.shape
    if len(shape) != 2 or 0 in shape:
        expected = f"{SHARED_ROLES[array.role]} of two dimensions, both at least 1"
        raise BrokenError("TSW-409", expected, str(list(shape)), array.where)


def vector_of(shared: list[Shared], number: int, tensor: Tensor, where: str) -> Shared:
    """The vector that a masked entry of a tensor selects from."""
    if number >= len(shared):
        raise BrokenError("TSW-507", f"a vector's number below {len(shared)}", str(number), where)
    array = shared[number]
    if array.role != VECTOR or array.tensor.name != tensor.name:
        found = f"{SHARED_ROLES[array.role]} of {shown(array.tensor.name)}"
        raise BrokenError("TSW-507", f"a vector of {shown(tensor.name)}", found, where)
    return array


def check_used(shared: list[Shared], tasks: list[Task]) -> None:
    """The rule TSW-410 of vectors; what other arrays are for is there, or TSW-411 or TSW-412 has said so."""
    entries: list[Entry] = [entry for task in tasks for entry in task.entries]
    used = {entry.vector.tensor.number for entry in entries if entry.vector is not None}
    for array in shared:
        if array.role == VECTOR and array.tensor.number not in used:
            raise BrokenError("TSW-410", "a masked entry that uses the vector", "none", array.where)


def read_shared_segments(fields: Fields, shared: list[Shared], newer: bool) -> None:
    """The data of all arrays; where it lies in the file is the caller's to check."""
    records = Records(fields, [chunk_count(array.tensor.elements) for array in shared], newer)
    for array in shared:
        records.fill(data_places(array.tensor, array.tensor.dtype, array.data))
