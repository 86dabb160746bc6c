"""Features of boxes from a grid of features: one vector per box, by RoIAlign (Mask R-CNN, arXiv 1703.06870, sec. 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rar_mmdet.boxes import Boxes, boxes_to_array
from rar_mmdet.errors import InvalidBoxError

__all__ = ["boxes_in_cells", "check_boxes", "pool_boxes"]


def check_boxes(boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> np.ndarray:
    """(R, 4) float64 boxes that have an area within the photo.

    RoIAlign answers any other box with zeros, which become NaN when they are made unit vectors.

    Raises:
        InvalidBoxError: a box is not finite, empty, inverted or outside; the message names the first.
    """
    boxes = boxes_to_array(boxes_xyxy)
    height, width = image_hw
    x1, y1, x2, y2 = boxes.T
    with np.errstate(invalid="ignore"):
        good = np.isfinite(boxes).all(1) & (x2 > x1) & (y2 > y1) & (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise InvalidBoxError(
            f"box {row} = {boxes[row].tolist()} has no area within a photo of {width}x{height} px; expected finite "
            "xyxy in pixels of the photo, x1 < x2 and y1 < y2. Drop such boxes, or use on_bad_box='skip'"
        )
    return boxes


def boxes_in_cells(boxes_xyxy: Any, image_hw: tuple[float, float], grid_hw: tuple[int, int]) -> Tensor:
    """(R, 4) float32: boxes in pixels of a photo as coordinates of its grid of cells.

    Computed in double precision and rounded once. The number of samples that RoIAlign takes of a box is its size in
    cells rounded up, so that an error of one unit in the last place adds a whole row of samples to a box that spans a
    whole number of cells.
    """
    boxes = torch.from_numpy(boxes_to_array(boxes_xyxy))
    height, width = image_hw
    rows, columns = grid_hw
    size = torch.tensor([width, height, width, height], dtype=torch.float64)
    cells = torch.tensor([columns, rows, columns, rows], dtype=torch.float64)
    return (boxes / size * cells).float()


def pool_boxes(grid: Tensor, boxes_in_grid: Tensor) -> Tensor:
    """The mean of the grid over each box.

    Args:
        grid: (D, h, w) features of one photo, any float dtype; the middle of the first cell is at 0.5.
        boxes_in_grid: (R, 4) float32, see `boxes_in_cells`.

    Returns:
        (R, D) float32: bilinear samples, about one per cell and axis, averaged. Zeros for boxes of no area.
    """
    from torchvision.ops import roi_align

    boxes = boxes_in_grid.to(grid.device)
    # Half precision is too coarse for coordinates, and the operator wants one dtype.
    return roi_align(grid.float()[None], [boxes], output_size=1, sampling_ratio=-1, aligned=True).flatten(1)
