"""One task of a file on the devices of a model's weights: packed switches and dense tensors under the model's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike

import torch
from torch import Tensor

from tswitch_format._parallel import thread_count
from tswitch_format.container.source import Backend
from tswitch_format.errors import OptionError, near_hint
from tswitch_format.switch.base import base_problems, file_name
from tswitch_format.switch.file import SwitchFile
from tswitch_format.switch.tensor import Switch
from tswitch_format.torch.activation import add_sizes
from tswitch_format.torch.kernels import backend_of
from tswitch_format.torch.packed import PackedSwitch
from tswitch_format.torch.pipeline import load
from tswitch_format.torch.staging import DEFAULT_BYTES, Staging
from tswitch_format.torch.weights import ModelWeights, check_weight


@dataclass(frozen=True, slots=True)
class Expert:
    """A task that was read. `switches`, `dense`: by the name of the model's tensor; `contents`: digests of the dense ones.
    `matrices`: what kernels change (see `kernels.job.matrix_of`).

    `untied`: those of `dense` that have the entry of an alias, which is a name of its own where that counts (spec section 10);
    `tied`: the switches that they get from the alias's target where it does not. `borrowed`: names that have the entry of
    another name."""

    task: str
    switches: Mapping[str, PackedSwitch]
    dense: Mapping[str, Tensor]
    contents: Mapping[str, bytes]
    matrices: Mapping[str, Tensor] = field(repr=False)
    untied: frozenset[str] = frozenset()
    tied: Mapping[str, PackedSwitch] = field(default_factory=dict)
    borrowed: frozenset[str] = frozenset()

    @property
    def entries(self) -> dict[str, PackedSwitch | Tensor]:
        """All that it changes, by name."""
        return {**self.switches, **self.dense}

    def nbytes(self) -> dict[torch.device, int]:
        """Bytes on each device, without `vectors`."""
        sizes = add_sizes({id(tensor): tensor for tensor in self.dense.values()}.values())
        for switch in {id(switch): switch for switch in self._all_switches()}.values():  # shared by tied weights
            sizes[switch.device] = sizes.get(switch.device, 0) + switch.nbytes
        return sizes

    @property
    def vectors(self) -> list[Tensor]:
        """What its masked switches select from. Other experts may hold the same tensors."""
        return list({id(s.vector): s.vector for s in self._all_switches() if s.vector is not None}.values())

    def _all_switches(self) -> list[PackedSwitch]:
        return [*self.switches.values(), *self.tied.values()]


def load_expert(
    weights: ModelWeights,
    path: str | PathLike[str],
    task: str | None,
    *,
    preferred: str | None = None,
    check_base: bool = True,
    backend: Backend = "auto",
    staging_bytes: int = DEFAULT_BYTES,
    threads: int = 1,
) -> Expert:
    """Read a task for a model that holds the base: everything is checked, and nothing of the model changed.

    `task` left out: the file's only one, or that of the name `preferred`.

    Raises BaseMismatchError, UnknownNameError, OptionError or FormatError.
    """
    with SwitchFile(path, backend=backend) as file:
        if task is None and preferred in file.tasks:
            task = preferred
        names = file.keys(task)  # an error that names them where it must be told which
        task = task if task is not None else file.tasks[0]
        advice = 'load the model in that dtype (dtype="auto" in transformers), or pass check_base=False to go on'
        problems = base_problems(
            file.base,
            weights.reader,
            digests=check_base,
            any_float=not check_base,
            dtype_advice=advice,
            added={name for each in file.tasks for name in file.keys(each)},
            sampled=weights.sampled,
        )
        for problem in problems:
            raise problem
        chosen = _pair(file, names, task, weights)
        weights.check_alone(chosen)
        untied = _untied(file, chosen, weights)
        targets = _targets(file, untied, names, task)
        matrices = {}
        for name, switch in (*chosen.items(), *targets.items()):
            weight = weights[name]
            matrices[name] = check_weight(
                switch,
                weight,
                weight.device,
                check_base=check_base,
                sampled=weights.sampled(name),
                name=name,
                where=weights.reader.location,
            )
        switches: dict[str, PackedSwitch] = {}
        dense: dict[str, Tensor] = {}
        tied: dict[str, PackedSwitch] = {}
        for device in {weights[name].device for name in chosen}:
            backend_of(device)  # loads numba for the CPU, with which decoding is faster too (codecs/loops.py)
            there = [(name, s) for name, s in (*chosen.items(), *targets.items()) if weights[name].device == device]
            unique = {switch.name: switch for _, switch in there}
            loaded = load(list(unique.values()), Staging(device, staging_bytes), thread_count(threads))
            for name, switch in there:
                found = loaded[switch.name]
                if not isinstance(found, PackedSwitch):
                    dense[name] = found
                elif name in targets:
                    tied[name] = found
                else:
                    switches[name] = found
        contents = {name: chosen[name].content for name in dense}
        borrowed = frozenset(name for name, switch in chosen.items() if switch.name != name)
    return Expert(task, switches, dense, contents, matrices, untied, tied, borrowed)


def _pair(file: SwitchFile, names: list[str], task: str, weights: ModelWeights) -> dict[str, Switch]:
    """The model's tensors, each with the switch that it gets; as `restore` pairs them. Raises OptionError."""
    entries = {name: file.switch(name, task) for name in names}
    reader = weights.reader
    chosen: dict[str, Switch] = {}
    used: set[str] = set()
    for name in (*reader.specs, *reader.aliases):
        switch = entries.get(name, entries.get(file_name(file.base, reader, name) or name))
        memory = reader.aliases.get(name, name)
        if memory == name and switch is not None:
            chosen[name] = switch
        elif memory != name and _differ(switch, chosen.get(memory)):
            raise OptionError(
                f"{file.path}: task {task!r} gives {name!r} and {memory!r} different values, but they are tied in "
                f"{reader.location}; untie them in the model first"
            )
        if switch is not None:
            used.add(switch.name)
    for name in entries.keys() - used:
        raise OptionError(
            f"{file.path}: task {task!r} has tensor {name!r}, {reader.location} has none of that "
            f"name{near_hint(name, reader.specs)}; restore the expert as a checkpoint"
        )
    return chosen


def _untied(file: SwitchFile, chosen: Mapping[str, Switch], weights: ModelWeights) -> frozenset[str]:
    """The model's tensors that have the entry of an alias whose target is another tensor of the model."""
    aliases, tied = file.base.aliases, weights.reader.aliases
    return frozenset(
        name
        for name, switch in chosen.items()
        if name in aliases and switch.name == name and tied.get(aliases[name], aliases[name]) != name
    )


def _targets(file: SwitchFile, untied: Iterable[str], names: list[str], task: str) -> dict[str, Switch]:
    """What a task would do to tensors that it unties, had it no entries of their names, as far as these are switches."""
    found = {name: file.switch(file.base.aliases[name], task) for name in untied if file.base.aliases[name] in names}
    return {name: switch for name, switch in found.items() if switch.is_additive}


def _differ(one: Switch | None, other: Switch | None) -> bool:
    """Whether two switches of one file do something else."""
    if one is None or other is None:
        return one is not other
    return one.name != other.name and one.content != other.content
