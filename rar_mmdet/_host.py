"""The packages RAR runs on: the supported ranges (the one place where they stand) and a check that says what to type.

Nothing here imports a heavy package: versions come from package metadata, mmcv's ops from the files of its wheel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from rar_mmdet.errors import HostError

__all__ = ["REQUIREMENTS", "check_host"]

# name on the package index -> supported range. setup.py reads this table; constraints.txt is the set that was run.
REQUIREMENTS = {
    "torch": ">=2.6,<2.12",
    "torchvision": ">=0.21,<0.27",
    "mmengine": ">=0.10.4,<0.11",
    "mmcv": ">=2.0.0,<2.2",
    "mmdet": ">=3.3,<3.4",
    "transformers": ">=5.16,<6",
    "open_clip_torch": ">=3.0,<4",
    "faiss-cpu": ">=1.8",
    "timm": ">=1.0",
    "lvis": ">=0.5.3",
    "numpy": ">=1.24",
    "numba": ">=0.60",
    "pycocotools": ">=2.0.7",
    "opencv-python": ">=4.5",
    "safetensors": ">=0.4",
    "sentencepiece": ">=0.2",
    "protobuf": ">=4",
    "pillow": ">=10",
    "matplotlib": ">=3.7",
    "tqdm": ">=4.60",
    "filelock": ">=3.12",
    "packaging": ">=22",
    "setuptools": ">=68,<82",
}
# Checked at import: those whose wrong version fails late and unclearly.
CHECKED = ("torch", "mmengine", "mmcv", "mmdet", "transformers")


def _mmcv_has_ops() -> bool:
    spec = importlib.util.find_spec("mmcv")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return any(
        next(Path(folder).glob("_ext*.so"), None) or next(Path(folder).glob("_ext*.pyd"), None) for folder in folders
    )


def check_host(
    version_of: Callable[[str], str] = metadata.version,
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    mmcv_has_ops: Callable[[], bool] = _mmcv_has_ops,
) -> None:
    """Check the installed packages against `REQUIREMENTS`.

    Args:
        version_of: installed version of a package, `PackageNotFoundError` when absent.
        has_module: whether a module can be imported.
        mmcv_has_ops: whether mmcv was built with its compiled ops.

    Raises:
        HostError: one line for each problem, each with the command that mends it.
    """
    problems = []
    for name in CHECKED:
        supported = SpecifierSet(REQUIREMENTS[name])
        fix = f"pip install '{name}{REQUIREMENTS[name]}' -c constraints.txt"
        if name == "mmcv":
            fix = "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary mmcv mmcv==2.1.0 (needs a C++ compiler)"
        try:
            found = version_of(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed, {name}{REQUIREMENTS[name]} is needed: {fix}")
            continue
        if not supported.contains(found.split("+")[0], prereleases=True):
            problems.append(f"{name} {found} is installed, {name}{REQUIREMENTS[name]} is supported: {fix}")
        elif name == "mmcv" and not mmcv_has_ops():
            problems.append(f"mmcv {found} was built without its ops (mmcv._ext is missing): {fix} --force-reinstall")
    if not has_module("pkg_resources"):
        problems.append(
            "pkg_resources is gone (setuptools 82 dropped it, MMEngine needs it): pip install 'setuptools<82'"
        )
    if problems:
        raise HostError("rar_mmdet cannot run on this installation:\n  " + "\n  ".join(problems))
