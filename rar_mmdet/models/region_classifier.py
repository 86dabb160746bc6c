"""What heads, wrapper and proposal recogniser share: data samples and boxes in, labelled detections out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import nms

from rar_mmdet.components import build_recognizer
from rar_mmdet.emission import Emission
from rar_mmdet.errors import ConfigError, InvalidBoxError
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.pixels import original_image
from rar_mmdet.structures import ImageRegions, RankStatus, Recognition

__all__ = ["RegionClassifier", "RegionSelection"]

_KEPT_DEPTH = 20  # columns of the shortlist kept in `data_sample.recognition`: enough for recall@20, light to dump


@dataclass(frozen=True)
class RegionSelection:
    """Which of a detector's boxes are recognised.

    Args:
        max_regions: the best so many of an image, by box score.
        nms_iou: class-agnostic NMS over the boxes first; `None` for none.
        min_size: boxes narrower or lower than this, in original pixels and after cutting at the image's border, are
            dropped; 1 is what MMDetection asks of annotated boxes.
    """

    max_regions: int = 1000
    nms_iou: float | None = None
    min_size: float = 1.0

    def __post_init__(self) -> None:
        if self.max_regions < 1:
            raise ConfigError(f"RegionSelection.max_regions must be >= 1, got {self.max_regions}")
        if self.nms_iou is not None and not 0 < self.nms_iou <= 1:
            raise ConfigError(f"RegionSelection.nms_iou must be in (0, 1] or None, got {self.nms_iou}")
        if not self.min_size > 0:
            raise ConfigError(f"RegionSelection.min_size must be > 0, got {self.min_size}")

    def __call__(self, boxes_xyxy: Tensor, box_scores: Tensor, frame: ImageFrame) -> tuple[Tensor, Tensor]:
        """Select among boxes (P, 4) in original pixels with scores (P,).

        Returns:
            (R, 4) boxes cut at the image's border, best first; their (R,) int64 rows among the P.
        """
        boxes_xyxy = frame.clip(boxes_xyxy)
        # A box that is not finite fails the comparison as well.
        large = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] >= self.min_size).all(dim=1).nonzero()[:, 0]
        rows = large[box_scores[large].sort(descending=True, stable=True).indices]
        if self.nms_iou is not None and len(rows):
            # Stand-in scores keep our order of ties; torchvision does not sort stably.
            order = torch.arange(len(rows), 0, -1, device=rows.device).float()
            rows = rows[nms(boxes_xyxy[rows], order, self.nms_iou)]
        rows = rows[: self.max_regions]
        return boxes_xyxy[rows], rows


class RegionClassifier:
    """A recognizer at work on MMDetection's data samples. A plain object: never part of `state_dict`, DDP or `.to()`.

    Args:
        recognizer: config of a `RegionRecognizer`, or the object.
        where: the path of that config, for errors.
        default_emission: the emission when the config has none.
        backend_args: MMEngine file backend of the vocabulary and of images that were not packed.
    """

    def __init__(
        self, recognizer: Any, *, where: str, default_emission: Emission, backend_args: dict | None = None
    ) -> None:
        self.recognizer = build_recognizer(recognizer, where, default_emission, backend_args)
        self.backend_args = backend_args

    def __call__(
        self,
        samples: Sequence[DetDataSample],
        boxes_xyxy: Sequence[Tensor],
        box_scores: Sequence[Tensor] | None,
        device: torch.device,
    ) -> list[Recognition]:
        """Recognise the boxes of a batch and write `recognition` on its data samples.

        Args:
            samples: B data samples; their pixel fields are dropped after use.
            boxes_xyxy: B times (R_b, 4), original pixels.
            box_scores: B times (R_b,) or `None` for given boxes.
            device: where encoder and ranker run.
        """
        if self.recognizer.device != device:
            self.recognizer.to(device)
        crops = [sample.get("region_crops", None) for sample in samples]
        # Without boxes, or with all crops made ahead, no pixel is looked at: `None` spares the decoding.
        images = [
            None if self._has_all(ready) or not len(boxes) else original_image(sample, device, self.backend_args)
            for sample, ready, boxes in zip(samples, crops, boxes_xyxy, strict=True)
        ]
        try:
            recognitions = self.recognizer.recognize(
                [
                    ImageRegions(image, boxes, None if box_scores is None else box_scores[i], crops=crops[i])
                    for i, (image, boxes) in enumerate(zip(images, boxes_xyxy, strict=True))
                ]
            )
        except InvalidBoxError as error:
            names = ", ".join(f"{s.metainfo.get('img_id')} ({s.metainfo.get('img_path')})" for s in samples)
            raise InvalidBoxError(f"{error}. Images of this batch: {names}") from error
        for sample, recognition in zip(samples, recognitions, strict=True):
            sample.recognition = _summary(recognition)
            for field in ("ori_img", "region_crops", "given_boxes"):
                if field in sample:
                    delattr(sample, field)
        return recognitions

    def _has_all(self, crops: Any) -> bool:
        return crops is not None and (self.recognizer.ranker is None or crops.ranker is not None)

    def to_instances(
        self, recognition: Recognition, frame: ImageFrame, rescale: bool, device: torch.device
    ) -> InstanceData:
        """Detections in MMDetection's form.

        Fields: `bboxes` (M, 4), `scores` (M,) descending, `labels` (M,), `region_ids` (M,) rows of
        `data_sample.recognition`, `label_names`, M strings for people, "retrieved → ranked" where the ranker changed
        the best category of the region and this is it.
        """
        regions = recognition.region_ids.cpu()
        boxes = frame.to_output(recognition.boxes_xyxy[regions], rescale).reshape(-1, 4)
        return InstanceData(
            bboxes=boxes.to(device),
            scores=recognition.scores.to(device),
            labels=recognition.category_ids.to(device),
            region_ids=regions.to(device),
            label_names=self._label_names(recognition),
        )

    def _label_names(self, recognition: Recognition) -> list[str]:
        names = self.recognizer.category_names
        changed: dict[int, tuple[int, int]] = {}
        if recognition.shortlist.depth:
            retrieved, ranked = recognition.shortlist.category_ids[:, 0], recognition.ranked_ids[:, 0]
            for region in (retrieved != ranked).nonzero()[:, 0].tolist():
                changed[region] = (int(retrieved[region]), int(ranked[region]))
        labels = []
        for region, category in zip(recognition.region_ids.tolist(), recognition.category_ids.tolist(), strict=True):
            before, after = changed.get(region, (category, category))
            arrow = before != after and category == after
            labels.append(f"{names[before]} → {names[after]}" if arrow else names[category])
        return labels


def _summary(recognition: Recognition) -> InstanceData:
    """`data_sample.recognition`: R rows, original frame, on the CPU."""
    depth = min(recognition.shortlist.depth, _KEPT_DEPTH)
    best = recognition.shortlist.head(depth)
    return InstanceData(
        bboxes=recognition.boxes_xyxy.cpu(),
        box_scores=recognition.box_scores.cpu(),
        shortlist_ids=best.category_ids.cpu(),
        shortlist_probs=best.probs.cpu(),
        ranked_ids=recognition.ranked_ids.cpu(),
        status=recognition.ranking.status.cpu(),
        asked=(recognition.ranking.status != RankStatus.SKIPPED).cpu(),
    )
