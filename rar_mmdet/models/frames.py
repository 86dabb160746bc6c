"""Boxes between the frame of the network input and that of the original image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.structures.bbox import bbox_flip
from torch import Tensor

from rar_mmdet.errors import ConfigError

__all__ = ["ImageFrame", "describe"]

_ADVICE = "a test pipeline may resize, flip, crop and pad with MMDetection's own transforms, and nothing else"
_SLACK = 2.0  # px by which sizes rounded to whole pixels may differ from exact ones


@dataclass(frozen=True)
class ImageFrame:
    """How one image became network input: each axis was scaled, perhaps mirrored, and moved.

    *original*: pixels of the photo. *input*: pixels of the network input. What MMDetection's own detectors predict with
    `rescale` is neither: of the photo's size, but still flipped (its test-time augmentation flips back by itself).

    Args:
        scale_wh: pixels of the input for one pixel of the photo; positive.
        mirrored_wh: whether x and y run backwards in the input.
        offset_wh: where the photo's origin lies in the input, in pixels of the input.
        flip_direction: the flip that MMDetection knows of; `None` for none.
        original_hw: size of the photo.
    """

    scale_wh: tuple[float, float]
    mirrored_wh: tuple[bool, bool]
    offset_wh: tuple[float, float]
    flip_direction: str | None
    original_hw: tuple[int, int]

    @classmethod
    def from_metainfo(cls, metainfo: Mapping[str, Any]) -> ImageFrame:
        """Read what MMDetection's transforms write down, from a pipeline's results or from a sample's metainfo.

        Args:
            metainfo: `ori_shape`, and where they apply `scale_factor`, `flip`, `flip_direction`, `img_shape` and
                `homography_matrix`. Absent keys mean that nothing of that kind was done.

        Raises:
            ConfigError: the image was rotated, sheared, resized twice, or cut without a record of it.
        """
        height, width = (int(side) for side in metainfo.get("ori_shape", metainfo.get("img_shape", (0, 0)))[:2])
        factor = np.asarray(metainfo.get("scale_factor", 1.0), dtype=np.float64).reshape(-1)
        scale_wh = (float(factor[0]), float(factor[1 if len(factor) > 1 else 0]))
        direction = (metainfo.get("flip_direction") or "horizontal") if metainfo.get("flip") else None
        original_hw = (height, width)
        matrix = metainfo.get("homography_matrix")
        if matrix is None:
            _refuse_unknown_cut(metainfo, scale_wh, original_hw)
            mirrored_wh, offset_wh = _as_mmdetection_maps(scale_wh, direction, original_hw)
        else:
            mirrored_wh, offset_wh = _read_matrix(np.asarray(matrix, dtype=np.float64), scale_wh, metainfo)
        return cls(scale_wh, mirrored_wh, offset_wh, direction, original_hw)

    @property
    def is_plain(self) -> bool:
        """Whether the photo fills the input from its top left corner on: MMDetection's own mapping of boxes then holds.

        It does not where the image was cut, or flipped after it was padded.
        """
        mirrored_wh, offset_wh = _as_mmdetection_maps(self.scale_wh, self.flip_direction, self.original_hw)
        moved = [abs(a - b) for a, b in zip(self.offset_wh, offset_wh, strict=True)]
        return self.mirrored_wh == mirrored_wh and max(moved) <= _SLACK

    @property
    def is_identity(self) -> bool:
        """Whether the input shows the photo's pixels where the photo has them."""
        return self.is_plain and self.scale_wh == (1.0, 1.0) and self.flip_direction is None

    def to_original(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes, *input* to *original*."""
        moved = boxes_xyxy - self._for_corners(boxes_xyxy, self.offset_wh)
        return self._in_order(moved / self._for_corners(boxes_xyxy, self._signed_scale_wh))

    def to_input(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes, *original* to *input*; the inverse of `to_original`."""
        scaled = boxes_xyxy * self._for_corners(boxes_xyxy, self._signed_scale_wh)
        return self._in_order(scaled + self._for_corners(boxes_xyxy, self.offset_wh))

    def from_detector(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes as an MMDetection detector's `predict` with `rescale` gives them, to *original*."""
        if not self.is_plain:
            # MMDetection divides by the scale and does nothing else: what moved the photo is still in its boxes.
            return self.to_original(boxes_xyxy * self._for_corners(boxes_xyxy, self.scale_wh))
        if self.flip_direction is None or len(boxes_xyxy) == 0:
            return boxes_xyxy
        return bbox_flip(boxes_xyxy, self.original_hw, self.flip_direction)

    def to_detector(self, boxes_xyxy: Tensor) -> Tensor:
        """(R, 4) boxes, *original* to what a detector's `predict` with `rescale` gives; inverts `from_detector`."""
        if not self.is_plain:
            return self.to_input(boxes_xyxy) / self._for_corners(boxes_xyxy, self.scale_wh)
        return self.from_detector(boxes_xyxy)  # a flip is its own inverse

    def masks_from_detector(self, masks: Tensor) -> Tensor:
        """(R, H, W) masks as an MMDetection detector's `predict` with `rescale` gives them, to *original*.

        Raises:
            ConfigError: the image was cut, or flipped after it was padded.
        """
        if not self.is_plain:
            raise ConfigError(
                "masks cannot be taken back to the photo where the image was cut, or flipped after it was padded; "
                "leave cropping out of the test pipeline and put RandomFlip before Pad"
            )
        flipped = [axis for axis, mirrored in ((-1, self.mirrored_wh[0]), (-2, self.mirrored_wh[1])) if mirrored]
        return masks.flip(flipped) if flipped else masks

    @property
    def _signed_scale_wh(self) -> tuple[float, float]:
        (scale_w, scale_h), (mirrored_w, mirrored_h) = self.scale_wh, self.mirrored_wh
        return (-scale_w if mirrored_w else scale_w, -scale_h if mirrored_h else scale_h)

    def _for_corners(self, boxes_xyxy: Tensor, wh: tuple[float, float]) -> Tensor:
        return boxes_xyxy.new_tensor([*wh, *wh])

    def _in_order(self, boxes_xyxy: Tensor) -> Tensor:
        """Left before right and top before bottom again, where an axis was mirrored."""
        left, right = (2, 0) if self.mirrored_wh[0] else (0, 2)
        top, bottom = (3, 1) if self.mirrored_wh[1] else (1, 3)
        return boxes_xyxy[:, [left, top, right, bottom]] if any(self.mirrored_wh) else boxes_xyxy


def _as_mmdetection_maps(
    scale_wh: tuple[float, float], direction: str | None, original_hw: tuple[int, int]
) -> tuple[tuple[bool, bool], tuple[float, float]]:
    """Mirrored axes and offsets of an image that was scaled, then perhaps flipped, then perhaps padded."""
    height, width = original_hw
    mirrored_w, mirrored_h = direction in ("horizontal", "diagonal"), direction in ("vertical", "diagonal")
    offset_wh = (width * scale_wh[0] if mirrored_w else 0.0, height * scale_wh[1] if mirrored_h else 0.0)
    return (mirrored_w, mirrored_h), offset_wh


def _read_matrix(
    matrix: np.ndarray, scale_wh: tuple[float, float], metainfo: Mapping[str, Any]
) -> tuple[tuple[bool, bool], tuple[float, float]]:
    """Mirrored axes and offsets from the (3, 3) matrix that MMDetection's transforms keep, original to input pixels."""
    sides = np.diag(matrix)[:2]
    rest = matrix - np.diag(np.diag(matrix))
    rest[:2, 2] = 0
    if np.abs(rest).max() > 1e-4 or abs(matrix[2, 2] - 1) > 1e-4:
        raise ConfigError(
            f"{describe(metainfo)} was rotated or sheared, so boxes cannot be mapped to the photo; {_ADVICE}"
        )
    if not np.allclose(np.abs(sides), scale_wh, rtol=2e-3):
        raise ConfigError(
            f"{describe(metainfo)} was resized by {np.abs(sides).tolist()} in all, but its scale_factor is "
            f"{list(scale_wh)}, which MMDetection goes by; leave one Resize in the pipeline, of MMDetection's own"
        )
    return (bool(sides[0] < 0), bool(sides[1] < 0)), (float(matrix[0, 2]), float(matrix[1, 2]))


def _refuse_unknown_cut(
    metainfo: Mapping[str, Any], scale_wh: tuple[float, float], original_hw: tuple[int, int]
) -> None:
    """An input smaller than a photo that was not resized was cut, and without a matrix nobody knows where."""
    input_hw = metainfo.get("img_shape")
    if input_hw is None or scale_wh != (1.0, 1.0):
        return
    if any(found < original - _SLACK for found, original in zip(input_hw[:2], original_hw, strict=True)):
        raise ConfigError(
            f"{describe(metainfo)}: the network input is {input_hw[1]}x{input_hw[0]} px and the photo "
            f"{original_hw[1]}x{original_hw[0]} px: it was cut, and no homography_matrix says where. End the pipeline "
            f"with dict(type='rar_mmdet.PackRecognitionInputs'); {_ADVICE}"
        )


def describe(metainfo: Mapping[str, Any]) -> str:
    """An image by id and file, for messages; of a sample's metainfo or a pipeline's results."""
    return f"image {metainfo.get('img_id')} ({metainfo.get('img_path')})"
