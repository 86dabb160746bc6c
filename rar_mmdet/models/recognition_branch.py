"""What all models of this project share: data samples and boxes in, labelled detections out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from rar_mmdet.components import build_recognizer
from rar_mmdet.emission import Emission, TopPairs
from rar_mmdet.errors import ConfigError
from rar_mmdet.files.vocabulary import vocabulary_hash
from rar_mmdet.models.frames import ImageFrame, describe
from rar_mmdet.models.pixels import original_image
from rar_mmdet.structures import ImageRegions, RankStatus, Recognition

__all__ = ["RecognitionBranch"]

_KEPT_DEPTH = 20  # columns of the shortlist kept in `data_sample.recognition`: enough for recall@20, light to dump


class RecognitionBranch:
    """A recogniser at work on MMDetection's data samples. A plain object: never part of `state_dict`, DDP or `.to()`.

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
        self.unreadable: dict[Any, str] = {}  # id of each image that could not be read -> why
        # Told of every image before its annotations and pixels are dropped: hooks that keep more than a sample holds.
        self.listeners: list[Callable[[DetDataSample, Recognition], None]] = []

    def predict(
        self,
        samples: Sequence[DetDataSample],
        boxes_xyxy: Sequence[Tensor],
        box_scores: Sequence[Tensor] | None,
        *,
        rescale: bool,
        device: torch.device,
        class_scores: Sequence[Tensor] | None = None,
    ) -> list[InstanceData]:
        """Recognise the boxes of a batch and write `recognition` on its data samples.

        With `rescale` detections are in original pixels, and the samples' metainfo no longer says that they were
        flipped: MMDetection's test-time augmentation would flip them back.

        Args:
            samples: B data samples; their pixel fields are dropped after use.
            boxes_xyxy: B times (R_b, 4), original pixels.
            box_scores: B times (R_b,) or `None` for given boxes.
            rescale: detections in original pixels; else in those of the network input.
            device: where encoder and ranker run.
            class_scores: B times (R_b, C), see `ImageRegions`.

        Returns:
            B times the fields of `to_instances`.
        """
        frames = [ImageFrame.from_metainfo(sample.metainfo) for sample in samples]
        recognitions = self.recognize(samples, boxes_xyxy, box_scores, device, class_scores)
        for sample in samples:
            if rescale and sample.metainfo.get("flip"):
                sample.set_metainfo({"flip": False, "flip_direction": None})
        return [
            self.to_instances(recognition, frame, rescale, device)
            for recognition, frame in zip(recognitions, frames, strict=True)
        ]

    def recognize(
        self,
        samples: Sequence[DetDataSample],
        boxes_xyxy: Sequence[Tensor],
        box_scores: Sequence[Tensor] | None,
        device: torch.device,
        class_scores: Sequence[Tensor] | None = None,
    ) -> list[Recognition]:
        """As `predict`, but the whole `Recognition` of each image."""
        if self.recognizer.device != device:
            self.recognizer.to(device)
        scores: Sequence[Tensor | None] = [None] * len(samples) if box_scores is None else box_scores
        classes: Sequence[Tensor | None] = [None] * len(samples) if class_scores is None else class_scores
        batch = [
            self._without_regions(sample)
            if "unreadable" in sample.metainfo
            else replace(self._regions(sample, boxes, image_scores, device), class_scores=image_classes)
            for sample, boxes, image_scores, image_classes in zip(samples, boxes_xyxy, scores, classes, strict=True)
        ]
        recognitions = self.recognizer.recognize(batch)
        for sample, recognition in zip(samples, recognitions, strict=True):
            sample.recognition = _summary(recognition)
            for listen in self.listeners:
                listen(sample, recognition)
            for field in ("ori_img", "region_crops", "given_boxes", "annotated"):
                if field in sample:
                    delattr(sample, field)
        return recognitions

    def _without_regions(self, sample: DetDataSample) -> ImageRegions:
        """An image that the dataset could not read: whatever was found in its stead is left out, and it is counted."""
        image_id = sample.metainfo.get("img_id")
        if image_id not in self.unreadable:  # once, also where there are several views of it
            self.unreadable[image_id] = sample.metainfo["unreadable"]
            self.recognizer.counts["unreadable images"] += 1
        return ImageRegions(None, torch.zeros(0, 4), name=describe(sample.metainfo))

    def _regions(
        self, sample: DetDataSample, boxes_xyxy: Tensor, box_scores: Tensor | None, device: torch.device
    ) -> ImageRegions:
        """The boxes of one image with its pixels, or with its crops where these are all that is needed."""
        name = describe(sample.metainfo)
        emission = self.recognizer.emission
        if box_scores is not None and isinstance(emission, TopPairs) and emission.box_score_weight > 0:
            _refuse_scores_of_zero(box_scores, emission.box_score_weight, name)
        crops = sample.get("region_crops", None)
        complete = crops is not None and (self.recognizer.ranker is None or crops.ranker is not None)
        # `None` spares the decoding of an image nobody looks at.
        image = None if complete or not len(boxes_xyxy) else original_image(sample, device, self.backend_args)
        return ImageRegions(image, boxes_xyxy, box_scores, crops=crops, name=name)

    def to_instances(
        self, recognition: Recognition, frame: ImageFrame, rescale: bool, device: torch.device
    ) -> InstanceData:
        """Detections in MMDetection's form.

        Fields: `bboxes` (M, 4), `scores` (M,) descending, `labels` (M,), `region_ids` (M,) rows of
        `data_sample.recognition`, `label_names`, M strings for people, "retrieved → ranked" where the ranker changed
        the best category of the region and this is it.
        """
        regions = recognition.region_ids.cpu()
        boxes = recognition.boxes_xyxy[regions].reshape(-1, 4)
        return InstanceData(
            bboxes=(boxes if rescale else frame.to_input(boxes)).to(device),
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


def _refuse_scores_of_zero(box_scores: Tensor, weight: float, image: str) -> None:
    """Scores that are all zero, as `LoadProposals` fills them in, would make every detection's score zero."""
    if len(box_scores) and not box_scores.any():
        raise ConfigError(
            f"{image}: all {len(box_scores)} boxes have score 0, and box_score_weight={weight} multiplies with it. Has "
            "the proposal file no scores? Then set recognizer.emission=dict(box_score_weight=0.0)"
        )


@lru_cache(maxsize=4)
def _hash_of(category_names: tuple[str, ...]) -> str:
    return vocabulary_hash(category_names)


def _summary(recognition: Recognition) -> InstanceData:
    """`data_sample.recognition`: R rows, original frame, on the CPU; `vocabulary` says what the ids mean."""
    depth = min(recognition.shortlist.depth, _KEPT_DEPTH)
    best = recognition.shortlist.head(depth)
    return InstanceData(
        metainfo={"vocabulary": _hash_of(recognition.category_names)},
        bboxes=recognition.boxes_xyxy.cpu(),
        box_scores=recognition.box_scores.cpu(),
        shortlist_ids=best.category_ids.cpu(),
        shortlist_probs=best.probs.cpu(),
        ranked_ids=recognition.ranked_ids.cpu(),
        status=recognition.ranking.status.cpu(),
        asked=(recognition.ranking.status != RankStatus.SKIPPED).cpu(),
    )
