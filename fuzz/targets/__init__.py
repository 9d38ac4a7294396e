"""The harnesses by name. Each takes bytes and raises for a broken promise; TARGETS says what it begins with and how it mutates.

reading.py     frame, document, index, open, validate, decode, chunks, reference: bytes of files and of their parts
payloads.py    planes, runs, payloads: encoded bytes
numbers.py     encode, apply, roundtrip, repack: what is written, read and computed
importers.py   safetensors, safetensors_header, shard_index, torch_file: checkpoints; carrier, tall_masks: importers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from fuzz import mutation, seeds
from fuzz.mutation import Mutator
from fuzz.targets import importers, numbers, payloads, reading


@dataclass(frozen=True)
class Target:
    """One harness. `share`: of a campaign's executions, in proportion; `longest`: bytes of an input."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Mutator
    share: int
    longest: int = 16_384


def _after(start: int, mutate: Mutator) -> Mutator:
    """The mutation of what lies behind the first `start` bytes; now and then of those."""

    def mutated(data: bytes, rng: Random, raw: mutation.Raw) -> bytes:
        if rng.random() < 0.15:
            return mutation.of_bytes(data[:start], rng)[:start].ljust(start, b"\0") + data[start:]
        return data[:start] + mutate(data[start:], rng, raw)

    return mutated


def _plain(data: bytes, rng: Random, raw: mutation.Raw) -> bytes:
    return raw(data, rng)


_ALL = (
    Target("frame", reading.frame, seeds.files, _plain, 180, 1024),
    Target("document", reading.document, seeds.documents, mutation.of_document, 160, 4096),
    Target("index", reading.index, seeds.indexes, _after(6, mutation.of_document), 40, 8192),
    Target("open", reading.open_file, seeds.files, mutation.of_file, 25),
    Target("validate", reading.validate, seeds.files, mutation.of_file, 10),
    Target("decode", reading.decode, seeds.files, mutation.of_file, 12),
    Target("chunks", reading.decode, seeds.large_files, mutation.of_file, 3),
    Target("reference", reading.reference, seeds.files, mutation.of_file, 10),
    Target("planes", payloads.planes, seeds.planes, _after(10, _plain), 150, 4096),
    Target("runs", payloads.runs, seeds.runs, _after(5, _plain), 180, 4096),
    Target("payloads", payloads.payloads, seeds.payloads, _after(8, _plain), 5, 4096),
    Target("encode", numbers.encode, seeds.noise, _plain, 40, 1024),
    Target("apply", numbers.apply, seeds.noise, _plain, 40, 512),
    Target("masks", numbers.masks, seeds.noise, _plain, 40, 512),
    Target("roundtrip", numbers.roundtrip, seeds.noise, _plain, 4, 512),
    Target("repack", numbers.repack, seeds.files, mutation.of_file, 5),
    Target("safetensors", importers.safetensors, seeds.safetensors, _plain, 60, 4096),
    Target("safetensors_header", importers.safetensors_header, seeds.headers, _after(4, _plain), 50, 4096),
    Target("shard_index", importers.shard_index, seeds.shard_indexes, _plain, 70, 2048),
    Target("torch_file", importers.torch_file, seeds.torch_files, mutation.of_zip, 15),
    Target("carrier", importers.carrier, seeds.carriers, _plain, 20),
    Target("tall_masks", importers.tall_masks, seeds.tall_masks, mutation.of_zip, 60, 4096),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _ALL}
