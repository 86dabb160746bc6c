"""The patch of lvis-api: NumPy stays as it is, and nothing happens where only the core is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

MENDED = """
import numpy
before = set(vars(numpy))
from rar_mmdet._lvis import patch_lvis
patch_lvis()
patch_lvis()
import lvis.eval
assert lvis.eval.np.float is float and lvis.eval.np.linspace is numpy.linspace
assert "float" not in vars(numpy) and set(vars(numpy)) >= before
"""
CORE_ALONE = """
import sys
finders = list(sys.meta_path)
import rar_mmdet, rar_mmdet.scoring
assert sys.meta_path == finders and "lvis" not in sys.modules
"""
FACE = """
import rar_mmdet.registry
import lvis.eval
assert lvis.eval.np.float is float
"""
ABSENT = """
import sys
sys.modules["lvis"] = None  # importing it fails
from rar_mmdet._lvis import patch_lvis
patch_lvis()
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(MENDED, id="mends-lvis-only"),
        pytest.param(CORE_ALONE, id="core-does-nothing"),
        pytest.param(FACE, id="face-mends"),
        pytest.param(ABSENT, id="not-installed"),
    ],
)
def test_patch_touches_lvis_only(program: str) -> None:
    pytest.importorskip("lvis")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
