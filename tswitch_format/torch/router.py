"""Which tasks a batch needs, on its device: the nearest stored samples (Auto-Switch, arXiv 2412.00054; spec section 5.6)."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tswitch_format import _layout as lay
from tswitch_format.container.source import Backend
from tswitch_format.errors import OptionError
from tswitch_format.switch.file import SwitchFile
from tswitch_format.switch.routing import Router as HostRouter
from tswitch_format.torch.weights import check_device

Mode = Literal["sample", "mean", "hard"]

_BLOCK_BYTES = 1 << 26  # of what is in memory at a time for a block of queries
_PAIR_BYTES = 64  # of it for each query and stored sample: distances, sorted ones, their places, labels, room to sort
_NUMBER_BYTES = 24  # and for each number of a query: in f64, and its direction


class Router:
    """The router of a file, its stored samples on `device` as f64 [N, D].

        router = Router.open("all.tsw", device="cuda")
        router.weights(features)                # f32 [n, T]

    Columns are those of `tasks`, in the file's order. Nothing is trained: a task is added by adding its samples. What `weights`
    does is done on the device: nothing is copied to the host, which waits for nothing. Never changed, so any thread may use it.

    Raises OptionError for a device that is not there, and for a `tsw.Router` made by hand that has no samples or does not fit
    together.
    """

    def __init__(self, router: HostRouter, device: str | torch.device = "cpu") -> None:
        _check(router)
        self.device = check_device(device)
        self.tasks = router.tasks
        self.metric = router.metric
        self.extractor = router.extractor
        self.preprocessing = router.preprocessing
        self.tasks_with_samples = tuple(task for task in router.tasks if task in router.features)
        there = [router.tasks.index(task) for task in sorted(router.features)]  # which decides between equal distances
        parts = [np.asarray(router.features[task]).astype(np.float64) for task in sorted(router.features)]
        samples = np.concatenate(parts)
        labels = np.repeat(np.array(there, np.int64), [len(part) for part in parts])
        self.k = min(router.k, len(samples))
        self.width = int(samples.shape[1])
        self._place: Tensor | None = None  # of each sample among different directions
        if self.metric == "cosine":
            # Equal directions once: products of matrices may round those of equal rows differently, and these are ties.
            samples, place = np.unique(_unit(samples), axis=0, return_inverse=True)
            self._place = torch.from_numpy(place.reshape(-1).astype(np.int64)).to(self.device)
        self._samples = torch.from_numpy(samples).to(self.device)
        self._labels = torch.from_numpy(labels).to(self.device)

    @classmethod
    def open(
        cls, path: str | PathLike[str], device: str | torch.device = "cpu", *, backend: Backend = "auto"
    ) -> Router:
        """The router of a .tsw file, which is read and closed again.

        Raises OptionError where the file has none, FormatError for a bad file, TswError for one that cannot be read.
        """
        with SwitchFile(path, backend=backend) as file:
            found = file.router
        if found is None:
            raise OptionError(
                f"{path}: expected a file with a router, found none; add samples of its tasks with 'tsw route build', or "
                "tsw.add_router"
            )
        return cls(found, device)

    @torch.no_grad()
    def weights(self, features: Tensor, mode: Mode = "sample") -> Tensor:
        """The share of each task among the k nearest stored samples: f32 on the device.

        `features`: a float tensor [n, D] on the device, made as the stored samples were (see `extractor` and `preprocessing`).
        "sample": [n, T], a row for each sample. "mean": [T], the mean over the batch (the paper's way for ViT). "hard": [T], 1
        for the task with the largest mean, of several the first, else 0 (its way for RoBERTa).

        Distances are computed in f64; of equal ones that of the first task counts as smaller, then that of the lower row.
        Numbers are not looked at, for the host would have to wait: a sample with NaN gets some weights, not an error.

        Raises OptionError for features of another shape, type or device, another mode, and for the mean of no samples.
        """
        check_mode(mode)
        self._check_features(features)
        counts = self._counts(features)
        if mode == "sample":
            return (counts.double() / self.k).float()
        if not len(features):
            raise OptionError(
                f"features: expected at least one sample for mode {mode!r}, found none; leave such a batch out"
            )
        total = counts.sum(0)  # of integers: what is equal stays so
        if mode == "mean":
            return (total.double() / (len(features) * self.k)).float()
        return (torch.arange(len(self.tasks), device=self.device) == total.argmax()).float()

    def __repr__(self) -> str:
        return f"<Router of {len(self.tasks)} tasks, k {self.k}, {self.metric}, on {self.device}>"

    def _check_features(self, features: Tensor) -> None:
        what = f"features: expected a float tensor [n, {self.width}] on {self.device}"
        fix = f"make them as those of the router: extractor {self.extractor!r}, preprocessing {self.preprocessing!r}"
        if not isinstance(features, Tensor):
            raise OptionError(f"{what}, found {type(features).__name__}; {fix}")
        if features.ndim != lay.FEATURE_DIMENSIONS or features.shape[1] != self.width:
            raise OptionError(f"{what}, found {list(features.shape)}; {fix}")
        if not features.is_floating_point():
            raise OptionError(f"{what}, found {features.dtype}; {fix}")
        if features.device != self.device:
            raise OptionError(f"{what}, found them on {features.device}; open the router for that device")

    def _counts(self, features: Tensor) -> Tensor:
        """Of each sample's k nearest, how many are of each task: i64 [n, T]."""
        counts = torch.zeros(len(features), len(self.tasks), dtype=torch.int64, device=self.device)
        each = _PAIR_BYTES * len(self._labels) + _NUMBER_BYTES * self.width
        step = max(1, _BLOCK_BYTES // each)
        for first in range(0, len(features), step):
            distances = self._distances(features[first : first + step].double())
            # Stable: samples lie in the order in which equal distances count.
            places = torch.sort(distances, dim=1, stable=True).indices[:, : self.k]
            nearest = self._labels[places]
            counts[first : first + step].scatter_add_(1, nearest, torch.ones_like(nearest))
        return counts

    def _distances(self, queries: Tensor) -> Tensor:
        """f64 [n, N]."""
        if self._place is None:
            # Each pair by itself: exact near zero, and equal for equal samples, unlike what is made of a product of matrices.
            return torch.cdist(queries, self._samples, compute_mode="donot_use_mm_for_euclid_dist")
        lengths = torch.linalg.vector_norm(queries, dim=1, keepdim=True)
        unit = queries / lengths.masked_fill(lengths == 0, 1.0)  # the direction of zero is zero
        distances: Tensor = 1 - unit @ self._samples.T
        return distances[:, self._place]


def check_mode(mode: object) -> None:
    """Raise OptionError for what is no mode of `Router.weights`."""
    if mode not in get_args(Mode):
        raise OptionError(f"mode: expected one of {', '.join(get_args(Mode))}, found {mode!r}")


def _check(router: HostRouter) -> None:
    """What files have been checked for, and an object made by hand has not."""
    if not isinstance(router, HostRouter):
        raise OptionError(f"router: expected a tsw.Router, found {type(router).__name__}; use Router.open(path)")
    found = {task: np.shape(samples) for task, samples in router.features.items()}
    unknown = [task for task in found if task not in router.tasks]
    if unknown:
        raise OptionError(f"router: expected samples of its tasks, found those of {unknown[0]!r}; name it in `tasks`")
    widths = {shape[1:] for shape in found.values()}
    if len(widths) != 1 or any(len(shape) != lay.FEATURE_DIMENSIONS or 0 in shape for shape in found.values()):
        raise OptionError(f"router: expected samples [n, D] with one D for all tasks, found {found}; leave others out")
    if not 1 <= router.k <= lay.MAX_NEIGHBOURS:
        raise OptionError(f"router: expected k from 1 to {lay.MAX_NEIGHBOURS}, found {router.k}")
    if router.metric not in lay.METRICS:
        raise OptionError(f"router: expected metric {' or '.join(lay.METRICS)}, found {router.metric!r}")


def _unit(rows: NDArray[np.float64]) -> NDArray[Any]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0) + 0.0  # no -0.0
