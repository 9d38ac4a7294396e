"""TALL masks as the published files have them: `tswitch_tools.tall.exporting`.

convert   the exporter
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tswitch_format import SwitchFile
from tswitch_tools.tall.exporting import export_masks

NAME = "tall-masks"
SUMMARY = "TALL_mask_{n}task.npy of NumPy 1, masks alone; 'tsw tall export' has the choice of tasks and NumPy"
ALL_TASKS = True


def convert(
    file: SwitchFile,
    task: str | None,
    out: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sequence[str]:
    """See `Exporter.convert`."""
    return export_masks(file, file.tasks if task is None else [task], out, 1, progress=progress)
