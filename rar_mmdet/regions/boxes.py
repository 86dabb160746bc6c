"""Which boxes can be cropped, and what is wrong with those that cannot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.errors import InvalidBoxError

__all__ = ["boxes_to_array", "find_invalid_boxes", "validate_boxes"]

Boxes = Tensor | NDArray | list
NUM_NAMED = 5  # boxes a message spells out before it only counts


def boxes_to_array(boxes_xyxy: Boxes) -> NDArray[np.float64]:
    """Boxes of any float or integer dtype and any device as a float64 (R, 4) array; no boxes is (0, 4)."""
    if isinstance(boxes_xyxy, Tensor):
        boxes_xyxy = boxes_xyxy.detach().cpu().double().numpy()
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0 and boxes.ndim <= 2:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InvalidBoxError(f"boxes_xyxy must have shape (R, 4), got {tuple(boxes.shape)}; wrap a single box: [box]")
    return boxes


def find_invalid_boxes(boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> dict[int, str]:
    """What is wrong with each box that cannot be cropped.

    Args:
        boxes_xyxy: (R, 4) boxes (x1, y1, x2, y2) in pixels of the image they are to be cut from.
        image_hw: height and width of that image.

    Returns:
        Index of the box -> reason. Empty when every box is finite, has a positive width and height and shares a
        positive area with the photo. Boxes that stick out are fine.
    """
    boxes = boxes_to_array(boxes_xyxy)
    height, width = image_hw
    x1, y1, x2, y2 = boxes.T
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    inverted = (x2 < x1) | (y2 < y1)
    empty = (x2 == x1) | (y2 == y1)
    outside = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
    reasons = {}
    for index in np.flatnonzero(~finite | inverted | empty | outside).tolist():
        if not finite[index]:
            reasons[index] = "not finite"
        elif inverted[index]:
            reasons[index] = "inverted: expected x1 < x2 and y1 < y2 (is it x, y, width, height?)"
        elif empty[index]:
            reasons[index] = "empty: zero width or height"
        else:
            reasons[index] = f"entirely outside the photo of {width} x {height} px (is it in another frame?)"
    return reasons


def validate_boxes(boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The boxes as a float64 (R, 4) array, or an error that names each unusable one.

    Raises:
        InvalidBoxError: Some box is not finite, inverted, empty or entirely outside the photo.
    """
    boxes = boxes_to_array(boxes_xyxy)
    reasons = find_invalid_boxes(boxes, image_hw)
    if reasons:
        named = [f"box {i} {boxes[i].tolist()} is {reason}" for i, reason in list(reasons.items())[:NUM_NAMED]]
        more = f"; and {len(reasons) - NUM_NAMED} more" if len(reasons) > NUM_NAMED else ""
        raise InvalidBoxError(
            f"{len(reasons)} of {len(boxes)} boxes cannot be cropped: {'; '.join(named)}{more}. "
            "Expected finite (x1, y1, x2, y2) in pixels of this image; drop the boxes listed by `find_invalid_boxes`."
        )
    return boxes
