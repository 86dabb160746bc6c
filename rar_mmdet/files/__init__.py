"""What every stage reads: images, checkpoints, vocabularies. Knows no stage and no MMDetection."""

from rar_mmdet.files.checkpoints import Checkpoint, file_sha256
from rar_mmdet.files.images import read_image, readable_photos
from rar_mmdet.files.vocabulary import (
    check_same_vocabulary,
    clean_name,
    label_order,
    read_vocabulary,
    vocabulary_hash,
)

__all__ = [
    "Checkpoint",
    "check_same_vocabulary",
    "clean_name",
    "file_sha256",
    "label_order",
    "read_image",
    "read_vocabulary",
    "readable_photos",
    "vocabulary_hash",
]
