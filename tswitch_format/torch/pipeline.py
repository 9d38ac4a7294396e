"""Switches of a file -> packed on a device: threads read, verify and decode while what is ready is copied."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from tswitch_format._parallel import ordered_map
from tswitch_format.switch.planes import Piece, assemble, pack_chunks, planes, stored_form
from tswitch_format.switch.tensor import Switch, runs
from tswitch_format.torch.checkpoint import torch_dtype
from tswitch_format.torch.packed import HostSwitch, PackedSwitch
from tswitch_format.torch.staging import Staging
from tswitch_format.torch.vectors import load_vectors, send_vector

Loaded = PackedSwitch | Tensor


def load(switches: Sequence[Switch], staging: Staging, threads: int) -> dict[str, Loaded]:
    """Switches by name, packed or dense, on the device of `staging`. The first error ends it; nothing is kept then."""
    found: dict[str, Loaded] = {}
    with staging.lock:
        try:
            vectors = load_vectors(switches, staging, threads)
            units = itertools.groupby(ordered_map(_decode, _units(switches), threads), key=lambda unit: unit[0])
            for switch, parts in units:
                found[switch.name] = _finish(
                    switch, [piece for _, pieces in parts for piece in pieces], vectors.get(switch.name), staging
                )
            staging.finish()
        except BaseException:
            staging.abort()
            raise
    return found


def _units(switches: Sequence[Switch]) -> Iterator[tuple[Switch, range]]:
    """What threads do: some chunks of a whole ternary or masked switch, or at once what is small, sliced or dense."""
    for switch in switches:
        several = switch.is_additive and switch.is_whole and switch.chunk_count > 1
        for chunks in runs(switch.chunk_count) if several else [range(0)]:
            yield switch, chunks


def _decode(unit: tuple[Switch, range]) -> tuple[Switch, list[Any]]:
    switch, chunks = unit
    if chunks:
        form = stored_form(switch)
        return switch, [pack_chunks(switch, form, chunks)]
    if switch.kind == "dense":
        return switch, [switch.data()]
    own_vector = switch.kind == "masked" and not switch.is_whole
    return switch, [planes(switch), *([switch.vector()] if own_vector else [])]


def _finish(switch: Switch, parts: list[Any], vector: Tensor | None, staging: Staging) -> Loaded:
    if switch.kind == "dense":
        (data,) = staging.send([parts[0]])
        return data.view(torch_dtype(switch.target))
    if isinstance(parts[0], Piece):
        parts = [assemble(stored_form(switch), switch.elements, parts)]
    if switch.kind == "masked" and vector is None:  # of a slice
        vector = send_vector(parts[1], switch, staging)
    host = HostSwitch.of(switch, parts[0], vector)
    return host.packed(staging.send(host.arrays))
