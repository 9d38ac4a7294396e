"""Knobs and factors get better and all else of the file stays; the figure never gets worse; the model comes back."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibrate_models import (
    CLASSES,
    WIDTH,
    Batch,
    Case,
    Mlp,
    TiedMlp,
    batches_of,
    expert_of,
    loss,
    pack,
    samples,
    validating,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_models import one_line, raw

import tswitch_format as tsw
import tswitch_format.torch as tsw_torch
from tswitch_format import _layout as lay
from tswitch_format.container.reader import Container
from tswitch_format.torch import held, refining
from tswitch_format.torch.expert import load_expert
from tswitch_format.torch.packed import PackedSwitch
from tswitch_format.torch.refining import Refined, refined_weight
from tswitch_format.torch.weights import ModelWeights

pytestmark = pytest.mark.filterwarnings("error")

FLOATS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors are small: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def case(tmp_path: Path, device: str) -> Case:
    return Case(tmp_path, device=device)


def state(model: nn.Module) -> tuple[Any, ...]:
    """All that must be as it was: parameters and buffers, the objects, where they are and their bits; what asks for gradients;
    the gradients; modes."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return (
        {name: (id(tensor), tensor.data_ptr(), raw(tensor), tensor.requires_grad) for name, tensor in tensors.items()},
        {name: id(tensor.grad) for name, tensor in tensors.items() if tensor.is_leaf},
        [module.training for module in model.modules()],
    )


def planes(path: Path, task: str) -> dict[str, tuple[Any, ...]]:
    """Encoded masks and signs of a task's switches, with how many are active; data of its dense entries."""
    container = Container(path)
    factors = (lay.Role.ROW_FACTORS, lay.Role.COLUMN_FACTORS)
    found: dict[str, tuple[Any, ...]] = {}
    for entry in container.entries(container.find(task)):
        stored = [(s.role, s.codec, s.count, bytes(s.data)) for s in entry.stored_segments() if s.role not in factors]
        found[entry.spec.name] = (entry.kind, entry.active, entry.flags, entry.factor_dtype, stored)
    container.close()
    return found


def entries(path: Path, task: str) -> dict[str, bytes | None]:
    """Digests of a task's entries."""
    container = Container(path)
    found = {entry.spec.name: entry.sha256 for entry in container.entries(container.find(task))}
    container.close()
    return found


def content(path: Path) -> str | None:
    with tsw.open(path) as file:
        return file.content_id


# ----------------------------------------------------------------------------------------------------------- what it gives


def test_it_gets_better_also_on_samples_never_seen(case: Case) -> None:
    before = case.figure(case.path, case.test)
    found = case.run(steps=100)
    assert found.kept
    assert found.after > 0.75 * found.before  # negative: the loss is less than three quarters of what it was
    assert case.figure(case.out, case.test) > 0.8 * before


def test_the_result_says_what_is_in_the_file(case: Case) -> None:
    found = case.run()
    assert (found.path, found.task, found.kept, found.switches) == (case.out, "math", True, 6)
    assert found.steps in (10, 20, 30, 40)
    assert found.content_id == content(case.out) != content(case.path)
    assert found.before == case.figure(case.path, case.validate)
    assert found.after == case.figure(case.out, case.validate)
    with tsw.open(case.path) as was, tsw.open(case.out) as now:
        how = f"4 batches, {found.steps} of 40 steps, learning rate 0.02, validation {found.before} -> {found.after}"
        changed = {"knob": "calibrated", "calibrated_from": "projection", "calibrated_on": how}
        assert now.recipe() == {**was.recipe(), **changed}


@pytest.mark.parametrize("per", ["tensor", "row", "row-col"])
@pytest.mark.parametrize("dtype", ["u4", "u8", "f16", "f32"])
def test_only_knobs_and_factors_change(tmp_path: Path, dtype: str, per: str) -> None:
    case = Case(tmp_path, knob_dtype=dtype, knob_per=per)
    found = case.run()
    assert found.kept
    assert tsw.validate(case.out, base=case.model).ok
    assert planes(case.out, "math") == planes(case.path, "math")
    with tsw.open(case.path) as was, tsw.open(case.out) as now:
        assert was.keys() == now.keys()
        for name in was.keys():  # noqa: SIM118 - no mapping
            one, other = was.switch(name), now.switch(name)
            assert np.array_equal(one.sign(), other.sign())
            assert one.knob != other.knob
            matrix = len(one.shape) == 2
            assert (other.row_factors is not None) == (matrix and per != "tensor")
            assert (other.column_factors is not None) == (matrix and per == "row-col")
            if other.row_factors is not None:
                # f16 and f32 hold more than the 3 that `pack` gives at most, and descent may want it.
                assert 0 <= other.row_factors.min() <= other.row_factors.max() <= (3 if dtype[0] == "u" else 100)
                coarse = np.rint(other.row_factors * 85) % 17 == 0
                assert coarse.all() == (dtype == "u4")
                assert not np.array_equal(one.row_factors, other.row_factors)  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", ["archive", "mapped"])
def test_other_tasks_stay_as_they_are_stored(tmp_path: Path, profile: str) -> None:
    case = Case(tmp_path, profile=profile, dense=["second.bias"])
    other = expert_of(case.model, 7)
    one = pack(case.model, other, tmp_path / "code.tsw", task="code", profile=profile, metadata={"a": "b"})
    both = tsw.bundle([case.path, one], tmp_path / "both.tsw")
    features = np.ones((3, 2), np.float32)
    case.path = tsw.add_router(both, tmp_path / "all.tsw", {"code": features, "math": -features})
    found = case.run(task="math")
    assert found.kept
    assert tsw.validate(case.out, base=case.model).ok
    assert planes(case.out, "code") == planes(case.path, "code")
    assert entries(case.out, "code") == entries(case.path, "code")
    was, now = entries(case.path, "math"), entries(case.out, "math")
    assert [name for name in was if was[name] == now[name]] == ["second.bias"]
    with tsw.open(case.path) as a, tsw.open(case.out) as b:
        assert (a.tasks, a.metadata, a.recipe("code"), a.profile) == (b.tasks, b.metadata, b.recipe("code"), b.profile)
        assert b.router is not None and sorted(b.router.features) == ["code", "math"]
    extracted = [tsw.extract(path, "code", tmp_path / f"{path.stem}-code.tsw") for path in (case.path, case.out)]
    assert extracted[0].read_bytes() == extracted[1].read_bytes()


def test_it_can_be_done_again(case: Case) -> None:
    first = case.run()
    case.path, case.out = case.out, case.folder / "again.tsw"
    again = case.run()
    assert again.before == first.after
    assert again.after > first.after
    with tsw.open(case.out) as file:
        assert file.recipe()["calibrated_from"] == "projection"
        assert f"validation {again.before} -> {again.after}" in file.recipe()["calibrated_on"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_bases_of_all_float_types(tmp_path: Path, dtype: str, device: str) -> None:
    case = Case(tmp_path, FLOATS[dtype], device)
    before = state(case.model)
    found = case.run()
    assert found.kept and found.after > 0.9 * found.before
    assert found.after == case.figure(case.out, case.validate)
    assert state(case.model) == before


def test_knobs_of_0_and_negative_ones(tmp_path: Path) -> None:
    """What is 0 stays 0, and signs of knobs and factors stay."""
    case = Case(tmp_path)
    weight = case.expert["first.weight"] - case.model.first.weight.detach()
    signs = torch.where(weight.abs() > 0.3, weight.sign(), 0).numpy()
    rows = np.linspace(-1, 4, 32).astype(np.float32)
    rows[3] = 0
    given = {
        "first.weight": tsw.GivenSwitch(-0.3, tsw.GivenSwitch.of_signs(-signs, 1).chunk, rows, shape=signs.shape),
        "second.bias": tsw.GivenSwitch.of_signs(np.ones(CLASSES), 0),
    }
    tsw.build(case.model, case.path, [tsw.GivenTask("given", given, recipe={"imported_from": "here"})])
    found = case.run(learning_rate=0.1)
    assert found.kept
    with tsw.open(case.out) as file:
        first = file.switch("first.weight")
        assert first.knob < 0 and first.knob != np.float32(-0.3)
        assert first.row_factors is not None
        assert np.array_equal(np.sign(first.row_factors), np.sign(rows))
        assert first.row_factors.max() > 3  # only codes of a byte end there
        assert file.switch("second.bias").knob == 0
        assert file.recipe()["calibrated_from"] == "given"


def test_codes_end_at_3(tmp_path: Path) -> None:
    """However large the steps are."""
    case = Case(tmp_path)
    case.run(learning_rate=5.0, validate=rising(), steps=8, checks=8)
    assert tsw.validate(case.out).ok
    with tsw.open(case.out) as file:
        rows = file.switch("first.weight").row_factors
        assert rows is not None and rows.max() == 3


# -------------------------------------------------------------------------------------------------------- never for worse


def rising() -> Callable[[nn.Module], float]:
    """Better each time."""
    numbers = itertools.count()
    return lambda model: next(numbers)


@pytest.mark.parametrize("figures", [[1.0, 0.0, 0.5, 0.0, 0.0], [1.0] * 5])
def test_what_is_not_better_is_not_kept(case: Case, figures: list[float]) -> None:
    given = iter(figures)
    found = case.run(validate=lambda model: next(given))
    assert next(given, None) is None
    assert not found.kept
    assert (found.before, found.after, found.steps) == (1.0, max(figures[1:]), 20 if 0.0 in figures else 10)
    assert found.content_id == content(case.out) == content(case.path)
    assert case.out.read_bytes() == case.path.read_bytes()


def test_what_is_not_better_once_it_is_stored_is_not_kept(case: Case) -> None:
    """A validation that gives another number each time."""
    given = iter([1.0, 2.0, 3.0, 2.0, 2.0, 1.0])
    found = case.run(validate=lambda model: next(given))
    assert (found.kept, found.before, found.after, found.steps) == (False, 1.0, 1.0, 20)
    assert found.content_id == content(case.path)
    assert case.out.read_bytes() == case.path.read_bytes()


def test_a_descent_that_goes_wrong_is_not_kept(case: Case) -> None:
    found = case.run(loss_fn=lambda model, batch: -loss(model, batch), learning_rate=0.5)
    assert not found.kept and found.after < found.before
    assert content(case.out) == content(case.path)


def test_the_best_of_all_checks_is_kept(case: Case) -> None:
    seen: list[dict[str, bytes]] = []
    figures = iter([0.0, 1.0, 3.0, 2.0, 3.0, 3.0])

    def validate(model: nn.Module) -> float:
        seen.append({name: raw(tensor) for name, tensor in model.state_dict().items()})
        return next(figures)

    found = case.run(validate=validate)
    assert (found.kept, found.after, found.steps) == (True, 3.0, 20)
    assert seen[5] == seen[2] != seen[4]
    made = Mlp().eval().requires_grad_(False)
    tsw_torch.apply_(made, case.out)
    assert {name: raw(tensor) for name, tensor in made.state_dict().items()} == seen[2]
    made = Mlp().eval().requires_grad_(False)
    tsw_torch.apply_(made, case.path)
    assert {name: raw(tensor) for name, tensor in made.state_dict().items()} == seen[0]


# ------------------------------------------------------------------------------------------------------------- descending


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_loss_sees_the_bits_that_apply_gives(tmp_path: Path, dtype: str, device: str) -> None:
    case = Case(tmp_path, FLOATS[dtype], device, dense=["second.bias"])
    seen: list[dict[str, bytes]] = []

    def first(model: nn.Module, batch: Batch) -> Tensor:
        seen.append({name: raw(tensor) for name, tensor in model.state_dict().items()})
        assert not model.training
        return loss(model, batch)

    case.run(loss_fn=first, steps=1, checks=1)
    made = Mlp(dtype=FLOATS[dtype]).eval().requires_grad_(False).to(device)
    tsw_torch.apply_(made, case.path)
    assert seen[0] == {name: raw(tensor) for name, tensor in made.state_dict().items()}


SHAPES = [(7, 5), (4, 3, 2), (3, 2, 2, 2), (11,), (), (1, 9), (9, 1)]


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
@pytest.mark.parametrize("per", ["tensor", "row", "row-col"])
def test_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per: str, dtype: str, device: str) -> None:
    """Against autograd on whole tensors."""
    monkeypatch.setattr(refining, "_BLOCK", 10)  # elements at a time: several blocks
    generator = torch.Generator().manual_seed(3)
    base = {str(shape): torch.randn(shape, generator=generator).to(FLOATS[dtype]) for shape in SHAPES}
    tuned = {name: (t + torch.randn(t.shape, generator=generator)).to(t.dtype) for name, t in base.items()}
    path = pack(base, tuned, tmp_path / "x.tsw", density=0.6, knob_per=per, knob_dtype="f32")  # type: ignore[arg-type]
    weights = ModelWeights({name: tensor.to(device) for name, tensor in base.items()})
    expert = load_expert(weights, path, None)
    for name, switch in expert.switches.items():
        weight, wide = weights[name], torch.float64
        refined = Refined(switch, lay.FactorDType.F32)
        toward = torch.randn(weight.shape, generator=generator).to(weight)
        (refined_weight(weight, switch, refined) * toward).sum().backward()
        with tsw.open(path) as file:
            signs = torch.from_numpy(np.array(file.switch(name).sign())).to(device, wide)
        plain = [torch.zeros_like(each, dtype=wide, requires_grad=True) for each in refined.logarithms]
        matrix = (weight.shape[0] if weight.ndim else 1, -1)
        value = signs.reshape(matrix) * switch.knob * plain[0].exp()
        if switch.rows is not None:
            value = value * (switch.rows * plain[1].exp())[:, None]
        if switch.columns is not None:
            value = value * (switch.columns * plain[2].exp())
        (value * toward.reshape(matrix).to(wide)).sum().backward()
        for found, expected in zip(refined.logarithms, plain, strict=True):
            assert found.grad is not None and expected.grad is not None
            torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-5)


def test_strided_weights(tmp_path: Path) -> None:
    """A weight that is the transpose of its memory."""
    case = Case(tmp_path)
    for layer in (case.model.first, case.model.second):
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    before = state(case.model)
    found = case.run()
    assert found.kept and found.after == pytest.approx(Case(tmp_path).run().after, rel=1e-3)
    assert state(case.model) == before


class Embedded(nn.Module):
    """An embedding with sparse gradients, and a part that is run again when gradients are computed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH, sparse=True)
        self.mlp = Mlp(seed)
        self.embed.weight.data = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(seed))

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.mlp, self.embed(ids), use_reentrant=False)
        return found


def test_sparse_gradients_and_checkpointing(tmp_path: Path) -> None:
    model = Embedded().eval()
    expert = expert_of(model)
    tuned = Embedded().eval()
    tuned.load_state_dict(expert)
    ids = torch.arange(60).reshape(3, 20) % 20
    with torch.no_grad():
        batches = [(row, tuned(row)) for row in ids]
    path = pack(model, expert, tmp_path / "math.tsw")
    before = state(model)
    validate = validating((ids.flatten(), torch.cat([y for _, y in batches])))
    found = tsw_torch.calibrate(model, path, tmp_path / "out.tsw", loss, batches, validate, steps=40)
    assert found.kept and found.after > 0.9 * found.before
    with tsw.open(path) as was, tsw.open(tmp_path / "out.tsw") as now:
        assert was.switch("embed.weight").knob != now.switch("embed.weight").knob
    assert state(model) == before


@pytest.mark.parametrize("apart", [False, True])
def test_tied_weights(tmp_path: Path, apart: bool) -> None:
    model = TiedMlp(apart=apart).eval()
    expert = expert_of(TiedMlp())
    expert["outer.weight"] = expert["inner.weight"]
    x, y = samples(TiedMlp(), expert, 128, 2)
    path = pack(TiedMlp(), expert, tmp_path / "math.tsw")
    before = state(model)
    seen: set[bool] = set()

    def same(model: TiedMlp, batch: Batch) -> Tensor:
        seen.add(model.outer.weight is model.inner.weight)
        return loss(model, batch)

    found = tsw_torch.calibrate(
        model, path, tmp_path / "out.tsw", same, batches_of((x, y)), validating(samples(TiedMlp(), expert, 128, 3))
    )
    assert found.kept and found.switches == 2
    assert seen == {True}  # one tensor, whose gradient is of both places
    assert state(model) == before
    assert (model.outer.weight is model.inner.weight) == (not apart)


def test_weights_that_are_tied_in_the_file_alone(tmp_path: Path) -> None:
    """Two tensors of the model have the switch of one name: what learns is one, too."""
    expert = expert_of(TiedMlp())
    expert["outer.weight"] = expert["inner.weight"]
    path = pack(TiedMlp(), expert, tmp_path / "math.tsw")
    model = TiedMlp().eval()
    model.outer.weight = nn.Parameter(model.inner.weight.detach().clone())
    before = state(model)
    seen: list[bool] = []

    def same(model: TiedMlp, batch: Batch) -> Tensor:
        seen.append(torch.equal(model.outer.weight, model.inner.weight))
        return loss(model, batch)

    x, y = samples(TiedMlp(), expert, 128, 2)
    found = tsw_torch.calibrate(model, path, tmp_path / "out.tsw", same, batches_of((x, y)), validating((x, y)))
    assert found.kept and found.switches == 2 and all(seen) and len(seen) == 100
    assert state(model) == before


def test_switches_of_buffers_are_applied_as_they_are(tmp_path: Path) -> None:
    case = Case(tmp_path)
    expert = {**case.expert, "norm.running_mean": torch.linspace(-1, 1, 32)}
    pack(case.model, expert, case.path, density=1.0)
    found = case.run(steps=4)
    assert found.kept and found.switches == 6
    assert entries(case.out, "math")["norm.running_mean"] == entries(case.path, "math")["norm.running_mean"]
    assert found.before == case.figure(case.path, case.validate)


def test_batches_are_gone_through_again_and_again(case: Case) -> None:
    class Batches:
        passes = 0

        def __iter__(self) -> Iterator[int]:
            self.passes += 1
            return iter(range(3))

    seen: list[int] = []
    progress: list[tuple[int, int]] = []
    data = batches_of(case.batches)

    def numbered(model: nn.Module, batch: int) -> Tensor:
        seen.append(batch)
        return loss(model, data[batch])

    given = Batches()
    case.run(
        loss_fn=numbered, batches=given, steps=7, checks=1, progress=lambda done, total: progress.append((done, total))
    )
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert given.passes == 4  # one of them only to see that it can be done again
    assert progress == [(number, 7) for number in range(1, 8)]
    with tsw.open(case.out) as file:
        assert file.recipe()["calibrated_on"].startswith("3 batches, 7 of 7 steps, ")


# ------------------------------------------------------------------------------------------------------ the model comes back


def unusual_model(case: Case) -> nn.Module:
    """Some parameters ask for gradients, one has one; modes are mixed."""
    case.model.requires_grad_(False)
    case.model.first.weight.requires_grad_(True)
    case.model.first.weight.grad = torch.ones_like(case.model.first.weight)
    case.model.train()
    case.model.second.eval()
    return case.model


def restless(model: nn.Module, batch: Batch) -> Tensor:
    """In training mode norms change their buffers."""
    model.train()
    return loss(model, batch)


class StopError(Exception):
    pass


def test_the_model_comes_back(case: Case) -> None:
    model = unusual_model(case)
    before = state(model)
    assert case.run(loss_fn=restless).switches == 6
    assert state(model) == before


def test_train_and_eval_of_modules_are_not_called(case: Case) -> None:
    """Some do more than set a flag, such as merging an adapter."""

    def train(mode: bool = True) -> nn.Module:
        raise StopError

    model = unusual_model(case)
    model.norm.train = train  # type: ignore[union-attr,method-assign]
    before = state(model)
    assert case.run().switches == 6
    assert state(model) == before


def test_each_validation_sees_the_buffers_of_the_base(case: Case) -> None:
    seen = set()

    def validate(model: nn.Module) -> float:
        assert not model.training and not torch.is_grad_enabled()
        seen.add(raw(model.norm.running_mean))  # type: ignore[arg-type]
        restless(model, case.batches)
        return 0.0

    case.run(validate=validate, loss_fn=restless)
    assert seen == {raw(case.model.norm.running_mean)}  # type: ignore[arg-type]


def test_the_model_comes_back_from_two_interrupts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second while it is given back."""
    model = unusual_model(case)
    before = state(model)
    real, numbers = held.HeldModel.undo, itertools.count(1)

    def interrupts(self: held.HeldModel) -> None:
        if fails and next(numbers) == 1:
            raise KeyboardInterrupt
        real(self)

    def fail(done: int, total: int) -> None:
        fails.append(True)
        raise KeyboardInterrupt

    fails: list[bool] = []
    monkeypatch.setattr(held.HeldModel, "undo", interrupts)
    with pytest.raises(KeyboardInterrupt):
        case.run(progress=fail, loss_fn=restless)
    assert next(numbers) == 3
    assert state(model) == before


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["loss_fn", "validate", "progress"])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_the_model_comes_back_from_errors(case: Case, where: str, number: int, error: type[BaseException]) -> None:
    model = unusual_model(case)
    before = state(model)
    real: dict[str, Any] = {"loss_fn": restless, "validate": case.validate, "progress": lambda done, total: None}
    numbers = itertools.count(1)

    def fails(*arguments: Any) -> Any:
        if next(numbers) == number:
            raise error
        return real[where](*arguments)

    with pytest.raises(error):
        case.run(**{**real, where: fails}, steps=8)
    assert state(model) == before
    assert [path.name for path in case.folder.iterdir()] == ["math.tsw"]


@pytest.mark.slow
def test_an_interrupt_at_any_line(tmp_path: Path) -> None:
    """Of those modules of floor 4 that change the model: every 61st of them, and all of the last ones, which give it back."""
    case = Case(tmp_path, dense=["second.bias"])
    model = unusual_model(case)
    before = state(model)
    watched = {Path(module.__file__ or "").name for module in (held, refining)} | {"calibration.py", "activation.py"}
    folder = str(Path(tsw_torch.__file__).parent)

    def interrupted(at: int) -> int | None:
        """How many lines there were, if it came to its end."""
        lines = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal lines
            path = frame.f_code.co_filename
            if not path.startswith(folder) or Path(path).name not in watched:
                return None
            if event == "line":
                lines += 1
                if lines == at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        usual = sys.gettrace()
        sys.settrace(trace)
        try:
            case.run(steps=2, checks=2, loss_fn=restless)
        except KeyboardInterrupt:
            return None
        finally:
            sys.settrace(usual)
        return lines

    total = [interrupted(0), interrupted(0)][1]
    assert total is not None and total > 1500
    for number in (*range(1, total, 61), *range(total - 60, total + 1)):
        assert interrupted(number) is None
        assert state(model) == before, f"line {number} of {total}"
        shown = {
            path.name for path in tmp_path.iterdir() if not path.name.startswith(".")
        }  # as a kill may leave others
        assert shown == {"math.tsw", "calibrated.tsw"}
        assert tsw.validate(case.out).ok


def test_gradients_need_not_be_on(case: Case) -> None:
    with torch.no_grad():
        one = case.run()
    with torch.inference_mode():
        other = case.run()
    assert one == other and one.kept


def test_wrappers_are_taken_off(case: Case) -> None:
    seen: set[type] = set()

    def noting(model: nn.Module, batch: Batch) -> Tensor:
        seen.add(type(model))
        return loss(model, batch)

    assert case.run(model=torch.compile(case.model, backend="eager"), loss_fn=noting).kept
    assert seen == {Mlp}


# ------------------------------------------------------------------------------------------------------------------ errors


def refused(case: Case, error: type[Exception] = tsw.OptionError, **options: Any) -> str:
    """The message; nothing is written, nothing changed."""
    before = state(case.model)
    there = {path.name: path.read_bytes() for path in case.folder.iterdir()}
    with pytest.raises(error) as caught:
        case.run(**options)
    assert state(case.model) == before
    assert {path.name: path.read_bytes() for path in case.folder.iterdir()} == there
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number from 1 on, found 0"),
        ({"steps": 2.0}, "steps: expected a whole number from 1 on, found 2.0"),
        ({"checks": 0}, "checks: expected a whole number from 1 on, found 0"),
        ({"checks": 41}, "checks: expected at most one a step, 40, found 41"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0, found 0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number above 0, found nan"),
        ({"learning_rate": "fast"}, "learning_rate: expected a number above 0, found 'fast'"),
        ({"loss_fn": None}, "loss_fn: expected a function, found NoneType"),
        ({"validate": 0.5}, "validate: expected a function, found float"),
        ({"batches": iter([1])}, "batches: expected something to go through again and again, such as a list or a DataLoader"),
        ({"batches": 4}, "such as a list or a DataLoader, found int"),
        ({"batches": []}, "batches: expected at least one, found none"),
        ({"model": 3}, "model: expected an nn.Module or a mapping of tensors, found int"),
        ({"model": {"a": torch.ones(2)}}, "model: expected an nn.Module, found a dict"),
        ({"validate": lambda model: float("nan")}, "validate: expected a finite number, found nan"),
        ({"validate": lambda model: None}, "validate: expected a number, found NoneType"),
        ({"validate": lambda model: torch.ones(2)}, "validate: expected a number, found Tensor"),
        ({"loss_fn": lambda model, batch: 0.5}, "loss_fn: step 1: expected a tensor with one element, found float"),
        (
            {"loss_fn": lambda model, batch: model(batch[0])},
            "loss_fn: step 1: expected a float tensor with one element, found float32 of shape [32, 6]; take its mean",
        ),
        ({"loss_fn": lambda model, batch: torch.ones(())}, "a loss that depends on the model's parameters, found one without"),
        (
            {"loss_fn": lambda model, batch: loss(model, batch) * float("inf")},
            "loss_fn: step 1: expected a finite loss, found inf; lower learning_rate",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert message in refused(Case(tmp_path), **options)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


def test_gradients_that_are_not_finite(tmp_path: Path) -> None:
    def bad(model: nn.Module, batch: Batch) -> Tensor:
        return BadGradient.apply(loss(model, batch))  # type: ignore[no-any-return, no-untyped-call]

    found = refused(Case(tmp_path), loss_fn=bad, steps=1, checks=1)
    assert "expected finite gradients of the loss, found NaN or infinity; lower learning_rate" in found
    again = refused(Case(tmp_path), loss_fn=bad, steps=2, checks=1)
    assert "loss_fn: step 2: expected a finite loss, found nan; lower learning_rate" in again


def test_a_task_that_is_not_there(case: Case) -> None:
    assert "no task named 'maths'" in refused(case, tsw.UnknownNameError, task="maths")


def test_which_task(case: Case) -> None:
    one = pack(case.model, expert_of(case.model, 7), case.folder / "code.tsw", task="code")
    case.path = tsw.bundle([case.path, one], case.folder / "both.tsw")
    assert "it has 2 tasks: math, code; name one with task=" in refused(case)


def test_another_base(case: Case) -> None:
    case.model = Mlp(5).eval().to(next(case.model.parameters()).device)
    found = refused(case, tsw.BaseMismatchError)
    assert "wrong base: tensor 'first.bias': expected sampled digest" in found
    assert case.run(check_base=False, steps=1, checks=1).switches == 6


def test_the_input_is_no_output(case: Case) -> None:
    assert "the output is one of the inputs" in refused(case, tsw.OutputError, out=case.path)


def test_outputs_that_cannot_be_written(case: Case) -> None:
    def never(*_: object) -> Any:
        raise AssertionError("work was begun")

    asked: dict[str, Any] = {"loss_fn": never, "validate": never}
    assert "does not exist" in refused(case, tsw.OutputError, out=case.folder / "no" / "x.tsw", **asked)
    with pytest.raises(tsw.OutputError, match="found a folder"):
        case.run(out=case.folder, **asked)


def test_a_task_without_switches(case: Case) -> None:
    case.path.unlink()
    pack(case.model, case.expert, case.path, dense=["*"])
    found = refused(case)
    assert f"{case.path}: task 'math': expected ternary entries of parameters of the model" in found
    pack(case.model, {**case.model.state_dict(), "norm.running_mean": torch.ones(32)}, case.path)
    assert "found none; there are no knobs to refine" in refused(case)


def test_masked_entries_are_refused(tmp_path: Path) -> None:
    case = Case(tmp_path)
    arrays = {name: tensor.numpy() for name, tensor in case.model.state_dict().items()}
    experts = {
        task: {name: tensor.numpy() for name, tensor in expert_of(case.model, seed).items()}
        for seed, task in enumerate(("math", "code"))
    }
    case.path.unlink()
    tsw.make_tall(arrays, experts, case.path)
    found = refused(case, task="math")
    assert "expected a ternary entry, found a masked one, whose vector other tasks share" in found


def test_a_damaged_file(case: Case) -> None:
    content = bytearray(case.path.read_bytes())
    content[70] ^= 1
    case.path.write_bytes(content)
    assert "TSW-701" in refused(case, tsw.FormatError)


def test_packed_planes_are_not_changed(case: Case) -> None:
    """What learns is made into new switches."""
    weights = ModelWeights(case.model.requires_grad_(False))
    (switch, *_) = load_expert(weights, case.path, None).switches.values()
    assert isinstance(switch, PackedSwitch)
    refined = Refined(switch, lay.FactorDType.U8)
    with torch.no_grad():
        for each in refined.logarithms:
            each.add_(100)
    refined.keep_in_range()
    fitted = refined.fitted()
    assert np.float32(switch.knob) * np.exp(np.float32(3)) == pytest.approx(float(fitted.knob), rel=1e-5)
