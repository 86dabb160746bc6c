"""Detectors of `rar_mmdet.detectors` as MMDetection knows detectors: data samples in, `pred_instances` out."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from rar_mmdet.components import build_component
from rar_mmdet.detectors import class_scores
from rar_mmdet.errors import InferenceOnlyError
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.pixels import original_image
from rar_mmdet.models.placeholder import PlaceholderParameter
from rar_mmdet.registry import MODELS

__all__ = ["BoxSourceDetector"]


class BoxSourceDetector(BaseDetector):
    """Runs on the original pixels of the photos, whatever the pipeline made of them for the network input.

    A plain object does the work: never part of `state_dict`, DDP or `.to()`. It loads itself, so no checkpoint is
    needed.

    Args:
        source: settings of a detector of `rar_mmdet.detectors`, with its `type`.
        data_preprocessor: by default the images are only moved to the device.
        backend_args: MMEngine file backend for images that were not packed.
    """

    brings_weights = True

    def __init__(
        self, *, source: dict, data_preprocessor: dict | None = None, backend_args: dict | None = None
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor or {"type": "mmengine.BaseDataPreprocessor"})
        self.source = build_component(source, "model.detector")
        self.backend_args = backend_args
        self.gives_class_scores = False  # many numbers, for those who ask
        self.placeholder = PlaceholderParameter()

    def predict(self, batch_inputs: Any, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detect in the photos of a batch.

        Args:
            batch_inputs: network input; not looked at.
            batch_data_samples: B data samples.
            rescale: boxes in the size of the original image, else in that of the network input.

        Returns:
            The data samples with `pred_instances`: `bboxes`, `scores`, `labels` (rows of the detector's own names, 0
            where it tells no classes apart) and, where it gives masks, `masks`; frames as in MMDetection's detectors.
            With `gives_class_scores` also `class_scores` (R, V), 0 where a name has none.
        """
        device = self.placeholder.device
        if hasattr(self.source, "load"):
            self.source.load(device)
        photos = [original_image(sample, torch.device("cpu"), self.backend_args) for sample in batch_data_samples]
        paths = [sample.metainfo.get("img_path") for sample in batch_data_samples]
        results = []
        for sample, found in zip(batch_data_samples, self.source.detect(photos, paths), strict=True):
            frame = ImageFrame.from_metainfo(sample.metainfo)
            # The inverse of what is asked of detectors' boxes: flipped where the photo was, or in the input's frame.
            boxes = frame.to_detector(found.boxes_xyxy) if rescale else frame.to_input(found.boxes_xyxy)
            fields = {"bboxes": boxes, "scores": found.scores, "labels": found.label_ids.clamp_min(0)}
            if self.gives_class_scores:
                fields["class_scores"] = class_scores(found, found.names, {i: [i] for i in range(len(found.names))})
            if found.masks is not None:
                fields["masks"] = frame.masks_from_detector(found.masks)  # flips are their own inverse
            results.append(InstanceData(**{key: value.to(device) for key, value in fields.items()}))
        return self.add_pred_to_datasample(batch_data_samples, results)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Refuse: it is used as it is."""
        raise InferenceOnlyError(f"{type(self.source).__name__} is inference only: train it with its own package")

    def extract_feat(self, batch_inputs: Tensor) -> tuple:
        """No features in MMDetection's sense."""
        return ()

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None) -> tuple:
        return ()


def _register(name: str) -> None:
    """Let configs name a detector of `rar_mmdet.detectors` where MMDetection expects one of its own."""

    def build(
        data_preprocessor: dict | None = None, backend_args: dict | None = None, **source: Any
    ) -> BoxSourceDetector:
        return BoxSourceDetector(
            source={"type": name, **source}, data_preprocessor=data_preprocessor, backend_args=backend_args
        )

    MODELS.register_module(name, module=build)


for _name in ("TransformersDetector", "AnnotationDetector"):
    _register(_name)
