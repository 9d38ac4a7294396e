"""Files of torch.save (.bin, .pt, .pth), and Hugging Face folders of them, as checkpoints.

    accepts, open_reader   the plug-in (see `tswitch_format.checkpoint`)

Files are pickles, so they are loaded with `weights_only=True`, which runs no code of theirs. Files of today's format
(zip) are mapped, the older ones read into memory; unlike with safetensors files, both count as memory of the process.
A folder that has safetensors files as well is left to `safetensors_reader`.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tswitch_format.checkpoint import CheckpointReader, ShardLayout
from tswitch_format.errors import CheckpointError
from tswitch_format.torch.checkpoint import TensorCheckpoint
from tswitch_tools.checkpoints import safetensors_reader
from tswitch_tools.checkpoints.safetensors_reader import check_index, folder_files, index_in, read_index

SUFFIXES = (".bin", ".pt", ".pth")
INDEX_SUFFIX = ".bin.index.json"

# What trainers save beside the weights in files of the same kind.
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
# Where training scripts put the weights in the files they save.
_WRAPPERS = ("state_dict", "model")
# All that torch.load raises on files that are damaged or are something else.
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, names of storages; then come the storages
_LOAD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


def accepts(source: object) -> bool:
    """Whether `source` is the path of a .bin, .pt or .pth file, of an index of .bin files, or of a folder of such."""
    if not isinstance(source, Path):
        return False
    if source.is_dir():
        return not safetensors_reader.accepts(source) and bool(index_in(source, INDEX_SUFFIX) or _weights_in(source))
    return source.is_file() and source.name.endswith((*SUFFIXES, INDEX_SUFFIX))


def open_reader(source: Path) -> CheckpointReader:
    """Open a file, an index or a folder.

    In a folder the index says which files count; without one it is pytorch_model.bin, or else all .bin, .pt and .pth
    files but those of a trainer's state. A file holds a dict of name to tensor, or has that under `state_dict` or
    `model`. Raises CheckpointError where a file cannot be loaded, holds other things, or torch is not installed.
    """
    folder = source if source.is_dir() else None
    index = index_in(source, INDEX_SUFFIX) if folder else None
    if source.name.endswith(INDEX_SUFFIX) and not folder:
        index, folder = source, source.parent
    weight_map = read_index(index) if index else {}
    if index is not None:
        paths = [index.parent / name for name in sorted(set(weight_map.values()))]
    else:
        paths = _weights_in(folder) if folder else [source]
    tensors: dict[str, Any] = {}
    files: dict[str, list[str]] = {}
    for path in paths:
        content = _load(path)
        twice = sorted(tensors.keys() & content.keys())
        if twice:
            raise CheckpointError(
                f"{path}: tensor {twice[0]!r}: expected it in one file, found it in another too; "
                "keep the files of one checkpoint only"
            )
        tensors.update(content)
        files[path.name] = list(content)
    if index is not None:
        check_index(index, weight_map, files)
    layout = ShardLayout(files=files, index_name=index.name if index else None, folder=folder)
    return TensorCheckpoint(tensors, location=str(source), paths=[*paths, *([index] if index else [])], layout=layout)


def _weights_in(folder: Path) -> list[Path]:
    files = [f for f in folder_files(folder) if f.suffix in SUFFIXES and not f.name.startswith(_NOT_WEIGHTS)]
    return [f for f in files if f.name == "pytorch_model.bin"] or files


def _load(path: Path) -> Mapping[str, Any]:
    """The dict of name to tensor that a file holds."""
    try:
        import torch  # noqa: PLC0415 - only users of such files need torch
    except ImportError as error:
        raise CheckpointError(
            f"{path}: torch is needed to read this file; run pip install 'tswitch-format[torch]', or convert the file "
            "to safetensors"
        ) from error
    try:
        with warnings.catch_warnings():  # torch warns of files that are then refused in words of our own
            warnings.simplefilter("ignore", UserWarning)
            zipped = zipfile.is_zipfile(path)
            _check_pickles(path, zipped)
            # Only the zip format can be mapped.
            content = torch.load(path, weights_only=True, mmap=zipped, map_location="cpu")
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            f"{path}: expected a file of tensors by torch.save, found {_reason(error)}; "
            "convert it to safetensors where it was made, or download it again"
        ) from error
    if isinstance(content, Mapping) and not any(isinstance(value, torch.Tensor) for value in content.values()):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: expected a dict of name to tensor, found {type(content).__name__}; "
            "save module.state_dict() instead"
        )
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: expected a dict of name to tensor, found {type(value).__name__} under {key!r}; "
                "save module.state_dict() alone"
            )
    return content


def _check_pickles(path: Path, zipped: bool) -> None:
    """Refuse what torch lets through although it costs any amount of memory: a `bytearray(n)`, compressed members.

    Raises pickle.UnpicklingError, and what `pickletools` and `zipfile` raise of damaged files.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise pickle.UnpicklingError("a compressed member")  # torch.save stores them
                if member.filename.endswith("data.pkl"):
                    with archive.open(member) as stream:
                        _check_pickle(stream)
        return
    with path.open("rb") as stream:
        for _ in range(_LEGACY_PICKLES):
            _check_pickle(stream)


def _check_pickle(stream: IO[bytes]) -> None:
    for _, argument, _ in pickletools.genops(stream):
        if isinstance(argument, str) and argument.split(" ")[-1] == "bytearray":
            raise pickle.UnpicklingError("a bytearray")


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words; torch's own messages have many lines and advise to load the file unsafely."""
    text = str(error)
    code = re.search(r"GLOBAL ([\w.]+)", text)
    if code:
        return f"a pickle that would run {code[1]}, which is refused"
    if isinstance(error, pickle.UnpicklingError):
        return "a pickle that is damaged, or holds more than tensors"
    if isinstance(error, OSError):
        return f"that it cannot be read ({error.strerror})"
    first = text.strip().split("\n")[0].split(". ")[0]
    return f"that it is damaged or of another kind ({type(error).__name__}{': ' if first else ''}{first[:120]})"
