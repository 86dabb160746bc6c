"""The host check names each problem and the command that mends it."""

from importlib import metadata

import pytest

import rar_mmdet
from rar_mmdet._host import CHECKED, REQUIREMENTS, check_host
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
    assert set(CHECKED) <= set(REQUIREMENTS)


@pytest.mark.parametrize(
    ("name", "version"),
    [("torch", "1.13.1"), ("mmengine", "0.11.0"), ("mmcv", "2.2.0"), ("mmdet", "2.28.0"), ("transformers", "4.33.1")],
)
def test_a_version_out_of_range_is_named_with_its_remedy(name, version):
    with pytest.raises(HostError, match=rf"{name} {version} is installed.*is supported: .*pip install"):
        check({**GOOD, name: version})


def test_a_missing_package_is_named():
    with pytest.raises(HostError, match="mmdet is not installed"):
        check({k: v for k, v in GOOD.items() if k != "mmdet"})


def test_mmcv_without_ops_is_named_with_the_build_command():
    with pytest.raises(HostError, match="built without its ops.*MMCV_WITH_OPS=1.*--no-build-isolation"):
        check(ops=lambda: False)


def test_missing_pkg_resources_is_named():
    with pytest.raises(HostError, match="pip install 'setuptools<82'"):
        check(has_module=lambda name: name != "pkg_resources")


def test_all_problems_come_at_once():
    with pytest.raises(HostError, match=r"(?s)mmcv 1\.0.*transformers 4\.0"):
        check({**GOOD, "mmcv": "1.0", "transformers": "4.0"})


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = rar_mmdet.Nothing
