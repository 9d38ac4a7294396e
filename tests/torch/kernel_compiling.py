"""Compiles the kernels of fused.py for an H100 or H200 on a machine without one, and looks for what would change bits.

A program of its own: it stands in for Triton's driver, and Triton must not have been told to interpret.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kernel_cases import Cases, Options, matrix
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from tswitch_format.switch.planes import Form, Mode
from tswitch_format.torch.kernels import Job, fused

# Fused, flushing subnormals, or free to be fused by ptxas: add.f32 is, add.rn.f32 is not.
_CHANGES_BITS = re.compile(r"fma\.|mad\.f|\.ftz|\b(add|sub|mul)\.f(16|32)")


class Absent(DriverBase):  # type: ignore[misc]
    """As much of a driver as compiling asks for."""

    def __init__(self) -> None:
        self.get_current_stream = lambda device=None: 0

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> None:
        return None

    def get_current_device(self) -> int:
        return 0


class Compiled:
    """In the kernel's place: compiles it for the arguments of a launch and counts."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.count = kernel, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_it(*args: Any, **options: Any) -> None:
            made = self.kernel.warmup(*args, grid=grid, **options)
            assert made.asm["cubin"]
            for line in made.asm["ptx"].splitlines():
                assert not _CHANGES_BITS.search(line), line
            self.count += 1

        return compile_it


def main(folder: Path) -> None:
    driver.set_active(Absent())
    fused._kernel = compiled = Compiled(fused._kernel)
    cases = Cases(folder)
    for form, density in ((Form.GAPS, 0.1), (Form.BITMAP, 0.2)):
        plain = cases(Options((40, 30), density, form), torch.float32).packed("cpu")
        factors = cases(Options((40, 30), density, form, "row-col"), torch.float32).packed("cpu")
        for mode in Mode:
            kinds = {Mode.VALUES: [torch.float32], Mode.SIGNS: [torch.int8]}
            for dtype in kinds.get(mode, [torch.float32, torch.bfloat16, torch.float16]):
                target = torch.zeros(40, 30, dtype=dtype)
                other = torch.zeros(1200, dtype=torch.float32 if mode is Mode.ROUND else dtype)
                job = Job(mode, matrix(target), factors, 0.3, other if mode.name in _WITH_OTHER else None)
                crooked = target.t().contiguous().t()
                jobs = [replace(job, target=crooked)]
                if dtype in (torch.bfloat16, *kinds.get(mode, [])):
                    jobs.append(replace(job, switch=plain))
                fused.run(jobs, [])
    cases.close()
    print(compiled.count)


_WITH_OTHER = ("SAVE_AND_ADD", "SAVE", "PUT_BACK", "ROUND")

if __name__ == "__main__":
    main(Path(sys.argv[1]))
