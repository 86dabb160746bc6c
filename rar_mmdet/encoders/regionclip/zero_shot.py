"""RegionCLIP's own way from features to detections, with given boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from rar_mmdet.errors import ConfigError

__all__ = ["Detections", "region_logits", "zero_shot_detections"]


class Detections(NamedTuple):
    """M detections, best first."""

    boxes: Tensor  # (M, 4) float32 xyxy, clipped to the photo
    scores: Tensor  # (M,)
    classes: Tensor  # (M,) int64
    rows: Tensor  # (M,) int64: the box each comes from


def region_logits(features: Tensor, class_embeddings: Tensor, temperature: float = 0.01) -> Tensor:
    """Cosines over temperature; the last column is the background's, whose embedding is zero.

    The background takes part in the softmax: with names far from a box, all of them get little.

    Args:
        features: (R, D), of any length.
        class_embeddings: (C, D), of any length.
        temperature: 0.01 in the published configs; neither CLIP's learned scale nor 100 is used by name.

    Returns:
        (R, C + 1) float32.
    """
    if features.shape[-1] != class_embeddings.shape[-1]:
        raise ConfigError(
            f"features are {features.shape[-1]} wide, class embeddings {class_embeddings.shape[-1]}: they are of "
            "different checkpoints (RN50 has 1024, RN50x4 640)"
        )
    cosines = F.normalize(features.float(), dim=1) @ F.normalize(class_embeddings.float(), dim=1).T.to(features.device)
    return torch.cat([cosines, cosines.new_zeros(len(cosines), 1)], dim=1) / temperature


def zero_shot_detections(
    boxes_xyxy: Tensor,
    probabilities: Tensor,
    image_hw: tuple[int, int],
    score_threshold: float = 1e-4,
    nms_threshold: float = 0.5,
    top: int = 300,
) -> Detections:
    """Every (box, class) above the threshold, thinned class by class, the best ones first.

    Args:
        boxes_xyxy: (R, 4) in pixels of a photo of `image_hw`.
        probabilities: (R, C + 1), the softmax of `region_logits`.
        image_hw: height and width that boxes are clipped to.
        score_threshold: 1e-4 on LVIS with given boxes, 1e-3 on COCO.
        nms_threshold: IoU above which the worse of two boxes of one class goes, also between given boxes.
        top: detections that are kept: 300 on LVIS, 100 on COCO.
    """
    from torchvision.ops import batched_nms

    height, width = image_hw
    boxes = torch.minimum(boxes_xyxy.float().clamp_min(0), boxes_xyxy.new_tensor([width, height] * 2).float())
    scores = probabilities[:, :-1]
    usable = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    rows, classes = ((scores > score_threshold) & usable[:, None]).nonzero(as_tuple=True)
    kept = batched_nms(boxes[rows], scores[rows, classes], classes, nms_threshold)[:top]
    rows, classes = rows[kept], classes[kept]
    return Detections(boxes[rows], scores[rows, classes], classes, rows)
