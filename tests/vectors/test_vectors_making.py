"""The suite is what its program makes, and the program's own arithmetic is right."""

import hashlib
import math
import random
import struct

import pytest
import zstandard

FORMS = {
    "block": ("raw", "rle", "compressed"),
    "literals": ("raw", "rle", "huffman 1 streams", "huffman 4 streams", "treeless 1 streams", "treeless 4 streams"),
    "literals raw size form": (1, 2, 3),
    "literals rle size form": (1, 2, 3),
    "literals huffman size form": (0, 1, 2, 3),
    "huffman weights": ("direct", "fse"),
    "lengths": ("predefined", "rle", "fse", "repeat"),
    "offsets": ("predefined", "rle", "fse", "repeat"),
    "matches": ("predefined", "rle", "fse", "repeat"),
    "number of sequences in": ("1 bytes", "2 bytes", "3 bytes"),
    "size field": (0, 1, 2, 3),
}


def test_making_the_suite_again_changes_nothing(maker):
    assert maker.differences(maker.make()) == []


def test_zstd_frames_have_every_form(maker):
    from making.valid import frame_cases  # noqa: PLC0415  # `maker` makes it importable
    from making.zstd_frames import features  # noqa: PLC0415

    found = set()
    for name, content, compress in frame_cases():
        frame = compress(content)
        assert zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False) == content, name
        found |= features(frame)
    wanted = {f"{what} {form}" for what, forms in FORMS.items() for form in forms}
    others = {"single segment", "window descriptor", "one block", "several blocks", "no sequences"}
    assert found >= wanted | others


@pytest.mark.parametrize(("name", "form", "size"), [("F16", "e", 2), ("F32", "f", 4), ("F64", "d", 8)])
def test_exact_arithmetic_agrees_with_the_machine(maker, name, form, size):
    from making import floats  # noqa: PLC0415

    kind = floats.FORMATS[name]
    draw = random.Random(name)
    samples = [draw.getrandbits(8 * size) for _ in range(1500)] + [0, 1, 1 << 8 * size - 1]
    for bits in samples:
        number = kind.decode(bits)
        machine = struct.unpack("<" + form, bits.to_bytes(size, "little"))[0]
        if number.kind == "finite":
            assert float(number.signed) == machine
            assert math.copysign(1, machine) == (-1 if number.negative else 1)
            assert kind.encode(number) == bits
        else:
            assert math.isnan(machine) if number.kind == "nan" else math.isinf(machine)
    for _ in samples:  # rounding from binary64, as `struct` does it where that does not overflow
        wide = floats.F64.decode(draw.getrandbits(64))
        if wide.kind != "finite":
            continue
        try:
            expected = struct.pack("<" + form, float(wide.signed))
        except OverflowError:
            assert kind.round(wide).kind == "infinite"
            continue
        rounded = kind.encode(wide).to_bytes(size, "little")
        assert rounded == expected or (not any(expected[:-1]) and rounded[-1] & 127 == 0)


def test_sums_and_products_agree_with_the_machine(maker):
    from making import floats  # noqa: PLC0415

    draw = random.Random(5)
    for _ in range(1500):
        pair = [draw.getrandbits(64) for _ in range(2)]
        pair[1] = pair[1] & ~(0x7FF << 52) | pair[0] & 0x7FF << 52 if draw.random() < 0.5 else pair[1]
        a, b = (floats.F64.decode(bits) for bits in pair)
        x, y = (struct.unpack("<d", bits.to_bytes(8, "little"))[0] for bits in pair)
        for number, machine in ((floats.total(a, b), x + y), (floats.product(a, b), x * y)):
            found = struct.unpack("<d", floats.F64.encode(number).to_bytes(8, "little"))[0]
            assert found == machine or (math.isnan(found) and math.isnan(machine))


def test_bf16_is_the_upper_half_of_binary32(maker):
    from making import floats  # noqa: PLC0415

    for bits in range(0, 1 << 16, 13):
        assert floats.BF16.decode(bits) == floats.F32.decode(bits << 16)
        lower = floats.F32.decode(bits << 16 | 0x7FFF)
        if lower.kind == "finite":
            assert floats.BF16.encode(lower) == bits


def test_the_checksum_of_the_right_checksum_vector(maker):
    from making.broken_content import _xxh64_low  # noqa: PLC0415

    for size in (0, 3, 4, 11, 31, 32, 100, 400):
        data = hashlib.shake_128(b"x").digest(size)
        frame = zstandard.ZstdCompressor(write_checksum=True).compress(data)
        assert frame[-4:] == _xxh64_low(data)
