"""Where the pixels of a crop come from: windows, pyramid levels and the weights of the antialiased bicubic filter.

Along one axis, output pixel i of a crop covers [start + i * step, start + (i + 1) * step) of the photo, in pixels. It
is sampled at its middle with the bicubic kernel (a = -1/2) stretched by max(step, 1) and renormalised over the pixels
the photo has: the rule of `PIL.Image.resize(box=..., resample=BICUBIC)`. Nothing is rounded to whole pixels on the way.

An output pixel that is not covered entirely by the photo takes the sample of another one (the nearest for `edge`, the
mirror image for `reflect`); for `mean` it is then blended with the fill colour by the share of it that is covered.

Windows much larger than the crop are read from a pyramid of halved photos, so that what a region costs is bounded
whatever the size of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FILLS", "HALVING_TAPS", "WINDOWS", "Taps", "WindowPlan", "plan_windows", "resample_taps"]

WINDOWS = ("square", "pad", "warp")
FILLS = ("mean", "edge", "reflect")

# The low-pass filter of a halving: a Lanczos-3 kernel stretched by two, at half-pixel offsets (12 taps). Box averages
# (the usual `reduce`) let through enough of what lies above the new Nyquist frequency to be 10 grey levels off. Ours.
_OFFSETS = (np.arange(12) - 5.5) / 2
HALVING_TAPS: NDArray[np.float64] = np.sinc(_OFFSETS) * np.sinc(_OFFSETS / 3)
HALVING_TAPS /= HALVING_TAPS.sum()

ROUNDING = 1e-6  # share of an output pixel below which being outside is a rounding error
INSIDE_ROUNDING = 1e-3  # the same, in output pixels, for the sides of the box


@dataclass(frozen=True)
class WindowPlan:
    """The windows of R regions. Axis 1 is (x, y) throughout; lengths are in pixels of the photo."""

    size: int  # S
    photo_wh: tuple[int, int]
    start: NDArray[np.float64]  # (R, 2)
    step: NDArray[np.float64]  # (R, 2)
    centre: NDArray[np.float64]  # (R, 2, S): where each output pixel is sampled
    covered: NDArray[np.float32]  # (R, 2, S) in [0, 1]: share of each output pixel that lies in the photo (and, for
    # `pad`, in the window)
    inside: NDArray[np.int64]  # (R, 4): x1, y1, x2, y2 of the output pixels that the box touches, x2 and y2 excluded
    level: NDArray[np.int64]  # (R,): halvings of the photo to read from

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, regions: NDArray[np.int64] | slice) -> WindowPlan:
        return WindowPlan(
            self.size,
            self.photo_wh,
            self.start[regions],
            self.step[regions],
            self.centre[regions],
            self.covered[regions],
            self.inside[regions],
            self.level[regions],
        )


def plan_windows(
    boxes_xyxy: NDArray[np.float64],
    factors: NDArray[np.float64],
    photo_wh: tuple[int, int],
    *,
    size: int,
    window: str = "square",
    fill: str = "mean",
    reducing_gap: float = 4.0,
) -> WindowPlan:
    """Lay a window around every box.

    Args:
        boxes_xyxy: (R, 4) valid boxes in pixels of the photo.
        factors: (R,) window side / box side.
        photo_wh: width and height of the photo.
        size: S, the side of the crops.
        window: `square`: side = factor x longer box side. `pad`: factor x the box, the shorter side padded with the
            fill. `warp`: factor x the box, each side stretched to S.
        fill: one of `FILLS`.
        reducing_gap: smallest number of pixels per output pixel at which a halved photo is read.
    """
    middle = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    scaled = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * factors[:, None]
    longer = np.broadcast_to(scaled.max(axis=1, keepdims=True), scaled.shape)
    step = (scaled if window == "warp" else longer) / size
    start = middle - step * size / 2
    reach = longer if window == "square" else scaled
    low = np.maximum(middle - reach / 2, 0.0)
    high = np.minimum(middle + reach / 2, np.asarray(photo_wh, dtype=np.float64))

    edges = start[:, :, None] + step[:, :, None] * np.arange(size + 1)
    clipped = np.clip(edges, low[:, :, None], np.maximum(low, high)[:, :, None])
    covered = np.diff(clipped, axis=2) / step[:, :, None]
    covered = np.where(covered > 1 - ROUNDING, 1.0, np.where(covered < ROUNDING, 0.0, covered))
    centre = _sample_centres(start, step, low, high, covered, photo_wh, fill)

    inside = np.empty((len(boxes_xyxy), 4), dtype=np.int64)
    first = np.floor((boxes_xyxy[:, :2] - start) / step + INSIDE_ROUNDING).astype(np.int64)
    last = np.ceil((boxes_xyxy[:, 2:] - start) / step - INSIDE_ROUNDING).astype(np.int64)
    inside[:, :2] = np.clip(first, 0, size - 1)
    inside[:, 2:] = np.clip(last, inside[:, :2] + 1, size)
    level = np.maximum(np.floor(np.log2(step.min(axis=1) / reducing_gap)), 0).astype(np.int64)
    return WindowPlan(size, photo_wh, start, step, centre, covered.astype(np.float32), inside, level)


def _sample_centres(
    start: NDArray[np.float64],
    step: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    covered: NDArray[np.float64],
    photo_wh: tuple[int, int],
    fill: str,
) -> NDArray[np.float64]:
    """(R, 2, S): every output pixel's own middle, or that of the fully covered one that stands in for it."""
    size = covered.shape[2]
    full = covered == 1
    count = full.sum(axis=2, keepdims=True)  # the full ones are neighbours
    first = full.argmax(axis=2)[:, :, None]
    index = np.broadcast_to(np.arange(size), covered.shape)
    if fill == "reflect":
        around = (index - first) % np.maximum(2 * count, 1)
        index = first + np.minimum(around, 2 * count - 1 - around)
    else:
        index = np.clip(index, first, first + count - 1)
    centre = start[:, :, None] + step[:, :, None] * (index + 0.5)
    # Less of the photo than one output pixel is in the window: its middle stands for all.
    sliver = np.clip((low + high) / 2, 0.0, photo_wh)[:, :, None]
    return np.where(count > 0, centre, sliver)


@dataclass(frozen=True)
class Taps:
    """The weighted pixels of one level that make up each output pixel of n regions."""

    index: NDArray[np.int32]  # (n, 2, S, T): columns (axis 1 = 0) and rows (1) of the level
    weight: NDArray[np.float32]  # (n, 2, S, T): sum to 1 over T


def resample_taps(plan: WindowPlan, level: int, level_wh: tuple[int, int]) -> Taps:
    """The taps of windows that are all read from the same level."""
    shrink = 2.0**-level
    centre = plan.centre * shrink
    stretch = np.maximum(plan.step * shrink, 1.0)[:, :, None]
    limit = np.asarray(level_wh, dtype=np.int64)[None, :, None]
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), limit)
    num_taps = int((last - first).max(initial=1))
    offset = ((first + 0.5 - centre) / stretch).astype(np.float32)
    distance = np.abs(offset[..., None] + (np.arange(num_taps) / stretch[..., None]).astype(np.float32))
    index = first[..., None] + np.arange(num_taps)
    weight = bicubic(distance)
    weight *= index < last[..., None]
    total = weight[..., 0].copy()
    for tap in range(1, num_taps):  # in this order, so that taps of weight 0 behind cannot change a bit
        total += weight[..., tap]
    weight /= total[..., None]
    return Taps(np.minimum(index, last[..., None] - 1).astype(np.int32), weight)


def bicubic(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keys' cubic convolution kernel with a = -1/2 (PIL's BICUBIC) at distances >= 0."""
    x = distance
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))
