"""The MMDetection face; importing this package registers its models."""

import rar_mmdet.registry  # noqa: F401  # first: it checks that MMDetection can be used here
from rar_mmdet.components import build_component, build_recognizer
from rar_mmdet.detectors.selection import RegionSelection
from rar_mmdet.files.vocabulary import read_vocabulary
from rar_mmdet.models.checkpoint_classes import allow_runner_checkpoints
from rar_mmdet.models.detectors import ProposalRecognizer, RARDetector
from rar_mmdet.models.recognition_branch import RecognitionBranch
from rar_mmdet.models.roi_heads import RARCascadeRoIHead, RARRoIHead
from rar_mmdet.models.test_time_augmentation import RecognitionTTAModel
from rar_mmdet.models.wrapped_config import answer_for_the_backbone

__all__ = [
    "ProposalRecognizer",
    "RARCascadeRoIHead",
    "RARDetector",
    "RARRoIHead",
    "RecognitionBranch",
    "RecognitionTTAModel",
    "RegionSelection",
    "build_component",
    "build_recognizer",
    "read_vocabulary",
]

# What MMDetection's own helpers, such as init_detector and DetInferencer, need to work with these models.
allow_runner_checkpoints()
answer_for_the_backbone()
