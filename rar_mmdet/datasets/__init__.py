"""Datasets and pipeline steps; importing this package registers them."""

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
