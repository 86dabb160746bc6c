"""What AP hides: is the right name first, is it among the candidates, and does the ranker help or harm?

Each annotated object is paired with at most one recognised region (greedily by IoU; boxes taken from the annotations
pair exactly). Rates are over paired objects; `matched` says how many of all objects that is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rar_mmdet.scoring.annotation_table import FREQUENCIES, AnnotationTable
from rar_mmdet.scoring.annotations import BoolArray, FloatArray, IntArray
from rar_mmdet.scoring.identifiers import rows_of
from rar_mmdet.scoring.matching import box_iou_xywh
from rar_mmdet.structures import RankStatus

__all__ = [
    "ImageObjects",
    "ObjectOutcomes",
    "RecognitionReport",
    "judge_regions",
    "match_truth",
    "objects_by_image",
    "summarise",
]

AREA_BINS = (("s", 0.0, 32.0**2), ("m", 32.0**2, 96.0**2), ("l", 96.0**2, float("inf")))  # COCO, square pixels
NOWHERE = np.iinfo(np.int32).max  # rank of a category that is not in the list
UNKNOWN = -1  # rank where detections do not say which region they come from
NOT_MATCHED = -1  # status and predictions of an object no region covers


@dataclass(frozen=True)
class ImageObjects:
    """The G annotated objects of one image; crowds and ignored ones are left out."""

    boxes_xyxy: FloatArray  # (G, 4) original pixels
    labels: IntArray  # (G,) 0-based
    areas: FloatArray  # (G,) square pixels

    def __post_init__(self) -> None:
        shapes = self.boxes_xyxy.shape, self.labels.shape, self.areas.shape
        if shapes != ((len(self.labels), 4), (len(self.labels),), (len(self.labels),)):
            raise ValueError(f"ImageObjects needs (G, 4), (G,) and (G,), got {shapes}")


@dataclass(frozen=True)
class ObjectOutcomes:
    """G annotated objects and what became of each; all int32 but `area`."""

    label: NDArray[np.int32]  # (G,) annotated category, 0-based
    area: FloatArray  # (G,) square pixels
    retrieved_rank: NDArray[np.int32]  # (G,) place of the label in the shortlist, from 0; NOWHERE if absent
    final_rank: NDArray[np.int32]  # (G,) place after the ranker: its candidates first, then the rest of the shortlist
    retrieved: NDArray[np.int32]  # (G,) best category of retrieval, or NOT_MATCHED
    final: NDArray[np.int32]  # (G,) best category after the ranker, or NOT_MATCHED
    status: NDArray[np.int32]  # (G,) RankStatus of the region, or NOT_MATCHED
    emitted_rank: NDArray[np.int32]  # (G,) place among the names the region's detections carry: what AP reads

    def __len__(self) -> int:
        return len(self.label)

    @property
    def matched(self) -> BoolArray:
        """(G,) a region covers the object."""
        return self.status != NOT_MATCHED

    @staticmethod
    def concatenate(parts: Sequence[ObjectOutcomes]) -> ObjectOutcomes:
        """Outcomes of several images as one."""
        if not parts:
            none = np.zeros(0, np.int32)
            return ObjectOutcomes(none, np.zeros(0), none, none, none, none, none, none)
        return ObjectOutcomes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(ObjectOutcomes)))


@dataclass(frozen=True)
class RecognitionReport:
    """Rates in [0, 1], -1 where there is nothing to rate."""

    numbers: dict[str, float]
    per_class: list[dict[str, Any]]  # one row for each category that occurs
    confusions: list[dict[str, Any]]  # annotated -> named, most frequent first


def objects_by_image(table: AnnotationTable, label_ids: Sequence[Any]) -> dict[Hashable, ImageObjects]:
    """The objects of every image of an annotation file, images without any included.

    Args:
        table: The annotations.
        label_ids: Category id of each label; objects of other categories are left out.
    """
    label_of = np.full(len(table.category_ids) + 1, -1, np.int64)  # the last row is for unknown categories
    label_of[rows_of(list(label_ids), table.category_ids)] = np.arange(len(label_ids))
    labels = label_of[table.category]
    wanted = np.flatnonzero(~table.ignore & ~table.crowd & (labels >= 0) & (table.image >= 0))
    wanted = wanted[np.argsort(table.image[wanted], kind="stable")]
    x, y, w, h = table.boxes_xywh[wanted].T
    boxes = np.stack([x, y, x + w, y + h], axis=1)
    bounds = np.searchsorted(table.image[wanted], np.arange(len(table.image_ids) + 1))
    parts = [slice(lo, hi) for lo, hi in pairwise(bounds.tolist())]
    labels, areas = labels[wanted], table.area[wanted]
    return {
        image_id: ImageObjects(boxes[part], labels[part], areas[part])
        for image_id, part in zip(table.image_ids.tolist(), parts, strict=True)
    }


def match_truth(boxes_xyxy: FloatArray, gt_boxes: FloatArray, gt_labels: IntArray, iou: float = 0.5) -> IntArray:
    """The annotated label of each region, by the pairing that `judge_regions` rates.

    Args:
        boxes_xyxy: (R, 4) regions, original pixels.
        gt_boxes: (G, 4) x1, y1, x2, y2 of the annotated objects, original pixels.
        gt_labels: (G,) their 0-based labels.
        iou: Least IoU of a pair, in (0, 1].

    Returns:
        (R,) int64 labels; -1 where a region is paired with no object. Each object serves one region.
    """
    regions = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    objects = np.asarray(gt_boxes, np.float64).reshape(-1, 4)
    labels = np.full(len(regions), -1, np.int64)
    region = _pair(objects, regions, iou)
    labels[region[region >= 0]] = np.asarray(gt_labels, np.int64)[region >= 0]
    return labels


def judge_regions(objects: ImageObjects, recognition: Mapping[str, NDArray[Any]], iou_thr: float) -> ObjectOutcomes:
    """Pair objects with regions and look up where each object's category stands.

    Args:
        objects: The annotated objects of the image.
        recognition: `bboxes` (R, 4) original pixels, `shortlist_ids` (R, N), `ranked_ids` (R, K), `status` (R,); and,
            where detections know their region, `emitted_regions` and `emitted_labels` (M,), best score first.
        iou_thr: Least IoU of a pair.
    """
    labels = objects.labels
    region = _pair(objects.boxes_xyxy, np.asarray(recognition["bboxes"], np.float64).reshape(-1, 4), iou_thr)
    hit = region >= 0
    outcome = {
        name: np.full(len(labels), default, np.int32)
        for name, default in (
            ("retrieved_rank", NOWHERE),
            ("final_rank", NOWHERE),
            ("retrieved", NOT_MATCHED),
            ("final", NOT_MATCHED),
            ("status", NOT_MATCHED),
            ("emitted_rank", UNKNOWN if "emitted_regions" not in recognition else NOWHERE),
        )
    }
    if hit.any():
        rows, wanted = region[hit], labels[hit]
        shortlist, ranked = recognition["shortlist_ids"][rows], recognition["ranked_ids"][rows]
        retrieved_rank, in_ranked = _place(shortlist, wanted), _place(ranked, wanted)
        # Below the ranker's candidates the shortlist goes on; candidates are its first K, so places there still hold.
        outcome["retrieved_rank"][hit] = retrieved_rank
        outcome["final_rank"][hit] = np.where(in_ranked < NOWHERE, in_ranked, retrieved_rank)
        outcome["retrieved"][hit] = shortlist[:, 0]
        outcome["final"][hit] = ranked[:, 0] if ranked.shape[1] else shortlist[:, 0]
        outcome["status"][hit] = recognition["status"][rows]
        if "emitted_regions" in recognition:
            emitted = recognition["emitted_regions"], recognition["emitted_labels"]
            outcome["emitted_rank"][hit] = _emitted_place(*emitted, rows, wanted)
    return ObjectOutcomes(label=labels.astype(np.int32), area=objects.areas.astype(np.float64), **outcome)


def summarise(
    outcomes: ObjectOutcomes,
    names: Sequence[str],
    frequencies: Sequence[str] | None,
    *,
    top: Sequence[int] = (1, 5),
    recall_at: Sequence[int] = (1, 5, 10, 20),
    max_confusions: int = 100,
) -> RecognitionReport:
    """Rates over all objects, per frequency bin and per area bin, per class, and the confusion pairs.

    Args:
        outcomes: Of the whole test set.
        names: Name of each category.
        frequencies: "r", "c" or "f" of each category (LVIS), or None.
        top: k of the top-k accuracy after the ranker, and of retrieval alone.
        recall_at: k of the shortlist's recall: what a perfect ranker of k candidates could reach.
        max_confusions: Pairs to list.
    """
    paired = outcomes.matched
    numbers = {"objects": float(len(outcomes)), "matched": _rate(paired, np.ones(len(outcomes), bool))}
    for suffix, members in _bins(outcomes, frequencies).items():
        within = paired & members
        for k in top:
            numbers[f"top{k}{suffix}"] = _rate(outcomes.final_rank < k, within)
            numbers[f"retrieval_top{k}{suffix}"] = _rate(outcomes.retrieved_rank < k, within)
            if UNKNOWN not in outcomes.emitted_rank:
                numbers[f"emitted_top{k}{suffix}"] = _rate(outcomes.emitted_rank < k, within)
        for k in recall_at:
            numbers[f"recall@{k}{suffix}"] = _rate(outcomes.retrieved_rank < k, within)
        numbers |= {f"{key}{suffix}": value for key, value in _ranker_shares(outcomes, within).items()}
    per_class = _per_class(outcomes, names, frequencies, top, recall_at)
    numbers["class_mean_top1"] = float(np.mean([row["top1"] for row in per_class])) if per_class else -1.0
    return RecognitionReport(numbers, per_class, _confusions(outcomes, names, max_confusions))


def _ranker_shares(outcomes: ObjectOutcomes, within: BoolArray) -> dict[str, float]:
    before, after = outcomes.retrieved == outcomes.label, outcomes.final == outcomes.label
    return {
        "asked": _rate(outcomes.status != RankStatus.SKIPPED, within),
        "changed": _rate(outcomes.retrieved != outcomes.final, within),
        "improved": _rate(~before & after, within),
        "harmed": _rate(before & ~after, within),
    }


def _bins(outcomes: ObjectOutcomes, frequencies: Sequence[str] | None) -> dict[str, BoolArray]:
    """Suffix of the numbers -> members: everything, frequency bins, area bins."""
    bins = {"": np.ones(len(outcomes), bool)}
    if frequencies is not None:
        frequency = np.array(frequencies)[outcomes.label] if len(outcomes) else np.zeros(0, str)
        bins |= {f"_{letter}": frequency == letter for letter in FREQUENCIES}
    bins |= {f"_{name}": (outcomes.area >= low) & (outcomes.area < high) for name, low, high in AREA_BINS}
    return bins


def _rate(flags: BoolArray, members: BoolArray) -> float:
    return float(np.mean(flags[members])) if members.any() else -1.0


def _per_class(
    outcomes: ObjectOutcomes,
    names: Sequence[str],
    frequencies: Sequence[str] | None,
    top: Sequence[int],
    recall_at: Sequence[int],
) -> list[dict[str, Any]]:
    paired = outcomes.matched
    before, after = outcomes.retrieved == outcomes.label, outcomes.final == outcomes.label
    flags = {"top1": outcomes.final_rank < 1}
    flags |= {f"top{k}": outcomes.final_rank < k for k in top}
    flags |= {f"retrieval_top{k}": outcomes.retrieved_rank < k for k in top}
    flags |= {f"recall@{k}": outcomes.retrieved_rank < k for k in recall_at}
    flags |= {"improved": ~before & after, "harmed": before & ~after}
    objects = np.bincount(outcomes.label, minlength=len(names))
    matched = np.bincount(outcomes.label[paired], minlength=len(names))
    hits = {key: np.bincount(outcomes.label[paired & flag], minlength=len(names)) for key, flag in flags.items()}
    rows = []
    for c in np.flatnonzero(matched).tolist():
        row = {"label": c, "name": names[c], "frequency": frequencies[c] if frequencies is not None else ""}
        row |= {"objects": int(objects[c]), "matched": int(matched[c])}
        rows.append(row | {key: float(count[c] / matched[c]) for key, count in hits.items()})
    return rows


def _confusions(outcomes: ObjectOutcomes, names: Sequence[str], limit: int) -> list[dict[str, Any]]:
    wrong = outcomes.matched & (outcomes.final != outcomes.label)
    pairs, counts = np.unique(
        np.stack([outcomes.label[wrong], outcomes.final[wrong]], axis=1), axis=0, return_counts=True
    )
    objects = np.bincount(outcomes.label[outcomes.matched], minlength=len(names))
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts))[:limit]
    return [
        {"annotated": names[t], "named": names[p], "count": int(n), "share": float(n / objects[t])}
        for (t, p), n in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _place(lists: NDArray[Any], wanted: IntArray) -> NDArray[np.int32]:
    """Column of each wanted id in its row, NOWHERE if absent."""
    if not lists.shape[1]:
        return np.full(len(wanted), NOWHERE, np.int32)
    hit = lists == wanted[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), NOWHERE).astype(np.int32)


def _emitted_place(regions: NDArray[Any], labels: NDArray[Any], rows: IntArray, wanted: IntArray) -> NDArray[np.int32]:
    """How many names each region's detections carry before the wanted one; NOWHERE if it is not among them."""
    places = np.full(len(rows), NOWHERE, np.int32)
    for i, (region, label) in enumerate(zip(rows, wanted, strict=True)):
        names = labels[regions == region]
        hits = np.flatnonzero(names == label)
        if len(hits):
            places[i] = hits[0]
    return places


def _pair(objects_xyxy: FloatArray, regions_xyxy: FloatArray, iou_thr: float) -> IntArray:
    """(G,) region of each object, -1 for none; highest IoU first, each region once, equal boxes in their order."""
    region = np.full(len(objects_xyxy), -1, np.int64)
    g, r = np.divmod(np.arange(len(objects_xyxy) * len(regions_xyxy)), max(len(regions_xyxy), 1))
    iou = box_iou_xywh(_xywh(regions_xyxy[r]), _xywh(objects_xyxy[g]), np.zeros(len(g), bool))
    candidates = np.flatnonzero(iou >= iou_thr)
    free = np.ones(len(regions_xyxy), bool)
    for edge in candidates[np.argsort(-iou[candidates], kind="stable")]:
        if region[g[edge]] < 0 and free[r[edge]]:
            region[g[edge]] = r[edge]
            free[r[edge]] = False
    return region


def _xywh(boxes_xyxy: FloatArray) -> FloatArray:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
