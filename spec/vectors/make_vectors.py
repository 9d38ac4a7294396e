"""Make the conformance suite: all files of `valid`, `newer`, `invalid` and `apply`, and `manifest.json`.

    python spec/vectors/make_vectors.py            write what is missing or differs, remove what is surplus
    python spec/vectors/make_vectors.py --check    write nothing, name what differs; exit code 1 where something does
    python spec/vectors/make_vectors.py --frames   also make zstd frames that are missing in making/frames.json

It shares no code with the library. The same bytes come out wherever it runs: frames of real compression, which differ
between versions of zstd, are kept in `making/frames.json`. `making/__init__.py` is the map of what it is made of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from making import (
    applying,
    applying_masked,
    applying_tables,
    broken_content,
    broken_document,
    broken_frame,
    broken_masked,
    broken_records,
    broken_router,
    broken_segments,
    broken_tables,
    limits,
    masked,
    newer,
    router,
    tables,
    valid,
)
from making.suite import Suite, dumped
from making.zstd_frames import KEEPER

HERE = Path(__file__).parent
FOLDERS = ("valid", "newer", "invalid", "apply")


def make() -> Mapping[str, bytes]:
    """All files by path, the manifest among them."""
    suite = Suite()
    broken = (
        broken_frame,
        broken_document,
        broken_records,
        broken_segments,
        broken_content,
        broken_masked,
        broken_router,
        broken_tables,
    )
    for group in (valid, masked, router, tables, limits, *broken, newer, applying, applying_masked, applying_tables):
        group.add(suite)
    suite.manifest.sort(key=lambda record: FOLDERS.index(record["path"].split("/")[0]))
    return {**suite.files, "manifest.json": dumped(suite.manifest)}


def differences(files: Mapping[str, bytes], folder: Path = HERE) -> list[str]:
    """What is missing, differs or is surplus in `folder`, a line each."""
    out = []
    for path, data in files.items():
        found = folder / path
        if not found.exists():
            out.append(f"{path}: missing")
        elif found.read_bytes() != data:
            out.append(f"{path}: differs")
    for part in FOLDERS:
        out += [
            f"{part}/{p.name}: surplus" for p in sorted((folder / part).glob("*")) if f"{part}/{p.name}" not in files
        ]
    return out


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    parser.add_argument("--frames", action="store_true", help="make zstd frames that are missing, drop those not used")
    options = parser.parse_args()
    KEEPER.make = options.frames
    files = make()
    if options.frames:
        KEEPER.save()
    changed = differences(files)
    print("\n".join(changed) if len(changed) < 200 else f"{len(changed)} files differ", file=sys.stderr)  # noqa: T201
    if options.check:
        return 1 if changed else 0
    for line in changed:
        path, _, what = line.rpartition(": ")
        if what == "surplus":
            (HERE / path).unlink()
        else:
            (HERE / path).parent.mkdir(exist_ok=True)
            (HERE / path).write_bytes(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
