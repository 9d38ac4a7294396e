"""Every plane codec on random masks: bytes against the entropy, decode speed on one core, and which one is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.size import entropy_bits
from tswitch_format import _layout as lay
from tswitch_format.codecs import bits, gaps, plane, zstd
from tswitch_format.codecs.plane import EncodedPlane

DENSITIES = (0.0003, 0.001, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
KS = range(13)
CANDIDATES = ("bitmap", "bitmap_zstd", "gaps_zstd k = 0", "gaps_zstd best k", "rice best k", "plane.encode")
PASSES = 4  # over all chunks in one measurement
_GAPS_LEVEL, _BITMAP_LEVEL = 1, 3  # zstd levels, as tswitch_format.codecs.plane has
_LEVELS = (1, 2, 3, 6, 9)

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Planes:
    """Random masks of one density, with the bytes of their signs."""

    asked: float
    masks: Sequence[Positions]
    sign_bytes: int

    @classmethod
    def draw(cls, asked: float, chunks: int, random: np.random.Generator) -> Planes:
        """Masks of 2^20 elements; signs are even."""
        masks = [np.flatnonzero(random.random(lay.CHUNK, np.float32) < asked) for _ in range(chunks)]
        signs = (plane.encode(np.flatnonzero(random.random(mask.size) < 0.5), mask.size) for mask in masks)
        return cls(asked, masks, sum(len(sign.data) for sign in signs))

    @property
    def elements(self) -> int:
        """Of all chunks."""
        return len(self.masks) * lay.CHUNK

    @property
    def density(self) -> float:
        """The one that came out."""
        return sum(mask.size for mask in self.masks) / self.elements


def _bitmap(mask: Positions) -> EncodedPlane:
    return EncodedPlane(lay.Codec.BITMAP, 0, mask.size, bits.pack_positions(mask, lay.CHUNK).tobytes())


def _bitmap_zstd(mask: Positions, level: int = _BITMAP_LEVEL) -> EncodedPlane:
    data = zstd.compress(bits.pack_positions(mask, lay.CHUNK).data, level)
    return EncodedPlane(lay.Codec.BITMAP_ZSTD, 0, mask.size, data)


def _gaps(mask: Positions, k: int, level: int = _GAPS_LEVEL) -> EncodedPlane:
    return EncodedPlane(lay.Codec.GAPS_ZSTD, k, mask.size, gaps.encode_gaps(gaps.gaps_of(mask), k, level))


def _rice(mask: Positions, k: int) -> EncodedPlane:
    return EncodedPlane(lay.Codec.RICE, k, mask.size, gaps.encode_rice(gaps.gaps_of(mask), k))


def _bytes(encoded: Sequence[EncodedPlane]) -> int:
    return sum(len(each.data) for each in encoded)


def _best(encode: Callable[[Positions, int], EncodedPlane], masks: Sequence[Positions]) -> list[EncodedPlane]:
    """With the k that takes the fewest bytes for all masks together."""
    return min(([encode(mask, k) for mask in masks] for k in KS), key=_bytes)


def candidates(masks: Sequence[Positions]) -> dict[str, list[EncodedPlane]]:
    """All masks in each encoding."""
    encoded = (
        [_bitmap(mask) for mask in masks],
        [_bitmap_zstd(mask) for mask in masks],
        [_gaps(mask, 0) for mask in masks],
        _best(_gaps, masks),
        _best(_rice, masks),
        [plane.encode(mask, lay.CHUNK) for mask in masks],
    )
    return dict(zip(CANDIDATES, encoded, strict=True))


def decode(encoded: Sequence[EncodedPlane]) -> list[Positions]:
    """Positions of the ones of each plane."""
    return [
        plane.decode_positions(each.codec, each.parameter, memoryview(each.data), lay.CHUNK, each.count)
        for each in encoded
    ]


def _timed(encoded: Mapping[str, Sequence[EncodedPlane]], rounds: int) -> common.Times:
    def run(planes: Sequence[EncodedPlane]) -> Callable[[], None]:
        def passes() -> None:
            for _ in range(PASSES):
                for each in planes:
                    decode([each])

        return passes

    return common.interleave({name: common.Candidate(run(planes)) for name, planes in encoded.items()}, rounds)


def _check(encoded: Mapping[str, Sequence[EncodedPlane]], masks: Sequence[Positions]) -> None:
    for name, planes in encoded.items():
        if not all(np.array_equal(found, mask) for found, mask in zip(decode(planes), masks, strict=True)):
            raise ValueError(f"{name}: decoded positions differ from the mask")


def _names(encoded: Sequence[EncodedPlane]) -> str:
    counts = Counter(f"{lay.Codec(each.codec).name} {each.parameter}" for each in encoded)
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def measure(result: common.Result, drawn: Sequence[Planes], rounds: int) -> None:
    """Sizes and speeds of all candidates, a row for each density."""
    best = ("best k of gaps", "best k of rice")
    note = "plane.encode: what the library takes, under `takes` as codec, k and number of chunks."
    masks = result.table("Mask / H(p)", "asked %", "density %", *CANDIDATES, *best, "takes", note=note)
    both = result.table(
        "(mask + sign) / (H(p) + p)", "asked %", *CANDIDATES, note="Signs are as plane.encode takes them, for all."
    )
    speeds = result.table(
        "Decode to positions, G elements/s on one core",
        "asked %",
        *CANDIDATES,
        "k = 0 / rice",
        "least",
        "most",
        note=f"Elements, not ones; median of {rounds} interleaved rounds. k = 0 / rice: speeds of gaps_zstd with k = 0 and of"
        " rice, median, least and most of the ratios within a round.",
    )
    for planes in drawn:
        encoded = candidates(planes.masks)
        _check(encoded, planes.masks)
        times = _timed(encoded, rounds)
        bound = planes.elements * entropy_bits(planes.density) / 8
        mask_bound = bound - planes.elements * planes.density / 8
        sizes = {name: _bytes(each) for name, each in encoded.items()}
        asked = f"{100 * planes.asked:g}"
        masks.add(
            asked,
            100 * planes.density,
            *(f"{size / mask_bound:.4f}" for size in sizes.values()),
            encoded["gaps_zstd best k"][0].parameter,
            encoded["rice best k"][0].parameter,
            _names(encoded["plane.encode"]),
        )
        both.add(asked, *(f"{(size + planes.sign_bytes) / bound:.4f}" for size in sizes.values()))
        work = PASSES * planes.elements / 1e9
        faster = times.ratio("rice best k", "gaps_zstd k = 0")
        speeds.add(
            asked,
            *(f"{work / times.summary(name).median:.2f}" for name in CANDIDATES),
            *(f"{ratio:.2f}" for ratio in (faster.median, faster.least, faster.most)),
        )
        result.raw[asked] = {"sizes": sizes, "sign_bytes": planes.sign_bytes, "seconds": dict(times.seconds)}


def levels(result: common.Result, drawn: Sequence[Planes]) -> None:
    """Sizes at other zstd levels."""
    table = result.table(
        "Mask bytes by zstd level / those of level 1",
        "asked %",
        *(f"gaps best k, {level}" for level in _LEVELS[1:]),
        *(f"bitmap, {level}" for level in _LEVELS[1:]),
        note="gaps best k: the best of level 1.",
    )
    for planes in drawn:
        k = _best(_gaps, planes.masks)[0].parameter
        rows = (
            [_bytes([_gaps(mask, k, level) for mask in planes.masks]) for level in _LEVELS],
            [_bytes([_bitmap_zstd(mask, level) for mask in planes.masks]) for level in _LEVELS],
        )
        table.add(f"{100 * planes.asked:g}", *(f"{size / sizes[0]:.4f}" for sizes in rows for size in sizes[1:]))


@click.command()
@click.option("--chunks", type=click.IntRange(1), default=8, show_default=True, help="Of 2^20 elements, a density.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--save/--no-save", default=True, show_default=True)
def main(chunks: int, rounds: int, seed: int, save: bool) -> None:
    """Sizes and decode speeds of every plane codec on random masks."""
    settings = {"chunks": chunks, "rounds": rounds, "seed": seed}
    result = common.Result("codecs", (__doc__ or "").strip(), "python -m benchmarks codecs", settings)
    random = np.random.default_rng(seed)
    drawn = [Planes.draw(asked, chunks, random) for asked in DENSITIES]
    measure(result, drawn, rounds)
    levels(result, drawn)
    common.finish(result, save=save)
