"""Models this package implements itself, made known to the Auto classes of transformers."""

from __future__ import annotations

import importlib

__all__ = ["register_native_models"]

_MODULES = ("rar_mmdet.rankers.tiny_vision", "rar_mmdet.rankers.internlm_xc2")


def register_native_models() -> None:
    """Import them; each registers its config, model and processor. No remote code is involved."""
    for module in _MODULES:
        importlib.import_module(module)
