"""Experts that are kept one by one: as .tsw files, and whole.

Whole     the expert's own checkpoint
Packed    `tswitch_format.pack`, and `tswitch_format.torch.apply_` to have it back
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import tswitch_format as tsw
from tswitch_format.switch.options import DEFAULT_KNOB_DTYPE, PackOptions
from tswitch_format.torch import apply_
from tswitch_tools.sweep.method import Job, Kept
from tswitch_tools.sweep.tensors import write_tensors


class Whole:
    """Each expert as a .safetensors file: what all others are compared with. It keeps 100 %, and is measured all the same."""

    name = "full expert"
    family = ""

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`."""
        kept = {}
        for task in job.experts:
            path = job.path(task, ".safetensors")
            write_tensors(job.load_expert(task), path, job.names)
            kept[task] = Kept(path.stat().st_size, partial(replace_by, job, path))
        return kept


@dataclass(frozen=True)
class Packed:
    """A .tsw file for each expert. Options are those of `tswitch_format.pack`, checked at once (OptionError).

    `score`: by task what `pack` takes as `score`. `label` is shown instead of the rule, for example where two sets of scores
    differ in nothing that options say.
    """

    density: float | None = None
    discard: float | None = None
    target_size: float | None = None
    select: str | None = None
    knob: str | None = None
    knob_per: str | None = None
    knob_dtype: str = DEFAULT_KNOB_DTYPE
    preset: str | None = None
    score: Mapping[str, Any] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        self._recipe()

    @property
    def name(self) -> str:
        """The rule and how much stays: "spectral projection row-col u4, 2 %"."""
        recipe = self._recipe()
        if "target_size" in recipe:
            return f"{self.family}, {float(recipe['target_size']):g} % of fp32"
        if "discard" in recipe:
            return f"{self.family}, discard {float(recipe['discard']):g}"
        return f"{self.family}, {100 * float(recipe['density']):g} %"

    @property
    def family(self) -> str:
        """The rule: "spectral projection row-col u4"."""
        if self.label is not None:
            return self.label
        recipe = self._recipe()
        if "preset" in recipe:
            return f"preset {recipe['preset']}"
        rule = [recipe[key] for key in ("select", "knob", "knob_per", "knob_dtype") if key in recipe]
        return " ".join(rule) + (" by scores" if self.score is not None else "")

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """See `Method`. Raises UnknownNameError where a task has no scores, and what `pack` does."""
        kept = {}
        for task, expert in job.experts.items():
            if self.score is not None and task not in self.score:
                raise tsw.UnknownNameError("task", task, self.score, where=f"scores of {self.name!r}")
            path = job.path(task, ".tsw")
            score = None if self.score is None else self.score[task]
            tsw.pack(job.base, expert, path, task=task, score=score, **self._options())
            kept[task] = Kept(path.stat().st_size, partial(apply_, path=path, task=task))
        return kept

    def _options(self) -> dict[str, Any]:
        names = ("density", "discard", "target_size", "select", "knob", "knob_per", "knob_dtype", "preset")
        return {name: getattr(self, name) for name in names}

    def _recipe(self) -> Mapping[str, str]:
        options = PackOptions.of(**self._options(), scored=self.score is not None)
        return options.recipe(options.density)


def replace_by(job: Job, path: Path, weights: dict[str, Tensor]) -> None:
    """Put the tensors of a checkpoint in the place of all others."""
    weights.clear()
    weights.update(job.load(path))
