"""The folders that the T-Switch authors' code writes (arXiv 2412.00054): one file of bits a tensor.

    accepts, convert   the importer

`{dataset}_{tensor}_compressed.bin`, bits from the most significant one of each byte on: first a mark for each group of four
elements (C order; fewer elements than four are one group), then for each marked group its activation bits and a bit for each
active element, set where the knob is added; zeros to the end of the last byte. Shapes are the base's. Knobs come from the
expert, by the authors' rule (root mean square of the task vector on the active elements), from a file of them, or are given.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tswitch_format import BuildResult, GivenSwitch, GivenTask, build
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader, DType, TensorSpec
from tswitch_format.errors import CheckpointError, OptionError, UnknownNameError
from tswitch_tools.checkpoints import torch_files
from tswitch_tools.importers import CHUNK, ImportOptions, floats, names_of

NAME = "tswitch-authors"
SUMMARY = "folder of {dataset}_{tensor}_compressed.bin by the T-Switch authors; needs --expert, --scales or --knob"

SUFFIX = "_compressed.bin"
GROUP = 4  # elements
KNOBS = "_knobs.json"  # after the dataset: what our exporter adds
SCALES = "scaling_factor_dict.pt"  # what some of the authors' scripts add, of the task that was last

_WALKED = 1 << 16  # bits: small enough that walking them stays in the cache
_OTHER = "give the base that the files were made for, or copy the file again"

_Active = tuple[NDArray[np.int64], NDArray[np.bool_]]
_Knob = Callable[["Stream"], float]


def accepts(source: Path) -> bool:
    """Whether it is a folder with a file of that name. Nothing is opened."""
    try:
        with os.scandir(source) as files:
            return any(file.name.endswith(SUFFIX) and file.is_file() for file in files)
    except (OSError, ValueError):
        return False


def convert(source: Path, base: CheckpointReader, out: Path, options: ImportOptions) -> BuildResult:
    """See `Importer.convert`. Every dataset of the folder becomes a task, or the one that `options.task` names."""
    files, alone = _datasets(source, base, options.task)
    inputs = [path for of_one in files.values() for path in of_one.values()]
    inputs += [source / SCALES, *(source / f"{dataset}{KNOBS}" for dataset in files)]
    inputs += [*(options.expert.paths if options.expert else ()), *([options.scales] if options.scales else ())]
    check_output(out, inputs)
    known = names_of(base)
    tasks = []
    for dataset, streams in files.items():
        knob, origin = _knobs(source, dataset, len(files), alone, base, options)
        switches = {}
        for name, path in _untied(streams, base).items():
            stream = Stream(path, base.specs[known[name]], name)
            switches[name] = GivenSwitch(knob(stream), stream.chunk)
        tasks.append(GivenTask(dataset, switches, recipe={"imported_from": NAME, "knobs_from": origin}))
    return build(
        base,
        out,
        tasks,
        profile=options.profile,
        base_id=options.base_id,
        base_revision=options.base_revision,
        threads=options.threads,
        progress=options.progress,
    )


# Which file is which tensor of which dataset


def _datasets(source: Path, base: CheckpointReader, task: str | None) -> tuple[dict[str, dict[str, Path]], bool]:
    """Dataset -> name of a tensor -> file, and whether the folder has no other dataset. Both parts of a file's name may have
    underscores, so the base's names decide."""
    known = names_of(base)
    try:
        paths = sorted(path for path in source.iterdir() if path.name.endswith(SUFFIX) and path.is_file())
    except OSError as error:
        raise OptionError(
            f"{source}: expected a folder of files named {{dataset}}_{{tensor}}{SUFFIX}, found that it cannot be listed "
            f"({error.strerror}); name the folder"
        ) from error
    readings = {path: _readings(path, known) for path in paths}
    if not paths:
        raise OptionError(f"{source}: expected files named {{dataset}}_{{tensor}}{SUFFIX}, found none; check the path")
    certain = {found[0][0] for found in readings.values() if len(found) == 1}
    chosen: dict[str, dict[str, Path]] = {}
    for path, found in readings.items():
        if task is not None:
            found = [reading for reading in found if reading[0] == task]  # noqa: PLW2901 - the others do not count
            if not found and (readings[path] or not path.name.startswith(f"{task}_")):
                continue
        if len(found) > 1:
            found = [reading for reading in found if reading[0] in certain] or found  # noqa: PLW2901 - as above
        if not found:
            guess = path.name.removesuffix(SUFFIX).removeprefix(f"{task}_" if task is not None else "")
            guess = guess if task is not None else guess.partition("_")[2] or guess
            raise UnknownNameError("tensor", guess, known, where=f"{path}: {base.location}")
        if len(found) > 1:
            words = " or ".join(f"{name!r} of {dataset!r}" for dataset, name in found)
            raise OptionError(f"{path}: expected a name that can be read in one way, found {words}; add --task")
        (dataset, name), *_ = found
        chosen.setdefault(dataset, {})[name] = path
    if not chosen:
        datasets = {dataset for found in readings.values() for dataset, _ in found}
        raise UnknownNameError("dataset", task or "", datasets, where=str(source))
    alone = len(chosen) == 1 and sum(map(len, chosen.values())) == len(paths)
    return dict(sorted(chosen.items())), alone


def _readings(path: Path, known: Mapping[str, str]) -> list[tuple[str, str]]:
    """Dataset and name, for each underscore after which a name of the base comes."""
    stem = path.name.removesuffix(SUFFIX)
    cuts = [at for at, char in enumerate(stem) if char == "_" and at]
    return [(stem[:at], stem[at + 1 :]) for at in cuts if stem[at + 1 :] in known]


def _untied(streams: Mapping[str, Path], base: CheckpointReader) -> dict[str, Path]:
    """Of tied tensors whose files are equal, only one."""
    known = names_of(base)
    kept: dict[str, str] = {}
    for name, path in streams.items():
        first = kept.setdefault(known[name], name)
        if first != name and _content(streams[first]) != _content(path):
            raise CheckpointError(
                f"{path}: expected the bytes of {streams[first].name}, as both are one tied tensor of the base, "
                "found others; leave one of them out"
            )
    return {name: streams[name] for name in kept.values()}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error


# Bits -> active elements


class Stream:
    """The file of one tensor, decoded chunk by chunk. Its bytes are in memory from the first chunk to the last.

    `name` is what the files call the tensor; `spec` the base's.
    """

    def __init__(self, path: Path, spec: TensorSpec, name: str) -> None:
        self.path = path
        self.spec = spec
        self.name = name
        self._width = GROUP if spec.elements >= GROUP else spec.elements
        if not spec.elements or spec.elements % self._width:
            raise CheckpointError(
                f"{self._where}: expected a tensor of 1 to 4 elements or a multiple of 4, found {spec.elements}, for which "
                f"the authors' code writes no file; {_OTHER}"
            )
        self._groups = spec.elements // self._width
        most = -(-self._groups * (1 + 2 * self._width) // 8)
        least = -(-self._groups // 8)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
        if not least <= size <= most:
            raise CheckpointError(f"{self._where}: expected {least} to {most} bytes, found {size}; {_OTHER}")
        self._next = 0
        self._chunks: Iterator[_Active] = iter(())

    @property
    def _where(self) -> str:
        return f"{self.path}: tensor {self.name!r} of {list(self.spec.shape)}"

    def chunk(self, number: int) -> _Active:
        """See `GivenSwitch.chunk`. Cheap in order only: where a group begins is known from those before it."""
        if number != self._next or number == 0:
            self._chunks = self.chunks()
            for _ in range(number):
                next(self._chunks)
        found = next(self._chunks)
        self._next = number + 1
        if self._next * CHUNK >= self.spec.elements:
            next(self._chunks, None)  # checks the end, and lets go of the bytes
        return found

    def chunks(self) -> Iterator[_Active]:
        """All chunks. Raises CheckpointError where bits are missing, left over or contradict each other."""
        data = np.frombuffer(_content(self.path), np.uint8)
        cursor = self._groups
        per_chunk = CHUNK // GROUP
        for first in range(0, self._groups, per_chunk):
            marked = np.flatnonzero(_bits(data, first, min(per_chunk, self._groups - first)))
            bits = _bits(data, cursor, 2 * self._width * marked.size)
            active, positive, used = self._records(bits, marked.size)
            empty = np.flatnonzero(~active.any(axis=1))
            if empty.size:
                raise CheckpointError(
                    f"{self._where}: expected active elements in every marked group, found none in group "
                    f"{first + int(marked[empty[0]])}; {_OTHER}"
                )
            cursor += used
            places = marked[:, None] * self._width + np.arange(self._width)
            yield places[active], ~positive
        end = -(-cursor // 8)
        if data.size != end:
            raise CheckpointError(
                f"{self._where}: expected {end} bytes, as its groups take, found {data.size}; {_OTHER}"
            )
        if _bits(data, cursor, 8 * end - cursor).any():
            raise CheckpointError(
                f"{self._where}: expected zeros after the last group, found other bits in the last byte; {_OTHER}"
            )

    def _records(self, bits: NDArray[np.bool_], count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
        """Of that many marked groups: which elements are active [count, width], which of these positive, bits used."""
        width = self._width
        padded = np.append(bits, np.zeros(2 * width, np.bool_))
        lengths = np.full(bits.size, width, np.uint8)  # of the record that begins at each bit, if one does
        for offset in range(width):
            lengths += padded[offset : offset + bits.size]
        starts = _walk(lengths, count)
        used = int(starts[-1]) + int(lengths[starts[-1]]) if starts.size else 0
        if starts.size < count or used > bits.size:
            raise CheckpointError(
                f"{self._where}: expected bits for all marked groups, found the end of the file before the "
                f"last; {_OTHER}"
            )
        active = padded[starts[:, None] + np.arange(width)]
        signs = (starts + width)[:, None] + np.cumsum(active, axis=1) - 1
        return active, padded[signs[active]], used


def _bits(data: NDArray[np.uint8], start: int, count: int) -> NDArray[np.bool_]:
    """At most `count` bits from bit `start` on; fewer at the end."""
    part = np.unpackbits(data[start // 8 : -(-(start + count) // 8)])
    return part[start % 8 : start % 8 + count].view(np.bool_)


def _walk(lengths: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Starts of the first `count` records, one after the other from 0 on, given the length of one that starts at each place;
    fewer where the places end.

    Within a block the starts double at each step: jump[p] is 1, 2, 4, ... records after p, or else the block's end.
    """
    found = [np.empty(0, np.int64)]
    have = at = 0
    while have < count and at < lengths.size:
        block = lengths[at : at + _WALKED]
        jump = np.minimum(np.arange(block.size + 1) + np.append(block, 0), block.size)
        starts = np.zeros(1, np.int64)
        while True:
            later = jump[starts]
            later = later[later < block.size]
            whole = later.size == starts.size
            starts = np.append(starts, later)
            if not whole:
                break
            jump = jump[jump]
        found.append(starts[: count - have] + at)
        have += found[-1].size
        at += int(starts[-1]) + int(block[starts[-1]])
    return np.concatenate(found)


# Knobs


def _knobs(
    source: Path, dataset: str, datasets: int, alone: bool, base: CheckpointReader, options: ImportOptions
) -> tuple[_Knob, str]:
    """What gives the knob of a tensor, and where it has it from. `datasets` are imported; `alone`: the folder has one."""
    given = {"--expert": options.expert, "--scales": options.scales, "--knob": options.knob}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise OptionError(f"{source}: expected one origin of the knobs, found {' and '.join(named)}; leave one out")
    if named and datasets > 1 and options.knob is None:
        raise OptionError(f"{source}: {named[0]} is of one task, found several datasets; add --task")
    expert, knob = options.expert, options.knob
    if expert is not None:
        names = names_of(expert)
        return lambda stream: _of_expert(stream, base, expert, names), "expert"
    if knob is not None:
        if not np.isfinite(np.float32(knob)):
            raise OptionError(f"--knob: expected a number that is finite in f32, found {knob}; give another")
        return lambda stream: knob, "user"
    ours, theirs = source / f"{dataset}{KNOBS}", source / SCALES
    path = options.scales or (ours if ours.exists() else theirs if alone and theirs.exists() else None)
    if path is None:
        remark = f" ({SCALES} is of one of several datasets)" if theirs.exists() else ""
        raise OptionError(
            f"{source}: dataset {dataset!r}: expected knobs, which these files do not have, found none{remark}; "
            "add --expert, --scales or --knob"
        )
    scales = _json_scales(path) if path.suffix == ".json" else _torch_scales(path)

    def look_up(stream: Stream) -> float:
        if stream.name not in scales:
            raise UnknownNameError("scale", stream.name, scales, where=str(path))
        return scales[stream.name]

    return look_up, "scales"


def _json_scales(path: Path) -> dict[str, float]:
    wanted = f"{path}: expected a JSON object of name to finite number"
    try:
        found = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{wanted}, found something else: {error}; write it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{wanted}, found a {type(found).__name__}; write it again")
    for name, value in found.items():
        if type(value) not in (int, float) or not _finite(value):
            raise CheckpointError(f"{wanted}, found {str(value)[:40]!r} under {name!r}; write it again")
    return {name: float(value) for name, value in found.items()}


def _torch_scales(path: Path) -> dict[str, float]:
    with contextlib.closing(torch_files.open_reader(path)) as reader:
        scales = {}
        for name, stored in names_of(reader).items():
            spec = reader.specs[stored]
            value = float(floats(reader, stored, 0, 1)[0]) if spec.dtype.is_float and spec.elements == 1 else None
            if value is None or not _finite(value):
                raise CheckpointError(
                    f"{path}: expected one finite number under {name!r}, found {spec if value is None else value}; "
                    "write it again, or as JSON"
                )
            scales[name] = value
    return scales


def _finite(value: float) -> bool:
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float32(value)))
    except OverflowError:
        return False


def _of_expert(stream: Stream, base: CheckpointReader, expert: CheckpointReader, names: Mapping[str, str]) -> float:
    """The authors' rule: the norm of the task vector on the active elements by the norm of their signs, each rounded to the
    tensor's type; 0 where nothing is active."""
    stored = names.get(stream.name)
    if stored is None:
        raise UnknownNameError("tensor", stream.name, names, where=expert.location)
    spec, found = stream.spec, expert.specs[stored]
    if found.shape != spec.shape or not (found.dtype.is_float and spec.dtype.is_float):
        raise CheckpointError(
            f"{expert.location}: tensor {stream.name!r}: expected floats of the base's shape {list(spec.shape)}, "
            f"found {found}; give the expert that the files were made from"
        )
    squares = 0.0
    count = wrong = 0
    for number, (positions, negative) in enumerate(stream.chunks()):
        start = number * CHUNK
        size = min(CHUNK, spec.elements - start)
        delta = (floats(expert, stored, start, size) - floats(base, spec.name, start, size))[positions]
        wrong += int(np.count_nonzero(~np.where(negative, delta < 0, delta > 0)))
        squares += float(np.square(delta, dtype=np.float64).sum())
        count += positions.size
    if wrong:
        raise CheckpointError(
            f"{expert.location}: tensor {stream.name!r}: expected a task vector with the signs of {stream.path.name}, "
            f"found others in {wrong} of {count} active elements; give the base and the expert that the files were made "
            "from, or --scales or --knob"
        )
    if not count:
        return 0.0
    return _rounded(_rounded(math.sqrt(squares), spec.dtype) / _rounded(math.sqrt(count), spec.dtype), spec.dtype)


def _rounded(value: float, dtype: DType) -> float:
    """To nearest in a float type; infinity beyond its range."""
    with np.errstate(over="ignore"):
        if dtype.name != "BF16":
            return float(np.array(value).astype(dtype.storage))
        bits = np.array(value, np.float32).view(np.uint32)
        return float(((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32))
