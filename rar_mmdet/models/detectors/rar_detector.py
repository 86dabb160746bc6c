"""RAR behind any detector: one-stage, DETR-like, or whatever else predicts boxes."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.models.language_models import BertModel
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.structures import InstanceData
from torch import Tensor

from rar_mmdet.detectors import Detected, class_scores, rows_of_names
from rar_mmdet.detectors.selection import FOUND_SELECTION, RegionSelection
from rar_mmdet.emission import FOUND_BOXES
from rar_mmdet.errors import ConfigError, InferenceOnlyError
from rar_mmdet.files import read_vocabulary
from rar_mmdet.files.names import shown
from rar_mmdet.models.dataset_meta import VocabularyMeta
from rar_mmdet.models.detectors.box_source import BoxSourceDetector
from rar_mmdet.models.frames import ImageFrame
from rar_mmdet.models.placeholder import PlaceholderParameter
from rar_mmdet.models.recognition_branch import RecognitionBranch
from rar_mmdet.models.weights_check import WeightsCheck
from rar_mmdet.registry import MODELS

__all__ = ["RARDetector"]


def _model_of(detector: Any) -> Any:
    """The model config itself, also where a config file or 'package::path' is named."""
    if not isinstance(detector, str):
        return detector
    return (get_config(detector) if "::" in detector else Config.fromfile(detector)).model


def _mend_language_model(language_model: BertModel) -> None:
    """Let the BERT of MMDetection 3.3's Grounding DINO run on transformers 5; only this instance is touched.

    transformers 5 dropped `batch_encode_plus` (calling the tokenizer is the same) and takes attention masks of shape
    (B, L) or (B, 1, L, L), while MMDetection hands over (B, L, L).
    """

    def give_mask_a_head_axis(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = kwargs.get("attention_mask")
        return args, kwargs if mask is None or mask.dim() != 3 else {**kwargs, "attention_mask": mask[:, None]}

    if not hasattr(language_model.tokenizer, "batch_encode_plus"):
        language_model.tokenizer.batch_encode_plus = language_model.tokenizer.__call__
    bert = language_model.language_backbone.body.model
    bert.register_forward_pre_hook(give_mask_a_head_axis, with_kwargs=True)


@MODELS.register_module()
class RARDetector(BaseDetector):
    """Any MMDetection detector whose boxes are merged across its classes, named anew and scored anew.

    A checkpoint of the inner detector loads as it is.

    Args:
        detector: the `model` of the inner detector's config (RetinaNet, RTMDet, YOLOX, DETR, DINO, Grounding DINO,
            ...), or that config's path, such as 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'; or a detector of
            `rar_mmdet.detectors`, `dict(type='rar_mmdet.TransformersDetector', model='ustc-community/dfine-...')`,
            which needs no checkpoint.
        recognizer: config of the `RegionRecognizer`. Its default emission is (s * score)^0.5, per-class NMS at 0.5 and
            the best 300.
        selection: arguments of `RegionSelection`; by default the best 300 boxes after class-agnostic NMS at 0.7 (ours:
            the same object is often predicted under several of the detector's classes).
        text_prompt: what a text-conditioned detector (Grounding DINO, GLIP) is asked to find, phrases separated by
            ' . ', such as "object . animal . thing ."; its labels are not used.
        detector_names: where the recogniser has a `detector_fusion`, the names of a MMDetection detector's labels, in
            their order: names, a names file or an annotation file. A detector of `rar_mmdet.detectors` knows its own.
        backend_args: MMEngine file backend for images that were not packed.
    """

    def __init__(
        self,
        *,
        detector: dict | str,
        recognizer: Any,
        selection: dict | None = None,
        text_prompt: str | None = None,
        detector_names: Any = None,
        data_preprocessor: dict | None = None,
        backend_args: dict | None = None,
    ) -> None:
        inner = MODELS.build(_model_of(detector))
        if text_prompt is None and hasattr(inner, "language_model"):
            raise ConfigError(
                f"model.detector is a {type(inner).__name__}, which finds what a text names: give model.text_prompt, "
                "such as 'object . animal . thing .'"
            )
        super().__init__(data_preprocessor=data_preprocessor or inner.data_preprocessor)
        self.detector = inner
        self.text_prompt = text_prompt
        if isinstance(getattr(inner, "language_model", None), BertModel):
            _mend_language_model(inner.language_model)
        self.branch = RecognitionBranch(
            recognizer,
            where="model.recognizer",
            default_emission=FOUND_BOXES,
            backend_args=backend_args,
        )
        self.selection = RegionSelection.from_config(selection, "model.selection", **FOUND_SELECTION)
        self._names = None if detector_names is None else tuple(read_vocabulary(detector_names, backend_args))
        self._rows: dict[int, list[int]] | None = None
        self._joins_scores = self.branch.recognizer.detector_fusion is not None
        if self._joins_scores and isinstance(inner, BoxSourceDetector):
            inner.gives_class_scores = True
        elif self._joins_scores and self._names is None:
            raise ConfigError(
                "model.recognizer.detector_fusion needs the names of the detector's labels: give model.detector_names, "
                "such as the annotation file it was trained on"
            )
        self.placeholder = PlaceholderParameter()
        self._register_load_state_dict_pre_hook(self._add_prefix)
        self._weights = WeightsCheck(self)
        self._weights.loaded = getattr(inner, "brings_weights", False)

    dataset_meta = VocabularyMeta()

    def __getattr__(self, name: str) -> Any:
        """What the wrapper itself has not is the inner detector's: `backbone`, `neck`, `bbox_head`, `with_rpn`, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            detector = self.__dict__.get("_modules", {}).get("detector")
            if detector is None or name.startswith("_"):
                raise
            return getattr(detector, name)

    @staticmethod
    def _add_prefix(state_dict: dict, prefix: str, *_: Any) -> None:
        """Before loading: the keys of the inner detector's own checkpoint lack `detector.`."""
        if any(key.startswith(f"{prefix}detector.") for key in state_dict):
            return
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}detector.{key[len(prefix) :]}"] = state_dict.pop(key)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detect, then recognise.

        Args:
            batch_inputs: (B, 3, H, W) network input.
            batch_data_samples: B data samples.
            rescale: boxes in the size of the original image.

        Returns:
            The data samples with `pred_instances` (the inner detector's masks follow their boxes) and `recognition`.
        """
        self._weights.warn(type(self.detector).__name__)
        if self.text_prompt is not None:
            for sample in batch_data_samples:
                sample.set_metainfo({"text": self.text_prompt, "custom_entities": True})
        batch_data_samples = self.detector.predict(batch_inputs, batch_data_samples, rescale=True)
        frames = [ImageFrame.from_metainfo(sample.metainfo) for sample in batch_data_samples]
        boxes, scores, sources, classes = [], [], [], []
        for sample, frame in zip(batch_data_samples, frames, strict=True):
            found = sample.pred_instances
            everywhere = frame.from_detector(found.bboxes)
            selected, rows = self.selection(everywhere, found.scores, frame.original_hw)
            boxes.append(selected)
            scores.append(found.scores[rows])
            sources.append(rows)
            if self._joins_scores:
                classes.append(self._class_scores(found, everywhere, frame))
        results = self.branch.predict(
            batch_data_samples,
            boxes,
            scores,
            rescale=rescale,
            device=self.placeholder.device,
            class_scores=classes if self._joins_scores else None,
        )
        for sample, result, frame, rows in zip(batch_data_samples, results, frames, sources, strict=True):
            if "masks" in sample.pred_instances and rescale:
                masks = frame.masks_from_detector(sample.pred_instances.masks)
                result.masks = masks[rows[result.region_ids]]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _class_scores(self, found: InstanceData, boxes_xyxy: Tensor, frame: ImageFrame) -> Tensor:
        """(R, C) the detector's own scores of the vocabulary's names, for the boxes that `selection` keeps."""
        if "class_scores" in found:
            names, own = self.detector.source.names, found.class_scores.cpu()
            region_ids, name_ids = own.nonzero(as_tuple=True)
            name_scores = own[region_ids, name_ids]
        else:  # a box for each class
            assert self._names is not None
            names, name_ids, name_scores = self._names, found.labels.cpu(), found.scores.cpu()
            region_ids = torch.arange(len(name_ids))
            if len(name_ids) and int(name_ids.max()) >= len(names):
                raise ConfigError(
                    f"model.detector_names has {len(names)} names, and the detector found label {int(name_ids.max())}; "
                    "give the names of all its labels in their order"
                )
        vocabulary = self.branch.recognizer.category_names
        if self._rows is None:
            self._rows = rows_of_names(names, vocabulary)
            if not self._rows:
                raise ConfigError(
                    f"none of the detector's {len(names)} names ({shown(names)}) is one of the vocabulary's "
                    f"{len(vocabulary)}, so model.recognizer.detector_fusion has nothing to join; leave it out"
                )
        detected = Detected(boxes_xyxy.cpu(), found.scores.cpu(), names, region_ids, name_ids, name_scores)
        merged = self.selection.merge(detected, frame.original_hw)
        return class_scores(merged, vocabulary, self._rows)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Refuse: RAR is training-free."""
        raise InferenceOnlyError(
            "RARDetector is inference only: RAR needs no training. Train the inner detector by its own config and load "
            "that checkpoint here"
        )

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """Features of the inner detector."""
        return self.detector.extract_feat(batch_inputs)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None) -> Any:
        return self.detector._forward(batch_inputs, batch_data_samples)
