"""Decoding with compiled loops: what NumPy gives, and the same errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from tswitch_format._layout import Codec
from tswitch_format.codecs import bits, gaps, loops, plane, runs
from tswitch_format.errors import PayloadError

pytest.importorskip("numba")
compiled = pytest.importorskip("tswitch_format.codecs.compiled")

N = 9_999  # no whole word, no whole byte
Use = Callable[[ModuleType | None], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Decode with the compiled loops, or with None without."""

    def use(module: ModuleType | None) -> None:
        for user in (bits, gaps, plane, runs):
            monkeypatch.setattr(user, "loops", lambda: module)

    return use


@pytest.mark.parametrize("density", [0.0005, 0.002, 0.05, 0.3, 0.95])
@pytest.mark.parametrize("mapped", [False, True])
def test_positions_are_the_same(use: Use, density: float, mapped: bool) -> None:
    positions = np.flatnonzero(np.random.default_rng(5).random(N) < density)
    coded = plane.encode(positions, N, mapped=mapped)
    for module in (None, compiled):
        use(module)
        given = (coded.codec, coded.parameter, memoryview(coded.data), N, coded.count)
        assert np.array_equal(plane.decode_positions(*given), positions)
        room = np.full(positions.size + 2, -1)
        plane.decode_positions(*given, start=1 << 40, out=room[1:-1])
        assert room[0] == room[-1] == -1
        assert np.array_equal(room[1:-1], positions + (1 << 40))


@pytest.mark.parametrize("longest", [3, 254, 255, 256, 2000])
def test_escapes_are_followed(use: Use, longest: int) -> None:
    rng = np.random.default_rng(longest)
    positions = np.cumsum(rng.integers(0, longest + 1, 500) + 1) - 1
    n = int(positions[-1]) + 1
    data = memoryview(gaps.encode_gaps(gaps.gaps_of(positions), 0, 1))
    for module in (None, compiled):
        use(module)
        assert np.array_equal(plane.decode_positions(Codec.GAPS_ZSTD, 0, data, n, 500), positions)
        with pytest.raises(PayloadError, match="TSW-706"):
            plane.decode_positions(Codec.GAPS_ZSTD, 0, data, n - 1, 500)


@pytest.mark.parametrize("size", [1, 100, 1024, 4096])
@pytest.mark.parametrize("density", [0.0005, 0.05, 0.6])
def test_tables_of_runs_are_the_same(use: Use, density: float, size: int) -> None:
    rng = np.random.default_rng(8)
    chunks = [np.flatnonzero(rng.random(n) < density) for n in (30_000, 1, 77_777, 8 * 1024)] + [np.empty(0, np.int64)]
    signs = [bits.nbytes(positions.size) for positions in chunks]
    for gap_bytes in (True, False):
        masks = [plane.gap_bytes(p) if gap_bytes else bits.pack_positions(p, int(p.max(initial=0)) + 1) for p in chunks]
        codes, tables = np.concatenate(masks), []
        for module in (None, compiled):
            use(module)
            table = runs.run_table(codes, [mask.size for mask in masks], signs, size, gaps=gap_bytes)
            assert table.ends[:, 0].tolist() == [positions.size for positions in chunks]
            tables.append((table.rows.tolist(), table.stops.tolist(), table.ends.tolist()))
        assert tables[0] == tables[1]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1024, 5000])
def test_ones_are_counted_the_same(use: Use, size: int) -> None:
    packed = np.random.default_rng(9).integers(0, 256, size + 3).astype(np.uint8)[3:]
    counts = set()
    for module in (None, compiled):
        use(module)
        counts.add(bits.count_ones(packed))
    assert counts == {int(np.unpackbits(packed).sum())}


@pytest.mark.parametrize("byte", [0, 127, 128, 254, 255])
def test_long_runs_of_one_byte_are_summed(use: Use, byte: int) -> None:
    codes = np.full(10_001, byte, np.uint8)
    for module in (None, compiled):
        use(module)
        table = runs.run_table(codes, [codes.size], [0], codes.size, gaps=True)
        ends = codes.size * (byte < 255)
        assert table.ends.tolist() == [[ends, codes.size * byte + ends]]


@pytest.mark.parametrize("wrong", [-65, -1, 1, 65])
@pytest.mark.parametrize("density", [0.05, 0.9])
def test_a_bitmap_of_another_count_is_refused(use: Use, wrong: int, density: float) -> None:
    coded = plane.encode(np.flatnonzero(np.random.default_rng(6).random(N) < density), N, mapped=True)
    for module in (None, compiled):
        use(module)
        with pytest.raises(PayloadError, match=f"found {coded.count} .*TSW-704"):
            plane.decode_positions(coded.codec, 0, memoryview(coded.data), N, coded.count + wrong)


def test_decoding_does_not_import_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loops.loops() is compiled
    monkeypatch.delitem(sys.modules, "numba")
    assert loops.loops() is None
