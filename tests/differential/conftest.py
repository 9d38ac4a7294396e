"""Programs that are no installed packages are found where they lie: the reference reader, and what tests/mutation shares."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
for folder in ("spec/reference", "tests/mutation"):
    sys.path.insert(0, str(ROOT / folder))
