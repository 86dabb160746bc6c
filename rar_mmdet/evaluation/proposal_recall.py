"""Average recall of class-agnostic boxes: MMDet's `proposal_fast`.

MMDet's own `eval_recalls` stacks ragged arrays and fails on NumPy >= 1.24; the numbers here are those it would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.evaluation.functional import bbox_overlaps
from numpy.typing import NDArray

from rar_mmdet.scoring.annotations import FloatArray, GroundTruth

__all__ = ["proposal_recall"]


def proposal_recall(
    truth: GroundTruth, boxes: Mapping[Any, NDArray[Any]], proposal_nums: Sequence[int], iou_thrs: FloatArray
) -> FloatArray:
    """Recall averaged over IoU thresholds for the first n proposals of each image.

    Args:
        truth: The annotations; crowds and ignored ones are left out.
        boxes: (n, 4) xyxy proposals of each image id, best first; images without an entry have none.
        proposal_nums: The limits n.
        iou_thrs: (T,) thresholds.

    Returns:
        (len(proposal_nums),) average recall.
    """
    wanted = np.flatnonzero(~truth.ignore & ~truth.crowd)
    x, y, w, h = truth.boxes_xywh[wanted].T
    targets = np.stack([x, y, x + w, y + h], axis=1).astype(np.float32)
    rows = truth.image[wanted]
    best = np.zeros((len(proposal_nums), len(wanted)), np.float32)
    bounds = np.searchsorted(rows, np.arange(truth.num_images + 1))
    for image, image_id in enumerate(truth.image_ids.tolist()):
        here = slice(bounds[image], bounds[image + 1])
        proposals = boxes.get(image_id)
        if here.start == here.stop or proposals is None or not len(proposals):
            continue
        ious = bbox_overlaps(targets[here], proposals[: max(proposal_nums)].astype(np.float32))
        for n, limit in enumerate(proposal_nums):
            best[n, here] = _greedy(ious[:, :limit])
    if not len(wanted):
        return np.zeros(len(proposal_nums))
    return np.array([[(row >= thr).sum() / len(wanted) for thr in iou_thrs] for row in best]).mean(axis=1)


def _greedy(ious: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU of each target when target and proposal of highest IoU are paired off repeatedly."""
    ious = ious.copy()
    best = np.zeros(len(ious), np.float32)
    for i in range(min(ious.shape)):
        target, proposal = np.unravel_index(ious.argmax(), ious.shape)
        best[i] = ious[target, proposal]
        ious[target, :] = -1
        ious[:, proposal] = -1
    return best
