"""What counts as boxes: the one place where lists, arrays and tensors become (R, 4) numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.errors import InvalidBoxError

__all__ = ["Boxes", "boxes_to_array"]

Boxes = Tensor | NDArray | Sequence


def boxes_to_array(boxes_xyxy: Boxes) -> NDArray[np.float64]:
    """Boxes of any float or integer dtype and any device as a float64 (R, 4) array; no boxes is (0, 4).

    Raises:
        InvalidBoxError: They are no numbers, or not four to a box; the message says what they look like.
    """
    boxes = _numbers_of_tensor(boxes_xyxy) if isinstance(boxes_xyxy, Tensor) else _numbers(boxes_xyxy)
    if boxes.shape in ((0,), (0, 0), (1, 0)):
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InvalidBoxError(f"boxes_xyxy must have shape (R, 4), got {boxes.shape}; {_advice(boxes)}")
    return boxes


def _numbers_of_tensor(boxes: Tensor) -> NDArray[np.float64]:
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise InvalidBoxError(f"boxes_xyxy must be (R, 4) numbers, got a tensor of {boxes.dtype}")
    return boxes.detach().cpu().double().numpy()


def _numbers(boxes: Any) -> NDArray[np.float64]:
    try:
        array = np.asarray(boxes)
    except (TypeError, ValueError) as error:  # rows of different lengths; a list of tensors on a GPU
        raise InvalidBoxError(
            f"boxes_xyxy must be (R, 4) numbers, four to a box; this {type(boxes).__name__} makes no array: {error}"
        ) from error
    if array.size == 0 or array.dtype.kind in "iuf":
        return array.astype(np.float64)
    for index, row in enumerate(array if array.ndim else ()):
        wrong = [value for value in np.ravel(np.asarray(row, object)) if not _is_number(value)]
        if wrong:
            raise InvalidBoxError(
                f"boxes_xyxy must be (R, 4) numbers; row {index} is {str(row)[:80]}, which holds "
                f"{type(wrong[0]).__name__}. Convert text to numbers, and drop regions without a box"
            )
    if array.ndim == 0:
        raise InvalidBoxError(f"boxes_xyxy must be (R, 4) numbers, got {type(boxes).__name__}")
    return array.astype(np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _advice(boxes: NDArray[np.float64]) -> str:
    """What boxes of another shape probably are."""
    if boxes.ndim == 1:
        return "wrap a single box: [box]"
    if boxes.ndim == 3 and boxes.shape[-1] == 4:
        return "give the boxes of one image at a time: boxes[0]"
    if boxes.ndim != 2 or boxes.shape[1] < 5:
        return "a box is x1, y1, x2, y2"
    first, last = boxes[:, 0], boxes[:, 4:]
    if boxes.shape[1] == 5 and len(boxes) and (first == np.floor(first)).all() and first.max() < 64 <= last.max():
        return "if the first column is the number of an image in a batch, the boxes are boxes[:, 1:]"
    if ((last[:, 0] >= 0) & (last[:, 0] <= 1)).all():
        return "the fifth column looks like scores: give boxes[:, :4], and boxes[:, 4] as box_scores"
    return "the boxes are probably boxes[:, :4], and what follows are scores or labels"
