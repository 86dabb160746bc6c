"""RegionCLIP (arXiv 2112.09106), native: published checkpoints load as they are; no Detectron2."""

from rar_mmdet.encoders.regionclip.encoder import RegionClipEncoder
from rar_mmdet.encoders.regionclip.files import read_class_embeddings
from rar_mmdet.encoders.regionclip.model import RegionClip
from rar_mmdet.encoders.regionclip.zero_shot import Detections, region_logits, zero_shot_detections

__all__ = [
    "Detections",
    "RegionClip",
    "RegionClipEncoder",
    "read_class_embeddings",
    "region_logits",
    "zero_shot_detections",
]
