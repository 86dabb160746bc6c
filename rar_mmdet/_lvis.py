"""Lets lvis-api 0.5.3 run on NumPy >= 1.24, which has no `np.float`; MMDet's stock `LVISMetric` then works too.

`lvis/eval.py:361-362` is the only use. That module gets a view of NumPy that also knows `float`; NumPy itself is left
as it is, and so is everybody else's. The MMDetection face calls this when it is loaded; nothing else does.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

__all__ = ["patch_lvis"]


class _NumpyWithFloat(ModuleType):
    """NumPy as lvis-api expects it: `float` is Python's, all else is looked up in NumPy."""

    float = float

    def __getattr__(self, name: str) -> Any:
        import numpy

        return getattr(numpy, name)


def patch_lvis() -> None:
    """Import `lvis.eval`, where the package is installed, and mend it; calling twice does nothing more.

    MMDetection imports lvis with its metrics anyway, so that nothing is loaded in vain.
    """
    try:
        import lvis.eval
    except ImportError:  # not installed, or without what it draws with: then the stock metric says so itself
        return
    import numpy

    if vars(lvis.eval).get("np") is numpy and "float" not in vars(numpy):
        lvis.eval.np = _NumpyWithFloat("numpy")
