"""A disk that forgets: what POSIX lets a crash leave behind.

    Change                 one change of a disk: Write, Resize, Link, Rename, Remove, SyncFile, SyncFolder
    Disk                   folders and files; `apply` makes a change as programs see it
    crashes                every state in which a crash after some changes may leave a disk

What is promised: bytes of a file that were there at its last fsync, names in a folder at the folder's last fsync, and that
a rename takes place or does not. All else may be there, be missing, be there in part or in another order, or be garbage.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Tree = dict[str, bytes | None]  # what lies at each path below the root: a file's bytes, None for a folder

ROOT = 0
SECTOR, PAGE = 512, 4096


@dataclass(frozen=True)
class Write:
    """Bytes written into a file."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    """A file cut or extended."""

    node: int
    length: int


@dataclass(frozen=True)
class Link:
    """A name for a new file or folder."""

    folder: int
    name: str
    node: int


@dataclass(frozen=True)
class Rename:
    """A name that takes the place of another in the same folder."""

    folder: int
    old: str
    name: str
    node: int


@dataclass(frozen=True)
class Remove:
    """A name taken away."""

    folder: int
    name: str


@dataclass(frozen=True)
class SyncFile:
    """fsync of a file."""

    node: int


@dataclass(frozen=True)
class SyncFolder:
    """fsync of a folder."""

    node: int


Names = Link | Rename | Remove
Data = Write | Resize
Sync = SyncFile | SyncFolder
Change = Names | Data | Sync


@dataclass
class Disk:
    """Numbered folders, of names, and files, of bytes. A new number is a new, empty file unless it is in `folders`."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Disk:
        """What lies below a real folder."""
        disk = cls()

        def enter(folder: int, path: Path) -> None:
            for child in sorted(path.iterdir()):
                node = disk.folders[folder][child.name] = len(disk.folders) + len(disk.files)
                if child.is_dir():
                    disk.folders[node] = {}
                    enter(node, child)
                else:
                    disk.files[node] = child.read_bytes()

        enter(ROOT, root)
        return disk

    def copy(self) -> Disk:
        return Disk({node: dict(names) for node, names in self.folders.items()}, dict(self.files))

    def apply(self, change: Change) -> None:
        match change:
            case Write(node, offset, data):
                self.files[node] = written(self.files[node], offset, data)
            case Resize(node, length):
                self.files[node] = self.files[node][:length].ljust(length, b"\0")
            case Link(folder, name, node):
                self.folders[folder][name] = node
                if node not in self.folders:
                    self.files.setdefault(node, b"")
            case Rename(folder, old, name, node):
                self.folders[folder].pop(old, None)
                self.folders[folder][name] = node
            case Remove(folder, name):
                self.folders[folder].pop(name, None)
            case SyncFile() | SyncFolder():
                pass

    def tree(self) -> Tree:
        found: Tree = {}

        def enter(folder: int, start: str) -> None:
            for name, node in self.folders[folder].items():
                if node in self.folders:
                    found[start + name] = None
                    enter(node, f"{start}{name}/")
                else:
                    found[start + name] = self.files.get(node, b"")

        enter(ROOT, "")
        return found


def written(content: bytes, offset: int, data: bytes) -> bytes:
    """What writing makes of a file."""
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def crashes(before: Disk, log: Sequence[Change], *, grain: int = SECTOR) -> Iterator[tuple[str, Tree]]:
    """Every state, with what it is called, that a crash after the changes may leave. `grain`: data is torn at
    every so many bytes."""
    durable = before.copy()
    data: dict[int, list[Data]] = {}
    names: list[Names] = []
    for change in log:
        match change:
            case Write() | Resize():
                data.setdefault(change.node, []).append(change)
            case SyncFile(node):
                for done in data.pop(node, []):
                    durable.apply(done)
            case SyncFolder(node):
                for name in names:
                    if name.folder == node:
                        durable.apply(name)
                names = [name for name in names if name.folder != node]
            case Link() | Rename() | Remove():
                names.append(change)
                if isinstance(change, Link) and change.node not in durable.folders:
                    durable.files.setdefault(change.node, b"")  # what it holds is another question than its name
    contents = {node: dict(_contents(durable.files[node], done, grain)) for node, done in data.items()}
    for kept in _subsets(len(names)):
        disk = durable.copy()
        for number in kept:
            disk.apply(names[number])
        which = f"names kept: {len(kept)} of {len(names)} {list(kept)}"
        for what, files in _mixtures(contents):
            disk.files.update(files)
            yield f"{which}; {what}", disk.tree()


def _subsets(count: int) -> list[tuple[int, ...]]:
    """Which of some pending changes survive: any, or where there are many, prefixes and all but or only one."""
    everything = range(count)
    if count <= 4:
        return [kept for size in range(count + 1) for kept in itertools.combinations(everything, size)]
    prefixes = [tuple(range(size)) for size in range(count + 1)]
    suffixes = [tuple(range(start, count)) for start in everything]
    all_but = [tuple(number for number in everything if number != left_out) for left_out in everything]
    return list(dict.fromkeys([*prefixes, *suffixes, *all_but, *((number,) for number in everything)]))


def _mixtures(contents: dict[int, dict[bytes, str]]) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Contents of all files at once: the others whole while one differs, and the others lost while one differs."""
    whole = {node: next(iter(variants)) for node, variants in contents.items()}
    lost = {node: list(variants)[min(1, len(variants) - 1)] for node, variants in contents.items()}
    yield "all data kept", whole
    yield "all data lost", lost
    for node, variants in contents.items():
        for content, what in variants.items():
            yield f"file {node}: {what}, others kept", {**whole, node: content}
            if len(contents) > 1:
                yield f"file {node}: {what}, others lost", {**lost, node: content}


def _contents(durable: bytes, pending: Sequence[Data], grain: int) -> Iterator[tuple[bytes, str]]:
    """What a file may hold, with what it is called: first all of what was not synced, then nothing of it, then parts."""

    def after(changes: Sequence[Data]) -> bytes:
        disk = Disk(files={ROOT: durable})
        for change in changes:
            shifted = (
                Write(ROOT, change.offset, change.data) if isinstance(change, Write) else Resize(ROOT, change.length)
            )
            disk.apply(shifted)
        return disk.files[ROOT]

    whole = after(pending)
    yield whole, "kept"
    yield durable, "lost"
    for number, change in enumerate(pending):
        yield after(pending[:number]), f"only the first {number} changes"
        yield after([*pending[:number], *pending[number + 1 :]]), f"all but change {number}"
        yield after([change]), f"only change {number}"
        if isinstance(change, Write):
            for cut in _places(len(change.data), grain):
                head = Write(change.node, change.offset, change.data[:cut])
                tail = Write(change.node, change.offset + cut, change.data[cut:])
                yield after([*pending[:number], head]), f"change {number} torn after {cut} bytes"
                yield after([*pending[:number], head, *pending[number + 1 :]]), f"change {number} torn, later ones kept"
                yield after([*pending[:number], tail]), f"change {number} without its first {cut} bytes"
    # The length is there before the data, or the other way round; blocks come in any order, or hold what was there before.
    size = len(whole)
    yield durable.ljust(size, b"\0")[:size], "length kept, data zero"
    noise = random.Random(size).randbytes(size)
    changed = bytes(a if a == b else c for a, b, c in zip(durable.ljust(size, b"\0"), whole, noise, strict=False))
    yield changed, "length kept, data garbage"
    yield whole[: len(durable)], "data kept, length lost"
    for place in _places(size, grain):
        yield whole[:place].ljust(size, b"\0"), f"zeros from byte {place} on"
        yield whole[:place] + noise[place:], f"garbage from byte {place} on"
        yield whole[:place], f"cut at byte {place}"
    for unit in (SECTOR, PAGE):
        blocks = [slice(start, start + unit) for start in range(0, size, unit)]
        for parity in (0, 1):
            yield _blocks(whole, durable, blocks[parity::2]), f"every other block of {unit}, from {parity} on, lost"
        for block in blocks:
            yield _blocks(whole, durable, [block]), f"the block of {unit} at byte {block.start} lost"


def _blocks(whole: bytes, durable: bytes, lost: Sequence[slice]) -> bytes:
    """The content with some blocks as they were before."""
    content, before = bytearray(whole), durable.ljust(len(whole), b"\0")
    for block in lost:
        content[block] = before[block][: len(content[block])]
    return bytes(content)


def _places(length: int, grain: int) -> list[int]:
    """Where to tear: after the first byte, in the middle, before the last, and in steps."""
    return sorted({place for place in (1, length // 2, length - 1, *range(grain, length, grain)) if 0 < place < length})
