"""The tables of README.md are those of the results files."""

from __future__ import annotations

import pytest

from benchmarks import readme


def test_the_readme_shows_what_the_results_say() -> None:
    text = readme.README.read_text()
    found = readme.tables(readme.read_results())
    assert all(f"<!-- results: {name} -->" in text for name in found)
    assert readme.fill(text, found) == text, "python -m benchmarks readme"


def test_only_what_is_between_marks_is_filled() -> None:
    text = "one\n<!-- results: size -->\nold\n<!-- end -->\ntwo\n<!-- end -->\n"
    assert (
        readme.fill(text, {"size": ["a", "b"]})
        == "one\n<!-- results: size -->\na\nb\n<!-- end -->\ntwo\n<!-- end -->\n"
    )
    with pytest.raises(KeyError, match="size"):
        readme.fill(text, {})
