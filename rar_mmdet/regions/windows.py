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

__all__ = ["FILLS", "HALVING_TAPS", "WINDOWS", "WindowPlan", "halving_taps", "plan_windows"]

WINDOWS = ("square", "pad", "warp", "cover")
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
    # `pad`, in the window); the fill colour has the rest. 1 for fills that are samples of the photo too.
    reach: NDArray[np.int64]  # (R, 2, 2): first and last + 1 of the output pixels with any share; equal if none has
    inside: NDArray[np.int64]  # (R, 4): x1, y1, x2, y2 of the output pixels that the box touches, x2 and y2 excluded
    level: NDArray[np.int64]  # (R,): halvings of the photo to read from

    def __len__(self) -> int:
        return len(self.start)

    @property
    def needs_colour(self) -> bool:
        """Whether any output pixel shows the fill colour."""
        return bool((self.covered < 1).any())

    def __getitem__(self, regions: NDArray[np.int64] | slice) -> WindowPlan:
        return WindowPlan(
            self.size,
            self.photo_wh,
            self.start[regions],
            self.step[regions],
            self.centre[regions],
            self.covered[regions],
            self.reach[regions],
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
            fill. `warp`: factor x the box, each side stretched to S. `cover`: factor x the box, its shorter side S
            output pixels long, and the middle S of its longer side.
        fill: one of `FILLS`.
        reducing_gap: smallest number of pixels per output pixel at which a halved photo is read.
    """
    middle = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    scaled = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * factors[:, None]
    if window == "cover":
        start, step = _covering(middle, scaled, size)
        middle, reach = start + step * size / 2, step * size
    else:
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
    if fill != "mean":
        covered = np.ones_like(covered)
    shown = covered > 0  # neighbours
    shown_range = shown.argmax(axis=2)[:, :, None] + shown.sum(axis=2)[:, :, None] * np.arange(2)

    inside = np.empty((len(boxes_xyxy), 4), dtype=np.int64)
    first = np.floor((boxes_xyxy[:, :2] - start) / step + INSIDE_ROUNDING).astype(np.int64)
    last = np.ceil((boxes_xyxy[:, 2:] - start) / step - INSIDE_ROUNDING).astype(np.int64)
    inside[:, :2] = np.clip(first, 0, size - 1)
    inside[:, 2:] = np.clip(last, inside[:, :2] + 1, size)
    level = np.maximum(np.floor(np.log2(step.min(axis=1) / reducing_gap)), 0).astype(np.int64)
    return WindowPlan(size, photo_wh, start, step, centre, covered.astype(np.float32), shown_range, inside, level)


def _covering(
    middle: NDArray[np.float64], sides: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and step, (R, 2) each, of windows that take the middle S of the longer side.

    Rounded as torchvision's `Resize(S)` and `CenterCrop(S)` do, which open_clip's preprocessing is made of: the longer
    side becomes a whole number of output pixels (rounded down), and the first of its S middle ones too (half to even).
    """
    resized = np.floor(size * sides / sides.min(axis=1, keepdims=True))
    step = sides / resized
    return middle - sides / 2 + np.round((resized - size) / 2) * step, step


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


def halving_taps(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The pixels of a line that make up each of the (length + 1) // 2 of the halved one; its ends are repeated.

    Returns first and count, (n,), and weight, (n, T): see `rar_mmdet.regions.kernels.axis_taps`.
    """
    half = (length + 1) // 2
    before = len(HALVING_TAPS) // 2 - 1
    source = np.clip(2 * np.arange(half)[:, None] - before + np.arange(len(HALVING_TAPS)), 0, length - 1)
    first, count = source[:, 0], source[:, -1] - source[:, 0] + 1
    weight = np.zeros((half, len(HALVING_TAPS)))
    np.add.at(weight, (np.arange(half)[:, None], source - first[:, None]), HALVING_TAPS)
    return first, count, weight.astype(np.float32)
