"""What a method is: it makes files from a base and experts, and reads the experts' weights back from them.

    Evaluate    a user's function: how good are these weights at this task
    Method      a name and `keep`: files of all tasks
    Kept        of one task: its bytes, and how its weights come from the files
    Job         what a method is given

A method of your own is any object with these names; `name` must differ from all others' in the sweep:

    class HalfDelta:
        name = "delta f16"
        family = ""

        def keep(self, job: Job) -> Mapping[str, Kept]:
            return {task: self._keep(job, task) for task in job.experts}

        def _keep(self, job: Job, task: str) -> Kept:
            base, expert, path = job.weights(), job.load_expert(task), job.path(task, ".pt")
            floats = [name for name in job.names if base[name].is_floating_point()]
            torch.save({name: (expert[name] - base[name]).half() for name in floats}, path)

            def load(weights: dict[str, Tensor]) -> None:
                for name, delta in torch.load(path).items():
                    weights[name] += delta

            return Kept(path.stat().st_size, load)

What has to be chosen (a scale, a threshold) is chosen by `job.validate`, and said in `Kept.chosen`; a method never sees the
data that it is measured on. A method that cannot keep these experts raises a TswError: the others go on, and the table
has its message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tswitch_format.errors import UnknownNameError
from tswitch_tools.sweep.tensors import read_tensors

_PLAIN = re.compile(r"[^A-Za-z0-9.]+")
_NAME = 40  # characters of a name that a file's name shows

# `evaluate(task, weights)`: higher is better. `weights`: all tensors of the model on the CPU, to be read during the call only.
Evaluate = Callable[[str, Mapping[str, Tensor]], float]


@dataclass(frozen=True, slots=True)
class Kept:
    """One task, kept. `nbytes`: of the files that are kept, its own bytes and its share of what tasks have in common.

    `load` gets all tensors of the base and makes the task's weights of them, reading from the files: in place, or by putting
    other tensors into the dict. Names that the base ties have one tensor. `chosen`: name and value of what was chosen.
    """

    nbytes: float
    load: Callable[[dict[str, Tensor]], None]
    chosen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """Base and experts as checkpoint files, and what a method needs to keep them.

    `folder` is the method's own, empty but for what an earlier sweep left there. `validate(task, weights)` is the user's
    function on data that is there for choosing, or None: then methods use published defaults and say so. `tensors`: the base
    in memory, not to be changed; `weights` gives copies.
    """

    base: Path
    experts: Mapping[str, Path]
    folder: Path
    validate: Evaluate | None
    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> list[str]:
        """One name of each tensor of the base: the one that `base` has it by."""
        first: dict[int, str] = {}
        for name, tensor in self.tensors.items():  # stored names first, see `read_tensors`
            first.setdefault(id(tensor), name)
        return list(first.values())

    @property
    def fp32_bytes(self) -> int:
        """Four bytes for each element of the base, tied tensors once."""
        return 4 * sum(self.tensors[name].numel() for name in self.names)

    def weights(self) -> dict[str, Tensor]:
        """The base's tensors by name, copied; tied ones stay tied."""
        copies = {id(tensor): tensor.clone() for tensor in self.tensors.values()}
        return {name: copies[id(tensor)] for name, tensor in self.tensors.items()}

    def load_expert(self, task: str) -> dict[str, Tensor]:
        """The tensors of a task's expert. Raises UnknownNameError or CheckpointError."""
        if task not in self.experts:
            raise UnknownNameError("task", task, self.experts, where="experts")
        return self.load(self.experts[task])

    def load(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a checkpoint of such a model, also under names that only the base ties. Raises CheckpointError."""
        found = read_tensors(path)
        tied = {id(self.tensors[name]): tensor for name, tensor in found.items() if name in self.tensors}
        missing = [name for name, tensor in self.tensors.items() if name not in found and id(tensor) in tied]
        return found | {name: tied[id(self.tensors[name])] for name in missing}

    def path(self, task: str, suffix: str) -> Path:
        """Where a file of a task goes in `folder`: a name of our own, since a task's may be no name of a file."""
        return self.folder / f"{numbered(list(self.experts).index(task), task)}{suffix}"


class Method(Protocol):
    """A way of keeping experts. Methods of one `family` are joined by a line in a plot; "" for none."""

    @property
    def name(self) -> str:
        """What it is called in a table."""
        ...

    @property
    def family(self) -> str:
        """What it has in common with others, of which only the size differs."""
        ...

    def keep(self, job: Job) -> Mapping[str, Kept]:
        """Write the files of all tasks of `job.experts`. Raises TswError where that cannot be."""
        ...


def numbered(number: int, name: str) -> str:
    """A name for a file or folder that differs by number, and shows what it can of a name."""
    return f"{number:02d}-{_PLAIN.sub('-', name)[:_NAME].strip('-.')}"
