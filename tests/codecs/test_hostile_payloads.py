"""Payloads that no encoder makes: PayloadError with the rule that they break, and never another exception."""

from __future__ import annotations

from collections.abc import Callable

import codec_reference as reference
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tswitch_format._layout import CHUNK, Codec
from tswitch_format.codecs import array, bits, plane, zstd
from tswitch_format.errors import PayloadError

N = 1000
POSITIONS = [0, 3, 4, 9, 300, 301, 999]
DISTANCES = reference.gaps(POSITIONS)
M = len(POSITIONS)
BITMAP = reference.plane(POSITIONS, N)
STEPS = reference.gap_bytes(DISTANCES, 0)
LOW3 = reference.low_parts(DISTANCES, 3)
STEPS3 = reference.gap_bytes(DISTANCES, 3)
UNARY = reference.unary(DISTANCES, 0)
UNARY3 = reference.unary(DISTANCES, 3)

GOOD = {
    "zeros": (Codec.ZEROS, 0, b"", N, 0),
    "ones": (Codec.ONES, 0, b"", N, N),
    "bitmap": (Codec.BITMAP, 0, BITMAP, N, M),
    "bitmap_zstd": (Codec.BITMAP_ZSTD, 0, reference.frame(BITMAP), N, M),
    "gaps": (Codec.GAPS_ZSTD, 0, reference.frame(STEPS), N, M),
    "gaps k=3": (Codec.GAPS_ZSTD, 3, LOW3 + reference.frame(STEPS3), N, M),
    "rice": (Codec.RICE, 0, UNARY, N, M),
    "rice k=3": (Codec.RICE, 3, LOW3 + UNARY3, N, M),
}
HAS_FRAME = ("bitmap_zstd", "gaps", "gaps k=3")


def refuse(rule: str, codec: int, k: int, data: bytes, n: int = N, count: int = M) -> PayloadError:
    """Both ways of decoding refuse the payload by that rule."""
    errors = []
    for decode in (plane.decode_positions, plane.decode_packed):
        with pytest.raises(PayloadError) as caught:
            decode(codec, k, memoryview(data), n, count)
        errors.append(caught.value)
        assert caught.value.rule == rule, caught.value
        assert str(caught.value) == f"expected {caught.value.expected}, found {caught.value.found} [{rule}]"
    return errors[0]


@pytest.mark.parametrize("name", GOOD)
def test_the_payloads_that_are_broken_below_are_good(name: str) -> None:
    codec, k, data, n, count = GOOD[name]
    expected = {0: [], N: list(range(N))}.get(count, POSITIONS)
    assert plane.decode_positions(codec, k, memoryview(data), n, count).tolist() == expected


@pytest.mark.parametrize("name", GOOD)
def test_a_payload_cut_anywhere_is_refused(name: str) -> None:
    codec, k, data, n, count = GOOD[name]
    for length in range(len(data)):
        with pytest.raises(PayloadError) as caught:
            plane.decode_positions(codec, k, memoryview(data[:length]), n, count)
        assert caught.value.rule in {"TSW-703", "TSW-706", "TSW-707"}


@pytest.mark.parametrize("name", GOOD)
def test_a_byte_more_is_refused(name: str) -> None:
    codec, k, data, n, count = GOOD[name]
    for extra in (b"\0", b"\x80", b"\xff"):
        refuse("TSW-707" if name in HAS_FRAME else "TSW-706", codec, k, data + extra, n, count)


@pytest.mark.parametrize("name", ["zeros", "ones", "bitmap", "bitmap_zstd"])
def test_another_number_of_ones_is_refused(name: str) -> None:
    codec, k, data, n, count = GOOD[name]
    for wrong in {count - 1, count + 1} & set(range(n + 1)):
        error = refuse("TSW-704", codec, k, data, n, wrong)
        assert error.expected == f"{wrong} ones in the plane"
        assert error.found == str(count)


@pytest.mark.parametrize("name", ["gaps", "rice", "rice k=3"])
def test_another_number_of_gaps_is_refused(name: str) -> None:
    codec, k, data, n, _ = GOOD[name]
    for wrong in (M - 1, M + 1):
        with pytest.raises(PayloadError) as caught:
            plane.decode_positions(codec, k, memoryview(data), n, wrong)
        assert caught.value.rule in {"TSW-703", "TSW-706"}


@pytest.mark.parametrize("codec", [Codec.GAPS_ZSTD, Codec.RICE])
def test_gaps_need_a_one(codec: int) -> None:
    refuse("TSW-606", codec, 0, b"", N, 0)
    refuse("TSW-606", codec, 0, b"\1", N, 0)


@pytest.mark.parametrize("codec", [6, 15, 16, 17, 255])
def test_a_codec_that_is_not_for_planes_is_refused(codec: int) -> None:
    assert f"codec {codec}" in refuse("TSW-606", codec, 0, BITMAP).found


@pytest.mark.parametrize("n", [1, 9, 999])
def test_unused_bits_of_a_bitmap_must_be_zero(n: int) -> None:
    data = bytearray(reference.plane([0], n))
    data[-1] |= 0x80
    refuse("TSW-703", Codec.BITMAP, 0, bytes(data), n, 1)
    refuse("TSW-703", Codec.BITMAP_ZSTD, 0, reference.frame(bytes(data)), n, 1)


def test_unused_bits_of_low_parts_must_be_zero() -> None:
    low = bytearray(LOW3)
    assert M * 3 % 8
    low[-1] |= 0x80
    refuse("TSW-703", Codec.GAPS_ZSTD, 3, bytes(low) + reference.frame(STEPS3))
    refuse("TSW-703", Codec.RICE, 3, bytes(low) + UNARY3)


def test_unused_bits_of_a_rice_code_must_be_zero() -> None:
    code = reference.unary([0, 1], 0)
    refuse("TSW-706", Codec.RICE, 0, bytes([code[0] | 0x80]), N, 2)


def test_a_rice_code_without_its_ones_is_refused() -> None:
    assert refuse("TSW-706", Codec.RICE, 0, bytes(3)).found == "0 ones"


def test_a_rice_code_longer_than_its_plane_allows_is_refused_before_it_is_unpacked() -> None:
    assert "bytes of unary code" in refuse("TSW-706", Codec.RICE, 0, bytes(200) + b"\x7f").expected


@pytest.mark.parametrize("n", [0, 1, 500, 999])
def test_a_position_beyond_the_plane_is_refused(n: int) -> None:
    for name in ("gaps", "gaps k=3", "rice", "rice k=3"):
        codec, k, data, _, _ = GOOD[name]
        refuse("TSW-706", codec, k, data, n)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (STEPS + b"\xff", "a 255 at the end"),
        (STEPS[:-1], "a gap less"),
        (STEPS[:-1] + b"\xff", "a 255 for the last"),
        (STEPS + b"\0", "a gap more"),
        (b"\xff" * M, "nothing but 255"),
        (b"\0" * (M - 1), "fewer bytes than ones"),
        (b"\xff" * (M + 4), "more bytes than the plane allows"),
    ],
)
def test_gap_bytes_that_do_not_add_up_are_refused(steps: bytes, why: str) -> None:
    refuse("TSW-706", Codec.GAPS_ZSTD, 0, reference.frame(steps))


def test_gap_bytes_are_bounded_before_they_are_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(write_checksum=False).compress(bytes(1 << 24))
    error = refuse("TSW-706", Codec.GAPS_ZSTD, 0, bomb)
    assert error.expected == f"{M} to {M + N // 255} gap bytes"
    assert error.found == str(1 << 24)


def broken_frames(content: bytes) -> dict[str, bytes]:
    """A frame of the content, broken in every way that section 9.5 forbids."""
    good = reference.frame(content)
    return {
        "nothing": b"",
        "another magic": b"\0" + good[1:],
        "header only": good[:6],
        "checksum flag": reference.frame(content, checksum=True),
        "checksum": zstandard.ZstdCompressor(write_checksum=True).compress(content),
        "dictionary": reference.frame(content, dictionary=7),
        "no size": reference.frame(content, declare=None, window=17),
        "size too small": reference.frame(content, declare=len(content) - 1),
        "size too large": reference.frame(content, declare=len(content) + 1),
        "window too large": reference.frame(content, window=24),
        "two frames": good + good,
        "an empty frame after": good + reference.frame(b""),
        "skippable frame before": reference.skippable(b"x") + good,
        "skippable frame after": good + reference.skippable(b""),
        "garbage after": good + b"garbage",
        "cut": good[:-1],
        "reserved bit": good[:4] + bytes([good[4] | 8]) + good[5:],
        "reserved block type": good[:9] + bytes([good[9] | 6]) + good[10:],
    }


@pytest.mark.parametrize("why", broken_frames(b"x"))
def test_frames_that_are_not_plain_are_refused(why: str) -> None:
    for codec, content in ((Codec.BITMAP_ZSTD, BITMAP), (Codec.GAPS_ZSTD, STEPS)):
        with pytest.raises(PayloadError) as caught:
            plane.decode_positions(codec, 0, memoryview(broken_frames(content)[why]), N, M)
        # A size that is wrong for gap bytes is refused by their own rule, and so is a payload without bytes.
        allowed = {"TSW-707"} | (
            {"TSW-706"} if codec == Codec.GAPS_ZSTD and ("size" in why or why == "nothing") else set()
        )
        assert caught.value.rule in allowed
    with pytest.raises(PayloadError, match="TSW-707"):
        array.decode(Codec.ZSTD, memoryview(broken_frames(BITMAP)[why]), len(BITMAP))


@pytest.mark.parametrize("window", [10, 17, 23])
def test_windows_up_to_8_mib_are_read(window: int) -> None:
    assert zstd.decompress(reference.frame(BITMAP, window=window), len(BITMAP)) == BITMAP


@pytest.mark.parametrize("why", sorted(broken_frames(b"x").keys() - {"size too small"}))
def test_an_empty_frame_must_be_as_plain_as_any(why: str) -> None:
    with pytest.raises(PayloadError) as caught:
        plane.decode_packed(Codec.BITMAP_ZSTD, 0, memoryview({**broken_frames(b"x"), **_broken_empty()}[why]), 0, 0)
    assert caught.value.rule == "TSW-707"


def _broken_empty() -> dict[str, bytes]:
    good = reference.frame(b"")
    return {
        "size too large": reference.frame(b"", declare=1),
        "cut": good[:-1],
        "header only": good[:9],
        "garbage after": good + b"garbage",
        "two frames": good + good,
        "skippable frame after": good + reference.skippable(b""),
        "reserved block type": good[:9] + bytes([good[9] | 6]) + good[10:],
    }


def test_an_empty_frame_is_read() -> None:
    for frame in (reference.frame(b""), zstandard.ZstdCompressor(write_checksum=False).compress(b"")):
        assert plane.decode_packed(Codec.BITMAP_ZSTD, 0, memoryview(frame), 0, 0).size == 0


@pytest.mark.parametrize(
    "after",
    [pytest.param(reference.frame(bytes(100), declare=0)[9:], id="raw"), b"\x03\x00\x10x" * 1000, b"\x02\0\0" * 100],
)
def test_a_frame_that_declares_nothing_and_holds_something_is_refused(after: bytes) -> None:
    with pytest.raises(PayloadError, match="TSW-707"):
        zstd.decompress(reference.frame(b"")[:9] + after, 0)


@pytest.mark.parametrize(
    ("codec", "rule"), [(Codec.RAW, "TSW-706"), (Codec.ZSTD, "TSW-707"), (Codec.BITMAP, "TSW-606")]
)
def test_arrays_of_another_length_or_codec_are_refused(codec: Codec, rule: str) -> None:
    for nbytes in (7, 9):
        data = bytes(8) if codec is Codec.RAW else reference.frame(bytes(8))
        with pytest.raises(PayloadError, match=rule):
            array.decode(codec, memoryview(data), nbytes)


PLANE_CODECS = [Codec.ZEROS, Codec.ONES, Codec.BITMAP, Codec.BITMAP_ZSTD, Codec.GAPS_ZSTD, Codec.RICE]


def decode_anything(codec: int, k: int, data: bytes, n: int, count: int) -> None:
    """Decoding gives a plane with `count` ones of n bits, or PayloadError; both ways agree on which."""
    try:
        positions = plane.decode_positions(codec, k, memoryview(data), n, count)
    except PayloadError as error:
        with pytest.raises(PayloadError, match=error.rule):
            plane.decode_packed(codec, k, memoryview(data), n, count)
        return
    assert positions.size == count
    assert (np.diff(positions) > 0).all()
    assert not count or (positions[0] >= 0 and positions[-1] < n)
    packed = plane.decode_packed(codec, k, memoryview(data), n, count)
    assert packed.tobytes() == bits.pack_positions(positions, n).tobytes()


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(0, 300) | st.sampled_from([CHUNK, CHUNK - 1, 1 << 15]))
    return n, draw(st.integers(0, min(n, 100)) | st.just(n))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLANE_CODECS), st.integers(0, 20), st.binary(max_size=200), sizes())
def test_random_bytes_give_a_plane_or_a_payload_error(codec: int, k: int, data: bytes, size: tuple[int, int]) -> None:
    decode_anything(codec, k, data, *size)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, 3, 20]), st.binary(max_size=60), st.binary(max_size=120), sizes())
def test_random_gap_bytes_in_a_good_frame_give_a_plane_or_a_payload_error(
    k: int, low: bytes, steps: bytes, size: tuple[int, int]
) -> None:
    n, count = size
    low = low[: bits.nbytes(count * k)].ljust(min(bits.nbytes(count * k), 4000), b"\0")
    decode_anything(Codec.GAPS_ZSTD, k, low + reference.frame(steps), n, count)


def _mutations() -> st.SearchStrategy[Callable[[bytes], bytes]]:
    place = st.floats(0, 1, exclude_max=True)

    def at(data: bytes, where: float) -> int:
        return int(len(data) * where)

    return st.one_of(
        st.builds(
            lambda w, bit: lambda d: d and d[: at(d, w)] + bytes([d[at(d, w)] ^ 1 << bit]) + d[at(d, w) + 1 :],
            place,
            st.integers(0, 7),
        ),
        st.builds(lambda w: lambda d: d[: at(d, w)], place),
        st.builds(
            lambda w, new: lambda d: d[: at(d, w)] + new + d[at(d, w) :], place, st.binary(min_size=1, max_size=9)
        ),
        st.builds(lambda w, v: lambda d: d[: at(d, w)] + d[at(d, w) + v :], place, st.integers(1, 9)),
    )


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.lists(_mutations(), min_size=1, max_size=3), st.integers(-1, 1))
def test_damaged_payloads_give_a_plane_or_a_payload_error(
    name: str, mutations: list[Callable[[bytes], bytes]], more: int
) -> None:
    codec, k, data, n, count = GOOD[name]
    for mutate in mutations:
        data = mutate(data)
    decode_anything(codec, k, data, n, min(max(count + more, 0), n))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([Codec.RAW, Codec.ZSTD, Codec.BITMAP]), st.binary(max_size=100), st.integers(0, 100))
def test_random_bytes_give_an_array_or_a_payload_error(codec: int, data: bytes, nbytes: int) -> None:
    try:
        assert array.decode(codec, memoryview(data), nbytes).size == nbytes
    except PayloadError as error:
        assert error.rule in {"TSW-606", "TSW-706", "TSW-707"}


def test_a_dictionary_id_of_0_names_none() -> None:
    assert zstd.decompress(reference.frame(BITMAP, dictionary=0), len(BITMAP)) == BITMAP
