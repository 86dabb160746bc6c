"""What distinguishes the protocols: thresholds, area ranges, limits, federated rules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["COCO", "LVIS", "LVIS_FIXED", "V3DET", "IouType", "Protocol"]

IouType = Literal["bbox", "segm"]


def _iou_thresholds() -> NDArray[np.float64]:
    return np.linspace(0.5, 0.95, 10, endpoint=True)  # linspace as in both APIs: arange would miss 0.75 by one ulp


def _recall_thresholds() -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, 101, endpoint=True)


@dataclass(frozen=True)
class Protocol:
    """One way of scoring detections.

    Defaults are COCO's (pycocotools 2.0.11, `Params.setDetParams`); areas in square pixels.
    """

    name: str
    federated: bool = False  # LVIS: drop categories not verified in an image, forgive the partly annotated
    max_per_image: int | None = None  # best detections kept per image before anything else (LVIS: 300)
    max_per_category: int | None = None  # best detections kept per category over the whole set (fixed AP: 10,000)
    max_dets: tuple[int, ...] = (1, 10, 100)  # detections kept per (image, category), ascending
    iou_type: IouType = "bbox"
    use_categories: bool = True  # False: class-agnostic recall of proposals
    iou_thrs: NDArray[np.float64] = field(default_factory=_iou_thresholds)
    rec_thrs: NDArray[np.float64] = field(default_factory=_recall_thresholds)
    area_ranges: tuple[tuple[float, float], ...] = (
        (0.0, 1e5**2),
        (0.0, 32.0**2),
        (32.0**2, 96.0**2),
        (96.0**2, 1e5**2),
    )
    area_labels: tuple[str, ...] = ("all", "small", "medium", "large")

    def having(
        self,
        *,
        iou_type: IouType | None = None,
        max_dets: tuple[int, ...] | None = None,
        iou_thrs: NDArray[np.float64] | None = None,
        use_categories: bool | None = None,
        federated: bool | None = None,
    ) -> Protocol:
        """The same protocol with some settings changed."""
        return replace(
            self,
            iou_type=self.iou_type if iou_type is None else iou_type,
            max_dets=self.max_dets if max_dets is None else tuple(sorted(max_dets)),
            iou_thrs=self.iou_thrs if iou_thrs is None else iou_thrs,
            use_categories=self.use_categories if use_categories is None else use_categories,
            federated=self.federated if federated is None else federated,
        )


NO_LIMIT = 2**31 - 1  # LVIS limits per image only; no (image, category) pair can hold more than that

COCO = Protocol("coco")
LVIS = Protocol("lvis", federated=True, max_per_image=300, max_dets=(NO_LIMIT,))  # lvis-api 0.5.3: results.py:10
# Dave et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details", arXiv 2102.01066, sec. 4: no
# limit per image, 10,000 detections per category over the set; what open-vocabulary detectors report on LVIS.
LVIS_FIXED = Protocol("lvis-fixed", federated=True, max_per_category=10_000, max_dets=(NO_LIMIT,))
V3DET = Protocol("v3det", max_dets=(300,))  # the official script: evaluation/eval_v3det.py
