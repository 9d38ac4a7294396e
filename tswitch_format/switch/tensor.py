"""One tensor of one task: mask, sign, knob, slices and apply, decoded only when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format._checksum import sampled_digest
from tswitch_format._dtypes import BF16, DType, Floats, compute_dtype, dtype_of_array
from tswitch_format.checkpoint import TensorSpec
from tswitch_format.container.reader import Entry
from tswitch_format.container.tensors import Digests
from tswitch_format.errors import BaseMismatchError, OptionError
from tswitch_format.switch.apply import (
    Codes,
    Scale,
    apply_chunk,
    factor_values,
    proper_coefficient,
    signed_values,
    vector_values,
)

_RUN = 16  # chunks that are read at once


def runs(chunks: int) -> list[range]:
    """All chunks of a tensor in runs that are read at once."""
    return [range(first, min(first + _RUN, chunks)) for first in range(0, chunks, _RUN)]


@dataclass(frozen=True, slots=True)
class ActiveChunk:
    """Active elements in one chunk of a view: `positions` count from flat element `start` of the whole tensor.

    `kept`: which of the active elements of the whole chunk these are; None if all.
    """

    start: int
    positions: NDArray[np.int64]
    kept: slice | NDArray[np.bool_] | None = None


class Switch:
    """A view of one tensor of one task, or of some of its rows and columns: `sw[128:256]`, `sw[:, :64]`. Nothing is decoded
    before it is asked for.

    Valid as long as the file is open; what its methods return is the caller's own.
    """

    def __init__(
        self,
        entry: Entry,
        task: str,
        digests: Digests | None,
        base: TensorSpec,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ) -> None:
        self._entry = entry
        self._digests = digests
        self._base = base
        self._spec = entry.spec
        self._rows = rows
        self._columns = columns  # indices of the second dimension
        self.task = task

    # What it is

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self._spec.name

    @property
    def kind(self) -> str:
        """ "ternary", "masked", "dense" or "removed"."""
        return self._entry.kind.name.lower()

    @property
    def is_additive(self) -> bool:
        """Whether it has a mask and adds to the base: kinds "ternary" and "masked"."""
        return self._entry.kind in lay.SWITCH_KINDS

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        shape = self._spec.shape
        if self._rows is not None:
            shape = (self._rows[1] - self._rows[0], *shape[1:])
        if self._columns is not None:
            shape = (shape[0], self._columns[1] - self._columns[0], *shape[2:])
        return shape

    @property
    def dtype(self) -> str:
        """Element type of the tensor in the expert, by its safetensors name such as "BF16"."""
        return self._entry.dtype.name

    @property
    def elements(self) -> int:
        """Number of elements of the view."""
        return math.prod(self.shape)

    @property
    def active(self) -> int:
        """Number of active elements. Of a slice: decodes its chunks."""
        if self.is_whole:
            return self._entry.active
        return sum(chunk.positions.size for chunk in self.chunks())

    @property
    def density(self) -> float:
        """Share of active elements, 0 for an empty view."""
        return self.active / self.elements if self.elements else 0.0

    @property
    def knob(self) -> float:
        """The knob, an f32 value."""
        return float(self._entry.knob)

    @property
    def row_factors(self) -> NDArray[np.float32] | None:
        """Factors of the view's rows, f32, or None where the entry has none."""
        return self._entry_factors(lay.Role.ROW_FACTORS)

    @property
    def column_factors(self) -> NDArray[np.float32] | None:
        """Factors of the view's columns (all dimensions but the first taken as one), f32, or None."""
        columns = self._entry_factors(lay.Role.COLUMN_FACTORS)
        return None if columns is None else columns[slice(*self._column_range())]

    @property
    def stored_bytes(self) -> int:
        """Encoded bytes of the whole tensor in the file."""
        return self._entry.stored_bytes

    def __repr__(self) -> str:
        return f"<Switch {self.name!r} {self.kind} {self.dtype}{list(self.shape)} task {self.task!r}>"

    # Slices

    def __getitem__(self, key: slice | tuple[slice, slice]) -> Switch:
        """Some indices of the first dimension, `sw[128:256]`, or of the first two, `sw[:, :64]`, all of step 1.

        Reads only the chunks that the rows overlap. Raises OptionError.
        """
        slices = key if isinstance(key, tuple) else (key,)
        if not 1 <= len(slices) <= 2 or not all(isinstance(s, slice) and s.step in (None, 1) for s in slices):
            raise OptionError(
                f"tensor {self.name!r}: expected slices of rows and columns with step 1, such as sw[128:256] or sw[:, :64], "
                f"found {' '.join(repr(key).split())[:60]}"
            )
        if len(slices) > len(self.shape):
            raise OptionError(
                f"tensor {self.name!r}: expected at most {len(self.shape)} slices, as it has dimensions, found {len(slices)}"
            )
        views = [self._rows, self._columns]
        for axis, wanted in enumerate(slices):
            start, stop, _ = wanted.indices(self.shape[axis])
            if (start, stop) != (0, self.shape[axis]):
                first = (views[axis] or (0, 0))[0]
                views[axis] = (first + start, first + max(start, stop))
        return Switch(self._entry, self.task, self._digests, self._base, *views)

    def shard(self, rank: int, world_size: int, dim: int = 0) -> Switch:
        """The part of one of `world_size` ranks, from 0, along dimension 0 or 1, as tensor parallelism cuts it.

        Rank r gets the indices from `r * size // world_size` to `(r + 1) * size // world_size`. Raises OptionError.
        """
        if not 0 <= rank < world_size:
            raise OptionError(f"shard: expected a rank from 0 to {world_size - 1}, found {rank}")
        if dim not in range(min(2, len(self.shape))):
            raise OptionError(
                f"tensor {self.name!r}: expected dimension 0 or 1 of shape {list(self.shape)}, found {dim}; others are not cut"
            )
        size = self.shape[dim]
        part = slice(rank * size // world_size, (rank + 1) * size // world_size)
        return self[part] if dim == 0 else self[:, part]

    # What it holds

    def mask(self) -> NDArray[np.bool_]:
        """Activation mask: bool, shape of the view."""
        out = np.zeros(self.elements, np.bool_)
        for chunk in self.chunks():
            out[self.places(chunk)] = True
        return out.reshape(self.shape)

    def sign(self) -> NDArray[np.int8]:
        """Polarity: int8, shape of the view; -1, 0 (not active) or +1. Of a masked entry: that of the shared vector."""
        out = np.zeros(self.elements, np.int8)
        for chunk in self.chunks():
            if self._entry.kind is lay.Kind.MASKED:
                values = vector_values(np.float32(1), 1.0, self._base.dtype, *self._shared(chunk))
                out[self.places(chunk)] = (values > 0).astype(np.int8) - (values < 0)  # of NaN 0
            else:
                out[self.places(chunk)] = 1 - 2 * self.negative(chunk).astype(np.int8)
        return out.reshape(self.shape)

    def vector(self) -> NDArray[Any]:
        """The shared vector of a masked entry, which other tasks of the file use too: shape of the view, storage dtype (BF16
        as uint16 bit patterns). Raises OptionError for other kinds."""
        if self._entry.kind is not lay.Kind.MASKED:
            raise OptionError(f"tensor {self.name!r} is {self.kind}: it has no shared vector; use delta()")
        return Switch(self._entry.vector, self.task, None, self._base, self._rows, self._columns).data()

    def indices(self, out: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Active elements as flat indices into the view in C order, ascending: int64[active].

        `out`: room for that many or more, whose front is filled and returned. A loop over tensors that gives the same room
        each time saves what the system takes for new memory, which can be more than decoding does. Raises OptionError.
        """
        self._check_mask()
        count = self.active
        if out is None:
            out = np.empty(count, np.int64)
        elif out.dtype != np.int64 or out.ndim != 1 or out.size < count or not out.flags.carray:
            raise OptionError(
                f"tensor {self.name!r}: expected room for {count} indices, int64[{count}] or more, contiguous and writable, "
                f"found {out.dtype}{list(out.shape)}, strides {list(out.strides)}"
                f"{'' if out.flags.writeable else ', read-only'}"
            )
        found = out[:count]
        if not self.is_whole:
            parts = [self.places(chunk) for chunk in self.chunks()]
            np.concatenate([np.empty(0, np.int64), *parts], out=found)
            return found
        done = 0
        for chunks in runs(self.chunk_count):
            here = found[done : done + sum(self._entry.mask_counts(chunks))]
            self._entry.mask_positions_into(chunks, here)
            done += here.size
        return found

    def delta(self, coefficient: float = 1.0) -> Floats:
        """What the switch adds: f32 (f64 for an F64 base), shape of the view."""
        out: Floats = np.zeros(self.elements, compute_dtype(self._base.dtype))
        for chunk, values in self.terms(coefficient):
            out[self.places(chunk)] = values
        return out.reshape(self.shape)

    def data(self) -> NDArray[Any]:
        """The tensor of a dense entry: shape of the view, storage dtype (BF16 as uint16 bit patterns)."""
        self.check_dense()
        start, stop = self._range()
        dtype = self._entry.dtype
        if dtype.bits < 8 and not self.is_whole:
            raise OptionError(f"tensor {self.name!r}: parts of {dtype.name} are not whole bytes; use the whole tensor")
        out = np.empty(dtype.nbytes(stop - start), np.uint8)
        for chunk in self._chunk_numbers():
            data = self._entry.data(chunk)
            begin = chunk * lay.CHUNK
            low, high = max(start, begin), min(stop, begin + lay.CHUNK)
            out[dtype.nbytes(low - start) : dtype.nbytes(high - start)] = data[
                dtype.nbytes(low - begin) : dtype.nbytes(high - begin)
            ]
        made = out.view(dtype.storage)
        if self._columns is None:
            return made.reshape(self.shape if dtype.bits >= 8 else (-1,))
        rows = made.reshape(self.shape[0], *self._spec.shape[1:])
        return rows[:, slice(*self._columns)].copy()

    # Applying

    def apply(
        self,
        array: NDArray[Any],
        coefficient: float = 1.0,
        *,
        out: NDArray[Any] | None = None,
        check_base: bool = True,
    ) -> NDArray[Any]:
        """The expert's tensor from the base's: base + coefficient * switch (spec section 10).

        `array`: the base's elements, shape of the view, in the base's dtype; BF16 as uint16 bit patterns or ml_dtypes
        bfloat16. `out`: where to put the result, `array` itself for in place. Returns a new array, or `out`, of the
        entry's dtype, with coefficient 0 of the base's. A dense entry gives its own tensor. `check_base` compares the
        sampled digest (of whole tensors; a slice cannot be checked); without it, `array` may also be of another float
        type, which the result then has too.

        Raises BaseMismatchError for another base, OptionError for an `out` that does not fit or a removed tensor.
        """
        if self._entry.kind is lay.Kind.REMOVED:
            raise OptionError(f"tensor {self.name!r} is removed in task {self.task!r}: there is nothing to apply")
        if self._entry.kind is lay.Kind.DENSE:
            self._check_out(out, self._entry.dtype)
            return self._give(self.data(), out)
        base, target = self._check_array(array, check_base)
        coefficient = proper_coefficient(coefficient, base, f"tensor {self.name!r}")
        if coefficient == 0:  # leaves the tensor as it is, its type too (spec section 10)
            target = base
        self._check_out(out, target)
        # Everything is decoded before the first element changes: a damaged chunk must not leave `out` half applied.
        terms = list(self.terms(coefficient, base)) if coefficient != 0 else []
        result = np.ascontiguousarray(array).reshape(-1).view(base.storage)
        in_place = base is target and out is array and np.may_share_memory(result, array)
        if base is target and not in_place:
            result = result.copy()
        made = result if base is target else np.empty(result.size, target.storage)
        if base is target:
            for chunk, values in terms:
                apply_chunk(result, base, target, [(self.places(chunk), values)])
        else:
            self._convert(result, base, made, terms)
        if in_place:
            return array
        shaped = made.reshape(self.shape)
        if base is target:
            shaped = shaped.view(array.dtype)
        return self._give(shaped, out)

    def _convert(
        self, elements: NDArray[Any], base: DType, out: NDArray[Any], terms: Sequence[tuple[ActiveChunk, Floats]]
    ) -> None:
        """Apply to raw elements of the view and round all to the entry's dtype, a run of a chunk's length at a time."""
        places = np.concatenate([np.empty(0, np.int64), *(self.places(chunk) for chunk, _ in terms)])
        values = np.concatenate([np.empty(0, compute_dtype(base)), *(values for _, values in terms)])
        for start in range(0, out.size, lay.CHUNK):
            run = slice(start, start + lay.CHUNK)
            low, high = np.searchsorted(places, (start, start + lay.CHUNK))
            moved = [(places[low:high] - start, values[low:high])]
            out[run] = apply_chunk(elements[run], base, self._entry.dtype, moved)

    def _check_out(self, out: NDArray[Any] | None, dtype: DType) -> None:
        if out is None:
            return
        shape = self.shape if dtype.bits >= 8 else (dtype.nbytes(self.elements),)
        same = dtype_of_array(out) is dtype or out.dtype == dtype.storage
        if out.shape != shape or not same or not out.flags.writeable or out.dtype.byteorder == ">":
            kind = "" if out.flags.writeable else "read-only "
            raise OptionError(
                f"tensor {self.name!r}: expected a writable out of {dtype.name}{list(shape)}, "
                f"found a {kind}one of {out.dtype}{list(out.shape)}"
            )

    def _give(self, made: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
        if out is None:
            return made
        out[...] = made.view(out.dtype)
        return out

    def _check_array(self, array: NDArray[Any], check_base: bool) -> tuple[DType, DType]:
        """Element types of `array` and of the result."""
        if array.shape != self.shape:
            raise self._other_base(f"shape {list(self.shape)}", str(list(array.shape)))
        dtype = dtype_of_array(array)
        wanted = self._base.dtype
        if array.dtype.byteorder == ">":
            raise self._other_base(f"dtype {wanted.name}, little-endian", f"{array.dtype}, big-endian")
        if wanted is BF16 and array.dtype == np.uint16:
            dtype = BF16
        if dtype is not wanted:
            if not check_base and dtype is not None and dtype.is_float:
                return dtype, dtype
            raise self._other_base(f"dtype {wanted.name}", str(array.dtype))
        if check_base and self.sampled_digest is not None:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

            def read(start: int, out: NDArray[np.uint8]) -> None:
                out[:] = flat[start : start + out.size]

            if sampled_digest(flat.size, read) != self.sampled_digest:
                raise self._other_base("the recorded content", "another", "TSW-902")
        return wanted, self._entry.dtype

    def _other_base(self, expected: str, found: str, rule: str = "TSW-901") -> BaseMismatchError:
        fix = "give the base that the file was made from, or pass check_base=False to go on"
        return BaseMismatchError("apply", tensor=self.name, expected=expected, found=found, fix=fix, rule=rule)

    # For the modules beside this one

    def check_dense(self) -> None:
        """Raise OptionError unless the entry is dense."""
        if self._entry.kind is not lay.Kind.DENSE:
            raise OptionError(f"tensor {self.name!r} is {self.kind}, not dense; use delta()")

    @property
    def sampled_digest(self) -> bytes | None:
        """The recorded sampled digest of the base's tensor, where the view is all of it."""
        return self._digests.sampled if self._digests is not None and self.is_whole else None

    @property
    def view_scale(self) -> Scale:
        """Knob and factors of the view as if it were a tensor of its own."""
        columns = self.scale.columns
        first, stop = self._column_range()
        return Scale(
            self.scale.knob, self.scale.rows, None if columns is None else columns[first:stop], max(stop - first, 1)
        )

    @property
    def entry(self) -> Entry:
        """What the file has for the whole tensor."""
        return self._entry

    @property
    def base(self) -> TensorSpec:
        """The base's record, or that of a tensor that the base lacks."""
        return self._base

    @property
    def chunk_count(self) -> int:
        """Number of chunks of the whole tensor."""
        return self._entry.chunks

    @property
    def is_whole(self) -> bool:
        """Whether it is no slice of its tensor."""
        return self._rows is None and self._columns is None

    @cached_property
    def scale(self) -> Scale:
        """Knob and factors of the view's rows and of all columns, decoded once."""
        return Scale(
            self._entry.knob,
            self._entry_factors(lay.Role.ROW_FACTORS),
            self._entry_factors(lay.Role.COLUMN_FACTORS),
            self._entry.column_count,
            self._rows[0] if self._rows else 0,
        )

    @property
    def target(self) -> DType:
        """Element type of the tensor in the expert."""
        return self._entry.dtype

    @property
    def content(self) -> bytes:
        """Digest of the entry's content (section 11.3), as recorded or else computed."""
        return self._entry.sha256 or self._entry.content_digest()

    def dense_chunk(self, number: int) -> NDArray[np.uint8]:
        """Bytes of one chunk of a dense entry."""
        return self._entry.data(number)

    def chunks(self) -> Iterator[ActiveChunk]:
        """Active elements of the view, chunk by chunk."""
        for number in self._chunk_numbers():
            yield self.chunk(number)

    def chunk(self, number: int) -> ActiveChunk:
        """Active elements of the view in one chunk of the tensor."""
        self._check_mask()
        begin = number * lay.CHUNK
        positions = self._entry.mask_positions(number)
        if self.is_whole:
            return ActiveChunk(begin, positions)
        start, stop = self._range()
        low, high = np.searchsorted(positions, (start - begin, stop - begin))
        kept: slice | NDArray[np.bool_] = slice(low, high)
        if self._columns is not None:
            inside, columns = self._column_range(), (positions + begin) % self._entry.column_count
            kept = (columns >= inside[0]) & (columns < inside[1])
            kept[:low] = kept[high:] = False
        return ActiveChunk(begin, positions[kept], kept)

    def _check_mask(self) -> None:
        if not self.is_additive:
            raise OptionError(f"tensor {self.name!r} is {self.kind}: it has no mask; use data()")

    def negative(self, chunk: ActiveChunk) -> NDArray[np.bool_]:
        """For each of the active elements of a chunk of a ternary entry: whether its sign bit is 1."""
        flags = self._entry.sign_flags(chunk.start // lay.CHUNK)
        return flags if chunk.kept is None else flags[chunk.kept]

    def _shared(self, chunk: ActiveChunk) -> tuple[NDArray[np.generic], DType]:
        """The shared vector's elements where those of a chunk are active, and their type."""
        vector = self._entry.vector
        elements = vector.data(chunk.start // lay.CHUNK).view(vector.dtype.storage)
        return elements.take(chunk.positions), vector.dtype

    def places(self, chunk: ActiveChunk) -> NDArray[np.int64]:
        """Where the active elements of a chunk lie in the view: flat indices in C order, ascending."""
        start, _ = self._range()
        places = chunk.positions + (chunk.start - start)
        if self._columns is None:
            return places
        first, stop = self._column_range()
        rows, columns = np.divmod(places, max(self._entry.column_count, 1))
        return rows * (stop - first) + columns - first

    def terms(self, coefficient: float, base: DType | None = None) -> Iterator[tuple[ActiveChunk, Floats]]:
        """Chunks with what is added to their active elements, for a base of type `base` or else the recorded one."""
        dtype = base or self._base.dtype
        coefficient = proper_coefficient(coefficient, dtype, f"tensor {self.name!r}")
        for chunk in self.chunks():
            yield chunk, self.values(chunk, coefficient, dtype)

    def values(self, chunk: ActiveChunk, coefficient: float, dtype: DType) -> Floats:
        """What is added to the active elements of a chunk, in the arithmetic type of a base of type `dtype`."""
        if self._entry.kind is lay.Kind.MASKED:
            return vector_values(self._entry.knob, coefficient, dtype, *self._shared(chunk))
        return signed_values(self.scale, coefficient, dtype, chunk.start, chunk.positions, self.negative(chunk))

    def _entry_factors(self, role: lay.Role) -> NDArray[np.float32] | None:
        rows = self._rows if role is lay.Role.ROW_FACTORS and self._rows else (0, None)
        codes: Codes | None = self._entry.factor_codes(role, *rows)
        return None if codes is None else factor_values(codes)

    def _range(self) -> tuple[int, int]:
        """Flat elements of the whole tensor from the view's first row to its last, all columns."""
        if self._rows is None:
            return 0, self._spec.elements
        length = self._entry.column_count
        return self._rows[0] * length, self._rows[1] * length

    def _column_range(self) -> tuple[int, int]:
        """The view's columns, all dimensions but the first taken as one."""
        if self._columns is None:
            return 0, self._entry.column_count
        inner = math.prod(self._spec.shape[2:])
        return self._columns[0] * inner, self._columns[1] * inner

    def _chunk_numbers(self) -> range:
        start, stop = self._range()
        return range(start // lay.CHUNK, lay.chunks_of(stop)) if self.elements else range(0)
