"""Pixels and text to unit vectors of one space."""

from rar_mmdet.encoders.base import Encoder, RegionEncoder
from rar_mmdet.encoders.fgclip import FGCLIP2Encoder, FGCLIP2RegionEncoder
from rar_mmdet.encoders.mixed import MixedEncoder
from rar_mmdet.encoders.openclip import OpenClipEncoder
from rar_mmdet.encoders.openclip_regions import OpenClipRegionEncoder
from rar_mmdet.encoders.presets import encoder_from_preset
from rar_mmdet.encoders.qwen3_vl import Qwen3VLEmbeddingEncoder
from rar_mmdet.encoders.regionclip import RegionClipEncoder
from rar_mmdet.encoders.timm_encoder import TimmEncoder
from rar_mmdet.encoders.transformers_encoder import TransformersEncoder

__all__ = [
    "Encoder",
    "FGCLIP2Encoder",
    "FGCLIP2RegionEncoder",
    "MixedEncoder",
    "OpenClipEncoder",
    "OpenClipRegionEncoder",
    "Qwen3VLEmbeddingEncoder",
    "RegionClipEncoder",
    "RegionEncoder",
    "TimmEncoder",
    "TransformersEncoder",
    "encoder_from_preset",
]
