"""Files -> tensors on a device, lazily: `tswitch_format.torch.open`.

    SwitchTensors    an open file: switches by name, many at once with `load`
    TorchSwitch      one of them, or a slice: delta, mask, sign, apply_, packed planes

Chunks are decoded as far as packed planes (`switch/planes.py`); these go to the device (`pipeline.py`), and only there become
one number an element. What is made outlives the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike

import torch
from torch import Tensor

from tswitch_format._closing import Closing
from tswitch_format._parallel import thread_count
from tswitch_format.container.reader import Verify
from tswitch_format.container.source import Backend
from tswitch_format.errors import OptionError
from tswitch_format.switch.apply import proper_coefficient
from tswitch_format.switch.file import BaseInfo, SwitchFile
from tswitch_format.switch.planes import Mode
from tswitch_format.switch.tensor import Switch
from tswitch_format.torch.checkpoint import dtype_of_tensor, torch_dtype
from tswitch_format.torch.kernels import Job, backend_of, run
from tswitch_format.torch.packed import PackedSwitch
from tswitch_format.torch.pipeline import Loaded, load
from tswitch_format.torch.staging import DEFAULT_BYTES, Staging
from tswitch_format.torch.weights import changing, check_device, check_weight, raw


class SwitchTensors(Closing):
    """An open .tsw file whose switches become tensors on `device`. A context manager; methods may be called from any thread.

    `staging_bytes`: pinned memory between host and CUDA device, in all. `threads`: that decode; chunks are small, so CPython's
    lock makes two slower than one (measured), and one overlaps with copying to the device. Raises FormatError for a bad
    file, TswError for one that cannot be read, OptionError for a device that is not there.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        backend: Backend = "auto",
        verify: Verify = "lazy",
        staging_bytes: int = DEFAULT_BYTES,
        threads: int = 1,
    ) -> None:
        self.device = check_device(device)
        self._threads = thread_count(threads)
        self._staging = Staging(self.device, staging_bytes)
        self.file = SwitchFile(path, backend=backend, verify=verify)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in the file's order."""
        return self.file.tasks

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free remarks on the file."""
        return self.file.metadata

    @property
    def base(self) -> BaseInfo:
        """The base that the file was made from."""
        return self.file.base

    @property
    def backend(self) -> str:
        """What really reads the file: "mmap" or "pread"."""
        return self.file.backend

    @property
    def kernels(self) -> str:
        """What really runs on the device: "fused" (Triton), "compiled" (numba) or "reference" (plain torch)."""
        return backend_of(self.device)

    def keys(self, task: str | None = None) -> list[str]:
        """Names of the tensors that a task changes, adds or removes. `task` may be left out where there is one only."""
        return self.file.keys(task)

    def switch(self, name: str, task: str | None = None) -> TorchSwitch:
        """The switch of one tensor; nothing is decoded yet. Raises UnknownNameError."""
        return TorchSwitch(self, self.file.switch(name, task))

    def load(self, names: Iterable[str] | None = None, task: str | None = None) -> dict[str, Loaded]:
        """Packed switches, and tensors of dense entries, on the device: those of `names`, or all that a task has but removed
        ones. Decoding, copying and the next tensor's decoding overlap."""
        if isinstance(names, str):
            raise OptionError(f"load: expected names, found the name {names!r}; write [{names!r}]")
        asked = {name: self.file.switch(name, task) for name in (self.keys(task) if names is None else names)}
        unique = {switch.name: switch for switch in asked.values() if switch.kind != "removed"}
        found = load(list(unique.values()), self._staging, self._threads)
        return {name: found[switch.name] for name, switch in asked.items() if switch.name in found}

    def close(self) -> None:
        """Release the file. Tensors stay valid, switches do not."""
        self.file.close()

    def __repr__(self) -> str:
        return f"<SwitchTensors {str(self.file.path)!r} {self.file.profile} tasks {self.tasks} on {self.device}>"


class TorchSwitch:
    """One tensor of one task, or a slice of it, on its way to a device. Nothing is decoded before it is asked for.

    Valid as long as the file is open; what its methods return is the caller's own.
    """

    def __init__(self, owner: SwitchTensors, switch: Switch) -> None:
        self._owner = owner
        self.host = switch

    name = property(lambda self: self.host.name, doc="Name of the tensor.")
    task = property(lambda self: self.host.task, doc="Name of the task.")
    kind = property(lambda self: self.host.kind, doc='"ternary", "masked", "dense" or "removed".')
    shape = property(lambda self: torch.Size(self.host.shape), doc="Shape of the view.")
    density = property(lambda self: self.host.density, doc="Share of active elements.")
    knob = property(lambda self: self.host.knob, doc="The knob, an f32 value.")

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the tensor in the expert. Raises OptionError where this torch has no such type."""
        return torch_dtype(self.host.target)

    @property
    def device(self) -> torch.device:
        """Where its tensors are made."""
        return self._owner.device

    def __getitem__(self, key: slice | tuple[slice, slice]) -> TorchSwitch:
        """Rows `sw[128:256]`, columns `sw[:, :64]`, or both. Reads only the chunks that the rows overlap."""
        return TorchSwitch(self._owner, self.host[key])

    def shard(self, rank: int, world_size: int, dim: int = 0) -> TorchSwitch:
        """The part of one of `world_size` ranks along dimension 0 or 1 (see `Switch.shard`)."""
        return TorchSwitch(self._owner, self.host.shard(rank, world_size, dim))

    def packed(self) -> PackedSwitch:
        """Packed planes, knob and factors, or vector, on the device. The vector of a whole masked switch is shared with all
        that use it: read it only."""
        if not self.host.is_additive:
            raise OptionError(f"tensor {self.name!r} is {self.kind}: it has no mask; use data()")
        found = self._load()
        if not isinstance(found, PackedSwitch):
            raise TypeError(f"{self.name!r}: {type(found).__name__} of a {self.kind} entry")
        return found

    def delta(self, coefficient: float = 1.0) -> Tensor:
        """What the switch adds: f32 (f64 for an F64 base), shape of the view."""
        switch = self.packed()
        coefficient = proper_coefficient(coefficient, switch.base, f"tensor {self.name!r}")
        wide = torch.float64 if switch.base.name == "F64" else torch.float32
        out = torch.zeros(switch.elements, dtype=wide, device=self.device)
        run([Job(Mode.VALUES, out, switch, coefficient)])
        return out.view(self.shape)

    def sign(self) -> Tensor:
        """Polarity: i8, shape of the view; -1, 0 (not active) or +1. Of a masked entry: that of the shared vector."""
        switch = self.packed()
        out = torch.zeros(switch.elements, dtype=torch.int8, device=self.device)
        run([Job(Mode.SIGNS, out, switch)])
        return out.view(self.shape)

    def mask(self) -> Tensor:
        """Activation mask: bool, shape of the view."""
        switch = self.packed()
        out = torch.zeros(switch.elements, dtype=torch.int8, device=self.device)
        run([Job(Mode.PUT_BACK, out, switch, other=out.new_ones(switch.active))])
        return out.view(torch.bool).view(self.shape)

    def data(self) -> Tensor:
        """The tensor of a dense entry on the device, shape of the view."""
        self.host.check_dense()
        found = self._load()
        if not isinstance(found, Tensor):
            raise TypeError(f"{self.name!r}: {type(found).__name__} of a dense entry")
        return found

    def apply_(self, weight: Tensor, coefficient: float = 1.0, *, check_base: bool = True) -> Tensor:
        """Change `weight` into the expert's, in place, without copies of it: base + coefficient * switch (spec section 10).

        `weight`: the base's elements on the switch's device, shape of the view, any strides of a matrix. `check_base`
        compares dtype and sampled digest (of whole tensors); without it other float types are taken too. Returns `weight`.
        Raises BaseMismatchError or OptionError, FormatError for a damaged file; then nothing was changed. An interrupt while
        the kernel runs leaves it half done: `apply_` for models, and SwitchBank, undo that.
        """
        switch = self.host
        matrix = check_weight(switch, weight, self.device, check_base=check_base)
        if switch.kind == "dense":
            data = self.data()
            with changing([weight]):
                raw(weight).copy_(raw(data))
            return weight
        coefficient = proper_coefficient(
            coefficient, dtype_of_tensor(weight) or switch.base.dtype, f"tensor {self.name!r}"
        )
        if coefficient != 0:
            packed = self.packed()
            with changing([weight]):
                run([Job(Mode.ADD, matrix, packed, coefficient)])
        return weight

    def _load(self) -> Loaded:
        return load([self.host], self._owner._staging, self._owner._threads)[self.name]

    def __repr__(self) -> str:
        return f"<TorchSwitch {self.name!r} {self.kind} {list(self.shape)} task {self.task!r} on {self.device}>"
