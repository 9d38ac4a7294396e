"""The reference reader is no installed package: it is found where it lies, in spec/reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "spec" / "reference"))
