"""What a retriever's encoder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rar_mmdet.boxes import Boxes
from rar_mmdet.files.images import ImageSource

__all__ = ["Encoder", "RegionEncoder"]


class Encoder(Protocol):
    """Crops and texts to unit vectors of one space, so that cosines between them mean something.

    A class of yours needs these members and no others; it need not inherit anything. Several threads may call it at
    once.
    """

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        ...

    @property
    def logit_scale(self) -> float:
        """1 / τ, what cosines are multiplied by before the softmax (100 for OpenAI's CLIP)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for encoders that give equal vectors, and only for these: a memory of another one is refused.

        It follows weights, preprocessing, tokenizer and precision, and not the place of the files.
        """
        ...

    @property
    def image_size(self) -> int:
        """S, side in pixels of the crops it is made for."""
        ...

    def missing_assets(self) -> list[str]:
        """What must be fetched before it can load: what, where it is looked for, how to get it. Cheap."""
        ...

    def load(self, device: torch.device | str | None = None) -> object:
        """Be ready on `device`; `None` leaves the choice to the encoder. What it returns is not used."""
        ...

    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors; R may be 0."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, D) float32 unit vectors; T may be 0."""
        ...


@runtime_checkable
class RegionEncoder(Protocol):
    """An `Encoder` that also has this method: a recogniser gives it photos with their boxes, and cuts no crops for it.

    `encode_images` then serves whole pictures, in the same space: exemplars without a box, for instance. Its
    fingerprint is another one than that of an encoder of crops, even with the same weights.
    """

    def encode_regions(self, image: ImageSource, boxes_xyxy: Boxes) -> Tensor:
        """Unit vectors of the boxes of one photo, by one forward pass for all of them.

        Args:
            image: what `rar_mmdet.files.read_image` takes; the original, upright photo.
            boxes_xyxy: (R, 4) in pixels of it; R may be 0.

        Returns:
            (R, D) float32.

        Raises:
            InvalidBoxError: a box is not finite, has no area or lies outside the photo.
        """
        ...
