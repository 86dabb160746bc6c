"""Which of a detector's boxes are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rar_mmdet.detectors.base import Detected, merge_boxes, select_boxes
from rar_mmdet.errors import ConfigError

__all__ = ["FOUND_SELECTION", "RegionSelection"]

# Of the boxes of a whole detector, by default (ours: the same object is often found under several of its classes).
FOUND_SELECTION = {"max_regions": 300, "nms_iou": 0.7}


@dataclass(frozen=True)
class RegionSelection:
    """Which of a detector's boxes are recognised.

    Args:
        max_regions: the best so many of an image, by box score.
        nms_iou: class-agnostic NMS over the boxes first; `None` for none.
        min_size: boxes narrower or lower than this, in original pixels and after cutting at the image's border, are
            dropped; 1 is what MMDetection asks of annotated boxes.
    """

    max_regions: int = 1000
    nms_iou: float | None = None
    min_size: float = 1.0

    def __post_init__(self) -> None:
        if self.max_regions < 1:
            raise ConfigError(f"RegionSelection.max_regions must be >= 1, got {self.max_regions}")
        if self.nms_iou is not None and not 0 < self.nms_iou <= 1:
            raise ConfigError(f"RegionSelection.nms_iou must be in (0, 1] or None, got {self.nms_iou}")
        if not self.min_size > 0:
            raise ConfigError(f"RegionSelection.min_size must be > 0, got {self.min_size}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, where: str, **defaults: Any) -> RegionSelection:
        """From a config's dict.

        Args:
            config: keys of this class; `None` for none.
            where: the path of the dict in the config, for errors.
            defaults: values of keys the config does not have.

        Raises:
            ConfigError: a key is misspelt or a value out of range.
        """
        try:
            return cls(**{**defaults, **(config or {})})
        except TypeError as error:
            raise ConfigError(f"{where}: {error}. Its keys: max_regions, nms_iou, min_size") from error

    def __call__(self, boxes_xyxy: Tensor, box_scores: Tensor, image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Select among boxes (P, 4) in original pixels with scores (P,).

        Returns:
            (R, 4) boxes cut at the image's border, best first; their (R,) int64 rows among the P.
        """
        boxes, _, rows = select_boxes(boxes_xyxy, box_scores, image_hw, **self._settings)
        return boxes[rows], rows

    def merge(self, found: Detected, image_hw: tuple[int, int]) -> Detected:
        """The same boxes, each with the names of those that it stands for; see `merge_boxes`."""
        return merge_boxes(found, image_hw, **self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        iou = 1.0 if self.nms_iou is None else self.nms_iou
        return {"iou": iou, "limit": self.max_regions, "min_size": self.min_size}
