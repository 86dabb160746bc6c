"""Pixels and text to unit vectors of one space."""

from rar_mmdet.encoders.base import Encoder
from rar_mmdet.encoders.openclip import OpenClipEncoder

__all__ = ["Encoder", "OpenClipEncoder"]
