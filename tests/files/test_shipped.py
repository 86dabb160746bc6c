"""Where the configs and the demo are: in a checkout, and as setup.py lays them out for a wheel."""

import subprocess
import sys
from pathlib import Path

from rar_mmdet.files.shipped import shipped

ROOT = Path(__file__).parents[2]
ASK = """
import sys
sys.path.insert(0, sys.argv[1])
from rar_mmdet.files.shipped import shipped
print("shipped", shipped("configs"), shipped("demo"))
from rar_mmdet.new_config import _encoder, _ranker
print("new-config", _encoder("demo"), _ranker("demo"))
from rar_mmdet.doctor import weights_of_configs
print("doctor", [name for name, _ in weights_of_configs()])
from rar_mmdet.tables.rows import default_configs
print("table", default_configs())
"""


def test_a_checkout_has_them_beside_the_package():
    assert (shipped("configs"), shipped("demo")) == (ROOT / "configs", ROOT / "demo")


def test_a_wheel_has_them_inside_and_every_command_finds_them(tmp_path):
    site, package = tmp_path / "site", tmp_path / "site" / "rar_mmdet"
    layout = ["egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", site]
    subprocess.run([sys.executable, "setup.py", "-q", *layout], cwd=ROOT, check=True)
    for folder in (site, tmp_path):  # of this name beside the package, or where a command runs: not meant
        (folder / "configs").mkdir()
    command = [sys.executable, "-I", "-c", ASK, site]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert told["shipped"].split() == [str(package / "configs"), str(package / "demo")]
    assert told["new-config"].count(f"{package / 'demo'}/") == 4
    assert "encoder of _base_/retrievers/clip_vitb16.py" in told["doctor"]
    assert told["table"] == str(Path("site", "rar_mmdet", "configs"))
