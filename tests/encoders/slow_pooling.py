"""RoIAlign written as plain loops in float64: an oracle."""

from __future__ import annotations

import math

import numpy as np


def bilinear(grid: np.ndarray, y: float, x: float) -> np.ndarray:
    """(D,) value of a (D, h, w) grid whose cells have their middle at whole numbers; zero beyond one cell outside."""
    rows, columns = grid.shape[1:]
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return np.zeros(len(grid))
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    dy, dx = y - top, x - left
    upper = grid[:, top, left] * (1 - dx) + grid[:, top, right] * dx
    lower = grid[:, bottom, left] * (1 - dx) + grid[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def pool(grid: np.ndarray, box_in_cells: np.ndarray, side: int = 1) -> np.ndarray:
    """(D, side, side): each bin's mean over ceil(its size in cells) samples per axis."""
    x1, y1, x2, y2 = (float(v) - 0.5 for v in box_in_cells)
    height, width = (y2 - y1) / side, (x2 - x1) / side
    num_y, num_x = math.ceil(height), math.ceil(width)
    out = np.zeros((len(grid), side, side))
    for i in range(side):
        for j in range(side):
            samples = [
                bilinear(grid, y1 + (i + (k + 0.5) / num_y) * height, x1 + (j + (m + 0.5) / num_x) * width)
                for k in range(num_y)
                for m in range(num_x)
            ]
            out[:, i, j] = np.mean(samples, axis=0) if samples else 0
    return out
