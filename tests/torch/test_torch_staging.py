"""What comes out of the staging buffers is what went in, whatever the sizes, and after every way of ending."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_models import DEVICES

import tswitch_format as tsw
from tswitch_format.torch.staging import DEFAULT_BYTES, Staging

HALF = 4096  # bytes of each buffer where both have the least
LEAST = 2 * HALF
DTYPES = ("<i8", "<f4", "u1")

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def array(nbytes: int, dtype: str = "u1", seed: int = 0) -> np.ndarray[Any, Any]:
    kind = np.dtype(dtype)
    return np.frombuffer(np.random.default_rng(seed).bytes(nbytes // kind.itemsize * kind.itemsize), kind).copy()


def assert_sent(arrays: list[np.ndarray[Any, Any]], made: list[torch.Tensor], device: torch.device) -> None:
    assert len(made) == len(arrays)
    for sent, tensor in zip(arrays, made, strict=True):
        assert tensor.device.type == device.type
        assert tuple(tensor.shape) == sent.shape
        found = tensor.cpu().numpy()
        assert found.dtype == sent.dtype and found.tobytes() == sent.tobytes()


SIZES = [0, 1, 8, HALF - 8, HALF - 1, HALF, HALF + 1, HALF + 8, LEAST - 1, LEAST, LEAST + 1, 7 * HALF + 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nbytes", SIZES)
def test_one_array_of_a_size_about_the_buffers(device: torch.device, nbytes: int, dtype: str) -> None:
    staging = Staging(device, LEAST, always=True)
    sent = [array(nbytes, dtype)]
    made = staging.send(sent)
    staging.finish()
    assert_sent(sent, made, device)


@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("second", [1, HALF, HALF + 1])
def test_what_is_sent_next_begins_where_the_last_ended(device: torch.device, first: int, second: int) -> None:
    staging = Staging(device, LEAST, always=True)
    sent = [array(first, seed=1), array(second, seed=2)]
    made = [*staging.send(sent[:1]), *staging.send(sent[1:])]
    staging.finish()
    assert_sent(sent, made, device)


lists = st.lists(
    st.tuples(st.sampled_from([*SIZES, 100, 3000]) | st.integers(0, 9000), st.sampled_from(DTYPES)), max_size=5
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(
        st.tuples(st.lists(lists, max_size=3), st.sampled_from(["finish", "abort"])), min_size=1, max_size=4
    ),
    nbytes=st.sampled_from([LEAST, LEAST + 1, LEAST + 17, 3 * HALF, 16 * HALF]),
    seed=st.integers(0, 99),
)
def test_rounds_of_sending(device: torch.device, rounds: list[Any], nbytes: int, seed: int) -> None:
    staging = Staging(device, nbytes, always=True)
    for sends, end in rounds:
        sent, made = [], []
        for sizes in sends:
            arrays = [array(size, dtype, seed + i) for i, (size, dtype) in enumerate(sizes)]
            made += staging.send(arrays)
            sent += arrays
        getattr(staging, end)()
        if end == "finish":
            assert_sent(sent, made, device)
        assert staging.nbytes <= nbytes


def test_shapes_and_memory_order(device: torch.device) -> None:
    whole = array(4 * 6000, "<f4").reshape(60, 100)
    sent = [whole, whole.T, whole[::3, 5:50], whole.reshape(5, 12, 100), whole[:0], np.float32(3).reshape(())]
    staging = Staging(device, LEAST, always=True)
    made = staging.send(sent)
    staging.finish()
    assert_sent(sent, made, device)


def test_arrays_may_change_after_they_were_sent(device: torch.device) -> None:
    """What waits in the buffers is a copy."""
    staging = Staging(device, LEAST, always=True)
    sent = array(100)
    before = sent.copy()
    made = staging.send([sent])
    sent[:] = 0
    staging.finish()
    assert_sent([before], made, device)


def test_tensors_of_a_round_stay_as_they_are_in_the_next(device: torch.device) -> None:
    staging = Staging(device, LEAST, always=True)
    sent = [[array(5000, seed=seed)] for seed in range(6)]
    made = []
    for arrays in sent:
        made.append(staging.send(arrays))
        staging.finish()
    for arrays, tensors in zip(sent, made, strict=True):
        assert_sent(arrays, tensors, device)


def test_tensors_do_not_share_elements(device: torch.device) -> None:
    staging = Staging(device, LEAST, always=True)
    sent = [array(n) for n in (1, 3, 17)]
    made = staging.send(sent)
    staging.finish()
    made[0].fill_(7)
    made[2].fill_(9)
    assert_sent(sent[1:2], made[1:2], device)


def test_finish_and_abort_with_nothing_sent(device: torch.device) -> None:
    staging = Staging(device, LEAST, always=True)
    for end in (staging.finish, staging.abort, staging.finish, staging.abort):
        end()
    assert staging.send([]) == []
    staging.finish()
    assert staging.nbytes <= LEAST


def test_what_was_aborted_is_never_written(device: torch.device) -> None:
    staging = Staging(device, LEAST, always=True)
    (aborted,) = staging.send([array(100)])
    staging.abort()
    aborted.fill_(7)
    sent = [array(5000, seed=1)]
    made = staging.send(sent)
    staging.finish()
    assert_sent(sent, made, device)
    assert (aborted == 7).all()


def test_on_the_cpu_nothing_is_copied_or_kept() -> None:
    staging = Staging(torch.device("cpu"), DEFAULT_BYTES)
    sent = array(100000)
    (made,) = staging.send([sent])
    assert made.data_ptr() == sent.ctypes.data
    assert staging.nbytes == 0


@pytest.mark.parametrize("nbytes", [0, 1, LEAST - 1, -5])
def test_buffers_that_are_too_small_are_refused(nbytes: int) -> None:
    with pytest.raises(tsw.OptionError, match=rf"staging_bytes: expected at least {LEAST} bytes, found {nbytes}"):
        Staging(torch.device("cpu"), nbytes)


@pytest.mark.parametrize("default", ["meta", *DEVICES[1:]])
def test_buffers_are_host_memory_whatever_the_default_device(device: torch.device, default: str) -> None:
    """`torch.set_default_device("cuda")` is common."""
    sent = [array(5000)]
    staging = Staging(device, LEAST, always=True)
    with torch.device(default):
        made = staging.send(sent)
        staging.finish()
    assert_sent(sent, made, device)
