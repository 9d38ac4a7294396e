"""Properties of whole files, over valid ones and over ones that are changed behind right checksums."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings

import tswitch_format as tsw
from fuzz import strategies
from fuzz.memory import Slot, written_to_memory
from fuzz.targets import numbers, reading

SLOT = Slot("property")
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@EXAMPLES
@given(strategies.files())
def test_valid_files_are_valid_for_every_reader(data: bytes) -> None:
    for harness in (reading.open_file, reading.validate, reading.decode, reading.reference):
        harness(data)
    reading.frame(data)


@EXAMPLES
@given(strategies.files())
def test_every_cut_is_refused(data: bytes) -> None:
    step = max(1, len(data) // 40)
    for length in range(0, len(data), step):
        report = tsw.validate(SLOT.put(data[:length]))
        reading.check_report(report, length)
        assert not report.ok


@EXAMPLES
@given(strategies.edited())
def test_changed_files_open_alike_or_not_at_all(data: bytes) -> None:
    reading.open_file(data)
    reading.validate(data)


@EXAMPLES
@given(strategies.edited())
def test_changed_files_decode_alike_or_not_at_all(data: bytes) -> None:
    reading.decode(data)
    reading.reference(data)


@EXAMPLES
@given(strategies.with_payload())
def test_changed_payloads(data: bytes) -> None:
    reading.decode_once(data)
    reading.reference(data)


@settings(EXAMPLES, max_examples=30)
@given(strategies.files())
def test_content_survives_repacking_and_bundling(data: bytes) -> None:
    numbers.repack(data)


@EXAMPLES
@given(strategies.models(), strategies.options())
def test_packed_models_apply(model: tuple[dict[str, Any], dict[str, Any]], options: dict[str, Any]) -> None:
    base, tuned = model
    with written_to_memory():
        tsw.pack(base, tuned, SLOT.path, on_mismatch="dense", threads=1, **options)
    numbers.check_packed(base, tuned, SLOT.path)
    with tsw.open(SLOT.path) as file:
        for switch in map(file.switch, file.keys()):
            if switch.kind == "ternary" and options["density"] == 1:
                assert np.array_equal(switch.mask(), base[switch.name] != tuned[switch.name])
