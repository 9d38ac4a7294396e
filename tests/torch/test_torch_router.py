"""Router: scikit-learn's weights, on the device. AutoSwitch: what activating by hand gives, in order, the base afterwards."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from bank_interrupts import Interrupts
from bank_models import bits, bits_of, pack
from bank_models import tuned as tuned_tensors
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tswitch_format as tsw
from tswitch_format.torch import AutoSwitch, Router, SwitchBank
from tswitch_format.torch import router as router_module

METRICS = ("euclidean", "cosine")
TASKS = ("law", "art", "code")  # in the file's order
WIDTH = 6

# --- the router -----------------------------------------------------------------------------------------------


def host_router(features: Mapping[str, Any], tasks: tuple[str, ...] = TASKS, **options: Any) -> tsw.Router:
    found = {task: np.asarray(samples) for task, samples in features.items()}
    chosen: dict[str, Any] = {"k": 3, "metric": "euclidean", "extractor": "E", "preprocessing": "P", **options}
    return tsw.Router(tasks=tasks, features=found, **chosen)


def clouds(seed: int = 0, width: int = WIDTH, dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    """Samples of two of the tasks; those of `art` are missing. The clouds overlap."""
    random = np.random.default_rng(seed)
    sizes = {"law": 40, "code": 23}
    return {
        task: (random.standard_normal((size, width)) + 0.3 * number).astype(dtype)
        for number, (task, size) in enumerate(sizes.items())
    }


def queries(count: int, seed: int = 9, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 0.2


def by_sklearn(router: tsw.Router, features: Tensor) -> NDArray[np.float32]:
    """Its probabilities, columns as the tasks."""
    stored = np.concatenate([samples.astype(np.float64) for samples in router.features.values()])
    labels = np.repeat(list(router.features), [len(samples) for samples in router.features.values()])
    k = min(router.k, len(stored))
    model = KNeighborsClassifier(n_neighbors=k, metric=router.metric).fit(stored, labels)
    found = model.predict_proba(features.double().cpu().numpy())
    columns = {task: found[:, number] for number, task in enumerate(model.classes_)}
    return np.stack([columns.get(task, np.zeros(len(found))) for task in router.tasks], axis=1).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 5, 10, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_are_those_of_scikit_learn(metric: str, k: int, dtype: Any, device: str) -> None:
    host = host_router(clouds(k, dtype=dtype), k=k, metric=metric)
    router = Router(host, device)
    for features in (queries(50), queries(7).half(), queries(7).bfloat16(), queries(7).double()):
        found = router.weights(features.to(device))
        assert (found.dtype, found.device.type, found.shape) == (torch.float32, device, (len(features), 3))
        assert found.cpu().numpy().tobytes() == by_sklearn(host, features).tobytes()
    assert not found[:, 1].any()  # art, of which there are no samples


@pytest.mark.parametrize("metric", METRICS)
def test_weights_are_those_of_the_router_in_numpy(metric: str, device: str) -> None:
    host = host_router(clouds(4, width=31), k=7, metric=metric)
    features = queries(200, width=31)
    found = Router(host, device).weights(features.to(device))
    assert found.cpu().numpy().tobytes() == host.weights(features.numpy()).tobytes()


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_of_queries_change_nothing(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router(host_router(clouds(), k=5, metric=metric))
    whole = router.weights(queries(40))
    sizes: list[int] = []
    distances = Router._distances

    def counted(found: Router, block: Tensor) -> Tensor:
        sizes.append(len(block))
        return distances(found, block)

    monkeypatch.setattr(Router, "_distances", counted)
    for size, blocks in ((1, [1] * 40), (7 * (63 * 64 + WIDTH * 24), [7] * 5 + [5])):
        monkeypatch.setattr(router_module, "_BLOCK_BYTES", size)
        sizes.clear()
        assert torch.equal(router.weights(queries(40)), whole)
        assert sizes == blocks


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("width", [1, 3, 8, 17, 64])
def test_of_equal_samples_that_of_the_first_task_counts(metric: str, width: int) -> None:
    """In whatever column of a product of matrices they are."""
    random = np.random.default_rng(width)
    samples = random.standard_normal((37, width)).astype(np.float32)
    for tasks in (TASKS, TASKS[::-1]):
        router = Router(host_router(dict.fromkeys(reversed(tasks), samples), tasks, k=1, metric=metric))
        for count in (1, 2, 5, 37):
            found = router.weights(torch.from_numpy(samples[:count]) * 4 + queries(count, width=width))
            assert torch.equal(found, torch.tensor([[0.0, 1.0, 0.0]]).expand(count, 3))  # art


def test_of_equal_distances_the_lower_row_counts() -> None:
    """Four of five at the same distance: the two of the first task by name, then one of the next."""
    ring = np.array([[1, 0], [0, 1]], np.float32)
    host = host_router({"code": -ring, "law": ring, "art": np.array([[9.0, 9.0]], np.float32)}, k=3)
    assert Router(host).weights(torch.zeros(1, 2)).tolist() == [[np.float32(1 / 3), 0.0, np.float32(2 / 3)]]


def test_the_cosine_distance_of_zero_is_one() -> None:
    features = {"law": [[-1.0, 0.0]], "art": [[0.0, 0.0]], "code": [[0.0, 5.0]]}
    two = Router(host_router({task: np.array(s, np.float32) for task, s in features.items()}, metric="cosine", k=2))
    # From [1, 0]: opposite 2, zero 1, orthogonal 1. From zero: 1 from all, so the first by name.
    assert two.weights(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).tolist() == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    one = Router(host_router({task: np.array(s, np.float32) for task, s in features.items()}, metric="cosine", k=1))
    assert one.weights(torch.tensor([[1.0, 0.0]])).tolist() == [[0.0, 1.0, 0.0]]


def test_distances_are_exact_far_from_zero() -> None:
    """Squares of what is far away would swallow the differences."""
    near = np.full((1, 64), 4096.0, np.float32)
    step = np.float32(2**-11)
    host = host_router({"law": near + 2 * step, "art": near + 3 * step, "code": near - step}, k=1)
    assert Router(host).weights(torch.from_numpy(near)).tolist() == [[0.0, 0.0, 1.0]]


def test_modes(device: str) -> None:
    router = Router(host_router(clouds(), k=5), device)
    features = queries(11).to(device)
    rows = router.weights(features)
    mean = router.weights(features, "mean")
    assert mean.shape == (3,) and mean.dtype == torch.float32
    torch.testing.assert_close(mean, rows.mean(0))
    hard = router.weights(features, mode="hard")
    expected = torch.zeros(3, device=device)
    expected[mean.argmax()] = 1
    assert torch.equal(hard, expected)


def test_of_equal_means_the_first_task_is_chosen() -> None:
    """Whatever the order of the rows: sums of rounded shares would differ."""
    samples = {"law": np.arange(0, 10), "art": np.arange(100, 110), "code": np.arange(200, 210)}
    host = host_router({task: found[:, None].astype(np.float32) for task, found in samples.items()}, k=10)
    router = Router(host)
    cases = [[101.0, 4.0], [204.0, 103.0], [54.4, 54.4, 154.4], [201.0, 101.0, 1.0]]
    for case in cases:
        for order in itertools.permutations(case):
            features = torch.tensor(order)[:, None]
            counts = (router.weights(features) * 10).round().sum(0)
            hard = router.weights(features, "hard")
            assert hard.tolist() == [float(number == int(counts.argmax())) for number in range(3)]
            assert router.weights(features, "mean").tolist() == (counts / (10 * len(case))).tolist()


def test_no_samples_give_no_weights_and_no_mean() -> None:
    router = Router(host_router(clouds()))
    empty = torch.zeros(0, WIDTH)
    assert router.weights(empty).shape == (0, 3)
    for mode in ("mean", "hard"):
        with pytest.raises(tsw.OptionError, match="at least one sample"):
            router.weights(empty, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (torch.zeros(2, WIDTH + 1), r"found \[2, 7\].*extractor 'E', preprocessing 'P'"),
        (torch.zeros(WIDTH), r"found \[6\]"),
        (torch.zeros(1, 2, WIDTH), r"found \[1, 2, 6\]"),
        (torch.zeros(2, WIDTH, dtype=torch.int64), r"found torch\.int64"),
        (torch.zeros(2, WIDTH, dtype=torch.complex64), r"found torch\.complex64"),
        (torch.zeros(2, WIDTH, device="meta"), "found them on meta; open the router for that device"),
        (np.zeros((2, WIDTH)), "found ndarray"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: Any, found: str) -> None:
    with pytest.raises(tsw.OptionError, match=rf"expected a float tensor \[n, 6\] on cpu, {found}"):
        Router(host_router(clouds())).weights(features)


def test_another_mode_is_refused() -> None:
    with pytest.raises(tsw.OptionError, match="expected one of sample, mean, hard, found 'soft'"):
        Router(host_router(clouds())).weights(queries(1), "soft")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("router", "message"),
    [
        ("all.tsw", "expected a tsw.Router, found str"),
        (host_router({}), "expected samples"),
        (host_router({"music": np.zeros((2, 3), np.float32)}), "found those of 'music'"),
        (host_router({"law": np.zeros((2, 3)), "art": np.zeros((2, 4))}), "one D"),
        (host_router({"law": np.zeros(3)}), "one D"),
        (host_router({"law": np.zeros((0, 3))}), "one D"),
        (host_router(clouds(), k=0), "k from 1 to 1048576, found 0"),
        (host_router(clouds(), metric="manhattan"), "euclidean or cosine, found 'manhattan'"),
    ],
)
def test_routers_made_by_hand_that_do_not_fit_are_refused(router: Any, message: str) -> None:
    with pytest.raises(tsw.OptionError, match=message):
        Router(router)


def test_a_sample_with_nan_gets_weights_and_no_error() -> None:
    found = Router(host_router(clouds(), k=4)).weights(torch.full((1, WIDTH), float("nan")))
    assert float(found.sum()) == 1.0


class Watch(TorchDispatchMode):
    """Refuses whatever makes the host wait for a device or copies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        self.seen.add(name)
        assert name not in {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim"}
        assert name not in {"masked_select", "lift_fresh", "copy_", "pin_memory", "set_"}
        assert not (name == "_to_copy" and (kwargs or {}).get("device") is not None)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["sample", "mean", "hard"])
def test_nothing_is_staged_on_the_host(metric: str, mode: Any) -> None:
    router = Router(host_router(clouds(), metric=metric))
    features = queries(9)
    with Watch() as watch:
        router.weights(features, mode)
    assert "sort" in watch.seen


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["sample", "mean", "hard"])
def test_the_host_does_not_wait_for_cuda(metric: str, mode: Any) -> None:
    router = Router(host_router(clouds(), metric=metric), "cuda")
    features = queries(9).to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = router.weights(features, mode)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), Router(host_router(clouds(), metric=metric)).weights(queries(9), mode))


# --- models that choose ---------------------------------------------------------------------------------------

CENTRES = {"law": 0.0, "art": 10.0, "code": 20.0}


class Net(nn.Module):
    """Two layers, of which the first makes the features; counts its calls, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=make)
        self.requires_grad_(False).eval()
        self.batches: list[Tensor] = []
        self.form: Callable[[Tensor], Any] = lambda found: found

    def encode(self, x: Tensor) -> Tensor:
        found: Tensor = self.first(x)
        return found

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Any:
        self.batches.append(x)
        return self.form(self.second(torch.tanh(self.first(x))))


class Case:
    """A model, its experts in a file, and a router whose features are the inputs or the first layer's outputs."""

    def __init__(self, folder: Path) -> None:
        self.base = Net()
        tensors = dict(self.base.state_dict())
        paths = [pack(tensors, tuned_tensors(tensors, n), folder / f"{t}.tsw") for n, t in enumerate(TASKS, 1)]
        self.plain = tsw.bundle(paths, folder / "plain.tsw")
        self.inputs = self.routed(folder / "inputs.tsw", lambda x: x)
        self.encoded = self.routed(folder / "encoded.tsw", self.base.encode)

    def routed(self, out: Path, encode: Callable[[Tensor], Tensor], k: int = 4) -> Path:
        features = {task: encode(self.batch([task] * 10, seed=n)).numpy() for n, task in enumerate(TASKS)}
        return tsw.add_router(self.plain, out, features, k=k, extractor="a test's", preprocessing="none")

    def batch(self, tasks: Any, seed: int = 77) -> Tensor:
        """Inputs near the samples of tasks, or halfway between those of pairs."""
        make = torch.Generator().manual_seed(seed)
        middles = [np.mean([CENTRES[name] for name in ([task] if isinstance(task, str) else task)]) for task in tasks]
        return 0.1 * torch.randn(len(middles), WIDTH, generator=make) + torch.tensor(middles).float()[:, None]

    def bank(self) -> tuple[Net, SwitchBank]:
        model = copy.deepcopy(self.base)
        bank = SwitchBank(model)
        for task in TASKS:
            bank.add(task, self.plain)
        return model, bank

    def auto(self, mode: Any = "mean", *, separate: bool = False) -> tuple[AutoSwitch, Net, SwitchBank]:
        """With the inputs themselves as features where `separate`, else with the model's own first layer."""
        model, bank = self.bank()
        router = Router.open(self.inputs if separate else self.encoded)
        return AutoSwitch(model, bank, router, same if separate else model.encode, mode, separate=separate), model, bank

    def by_hand(self, combination: Mapping[str, float], x: Tensor) -> Tensor:
        model, bank = self.bank()
        if combination:
            bank.activate(combination)
        found: Tensor = model(x)
        return found


def same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("auto"))


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """What banks really make."""
    found: list[dict[str, float]] = []
    make = SwitchBank._make

    def counted(bank: SwitchBank, wanted: dict[str, float], made: Any) -> None:
        if wanted:
            found.append(wanted)
        make(bank, wanted, made)

    monkeypatch.setattr(SwitchBank, "_make", counted)
    return found


def test_open_reads_the_router_of_a_file(case: Case) -> None:
    router = Router.open(case.inputs)
    assert (router.tasks, router.tasks_with_samples, router.k) == (TASKS, TASKS, 4)
    assert (router.metric, router.width, router.extractor) == ("euclidean", WIDTH, "a test's")
    weights = router.weights(case.batch(["code", "law", "art"]))
    assert weights.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert "3 tasks" in repr(router)
    with pytest.raises(tsw.OptionError, match="found none; add samples of its tasks with 'tsw route build'"):
        Router.open(case.plain)


@pytest.mark.parametrize("separate", [False, True])
def test_the_mean_of_a_batch_is_one_combination(case: Case, separate: bool, switches: list[dict[str, float]]) -> None:
    auto, model, bank = case.auto(separate=separate)
    x = case.batch(["law", "code", "law", "law"])
    wanted = {"law": 0.75, "code": 0.25}
    assert auto.route(x).tolist() == [0.75, 0.0, 0.25]
    found = auto(x)
    assert switches == [wanted]
    assert bits_of(found) == bits_of(case.by_hand(wanted, x))
    assert bank.current == (wanted if separate else {})
    bank.deactivate()
    assert bits(model) == bits(case.base)


@pytest.mark.parametrize("separate", [False, True])
def test_hard_takes_the_largest_alone(case: Case, separate: bool, switches: list[dict[str, float]]) -> None:
    auto, _, _ = case.auto("hard", separate=separate)
    x = case.batch(["code", "art", "code"])
    assert bits_of(auto(x)) == bits_of(case.by_hand({"code": 1.0}, x))
    assert switches[0] == {"code": 1.0}
    tied = case.batch(["code", "art"])  # art is the first in the file
    assert bits_of(auto(tied)) == bits_of(case.by_hand({"art": 1.0}, tied))


@pytest.mark.parametrize("separate", [False, True])
def test_samples_are_run_in_groups_and_come_back_in_order(
    case: Case, separate: bool, switches: list[dict[str, float]]
) -> None:
    auto, model, bank = case.auto("sample", separate=separate)
    tasks = ["code", "law", "art", "code", "law", "code"]
    x = case.batch(tasks)
    found = auto(x)
    assert switches == [{"code": 1.0}, {"law": 1.0}, {"art": 1.0}]
    groups = {task: x[[row for row, name in enumerate(tasks) if name == task]] for task in ("code", "law", "art")}
    assert all(torch.equal(*pair) for pair in zip(model.batches, groups.values(), strict=True))
    for task, rows in groups.items():
        mine = found[[row for row, name in enumerate(tasks) if name == task]]
        assert bits_of(mine) == bits_of(case.by_hand({task: 1.0}, rows))
    bank.deactivate()
    assert bits(model) == bits(case.base)


def test_each_sample_may_have_a_combination(tmp_path: Path, case: Case) -> None:
    model, bank = case.bank()
    path = case.routed(tmp_path / "k.tsw", same, k=15)  # 10 of its own task, 5 of a neighbouring one
    auto = AutoSwitch(model, bank, Router.open(path), same, "sample")
    x = case.batch(["law", "code", "law"])
    weights = auto.route(x)
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])
    found = auto(x)
    assert len(model.batches) == 2
    for rows in ([0, 2], [1]):
        wanted = {task: float(w) for task, w in zip(TASKS, weights[rows[0]].tolist(), strict=True) if w}
        assert len(wanted) == 2
        assert bits_of(found[rows]) == bits_of(case.by_hand(wanted, x[rows]))


def test_a_combination_that_is_active_is_not_made_anew(case: Case, switches: list[dict[str, float]]) -> None:
    auto, _, bank = case.auto(separate=True)
    x = case.batch(["law", "code"])
    first = auto(x)
    assert torch.equal(auto(x), first)
    assert switches == [{"law": 0.5, "code": 0.5}]
    auto(case.batch(["law", "code", "code"]))
    assert len(switches) == 2
    auto.mode = "sample"
    auto(case.batch(["art", "code"]))
    assert switches[2:] == [{"art": 1.0}, {"code": 1.0}]
    auto(case.batch(["art", "code"]))  # what is active comes first
    assert switches[4:] == [{"art": 1.0}]
    auto(case.batch(["art"]))
    assert len(switches) == 5
    assert bank.current == {"art": 1.0}


def test_an_extractor_that_is_part_of_the_model_sees_the_base(case: Case) -> None:
    model, bank = case.bank()
    seen = []

    def extractor(x: Tensor) -> Tensor:
        seen.append(bits(model) == bits(case.base))
        assert not torch.is_grad_enabled()
        return model.encode(x)

    auto = AutoSwitch(model, bank, Router.open(case.encoded), extractor)
    bank.activate("art")
    for tasks in (["law"], ["code", "law"], ["code"]):
        auto(case.batch(tasks))
    assert seen == [True] * 3
    assert bits(model) == bits(case.base)


class Pair(NamedTuple):
    one: Tensor
    rest: list[Tensor]


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda found: (found, found[:, :2]),
    "dict": lambda found: {"logits": found, "more": {"row": found[:, 0]}, "none": None},
    "named": lambda found: Pair(found, [found + 1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_keep_their_form(case: Case, form: str) -> None:
    auto, model, _ = case.auto("sample")
    x = case.batch(["law", "code", "law"])
    alone = auto(x)
    model.form = FORMS[form]
    found = auto(x)
    expected = FORMS[form](alone)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_outputs_of_transformers_keep_their_form(case: Case) -> None:
    transformers = pytest.importorskip("transformers")
    output = transformers.modeling_outputs.SequenceClassifierOutput
    auto, model, _ = case.auto("sample")
    x = case.batch(["law", "code", "law"])
    alone = auto(x)
    model.form = lambda found: output(logits=found)
    found = auto(x)
    assert type(found) is output and torch.equal(found.logits, alone) and found.loss is None


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda found: found.sum(), r"with the batch in dimension 0, found \[\]"),
        (lambda found: found.T, "with the batch in dimension 0"),
        (lambda found: found[:, : len(found)], "with the batch in dimension 0"),  # of another width in each group
        (lambda found: object(), "found object"),
        (len, "or the same for every task, found int"),
        (lambda found: [found] * len(found), "of one form"),
    ],
)
def test_outputs_that_are_no_rows_are_refused(case: Case, form: Any, message: str) -> None:
    auto, model, bank = case.auto("sample", separate=True)
    model.form = form
    with pytest.raises(tsw.OptionError, match=f"AutoSwitch: expected outputs.*{message}"):
        auto(case.batch(["law", "code", "law"]))
    assert bank.current == {}
    assert bits(model) == bits(case.base)


def test_arguments_are_cut_like_the_batch(case: Case) -> None:
    auto, model, _ = case.auto("sample", separate=True)
    x = case.batch(["law", "code", "law"])
    seen = []

    def forward(x: Tensor, *others: Any, **more: Any) -> Tensor:
        seen.append((others, more))
        return x

    model.forward = forward  # type: ignore[method-assign]
    ids = torch.arange(3)
    assert torch.equal(
        auto(x, [ids, None], scale=torch.tensor(2.0), names={"ids": ids}, flag=True, p=torch.ones(1, 2)), x
    )
    for rows, (others, more) in zip(([0, 2], [1]), seen, strict=True):
        assert others[0][0].tolist() == rows and others[0][1] is None
        assert more["names"]["ids"].tolist() == rows
        assert (float(more["scale"]), more["flag"], more["p"].shape) == (2.0, True, (len(rows), 2))
    with pytest.raises(tsw.OptionError, match=r"the batch of 3 in dimension 0, found shape \[2\]"):
        auto(x, torch.zeros(2))
    with pytest.raises(tsw.OptionError, match="found a object"):
        auto(x, object())
    auto.mode = "mean"
    assert auto(x, torch.zeros(2), object()) is x


def test_an_empty_batch(case: Case, switches: list[dict[str, float]]) -> None:
    auto, _, bank = case.auto("sample", separate=True)
    auto(case.batch(["law"]))
    assert auto(torch.zeros(0, WIDTH)).shape == (0, 4)
    assert bank.current == {} and len(switches) == 1
    auto.mode = "mean"
    with pytest.raises(tsw.OptionError, match="at least one sample"):
        auto(torch.zeros(0, WIDTH))


def test_a_task_is_added_without_training(tmp_path: Path, case: Case) -> None:
    alone = {task: tsw.extract(case.inputs, task, tmp_path / f"{task}.tsw") for task in TASKS}
    few = tsw.bundle([alone["law"], alone["art"]], tmp_path / "few.tsw")
    model = copy.deepcopy(case.base)
    bank = SwitchBank(model)
    for task in ("law", "art"):
        bank.add(task, few)
    auto = AutoSwitch(model, bank, Router.open(few), same, "sample")
    x = case.batch(["art", "code"])
    assert bits_of(auto(x)) == bits_of(case.by_hand({"art": 1.0}, x))  # nearest of what there is
    with pytest.raises(tsw.OptionError, match=r"none for 'code'; bank.add\('code', path\) first"):
        auto.router = Router.open(case.inputs)
    assert auto.router.tasks == ("law", "art")
    bank.add("code", alone["code"])
    auto.router = Router.open(tsw.bundle([few, alone["code"]], tmp_path / "more.tsw"))
    found = auto(x)
    for row, task in enumerate(("art", "code")):
        assert bits_of(found[row : row + 1]) == bits_of(case.by_hand({task: 1.0}, x[row : row + 1]))


def test_what_does_not_fit_together_is_refused(case: Case) -> None:
    model, bank = case.bank()
    router = Router.open(case.inputs)
    with pytest.raises(tsw.OptionError, match="expected a SwitchBank, found Net"):
        AutoSwitch(model, model, router, same)  # type: ignore[arg-type]
    with pytest.raises(tsw.OptionError, match="model: expected something to call, found str"):
        AutoSwitch("model", bank, router, same)  # type: ignore[arg-type]
    with pytest.raises(tsw.OptionError, match="extractor: expected something to call, found Tensor"):
        AutoSwitch(model, bank, router, torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(tsw.OptionError, match=r"use Router\.open\(path\)"):
        AutoSwitch(model, bank, "all.tsw", same)  # type: ignore[arg-type]
    with pytest.raises(tsw.OptionError, match="found 'soft'"):
        AutoSwitch(model, bank, router, same, "soft")  # type: ignore[arg-type]
    with pytest.raises(tsw.OptionError, match="model: expected that of the bank"):
        AutoSwitch(copy.deepcopy(model), bank, router, same)
    for extractor in (model.encode, model.first, model):
        with pytest.raises(tsw.OptionError, match="leave separate=True out"):
            AutoSwitch(model, bank, router, extractor, separate=True)
    AutoSwitch(model, bank, router, copy.deepcopy(model).encode, separate=True)
    with pytest.raises(tsw.OptionError, match="found none for 'law'"):
        AutoSwitch(model, SwitchBank(model), router, same)
    auto = AutoSwitch(model, bank, router, lambda x: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(tsw.OptionError, match="found NoneType"):
        auto(case.batch(["law"]))
    assert repr(auto).startswith("<AutoSwitch mean <Router of 3 tasks")


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("mode", ["mean", "sample"])
def test_a_run_that_fails_leaves_the_base(case: Case, separate: bool, error: Any, mode: str) -> None:
    auto, model, bank = case.auto(mode, separate=separate)
    x = case.batch(["law", "code"])
    fine = auto(x)

    def fails(found: Tensor) -> Tensor:
        assert bank.current
        raise error

    model.form = fails
    with pytest.raises(error):
        auto(x)
    assert bank.current == {}
    assert bits(model) == bits(case.base)
    model.form = lambda found: found
    assert torch.equal(auto(x), fine)


def test_an_expert_that_was_removed_is_named(case: Case) -> None:
    auto, model, bank = case.auto()
    bank.remove("code")
    auto(case.batch(["law"]))
    with pytest.raises(tsw.UnknownNameError, match="code"):
        auto(case.batch(["law", "code"]))
    assert bits(model) == bits(case.base)


def test_a_base_that_cannot_be_made_again_is_told_beside_the_error(case: Case) -> None:
    auto, model, _ = case.auto()

    def fails(found: Tensor) -> Tensor:
        model.second.bias.add_(1)
        raise RuntimeError("mine")

    model.form = fails
    with pytest.raises(RuntimeError, match="mine") as caught:
        auto(case.batch(["law"]))
    assert "could not be switched back to the base: bank: tensor 'second.bias' was moved or changed" in str(
        caught.value.__notes__
    )


@pytest.mark.parametrize("mode", ["mean", "sample"])
def test_an_interrupt_at_any_line_leaves_the_base(case: Case, mode: str) -> None:
    auto, model, bank = case.auto(mode)
    x = case.batch(["law", "code"])
    fine = auto(x)
    for number in itertools.count():
        with Interrupts(number, ("torch/auto.py",)) as interrupts, contextlib.suppress(KeyboardInterrupt):
            auto(x)
        if not interrupts.place:
            break
        assert bank.current == {}, interrupts.place
        assert bits(model) == bits(case.base), interrupts.place
        assert torch.equal(auto(x), fine)
    assert number > 10


def test_calls_of_several_threads_follow_one_another(case: Case) -> None:
    auto, model, _ = case.auto("sample")
    batches = {task: case.batch([task, "law", task]) for task in TASKS}
    expected = {task: auto(x) for task, x in batches.items()}
    wrong: list[str] = []

    def work(task: str) -> None:
        for _ in range(15):
            if not torch.equal(auto(batches[task]), expected[task]):
                wrong.append(task)

    threads = [threading.Thread(target=work, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert bits(model) == bits(case.base)


def test_inside_a_block_the_block_returns_to_what_was_before(case: Case) -> None:
    auto, model, bank = case.auto("mean", separate=True)
    x = case.batch(["law"])
    with bank.active("art"):
        found = auto(x)
        assert bank.current == {"law": 1.0}
    assert bits_of(found) == bits_of(case.by_hand({"law": 1.0}, x))
    assert bits(model) == bits(case.base)
