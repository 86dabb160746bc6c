"""What the tests of tables share: rows that run in this process, and tiny stand-ins for what configs name."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _helper(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def worlds():
    """The module of stand-ins."""
    return _helper(ROOT / "tests" / "config_worlds.py")


class InThisProcess:
    """A launcher that saves the seconds an interpreter takes to start; counts what it runs."""

    def __init__(self):
        self.ran = []

    def __call__(self, started, log):
        self.ran.append(started)
        argv, sys.argv = sys.argv, ["command", *started.argv]
        try:
            runpy.run_module(started.program, run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            sys.argv = argv
        return 0


@pytest.fixture(scope="session")
def in_this_process():
    """The class."""
    return InThisProcess


@pytest.fixture(scope="session", autouse=True)
def _plain_configs():
    """MMEngine lays out each config it writes or logs by yapf: most of the time of a run of three photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
        yield


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("RAR_MMDET_CACHE", str(tmp_path_factory.getbasetemp() / "rar_cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.chdir(tmp_path)
