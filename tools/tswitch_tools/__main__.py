"""Entry point of the `tsw` command and of `python -m tswitch_tools`."""

from __future__ import annotations

import signal
import sys

_MISSING = "tsw: the command line needs click and rich; install them with: pip install 'tswitch-format[cli]'"


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from tswitch_tools.cli import tsw  # noqa: PLC0415  # click and rich come with an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("click", "rich"):
            sys.exit(_MISSING)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwinds, so no temporary file is left
    tsw.main(prog_name="tsw")


if __name__ == "__main__":
    main()
