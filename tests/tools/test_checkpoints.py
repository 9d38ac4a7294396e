"""Safetensors and torch files as checkpoints, against the safetensors package and torch."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.checkpoint import (
    ArrayCheckpoint,
    CheckpointReader,
    ShardLayout,
    TensorSpec,
    create_checkpoint,
    open_checkpoint,
)
from tswitch_format.errors import CheckpointError, OutputError
from tswitch_format.torch import checkpoint as torch_objects
from tswitch_tools.checkpoints import safetensors_reader, safetensors_writer, torch_files

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


def all_types() -> dict[str, torch.Tensor]:
    """One tensor of each type, of odd sizes, so that alignment matters."""
    values = torch.arange(15, dtype=torch.float32).reshape(3, 5) - 4
    tensors = {f"t.{name}": (values > 0 if name == "BOOL" else values.to(d)) for name, d in TORCH_DTYPES.items()}
    return {**tensors, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "ünïcode": torch.ones(1)}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def read(reader: CheckpointReader, name: str) -> bytes:
    """All bytes of a tensor, in pieces of odd sizes."""
    out = np.zeros(reader.specs[name].nbytes, np.uint8)
    for start in range(0, out.size, 7):
        reader.read_into(name, start, out[start : start + 7])
    return out.tobytes()


def assert_holds(reader: CheckpointReader, tensors: Mapping[str, torch.Tensor]) -> None:
    assert set(reader.specs) | set(reader.aliases) == set(tensors)
    for name, tensor in tensors.items():
        kept = reader.aliases.get(name, name)
        assert reader.specs[kept].shape == tuple(tensor.shape)
        assert read(reader, kept) == raw(tensor), name


def copy(reader: CheckpointReader, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    specs = list(reader.specs.values())
    writer = create_checkpoint(path, like=reader, specs=specs, metadata=metadata or {})
    with ThreadPoolExecutor(2) as pool:
        for spec in specs:
            data = np.frombuffer(read(reader, spec.name), np.uint8)
            middle = spec.nbytes // 2
            pool.submit(writer.write_from, spec.name, middle, data[middle:]).result()
            pool.submit(writer.write_from, spec.name, 0, data[:middle]).result()
    writer.commit()


def save_header(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "U8", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def save_shards(folder: Path, *, suffix: str = ".safetensors") -> dict[str, torch.Tensor]:
    """A folder like those of Hugging Face: two shards, an index, a configuration."""
    folder.mkdir()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    shards = [
        {"a.w": torch.randn(4, 3), "z.w": torch.ones(5).bfloat16()},
        {"b.w": torch.randn(2, 2), "c.w": torch.ones(3)},
    ]
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"{stem}-0000{i}-of-00002{suffix}"
        if suffix == ".safetensors":
            safetensors.torch.save_file(shard, folder / file, {"format": "pt", "shard": str(i)})
        else:
            torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 98}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"\x00\x01")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / ".hidden").write_text("no")
    (folder / "subfolder").mkdir()
    return shards[0] | shards[1]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Reading safetensors


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(all_types(), path, {"format": "pt", "k": "v"})
    reader = open_checkpoint(str(path))
    assert_holds(reader, all_types())
    assert reader.location == str(path)
    assert reader.paths == [path]
    assert reader.metadata == {"format": "pt", "k": "v"}
    assert reader.aliases == {}
    assert list(reader.layout.files) == ["model.safetensors"]
    assert list(reader.layout.files["model.safetensors"]) == list(reader.specs)
    assert reader.layout.folder is None
    assert reader.layout.index_name is None
    assert {s.dtype.name for s in reader.specs.values()} == set(TORCH_DTYPES)
    reader.close()
    with pytest.raises(CheckpointError, match="it is closed; open it again"):
        read(reader, "t.F32")


def test_types_below_a_byte(tmp_path: Path) -> None:
    header = {"x": entry(0, 3, "F4", [6]), "y": entry(3, 6, "F6_E2M3", [2, 2]), "z": entry(6, 7, "F8_E8M0", [1])}
    path = save_header(tmp_path / "m.safetensors", header, bytes(range(7)))
    reader = open_checkpoint(path)
    assert [read(reader, n) for n in "xyz"] == [bytes([0, 1, 2]), bytes([3, 4, 5]), bytes([6])]
    copy(reader, tmp_path / "n.safetensors")
    assert read(open_checkpoint(tmp_path / "n.safetensors"), "y") == bytes([3, 4, 5])


def test_range_outside_tensor_is_refused(tmp_path: Path) -> None:
    path = save_header(tmp_path / "m.safetensors", {"x": entry(0, 3), "y": entry(3, 6)}, bytes(6))
    reader = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="'x': expected a range within its 3 bytes, found 1 to 4; ask for less"):
        reader.read_into("x", 1, np.zeros(3, np.uint8))
    with pytest.raises(CheckpointError, match="it is not in it"):
        reader.read_into("q", 0, np.zeros(3, np.uint8))


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:5]], offset))
    safetensors.torch.save_file(all_types(), tmp_path / "m.safetensors")
    assert_holds(open_checkpoint(tmp_path / "m.safetensors"), all_types())


def test_file_that_is_cut_while_open(tmp_path: Path) -> None:
    path = save_header(tmp_path / "m.safetensors", {"x": entry(0, 100)}, bytes(100))
    reader = open_checkpoint(path)
    size = path.stat().st_size
    os.truncate(path, size - 30)
    with pytest.raises(
        CheckpointError, match=rf"m.safetensors: expected 30 more bytes at byte {size - 30}, found the end"
    ):
        read_all = np.zeros(100, np.uint8)
        reader.read_into("x", 0, read_all)


def test_disk_error_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_checkpoint(save_header(tmp_path / "m.safetensors", {"x": entry(0, 9)}, bytes(9)))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"cannot be read at byte \d+: Input/output error; check the disk"):
        read(reader, "x")


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": entry(0, 2), "y": entry(3, 4)}, 4, "'y': expected its data to begin at byte 2 .* found 3 (a hole)"),
        ({"x": entry(0, 2), "y": entry(1, 3)}, 3, "'y': expected its data to begin at byte 2 .* found 1 (an overlap)"),
        ({"x": entry(1, 2)}, 2, "'x': expected its data to begin at byte 0 .* (a hole)"),
        ({"x": entry(0, 2)}, 1, "expected 70 bytes, found 69: the file is truncated; download the file again"),
        ({"x": entry(0, 2)}, 3, "expected 70 bytes, found 71: the file has bytes that belong to no tensor"),
        ({"x": entry(0, 2, "F32")}, 2, "'x': expected 8 bytes of data for F32[2], found 2 (0 to 2)"),
        ({"x": entry(0, 4, "F4", [7])}, 4, "'x': expected whole bytes of data, found 7 of 4 bits"),
        ({"x": entry(0, 4, "F99", [1])}, 4, "'x': expected one of the types BOOL, .* found 'F99'; convert"),
        ({"x": entry(0, 4, shape=[-2, -2])}, 4, "'x': expected dtype, shape and data_offsets"),
        ({"x": entry(0, 1, shape=[True])}, 1, "'x': expected dtype, shape and data_offsets"),
        ({"x": entry(0, 0, shape=[0, 1 << 63])}, 0, "'x': expected dtype, shape and data_offsets"),
        ({"x": entry(0, 1, shape=[1.0])}, 1, "'x': expected dtype, shape and data_offsets"),
        ({"x": [1]}, 0, "'x': expected dtype, shape and data_offsets"),
        (b'{"x":' + b"[" * 900 + b"]" * 900 + b"}", 0, "expected .*; download the file again"),
        ({"x": {**entry(0, 1), "data_offsets": [0]}}, 1, "'x': expected dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__: expected a map of string to string"),
        ({"__metadata__": []}, 0, "__metadata__: expected a map of string to string"),
        ([], 0, "header at byte 8: expected a JSON object, found a list"),
        (b'{"x":{},"x":{}}', 0, "expected JSON, found something else: the key 'x' comes twice"),
        (b'{"__metadata__":{"a":"1","a":"2"}}', 0, "the key 'a' comes twice"),
        (rb'{"\ud800":1}', 0, "surrogates not allowed"),
        (b"{\xff}", 0, "expected JSON, found something else: 'utf-8' codec"),
        (b"[" * 100_000, 0, "expected JSON, found something else: "),
        (b"", 0, "expected JSON, found something else: Expecting value"),
    ],
)
def test_wrong_headers(tmp_path: Path, header: object, data: int, message: str) -> None:
    path = save_header(tmp_path / "m.safetensors", header, bytes(data))
    plain = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(CheckpointError, match=plain) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="expected a safetensors file, found one of only 5 bytes"):
        open_checkpoint(path)
    path.write_bytes(b"%PDF-1.7 something else")
    with pytest.raises(
        CheckpointError, match=r"at most 100000000 bytes, found the length .* this is no safetensors file"
    ):
        open_checkpoint(path)
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"expected a header of 1000 bytes at byte 8, found the end .* byte 10"):
        open_checkpoint(path)


def test_what_is_accepted(tmp_path: Path) -> None:
    sources: list[object] = [tmp_path, tmp_path / "none.safetensors", "model.safetensors", {}, None]
    for source in sources:
        assert not safetensors_reader.accepts(source)
        assert not torch_files.accepts(source)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors file, a folder"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert not safetensors_reader.accepts(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="expected a regular file"):
        safetensors_reader.open_reader(tmp_path / "pipe.safetensors")
    (tmp_path / "pytorch_model.bin").touch()
    assert torch_files.accepts(tmp_path)
    assert not safetensors_reader.accepts(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert not torch_files.accepts(tmp_path)
    assert safetensors_reader.accepts(tmp_path)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened: No such file or directory"):
        safetensors_reader.open_reader(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="cannot be listed: No such file or directory; check its permissions"):
        safetensors_reader.folder_files(tmp_path / "none")


# Folders of safetensors


def test_sharded_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tensors = save_shards(folder)
    for source in (folder, folder / "model.safetensors.index.json"):
        reader = open_checkpoint(source)
        assert_holds(reader, tensors)
        assert reader.layout.folder == folder
        assert reader.layout.index_name == "model.safetensors.index.json"
        assert list(reader.layout.files) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        assert [n for file in reader.layout.files.values() for n in file] == list(reader.specs)
        assert reader.metadata == {"format": "pt", "shard": "1"}
        assert [m["shard"] for m in reader.layout.metadata.values()] == ["1", "2"]
        assert [p.name for p in reader.paths] == [*reader.layout.files, "model.safetensors.index.json"]
        reader.close()


def test_folder_without_index(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tensors = save_shards(folder)
    (folder / "model.safetensors.index.json").unlink()
    reader = open_checkpoint(folder)
    assert_holds(reader, tensors)
    assert reader.layout.index_name is None
    safetensors.torch.save_file({"b.w": torch.ones(2)}, folder / "more.safetensors")
    with pytest.raises(
        CheckpointError, match=r"more.safetensors: tensor 'b.w': expected it in one file, found it in model-"
    ):
        open_checkpoint(folder)


def test_index_of_another_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tensors = save_shards(folder)
    index = folder / "model.safetensors.index.json"
    other = index.rename(folder / "diffusion.safetensors.index.json")
    assert_holds(open_checkpoint(folder), tensors)
    (folder / "x.safetensors.index.json").write_bytes(other.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"expected one index, found diffusion.safetensors.index.json, x.safetensors"
    ):
        open_checkpoint(folder)
    index.write_bytes(other.read_bytes())
    assert open_checkpoint(folder).layout.index_name == index.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.w": "model-00002-of-00002.safetensors"}, r"tensor 'a.w': expected it in 'model-00002.* in 'model-00001"),
        (
            {"q.w": "model-00002-of-00002.safetensors"},
            r"tensor 'q.w': .* found it in no file; download the folder again",
        ),
        ({"b.w": None}, r"tensor 'b.w': expected it in no file as listed, found it in 'model-00002"),
        ({"b.w": "missing.safetensors"}, "expected the file 'missing.safetensors' beside the index, found none"),
        (
            {"b.w": "../model/model-00002-of-00002.safetensors"},
            r"expected names of files beside the index, found '\.\./",
        ),
        ({"b.w": ".."}, r"expected names of files beside the index, found '\.\.'"),
        ({"b.w": 3}, "expected a weight_map of tensor name to file name, found none"),
    ],
)
def test_lying_index(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tmp_path / "model"
    save_shards(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {k: v for k, v in (index["weight_map"] | change).items() if v is not None}
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "x", "a": "y"}}'])
def test_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json: expected .* so that index and files are of one save"):
        open_checkpoint(tmp_path)


def test_no_descriptor_leaks_on_errors(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_shards(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    before = os.dup(0)  # the lowest free descriptor
    os.close(before)
    for _ in range(3):
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
    after = os.dup(0)
    os.close(after)
    assert after == before


# Files of torch


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"m{suffix}"
    tensors = all_types()
    if not zipped:  # torch cannot load its own legacy files of these types
        tensors = {n: t for n, t in tensors.items() if not n.startswith(("t.U16", "t.U32", "t.U64", "t.F8"))}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    reader = open_checkpoint(path)
    assert_holds(reader, tensors)
    assert (reader.location, list(reader.paths), reader.layout.folder) == (str(path), [path], None)
    assert list(reader.layout.files[path.name]) == list(tensors)
    reader.close()


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    tensors = {
        "head": weight,
        "embed": weight,
        "turned": weight.t(),
        "part": weight[2:4],
        "columns": weight[:, 1:3],
        "spread": torch.ones(1).expand(5, 2),
        "strange": torch.randn(3, 4, 5).permute(2, 0, 1),
        "conjugate": torch.complex(torch.ones(3), torch.ones(3)).conj(),
    }
    torch.save(tensors, tmp_path / "m.pt")
    for source in (tmp_path / "m.pt", tensors):
        reader = open_checkpoint(source)
        assert reader.aliases == {"head": "embed"}
        assert_holds(reader, {n: t.resolve_conj() for n, t in tensors.items()})


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dict(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 3, wrapper: OrderedDict(w=torch.ones(2))}, tmp_path / "m.pt")
    assert_holds(open_checkpoint(tmp_path / "m.pt"), {"w": torch.ones(2)})


def test_sharded_bin_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tensors = save_shards(folder, suffix=".bin")
    assert not safetensors_reader.accepts(folder)
    for source in (folder, folder / "pytorch_model.bin.index.json"):
        reader = open_checkpoint(source)
        assert_holds(reader, tensors)
        assert reader.layout.folder == folder
        assert reader.layout.index_name == "pytorch_model.bin.index.json"
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    index["weight_map"].pop("a.w")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"tensor 'a.w': expected it in no file as listed"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    assert_holds(open_checkpoint(folder), tensors)  # training_args.bin is left out
    torch.save({"a.w": torch.ones(1)}, folder / "x.pt")
    with pytest.raises(CheckpointError, match=r"x.pt: tensor 'a.w': expected it in one file"):
        open_checkpoint(folder)
    torch.save({"only": torch.ones(1)}, folder / "pytorch_model.bin")
    assert list(open_checkpoint(folder).specs) == ["only"]


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(1), "x": Malicious()}, "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"a pickle that would run posix.mkdir, which is refused; convert it to"
    ) as e:
        open_checkpoint("m.pt")
    assert "\n" not in str(e.value)
    assert names(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "expected a dict of name to tensor, found list; save module.state_dict"),
        ({"w": torch.ones(1), "epoch": 3}, "found int under 'epoch'"),
        ({"epoch": 3}, "found int under 'epoch'"),
        ({3: torch.ones(1)}, "expected names of tensors, found the key 3"),
        ({"w": torch.ones(3).to_sparse()}, "tensor 'w': expected a dense tensor, found a sparse_coo tensor"),
        ({"w": torch.ones(3, device="meta")}, "tensor 'w': .* on the meta device"),
        ({"w": torch.ones(3, dtype=torch.complex128)}, r"tensor 'w': dtype torch.complex128 cannot be stored"),
    ],
)
def test_what_torch_files_may_not_hold(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert str(caught.value).startswith(str(tmp_path / "m.pt"))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 hello", b"\x80\x02}q\x00.", bytes(300)])
def test_no_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.bin: expected a (file of tensors by torch.save|dict)") as caught:
        open_checkpoint(tmp_path / "m.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_torch_files(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.arange(300), "v": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content[: random.integers(1, len(content))] if random.random() < 0.3 else content)
        for at in random.integers(0, min(len(damaged), 600), 3):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            open_checkpoint(path).close()
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_torch_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "m.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"run pip install 'tswitch-format\[torch\]'"):
        torch_files.open_reader(tmp_path / "m.pt")


# Torch objects


def test_module_and_mixed_mapping() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)).bfloat16()
    module[1].weight = module[0].weight
    reader = open_checkpoint(module)
    assert reader.aliases == {"1.weight": "0.weight"}
    assert reader.location == "the state_dict of Sequential"
    assert_holds(reader, module.state_dict())
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    reader = open_checkpoint({"t": torch.ones(2), "a": array, "b": array})
    assert reader.aliases == {"b": "a"}
    assert read(reader, "a") == array.tobytes()
    assert read(reader, "t") == raw(torch.ones(2))
    with pytest.raises(CheckpointError, match=r"the mapping of tensors: expected tensors only, found int under 'n'"):
        open_checkpoint({"t": torch.ones(2), "n": 3})
    with pytest.raises(CheckpointError, match=r"pass module.state_dict"):
        open_checkpoint(torch.optim.SGD(module.parameters()))


def test_types_of_torch() -> None:
    for name, dtype in TORCH_DTYPES.items():
        assert torch_objects.dtype_of_tensor(torch.empty(1, dtype=dtype)) is DTYPE_BY_NAME[name]
    assert torch_objects.dtype_of_tensor(torch.empty(1, dtype=torch.complex128)) is None


def test_torch_is_imported_only_when_needed(tmp_path: Path) -> None:
    save_header(tmp_path / "m.safetensors", {"x": entry(0, 2)}, bytes(2))
    code = (
        "import sys; from tswitch_format.checkpoint import open_checkpoint; open_checkpoint(sys.argv[1]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.safetensors")], check=True)


# Writing


def test_safetensors_reads_what_we_wrote(tmp_path: Path) -> None:
    tensors = all_types()
    reader = open_checkpoint(tensors)  # in memory, so in sorted order, which does not align
    copy(reader, tmp_path / "m.safetensors", {"made": "by ünit test"})
    loaded = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert {n: (t.dtype, t.shape, raw(t)) for n, t in loaded.items()} == {
        n: (t.dtype, t.shape, raw(t)) for n, t in tensors.items()
    }
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"made": "by ünit test"}
    content = (tmp_path / "m.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert next(iter(header)) == "__metadata__"
    for name, spec in reader.specs.items():
        assert header[name]["data_offsets"][0] % spec.dtype.storage.itemsize == 0
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_order_and_metadata_are_kept(tmp_path: Path) -> None:
    path = save_header(tmp_path / "a.safetensors", {"z": entry(0, 4), "a": entry(4, 8, "F32", [])}, bytes(8))
    reader = open_checkpoint(path)
    copy(reader, tmp_path / "b.safetensors")
    again = open_checkpoint(tmp_path / "b.safetensors")
    assert list(again.specs) == ["z", "a"]
    assert again.metadata == {}
    assert b"__metadata__" not in (tmp_path / "b.safetensors").read_bytes()
    copy(again, tmp_path / "c.safetensors", {"k": "1", "l": "1"})
    copy(open_checkpoint(tmp_path / "c.safetensors"), tmp_path / "d.safetensors", {"k": "2"})
    assert open_checkpoint(tmp_path / "d.safetensors").metadata == {"k": "2", "l": "1"}


def test_folder_like_a_folder(tmp_path: Path) -> None:
    tensors = save_shards(tmp_path / "base")
    (tmp_path / "base" / "big.json").touch()
    os.truncate(tmp_path / "base" / "big.json", 64 << 20)
    (tmp_path / "base" / "notes.md").symlink_to("config.json")
    reader = open_checkpoint(tmp_path / "base")
    copy(reader, tmp_path / "out", {"made": "here"})
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    assert names(tmp_path / "out") == ["config.json", *shards, index, "notes.md", "tokenizer.model"]
    text = (tmp_path / "out" / index).read_text()
    files = {"a.w": shards[0], "b.w": shards[1], "c.w": shards[1], "z.w": shards[0]}
    expected = {"metadata": {"total_size": 4 * 12 + 2 * 5 + 4 * 4 + 4 * 3}, "weight_map": files}
    assert text == json.dumps(expected, indent=2) + "\n"
    again = open_checkpoint(tmp_path / "out")
    assert_holds(again, tensors)
    assert again.layout.metadata[shards[1]] == {"format": "pt", "shard": "2", "made": "here"}
    assert {n for s in shards for n in safetensors.torch.load_file(tmp_path / "out" / s)} == set(tensors)


def test_added_and_dropped_tensors(tmp_path: Path) -> None:
    save_shards(tmp_path / "base")
    reader = open_checkpoint(tmp_path / "base")
    new = TensorSpec("new", DTYPE_BY_NAME["U8"], (3,))

    def shards(out: str, *kept: str) -> dict[str, list[str]]:
        specs = [reader.specs[n] for n in kept] + [new]
        writer = create_checkpoint(tmp_path / out, like=reader, specs=specs, metadata={})
        for spec in specs:
            writer.write_from(spec.name, 0, np.zeros(spec.nbytes, np.uint8))
        writer.commit()
        return {file: list(n) for file, n in open_checkpoint(tmp_path / out).layout.files.items()}

    first, second = reader.layout.files
    assert shards("o1", "a.w", "z.w", "b.w") == {first: ["a.w", "z.w"], second: ["b.w", "new"]}
    assert shards("o2", "a.w") == {first: ["a.w"], second: ["new"]}
    assert shards("o3") == {"model.safetensors": ["new"]}
    assert not (tmp_path / "o3" / "model.safetensors.index.json").exists()


def test_folder_like_bin_folder(tmp_path: Path) -> None:
    tensors = save_shards(tmp_path / "base", suffix=".bin")
    copy(open_checkpoint(tmp_path / "base"), tmp_path / "out-3.1")
    assert names(tmp_path / "out-3.1") == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
    ]
    assert_holds(open_checkpoint(tmp_path / "out-3.1"), tensors)


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        (ShardLayout(), "model.safetensors"),
        (ShardLayout({"base.safetensors": ["x"]}), "model.safetensors"),
        (ShardLayout({"pytorch_model.bin": ["x"]}, folder=Path("base")), "model.safetensors"),
        (ShardLayout({"diffusion.safetensors": ["x"]}, folder=Path("base")), "diffusion.safetensors"),
    ],
)
def test_folder_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: ShardLayout, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    reader = ArrayCheckpoint({"x": np.ones(3)})
    reader.layout = layout
    copy(reader, tmp_path / "out")
    assert names(tmp_path / "out") == [file]


def test_tensors_that_fit_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ArrayCheckpoint({})
    u8 = DTYPE_BY_NAME["U8"]

    def message(*tensors: str, **metadata: str) -> str:
        specs = [TensorSpec(name, u8, ()) for name in tensors]
        with pytest.raises(CheckpointError) as caught:
            create_checkpoint(tmp_path / "m.safetensors", like=reader, specs=specs, metadata=metadata)
        return str(caught.value)

    assert "differ from each other and from '__metadata__', found '__metadata__'; rename" in message("__metadata__")
    assert "found 'a'; rename" in message("a", "a")
    assert r"valid Unicode, found '\udcff'" in message("a", key="\udcff")
    monkeypatch.setattr(safetensors_writer, "MAX_HEADER", 30)
    assert "expected a safetensors header of at most 30 bytes" in message("a")
    assert names(tmp_path) == []


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_full_disk_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    save_shards(tmp_path / "base")
    reader = open_checkpoint(tmp_path / "base")
    specs = list(reader.specs.values())
    writer = create_checkpoint(tmp_path / out, like=reader, specs=specs, metadata={})
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_space)
        with pytest.raises(OutputError, match=rf"{out}: could not be written: No space left on device; what was there"):
            writer.write_from("a.w", 0, np.zeros(48, np.uint8))
        writer.abort()
        assert names(tmp_path) == ["base"]
        with pytest.raises(OutputError, match="No space left"):
            create_checkpoint(tmp_path / out, like=reader, specs=specs, metadata={})
        assert names(tmp_path) == ["base"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OutputError, match="No space left"):
            copy(reader, tmp_path / out)
    assert names(tmp_path) == ["base"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", no_space)
        if out == "out":
            with pytest.raises(
                CheckpointError, match=r"config\.json: could not be read, to be copied beside the weights"
            ):
                copy(reader, tmp_path / out)
    assert names(tmp_path) == ["base"]


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_unfinished_output(tmp_path: Path, out: str) -> None:
    reader = ArrayCheckpoint({"x": np.ones(3), "y": np.ones(2)})

    def writer() -> Any:
        return create_checkpoint(tmp_path / out, like=reader, specs=list(reader.specs.values()), metadata={})

    unfinished = writer()
    unfinished.write_from("x", 0, np.zeros(24, np.uint8))
    unfinished.write_from("y", 8, np.zeros(8, np.uint8))
    with pytest.raises(OutputError, match="tensor 'y': expected 16 bytes before commit, found 8 written"):
        unfinished.commit()
    assert names(tmp_path) == []
    with pytest.raises(OutputError, match="already committed or aborted"):
        unfinished.write_from("x", 0, np.zeros(24, np.uint8))
    finished = writer()
    with pytest.raises(OutputError, match="tensor 'y': expected a range within its 16 bytes, found 8 to 17"):
        finished.write_from("y", 8, np.zeros(9, np.uint8))
    with pytest.raises(OutputError, match="tensor 'q': expected a range within its 0 bytes"):
        finished.write_from("q", 0, np.zeros(9, np.uint8))
    finished.write_from("x", 0, np.zeros(24, np.uint8))
    finished.write_from("y", 0, np.zeros(16, np.uint8))
    finished.commit()
    with pytest.raises(OutputError, match="already committed or aborted"):
        finished.commit()
    finished.abort()
    assert names(tmp_path) == [out]
    assert_holds(open_checkpoint(tmp_path / out), {"x": torch.zeros(3).double(), "y": torch.zeros(2).double()})


def test_existing_output_stays_until_commit(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"precious")
    reader = ArrayCheckpoint({"x": np.ones(3)})
    writer = create_checkpoint(path, like=reader, specs=list(reader.specs.values()), metadata={})
    writer.write_from("x", 0, np.zeros(24, np.uint8))
    writer.abort()
    writer.abort()
    assert path.read_bytes() == b"precious"
    assert names(tmp_path) == [path.name]
    copy(reader, path)
    assert_holds(open_checkpoint(path), {"x": torch.ones(3).double()})
    with pytest.raises(OutputError, match="expected a folder that does not exist yet or is empty"):
        copy(reader, tmp_path)


def test_output_equals_input(tmp_path: Path) -> None:
    save_shards(tmp_path / "base")
    (tmp_path / "link").symlink_to("base")
    reader = open_checkpoint(tmp_path / "base")
    first = next(iter(reader.layout.files))
    for out in ("base", f"base/{first}", "link", f"link/{first}", f"base/subfolder/../{first}"):
        with pytest.raises(OutputError, match="the output is one of the inputs; name another output"):
            create_checkpoint(tmp_path / out, like=reader, specs=[], metadata={})
    with pytest.raises(
        CheckpointError, match=r"a checkpoint of that kind cannot be written; name the output OUT.safetensors"
    ):
        create_checkpoint(tmp_path / "out.bin", like=reader, specs=[], metadata={})
    assert names(tmp_path) == ["base", "link"]


def test_threads_read_and_write(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    arrays = {f"t{i}": random.integers(0, 256, 100_003, np.uint8) for i in range(8)}
    source = ArrayCheckpoint(arrays)
    copy(source, tmp_path / "a.safetensors")
    reader = open_checkpoint(tmp_path / "a.safetensors")
    writer = create_checkpoint(tmp_path / "b", like=reader, specs=list(reader.specs.values()), metadata={})

    def move(job: tuple[str, int]) -> None:
        name, start = job
        out = np.empty(min(4096, 100_003 - start), np.uint8)
        reader.read_into(name, start, out)
        writer.write_from(name, start, out)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(move, [(name, start) for start in range(0, 100_003, 4096) for name in arrays]))
    writer.commit()
    again = open_checkpoint(tmp_path / "b")
    for name, array in arrays.items():
        out = np.empty(array.size, np.uint8)
        again.read_into(name, 0, out)
        np.testing.assert_array_equal(out, array)
