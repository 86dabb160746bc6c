"""Pipeline steps that carry the original pixels, given boxes and crops made in the workers to the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmengine.structures import InstanceData

from rar_mmdet.components import build_component
from rar_mmdet.datasets.original_frame import (
    annotated_boxes,
    annotated_objects,
    give_boxes,
    given_boxes,
    keep_proposals,
    with_original_objects,
)
from rar_mmdet.errors import ConfigError
from rar_mmdet.files.images import check_complete, check_size
from rar_mmdet.files.pixels import bgr_to_rgb
from rar_mmdet.models.frames import ImageFrame, describe
from rar_mmdet.recognizer import crop_regions
from rar_mmdet.regions import find_invalid_boxes
from rar_mmdet.registry import TRANSFORMS
from rar_mmdet.structures import ImageRegions, RegionCrops

__all__ = ["CropRegions", "KeepOriginalImage", "PackRecognitionInputs", "ProposalsFromAnnotations"]


@TRANSFORMS.register_module()
class KeepOriginalImage(BaseTransform):
    """Keep the pixels as loaded, for cutting regions. Put it after loading and before every other transform.

    Required keys: `img` (BGR as MMDetection loads it, or grey; bytes, or floats in 0..255). Added keys: `ori_img`,
    (H, W, 3) uint8 BGR, the same array where it is that already (the stock transforms replace `img`, they do not write
    into it); `given_boxes` and `given_scores`, the boxes of the dataset's proposal file where there is one.

    Args:
        check: refuse a truncated local JPEG or PNG, and an image whose size is not the annotation's `height` and
            `width`; both would give wrong pixels without an error.

    Raises:
        ImageReadError: the check failed, or the values are no grey levels.
    """

    def __init__(self, *, check: bool = True) -> None:
        self.check = check

    def transform(self, results: dict) -> dict:
        """Add `ori_img`."""
        if not ImageFrame.from_metainfo(results).is_identity:
            raise ConfigError(
                f"{describe(results)} was resized, flipped or cut before KeepOriginalImage; put it right after the "
                "loading transform"
            )
        name = describe(results)
        if self.check and "unreadable" not in results:
            self._check(results, name)
        keep_proposals(results)
        image = results["img"]
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            image = bgr_to_rgb(image, name)[..., ::-1]
        results["ori_img"] = image
        return results

    @staticmethod
    def _check(results: dict, name: str) -> None:
        path = results.get("img_path")
        if isinstance(path, str) and os.path.isfile(path):
            check_complete(Path(path).read_bytes(), name)
        height, width = results.get("height"), results.get("width")
        if height is not None and width is not None:
            check_size(results["img"].shape[:2], (height, width), f"{name}, as the pipeline loads it,")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(check={self.check})"


@TRANSFORMS.register_module()
class ProposalsFromAnnotations(BaseTransform):
    """The annotated boxes as proposals with score 1: recognition of given regions, the paper's protocol.

    Required keys: `gt_bboxes`, `gt_ignore_flags` (from `LoadAnnotations`). Added keys: `given_boxes`, `given_scores` in
    original pixels, which no later transform moves; `proposals`, `proposals_scores`, the same for MMDetection's own
    transforms; `proposal_masks` in place of `gt_masks` (large, and only cropping looks at them).

    Args:
        with_ignored: take crowd and ignored boxes too. Off: they are no objects of one category, and MMDetection keeps
            them out of `gt_instances` as well. With masks it also ignores objects without a valid polygon.
        with_masks: keep the masks of these boxes for `CropRegions`; after `LoadAnnotations(with_mask=True)`.
    """

    def __init__(self, *, with_ignored: bool = False, with_masks: bool = False) -> None:
        self.with_ignored, self.with_masks = with_ignored, with_masks

    def transform(self, results: dict) -> dict:
        """Add `given_boxes` (R, 4) float32 xyxy, `given_scores` (R,) ones, `proposal_masks` (R, H, W) uint8.

        Raises:
            ConfigError: there are no annotations, or what is known of the image does not say where they are in it.
        """
        if "gt_bboxes" not in results:
            raise ConfigError(
                "ProposalsFromAnnotations found no `gt_bboxes`; put LoadAnnotations(with_bbox=True) before it"
            )
        boxes = annotated_boxes(results)
        flags = results.get("gt_ignore_flags", np.zeros(len(boxes), dtype=bool))
        keep = self.with_ignored | ~np.asarray(flags, dtype=bool)
        give_boxes(results, boxes[keep], np.ones(int(keep.sum()), dtype=np.float32))
        results["proposals"], results["proposals_scores"] = results["given_boxes"], results["given_scores"]
        if self.with_masks:
            self._keep_masks(results, keep)
        return results

    @staticmethod
    def _keep_masks(results: dict, keep: np.ndarray) -> None:
        if "gt_masks" not in results:
            raise ConfigError(
                "ProposalsFromAnnotations(with_masks=True) found no `gt_masks`; put "
                "LoadAnnotations(with_bbox=True, with_mask=True) before it"
            )
        if not ImageFrame.from_metainfo(results).is_identity:
            raise ConfigError(
                f"{describe(results)} was resized, flipped or cut before ProposalsFromAnnotations(with_masks=True), "
                "which cannot take masks back; put it right after LoadAnnotations"
            )
        results["proposal_masks"] = results.pop("gt_masks").to_ndarray()[keep]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(with_ignored={self.with_ignored}, with_masks={self.with_masks})"


@TRANSFORMS.register_module()
class CropRegions(BaseTransform):
    """Cut the crops of known boxes in the dataloader workers, so that cutting overlaps with the models.

    Required keys: `ori_img` or an unchanged `img`, boxes from `ProposalsFromAnnotations` or `LoadProposals` and, for a
    background that keeps masks sharp, `proposal_masks`. Added keys: `region_crops`. The original image is not packed
    any more: crops are all the model needs.

    Args:
        cropper: the config of the recognizer's `cropper`, with its `size`.
        ranker_cropper: the config of its `ranker_cropper`, with its `size`; `None` when there is no ranker.

    The crops carry these settings; a recognizer with others refuses them. An image with a box that cannot be cut is
    left to the recognizer, which raises or skips and counts.
    """

    def __init__(self, *, cropper: dict, ranker_cropper: dict | None = None) -> None:
        self.cropper = build_component(cropper, "CropRegions.cropper", default_type="RegionCropper")
        self.ranker_cropper = ranker_cropper and build_component(
            ranker_cropper, "CropRegions.ranker_cropper", default_type="RegionCropper"
        )
        for name, own in (("cropper", self.cropper), ("ranker_cropper", self.ranker_cropper)):
            if own and own.size is None:
                raise ConfigError(
                    f"CropRegions.{name} needs `size`: the workers have no encoder or ranker to ask for it"
                )

    def transform(self, results: dict) -> dict:
        """Add `region_crops`."""
        given = given_boxes(results)
        if given is None:
            raise ConfigError(
                "CropRegions found no `proposals`; put ProposalsFromAnnotations or LoadProposals before it"
            )
        image = self._original_image(results)
        boxes, masks = torch.from_numpy(given[0]), results.get("proposal_masks")
        if not find_invalid_boxes(boxes, image.shape[:2]):
            regions = ImageRegions(image, boxes, masks=masks)
            made = RegionCrops(crop_regions(self.cropper, regions), encoder_cropper=self.cropper)
            if self.ranker_cropper:
                crops = crop_regions(self.ranker_cropper, regions)
                made = replace(made, ranker=crops, ranker_cropper=self.ranker_cropper)
            results["region_crops"] = made
        return results

    @staticmethod
    def _original_image(results: dict) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        if "ori_img" in results:
            return np.ascontiguousarray(results["ori_img"][..., ::-1])
        if not ImageFrame.from_metainfo(results).is_identity:
            raise ConfigError(
                f"{describe(results)} was resized, flipped or cut before CropRegions; put "
                "dict(type='rar_mmdet.KeepOriginalImage') right after the loading transform"
            )
        return bgr_to_rgb(results["img"], describe(results))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cropper={self.cropper!r}, ranker_cropper={self.ranker_cropper!r})"


@TRANSFORMS.register_module()
class PackRecognitionInputs(PackDetInputs):
    """`PackDetInputs` that also packs `ori_img` (RGB) or `region_crops`, and boxes where the model looks for them.

    On the data sample: `given_boxes`, in original pixels, are what `ProposalRecognizer` names; `proposals` are the same
    boxes in the frame of the network input, as MMDetection's detectors expect them, whatever moved the image;
    `gt_instances` are in original pixels, which is where they are drawn and compared with predictions; `annotated` are
    the dataset's objects, also where the pipeline loads no annotations, for the records of a run.

    Pixels are fields, not metainfo, so that they travel to the model's device with the data sample; the model drops
    them after use, so that they never reach metrics and result files.

    Args:
        meta_keys: as in `PackDetInputs`; `homography_matrix` is added where the image was moved.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
            "flip",
            "flip_direction",
        ),
    ) -> None:
        super().__init__(meta_keys=meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack.

        Raises:
            ConfigError: the image was moved in a way that boxes cannot follow, such as a rotation.
        """
        frame = ImageFrame.from_metainfo(results)
        given = given_boxes(results) if _tells_frames_apart(results, frame) else None
        packed: dict[str, Any] = super().transform(with_original_objects(results, frame))
        sample = packed["data_samples"]
        if not frame.is_identity and "homography_matrix" in results:
            sample.set_metainfo({"homography_matrix": results["homography_matrix"]})
        if "unreadable" in results:  # the dataset could not read the image, and there is nothing to see
            sample.set_metainfo({"unreadable": results["unreadable"]})
        annotated = annotated_objects(results)
        if annotated is not None:
            sample.annotated = InstanceData(**annotated)
        if given is not None:
            boxes, scores = (torch.from_numpy(values) for values in given)
            sample.given_boxes = InstanceData(bboxes=boxes, scores=scores)
            sample.proposals = InstanceData(bboxes=frame.to_input(boxes), scores=scores)
        if "region_crops" in results:
            sample.set_field(results["region_crops"], "region_crops")
        elif "ori_img" in results:
            rgb = np.ascontiguousarray(results["ori_img"][..., ::-1])
            sample.set_field(torch.from_numpy(rgb), "ori_img")
        return packed


def _tells_frames_apart(results: dict, frame: ImageFrame) -> bool:
    """Whether it is known which boxes are given: else they are MMDetection's `proposals`, and the model decides."""
    return "given_boxes" in results or frame.is_identity
