"""Lets lvis-api 0.5.3 run on NumPy >= 1.24, which has no `np.float`; MMDet's stock `LVISMetric` then works too.

`lvis/eval.py:361-362` is the only use. That module gets a view of NumPy that also knows `float`; NumPy itself is left
as it is, and so is everybody else's. lvis imports OpenCV and matplotlib, so it is mended when somebody imports it, and
not imported for the purpose.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = ["patch_lvis"]

TARGET = "lvis.eval"


class _NumpyWithFloat(ModuleType):
    """NumPy as lvis-api expects it: `float` is Python's, all else is looked up in NumPy."""

    float = float

    def __getattr__(self, name: str) -> Any:
        import numpy

        return getattr(numpy, name)


class _MendingLoader(importlib.abc.Loader):
    """Runs a module with its own loader, then mends it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _mend(module)


class _LvisFinder(importlib.abc.MetaPathFinder):
    """Finds `lvis.eval`, nothing else, where Python would find it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _MendingLoader(spec.loader)
        return spec


def patch_lvis() -> None:
    """Mend `lvis.eval` if it is loaded, else as soon as it is; calling twice does nothing more."""
    if TARGET in sys.modules:
        _mend(sys.modules[TARGET])
    elif not any(isinstance(finder, _LvisFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LvisFinder())


def _mend(module: ModuleType) -> None:
    import numpy

    if getattr(module, "np", None) is numpy and "float" not in vars(numpy):
        module.np = _NumpyWithFloat("numpy")  # type: ignore[attr-defined]
