"""Make tall_fixtures/: what np.save writes, to which test_importers_tall_npy.py compares. Run by hand, never by a test.

    python -m venv v && v/bin/pip install numpy==1.26.4 && v/bin/python tests/importers/make_tall_fixtures.py [--huge]

under any NumPy and Python 3.8 or later; nothing else is needed. The first run of a generation (major version) writes its files;
later ones, under other versions of it, must find the same bytes, and are noted in "versions". --huge adds masks around 2 and
4 GiB, for which it needs 10 GiB of memory.

    numpy1.json, numpy2.json   length and SHA-256 of the file of each case; of huge ones, of all but the masks
    numpy1/, numpy2/           the files of small cases, whole

Within a generation there was no difference in any case: 1.24.4 to 1.26.4 under Python 3.8 to 3.12, 2.0.2 to 2.5.5 under
3.10 to 3.13. Names are interned, as they are where a program has them in its source: a task "numpy" that is read from a file
is another string than the module's name, and NumPy 2 writes it again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import platform
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "tall_fixtures"
EIGHT = ["SUN397", "Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD"]
LARGE = 1 << 16  # no part of a pickle but a mask is as long in huge cases


def numbered(count):
    return [f"t{number}" for number in range(count)]


# Names of tasks, and elements of each mask.
SMALL = {
    "none": ([], 1),
    "one": (["MNIST"], 21),
    "two": (EIGHT[-2:], 24),
    "eight": (EIGHT, 75),
    "empty": (["a", "b"], 0),
    "byte": (numbered(5), 8),  # masks of one byte, two of which are b"b"
    "names": (["Zürich", "数", "\U0001f600", "\ud800", "", "|", "numpy", "dtype", "O8"], 30),
}
LONG = {
    "255": (EIGHT[:3], 8 * 255),
    "256": (EIGHT[:3], 8 * 256),
    "65535": (EIGHT[:3], 8 * 65535),
    "65536": (EIGHT[:3], 8 * 65536),
    "large": (EIGHT, 8 * 1_000_003 - 5),
    "frames": (numbered(400), 8 * 999),
    "twenty": (numbered(20), 8 * 70_000),
    "names and masks": (["x" * LARGE, "y" * LARGE], 8 * LARGE),  # with frames of 4 bytes
    "memo": (numbered(30), 1),  # more than 256 numbers
    **{f"tasks {count}": (numbered(count), 13) for count in (999, 1000, 1001, 2000, 2500)},
    **{f"name {size}": (["x" * size, "y" * size, "é" * (size // 2)], 9) for size in (255, 256, 65535, 65536, 100_000)},
}
CASES = {**SMALL, **LONG}
HUGE = {
    str(nbytes): (["a", "b"], 8 * nbytes) for nbytes in ((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32)
}  # of zeros; NumPy 1 cannot write the last


def packed(elements, number):
    """The mask of task `number`."""
    if elements == 8:
        return np.array([b"abcab"[number]], np.uint8)
    return np.packbits(np.arange(elements) * (2 * number + 3) % 7 < 3)


def masks(names, elements):
    return {sys.intern(name): packed(elements, number) for number, name in enumerate(names)}


def saved(tensors):
    file = io.BytesIO()
    np.save(file, tensors)
    return file.getvalue()


def described(data):
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Frame:
    """A file that keeps no masks."""

    def __init__(self):
        self.rest = io.BytesIO()

    def write(self, data):
        if len(data) < LARGE:
            self.rest.write(data)
        return len(data)


def huge(names, elements):
    mask = np.zeros(elements // 8, np.uint8)
    file = Frame()
    try:
        np.save(file, {name: mask[:] for name in names})  # noqa: C420 - an array that came again would not be written again
    except OverflowError as error:
        return str(error)
    return described(file.rest.getvalue())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--huge", action="store_true")
    arguments = parser.parse_args()
    version = f"NumPy {np.__version__}, Python {platform.python_version()}"
    print(version)
    generation = f"numpy{np.__version__.split('.')[0]}"
    folder = FOLDER / generation
    folder.mkdir(parents=True, exist_ok=True)
    notes = FOLDER / f"{generation}.json"
    old = json.loads(notes.read_text()) if notes.exists() else {"versions": [], "cases": {}, "huge": {}}
    cases = {}
    for name, (names, elements) in CASES.items():
        data = saved(masks(names, elements))
        cases[name] = described(data)
        if name in SMALL:
            path = folder / f"{name}.npy"
            if not path.exists():
                path.write_bytes(data)
            elif path.read_bytes() != data:
                sys.exit(f"{path}: another version wrote other bytes")
    large = {name: huge(*case) for name, case in HUGE.items()} if arguments.huge else {}
    for name, found in [*cases.items(), *large.items()]:
        if old["cases"].get(name, old["huge"].get(name, found)) != found:
            sys.exit(f"{name}: another version wrote other bytes")
    made = {
        "versions": sorted({*old["versions"], version}),
        "cases": cases,
        "huge": {**old["huge"], **large},
    }
    notes.write_text(json.dumps(made, indent=1) + "\n")
    print(f"{len(cases)} cases, {len(large)} huge: the same as all of {', '.join(made['versions'])}")


if __name__ == "__main__":
    main()
