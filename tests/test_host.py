"""The host check names each problem and the command that mends it."""

import subprocess
import sys
from importlib import metadata

import pytest

import rar_mmdet
from rar_mmdet._host import CHECKED, CORE, HOST, check_host, line_for
from rar_mmdet.errors import HostError

GOOD = {"torch": "2.11.0+cu130", "mmengine": "0.10.7", "mmcv": "2.1.0", "mmdet": "3.3.0", "transformers": "5.23.0"}


def check(versions=GOOD, has_module=lambda name: True, ops=lambda: True):
    def version_of(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    check_host(version_of, has_module, ops)


def test_this_host_passes():
    check_host()
    check()
    assert set(CHECKED) <= set(CORE) | set(HOST)
    assert not set(CORE) & set(HOST)


@pytest.mark.parametrize(
    ("name", "version"),
    [("torch", "1.13.1"), ("mmengine", "0.11.0"), ("mmcv", "2.2.0"), ("mmdet", "2.28.0"), ("transformers", "4.33.1")],
)
def test_a_version_out_of_range_is_named_with_its_remedy(name, version):
    with pytest.raises(HostError, match=rf"{name} {version} is installed.*is supported: .*(pip install|install\.sh)"):
        check({**GOOD, name: version})


def test_a_missing_package_is_named():
    with pytest.raises(HostError, match="mmdet is not installed"):
        check({k: v for k, v in GOOD.items() if k != "mmdet"})


def test_mmcv_without_ops_is_named_with_the_build_command():
    with pytest.raises(HostError, match="built without its ops.*needs a C\\+\\+ compiler"):
        check(ops=lambda: False)


def test_the_way_to_mmcv_depends_on_python():
    assert "MMCV_WITH_OPS=1" in line_for("mmcv", (3, 12))
    assert "--no-build-isolation" in line_for("mmcv", (3, 12))
    assert "scripts/install.sh" in line_for("mmcv", (3, 13))  # its setup.py must be mended there


def test_missing_pkg_resources_is_named():
    with pytest.raises(HostError, match="pip install 'setuptools<82'"):
        check(has_module=lambda name: name != "pkg_resources")


def test_all_problems_come_at_once():
    with pytest.raises(HostError, match=r"(?s)mmcv 1\.0.*transformers 4\.0"):
        check({**GOOD, "mmcv": "1.0", "transformers": "4.0"})


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = rar_mmdet.Nothing


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_nothing_happens_at_import():
    done = run(
        "import sys; finders = list(sys.meta_path); before = set(sys.modules)\n"
        "import rar_mmdet\n"
        "assert sys.meta_path == finders, 'a finder was installed'\n"
        "ours = {m for m in set(sys.modules) - before if m not in sys.stdlib_module_names and '.' not in m}\n"
        "assert ours == {'rar_mmdet'}, ours"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["models", "datasets", "evaluation", "engine", "visualization", "registry"])
def test_every_room_of_the_face_checks_the_host_first(room):
    done = run(
        "import sys\n"
        "from importlib import metadata\n"
        "version = metadata.version\n"
        "def without_mmdet(name):\n"
        "    if name == 'mmdet': raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = without_mmdet\n"
        "sys.modules['mmdet'] = None\n"
        f"import rar_mmdet.{room}"
    )
    assert done.returncode == 1
    assert "HostError: MMDetection cannot be used here" in done.stderr, done.stderr
    assert "mmdet is not installed, mmdet>=3.3,<3.4 is needed: pip install" in done.stderr


def test_a_missing_desktop_library_is_told_with_the_headless_build(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rar_mmdet.regions")
    assert "HostError: OpenCV cannot be loaded: libGL.so.1" in done.stderr
    assert "pip install opencv-python-headless" in done.stderr
