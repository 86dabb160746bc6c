"""Pipeline steps that carry the original pixels, given boxes and crops made in the workers to the model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmdet.structures.bbox import get_box_tensor

from rar_mmdet.components import build_component
from rar_mmdet.errors import ConfigError, ImageReadError
from rar_mmdet.files.images import check_complete
from rar_mmdet.recognizer import crop_regions
from rar_mmdet.regions import find_invalid_boxes
from rar_mmdet.registry import TRANSFORMS
from rar_mmdet.structures import ImageRegions, RegionCrops

__all__ = ["CropRegions", "KeepOriginalImage", "PackRecognitionInputs", "ProposalsFromAnnotations"]


def _describe(results: dict) -> str:
    return f"image {results.get('img_id')} ({results.get('img_path')})"


@TRANSFORMS.register_module()
class KeepOriginalImage(BaseTransform):
    """Keep the pixels as loaded, for cutting regions. Put it after loading and before every other transform.

    Required keys: `img` (BGR, as MMDetection loads it). Added keys: `ori_img`, the same array (no copy is made; the
    stock transforms replace `img`, they do not write into it).

    Args:
        check: refuse a truncated local JPEG or PNG, and an image whose size is not the annotation's `height` and
            `width`; both would give wrong pixels without an error.

    Raises:
        ImageReadError: the check failed.
    """

    def __init__(self, *, check: bool = True) -> None:
        self.check = check

    def transform(self, results: dict) -> dict:
        """Add `ori_img`."""
        if self.check:
            self._check(results)
        results["ori_img"] = results["img"]
        return results

    @staticmethod
    def _check(results: dict) -> None:
        path = results.get("img_path")
        if isinstance(path, str) and os.path.isfile(path):
            check_complete(Path(path).read_bytes(), _describe(results))
        found_hw = results["img"].shape[:2]
        said_hw = (results.get("height"), results.get("width"))
        if None not in said_hw and tuple(said_hw) != tuple(found_hw):
            raise ImageReadError(
                f"{_describe(results)} is {found_hw[1]}x{found_hw[0]} px but its annotation says "
                f"{said_hw[1]}x{said_hw[0]}; boxes would fall on wrong pixels. Another file of that name, or an EXIF "
                "rotation (then load with color_type='color_ignore_orientation')? check=False goes on all the same"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(check={self.check})"


@TRANSFORMS.register_module()
class ProposalsFromAnnotations(BaseTransform):
    """The annotated boxes as proposals with score 1: recognition of given regions, the paper's protocol.

    Required keys: `gt_bboxes`, `gt_ignore_flags` (from `LoadAnnotations`). Added keys: `proposals`,
    `proposals_scores`; `proposal_masks` in place of `gt_masks` (large, and only cropping looks at them).

    Args:
        with_ignored: take crowd and ignored boxes too. Off: they are no objects of one category, and MMDetection keeps
            them out of `gt_instances` as well. With masks it also ignores objects without a valid polygon.
        with_masks: keep the masks of these boxes for `CropRegions`; after `LoadAnnotations(with_mask=True)`.
    """

    def __init__(self, *, with_ignored: bool = False, with_masks: bool = False) -> None:
        self.with_ignored, self.with_masks = with_ignored, with_masks

    def transform(self, results: dict) -> dict:
        """Add `proposals` (R, 4) float32 xyxy, `proposals_scores` (R,) ones, `proposal_masks` (R, H, W) uint8."""
        if "gt_bboxes" not in results:
            raise ConfigError(
                "ProposalsFromAnnotations found no `gt_bboxes`; put LoadAnnotations(with_bbox=True) before it"
            )
        boxes = (
            get_box_tensor(results["gt_bboxes"])
            if not isinstance(results["gt_bboxes"], np.ndarray)
            else (torch.from_numpy(results["gt_bboxes"]))
        )
        keep = self.with_ignored | ~np.asarray(results["gt_ignore_flags"], dtype=bool)
        results["proposals"] = boxes.numpy().astype(np.float32).reshape(-1, 4)[keep]
        results["proposals_scores"] = np.ones(len(results["proposals"]), dtype=np.float32)
        if self.with_masks:
            if "gt_masks" not in results:
                raise ConfigError(
                    "ProposalsFromAnnotations(with_masks=True) found no `gt_masks`; put "
                    "LoadAnnotations(with_bbox=True, with_mask=True) before it"
                )
            results["proposal_masks"] = results.pop("gt_masks").to_ndarray()[keep]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(with_ignored={self.with_ignored}, with_masks={self.with_masks})"


@TRANSFORMS.register_module()
class CropRegions(BaseTransform):
    """Cut the crops of known boxes in the dataloader workers, so that cutting overlaps with the models.

    Required keys: `ori_img` or `img`, `proposals` and, for a background that keeps masks sharp, `proposal_masks` in the
    same frame. Added keys: `region_crops`. The original image is not packed any more: crops are all the model needs.

    Args:
        cropper: the config of the recognizer's `cropper`.
        ranker_cropper: the config of its `ranker_cropper`; `None` when there is no ranker.

    The crops carry these settings; a recognizer with others refuses them. An image with a box that cannot be cut is
    left to the recognizer, which raises or skips and counts.
    """

    def __init__(self, *, cropper: dict, ranker_cropper: dict | None = None) -> None:
        self.cropper = build_component(cropper, "CropRegions.cropper", default_type="RegionCropper")
        self.ranker_cropper = ranker_cropper and build_component(
            ranker_cropper, "CropRegions.ranker_cropper", default_type="RegionCropper"
        )

    def transform(self, results: dict) -> dict:
        """Add `region_crops`."""
        if "proposals" not in results or not isinstance(results["proposals"], np.ndarray):
            raise ConfigError(
                "CropRegions found no `proposals`; put ProposalsFromAnnotations or LoadProposals before it"
            )
        image = np.ascontiguousarray(results.get("ori_img", results["img"])[..., ::-1])
        boxes, masks = torch.from_numpy(results["proposals"]), results.get("proposal_masks")
        if not find_invalid_boxes(boxes, image.shape[:2]):
            regions = ImageRegions(image, boxes, masks=masks)
            made = RegionCrops(crop_regions(self.cropper, regions), encoder_cropper=self.cropper)
            if self.ranker_cropper:
                crops = crop_regions(self.ranker_cropper, regions)
                made = replace(made, ranker=crops, ranker_cropper=self.ranker_cropper)
            results["region_crops"] = made
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cropper={self.cropper!r}, ranker_cropper={self.ranker_cropper!r})"


@TRANSFORMS.register_module()
class PackRecognitionInputs(PackDetInputs):
    """`PackDetInputs` that also packs `ori_img` (RGB) or `region_crops` on the data sample.

    They are fields, not metainfo, so that they travel to the model's device with the data sample; the model drops them
    after use, so that they never reach metrics and result files.

    Args:
        meta_keys: as in `PackDetInputs`.
    """

    def __init__(
        self,
        meta_keys: tuple[str, ...] = (
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
        """Pack."""
        packed: dict[str, Any] = super().transform(results)
        sample = packed["data_samples"]
        if "region_crops" in results:
            sample.set_field(results["region_crops"], "region_crops")
        elif "ori_img" in results:
            rgb = np.ascontiguousarray(results["ori_img"][..., ::-1])
            sample.set_field(torch.from_numpy(rgb), "ori_img")
        return packed
