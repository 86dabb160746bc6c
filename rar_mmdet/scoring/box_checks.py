"""Boxes that are numbers but hardly x, y, width and height in pixels: what a person should be told about them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["are_corners", "are_fractions", "first_negative", "note_on_boxes"]

LEAVING_SHARE = 0.2  # of the boxes leave their photo: more than rounding or amodal annotation explains
FEW = 10  # boxes from which on "every box is wider than its left edge is far" says something
SLACK_SHARE, SLACK_PIXELS = 0.02, 2.0  # by which a box may leave its photo
CHUNK = 1 << 18  # boxes looked at together

BoxArray = NDArray[np.float64]


def are_fractions(boxes_xywh: BoxArray) -> bool:
    """All boxes lie within 0 and 1, not all numbers whole: shares of the photo's size. NaN is passed over."""
    if not len(boxes_xywh) or not np.fmax.reduce(boxes_xywh, axis=None) <= 1:
        return False
    given = boxes_xywh[np.isfinite(boxes_xywh)]
    return bool((np.abs(given) <= 1).all() and (given != np.round(given)).any())


def first_negative(boxes_xywh: BoxArray) -> int | None:
    """Row of the first box of negative width or height."""
    wrong = np.flatnonzero((boxes_xywh[:, 2] < 0) | (boxes_xywh[:, 3] < 0))
    return int(wrong[0]) if len(wrong) else None


def are_corners(boxes_xywh: BoxArray, image_hw: NDArray[np.int64]) -> bool:
    """Whether boxes are x1, y1, x2, y2 beyond doubt: so read they fit into their photos, as x, y, width, height not.

    Args:
        boxes_xywh: (n, 4) finite boxes.
        image_hw: (n, 2) height and width of the photo of each; 0 where unknown.
    """
    converted = boxes_xywh.copy()
    converted[:, 2:] -= converted[:, :2]
    fits = first_negative(converted) is None and note_on_boxes(converted, image_hw, "") is None
    return fits and note_on_boxes(boxes_xywh, image_hw, "") is not None


def note_on_boxes(boxes_xywh: BoxArray, image_hw: NDArray[np.int64], what: str) -> str | None:
    """A sentence where many boxes leave their photo, as x1, y1, x2, y2 read as x, y, width, height do.

    Args:
        boxes_xywh: (n, 4) boxes.
        image_hw: (n, 2) height and width of the photo of each; 0 where unknown.
        what: "annotations" or "detections".
    """
    boxes = leaving = 0
    example: int | None = None
    looks_like_corners = True
    for low in range(0, len(boxes_xywh), CHUNK):
        x, y, w, h = boxes_xywh[low : low + CHUNK].T
        height, width = image_hw[low : low + CHUNK].T
        known = (height > 0) & (width > 0) & np.isfinite(x)
        too_low = y + h > height * (1 + SLACK_SHARE) + SLACK_PIXELS
        outside = known & (too_low | (x + w > width * (1 + SLACK_SHARE) + SLACK_PIXELS))
        boxes += int(known.sum())
        leaving += int(outside.sum())
        looks_like_corners &= bool(((w >= x) & (h >= y))[known].all())
        if example is None and outside.any():
            example = low + int(np.argmax(outside))
    if example is None:
        return None
    if leaving <= LEAVING_SHARE * boxes and not (looks_like_corners and boxes >= FEW):
        return None
    height, width = image_hw[example].tolist()
    return (
        f"{leaving} of {boxes} boxes of the {what} leave their photo ({leaving / boxes:.0%}), such as "
        f"{boxes_xywh[example].round(1).tolist()} in {width} x {height}. COCO boxes are x, y, width, height in pixels "
        "of the original photo; are these x1, y1, x2, y2, or pixels of another size?"
    )
