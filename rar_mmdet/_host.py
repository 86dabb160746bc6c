"""The packages RAR runs on: the supported ranges (the one place where they stand) and a check that says what to type.

Nothing here imports a heavy package: versions come from package metadata, mmcv's ops from the files of its wheel.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from rar_mmdet.errors import HostError

__all__ = ["CORE", "HOST", "OPTIONAL", "PYTHON", "check_host", "installed_versions", "is_supported", "line_for"]

# setup.py reads these four; constraints.txt is the set that was run together.
PYTHON = ">=3.11,<3.14"
# What everything needs: name on the package index -> supported range.
CORE = {
    "torch": ">=2.6,<2.12",
    "torchvision": ">=0.21,<0.27",
    "mmengine": ">=0.10.4,<0.11",
    "transformers": ">=5.16,<6",
    "open_clip_torch": ">=3.0,<4",
    "timm": ">=1.0",
    "numpy": ">=1.24",
    "numba": ">=0.60",
    "jinja2": ">=3.1",
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
}
# What the MMDetection face needs besides: the extra `mmdet`.
HOST = {
    "mmcv": ">=2.0.0,<2.2",
    "mmdet": ">=3.3,<3.4",
    "lvis": ">=0.5.3",
    "setuptools": ">=65,<82",
}
# What single parts need: the extras `faiss`, `train`, `web` and `supervision`.
OPTIONAL = {
    "faiss-cpu": ">=1.8",
    "peft": ">=0.19,<0.22",
    "accelerate": ">=1.10,<2",
    "starlette": ">=0.49.1,<2",
    "uvicorn": ">=0.34,<1",
    "python-multipart": ">=0.0.18,<1",
    "supervision": ">=0.25,<1",
}
# Looked at before MMDetection is used: those whose wrong version fails late and unclearly.
CHECKED = ("torch", "mmengine", "mmcv", "mmdet", "transformers")


def is_supported(name: str, version: str) -> bool:
    """Whether that version of a package lies in its range; a local part such as `+cu130` does not matter."""
    return SpecifierSet((CORE | HOST | OPTIONAL)[name]).contains(version.split("+")[0], prereleases=True)


def installed_versions() -> dict[str, str]:
    """Name -> version of those that are installed."""
    found = {}
    for name in CORE | HOST | OPTIONAL:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def line_for(name: str, python: tuple[int, int] = sys.version_info[:2]) -> str:
    """The line to type so that a package comes in a supported version."""
    if name != "mmcv":
        return f"pip install '{name}{(CORE | HOST | OPTIONAL)[name]}'"
    if python >= (3, 13):  # where the setup.py of mmcv fails as it is
        return 'VENV="$VIRTUAL_ENV" bash scripts/install.sh again   (in a checkout of rar_mmdet; needs a C++ compiler)'
    return (
        "pip install 'setuptools<82' ninja && "
        "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall --no-binary mmcv "
        "mmcv==2.1.0   (needs a C++ compiler)"
    )


def mmcv_has_ops() -> bool:
    """Whether the installed mmcv has its compiled extension; nothing is imported."""
    spec = importlib.util.find_spec("mmcv")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return any(
        next(Path(folder).glob("_ext*.so"), None) or next(Path(folder).glob("_ext*.pyd"), None) for folder in folders
    )


def check_host(
    version_of: Callable[[str], str] = metadata.version,
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    mmcv_has_ops: Callable[[], bool] = mmcv_has_ops,
) -> None:
    """Check that MMDetection can be used here: the installed packages against the supported ranges.

    Args:
        version_of: installed version of a package, `PackageNotFoundError` when absent.
        has_module: whether a module can be imported.
        mmcv_has_ops: whether mmcv was built with its compiled ops.

    Raises:
        HostError: one line for each problem, each with the command that mends it.
    """
    problems = []
    for name in CHECKED:
        needed = f"{name}{(CORE | HOST | OPTIONAL)[name]}"
        try:
            found = version_of(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed, {needed} is needed: {line_for(name)}")
            continue
        if not is_supported(name, found):
            problems.append(f"{name} {found} is installed, {needed} is supported: {line_for(name)}")
        elif name == "mmcv" and not mmcv_has_ops():
            problems.append(f"mmcv {found} was built without its ops (mmcv._ext is missing): {line_for(name)}")
    if not has_module("pkg_resources"):
        problems.append(
            "pkg_resources is gone (setuptools 82 dropped it, MMEngine needs it): pip install 'setuptools<82'"
        )
    if problems:
        raise HostError(
            "MMDetection cannot be used here (RegionRecognizer, scoring and memories need none of it):\n  "
            + "\n  ".join(problems)
            + "\n`rar-mmdet doctor` looks at everything."
        )
