"""Settings found on training images: the crop scale and the blur."""

from rar_mmdet.calibration.annotated import AnnotatedRegions, find_regions
from rar_mmdet.calibration.crops import Embedder, Scorer, sweep

__all__ = ["AnnotatedRegions", "Embedder", "Scorer", "find_regions", "sweep"]
