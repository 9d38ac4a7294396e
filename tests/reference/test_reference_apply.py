"""Applying, the programs of the reference reader, and restoring an expert from a checkpoint."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_draft import (
    COLUMNS,
    ROWS,
    Draft,
    coefficients,
    entry,
    masked,
    segment,
    table,
    task,
    tensor,
    ternary,
    vector,
)
from tsw_reference import BrokenError, UsageError, read
from tsw_reference.application import Array, apply, apply_table
from tsw_reference.digest import sampled_digest, tensor_digest
from tsw_reference.safetensors import read_safetensors, write_safetensors

REFERENCE = Path(__file__).parents[2] / "spec" / "reference"
SMALLEST = Path(__file__).parents[1] / "golden" / "smallest.tsw"
W = struct.pack("<10f", *(number / 64 for number in (-64, -27, 10, 47, -45, -8, 29, -63, -26, 11)))
A = struct.pack("<10f", *range(1, 11))
BASE = {"a": Array("F32", (2, 5), A), "b": Array("F16", (4,), bytes(8)), "c": Array("U8", (3,), b"abc")}


def floats(array: Array) -> list[float]:
    return list(struct.unpack(f"<{len(array.data) // 4}f", array.data))


def test_smallest():
    expert = apply(read(SMALLEST.read_bytes()), {"w": Array("F32", (2, 5), W)}, [("t", 1.0)])
    expected = np.frombuffer(W, "<f4").copy()
    expected[[0, 4]] += 0.5
    expected[[3, 9]] -= 0.5
    assert expert["w"].data == expected.tobytes()


def test_every_kind_and_aliases():
    expert = apply(read(Draft().build()), BASE | {"d": BASE["a"]}, [("t", 0.1)])
    rows, columns = struct.unpack("<2e", ROWS), struct.unpack("<5e", COLUMNS)
    expected = np.frombuffer(A, "<f4").copy()
    for element, sign in ((0, 1), (3, -1), (4, 1), (9, -1)):
        step = np.float32(0.5) * np.float32(rows[element // 5]) * np.float32(columns[element % 5]) * np.float32(0.1)
        expected[element] += sign * step
    assert expert["a"].data == expected.tobytes()
    assert expert["d"] == expert["a"]
    assert expert["b"] == Array("F16", (4,), bytes(range(8)))
    assert expert["x"] == Array("I32", (2,), bytes(range(8)))
    assert sorted(expert) == ["a", "b", "d", "x"]


def one_ternary(entry_dtype: int, knob: float) -> dict[str, Any]:
    parts = [segment(1, 1, 2, b""), segment(2, 2, 1, b"\2")]
    return entry(0, 1, entry_dtype, parts, knob=struct.pack("<f", knob), active=2)


def of_two(dtype: int, *entries: dict[str, Any]) -> Draft:
    tasks = [task(f"t{number}", [one]) for number, one in enumerate(entries)]
    return Draft(base=[tensor("a", dtype, 2)], extra=[], aliases={}, tasks=tasks)


def test_binary64_and_one_rounding():
    file = read(of_two(13, one_ternary(11, 2.0**-40)).build())
    tie = 1 + 2.0**-8
    base = {"a": Array("F64", (2,), struct.pack("<2d", tie, tie))}
    # 2^-40 beyond a tie of BF16, of which binary32 would keep nothing.
    assert apply(file, base, [("t0", 1.0)])["a"] == Array("BF16", (2,), bytes.fromhex("813F803F"))


def test_a_cast_without_change_and_beyond_the_range():
    file = read(of_two(12, one_ternary(10, 1e30)).build())
    base = {"a": Array("F32", (2,), struct.pack("<2f", 0.1, 0.1))}
    assert apply(file, base, [("t0", 1.0)])["a"] == Array("F16", (2,), struct.pack("<2e", math.inf, -math.inf))
    assert apply(file, base, [("t0", 0.0)])["a"] == base["a"]
    assert apply(file, base, [])["a"] == base["a"]


def test_a_coefficient_that_rounds_to_zero_still_acts():
    file = read(of_two(12, one_ternary(12, 1.0)).build())
    base = {"a": Array("F32", (2,), struct.pack("<2f", -0.0, -0.0))}
    assert apply(file, base, [("t0", 1e-60)])["a"].data == struct.pack("<2f", 0.0, -0.0)
    assert apply(file, base, [("t0", -0.0)])["a"] == base["a"]


def test_several_tasks_round_once_at_the_end():
    file = read(of_two(10, one_ternary(10, 2.0**-12), one_ternary(10, 2.0**-12)).build())
    base = {"a": Array("F16", (2,), struct.pack("<2e", 1.0, 1.0))}
    half = apply(file, base, [("t0", 1.0)])["a"]
    both = apply(file, base, [("t0", 2.0), ("t1", 1.5)])["a"]
    assert half.data == struct.pack("<2e", 1.0, 1 - 2.0**-11 / 2)[:2] + half.data[2:]
    assert both.data[:2] == struct.pack("<e", 1 + 2.0**-10)


HALVES = struct.pack("<10f", *(number / 2 for number in range(10)))


def of_vector(dtype: int, *entries: dict[str, Any], payload: bytes = HALVES, stored: int = 12) -> Draft:
    """A base of one tensor, and a task for each of these entries, over one vector."""
    tasks = [task(f"t{number}", [one]) for number, one in enumerate(entries)]
    shared = [vector("a", stored, 2, 5, payload=payload)]
    return Draft(base=[tensor("a", dtype, 2, 5)], extra=[], aliases={}, tasks=tasks, shared=shared)


def test_a_masked_entry_adds_its_vector():
    file = read(of_vector(12, masked(0, 12), masked(0, 12, knob=struct.pack("<f", -0.5))).build())
    base = {"a": BASE["a"]}
    vector_values = np.frombuffer(HALVES, "<f4")
    for name, coefficient, scale in (("t0", 1.0, 1.0), ("t1", 1.0, -0.5), ("t0", 3.0, 3.0), ("t1", 2.0, -1.0)):
        expected = np.frombuffer(A, "<f4").copy()
        expected[[0, 3, 4, 9]] += np.float32(scale) * vector_values[[0, 3, 4, 9]]
        assert apply(file, base, [(name, coefficient)])["a"].data == expected.tobytes()
    assert apply(file, base, [("t0", 0.0), ("t1", -0.0)])["a"] == base["a"]
    both = apply(file, base, [("t0", 1.0), ("t1", 2.0)])["a"]
    assert both == base["a"]


def test_a_masked_entry_keeps_what_is_not_active():
    file = read(of_vector(12, masked(0, 12), payload=bytes(40)).build())
    base = {"a": Array("F32", (2, 5), struct.pack("<10f", *[-0.0] * 10))}
    kept = struct.unpack("<10I", apply(file, base, [("t0", 1.0)])["a"].data)
    assert [bits >> 31 for bits in kept] == [0, 1, 1, 0, 0, 1, 1, 1, 1, 0]


def test_a_vector_is_rounded_to_the_working_type_first():
    wide = struct.pack("<10d", *[1 + 2.0**-24 + 2.0**-50, *[1e300] * 9])
    file = read(of_vector(12, masked(0, 12, knob=struct.pack("<f", 2.0**-100)), payload=wide, stored=13).build())
    made = floats(apply(file, {"a": Array("F32", (2, 5), bytes(40))}, [("t0", 1.0)])["a"])
    assert made[0] == (1 + 2.0**-23) * 2.0**-100
    assert made[3] == math.inf
    file = read(of_vector(13, masked(0, 13), payload=wide, stored=13).build())
    made64 = apply(file, {"a": Array("F64", (2, 5), bytes(80))}, [("t0", 1.0)])["a"]
    assert struct.unpack("<10d", made64.data)[0] == 1 + 2.0**-24 + 2.0**-50


def test_tasks_that_do_not_agree():
    file = read(of_two(12, one_ternary(12, 1.0), one_ternary(10, 1.0), entry(0, 4, 12, [])).build())
    base = {"a": Array("F32", (2,), bytes(8))}
    for names in (("t0", "t1"), ("t0", "t2")):
        with pytest.raises(BrokenError, match="TSW-903"):
            apply(file, base, [(name, 1.0) for name in names])
    assert apply(file, base, [("t2", 1.0), ("t0", 0.0)]) == {}
    assert apply(file, base, [("t2", 1.0), ("t2", 0.5)]) == {}


def of_tables(**tables: tuple[list[tuple[float, ...]], dict[str, Any]]) -> Draft:
    """Tensors `a` and `b` of F32, 10, `d` an alias of `a`. Task `t` moves both by 1 where the mask of the worked example is,
    `u` moves them by 2, and `v` by 4; `t` gives a tensor `x`, `u` another one, and `v` gives `b` and unties `d`."""
    parts = [segment(1, 2, 4, b"\x19\x02"), segment(2, 0, 0, b"")]

    def moves(number: int, knob: float) -> dict[str, Any]:
        return entry(number, 1, 12, parts, knob=struct.pack("<f", knob), active=4)

    def gives(number: int, first: int, dtype: int = 7, size: int = 8) -> dict[str, Any]:
        return entry(number, 3, dtype, [segment(5, 16, 2 if dtype == 7 else 10, bytes([first]) * size)])

    tasks = [
        task("t", [moves(0, 1.0), moves(1, 1.0), gives(3, 1)]),
        task("u", [moves(0, 2.0), moves(1, 2.0), gives(3, 2)]),
        task("v", [moves(0, 4.0), gives(1, 0, 12, 40), gives(2, 5)]),
    ]
    return Draft(
        base=[tensor("a", 12, 10), tensor("b", 12, 10)],
        extra=[tensor("d", 7, 2), tensor("x", 7, 2)],
        aliases={"d": 0},
        tasks=tasks,
        shared=[coefficients(name, *rows) for name, (rows, _) in tables.items()],
        tables={name: given for name, (_, given) in tables.items()},
    )


TWO = {"a": Array("F32", (10,), bytes(40)), "b": Array("F32", (10,), bytes(40))}


def first_of(expert: dict[str, Array]) -> dict[str, Any]:
    """The first element of each tensor, which is one that is moved."""
    return {
        name: struct.unpack_from("<f" if array.dtype == "F32" else "<i", array.data)[0]
        for name, array in expert.items()
    }


def whole(byte: int) -> int:
    return byte * 0x01010101


def test_a_table_has_coefficients_for_each_tensor():
    draft = of_tables(k=([(0.5, 0.0), (-1.0, 3.0)], table((0, 1), ["t", "v"])), l=([(2.0,)], table((0,), ["t"])))
    file = read(draft.build())
    with pytest.raises(BrokenError, match="TSW-903"):
        apply_table(file, TWO, "k")
    assert first_of(apply_table(file, TWO, "l")) == {"a": 2.0, "b": 0.0, "d": 2.0, "x": whole(1)}
    assert apply_table(file, TWO, "l")["b"] is TWO["b"]


def test_the_layers_of_a_task():
    draft = of_tables(k=([(0.5, 0.25), (0.0, -1.0)], table((0, 1), ["t", "u"])), l=([(1.0,)], table((0,), ["u"])))
    file = read(draft.build())
    with pytest.raises(BrokenError, match="TSW-903"):
        apply_table(file, TWO, "k")
    for layers in "tu":
        made = {"a": 1.0, "b": -2.0, "d": 1.0, "x": whole("tu".index(layers) + 1)}
        assert first_of(apply_table(file, TWO, "k", layers)) == made
    with pytest.raises(BrokenError, match="TSW-903"):  # `v` gives `b`, `u` moves it
        apply_table(file, TWO, "k", "v")
    assert first_of(apply_table(file, TWO, "l", "v")) == {"a": 2.0, "b": 0.0, "d": whole(5)}


def test_coefficients_are_brought_into_their_clamp():
    values = (-1.0, 0.25, 2.0)
    for bounds, made in (
        ((0.0, 1.0), 0.5 + 4),
        ((0.5, 0.75), 0.5 + 1 + 3),
        ((-3e38, 3e38), -1 + 0.5 + 8),
        ((-1.0, -0.0), -1),
    ):
        rows = ([values], table((0,), list("tuv"), clamp=struct.pack("<2f", *bounds)))
        file = read(of_tables(k=rows).build())
        assert first_of(apply_table(file, TWO, "k", "v"))["a"] == made


def test_wishes_of_tables_that_cannot_be():
    file = read(of_tables(k=([(1.0,)], table((0,), ["t"]))).build())
    with pytest.raises(UsageError, match="a table of the file \\('k'\\), found 't'"):
        apply_table(file, TWO, "t")
    with pytest.raises(UsageError, match=r"a task of the file .*, found 'k'"):
        apply_table(file, TWO, "k", "k")
    with pytest.raises(BrokenError, match="TSW-901"):
        apply_table(file, {"a": TWO["a"]}, "k")
    with pytest.raises(UsageError, match=r"\(none\)"):
        apply_table(read(Draft().build()), BASE, "k")


@pytest.mark.parametrize(
    "change",
    [
        {"b": None},
        {"z": BASE["a"]},
        {"b": Array("BF16", (4,), bytes(8))},
        {"b": Array("F16", (2, 2), bytes(8))},
        {"b": Array("F16", (4,), bytes(7))},
        {"d": Array("F32", (10,), A)},
    ],
)
def test_another_base(change):
    base = {name: array for name, array in (BASE | change).items() if array is not None}
    with pytest.raises(BrokenError, match="TSW-901"):
        apply(read(Draft().build()), base, [("t", 1.0)])


@pytest.mark.parametrize("flags", [1, 2])
def test_another_base_by_its_digests(flags):
    draft = Draft()
    digests = {"sha256": tensor_digest(A)} if flags == 1 else {"sampled": sampled_digest(A)}
    draft.base[0] = tensor("a", 12, 2, 5, flags=flags, **digests)
    file = read(draft.build())
    apply(file, BASE | {"d": BASE["a"]}, [("t", 1.0)])
    for change in ({"a": Array("F32", (2, 5), bytes(40))}, {"d": Array("F32", (2, 5), bytes(40))}):
        with pytest.raises(BrokenError, match="TSW-902"):
            apply(file, BASE | change, [("t", 1.0)])


def test_wishes_that_cannot_be():
    file = read(Draft().build())
    for chosen in ([("u", 1.0)], [("t", math.inf)], [("t", math.nan)]):
        with pytest.raises(UsageError):
            apply(file, BASE, chosen)


def run(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    done = subprocess.run([sys.executable, str(REFERENCE), *arguments], input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def test_the_decoder_program():
    status, out, _ = run(stdin=SMALLEST.read_bytes())
    assert status == 0
    (only,) = json.loads(out)["tasks"]
    assert only["entries"][0]["knob"] == {"f32": "3f000000"}
    assert only["entries"][0]["mask"] == {"hex": "1902"}
    draft = Draft()
    draft.segment(0, 1)["offset"] = 69
    status, out, error = run("decode", stdin=draft.build())
    assert (status, out) == (1, b"")
    assert "[TSW-603]" in error
    assert error.count("\n") == 1
    assert run("nonsense")[0] == 2


def test_the_apply_program():
    case = {
        "file": {"hex": SMALLEST.read_bytes().hex()},
        "base": {"w": {"dtype": "F32", "shape": [2, 5], "data": {"hex": W.hex()}}},
        "tasks": [["t", "1"], ["t", "-1e0"]],
    }
    status, out, _ = run("apply", stdin=json.dumps(case).encode())
    assert status == 0
    assert json.loads(out) == case["base"]
    case["base"]["w"]["data"]["hex"] = bytes(40).hex()
    status, _, error = run("apply", stdin=json.dumps(case).encode())
    assert status == 1
    assert "TSW-902" in error
    assert run("apply", stdin=b"{")[0] == 1


def test_restore(tmp_path):
    base, expert = tmp_path / "base.safetensors", tmp_path / "expert.safetensors"
    write_safetensors(base, BASE, {"format": "pt"})
    file = tmp_path / "file.tsw"
    draft = Draft(edit=lambda index: index["tasks"][0].__setitem__("checkpoint", {"made": "by hand"}))
    file.write_bytes(draft.build())
    assert run("restore", str(base), str(file), str(expert)) == (0, b"", "")
    assert read_safetensors(expert) == apply(read(draft.build()), BASE, [("t", 1.0)])
    header = json.loads(expert.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"made": "by hand"}
    assert run("restore", str(base), str(file), str(expert))[0] == 1
    half = tmp_path / "half.safetensors"
    assert run("restore", str(base), str(file), str(half), "t=0.5")[0] == 0
    assert floats(read_safetensors(half)["a"])[0] == 1.25


def test_restore_with_a_table(tmp_path):
    draft = of_tables(k=([(0.5, 0.25)], table((0,), ["t", "u"])))
    base, file, out = (tmp_path / name for name in ("base", "file.tsw", "out"))
    write_safetensors(base, TWO, {})
    file.write_bytes(draft.build())
    status, _, error = run("table", str(base), str(file), str(out), "k")
    assert (status, out.exists()) == (1, False)
    assert "TSW-903" in error
    assert run("table", str(base), str(file), str(out), "k", "u") == (0, b"", "")
    assert read_safetensors(out) == apply_table(read(draft.build()), TWO, "k", "u")
    assert run("table", str(base), str(file), str(out), "k", "u")[0] == 1
    assert run("table", str(base), str(file), str(out), "k", "t", "u")[0] == 2
    case = {
        "file": {"hex": draft.build().hex()},
        "base": {
            name: {"dtype": "F32", "shape": [10], "data": {"hex": array.data.hex()}} for name, array in TWO.items()
        },
        "table": "k",
        "layers": "t",
    }
    status, made, _ = run("apply", stdin=json.dumps(case).encode())
    assert status == 0
    assert json.loads(made)["x"]["data"] == {"hex": "01" * 8}


def test_restore_asks_which_task(tmp_path):
    tasks = [task("t", [ternary()]), task("u=1", [])]
    file = tmp_path / "two.tsw"
    file.write_bytes(Draft(extra=[], tasks=tasks).build())
    base = tmp_path / "base.safetensors"
    write_safetensors(base, BASE, {})
    status, _, error = run("restore", str(base), str(file), str(tmp_path / "out"))
    assert status == 1
    assert "'t', 'u=1'" in error
    assert run("restore", str(base), str(file), str(tmp_path / "out"), "u=1", "t=0.5")[0] == 0
    assert read_safetensors(tmp_path / "out")["b"] == BASE["b"]


def test_safetensors_of_the_package(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "ours.safetensors"
    write_safetensors(path, BASE, {"format": "np"})
    loaded = numpy.load_file(path)
    assert loaded["a"].tobytes() == A
    numpy.save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, tmp_path / "theirs.safetensors")
    assert floats(read_safetensors(tmp_path / "theirs.safetensors")["w"]) == [0, 1, 2, 3, 4, 5]
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError):
        read_safetensors(tmp_path / "cut")
