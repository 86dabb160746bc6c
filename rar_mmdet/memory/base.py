"""What a recogniser needs of a memory, and what a memory needs of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from rar_mmdet.structures import Shortlist

__all__ = ["EntryEncoder", "MemorySource", "MixingEncoder", "PhotoEncoder", "Shortlister"]


class EntryEncoder(Protocol):
    """The part of an `Encoder` that a memory is built by; stages do not import one another."""

    @property
    def fingerprint(self) -> str:
        """Equal for encoders that give equal vectors, and only for these."""
        ...

    @property
    def logit_scale(self) -> float:
        """1 / τ, what cosines are multiplied by before the softmax."""
        ...

    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, D) float32 unit vectors."""
        ...


@runtime_checkable
class PhotoEncoder(Protocol):
    """The part of a `RegionEncoder` that exemplars are encoded by; stages do not import one another."""

    def encode_regions(self, image: Any, boxes_xyxy: Any) -> Tensor:
        """(R, D) float32 unit vectors of (R, 4) boxes of one photo."""
        ...


@runtime_checkable
class MixingEncoder(Protocol):
    """The part of a `MixedEncoder` that exemplars are encoded by; stages do not import one another."""

    crops: EntryEncoder
    regions: PhotoEncoder

    def mix(self, crops: Callable[[], Tensor], regions: Callable[[], Tensor]) -> Tensor:
        """(R, D) float32 unit vectors of what gives those of crops and what gives those of boxes, (R, ...) each."""
        ...


class Shortlister(Protocol):
    """Finds the categories that are closest to a region."""

    def search(self, queries: Tensor, depth: int) -> Shortlist:
        """The `depth` most probable categories of each query, fewer if there are fewer.

        Args:
            queries: (R, D) float32 unit vectors.
            depth: N.
        """
        ...


class MemorySource(Protocol):
    """A recipe for a memory, or a ready one."""

    def prepare(self, encoder: EntryEncoder, category_names: Sequence[str]) -> Shortlister:
        """The memory of these names by this encoder; a ready one checks that it is of them.

        Args:
            encoder: an `Encoder`, loaded when the recipe needs it.
            category_names: the vocabulary, in label order.

        Raises:
            MemoryMismatchError: a ready memory is of other names or another encoder.
        """
        ...
