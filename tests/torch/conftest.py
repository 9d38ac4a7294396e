"""Tests marked `gpu` run where CUDA is; elsewhere Triton's interpreter runs the kernels on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch_models import DEVICES

CUDA = torch.cuda.is_available()
if not CUDA:  # Triton reads it when it is imported, which only kernels do
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not CUDA:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
