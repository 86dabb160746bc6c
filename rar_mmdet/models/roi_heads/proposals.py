"""What the two RoI heads do with proposals around recognition: refine them before, and find masks after.

A head here is one of MMDetection's RoI heads whose classifier RAR replaces: it has `branch`, `selection`,
`box_refinement`, `weights` and `placeholder` beside what it inherits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from rar_mmdet.errors import ConfigError
from rar_mmdet.models.frames import ImageFrame

__all__ = [
    "RefinementStage",
    "drop_classification",
    "refuse_foreign_masks",
    "recognise_proposals",
    "without_classifier",
]

# rois (R, 5) in the input frame -> the stock head's results; and the bbox head itself.
RefinementStage = tuple[Callable[[Tensor], dict], Any]
_CLASSIFICATION_KEYS = ("fc_cls", "cls_convs", "cls_fcs")


def without_classifier(bbox_head: Any) -> Any:
    """The config of a bbox head that only regresses.

    A head that regresses class by class keeps its classifier, which then only chooses whose deltas are taken (as
    Cascade R-CNN does between its stages); no label comes from it.
    """
    if isinstance(bbox_head, list | tuple):
        return [without_classifier(head) for head in bbox_head]
    if bbox_head is None or not bbox_head.get("reg_class_agnostic", False):
        return bbox_head
    return {**bbox_head, "with_cls": False}


def refuse_foreign_masks(head: nn.Module, num_categories: int) -> None:
    """A mask branch of one mask for each class needs the classes to be the vocabulary's.

    Raises:
        ConfigError: their numbers differ.
    """
    for mask_head in _as_list(getattr(head, "mask_head", None)):
        if not getattr(mask_head, "class_agnostic", True) and mask_head.num_classes != num_categories:
            raise ConfigError(
                f"model.roi_head.mask_head predicts one mask for each of its {mask_head.num_classes} classes, but the "
                f"vocabulary has {num_categories}; set mask_head.class_agnostic=True (and use such a checkpoint), "
                "remove the mask head, or recognise with the detector's own vocabulary"
            )


def drop_classification(head: nn.Module, state_dict: dict, prefix: str, *_: Any) -> None:
    """Before loading a checkpoint: leave out what RAR replaces, by name and with a note."""
    built = {prefix + name for name, _ in head.named_parameters()}
    no_bbox_head = not _as_list(getattr(head, "bbox_head", None))
    dropped = [
        key
        for key in state_dict
        if key.startswith(prefix + "bbox_head.")
        and key not in built
        and (no_bbox_head or any(part in key.split(".") for part in _CLASSIFICATION_KEYS))
    ]
    for key in dropped:
        del state_dict[key]
    if dropped:
        print_log(f"RAR replaces the classification branch; not loaded: {', '.join(dropped)}", logger="current")


def recognise_proposals(
    head: Any,
    stages: Sequence[RefinementStage],
    x: tuple[Tensor, ...],
    rpn_results_list: list[InstanceData],
    batch_data_samples: SampleList,
    rescale: bool,
) -> list[InstanceData]:
    """Refine, select and recognise the proposals of a batch; also writes `recognition` on the data samples.

    Args:
        head: the RoI head.
        stages: its bbox heads in turn; none when the proposals stand as they are.
        x: feature maps.
        rpn_results_list: B proposals with `bboxes` (P, 4), input frame, and `scores` (P,), the objectness.
        batch_data_samples: B data samples.
        rescale: boxes and masks in the size of the original image.

    Returns:
        B times `bboxes`, `scores`, `labels`, `region_ids`, `label_names` and, with a mask head, `masks`.
    """
    head.weights.warn("the detector around this RoI head")
    metas = [sample.metainfo for sample in batch_data_samples]
    frames = [ImageFrame.from_metainfo(meta) for meta in metas]
    refined = _refine(stages, [get_box_tensor(p.bboxes) for p in rpn_results_list], metas)
    boxes, scores = [], []
    for boxes_input, proposals, frame in zip(refined, rpn_results_list, frames, strict=True):
        objectness = proposals.get("scores", boxes_input.new_ones(len(boxes_input)))
        selected, rows = head.selection(frame.to_original(boxes_input), objectness, frame.original_hw)
        boxes.append(selected)
        scores.append(objectness[rows])
    device = head.placeholder.device
    results = head.branch.predict(batch_data_samples, boxes, scores, rescale=rescale, device=device)
    return _with_masks(head, x, metas, frames, results, rescale) if head.with_mask else results


def _refine(stages: Sequence[RefinementStage], boxes: list[Tensor], metas: list[dict]) -> list[Tensor]:
    """Regress boxes (P_b, 4), input frame, by the trained bbox heads."""
    if sum(map(len, boxes)) == 0:
        return boxes
    for forward, head in stages:
        results = forward(bbox2roi(boxes))
        counts = [len(b) for b in boxes]
        deltas = results["bbox_pred"].split(counts)
        labels = _delta_classes(head, results["cls_score"], sum(counts), boxes[0].device).split(counts)
        boxes = [
            get_box_tensor(head.regress_by_class(b, label, delta, meta))
            for b, label, delta, meta in zip(boxes, labels, deltas, metas, strict=True)
        ]
    return boxes


def _delta_classes(head: Any, cls_score: Tensor | None, num: int, device: torch.device) -> Tensor:
    """(num,) int64: whose deltas to take."""
    if head.reg_class_agnostic or cls_score is None:
        return torch.zeros(num, dtype=torch.int64, device=device)
    if head.custom_activation:
        cls_score = head.loss_cls.get_activation(cls_score)
    return cls_score[:, : head.num_classes].argmax(dim=1)


def _with_masks(
    head: Any,
    x: tuple[Tensor, ...],
    metas: list[dict],
    frames: list[ImageFrame],
    results: list[InstanceData],
    rescale: bool,
) -> list[InstanceData]:
    """Masks by the stock mask branch, which wants boxes in the input frame and rescales them by itself."""
    rows = [_mask_rows(head, result) for result in results]
    boxes = [
        InstanceData(
            bboxes=(frame.to_input(result.bboxes) if rescale else result.bboxes)[keep].clone(),
            scores=result.scores[keep],
            labels=result.labels[keep],
        )
        for result, frame, (keep, _) in zip(results, frames, rows, strict=True)
    ]
    masked = head.predict_mask(x, metas, boxes, rescale=rescale)
    for result, found, frame, (_, inverse) in zip(results, masked, frames, rows, strict=True):
        result.masks = (frame.masks_from_detector(found.masks) if rescale else found.masks)[inverse]
    return results


def _mask_rows(head: Any, result: InstanceData) -> tuple[Tensor, Tensor]:
    """Which detections get a mask of their own, and whose each detection takes.

    A class-agnostic mask depends on the box alone; one box has many labels.
    """
    if not all(mask_head.class_agnostic for mask_head in _as_list(head.mask_head)):
        every = torch.arange(len(result), device=result.scores.device)
        return every, every
    regions, inverse = result.region_ids.unique(return_inverse=True)
    any_of_region = torch.zeros_like(regions)
    any_of_region[inverse] = torch.arange(len(result), device=inverse.device)
    return any_of_region, inverse


def _as_list(heads: Any) -> Sequence[Any]:
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]
