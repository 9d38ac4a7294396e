"""`python -m benchmarks NAME [OPTIONS]`: run one benchmark. `--list` names them."""

from __future__ import annotations

import sys
import time
from importlib import import_module

# Name -> (module with a click command `main`, the question that it answers).
BENCHMARKS = {
    "size": ("benchmarks.size", "bytes of planes, factors and index against the entropy of a random mask with signs"),
    "codecs": ("benchmarks.codecs", "bytes and decode speed of every plane codec on random masks, and which is taken"),
    "imports": ("benchmarks.importing", "import time of the package, beside what it needs"),
    "reading": (
        "benchmarks.reading",
        "opening, decoding, applying, switching, validating, beside safetensors, copies and plain reads",
    ),
    "growth": ("benchmarks.growth", "time and memory against parameters, 1 M to 1.2 G, and tasks, 1 to 20"),
    "memory": ("benchmarks.memory", "peak resident memory of pack and restore of a model of 1.2 G parameters"),
    "speed": ("benchmarks.speed", "times of pack, restore and opening, as ratios to plain safetensors work"),
    "selecting": ("benchmarks.selecting", "how long pack takes by the way of selecting"),
    "switching": (
        "benchmarks.switching",
        "switching experts in memory and from files, beside loading or copying full ones",
    ),
    "mixed": (
        "benchmarks.mixed",
        "a batch whose rows use different experts, beside switching in turn and dense deltas",
    ),
    "overlap": ("benchmarks.overlap", "how long comparing the masks of 20 tasks takes, beside unpacking them"),
    "tall": ("benchmarks.tall", "making, importing, exporting masks over a shared vector: time, size, memory"),
    "peers": (
        "benchmarks.peers.__main__",
        "bytes, and time from a file to applied weights, beside other ways to keep an expert",
    ),
    "profile": ("benchmarks.profile", "where the time of pack and restore goes, by function and a thread"),
    "synthetic": ("benchmarks.synthetic", "makes that model: base and expert, sharded, bf16"),
    "paper": ("benchmarks.paper.__main__", "what every method keeps of real experts, at what size (make paper)"),
    "frontier": ("benchmarks.paper.frontier", "which rule of pack keeps most at each size (make frontier)"),
    "ideas": ("benchmarks.paper.ideas", "what rules that pack does not have would keep, computed on arrays"),
    "bench": ("benchmarks.bench", "runs what make bench is made of, and says how long each took"),
    "latest": ("benchmarks.latest", "makes results/latest.md of the results of make bench"),
    "readme": ("benchmarks.readme", "fills the tables of README.md from the results of make bench"),
    "check": ("benchmarks.check", "ratios of a quick subset against the committed ones (make bench-check)"),
    "demo": ("benchmarks.demo.__main__", "trained experts: accuracy and size (see benchmarks/demo)"),
}


def main() -> None:
    """Run the benchmark that the first argument names, with the other arguments."""
    arguments = sys.argv[1:]
    if arguments == ["--list"]:
        for name, (_, question) in BENCHMARKS.items():
            print(f"{name:10} {question}")
        return
    if not arguments or arguments[0] not in BENCHMARKS:
        print(f"usage: python -m benchmarks NAME [OPTIONS] | --list\nNAME: {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(0 if arguments[:1] == ["--help"] else 2)
    module, _ = BENCHMARKS[arguments[0]]
    start = time.monotonic()
    try:
        import_module(module).main.main(arguments[1:], prog_name=f"python -m benchmarks {arguments[0]}")
    finally:
        print(f"{arguments[0]}: {time.monotonic() - start:.0f} seconds")


if __name__ == "__main__":
    main()
