"""The parts of the installer that can be tried without installing anything."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rar_mmdet._host import CORE, HOST, OPTIONAL, is_supported

ROOT = Path(__file__).parents[1]
SETUP = """import re
from setuptools import setup

def get_version():
    version_file = 'mmcv/version.py'
    with open(version_file, encoding='utf-8') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']

setup(name='mmcv', version=get_version())
"""


def load_helper():
    spec = importlib.util.spec_from_file_location("installing", ROOT / "scripts" / "installing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


installing = load_helper()


def test_only_the_lines_of_get_version_are_mended(tmp_path, monkeypatch):
    mended = installing.mend_mmcv(SETUP)
    before, after = SETUP.splitlines(), mended.splitlines()
    assert [line for line in before if line not in after] == [before[6], before[7]]
    assert after[:6] == before[:6]
    assert after[9:] == before[8:]
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "version.py").write_text("__version__ = '2.1.0'\n")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(mended.replace("setup(name", "found = dict(name").replace("from setuptools import setup", ""), scope)
    assert scope["found"]["version"] == "2.1.0"  # on every Python


def test_a_mended_setup_stays_as_it_is():
    mended = installing.mend_mmcv(SETUP)
    assert installing.mend_mmcv(mended) == mended


def test_another_setup_is_refused():
    with pytest.raises(ValueError, match="found 0"):
        installing.mend_mmcv(SETUP.replace("locals()['__version__']", "'2.1.0'"))


def package(site: Path, name: str, files: dict[str, bytes], record: bool = True) -> None:
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    if record:
        lines = [f"{path},sha256=x,{len(content)}" for path, content in files.items()]
        (folder / "RECORD").write_text("\n".join([*lines, f"{folder.name}/RECORD,,", f"{name}/x.pyc,,"]) + "\n")


def test_what_an_interrupted_pip_left_is_forgotten(tmp_path):
    package(tmp_path, "whole", {"whole/a.py": b"12345", "whole/empty.py": b""})
    package(tmp_path, "unlisted", {"unlisted/a.py": b"1"}, record=False)
    package(tmp_path, "missing", {"missing/a.py": b"1", "missing/b.py": b"2"})
    (tmp_path / "missing" / "b.py").unlink()
    package(tmp_path, "short", {"short/a.so": b"123456"})
    (tmp_path / "short" / "a.so").write_bytes(b"123")
    (tmp_path / "~orch").mkdir()
    forgotten = installing.forget_damaged(tmp_path)
    assert forgotten == ["missing-1.0.dist-info", "short-1.0.dist-info", "unlisted-1.0.dist-info"]
    assert sorted(path.name for path in tmp_path.glob("*-info")) == ["whole-1.0.dist-info"]
    assert not (tmp_path / "~orch").exists()
    assert installing.forget_damaged(tmp_path) == []


def requirements_of(name: str) -> set[str]:
    lines = [line for line in metadata.requires(name) or [] if "extra ==" not in line]
    return {normalised(re.match(r"[A-Za-z0-9._-]+", line).group()) for line in lines if "win32" not in line}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [re.split(r"==|<", line)[0] for line in lines if line and not line.startswith("#")]


def with_all_requirements(names: set[str]) -> set[str]:
    found, left = set(), set(names)
    while left:
        name = left.pop()
        found.add(name)
        try:
            left |= requirements_of(name) - found
        except metadata.PackageNotFoundError:  # of another platform or Python
            continue
    return found


def test_exactly_one_opencv_can_come():
    """No listed package asks for OpenCV, and what is installed without requirements has the others of them listed."""
    script = (ROOT / "scripts" / "install.sh").read_text(encoding="utf-8")
    alone = set(re.search(r'^WITHOUT_REQUIREMENTS="(.*)"$', script, re.MULTILINE).group(1).split()) | {"mmcv"}
    listed = with_all_requirements({normalised(name) for name in names_in("requirements-dev.txt")})
    assert not [name for name in listed if name.startswith("opencv")]
    # For downloads, figures and videos, which no test makes.
    unused = {"tidecv": {"appdirs", "pandas", "seaborn"}, "supervision": {"av"}}
    for name in alone:
        needed = requirements_of(name) - {"opencv-python", "opencv-python-headless"} - unused.get(name, set())
        assert needed <= listed | alone, name


def test_every_package_that_is_installed_is_pinned():
    pinned = {normalised(name) for name in names_in("constraints.txt")}
    assert {normalised(name) for name in names_in("requirements-dev.txt")} <= pinned
    needed = {normalised(name) for name in (*CORE, *HOST, *OPTIONAL)}
    assert needed <= pinned
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))
    assert all(is_supported(name, pins[name]) for name in (*CORE, *HOST, *OPTIONAL) if name in pins)


def test_the_script_is_sound_bash():
    assert subprocess.run(["bash", "-n", str(ROOT / "scripts" / "install.sh")], check=False).returncode == 0


def install(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "install.sh"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def fake_venv(folder: Path, says: str) -> Path:
    """A venv whose python prints `says` whatever it is asked, and of which nothing is used."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\necho {says}\n")
    (folder / "bin" / "python").chmod(0o755)
    return folder


def test_a_second_run_returns_at_once(tmp_path):
    script = (ROOT / "scripts" / "install.sh").read_text(encoding="utf-8")
    inputs = re.search(r"^inputs=\$\((.*)\)$", script, re.MULTILINE).group(1)
    stamp = subprocess.run(["bash", "-c", inputs], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    venv = fake_venv(tmp_path / "venv", "nothing may be asked")
    (venv / ".rar_installed").write_text(stamp)
    done = install(VENV=str(venv))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_environment_of_another_python_is_left_alone(tmp_path):
    venv = fake_venv(tmp_path / "venv", "3.99")
    done = install(VENV=str(venv), PYTHON=sys.executable)
    assert done.returncode == 1
    assert f"{venv} holds Python 3.99, PYTHON={sys.executable} is" in done.stderr
    assert "choose another folder with VENV=" in done.stderr


def test_a_python_that_cannot_serve_is_named(tmp_path):
    done = install(VENV=str(tmp_path / "venv"), PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not a Python of 3.11 to 3.13 with its venv module" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_unknown_word_is_refused(tmp_path):
    done = install("--upgrade", VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "usage: bash scripts/install.sh [again]" in done.stderr
