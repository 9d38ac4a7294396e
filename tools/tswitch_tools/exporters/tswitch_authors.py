"""Folders like those of the T-Switch authors: `tswitch_tools.importers.tswitch_authors` says what is in them.

    convert   the exporter

Their bits have no place for knobs, which therefore come as `{task}_knobs.json`, a file of ours: name -> knob.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tswitch_format import Switch, SwitchFile
from tswitch_format.atomic import AtomicFolder, check_output
from tswitch_tools.exporters import fitting, problem_of
from tswitch_tools.importers import CHUNK
from tswitch_tools.importers.tswitch_authors import GROUP, KNOBS, SUFFIX

NAME = "tswitch-authors"
SUMMARY = "folder of {task}_{tensor}_compressed.bin as the T-Switch authors write it, and a JSON file of knobs"

_MAX_FILE_NAME = 255  # bytes


def convert(
    file: SwitchFile,
    task: str,
    out: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sequence[str]:
    """See `Exporter.convert`."""
    switches = fitting(file, task, lambda switch, _: _problem(file, task, switch))
    check_output(out, [file.path])
    folder = AtomicFolder(out)
    try:
        for done, (name, switch) in enumerate(switches.items(), 1):
            folder.open(f"{task}_{name}{SUFFIX}").write_at(0, _stream(switch))
            if progress:
                progress(done, len(switches))
        knobs = {name: switch.knob for name, switch in switches.items()}
        folder.open(f"{task}{KNOBS}").write_at(0, (json.dumps(knobs, indent=2) + "\n").encode())
        folder.commit()
    except BaseException:
        folder.abort()
        raise
    return [
        f"the knobs are in {task}{KNOBS}, a file of ours: the authors' code computes them of the expert",
        "the files say neither shapes nor types nor which base they are of: keep the base, and note its name",
    ]


def _problem(file: SwitchFile, task: str, switch: Switch) -> str | None:
    """Why such a folder cannot hold a tensor, or None."""
    if switch.kind == "dense":
        return (
            "expected a switch, found a tensor that is stored whole; leave it as the base has it, or use 'tsw restore'"
        )
    wrong = problem_of(file, switch)
    if wrong is not None:
        return wrong
    elements = switch.elements
    if not switch.shape:
        return "expected at least one dimension, found a scalar, which the authors' code leaves out; use 'tsw restore'"
    if not elements or (elements > GROUP and elements % GROUP):
        return (
            f"expected 1 to {GROUP} elements or a multiple of {GROUP}, found {elements}, at which the authors' code fails; "
            "leave it as the base has it, or use 'tsw restore'"
        )
    name = f"{task}_{switch.name}{SUFFIX}"
    if "/" in name or "\\" in name or "\0" in name or len(name.encode()) > _MAX_FILE_NAME:
        return f"expected names that can be one of a file, found {name[:80]!r}; rename the task or the tensor"
    return None


def _stream(switch: Switch) -> bytes:
    """The content of a tensor's file."""
    width = min(GROUP, switch.elements)
    groups = switch.elements // width
    marks = np.zeros(groups, np.bool_)
    # The groups' bits begin at bit `groups`, within a byte: in front of them come as many zeros as marks lie in that byte.
    pieces: list[NDArray[np.uint8]] = []
    rest = np.zeros(groups % 8, np.bool_)
    for chunk in switch.chunks():
        first = chunk.start // width
        count = min(CHUNK // GROUP, groups - first)
        active = np.zeros(count * width, np.bool_)
        active[chunk.positions] = True
        by_group = active.reshape(count, width)
        marked = by_group.any(axis=1)
        marks[first : first + count] = marked
        bits = np.append(rest, _records(by_group[marked], ~switch.negative(chunk)))
        whole = bits.size // 8 * 8
        pieces.append(np.packbits(bits[:whole]))
        rest = bits[whole:]
    pieces.append(np.packbits(rest))
    body = np.concatenate(pieces)
    head = np.packbits(marks)
    if groups % 8:
        body[0] |= head[-1]
        head = head[:-1]
    return head.tobytes() + body.tobytes()


def _records(active: NDArray[np.bool_], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bits of marked groups: `active` [groups, width], then for each active element, in order, whether it is positive."""
    width = active.shape[1]
    signed = np.arange(width) < active.sum(axis=1)[:, None]
    signs = np.zeros_like(active)
    signs[signed] = positive
    used = np.concatenate([np.ones_like(active), signed], axis=1)
    return np.asarray(np.concatenate([active, signs], axis=1)[used])
