"""The demo's scripts import each other as top-level modules, as they do when run; one tiny world serves all tests."""

import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> Path:
    from make_world import make_world

    out = tmp_path_factory.mktemp("data") / "demo"
    assert make_world(out, seed=3, photos=(10, 4, 5), workers=1)
    return out
