"""`RegionCropper`: a photo and its boxes -> the crops an encoder or a ranker looks at."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.regions.background import Background, NoBackground
from rar_mmdet.regions.boxes import Boxes, validate_boxes
from rar_mmdet.regions.cpu import CpuBackend
from rar_mmdet.regions.device import TorchBackend
from rar_mmdet.regions.scale import FixedScale, ScalePolicy
from rar_mmdet.regions.windows import FILLS, WINDOWS, plan_windows

__all__ = ["RegionCropper"]

BACKENDS = ("auto", "cpu", "torch")


class RegionCropper:
    """Crop, rescale by object size, and blur what is not the object (paper sections 3.2 and C.3).

    Holds settings only: cheap to build, to pickle and to copy to data-loader workers.

    Args:
        size: S, the side of the crops in pixels.
        scale: How much larger than the box the window is; `None` is the box itself (`FixedScale(1)`).
        background: What is shown outside the box; `None` is the photo (`NoBackground`).
        window: `square` around the box centre with side = scale x longer box side; `pad`: the scaled box with its
            aspect, the rest filled; `warp`: the scaled box stretched to a square.
        fill: What stands where the photo does not reach (and beside a padded window): its `mean` colour, its `edge`
            pixels repeated, or its mirror image (`reflect`).
        backend: `cpu`, `torch`, or `auto`: `torch` for photos on an accelerator, else `cpu`. They agree within 2 grey
            levels.
        reducing_gap: Smallest number of pixels per output pixel at which a halved photo is read, like `reducing_gap` of
            PIL's `thumbnail`; the first halving is used for windows of twice that many times the crop. At 4 crops stay
            within 2 grey levels of PIL's `resize` of the full photo but for single pixels at hard edges; at 2 a few in
            ten thousand values are up to 8 off, and the largest windows take less time.
        chunk_mib: Working memory of the torch backend in MiB; regions are done in chunks that fit.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        scale: ScalePolicy | None = None,
        background: Background | None = None,
        window: str = "square",
        fill: str = "mean",
        backend: str = "auto",
        reducing_gap: float = 4.0,
        chunk_mib: float = 256,
    ) -> None:
        for name, value, known in (("window", window, WINDOWS), ("fill", fill, FILLS), ("backend", backend, BACKENDS)):
            if value not in known:
                raise ValueError(f"RegionCropper: {name}={value!r} is not one of {', '.join(known)}")
        if not chunk_mib > 0:
            raise ValueError(f"RegionCropper: chunk_mib={chunk_mib!r} must be > 0")
        if not reducing_gap >= 1:
            raise ValueError(f"RegionCropper: reducing_gap={reducing_gap!r} must be >= 1")
        self.size = _check_size(size)
        self.scale = FixedScale(1.0) if scale is None else scale
        self.background = NoBackground() if background is None else background
        self.window, self.fill, self.backend = window, fill, backend
        self.reducing_gap, self.chunk_mib = reducing_gap, chunk_mib

    def with_size(self, size: int) -> RegionCropper:
        """The same policies at another side; σ and feather, which are in output pixels, stay."""
        other = copy.copy(self)
        other.size = _check_size(size)
        return other

    def with_policies(self, scale: ScalePolicy, background: Background) -> RegionCropper:
        """The same size, window and fill with another scale policy and background."""
        other = copy.copy(self)
        other.scale, other.background = scale, background
        return other

    def crop(self, image: NDArray | Tensor, boxes_xyxy: Boxes, masks: NDArray | Tensor | None = None) -> Tensor:
        """Cut, rescale and blur the regions of one photo.

        Args:
            image: (H, W, 3) array or (3, H, W) tensor, RGB; uint8, or floats in [0, 1].
            boxes_xyxy: (R, 4) boxes in pixels of `image`, which must be the original photo for the scale policies to
                see original areas.
            masks: (R, H, W) boolean masks, used by a background that `uses_mask`.

        Returns:
            (R, 3, S, S) uint8 RGB crops; on `image`'s device with the torch backend, else in main memory.

        Raises:
            InvalidBoxError: A box is not finite, inverted, empty or entirely outside the photo.
            ValueError: The image or the masks have another shape or range.
        """
        photo_hw = _photo_hw(image)
        boxes = validate_boxes(boxes_xyxy, photo_hw)
        masks = self._check_masks(masks, len(boxes), photo_hw)
        plan = plan_windows(
            boxes,
            self.scale(boxes),
            photo_hw[::-1],
            size=self.size,
            window=self.window,
            fill=self.fill,
            reducing_gap=self.reducing_gap,
        )
        on_accelerator = isinstance(image, Tensor) and image.device.type != "cpu"
        if self.backend == "torch" or (self.backend == "auto" and on_accelerator):
            backend = TorchBackend(_to_tensor(image), int(self.chunk_mib * 2**20))
            return backend.crop(plan, self.background, masks)
        out = np.empty((len(boxes), 3, self.size, self.size), dtype=np.uint8)
        CpuBackend(_to_array(image)).crop(plan, self.background, masks, out)
        return torch.from_numpy(out)

    def _check_masks(self, masks: NDArray | Tensor | None, num_boxes: int, photo_hw: tuple[int, int]) -> NDArray | None:
        if masks is None or not self.background.uses_mask or self.background.is_identity:
            return None
        if tuple(masks.shape) != (num_boxes, *photo_hw):
            raise ValueError(
                f"masks must be (R, H, W) = {(num_boxes, *photo_hw)}, one per box, got {tuple(masks.shape)}"
            )
        return masks.cpu().numpy() if isinstance(masks, Tensor) else masks

    def __repr__(self) -> str:
        return (
            f"RegionCropper(size={self.size}, window={self.window!r}, fill={self.fill!r}, backend={self.backend!r}, "
            f"reducing_gap={self.reducing_gap:g})"
        )


def _check_size(size: int) -> int:
    if int(size) != size or size < 1:
        raise ValueError(f"RegionCropper: size={size!r} must be a whole number of pixels >= 1")
    return int(size)


def _photo_hw(image: NDArray | Tensor) -> tuple[int, int]:
    shape = tuple(image.shape)
    channels = shape[0 if isinstance(image, Tensor) else -1] if len(shape) == 3 else None
    if channels != 3 or min(shape) < 1:
        raise ValueError(
            f"image must be an (H, W, 3) RGB array or a (3, H, W) RGB tensor, got {type(image).__name__} {shape}; "
            "rar_mmdet.regions.read_image reads grey, RGBA and 16-bit files as RGB"
        )
    return shape[1:] if isinstance(image, Tensor) else shape[:2]


def _to_array(image: NDArray | Tensor) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 in main memory."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).permute(1, 2, 0).numpy()
    pixels = image
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"image must be uint8, or floats in [0, 1], got {pixels.dtype} in {pixels.min()}..{pixels.max()}"
        )
    return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)


def _to_tensor(image: NDArray | Tensor) -> Tensor:
    """(3, H, W) uint8 on the device the image is on."""
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        return image
    if isinstance(image, Tensor) and image.is_floating_point() and bool(((image >= 0) & (image <= 1)).all()):
        return (image.float() * 255).round().to(torch.uint8)
    pixels = _to_array(image)  # also refuses what cannot be a photo
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)
