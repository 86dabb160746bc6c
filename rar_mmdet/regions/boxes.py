"""Which boxes can be cropped, what is wrong with the others, and what looks wrong about the boxes of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.boxes import Boxes, boxes_to_array
from rar_mmdet.errors import InvalidBoxError

__all__ = ["find_invalid_boxes", "find_suspicious_boxes", "validate_boxes"]

NUM_NAMED = 5  # boxes a message spells out before it only counts

# Boxes that all lie in the first pixel (and a tenth around it, for predictions) of a photo at least so large are
# taken for boxes in 0..1. Ours.
FIRST_PIXEL = (-0.1, 1.1)
NORMALISED_MIN_SIDE = 16
# When the boxes of a data set are worth a warning. Ours.
FEW_BOXES = 10  # below that a share means nothing
SHARE_LEAVING = 0.2
LEAVING_BY = 2.0  # pixels; annotations are often rounded outwards
# What speaks for another format: nearly all boxes fit in it, and some do not fit in the one they should be in.
SHARE_FITTING, SHARE_OTHER_FORMAT = 0.98, 0.05


def find_invalid_boxes(boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> dict[int, str]:
    """What is wrong with each box that cannot be cropped.

    Args:
        boxes_xyxy: (R, 4) boxes (x1, y1, x2, y2) in pixels of the image they are to be cut from.
        image_hw: height and width of that image.

    Returns:
        Index of the box -> reason. Empty when every box is finite, has a positive width and height and shares a
        positive area with the photo, and they do not all lie in 0..1. Boxes that stick out are fine.

    Raises:
        InvalidBoxError: they are no (R, 4) numbers.
    """
    boxes = boxes_to_array(boxes_xyxy)
    height, width = image_hw
    x1, y1, x2, y2 = boxes.T
    good = (x1 < x2) & (y1 < y2) & (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
    if good.all() and np.isfinite(boxes).all() and not are_normalised(boxes, image_hw):
        return {}  # of every photo but the odd one
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    inverted = (x2 < x1) | (y2 < y1)
    empty = (x2 == x1) | (y2 == y1)
    outside = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
    normalised = finite & are_normalised(boxes[finite], image_hw)
    reasons = {}
    for index in np.flatnonzero(~finite | inverted | empty | outside | normalised).tolist():
        if not finite[index]:
            reasons[index] = "not finite"
        elif normalised[index]:
            reasons[index] = (
                f"normalised: all boxes lie in 0..1, and the photo has {width} x {height} px; multiply x by {width} "
                f"and y by {height}"
            )
        elif inverted[index]:
            reasons[index] = "inverted: expected x1 < x2 and y1 < y2 (is it x, y, width, height?)"
        elif empty[index]:
            reasons[index] = "empty: zero width or height"
        else:
            reasons[index] = f"entirely outside the photo of {width} x {height} px (is it in another frame?)"
    return reasons


def are_normalised(boxes_xyxy: NDArray[np.float64], image_hw: tuple[int, int]) -> bool:
    """Whether finite boxes (R, 4) all lie in the first pixel of a photo that is larger than a few: they are in 0..1."""
    low, high = FIRST_PIXEL
    return bool(
        len(boxes_xyxy)
        and min(image_hw) >= NORMALISED_MIN_SIDE
        and ((boxes_xyxy >= low) & (boxes_xyxy <= high)).all()
        and (boxes_xyxy != 0).any()
    )


def validate_boxes(boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The boxes as a float64 (R, 4) array, or an error that names each unusable one.

    Raises:
        InvalidBoxError: Some box is not finite, inverted, empty or entirely outside the photo; or all lie in 0..1.
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


def _from_xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _from_cxcywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


# Ways in which four numbers are a box -> the same as x1, y1, x2, y2.
BOX_FORMATS = {"xyxy": lambda boxes: boxes, "xywh": _from_xywh, "cxcywh": _from_cxcywh}
SPELT_OUT = {"xyxy": "x1, y1, x2, y2", "xywh": "x, y, width, height", "cxcywh": "centre x, centre y, width, height"}


def find_suspicious_boxes(
    boxes: Sequence[Boxes], image_hws: Sequence[tuple[int, int]], box_format: str = "xyxy"
) -> list[str]:
    """What looks wrong about the boxes of many images, each as one sentence for a warning; empty when nothing does.

    No box needs to be unusable for that: xyxy boxes in a file that stores xywh can all be cropped, at wrong places.

    Args:
        boxes: for each image (R, 4) boxes, as they are stored.
        image_hws: height and width of each image.
        box_format: how the boxes are meant to be stored: `xyxy`, `xywh` (as in COCO files) or `cxcywh`.

    Raises:
        InvalidBoxError: the boxes of an image are no (R, 4) numbers.
    """
    arrays = [boxes_to_array(own) for own in boxes]
    if not any(map(len, arrays)):
        images = f"the {len(arrays)} images" if len(arrays) != 1 else "the image"
        return [f"there is no box in {images}: nothing will be recognised. Are annotations or proposals missing?"]
    stored = np.concatenate(arrays)
    hw = np.repeat(np.asarray(image_hws, dtype=np.float64).reshape(-1, 2), [len(own) for own in arrays], axis=0)
    finite = np.isfinite(stored).all(axis=1)
    stored, hw = stored[finite], hw[finite]
    if len(stored) and hw.min() >= NORMALISED_MIN_SIDE and are_normalised(stored, (NORMALISED_MIN_SIDE,) * 2):
        return [
            f"all {len(stored)} boxes lie in 0..1, so they are no pixels: multiply x by the width and y by the height "
            "of each image"
        ]
    if len(stored) < FEW_BOXES:
        return []
    fits = {name: _fits(to_xyxy(stored), hw) for name, to_xyxy in BOX_FORMATS.items()}
    num_wrong = int((~fits[box_format]).sum())
    said = (
        f"{num_wrong} of {len(stored)} boxes ({100 * num_wrong / len(stored):.0f} %) are inverted or leave their image"
    )
    better = next((name for name in BOX_FORMATS if fits[name].mean() >= SHARE_FITTING), None)
    if better is not None and num_wrong > SHARE_OTHER_FORMAT * len(stored):
        return [
            f"{said} when read as {SPELT_OUT[box_format]}, but {100 * fits[better].mean():.0f} % fit as "
            f"{SPELT_OUT[better]}: they seem to be {better}, where {box_format} is expected"
        ]
    if num_wrong > SHARE_LEAVING * len(stored):
        return [f"{said}. Are they in pixels of another size of the images, or of an image before it was turned?"]
    return []


def _fits(boxes_xyxy: NDArray[np.float64], hw: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(R,) which boxes are not inverted and lie within their images, but for a rounding error."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return np.all((low <= high) & (low >= -LEAVING_BY) & (high <= hw[:, ::-1] + LEAVING_BY), axis=1)
