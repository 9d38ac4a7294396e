"""A .safetensors file that `tsw export --to safetensors` wrote -> the .tsw file: `tswitch_tools.carrier` says what is in it.

    accepts, convert   the importer

Tensors are read chunk by chunk while they are encoded: memory is an encoded tensor for each thread, and one more. Nothing in
the file is believed: the document is checked, then that the file has exactly the tensors that follow from it, then bits and
counts as they are read, then the recorded digests.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from tswitch_format import BaseInfo, BuildResult
from tswitch_format.atomic import check_output
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.codecs import bits
from tswitch_format.container.index import WRITER, CoefficientKeys, FactorDType, Index, RouterKeys, SharedRole
from tswitch_format.container.segments import EncodedArray, EncodedEntry
from tswitch_format.container.tensors import TensorList
from tswitch_format.container.writer import ContainerWriter
from tswitch_format.errors import CheckpointError, OptionError, PayloadError, UnknownNameError
from tswitch_format.parallel import ordered_map, thread_count
from tswitch_format.switch.base import base_problems
from tswitch_format.switch.encode import (
    Vector,
    encode_dense,
    encode_masked,
    encode_removed,
    encode_ternary,
    encode_vector,
)
from tswitch_tools.carrier import (
    CHUNK,
    COEFFICIENTS,
    COLUMN_FACTORS,
    DATA,
    DOCUMENT_KEY,
    FACTOR_DTYPES,
    FEATURES,
    MASK,
    ROW_FACTORS,
    SIGN,
    VERSION,
    VERSION_KEY,
    Carried,
    CarriedArray,
    CarriedEntry,
    CarriedTask,
    all_tensors,
    array_tensor,
    bit_bytes,
    entry_tensors,
)
from tswitch_tools.carrier_document import AGAIN, from_json
from tswitch_tools.checkpoints.safetensors_reader import MAX_HEADER, SafetensorsCheckpoint
from tswitch_tools.importers import ImportOptions

NAME = "safetensors"
SUMMARY = "what 'tsw export --to safetensors' wrote, not other .safetensors files; needs no --base"
NEEDS_BASE = False

_SHOWN = 200  # characters of what a hostile file may have megabytes of
_OPTIONS = ("task", "profile", "base_id", "base_revision", "threads", "progress")  # others make something new

# Within a string of JSON the quotes would be escaped, and tensors are maps: so this is a key of __metadata__.
_KEY = re.compile(rb'"%s"\s*:\s*"' % VERSION_KEY.encode())


def accepts(source: Path) -> bool:
    """Whether it is a safetensors file whose metadata has our key."""
    try:
        if not source.is_file():
            return False
        with source.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length) if 2 <= length <= MAX_HEADER else b""
    except (OSError, ValueError):
        return False
    return header[:1] == b"{" and _KEY.search(header) is not None


def convert(source: Path, base: CheckpointReader | None, out: Path, options: ImportOptions) -> BuildResult:
    """See `Importer.convert`. A base is compared with the one that the file was made of, where one is given."""
    none = ImportOptions()
    for field in fields(options):
        if field.name not in _OPTIONS and getattr(options, field.name) != getattr(none, field.name):
            option = f"--{field.name.replace('_', '-')}"
            raise OptionError(f"{source}: {option}: everything is in the file already; leave it out")
    if not source.is_file():
        raise OptionError(f"{source}: expected a .safetensors file, found a folder or none; name the file")
    check_output(out, [source, *(base.paths if base is not None else ())])
    with contextlib.closing(SafetensorsCheckpoint([source], location=str(source))) as reader:
        carried = _read_document(reader, source)
        _check_tensors(carried, reader, source)
        if base is not None:
            _check_base(carried, base)
        if options.task is not None:
            carried = _only(carried, options.task, source)
        return _Import(reader, source, carried, options).write(out)


def _read_document(reader: CheckpointReader, source: Path) -> Carried:
    version = reader.metadata.get(VERSION_KEY)
    if version is None:
        raise CheckpointError(
            f"{source}: expected the key {VERSION_KEY!r} in __metadata__, which 'tsw export --to safetensors' writes, "
            "found none; if it is a checkpoint, use 'tsw pack'"
        )
    if version != VERSION:
        raise CheckpointError(
            f"{source}: __metadata__.{VERSION_KEY}: expected version {VERSION!r}, found {version[:80]!r}; "
            "update tswitch-format"
        )
    if DOCUMENT_KEY not in reader.metadata:
        raise CheckpointError(f"{source}: expected the key {DOCUMENT_KEY!r} in __metadata__, found none; {AGAIN}")
    return from_json(reader.metadata[DOCUMENT_KEY], source)


def _check_tensors(carried: Carried, reader: CheckpointReader, source: Path) -> None:
    """The file has the tensors that follow from its document, and no others."""
    left = dict(reader.specs)
    for spec in all_tensors(carried):
        found = left.pop(spec.name, None)
        if found != spec:
            shown = "none" if found is None else str(found)[:_SHOWN]
            raise CheckpointError(f"{source}: tensor {spec.name!r}: expected {spec}, found {shown}; {AGAIN}")
    for name, found in left.items():
        raise CheckpointError(
            f"{source}: tensor {name[:_SHOWN]!r}: expected none of that name, found {str(found)[:_SHOWN]}; {AGAIN}"
        )


def _check_base(carried: Carried, base: CheckpointReader) -> None:
    """Raise BaseMismatchError where it is not the base of the file."""
    tensors = TensorList.build(carried.base, carried.digests)
    info = BaseInfo(carried.base_id, carried.base_revision, tensors, carried.aliases)
    for problem in base_problems(info, base, digests=True):
        raise problem


def _only(carried: Carried, task: str, source: Path) -> Carried:
    """One task, and its vectors. What is recorded of the whole content does not hold for it, unless it is all."""
    names = [one.name for one in carried.tasks]
    if task not in names:
        raise UnknownNameError("task", task, names, where=str(source))
    if len(names) == 1:
        return carried
    chosen = carried.tasks[names.index(task)]
    vectors = {entry.vector for entry in chosen.entries if entry.kind == "masked"}
    samples = {one.number for one in carried.shared if one.role == FEATURES and one.spec.name == task}
    tables = {name: table for name, table in carried.tables.items() if set(table.tasks) <= {task}}
    coefficients = {one.number for one in carried.shared if one.role == COEFFICIENTS and one.spec.name in tables}
    used = sorted(vectors | samples | coefficients)
    entries = [
        replace(entry, vector=used.index(entry.vector)) if entry.kind == "masked" else entry for entry in chosen.entries
    ]
    return replace(
        carried,
        # Their numbers stay: they are in the names of tensors.
        shared=[carried.shared[number] for number in used],
        tasks=[replace(chosen, entries=entries)],
        content_id=None,
        router=carried.router if samples else None,
        tables=tables,
    )


def _nbytes(task: CarriedTask, entry: CarriedEntry) -> int:
    return sum(spec.nbytes for spec in entry_tensors(task.name, entry).values())


@dataclass(frozen=True)
class _Import:
    """A checked carrier on its way into a file."""

    reader: CheckpointReader
    source: Path
    carried: Carried
    options: ImportOptions

    def write(self, out: Path) -> BuildResult:
        carried, threads = self.carried, thread_count(self.options.threads)
        base = {spec.name: spec for spec in carried.base}
        kinds = dict.fromkeys(("ternary", "masked", "dense", "removed"), 0)
        total = len(carried.shared) + sum(len(task.entries) for task in carried.tasks)
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if self.options.progress:
                self.options.progress(done, total)

        with ContainerWriter(out, self._header()) as writer:
            for array in ordered_map(self._array, carried.shared, threads, nbytes=lambda one: one.spec.nbytes):
                writer.add_shared(array)
                advance()
                del array  # it would be in memory until the next one is
            for task in carried.tasks:
                writer.begin_task(task.name, recipe=task.recipe, checkpoint=task.checkpoint, metadata=task.metadata)
                made_of = partial(self._entry, task, base)
                for made in ordered_map(made_of, task.entries, threads, nbytes=partial(_nbytes, task)):
                    writer.add(made)
                    advance()
                    del made
                for entry in task.entries:
                    kinds[entry.kind] += 1
            size = writer.finish()
            found = writer.content_id
            if carried.content_id not in (None, found):
                self._fail("content id", carried.content_id.hex(), found.hex() if found else "none: digests are absent")
            writer.commit()
        return BuildResult(out, size, found.hex() if found else "", kinds["ternary"] + kinds["masked"], kinds["dense"])

    def _header(self) -> Index:
        carried, options = self.carried, self.options
        numbers = {spec.name: number for number, spec in enumerate(carried.base)}
        own = options.base_id is not None
        return Index(
            TensorList.build(carried.base, carried.digests),
            profile=options.profile,
            aliases={alias: numbers[target] for alias, target in carried.aliases.items()},
            base_id=options.base_id if own else carried.base_id,
            base_revision=options.base_revision if own else carried.base_revision,
            metadata=carried.metadata,
            writer=WRITER,
            router=RouterKeys(**asdict(carried.router)) if carried.router else None,
            coefficients={
                name: CoefficientKeys(np.array([numbers[row] for row in table.rows], "<u4"), table.tasks, table.clamp)
                for name, table in carried.tables.items()
            },
        )

    @property
    def _mapped(self) -> bool:
        return self.options.profile == "mapped"

    def _array(self, vector: CarriedArray) -> EncodedArray:
        name, dtype = array_tensor(vector).name, vector.spec.dtype

        def chunks() -> Iterator[NDArray[np.generic]]:
            for start in range(0, vector.spec.elements, CHUNK):
                count = min(CHUNK, vector.spec.elements - start)
                chunk = self._read(name, dtype.nbytes(start), dtype.nbytes(count)).view(dtype.storage)
                if vector.role == COEFFICIENTS and not np.isfinite(chunk).all():
                    self._fail(f"tensor {name!r}", "finite coefficients", "NaN or infinity")
                yield chunk

        made = encode_vector(vector.spec, chunks(), mapped=self._mapped)
        if made.sha256 != vector.sha256:
            self._fail(f"tensor {name!r}", f"content of SHA-256 {vector.sha256.hex()}", made.sha256.hex())
        return replace(made, role=SharedRole[vector.role.upper()])

    def _entry(self, task: CarriedTask, base: Mapping[str, TensorSpec], entry: CarriedEntry) -> EncodedEntry:
        tensors = {what: spec.name for what, spec in entry_tensors(task.name, entry).items()}
        made = self._encoded(base, entry, tensors)
        if entry.sha256 is None:
            return replace(made, sha256=None)
        if made.sha256 != entry.sha256:
            where = f"task {task.name!r}: tensor {entry.spec.name!r}"
            self._fail(where, f"content of SHA-256 {entry.sha256.hex()}", (made.sha256 or b"").hex())
        return made

    def _encoded(self, base: Mapping[str, TensorSpec], entry: CarriedEntry, tensors: Mapping[str, str]) -> EncodedEntry:
        spec, mapped = entry.spec, self._mapped
        if entry.kind == "removed":
            return encode_removed(spec)
        if entry.kind == "dense":
            return encode_dense(spec, self.reader, tensors[DATA], added=entry.added, mapped=mapped)
        there, knob = base[spec.name], np.float32(entry.knob)
        if entry.kind == "masked":
            vector = self.carried.shared[entry.vector]
            shared = Vector(entry.vector, vector.spec.dtype, vector.sha256)
            masks = self._masks(tensors[MASK], spec.elements)
            made = encode_masked(there, spec.dtype, knob, shared, masks, mapped=mapped)
            if made.active != entry.active:
                self._fail_count(tensors[MASK], entry.active, str(made.active))
            return made
        return encode_ternary(
            there,
            spec.dtype,
            knob,
            self._factors(entry, tensors.get(ROW_FACTORS)),
            self._factors(entry, tensors.get(COLUMN_FACTORS)),
            FactorDType[(entry.factor_dtype or "none").upper()],
            self._planes(entry, tensors[MASK], tensors[SIGN]),
            mapped=mapped,
        )

    def _factors(
        self, entry: CarriedEntry, name: str | None
    ) -> NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32] | None:
        if name is None:
            return None
        codes = self._read(name, 0, self.reader.specs[name].nbytes).view(
            FACTOR_DTYPES[entry.factor_dtype or ""].storage
        )
        if codes.dtype.kind == "f" and not np.isfinite(codes).all():
            self._fail(f"tensor {name!r}", "finite factors", "NaN or infinity")
        return codes

    def _masks(self, name: str, elements: int) -> Iterator[NDArray[np.uint8]]:
        """The bit string of each chunk."""
        for start in range(0, elements, CHUNK):
            count = min(CHUNK, elements - start)
            packed = self._read(name, start // 8, bit_bytes(count))
            self._check_tail(name, packed, count)
            yield packed

    def _planes(
        self, entry: CarriedEntry, mask: str, sign: str
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Active positions of each chunk, and which of them are negative: the sign plane goes on from chunk to chunk."""
        elements, done = entry.spec.elements, 0
        for number, packed in enumerate(self._masks(mask, elements)):
            positions = bits.unpack_positions(packed, min(CHUNK, elements - number * CHUNK))
            end = done + positions.size
            if end > entry.active:
                self._fail_count(mask, entry.active, "more")
            signs = self._read(sign, done // 8, bit_bytes(end) - done // 8)
            if end == entry.active:
                self._check_tail(sign, signs, end - done // 8 * 8)
            flags = np.unpackbits(signs, bitorder="little")[done % 8 : done % 8 + positions.size]
            yield positions, flags.view(np.bool_)
            done = end
        if done != entry.active:
            self._fail_count(mask, entry.active, str(done))

    def _check_tail(self, name: str, packed: NDArray[np.uint8], count: int) -> None:
        if not packed.size:
            return
        try:
            bits.check_tail(packed, count)
        except PayloadError as error:
            self._fail(f"tensor {name!r}", error.expected, error.found)

    def _read(self, name: str, start: int, nbytes: int) -> NDArray[np.uint8]:
        data = np.empty(nbytes, np.uint8)
        self.reader.read_into(name, start, data)
        return data

    def _fail_count(self, mask: str, expected: int, found: str) -> NoReturn:
        self._fail(f"tensor {mask!r}", f"{expected} ones, as 'active' says", found)

    def _fail(self, where: str, expected: str, found: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: {where}: expected {expected}, found {found}; {AGAIN}")
