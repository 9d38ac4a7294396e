"""What the index must say of shared arrays, and of the router and the tables that some of them belong to: spec sections 5.5 to
5.7."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES, F16, F32
from tswitch_format.container.index import Index
from tswitch_format.container.report import Failure, Place, Report

_KNOWN = np.array([i in tuple(lay.SharedRole) for i in range(256)])
_FLOAT = np.array([i in DTYPES and DTYPES[i].is_float for i in range(256)])


def check_shared(index: Index, place: Place, report: Report) -> None:
    """Check the records of shared arrays but for their order, the router and the tables. Raises FormatError, or
    StopReading where the report collects."""
    shared = index.shared
    if not len(shared) and index.router is None and not index.coefficients:  # as in most files
        return
    records = shared.arrays.records

    def role(at: int) -> Failure:
        return Failure(f"shared.roles[{at}]", str(shared.roles[at]), place.of(shared.roles, at))

    report.each(~_KNOWN[shared.roles], "TSW-409", "a known role", role, newer=True)

    def spec(at: int) -> Failure:
        return Failure(f"shared.tensors[{at}]", str(shared.arrays.spec(at)), place.of(records, at))

    vectors = np.flatnonzero(shared.roles == lay.SharedRole.VECTOR)
    expected = "a float vector with name and shape of a float tensor of the base"
    report.each(_marked(shared.roles, _misfits(index, vectors)), "TSW-409", expected, spec, blocking=True)
    features = np.flatnonzero(shared.roles == lay.SharedRole.FEATURES)
    wrong, strange = _wrong_features(index, features)
    expected = "features, F16 or F32 of two dimensions from 1 up, the second as in the first such array"
    report.each(_marked(shared.roles, wrong), "TSW-409", expected, spec, blocking=True)
    expected = "features of a task, once"
    report.each(_marked(shared.roles, strange), "TSW-409", expected, spec, blocking=True)
    tables = np.flatnonzero(shared.roles == lay.SharedRole.COEFFICIENTS)
    wrong, twice = _wrong_coefficients(index, tables)
    expected = "coefficients, F32 of two dimensions from 1 up"
    report.each(_marked(shared.roles, wrong), "TSW-409", expected, spec, blocking=True)
    expected = "coefficients of a name that no others have"
    report.each(_marked(shared.roles, twice), "TSW-409", expected, spec, blocking=True)
    _check_router(index, bool(features.size), report)
    report.gate()  # what follows goes by names and sizes
    _check_tables(index, tables, place, report)


def _marked(roles: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    marked = np.zeros(roles.size, np.bool_)
    marked[places] = True
    return marked


def _misfits(index: Index, vectors: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the arrays `vectors` that are none of a base tensor."""
    if not vectors.size:
        return vectors
    arrays, targets = index.shared.arrays, index.shared_targets[vectors]
    fits = (targets >= 0) & _FLOAT[arrays.records["dtype"][vectors]]
    some = np.flatnonzero(fits)
    fits[some] = _FLOAT[index.base.records["dtype"][targets[some]]]
    fits[some] &= index.base.same_shapes(targets[some], arrays, vectors[some])
    misfits: NDArray[np.int64] = vectors[~fits]
    return misfits


def _wrong_features(index: Index, features: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of the arrays `features` that have no proper type or shape, and those that are of no task or of one again."""
    arrays = index.shared.arrays
    records = arrays.records[features]
    proper = np.isin(records["dtype"], (F16.id, F32.id)) & (records["ndim"] == lay.FEATURE_DIMENSIONS)
    flat = features[proper]
    starts = arrays.starts[flat]
    samples, width = arrays.dims[starts], arrays.dims[starts + 1]
    sized: NDArray[np.bool_] = (samples > 0) & (width > 0) & (width == width[:1])
    proper[np.flatnonzero(proper)] = sized
    seen: set[str] = set()
    strange: list[int] = []
    for number in features.tolist():
        if len(strange) > Report.MOST:  # there are at most as many right ones as tasks
            break
        name = arrays.names[number]
        if name in seen or name not in index.task_numbers:
            strange.append(number)
        seen.add(name)
    return features[~proper], np.array(strange, np.int64)


def _check_router(index: Index, features: bool, report: Report) -> None:
    router = index.router
    if (router is not None) != features:
        found = "a router without features" if router is not None else "features without one"
        report.blocking("TSW-411", "router", "a router and features for it, or neither", found)
    if router is None:
        return
    if not 1 <= router.k <= lay.MAX_NEIGHBOURS:
        report.blocking("TSW-411", "router.k", f"1 to {lay.MAX_NEIGHBOURS}", str(router.k))
    if router.metric not in lay.METRICS:
        raise report.newer("TSW-411", "router.metric", " or ".join(lay.METRICS), repr(router.metric[:80]))


def _wrong_coefficients(index: Index, tables: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of the arrays `tables` that have no proper type or shape, and those of a name that is there already."""
    arrays = index.shared.arrays
    records = arrays.records[tables]
    proper = (records["dtype"] == F32.id) & (records["ndim"] == lay.TABLE_DIMENSIONS)
    starts = arrays.starts[tables[proper]]
    proper[np.flatnonzero(proper)] = (arrays.dims[starts] > 0) & (arrays.dims[starts + 1] > 0)
    # Names ascend, so equal ones follow one another, whatever other roles lie between them.
    before, names = None, 0
    twice: list[int] = []
    for number in tables.tolist():
        name = arrays.names[number]
        if name == before:
            twice.append(number)
        names += name != before
        # Where there are more names than tables, that is found as well: a hostile file may have very many.
        if names > len(index.coefficients) or len(twice) > Report.MOST:
            break
        before = name
    return tables[~proper], np.array(twice, np.int64)


def _check_tables(index: Index, arrays: NDArray[np.int64], place: Place, report: Report) -> None:
    """Check what the index says of tables whose arrays are proper."""
    stored = index.shared.arrays
    numbers: dict[str, int] = {}
    untold: list[int] = []
    for number in arrays.tolist():
        name = stored.names[number]
        if name in index.coefficients:
            numbers[name] = number
        else:
            untold.append(number)
        if len(untold) > Report.MOST:
            break

    def array(at: int) -> Failure:
        return Failure(f"shared.tensors[{at}]", repr(stored.names[at][:80]), place.of(stored.records, at))

    expected = "coefficients of a table of that name"
    report.each(_marked(index.shared.roles, np.array(untold, np.int64)), "TSW-412", expected, array, blocking=True)
    if len(untold) > Report.MOST:
        return
    for name, table in index.coefficients.items():
        where = f"coefficients[{name[:80]!r}]"
        if name not in numbers:
            report.blocking("TSW-412", where, "coefficients of that name among the shared arrays", "none")
            continue
        rows, columns = stored.shape(numbers[name])
        _check_rows(index, table.rows, rows, f"{where}.rows", place, report)
        _check_columns(index, table.tasks, columns, f"{where}.tasks", report)
        if table.clamp is not None and not (np.isfinite(table.clamp).all() and table.clamp[0] <= table.clamp[1]):
            found = f"{table.clamp[0]} to {table.clamp[1]}"
            report.blocking("TSW-412", f"{where}.clamp", "finite numbers, the first not above the second", found)


def _check_rows(index: Index, rows: NDArray[np.uint32], count: int, where: str, place: Place, report: Report) -> None:
    if rows.size != count:
        expected = f"{count} numbers, one for each row"
        report.blocking("TSW-412", where, expected, str(rows.size), offset=place.of(rows))
        return

    def row(at: int) -> Failure:
        return Failure(f"{where}[{at}]", str(rows[at]), place.of(rows, at))

    bad = rows >= len(index.base)
    bad[1:] |= rows[1:] <= rows[:-1]
    report.each(bad, "TSW-412", f"numbers below {len(index.base)} that ascend strictly", row, blocking=True)


def _check_columns(index: Index, tasks: Sequence[str], count: int, where: str, report: Report) -> None:
    if len(tasks) != count:
        report.blocking("TSW-412", where, f"{count} names, one for each column", str(len(tasks)))
        return
    seen: set[str] = set()
    for number, task in enumerate(tasks):
        if task in seen or task not in index.task_numbers:
            found = f"{task[:80]!r} ({'twice' if task in seen else 'no task'})"
            report.blocking("TSW-412", f"{where}[{number}]", "a task of the file that no other column has", found)
        seen.add(task)
