"""Outlines of masks as polygons: what COCO, YOLO and CVAT have room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from rar_mmdet.scoring.masks import as_rle

__all__ = ["Outline", "area_of", "clipped", "one_line", "outline_of_mask", "outline_of_segmentation"]

Outline = tuple[tuple[float, ...], ...]  # polygons x1, y1, x2, y2, ... in pixels of the upright photo

TOLERANCE = 0.5  # pixels that a polygon may leave the mask's rim (ours): takes the stairs of a slope out
LEAST_POINTS = 3


def outline_of_mask(mask: NDArray[np.bool_]) -> Outline:
    """The polygons around a mask, each part one; holes are filled, as these formats have none.

    Args:
        mask: (H, W) bool.
    """
    from rar_mmdet.files.opencv import cv2

    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return ()
    top, left = int(ys[0]), int(xs[0])
    inside = mask[top : ys[-1] + 1, left : xs[-1] + 1]
    # OpenCV joins the middles of pixels. On a grid of twice the size, where every pixel also has its rim, the middles
    # of the outermost are the pixel's rim itself.
    grid = np.zeros((2 * inside.shape[0] + 1, 2 * inside.shape[1] + 1), np.uint8)
    grid[1::2, 1::2] = inside
    grid = cv2.dilate(grid, np.ones((3, 3), np.uint8))
    found, _ = cv2.findContours(grid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = [cv2.approxPolyDP(points, 2 * TOLERANCE, True)[:, 0] / 2 + (left, top) for points in found]
    return tuple(tuple(polygon.flatten().tolist()) for polygon in polygons if len(polygon) >= LEAST_POINTS)


def outline_of_segmentation(segmentation: Any, image_hw: tuple[int, int]) -> Outline:
    """Polygons as they are, run lengths by their outlines.

    Args:
        segmentation: as COCO writes it, checked.
        image_hw: of the photo, pixels.
    """
    if isinstance(segmentation, list):
        return tuple(tuple(map(float, part)) for part in segmentation if len(part) >= 2 * LEAST_POINTS)
    return outline_of_mask(mask_api.decode(as_rle(segmentation, image_hw)).astype(bool))


def area_of(outline: Outline) -> float:
    """Pixels inside (the shoelace formula)."""
    total = 0.0
    for polygon in outline:
        xs, ys = np.array(polygon[::2]), np.array(polygon[1::2])
        total += abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2
    return total


def one_line(outline: Sequence[Sequence[float]]) -> list[float]:
    """One polygon of several: each part is reached from the one before by the shortest way there and back.

    The way has no area, so that what is inside stays the same. For formats with a polygon an object, such as YOLO's.
    """
    whole = [np.array(part, float).reshape(-1, 2) for part in outline]
    joined = whole[0]
    for part in whole[1:]:
        distance = ((joined[:, None] - part[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(int(distance.argmin()), distance.shape)
        around = np.concatenate([np.roll(part, -there, axis=0), part[there : there + 1]])
        joined = np.concatenate([joined[: here + 1], around, joined[here:]])
    return [float(value) for value in joined.flatten()]


def clipped(outline: Outline, photo_wh: tuple[int, int]) -> Outline:
    """The outline with its points moved to the photo's rim where they leave it."""
    width, height = photo_wh
    return tuple(
        tuple(min(max(v, 0.0), float(width if i % 2 == 0 else height)) for i, v in enumerate(part)) for part in outline
    )
