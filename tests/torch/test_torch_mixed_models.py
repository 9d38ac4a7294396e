"""Whole models in which each row uses another expert, against each row run alone with its expert applied for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_models import applied, load_expert, pack_experts, rows_alone
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tswitch_format.errors import OptionError, UnknownNameError
from tswitch_format.torch.mixed import MixedModel, forward_mixed

TASKS = ["task1", None, "task0", "task2", ("task0", 0.5), "task1", ("task2", 0.0), ("task2", -0.7)]
CLOSE = 2e-5  # of the largest output: sums of f32 in another order, through some layers


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    return BertForMaskedLM(config)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32))


class Vision(nn.Module):
    """Patches, a class token, torch's encoder layer, batch norm, a scalar: modules that own tensors of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.norm = nn.BatchNorm1d(16)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(16, 5, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        ones = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        mask = torch.tril(ones, -1)  # as many positions as rows
        return self.head(self.norm(self.encoder(x, mask)[:, 0])) * self.scale


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval().requires_grad_(False)


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, Vision):
        return {"pixels": torch.randn(len(TASKS), 3, 4, 28)}
    mask = torch.ones(len(TASKS), 9, dtype=torch.int64)
    mask[2, :3] = 0
    return {"input_ids": torch.randint(0, 60, (len(TASKS), 9)), "attention_mask": mask}


def output_of(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.logits


def check_rows(found: Tensor, wanted: list[Any]) -> None:
    for row, alone in enumerate(wanted):
        want = output_of(alone)[0]
        assert (found[row] - want).abs().max() <= CLOSE * want.abs().max(), f"row {row}"


@pytest.mark.parametrize(
    ("build", "dense"),
    [
        (llama, ["*norm.weight", "*mlp.down_proj*", "*embed*"]),
        (bert, ["*LayerNorm*", "*query.weight", "*key.bias", "*position_embeddings*"]),
        (gpt2, ["*ln_1*", "*attn.c_proj.weight", "*mlp.c_fc.bias"]),
        (Vision, ["*norm1*", "*linear1.weight", "*out_proj.weight", "token"]),
    ],
)
def test_each_row_is_that_of_its_expert_alone(tmp_path: Path, build: Callable[[], nn.Module], dense: list[str]) -> None:
    model = made(build)
    paths = pack_experts(model, tmp_path, 2)
    (tmp_path / "dense").mkdir()
    paths |= {"task2": pack_experts(model, tmp_path / "dense", 3, dense=dense)["task2"]}
    experts = {name: load_expert(path) for name, path in paths.items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mixed, call = MixedModel(model, experts), inputs_of(model)
    wanted = rows_alone(model, paths, TASKS, call)
    outputs = [output_of(want) for want in wanted]
    assert min((a - b).abs().max() for a in outputs for b in outputs if a is not b) > 1e-3  # experts matter here
    for _ in range(2):  # guarded, and not
        check_rows(output_of(mixed(task_ids=TASKS, **call)), wanted)
    check_rows(output_of(forward_mixed(model, experts, (), call, task_ids=TASKS)), wanted)
    with torch.no_grad():
        base = output_of(model(**call))
    check_rows(base, rows_alone(model, paths, [None] * len(TASKS), call))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.gpu
@pytest.mark.parametrize("build", [llama, bert, gpt2, Vision])
def test_a_gpu_gives_each_row_its_expert(tmp_path: Path, build: Callable[[], nn.Module]) -> None:
    model = made(build)
    paths, call = pack_experts(model, tmp_path, 3), inputs_of(model)
    wanted = [output_of(want)[0] for want in rows_alone(model, paths, TASKS, call)]
    model.cuda()
    mixed = MixedModel(model, {name: load_expert(path, "cuda") for name, path in paths.items()})
    for _ in range(2):
        found = output_of(mixed(task_ids=TASKS, **{name: tensor.cuda() for name, tensor in call.items()})).cpu()
        for row, want in enumerate(wanted):
            assert (found[row] - want).abs().max() <= 50 * CLOSE * want.abs().max(), f"row {row}"


def test_a_batch_of_one_task_and_a_batch_of_the_base(tmp_path: Path) -> None:
    model = made(llama)
    paths = pack_experts(model, tmp_path, 2)
    mixed, call = MixedModel(model, {name: load_expert(path) for name, path in paths.items()}), inputs_of(model)
    with torch.no_grad():
        check_rows(mixed(task_ids=["task1"] * 8, **call).logits, rows_alone(model, paths, ["task1"] * 8, call))
        assert torch.equal(mixed(task_ids=[None] * 8, **call).logits, model(**call).logits)
        assert torch.equal(mixed(task_ids=torch.full((8,), -1), **call).logits, model(**call).logits)


def test_generate_with_a_cache(tmp_path: Path) -> None:
    model = made(llama)
    paths = pack_experts(model, tmp_path, 3)
    mixed = MixedModel(model, {name: load_expert(path) for name, path in paths.items()})
    tasks, ids = ["task2", None, "task0"], torch.randint(1, 60, (3, 6))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with mixed.using(tasks):
        found = model.generate(ids, **options)  # type: ignore[operator]
    for row, task in enumerate(tasks):
        alone = applied(model, paths[task] if task else None)
        assert torch.equal(found[row], alone.generate(ids[row : row + 1], **options)[0])  # type: ignore[operator]


def test_tied_weights_share_their_planes(tmp_path: Path) -> None:
    model = made(llama)
    path = pack_experts(model, tmp_path, 1)["task0"]
    expert = load_expert(path)
    names = [name for name in ("lm_head.weight", "model.embed_tokens.weight") if name in expert]
    assert len(names) == 1
    mixed = MixedModel(model, {"a": expert})
    tied = expert.pop(names[0])
    alone = MixedModel(nn.ModuleDict({"lm_head": model.lm_head}), {"a": {"lm_head.weight": tied}})
    assert mixed.nbytes == MixedModel(model, {"a": expert}).nbytes + alone.nbytes
    assert alone.nbytes >= 60 * 32 // 4


def test_half_precision(tmp_path: Path) -> None:
    model = made(llama).bfloat16()
    paths = pack_experts(model, tmp_path, 3)
    mixed, call = MixedModel(model, {name: load_expert(path) for name, path in paths.items()}), inputs_of(model)
    found = mixed(task_ids=TASKS, **call).logits
    assert found.dtype == torch.bfloat16
    for row, want in enumerate(rows_alone(model, paths, TASKS, call)):
        assert (found[row].float() - want.logits[0].float()).abs().max() < 0.03 * want.logits.float().abs().max()


class Owner(nn.Module):
    """A module that uses a changed tensor as `use` says."""

    def __init__(self, use: Callable[[Owner, Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, x)


@pytest.mark.parametrize(
    ("use", "match"),
    [
        (lambda m, x: functional.linear(x, m.inner.weight), r"parameter 'inner.weight'.*found it in linear\(\)"),
        (lambda m, x: x @ m.inner.weight.T, r"'inner.weight'.*found it in T\(\)"),
        (lambda m, x: torch.stack([m.inner.weight]), r"'inner.weight'.*in stack\(\)"),
        (
            lambda m, x: m.inner(x.flatten(0, 1)),
            r"module 'inner' \(parameter 'inner.weight'\): .*batch of 4 .*found shape \[12, 6\]",
        ),
        (lambda m, x: m.inner(x[0, 0]), "found shape"),
    ],
)
def test_a_model_that_cannot_be_run_by_rows_is_refused(tmp_path: Path, use: Any, match: str) -> None:
    model = made(lambda: Owner(use))
    experts = {name: load_expert(path) for name, path in pack_experts(model, tmp_path, 2).items()}
    with pytest.raises(OptionError, match=match):
        MixedModel(model, experts)(torch.randn(4, 3, 6), task_ids=["task0", "task1", None, None])
    assert "forward" not in vars(model.inner)


def test_what_tells_nothing_of_the_elements_is_no_use(tmp_path: Path) -> None:
    model = made(lambda: Owner(lambda m, x: m.inner(x.to(m.inner.weight.dtype)) * m.inner.weight.shape[0]))
    paths = pack_experts(model, tmp_path, 1)
    mixed = MixedModel(model, {"a": load_expert(paths["task0"])})
    x = torch.randn(2, 6)
    check_rows(
        mixed(x, task_ids=["a", None]),
        [applied(model, path)(x[i, None]) for i, path in enumerate([paths["task0"], None])],
    )


class Grouped(nn.Module):
    """A module with a parameter of its own, called with and giving all sorts."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.give = give

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        return self.give(x * self.scale)


@pytest.mark.parametrize(
    ("give", "rest", "match"),
    [
        (lambda y: y, (object(),), "found a object"),
        (lambda y: y, (torch.zeros(4),), r"found shape \[4\]"),
        (lambda y: y.sum(), (), "expected outputs"),
        (lambda y: y[:, :1] if len(y) == 1 else y, (), "expected outputs"),
        (lambda y: (y,) if len(y) == 1 else y, (), "one form"),
        (lambda y: (y, float(y.sum())), (), "the same for every task"),
    ],
)
def test_what_cannot_be_cut_or_put_together_is_refused(tmp_path: Path, give: Any, rest: Any, match: str) -> None:
    model = made(lambda: Grouped(give))
    experts = {"a": load_expert(pack_experts(model, tmp_path, 1, density=0.9)["task0"])}
    with pytest.raises(OptionError, match=rf"module '' \(parameter 'scale'\): .*{match}"):
        MixedModel(model, experts)(torch.randn(3, 6), *rest, task_ids=["a", None, None])


def test_outputs_of_all_forms_are_put_together(tmp_path: Path) -> None:
    model = made(lambda: Grouped(lambda y: {"y": y, "rest": [y + 1, None, (y[:, 0], 3)]}))
    path = pack_experts(model, tmp_path, 1, density=0.9)["task0"]
    x = torch.randn(3, 6)
    named = {"k": {"deep": [torch.zeros(3), 1, None, torch.zeros(1, 2), torch.tensor(2)]}}
    found = MixedModel(model, {"a": load_expert(path)})(x, "text", task_ids=[None, "a", None], **named)
    for row, expert in enumerate([None, path, None]):
        want = applied(model, expert)(x[row, None])
        assert torch.equal(found["y"][row], want["y"][0]) and torch.equal(found["rest"][0][row], want["rest"][0][0])
        assert found["rest"][1] is None and torch.equal(found["rest"][2][0][row], want["rest"][2][0][0])
        assert found["rest"][2][1] == 3


def test_embeddings_have_the_experts_own_numbers(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = made(lambda: nn.Sequential(nn.Embedding(50, 24, padding_idx=0))).to(dtype)
        paths = pack_experts(model, tmp_path, 3)
        mixed = MixedModel(model, {name: load_expert(path) for name, path in paths.items()})
        ids = torch.randint(0, 50, (8, 2, 5))
        wanted = rows_alone(model, paths, TASKS, {"input": ids})
        assert torch.equal(mixed(ids, task_ids=TASKS), torch.cat(wanted))


def test_kept_tensors_follow_the_base(tmp_path: Path) -> None:
    model = made(lambda: nn.Sequential(nn.LayerNorm(6)))
    path = pack_experts(model, tmp_path, 1, density=0.9)["task0"]
    mixed, x = MixedModel(model, {"a": load_expert(path)}), torch.randn(2, 6)
    first = mixed(x, task_ids=["a", None])
    held = mixed.nbytes
    assert held >= 2 * 24
    model[0].weight.mul_(2)
    second = mixed(x, task_ids=["a", None])
    assert mixed.nbytes == held and not torch.allclose(first[0], second[0])


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    model = made(lambda: nn.Sequential(nn.Linear(6, 4)))
    expert = load_expert(pack_experts(model, tmp_path, 1)["task0"])
    with pytest.raises(UnknownNameError, match=r"did you mean '0\.weight'"):
        MixedModel(model, {"a": {"0.wieght": expert["0.weight"]}})
    for bad in (expert["0.bias"], torch.zeros(4, 6, dtype=torch.float16), torch.zeros(6, 4), "x"):
        with pytest.raises(OptionError, match=r"experts\['a'\]: parameter '0.weight': expected"):
            MixedModel(model, {"a": {"0.weight": bad}})  # type: ignore[dict-item]
    mixed, x = MixedModel(model, {"a": expert}), torch.randn(3, 6)
    with pytest.raises(OptionError, match=r"found 2 for arguments of shapes \[\[3, 6\]\]"):
        mixed(x, task_ids=["a", None])
    with pytest.raises(UnknownNameError, match="task_ids"):
        mixed(x, task_ids=["a", "b", None])
    with mixed.using(["a"] * 3), pytest.raises(OptionError, match="one call at a time"):
        mixed(x, task_ids=["a"] * 3)
    assert mixed(x, task_ids=["a"] * 3).shape == (3, 4)  # it was let go


def test_tied_tensors_take_one_switch() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)))
    model[1].weight = model[0].weight
    one, other = torch.ones(6, 6), torch.zeros(6, 6)
    MixedModel(model, {"a": {"0.weight": one, "1.weight": one}})
    with pytest.raises(OptionError, match=r"found another under '0\.weight'"):
        MixedModel(model, {"a": {"0.weight": one, "1.weight": other}})


@pytest.mark.parametrize(
    "module",
    [nn.LSTM(6, 6, batch_first=True), nn.MultiheadAttention(6, 2), torch.jit.script(nn.PReLU())],
    ids=lambda m: type(m).__name__,
)
def test_modules_that_cannot_be_run_by_rows_are_refused(module: nn.Module) -> None:
    name, parameter = next(iter(module.named_parameters()))
    with pytest.raises(OptionError, match=f"parameter 'inner.{name}'.*expected a module that can be run by rows"):
        holder = nn.Module()
        holder.inner = module
        MixedModel(holder, {"a": {f"inner.{name}": parameter.detach() + 1}})


def test_an_error_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    def fail(module: nn.Module, args: Any) -> None:
        raise RuntimeError("in a hook")

    model = made(bert)
    mixed = MixedModel(model, {"a": load_expert(pack_experts(model, tmp_path, 1)["task0"])})
    call, before = inputs_of(model), {name: (id(p), p._version) for name, p in model.named_parameters()}
    handle = model.bert.encoder.layer[1].output.LayerNorm.register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="in a hook"):
            mixed(task_ids=["a"] * 7 + [None], **call)
    handle.remove()
    assert {name: (id(p), p._version) for name, p in model.named_parameters()} == before
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert mixed(task_ids=["a"] * 7 + [None], **call).logits.shape == (8, 9, 60)


def test_attention_with_a_mask_for_each_row_is_refused() -> None:
    model = nn.Module()
    model.inner = nn.MultiheadAttention(6, 2, batch_first=True).eval().requires_grad_(False)
    model.forward = lambda x, mask: model.inner(x, x, x, None, True, mask)[0]
    mixed = MixedModel(model, {"a": {"inner.out_proj.bias": torch.ones(6)}})
    x, mask = torch.randn(3, 3, 6), torch.randn(3, 3)
    found, base = mixed(x, mask, task_ids=["a", None, "a"]), model.forward(x, mask)
    assert torch.allclose(found, base + torch.tensor([1.0, 0, 1])[:, None, None], atol=1e-6)
    with pytest.raises(OptionError, match="attn_mask of two dimensions, found"):
        mixed(x, torch.randn(6, 3, 3), task_ids=["a", None, "a"])
