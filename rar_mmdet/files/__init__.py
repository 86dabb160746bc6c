"""What every stage reads: images, checkpoints, vocabularies. Knows no stage and no MMDetection."""

from rar_mmdet.files.checkpoints import Checkpoint
from rar_mmdet.files.images import read_image
from rar_mmdet.files.vocabulary import read_vocabulary

__all__ = ["Checkpoint", "read_image", "read_vocabulary"]
