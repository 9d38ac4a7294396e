"""Hostile checkpoints: no code of theirs runs, and each is refused in a line or read within its own bytes."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tswitch_format.checkpoint import open_checkpoint
from tswitch_format.errors import CheckpointError


class Evil:
    """Runs a command when it is loaded by a careless reader."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def saved(content: Any, *, zipped: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def archive(code: bytes, storage: bytes | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A file as of torch.save with this pickle and this storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("a/data.pkl", code)
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")
        if storage is not None:
            file.writestr("a/data/0", storage)
    return out.getvalue()


def code_of(content: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(content))) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))


def test_the_pickle_of_these_tests_would_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved({"w": torch.ones(1), "x": Evil()}), id="zip"),
        pytest.param(saved({"w": torch.ones(1), "x": Evil()}, zipped=False), id="legacy"),
        pytest.param(saved({"w": [{"x": (Evil(),)}]}), id="nested"),
        pytest.param(pickle.dumps(Evil()), id="pickle"),
        pytest.param(pickle.dumps({"w": Evil()}, 4), id="pickle 4"),
        pytest.param(b'cbuiltins\neval\n(S\'__import__("os").mkdir("pwned")\'\ntR.', id="eval"),
        pytest.param(archive(b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00a\x85R."), id="torch.load"),
    ],
)
def test_no_pickle_runs_code(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"m\.pt: expected a (file of tensors|dict)") as caught:
        open_checkpoint(Path("m.pt"))
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


FOUR = code_of({"w": torch.ones(4)})
HUGE = FOUR.replace(b"K\x04", b"\x8a\x06\x00\x00\x00\x00\x00\x40")  # 2^46 elements


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(archive(HUGE, bytes(16)), id="a storage of 2^46 elements"),
        pytest.param(archive(FOUR), id="a storage that is not there"),
        pytest.param(archive(b"\x80\x02X\xff\xff\xff\x7fabc."), id="a str of 2 GiB"),
        pytest.param(archive(b"\x80\x02\x8b\xff\xff\xff\x7fabc."), id="a number of 2 GiB"),
        pytest.param(archive(b"\x80\x02)" + b"\x85" * 100_000 + b"."), id="nested 100,000 deep"),
    ],
)
def test_a_pickle_that_lies_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("storage", [b"", bytes(4)])
def test_a_storage_shorter_than_its_tensor_gives_bytes_of_the_file_and_no_others(
    storage: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(archive(FOUR, storage))
    out = np.empty(16, np.uint8)
    open_checkpoint(path).read_into("w", 0, out)
    assert out.tobytes() in path.read_bytes()


BYTES = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."  # bytearray(2^33), which torch would make


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(archive(BYTES), id="a bytearray"),
        pytest.param(
            archive(BYTES.replace(b"cbuiltins\nbytearray\n", b"\x8c\x08builtins\x8c\x09bytearray\x93")), id="4"
        ),
        pytest.param(BYTES, id="a bytearray alone"),
        pytest.param(pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps({}) + BYTES, id="legacy"),
        pytest.param(archive(FOUR, bytes(1 << 26), zipfile.ZIP_DEFLATED), id="a compressed storage"),
        pytest.param(archive(b"\x80\x02" + b"0" * (1 << 24), None, zipfile.ZIP_DEFLATED), id="a compressed pickle"),
    ],
)
def test_what_would_take_any_amount_of_memory_is_refused(data: bytes, tmp_path: Path) -> None:
    """Where a bomb went off, this test would take gigabytes."""
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="a pickle that is damaged, or holds more than tensors"):
        open_checkpoint(tmp_path / "m.pt")


TENSOR = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (json.dumps({"a": TENSOR, "b": {**TENSOR, "data_offsets": [2, 6]}}), "an overlap"),
        (json.dumps({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}), "bytes of data"),
        (json.dumps({"a": {**TENSOR, "shape": [4] + [1] * 10_000}}), None),
        ('{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 4]}}', "integers from 0 on"),
        ('{"a": {"dtype": "U8", "shape": [1e400], "data_offsets": [0, 4]}}', "integers from 0 on"),
        ('{"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}', "integers from 0 on"),
        ('{"a": ' + json.dumps(TENSOR) + ', "a": ' + json.dumps(TENSOR) + "}", "comes twice"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "expected"),
        ('{"a": {"dtype": "U8", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}}', "expected"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(header: str, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
    if message is None:  # many dimensions are no lie; a .tsw file refuses them when it is written
        assert open_checkpoint(path).specs["a"].elements == 4
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2048


@pytest.mark.parametrize("length", [100, 100_000_001, (1 << 64) - 1])
def test_a_safetensors_header_of_any_length_takes_no_memory(length: int, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match=r"expected a (safetensors )?header"):
        open_checkpoint(path)
