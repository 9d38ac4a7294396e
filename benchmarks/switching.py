"""Switching experts in memory: `SwitchBank` and `apply_` beside loading or copying the full expert.

Everything is timed on one device. On the CPU: 100 M parameters in f32, and the same at the default density; with a CUDA device
also the tensors of a 7-billion-parameter model in bf16 at density 10 %. Page cache warm, and once cold: then the files are
dropped from it before each measurement (posix_fadvise).
"""

from __future__ import annotations

import ctypes
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tswitch_format as tsw
from benchmarks import common
from benchmarks.workloads import shapes_100m
from tswitch_format.switch.planes import Mode
from tswitch_format.torch import SwitchBank, apply_
from tswitch_format.torch import open as open_switches
from tswitch_format.torch.kernels import Job, backend_of, reference, run
from tswitch_format.torch.packed import PackedSwitch

BOUNDS = {"file": 1 / 3, "copy": 1.0, "bytes": 0.02, "bandwidth": 0.5}
NOT_MEASURED = "not measured"


def shapes_7b(scale: float = 1.0) -> dict[str, tuple[int, ...]]:
    """6.7 G parameters: Llama-2-7B's tensors. `scale` takes so many of its 32 layers, and of its vocabulary."""
    vocabulary = max(64, round(32000 * scale))
    found: dict[str, tuple[int, ...]] = {"embed.weight": (vocabulary, 4096), "head.weight": (vocabulary, 4096)}
    for layer in range(max(1, round(32 * scale))):
        for name in "qkvo":
            found[f"layers.{layer}.{name}.weight"] = (4096, 4096)
        found[f"layers.{layer}.gate.weight"] = found[f"layers.{layer}.up.weight"] = (11008, 4096)
        found[f"layers.{layer}.down.weight"] = (4096, 11008)
        found[f"layers.{layer}.norm.weight"] = (4096,)
    return found


class Flat(nn.Module):
    """Parameters under any names, for `load_state_dict`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor, requires_grad=False))

    def named(self) -> dict[str, Tensor]:
        """The parameters by their names in files."""
        return {name.replace("/", "."): parameter for name, parameter in self.named_parameters()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """`load_state_dict` under those names."""
        self.load_state_dict({name.replace(".", "/"): tensor for name, tensor in tensors.items()})


# Peers


def copy_over(model: Flat, tensors: Mapping[str, Tensor]) -> None:
    """Copy a full expert that lies in memory over the model."""
    for name, parameter in model.named().items():
        parameter.copy_(tensors[name])


def load_safetensors(model: Flat, path: Path, device: str) -> None:
    """Load the full expert as the safetensors documentation shows, and put it into the model."""
    model.load(load_file(path, device=device))


def load_torch(model: Flat, path: Path, device: str) -> None:
    """The same from a torch file."""
    model.load(torch.load(path, map_location=device, weights_only=True))


class Workload:
    """A base on a device, an expert of it in files, a bank with two experts, and a second model for the peers."""

    def __init__(
        self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, density: float, device: str
    ) -> None:
        self.device = device
        torch.manual_seed(0)
        base = {name: torch.randn(shape, dtype=torch.float32).mul_(0.02).to(dtype) for name, shape in shapes.items()}
        self.parameters = sum(math.prod(shape) for shape in shapes.values())
        self.paths: list[Path] = []
        for task in ("a", "b"):
            expert = {n: (t.float() + torch.randn(t.shape).mul_(0.002)).to(dtype) for n, t in base.items()}
            self.paths.append(folder / f"{task}.tsw")
            tsw.pack(base, expert, self.paths[-1], task=task, density=density, select="tensor", knob_dtype="u8")
            if task == "a":
                self.full, self.pickled = folder / "a.safetensors", folder / "a.pt"
                save_file(expert, self.full)
                torch.save(expert, self.pickled)
                self.expert = {name: tensor.to(device) for name, tensor in expert.items()}
        self.model = Flat({name: tensor.to(device, copy=True) for name, tensor in base.items()})
        self.peer = Flat({name: tensor.to(device, copy=True) for name, tensor in base.items()})
        self.base = {name: tensor.to(device) for name, tensor in base.items()}
        self.bank = SwitchBank(self.model.named())
        for task, path in zip("ab", self.paths, strict=True):
            self.bank.add(task, path)
        with open_switches(self.paths[0], device=device) as file:
            self.jobs = [
                Job(
                    Mode.SAVE_AND_ADD,
                    parameter.view(len(parameter), -1),
                    packed,
                    other=parameter.new_empty(packed.active),
                )
                for name, parameter in self.peer.named().items()
                if isinstance(packed := file.load([name])[name], PackedSwitch)
            ]
        common.read_once([*self.paths, self.full, self.pickled])

    def sync(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def reset(self) -> None:
        """The peers' model is the base again."""
        copy_over(self.peer, self.base)
        self.sync()

    def candidates(self) -> dict[str, common.Candidate]:
        """All that is compared; each leaves both models as the base has them."""

        def timed(work: Callable[[], object]) -> Callable[[], object]:
            def run() -> None:
                work()
                self.sync()

            return run

        bank = self.bank

        def on_peer(work: Callable[[], object]) -> common.Candidate:
            return common.Candidate(timed(work), self.sync, self.reset)

        def add_and_activate() -> None:
            bank.add("again", self.paths[0])
            bank.activate("again")

        def forget() -> None:
            bank.deactivate()
            bank.remove("again")

        return {
            "activate": common.Candidate(timed(lambda: bank.activate("a")), self.sync, bank.deactivate),
            "deactivate": common.Candidate(timed(bank.deactivate), lambda: bank.activate("a")),
            "switch a to b": common.Candidate(
                timed(lambda: bank.activate("b")), lambda: bank.activate("a"), bank.deactivate
            ),
            "activate 0.6 a + 0.4 b": common.Candidate(
                timed(lambda: bank.activate({"a": 0.6, "b": 0.4})), self.sync, bank.deactivate
            ),
            "activate, plain torch": common.Candidate(timed(self._activate_plainly), self.sync, self._put_back),
            "copy the full expert": on_peer(lambda: copy_over(self.peer, self.expert)),
            "file: apply_": on_peer(lambda: apply_(self.peer.named(), self.paths[0])),
            "file: add, activate": common.Candidate(timed(add_and_activate), self.sync, forget),
            "file: load_file, load_state_dict": on_peer(partial(load_safetensors, self.peer, self.full, self.device)),
            "file: torch.load, load_state_dict": on_peer(partial(load_torch, self.peer, self.pickled, self.device)),
        }

    def _activate_plainly(self) -> None:
        """What `activate` does, without compiled kernels."""
        reference.run(self.jobs, [])

    def _put_back(self) -> None:
        run([replace(job, mode=Mode.PUT_BACK) for job in self.jobs])

    def cold_candidates(self) -> dict[str, common.Candidate]:
        """Those that read files, which are dropped from the page cache before."""

        def cold(name: str, candidate: common.Candidate) -> tuple[str, common.Candidate]:
            def before() -> None:
                self.sync()
                for path in (*self.paths, self.full, self.pickled):
                    common.drop_from_cache(path)

            return f"cold {name}", common.Candidate(candidate.run, before, candidate.after)

        return dict(cold(name, found) for name, found in self.candidates().items() if name.startswith("file: "))


def measure(result: common.Result, title: str, work: Workload, rounds: int) -> None:
    """Tables of times and ratios."""
    with torch.inference_mode():
        warm = common.interleave(work.candidates(), rounds)
        cold = common.interleave(work.cold_candidates(), max(5, rounds // 3)) if common.can_drop() else None
    common.times_table(result, f"{title}: times", warm, "ms")
    copy, loads = "copy the full expert", ("file: load_file, load_state_dict", "file: torch.load, load_state_dict")
    in_memory = [(name, copy) for name in ("activate", "activate, plain torch", "deactivate")]
    in_memory += [(name, copy) for name in ("switch a to b", "activate 0.6 a + 0.4 b")]
    bound = BOUNDS["copy"] if work.device == "cpu" else 1 / BOUNDS["bandwidth"]
    common.ratio_table(result, f"{title}: packed in memory", warm, in_memory, bound)
    files = [(name, peer) for name in ("file: apply_", "file: add, activate") for peer in loads]
    common.ratio_table(result, f"{title}: from a warm file", warm, files, BOUNDS["file"])
    common.ratio_table(result, f"{title}: what loading can take at least", warm, [(copy, loads[0])])
    if cold is not None:
        common.times_table(result, f"{title}: cold files, times", cold, "ms")
        pairs = [(f"cold {name}", f"cold {peer}") for name, peer in files]
        common.ratio_table(result, f"{title}: from a cold file", cold, pairs, BOUNDS["file"])


def measure_bytes(result: common.Result, title: str, work: Workload) -> None:
    """What a switch reads from the disk, and what activating needs beside the model."""
    before = _bytes_read()
    work.bank.add("once", work.paths[0])
    read = None if before is None else (_bytes_read() or 0) - before
    work.bank.remove("once")
    expert = sum(tensor.nbytes for tensor in work.expert.values())
    packed = sum(work.bank.memory_report().experts["a"].values())
    with torch.inference_mode():
        work.bank.release()  # as if nothing had been active before
        peak = _peak_beside(work, lambda: work.bank.activate("a"))
        kept = sum(work.bank.memory_report().kept.values())
        work.bank.deactivate()
        work.bank.release()
        mixed = _peak_beside(work, lambda: work.bank.activate({"a": 0.6, "b": 0.4}))
        work.bank.deactivate()
    table = result.table(f"{title}: bytes", "what", "bytes", "% of the full expert", "bound %", "met")
    table.add("full expert", expert, 100.0, None, None)
    table.add("file", work.paths[0].stat().st_size, 100 * work.paths[0].stat().st_size / expert, None, None)
    if read is not None:
        ratio = common.Ratio.exact(table.title, "bytes read by add()", "full expert", read / expert, BOUNDS["bytes"])
        table.add("read by add()", read, 100 * ratio.median, 100 * BOUNDS["bytes"], result.hold(ratio))
    table.add("packed in memory", packed, 100 * packed / expert, None, None)
    table.add("original values kept while active", kept, 100 * kept / expert, None, None)
    table.add("most memory that activate() took, those included", peak, _percent(peak, expert), None, None)
    table.add("the same for a sum of two", mixed, _percent(mixed, expert), None, None)


def _percent(part: int | None, whole: int) -> float | None:
    return None if part is None else 100 * part / whole


def _bytes_read() -> int | None:
    """Bytes that this process has read from files."""
    try:
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])
    except (OSError, IndexError):
        return None


def _peak_beside(work: Workload, run: Callable[[], object]) -> int | None:
    """The most memory that was taken meanwhile, beside what was taken before: resident, or allocated on the device."""
    if work.device != "cpu":
        torch.cuda.reset_peak_memory_stats(work.device)
        start = torch.cuda.memory_allocated(work.device)
        run()
        work.sync()
        return torch.cuda.max_memory_allocated(work.device) - start
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else it takes what was freed before, which is resident still
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
        start = _resident("VmRSS")
        run()
        return _resident("VmHWM") - start
    except (OSError, AttributeError):
        run()
        return None


def _resident(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024


@click.command()
@common.folder_option
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--device", default=None, help="Where the 7 G parameters go.  [default: a CUDA device if there is one]")
@common.scale_option
def main(folder: Path, rounds: int, device: str | None, scale: float) -> None:
    """Time switching, interleaved with its peers."""
    device = device or ("cuda:0" if torch.cuda.is_available() else None)
    folder.mkdir(parents=True, exist_ok=True)
    result = common.Result(
        "switching",
        "times of switching experts in memory and from files, as ratios to loading or copying the full expert",
        "python -m benchmarks switching",
        {
            "rounds": rounds,
            "torch threads": torch.get_num_threads(),
            "kernels on the CPU": backend_of(torch.device("cpu")),
            "device": torch.cuda.get_device_name(device) if device and device != "cpu" else device,
            "kernels there": backend_of(torch.device(device)) if device else None,
        },
        warnings=["The machine was shared with other work while this ran. Ratios are made within a round."],
    )
    jobs = [
        ("CPU, 100 M f32, density 5 %", shapes_100m(scale), torch.float32, 0.05, "cpu"),
        ("CPU, 100 M f32, density 2 %", shapes_100m(scale), torch.float32, 0.02, "cpu"),
        ("CPU, 100 M bf16, density 2 %", shapes_100m(scale), torch.bfloat16, 0.02, "cpu"),
    ]
    if device:
        jobs.append((f"{device}, 7 G bf16, density 10 %", shapes_7b(scale), torch.bfloat16, 0.1, device))
    for title, shapes, dtype, density, where in jobs:
        temporary = Path(tempfile.mkdtemp(dir=folder))
        try:
            work = Workload(temporary, shapes, dtype, density, where)
            measure(result, title, work, rounds)
            measure_bytes(result, title, work)
            del work
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if not device:
        table = result.table("CUDA, 7 G bf16, density 10 %", "what / peer", "median", "bound")
        table.add("activate / copy on the device", NOT_MEASURED, f"{1 / BOUNDS['bandwidth']:g}")
        table.add("file to applied / load_file, load_state_dict", NOT_MEASURED, None)
        table.add("file to applied / torch.load, load_state_dict", NOT_MEASURED, None)
    common.finish(result, save=scale == 1)
