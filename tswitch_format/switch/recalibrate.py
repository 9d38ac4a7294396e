"""Other knobs and factors for a task of a file; masks, signs and everything else stay as they are stored.

    with_knobs           file -> a new one with these knobs and factors
    calibrated_recipe    what the recipe says of it (spec section 12)

How such knobs are found is not known here: see `torch/calibration.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from tswitch_format import _layout as lay
from tswitch_format.container.digest import EntryDigest
from tswitch_format.container.reader import Container, Entry
from tswitch_format.container.segments import EncodedEntry, EncodedSegment
from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.switch.apply import Codes
from tswitch_format.switch.encode import array_segments
from tswitch_format.switch.knob import FittedKnob
from tswitch_format.switch.transfer import TaskEdit, bare_header, copy_tasks, open_whole

_FACTORS = (lay.Role.ROW_FACTORS, lay.Role.COLUMN_FACTORS)
_GIVEN = "given"  # the rule of knobs that came from somebody else, whose recipe names none


def with_knobs(
    path: str | PathLike[str],
    out: str | PathLike[str],
    task: str,
    knobs: Mapping[str, FittedKnob],
    recipe: Mapping[str, str],
) -> Path:
    """Write the file at `path` anew, `task` with this recipe and, of the tensors in `knobs`, these knobs and factors.

    `knobs`: by the names of ternary entries of the task; factors as stored codes, of just those kinds, type and number that the
    entry has. Encoded planes and everything else are copied. Planes are decoded for the new digests only, and
    compared with the old ones.

    Raises UnknownNameError for a task or tensor that is not there, OptionError for knobs that do not fit, FormatError or
    OutputError; then nothing is written.
    """
    container = open_whole(Path(path))
    try:
        number = container.find(task)
        entries = container.entry_numbers(number)
        for name, fitted in knobs.items():
            if name not in entries:
                raise UnknownNameError("tensor", name, entries, where=f"{path}, task {task!r}")
            _check(container, container.entry(number, entries[name]), fitted)

        def change(entry: Entry, copied: EncodedEntry) -> EncodedEntry:
            fitted = knobs.get(entry.spec.name)
            return copied if fitted is None else _changed(entry, copied, fitted)

        everything = [(container, each) for each in range(len(container.index.tasks))]
        edit = TaskEdit(task, recipe, change)
        copy_tasks(Path(out), bare_header(container.index), everything, None, edit=edit)
    finally:
        container.close()
    return Path(out)


def calibrated_recipe(before: Mapping[str, str], how: str) -> dict[str, str]:
    """The recipe of a task whose knobs were refined, as `how` says. Of one that was calibrated before, the first rule stays."""
    origin = before.get("calibrated_from", before.get("knob", _GIVEN))
    return {**before, "knob": "calibrated", "calibrated_from": origin, "calibrated_on": how}


def _check(container: Container, entry: Entry, fitted: FittedKnob) -> None:
    where = f"{container.path}: knob of {entry.spec.name!r}"
    if entry.kind is not lay.Kind.TERNARY:
        raise OptionError(f"{where}: expected a ternary entry, found a {entry.kind.name.lower()} one; leave it out")
    if not np.isfinite(fitted.knob):
        raise OptionError(f"{where}: expected a finite number, found {fitted.knob}")
    for what, codes, stored in zip(("row", "column"), _codes(fitted), _stored(entry), strict=True):
        if codes is None and stored is None:
            continue
        expected, found = _described(stored), _described(codes)
        if expected != found:
            raise OptionError(f"{where}: expected {what} factors as stored, {expected}, found {found}")
        if codes is not None and not np.isfinite(codes).all():
            raise OptionError(f"{where}: expected finite {what} factors, found NaN or infinity")


def _codes(fitted: FittedKnob) -> tuple[Codes | None, Codes | None]:
    return fitted.rows, fitted.columns


def _stored(entry: Entry) -> tuple[Codes | None, ...]:
    return tuple(entry.factor_codes(role) for role in _FACTORS)


def _described(codes: Codes | None) -> str:
    return "none" if codes is None else f"{codes.dtype}{list(codes.shape)}"


def _changed(entry: Entry, copied: EncodedEntry, fitted: FittedKnob) -> EncodedEntry:
    """The entry with another knob and factors, its digest computed anew. Raises FormatError where the old one was wrong."""
    before = entry.digest()
    after = EntryDigest(entry.kind, entry.dtype, entry.spec.shape)
    after.ternary(fitted.knob, entry.factor_dtype, entry.flags)
    factors: list[EncodedSegment] = []
    for role, stored, codes in zip(_FACTORS, _stored(entry), _codes(fitted), strict=True):
        if stored is not None and codes is not None:
            before.update(np.ascontiguousarray(stored))
            after.update(np.ascontiguousarray(codes))
            factors.extend(array_segments(role, codes, mapped=entry.mapped))
    for chunk in range(entry.chunks):
        for plane in (entry.mask_packed(chunk), entry.sign_packed(chunk)):
            before.update(plane)
            after.update(plane)
    found = before.digest()
    if entry.sha256 not in (None, found):
        raise entry.other_content(found)

    def segments() -> Iterator[EncodedSegment]:
        yield from factors
        yield from (segment for segment in copied.segments if segment.role not in _FACTORS)

    sha256 = None if entry.sha256 is None else after.digest()
    return replace(copied, segments=segments(), sha256=sha256, knob=fitted.knob)
