"""Importance scores: what slow autograd gives, a model that is as it was, files that `pack` takes, clear errors."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch_models import one_line, raw

import tswitch_format as tsw
from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_format.switch.task_vector import BLOCK
from tswitch_format.torch import Importance, importance
from tswitch_tools.cli import tsw as command

Scores = dict[str, Tensor]
Batches = Sequence[Tensor]


class Net(nn.Module):
    """Tied embedding and head, dropout, a batch norm with its buffers, a parameter without dimensions, one of no use."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.spare = nn.Parameter(torch.ones(3))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embedding.weight
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*self.parameters(), self.norm.running_mean, self.norm.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.25)
        self.to(dtype)

    def forward(self, indices: Tensor) -> Tensor:
        found: Tensor = self.head(self.dropout(self.norm(self.linear(self.embedding(indices)))) * self.temperature)
        return found


NAMES = [
    "embedding.weight",
    "linear.bias",
    "linear.weight",
    "norm.bias",
    "norm.weight",
    "nothing",
    "spare",
    "temperature",
]
BATCHES: Batches = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 5, 0, 11])]


def tuned(base: nn.Module, scale: float = 0.1, but: Sequence[str] = ("spare",)) -> Any:
    """The base with every float tensor changed, but some."""
    expert = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, tensor in expert.state_dict().items():
            if tensor.is_floating_point() and name not in (*but, "head.weight"):
                tensor.add_((scale * torch.rand(tensor.shape, generator=generator)).to(tensor.dtype))
    return expert


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return functional.cross_entropy(model(batch), (batch + 1) % 12)


def slow(expert: nn.Module, base: nn.Module, batches: Batches, loss: Callable[..., Tensor] = loss_of) -> Scores:
    """The formula as it stands: backward for each batch, on a copy, and tau whole."""
    model = copy.deepcopy(expert).eval().requires_grad_(True)
    before = dict(base.named_parameters())
    sums = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        loss(model, batch).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.to_dense().float().abs()
    found = {}
    for name, parameter in model.named_parameters():
        wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        tau = parameter.detach().to(wide) - before[name].detach().to(wide)
        found[name] = (torch.div(sums[name], torch.tensor(float(len(batches)))).to(wide) * tau.abs()).float()
    return found


def same(a: Any, b: Scores) -> bool:
    return list(a) == sorted(b) and all(
        a[n].dtype == torch.float32
        and a[n].device.type == "cpu"
        and a[n].shape == b[n].shape
        and raw(a[n]) == raw(b[n])
        for n in b
    )


# --- what the scores are --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_are_those_of_slow_autograd(dtype: torch.dtype) -> None:
    base = Net(dtype=dtype)
    expert = tuned(base)
    scores = importance(expert, loss_of, BATCHES, base=base)
    assert list(scores) == NAMES
    assert same(scores, slow(expert, base, BATCHES))
    assert {name for name in NAMES if not scores[name].any()} == {"nothing", "spare"}


def test_float16_models_add_up_in_float32() -> None:
    """1,024 gradients of 3 and then some of 0.001, which are lost in a float16 sum."""
    base = nn.Linear(1, 1, bias=False).half()
    expert = copy.deepcopy(base)
    with torch.no_grad():
        base.weight.fill_(0.0)
        expert.weight.fill_(1.0)
    batches = [torch.tensor([[3.0]]).half()] * 1024 + [torch.tensor([[0.001]]).half()] * 1024
    scores = importance(expert, lambda model, batch: model(batch).sum(), batches, base=base)
    assert scores["weight"].item() == pytest.approx((3 + 0.001) / 2, rel=1e-4)
    assert same(scores, slow(expert, base, batches, lambda model, batch: model(batch).sum()))


def test_scores_are_how_the_loss_changes_when_an_element_goes_back_to_the_base() -> None:
    """To first order: in f64, with small differences, sample by sample."""
    base = Net(dtype=torch.float64)
    expert = tuned(base, 1e-6)
    samples = [torch.tensor([index]) for index in range(12)]
    scores = importance(expert, loss_of, samples, base=base)
    model = copy.deepcopy(expert).eval()
    with torch.no_grad():
        for name in ("linear.weight", "embedding.weight", "temperature"):
            parameter, before = model.get_parameter(name), base.get_parameter(name)
            flat, old = parameter.view(-1), before.view(-1)
            for place in range(0, flat.numel(), 5):
                kept = flat[place].item()
                whole = torch.stack([loss_of(model, sample) for sample in samples])
                flat[place] = old[place]
                without = torch.stack([loss_of(model, sample) for sample in samples])
                flat[place] = kept
                assert scores[name].view(-1)[place].item() == pytest.approx(
                    (whole - without).abs().mean().item(), rel=1e-3, abs=1e-14
                )


def test_each_batch_counts_once_whatever_its_size_and_signs_do_not_cancel() -> None:
    base, expert = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        base.weight.fill_(1.0)
        expert.weight.fill_(3.0)
    batches = [torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[-5.0]])]
    scores = importance(expert, lambda model, batch: model(batch).mean(), iter(batches), base=base)
    assert scores["weight"].tolist() == [[2 * (1 + 5) / 2]]
    assert scores.metadata["score_batches"] == "2"


def test_more_batches_are_added_in_order() -> None:
    base = Net()
    expert = tuned(base)
    many = [torch.tensor([i % 12, (5 * i) % 12]) for i in range(40)]
    assert same(importance(expert, loss_of, (batch for batch in many), base=base), slow(expert, base, many))


@pytest.mark.parametrize("kind", ["module", "mapping", "state", "arrays", "path", "string", "reader", "other type"])
def test_bases_of_every_kind(tmp_path: Path, kind: str) -> None:
    base = Net()
    expert = tuned(base)
    state = {name: tensor.clone() for name, tensor in base.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "base.safetensors")
    wanted = slow(expert, base, BATCHES)
    given: dict[str, Any] = {
        "module": base,
        "mapping": state,
        "state": base.state_dict(),
        "arrays": {name: tensor.numpy() for name, tensor in state.items()},
        "path": tmp_path / "base.safetensors",
        "string": str(tmp_path / "base.safetensors"),
        "other type": copy.deepcopy(base).double(),
    }
    if kind == "reader":
        with borrow_checkpoint(given["path"]) as reader:
            found = importance(expert, loss_of, BATCHES, base=reader)
    else:
        found = importance(expert, loss_of, BATCHES, base=given[kind])
    assert same(found, wanted)


def test_the_model_may_be_on_another_device(device: str) -> None:
    base = Net()
    expert = tuned(base)
    here = importance(expert, loss_of, BATCHES, base=base)
    there = importance(expert.to(device), lambda m, batch: loss_of(m, batch.to(device)), BATCHES, base=base)
    assert list(there) == list(here)
    for name, score in there.items():
        assert score.device.type == "cpu"
        assert torch.allclose(score, here[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(mode: Callable[[], Any]) -> None:
    base = Net()
    expert = tuned(base)
    with mode():
        scores = importance(expert, loss_of, BATCHES, base=base)
        assert not torch.is_grad_enabled()
    assert same(scores, slow(expert, base, BATCHES))


def test_sparse_gradients() -> None:
    base = Net()
    base.head.weight = nn.Parameter(torch.ones(12, 6))
    base.embedding.sparse = True
    expert = tuned(base)
    assert same(importance(expert, loss_of, BATCHES, base=base), slow(expert, base, BATCHES))


def test_a_compiled_model_has_the_names_of_the_one_inside() -> None:
    base = Net()
    expert = tuned(base)
    wrapped = torch.compile(expert, backend="eager")
    assert list(importance(wrapped, loss_of, BATCHES, base=base)) == NAMES


# --- names ----------------------------------------------------------------------------------------------------


def test_tied_weights_have_one_score_of_all_their_uses() -> None:
    base = Net()
    scores = importance(tuned(base), loss_of, BATCHES, base=base)
    assert "head.weight" not in scores
    assert scores.aliases == {"head.weight": "embedding.weight"}


def test_tied_weights_have_the_name_that_the_base_stores() -> None:
    base = Net()
    stored = {name: tensor.clone() for name, tensor in base.state_dict().items() if name != "embedding.weight"}
    expert = tuned(base)
    scores = importance(expert, loss_of, BATCHES, base=stored)
    assert "embedding.weight" not in scores
    assert raw(scores["head.weight"]) == raw(slow(expert, base, BATCHES)["embedding.weight"])


def test_ties_by_memory_of_two_parameters_add_their_gradients() -> None:
    base = Net()
    expert = tuned(base)
    apart = copy.deepcopy(expert)
    apart.head.weight = nn.Parameter(apart.embedding.weight.data)  # the same memory, another leaf
    assert apart.head.weight is not apart.embedding.weight
    found = importance(apart, loss_of, BATCHES, base=base)["embedding.weight"]
    assert torch.allclose(found, slow(expert, base, BATCHES)["embedding.weight"], rtol=1e-5)


def test_what_the_base_does_not_tie_shares_gradients_and_has_differences_of_its_own() -> None:
    base = Net()
    stored = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    stored["head.weight"] += 1
    expert = tuned(base)
    scores = importance(expert, loss_of, BATCHES, base=stored)
    wanted = slow(expert, base, BATCHES)["embedding.weight"]
    assert raw(scores["embedding.weight"]) == raw(wanted)
    tau = expert.embedding.weight.detach() - base.embedding.weight.detach()
    other = expert.embedding.weight.detach() - stored["head.weight"]
    assert torch.allclose(scores["head.weight"], wanted / tau.abs() * other.abs(), rtol=1e-4)


def test_parameters_that_do_not_pair_have_no_scores() -> None:
    base = Net()
    expert = tuned(base)
    expert.temperature = nn.Parameter(torch.ones(6))  # another shape
    expert.more = nn.Parameter(torch.ones(6))
    assert list(importance(expert, loss_of, BATCHES, base=base)) == [name for name in NAMES if name != "temperature"]


# --- parameters that the loss does not reach ------------------------------------------------------------------


def test_what_the_loss_does_not_reach_has_the_score_0_and_is_named() -> None:
    base = Net()
    with pytest.warns(UserWarning, match=r"reached none of 1 changed tensors, such as 'spare': .*--dense"):
        scores = importance(tuned(base, but=()), loss_of, BATCHES, base=base)
    assert scores.unreached == ("nothing", "spare")
    assert json.loads(scores.metadata["score_unreached"]) == ["nothing", "spare"]
    assert not scores["spare"].any()


def test_no_warning_where_it_was_not_changed() -> None:
    base = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importance(tuned(base), loss_of, BATCHES, base=base).unreached == ("nothing", "spare")


def test_reached_in_one_batch_only() -> None:
    base = Net()
    expert = tuned(base, but=())

    def loss(model: Any, batch: Tensor) -> Tensor:
        return loss_of(model, batch) + (model.spare.square().sum() if len(batch) == 1 else 0)

    scores = importance(expert, loss, BATCHES, base=base)
    assert scores.unreached == ("nothing",)
    assert same(scores, slow(expert, base, BATCHES, loss))


# --- the model is as it was -----------------------------------------------------------------------------------


class BoomError(Exception):
    """What a user's code raises."""


def boom(error: BaseException) -> Any:
    raise error


def broken_loader(error: BaseException) -> Iterator[Tensor]:
    yield BATCHES[0]
    raise error


def second(good: Callable[..., Any], bad: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """A loss that goes wrong in the second batch."""

    def make() -> Callable[..., Any]:
        losses = iter([good])

        def loss(model: Any, batch: Tensor) -> Any:
            return next(losses, bad)(model, batch)

        return loss

    return make


def overflowing(model: Any, batch: Tensor) -> Tensor:
    """A finite loss whose gradient is infinite: of the square root at 0."""
    return loss_of(model, batch) + (model.temperature * 0).abs().sqrt()


ENDINGS: dict[
    str, tuple[Callable[[], Callable[..., Any]], Callable[[], Any], type[BaseException] | None, str | None]
] = {
    "success": (lambda: loss_of, lambda: BATCHES, None, None),
    "loss raises": (second(loss_of, lambda m, b: boom(BoomError())), lambda: BATCHES, BoomError, None),
    "interrupt": (second(loss_of, lambda m, b: boom(KeyboardInterrupt())), lambda: BATCHES, KeyboardInterrupt, None),
    "loader raises": (lambda: loss_of, lambda: broken_loader(BoomError()), BoomError, None),
    "loader is interrupted": (lambda: loss_of, lambda: broken_loader(KeyboardInterrupt()), KeyboardInterrupt, None),
    "no batches": (lambda: loss_of, list, tsw.OptionError, "loader: expected at least one batch, found none"),
    "NaN loss": (
        second(loss_of, lambda m, b: loss_of(m, b) * float("nan")),
        lambda: BATCHES,
        tsw.OptionError,
        "loss_fn: batch 1: expected a finite loss, found nan",
    ),
    "NaN gradient": (
        second(loss_of, overflowing),
        lambda: BATCHES,
        tsw.NonFiniteError,
        r"Net: tensor 'temperature': expected finite gradients of the loss, found NaN or infinity in batch 1; leave",
    ),
    "number": (
        second(loss_of, lambda m, b: loss_of(m, b).item()),
        lambda: BATCHES,
        tsw.OptionError,
        "loss_fn: batch 1: expected a tensor with one element, found float",
    ),
    "vector": (
        lambda: lambda m, b: m(b),
        lambda: BATCHES,
        tsw.OptionError,
        r"loss_fn: batch 0: expected a float tensor with one element, found float32 of shape \[3, 12\]",
    ),
    "integer": (
        lambda: lambda m, b: m(b).argmax(),
        lambda: BATCHES,
        tsw.OptionError,
        r"loss_fn: batch 0: expected a float tensor with one element, found int64 of shape \[\]",
    ),
    "detached": (
        lambda: lambda m, b: loss_of(m, b).detach(),
        lambda: BATCHES,
        tsw.OptionError,
        "loss_fn: batch 0: expected a loss that depends on the model's parameters, found one without a graph",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_model_is_as_it_was_whatever_happens(ending: str) -> None:
    make_loss, make_loader, error, message = ENDINGS[ending]
    base = Net()
    expert = tuned(base)
    expert.train()
    expert.norm.eval()
    expert.linear.requires_grad_(False)
    calls: list[str] = []
    handle = expert.linear.register_forward_hook(lambda *_: calls.append("forward"))
    gradients = {"temperature": torch.tensor(7.0), "embedding.weight": torch.ones(12, 6)}
    for name, gradient in gradients.items():
        expert.get_parameter(name).grad = gradient
    content = {name: raw(tensor) for name, tensor in expert.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in expert.named_parameters()}
    seen: list[tuple[bool, bool]] = []
    loss = make_loss()

    def watched(model: Any, batch: Tensor) -> Any:
        assert model is expert
        seen.append((any(m.training for m in model.modules()), all(p.requires_grad for p in model.parameters())))
        return loss(model, batch)

    if error is None:
        importance(expert, watched, make_loader(), base=base)
    else:
        with pytest.raises(error, match=message) as found:
            importance(expert, watched, make_loader(), base=base)
        if issubclass(error, tsw.TswError):
            one_line(found.value)
    assert set(seen) <= {(False, True)}
    assert error is not None or len(calls) == len(BATCHES)
    assert [name for name, module in expert.named_modules() if not module.training] == ["norm"]
    frozen = [name for name, parameter in expert.named_parameters() if not parameter.requires_grad]
    assert frozen == ["linear.weight", "linear.bias"]
    for name, parameter in expert.named_parameters():
        assert parameter.grad is gradients.get(name)
    assert raw(gradients["temperature"]) == raw(torch.tensor(7.0))
    assert raw(gradients["embedding.weight"]) == raw(torch.ones(12, 6))
    assert {name: raw(tensor) for name, tensor in expert.state_dict().items()} == content
    assert {name: id(parameter) for name, parameter in expert.named_parameters()} == objects
    assert list(expert.linear._forward_hooks) == [handle.id]
    assert not any(parameter._backward_hooks for parameter in expert.parameters())


def test_a_backward_in_the_loss_leaves_no_gradients() -> None:
    base = Net()
    expert = tuned(base)
    expert.linear.weight.grad = torch.ones(6, 6)

    def loss(model: Any, batch: Tensor) -> Tensor:
        loss_of(model, batch).backward()
        return loss_of(model, batch)

    assert same(importance(expert, loss, BATCHES, base=base), slow(expert, base, BATCHES))
    assert raw(expert.linear.weight.grad) == raw(torch.ones(6, 6))
    assert expert.temperature.grad is None


def test_train_and_eval_of_modules_are_not_called() -> None:
    """Some do more than set a flag, such as merging an adapter."""
    base = Net()
    expert = tuned(base)
    expert.norm.train = lambda mode=True: boom(BoomError())
    importance(expert, loss_of, BATCHES, base=base)
    assert expert.norm.training


# --- memory ---------------------------------------------------------------------------------------------------


class Watched:
    """A base that notes what is read of it, and when."""

    def __init__(self, reader: Any, log: list[int]) -> None:
        self._reader = reader
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def read_into(self, name: str, start: int, out: Any) -> None:
        self._log.append(out.size)
        self._reader.read_into(name, start, out)


def test_the_base_is_read_after_the_batches_in_blocks() -> None:
    base, expert = (nn.Linear(3 * BLOCK // 2, 2, bias=False) for _ in range(2))
    log: list[int] = []
    logged: list[int] = []

    def loss(model: Any, batch: Tensor) -> Tensor:
        logged.append(len(log))
        found: Tensor = model.weight.square().mean()
        return found

    with borrow_checkpoint(base) as reader:
        scores = importance(expert, loss, [BATCHES[0]] * 2, base=Watched(reader, log))
    assert logged == [0, 0]
    assert max(log) == 4 * BLOCK
    assert sum(size for size in log if size > 4096) == 4 * 3 * BLOCK  # once, but for samples for digests
    assert same(scores, slow(expert, base, BATCHES[:2], lambda model, _: model.weight.square().mean()))


# --- what is refused ------------------------------------------------------------------------------------------


def refused(model: Any, base: Any, error: type[tsw.TswError], message: str) -> None:
    def loss(model: Any, batch: Any) -> Any:
        raise AssertionError("refused before anything is computed")

    with pytest.raises(error, match=message) as found:
        importance(model, loss, BATCHES, base=base)
    one_line(found.value)


def test_models_that_are_none() -> None:
    refused(Net().state_dict(), Net(), tsw.OptionError, "model: expected the fine-tuned nn.Module, found OrderedDict")


def test_models_without_memory() -> None:
    refused(Net().to("meta"), Net(), tsw.CheckpointError, "expected a dense tensor, found a tensor on the meta device")
    refused(nn.LazyLinear(3), Net(), tsw.CheckpointError, "a parameter that has no shape yet")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn"])
def test_parameters_without_gradients(dtype: str) -> None:
    model = Net()
    kind = getattr(torch, dtype)
    model.spare = nn.Parameter(torch.ones(3).to(kind), requires_grad=False)
    refused(
        model, Net(), tsw.OptionError, f"parameter 'spare': expected float16, .*, found {dtype}; load .* without quant"
    )


def test_inference_tensors() -> None:
    with torch.inference_mode():
        model = Net()
    refused(model, Net(), tsw.OptionError, "expected one that can require grad, found an inference tensor; load")


def test_bases_that_do_not_fit(tmp_path: Path) -> None:
    base = {f"model.{name}": tensor.clone() for name, tensor in Net().state_dict().items()}
    message = "such as 'embedding.weight', found none among 12, such as 'model.embedding.weight'; give the base"
    refused(Net(), base, tsw.CheckpointError, message)
    refused(Net(), tmp_path / "no.safetensors", tsw.CheckpointError, "no such file or folder")
    refused(Net(), 3, tsw.CheckpointError, "expected a path, a mapping of name to array, or an nn.Module, found int")
    refused(nn.ReLU(), Net(), tsw.CheckpointError, "such as 'none', found none among")


def test_a_model_that_equals_the_base() -> None:
    base = Net()
    message = r"expected a difference .* found none in 8 tensors: all scores would be 0; give the base"
    with pytest.raises(tsw.OptionError, match=message):
        importance(tuned(base, 0), loss_of, BATCHES, base=base)


def test_differences_that_are_not_finite() -> None:
    base = Net()
    stored = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    stored["linear.bias"][2] = float("nan")
    with pytest.raises(tsw.NonFiniteError, match=r"tensor 'linear.bias': expected finite weights") as found:
        importance(tuned(base), loss_of, BATCHES, base=stored)
    assert found.value.tensor == "linear.bias"


def test_scores_beyond_float32() -> None:
    base = nn.Linear(1, 1, bias=False)
    expert = tuned(base)
    with torch.no_grad():
        expert.weight.fill_(1e30)
    with pytest.raises(
        tsw.NonFiniteError, match=r"tensor 'weight': expected scores within .* 0 to 1; scale the loss down"
    ):
        importance(expert, lambda m, b: (m.weight - m.weight.detach()).sum() * 1e9, BATCHES, base=base)


# --- files ----------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_with_its_provenance(tmp_path: Path) -> None:
    base = Net()
    state = {name: tensor.clone() for name, tensor in base.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "base.safetensors")
    scores = importance(tuned(base), loss_of, BATCHES, base=tmp_path / "base.safetensors")
    scores.save(tmp_path / "scores.safetensors", note="digits, first 3 batches")
    found = load_file(tmp_path / "scores.safetensors")
    assert found.keys() == scores.keys()
    assert all(raw(found[name]) == raw(scores[name]) for name in found)
    with safe_open(tmp_path / "scores.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata == {**scores.metadata, "note": "digits, first 3 batches"}
    assert metadata["score_method"] == "first-order Taylor"
    assert metadata["score_formula"] == "mean over batches of |dL/dtheta * (theta - base)|, at the fine-tuned theta"
    assert metadata["score_batches"] == "3"
    assert metadata["score_base"] == "base.safetensors"
    assert metadata["writer"] == f"tswitch_format {tsw.__version__}"
    tsw.pack(base, tuned(base), tmp_path / "x.tsw")
    with tsw.open(tmp_path / "x.tsw") as file:
        for name, digest in json.loads(metadata["score_base_digests"]).items():
            assert file.base.digests(name).sampled.hex() == digest
    scores.save(tmp_path / "scores.safetensors")  # over the old one
    with safe_open(tmp_path / "scores.safetensors", "pt") as file:
        assert file.metadata() == scores.metadata


def test_saving_fails_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Net()
    save_file({n: t.clone() for n, t in base.state_dict().items() if n != "head.weight"}, tmp_path / "base.safetensors")
    content = (tmp_path / "base.safetensors").read_bytes()
    scores = importance(tuned(base), loss_of, BATCHES, base=tmp_path / "base.safetensors")
    with pytest.raises(tsw.OutputError, match="the output is one of the inputs"):
        scores.save(tmp_path / "base.safetensors")
    with pytest.raises(tsw.OptionError, match="note: expected a string, found int"):
        scores.save(tmp_path / "scores.safetensors", note=3)  # type: ignore[arg-type]
    with pytest.raises(tsw.CheckpointError, match=r"scores\.pt: .*name the output OUT\.safetensors"):
        scores.save(tmp_path / "scores.pt")
    with pytest.raises(tsw.OutputError, match="does not exist; make it first"):
        scores.save(tmp_path / "no" / "scores.safetensors")
    monkeypatch.setattr(Importance, "items", lambda self: boom(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        scores.save(tmp_path / "scores.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]
    assert (tmp_path / "base.safetensors").read_bytes() == content


def masks(path: Path) -> dict[str, Any]:
    with tsw.open(path) as file:
        names = [name for name in file.keys() if file.switch(name).kind == "ternary"]  # noqa: SIM118 - no mapping
        return {name: file.switch(name).mask() for name in names}


@pytest.mark.parametrize("select", ["tensor", "tensor-signed", "global"])
def test_the_command_packs_by_a_file_of_scores(tmp_path: Path, select: str) -> None:
    base = Net()
    expert = tuned(base)
    files = {"base": base, "expert": expert}
    for name, model in files.items():
        state = {n: t.clone() for n, t in model.state_dict().items() if n != "head.weight"}
        save_file(state, tmp_path / f"{name}.safetensors")
    scores = importance(expert, loss_of, BATCHES, base=tmp_path / "base.safetensors")
    scores.save(tmp_path / "scores.safetensors")
    paths = [str(tmp_path / name) for name in ("base.safetensors", "expert.safetensors")]
    options = ["--score", str(tmp_path / "scores.safetensors"), "--select", select, "--density", "0.25"]
    done = CliRunner().invoke(command, ["pack", *paths, "-o", str(tmp_path / "x.tsw"), *options])
    assert done.exit_code == 0, done.stderr
    direct = tsw.pack(base, expert, tmp_path / "y.tsw", score=scores, select=select, density=0.25)
    with tsw.open(tmp_path / "x.tsw") as file, tsw.open(tmp_path / "y.tsw") as other:
        assert file.recipe()["score"] == "scores.safetensors"
        assert file.recipe()["score_method"] == other.recipe()["score_method"] == "first-order Taylor"
        assert other.recipe()["score"] == "the importance scores of Net"
    assert direct.switches == len(masks(tmp_path / "x.tsw"))
    found, again = masks(tmp_path / "x.tsw"), masks(tmp_path / "y.tsw")
    assert found.keys() == again.keys()
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert "spare" not in found  # the score is 0 everywhere
    if select == "tensor":
        keys = scores["linear.weight"].numpy()
        assert np.array_equal(found["linear.weight"], keys >= np.sort(keys, None)[-9])
    # Buffers have no gradient: by magnitude.
    tau = (expert.norm.running_mean - base.norm.running_mean).abs().numpy()
    assert np.array_equal(found["norm.running_mean"], tau >= np.sort(tau)[-2])
    info = CliRunner().invoke(command, ["info", str(tmp_path / "x.tsw"), "--json"])
    assert json.loads(info.stdout)["tasks"][0]["recipe"]["score_method"] == "first-order Taylor"


def test_scores_under_another_name_of_a_tied_tensor(tmp_path: Path) -> None:
    """Of a base that stores the head, for one that stores the embedding: found where a side lists the tie, else refused."""
    base = Net()
    expert = tuned(base)
    stored = {n: t.clone() for n, t in base.state_dict().items() if n != "embedding.weight"}
    other = {n: t.clone() for n, t in base.state_dict().items() if n != "head.weight"}
    apart = {n: t.clone() for n, t in expert.state_dict().items() if n != "head.weight"}
    scores = importance(expert, loss_of, BATCHES, base=stored)
    assert "head.weight" in scores
    scores.save(tmp_path / "scores.safetensors")
    tsw.pack(base, expert, tmp_path / "x.tsw", score=tmp_path / "scores.safetensors", density=0.2)
    tsw.pack(other, expert, tmp_path / "y.tsw", score=tmp_path / "scores.safetensors", density=0.2)
    first, second = masks(tmp_path / "x.tsw"), masks(tmp_path / "y.tsw")
    keys = scores["head.weight"].numpy()
    wanted = keys >= np.sort(keys, None)[-15]
    assert np.array_equal(first["embedding.weight"], wanted)
    assert np.array_equal(second["embedding.weight"], wanted)
    with pytest.raises(
        tsw.CheckpointError, match=r"scores of 'head.weight': expected a tensor of that name .*found none"
    ):
        tsw.pack(other, apart, tmp_path / "z.tsw", score=tmp_path / "scores.safetensors", density=0.2)
