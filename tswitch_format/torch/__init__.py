"""Floor 4: switches as torch tensors, on CPU and CUDA. The only folder of the library that imports torch.

    from tswitch_format.torch import AutoSwitch, Router, SwitchBank, apply_, calibrate, open

    open          lazy switches of a file: delta, mask, apply_, slices and shards on a device
    apply_        a task into a model or a state dict, in place, for good
    SwitchBank    many experts beside one base model, switched in place and back exactly, or one for each row of a batch
    SwitchLinear  one linear layer of such a batch
    Tint          experts added up by a table of coefficients, for a bank
    Router        which tasks a sample needs, by its nearest stored samples, on a device
    AutoSwitch    a model that takes for each batch the experts that a router finds
    calibrate     knobs and factors of a task, refined on samples; masks and signs stay
    importance    scores of what fine-tuning changed, by a loss: an Importance, for `pack(..., score=...)`

The modules, imports pointing down only:

    auto                     router and bank and model in one call
    bank, apply, router, calibration    what users call
    scoring                  importance scores of what fine-tuning changed
    refining, held           knobs that learn; a model that is given back as it was
    losses                   what a loss function gave, checked
    combination, activation  experts with coefficients -> changes of weights -> making them, and undoing them
    mixed/                   batches in which each row uses another expert
    expert                   a task of a file under a model's names, on its devices
    load                     an open file, and lazy switches of it on a device
    pipeline, staging        decoding in threads, and pinned memory to the device
    weights                  which tensors may be changed in place, and the checks of that
    kernels/                 what is done with active elements: plain torch, compiled for the CPU, Triton
    vectors                  shared vectors of masked switches: one copy on a device
    packed                   the planes of a switch as tensors
    checkpoint               torch objects as checkpoints, for pack and restore; element types

Bits: whatever runs, on whatever device, gives those of `switch/apply.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tswitch_format.torch.apply import apply_
    from tswitch_format.torch.auto import AutoSwitch
    from tswitch_format.torch.bank import MemoryReport, SwitchBank
    from tswitch_format.torch.calibration import CalibrationResult, calibrate
    from tswitch_format.torch.combination import Tint
    from tswitch_format.torch.load import SwitchTensors, TorchSwitch
    from tswitch_format.torch.load import SwitchTensors as open  # noqa: A004, N813
    from tswitch_format.torch.mixed import SwitchLinear
    from tswitch_format.torch.router import Router
    from tswitch_format.torch.scoring import Importance, importance

__all__ = [
    "AutoSwitch",
    "CalibrationResult",
    "Importance",
    "MemoryReport",
    "Router",
    "SwitchBank",
    "SwitchLinear",
    "SwitchTensors",
    "Tint",
    "TorchSwitch",
    "apply_",
    "calibrate",
    "importance",
    "open",
]

# Where the names are. Imported when they are asked for: every use of a checkpoint looks into this package, also without torch.
_HOMES = {
    "AutoSwitch": ("auto", "AutoSwitch"),
    "CalibrationResult": ("calibration", "CalibrationResult"),
    "Importance": ("scoring", "Importance"),
    "MemoryReport": ("bank", "MemoryReport"),
    "Router": ("router", "Router"),
    "SwitchBank": ("bank", "SwitchBank"),
    "SwitchLinear": ("mixed", "SwitchLinear"),
    "SwitchTensors": ("load", "SwitchTensors"),
    "Tint": ("combination", "Tint"),
    "TorchSwitch": ("load", "TorchSwitch"),
    "apply_": ("apply", "apply_"),
    "calibrate": ("calibration", "calibrate"),
    "importance": ("scoring", "importance"),
    "open": ("load", "SwitchTensors"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), attribute)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs torch, which is not installed; pip install 'tswitch-format[torch]'", name="torch"
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
