"""RoI heads of two-stage detectors whose classification branch is RAR."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from rar_mmdet.detectors.selection import RegionSelection
from rar_mmdet.emission import FOUND_BOXES
from rar_mmdet.errors import InferenceOnlyError
from rar_mmdet.models.placeholder import PlaceholderParameter
from rar_mmdet.models.recognition_branch import RecognitionBranch
from rar_mmdet.models.roi_heads.proposals import (
    drop_classification,
    recognise_proposals,
    refuse_foreign_masks,
    without_classifier,
)
from rar_mmdet.models.weights_check import WeightsCheck
from rar_mmdet.registry import MODELS

__all__ = ["RARCascadeRoIHead", "RARRoIHead"]

_WHERE = "model.roi_head"
_NO_TRAINING = (
    "is inference only: RAR needs no training. Train the detector with its stock RoI head and load that checkpoint here"
)


@MODELS.register_module()
class RARRoIHead(StandardRoIHead):
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
            bbox_head=without_classifier(bbox_head),
            mask_roi_extractor=mask_roi_extractor,
            mask_head=mask_head,
            shared_head=shared_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        self.branch = RecognitionBranch(
            recognizer, where=f"{_WHERE}.recognizer", default_emission=FOUND_BOXES, backend_args=backend_args
        )
        self.selection = RegionSelection.from_config(selection, f"{_WHERE}.selection")
        self.box_refinement = box_refinement
        self.placeholder = PlaceholderParameter()
        refuse_foreign_masks(self, len(self.branch.recognizer.category_names))
        self.register_load_state_dict_pre_hook(drop_classification)
        self.weights = WeightsCheck(self)

    @property
    def with_bbox(self) -> bool:
        """True: boxes are always predicted, with or without a `bbox_head` that refines them."""
        return True

    def predict(
        self,
        x: tuple[Tensor, ...],
        rpn_results_list: list[InstanceData],
        batch_data_samples: SampleList,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Recognise the proposals of a batch; see `recognise_proposals`."""
        bbox_head = getattr(self, "bbox_head", None) if self.box_refinement else None
        stages = [] if bbox_head is None else [(partial(self._bbox_forward, x), bbox_head)]
        return recognise_proposals(self, stages, x, rpn_results_list, batch_data_samples, rescale)

    def loss(self, x: tuple[Tensor, ...], rpn_results_list: Sequence[Any], batch_data_samples: SampleList) -> dict:
        """Refuse: RAR is training-free."""
        raise InferenceOnlyError(f"{type(self).__name__} {_NO_TRAINING}")


@MODELS.register_module()
class RARCascadeRoIHead(CascadeRoIHead):
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
            bbox_head=without_classifier(bbox_head),
            mask_roi_extractor=mask_roi_extractor,
            mask_head=mask_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        self.branch = RecognitionBranch(
            recognizer, where=f"{_WHERE}.recognizer", default_emission=FOUND_BOXES, backend_args=backend_args
        )
        self.selection = RegionSelection.from_config(selection, f"{_WHERE}.selection")
        self.box_refinement = box_refinement
        self.placeholder = PlaceholderParameter()
        refuse_foreign_masks(self, len(self.branch.recognizer.category_names))
        self.register_load_state_dict_pre_hook(drop_classification)
        self.weights = WeightsCheck(self)

    @property
    def with_bbox(self) -> bool:
        """True: boxes are always predicted, with or without a `bbox_head` that refines them."""
        return True

    def predict(
        self,
        x: tuple[Tensor, ...],
        rpn_results_list: list[InstanceData],
        batch_data_samples: SampleList,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Recognise the proposals of a batch; see `recognise_proposals`."""
        heads = enumerate(self.bbox_head if self.box_refinement else ())
        stages = [(partial(self._bbox_forward, stage, x), head) for stage, head in heads]
        return recognise_proposals(self, stages, x, rpn_results_list, batch_data_samples, rescale)

    def loss(self, x: tuple[Tensor, ...], rpn_results_list: Sequence[Any], batch_data_samples: SampleList) -> dict:
        """Refuse: RAR is training-free."""
        raise InferenceOnlyError(f"{type(self).__name__} {_NO_TRAINING}")
