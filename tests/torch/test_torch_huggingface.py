"""The way of most users: a Hugging Face folder, a file, `from_pretrained`, a bank. Tiny models, made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_models import bits, bits_of, copies
from torch import Tensor, nn

import tswitch_format as tsw
from tswitch_format.torch import SwitchBank
from tswitch_format.torch import apply_ as apply_in_place

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[1, 7, 3, 9, 2, 30, 5]])
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "max_position_embeddings": 32}  # fmt: skip


def llama(*, tied: bool = True) -> Any:
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, type_vocab_size=2))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


MAKERS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama untied": lambda: llama(tied=False),
    "bert": bert,
    "gpt2": gpt2,
}
AUTO = {"bert": "AutoModelForMaskedLM"}


class Folders:
    """Of one model: `base`, changed copies, files of these, and what `tsw.restore` makes of them."""

    def __init__(self, folder: Path, kind: str, dtype: torch.dtype, experts: int = 2) -> None:
        self.folder = folder
        self.kind = kind
        self.base = folder / "base"
        torch.manual_seed(0)
        model = MAKERS[kind]().to(dtype)
        with torch.no_grad():  # norms and biases begin as ones and zeros
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape).to(dtype))
        model.save_pretrained(self.base, max_shard_size="10KB")
        assert len(list(self.base.glob("*.safetensors"))) > 2
        self.files = {}
        for number, name in enumerate(("math", "code")[:experts], 1):
            expert = MAKERS[kind]().to(dtype)
            expert.load_state_dict(model.state_dict())
            torch.manual_seed(number)
            with torch.no_grad():
                for parameter in expert.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape).to(dtype))
            expert.save_pretrained(folder / name, max_shard_size="10KB")
            self.files[name] = folder / f"{name}.tsw"
            tsw.pack(self.base, folder / name, self.files[name], density=0.2, task=name, threads=1)

    def load(self, folder: Path | None = None, **options: Any) -> Any:
        auto = getattr(transformers, AUTO.get(self.kind, "AutoModelForCausalLM"))
        return auto.from_pretrained(folder or self.base, **{"dtype": "auto", **options}).requires_grad_(False).eval()

    def restored(self, name: str) -> Any:
        out = self.folder / f"restored-{name}"
        if not out.exists():
            tsw.restore(self.base, self.files[name], out, threads=1)
            for path in self.base.glob("*.json"):
                if not (out / path.name).exists():
                    (out / path.name).write_bytes(path.read_bytes())
        return self.load(out)


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(IDS).logits
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], Folders]:
    made: dict[tuple[str, torch.dtype], Folders] = {}

    def get(kind: str, dtype: torch.dtype = torch.float32) -> Folders:
        if (kind, dtype) not in made:
            made[kind, dtype] = Folders(tmp_path_factory.mktemp("hf"), kind, dtype)
        return made[kind, dtype]

    return get


Get = Callable[..., Folders]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_the_main_job(folders: Get, kind: str, dtype: torch.dtype) -> None:
    """Weights and logits under an expert are those of the folder that `restore` writes; afterwards those of the base."""
    found = folders(kind, dtype)
    on_disk = {path.name: path.read_bytes() for path in found.base.iterdir()}
    model = found.load()
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    base, base_bits = logits(model), bits(model)
    where = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    bank = SwitchBank(model)
    for name, path in found.files.items():
        bank.add(name, path)
    for name in found.files:
        with bank.active(name):
            expert = found.restored(name)
            assert bits(model) == bits(expert)
            assert bits_of(logits(model)) == bits_of(logits(expert))
            assert not torch.equal(logits(model), base)
        assert bits_of(logits(model)) == bits_of(base)
    with bank.active({"math": 0.6, "code": 0.4}):
        assert not torch.equal(logits(model), base)
    assert bits(model) == base_bits
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == where
    assert {path.name: path.read_bytes() for path in found.base.iterdir()} == on_disk


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_tied_weights_stay_tied(folders: Get, kind: str) -> None:
    found = folders(kind)
    model = found.load()
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings is head or embeddings.data_ptr() == head.data_ptr()
    before = bits_of(embeddings)
    bank = SwitchBank(model)
    bank.add("math", found.files["math"])
    with bank.active("math"):
        assert bits_of(embeddings) != before
        assert bits_of(model.get_output_embeddings().weight) == bits_of(model.get_input_embeddings().weight)
        assert bits_of(embeddings) == bits_of(found.restored("math").get_input_embeddings().weight)
    assert bits_of(embeddings) == before


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_applying_for_good(folders: Get, kind: str) -> None:
    found = folders(kind, torch.bfloat16)
    model = found.load()
    apply_in_place(model, found.files["math"])
    assert bits(model) == bits(found.restored("math"))


def test_a_file_made_from_models_in_memory_fits_a_folder(folders: Get, tmp_path: Path) -> None:
    """Packed from nn.Modules, where tied weights have other names than in folders."""
    found = folders("llama")
    expert = found.load(found.folder / "math")
    tsw.pack(found.load(), expert, tmp_path / "math.tsw", density=0.2, threads=1)
    tsw.restore(found.base, tmp_path / "math.tsw", tmp_path / "out", threads=1)
    model = found.load()
    bank = SwitchBank(model)
    bank.add("memory", tmp_path / "math.tsw")
    bank.add("folder", found.files["math"])
    bank.activate("folder")
    expected = bits(model)
    bank.activate("memory")
    assert bits(model) == expected
    # Both together add to each weight twice, tied ones too.
    bank.activate({"memory": 0.5, "folder": 0.5})
    state = model.state_dict()
    base = found.load().state_dict()
    for name, tensor in state.items():
        with tsw.open(found.files["math"]) as file:
            key = name if name in file.keys() else "model.embed_tokens.weight"  # noqa: SIM118 - a method
            delta = torch.from_numpy(file.switch(key).delta(0.5))
        assert torch.equal(tensor, base[name] + delta + delta), name


def test_generating_under_an_expert(folders: Get) -> None:
    found = folders("llama")
    model = found.load()
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = model.generate(IDS, **options)
    bank = SwitchBank(model)
    bank.add("math", found.files["math"])
    with bank.active("math"):
        made = model.generate(IDS, **options)
    assert torch.equal(made, found.restored("math").generate(IDS, **options))
    assert torch.equal(model.generate(IDS, **options), before)


# --- what users forget ----------------------------------------------------------------------------------------


def test_requires_grad_was_forgotten(folders: Get) -> None:
    found = folders("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(found.base)
    before = bits(model)
    bank = SwitchBank(model)
    with pytest.raises(tsw.OptionError, match=r"requires grad.*call model\.requires_grad_\(False\) first") as error:
        bank.add("math", found.files["math"])
    assert "\n" not in str(error.value)
    assert bits(model) == before
    assert bank.experts == []
    model.requires_grad_(False)
    bank.add("math", found.files["math"])
    with bank.active("math"):
        assert bits(model) == bits(found.restored("math"))


@pytest.mark.parametrize(("file", "loaded"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_model_loaded_in_another_float_type(folders: Get, file: torch.dtype, loaded: torch.dtype) -> None:
    """Refused in words that name the tensor and both types; with check_base=False as `Switch.apply` computes it."""
    found = folders("llama", file)
    model = found.load(dtype=loaded)
    base = copies(model.state_dict())
    bank = SwitchBank(model)
    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    with pytest.raises(tsw.BaseMismatchError) as error:
        bank.add("math", found.files["math"])
    message = str(error.value)
    assert names[file] in message
    assert names[loaded] in message
    assert error.value.tensor in base
    assert bits(model) == bits(base)
    bank.add("math", found.files["math"], check_base=False)
    bank.activate("math")
    state = model.state_dict()
    with tsw.open(found.files["math"]) as switches:
        for name in switches.keys():  # noqa: SIM118 - a method
            key = name if name in state else "lm_head.weight"
            if loaded == torch.float32:
                made = base[key].numpy() + np.asarray(switches.switch(name).delta(), np.float32)
                right = torch.from_numpy(np.where(switches.switch(name).mask(), made, base[key].numpy()))
            else:
                right = (base[key].float() + torch.from_numpy(switches.switch(name).delta())).bfloat16()
            assert torch.equal(state[key], right), name
    bank.deactivate()
    assert bits(model) == bits(base)


def test_the_error_on_another_float_type_names_the_way_on(folders: Get) -> None:
    """Loading with dtype="auto", or check_base=False: the base itself is right, so that advice alone does not help."""
    found = folders("llama")
    bank = SwitchBank(found.load(dtype=torch.bfloat16))
    with pytest.raises(tsw.BaseMismatchError, match=r"check_base=False"):
        bank.add("math", found.files["math"])


def test_the_model_without_its_head_names_near_tensors(folders: Get) -> None:
    """AutoModel drops a prefix of all names: the message must let one see that."""
    found = folders("llama")
    model = transformers.AutoModel.from_pretrained(found.base).requires_grad_(False)
    with pytest.raises(tsw.BaseMismatchError, match="near: 'model\\.") as error:
        SwitchBank(model).add("math", found.files["math"])
    assert "\n" not in str(error.value)


def test_another_model_of_the_same_shape_is_refused(folders: Get) -> None:
    found = folders("llama")
    torch.manual_seed(99)
    model = llama().requires_grad_(False)
    with pytest.raises(tsw.BaseMismatchError, match="TSW-902"):
        SwitchBank(model).add("math", found.files["math"])


def test_the_expert_as_the_base_is_refused(folders: Get) -> None:
    found = folders("llama")
    model = found.load(found.folder / "math")
    with pytest.raises(tsw.BaseMismatchError, match="TSW-902"):
        SwitchBank(model).add("math", found.files["math"])


def test_resized_embeddings_are_noticed(folders: Get) -> None:
    found = folders("llama")
    model = found.load()
    bank = SwitchBank(model)
    bank.add("math", found.files["math"])
    model.resize_token_embeddings(80)
    with pytest.raises(tsw.OptionError, match=r"replaced by another|moved or changed"):
        bank.activate("math")


def test_a_cast_after_the_bank_was_made_is_noticed(folders: Get) -> None:
    found = folders("llama")
    model = found.load()
    bank = SwitchBank(model)
    bank.add("math", found.files["math"])
    model.bfloat16()
    before = bits(model)
    with pytest.raises(tsw.OptionError, match="moved or changed by something else"):
        bank.activate("math")
    assert bits(model) == before


def test_an_untied_head_is_noticed(folders: Get) -> None:
    """The head made a tensor of its own after the bank was made: switching only the embeddings would be half a switch."""
    found = folders("llama")
    for part in ("lm_head", "model.embed_tokens"):
        model = found.load()
        bank = SwitchBank(model)
        bank.add("math", found.files["math"])
        layer = model.get_submodule(part)
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        before = bits(model)
        with pytest.raises(tsw.OptionError, match="replaced"):
            bank.activate("math")
        assert bits(model) == before


def test_a_mixture_of_experts_is_switched_as_its_folder_names_it(tmp_path: Path) -> None:
    """transformers 5 keeps a mixture's experts in one tensor in memory and in many in folders: an error that names a tensor,
    or the right weights."""
    config = transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1)
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "math")
    tsw.pack(tmp_path / "base", tmp_path / "math", tmp_path / "math.tsw", density=0.2, threads=1)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").requires_grad_(False)
    before = bits(loaded)
    bank = SwitchBank(loaded)
    try:
        bank.add("math", tmp_path / "math.tsw")
    except tsw.BaseMismatchError as error:
        assert "experts" in str(error)
    else:
        bank.activate("math")
        assert bits(loaded) != before
        bank.deactivate()
    assert bits(loaded) == before
