"""Scores of a result file under a named protocol, with the keys MMDet gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from rar_mmdet.errors import ResultFileError
from rar_mmdet.scoring.annotations import Detections, GroundTruth
from rar_mmdet.scoring.category_tree import CategoryTree
from rar_mmdet.scoring.pairing import notes_on_pair
from rar_mmdet.scoring.result_files import read_results
from rar_mmdet.scoring.settings import COCO, LVIS, LVIS_FIXED, V3DET, IouType, Protocol
from rar_mmdet.scoring.sparse_eval import SparseResult, evaluate
from rar_mmdet.scoring.summaries import coco_summary, limited_summary, lvis_summary, novelty_summary

__all__ = ["FIXED_SUFFIX", "PROTOCOLS", "Score", "find_category_tree", "explain_zero", "read_checked_results", "score"]

ProtocolName = Literal["lvis", "lvis-fixed", "coco", "v3det"]
PROTOCOLS: dict[str, Protocol] = {"lvis": LVIS, "lvis-fixed": LVIS_FIXED, "coco": COCO, "v3det": V3DET}
FIXED_SUFFIX = "_fixed"
AT_THE_LIMIT = 0.1  # of the images hold the largest number of detections: then a limit per image was in force
CATEGORIES_ARE_WRONG = 0.1  # recall of boxes alone from which on an AP of 0 is the categories' fault
TREE_FILE = "v3det_2023_v1_category_tree.json"
COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100")
MMDET_COCO_NAMES = {"AP": "mAP", "AP50": "mAP_50", "AP75": "mAP_75", "APs": "mAP_s", "APm": "mAP_m", "APl": "mAP_l"}


@dataclass(frozen=True)
class Score:
    """Numbers of one result file."""

    numbers: dict[str, float]  # "bbox_AP" and so on, at full precision; -1 where there is nothing to find
    result: SparseResult
    notes: tuple[str, ...] = ()  # what a person should know before they read the numbers: sentences


def score(truth: GroundTruth, detections: Detections, protocol: Protocol, tree: CategoryTree | None = None) -> Score:
    """Score detections under a protocol; with a tree, under V3Det's second protocol as well (`…_tree`).

    Under "lvis-fixed" the numbers of lvis-api stand beside those of fixed AP (`…_fixed`), of which `result` is.
    COCO and V3Det numbers come under lvis-api's names (`bbox_AP50`) and MMDet's (`bbox_mAP_50`).

    Raises:
        UnknownImageError, UnknownCategoryError, ResultFileError: The detections do not belong to the annotations; see
            `evaluate`.
    """
    notes = notes_on_pair(truth, detections, masks=protocol.iou_type == "segm")
    result = evaluate(truth, detections, protocol)
    notes += [*result.matches.notes, *explain_zero(truth, detections, result)]
    if protocol.max_per_category is not None:
        notes += note_on_limit(detections)
        official = _named(evaluate(truth, detections, LVIS.having(iou_type=protocol.iou_type)), truth, "")
        return Score(_named(result, truth, FIXED_SUFFIX) | official, result, tuple(notes))
    numbers = _named(result, truth, "")
    if tree is not None:
        numbers |= _named(evaluate(truth, detections, protocol, tree), truth, "_tree")
    return Score(numbers, result, tuple(notes))


def note_on_limit(detections: Detections) -> list[str]:
    """A sentence where detections were cut per image before fixed AP, which is to be taken without such a limit."""
    counts = np.unique(detections.image_ids, return_counts=True)[1]
    largest = int(counts.max(initial=0))
    if largest < 2 or np.mean(counts == largest) < AT_THE_LIMIT or len(counts) < 2:
        return []
    return [
        f"{np.count_nonzero(counts == largest)} of {len(counts)} images have {largest} detections and none has more: "
        "was there a limit per image? Fixed AP is taken without one (10,000 detections per category over the set); "
        "give the detector a higher limit, or the number is too low"
    ]


def explain_zero(truth: GroundTruth, detections: Detections, result: SparseResult) -> list[str]:
    """Why an average precision is 0 or -1: a sentence, or none where it is neither."""
    to_find = int(result.matches.num_truth[:, 0].sum())
    if not to_find:
        why = "all are crowds, ignored or of no area" if len(truth) else "there are none, as in files of test images"
        return [f"no annotation counts ({why}): nothing can be found, and every number is -1"]
    if not len(detections):
        return [f"there is no detection at all, of {to_find} objects: average precision and recall are 0"]
    if (result.precision[..., 0, -1] > 0).any() or not result.protocol.use_categories:
        return []
    boxes_alone = replace(result.protocol, federated=False, use_categories=False, iou_thrs=np.array([0.5]))
    recall = float(evaluate(truth, detections, boxes_alone).recall[0, 0, 0, -1])
    zero = "average precision is 0: no detection overlaps an annotation of its own category enough"
    if recall >= CATEGORIES_ARE_WRONG:
        return [
            f"{zero}, although the boxes find {recall:.0%} of the objects when categories are left aside. Do the "
            "category ids of the results belong to this annotation file, in this order?"
        ]
    return [
        f"{zero}, and the boxes find {recall:.0%} of the objects (IoU 0.5) even when categories are left aside. Are "
        "they x, y, width, height in pixels of the original photos, and are image ids those of this file?"
    ]


def read_checked_results(
    path: str | Path, protocol: Protocol, progress: Callable[[int], None] | None = None
) -> Detections:
    """Read a result file and refuse boxes of negative size, but for those that lvis-api leaves out by itself.

    Raises:
        ResultFileError: See `read_results`; or a box has a negative width or height.
    """
    detections = read_results(path, keep_segmentations=protocol.iou_type == "segm", progress=progress)
    wrong = (detections.boxes_xywh[:, 2] < 0) | (detections.boxes_xywh[:, 3] < 0)
    if protocol.federated:
        wrong &= detections.area > 0  # the rest has no area: `LVIS.get_ann_ids` skips it, and so do we, counting
    if wrong.any():
        record = int(np.argmax(wrong))
        raise ResultFileError(
            f"result file {path}: record {record} (image {detections.image_ids[record]}) has bbox "
            f"{detections.boxes_xywh[record].tolist()} with a negative size; COCO boxes are x, y, width, height. "
            "Were x1, y1, x2, y2 written?"
        )
    return detections


def find_category_tree(annotation_file: str | Path) -> Path | None:
    """The official tree file, if it lies beside the annotation file, as in V3Det's layout."""
    tree = Path(annotation_file).parent / TREE_FILE
    return tree if tree.exists() else None


def _named(result: SparseResult, truth: GroundTruth, suffix: str) -> dict[str, float]:
    protocol = result.protocol
    if protocol.federated:
        summary = lvis_summary(result, truth)
    elif len(protocol.max_dets) == 3:
        summary = dict(zip(COCO_NAMES, coco_summary(result), strict=True))
    else:
        summary = limited_summary(result)
    numbers = {f"{protocol.iou_type}_{key}{suffix}": value for key, value in summary.items()}
    if not protocol.federated:
        numbers |= {f"{protocol.iou_type}_{MMDET_COCO_NAMES[k]}{suffix}": summary[k] for k in MMDET_COCO_NAMES}
        numbers |= {f"{protocol.iou_type}_{k}{suffix}": v for k, v in novelty_summary(result, truth).items()}
    return numbers


def with_iou_type(name: ProtocolName, iou_type: IouType) -> Protocol:
    """A named protocol for boxes or masks."""
    return PROTOCOLS[name].having(iou_type=iou_type)
