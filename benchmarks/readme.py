"""Tables of README.md, filled from the results files: what stands between `<!-- results: NAME -->` and `<!-- end -->`.

    tables    their Markdown by name
    fill      a README's text with them in place

A row here is a question of a reader and where its answer lies; wording belongs to the README, figures to the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import common
from benchmarks.common import Ratio, Table

README = common.RESULTS.parent.parent / "README.md"
_MARKED = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

_SPEED, _READING, _SWITCHING = "speed", "reading", "switching"
# What a table of targets says, the benchmark, where in it, and what is compared.
_TARGETS = (
    ("`import tswitch_format` / importing NumPy, zstandard and msgpack", "imports", "Import", "tswitch_format"),
    ("`pack --select tensor` of 1.2 G parameters, 1 thread / loading both and subtracting", _SPEED,
     "pack by magnitude: ratios", "pack, 1 thread"),
    ("the same, 2 threads", _SPEED, "pack by magnitude: ratios", "pack, 2 threads"),
    ("`pack`, the default, of 120 M, 2 threads / the same", _SPEED, "pack by the default rule: ratios", "pack, 2 threads"),
    ("`apply_` of 100 M parameters, density 5 %, 1 thread / copying the weights in memory", _READING,
     "large model: apply the whole model, archive, warm", "apply_, 1 thread"),
    ("the same, 2 threads", _READING, "large model: apply the whole model, archive, warm", "apply_, 2 threads"),
    ("decoding to indices on one core, density 5 %, G elements/s", _READING,
     "large model: decode all to indices on one core, numba loaded", "decode (archive), G elements/s"),
    ("the same, mapped profile", _READING,
     "large model: decode all to indices on one core, numba loaded", "decode (mapped), G elements/s"),
    ("reading the file / `validate --level checksums`, 4 MB", _READING,
     "large model: validate, warm, checksums: share of the read bandwidth", "read (archive)"),
    ("the same, 13 MB (mapped profile)", _READING,
     "large model: validate, warm, checksums: share of the read bandwidth", "read (mapped)"),
    ("`pack --select tensor`, 1 thread / 2 threads", _SPEED, "pack by magnitude: two threads", "pack, 1 thread"),
    ("`pack`, the default, 1 thread / 2 threads", _SPEED, "pack by the default rule: two threads", "pack, 1 thread"),
    ("`restore` to memory, 1 thread / 2 threads", _SPEED, "restore to memory (tmpfs): two threads", "restore, 1 thread"),
    ("`restore` to disk, 1 thread / 2 threads", _SPEED, "restore to disk: two threads", "restore, 1 thread"),
)  # fmt: skip
_MEMORY = (
    ("peak memory of `tsw pack`, 2 threads", "tsw pack BASE EXPERT -o X.tsw --threads 2", "the pair is 4.9 GB on disk"),
    ("the same, `--select tensor`", "tsw pack BASE EXPERT -o X.tsw --threads 2 --select tensor", ""),
    ("peak memory of `tsw restore`, 2 threads", "tsw restore BASE D.tsw -o OUT --threads 2", ""),
)
_BESIDE = (
    ("restore to disk, 2 threads", "restore to disk: ratios", "restore, 2 threads / load, save and fsync",
     "`load_file` + `save_file` of the base, synced as ours is ([why](spec/decisions/0008-restore-is-durable.md))"),
    ("restore to disk, 2 threads", "restore to disk: ratios", "restore, 2 threads / load and save",
     "the same, not synced"),
    ("restore to memory, 2 threads", "restore to memory (tmpfs): ratios", "restore, 2 threads / load and save",
     "`load_file` + `save_file`"),
    ("open 1,000 tensors, decode 1 M elements to indices", "open: ratios",
     "open and indices (archive, pread) / safe_open and get_tensor (F32, numpy)",
     "`safe_open` + `get_tensor` of the full tensor, NumPy"),
    ("the same, to a dense f32 delta", "open: ratios",
     "open and delta (archive, pread) / safe_open and get_tensor (F32, numpy)", "the same"),
)  # fmt: skip
_WORKLOADS = ("CPU, 100 M f32, density 5 %", "CPU, 100 M f32, density 2 %", "CPU, 100 M bf16, density 2 %")
_SWITCHED = (
    ("activate, packed in memory", "packed in memory", "activate / copy the full expert",
     "copying the full expert over the model"),
    ("switch one for another", "packed in memory", "switch a to b / copy the full expert", "the same"),
    ("deactivate", "packed in memory", "deactivate / copy the full expert", "the same"),
    ("from a cold file: add and activate", "from a cold file",
     "cold file: add, activate / cold file: load_file, load_state_dict", "`load_file` + `load_state_dict`, cold too"),
    ("from a warm file: add and activate", "from a warm file",
     "file: add, activate / file: load_file, load_state_dict", "the same, warm"),
)  # fmt: skip
_HELD = (
    ("read from the file", "read by add()"),
    ("packed beside the model", "packed in memory"),
    ("original values kept while active", "original values kept while active"),
)
_DENSITIES = {"0.5 %": "0.5 %", "2.01 %": "2 %", "5 %": "5 %", "20 %": "20 %", "50 %": "50 %"}
_LIMIT_OF_FILES = "limit: reading the file"

Results = Mapping[str, Mapping[str, Any]]


def tables(results: Results) -> dict[str, list[str]]:
    """The lines of each table."""
    makers: Sequence[Callable[[Results], tuple[Sequence[str], list[Sequence[str]]]]] = (
        size,
        peers,
        targets,
        memory,
        switching,
    )
    return {make.__name__: _markdown(*make(results)) for make in makers}


def size(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Planes over their bound, by density."""
    rows = [dict(zip(t.columns, row, strict=True)) for t in _found(results, "size")[:1] for row in t.rows]
    return ["density %", *(row["asked %"] for row in rows)], [
        ["planes / bound", *(row["planes / bound"] for row in rows)]
    ]


def peers(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Bytes and time of every way to keep an expert, over ours."""
    by_title = {table.title: table for table in _found(results, "peers")}
    sizes, times = (
        by_title["Random planes: bytes / entropy bound, by density"],
        next(table for title, table in by_title.items() if title.startswith("Random planes: time / ")),
    )
    head = ["kept as", *(f"{what}, {d}" for what in ("bytes", "time") for d in _DENSITIES.values())]
    found: dict[str, list[str]] = {}
    for number, table in enumerate((sizes, times)):
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            kept = found.setdefault(str(cells["what"]), ["-"] * (2 * len(_DENSITIES)))
            for place, density in enumerate(_DENSITIES):
                kept[number * len(_DENSITIES) + place] = f"{cells[density]:.3g}"
    return head, [[name, *cells] for name, cells in found.items() if not name.startswith(_LIMIT_OF_FILES)]


def targets(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """The project's aims."""
    rows = []
    for text, benchmark, where, name in _TARGETS:
        ratio = next(r for r in common.ratios_of(results[benchmark]) if (r.where, r.name) == (where, name) and r.target)
        rows.append([text, ratio.bound_text, _spread(ratio), "yes" if ratio.met else "no"])
    return ["what", "at most, or at least", "measured", "met"], rows


def memory(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Peaks of memory, and restoring and opening beside others."""
    peaks = {row[0]: row[1] for row in _found(results, "memory")[0].rows}
    ratios = {(r.where, r.label): r for r in common.ratios_of(results[_SPEED])}
    rows = [[text, f"{peaks[command]} MiB", beside] for text, command, beside in _MEMORY]
    rows += [[text, _spread(ratios[where, label]), beside] for text, where, label, beside in _BESIDE]
    return ["what", "figure", "beside"], rows


def switching(results: Results) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Switching in memory and from files, and what it holds."""
    ratios = {(r.where, r.label): r for r in common.ratios_of(results[_SWITCHING])}
    by_title = {table.title: table for table in _found(results, _SWITCHING)}
    rows = [
        [text, *(_spread(ratios[f"{work}: {where}", label]) for work in _WORKLOADS), beside]
        for text, where, label, beside in _SWITCHED
    ]
    for text, what in _HELD:
        shares = [next(row[2] for row in by_title[f"{work}: bytes"].rows if row[0] == what) for work in _WORKLOADS]
        rows.append([text, *(f"{share:.2f} %" for share in shares), ""])
    return ["what", *(work.removeprefix("CPU, 100 M ").replace("density ", "") for work in _WORKLOADS), "beside"], rows


def _found(results: Results, name: str) -> list[Table]:
    return [Table(**table) for table in results[name]["tables"]]


def _spread(ratio: Ratio) -> str:
    return f"{ratio.median:.3g} ({ratio.least:.3g} to {ratio.most:.3g})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |".replace("|  |", "| |") for line in lines]


def fill(text: str, found: Mapping[str, Sequence[str]]) -> str:
    """The text with these tables between its marks. Raises KeyError for a mark of another name."""
    return _MARKED.sub(lambda mark: mark[1] + "\n".join(found[mark[2]]) + "\n" + mark[3], text)


def read_results(folder: Path = common.RESULTS) -> Results:
    """What the tables are made of."""
    names = ("imports", "size", "peers", _SPEED, _READING, _SWITCHING, "memory")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@click.command()
def main() -> None:
    """Fill the tables of README.md from the results files."""
    README.write_text(fill(README.read_text(), tables(read_results())))
    print(f"Filled: {README.name}")
