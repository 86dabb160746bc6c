"""Which (region, category) pairs of an image become detections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from rar_mmdet.structures import Shortlist

__all__ = ["Emission", "can_reach", "emit"]


@dataclass(frozen=True)
class Emission:
    """Which (region, category) pairs of an image become detections.

    Args:
        max_per_image: Detections kept per image, over all boxes and categories together; LVIS scores 300.
        box_score_weight: g in score = s^(1-g) * box_score^g; 0 ignores the detector (boxes are given), 0.5 is the
            (s * objectness)^0.5 of RegionCLIP and Detic.
        nms_iou: IoU above which the weaker of two boxes with the same category is dropped; `None` for given boxes.
    """

    max_per_image: int = 300
    box_score_weight: float = 0.0
    nms_iou: float | None = None

    def __post_init__(self) -> None:
        if self.max_per_image < 1:
            raise ValueError(f"Emission.max_per_image must be >= 1, got {self.max_per_image}")
        if not 0 <= self.box_score_weight <= 1:
            raise ValueError(f"Emission.box_score_weight must be in [0, 1], got {self.box_score_weight}")
        if self.nms_iou is not None and not 0 < self.nms_iou <= 1:
            raise ValueError(f"Emission.nms_iou must be in (0, 1] or None, got {self.nms_iou}")

    def combine(self, scores: Tensor, box_scores: Tensor) -> Tensor:
        """(R, N) final scores from category scores (R, N) and box scores (R,), both in [0, 1]."""
        if self.box_score_weight == 0:
            return scores
        g = self.box_score_weight
        return scores.pow(1 - g) * box_scores.clamp_min(0).pow(g)[:, None]


def emit(
    scores: Tensor, category_ids: Tensor, boxes_xyxy: Tensor, box_scores: Tensor, emission: Emission
) -> tuple[Tensor, Tensor]:
    """The best `max_per_image` pairs of one image, after per-category NMS.

    Args:
        scores: (R, N) category scores in [0, 1].
        category_ids: (R, N) int64, no repeats within a row.
        boxes_xyxy: (R, 4) float32.
        box_scores: (R,) float32 in [0, 1].
        emission: the rule.

    Returns:
        flat (M,) int64 indices into the R * N pairs, best first (ties: lower region, then earlier column);
        their (M,) scores.
    """
    final = emission.combine(scores, box_scores).flatten()
    num_wanted = min(emission.max_per_image, final.numel())
    ranked, flat = final.sort(descending=True, stable=True)
    if emission.nms_iou is None:
        return flat[:num_wanted], ranked[:num_wanted]
    # Greedy NMS in descending order: the survivors among the best T pairs are a prefix of all survivors,
    # so the rest need not be looked at. float64, or 13,204 category offsets would cost whole pixels of precision.
    boxes, categories = boxes_xyxy.double(), category_ids.flatten()
    regions = flat // max(scores.shape[1], 1)
    span = (boxes.amax() - boxes.amin() + 1) if boxes.numel() else 1.0
    depth = min(final.numel(), max(4 * num_wanted, 1024))
    while True:
        offset_boxes = boxes[regions[:depth]] + (categories[flat[:depth]].double() * span)[:, None]
        # torchvision sorts by itself and not stably; strictly descending stand-in scores keep our order of ties.
        order = torch.arange(depth, 0, -1, dtype=torch.float64, device=boxes.device)
        keep = nms(offset_boxes, order, emission.nms_iou)
        if len(keep) >= num_wanted or depth == final.numel():
            return flat[keep[:num_wanted]], ranked[keep[:num_wanted]]
        depth = min(final.numel(), depth * 4)


def can_reach(shortlist: Shortlist, num_candidates: int, box_scores: Tensor, emission: Emission) -> Tensor:
    """(R,) bool: regions of one image whose candidates can still reach its top `max_per_image`, whatever a ranker says.

    A candidate gets at most the region's mass m. Certain of a place whatever is said: every tail column, and of each
    region one candidate of at least m / K. A region with m below the `max_per_image`-th of those cannot matter. Exact
    without NMS; with NMS suppressed pairs free places, so the bar is taken at four times the depth (ours).
    """
    k = min(num_candidates, shortlist.depth)
    if k == 0 or len(shortlist) == 0:
        return torch.zeros(len(shortlist), dtype=torch.bool, device=shortlist.probs.device)
    mass = shortlist.probs[:, :k].sum(dim=1, keepdim=True)
    certain = emission.combine(torch.cat([mass / k, shortlist.probs[:, k:]], dim=1), box_scores).flatten()
    depth = emission.max_per_image * (1 if emission.nms_iou is None else 4)
    reachable = emission.combine(mass, box_scores)[:, 0]
    if certain.numel() <= depth:
        return torch.ones_like(reachable, dtype=torch.bool)
    bar = certain.topk(depth).values[-1]
    return reachable >= bar * (1 - 1e-6)  # the slack covers float32 rounding of the mass
