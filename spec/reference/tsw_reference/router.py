"""Section 5.6: the router, but for its samples, which are shared arrays."""

from __future__ import annotations

from .errors import BrokenError, shown
from .fields import Fields
from .layout import FEATURES, METRICS, MOST_NEIGHBOURS
from .model import Router, Shared

KEYS = {"extractor", "k", "metric", "preprocessing"}


def read_router(fields: Fields | None, shared: list[Shared]) -> Router | None:
    """The router, checked; None where the file has none, and then it has no features."""
    features = [array for array in shared if array.role == FEATURES]
    if fields is None:
        if features:
            raise BrokenError("TSW-411", "a key `router` for arrays of role features", "none", features[0].where)
        return None
    router = Router(fields.number("k"), fields.text("metric"), fields.text("extractor"), fields.text("preprocessing"))
    if not features:
        raise BrokenError("TSW-411", "shared arrays of role features for the router", "none", fields.where)
    if not 1 <= router.k <= MOST_NEIGHBOURS:
        raise BrokenError("TSW-411", f"1 to {MOST_NEIGHBOURS} neighbours", str(router.k), f"{fields.where}, k")
    if router.metric not in METRICS:
        expected = f"the metric {' or '.join(METRICS)}"
        raise BrokenError("TSW-411", expected, shown(router.metric), f"{fields.where}, metric")
    return router
