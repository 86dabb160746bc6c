"""What a detector finds in a photo, and how boxes of several classes become one set of boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from rar_mmdet.errors import DetectionError
from rar_mmdet.files.images import ImageSource
from rar_mmdet.files.names import cleaned

__all__ = ["Detected", "Detector", "class_scores", "merge_boxes", "rows_of_names", "select_boxes"]


def _no_ids() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Detected:
    """R boxes of one photo, best first, with every score that the detector gave to a name."""

    boxes_xyxy: Tensor  # (R, 4) float32, pixels of the upright original
    scores: Tensor  # (R,) float32 in [0, 1]: that an object is there, whatever it is called
    names: tuple[str, ...] = ()  # V, what `name_ids` mean; none: the detector tells no classes apart
    # Sparse (box, name) scores: P entries, no pair twice. A pair that is not there has a score below the threshold.
    region_ids: Tensor = field(default_factory=_no_ids)  # (P,) int64 rows of the boxes
    name_ids: Tensor = field(default_factory=_no_ids)  # (P,) int64 in [0, V)
    name_scores: Tensor = field(default_factory=lambda: torch.zeros(0))  # (P,) float32 in [0, 1]
    masks: Tensor | None = None  # (R, H, W) bool
    # R segmentations as COCO writes them, of a file that has some; `None` for a box without.
    segmentations: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_xyxy.shape != (count, 4):
            raise DetectionError(f"a detector gave boxes {tuple(self.boxes_xyxy.shape)} for {count} scores")
        finite = torch.isfinite(self.boxes_xyxy).all(dim=1) & torch.isfinite(self.scores)
        if not finite.all():
            row = int(finite.int().argmin())
            raise DetectionError(
                f"a detector gave box {self.boxes_xyxy[row].tolist()} with score {float(self.scores[row])}; both must "
                "be finite. Look for NaN in its weights, or use precision='fp32'"
            )
        if self.masks is not None and len(self.masks) != count:
            raise DetectionError(f"a detector gave {len(self.masks)} masks for {count} boxes")
        if self.segmentations is not None and len(self.segmentations) != count:
            raise DetectionError(f"a detector gave {len(self.segmentations)} segmentations for {count} boxes")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def label_ids(self) -> Tensor:
        """(R,) int64: the name of the highest score of each box, the first of equals; -1 where it has none."""
        order = self.name_scores.argsort(descending=True, stable=True)
        places = torch.arange(len(order))
        first = torch.full((len(self),), len(order)).scatter_reduce(0, self.region_ids[order], places, "amin")
        names = torch.cat([self.name_ids[order], torch.tensor([-1])])  # the last one: no name at all
        return names[first]

    @property
    def labels(self) -> list[str]:
        """R names, "" where a box has none."""
        return [self.names[i] if i >= 0 else "" for i in self.label_ids.tolist()]

    @staticmethod
    def nothing(names: Sequence[str] = ()) -> Detected:
        """No box at all."""
        return Detected(torch.zeros(0, 4), torch.zeros(0), tuple(names))


class Detector(Protocol):
    """Whatever gives boxes for photos."""

    def detect(self, images: Sequence[ImageSource], paths: Sequence[str | None] | None = None) -> list[Detected]:
        """The boxes of some photos, in their order.

        Args:
            images: what `read_image` takes.
            paths: the files of the photos, for sources that look boxes up by file; `None`: the images that are paths.
        """
        ...


def merge_boxes(found: Detected, image_hw: tuple[int, int], *, iou: float, limit: int, min_size: float) -> Detected:
    """One set of boxes from those of many classes and passes: class-agnostic NMS that loses no name.

    Boxes are cut at the photo's border, and those smaller than `min_size` left out. Of boxes that overlap more than
    `iou` the one with the best score stays and takes over the others' names, each with its highest score.

    Args:
        found: the boxes, in any order.
        image_hw: size of the photo in pixels.
        iou: overlap from which on two boxes are one; 1 merges none.
        limit: boxes kept, the best ones.
        min_size: shortest side in pixels; 1 is what MMDetection asks of annotated boxes.
    """
    boxes, order, kept = select_boxes(found.boxes_xyxy, found.scores, image_hw, iou=iou, limit=limit, min_size=min_size)
    owner = _owners(boxes, order, kept, iou)[found.region_ids]
    taken = owner >= 0
    # The highest score of each (box, name): sort by pair, then reduce.
    num_names = max(len(found.names), 1)
    keys, where = torch.unique(owner[taken] * num_names + found.name_ids[taken], return_inverse=True)
    return Detected(
        boxes[kept],
        found.scores[kept],
        found.names,
        region_ids=keys // num_names,
        name_ids=keys % num_names,
        name_scores=torch.zeros(len(keys)).scatter_reduce(0, where, found.name_scores[taken].float(), "amax"),
        masks=None if found.masks is None else found.masks[kept],
    )


def select_boxes(
    boxes_xyxy: Tensor, scores: Tensor, image_hw: tuple[int, int], *, iou: float, limit: int, min_size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Class-agnostic NMS of the boxes that are large enough; equal scores keep their order.

    Args:
        boxes_xyxy: (P, 4) pixels of the photo.
        scores: (P,).
        image_hw, iou, limit, min_size: as `merge_boxes`.

    Returns:
        (P, 4) the boxes cut at the photo's border; (Q,) int64 rows of those that are large enough, best first; (R,)
        int64 rows of those that are kept, best first.
    """
    height, width = image_hw
    boxes = torch.minimum(boxes_xyxy.clamp_min(0), boxes_xyxy.new_tensor([width, height, width, height]))
    # A box that is not finite fails the comparison as well.
    large = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(dim=1).nonzero()[:, 0]
    order = large[scores[large].argsort(descending=True, stable=True)]
    # torchvision sorts by itself and not stably; strictly descending stand-in scores keep our order of ties.
    falling = torch.arange(len(order), 0, -1, dtype=torch.float64, device=boxes.device)
    kept = order if iou >= 1 else order[nms(boxes[order].double(), falling, iou)]
    return boxes, order, kept[:limit]


def _owners(boxes: Tensor, order: Tensor, kept: Tensor, iou: float) -> Tensor:
    """(P,) row among the kept boxes that each box became part of, -1 for none: the best one that suppressed it."""
    owner = torch.full((len(boxes),), -1, dtype=torch.int64)
    owner[kept] = torch.arange(len(kept))
    rest = order[owner[order] < 0]
    if len(rest) and len(kept):
        # Kept boxes stand best first, so the first that overlaps enough is the one that NMS dropped this one for.
        overlaps = box_iou(boxes[rest].double(), boxes[kept].double()) > iou
        owner[rest] = torch.where(overlaps.any(dim=1), overlaps.int().argmax(dim=1), -1)
    return owner


def rows_of_names(names: Sequence[str], category_names: Sequence[str]) -> dict[int, list[int]]:
    """Which categories of a vocabulary each of a detector's names is: those whose cleaned names are equal in any case.

    A name that is none is the category which has it with a qualifier, where there is one such: COCO's "car" is LVIS's
    "car_(automobile)", and a "bow" is neither of its two. Names of which the vocabulary knows nothing are absent; a
    name of several categories (LVIS has none, V3Det some) belongs to each of them.

    >>> rows_of_names(["bow", "Fire hydrant", "car"], ["fire_hydrant", "bow_(weapon)", "bow_(tie)", "car_(automobile)"])
    {1: [0], 2: [3]}
    """
    rows: dict[str, list[int]] = {}
    short: dict[str, list[int]] = {}
    for row, name in enumerate(category_names):
        rows.setdefault(cleaned(name).casefold(), []).append(row)
        if (plain := re.sub(r"\([^()]*\)", "", name)) != name:
            short.setdefault(cleaned(plain).casefold(), []).append(row)
    keys = [cleaned(name).casefold() for name in names]
    found = {i: rows.get(key) or (short[key] if len(short.get(key, [])) == 1 else []) for i, key in enumerate(keys)}
    return {i: categories for i, categories in found.items() if categories}


def class_scores(found: Detected, category_names: Sequence[str], rows: dict[int, list[int]] | None = None) -> Tensor:
    """(R, C) float32: the detector's own score of each category for each box; NaN for names that it does not know.

    Args:
        found: what was detected.
        category_names: the C names of the vocabulary.
        rows: `rows_of_names`, where it is known already.
    """
    rows = rows_of_names(found.names, category_names) if rows is None else rows
    known = sorted((name, category) for name, categories in rows.items() for category in categories)
    scores = torch.full((len(found), len(category_names)), torch.nan)
    if known:
        names, categories = torch.tensor(known).unbind(1)
        scores[:, categories] = 0.0
        # Each entry of a name becomes one of each of its categories, which stand together in `known`.
        counts = torch.bincount(names, minlength=len(found.names))
        many = counts[found.name_ids]
        entry = torch.arange(len(many)).repeat_interleave(many)
        place = torch.arange(len(entry)) - (many.cumsum(0) - many)[entry]
        category = categories[(counts.cumsum(0) - counts)[found.name_ids[entry]] + place]
        cells = found.region_ids[entry] * len(category_names) + category
        scores.view(-1).scatter_reduce_(0, cells, found.name_scores[entry].float(), "amax")
    return scores
