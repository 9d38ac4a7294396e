"""What several groups of vectors are made of: masks, texts, zstd frames of every form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from making import zstd_frames as zf
from making.model import Coding, Compress, File, Task, Tensor, Ternary, noise

WINDOW_1K = 0x00
WINDOW_128K = 7 << 3
WINDOW_8M = 13 << 3

raw_frame: Compress = zf.raw
windowed: Compress = partial(zf.raw, window=WINDOW_128K)


def kept(recipe: str) -> Callable[[bytes], bytes]:
    """A frame of real compression, made once and kept."""
    return partial(zf.KEEPER.frame, recipe)


def rle_frame(data: bytes, *, window: int | None = None) -> bytes:
    """A frame of data that is one byte over and over."""
    return zf.rle(data[0], len(data), window=window)


def mixed(data: bytes, *, window: int | None = None) -> bytes:
    """Raw blocks, RLE blocks where a byte repeats for the whole of 64, an empty block in between and one at the end."""
    out = zf.header(len(data), window=window)
    for start in range(0, len(data), 64):
        part = data[start : start + 64]
        same = part == part[:1] * len(part)
        out += zf.block(1, len(part), part[:1]) if same else zf.block(0, len(part), part)
        if start == 0:
            out += zf.block(0, 0, b"")
    return out + zf.block(0, 0, b"", last=True)


def scattered(seed: str, elements: int, per_256: int) -> list[int]:
    """Elements drawn at random, so many of 256."""
    return [i for i, byte in enumerate(noise(seed, elements)) if byte < per_256]


def half_of(active: list[int]) -> list[int]:
    """Some of the active elements."""
    return [element for element, byte in zip(active, noise(str(len(active)), len(active)), strict=True) if byte & 1]


def prose(seed: str, nbytes: int) -> bytes:
    """Text-like bytes: words of a few hundred, the first ones most often."""
    alphabet = b"etaoinshrdlucmfwygpbvkxjqz"
    lengths = noise(seed + "lengths", 256)
    letters = noise(seed + "letters", 4096)
    words = [bytes(alphabet[b * b // 2520] for b in letters[i * 12 : i * 12 + 2 + lengths[i] % 9]) for i in range(256)]
    out = bytearray()
    choice = noise(seed + "choice", nbytes)
    at = 0
    while len(out) < nbytes:
        out += words[choice[at] * choice[at + 1] // 256 if at % 3 else choice[at]] + b" "
        at += 2
    return bytes(out[:nbytes])


W = Tensor("w", "F32", (2, 5))
BARE = Tensor("w", "F32", (2, 5)).bare()


def plain(*entries: Ternary, tensor: Tensor = BARE) -> File:
    """A file without digests: one task, by default with one small switch; what invalid vectors are made of."""
    found = entries or (Ternary(tensor, digest=False),)
    return File([tensor], [Task("t", found)], content_id=False)


def gaps(k: int, compress: Compress = raw_frame) -> Coding:
    """The codec gaps_zstd."""
    return Coding("gaps_zstd", k, compress)


def rice(k: int) -> Coding:
    """The codec rice."""
    return Coding("rice", k)
