"""The attack list cites tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "spec" / "security.md").read_text()


def test_every_test_that_is_cited_exists() -> None:
    cited = re.findall(r"\b([\w/]+\.py)::(test_\w+)", TEXT)
    assert len(cited) > 30
    for path, name in cited:
        assert f"def {name}(" in (TESTS / path).read_text(), f"{path}::{name}"


def test_every_line_cites_a_test() -> None:
    attacks = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") == 5]
    for line in attacks:
        proof = line.split("|")[4].strip()
        assert proof in {"test", "---"} or ".py" in proof or "the same" in proof, line
