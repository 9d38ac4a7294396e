"""SwitchBank in threads: one waits for the other, and nobody computes with another's weights."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from bank_models import EXPERTS, Bits, InjectedError, Module, Tensors, bits, packed, restored_bits, tensors

import tswitch_format as tsw
from tswitch_format.torch import SwitchBank

Filled = tuple[Tensors, SwitchBank, dict[str, Path]]
PATIENCE = 20.0  # seconds until a thread is taken for dead
SHORT = 0.1  # seconds in which a thread that need not wait would have gone on


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return packed(tensors(), tmp_path_factory.mktemp("threads"))


@pytest.fixture
def filled(paths: dict[str, Path]) -> Filled:
    model = tensors()
    bank = SwitchBank(model)
    for name in EXPERTS:
        bank.add(name, paths[name])
    return model, bank, paths


def run(*works: Callable[[], object]) -> None:
    """All at once; the first error of any is raised."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], object]) -> None:
        barrier.wait(PATIENCE)
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(begin, work) for work in works]
        done, late = wait(futures, PATIENCE)
        assert not late, "threads wait for each other for ever"
        for future in done:
            future.result()


def test_blocks_of_threads_never_see_each_others_weights(filled: Filled) -> None:
    model, bank, paths = filled
    base = bits(model)
    wanted: list[dict[str, float]] = [{"math": 1.0}, {"code": 0.5, "law": -1.0}, {"law": 1.0}, {"math": 0.3}]
    expected = [restored_bits(tensors(), paths["all"], one) for one in wanted]

    def work(number: int) -> None:
        rng = random.Random(number)
        for turn in range(40):
            try:
                with bank.active(wanted[number]):
                    assert bits(model) == expected[number]
                    time.sleep(rng.random() / 2000)
                    assert bits(model) == expected[number]
                    assert bank.current == wanted[number]
                    if turn % 5 == 0:
                        raise InjectedError
            except InjectedError:
                pass

    run(*(lambda number=number: work(number) for number in range(len(wanted))))  # type: ignore[misc]
    assert bits(model) == base
    assert bank.current == {}


def test_nested_blocks_of_threads(filled: Filled) -> None:
    model, bank, paths = filled
    expected: dict[str, Bits] = {name: restored_bits(tensors(), paths["all"], name) for name in EXPERTS}

    def work(first: str, second: str) -> None:
        for _ in range(20):
            with bank.active(first):
                assert bits(model) == expected[first]
                with bank.active(second):
                    time.sleep(0)
                    assert bits(model) == expected[second]
                assert bits(model) == expected[first]

    run(lambda: work("math", "code"), lambda: work("code", "law"), lambda: work("law", "math"))
    assert bits(model) == bits(tensors())


def test_outputs_of_a_model_in_threads(paths: dict[str, Path]) -> None:
    """Each thread computes with a model under its own expert: as if it had the model for itself."""
    model = Module(tensors())
    bank = SwitchBank(model)
    for name in EXPERTS:
        bank.add(name, paths[name])
    x = torch.randn(4, 33)
    alone = {}
    for name in EXPERTS:
        with bank.active(name):
            alone[name] = x @ model.matrix.t()

    def work(name: str) -> None:
        for _ in range(40):
            with bank.active(name), torch.inference_mode():
                assert torch.equal(x @ model.matrix.t(), alone[name])

    run(*(lambda name=name: work(name) for name in EXPERTS))  # type: ignore[misc]


WAITING: dict[str, Callable[[SwitchBank, dict[str, Path]], object]] = {
    "activate": lambda bank, _: bank.activate("law"),
    "deactivate": lambda bank, _: bank.deactivate(),
    "remove": lambda bank, _: bank.remove("code"),
    "add": lambda bank, paths: bank.add("more", paths["law"]),
    "memory_report": lambda bank, _: bank.memory_report(),
}


@pytest.mark.parametrize("what", WAITING)
def test_every_method_waits_for_the_end_of_a_block(filled: Filled, what: str) -> None:
    model, bank, paths = filled
    done = threading.Event()
    errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def other() -> None:
        try:
            WAITING[what](bank, paths)
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            errors.put(error)
        done.set()

    thread = threading.Thread(target=other, daemon=True)
    with bank.active("math"):
        before = bits(model)
        thread.start()
        assert not done.wait(SHORT)
        assert bits(model) == before
        assert bank.current == {"math": 1.0}
    assert done.wait(PATIENCE)
    thread.join(PATIENCE)
    assert errors.empty()
    expected = restored_bits(tensors(), paths["all"], "law") if what == "activate" else bits(tensors())
    assert bits(model) == expected


def test_names_may_be_read_while_another_thread_has_a_block(filled: Filled) -> None:
    """A server's status page must not wait for a model's answer."""
    _, bank, _ = filled
    found: list[object] = []
    with bank.active("math"):
        thread = threading.Thread(target=lambda: found.extend((bank.experts, dict(bank.current))), daemon=True)
        thread.start()
        thread.join(PATIENCE)
    assert found == [list(EXPERTS), {"math": 1.0}]


def test_an_error_in_a_block_frees_the_bank_for_others(filled: Filled) -> None:
    model, bank, _ = filled

    def fail() -> None:
        with pytest.raises(InjectedError), bank.active("math"):
            raise InjectedError
        with pytest.raises(tsw.UnknownNameError), bank.active("meth"):
            pass
        with pytest.raises(tsw.OptionError), bank.active({"math": float("nan")}):
            pass
        with pytest.raises(tsw.OptionError):
            bank.add("math", "none.tsw")

    run(fail)
    run(lambda: bank.activate("code"))
    run(bank.deactivate)
    assert bits(model) == bits(tensors())


def test_everything_at_once(filled: Filled) -> None:
    """Threads that add, remove, switch, report and fail; in the end the base is there."""
    model, bank, paths = filled

    def churn(number: int) -> None:
        for turn in range(15):
            name = f"own-{number}"
            bank.add(name, paths[EXPERTS[(number + turn) % 3]], threads=1)
            with bank.active({name: 0.5, "math": 0.5}):
                assert bank.current == {name: 0.5, "math": 0.5}
                with pytest.raises(tsw.OptionError):
                    bank.remove(name)
            bank.remove(name)

    def switch() -> None:
        for turn in range(60):
            bank.activate(EXPERTS[turn % 3])
            if turn % 4 == 0:
                bank.deactivate()

    def report() -> None:
        for _ in range(60):
            assert bank.memory_report().total > 0
            assert set(bank.experts) >= set(EXPERTS)

    run(lambda: churn(0), lambda: churn(1), switch, report)
    bank.deactivate()
    assert bits(model) == bits(tensors())
    assert bank.experts == list(EXPERTS)


def test_two_banks_switch_at_once(paths: dict[str, Path]) -> None:
    def work() -> None:
        model = tensors()
        bank = SwitchBank(model)
        bank.add("math", paths["math"])
        bank.add("code", paths["code"])
        for _ in range(20):
            with bank.active("math"), bank.active({"math": 0.5, "code": 0.5}):
                pass
        assert bits(model) == bits(tensors())

    run(work, work, work)


def test_a_thread_may_leave_inference_mode_to_another(paths: dict[str, Path]) -> None:
    """Inference mode is a thread's own: a model of one is switched in another, which has none."""
    with torch.inference_mode():
        model = Module(tensors())
        bank = SwitchBank(model)
        bank.add("math", paths["math"])
    run(lambda: bank.activate("math"))
    assert bits(model) == restored_bits(tensors(), paths["all"], "math")
    run(bank.deactivate)
    assert bits(model) == bits(tensors())
