"""Boxes that are numbers but hardly x, y, width and height in pixels: what a person should be told about them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["are_fractions", "first_negative", "note_on_boxes"]

LEAVING_SHARE = 0.2  # of the boxes leave their photo: more than rounding or amodal annotation explains
FEW = 10  # boxes from which on "every box is wider than its left edge is far" says something
SLACK_SHARE, SLACK_PIXELS = 0.02, 2.0  # by which a box may leave its photo

BoxArray = NDArray[np.float64]


def are_fractions(boxes_xywh: BoxArray) -> bool:
    """All boxes lie within 0 and 1, and not all numbers are whole: shares of the photo's size."""
    return bool(len(boxes_xywh)) and bool(
        (np.abs(boxes_xywh) <= 1).all() and (boxes_xywh != np.round(boxes_xywh)).any()
    )


def first_negative(boxes_xywh: BoxArray) -> int | None:
    """Row of the first box of negative width or height."""
    wrong = np.flatnonzero((boxes_xywh[:, 2] < 0) | (boxes_xywh[:, 3] < 0))
    return int(wrong[0]) if len(wrong) else None


def note_on_boxes(boxes_xywh: BoxArray, image_hw: NDArray[np.int64], what: str) -> str | None:
    """A sentence where many boxes leave their photo, as x1, y1, x2, y2 read as x, y, width, height do.

    Args:
        boxes_xywh: (n, 4) boxes.
        image_hw: (n, 2) height and width of the photo of each; 0 where unknown.
        what: "annotations" or "detections".
    """
    known = (image_hw > 0).all(axis=1) & np.isfinite(boxes_xywh).all(axis=1)
    x, y, w, h = boxes_xywh[known].T
    if not len(x):
        return None
    room = image_hw[known] * (1 + SLACK_SHARE) + SLACK_PIXELS
    leaving = (y + h > room[:, 0]) | (x + w > room[:, 1])
    looks_like_corners = len(x) >= FEW and bool((w >= x).all() and (h >= y).all())
    if leaving.mean() <= LEAVING_SHARE and not (looks_like_corners and leaving.any()):
        return None
    row = int(np.flatnonzero(known)[np.argmax(leaving)])
    height, width = image_hw[row].tolist()
    return (
        f"{int(leaving.sum())} of {len(x)} boxes of the {what} leave their photo ({leaving.mean():.0%}), such as "
        f"{boxes_xywh[row].round(1).tolist()} in {width} x {height}. COCO boxes are x, y, width, height in pixels of "
        "the original photo; are these x1, y1, x2, y2, or pixels of another size?"
    )
