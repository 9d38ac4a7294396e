"""The golden files decode for ever: to the content that manifest.json says, through the mapping and through pread."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tswitch_format as tsw
from tswitch_format import _layout as lay
from tswitch_format._dtypes import DTYPE_BY_NAME
from tswitch_format.container.reader import Container, Entry, SharedArray
from tswitch_format.container.source import Backend

HERE = Path(__file__).parent
MANIFEST: dict[str, Any] = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
FILES: dict[str, Any] = MANIFEST["files"]
APPLIED: dict[str, Any] = MANIFEST["applied"]
MASKS: dict[str, Any] = MANIFEST["applied_masks"]
BACKENDS: tuple[Backend, ...] = ("mmap", "pread")


def test_every_file_is_in_the_manifest() -> None:
    assert {path.name for path in HERE.glob("*.tsw")} == set(FILES)
    assert sum(file["bytes"] for file in FILES.values()) < 400_000


def test_files_cover_the_format() -> None:
    codecs, kinds, factors, dtypes, parameters, roles = set(), set(), set(), set(), set(), set()
    for name in FILES:
        container = Container(HERE / name)
        roles |= set(container.index.shared.roles.tolist())
        for task in container.index.tasks:
            codecs |= set(task.segments["codec"].tolist())
            parameters |= set(zip(task.segments["codec"].tolist(), task.segments["parameter"].tolist(), strict=True))
            kinds |= set(task.entries["kind"].tolist())
            flags = (task.entries["flags"] & (lay.HAS_ROW_FACTORS | lay.HAS_COLUMN_FACTORS)).tolist()
            factors |= set(zip(task.entries["factor_dtype"].tolist(), flags, strict=True))
            dense = task.entries["kind"] == lay.Kind.DENSE
            dtypes |= set(task.entries["dtype"][dense].tolist())
        container.close()
    assert codecs == set(lay.Codec)
    assert kinds == set(lay.Kind)
    assert roles == set(lay.SharedRole)
    assert {dtype for dtype, _ in factors} == set(lay.FactorDType)
    assert {flag for _, flag in factors} == {0, 2, 4, 6}
    assert dtypes == {dtype.id for dtype in DTYPE_BY_NAME.values()}
    assert {
        (lay.Codec.GAPS_ZSTD, 0),
        (lay.Codec.GAPS_ZSTD, 20),
        (lay.Codec.RICE, 0),
        (lay.Codec.RICE, 20),
    } <= parameters


@pytest.mark.parametrize("name", FILES)
def test_bytes(name: str) -> None:
    raw = (HERE / name).read_bytes()
    assert (len(raw), hashlib.sha256(raw).hexdigest()) == (FILES[name]["bytes"], FILES[name]["sha256"])


@pytest.mark.parametrize("level", ["structure", "checksums", "full"])
@pytest.mark.parametrize("name", FILES)
def test_valid(name: str, level: Any) -> None:
    assert tsw.validate(HERE / name, level).ok


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_content(name: str, backend: Backend) -> None:
    expected = FILES[name]
    container = Container(HERE / name, backend=backend)
    try:
        assert container.backend == backend
        index = container.index
        specs = [index.base.spec(number) for number in range(len(index.base))]
        assert {s.name: [s.dtype.name, list(s.shape)] for s in specs} == expected["base"]
        assert {alias: index.base.names[number] for alias, number in index.aliases.items()} == expected["aliases"]
        assert [describe_shared(array) for array in container.shared_arrays()] == expected.get("shared", [])
        assert (index.router and vars(index.router)) == expected.get("router")
        assert describe_tables(container) == expected.get("coefficients", {})
        assert index.profile == expected["profile"]
        assert (index.content_id.hex() if index.content_id else None) == expected["content_id"]
        tasks = {
            task.name: [describe(entry) for entry in container.entries(number)]
            for number, task in enumerate(index.tasks)
        }
        assert tasks == expected["tasks"]
        assert list(tasks) == list(expected["tasks"])
    finally:
        container.close()


def describe_tables(container: Container) -> dict[str, Any]:
    """What the index says of tables, as the manifest describes it."""
    return {
        name: {
            **({} if keys.clamp is None else {"clamp": np.array(keys.clamp, "<f4").tobytes().hex()}),
            "rows": keys.rows.tobytes().hex(),
            "tasks": list(keys.tasks),
        }
        for name, keys in container.index.coefficients.items()
    }


def describe_shared(array: SharedArray) -> dict[str, Any]:
    """A shared array as the manifest describes it."""
    data = b"".join(array.data(number).tobytes() for number in range(array.chunks))
    return {
        "name": array.spec.name,
        "role": array.role.name.lower(),
        "dtype": array.dtype.name,
        "shape": list(array.spec.shape),
        "sha256": (array.sha256 or b"").hex(),
        "data": hashlib.sha256(data).hexdigest(),
    }


def describe(entry: Entry) -> dict[str, Any]:
    """An entry as the manifest describes it, decoded by the library."""
    found: dict[str, Any] = {
        "name": entry.spec.name,
        "kind": entry.kind.name.lower(),
        "dtype": entry.dtype.name,
        "shape": list(entry.spec.shape),
        "digest": entry.content_digest().hex(),
    }
    parts: dict[str, list[Any]] = {}
    chunks = range(entry.chunks)
    if entry.kind is lay.Kind.TERNARY:
        knob = int(np.array(entry.knob, "<f4").view("<u4"))
        found |= {"knob": f"{knob:08x}", "active": entry.active, "factor_dtype": int(entry.factor_dtype)}
        parts = {"mask": [entry.mask_packed(i) for i in chunks], "sign": [entry.sign_packed(i) for i in chunks]}
        for name, role in (("row_factors", lay.Role.ROW_FACTORS), ("column_factors", lay.Role.COLUMN_FACTORS)):
            codes = entry.factor_codes(role)
            if codes is not None:
                parts[name] = [codes]
    elif entry.kind is lay.Kind.MASKED:
        knob = int(np.array(entry.knob, "<f4").view("<u4"))
        found |= {"knob": f"{knob:08x}", "active": entry.active, "vector": entry.vector.number}
        parts = {"mask": [entry.mask_packed(i) for i in chunks]}
    elif entry.kind is lay.Kind.DENSE:
        parts = {"data": [entry.data(i) for i in chunks]}
    return found | {n: hashlib.sha256(b"".join(p.tobytes() for p in part)).hexdigest() for n, part in parts.items()}


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if "router" in file])
def test_routers(name: str) -> None:
    expected = FILES[name]
    with tsw.open(HERE / name) as opened:
        router = opened.router
        assert router is not None
        assert router.tasks == tuple(expected["tasks"])
        found = {
            task: [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
            for task, array in router.features.items()
        }
    dtypes = {"F16": "float16", "F32": "float32"}
    assert found == {
        one["name"]: [dtypes[one["dtype"]], one["shape"], one["data"]]
        for one in expected["shared"]
        if one["role"] == "features"
    }


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if "coefficients" in file])
def test_tables(name: str) -> None:
    expected = FILES[name]
    names = list(expected["base"])
    stored = {one["name"]: one for one in expected["shared"] if one["role"] == "coefficients"}
    with tsw.open(HERE / name) as opened:
        assert set(opened.tables) == set(expected["coefficients"]) == set(stored)
        for table in opened.tables.values():
            keys = expected["coefficients"][table.name]
            rows = np.frombuffer(bytes.fromhex(keys["rows"]), "<u4").tolist()
            assert table.rows == tuple(names[row] for row in rows)
            assert table.tasks == tuple(keys["tasks"])
            assert list(table.values.shape) == stored[table.name]["shape"]
            assert hashlib.sha256(table.values.tobytes()).hexdigest() == stored[table.name]["data"]
            clamp = None if table.clamp is None else np.array(table.clamp, "<f4").tobytes().hex()
            assert clamp == keys.get("clamp")


def test_profiles_hold_the_same_content() -> None:
    assert FILES["archive.tsw"]["tasks"] == FILES["mapped.tsw"]["tasks"]
    assert FILES["archive.tsw"]["content_id"] == FILES["mapped.tsw"]["content_id"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("file", [APPLIED["file"], "mapped.tsw"])
@pytest.mark.parametrize("case", APPLIED["tensors"], ids=lambda case: f"{case['name']} {case['coefficient']}")
def test_apply(case: dict[str, Any], file: str, backend: Backend) -> None:
    with tsw.open(HERE / file, backend=backend) as opened:
        switch = opened.switch(case["name"], APPLIED["task"])
        spec = opened.base.spec(case["name"])
        base = np.frombuffer(bytes.fromhex(case["base"]), spec.dtype.storage).reshape(spec.shape)
        result = switch.apply(base, case["coefficient"])
        assert result.tobytes().hex() == case["result"]
        assert base.tobytes().hex() == case["base"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case", MASKS["tensors"], ids=lambda case: f"{case['task']} {case['name']} {case['coefficient']}"
)
def test_apply_masks(case: dict[str, Any], backend: Backend) -> None:
    with tsw.open(HERE / MASKS["file"], backend=backend) as opened:
        switch = opened.switch(case["name"], case["task"])
        spec = opened.base.spec(case["name"])
        base = np.frombuffer(bytes.fromhex(case["base"]), spec.dtype.storage).reshape(spec.shape)
        result = switch.apply(base, case["coefficient"])
        assert result.tobytes().hex() == case["result"]


def test_golden_files_are_not_made_anew() -> None:
    before = {path: path.stat().st_mtime_ns for path in HERE.iterdir() if path.is_file()}
    run = subprocess.run([sys.executable, HERE / "make_golden.py"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "there already" in run.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
