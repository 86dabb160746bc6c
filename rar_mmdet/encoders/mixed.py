"""Crops and boxes of the photo together: one vector that holds both, so that cosines are a mean of both opinions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rar_mmdet.encoders.base import Encoder, RegionEncoder
from rar_mmdet.errors import ConfigError

__all__ = ["MixedEncoder"]


class MixedEncoder:
    """What the crop shows and what the photo says of the box, mixed.

    Vectors are [√w · crop, √(1 - w) · box], those of texts likewise, so that all have unit length and a cosine is
    w · (cosine of the crop) + (1 - w) · (cosine of the box). The two encoders may be of different models and widths
    (ours; F-VLM, arXiv 2209.15639, mixes scores of two sources, and not their vectors). At weight 0 and 1 it is one of
    the two alone, with its vectors and fingerprint, and the other encodes nothing.

    Args:
        crops: an `Encoder` of crops; its size is the cropper's.
        regions: an encoder of boxes of photos, `RegionEncoder`. Of the same weights as `crops`, it holds them a second
            time, and texts are encoded by both.
        weight: w in [0, 1], of the crop.

    Raises:
        ConfigError: a value is of no use.
    """

    def __init__(self, *, crops: Encoder, regions: Encoder, weight: float) -> None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise ConfigError(f"MixedEncoder: weight must be in [0, 1], 1 for the crop alone, got {weight!r}")
        if isinstance(crops, RegionEncoder | MixedEncoder):
            raise ConfigError(f"MixedEncoder: crops={crops!r} is no encoder of crops; OpenClipEncoder is one")
        if not isinstance(regions, RegionEncoder):
            raise ConfigError(
                f"MixedEncoder: regions={regions!r} does not encode boxes of photos; FGCLIP2RegionEncoder, "
                "OpenClipRegionEncoder and RegionClipEncoder do"
            )
        self.crops, self.regions, self.weight = crops, regions, float(weight)

    def __repr__(self) -> str:
        return f"MixedEncoder(crops={self.crops!r}, regions={self.regions!r}, weight={self.weight:g})"

    @property
    def _parts(self) -> list[tuple[float, Encoder]]:
        """Weight and encoder of those that take part."""
        parts = [(self.weight, self.crops), (1 - self.weight, self.regions)]
        return [(weight, encoder) for weight, encoder in parts if weight]

    @property
    def dim(self) -> int:
        """D, the sum of both."""
        return sum(encoder.dim for _, encoder in self._parts)

    @property
    def logit_scale(self) -> float:
        """The mean of both, by weight."""
        return sum(weight * encoder.logit_scale for weight, encoder in self._parts)

    @property
    def fingerprint(self) -> str:
        """Both fingerprints and the weight; of one that is alone, its own."""
        names = [encoder.fingerprint for _, encoder in self._parts]
        return names[0] if len(names) == 1 else f"mix-{self.weight:g}:{names[0]}+{names[1]}"

    @property
    def image_size(self) -> int:
        """S of the encoder of crops."""
        return self.crops.image_size

    def missing_assets(self) -> list[str]:
        """What must be fetched before it can load: what, where it is looked for, how to get it. Cheap."""
        return list(dict.fromkeys(text for _, encoder in self._parts for text in encoder.missing_assets()))

    def load(self, device: torch.device | str | None = None) -> MixedEncoder:
        """Be ready on `device`; returns self."""
        for _, encoder in self._parts:
            encoder.load(device)
        return self

    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors: to the encoder of boxes, photos with one box."""
        return self._mixed([encoder.encode_images(crops) for _, encoder in self._parts])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, D) float32 unit vectors; T may be 0."""
        return self._mixed([encoder.encode_texts(texts) for _, encoder in self._parts])

    def mix(self, crops: Callable[[], Tensor], regions: Callable[[], Tensor]) -> Tensor:
        """The vectors of R regions.

        Args:
            crops: gives (R, D') unit vectors of their crops, by the encoder `crops`; not called at weight 0.
            regions: gives (R, D'') unit vectors of their boxes, by the encoder `regions`; not called at weight 1.

        Returns:
            (R, D) float32 unit vectors.
        """
        wanted = [crops] * (self.weight > 0) + [regions] * (self.weight < 1)
        return self._mixed([vectors() for vectors in wanted])

    def _mixed(self, vectors: list[Tensor]) -> Tensor:
        if len(vectors) == 1:
            return vectors[0]
        weights = [weight**0.5 for weight, _ in self._parts]
        device = vectors[0].device
        return torch.cat([w * v.to(device) for w, v in zip(weights, vectors, strict=True)], dim=1)
