"""Crops on the CPU, for data-loader workers and photos that are in main memory."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.files.opencv import cv2
from rar_mmdet.regions.background import Background
from rar_mmdet.regions.kernels import axis_taps, resample_columns, resample_rows, sum_rows
from rar_mmdet.regions.windows import WindowPlan, halving_taps

__all__ = ["CpuBackend"]

REGIONS_PER_THREAD = 8  # fewer are cut before a thread has started
NO_PIXELS = np.zeros(4, dtype=np.int64)  # a box without a pixel


class CpuBackend:
    """Cuts the windows of one photo.

    Args:
        image: (H, W, 3) uint8 RGB photo, or one (H, W) plane.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        transposed = cv2.transpose(image)
        self.photo = image
        self.channels = image.shape[2] if image.ndim == 3 else 1
        self._levels: list[NDArray] = [transposed.reshape(len(transposed), -1)]

    def transposed_level(self, index: int) -> NDArray:
        """The photo halved `index` times and transposed, (W, H * C): uint8 itself, then float32.

        Columns are resampled first; they are the rows of this.
        """
        while len(self._levels) <= index:
            self._levels.append(halve(self._levels[-1], self.channels))
        return self._levels[index]

    def crop(
        self,
        plan: WindowPlan,
        background: Background,
        masks: NDArray | None,
        out: NDArray[np.uint8],
        num_threads: int = 1,
    ) -> None:
        """Write the crops of all R regions to `out`, (R, 3, S, S) uint8; `num_threads` of them at a time."""
        mean = cv2.mean(self.photo)[:3] if plan.needs_colour else (0, 0, 0)  # looks at every pixel of the photo
        colour = np.array(mean, dtype=np.float32)
        self.transposed_level(int(plan.level.max(initial=0)))  # before threads meet there

        def write(region: int) -> None:
            self.sample(plan, region, colour, out[region])
            if not background.is_identity:
                keep = None if masks is None else kept_by_mask(masks[region], plan[region : region + 1])
                paint(out[region], background, plan.inside[region], keep)

        def write_each(first: int) -> None:
            for region in range(first, len(plan), num_threads):
                write(region)

        num_threads = max(min(num_threads, len(plan) // REGIONS_PER_THREAD), 1)
        if num_threads == 1:
            write_each(0)
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                list(pool.map(write_each, range(num_threads)))

    def sample(self, plan: WindowPlan, region: int, colour: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Write the samples of one region to `out`, (C, S, S); `colour`, (C,), where nothing is covered."""
        (x1, x2), (y1, y2) = plan.reach[region].tolist()
        if x2 - x1 < plan.size or y2 - y1 < plan.size:
            out[:] = np.rint(colour)[:, None, None]
        if x1 == x2 or y1 == y2:
            return
        level = int(plan.level[region])
        transposed, shrink = self.transposed_level(level), 0.5**level
        covered = plan.covered[region]
        lengths = len(transposed), transposed.shape[1] // self.channels
        columns, rows = (
            axis_taps(plan.centre[region, axis, a:b] * shrink, plan.step[region, axis] * shrink, lengths[axis])
            for axis, (a, b) in enumerate(((x1, x2), (y1, y2)))
        )
        low, high = int(rows[0].min()), int((rows[0] + rows[1]).max())
        across = np.empty((x2 - x1, high - low, self.channels), dtype=np.uint8)
        resample_columns(transposed, low * self.channels, high * self.channels, *columns, across.reshape(x2 - x1, -1))
        planes = np.empty((self.channels, high - low, x2 - x1), dtype=np.uint8)
        cv2.split(cv2.transpose(across), list(planes))
        resample_rows(planes, low, *rows, covered[0, x1:x2], covered[1, y1:y2], colour, x1, y1, out)


def kept_by_mask(mask: NDArray, plan: WindowPlan) -> NDArray[np.bool_] | None:
    """(S, S) output pixels of one window that are at least half in an (H, W) mask; `None` when there are none."""
    # Only the part of the mask that the window and its filters reach; whole pixels of its level.
    unit = 2 ** int(plan.level[0])
    margin = 2 * plan.step[0] + 16 * unit
    low = np.maximum((plan.centre[0].min(axis=1) - margin) // unit, 0).astype(int) * unit
    high = np.ceil(plan.centre[0].max(axis=1) + margin).astype(int)
    part = mask[low[1] : high[1], low[0] : high[0]]
    plane = np.where(part, np.uint8(255), np.uint8(0))
    covered = np.empty((1, plan.size, plan.size), dtype=np.uint8)
    plan = dataclasses.replace(plan, centre=plan.centre - low[:, None])
    CpuBackend(plane).sample(plan, 0, np.zeros(1, dtype=np.float32), covered)
    keep = covered[0] >= 128
    return keep if keep.any() else None


def halve(transposed: NDArray, channels: int) -> NDArray[np.float32]:
    """(W, H * C) -> half the size (rounded up), low-passed; not saturated: no error builds up over the levels."""
    for _ in range(2):
        taps = halving_taps(len(transposed))
        rows = np.empty((len(taps[0]), transposed.shape[1]), dtype=np.float32)
        sum_rows(transposed, *taps, rows)
        transposed = cv2.transpose(rows.reshape(len(rows), -1, channels))
        transposed = transposed.reshape(len(transposed), -1)
    return transposed


def paint(
    crop: NDArray[np.uint8], background: Background, inside: NDArray[np.int64], keep: NDArray[np.bool_] | None
) -> None:
    """Put the background into a (3, S, S) crop, in place, but for where the box (or what `keep` says) is."""
    if keep is None and not background.feather:
        background.paint(crop, inside)
        return
    painted = crop.copy()
    background.paint(painted, NO_PIXELS)
    distance = distance_to_box(inside, crop.shape[-1]) if keep is None else distance_to_mask(keep)
    share = np.clip(1 - distance / (background.feather + 1), 0, 1, dtype=np.float32)
    mixed = np.rint(painted + share * (crop.astype(np.float32) - painted)).astype(np.uint8)
    np.copyto(crop, mixed, where=distance > 0)


def distance_to_box(inside: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """(S, S) distance of each output pixel to the box x1, y1, x2, y2 (excluded), in pixels; 0 in the box."""
    pixel = np.arange(size)
    x1, y1, x2, y2 = inside
    dx = np.maximum(np.maximum(x1 - pixel, pixel - (x2 - 1)), 0)
    dy = np.maximum(np.maximum(y1 - pixel, pixel - (y2 - 1)), 0)
    return np.hypot(dx, dy[:, None])


def distance_to_mask(keep: NDArray[np.bool_]) -> NDArray:
    """(S, S) distance of each output pixel to the nearest kept one, in pixels."""
    return cv2.distanceTransform(1 - keep.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
