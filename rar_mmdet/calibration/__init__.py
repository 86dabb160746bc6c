"""Settings found on training images: the crop scale and the blur; a ranker's weight, temperature and margin."""

from rar_mmdet.calibration.annotated import AnnotatedRegions, find_regions
from rar_mmdet.calibration.crops import Embedder, Scorer, sweep
from rar_mmdet.calibration.ranker import Opinions, ask_about, fit

__all__ = ["AnnotatedRegions", "Embedder", "Opinions", "Scorer", "ask_about", "find_regions", "fit", "sweep"]
