"""TSW: the file format that task experts are kept in.

    import tswitch_format as tsw
    tsw.pack("base.safetensors", "math.safetensors", "math.tsw", task="math")
    tsw.restore("base.safetensors", "math.tsw", "restored.safetensors")
    with tsw.open("math.tsw") as f:
        f.switch("layer.0.weight").delta()

What is named here is imported when it is first used, so that `import tswitch_format` costs next to nothing. The floors, imports
pointing down only:

    4 torch/        the only torch imports
    3 switch/       what a switch means: select, scale, pack, apply, restore
    2 container/    the file: records, index, reader, writer, verification
    1 codecs/       bytes <-> arrays
    0 _layout, _dtypes, _checksum, _parallel, _optional, _closing, atomic, checkpoint, errors, rules
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tswitch_format.errors import (
    BaseMismatchError,
    CheckpointError,
    FormatError,
    NonFiniteError,
    NotTswError,
    OptionError,
    OutputError,
    PayloadError,
    TruncatedError,
    TswError,
    UnknownNameError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tswitch_format._layout import FORMAT_VERSION
    from tswitch_format._version import __version__
    from tswitch_format.container.verify import Finding, ValidationReport
    from tswitch_format.switch.build import BuildResult, build
    from tswitch_format.switch.file import BaseInfo, SwitchFile
    from tswitch_format.switch.file import SwitchFile as open  # noqa: A004, N813  # tsw.open, as in the design; never imported with *
    from tswitch_format.switch.given import GivenMask, GivenSwitch, GivenTask, GivenVector
    from tswitch_format.switch.merge import merge
    from tswitch_format.switch.multitask import make_emr, make_tall
    from tswitch_format.switch.overlap import Overlap, TensorOverlap, overlap
    from tswitch_format.switch.pack import PackResult, pack
    from tswitch_format.switch.restore import RestoreResult, restore
    from tswitch_format.switch.routing import Router, add_router
    from tswitch_format.switch.tables import CoefficientTable, add_table
    from tswitch_format.switch.tensor import Switch
    from tswitch_format.switch.transfer import bundle, extract, repack
    from tswitch_format.switch.validate import validate

__all__ = [
    "FORMAT_VERSION",
    "BaseInfo",
    "BaseMismatchError",
    "BuildResult",
    "CheckpointError",
    "CoefficientTable",
    "Finding",
    "FormatError",
    "GivenMask",
    "GivenSwitch",
    "GivenTask",
    "GivenVector",
    "NonFiniteError",
    "NotTswError",
    "OptionError",
    "OutputError",
    "Overlap",
    "PackResult",
    "PayloadError",
    "RestoreResult",
    "Router",
    "Switch",
    "SwitchFile",
    "TensorOverlap",
    "TruncatedError",
    "TswError",
    "UnknownNameError",
    "UnsupportedError",
    "ValidationReport",
    "__version__",
    "add_router",
    "add_table",
    "build",
    "bundle",
    "extract",
    "make_emr",
    "make_tall",
    "merge",
    "open",
    "overlap",
    "pack",
    "repack",
    "restore",
    "validate",
]

_HOMES = {
    name: module
    for module, names in {
        "tswitch_format._layout": "FORMAT_VERSION",
        "tswitch_format._version": "__version__",
        "tswitch_format.container.verify": "Finding ValidationReport",
        "tswitch_format.switch.build": "BuildResult build",
        "tswitch_format.switch.file": "BaseInfo SwitchFile",
        "tswitch_format.switch.given": "GivenMask GivenSwitch GivenTask GivenVector",
        "tswitch_format.switch.merge": "merge",
        "tswitch_format.switch.multitask": "make_emr make_tall",
        "tswitch_format.switch.overlap": "Overlap TensorOverlap overlap",
        "tswitch_format.switch.pack": "PackResult pack",
        "tswitch_format.switch.restore": "RestoreResult restore",
        "tswitch_format.switch.routing": "Router add_router",
        "tswitch_format.switch.tables": "CoefficientTable add_table",
        "tswitch_format.switch.tensor": "Switch",
        "tswitch_format.switch.transfer": "bundle extract repack",
        "tswitch_format.switch.validate": "validate",
    }.items()
    for name in names.split()
}


if not TYPE_CHECKING:  # which would take any name then

    def __getattr__(name: str) -> object:
        """PEP 562."""
        if name == "open":  # tsw.open, as in the design
            found = import_module("tswitch_format.switch.file").SwitchFile
        elif name in _HOMES:
            found = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'tswitch_format' has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
