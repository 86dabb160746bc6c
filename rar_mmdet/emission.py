"""Which (region, category) pairs of an image become detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import nms

from rar_mmdet.structures import Shortlist

__all__ = ["FOUND_BOXES", "BestPerRegion", "Emission", "Emitted", "TopPairs"]


@dataclass(frozen=True)
class Emitted:
    """M detections of one image, best first."""

    region_ids: Tensor  # (M,) int64
    columns: Tensor  # (M,) int64: shortlist column of the category
    scores: Tensor  # (M,) float32, descending


class Emission(Protocol):
    """A rule that chooses detections."""

    @property
    def depth(self) -> int:
        """Shortlist columns it may look at; more do not change its choice."""
        ...

    def select(self, scores: Tensor, category_ids: Tensor, boxes_xyxy: Tensor, box_scores: Tensor) -> Emitted:
        """Choose among the pairs of one image.

        Args:
            scores: (R, N) float32 category scores in [0, 1].
            category_ids: (R, N) int64, no repeats within a row.
            boxes_xyxy: (R, 4) float32.
            box_scores: (R,) float32 in [0, 1].
        """
        ...

    def can_reach(self, shortlist: Shortlist, num_candidates: int, box_scores: Tensor) -> Tensor:
        """(R,) bool: regions of one image where a ranker's opinion can still change what is chosen, whatever it says.

        Args:
            shortlist: of the image's R regions.
            num_candidates: K, the best columns a ranker may re-order; their mass stays the same.
            box_scores: (R,) float32 in [0, 1].
        """
        ...


def _combine(scores: Tensor, box_scores: Tensor, weight: float) -> Tensor:
    """(R, N) final scores s^(1-g) * box_score^g from category scores (R, N) and box scores (R,), both in [0, 1]."""
    if weight == 0:
        return scores
    return scores.pow(1 - weight) * box_scores.clamp_min(0).pow(weight)[:, None]


@dataclass(frozen=True)
class TopPairs:
    """The best pairs of an image over all boxes and categories together, as LVIS and COCO score them.

    Args:
        max_per_image: Detections kept per image; LVIS scores 300.
        box_score_weight: g in score = s^(1-g) * box_score^g; 0 ignores the detector (boxes are given), 0.5 is the
            (s * objectness)^0.5 of RegionCLIP and Detic. Below 1: at 1 all names of a box would score the same.
        nms_iou: IoU above which the weaker of two boxes with the same category is dropped; `None` for given boxes.
        min_score: Pairs that score lower are left out; 1e-4 in RegionCLIP's script for LVIS, 1e-3 in TAP's.
    """

    max_per_image: int = 300
    box_score_weight: float = 0.0
    nms_iou: float | None = None
    min_score: float = 0.0

    def __post_init__(self) -> None:
        if self.max_per_image < 1:
            raise ValueError(f"TopPairs.max_per_image must be >= 1, got {self.max_per_image}")
        if not 0 <= self.box_score_weight < 1:
            raise ValueError(
                f"TopPairs.box_score_weight must be in [0, 1), got {self.box_score_weight}; at 1 the names of a box tie"
            )
        if self.nms_iou is not None and not 0 < self.nms_iou <= 1:
            raise ValueError(f"TopPairs.nms_iou must be in (0, 1] or None, got {self.nms_iou}")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"TopPairs.min_score must be in [0, 1], got {self.min_score}")

    @property
    def depth(self) -> int:
        """All pairs of one box may be among the best of its image."""
        return self.max_per_image

    def select(self, scores: Tensor, category_ids: Tensor, boxes_xyxy: Tensor, box_scores: Tensor) -> Emitted:
        """See `Emission.select`; equal scores: lower region first, then earlier column."""
        final = _combine(scores, box_scores, self.box_score_weight).flatten()
        ranked, flat = final.sort(descending=True, stable=True)
        if self.min_score > 0:
            good = int((ranked >= self.min_score).sum())
            ranked, flat = ranked[:good], flat[:good]
        num_wanted = min(self.max_per_image, flat.numel())
        if self.nms_iou is not None:
            kept = self._survivors(flat, scores.shape[1], category_ids, boxes_xyxy, num_wanted)
            ranked, flat = ranked[kept], flat[kept]
        flat = flat[:num_wanted]
        width = max(scores.shape[1], 1)
        return Emitted(flat // width, flat % width, ranked[:num_wanted])

    def _survivors(self, flat: Tensor, width: int, category_ids: Tensor, boxes_xyxy: Tensor, num_wanted: int) -> Tensor:
        """Places in `flat`, which is in descending order of score, that survive per-category NMS: the best of them."""
        # Greedy NMS in descending order: the survivors among the best T pairs are a prefix of all survivors,
        # so the rest need not be looked at. float64, or 13,204 category offsets would cost whole pixels of precision.
        boxes, categories = boxes_xyxy.double(), category_ids.flatten()
        regions = flat // max(width, 1)
        span = (boxes.amax() - boxes.amin() + 1) if boxes.numel() else 1.0
        depth = min(flat.numel(), max(4 * num_wanted, 1024))
        while True:
            offset_boxes = boxes[regions[:depth]] + (categories[flat[:depth]].double() * span)[:, None]
            # torchvision sorts by itself and not stably; strictly descending stand-in scores keep our order of ties.
            order = torch.arange(depth, 0, -1, dtype=torch.float64, device=boxes.device)
            keep = nms(offset_boxes, order, self.nms_iou)
            if len(keep) >= num_wanted or depth == flat.numel():
                return keep
            depth = min(flat.numel(), depth * 4)

    def can_reach(self, shortlist: Shortlist, num_candidates: int, box_scores: Tensor) -> Tensor:
        """See `Emission.can_reach`.

        A candidate gets at most the region's mass m. Certain of a place whatever is said: every tail column, and of
        each region one candidate of at least m / K. A region with m below the `max_per_image`-th of those cannot
        matter. Exact without NMS; with NMS suppressed pairs free places, so the bar is taken at four times the depth
        (ours).
        """
        k = min(num_candidates, shortlist.depth)
        if k == 0 or len(shortlist) == 0:
            return torch.zeros(len(shortlist), dtype=torch.bool, device=shortlist.probs.device)
        mass = shortlist.probs[:, :k].sum(dim=1, keepdim=True)
        sure = torch.cat([mass / k, shortlist.probs[:, k:]], dim=1)
        certain = _combine(sure, box_scores, self.box_score_weight).flatten()
        depth = self.max_per_image * (1 if self.nms_iou is None else 4)
        reachable = _combine(mass, box_scores, self.box_score_weight)[:, 0]
        bar = torch.tensor(self.min_score).to(certain)
        if certain.numel() > depth:
            bar = torch.maximum(bar, certain.topk(depth).values[-1])
        return reachable >= bar * (1 - 1e-6)  # the slack covers float32 rounding of the mass


# Of boxes that a detector found, by default: (s * objectness)^0.5 and per-class NMS 0.5, as RegionCLIP and Detic do;
# 300 detections is what LVIS scores.
FOUND_BOXES = TopPairs(max_per_image=300, box_score_weight=0.5, nms_iou=0.5)


@dataclass(frozen=True)
class BestPerRegion:
    """One name for each region, or none: what labels are made of.

    Args:
        min_score: Regions whose best name scores lower are left out.
        box_score_weight: g in score = s^(1-g) * box_score^g; 0 ignores the detector.
        depth: Shortlist columns to keep for reports; only the best is emitted.
    """

    min_score: float = 0.0
    box_score_weight: float = 0.0
    depth: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"BestPerRegion.min_score must be in [0, 1], got {self.min_score}")
        if not 0 <= self.box_score_weight <= 1:
            raise ValueError(f"BestPerRegion.box_score_weight must be in [0, 1], got {self.box_score_weight}")
        if self.depth < 1:
            raise ValueError(f"BestPerRegion.depth must be >= 1, got {self.depth}")

    def select(self, scores: Tensor, category_ids: Tensor, boxes_xyxy: Tensor, box_scores: Tensor) -> Emitted:
        """See `Emission.select`; equal scores: earlier column, then lower region first."""
        if scores.numel() == 0:
            none = torch.zeros(0, dtype=torch.int64, device=scores.device)
            return Emitted(none, none, scores.flatten())
        best, columns = scores.sort(dim=1, descending=True, stable=True)
        final = _combine(best[:, :1], box_scores, self.box_score_weight)[:, 0]
        ranked, regions = final.sort(descending=True, stable=True)
        kept = ranked >= self.min_score
        return Emitted(regions[kept], columns[regions[kept], 0], ranked[kept])

    def can_reach(self, shortlist: Shortlist, num_candidates: int, box_scores: Tensor) -> Tensor:
        """See `Emission.can_reach`: every region, but those that stay below `min_score` with all their mass on one."""
        k = min(num_candidates, shortlist.depth)
        if k == 0:
            return torch.zeros(len(shortlist), dtype=torch.bool, device=shortlist.probs.device)
        mass = shortlist.probs[:, :k].sum(dim=1, keepdim=True)
        return _combine(mass, box_scores, self.box_score_weight)[:, 0] >= self.min_score * (1 - 1e-6)
