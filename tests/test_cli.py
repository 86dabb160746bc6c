"""The command `rar-mmdet` and its subcommands."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from rar_mmdet import cli
from rar_mmdet.errors import RarError


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_a_main_that_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: rar-mmdet {name}" in capsys.readouterr().out


def test_help_names_all_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(command.summary in out for command in cli.COMMANDS.values())


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["doktor"])
    assert stop.value.code == 2
    assert "choose from" in capsys.readouterr().err


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "said"), [(RarError("do this"), 2, "error: do this"), (KeyboardInterrupt(), 130, "stopped")]
)
def test_errors_of_users_are_one_line(error, status, said, monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module("rar_mmdet.doctor"), "main", raising(error))
    assert cli.main(["doctor"]) == status
    assert capsys.readouterr().err.strip() == said


def test_the_command_is_declared():
    setup = ast.parse((Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(setup) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert "rar-mmdet = rar_mmdet.cli:main" in texts


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "rar_mmdet", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("rar_mmdet ")
