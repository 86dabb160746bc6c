"""RoI heads of two-stage detectors whose classification branch is RAR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models.anchor import DistributedAnchor
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.region_classifier import RegionClassifier, RegionSelection
from rar_mmdet.registry import MODELS

__all__ = ["RARCascadeRoIHead", "RARRoIHead"]

# (s * objectness)^0.5 and per-class NMS 0.5, as RegionCLIP and Detic do; 300 detections is what LVIS scores.
_EMISSION = TopPairs(max_per_image=300, box_score_weight=0.5, nms_iou=0.5)
_CLASSIFICATION_KEYS = ("fc_cls", "cls_convs", "cls_fcs")
# What a refinement stage is: rois (R, 5) in the input frame -> the stock head's results; and the head.
_Stage = tuple[Callable[[Tensor], dict], Any]


def _without_classifier(bbox_head: Any) -> Any:
    """The config of a bbox head that only regresses.

    A head that regresses class by class keeps its classifier, which then only chooses whose deltas are taken (as
    Cascade R-CNN does between its stages); no label comes from it.
    """
    if isinstance(bbox_head, list | tuple):
        return [_without_classifier(head) for head in bbox_head]
    if bbox_head is None or not bbox_head.get("reg_class_agnostic", False):
        return bbox_head
    return {**bbox_head, "with_cls": False}


class _RecognitionMixin:
    """What both heads share; expects to stand before an MMDetection RoI head in the bases."""

    def _init_recognition(
        self, recognizer: Any, selection: dict | None, box_refinement: bool, backend_args: dict | None
    ) -> None:
        self.classifier = RegionClassifier(
            recognizer, where="model.roi_head.recognizer", default_emission=_EMISSION, backend_args=backend_args
        )
        try:
            self.selection = RegionSelection(**(selection or {}))
        except TypeError as error:
            raise ConfigError(f"model.roi_head.selection: {error}") from error
        self.box_refinement = box_refinement
        self.anchor = DistributedAnchor()
        self._register_load_state_dict_pre_hook(self._drop_classification)  # type: ignore[attr-defined]
        num_categories = len(self.classifier.recognizer.category_names)
        for head in _as_list(getattr(self, "mask_head", None)):
            if not getattr(head, "class_agnostic", True) and head.num_classes != num_categories:
                raise ConfigError(
                    f"model.roi_head.mask_head predicts one mask for each of its {head.num_classes} classes, but the "
                    f"vocabulary has {num_categories}; set mask_head.class_agnostic=True (and use such a checkpoint), "
                    "remove the mask head, or recognise with the detector's own vocabulary"
                )

    @property
    def with_bbox(self) -> bool:
        """True: boxes are always predicted, with or without a `bbox_head` that refines them."""
        return True

    def _drop_classification(self, state_dict: dict, prefix: str, *_: Any) -> None:
        """Before loading: leave out what RAR replaces, by name and with a note."""
        built = {prefix + name for name, _ in self.named_parameters()}  # type: ignore[attr-defined]
        dropped = [
            key
            for key in state_dict
            if key.startswith(prefix + "bbox_head.")
            and key not in built
            and (not self._has_bbox_head() or any(part in key.split(".") for part in _CLASSIFICATION_KEYS))
        ]
        for key in dropped:
            del state_dict[key]
        if dropped:
            print_log(f"RAR replaces the classification branch; not loaded: {', '.join(dropped)}", logger="current")

    def _has_bbox_head(self) -> bool:
        return bool(_as_list(getattr(self, "bbox_head", None)))

    def _stages(self, x: tuple[Tensor, ...]) -> list[_Stage]:
        raise NotImplementedError

    def _refine(self, x: tuple[Tensor, ...], boxes: list[Tensor], metas: list[dict]) -> list[Tensor]:
        """Regress boxes (P_b, 4), input frame, by the trained bbox heads."""
        if not (self.box_refinement and self._has_bbox_head()) or sum(map(len, boxes)) == 0:
            return boxes
        for forward, head in self._stages(x):
            results = forward(bbox2roi(boxes))
            counts = [len(b) for b in boxes]
            deltas = results["bbox_pred"].split(counts)
            labels = _delta_classes(head, results["cls_score"], sum(counts), boxes[0].device).split(counts)
            boxes = [
                get_box_tensor(head.regress_by_class(b, label, delta, meta))
                for b, label, delta, meta in zip(boxes, labels, deltas, metas, strict=True)
            ]
        return boxes

    def predict(
        self,
        x: tuple[Tensor, ...],
        rpn_results_list: list[InstanceData],
        batch_data_samples: SampleList,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Recognise the proposals of a batch; also writes `recognition` on the data samples.

        Args:
            x: feature maps.
            rpn_results_list: B proposals with `bboxes` (P, 4), input frame, and `scores` (P,), the objectness.
            batch_data_samples: B data samples.
            rescale: boxes and masks in the size of the original image.

        Returns:
            B times `bboxes`, `scores`, `labels`, `region_ids`, `label_names` and, with a mask head, `masks`.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        frames = [ImageFrame.from_metainfo(meta) for meta in metas]
        refined = self._refine(x, [get_box_tensor(p.bboxes) for p in rpn_results_list], metas)
        boxes, scores = [], []
        for boxes_input, proposals, frame in zip(refined, rpn_results_list, frames, strict=True):
            objectness = proposals.get("scores", boxes_input.new_ones(len(boxes_input)))
            selected, rows = self.selection(frame.to_original(boxes_input), objectness, frame)
            boxes.append(selected)
            scores.append(objectness[rows])
        device = self.anchor.device
        recognitions = self.classifier(batch_data_samples, boxes, scores, device)
        results = [
            self.classifier.to_instances(recognition, frame, rescale, device)
            for recognition, frame in zip(recognitions, frames, strict=True)
        ]
        if self.with_mask:  # type: ignore[attr-defined]
            results = self._add_masks(x, metas, frames, results, rescale)
        return results

    def _add_masks(
        self,
        x: tuple[Tensor, ...],
        metas: list[dict],
        frames: list[ImageFrame],
        results: list[InstanceData],
        rescale: bool,
    ) -> list[InstanceData]:
        """Masks by the stock mask branch, which wants boxes in the input frame and rescales them by itself."""
        rows = [self._mask_rows(result) for result in results]
        boxes = [
            InstanceData(
                bboxes=(frame.to_input(frame.from_output(result.bboxes)) if rescale else result.bboxes)[keep].clone(),
                scores=result.scores[keep],
                labels=result.labels[keep],
            )
            for result, frame, (keep, _) in zip(results, frames, rows, strict=True)
        ]
        masked = self.predict_mask(x, metas, boxes, rescale=rescale)  # type: ignore[attr-defined]
        for result, found, (_, inverse) in zip(results, masked, rows, strict=True):
            result.masks = found.masks[inverse]
        return results

    def _mask_rows(self, result: InstanceData) -> tuple[Tensor, Tensor]:
        """Which detections get a mask of their own, and whose each detection takes.

        A class-agnostic mask depends on the box alone; one box has many labels.
        """
        if not all(head.class_agnostic for head in _as_list(self.mask_head)):  # type: ignore[attr-defined]
            every = torch.arange(len(result), device=result.scores.device)
            return every, every
        regions, inverse = result.region_ids.unique(return_inverse=True)
        any_of_region = torch.zeros_like(regions)
        any_of_region[inverse] = torch.arange(len(result), device=inverse.device)
        return any_of_region, inverse

    def loss(self, x: tuple[Tensor, ...], rpn_results_list: Sequence[Any], batch_data_samples: SampleList) -> dict:
        """Refuse: RAR is training-free."""
        raise InferenceOnlyError(
            f"{type(self).__name__} is inference only: RAR needs no training. Train the detector with its stock RoI "
            "head and load that checkpoint here"
        )


def _as_list(heads: Any) -> Sequence[Any]:
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _delta_classes(head: Any, cls_score: Tensor | None, num: int, device: torch.device) -> Tensor:
    """(num,) int64: whose deltas to take."""
    if head.reg_class_agnostic or cls_score is None:
        return torch.zeros(num, dtype=torch.int64, device=device)
    if head.custom_activation:
        cls_score = head.loss_cls.get_activation(cls_score)
    return cls_score[:, : head.num_classes].argmax(dim=1)


@MODELS.register_module()
class RARRoIHead(_RecognitionMixin, StandardRoIHead):
    """`StandardRoIHead` (Fast, Faster, Mask R-CNN) that retrieves and ranks names instead of classifying features.

    Args:
        recognizer: config of the `RegionRecognizer`. Its default emission is (s * objectness)^0.5, per-class NMS at 0.5
            and the best 300.
        selection: arguments of `RegionSelection`: which proposals are recognised.
        box_refinement: let the `bbox_head`, if one is configured, regress the proposals.
        bbox_roi_extractor: as in `StandardRoIHead`.
        bbox_head: as in `StandardRoIHead`; `None` when the proposals stand as they are.
        mask_roi_extractor: as in `StandardRoIHead`.
        mask_head: as in `StandardRoIHead`; class-agnostic, or of the vocabulary's classes.
        shared_head: as in `StandardRoIHead`.
        train_cfg: accepted, so that a stock config stays as it is.
        test_cfg: only `mask_thr_binary` is read; the other rules are `emission` and `selection`.
        backend_args: MMEngine file backend for images that were not packed.
        init_cfg: as in `StandardRoIHead`.
    """

    def __init__(
        self,
        *,
        recognizer: Any,
        selection: dict | None = None,
        box_refinement: bool = True,
        bbox_roi_extractor: Any = None,
        bbox_head: Any = None,
        mask_roi_extractor: Any = None,
        mask_head: Any = None,
        shared_head: Any = None,
        train_cfg: Any = None,
        test_cfg: Any = None,
        backend_args: dict | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(
            bbox_roi_extractor=bbox_roi_extractor,
            bbox_head=_without_classifier(bbox_head),
            mask_roi_extractor=mask_roi_extractor,
            mask_head=mask_head,
            shared_head=shared_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        self._init_recognition(recognizer, selection, box_refinement, backend_args)

    def _stages(self, x: tuple[Tensor, ...]) -> list[_Stage]:
        return [(partial(self._bbox_forward, x), self.bbox_head)]


@MODELS.register_module()
class RARCascadeRoIHead(_RecognitionMixin, CascadeRoIHead):
    """`CascadeRoIHead` that retrieves and ranks names instead of classifying features; every stage still regresses.

    Args:
        recognizer: as in `RARRoIHead`.
        num_stages: as in `CascadeRoIHead`.
        stage_loss_weights: accepted, so that a stock config stays as it is.
        bbox_roi_extractor: as in `CascadeRoIHead`.
        bbox_head: as in `CascadeRoIHead`.
        selection: as in `RARRoIHead`.
        box_refinement: as in `RARRoIHead`.
        mask_roi_extractor: as in `CascadeRoIHead`.
        mask_head: as in `RARRoIHead`.
        train_cfg: accepted, so that a stock config stays as it is.
        test_cfg: as in `RARRoIHead`.
        backend_args: as in `RARRoIHead`.
        init_cfg: as in `CascadeRoIHead`.
    """

    def __init__(
        self,
        *,
        recognizer: Any,
        num_stages: int,
        stage_loss_weights: list[float],
        bbox_roi_extractor: Any,
        bbox_head: Any,
        selection: dict | None = None,
        box_refinement: bool = True,
        mask_roi_extractor: Any = None,
        mask_head: Any = None,
        train_cfg: Any = None,
        test_cfg: Any = None,
        backend_args: dict | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(
            num_stages=num_stages,
            stage_loss_weights=stage_loss_weights,
            bbox_roi_extractor=bbox_roi_extractor,
            bbox_head=_without_classifier(bbox_head),
            mask_roi_extractor=mask_roi_extractor,
            mask_head=mask_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        self._init_recognition(recognizer, selection, box_refinement, backend_args)

    def _stages(self, x: tuple[Tensor, ...]) -> list[_Stage]:
        return [(partial(self._bbox_forward, stage, x), head) for stage, head in enumerate(self.bbox_head)]
