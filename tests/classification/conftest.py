"""The miniatures and the tests' server; the folders are no packages, so helpers are loaded by path."""

import importlib.util
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def layouts():
    return _load(TESTS / "classification" / "layouts.py")


@pytest.fixture
def letter_server():
    """A server that answers B to every question."""
    running = _load(TESTS / "config_worlds.py").LetterServer()
    yield running
    running.close()
