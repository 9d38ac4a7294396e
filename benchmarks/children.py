"""Processes of their own: the peak of their memory, and what they print."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Runs a command line of tsw, or -c and code, and says, to the file that the first argument names, what the peak was: VmHWM
# where there is /proc. (ru_maxrss would not do: between fork and exec a child has its parent's memory, and that peak stays.)
_CHILD = """
import sys
out, *arguments = sys.argv[1:]
def peak():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = 0
if arguments[:1] == ["-c"]:
    exec(arguments[1])
elif arguments:
    from tswitch_tools.__main__ import main
    sys.argv = ["tsw", *arguments]
    try:
        code = main() or 0
    except SystemExit as end:
        code = end.code or 0
with open(out, "w") as file:
    file.write(str(peak()))
sys.exit(code)
"""


def peak(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Peak resident memory in MiB, and seconds, of `tsw ARGUMENTS`, or of Python with ["-c", CODE]."""
    with tempfile.NamedTemporaryFile("r", dir=folder) as out:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", _CHILD, out.name, *arguments], check=True, stdout=subprocess.DEVNULL)
        return int(out.read()) / 1024, time.perf_counter() - start


def printed(code: str) -> str:
    """What a fresh Python prints that runs `code`."""
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
