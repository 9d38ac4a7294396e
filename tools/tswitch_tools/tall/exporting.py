"""The masks of a .tsw file as the TALL-masks code keeps them.

    export_masks   file -> TALL_mask_{n}task.npy

Bits of a whole state dict go end to end, so a tensor's begin anywhere in a byte: a chunk is unpacked, put behind what is
left of the byte before, and packed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tswitch_format import Switch, SwitchFile
from tswitch_format.atomic import AtomicFile, check_output
from tswitch_format.errors import OptionError
from tswitch_tools.importers import CHUNK
from tswitch_tools.tall.layout import VectorLayout
from tswitch_tools.tall.npy import write_masks


def export_masks(
    file: SwitchFile,
    tasks: Sequence[str],
    out: Path,
    numpy: Literal[1, 2],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write the masks of these tasks, in this order, to `out` as np.save of that generation of NumPy does.

    `progress` is called with the masks of tensors that are done, and of all tasks. Returns remarks for the user on what such a
    file does not keep. Raises OptionError, FormatError or OutputError; then nothing is written.
    """
    if not tasks:
        raise OptionError(f"{file.path}: expected at least one task, found none; there is nothing to export")
    layout = VectorLayout.of_file(file)
    switches = {task: _switches(file, task) for task in tasks}  # raises where there is none of that name
    check_output(out, [file.path])
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(switches) * len(layout.tensors))

    with AtomicFile(out) as output:
        pieces = {task: partial(_pieces, layout, found, advance) for task, found in switches.items()}
        write_masks(output.write, list(tasks), -(-layout.elements // 8), lambda task: pieces[task](), numpy)
        output.commit()
    return _remarks(file, switches)


def _switches(file: SwitchFile, task: str) -> dict[str, Switch]:
    return {name: file.switch(name, task) for name in file.keys(task)}


def _remarks(file: SwitchFile, switches: dict[str, dict[str, Switch]]) -> list[str]:
    every = [switch for found in switches.values() for switch in found.values()]
    remarks = []
    if any(switch.kind == "ternary" for switch in every):
        remarks.append(
            "these are activation masks of switches, not TALL masks: they say where an expert changes, with signs and knobs "
            "left out, and select from no multi-task vector"
        )
    elif every:
        remarks.append(
            "the multi-task vector that the masks select from is not in the file: keep the .tsw file, or the experts"
        )
    scaled = sorted({switch.task for switch in every if switch.kind == "masked" and switch.knob != 1})
    if scaled:
        remarks.append(
            f"the scales of {len(scaled)} tasks, {scaled[0]!r} first, are left out, so these are not TALL masks, which select "
            "from a vector as it is: keep the .tsw file, or note each task's scale"
        )
    whole = sorted({switch.name for switch in every if not switch.is_additive})
    if whole:
        remarks.append(
            f"{len(whole)} tensors are stored whole or removed and have no mask, {whole[0]!r} first: their bits are 0"
        )
    base = "@".join(part for part in (file.base.id, file.base.revision) if part)
    remarks.append(f"names, shapes and the base{f' ({base})' if base else ''} are not in the file: note them beside it")
    return remarks


def _pieces(
    layout: VectorLayout, switches: dict[str, Switch], advance: Callable[[], None]
) -> Iterator[NDArray[np.uint8]]:
    """The packed mask of a task, first bit the most significant. `advance` is called after each tensor."""
    rest = np.empty(0, np.bool_)
    for name, spec in layout.tensors.items():
        switch = switches.get(name, switches.get(spec.name))
        for start in range(0, spec.elements, CHUNK):
            flags = np.zeros(rest.size + min(CHUNK, spec.elements - start), np.bool_)
            flags[: rest.size] = rest
            if switch is not None and switch.is_additive:
                flags[rest.size + switch.chunk(start // CHUNK).positions] = True
            whole = flags.size // 8 * 8
            yield np.packbits(flags[:whole])
            rest = flags[whole:]
        advance()
    yield np.packbits(rest)
