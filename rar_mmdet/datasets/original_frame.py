"""Boxes of a pipeline's results in pixels of the original image, whatever was done to the image meanwhile.

MMDetection's transforms move `gt_bboxes` and leave `proposals` where they are, unless these are wrapped in
`ProposalBroadcaster`. Whether an array was moved cannot be seen in it. So boxes to recognise are kept in the original
frame under keys of their own, `given_boxes` and `given_scores`, which no transform touches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from numpy.typing import NDArray

from rar_mmdet.errors import ConfigError
from rar_mmdet.models.frames import ImageFrame, describe

__all__ = [
    "annotated_boxes",
    "annotated_objects",
    "give_boxes",
    "given_boxes",
    "keep_proposals",
    "with_original_objects",
]


def _as_array(boxes: Any) -> NDArray[np.float32]:
    """(R, 4) float32 xyxy from MMDetection's boxes, a tensor or an array; always a copy."""
    boxes = boxes.tensor if isinstance(boxes, BaseBoxes) else boxes
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


def annotated_boxes(results: dict) -> NDArray[np.float32]:
    """(G, 4) annotated boxes xyxy in original pixels, one for each row of `gt_bboxes`.

    Raises:
        ConfigError: annotations were dropped and the image was moved, so that nobody knows which frame is meant.
    """
    boxes = _as_array(results["gt_bboxes"])
    if ImageFrame.from_metainfo(results).is_identity:
        return boxes
    # Loaded before a Resize or flip they were moved, loaded after it they were not: the annotations themselves decide.
    annotations = results.get("instances")
    if annotations is None or len(annotations) != len(boxes):
        raise ConfigError(
            f"{describe(results)}: {len(boxes)} annotated boxes are left after the image was resized, flipped or cut, "
            "so their frame is not known; put LoadAnnotations and ProposalsFromAnnotations before those transforms"
        )
    return _as_array([annotation["bbox"] for annotation in annotations])


def annotated_objects(results: dict) -> dict[str, torch.Tensor] | None:
    """Boxes (G, 4) in original pixels and labels (G,) of what the dataset has on the image; `None` if it has nothing.

    Crowds and ignored objects are left out, as MMDetection leaves them out of `gt_instances`.
    """
    annotations = results.get("instances")
    if not annotations or "bbox_label" not in annotations[0]:
        return None
    kept = [annotation for annotation in annotations if not annotation.get("ignore_flag", 0)]
    return {
        "bboxes": torch.from_numpy(_as_array([annotation["bbox"] for annotation in kept])),
        "labels": torch.tensor([annotation["bbox_label"] for annotation in kept], dtype=torch.int64),
    }


def with_original_objects(results: dict, frame: ImageFrame) -> dict[str, Any]:
    """The results with `gt_bboxes` and what belongs to them in original pixels.

    Of a moved image the objects are the annotations themselves, also those that a transform dropped.
    """
    annotations = results.get("instances")
    if "gt_bboxes" not in results or frame.is_identity or annotations is None:
        return results
    boxes, found = _as_array([annotation["bbox"] for annotation in annotations]), _as_array(results["gt_bboxes"])
    if len(boxes) == len(found) and np.allclose(boxes, found, atol=1e-3):
        return results  # loaded after the image was moved
    truth = {
        "gt_bboxes": HorizontalBoxes(boxes),
        "gt_bboxes_labels": np.array([annotation["bbox_label"] for annotation in annotations], dtype=np.int64),
        "gt_ignore_flags": np.array([annotation.get("ignore_flag", 0) for annotation in annotations], dtype=bool),
    }
    # Masks were moved with the image; what looks at `gt_instances` in a test draws boxes.
    return {key: value for key, value in results.items() if key != "gt_masks"} | truth


def give_boxes(results: dict, boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
    """Set the boxes to recognise, (R, 4) in original pixels, with their (R,) scores."""
    results["given_boxes"], results["given_scores"] = boxes_xyxy, scores


def keep_proposals(results: dict) -> None:
    """Before the image is moved: note the boxes of a proposal file, as the dataset or `LoadProposals` left them."""
    proposals = results.get("proposals")
    if proposals is None or "given_boxes" in results:
        return
    if isinstance(proposals, np.ndarray):
        scores = results.get("proposals_scores", np.zeros(len(proposals), dtype=np.float32))
        give_boxes(results, _as_array(proposals), scores.copy())
    else:
        boxes = _as_array(proposals["bboxes"])
        scores = proposals["scores"] if "scores" in proposals else np.zeros(len(boxes))
        give_boxes(results, boxes, np.array(scores, dtype=np.float32))


def given_boxes(results: dict) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """(R, 4) boxes to recognise in original pixels and their (R,) scores; `None` where the pipeline has none.

    Raises:
        ConfigError: there are only `proposals`, and the image was resized or flipped.
    """
    loaded = results.get("proposals")
    if loaded is None:
        return None
    if not isinstance(loaded, np.ndarray | BaseBoxes):
        raise ConfigError(
            f"{describe(results)}: the proposals are still as the proposal file has them; put "
            "dict(type='LoadProposals') into the pipeline"
        )
    if "given_boxes" not in results:
        if not ImageFrame.from_metainfo(results).is_identity:
            raise ConfigError(
                f"{describe(results)} was resized, flipped or cut, and whether its proposals were moved with it cannot "
                "be told; put dict(type='rar_mmdet.KeepOriginalImage') right after the loading transform"
            )
        keep_proposals(results)
    boxes, scores = results["given_boxes"], results["given_scores"]
    if len(loaded) == len(boxes):
        return boxes, scores
    if len(loaded) > len(boxes) or not ImageFrame.from_metainfo(results).is_plain:
        raise ConfigError(
            f"{describe(results)}: {len(boxes)} boxes were given and {len(loaded)} are left; a crop dropped some, or "
            "they were loaded twice. Remove that step"
        )
    return boxes[: len(loaded)], scores[: len(loaded)]  # `LoadProposals(num_max_proposals=...)` keeps the first
