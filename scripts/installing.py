"""What scripts/install.sh needs of Python; the standard library only, as nothing is installed yet.

python scripts/installing.py mend-mmcv SETUP_PY     mend mmcv's setup.py for Python 3.13
python scripts/installing.py forget-damaged         make pip forget packages whose installation was interrupted
python scripts/installing.py opencv-builds          print which builds of OpenCV are installed
"""

from __future__ import annotations

import csv
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
# `get_version` of mmcv 2.1.0 runs version.py by exec and reads the result from locals(). Since Python 3.13 exec no
# longer writes there (PEP 667): KeyError: '__version__'.
BEFORE = (
    "        exec(compile(f.read(), version_file, 'exec'))\n",
    "    return locals()['__version__']\n",
)
AFTER = (
    "        scope = {}\n        exec(compile(f.read(), version_file, 'exec'), scope)\n",
    "    return scope['__version__']\n",
)


def mend_mmcv(text: str) -> str:
    """The text of mmcv's setup.py with `get_version` mended and nothing else touched; a mended one stays as it is.

    Raises:
        ValueError: it is not the setup.py that is known.
    """
    if all(text.count(after) == 1 for after in AFTER):
        return text
    for before, after in zip(BEFORE, AFTER, strict=True):
        if text.count(before) != 1:
            raise ValueError(f"expected one line {before.strip()!r} in mmcv's setup.py, found {text.count(before)}")
        text = text.replace(before, after)
    return text


def forget_damaged(site_packages: Path) -> list[str]:
    """Remove the records of packages that are not completely there, so that pip installs them anew; returns them.

    A killed pip leaves a package without its list of files, or with some of them missing or cut short.
    """
    forgotten = []
    for record_folder in sorted(site_packages.glob("*.dist-info")):
        if not _is_complete(site_packages, record_folder):
            shutil.rmtree(record_folder)
            forgotten.append(record_folder.name)
    for left_over in site_packages.glob("~*"):  # what pip moved aside while it replaced a package
        shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
    return forgotten


def _is_complete(site_packages: Path, record_folder: Path) -> bool:
    record = record_folder / "RECORD"
    if not record.is_file():
        return False
    with record.open(encoding="utf-8", newline="") as file:
        for path, _, size in csv.reader(file):
            target = site_packages / path
            if size and not (target.is_file() and target.stat().st_size == int(size)):
                return False
    return True


def opencv_builds() -> list[str]:
    """The installed builds of OpenCV."""
    found = []
    for name in OPENCV:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def main(arguments: list[str]) -> int:
    if arguments[0] == "mend-mmcv":
        path = Path(arguments[1])
        path.write_text(mend_mmcv(path.read_text(encoding="utf-8")), encoding="utf-8")
    elif arguments[0] == "forget-damaged":
        for name in forget_damaged(Path(sysconfig.get_path("purelib"))):
            print(f"{name}: its installation was interrupted or overwritten, it is installed anew")
    elif arguments[0] == "opencv-builds":
        print(*opencv_builds())
    else:
        raise SystemExit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
