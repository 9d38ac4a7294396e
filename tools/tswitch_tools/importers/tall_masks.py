"""TALL masks (arXiv 2405.07813): the files that `tswitch_tools.tall.reading` reads, in all their forms.

    Masks     the masks of all tasks by tensor, checked against the base
    convert   the importer

Such files hold masks alone: no names, shapes or lambda, no base, and not the vector that the masks select from. That comes from
the experts, whose differences are added up in the order of the file's tasks, or is given: a checkpoint with a tensor for each
of the base's, or an NPY file with the whole vector.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tswitch_format import BuildResult, GivenMask, GivenTask, GivenVector, UnknownNameError, build, make_tall
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader, borrow_checkpoint
from tswitch_format.errors import CheckpointError, OptionError
from tswitch_tools.importers import CHUNK, ImportOptions, floats, names_of
from tswitch_tools.tall.layout import VectorLayout
from tswitch_tools.tall.masks import FlatMask, NamedMask
from tswitch_tools.tall.reading import looks_like, open_masks

NAME = "tall-masks"
SUMMARY = "masks of TALL-masks: .npy, torch.save or pickle, of all tasks or a file each; with --experts or --multi-task"

_NPY = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"


def accepts(source: Path) -> bool:
    """See `Importer.accepts`."""
    return looks_like(source) and (not _starts_with(source, _ZIP) or _has_pickle(source))


def _has_pickle(source: Path) -> bool:
    """Whether a zip is one of torch.save, by its directory."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    return any(m.filename.endswith("/data.pkl") and m.compress_type == zipfile.ZIP_STORED for m in members)


def convert(source: Path, base: CheckpointReader, out: Path, options: ImportOptions) -> BuildResult:
    """See `Importer.convert`."""
    masks = Masks(source, base)
    for option, value in (("--expert", options.expert), ("--scales", options.scales), ("--knob", options.knob)):
        if value is not None:
            raise OptionError(
                f"{source}: {option}: TALL masks have no knobs; leave it out, and see --experts and --multi-task"
            )
    if options.task is not None:
        raise OptionError(
            f"{source}: --task: expected none, since its tasks have names; take one later with 'tsw extract'"
        )
    if bool(options.experts) == (options.multi_task is not None):
        raise OptionError(
            f"{source}: masks alone; expected their experts (--experts NAME=PATH for each of {', '.join(masks.tasks)}) or "
            "their multi-task vector (--multi-task), one of the two"
        )
    if options.ties and options.multi_task is not None:
        raise OptionError(f"{source}: --ties: the vector is given, nothing is merged; leave it out")
    files = [path for path in source.iterdir() if path.is_file()] if source.is_dir() else [source]
    check_output(out, files if options.multi_task is None else [*files, options.multi_task])
    if options.multi_task is None:
        return _over_experts(source, masks, base, out, options)
    with_vector = partial(_over_vector, masks, base, out, options)
    if _starts_with(options.multi_task, _NPY):
        return with_vector(_flat_vector(options.multi_task, masks.layout))
    with borrow_checkpoint(options.multi_task) as vector:
        return with_vector(_named_vector(vector, base, masks))


class Masks:
    """The masks of a file over a base. Raises CheckpointError where they do not fit it."""

    def __init__(self, source: Path, base: CheckpointReader) -> None:
        self._file = open_masks(source)
        self.layout = VectorLayout.of_checkpoint(base)
        self.tasks = list(self._file.tasks)
        self._names: dict[str, list[str]] = {}
        for name, spec in self.layout.tensors.items():
            self._names.setdefault(spec.name, []).append(name)
        self._counts: dict[tuple[str, str], int] = {}
        for task, mask in self._file.tasks.items():
            where = f"{source}: task {task!r}"
            if isinstance(mask, FlatMask):
                mask.check(self.layout.elements, where)
            else:
                self._check_named(mask, where)
            for name, spec in self.layout.tensors.items():
                if not spec.dtype.is_float and self.count(task, name):
                    raise CheckpointError(
                        f"{where}: tensor {name!r} ({spec}): expected no element of an integer tensor to be active, found "
                        "some; give the base that the masks were made from"
                    )
                if name != spec.name and not self._same(task, name, spec.name):
                    raise CheckpointError(
                        f"{where}: tensors {name!r} and {spec.name!r} are tied in the base: expected the same mask, found "
                        "another; untie them in base and experts"
                    )

    def _check_named(self, mask: NamedMask, where: str) -> None:
        for name, part in mask.tensors.items():
            spec = self.layout.tensors.get(name)
            if spec is None:
                raise UnknownNameError("tensor", name, self.layout.tensors, where=f"the base of {where}")
            shape = mask.shapes[name]
            if shape not in (spec.shape, (spec.elements,)):
                raise CheckpointError(
                    f"{where}: tensor {name!r}: expected a mask of shape {list(spec.shape)}, found {list(shape)}; give "
                    "the base that the masks were made from"
                )
            part.check(spec.elements, f"{where}: tensor {name!r}")

    def chunk(self, task: str, name: str, number: int) -> NDArray[np.uint8]:
        """One chunk of a tensor's mask, as `GivenMask.chunk` has it. Tensors that a mask does not name, by any of the names
        that they have where they are tied, are not active."""
        spec = self.layout.tensors[name]
        start = number * CHUNK
        count = min(CHUNK, spec.elements - start)
        mask = self._file.tasks[task]
        if isinstance(mask, FlatMask):
            return mask.window(self.layout.starts[name] + start, count)
        part = next((mask.tensors[tied] for tied in (name, *self._names[spec.name]) if tied in mask.tensors), None)
        return np.zeros(-(-count // 8), np.uint8) if part is None else part.window(start, count)

    def count(self, task: str, name: str) -> int:
        """Active elements of a tensor; counted once."""
        if (task, name) not in self._counts:
            chunks = (self.chunk(task, name, number) for number in self._chunks(name))
            self._counts[task, name] = sum(int(np.bitwise_count(chunk).sum(dtype=np.int64)) for chunk in chunks)
        return self._counts[task, name]

    def _same(self, task: str, name: str, other: str) -> bool:
        return all(
            np.array_equal(self.chunk(task, name, number), self.chunk(task, other, number))
            for number in self._chunks(name)
        )

    def _chunks(self, name: str) -> range:
        return range(-(-self.layout.tensors[name].elements // CHUNK))


def _over_experts(source: Path, masks: Masks, base: CheckpointReader, out: Path, options: ImportOptions) -> BuildResult:
    given = options.experts
    for name in masks.tasks:
        if name not in given:
            raise OptionError(
                f"{source}: expected an expert for each task, found none for {name!r}; add --experts {name}=PATH"
            )
    for name in given:
        if name not in masks.tasks:
            raise OptionError(
                f"{source}: expected experts of its tasks {', '.join(masks.tasks)}, found {name!r}; leave it out"
            )
    return make_tall(
        base,
        {name: given[name] for name in masks.tasks},
        out,
        ties=options.ties,
        masks=masks.chunk,
        shared_dtype=options.shared_dtype,
        profile=options.profile,
        base_id=options.base_id,
        base_revision=options.base_revision,
        threads=options.threads,
        progress=options.progress,
    )


@dataclass(frozen=True, slots=True)
class _Vector:
    """A multi-task vector. `read(tensor, start, count)`: its elements; `names`: of the tensors that it has."""

    names: Collection[str]
    read: Callable[[str, int, int], NDArray[np.float32] | NDArray[np.float64]]

    def any(self, name: str, elements: int) -> bool:
        """Whether it has a tensor and that is not all zero."""
        starts = range(0, elements, CHUNK) if name in self.names else ()
        return any(bool(self.read(name, start, min(CHUNK, elements - start)).any()) for start in starts)


def _over_vector(
    masks: Masks, base: CheckpointReader, out: Path, options: ImportOptions, vector: _Vector
) -> BuildResult:
    names = [name for name, spec in base.specs.items() if spec.dtype.is_float]
    active = {task: [name for name in names if masks.count(task, name)] for task in masks.tasks}
    used = {name for of_task in active.values() for name in of_task}
    # What is merged belongs to the file also where no mask selects any of it, as when it is made of experts.
    unselected = [name for name in names if name not in used and vector.any(name, base.specs[name].elements)]
    active[min(masks.tasks)] += unselected
    recipe = {"method": "tall-masks", "vector": "given", "masks": "given", "tasks": str(len(masks.tasks))}
    return build(
        base,
        out,
        [
            GivenTask(task, {name: GivenMask(partial(masks.chunk, task, name)) for name in of_task}, recipe=recipe)
            for task, of_task in active.items()
        ],
        vectors={name: _given_vector(vector, base, name, options.shared_dtype) for name in (*used, *unselected)},
        profile=options.profile,
        base_id=options.base_id,
        base_revision=options.base_revision,
        threads=options.threads,
        progress=options.progress,
    )


def _given_vector(vector: _Vector, base: CheckpointReader, name: str, shared_dtype: str) -> GivenVector:
    spec = base.specs[name]

    def chunk(number: int) -> NDArray[np.float32] | NDArray[np.float64]:
        start = number * CHUNK
        return vector.read(name, start, min(CHUNK, spec.elements - start))

    return GivenVector.of_floats(spec, shared_dtype, chunk)


def _named_vector(vector: CheckpointReader, base: CheckpointReader, masks: Masks) -> _Vector:
    stored = names_of(vector)
    for name, spec in base.specs.items():
        found = vector.specs.get(stored.get(name, ""))
        wrong = found is not None and (found.shape != spec.shape or not found.dtype.is_float)
        if spec.dtype.is_float and (wrong or (found is None and any(masks.count(task, name) for task in masks.tasks))):
            raise CheckpointError(
                f"{vector.location}: tensor {name!r}: expected the multi-task vector, floats {list(spec.shape)}, found "
                f"{found or 'none'}; give a vector of the same base"
            )
    return _Vector(stored, lambda name, start, count: floats(vector, stored[name], start, count))


def _flat_vector(path: Path, layout: VectorLayout) -> _Vector:
    try:
        flat = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: expected an NPY file of floats, found one that cannot be read ({error})"
        ) from error
    if flat.shape != (layout.elements,) or flat.dtype not in (np.dtype("<f4"), np.dtype("<f8")):
        raise CheckpointError(
            f"{path}: expected a vector of {layout.elements} f32 or f64 numbers, as the base has elements, found "
            f"{flat.dtype}{list(flat.shape)}; give a vector of the same base"
        )

    def read(name: str, start: int, count: int) -> NDArray[np.float32] | NDArray[np.float64]:
        first = layout.starts[name] + start
        return np.array(flat[first : first + count])

    return _Vector(layout.tensors, read)


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError:
        return False  # whoever opens it says why
