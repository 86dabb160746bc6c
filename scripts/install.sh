#!/usr/bin/env bash
# Makes .venv with the set of constraints.txt and rar_mmdet in it. Run it again at any time, also after it was stopped:
# what is there is kept, what is damaged comes anew. After a whole run it returns at once, until an input of it changes;
# `scripts/install.sh again` goes through all steps all the same, and brings back what was changed by hand.
#
#   PYTHON=python3.13      the interpreter (3.11 to 3.13); by default the first of these that is found
#   VENV=.venv             the folder
#   PIP_FIND_LINKS=DIR     a folder of ready wheels; one of mmcv spares compiling it
#   MAX_JOBS=N             compiler processes; by default one for each core
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_USER  # they would send packages, or look for them, elsewhere
# Packages that ask for opencv-python: installed without their requirements, which requirements-dev.txt lists, so that
# exactly one of OpenCV's builds is here. They share their files: removing one of two breaks the other. (tidecv's figures
# ask for pandas and seaborn besides; supervision's videos for av, which brings FFmpeg: no test makes one.)
WITHOUT_REQUIREMENTS="mmengine mmdet lvis tidecv supervision"
TOTAL=5

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }
step() { say "[$1/$TOTAL] $2"; }
py() { "$VENV/bin/python" -I "$@"; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
pin() { sed -n "s/^$1==//p" constraints.txt; }
can_import() { py -c "import $1" 2>/dev/null; }

# Runs a command; what it prints goes to the log, of which the end is shown when it fails.
run() {
  printf '\n$ %s\n' "$*" >>"$LOG"
  "$@" >>"$LOG" 2>&1 && return
  tail -n 20 "$LOG" >&2
  die "failed: $*
install: everything it printed is in $LOG; the same command goes on from here"
}

usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
  local candidate
  [ -z "${PYTHON:-}" ] || return 0
  for candidate in python3.11 python3.12 python3.13 python3; do
    if usable "$candidate"; then PYTHON=$candidate; return; fi
  done
  die "no Python of 3.11 to 3.13 with its venv module found (Debian, Ubuntu: apt-get install python3-venv python3-dev g++); PYTHON=/path/to/python names one"
}

make_venv() {
  [ -z "${PYTHON:-}" ] || usable "$PYTHON" ||
    die "PYTHON=$PYTHON is not a Python of 3.11 to 3.13 with its venv module (Debian: apt-get install python3-venv)"
  if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    local here wanted
    here=$(py -c 'import sys; print(*sys.version_info[:2], sep=".")')
    wanted=$([ -z "${PYTHON:-}" ] && echo "$here" || "$PYTHON" -c 'import sys; print(*sys.version_info[:2], sep=".")')
    [ "$here" = "$wanted" ] || die "$VENV holds Python $here, PYTHON=$PYTHON is $wanted: remove $VENV, or choose another folder with VENV="
    return
  fi
  find_python
  say "creating $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv "$VENV"  # also completes one that was interrupted
}

install_opencv() {
  local builds build=opencv-python version trial
  builds=$(py scripts/installing.py opencv-builds)
  if [ "$(wc -w <<<"$builds")" = 1 ] && can_import cv2; then return; fi
  # shellcheck disable=SC2086  # several words are meant
  [ -z "$builds" ] || run pip uninstall -y $builds
  version=$(pin opencv-python)
  # opencv-python needs libraries of a desktop, which servers lack: tried aside before anything is installed.
  trial=$VENV/opencv-trial
  rm -rf "$trial"
  run pip install -q --no-deps --target "$trial" "opencv-python==$version"
  if ! PYTHONPATH=$trial "$VENV/bin/python" -c 'import cv2' 2>>"$LOG"; then
    build=opencv-python-headless
    say "opencv-python does not load on this machine (libGL or libxcb is missing): taking its headless build"
  fi
  rm -rf "$trial"
  run pip install -q --no-deps "$build==$version"
}

# pip fetches and unpacks the source, from wherever it is set up to; then it runs setup.py, which fails on Python 3.13.
# With --no-clean what it unpacked stays, and is mended.
fetch_mmcv_source() {
  local source=$1 aside=$1-unpacking setup
  rm -rf "$aside"
  mkdir -p "$aside/tmp"
  printf '\nfetching the source of mmcv %s (an error of its setup.py is expected on Python 3.13)\n' "$MMCV" >>"$LOG"
  TMPDIR=$PWD/$aside/tmp pip download -q --no-clean --no-deps --no-build-isolation --no-binary mmcv \
    -d "$aside/files" "mmcv==$MMCV" >>"$LOG" 2>&1 || true
  setup=$(find "$aside/tmp" -maxdepth 3 -path '*/mmcv*/setup.py' -print -quit)
  [ -n "$setup" ] || { tail -n 20 "$LOG" >&2; die "pip could not fetch the source of mmcv $MMCV; see $LOG"; }
  py scripts/installing.py mend-mmcv "$setup" >>"$LOG" 2>&1 || die "the setup.py of mmcv $MMCV is not as expected; see $LOG"
  mv "$(dirname "$setup")" "$source"
  rm -rf "$aside"
}

# Compiles in the background and tells how far it is. An interrupted build goes on where it was.
build_mmcv() {
  local folder=$1 source=$1/source job done_ total told=0
  command -v "${CXX:-g++}" >/dev/null || command -v c++ >/dev/null ||
    die "mmcv has no ready wheel for this Python and torch and must be compiled: install a C++ compiler (Debian, Ubuntu: apt-get install g++)"
  py -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
    die "compiling mmcv needs Python's headers (Debian, Ubuntu: apt-get install python3-dev)"
  mkdir -p "$folder"
  [ -d "$source" ] || fetch_mmcv_source "$source"
  if [ -z "${CUDA_HOME:-}" ] && ! command -v nvcc >/dev/null; then
    export CUDA_VISIBLE_DEVICES=  # without CUDA's compiler its ops can be built for the CPU alone
  fi
  say "compiling mmcv $MMCV against the installed torch (about 6 minutes on 2 free cores, once); its output goes to $folder/build.log"
  set -m  # a process group of its own, so that all of it can be stopped
  # ninja (in the venv's bin) compiles in parallel and remembers what is done; -g0: no debug symbols, which nobody reads.
  # Not by pip, which wipes what is done when one file fails.
  PATH="$(cd "$VENV/bin" && pwd):$PATH" CFLAGS="${CFLAGS:-} -g0" MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    bash -c 'cd "$0" && exec python -u setup.py bdist_wheel -d ../wheel' "$source" >"$folder/build.log" 2>&1 &
  job=$!
  set +m
  trap 'kill -TERM -- -$job 2>/dev/null; die "stopped; the same command goes on from here"' INT TERM
  while kill -0 "$job" 2>/dev/null; do
    sleep 2
    IFS=/ read -r done_ total < <(grep -o '^ *\[[0-9]*/[0-9]*\]' "$folder/build.log" | tail -n 1 | tr -d '[] ') || continue
    if [ $((done_ * 4 / total)) -gt "$told" ]; then
      told=$((done_ * 4 / total))
      say "  $done_ of $total files, $SECONDS s"
    fi
  done
  trap - INT TERM
  wait "$job" && built=yes || built=no
  cat "$folder/build.log" >>"$LOG"
  [ $built = yes ] && return
  grep -m 5 -E 'FAILED|fatal error|: error:|Killed' "$folder/build.log" | cut -c1-300 >&2 || true
  ! grep -q 'code=137\|Killed' "$folder/build.log" || say "a compiler was killed, perhaps for want of memory: MAX_JOBS=1 needs half of it"
  die "mmcv could not be compiled; see $LOG. The same command goes on from here"
}

install_mmcv() {
  can_import mmcv.ops && return
  local folder
  folder=build/mmcv-$MMCV-$(py -c 'import sys, torch; print(sys.implementation.cache_tag, torch.__version__, sep="-torch")')
  # A wheel: one that was built here before, or from PIP_FIND_LINKS. Never a plain source build, which leaves out the ops.
  mkdir -p "$folder/wheel"
  pip install -q --no-deps --force-reinstall --only-binary mmcv --find-links "$folder/wheel" "mmcv==$MMCV" >>"$LOG" 2>&1 || true
  can_import mmcv.ops && return
  rm -rf "$folder/wheel"  # what lies there does not fit
  build_mmcv "$folder"
  run pip install -q --no-deps --force-reinstall "$folder"/wheel/mmcv-*.whl
  can_import mmcv.ops || die "mmcv was built but 'import mmcv.ops' fails: $(py -c 'import mmcv.ops' 2>&1 | tail -n 1)"
  rm -rf "$folder/source" "$folder/build.log"
}

# The stamp holds what was installed from where: a second run with the same inputs returns at once.
inputs=$({ cat constraints.txt requirements-dev.txt setup.py scripts/install.sh scripts/installing.py rar_mmdet/_host.py; pwd; } | sha256sum | cut -d' ' -f1)
STAMP=$VENV/.rar_installed
case "${1:-}" in
  again) rm -f "$STAMP" ;;
  "") ;;
  *) die "no option $1; usage: bash scripts/install.sh [again]" ;;
esac
if [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$inputs" ]; then
  exit 0
fi

make_venv
LOG=$VENV/install.log
if command -v flock >/dev/null; then  # two at once would disturb each other
  exec 9>"$VENV/.rar_lock"
  flock -n 9 || { say "another installation into $VENV is running: waiting for it"; flock 9; }
fi
rm -f "$STAMP"
: >"$LOG"
MMCV=$(pin mmcv)

py scripts/installing.py forget-damaged >>"$LOG"
step 1 "pinned packages (torch and its libraries are about 3 GB); output goes to $LOG"
run pip install -q -c constraints.txt 'setuptools<82' wheel ninja
run pip install -q -c constraints.txt -r requirements-dev.txt
step 2 "OpenCV"
install_opencv
step 3 "MMEngine, MMDetection, lvis, tidecv, supervision"
for name in $WITHOUT_REQUIREMENTS; do
  run pip install -q --no-deps "$name==$(pin "$name")"
done
step 4 "mmcv with its ops"
install_mmcv
step 5 "rar_mmdet"
run pip install -q --no-deps --no-build-isolation -e .

# With a headless OpenCV those who ask for opencv-python by name stay unsatisfied; that alone is as it should be.
left=$(pip check 2>/dev/null | grep -v -e 'requires opencv-python, which is not installed' -e '^tidecv ' -e '^supervision .* requires av,' -e '^No broken requirements' || true)
[ -z "$left" ] || say "note, pip check says: $left"
py -c 'import cv2, numba, torch, torchvision, mmcv.ops, mmdet, rar_mmdet.registry' 2>>"$LOG" ||
  die "not everything loads: $(tail -n 1 "$LOG"). $VENV/bin/rar-mmdet doctor tells what to do"
echo "$inputs" >"$STAMP"
say "ready in $VENV after $SECONDS s; 'source $VENV/bin/activate', then 'rar-mmdet doctor' shows what is there"
