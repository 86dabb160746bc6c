"""Summary numbers of the reference APIs, from their precision and recall arrays.

Every mean runs over the same elements in the same order as in lvis-api (`LVISEval._summarize`) and pycocotools
(`COCOeval.summarize`), so that the sums round alike. -1 stands for "nothing to find".
"""

from __future__ import annotations

import numpy as np

from rar_mmdet.scoring.annotations import FREQUENCIES, FloatArray, GroundTruth, IntArray
from rar_mmdet.scoring.settings import Protocol
from rar_mmdet.scoring.sparse_eval import SparseResult

__all__ = [
    "coco_summary",
    "limited_summary",
    "lvis_recalls",
    "lvis_summary",
    "mean_of_defined",
    "novelty_summary",
    "per_category_ap",
]

SIZES = ("small", "medium", "large")


def mean_of_defined(values: FloatArray) -> float:
    """Mean of the entries above -1, or -1 if there is none."""
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


def lvis_summary(result: SparseResult, truth: GroundTruth) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl, APr, APc, APf and AR at 300 per image, as lvis-api 0.5.3 names them.

    AR without a limit per image, as under fixed AP, is plain AR.
    """
    numbers = {
        "AP": _average_precision(result),
        "AP50": _average_precision(result, iou_thr=0.5),
        "AP75": _average_precision(result, iou_thr=0.75),
    }
    for size in SIZES:
        numbers[f"AP{size[0]}"] = _average_precision(result, area=size)
    frequencies = np.array(truth.frequencies if truth.frequencies is not None else ())
    for letter in FREQUENCIES:
        numbers[f"AP{letter}"] = _average_precision(result, categories=np.flatnonzero(frequencies == letter))
    return numbers | lvis_recalls(result)


def lvis_recalls(result: SparseResult) -> dict[str, float]:
    """AR at the limit per image, in full and by size; all that class-agnostic results have."""
    limit = result.protocol.max_per_image
    at = "" if limit is None else f"@{limit}"
    numbers = {f"AR{at}": _average_recall(result)}
    for size in SIZES:
        numbers[f"AR{size[0]}{at}"] = _average_recall(result, area=size)
    return numbers


def novelty_summary(result: SparseResult, truth: GroundTruth) -> dict[str, float]:
    """AP of the base and of the novel categories; empty where the annotation file does not tell them apart."""
    if truth.novel is None:
        return {}
    return {
        "AP_base": _average_precision(result, categories=np.flatnonzero(~truth.novel)),
        "AP_novel": _average_precision(result, categories=np.flatnonzero(truth.novel)),
    }


def coco_summary(result: SparseResult) -> list[float]:
    """The twelve numbers of `COCOeval.summarize`, in its order.

    The first is AP at 100 detections even where another largest limit is set; the others take the third limit
    (pycocotools 2.0.11, `_summarizeDets`). MMDet's (100, 300, 1000) thus mixes AP at 100 with AP50 at 1000.
    """
    if len(result.protocol.max_dets) != 3:
        raise ValueError(f"COCOeval's summary needs three detection limits, got {result.protocol.max_dets}")
    hundred = [m for m, limit in enumerate(result.protocol.max_dets) if limit == 100]
    first = _average_precision(result, limit=hundred[0]) if hundred else -1.0
    numbers = [
        first,
        _average_precision(result, iou_thr=0.5, limit=2),
        _average_precision(result, iou_thr=0.75, limit=2),
    ]
    numbers += [_average_precision(result, area=size, limit=2) for size in SIZES]
    numbers += [_average_recall(result, limit=m) for m in range(3)]
    numbers += [_average_recall(result, area=size, limit=2) for size in SIZES]
    return numbers


def limited_summary(result: SparseResult) -> dict[str, float]:
    """AP and AR at the largest limit, and AR at every other: what MMDet's and V3Det's `COCOevalMP` print."""
    largest = result.protocol.max_dets[-1]
    numbers = {
        "AP": _average_precision(result),
        "AP50": _average_precision(result, iou_thr=0.5),
        "AP75": _average_precision(result, iou_thr=0.75),
    }
    for size in SIZES:
        numbers[f"AP{size[0]}"] = _average_precision(result, area=size)
    for m, limit in enumerate(result.protocol.max_dets):
        numbers[f"AR@{limit}"] = _average_recall(result, limit=m)
    for size in SIZES:
        numbers[f"AR{size[0]}@{largest}"] = _average_recall(result, area=size)
    return numbers


def per_category_ap(result: SparseResult, iou_thr: float | None = None, area: str = "all") -> FloatArray:
    """(K,) AP of each category at the largest limit; NaN where it has nothing to find."""
    precision = _at_threshold(result.precision, result.protocol, iou_thr)[:, :, :, _area_row(result, area), -1]
    values = np.full(precision.shape[2], np.nan)
    for k in range(precision.shape[2]):
        defined = precision[:, :, k][precision[:, :, k] > -1]
        if len(defined):
            values[k] = np.mean(defined)
    return values


def _average_precision(
    result: SparseResult,
    *,
    iou_thr: float | None = None,
    area: str = "all",
    categories: IntArray | None = None,
    limit: int = -1,
) -> float:
    values = _at_threshold(result.precision, result.protocol, iou_thr)[:, :, :, _area_row(result, area), limit]
    return mean_of_defined(values if categories is None else values[:, :, categories])


def _average_recall(result: SparseResult, *, area: str = "all", limit: int = -1) -> float:
    return mean_of_defined(result.recall[:, :, _area_row(result, area), limit])


def _at_threshold(values: FloatArray, protocol: Protocol, iou_thr: float | None) -> FloatArray:
    return values if iou_thr is None else values[np.flatnonzero(iou_thr == protocol.iou_thrs)]


def _area_row(result: SparseResult, area: str) -> int:
    return result.protocol.area_labels.index(area)
