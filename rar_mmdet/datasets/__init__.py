"""Datasets and pipeline steps; importing this package registers them."""

import rar_mmdet.registry  # noqa: F401  # first: it checks that MMDetection can be used here
from rar_mmdet.datasets.transforms import (
    CropRegions,
    KeepOriginalImage,
    PackRecognitionInputs,
    ProposalsFromAnnotations,
)
from rar_mmdet.datasets.vocabulary_datasets import (
    CocoVocabularyDataset,
    LVISVocabularyDataset,
    V3DetVocabularyDataset,
)

__all__ = [
    "CocoVocabularyDataset",
    "CropRegions",
    "KeepOriginalImage",
    "LVISVocabularyDataset",
    "PackRecognitionInputs",
    "ProposalsFromAnnotations",
    "V3DetVocabularyDataset",
]
