"""Jobs of the experiment in processes, each of one thread: training, sweeps, and what comes beside them.

Every job is a function of a folder and a seed, so results do not depend on how many processes there are. Checkpoints that an
earlier run with the same code left in the folder are used again with `--keep`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.paper.data import TASKS
from benchmarks.paper.train import train_base, train_expert

PROCESSES = 2
SEEDS = (0, 1, 2)

Job = Callable[[Path, int], Any]


def run_jobs(folder: Path, seeds: Sequence[int], jobs: Sequence[Job], console: Console, processes: int) -> list[Any]:
    """Train what is not there yet for each seed, then run all jobs on it; their results, by seed and then by job."""
    results: dict[tuple[int, int], Any] = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _one_thread) as pool:
        waiting: dict[Future[Any], tuple[int, int | None]] = {}
        left = dict.fromkeys(seeds, 0)

        def begin(seed: int, what: int | None, job: Callable[..., Any], *arguments: Any) -> None:
            waiting[pool.submit(job, *arguments)] = (seed, what)

        def trained(seed: int) -> None:
            """Go on with a seed whose base is there, or all of whose experts are."""
            missing = [
                task.name for task in TASKS if not (folder_of(folder, seed) / f"{task.name}.safetensors").exists()
            ]
            left[seed] = len(missing)
            for name in missing:
                begin(seed, None, train_expert, folder_of(folder, seed), seed, name)
            if not missing:
                console.print(f"seed {seed}: experts are there", highlight=False)
                for number, job in enumerate(jobs):
                    begin(seed, number, job, folder_of(folder, seed), seed)

        for seed in seeds:
            folder_of(folder, seed).mkdir(parents=True, exist_ok=True)
            if (folder_of(folder, seed) / "base.safetensors").exists():
                trained(seed)
            else:
                begin(seed, None, train_base, folder_of(folder, seed), seed)
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    seed, what = waiting.pop(future)
                    found = future.result()
                    if what is None:
                        left[seed] -= 1
                        if left[seed] <= 0:
                            trained(seed)
                    else:
                        results[seed, what] = found
                        console.print(f"seed {seed}: {len(jobs)} parts, {_done(results, seed)} done", highlight=False)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[seed, number] for seed in seeds for number in range(len(jobs))]


def _one_thread() -> None:
    """Of torch and of NumPy's BLAS: two processes on two cores."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def folder_of(folder: Path, seed: int) -> Path:
    """Where the checkpoints of a seed are."""
    return folder / f"seed{seed}"


def _done(results: dict[tuple[int, int], Any], seed: int) -> int:
    return sum(1 for found, _ in results if found == seed)
