"""Which tasks a sample needs: the router of a file (Auto-Switch, arXiv 2412.00054; spec section 5.6).

Router        stored samples of each task; weights of tasks by the nearest of them
add_router    a file -> a new one with samples of some of its tasks
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._dtypes import F16, F32, dtype_of_array
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.codecs import array
from tswitch_format.container.index import RouterKeys
from tswitch_format.container.reader import Container
from tswitch_format.container.segments import EncodedArray, EncodedSegment
from tswitch_format.errors import OptionError
from tswitch_format.switch.transfer import bare_header, copy_tasks, open_whole

Features = NDArray[np.float16] | NDArray[np.float32]

DEFAULT_K = 10  # the paper's for ViT; 5 for RoBERTa
_BLOCK_BYTES = 1 << 26  # of distances that are in memory at a time


@dataclass(frozen=True)
class Router:
    """Weights of tasks for a sample: the share of each among its `k` nearest stored samples.

    `tasks`: of the file, in its order. `features`: stored samples by task, f16 or f32 [n, D]; tasks without any are never
    chosen. `metric`: "euclidean" or "cosine". `extractor`, `preprocessing`: what made the features, in words.
    """

    tasks: tuple[str, ...]
    features: Mapping[str, Features]
    k: int
    metric: str
    extractor: str
    preprocessing: str

    @property
    def width(self) -> int:
        """D: numbers a sample."""
        return int(next(iter(self.features.values())).shape[1])

    def weights(self, queries: NDArray[Any]) -> NDArray[np.float32]:
        """For samples [n, D] the weight of each task: f32 [n, T], rows that add up to 1. Distances are computed in f64.

        Raises OptionError for samples of another width, or with NaN.
        """
        if queries.ndim != lay.FEATURE_DIMENSIONS or queries.shape[1] != self.width:
            raise OptionError(
                f"features: expected samples of {self.width} numbers, [n, {self.width}], found {list(queries.shape)}; make "
                f"them as those of the router: extractor {self.extractor!r}, preprocessing {self.preprocessing!r}"
            )
        wide = queries.astype(np.float64)
        if np.isnan(wide).any():
            raise OptionError("features: expected numbers, found NaN")
        samples, labels = self._samples
        k = min(self.k, len(samples))
        out = np.zeros((len(wide), len(self.tasks)), np.float32)
        step = max(1, _BLOCK_BYTES // (8 * len(samples)))
        for first in range(0, len(wide), step):
            distances = self._distances(wide[first : first + step], samples)
            # Stable: of equal distances that of the first task by name counts as smaller, then the lower row.
            nearest = labels[np.argsort(distances, axis=1, kind="stable")[:, :k]]
            for task in range(len(self.tasks)):
                out[first : first + step, task] = np.count_nonzero(nearest == task, axis=1) / np.float32(k)
        return out

    @cached_property
    def _samples(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """All stored samples, by the names of tasks, and the number of the task of each."""
        there = [self.tasks.index(task) for task in sorted(self.features)]
        parts = [self.features[self.tasks[number]].astype(np.float64) for number in there]
        return np.concatenate(parts), np.repeat(there, [len(part) for part in parts])

    def _distances(self, queries: NDArray[np.float64], samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, N]; squared, where they are Euclidean."""
        if self.metric == "cosine":
            return 1 - _unit(queries) @ _unit(samples).T
        squares: NDArray[np.float64] = (queries**2).sum(axis=1)[:, None] + (samples**2).sum(axis=1)
        return squares - 2 * (queries @ samples.T)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def router_of(container: Container) -> Router | None:
    """The router of an open file, or None. Reads all stored samples."""
    keys = container.index.router
    if keys is None:
        return None
    tasks = tuple(task.name for task in container.index.tasks)
    found: dict[str, Features] = {}
    for task in tasks:
        stored = container.features(task)
        if stored is not None:
            parts = [stored.data(chunk) for chunk in range(stored.chunks)]
            found[task] = np.concatenate(parts).view(stored.dtype.storage).reshape(stored.spec.shape)
    return Router(tasks, found, keys.k, keys.metric, keys.extractor, keys.preprocessing)


def add_router(
    path: str | PathLike[str],
    out: str | PathLike[str],
    features: Mapping[str, NDArray[Any]],
    *,
    k: int | None = None,
    metric: str | None = None,
    extractor: str | None = None,
    preprocessing: str | None = None,
) -> Path:
    """Write the file at `path` anew with samples for some of its tasks; nothing else changes, nothing is decoded.

    `features`: samples by task, f16 or f32 [n, D] (f64 is rounded to f32), which take the place of those that the file has for
    these tasks; those of other tasks stay. What is left out is as the file's router has it, or else k = 10, "euclidean" and no
    words. `extractor` and `preprocessing` say what made the features, so that others can make queries.

    Raises UnknownNameError for a task that the file lacks, OptionError, FormatError or OutputError; then nothing is written.
    """
    container = open_whole(Path(path))
    try:
        before = router_of(container)
        for task in features:
            container.find(task)
        kept = {task: kept for task, kept in (before.features if before else {}).items() if task not in features}
        made = [_encoded(task, given, mapped=container.index.mapped) for task, given in features.items()]
        if not made:
            raise OptionError("features: expected those of at least one task, found none")
        widths = {task: given.shape[1] for task, given in kept.items()} | {a.spec.name: a.spec.shape[1] for a in made}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{task!r} {width}" for task, width in widths.items())
            raise OptionError(f"features: expected samples of one width for all tasks, found {listed}")
        keys = RouterKeys(
            k if k is not None else before.k if before else DEFAULT_K,
            metric or (before.metric if before else lay.METRICS[0]),
            _text("extractor", extractor, before.extractor if before else "", kept),
            _text("preprocessing", preprocessing, before.preprocessing if before else "", kept),
        )
        _check(keys)
        everything = [(container, number) for number in range(len(container.index.tasks))]
        copy_tasks(Path(out), bare_header(container.index), everything, None, router=keys, arrays=made)
    finally:
        container.close()
    return Path(out)


def _check(keys: RouterKeys) -> None:
    if not isinstance(keys.k, int) or not 1 <= keys.k <= lay.MAX_NEIGHBOURS:
        raise OptionError(f"k: expected a number from 1 to {lay.MAX_NEIGHBOURS}, found {keys.k!r}")
    if keys.metric not in lay.METRICS:
        raise OptionError(f"metric: expected {' or '.join(lay.METRICS)}, found {keys.metric!r}")


def _text(what: str, given: str | None, before: str, kept: Mapping[str, Any]) -> str:
    """What the words are to be; other tasks' samples were made as the file says."""
    if given is None:
        return before
    if kept and given != before:
        raise OptionError(
            f"{what}: expected that of the other tasks' samples, {before!r}, found {given!r}; make all of them anew, or leave "
            f"--{what} out"
        )
    return given


def _encoded(task: str, given: NDArray[Any], *, mapped: bool) -> EncodedArray:
    where = f"features of task {task!r}"
    if given.dtype == np.float64:
        given = given.astype(np.float32)
    dtype = dtype_of_array(given)
    if dtype not in (F16, F32) or given.dtype.byteorder == ">":
        raise OptionError(f"{where}: expected f16 or f32 numbers, found {given.dtype}; convert them")
    if given.ndim != lay.FEATURE_DIMENSIONS or 0 in given.shape:
        raise OptionError(f"{where}: expected samples as rows, [n, D] from 1 up, found {list(given.shape)}")
    if not np.isfinite(given).all():
        raise OptionError(f"{where}: expected finite numbers, found NaN or infinity; leave such samples out")
    flat = np.ascontiguousarray(given).reshape(-1)
    digest = hashlib.sha256(flat.data).digest()
    return EncodedArray(lay.SharedRole.FEATURES, TensorSpec(task, dtype, given.shape), digest, _segments(flat, mapped))


def _segments(flat: NDArray[Any], mapped: bool) -> Iterator[EncodedSegment]:
    for start in range(0, flat.size, lay.CHUNK):
        part = flat[start : start + lay.CHUNK]
        codec, encoded = array.encode(part.view(np.uint8), mapped=mapped)
        yield EncodedSegment.make(lay.Role.DATA, codec, 0, part.size, encoded)
