"""Which of a detector's boxes are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from rar_mmdet.errors import ConfigError
from rar_mmdet.models.frames import ImageFrame

__all__ = ["RegionSelection"]


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

    def __call__(self, boxes_xyxy: Tensor, box_scores: Tensor, frame: ImageFrame) -> tuple[Tensor, Tensor]:
        """Select among boxes (P, 4) in original pixels with scores (P,).

        Returns:
            (R, 4) boxes cut at the image's border, best first; their (R,) int64 rows among the P.
        """
        boxes_xyxy = frame.clip(boxes_xyxy)
        # A box that is not finite fails the comparison as well.
        large = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] >= self.min_size).all(dim=1).nonzero()[:, 0]
        rows = large[box_scores[large].sort(descending=True, stable=True).indices]
        if self.nms_iou is not None and len(rows):
            # Stand-in scores keep our order of ties; torchvision does not sort stably.
            order = torch.arange(len(rows), 0, -1, device=rows.device).float()
            rows = rows[nms(boxes_xyxy[rows], order, self.nms_iou)]
        rows = rows[: self.max_regions]
        return boxes_xyxy[rows], rows
