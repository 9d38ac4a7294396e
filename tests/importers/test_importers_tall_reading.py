"""Other people's mask files: every form comes in with the same bits, and windows of them are those of np.unpackbits."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tswitch_format.errors import CheckpointError, OptionError, TswError
from tswitch_tools.tall import masks as masks_module
from tswitch_tools.tall.masks import FlatMask, NamedMask
from tswitch_tools.tall.reading import looks_like, open_masks

RNG = np.random.default_rng(7)
N = 61
TASKS = ("SUN397", "Cars", "MNIST")  # not in alphabetical order
BITS = {task: RNG.random(N) < 0.4 for task in TASKS}
PACKED = {task: np.packbits(bits) for task, bits in BITS.items()}
SHAPES = {"logit_scale": (), "b": (3,), "a.weight": (2, 3, 4), "empty": (0, 2)}
NAMED = {task: {name: RNG.random(shape) < 0.5 for name, shape in SHAPES.items()} for task in TASKS}

Content = Any


def torch_saved(content: Content, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def npy(content: Content) -> bytes:
    out = io.BytesIO()
    np.save(out, content, allow_pickle=True)
    return out.getvalue()


def npy_header(version: tuple[int, int], text: str = "{'descr': '|O', 'fortran_order': False, 'shape': (), }") -> bytes:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + b"\n"


def by_numpy_1(masks: dict[str, NDArray[np.uint8]]) -> bytes:
    """The pickle, protocol 3, that np.save of NumPy 1 puts after its header, opcode by opcode."""
    out = bytearray(
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02C\x01bq\x03\x87q\x04Rq\x05"
    )
    out += b"(K\x01)cnumpy\ndtype\nq\x06X\x02\x00\x00\x00O8q\x07\x89\x88\x87q\x08Rq\x09(K\x03X\x01\x00\x00\x00|q\x0aNNN"
    out += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK?tq\x0bb\x89]q\x0c}q\x0d("
    memo = 14
    of_type = b"h\x06X\x02\x00\x00\x00u1q\xfa\x89\x88\x87q\xfbRq\xfc"
    of_type += b"(K\x03h\x0aNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\xfdb"
    for task, mask in masks.items():
        name = task.encode()
        out += b"X" + struct.pack("<I", len(name)) + name + b"q" + bytes([memo])
        out += (
            b"h\x00h\x01K\x00\x85q" + bytes([memo + 1]) + b"h\x03\x87q" + bytes([memo + 2]) + b"Rq" + bytes([memo + 3])
        )
        out += b"(K\x01M" + struct.pack("<H", mask.size) + b"\x85q" + bytes([memo + 4]) + of_type
        out += (
            b"\x89B"
            + struct.pack("<I", mask.size)
            + mask.tobytes()
            + b"q"
            + bytes([memo + 5])
            + b"tq"
            + bytes([memo + 6])
            + b"b"
        )
        memo += 7
        of_type = b"h\xfc"
    return bytes(out + b"uatq\xfeb.")


def tensors(content: Content) -> Content:
    if isinstance(content, dict):
        return {key: tensors(value) for key, value in content.items()}
    return torch.from_numpy(np.array(content))


def opened(data: bytes, folder: Path, name: str = "masks.npy") -> Any:
    (folder / name).write_bytes(data)
    return open_masks(folder / name).tasks


def as_bits(mask: Any) -> NDArray[np.bool_]:
    assert isinstance(mask, FlatMask)
    mask.check(N, "here")
    return np.unpackbits(mask.window(0, N), bitorder="little", count=N).astype(bool)


FLAT_FORMS: dict[str, Callable[[], bytes]] = {
    "npy, numpy 2": lambda: npy(PACKED),
    "npy, numpy 1": lambda: npy_header((1, 0)) + by_numpy_1(PACKED),
    "npy 2.0": lambda: npy_header((2, 0)) + by_numpy_1(PACKED),
    "npy 3.0": lambda: npy_header((3, 0)) + by_numpy_1(PACKED),
    "npy of OrderedDict": lambda: npy(np.array(OrderedDict(PACKED), dtype=object)),
    "npy of bools": lambda: npy(BITS),
    "npy of bools that are 2-d in no order": lambda: npy(
        {k: v.reshape(1, N) for k, v in BITS.items()} | {"x": PACKED["MNIST"]}
    ),
    "zip of packed tensors": lambda: torch_saved(tensors(PACKED)),
    "zip of packed arrays": lambda: torch_saved(PACKED),
    "zip of packed arrays, protocol 4": lambda: torch_saved(PACKED, pickle_protocol=4),
    "zip of bool tensors": lambda: torch_saved(tensors(BITS)),
    "zip of bool arrays": lambda: torch_saved(BITS),
    "zip of both": lambda: torch_saved({**tensors(PACKED), "MNIST": BITS["MNIST"]}),
    "zip of parameters": lambda: torch_saved({k: torch.nn.Parameter(v, False) for k, v in tensors(BITS).items()}),
    "zip of OrderedDict": lambda: torch_saved(OrderedDict(tensors(PACKED))),
    "zip of rows of one tensor": lambda: torch_saved(
        dict(zip(TASKS, tensors(np.stack(list(BITS.values()))), strict=True))
    ),
    **{f"pickle {p}": lambda p=p: pickle.dumps(PACKED, p) for p in (2, 3, 4, 5)},  # type: ignore[misc]
    **{f"pickle {p} of bools": lambda p=p: pickle.dumps(BITS, p) for p in (2, 5)},  # type: ignore[misc]
    "pickle 5 of read-only": lambda: pickle.dumps(
        {k: np.frombuffer(v.tobytes(), np.uint8) for k, v in PACKED.items()}, 5
    ),
    "pickle as numpy 1": lambda: pickle.dumps(PACKED, 2).replace(b"numpy._core", b"numpy.core"),
}


@pytest.mark.parametrize("form", FLAT_FORMS)
def test_every_form_of_flat_masks(form: str, tmp_path: Path) -> None:
    tasks = opened(FLAT_FORMS[form](), tmp_path)
    assert list(tasks)[:3] == list(TASKS)
    for task in TASKS:
        assert np.array_equal(as_bits(tasks[task]), BITS[task])
        assert tasks[task].nbytes == (N + 7) // 8
        assert tasks[task].bits in (None, N)
    assert looks_like(tmp_path / "masks.npy")


def test_the_stream_of_numpy_1_is_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2 of the older module's name
        content = np.load(io.BytesIO(npy_header((1, 0)) + by_numpy_1(PACKED)), allow_pickle=True).item()
    assert {task: mask.tolist() for task, mask in content.items()} == {
        task: mask.tolist() for task, mask in PACKED.items()
    }


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(npy, id="npy"),
        pytest.param(lambda content: torch_saved(tensors(content)), id="zip"),
        pytest.param(torch_saved, id="zip of arrays"),
        pytest.param(lambda content: pickle.dumps(content, 4), id="pickle"),
    ],
)
@pytest.mark.parametrize("one", [False, True], ids=["tasks", "one task"])
def test_masks_by_name(save: Callable[[Content], bytes], one: bool, tmp_path: Path) -> None:
    content = {task: {k: v for k, v in of.items() if v.size or save is not torch_saved} for task, of in NAMED.items()}
    tasks = opened(save(content["Cars"] if one else content), tmp_path, "Cars.x")
    assert list(tasks) == (["Cars"] if one else list(TASKS))
    for task, mask in tasks.items():
        assert isinstance(mask, NamedMask)
        assert list(mask.tensors) == list(mask.shapes) == list(content[task])
        for name, expected in content[task].items():
            assert mask.shapes[name] == expected.shape
            mask.tensors[name].check(expected.size, "here")
            found = mask.tensors[name].window(0, expected.size)
            assert np.array_equal(found, np.packbits(expected.reshape(-1), bitorder="little"))


def test_a_folder_of_tasks(tmp_path: Path) -> None:
    for task in TASKS:
        torch.save(tensors(BITS[task]).reshape(1, N, 1), tmp_path / f"{task}.pt")
    torch.save(tensors(NAMED["Cars"]), tmp_path / "v1.named.pt")
    torch.save({"w": torch.ones(4, dtype=torch.bool)}, tmp_path / "one.pt")  # by itself it would be a task called w
    for other in ("readme.txt", "._MNIST.pt"):
        (tmp_path / other).write_text("no mask")
    (tmp_path / "folder.pt").mkdir()
    masks = open_masks(tmp_path)
    assert list(masks.tasks) == ["Cars", "MNIST", "SUN397", "one", "v1.named"]
    assert masks.source == tmp_path
    assert looks_like(tmp_path)
    for task in TASKS:
        assert np.array_equal(as_bits(masks.tasks[task]), BITS[task])
    for name in ("v1.named", "one"):
        assert isinstance(masks.tasks[name], NamedMask)


@pytest.mark.parametrize(
    "content", [tensors(BITS["MNIST"]), tensors(PACKED["MNIST"]), BITS["MNIST"]], ids=["bool", "packed", "array"]
)
def test_a_file_of_one_task(content: Content, tmp_path: Path) -> None:
    tasks = opened(torch_saved(content), tmp_path, "MNIST.pt")
    assert list(tasks) == ["MNIST"]
    assert np.array_equal(as_bits(tasks["MNIST"]), BITS["MNIST"])


def test_nothing_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(npy(PACKED))
    for mask in open_masks(tmp_path / "a").tasks.values():
        assert isinstance(mask, FlatMask)
        assert not mask.data.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            mask.data[0] = 1


@settings(deadline=None, max_examples=300)
@given(
    data=st.data(), seed=st.integers(0, 2**32 - 1), size=st.integers(0, 400), block=st.sampled_from([8, 64, 1 << 19])
)
def test_windows(data: st.DataObject, seed: int, size: int, block: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, size, np.uint8)
    start = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, size - start))
    expected = np.packbits(bits[start : start + count], bitorder="little")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "_BLOCK", block)
        for mask in (FlatMask(np.packbits(bits), packed=True), FlatMask(bits, packed=False)):
            found = mask.window(start, count)
            assert found.dtype == np.uint8
            assert found.tolist() == expected.tolist()


def test_windows_over_blocks() -> None:
    bits = RNG.integers(0, 2, (1 << 20) + 77, np.uint8)
    mask = FlatMask(np.packbits(bits), packed=True)
    for start, count in ((1, (1 << 20) + 76), (7, 1 << 19), (8, (1 << 19) + 1), (13, (1 << 20) - 1)):
        assert np.array_equal(mask.window(start, count), np.packbits(bits[start : start + count], bitorder="little"))


@pytest.mark.parametrize(("start", "count"), [(0, 65), (64, 1), (-1, 2), (3, -1), (65, 0)])
def test_windows_that_are_not_there(start: int, count: int) -> None:
    with pytest.raises(OptionError, match=r"window: expected bits of 0 to 64, found"):
        FlatMask(np.zeros(8, np.uint8), packed=True).window(start, count)


@pytest.mark.parametrize(
    ("data", "packed", "elements", "message"),
    [
        pytest.param([0] * 8, True, 65, "x: expected 9 bytes, the packed mask of 65 elements, found 8", id="short"),
        pytest.param([0] * 8, True, 56, "x: expected 7 bytes, the packed mask of 56 elements, found 8", id="long"),
        pytest.param(
            [0, 4], True, 13, "x: expected 3 zero bits after the last of 13 elements, found 100", id="padding"
        ),
        pytest.param([0, 1], True, 15, "x: expected 1 zero bits after the last of 15 elements, found 1", id="one bit"),
        pytest.param([0, 1], False, 3, "x: expected a mask of 3 elements, found 2", id="bools"),
        pytest.param([0, 2], False, 2, "x: expected bools, bytes of 0 or 1, found one of 2", id="no bools"),
    ],
)
def test_masks_of_other_models(data: list[int], packed: bool, elements: int, message: str) -> None:
    mask = FlatMask(np.array(data, np.uint8), packed)
    with pytest.raises(CheckpointError) as caught:
        mask.check(elements, "x")
    assert str(caught.value).startswith(message + ";")


def test_masks_that_are_right() -> None:
    FlatMask(np.array([255, 0xE0], np.uint8), packed=True).check(11, "x")
    FlatMask(np.array([255], np.uint8), packed=True).check(8, "x")
    FlatMask(np.array([], np.uint8), packed=True).check(0, "x")
    FlatMask(np.array([1, 0], np.uint8), packed=False).check(2, "x")
    FlatMask(np.array([], np.uint8), packed=False).check(0, "x")


FORTRAN = np.asfortranarray(np.ones((2, 3), bool))
BOOL = torch.ones(2, 3, dtype=torch.bool)
SHARED = dict.fromkeys(map(str, range(100)), np.ones(10**5, np.uint8))
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "floats": (lambda: torch_saved({"a": torch.ones(3)}), r"torch\.FloatStorage, of another type"),
    "int64 array": (lambda: npy({"a": np.ones(3, np.int64)}), r"found the type 'i8'"),
    "big-endian array": (lambda: npy({"a": np.ones(3, ">u2")}), r"found the type 'u2'"),
    "plain npy": (lambda: npy(np.ones(3, np.uint8)), r"found type .*\|u1.* of shape \(3,\)"),
    "npy with fields": (lambda: npy(np.zeros(3, [("a", "i4"), ("b", "O")])), r"expected an array of one dict"),
    "two objects": (lambda: npy(np.array([{}, {}])), r"of shape \(2,\)"),
    "npy of a list": (lambda: npy(np.array([1], object).reshape(())), r"expected an array or tensor, .*found 1;"),
    "npy of another version": (
        lambda: npy_header((4, 0)) + by_numpy_1(PACKED),
        r"NPY 1\.0, 2\.0 .* found version 04\.00",
    ),
    "npy without header": (lambda: b"\x93NUMPY\x01\x00\xff\xff", r"an NPY header, found one of 65535 bytes"),
    "npy with a large header": (
        lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        r"NPY header, found one of 4294967295 bytes",
    ),
    "npy with code": (
        lambda: npy_header((1, 0), "__import__('os').mkdir('pwned')"),
        r"expected the dict of an NPY header",
    ),
    "npy of a pickle": (
        lambda: npy_header((1, 0)) + pickle.dumps(PACKED),
        r"expected an array of one dict, found a dict of 3",
    ),
    "Fortran order": (lambda: npy({"a": {"b": FORTRAN}}), r"in C order \(save it after np\.ascontiguousarray\)"),
    "Fortran order, protocol 5": (lambda: pickle.dumps({"a": {"b": FORTRAN}}, 5), r"in C order"),
    "transposed": (lambda: torch_saved({"a": BOOL.T}), r"a stride of 1 .*save it after \.contiguous\(\)\), found 3"),
    "steps": (lambda: torch_saved({"a": BOOL.reshape(-1)[::2]}), r"a stride of 1 in a tensor .* found 2"),
    "expanded": (lambda: torch_saved({"a": BOOL[:1, :1].expand(9, 9)}), r"a stride of 1 in a tensor .* found 0"),
    "legacy": (lambda: torch_saved(BITS, _use_new_zipfile_serialization=False), r"found a file of an old torch"),
    "packed in two dimensions": (
        lambda: npy({"a": np.ones((2, 3), np.uint8)}),
        r"task 'a': expected packed bits, .*found 2",
    ),
    "packed by name": (
        lambda: npy({"a": {"b": np.ones(3, np.uint8)}}),
        r"tensor 'b': expected .* bools, found one of uint8",
    ),
    "names three deep": (lambda: npy({"a": {"b": {"c": BITS["Cars"]}}}), r"tensor 'b': expected .* found a dict of 1"),
    "a list": (lambda: pickle.dumps(list(PACKED.values())), r"expected an array or tensor, .*found a list of 3"),
    "nothing": (lambda: pickle.dumps({}), r"found an empty one"),
    "no masks of a task": (lambda: pickle.dumps({"a": {}}), r"task 'a': expected an array .*, found an empty dict"),
    "number": (lambda: pickle.dumps({"a": 0.5}), r"task 'a': expected an array .*, found 0\.5"),
    "names that are numbers": (lambda: pickle.dumps({3: PACKED["Cars"]}), r"a text as a key, .*, found 3"),
    "objects": (lambda: npy({"a": np.array([None])}), r"an array of type 'b1' or 'u1' .* found the type 'O8'"),
    "module": (lambda: torch_saved(torch.nn.Linear(1, 1)), r"found torch\.nn\.modules\.linear\.Linear"),
    "protocol 0": (lambda: pickle.dumps(PACKED, 0), r"found a file that begins with"),
    "safetensors": (lambda: b"\x40\0\0\0\0\0\0\0{}", r"a file that begins with 40 00"),
    "empty": (lambda: b"", r"a file that begins with nothing"),
    "shared a hundred times": (lambda: pickle.dumps(SHARED), r"the same ones"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(make(), tmp_path, "m.pt")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'm.pt'}: ")
    assert "expected" in text and "found" in text and ";" in text
    assert text.isprintable()


def test_paths_that_are_none(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "expected a file of masks or a folder of them, found none"),
        (tmp_path, r"\.pt file for each task, found 0"),
    ):
        assert not looks_like(path)
        with pytest.raises(CheckpointError, match=message):
            open_masks(path)


FUZZED = {
    name: FLAT_FORMS[name]()
    for name in (
        "npy, numpy 1",
        "npy, numpy 2",
        "zip of packed tensors",
        "zip of packed arrays",
        "pickle 2",
        "pickle 5",
    )
} | {"zip of names": torch_saved(tensors(NAMED))}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """With some bytes changed, taken out, doubled, or put in from elsewhere."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(out) + 1)) if rng.random() < 0.5 else int(rng.integers(min(len(out), 400) + 1))
        size = int(rng.integers(1, 9))
        kind = rng.integers(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at : at + size] = rng.integers(0, 256, size, np.uint8).tobytes()
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif out:
            other = int(rng.integers(len(out)))
            out[at : at + size] = out[other : other + size]
    return bytes(out)


@pytest.mark.parametrize("form", FUZZED)
def test_any_bytes_are_read_or_refused(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(list(FUZZED).index(form))
    path = tmp_path / "m"
    refused = 0
    for _ in range(1000):
        path.write_bytes(mutated(FUZZED[form], rng))
        try:
            tasks = open_masks(path).tasks
        except TswError as error:
            refused += 1
            assert str(error).isprintable()
            continue
        for mask in tasks.values():
            for flat in [mask] if isinstance(mask, FlatMask) else mask.tensors.values():
                flat.window(0, flat.data.size)
    assert refused > 500
