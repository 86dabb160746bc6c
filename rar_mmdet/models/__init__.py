"""The MMDetection face; importing this package registers its models."""

import rar_mmdet.registry  # noqa: F401  # first: it checks that MMDetection can be used here
from rar_mmdet.components import build_component, build_recognizer
from rar_mmdet.files.vocabulary import read_vocabulary
from rar_mmdet.models.detectors import ProposalRecognizer, RARDetector
from rar_mmdet.models.hooks import RecognitionHook, collect_reports
from rar_mmdet.models.preflight import missing_assets
from rar_mmdet.models.recognition_branch import RecognitionBranch
from rar_mmdet.models.region_selection import RegionSelection
from rar_mmdet.models.roi_heads import RARCascadeRoIHead, RARRoIHead
from rar_mmdet.models.test_time_augmentation import RecognitionTTAModel

__all__ = [
    "ProposalRecognizer",
    "RARCascadeRoIHead",
    "RARDetector",
    "RARRoIHead",
    "RecognitionBranch",
    "RecognitionHook",
    "RecognitionTTAModel",
    "RegionSelection",
    "build_component",
    "build_recognizer",
    "collect_reports",
    "missing_assets",
    "read_vocabulary",
]
