"""Boxes between the frame of the network input and that of the original image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox_flip
from torch import Tensor

__all__ = ["ImageFrame"]


@dataclass(frozen=True)
class ImageFrame:
    """How one image became network input: scaled, then perhaps flipped, then perhaps padded at the right and bottom.

    Three frames meet here. *original*: pixels of the photo. *input*: pixels of the resized, flipped network input.
    *output*: what MMDetection expects of `predict`: with `rescale` the original size but still flipped (its test-time
    augmentation flips back by itself), otherwise *input*.
    """

    scale_wh: tuple[float, float]
    flip_direction: str | None
    original_hw: tuple[int, int]

    @classmethod
    def from_metainfo(cls, metainfo: dict[str, Any]) -> ImageFrame:
        """Read `scale_factor`, `flip`, `flip_direction` and `ori_shape` of a data sample; absent keys mean identity."""
        scale = np.asarray(metainfo.get("scale_factor", 1.0), dtype=np.float64).reshape(-1)
        scale_w, scale_h = (float(scale[0]), float(scale[1 if len(scale) > 1 else 0]))
        direction = metainfo.get("flip_direction") or "horizontal"
        height, width = metainfo.get("ori_shape", metainfo.get("img_shape", (0, 0)))[:2]
        return cls((scale_w, scale_h), direction if metainfo.get("flip") else None, (int(height), int(width)))

    def _scale(self, boxes_xyxy: Tensor) -> Tensor:
        return boxes_xyxy.new_tensor([*self.scale_wh, *self.scale_wh])

    def _flip(self, boxes_xyxy: Tensor) -> Tensor:
        if self.flip_direction is None or len(boxes_xyxy) == 0:
            return boxes_xyxy
        return bbox_flip(boxes_xyxy, self.original_hw, self.flip_direction)

    def to_original(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes, *input* to *original*."""
        return self._flip(boxes_xyxy / self._scale(boxes_xyxy))

    def to_input(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes, *original* to *input*; the inverse of `to_original`."""
        return self._flip(boxes_xyxy) * self._scale(boxes_xyxy)

    def from_output(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes, *output* of a `predict` with `rescale` to *original*."""
        return self._flip(boxes_xyxy)

    def to_output(self, boxes_xyxy: Tensor, rescale: bool) -> Tensor:
        """(R, 4) boxes, *original* to *output*."""
        return self._flip(boxes_xyxy) if rescale else self.to_input(boxes_xyxy)

    def clip(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes, *original*, cut at the borders of the image."""
        height, width = self.original_hw
        upper = torch.tensor([width, height, width, height], device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
        return torch.minimum(boxes_xyxy.clamp_min(0), upper)
