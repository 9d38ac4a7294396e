"""Is this the base that the file was made from? Spec section 10: names, dtypes, shapes and sampled digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable

import numpy as np
from numpy.typing import NDArray

from tswitch_format._checksum import sampled_digest
from tswitch_format.checkpoint import CheckpointReader, TensorSpec
from tswitch_format.container.tensors import Digests
from tswitch_format.errors import BaseMismatchError, near_hint
from tswitch_format.switch.file import BaseInfo

Sampled = Callable[[str], bytes]

_BLOCK = 1 << 21  # bytes: stays in the cache between reading and hashing


def stored_name(reader: CheckpointReader, name: str) -> str | None:
    """The name in `reader.specs` under which a checkpoint has the tensor `name`, or None."""
    if name in reader.specs:
        return name
    return reader.aliases.get(name)


def file_name(info: BaseInfo, reader: CheckpointReader, name: str) -> str | None:
    """The name in `info` of a tensor that the checkpoint has as `name`, or None.

    Which of the names of tied tensors is listed, and under which the data lie, differs between containers of one model.
    """
    target = info.aliases.get(name, name)
    if target in info:
        return target
    stored = stored_name(reader, name)
    tied = (other for other in (*reader.specs, *reader.aliases) if stored_name(reader, other) == stored)
    targets = (info.aliases.get(other, other) for other in tied)
    return next((target for target in targets if target in info), None)


def _stored_as(info: BaseInfo, reader: CheckpointReader, name: str) -> str | None:
    """The name in `reader.specs` under which a checkpoint has a tensor of `info`, by any of the names it has there."""
    found = stored_name(reader, name)
    if found is None:
        names = (stored_name(reader, alias) for alias, target in info.aliases.items() if target == name)
        found = next((stored for stored in names if stored is not None), None)
    return found


def base_problems(
    info: BaseInfo,
    reader: CheckpointReader,
    *,
    digests: bool,
    full: bool = False,
    any_float: bool = False,
    dtype_advice: str = "",
    added: Container[str] = (),
    sampled: Sampled | None = None,
) -> Iterable[BaseMismatchError]:
    """Every way in which `reader` is not the base of `info`, to be raised or reported.

    Names, dtypes and shapes always; with `digests` also the sampled digests; with `full` the SHA-256 of every tensor.
    `any_float` takes another float type for a recorded one; `dtype_advice` is what to do where that is the difference.
    `added`: names that the base need not have, since tasks add them, but a model in memory may. `sampled` gives the sampled
    digest of a tensor of `reader.specs` where it need not be read anew.
    """
    sampled = sampled or (lambda name: sampled_digest(reader.specs[name].nbytes, _reading(reader, name)))
    origin = f" ({'@'.join(part for part in (info.id, info.revision) if part)})" if info.id else ""
    fix = f"give the base that the file was made from{origin}"
    expected = set(info.keys()) | set(info.aliases)
    names = {*reader.specs, *reader.aliases}
    near = _Near()
    for name in sorted(names - expected):
        if file_name(info, reader, name) is None and name not in added:
            yield _mismatch(reader, name, "no tensor of that name", f"one{near(name, info)}", fix, "TSW-901")
    for name in (*info.tensor_list.names, *sorted(info.aliases)):
        target = info.aliases.get(name)
        stored = stored_name(reader, name) if target else _stored_as(info, reader, name)
        if target is not None and stored in (None, _stored_as(info, reader, target)):
            continue  # tied in this checkpoint as well; safetensors files leave such names out
        if stored is None:
            yield _mismatch(reader, name, "the tensor", f"none{near(name, sorted(names))}", fix, "TSW-901")
            continue
        spec, found = info.spec(name), reader.specs[stored]
        alike = spec.dtype is found.dtype or (any_float and spec.dtype.is_float and found.dtype.is_float)
        if not alike or spec.shape != found.shape:
            advice = dtype_advice if spec.shape == found.shape and found.dtype.is_float and dtype_advice else fix
            yield _mismatch(reader, name, str(spec), str(found), advice, "TSW-901")
            continue
        recorded = info.digests(name)
        if digests and recorded.sampled is not None:
            digest = sampled(stored)
            if digest != recorded.sampled:
                yield _mismatch(reader, name, f"sampled digest {recorded.sampled.hex()}", digest.hex(), fix, "TSW-902")
                continue
        if full and recorded.sha256 is not None:
            digest = tensor_digest(spec.nbytes, _reading(reader, stored))
            if digest != recorded.sha256:
                yield _mismatch(reader, name, f"SHA-256 {recorded.sha256.hex()}", digest.hex(), fix, "TSW-902")


def base_digests(reader: CheckpointReader, spec: TensorSpec, stored: str | None = None) -> Digests:
    """Digests of a tensor of a base, which has it as `stored` if not under its own name."""
    read = _reading(reader, stored or spec.name)
    return Digests(tensor_digest(spec.nbytes, read), sampled_digest(spec.nbytes, read))


def tensor_digest(nbytes: int, read: Callable[[int, NDArray[np.uint8]], None]) -> bytes:
    """SHA-256 of a tensor's bytes, read block by block."""
    digest = hashlib.sha256()
    buffer = np.empty(min(nbytes, _BLOCK), np.uint8)
    for start in range(0, nbytes, _BLOCK):
        block = buffer[: min(_BLOCK, nbytes - start)]
        read(start, block)
        digest.update(block.data)
    return digest.digest()


def _reading(reader: CheckpointReader, name: str) -> Callable[[int, NDArray[np.uint8]], None]:
    return lambda start, out: reader.read_into(name, start, out)


class _Near:
    """Remarks on names like one that is missing: a prefix more or less is the commonest mistake. A few only, for each takes
    time, and another model's names may be missing by the million."""

    def __init__(self) -> None:
        self._left = 10

    def __call__(self, name: str, known: Iterable[str]) -> str:
        self._left -= 1
        return near_hint(name, known) if self._left >= 0 else ""


def _mismatch(reader: CheckpointReader, name: str, expected: str, found: str, fix: str, rule: str) -> BaseMismatchError:
    return BaseMismatchError(reader.location, tensor=name, expected=expected, found=found, fix=fix, rule=rule)
