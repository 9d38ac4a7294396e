"""BitDelta's diff.pt (arXiv 2402.10193): a sign for every element of some matrices, the other changed tensors whole.

    accepts, convert   the importer

A matrix `{module}.weight` [out, in] of the base is there as `{module}.mask`, i32 [in/32, out], and `{module}.coeff`, one f32:
bit i, least significant first, of word j in column o is weight[o, 32 j + i], set where the coefficient is added, else it is
subtracted. So it becomes a switch in which every element is active, its knob the coefficient, whatever that one's sign. Tensors
that equal the base's are left out.
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tswitch_format import BuildResult, GivenSwitch, GivenTask, build
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.errors import CheckpointError, OptionError, UnknownNameError
from tswitch_tools.checkpoints import torch_files
from tswitch_tools.importers import CHUNK, ImportOptions, floats, names_of

NAME = "bitdelta"
SUMMARY = "diff.pt of BitDelta: one sign an element, one coefficient a matrix; needs torch"

MASK = ".mask"
COEFFICIENT = ".coeff"
WEIGHT = ".weight"
WORD = 32  # bits

_LOOKED_AT = 1 << 23  # bytes, of the names of tensors
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how torch.save began before it made zip files
_BLOCK = 1 << 22  # bytes that are compared at once
_DAMAGE = (
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def accepts(source: Path) -> bool:
    """Whether it is a file of torch.save in which tensors are called .mask and .coeff. Nothing is unpickled."""
    try:
        names = _pickle(source) if source.is_file() else b""
    except _DAMAGE:
        return False
    return MASK.encode() in names and COEFFICIENT.encode() in names


def _pickle(source: Path) -> bytes:
    """The bytes among which the names of tensors are."""
    if not zipfile.is_zipfile(source):
        with source.open("rb") as stream:
            start = stream.read(_LOOKED_AT)
        return start if start.startswith(_LEGACY) else b""
    with zipfile.ZipFile(source) as archive:
        member = next((m for m in archive.infolist() if m.filename.endswith("data.pkl")), None)
        if member is None or member.compress_type != zipfile.ZIP_STORED:
            return b""
        with archive.open(member) as stream:
            return stream.read(_LOOKED_AT)


def convert(source: Path, base: CheckpointReader, out: Path, options: ImportOptions) -> BuildResult:
    """See `Importer.convert`."""
    given = {"--expert": options.expert, "--scales": options.scales, "--knob": options.knob}
    for option, value in given.items():
        if value is not None:
            raise OptionError(f"{source}: {option}: BitDelta's files have coefficients of their own; leave it out")
    if not source.is_file():
        raise OptionError(f"{source}: expected the file diff.pt of BitDelta, found a folder or none; name the file")
    check_output(out, [source])
    with contextlib.closing(torch_files.open_reader(source)) as diff:
        task = GivenTask(
            options.task or "task", _switches(diff, base), _whole(diff, base), recipe={"imported_from": NAME}
        )
        return build(
            base,
            out,
            [task],
            profile=options.profile,
            base_id=options.base_id,
            base_revision=options.base_revision,
            threads=options.threads,
            progress=options.progress,
        )


def _modules(diff: CheckpointReader, base: CheckpointReader, suffix: str) -> dict[str, str]:
    """Name of a module -> stored name of its mask or coefficient. What the base has by that very name is none."""
    known = names_of(base)
    return {
        name.removesuffix(suffix): stored
        for name, stored in names_of(diff).items()
        if name.endswith(suffix) and name not in known
    }


def _switches(diff: CheckpointReader, base: CheckpointReader) -> dict[str, GivenSwitch]:
    masks, coefficients = _modules(diff, base, MASK), _modules(diff, base, COEFFICIENT)
    for module in sorted(masks.keys() ^ coefficients.keys()):
        there, missing = (MASK, COEFFICIENT) if module in masks else (COEFFICIENT, MASK)
        raise CheckpointError(
            f"{diff.location}: expected {module + missing!r} beside {module + there!r}, found none; "
            "save the file again with both"
        )
    if not masks:
        raise CheckpointError(
            f"{diff.location}: expected tensors named '{{module}}{MASK}' and '{{module}}{COEFFICIENT}', found none; "
            "if it is a checkpoint, use 'tsw pack'"
        )
    known = names_of(base)
    switches = {}
    for module, stored in masks.items():
        name = module + WEIGHT
        if name not in known:
            raise UnknownNameError("tensor", name, known, where=f"{diff.location}: {module + MASK!r}: {base.location}")
        mask = _Mask(diff, stored, base.specs[known[name]])
        switches[name] = GivenSwitch(_coefficient(diff, coefficients[module]), mask.chunk)
    return switches


def _coefficient(diff: CheckpointReader, name: str) -> float:
    spec = diff.specs[name]
    value = float(floats(diff, name, 0, 1)[0]) if spec.dtype.name == "F32" and spec.elements == 1 else None
    if value is None or not np.isfinite(value):
        found = spec if value is None else value
        raise CheckpointError(
            f"{diff.location}: tensor {name!r}: expected one finite number of type F32, found {found}; "
            "save the file again with such a coefficient"
        )
    return value


class _Mask:
    """The signs of one matrix, chunk by chunk. Its words, an eighth of a byte an element, are in memory from the first chunk to
    the last."""

    def __init__(self, diff: CheckpointReader, name: str, weight: TensorSpec) -> None:
        found = diff.specs[name]
        where = f"{diff.location}: tensor {name!r}"
        if len(weight.shape) != 2 or weight.shape[1] % WORD:
            raise CheckpointError(
                f"{where}: expected a mask of a matrix with a multiple of {WORD} columns, found {weight.name!r} of "
                f"{list(weight.shape)} in the base; give the one that the file was made from"
            )
        self._rows, self._columns = weight.shape
        shape = (self._columns // WORD, self._rows)
        if found.dtype.name != "I32" or found.shape != shape:
            raise CheckpointError(
                f"{where}: expected I32{list(shape)} for {weight.name!r} of {list(weight.shape)}, found {found}; "
                "give the base that the file was made from"
            )
        self._diff = diff
        self._name = name
        self._shape = shape
        self._words: NDArray[np.uint32] | None = None

    def chunk(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """See `GivenSwitch.chunk`."""
        elements = self._rows * self._columns
        start, stop = number * CHUNK, min((number + 1) * CHUNK, elements)
        first, last = start // self._columns, -(-stop // self._columns)
        words = self._read() if self._words is None else self._words
        self._words = words if stop < elements else None
        rows = np.ascontiguousarray(words[:, first:last].T)
        bits = np.unpackbits(rows.view(np.uint8), axis=None, bitorder="little")
        skipped = start - first * self._columns
        return np.arange(stop - start, dtype=np.int64), bits[skipped : skipped + stop - start] == 0

    def _read(self) -> NDArray[np.uint32]:
        raw = np.empty(self._diff.specs[self._name].nbytes, np.uint8)
        self._diff.read_into(self._name, 0, raw)
        return raw.view("<u4").reshape(self._shape)


def _whole(diff: CheckpointReader, base: CheckpointReader) -> Mapping[str, tuple[CheckpointReader, str]]:
    """The tensors that are neither masks nor coefficients, nor equal to the base's."""
    packed = {*_modules(diff, base, MASK).values(), *_modules(diff, base, COEFFICIENT).values()}
    known = names_of(base)
    seen: dict[str, str] = {}  # the base's name -> the stored one
    dense: dict[str, tuple[CheckpointReader, str]] = {}
    for name, stored in names_of(diff).items():
        if stored in packed:
            continue
        target = known.get(name, name)
        if target in seen:
            if not _same(diff, stored, diff, seen[target]):
                raise CheckpointError(
                    f"{diff.location}: tensor {name!r}: expected the content that {target!r} has too, as both are one "
                    "tied tensor of the base, found another; leave one of them out"
                )
            continue
        seen[target] = stored
        if target not in base.specs or not _same(diff, stored, base, target):
            dense[name] = (diff, stored)
    return dense


def _same(a: CheckpointReader, a_name: str, b: CheckpointReader, b_name: str) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if str(a.specs[a_name]) != str(b.specs[b_name]):
        return False
    size = a.specs[a_name].nbytes
    for start in range(0, size, _BLOCK):
        one, other = (np.empty(min(_BLOCK, size - start), np.uint8) for _ in range(2))
        a.read_into(a_name, start, one)
        b.read_into(b_name, start, other)
        if not np.array_equal(one, other):
            return False
    return True
