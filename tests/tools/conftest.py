"""Fixtures of the tests of commands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from tswitch_tools.cli import tsw


@pytest.fixture
def run() -> Callable[..., Result]:
    """`tsw` with arguments."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(tsw, [str(argument) for argument in arguments])

    return call
