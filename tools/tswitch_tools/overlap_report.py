"""What `tsw info --overlap` says of the masks of several tasks, as JSON takes it and as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

import tswitch_format as tsw
from tswitch_tools.tables import new_table, print_in_blocks
from tswitch_tools.text import printable, rounded

_NAMES = {0: "catastrophic", 1: "selfish"}


def document(found: tsw.Overlap, *, tensors: bool = False) -> dict[str, Any]:
    """The report as JSON takes it; with each tensor only if `tensors`. Matrices: rows and columns in the order of `tasks`."""
    made: dict[str, Any] = {
        "tasks": list(found.tasks),
        "totals": {
            "elements": found.elements,
            "catastrophic": found.catastrophic,
            "selfish": found.selfish,
            "shared": found.shared.tolist(),
            "active": found.active.tolist(),
        },
        "pairs": found.pairs.tolist(),
        "jaccard": found.jaccard.tolist(),
        "whole": {name: list(tasks) for name, tasks in found.whole.items()},
    }
    if tensors:
        made["tensors"] = [
            {
                "name": tensor.name,
                "elements": tensor.elements,
                "shared": tensor.shared.tolist(),
                "pairs": tensor.pairs.tolist(),
            }
            for tensor in found.tensors
        ]
    return made


def show(found: tsw.Overlap, console: Console, *, tensors: bool = False) -> None:
    """Print tables: sums, pairs of tasks and, if `tensors`, each tensor."""
    console.print(f"overlap of the masks of {len(found.tasks)} tasks over {found.elements:,} elements")
    _print_totals(found, console)
    console.print()
    console.print("pairs: % active in both tasks, of those active in either")
    _print_pairs(found, console)
    if tensors:
        console.print()
        console.print("% of each tensor's elements, by the number of tasks in which they are active")
        _print_tensors(found, console)
    if found.whole:
        console.print()
        console.print(f"no masks, as tasks store them whole, add or remove them: {len(found.whole)} tensors")
    for name, tasks in found.whole.items() if tensors else ():
        console.print(f"  {printable(name)}: {', '.join(map(printable, tasks))}", soft_wrap=True)


def _print_totals(found: tsw.Overlap, console: Console) -> None:
    table = new_table("active in", "elements", "%", left={"active in"})
    for tasks, elements in enumerate(found.shared.tolist()):
        name = f" ({_NAMES[tasks]})" if tasks in _NAMES else ""
        number = "1 task" if tasks == 1 else f"{tasks} tasks"
        table.add_row(number + name, f"{elements:,}", _percent(elements, found.elements))
    console.print(table)


def _print_pairs(found: tsw.Overlap, console: Console) -> None:
    """Columns are numbered: the names of 20 tasks side by side fit no screen."""
    rows = []
    for number, (task, active, jaccard) in enumerate(
        zip(found.tasks, found.active.tolist(), found.jaccard.tolist(), strict=True), 1
    ):
        shares = (rounded(100 * share) if other != number else "-" for other, share in enumerate(jaccard, 1))
        rows.append((str(number), printable(task), f"{active:,}", *shares))
    columns = ("", "task", "active", *(str(number) for number, _ in enumerate(found.tasks, 1)))
    print_in_blocks(console, columns, rows, left=columns[:2])


def _print_tensors(found: tsw.Overlap, console: Console) -> None:
    columns = ("tensor", "elements", *(_NAMES.get(count, str(count)) for count in range(len(found.tasks) + 1)))
    rows = []
    for tensor in found.tensors:
        shares = (_percent(elements, tensor.elements) for elements in tensor.shared.tolist())
        rows.append((printable(tensor.name), f"{tensor.elements:,}", *shares))
    print_in_blocks(console, columns, rows, left=columns[:1])


def _percent(part: int, whole: int) -> str:
    return rounded(100 * part / whole) if whole else "-"
