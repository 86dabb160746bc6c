"""The oracles of `tests/scoring_oracles.py` and the world of `tests/scoring_worlds.py`."""

from scoring_oracles import reference  # noqa: F401 - a fixture
