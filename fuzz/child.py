"""One harness in one process: `python -m fuzz.child NAME ENGINE [--runs N] [--seconds S] [--seed N] [libFuzzer options]`.

ENGINE is `atheris`, which is guided by the coverage of the library, or `random`, which mutates the seeds without looking. The
last line of standard output is what was counted, as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import importlib.util
import json
import random
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzz.targets import Target

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
CRASHES = HERE / "crashes"
REGRESSIONS = HERE / "regressions"

_INSTRUMENTED = ("tswitch_format", "tswitch_tools")
# Atheris keeps what it compares for ever; where arrays are compared, that fills the memory within minutes. So comparisons are
# traced only where there are none, branches everywhere.
_COMPARISONS = (
    "tswitch_format.container.document",
    "tswitch_tools.checkpoints.safetensors_reader",
    "tswitch_tools.checkpoints.torch_files",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one harness until it fails or has had its share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("engine", choices=("atheris", "random"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    given, options = parser.parse_known_args(arguments)
    if given.engine == "random":
        print(json.dumps(run_random(target(given.name), given.runs, given.seconds, given.seed)))
    else:
        run_atheris(given.name, given.runs, given.seconds, options)


def target(name: str) -> Target:
    """The harness of that name."""
    from fuzz.targets import TARGETS  # noqa: PLC0415 - the library is imported when it is to be instrumented

    return TARGETS[name]


def inputs(one: Target) -> list[bytes]:
    """What a harness begins with: its seeds, what once made it fail, and its corpus."""
    paths = [path for folder in (REGRESSIONS, CORPUS / one.name) for path in sorted(folder.glob("*"))]
    kept = [path.read_bytes() for path in paths if path.parent.name == one.name or path.name.startswith(f"{one.name}-")]
    return [data for data in one.seeds() + kept if len(data) <= one.longest]


def run_random(one: Target, runs: int | None, seconds: float | None, seed: int) -> dict[str, Any]:
    """Mutate inputs at random. Raises what the harness raises, after the input is kept."""
    from fuzz import mutation  # noqa: PLC0415 - as above

    rng = random.Random(seed)
    begin = time.monotonic()
    pool = inputs(one)
    done = 0
    while (runs is None or done < runs) and (seconds is None or time.monotonic() - begin < seconds):
        data = pool[done] if done < len(pool) else rng.choice(pool)
        if done >= len(pool):
            for _ in range(rng.choice((1, 1, 2, 4))):
                data = one.mutate(data, rng, mutation.of_bytes)
        if len(data) <= one.longest:
            run_once(one, data)
        done += 1
    return {"executions": done, "seconds": round(time.monotonic() - begin, 1)}


def run_once(one: Target, data: bytes) -> None:
    """Run a harness on an input, which is kept in the folder of crashes if it fails."""
    try:
        one.run(data)
    except Exception:
        CRASHES.mkdir(exist_ok=True)
        path = CRASHES / f"{one.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"fuzz: the input is in {path.relative_to(HERE.parent)}", file=sys.stderr)
        raise


class _Finder:
    """Finds the modules of the library and gives them Atheris's instruments."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name.split(".", maxsplit=1)[0] not in _INSTRUMENTED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType | None:
        import atheris  # noqa: PLC0415 - optional

        code = super().get_code(fullname)
        patched: types.CodeType | None = code and atheris.patch_code(code, trace_dataflow=fullname in _COMPARISONS)
        return patched


def run_atheris(name: str, runs: int | None, seconds: float | None, options: Sequence[str]) -> None:
    """Hand a harness to libFuzzer, which ends the process."""
    import atheris  # noqa: PLC0415 - optional

    sys.meta_path.insert(0, _Finder)
    one = target(name)
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    CRASHES.mkdir(exist_ok=True)
    if not any(corpus.iterdir()):
        for data in inputs(one):
            (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        made = one.mutate(data, random.Random(seed), lambda raw, rng: atheris.Mutate(raw, len(raw) + 64))
        return made if len(made) <= most else atheris.Mutate(data, most)

    limits = [] if seconds is None else [f"-max_total_time={max(1, int(seconds))}"]
    limits += [] if runs is None else [f"-runs={runs}"]
    given = {option.split("=")[0] for option in options}
    usual = [f"-max_len={one.longest}", "-rss_limit_mb=3072", "-timeout=60", "-len_control=0", "-print_final_stats=1"]
    usual += [f"-artifact_prefix={CRASHES / name}-"]
    chosen = [*limits, *(option for option in usual if option.split("=")[0] not in given), *options]
    atheris.Setup([sys.argv[0], *chosen, str(corpus)], one.run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
