"""What the library shows, what it imports, and that imports point down only."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tswitch_format as tsw

LIBRARY = Path(tsw.__file__).parent
TOOLS = LIBRARY.parent / "tools" / "tswitch_tools"

NAMES = [
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


def test_the_public_names_are_these() -> None:
    assert list(tsw.__all__) == NAMES
    assert all(hasattr(tsw, name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_has_a_docstring(name: str) -> None:
    thing = getattr(tsw, name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return
    documented = [(name, thing)]
    if inspect.isclass(thing):
        documented += [(f"{name}.{n}", m) for n, m in vars(thing).items() if not n.startswith("_") and is_code(m)]
    missing = [what for what, found in documented if not inspect.getdoc(found)]
    assert not missing
    # dataclasses write "Name(field: type)" where nobody wrote anything
    assert not (thing.__doc__ or "").startswith(f"{name}(")


def is_code(thing: object) -> bool:
    return inspect.isfunction(thing) or isinstance(thing, property | classmethod | staticmethod)


def loaded_after(program: str) -> set[str]:
    """Names of the packages that a fresh process has loaded after a program."""
    program += "\nimport sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


HEAVY = {"torch", "safetensors", "click", "rich", "sklearn", "transformers", "tswitch_tools"}


def test_importing_the_library_loads_nothing_heavy() -> None:
    assert not loaded_after("import tswitch_format") & {*HEAVY, "numpy"}
    loaded = loaded_after("from tswitch_format import open, pack, restore, validate")
    assert {"numpy", "zstandard", "msgpack"} <= loaded
    assert not loaded & HEAVY


def test_every_name_is_there_when_it_is_asked_for() -> None:
    assert {*tsw.__all__} <= {*dir(tsw)}
    for name in tsw.__all__:
        assert getattr(tsw, name) is getattr(tsw, name)
    with pytest.raises(AttributeError, match="module 'tswitch_format' has no attribute 'packs'"):
        _ = tsw.packs  # type: ignore[attr-defined]


def test_packing_and_restoring_arrays_loads_nothing_heavy(tmp_path: Path) -> None:
    program = f"""
import numpy as np, tswitch_format as tsw
base = {{"w": np.zeros(9, np.float32)}}
tsw.pack(base, {{"w": np.arange(9, dtype=np.float32)}}, {str(tmp_path / "x.tsw")!r})
tsw.restore(base, {str(tmp_path / "x.tsw")!r}, {str(tmp_path / "out.safetensors")!r})
"""
    assert not loaded_after(program) & (HEAVY - {"tswitch_tools"})  # whose writer it is


# --- floors ---------------------------------------------------------------------------------------------------

FLOORS = {"codecs": 1, "container": 2, "switch": 3, "torch": 4}


def modules(package: Path) -> dict[str, ast.Module]:
    """All modules of a package by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


def imports(tree: ast.AST, known: dict[str, ast.Module]) -> Iterator[str]:
    """Dotted names of all modules that are imported anywhere in a module, in functions and for types as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)


def floor(module: str) -> int:
    """The floor of a module of the library."""
    parts = module.split(".")
    if len(parts) == 1:
        return max(FLOORS.values())  # the package itself shows names of all floors but the last
    return FLOORS.get(parts[1], 0)


def test_imports_point_down_only() -> None:
    library = modules(LIBRARY)
    assert {floor(name) for name in library} == {0, 1, 2, 3, 4}
    wrong = [
        f"{name} (floor {floor(name)}) imports {found} (floor {floor(found)})"
        for name, tree in library.items()
        for found in imports(tree, library)
        if found.split(".")[0] == "tswitch_format" and floor(found) > floor(name)
    ]
    assert not wrong


def test_the_package_itself_does_not_import_torch_nor_its_floor() -> None:
    library = modules(LIBRARY)
    assert not [found for found in imports(library["tswitch_format"], library) if "torch" in found.split(".")]


def test_only_floor_4_imports_torch_and_nothing_imports_the_tools() -> None:
    library = modules(LIBRARY)
    for name, tree in library.items():
        packages = {found.split(".")[0] for found in imports(tree, library)}
        assert "tswitch_tools" not in packages, name
        assert "torch" not in packages or floor(name) == 4, name
        assert not packages & (HEAVY - {"torch", "tswitch_tools"}), name


def test_no_modules_import_each_other() -> None:
    library = modules(LIBRARY)
    graph = {name: {f for f in imports(tree, library) if f in library and f != name} for name, tree in library.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_the_tools_use_public_modules_only() -> None:
    tools = modules(TOOLS)
    library = modules(LIBRARY)
    private = [
        f"{name} imports {found}"
        for name, tree in tools.items()
        for found in imports(tree, library)
        if found.split(".")[0] == "tswitch_format" and any(part.startswith("_") for part in found.split("."))
    ]
    assert not private


def test_the_public_names_of_the_torch_floor_are_these() -> None:
    torch_floor = pytest.importorskip("tswitch_format.torch")
    pytest.importorskip("torch")
    names = [
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
    assert list(torch_floor.__all__) == names
    assert all(getattr(torch_floor, name) for name in names)
