"""Test-time augmentation that keeps what is known of each region."""

from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from rar_mmdet.registry import MODELS

__all__ = ["RecognitionTTAModel"]


@MODELS.register_module()
class RecognitionTTAModel(DetTTAModel):
    """`DetTTAModel` whose result keeps `recognition`, `region_ids` and `label_names`, all in original pixels.

    Regions are cut from the original image, whatever the view. Boxes that are given are the same in every view, and so
    is their recognition: one view is the result, without the NMS between views, which would drop annotated boxes. Boxes
    that a detector finds differ from view to view and are merged by `tta_cfg`.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        """The views of one image as one data sample."""
        if any("recognition" not in sample for sample in data_samples):
            return super()._merge_single_sample(data_samples)
        views = [_in_original_frame(sample) for sample in data_samples]
        merged = data_samples[0]
        boxes = [sample.recognition.bboxes for sample in data_samples]
        if all(torch.equal(boxes[0], others) for others in boxes[1:]):
            merged.pred_instances = views[0]
            return merged
        starts = torch.tensor([0, *(len(b) for b in boxes[:-1])]).cumsum(0).tolist()
        for view, start in zip(views, starts, strict=True):
            view.region_ids = view.region_ids + start
        merged.recognition = InstanceData.cat([sample.recognition for sample in data_samples])
        merged.pred_instances = self._suppress(InstanceData.cat(views))
        return merged

    def _suppress(self, found: InstanceData) -> InstanceData:
        """The best detections after NMS within each label."""
        if len(found) == 0:
            return found
        kept, rows = batched_nms(found.bboxes, found.scores, found.labels, self.tta_cfg["nms"])
        result = found[rows[: self.tta_cfg["max_per_img"]]]
        result.scores = kept[: self.tta_cfg["max_per_img"], -1]
        return result


def _in_original_frame(sample: DetDataSample) -> InstanceData:
    """The detections of a view with the boxes that were recognised, which know no flip."""
    found = sample.pred_instances.clone()
    found.bboxes = sample.recognition.bboxes[found.region_ids.cpu()].to(found.bboxes)
    return found
