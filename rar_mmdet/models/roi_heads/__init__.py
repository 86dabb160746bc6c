"""RoI heads; importing this package registers them."""

from rar_mmdet.models.roi_heads.rar_roi_head import RARCascadeRoIHead, RARRoIHead

__all__ = ["RARCascadeRoIHead", "RARRoIHead"]
