"""Crops on the CPU: one region at a time, for data-loader workers and photos that are in main memory.

A separable resampling is two weighted sums of rows with a transposition in between. `embedding_bag` of PyTorch is
exactly that sum, vectorised (FBGEMM) and without a copy per tap: several times faster than PIL's resize.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.regions.background import Background
from rar_mmdet.regions.windows import HALVING_TAPS, WindowPlan, resample_taps

__all__ = ["CpuBackend"]

REGIONS_PER_BATCH = 32  # regions whose weights are computed together: a few MB
ROW_MULTIPLE = 16  # window heights are rounded up to this, so that FBGEMM compiles few kernels


class CpuBackend:
    """Cuts the windows of one photo.

    Args:
        image: (H, W, 3) uint8 RGB photo, or one (H, W) plane.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.levels: list[NDArray] = [image]
        self._turned_levels: dict[int, NDArray] = {}

    def level(self, index: int) -> NDArray:
        """The photo halved `index` times: uint8 itself, then float32."""
        while len(self.levels) <= index:
            self.levels.append(halve(self.levels[-1]))
        return self.levels[index]

    def crop(
        self, plan: WindowPlan, fill: str, background: Background, masks: NDArray | None, out: NDArray[np.uint8]
    ) -> None:
        """Write the crops of all R regions to `out`, (R, 3, S, S) uint8."""
        needs_colour = fill == "mean" and bool((plan.covered < 1).any())
        colour = np.array(cv2.mean(self.levels[0])[:3], dtype=np.float32) if needs_colour else None
        with one_thread():
            for region, crop in self.samples(plan, colour):
                if not background.is_identity:
                    keep = None if masks is None else kept_by_mask(masks[region], plan[region : region + 1])
                    crop = composite(crop, background, plan.inside[region], keep)
                cv2.split(crop, list(out[region]))

    def samples(self, plan: WindowPlan, colour: NDArray | None) -> Iterator[tuple[int, NDArray]]:
        """Each region, in the order that is fastest, with its (S, S[, 3]) crop; `colour` where the photo ends."""
        order = np.lexsort((plan.step.max(axis=1), plan.level))
        for index in np.unique(plan.level).tolist():
            turned = self._turned(index)
            of_level = order[plan.level[order] == index]
            for begin in range(0, len(of_level), REGIONS_PER_BATCH):
                batch = of_level[begin : begin + REGIONS_PER_BATCH]
                taps = resample_taps(plan[batch], index, (turned.shape[0], turned.shape[1]))
                for row, region in enumerate(batch.tolist()):
                    own = taps.index[row], taps.weight[row]
                    if colour is None or plan.covered[region].min() == 1:
                        yield region, resample(turned, *own)
                    else:
                        yield region, resample_filled(turned, *own, plan.covered[region], colour)

    def _turned(self, index: int) -> NDArray:
        """The transposed level, (W, H[, 3]): columns are resampled first."""
        if index not in self._turned_levels:
            self._turned_levels[index] = cv2.transpose(self.level(index))
        return self._turned_levels[index]


@contextmanager
def one_thread() -> Iterator[None]:
    """Turn PyTorch's threads off: a sum of rows takes 50 us, less than threads take to meet on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resample(turned: NDArray, index: NDArray[np.int32], weight: NDArray[np.float32]) -> NDArray:
    """(S, S[, 3]) uint8 samples of a transposed level: columns first, saturated in between, then rows, as PIL does."""
    return _resample(turned, (index[0], index[1]), (weight[0], weight[1]))


def resample_filled(
    turned: NDArray,
    index: NDArray[np.int32],
    weight: NDArray[np.float32],
    covered: NDArray[np.float32],
    colour: NDArray,
) -> NDArray:
    """`resample` where the photo reaches; the fill colour elsewhere, and its share of pixels reached in part."""
    size = covered.shape[1]
    reached = [np.flatnonzero(line) for line in covered]
    if not (len(reached[0]) and len(reached[1])):
        return np.full((size, size, *turned.shape[2:]), np.rint(colour), dtype=np.uint8)
    (x1, x2), (y1, y2) = ((int(line[0]), int(line[-1]) + 1) for line in reached)
    part = _resample(turned, (index[0, x1:x2], index[1, y1:y2]), (weight[0, x1:x2], weight[1, y1:y2]))
    for y in np.flatnonzero(covered[1, y1:y2] < 1):
        part[y] = np.rint(colour + (part[y] - colour) * covered[1, y1 + y])
    for x in np.flatnonzero(covered[0, x1:x2] < 1):
        part[:, x] = np.rint(colour + (part[:, x] - colour) * covered[0, x1 + x])
    value = np.rint(colour).tolist()
    return cv2.copyMakeBorder(part, y1, size - y2, x1, size - x2, cv2.BORDER_CONSTANT, value=value)


@functools.lru_cache(maxsize=1024)
def _bag_starts(count: int, num_taps: int) -> Tensor:
    return torch.arange(0, count * num_taps, num_taps, dtype=torch.int32)


def _resample(
    turned: NDArray, index: tuple[NDArray[np.int32], NDArray[np.int32]], weight: tuple[NDArray, NDArray]
) -> NDArray:
    (cols, rows), (col_weights, row_weights) = index, weight
    x1, x2 = int(cols.min()), int(cols.max()) + 1
    y1, y2 = int(rows.min()), int(rows.max()) + 1
    y2 = min(y1 + -(-(y2 - y1) // ROW_MULTIPLE) * ROW_MULTIPLE, turned.shape[1])
    window = torch.from_numpy(turned[x1:x2, y1:y2])
    across = weighted_rows(window, cols - np.int32(x1), col_weights)  # (S, h[, 3])
    down = cv2.transpose(across.numpy())  # (h, S[, 3])
    samples = weighted_rows(torch.from_numpy(down), rows - np.int32(y1), row_weights)
    return cv2.convertScaleAbs(samples.numpy())  # rounds; nothing is negative


def kept_by_mask(mask: NDArray, plan: WindowPlan) -> NDArray[np.bool_] | None:
    """(S, S) output pixels of one window that are at least half in an (H, W) mask; `None` when there are none."""
    plane = np.ascontiguousarray(mask != 0).view(np.uint8) * np.uint8(255)
    ((_, covered),) = CpuBackend(plane).samples(plan, np.zeros((), dtype=np.float32))
    keep = covered >= 128
    return keep if keep.any() else None


def weighted_rows(image: Tensor, index: NDArray[np.int32], weight: NDArray[np.float32]) -> Tensor:
    """Row i of the result is the sum over t of weight[i, t] * image[index[i, t]], saturated to 0..255."""
    count, num_taps = index.shape
    table = image.float().contiguous().view(len(image), -1)
    rows = torch.embedding_bag(
        table,
        torch.from_numpy(index.reshape(-1)),
        _bag_starts(count, num_taps),
        mode=0,  # sum
        per_sample_weights=torch.from_numpy(weight.reshape(-1)),
    )[0]
    return rows.clamp_(0, 255).reshape(count, *image.shape[1:])


def halve(image: NDArray) -> NDArray:
    """Half the size (rounded up), low-passed; not saturated, so that no error builds up over the levels."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    taps, anchor = HALVING_TAPS.astype(np.float32), len(HALVING_TAPS) // 2 - 1
    for _ in range(2):
        rows = cv2.filter2D(image, cv2.CV_32F, taps[:, None], anchor=(0, anchor), borderType=cv2.BORDER_REPLICATE)
        image = cv2.transpose(np.ascontiguousarray(rows[::2]))
    return image


def composite(
    crop: NDArray, background: Background, inside: NDArray[np.int64], keep: NDArray[np.bool_] | None
) -> NDArray:
    """The crop where the box (or what `keep` says) is, the background elsewhere."""
    painted = background.paint(crop)
    if background.feather:
        share = (distance_to_box(inside, len(crop)) if keep is None else distance_to_mask(keep)) / (
            background.feather + 1
        )
        share = np.clip(1 - share, 0, 1, dtype=np.float32)[:, :, None]
        painted = cv2.convertScaleAbs(painted + share * (crop.astype(np.float32) - painted))
    if keep is None:
        x1, y1, x2, y2 = inside
        painted[y1:y2, x1:x2] = crop[y1:y2, x1:x2]
    else:
        painted[keep] = crop[keep]
    return painted


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
