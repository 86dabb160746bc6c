"""Crops as batched matrix products, on the device the photo is on.

For proposals that exist only after the RPN. The same windows, weights and order of operations as the CPU backend; the
weights of a region are a dense (S, P) matrix per axis, P being the side of its window in the level it is read from.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, pad

from rar_mmdet.regions.background import Background
from rar_mmdet.regions.cpu import distance_to_mask
from rar_mmdet.regions.windows import HALVING_TAPS, WindowPlan

__all__ = ["TorchBackend"]


class TorchBackend:
    """Cuts the windows of one photo.

    Args:
        image: (C, H, W) uint8 photo.
        chunk_bytes: working memory; as many regions are done together as fit, but at least one.
    """

    def __init__(self, image: Tensor, chunk_bytes: int) -> None:
        self.levels = [image]
        self.chunk_bytes = chunk_bytes

    def level(self, index: int) -> Tensor:
        """The photo halved `index` times: uint8 itself, then float32."""
        while len(self.levels) <= index:
            self.levels.append(halve(self.levels[-1]))
        return self.levels[index]

    def crop(self, plan: WindowPlan, background: Background, masks: NDArray | None) -> Tensor:
        """(R, C, S, S) uint8 crops; float32 throughout, also under `torch.autocast`, whose 11 bits are too few."""
        with torch.autocast(self.levels[0].device.type, enabled=False):
            return self._crop(plan, background, masks)

    def _crop(self, plan: WindowPlan, background: Background, masks: NDArray | None) -> Tensor:
        image = self.levels[0]
        out = torch.empty((len(plan), len(image), plan.size, plan.size), dtype=torch.uint8, device=image.device)
        colour = image.flatten(1).float().mean(dim=1) if plan.needs_colour else None
        order = np.lexsort((plan.step.max(axis=1), plan.level))
        for index in np.unique(plan.level).tolist():
            regions = order[plan.level[order] == index]
            windows = DeviceWindows.of(plan[regions], index, self.level(index))
            rows = torch.from_numpy(regions).to(image.device)
            start = 0
            while start < len(regions):
                chunk = slice(start, start + self._fitting(windows.extent[start:], plan.size))
                crops = self._samples(windows[chunk], index, colour)
                if not background.is_identity:
                    keep = None
                    if masks is not None:
                        keep = [self._kept_by_mask(masks[r], plan[r : r + 1]) for r in regions[chunk]]
                    crops = composite(crops, background, windows.inside[chunk], keep)
                out[rows[chunk]] = crops
                start = chunk.stop
        return out

    def _fitting(self, extent: NDArray[np.int64], size: int) -> int:
        """How many of the first regions, whose windows grow, fit into the working memory."""
        width, height = extent.T
        floats = 3 * (2 * width * height + 2 * height * size + 5 * size * size) + 6 * size * (width + height)
        return max(
            1, int((np.arange(1, len(floats) + 1) * np.maximum.accumulate(floats) * 4 <= self.chunk_bytes).sum())
        )

    def _samples(self, windows: DeviceWindows, index: int, colour: Tensor | None) -> Tensor:
        """(n, C, S, S) uint8: columns first, rounded and saturated in between, then rows, as PIL does."""
        level = self.level(index)
        weights, pixels = [], []
        for axis, length in enumerate((level.shape[2], level.shape[1])):
            reach, low = int(windows.extent[:, axis].max()), windows.low[:, axis]
            weights.append(dense_weights(windows.middle[:, axis], windows.stretch[:, axis], length - low, reach))
            position = low[:, None] + torch.arange(reach, device=level.device)
            pixels.append(position.clamp_(max=length - 1))
        taken = level[:, pixels[1][:, :, None], pixels[0][:, None, :]].float()  # (C, n, Py, Px)
        across = (taken @ weights[0].mT).round_().clamp_(0, 255)  # (C, n, Py, S)
        crops = (weights[1] @ across).clamp_(0, 255).transpose(0, 1)  # (n, C, S, S)
        if colour is not None:
            share = (windows.covered[:, 1, :, None] * windows.covered[:, 0, None, :])[:, None]
            crops = torch.lerp(colour[:, None, None].expand_as(crops), crops, share.expand_as(crops))
        return crops.round().to(torch.uint8)

    def _kept_by_mask(self, mask: NDArray, plan: WindowPlan) -> Tensor | None:
        """(S, S) output pixels of one window that are at least half in the mask; `None` when there are none."""
        device = self.levels[0].device
        plane = (torch.from_numpy(np.array(mask, order="C")) != 0).to(device, torch.uint8)[None] * 255
        backend = TorchBackend(plane, self.chunk_bytes)
        index = int(plan.level[0])
        windows = DeviceWindows.of(plan, index, backend.level(index))
        keep = backend._samples(windows, index, torch.zeros(1, device=device))[0, 0] >= 128
        return keep if bool(keep.any()) else None


@dataclass(frozen=True)
class DeviceWindows:
    """The windows that are read from one level, carried to its device at once: a copy each would cost more than work.

    Axis 1 is (x, y); lengths are in pixels of the level.
    """

    extent: NDArray[np.int64]  # (n, 2), in main memory: pixels that the window and its filter reach
    low: Tensor  # (n, 2) int64: the first of them
    middle: Tensor  # (n, 2, S) float32: where output pixels are sampled, from `low`
    stretch: Tensor  # (n, 2) float32: factor by which the kernel is stretched
    covered: Tensor  # (n, 2, S) float32: `WindowPlan.covered`
    inside: Tensor  # (n, 4) int64: `WindowPlan.inside`

    @classmethod
    def of(cls, plan: WindowPlan, index: int, level: Tensor) -> DeviceWindows:
        """The windows of a plan in one level."""
        shrink = 2.0**-index
        low, extent = extents(plan, index, (level.shape[2], level.shape[1]))
        middle = (plan.centre * shrink - low[:, :, None]).astype(np.float32)
        stretch = np.maximum(plan.step * shrink, 1.0).astype(np.float32)
        arrays = (low, middle, stretch, plan.covered, plan.inside)
        return cls(extent, *(torch.from_numpy(array).to(level.device) for array in arrays))

    def __getitem__(self, regions: slice) -> DeviceWindows:
        return DeviceWindows(*(getattr(self, part.name)[regions] for part in fields(self)))


def extents(plan: WindowPlan, index: int, level_wh: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and number of pixels of the level that each window and its filter reach: two (n, 2) (x, y) arrays."""
    shrink = 2.0**-index
    reach = 2 * np.maximum(plan.step * shrink, 1.0)
    low = np.maximum(np.floor(plan.centre.min(axis=2) * shrink - reach), 0).astype(np.int64)
    high = np.ceil(plan.centre.max(axis=2) * shrink + reach).astype(np.int64)
    return low, np.minimum(high, np.asarray(level_wh)) - low


def dense_weights(middle: Tensor, stretch: Tensor, length: Tensor, reach: int) -> Tensor:
    """(n, S, P) bicubic weights of P pixels for each output pixel; rows sum to 1.

    Args:
        middle: (n, S) where output pixels are sampled, from the first of the P pixels.
        stretch: (n,) factor by which the kernel is stretched.
        length: (n,) how many of the P pixels the photo has.
        reach: P.
    """
    pixel = torch.arange(reach, device=middle.device)
    x = ((pixel + 0.5 - middle[:, :, None]) / stretch[:, None, None]).abs_()
    near = ((1.5 * x - 2.5) * x).mul_(x).add_(1)
    far = (((2.5 - 0.5 * x) * x - 4) * x).add_(2)
    weight = torch.where(x < 1, near, far).masked_fill_((x >= 2) | (pixel >= length[:, None, None]), 0)
    return weight / weight.sum(dim=2, keepdim=True)


def halve(image: Tensor) -> Tensor:
    """Half the size (rounded up), low-passed; not saturated, so that no error builds up over the levels."""
    height, width = image.shape[1:]
    before, after = len(HALVING_TAPS) // 2 - 1, len(HALVING_TAPS) // 2 - 1
    taps = torch.from_numpy(HALVING_TAPS).to(image.device, torch.float32)
    planes = image.float()[:, None]  # (C, 1, H, W)
    planes = pad(planes, (before, after + width % 2, before, after + height % 2), mode="replicate")
    planes = conv2d(planes, taps[None, None, :, None], stride=(2, 1))
    return conv2d(planes, taps[None, None, None, :], stride=(1, 2))[:, 0]


def composite(crops: Tensor, background: Background, inside: Tensor, keep: list[Tensor | None] | None) -> Tensor:
    """The crops where the box (or the mask) is, the background elsewhere; `inside` as in `WindowPlan`."""
    device, size = crops.device, crops.shape[-1]
    pixel = torch.arange(size, device=device)
    x1, y1, x2, y2 = inside.T[:, :, None]
    dx = torch.maximum(x1 - pixel, pixel - (x2 - 1)).clamp_(min=0)  # (n, S)
    dy = torch.maximum(y1 - pixel, pixel - (y2 - 1)).clamp_(min=0)
    distance = torch.hypot(dy[:, :, None].float(), dx[:, None, :].float())[:, None]  # (n, 1, S, S)
    for region, mask in enumerate(keep or []):
        if mask is not None:
            distance[region, 0] = torch.from_numpy(distance_to_mask(mask.cpu().numpy())).to(device)
    share = (1 - distance / (background.feather + 1)).clamp_(min=0)
    painted = background.paint_batch(crops.float()).clamp_(0, 255)
    painted = torch.lerp(painted.round(), crops.float(), share.expand_as(painted)).round_().to(torch.uint8)
    return torch.where(distance == 0, crops, painted)
