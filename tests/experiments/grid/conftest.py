"""The toy space of the tests of rankings is a space of one's own here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where test_rank is
