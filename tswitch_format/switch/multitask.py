"""Several experts of one base -> one vector that they share, and a mask for each: TALL-masks and EMR-Merging.

    make_tall    vector = sum (or TIES merge) of the task vectors; mask where base + vector is near enough to the expert
    make_emr     vector = the largest of the entries that agree in sign; mask where an expert agrees; a scale for each

Experts are read once, tensor by tensor, in blocks that fit the cache (once more for each pass of TIES). A tensor's vector and
masks come out together, but a file has all vectors first: masks wait in an unnamed file beside the output, a bit an element.

Source: arXiv 2405.07813 (TALL-masks), 2405.17461 (EMR-Merging), 2306.01708 (TIES); shared arrays: spec section 5.5.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from os import PathLike, pread, pwrite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._closing import Closing
from tswitch_format._dtypes import DType
from tswitch_format._parallel import thread_count
from tswitch_format.atomic import check_output, output_errors
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.codecs import bits
from tswitch_format.container.segments import EncodedArray
from tswitch_format.container.writer import in_file_order
from tswitch_format.errors import OptionError
from tswitch_format.switch.build import BuildResult, MakeVector, Place, Progress, check_beforehand, write_tasks
from tswitch_format.switch.encode import encode_vector
from tswitch_format.switch.experts import Experts, Term, blocks
from tswitch_format.switch.given import GivenMask, GivenTask, round_vector, vector_dtype
from tswitch_format.switch.multitask_methods import Emr, Given, Method, MethodTensor, Sum, Tall, Ties

DEFAULT_LAMBDA = 0.4


def make_tall(
    base: Any,
    experts: Mapping[str, Any],
    path: str | PathLike[str],
    *,
    lambdas: float | Mapping[str, float] = DEFAULT_LAMBDA,
    ties: bool = False,
    masks: Callable[[str, str, int], NDArray[np.uint8]] | None = None,
    shared_dtype: str = "F32",
    dense: Sequence[str] = (),
    on_mismatch: str = "error",
    profile: str = "archive",
    base_id: str | None = None,
    base_revision: str | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Write to `path` a TALL mask of each expert over their multi-task vector (arXiv 2405.07813).

    mask = |base - expert| > |(base + vector) - expert| * lambda, strictly, in f32 (f64 for F64 tensors) and in this order of
    operations; vector = the sum of all expert - base, in torch's order (`total_of` says where it is not), or with `ties` their
    TIES merge (20 % of each, elected signs, sum). Restored: base + mask * vector.

    `experts`: name of the task -> a path, a mapping of arrays or an nn.Module. `lambdas`: one, or one a task (0.4 for those
    left out); the paper chooses among 0.2 to 0.6 on validation data. `masks(task, tensor, chunk)`, called from threads, gives
    masks that somebody else made instead: of each chunk of 2^20 elements the bit string, least significant bit first.
    `shared_dtype`: the vector is stored as "F32", "BF16" or "F16" (F64 tensors as F64 unless one of the latter two); masks are
    made before it is rounded. `dense`, `on_mismatch`: as in `pack`, for each expert. `progress` gets steps done and in all.

    Memory: blocks of all experts, and a tensor's encoded vector for each thread and one; with `ties` 0.5 MiB an expert. Disk
    beside the output: a bit an element and task while it is made. With `ties` every expert is read three times more, four
    for models with F64.

    Raises OptionError, CheckpointError (NonFiniteError) or OutputError; then nothing is written.
    """
    given = dict.fromkeys(experts, DEFAULT_LAMBDA) | (
        dict(lambdas) if isinstance(lambdas, Mapping) else dict.fromkeys(experts, lambdas)
    )
    for name, value in given.items():
        if name not in experts:
            raise OptionError(f"lambda: expected one of the tasks {', '.join(experts)}, found {name!r}")
        if not (isinstance(value, Real) and math.isfinite(value) and value >= 0):
            raise OptionError(f"lambda of task {name!r}: expected a finite number from 0 up, found {value!r}")
    place = Place(Path(path), profile, base_id, base_revision, dict(metadata or {}), thread_count(threads), progress)
    recipe = {"method": "tall-masks", "vector": "ties" if ties else "sum", "tasks": str(len(experts))}
    with Experts(base, experts, dense, on_mismatch) as all_experts:
        job = _Job(all_experts, shared_dtype, place)
        merge = Ties(all_experts, place.threads, job.count_more) if ties else Sum()
        if masks is not None:
            method: Method = Given(merge, lambda expert, tensor, chunk: masks(all_experts.names[expert], tensor, chunk))
            recipes = {name: {**recipe, "masks": "given"} for name in experts}
        else:
            method = Tall(merge, [given[name] for name in experts])
            recipes = {name: {**recipe, "lambda": repr(float(given[name]))} for name in experts}
        return job.run(method, recipes)


def make_emr(
    base: Any,
    experts: Mapping[str, Any],
    path: str | PathLike[str],
    *,
    shared_dtype: str = "F32",
    dense: Sequence[str] = (),
    on_mismatch: str = "error",
    profile: str = "archive",
    base_id: str | None = None,
    base_revision: str | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Write to `path` what EMR-Merging keeps of each expert: a mask over the unified vector, and a scale (arXiv 2405.17461).

    Of an element: sign = + where the mean of all expert - base is above 0, else -; mask = (expert - base) * sign > 0; vector =
    sign * the largest |expert - base| of those that agree. Of a task: scale = sum over tensors of mean |expert - base| / sum
    over tensors of mean |vector * mask| (means in f64, rounded to f32), stored as the knob. Restored: base + mask * (vector *
    scale). Parameters and errors as in `make_tall`.
    """
    place = Place(Path(path), profile, base_id, base_revision, dict(metadata or {}), thread_count(threads), progress)
    recipe = {"method": "emr-merging", "tasks": str(len(experts))}
    with Experts(base, experts, dense, on_mismatch) as all_experts:
        job = _Job(all_experts, shared_dtype, place)
        return job.run(Emr(all_experts.times), dict.fromkeys(experts, recipe))


class _Masks(Closing):
    """Masks that are made tensor by tensor and written task by task: an unnamed file beside `output`, a bit an element.

    `counts`: active elements of each (tensor, expert). Where no bit is set nothing is written: the file is sparse.
    """

    def __init__(self, output: Path, specs: Sequence[TensorSpec], experts: int) -> None:
        self.counts: dict[tuple[str, int], int] = {}
        self._starts: dict[str, int] = {}
        self._strides: dict[str, int] = {}
        end = 0
        for spec in specs:
            self._starts[spec.name] = end
            self._strides[spec.name] = lay.chunks_of(spec.elements) * lay.CHUNK // 8
            end += self._strides[spec.name] * experts
        self._output = output
        with output_errors(output):
            self._file = tempfile.TemporaryFile(dir=output.parent, prefix=".tsw-masks-")  # noqa: SIM115 - closed by `close`
            self._file.truncate(end)

    def put(self, name: str, expert: int, chunk: int, packed: NDArray[np.uint8]) -> None:
        """Keep the mask of one chunk."""
        count = bits.count_ones(packed)
        self.counts[name, expert] = self.counts.get((name, expert), 0) + count
        if count:
            at, data = self._at(name, expert, chunk), packed.data
            with output_errors(self._output):
                while len(data):
                    done = pwrite(self._file.fileno(), data, at)
                    at, data = at + done, data[done:]

    def get(self, spec: TensorSpec, expert: int, chunk: int) -> NDArray[np.uint8]:
        """The mask of one chunk."""
        size = bits.nbytes(min(lay.CHUNK, spec.elements - chunk * lay.CHUNK))
        with output_errors(self._output):
            return np.frombuffer(pread(self._file.fileno(), size, self._at(spec.name, expert, chunk)), np.uint8)

    def _at(self, name: str, expert: int, chunk: int) -> int:
        return self._starts[name] + expert * self._strides[name] + chunk * (lay.CHUNK // 8)

    def close(self) -> None:
        """Forget all masks."""
        self._file.close()


class _Job:
    """One file on its way. Raises what can be known to fail when it is made, before an expert is read."""

    def __init__(self, experts: Experts, shared: str, place: Place) -> None:
        self._experts = experts
        self._shared = shared
        self._place = place
        self._specs = [experts.base.specs[name] for name in in_file_order(experts.terms)]
        self._tensors: dict[str, MethodTensor] = {}
        self._there: set[str] = set()  # vectors that are not all zero
        self._entries = sum(map(len, experts.terms.values())) + sum(map(len, experts.dense.values()))
        self._before = 0  # steps before the file is begun
        for spec in self._specs:
            vector_dtype(spec, shared)
        check_output(place.path, (path for reader in experts.readers for path in reader.paths))
        check_beforehand(experts.base, place, experts.names)

    def count_more(self, done: int, total: int) -> None:
        """Take `done` of `total` steps before the file is begun into the progress."""
        self._before = total
        if self._place.progress:
            self._place.progress(done, total + len(self._experts.base.specs) + len(self._specs) + self._entries)

    def run(self, method: Method, recipes: Mapping[str, Mapping[str, str]]) -> BuildResult:
        """Write the file. `recipes`: by task."""
        experts, place = self._experts, self._place
        progress = place.progress
        if progress:
            before = self._before
            place = replace(place, progress=lambda done, total: progress(before + done, before + total))
        with _Masks(place.path, self._specs, len(experts.names)) as masks:
            vectors: dict[str, MakeVector] = {
                spec.name: partial(self._vector, method, masks, spec) for spec in self._specs
            }
            tasks = partial(self._tasks, method, masks, recipes)
            return write_tasks(experts.base, place, vectors, tasks, self._entries)

    def _vector(self, method: Method, masks: _Masks, spec: TensorSpec, mapped: bool) -> EncodedArray | None:
        """The vector of a tensor, None where it is zero and no expert has an entry for it; its masks go to `masks`."""
        dtype = vector_dtype(spec, self._shared)
        terms = self._experts.terms[spec.name]
        numbers = [term.number for term in terms]
        tensor = self._tensors[spec.name] = method.tensor(spec, numbers)
        chunks = (
            self._chunk(masks, spec, tensor, numbers, dtype, number) for number in range(lay.chunks_of(spec.elements))
        )
        made = encode_vector(TensorSpec(spec.name, dtype, spec.shape), chunks, mapped=mapped)
        return made if any(self._has_entry(masks, spec, term) for term in terms) else None

    def _has_entry(self, masks: _Masks, spec: TensorSpec, term: Term) -> bool:
        """Whether a task has an entry for a tensor: where its expert is not the base, by what its mask selects or by its type
        alone. What is merged belongs to the file also where no mask selects any of it: the first task by name has an entry."""
        if masks.counts.get((spec.name, term.number)) or term.dtype is not spec.dtype:
            return True
        terms = self._experts.terms[spec.name]
        if spec.name not in self._there or any(masks.counts.get((spec.name, other.number)) for other in terms):
            return False
        return term is min(terms, key=lambda other: self._experts.names[other.number])

    def _chunk(
        self, masks: _Masks, spec: TensorSpec, tensor: MethodTensor, numbers: Sequence[int], dtype: DType, chunk: int
    ) -> NDArray[np.generic]:
        start = chunk * lay.CHUNK
        elements = min(lay.CHUNK, spec.elements - start)
        out = np.empty(elements, dtype.storage)
        packed = np.empty((len(numbers), bits.nbytes(elements)), np.uint8)
        for at, count in blocks(start, start + elements):
            vector, found = tensor.block(*self._experts.vectors(spec, at, count))
            out[at - start : at - start + count] = round_vector(vector, dtype, spec)
            if vector.any():
                self._there.add(spec.name)
            first = (at - start) // 8
            for row, part in zip(packed, found, strict=True):
                row[first : first + part.size] = part
        for number, row in zip(numbers, packed, strict=True):
            masks.put(spec.name, number, chunk, row)
        return out

    def _tasks(self, method: Method, masks: _Masks, recipes: Mapping[str, Mapping[str, str]]) -> list[GivenTask]:
        experts = self._experts
        knobs = method.knobs([self._tensors[spec.name] for spec in self._specs], len(experts.names))
        tasks = []
        for number, name in enumerate(experts.names):
            switches: dict[str, GivenMask] = {}
            for spec in self._specs:
                term = next((t for t in experts.terms[spec.name] if t.number == number), None)
                if term is not None and self._has_entry(masks, spec, term):
                    switches[spec.name] = GivenMask(partial(masks.get, spec, number), knobs[number], term.dtype)
            tasks.append(GivenTask(name, switches, experts.dense[name], recipes[name]))
        return tasks
