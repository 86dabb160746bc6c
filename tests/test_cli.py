"""The command `rar-mmdet` and its subcommands."""

from __future__ import annotations

import ast
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from rar_mmdet import cli
from rar_mmdet.errors import RarError


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_a_main_that_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: rar-mmdet {name}" in capsys.readouterr().out


LAUNCHERS = {
    "build_memory": "memory build",
    "inspect_memory": "memory inspect",
    "calibrate_ranker": "calibrate ranker",
    "calibrate_regions": "calibrate regions",
    "score": "score",
}


@pytest.mark.parametrize(("tool", "command"), LAUNCHERS.items())
def test_tools_are_commands(tool, command, monkeypatch, capsys):
    path = Path(__file__).parents[1] / "tools" / f"{tool}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: rar-mmdet {command}" in said
    with pytest.raises(SystemExit):
        runpy.run_path(str(path))["main"](["--help"])
    assert capsys.readouterr().out == said


def test_help_names_all_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(command.summary in out for command in cli.COMMANDS.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["doktor"], "no command 'doktor'; did you mean one of: doctor?"),
        (["calibrate"], "no command 'calibrate'; did you mean one of: calibrate r"),
        (["calibrate", "region"], "no command 'calibrate region'; did you mean one of: calibrate r"),
        (["xyz"], "no command 'xyz'; did you mean one of: doctor, "),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_no_command_shows_all(capsys):
    assert cli.main([]) == 2
    assert "calibrate regions" in capsys.readouterr().out


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
