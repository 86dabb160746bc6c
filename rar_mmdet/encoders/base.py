"""What an encoder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Encoder"]


class Encoder(Protocol):
    """Crops and texts to unit vectors of one space. Loads at the first prediction."""

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        ...

    @property
    def logit_scale(self) -> float:
        """The learned scale of cosines, 1 / temperature."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with everything that changes a vector."""
        ...

    @property
    def image_size(self) -> int:
        """S, the side in pixels of the crops it takes."""
        ...

    def missing_assets(self) -> list[str]:
        """What has to be fetched before it can load, one line each."""
        ...

    def load(self, device: torch.device | str | None = None) -> Any:
        """Load on a device, or move there; doing so again costs nothing."""
        ...

    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, D) float32 unit vectors."""
        ...
