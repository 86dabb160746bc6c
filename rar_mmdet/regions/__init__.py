"""Regions: crop, rescale by object size and blur (paper sections 3.2 and C.3)."""

from rar_mmdet.files.images import read_image
from rar_mmdet.regions.background import Background, BlurBackground, BlurOutsideMask, GreyBackground, NoBackground
from rar_mmdet.regions.boxes import find_invalid_boxes, find_suspicious_boxes, validate_boxes
from rar_mmdet.regions.cropper import RegionCropper
from rar_mmdet.regions.scale import AreaScale, FixedScale, ScalePolicy, SmoothAreaScale

__all__ = [
    "AreaScale",
    "Background",
    "BlurBackground",
    "BlurOutsideMask",
    "FixedScale",
    "GreyBackground",
    "NoBackground",
    "RegionCropper",
    "ScalePolicy",
    "SmoothAreaScale",
    "find_invalid_boxes",
    "find_suspicious_boxes",
    "read_image",
    "validate_boxes",
]
