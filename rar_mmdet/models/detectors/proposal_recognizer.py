"""Recognition of given boxes: no backbone runs."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.structures import SampleList
from torch import Tensor

from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models.anchor import DistributedAnchor, with_vocabulary
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.region_classifier import RegionClassifier
from rar_mmdet.registry import MODELS

__all__ = ["ProposalRecognizer"]


@MODELS.register_module()
class ProposalRecognizer(BaseDetector):
    """Names for the boxes of `data_sample.proposals`: annotated ones or those of a proposal file.

    With annotated boxes this is the paper's zero-shot recognition (arXiv 2403.13805, section 4.4).

    Args:
        recognizer: config of the `RegionRecognizer`. Its default emission keeps the 300 best (box, category) pairs
            of an image, without NMS and without the boxes' scores.
        data_preprocessor: by default the images are only moved to the device.
        backend_args: MMEngine file backend for images that were not packed.
    """

    def __init__(
        self, *, recognizer: Any, data_preprocessor: dict | None = None, backend_args: dict | None = None
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor or {"type": "mmengine.BaseDataPreprocessor"})
        self.classifier = RegionClassifier(
            recognizer, where="model.recognizer", default_emission=TopPairs(), backend_args=backend_args
        )
        self.anchor = DistributedAnchor()

    dataset_meta = with_vocabulary()

    def predict(self, batch_inputs: Any, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Recognise the proposals of a batch.

        Args:
            batch_inputs: network input; not used but for its device.
            batch_data_samples: B data samples with `proposals` in the frame of the input.
            rescale: boxes in the size of the original image.

        Returns:
            The data samples with `pred_instances` and `recognition`.
        """
        frames = [ImageFrame.from_metainfo(sample.metainfo) for sample in batch_data_samples]
        boxes, scores = [], []
        for sample, frame in zip(batch_data_samples, frames, strict=True):
            proposals = sample.get("proposals", None)
            if proposals is None:
                raise ConfigError(
                    f"image {sample.metainfo.get('img_id')} ({sample.metainfo.get('img_path')}) has no proposals; put "
                    "dict(type='rar_mmdet.ProposalsFromAnnotations') or dict(type='LoadProposals') into the pipeline"
                )
            boxes.append(frame.to_original(proposals.bboxes))
            scores.append(proposals.scores)
        device = self.anchor.device
        recognitions = self.classifier(batch_data_samples, boxes, scores, device)
        results = [
            self.classifier.to_instances(recognition, frame, rescale, device)
            for recognition, frame in zip(recognitions, frames, strict=True)
        ]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Refuse: there is nothing to train."""
        raise InferenceOnlyError("ProposalRecognizer is inference only: encoder and ranker are used as they are")

    def extract_feat(self, batch_inputs: Tensor) -> tuple:
        """No features: there is no backbone."""
        return ()

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None) -> tuple:
        return ()
