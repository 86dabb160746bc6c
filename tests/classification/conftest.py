"""The miniatures; the folder is no package, so its helper is loaded by path."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def layouts():
    spec = importlib.util.spec_from_file_location("layouts", Path(__file__).with_name("layouts.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
