"""The oracles of `tests/scoring_oracles.py` and the world of `tests/scoring_worlds.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scoring_oracles import reference  # noqa: F401 - a fixture
