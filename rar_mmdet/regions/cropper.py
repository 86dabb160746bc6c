"""`RegionCropper`: a photo and its boxes -> the crops an encoder or a ranker looks at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rar_mmdet.errors import ConfigError, InvalidBoxError
from rar_mmdet.files.images import ImageSource, as_photo, photo_hw
from rar_mmdet.regions.background import Background, NoBackground
from rar_mmdet.regions.boxes import Boxes, validate_boxes
from rar_mmdet.regions.cpu import CpuBackend
from rar_mmdet.regions.device import TorchBackend
from rar_mmdet.regions.scale import FixedScale, ScalePolicy
from rar_mmdet.regions.windows import FILLS, WINDOWS, plan_windows

__all__ = ["RegionCropper"]

BACKENDS = ("auto", "cpu", "torch")


@dataclass(frozen=True, kw_only=True)
class RegionCropper:
    """Crop, rescale by object size, and blur what is not the object (paper sections 3.2 and C.3).

    Holds settings only: cheap to build, to pickle and to copy to data-loader workers. Two croppers are equal, and their
    `repr` is the same, when they give the same crops; `backend` and `chunk_mib` therefore take no part in either.

    Args:
        size: S, the side of the crops in pixels. `None`: the side its encoder takes; a recognizer fills that in.
        scale: How much larger than the box the window is; `None` is the box itself (`FixedScale(1)`).
        background: What is shown outside the box; `None` is the photo (`NoBackground`).
        window: `square` around the box centre with side = scale x longer box side; `pad`: the scaled box with its
            aspect, the rest filled; `warp`: the scaled box stretched to a square; `cover`: the scaled box with its
            aspect, its shorter side as long as the crop and the ends of the longer one cut off. Of a whole photo at
            scale 1 that is open_clip's own preprocessing (short side to S, centre crop); `pad` shows all of it.
        fill: What stands where the photo does not reach (and beside a padded window): its `mean` colour, its `edge`
            pixels repeated, or its mirror image (`reflect`).
        backend: `cpu`, `torch`, or `auto`: `torch` for photos on an accelerator, else `cpu`. They agree within 2 grey
            levels.
        reducing_gap: Smallest number of pixels per output pixel at which a halved photo is read, like `reducing_gap` of
            PIL's `thumbnail`; the first halving is used for windows of twice that many times the crop. At 4 crops stay
            within 2 grey levels of PIL's `resize` of the full photo but for single pixels at hard edges; at 2 a few in
            ten thousand values are up to 8 off, and the largest windows take less time.
        chunk_mib: Working memory of the torch backend in MiB; regions are done in chunks that fit. `None`: 1024 on an
            accelerator, else 256 (ours: on an H100 300 crops of 336 px took 112 ms at 256 and 63 ms at 1024).

    Raises:
        ConfigError: a value is of no use; the message names it.
    """

    size: int | None = None
    scale: ScalePolicy = field(default_factory=FixedScale)
    background: Background = field(default_factory=NoBackground)
    window: str = "square"
    fill: str = "mean"
    backend: str = field(default="auto", compare=False, repr=False)
    reducing_gap: float = 4.0
    chunk_mib: float | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        known = {"window": WINDOWS, "fill": FILLS, "backend": BACKENDS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"RegionCropper: {name}={getattr(self, name)!r} is not one of {', '.join(values)}")
        if self.chunk_mib is not None and not self.chunk_mib > 0:
            raise ConfigError(f"RegionCropper: chunk_mib={self.chunk_mib!r} must be > 0")
        if not self.reducing_gap >= 1:
            raise ConfigError(f"RegionCropper: reducing_gap={self.reducing_gap!r} must be >= 1")
        object.__setattr__(self, "reducing_gap", float(self.reducing_gap))
        object.__setattr__(self, "size", None if self.size is None else _check_size(self.size))
        if self.scale is None:  # as configs write it
            object.__setattr__(self, "scale", FixedScale())
        if self.background is None:
            object.__setattr__(self, "background", NoBackground())

    def with_size(self, size: int) -> RegionCropper:
        """The same picture at another side: σ and feather of the background grow and shrink with it.

        They are in output pixels, so that what is blurred to a colour at 224 px would show stripes again at 490 px if
        they stayed. A cropper without a size takes this one; its σ and feather are in pixels of it already.
        """
        size = _check_size(size)
        if self.size is None:
            return replace(self, size=size)
        return replace(self, size=size, background=self.background.at_size(size / self.size))

    def crop(self, image: ImageSource, boxes_xyxy: Boxes, masks: NDArray | Tensor | None = None) -> Tensor:
        """Cut, rescale and blur the regions of one photo.

        Args:
            image: what `rar_mmdet.files.images.read_image` takes: an (H, W, 3) RGB array, a (3, H, W) RGB tensor, a
                path, ... It must be the original photo for the scale policies to see original areas.
            boxes_xyxy: (R, 4) boxes in pixels of `image`.
            masks: (R, H, W) boolean masks, used by a background that `uses_mask`.

        Returns:
            (R, 3, S, S) uint8 RGB crops; on `image`'s device with the torch backend, else in main memory.

        Raises:
            ImageReadError: The image is missing, damaged, or of another shape or range.
            InvalidBoxError: A box is not finite, inverted, empty or entirely outside the photo, or the masks are not
                one for each box.
            ConfigError: The cropper has no size yet.
        """
        if self.size is None:
            raise ConfigError(
                "RegionCropper(size=None) takes the side of an encoder and has none yet; give size=224, or use "
                "cropper.with_size(encoder.image_size)"
            )
        photo = as_photo(image)
        boxes = validate_boxes(boxes_xyxy, photo_hw(photo))
        masks = self._check_masks(masks, len(boxes), photo_hw(photo))
        plan = plan_windows(
            boxes,
            self.scale(boxes),
            photo_hw(photo)[::-1],
            size=self.size,
            window=self.window,
            fill=self.fill,
            reducing_gap=self.reducing_gap,
        )
        on_accelerator = isinstance(photo, Tensor) and photo.device.type != "cpu"
        if self.backend == "torch" or (self.backend == "auto" and on_accelerator):
            chunk_mib = self.chunk_mib or (1024 if on_accelerator else 256)
            return TorchBackend(_to_tensor(photo), int(chunk_mib * 2**20)).crop(plan, self.background, masks)
        out = np.empty((len(boxes), 3, self.size, self.size), dtype=np.uint8)
        # Of PyTorch's threads: a data loader's worker has one, and a process of its own for each photo.
        CpuBackend(_to_array(photo)).crop(plan, self.background, masks, out, torch.get_num_threads())
        return torch.from_numpy(out)

    def _check_masks(self, masks: NDArray | Tensor | None, num_boxes: int, photo_hw: tuple[int, int]) -> NDArray | None:
        if masks is None or not self.background.uses_mask or self.background.is_identity:
            return None
        masks = masks.cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
        if masks.shape != (num_boxes, *photo_hw):
            raise InvalidBoxError(f"masks must be (R, H, W) = {(num_boxes, *photo_hw)}, one per box, got {masks.shape}")
        if masks.dtype.kind == "f" and not ((masks == 0) | (masks == 1)).all():
            raise InvalidBoxError("masks must be true inside and false outside, got floats; give masks > 0.5")
        return masks


def _check_size(size: int) -> int:
    try:
        whole = int(size) == size and size >= 1
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ConfigError(f"RegionCropper: size={size!r} must be a whole number of pixels >= 1")
    return int(size)


def _to_array(photo: NDArray[np.uint8] | Tensor) -> NDArray[np.uint8]:
    """(H, W, 3) in main memory."""
    if isinstance(photo, Tensor):
        photo = photo.permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(photo)


def _to_tensor(photo: NDArray[np.uint8] | Tensor) -> Tensor:
    """(3, H, W) on the device the photo is on."""
    if isinstance(photo, Tensor):
        return photo
    return torch.from_numpy(np.array(photo, order="C")).permute(2, 0, 1)
