"""Cases of applying with a table of coefficients (section 10)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from making import floats
from making.applying import SPREAD, Made, Term, elements, finished, given_of, made_of, of
from making.floats import FORMATS
from making.material import half_of, scattered
from making.model import ONE, Dense, File, Masked, Removed, Table, Task, Tensor, Ternary, Vector
from making.suite import Suite
from making.tables import table

MINUS = 1 << 31
W = Tensor("w", "F32", (4,), data=of("F32", 1.0, -0.0, 0.1, -3.5))
V = Tensor("v", "F16", (2,), data=of("F16", 5.0, -0.0))


def add(suite: Suite) -> None:
    """Add all of them."""
    _arithmetic(suite)
    _clamps(suite)
    _places(suite)
    _whole(suite)
    _layers(suite)
    _refused(suite)


def _number(bits: int) -> Fraction:
    return floats.F32.decode(bits).signed


def _terms(file: File, given: Table, layers: str | None) -> Iterator[Term]:
    """The entries that count, with coefficients that are exact quotients."""
    tasks = {task.name: task for task in file.tasks}
    whole = given.tasks if layers is None else [layers]
    for name in whole:
        yield from ((entry, "1") for entry in tasks[name].entries if not isinstance(entry, Ternary | Masked))
    stored = [_number(bits) for bits in elements(given.array.tensor.content, floats.F32)]
    for column, name in enumerate(given.tasks):
        for entry in tasks[name].entries:
            if not isinstance(entry, Ternary | Masked) or entry.tensor.name not in given.ordered:
                continue
            value = stored[given.ordered.index(entry.tensor.name) * len(given.tasks) + column]
            if given.clamp is not None:
                least, greatest = map(_number, given.clamp)
                value = min(max(value, least), greatest)
            if value:
                yield entry, str(value)


def _case(
    file: File,
    name: str = "c",
    layers: str | None = None,
    *,
    rule: str | None = None,
    base: Mapping[str, Made | None] | None = None,
    same: Mapping[str, Made] | None = None,
) -> dict[str, Any]:
    """A case of one of the file's tables; the other arguments as of `applying.case`."""
    given = {**given_of(file, base or {}, same or {}), "table": name}
    if layers is not None:
        given["layers"] = layers
    if rule:
        return {"input": given, "rule": rule}
    chosen = next(one for one in file.tables if one.name == name)
    return finished(given, made_of(file, list(_terms(file, chosen, layers))))


def _table(
    values: Sequence[Sequence[float | str]],
    tasks: str,
    *,
    rows: Sequence[str] = ("v", "w"),
    name: str = "c",
    clamp: tuple[int, int] | None = None,
) -> Table:
    """A row of values for each tensor; `tasks`: a letter each."""
    data = b"".join(of("F32", *row) for row in values)
    return table(name, rows, list(tasks), clamp, data=data)


def _arithmetic(suite: Suite) -> None:
    for here in FORMATS:
        w, v = (Tensor(name, here, (4, 4), data=of(here, *SPREAD)) for name in "wv")
        shared = Vector(Tensor("v", "F32", (4, 4), data=of("F32", *(Fraction(i * i - 70, 31) for i in range(16)))))
        tasks = []
        for letter, knob in (("a", 0x3DCCCCCD), ("b", 0x3F2AAAAB), ("d", ONE)):
            active = scattered(f"table {letter}", 16, 140)
            rows = struct.pack("<4f", 0.3, -1, 2, 0.7)
            switch = Ternary(w, active, half_of(active), knob=knob, factor_dtype="f32", rows=rows)
            tasks.append(Task(letter, [switch, Masked(v, shared, active, knob=knob)]))
        file = File([w, v], tasks, tables=[_table([(0.3, -0.7, 1.0), (0.1, 1.5, -2.0)], "dab")])
        why = f"switches and masks of three tasks, in the order of the columns, base of {here}"
        suite.apply(f"table-{here.lower()}", _case(file), why)
    extremes = _table([("00000001", 3e38), ("00000001", "ff7fffff")], "ab")
    entries = [Ternary(W, (0, 1), ()), Ternary(V, (0, 1), ())]
    file = File([W, V], [Task("a", entries), Task("b", [Ternary(W, (2, 3), (3,), knob=0x40800000)])], tables=[extremes])
    suite.apply("table-extremes", _case(file), "a subnormal coefficient, of which 0 is added, and the largest one")


def _clamps(suite: Suite) -> None:
    values = ("bf000000", "3e99999a", "3f800000", "3fc00000")
    tasks = [Task(letter, [Ternary(W, (at,), (), knob=0x3DCCCCCD)]) for at, letter in enumerate("abde")]
    for name, clamp, why in (
        ("clamp", (0x3DCCCCCD, 0x3F8CCCCD), "below, within and above a clamp"),
        ("clamp-0", (0, ONE), "below a clamp from 0: the tensor keeps its bits there"),
        ("clamp-equal", (ONE, ONE), "a clamp of 1 to 1"),
        ("clamp-minus-0", (0xC0000000, MINUS), "a clamp to -0: what is above counts as 0"),
    ):
        file = File([W], tasks, tables=[_table([values], "abde", rows=["w"], clamp=clamp)])
        suite.apply(f"table-{name}", _case(file), why)


_SWITCHED = (
    Task("a", [Ternary(W, (0, 1), (), dtype="F16"), Ternary(V, (0,), ())]),
    Task("b", [Ternary(W, (1, 2), (), dtype="BF16")]),
    Task("d", [Ternary(W, (3,), ()), Dense(Tensor("x", "U8", (3,)))]),
)


def _places(suite: Suite) -> None:
    file = File([W, V], _SWITCHED, tables=[_table([(0.5,)], "a", rows=["v"])])
    suite.apply("table-no-row", _case(file), "a tensor without a row keeps its bits and its dtype")
    zeros = _table([(1.0, 0.0, 1.0), (-0.0, 2.0, 0.0)], "abd")
    other = _table([(1.0, 0.0), (0.25, -0.0)], "ab", name="other")
    file = File([W, V], _SWITCHED, tables=[zeros, other])
    suite.apply("table-zeros", _case(file), "coefficients 0 and -0: entries of other dtypes do not count")
    why = "the other table of the file: a task without a column does nothing, its new tensor is not there"
    suite.apply("table-other", _case(file, "other"), why)
    untied = Task("u", [Dense(Tensor("tail", "F16", (3,)))])
    tasks = [Task("a", [Ternary(W, (0,), ())]), untied]
    file = File([W, V], tasks, aliases={"head": "w", "tail": "w"}, tables=[_table([(1.0, 1.0), (0.5, 0.0)], "au")])
    same = {"head": Made(W.dtype, W.shape, W.content)}
    suite.apply("table-aliases", _case(file, same=same), "an alias has the row of its target; another is untied")
    suite.apply("table-layers-alias", _case(file, layers="a"), "other layers: nobody unties the alias")


_HEAD, _OTHER = Dense(V, data=bytes(range(4))), Dense(V, data=bytes(4))
_NEW = Dense(Tensor("x", "U8", (3,)))
_TASKS = (
    Task("a", [Ternary(W, (0,), ()), _HEAD, _NEW]),
    Task("b", [Ternary(W, (1,), (), knob=ONE), _OTHER]),
    Task("d", [Ternary(W, (2,), ()), _HEAD]),
    Task("e", [Ternary(W, (3,), (3,))]),
    Task("g", [Removed(V), Ternary(W, (0, 1, 2, 3), ())]),
)


def _layered(tasks: str) -> File:
    values = [[1.0] * len(tasks), [0.25, -0.5, 2.0, 0.75][: len(tasks)]]
    return File([W, V], _TASKS, aliases={"tied": "v"}, tables=[_table(values, tasks)])


def _whole(suite: Suite) -> None:
    why = "the same dense content in two tasks, whatever their coefficients; a new tensor of one"
    suite.apply("table-dense", _case(_layered("ade")), why)
    suite.apply("table-removed", _case(_layered("ge")), "a task removes a tensor and so its alias")


def _layers(suite: Suite) -> None:
    for name, tasks, layers, why in (
        ("a", "abd", "a", "dense tensors differ: those of a task with a column"),
        ("b", "abd", "b", "dense tensors differ: those of another, which has no new tensor"),
        ("outside", "abd", "g", "a task without a column removes a tensor, its switches do not count"),
        ("none", "abg", "e", "layers of a task that has none: the base's"),
    ):
        suite.apply(f"table-layers-{name}", _case(_layered(tasks), layers=layers), why)
    tasks = [Task("a", [Dense(W, data=bytes(16))]), Task("b", [Ternary(W, (0,), ())])]
    file = File([W, V], tasks, tables=[_table([(1.0, 1.0)], "ab", rows=["v"])])
    suite.apply("table-layers-no-row", _case(file, layers="a"), "a layer beside a switch whose tensor has no row")


def _refused(suite: Suite) -> None:
    def bad(name: str, rule: str, why: str, file: File, layers: str | None = None, **more: Any) -> None:
        suite.apply(f"refused-table-{name}", _case(file, layers=layers, rule=f"TSW-{rule}", **more), why)

    bad("dense", "903", "dense tensors differ, and no layers are named", _layered("ab"))
    bad("removed", "903", "one task removes what another gives", _layered("ag"))
    both = File([W, V], _SWITCHED, tables=[_table([(1.0, 1.0), (0.5, 1.0)], "ab")])
    bad("dtypes", "903", "switches make a tensor of different dtypes", both)
    tasks = [Task("a", [Dense(W, data=bytes(16))]), Task("b", [Ternary(W, (0,), ())])]
    file = File([W, V], tasks, tables=[_table([(1.0, 1.0), (0.0, 1.0)], "ab")])
    bad("layers", "903", "a layer of a tensor that another task switches", file, layers="a")
    other = {"v": Made("F16", (2,), bytes(4))}
    file = replace(file, tables=[_table([(1.0,)], "b", rows=["w"])])
    bad("base", "902", "another bit in a base tensor without a row", file, base=other)
