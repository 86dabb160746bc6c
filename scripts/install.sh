#!/usr/bin/env bash
# Makes .venv with the set of constraints.txt and rar_mmdet in it. Run it again at any time: what is there is kept.
# PYTHON=python3.11 chooses the interpreter, VENV=.venv the folder, PIP_FIND_LINKS a folder of ready wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}

say() { printf '\n== %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

if [ -z "${PYTHON:-}" ]; then
  PYTHON=$(command -v python3.11 || command -v python3 || true)
fi
[ -n "$PYTHON" ] || die "no python3 found; install Python 3.11 with its venv module"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$PYTHON is older than 3.11; set PYTHON=/path/to/python3.11"

# The stamp holds what was installed: a second run with the same inputs returns at once.
inputs=$(cat constraints.txt requirements-dev.txt setup.py scripts/install.sh rar_mmdet/_host.py | sha256sum | cut -d' ' -f1)
if [ -f "$VENV/.rar_installed" ] && [ "$(cat "$VENV/.rar_installed")" = "$inputs" ]; then
  exit 0
fi

[ -x "$VENV/bin/python" ] || { say "creating $VENV with $PYTHON"; "$PYTHON" -m venv "$VENV"; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
py() { "$VENV/bin/python" "$@"; }

say "installing the pinned packages (torch and its libraries are about 3 GB; a few minutes)"
pip install -q -c constraints.txt 'setuptools<82' wheel ninja
pip install -q -c constraints.txt -r requirements-dev.txt

# opencv-python needs the system's libGL; servers often lack it, and the headless build is the same code without windows.
if ! py -c 'import cv2' 2>/dev/null; then
  say "opencv-python cannot be loaded here (libGL missing?): taking its headless build"
  version=$(py -c 'from importlib.metadata import version; print(version("opencv-python"))')
  pip uninstall -q -y opencv-python
  pip install -q "opencv-python-headless==$version"
fi

have_ops() { py -c 'import mmcv.ops' 2>/dev/null; }
mmcv=$(sed -n 's/^mmcv==//p' constraints.txt)
if ! have_ops; then
  # A wheel from PIP_FIND_LINKS, if it offers one. Never a plain source build here: an isolated one silently leaves out the ops.
  pip install -q --no-deps --force-reinstall --only-binary mmcv "mmcv==$mmcv" 2>/dev/null || true
fi
if ! have_ops; then
  command -v g++ >/dev/null || command -v c++ >/dev/null || die "mmcv must be built from source and needs a C++ compiler (Debian: apt-get install g++)"
  say "building mmcv $mmcv from source against the installed torch (about 10 minutes on 2 cores)"
  MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip install --no-build-isolation --no-deps --force-reinstall --no-binary mmcv --no-cache-dir "mmcv==$mmcv"
  have_ops || die "mmcv was built but 'import mmcv.ops' fails: $(py -c 'import mmcv.ops' 2>&1 | tail -n 1)"
fi

say "installing rar_mmdet"
pip install -q -c constraints.txt "mmdet==$(sed -n 's/^mmdet==//p' constraints.txt)" "lvis==$(sed -n 's/^lvis==//p' constraints.txt)"
# lvis and others may have pulled opencv-python back in beside a headless build.
py -c 'import cv2' 2>/dev/null || pip install -q --force-reinstall --no-deps opencv-python-headless
pip install -q --no-deps --no-build-isolation -e .
py -c 'import rar_mmdet, mmcv.ops, mmdet; print("rar_mmdet", rar_mmdet.__version__, "is ready in '"$VENV"'")'
echo "$inputs" > "$VENV/.rar_installed"
