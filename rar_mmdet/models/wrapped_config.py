"""The config of a detector inside a detector, as MMDetection's helpers read it.

`mmdet.apis.init_detector` looks at `config.model.backbone` before it builds anything. A `RARDetector` keeps its
backbone one level down, so `backbone` of such a config, and of no other, is answered with that of its `detector`.
"""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

__all__ = ["answer_for_the_backbone"]

_TYPES = ("RARDetector", "rar_mmdet.RARDetector")


def answer_for_the_backbone() -> None:
    """Teach `ConfigDict` the above, for keys that are missing; a second call changes nothing."""
    if ConfigDict.__missing__ is _missing:
        return
    _missing.otherwise = ConfigDict.__missing__  # type: ignore[attr-defined]
    ConfigDict.__missing__ = _missing


def _missing(config: ConfigDict, name: str) -> Any:
    if name == "backbone" and config.get("type") in _TYPES:
        detector = config.get("detector")
        # Of a detector named by its file there is nothing to change.
        return detector.get("backbone", ConfigDict()) if isinstance(detector, ConfigDict) else ConfigDict()
    return _missing.otherwise(config, name)  # type: ignore[attr-defined]
