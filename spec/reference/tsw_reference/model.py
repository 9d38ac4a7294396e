"""What a file holds, as dataclasses. Planes and arrays stay encoded until `File.content` is asked for them.

So what a hostile file makes a reader keep is bounded by the file's own length: content of 64 MiB at most is kept
decoded, all else is decoded again when it is asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from . import codecs
from .layout import FACTOR_DTYPES, FEATURES, HAS_COLUMN_FACTORS, HAS_ROW_FACTORS

KEPT_BYTES = 1 << 26


@dataclass(slots=True)
class Tensor:
    """A record of a tensor list; `number` is the tensor number of section 5.3, `elements` its N."""

    number: int
    name: str
    dtype: int
    shape: tuple[int, ...]
    elements: int
    sha256: bytes | None
    sampled: bytes | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment record; `size` is how many bits (planes) or bytes (the others) it decodes to."""

    offset: int
    length: int
    crc32c: int
    count: int
    role: int
    codec: int
    parameter: int
    size: int
    where: str


@dataclass(slots=True)
class Shared:
    """A shared array (section 5.5): its record, what it is, and its segments."""

    tensor: Tensor
    role: int
    sha256: bytes
    where: str
    data: list[Segment] = field(default_factory=list)

    @property
    def segments(self) -> Iterator[Segment]:
        """All segments, in the order of section 8."""
        yield from self.data


@dataclass(slots=True)
class Entry:
    """An entry record, the tensor that it names and its segments; `vector` is what a masked entry selects from."""

    tensor: Tensor
    kind: int
    dtype: int
    factor_dtype: int
    flags: int
    knob: bytes
    active: int
    sha256: bytes | None
    where: str
    vector: Shared | None = None
    row_factors: list[Segment] = field(default_factory=list)
    column_factors: list[Segment] = field(default_factory=list)
    masks: list[Segment] = field(default_factory=list)
    signs: list[Segment] = field(default_factory=list)
    data: list[Segment] = field(default_factory=list)

    @property
    def factor_bytes(self) -> int:
        """Bytes of a stored factor."""
        return FACTOR_DTYPES[self.factor_dtype][1]

    @property
    def rows(self) -> int:
        """How many row factors there are."""
        return self.tensor.shape[0] if self.flags & HAS_ROW_FACTORS else 0

    @property
    def columns(self) -> int:
        """How many column factors there are."""
        return self.tensor.elements // self.tensor.shape[0] if self.flags & HAS_COLUMN_FACTORS else 0

    @property
    def segments(self) -> Iterator[Segment]:
        """All segments, in the order of section 8."""
        for group in (self.row_factors, self.column_factors, self.masks, self.signs, self.data):
            yield from group


@dataclass(slots=True)
class Task:
    """A task: its name, free maps and entries."""

    name: str
    recipe: dict[str, str]
    checkpoint: dict[str, str]
    metadata: dict[str, str]
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Router:
    """Which tasks a sample needs (section 5.6); its samples are the shared arrays of role features."""

    k: int
    metric: str
    extractor: str
    preprocessing: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of coefficients (section 5.7): its array, the base tensor of each row, the task of each column, the 8 bytes of
    its clamp."""

    array: Shared
    rows: tuple[Tensor, ...]
    tasks: tuple[Task, ...]
    clamp: bytes | None

    @property
    def name(self) -> str:
        """The name of the table and of its array."""
        return self.array.tensor.name


@dataclass(slots=True)
class Base:
    """The base model: its tensors in the order of their numbers, and its aliases."""

    id: str | None
    revision: str | None
    aliases: dict[str, int]
    tensors: list[Tensor]


@dataclass(slots=True)
class File:
    """A whole file. `data` are its bytes."""

    data: bytes
    minor: int
    profile: str
    writer: str
    metadata: dict[str, str]
    content_id: bytes | None
    base: Base
    extra: list[Tensor]
    shared: list[Shared]
    tasks: list[Task]
    router: Router | None = None
    tables: list[Table] = field(default_factory=list)
    _kept: dict[int, bytes] = field(default_factory=dict, repr=False)
    _kept_bytes: int = field(default=0, repr=False)

    @property
    def version(self) -> str:
        """Major and minor version."""
        return f"1.{self.minor}"

    def content(self, segment: Segment) -> bytes:
        """The decoded bytes of a segment: a plane's bit string, or elements."""
        kept = self._kept.get(id(segment))
        if kept is not None:
            return kept
        decoded = codecs.decode(
            self.data[segment.offset : segment.offset + segment.length],
            segment.codec,
            segment.parameter,
            segment.size,
            segment.count,
            segment.where,
            segment.offset,
        )
        if self._kept_bytes + len(decoded) <= KEPT_BYTES:
            self._kept[id(segment)] = decoded
            self._kept_bytes += len(decoded)
        return decoded

    def all_entries(self) -> Iterator[Entry]:
        """The entries of all tasks, in order."""
        for task in self.tasks:
            yield from task.entries

    def features(self) -> list[Shared]:
        """The samples of the router, one array a task, in the order of the file."""
        return [array for array in self.shared if array.role == FEATURES]

    def holders(self) -> Iterator[Shared | Entry]:
        """What has segments, in the order in which those lie in the file."""
        yield from self.shared
        yield from self.all_entries()
