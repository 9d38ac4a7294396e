"""Every plane codec on planes of every size and density, against a slow reference, and how small the smallest is."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import codec_reference as reference
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tswitch_format._layout import CHUNK, Codec
from tswitch_format.codecs import array, bits, gaps, plane, zstd
from tswitch_format.codecs.plane import EncodedPlane

Positions = NDArray[np.int64]


def draw_plane(n: int, density: float, pattern: str, seed: int) -> Positions:
    """Positions of ones: scattered, in clusters, in one run, or every so many bits."""
    rng = np.random.default_rng(seed)
    if pattern == "run":
        start = int(rng.integers(0, n + 1))
        return np.arange(start, min(n, start + round(density * n)))
    if pattern == "regular":
        return np.arange(0, n, max(1, round(1 / max(density, 1e-6))))
    if pattern == "clusters":
        level = np.repeat(rng.random(-(-n // 64)) < math.sqrt(density), 64)[:n]
        return np.flatnonzero(level & (rng.random(n) < math.sqrt(density)))
    return np.flatnonzero(rng.random(n) < density)


SIZES = st.sampled_from([0, 1, 7, 8, 9, 63, 64, 65, 255, 256, 4097]) | st.integers(0, 5000)
DENSITIES = st.sampled_from([0.0, 1e-3, 0.01, 0.08, 0.4, 0.5, 0.9, 1.0]) | st.floats(0, 1)
PATTERNS = st.sampled_from(["scattered", "clusters", "run", "regular"])


@st.composite
def planes(draw: st.DrawFn) -> tuple[Positions, int]:
    n = draw(SIZES)
    return draw_plane(n, draw(DENSITIES), draw(PATTERNS), draw(st.integers(0, 1 << 32))), n


def check(encoded: EncodedPlane, positions: Positions, n: int) -> None:
    """Both ways of decoding give the plane."""
    given_args = (encoded.codec, encoded.parameter, memoryview(encoded.data), n, encoded.count)
    found = plane.decode_positions(*given_args)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, positions)
    packed = plane.decode_packed(*given_args)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == bits.pack_positions(positions, n).tobytes()


def every_encoding(positions: Positions, n: int, ks: range = range(21)) -> list[EncodedPlane]:
    """The plane in each codec that can hold it, gaps and Rice with each k."""
    m = positions.size
    packed = bits.pack_positions(positions, n)
    made = [
        EncodedPlane(Codec.BITMAP, 0, m, packed.tobytes()),
        EncodedPlane(Codec.BITMAP_ZSTD, 0, m, zstd.compress(packed.data, 3)),
    ]
    if m == 0:
        made.append(EncodedPlane(Codec.ZEROS, 0, 0, b""))
    if m == n:
        made.append(EncodedPlane(Codec.ONES, 0, n, b""))
    if m:
        distances = gaps.gaps_of(positions)
        for k in ks:
            made.append(EncodedPlane(Codec.GAPS_ZSTD, k, m, gaps.encode_gaps(distances, k, 1)))
            made.append(EncodedPlane(Codec.RICE, k, m, gaps.encode_rice(distances, k)))
    return made


@settings(max_examples=60, deadline=None)
@given(planes())
@example((np.array([0]), 1))
@example((np.array([7]), 8))
@example((np.array([8]), 9))
def test_every_codec_gives_the_plane_back(case: tuple[Positions, int]) -> None:
    positions, n = case
    for encoded in every_encoding(positions, n):
        check(encoded, positions, n)


@pytest.mark.parametrize("pattern", ["scattered", "clusters", "run"])
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.001, 0.02, 0.3, 0.999, 1.0])
def test_every_codec_gives_a_whole_chunk_back(density: float, pattern: str) -> None:
    positions = draw_plane(CHUNK, density, pattern, 5)
    for encoded in every_encoding(positions, CHUNK, range(0, 21, 5) if positions.size < 1e5 else range(1)):
        check(encoded, positions, CHUNK)


@pytest.mark.parametrize("n", [1, 7, 8, 9, CHUNK - 1, CHUNK])
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_single_one_at_either_end(n: int, where: str) -> None:
    positions = np.array([0 if where == "first" else n - 1])
    for encoded in every_encoding(positions, n, range(0, 21, 4)):
        check(encoded, positions, n)


@settings(max_examples=150, deadline=None)
@given(planes(), st.booleans())
def test_what_is_chosen_gives_the_plane_back_and_is_no_larger_than_a_bitmap(
    case: tuple[Positions, int], mapped: bool
) -> None:
    positions, n = case
    encoded = plane.encode(positions, n, mapped=mapped)
    check(encoded, positions, n)
    assert encoded.count == positions.size
    assert len(encoded.data) <= bits.nbytes(n)
    if mapped:
        assert (encoded.codec, encoded.parameter) == (Codec.BITMAP, 0)
    elif positions.size in (0, n):
        assert encoded.data == b""


@settings(max_examples=40, deadline=None)
@given(planes())
def test_encoding_is_deterministic_also_in_a_new_thread(case: tuple[Positions, int]) -> None:
    positions, n = case
    first = plane.encode(positions, n)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(plane.encode, positions.copy(), n).result() == first


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 20), st.integers(0, 1 << 32))
def test_gap_and_rice_payloads_are_those_of_the_specification(n: int, density: float, k: int, seed: int) -> None:
    positions = draw_plane(n, density, "scattered", seed)
    if not positions.size:
        positions = np.array([n - 1])
    distances = reference.gaps(positions.tolist())
    assert gaps.gaps_of(positions).tolist() == distances
    assert gaps.encode_rice(gaps.gaps_of(positions), k) == reference.low_parts(distances, k) + reference.unary(
        distances, k
    )
    payload = gaps.encode_gaps(gaps.gaps_of(positions), k, 1)
    low = reference.low_parts(distances, k)
    steps = reference.gap_bytes(distances, k)
    assert payload[: len(low)] == low
    assert zstd.decompress(payload[len(low) :], len(steps)) == steps


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=30), st.integers(0, 9))
def test_payloads_of_the_reference_decode(distances: list[int], k: int) -> None:
    positions = (np.cumsum(np.array(distances) + 1) - 1).tolist()
    n = positions[-1] + 1
    low = reference.low_parts(distances, k)
    for codec, payload in (
        (Codec.RICE, low + reference.unary(distances, k)),
        (Codec.GAPS_ZSTD, low + reference.frame(reference.gap_bytes(distances, k))),
    ):
        assert plane.decode_positions(codec, k, memoryview(payload), n, len(positions)).tolist() == positions
        packed = plane.decode_packed(codec, k, memoryview(payload), n, len(positions))
        assert packed.tobytes() == reference.plane(positions, n)


@pytest.mark.parametrize("gap", [0, 254, 255, 256, 509, 510, 511, 765])
def test_gaps_around_multiples_of_255_are_escaped_as_the_specification_says(gap: int) -> None:
    distances = np.array([gap, 0, gap])
    content = zstd.decompress(gaps.encode_gaps(distances, 0, 1), 3 + 2 * (gap // 255))
    assert content == reference.gap_bytes(distances.tolist(), 0)


@pytest.mark.parametrize(
    ("percent", "bound"),
    [(0.1, 1.04), (0.2, 1.04), (0.3, 1.04), (0.4, 1.04)]
    + [(p, 1.02) for p in (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 8, 10, 15, 20, 30, 40, 41, 50)],
)
def test_random_planes_take_little_more_than_their_entropy(percent: float, bound: float) -> None:
    rng = np.random.default_rng(round(percent * 1000))
    stored = entropy = 0.0
    for _ in range(4):
        mask = np.flatnonzero(rng.random(CHUNK) < percent / 100)
        sign = np.flatnonzero(rng.random(mask.size) < 0.5)
        stored += len(plane.encode(mask, CHUNK).data) + len(plane.encode(sign, mask.size).data)
        p = mask.size / CHUNK
        entropy += (-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) * CHUNK + mask.size) / 8
    assert stored / entropy <= bound


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000) | st.integers(0, 3000).map(bytes), st.booleans())
def test_arrays_come_back_and_take_no_more_than_raw(data: bytes, mapped: bool) -> None:
    codec, stored = array.encode(np.frombuffer(data, np.uint8), mapped=mapped)
    assert array.decode(codec, memoryview(stored), len(data)).tobytes() == data
    assert len(stored) <= len(data)
    assert codec in ((Codec.RAW,) if mapped else (Codec.RAW, Codec.ZSTD))
