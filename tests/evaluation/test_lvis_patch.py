"""The patch of lvis-api: NumPy stays as it is, and nothing is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from rar_mmdet._lvis import patch_lvis
patch_lvis()
patch_lvis()
assert "lvis" not in sys.modules and "numpy" not in sys.modules, "the patch must not import anything"
import numpy
before = set(vars(numpy))
import lvis.eval
assert lvis.eval.np.float is float and lvis.eval.np.linspace is numpy.linspace
assert "float" not in vars(numpy) and set(vars(numpy)) >= before
patch_lvis()
assert isinstance(lvis.eval.np, type(sys)) and lvis.eval.np.float is float
"""


def test_patch_touches_lvis_only() -> None:
    pytest.importorskip("lvis")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
