"""Recognition of given boxes: no backbone runs."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.models.dataset_meta import VocabularyMeta
from rar_mmdet.models.frames import ImageFrame, describe
from rar_mmdet.models.placeholder import PlaceholderParameter
from rar_mmdet.models.recognition_branch import RecognitionBranch
from rar_mmdet.registry import MODELS

__all__ = ["ProposalRecognizer"]


@MODELS.register_module()
class ProposalRecognizer(BaseDetector):
    """Names for the boxes of `data_sample.given_boxes`: annotated ones or those of a proposal file.

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
        self.branch = RecognitionBranch(
            recognizer, where="model.recognizer", default_emission=TopPairs(), backend_args=backend_args
        )
        self.placeholder = PlaceholderParameter()

    dataset_meta = VocabularyMeta()

    def predict(self, batch_inputs: Any, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Recognise the proposals of a batch.

        Args:
            batch_inputs: network input; not used but for its device.
            batch_data_samples: B data samples with `given_boxes` in original pixels, or with `proposals` where the
                image was not moved.
            rescale: boxes in the size of the original image.

        Returns:
            The data samples with `pred_instances` and `recognition`.
        """
        given = [_given_boxes(sample) for sample in batch_data_samples]
        results = self.branch.predict(
            batch_data_samples,
            [instances.bboxes for instances in given],
            [instances.scores for instances in given],
            rescale=rescale,
            device=self.placeholder.device,
        )
        return self.add_pred_to_datasample(batch_data_samples, results)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Refuse: there is nothing to train."""
        raise InferenceOnlyError("ProposalRecognizer is inference only: encoder and ranker are used as they are")

    def extract_feat(self, batch_inputs: Tensor) -> tuple:
        """No features: there is no backbone."""
        return ()

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None) -> tuple:
        return ()


def _given_boxes(sample: DetDataSample) -> InstanceData:
    """The boxes to recognise, original frame, with their scores."""
    given = sample.get("given_boxes", sample.get("proposals", None))
    image = describe(sample.metainfo)
    if given is None:
        raise ConfigError(
            f"{image} has no proposals; put dict(type='rar_mmdet.ProposalsFromAnnotations') or "
            "dict(type='LoadProposals') into the pipeline"
        )
    if "given_boxes" not in sample and not ImageFrame.from_metainfo(sample.metainfo).is_identity:
        raise ConfigError(
            f"{image} was resized, flipped or cut, and whether its proposals were moved with it cannot be told; put "
            "dict(type='rar_mmdet.KeepOriginalImage') right after the loading transform and end the pipeline with "
            "dict(type='rar_mmdet.PackRecognitionInputs')"
        )
    return given
