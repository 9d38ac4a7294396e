"""What the index must say of shared arrays and of the router that some of them belong to: spec sections 5.5 and 5.6."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPES, F16, F32
from tswitch_format.container.index import Index
from tswitch_format.container.report import Failure, Place, Report

_KNOWN = np.array([i in tuple(lay.SharedRole) for i in range(256)])
_FLOAT = np.array([i in DTYPES and DTYPES[i].is_float for i in range(256)])


def check_shared(index: Index, place: Place, report: Report) -> None:
    """Check the records of shared arrays but for their order, and the router. Raises FormatError, or StopReading where the
    report collects."""
    shared = index.shared
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
    _check_router(index, bool(features.size), report)


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
