"""`python spec/reference`: the reference reader as a program; see tsw_reference/command.py."""

from __future__ import annotations

import sys

from tsw_reference.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
