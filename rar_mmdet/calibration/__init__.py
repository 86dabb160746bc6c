"""Settings found on training images: crop scale and blur; weight, temperature and margin of a ranker; a detector's."""

from rar_mmdet.calibration.annotated import AnnotatedRegions, find_regions
from rar_mmdet.calibration.crops import Embedder, Scorer, sweep
from rar_mmdet.calibration.ranker import Opinions, ask_about, fit

__all__ = ["AnnotatedRegions", "Embedder", "Opinions", "Scorer", "ask_about", "find_regions", "fit", "sweep"]
