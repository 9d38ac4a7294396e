"""One batch for many experts: packed planes (`MixedModel`), each expert in turn, and dense deltas in one `bmm`.

The batch holds two rows for each expert, in order of experts, which is what suits dense deltas best: nothing is gathered. In
turn, weights are switched in place and back with the packed kernels, and the rows of one expert run at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

import tswitch_format as tsw
from benchmarks import common
from tswitch_format.switch.planes import Mode
from tswitch_format.torch.kernels import Job, run
from tswitch_format.torch.load import SwitchTensors
from tswitch_format.torch.mixed import MixedModel
from tswitch_format.torch.packed import PackedSwitch

ROWS_OF_A_TASK = 2
CASES = ((1, 1), (1, 64), (4, 1), (4, 64))  # layers, tokens of a row
MIXED, TURNS, DENSE, BASE = "mixed, packed planes", "each expert in turn", "dense deltas, bmm", "the base alone"


@dataclass(frozen=True, slots=True)
class Setting:
    """A stack of linear layers, experts of it, and each expert's deltas, dense, layer by layer: [T, N, K]."""

    model: nn.Sequential
    experts: dict[str, dict[str, PackedSwitch]]
    deltas: list[Tensor]

    @classmethod
    def make(cls, folder: Path, layers: int, width: int, tasks: int, density: float, device: str) -> Setting:
        """Pack random experts and load them; bf16 on CUDA, f32 elsewhere."""
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))).to(dtype)
        base = model.state_dict()
        experts: dict[str, dict[str, PackedSwitch]] = {}
        deltas = [torch.empty(tasks, width, width, dtype=dtype, device=device) for _ in range(layers)]
        path = folder / "expert.tsw"
        for task in range(tasks):
            expert = {name: weight + 0.01 * torch.randn_like(weight) for name, weight in base.items()}
            tsw.pack(base, expert, path, density=density, select="tensor", knob_dtype="u8")
            with SwitchTensors(path, device=device) as file:
                experts[str(task)] = {name: file.switch(name).packed() for name in base}
                for layer, name in enumerate(base):
                    deltas[layer][task] = file.switch(name).delta()
        return cls(model.to(device).requires_grad_(False), experts, deltas)


def in_turn(setting: Setting, x: Tensor) -> Tensor:
    """Switch to each expert in place, run its rows, switch back."""
    weights = setting.model.state_dict()
    outputs = []
    for task, expert in enumerate(setting.experts.values()):
        kept = {name: weights[name].new_empty(switch.active) for name, switch in expert.items()}
        run([Job(Mode.SAVE_AND_ADD, weights[name], switch, other=kept[name]) for name, switch in expert.items()])
        outputs.append(setting.model(x[task * ROWS_OF_A_TASK : (task + 1) * ROWS_OF_A_TASK]))
        run([Job(Mode.PUT_BACK, weights[name], switch, other=kept[name]) for name, switch in expert.items()])
    return torch.cat(outputs)


def dense(setting: Setting, x: Tensor) -> Tensor:
    """Base and dense deltas of all experts at once."""
    for layer, deltas in zip(setting.model, setting.deltas, strict=True):
        grouped = x.view(len(deltas), -1, x.shape[-1])
        x = functional.linear(x, layer.weight) + torch.bmm(grouped, deltas.transpose(1, 2)).view(x.shape)
    return x


def measure(result: common.Result, setting: Setting, tokens: int, rounds: int, device: str) -> None:
    """Time one case and add its rows to the tables."""
    layers, width = len(setting.model), setting.model[0].in_features
    task_ids = [task for task in setting.experts for _ in range(ROWS_OF_A_TASK)]
    x = torch.randn(len(task_ids), tokens, width, device=device, dtype=setting.deltas[0].dtype)
    mixed = MixedModel(setting.model, setting.experts)
    works: dict[str, Callable[[], Tensor]] = {
        MIXED: lambda: mixed(x, task_ids=task_ids),
        TURNS: lambda: in_turn(setting, x),
        DENSE: lambda: dense(setting, x),
        BASE: lambda: setting.model(x),
    }
    wanted = works[TURNS]()
    with torch.inference_mode():
        times = common.interleave(
            {name: common.Candidate(lambda work=work: _finished(work, device)) for name, work in works.items()}, rounds
        )
    case = f"{device}, {layers} x {width}^2, {len(task_ids)} rows of {tokens}"
    memory = {MIXED: mixed.nbytes, DENSE: sum(delta.nbytes for delta in setting.deltas)}
    memory[TURNS] = sum(switch.nbytes for expert in setting.experts.values() for switch in expert.values())
    for name, work in works.items():
        ratio = times.ratio(MIXED, name)
        result.tables[0].add(
            f"{case}: {name}",
            1000 * times.summary(name).median,
            ratio.median,
            ratio.least,
            ratio.most,
            memory[name] / 2**20 / len(setting.experts) if name in memory else None,
            float(((work() - wanted).abs().max() / wanted.abs().max()).item()) if name != BASE else None,
        )
    result.raw[case] = {name: list(seconds) for name, seconds in times.seconds.items()}


def _finished(work: Callable[[], Tensor], device: str) -> None:
    work()
    if device == "cuda":
        torch.cuda.synchronize()


def _not_measured(result: common.Result, cases: Sequence[tuple[int, int]], tasks: int) -> None:
    for layers, tokens in cases:
        case = f"cuda, {layers} x 4096^2, {ROWS_OF_A_TASK * tasks} rows of {tokens}"
        result.tables[0].add(case, *["not measured"] * 6)


@click.command()
@click.option("--width", type=click.IntRange(32), default=2048, show_default=True, help="Of a layer, on the CPU.")
@click.option("--tasks", type=click.IntRange(1), default=8, show_default=True)
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), default=0.02, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of torch and the kernels, CPU.")
@click.option("--save/--no-save", default=True, show_default=True)
def main(width: int, tasks: int, density: float, rounds: int, threads: int, save: bool) -> None:
    """Time one batch for many experts."""
    torch.set_num_threads(threads)
    result = common.Result(
        "mixed",
        "a batch in which rows use other experts, against each expert in turn and dense deltas",
        "python -m benchmarks mixed",
        {"experts": tasks, "density": density, "rounds": rounds, "threads": threads},
        warnings=["The machine was shared with other work while this ran. Ratios are made within a round."],
    )
    result.table(
        "mixed batches", "what", "median ms", "mixed / it", "least", "most", "MiB an expert", "difference",
        note="MiB an expert: beside the base, f32 on the CPU and bf16 on CUDA; in turn, the packed switch. Difference: from "
        "the experts in turn, largest, as a share of the largest output.",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for device, size in (("cpu", width), ("cuda", 4096)):
            if device == "cuda" and not torch.cuda.is_available():
                _not_measured(result, CASES, tasks)
                continue
            for layers in sorted({layers for layers, _ in CASES}):
                setting = Setting.make(Path(folder), layers, size, tasks, density, device)
                for tokens in (tokens for count, tokens in CASES if count == layers):
                    measure(result, setting, tokens, rounds, device)
    common.finish(result, save=save)


if __name__ == "__main__":
    main()
