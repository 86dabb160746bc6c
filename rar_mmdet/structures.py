"""What the stages hand to one another, and the letters used for shapes.

Shapes: B images, R regions of the batch, N shortlist depth, K candidates the ranker sees (K <= N), C categories,
D embedding size, S crop side in pixels, M emitted detections.

Words: `category_ids` are rows of the vocabulary, 0-based, and are MMDet's labels; `similarity` is a cosine;
`probs` are a softmax over the *full* vocabulary; `box_scores` come from the detector; `scores` is what a metric reads.
Boxes are `boxes_xyxy`, float32, in pixels of the original image unless a name says `input`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["RankStatus", "Ranking", "Recognition", "RegionCrops", "Shortlist"]


class RankStatus(IntEnum):
    """How a region's ranking came about."""

    OK = 0  # the reply named every candidate once, or scored each of them
    PARTIAL = 1  # some of the reply was unusable; what was usable leads, the rest keeps retrieval order
    FALLBACK = 2  # nothing was usable; retrieval order stands
    SKIPPED = 3  # the ranker was not asked; retrieval order stands


@dataclass(frozen=True)
class Shortlist:
    """The N closest categories of each of R regions, best first, no repeats within a row."""

    category_ids: Tensor  # (R, N) int64 in [0, C)
    probs: Tensor  # (R, N) float32, softmax over the full vocabulary, non-increasing along N

    def __post_init__(self) -> None:
        ids, probs = tuple(self.category_ids.shape), tuple(self.probs.shape)
        if len(ids) != 2 or ids != probs:
            raise ValueError(f"Shortlist needs two equal (R, N) shapes, got category_ids {ids} and probs {probs}")
        if self.category_ids.dtype != torch.int64:
            raise ValueError(f"Shortlist.category_ids must be int64, got {self.category_ids.dtype}")

    def __len__(self) -> int:
        return self.category_ids.shape[0]

    @property
    def depth(self) -> int:
        """N, the number of categories in each row."""
        return self.category_ids.shape[1]

    def head(self, k: int) -> Shortlist:
        """The best `min(k, N)` categories of each region."""
        return Shortlist(self.category_ids[:, :k], self.probs[:, :k])

    def __getitem__(self, regions: Tensor | slice) -> Shortlist:
        """The rows of the given regions (a slice, an index tensor or a boolean mask)."""
        return Shortlist(self.category_ids[regions], self.probs[regions])


@dataclass(frozen=True)
class Ranking:
    """A ranker's opinion of the K candidates of each of R regions."""

    order: Tensor  # (R, K) int64; each row a permutation of 0..K-1: columns of the shortlist, best first
    log_probs: Tensor | None  # (R, K) float32; column j is shortlist column j; logsumexp over a row is 0
    status: Tensor  # (R,) int64, values of RankStatus

    def __post_init__(self) -> None:
        if self.order.ndim != 2 or self.order.dtype != torch.int64:
            raise ValueError(f"Ranking.order must be (R, K) int64, got {tuple(self.order.shape)} {self.order.dtype}")
        num_regions, k = self.order.shape
        if not torch.equal(
            self.order.sort(dim=1).values, torch.arange(k, device=self.order.device).repeat(num_regions, 1)
        ):
            raise ValueError("Ranking.order: every row must be a permutation of 0..K-1")
        if self.log_probs is not None and self.log_probs.shape != self.order.shape:
            raise ValueError(f"Ranking.log_probs {tuple(self.log_probs.shape)} != order {tuple(self.order.shape)}")
        if tuple(self.status.shape) != (num_regions,):
            raise ValueError(f"Ranking.status must be ({num_regions},), got {tuple(self.status.shape)}")

    def __len__(self) -> int:
        return self.order.shape[0]

    @property
    def has_opinion(self) -> Tensor:
        """(R,) bool: rows in which the ranker said something (status ok or partial)."""
        return (self.status == RankStatus.OK) | (self.status == RankStatus.PARTIAL)

    @staticmethod
    def identity(num_regions: int, k: int, status: RankStatus = RankStatus.SKIPPED) -> Ranking:
        """Retrieval order kept for every region."""
        order = torch.arange(k).repeat(num_regions, 1)
        return Ranking(order, None, torch.full((num_regions,), int(status), dtype=torch.int64))


@dataclass(frozen=True)
class Recognition:
    """Everything known about the regions of one image, and the detections emitted from them."""

    boxes_xyxy: Tensor  # (R, 4) float32, original pixels: the boxes that were recognised
    box_scores: Tensor  # (R,) float32 in [0, 1]; ones when the boxes are given
    shortlist: Shortlist  # (R, N)
    ranking: Ranking  # (R, K)
    scores: Tensor  # (M,) float32, descending
    category_ids: Tensor  # (M,) int64
    region_ids: Tensor  # (M,) int64: which region each detection comes from

    @property
    def ranked_ids(self) -> Tensor:
        """(R, K) int64: category ids of the candidates in the ranker's order."""
        k = self.ranking.order.shape[1]
        return self.shortlist.category_ids[:, :k].gather(1, self.ranking.order.to(self.shortlist.category_ids.device))

    def top(self, category_names: list[str] | tuple[str, ...]) -> list[tuple[str, float]]:
        """The best (name, score) of each region, in the order of the boxes."""
        best: dict[int, tuple[str, float]] = {}
        for region, category, score in zip(
            self.region_ids.tolist(), self.category_ids.tolist(), self.scores.tolist(), strict=True
        ):
            best.setdefault(region, (category_names[category], score))
        return [best.get(r, ("", 0.0)) for r in range(len(self.boxes_xyxy))]


@dataclass(frozen=True)
class RegionCrops:
    """Crops made ahead of recognition, for instance in dataloader workers."""

    encoder: Tensor  # (R, 3, S, S) uint8 RGB, for the encoder
    ranker: Tensor | None = None  # (R, 3, S', S') uint8 RGB, for the ranker; None: cropped when asked
    # What they were cut with, by `cropper_settings`; a recognizer refuses crops cut otherwise. None: not known.
    encoder_settings: dict[str, str] | None = None
    ranker_settings: dict[str, str] | None = None

    def __getitem__(self, regions: Tensor) -> RegionCrops:
        """The crops of the given regions."""
        ranker = None if self.ranker is None else self.ranker[regions]
        return replace(self, encoder=self.encoder[regions], ranker=ranker)
