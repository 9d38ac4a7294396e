"""A .tsw file with its tasks and switches: what `tswitch_format.open` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from tswitch_format._closing import Closing
from tswitch_format._layout import MAJOR
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container.reader import Container, Verify
from tswitch_format.container.source import Backend
from tswitch_format.container.tensors import Digests, TensorList
from tswitch_format.container.verify import raise_first
from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.switch.routing import Router, router_of
from tswitch_format.switch.tables import CoefficientTable, TablesOf
from tswitch_format.switch.tensor import Switch

_SHOWN = 20  # names in a message


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The base that a file was made from: where it is found, its tensors by name, and aliases of tied ones."""

    id: str | None
    revision: str | None
    tensor_list: TensorList
    aliases: Mapping[str, str]

    @property
    def tensors(self) -> int:
        """Number of tensors, tied ones once."""
        return len(self.tensor_list)

    @property
    def params(self) -> int:
        """Number of elements of all tensors."""
        return sum(self.tensor_list.elements.tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in their own dtypes."""
        return self.tensor_list.nbytes()

    def __contains__(self, name: str) -> bool:
        return name in self.tensor_list.numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensor_list.names)

    def keys(self) -> list[str]:
        """Names of all tensors in the file's order."""
        return list(self.tensor_list.names)

    def spec(self, name: str) -> TensorSpec:
        """Name, dtype and shape of a tensor. Raises UnknownNameError."""
        return self.tensor_list.spec(self._number(name))

    def digests(self, name: str) -> Digests:
        """Full and sampled digest of a tensor. Raises UnknownNameError."""
        return self.tensor_list.digests(self._number(name))

    def _number(self, name: str) -> int:
        name = self.aliases.get(name, name)
        try:
            return self.tensor_list.numbers[name]
        except KeyError:
            raise UnknownNameError("tensor", name, self.tensor_list.names, where="the base") from None


class SwitchFile(Closing):
    """An open .tsw file. A context manager; all methods may be called from several threads at once.

    Raises FormatError for a bad file, TswError for one that cannot be read.
    """

    def __init__(self, path: str | PathLike[str], *, verify: Verify = "lazy", backend: Backend = "auto") -> None:
        self.path = Path(path)
        self.container = Container(self.path, backend=backend, verify=verify)
        if verify == "full":
            try:
                raise_first(self.container)
            except BaseException:
                self.container.close()
                raise
        index = self.container.index
        aliases = {alias: index.base.names[number] for alias, number in index.aliases.items()}
        self.base = BaseInfo(index.base_id, index.base_revision, index.base, aliases)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in the file's order."""
        return [task.name for task in self.container.index.tasks]

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free remarks on the file."""
        return self.container.index.metadata

    @property
    def profile(self) -> str:
        """ "archive" or "mapped"."""
        return self.container.index.profile

    @property
    def content_id(self) -> str | None:
        """Digest of all content, whatever the encoding: 64 hexadecimal digits, or None where the file has none."""
        found = self.container.index.content_id
        return None if found is None else found.hex()

    @property
    def router(self) -> Router | None:
        """Which tasks a sample needs, or None where the file does not say. Reads all stored samples each time."""
        return router_of(self.container)

    @property
    def tables(self) -> Mapping[str, CoefficientTable]:
        """Tables of coefficients by name: how much of each task goes into each tensor. A table is read when it is asked for,
        each time."""
        return TablesOf(self.container)

    @property
    def version(self) -> str:
        """The file's format version, such as "1.0"."""
        return f"{MAJOR}.{self.container.frame.minor}"

    @property
    def backend(self) -> str:
        """What really reads: "mmap" or "pread"."""
        return self.container.backend

    def recipe(self, task: str | None = None) -> Mapping[str, str]:
        """How a task was made."""
        return self.container.index.tasks[self._task(task)].recipe

    def keys(self, task: str | None = None) -> list[str]:
        """Names of the tensors that a task changes, adds or removes. `task` may be left out where there is one only."""
        return list(self.container.entry_numbers(self._task(task)))

    def switch(self, name: str, task: str | None = None) -> Switch:
        """The switch of one tensor; nothing is decoded yet.

        Raises UnknownNameError where the task has none for it, for example because the tensor equals the base.
        """
        number = self._task(task)
        task_name = self.container.index.tasks[number].name
        numbers = self.container.entry_numbers(number)
        found = numbers.get(name, numbers.get(self.base.aliases.get(name, name)))
        if found is None:
            if name in self.base:
                raise UnknownNameError(
                    "switch",
                    name,
                    self.keys(task_name),
                    where=f"{self.path}: task {task_name!r} leaves this tensor as the base has it",
                )
            raise UnknownNameError("tensor", name, self.keys(task_name), where=f"{self.path}, task {task_name!r}")
        entry = self.container.entry(number, found)
        base = entry.tensor < self.base.tensors
        digests = self.base.tensor_list.digests(entry.tensor) if base else None
        return Switch(entry, task_name, digests, entry.spec)

    def _task(self, task: str | None) -> int:
        if task is not None:
            return self.container.find(task)
        tasks = self.tasks
        if len(tasks) != 1:
            some = ", ".join(tasks[:_SHOWN]) + (", ..." if len(tasks) > _SHOWN else "")
            raise OptionError(f"{self.path}: it has {len(tasks)} tasks: {some}; name one with task=")
        return 0

    def close(self) -> None:
        """Release the file. Arrays that were given out stay valid, switches do not."""
        self.container.close()

    def __repr__(self) -> str:
        return f"<SwitchFile {str(self.path)!r} {self.profile} tasks {self.tasks}>"
